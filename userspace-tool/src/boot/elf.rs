// SPDX-License-Identifier: GPL-2.0-only

//! ELF images: by PVH if they have its note, else entered in 64-bit mode with Linux boot parameters.

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
