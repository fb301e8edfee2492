// SPDX-License-Identifier: GPL-2.0-only

//! ELF images: by PVH if they have its note, else entered in 64-bit mode with Linux boot
//! parameters.

use std::fs::File;

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::elf::{Elf, Error as ElfError, PvhBootCapability};
use linux_loader::loader::{Error as LoaderError, KernelLoader};
use vm_memory::GuestAddress;

use super::{bzimage, not_a_kernel, write_command_line, Boot, Entry};
use crate::error::{Error, Result};
use crate::layout::{COMMAND_LINE, HIGH_MEMORY, PVH_MEMORY_MAP, PVH_MODULES, PVH_START_INFO};
use crate::memory::{self, GuestMemory, Initrd};

/// The magic number of the PVH start information.
const PVH_MAGIC: u32 = 0x336e_c578;
/// The version of the start information that has a memory map.
const PVH_VERSION: u32 = 1;
/// How long a command line may be under PVH: what Linux takes.
const PVH_COMMAND_LINE: u64 = 2047;

/// Loads an ELF image with all that belongs to it.
pub(crate) fn load(memory: &GuestMemory, boot: &Boot, mut file: File, rsdp: u64) -> Result<Entry> {
    let image = Elf::load(memory, None, &mut file, Some(GuestAddress(HIGH_MEMORY)));
    // A virtual entry address is no obstacle to PVH, but it is to the loader's check.
    let image = image.map_err(|error| match error {
        LoaderError::Elf(ElfError::ReadKernelImage) => not_a_kernel(
            &boot.kernel,
            "a segment is cut short or lies outside the guest's memory (try more --memory)",
        ),
        LoaderError::Elf(ElfError::InvalidEntryAddress) => {
            not_a_kernel(&boot.kernel, "its entry point lies below 1 MiB")
        }
        error => not_a_kernel(&boot.kernel, error.to_string()),
    })?;
    bzimage::require(memory, image.kernel_end)?;
    let initrd = match &boot.initrd {
        Some(path) => Some(memory::load_initrd(
            memory,
            path,
            image.kernel_end,
            u64::MAX,
        )?),
        None => None,
    };
    match image.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => {
            write_pvh(memory, boot, initrd, rsdp)?;
            let eip = u32::try_from(entry.0)
                .map_err(|_| not_a_kernel(&boot.kernel, "its PVH entry lies above 4 GiB"))?;
            Ok(Entry::Pvh { eip })
        }
        _ => {
            bzimage::write_elf_boot_parameters(memory, boot, initrd, rsdp)?;
            Ok(Entry::Long {
                rip: image.kernel_load.0,
            })
        }
    }
}

