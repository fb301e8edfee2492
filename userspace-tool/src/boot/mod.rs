// SPDX-License-Identifier: GPL-2.0-only

//! Loading a kernel, by the protocol that its image speaks.

pub(crate) mod acpi;
mod aml;
pub(crate) mod bzimage;
pub(crate) mod cpu;
pub(crate) mod cpuid;
pub(crate) mod elf;

use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::layout::{COMMAND_LINE, COMMAND_LINE_SIZE};
use crate::memory::{self, GuestMemory};

/// How the first processor enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// In 64-bit mode, with RSI at the Linux boot parameters.
    Long {
        /// The first instruction.
        rip: u64,
    },
    /// In 32-bit protected mode without paging, with EBX at the PVH start information.
    Pvh {
        /// The first instruction.
        eip: u32,
    },
}

/// What is to be started.
#[derive(Debug, Clone)]
pub(crate) struct Boot {
    /// The kernel image.
    pub(crate) kernel: PathBuf,
    /// The initial RAM disk.
    pub(crate) initrd: Option<PathBuf>,
    /// The kernel command line.
    pub(crate) append: String,
    /// The size of guest memory.
    pub(crate) memory_size: u64,
}

/// The first bytes of an ELF image.
const ELF_MAGIC: &[u8] = b"\x7fELF";
/// How much of an image must be seen to know its kind.
const HEADER_SIZE: u64 = 0x206;
/// Where a bzImage has its magic number.
const BZIMAGE_MAGIC_OFFSET: usize = 0x202;
/// The magic number of a bzImage.
const BZIMAGE_MAGIC: &[u8] = b"HdrS";

/// Loads kernel, initrd, command line and boot parameters.
pub(crate) fn load(memory: &GuestMemory, boot: &Boot, rsdp: u64) -> Result<Entry> {
    let mut file = memory::open("kernel", &boot.kernel)?;
    let mut header = Vec::new();
    file.by_ref()
        .take(HEADER_SIZE)
        .read_to_end(&mut header)
        .and_then(|_| file.rewind())
        .map_err(|error| Error::File {
            what: "kernel",
            path: boot.kernel.clone(),
            error,
        })?;
    if header.starts_with(ELF_MAGIC) {
        elf::load(memory, boot, file, rsdp)
    } else if header
        .get(BZIMAGE_MAGIC_OFFSET..)
        .is_some_and(|rest| rest.starts_with(BZIMAGE_MAGIC))
    {
        bzimage::load(memory, boot, file, rsdp)
    } else {
        Err(not_a_kernel(
            &boot.kernel,
            "it is neither a bzImage nor an ELF image",
        ))
    }
}

/// Says why an image cannot be started.
fn not_a_kernel(path: &Path, reason: impl Into<String>) -> Error {
    Error::NotAKernel {
        path: path.into(),
        reason: reason.into(),
    }
}

/// Writes the command line, which may have at most `limit` bytes.
fn write_command_line(memory: &GuestMemory, text: &str, limit: u64) -> Result<()> {
    let limit = limit.min(COMMAND_LINE_SIZE - 1);
    if text.len() as u64 > limit {
        return Err(Error::CommandLine(format!(
            "it has {} bytes, and the kernel takes {limit}",
            text.len()
        )));
    }
    if text.contains('\0') {
        return Err(Error::CommandLine("it contains a NUL".into()));
    }
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    memory::write(memory, "the command line", COMMAND_LINE, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::MIB;

    fn load_file(path: &str) -> Error {
        let boot = Boot {
            kernel: path.into(),
            initrd: None,
            append: String::new(),
            memory_size: 2 * MIB,
        };
        load(&memory::allocate(boot.memory_size).unwrap(), &boot, 0).unwrap_err()
    }

    #[test]
    fn what_is_no_kernel_is_refused_with_the_reason() {
        assert!(load_file("/nowhere").to_string().contains("No such file"));
        assert!(load_file("/").to_string().contains("is a directory"));
        for file in ["/dev/null", "/proc/self/status"] {
            assert!(
                matches!(load_file(file), Error::NotAKernel { .. }),
                "{file}"
            );
        }
    }

    #[test]
    fn command_lines_have_a_limit() {
        let memory = memory::allocate(2 * MIB).unwrap();
        assert!(write_command_line(&memory, &"x".repeat(2047), 2047).is_ok());
        assert!(write_command_line(&memory, &"x".repeat(2048), 2047).is_err());
        assert!(write_command_line(&memory, &"x".repeat(1 << 16), u64::MAX).is_err());
        assert!(write_command_line(&memory, "a\0b", 2047).is_err());
    }
}
