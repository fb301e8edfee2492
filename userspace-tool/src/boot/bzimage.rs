// SPDX-License-Identifier: GPL-2.0-only

//! The Linux boot protocol, entered in 64-bit mode (Documentation/arch/x86/boot.rst of Linux).

use std::fs::File;

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::KernelLoader;
use vm_memory::GuestAddress;

use super::{not_a_kernel, write_command_line, Boot, Entry};
use crate::error::{Error, Result};
use crate::layout::{COMMAND_LINE, HIGH_MEMORY, MIB, ZERO_PAGE};
use crate::memory::{self, GuestMemory, Initrd};

/// The oldest protocol with a 64-bit entry and the `xloadflags` that announce it: 2.12.
const PROTOCOL_2_12: u16 = 0x020c;
/// `xloadflags`: the kernel has the 64-bit entry.
const XLF_KERNEL_64: u16 = 1 << 0;
/// The 64-bit entry lies this far behind the start of the protected-mode kernel.
const ENTRY_64: u64 = 0x200;
/// `loadflags`: the kernel was loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// `type_of_loader` of a boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// `vid_mode`: leave the video mode alone.
const VIDEO_NORMAL: u16 = 0xffff;
/// The length of the command line that a plain ELF kernel is given at most.
const ELF_COMMAND_LINE: u64 = 4096;

/// Loads a bzImage with all that belongs to it.
pub(crate) fn load(memory: &GuestMemory, boot: &Boot, mut file: File, rsdp: u64) -> Result<Entry> {
    // The image is as large as the file; check before reading, for a better message.
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    require(memory, HIGH_MEMORY + size)?;
    let loaded = BzImage::load(memory, Some(GuestAddress(HIGH_MEMORY)), &mut file, None)
        .map_err(|error| not_a_kernel(&boot.kernel, error.to_string()))?;
    let header = loaded
        .setup_header
        .ok_or_else(|| not_a_kernel(&boot.kernel, "it has no setup header"))?;
    let (version, flags) = (header.version, header.xloadflags);
    if version < PROTOCOL_2_12 || flags & XLF_KERNEL_64 == 0 {
        return Err(not_a_kernel(&boot.kernel, "it has no 64-bit entry point"));
    }

    // The kernel unpacks itself to its preferred address, or to where it was loaded if that is
    // higher.
    let end = header
        .pref_address
        .max(HIGH_MEMORY)
        .saturating_add(u64::from(header.init_size))
        .max(loaded.kernel_end);
    require(memory, end)?;
    let initrd = match &boot.initrd {
        Some(path) => Some(memory::load_initrd(
            memory,
            path,
            end,
            u64::from(header.initrd_addr_max) + 1,
        )?),
        None => None,
    };
    write_command_line(memory, &boot.append, u64::from(header.cmdline_size))?;
    write_zero_page(memory, header, boot.memory_size, initrd, rsdp)?;
    Ok(Entry::Long {
        rip: HIGH_MEMORY + ENTRY_64,
    })
}

/// Fails if memory below 4 GiB ends before `end`.
pub(super) fn require(memory: &GuestMemory, end: u64) -> Result<()> {
    let have = memory::low_end(memory);
    if end > have {
        return Err(Error::KernelTooLarge {
            need_mib: end.div_ceil(MIB),
            have_mib: have / MIB,
        });
    }
    Ok(())
}

/// Writes boot parameters for an ELF kernel that is entered in 64-bit mode.
pub(super) fn write_elf_boot_parameters(
    memory: &GuestMemory,
    boot: &Boot,
    initrd: Option<Initrd>,
    rsdp: u64,
) -> Result<()> {
    write_command_line(memory, &boot.append, ELF_COMMAND_LINE)?;
    let header = setup_header {
        boot_flag: 0xaa55,
        header: u32::from_le_bytes(*b"HdrS"),
        version: PROTOCOL_2_12,
        kernel_alignment: 0x0020_0000,
        ..Default::default()
    };
    write_zero_page(memory, header, boot.memory_size, initrd, rsdp)
}

/// Fills in and writes the boot parameters.
fn write_zero_page(
    memory: &GuestMemory,
    header: setup_header,
    memory_size: u64,
    initrd: Option<Initrd>,
    rsdp: u64,
) -> Result<()> {
    let parameters = zero_page(header, memory_size, initrd, rsdp)?;
    LinuxBootConfigurator::write_bootparams(
        &BootParams::new(&parameters, GuestAddress(ZERO_PAGE)),
        memory,
    )
    .map_err(|error| Error::GuestMemory {
        what: "the boot parameters",
        reason: error.to_string(),
    })
}

/// An address of the boot parameters that must lie below 4 GiB.
fn low(address: u64) -> Result<u32> {
    u32::try_from(address).map_err(|error| Error::GuestMemory {
        what: "the boot parameters",
        reason: error.to_string(),
    })
}

/// Makes the boot parameters.
fn zero_page(
    header: setup_header,
    memory_size: u64,
    initrd: Option<Initrd>,
    rsdp: u64,
) -> Result<boot_params> {
    let mut parameters = boot_params {
        hdr: header,
        acpi_rsdp_addr: rsdp,
        ..Default::default()
    };
    parameters.hdr.type_of_loader = LOADER_UNDEFINED;
    parameters.hdr.loadflags |= LOADED_HIGH;
    parameters.hdr.vid_mode = VIDEO_NORMAL;
    parameters.hdr.cmd_line_ptr = low(COMMAND_LINE)?;
    if let Some(initrd) = initrd {
        parameters.hdr.ramdisk_image = low(initrd.address)?;
        parameters.hdr.ramdisk_size = low(initrd.size)?;
    }
    for (slot, ((addr, size), kind)) in parameters
        .e820_table
        .iter_mut()
        .zip(memory::map(memory_size))
    {
        *slot = boot_e820_entry {
            addr,
            size,
            type_: kind as u32,
        };
        parameters.e820_entries += 1;
    }
    Ok(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::GIB;

    #[test]
    fn the_zero_page_describes_memory_and_initrd() {
        let initrd = Initrd {
            address: 0x700_0000,
            size: 12345,
        };
        let page = zero_page(setup_header::default(), 5 * GIB, Some(initrd), 0xe_0000).unwrap();
        assert_eq!(page.e820_entries, 6);
        let last = page.e820_table[5];
        let (addr, size, kind) = (last.addr, last.size, last.type_);
        assert_eq!((addr, size, kind), (4 * GIB, 2 * GIB, 1));
        let (image, size, line, rsdp) = (
            page.hdr.ramdisk_image,
            page.hdr.ramdisk_size,
            page.hdr.cmd_line_ptr,
            page.acpi_rsdp_addr,
        );
        assert_eq!(
            (image, size, line, rsdp),
            (0x700_0000, 12345, 0x2_0000, 0xe_0000)
        );
    }

    #[test]
    fn too_little_memory_is_said_in_mebibytes() {
        let memory = memory::allocate(16 * MIB).unwrap();
        assert!(require(&memory, 16 * MIB).is_ok());
        assert!(matches!(
            require(&memory, 16 * MIB + 1),
            Err(Error::KernelTooLarge {
                need_mib: 17,
                have_mib: 16
            })
        ));
    }
}