/// Writes the PVH start information, with memory map, module list and command line.
fn write_pvh(memory: &GuestMemory, boot: &Boot, initrd: Option<Initrd>, rsdp: u64) -> Result<()> {
    write_command_line(memory, &boot.append, PVH_COMMAND_LINE)?;
    let map: Vec<_> = memory::map(boot.memory_size)
        .into_iter()
        .map(|((addr, size), kind)| hvm_memmap_table_entry {
            addr,
            size,
            type_: kind as u32,
            reserved: 0,
        })
        .collect();
    let mut info = hvm_start_info {
        magic: PVH_MAGIC,
        version: PVH_VERSION,
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: rsdp,
        memmap_paddr: PVH_MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..Default::default()
    };
    if initrd.is_some() {
        info.nr_modules = 1;
        info.modlist_paddr = PVH_MODULES;
    }
    let mut parameters = BootParams::new(&info, GuestAddress(PVH_START_INFO));
    parameters.set_sections(&map, GuestAddress(PVH_MEMORY_MAP));
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.address,
            size: initrd.size,
            ..Default::default()
        };
        parameters.set_modules(&[module], GuestAddress(PVH_MODULES));
    }
    PvhBootConfigurator::write_bootparams(&parameters, memory).map_err(|error| Error::GuestMemory {
        what: "the PVH start information",
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::MIB;
    use std::path::PathBuf;
    use vm_memory::Bytes;

    /// An ELF image with one segment of eight bytes at 2 MiB, and a note segment.
    fn image(note: &[u8], memory_size: u64) -> Vec<u8> {
        let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        image.extend([2 * MIB, 64, 0].map(u64::to_le_bytes).concat());
        image.extend([0, 0, 64, 56, 2, 0, 0, 0u16].map(u16::to_le_bytes).concat());
        image.extend([1, 7u32].map(u32::to_le_bytes).concat());
        image.extend(
            [176, 2 * MIB, 2 * MIB, 8, memory_size, 4096]
                .map(u64::to_le_bytes)
                .concat(),
        );
        image.extend([4, 4u32].map(u32::to_le_bytes).concat());
        image.extend(
            [184, 0, 0, note.len() as u64, note.len() as u64, 4]
                .map(u64::to_le_bytes)
                .concat(),
        );
        image.extend(b"\x0f\x0b\xf4\xf4\xf4\xf4\xf4\xf4");
        image.extend(note);
        image
    }

    fn pvh_note(entry: u32) -> Vec<u8> {
        [
            &[4u32, 4, 18].map(u32::to_le_bytes).concat()[..],
            b"Xen\0",
            &entry.to_le_bytes(),
        ]
        .concat()
    }

    fn load_image(name: &str, image: &[u8]) -> (GuestMemory, Result<Entry>) {
        let kernel: PathBuf =
            std::env::temp_dir().join(format!("pacifica-elf-{}-{name}", std::process::id()));
        std::fs::write(&kernel, image).unwrap();
        let boot = Boot {
            kernel: kernel.clone(),
            initrd: Some(kernel.clone()),
            append: "some words".into(),
            memory_size: 8 * MIB,
        };
        let memory = memory::allocate(boot.memory_size).unwrap();
        let entry = crate::boot::load(&memory, &boot, 0xe_0000);
        std::fs::remove_file(kernel).unwrap();
        (memory, entry)
    }

    #[test]
    fn with_the_note_it_is_started_by_pvh() {
        let image = image(&pvh_note(0x20_0000), 8);
        let (memory, entry) = load_image("pvh", &image);
        assert_eq!(entry.unwrap(), Entry::Pvh { eip: 0x20_0000 });
        let info: hvm_start_info = memory.read_obj(GuestAddress(PVH_START_INFO)).unwrap();
        assert_eq!(
            (info.magic, info.nr_modules, info.rsdp_paddr),
            (PVH_MAGIC, 1, 0xe_0000)
        );
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!(
            (module.paddr, module.size),
            (8 * MIB - 4096, image.len() as u64)
        );
        let mut line = [0; 11];
        memory
            .read_slice(&mut line, GuestAddress(info.cmdline_paddr))
            .unwrap();
        assert_eq!(&line, b"some words\0");
        let last = info.memmap_paddr + 24 * u64::from(info.memmap_entries - 1);
        let last: hvm_memmap_table_entry = memory.read_obj(GuestAddress(last)).unwrap();
        assert_eq!(last.addr + last.size, 1 << 32);
    }

    #[test]
    fn without_it_in_64_bit_mode() {
        let (memory, entry) = load_image("plain", &image(&[], 8));
        assert_eq!(entry.unwrap(), Entry::Long { rip: 2 * MIB });
        let code: u16 = memory.read_obj(GuestAddress(2 * MIB)).unwrap();
        assert_eq!(code, 0x0b0f);
    }

    #[test]
    fn broken_images_are_refused() {
        let whole = image(&pvh_note(1), 8);
        for length in [4, 63, 100, 180] {
            let (_, entry) = load_image("short", &whole[..length]);
            assert!(
                matches!(entry, Err(Error::NotAKernel { .. })),
                "{length}: {entry:?}"
            );
        }
        assert!(matches!(
            load_image("wide", &image(&[], 1 << 40)).1,
            Err(Error::KernelTooLarge { .. })
        ));
        assert!(load_image("wrapping", &image(&[], u64::MAX)).1.is_err());
    }
}
