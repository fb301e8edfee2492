// SPDX-License-Identifier: GPL-2.0-only

//! The state in which the first processor enters the kernel.

use kvm_bindings::{kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, Msrs};
use kvm_ioctls::VcpuFd;

use super::Entry;
use crate::error::{Error, Result};
use crate::layout::{
    BOOT_STACK, GDT, PAGE_DIRECTORIES, PAGE_DIRECTORY_COUNT, PAGE_SIZE, PDPT, PML4, PVH_START_INFO,
    ZERO_PAGE,
};
use crate::memory::{self, GuestMemory};

// Control-register and EFER bits (APM vol. 2, chapter 3).
const CR0_PE: u64 = 1 << 0;
const CR0_MP: u64 = 1 << 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_AM: u64 = 1 << 18;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS with nothing but the bit that is always 1.
const RFLAGS_RESERVED: u64 = 1 << 1;

// Page-table entry bits (APM vol. 2, 5.4).
const PTE_PRESENT_WRITABLE: u64 = 0b11;
const PTE_LARGE: u64 = 1 << 7;
const LARGE_PAGE_SIZE: u64 = 2 << 20;

// Selectors that the Linux boot protocol fixes, and one for the task state.
const BOOT_CODE: u16 = 0x10;
const BOOT_DATA: u16 = 0x18;
const BOOT_TASK: u16 = 0x20;

// Segment types (APM vol. 2, 4.7 and 4.8).
const TYPE_CODE: u8 = 0b1011;
const TYPE_DATA: u8 = 0b0011;
const TYPE_BUSY_TSS: u8 = 0b1011;

/// The limit of the descriptor table: six entries.
const GDT_LIMIT: u16 = 6 * 8 - 1;

/// The x87 control word after FNINIT.
const FCW_DEFAULT: u16 = 0x37f;
/// MXCSR after reset.
const MXCSR_DEFAULT: u32 = 0x1f80;

/// The memory-type range registers' default: enabled, write-back (APM vol. 2, 7.7.2).
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;

/// Sets the registers, and writes the tables that they point to.
pub(crate) fn set_up(vcpu: &VcpuFd, memory: &GuestMemory, entry: Entry) -> Result<()> {
    let mut sregs = vcpu
        .get_sregs()
        .map_err(|error| Error::kvm("KVM_GET_SREGS", error))?;
    match entry {
        Entry::Long { .. } => {
            write_page_tables(memory)?;
            long_mode(&mut sregs);
        }
        Entry::Pvh { .. } => protected_mode(&mut sregs),
    }
    write_gdt(memory, &sregs)?;
    vcpu.set_sregs(&sregs)
        .map_err(|error| Error::kvm("KVM_SET_SREGS", error))?;
    vcpu.set_regs(&registers(entry))
        .map_err(|error| Error::kvm("KVM_SET_REGS", error))?;
    let fpu = kvm_fpu {
        fcw: FCW_DEFAULT,
        mxcsr: MXCSR_DEFAULT,
        ..Default::default()
    };
    vcpu.set_fpu(&fpu)
        .map_err(|error| Error::kvm("KVM_SET_FPU", error))
}

/// Sets what firmware sets in the model-specific registers of every processor. All others are as
/// reset leaves them, which is what the boot protocols want.
pub(crate) fn set_up_msrs(vcpu: &VcpuFd) -> Result<()> {
    let entry = kvm_msr_entry {
        index: MSR_MTRR_DEF_TYPE,
        data: MTRR_ENABLE_WRITE_BACK,
        ..Default::default()
    };
    let msrs = Msrs::from_entries(&[entry]).map_err(|_| Error::Kvm {
        request: "KVM_SET_MSRS",
        error: std::io::ErrorKind::InvalidInput.into(),
    })?;
    // A module without memory-type registers sets none of them; guests do without them, too.
    vcpu.set_msrs(&msrs)
        .map_err(|error| Error::kvm("KVM_SET_MSRS", error))?;
    Ok(())
}

/// The general registers at the entry.
fn registers(entry: Entry) -> kvm_regs {
    let mut regs = kvm_regs {
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    };
    match entry {
        Entry::Long { rip } => {
            regs.rip = rip;
            regs.rsi = ZERO_PAGE;
            regs.rsp = BOOT_STACK;
            regs.rbp = BOOT_STACK;
        }
        Entry::Pvh { eip } => {
            regs.rip = u64::from(eip);
            regs.rbx = PVH_START_INFO;
        }
    }
    regs
}

/// A flat 4 GiB segment.
fn flat(selector: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        s: 1,
        l: u8::from(long),
        db: u8::from(!long),
        g: 1,
        ..Default::default()
    }
}

/// Flat segments, and a task state that is valid and unused.
fn segments(sregs: &mut kvm_sregs, long: bool) {
    sregs.cs = flat(BOOT_CODE, TYPE_CODE, long);
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = flat(BOOT_DATA, TYPE_DATA, false);
    }
    sregs.tr = kvm_segment {
        limit: 0x67,
        selector: BOOT_TASK,
        type_: TYPE_BUSY_TSS,
        present: 1,
        ..Default::default()
    };
    sregs.gdt.base = GDT;
    sregs.gdt.limit = GDT_LIMIT;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
}

/// 64-bit mode with the identity mapping.
fn long_mode(sregs: &mut kvm_sregs) {
    segments(sregs, true);
    sregs.cr0 = CR0_PG | CR0_AM | CR0_WP | CR0_NE | CR0_ET | CR0_MP | CR0_PE;
    sregs.cr3 = PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
}

/// 32-bit protected mode without paging.
fn protected_mode(sregs: &mut kvm_sregs) {
    segments(sregs, false);
    sregs.cr0 = CR0_ET | CR0_PE;
    sregs.cr4 = 0;
    sregs.efer = 0;
}

/// The descriptor of a segment (APM vol. 2, 4.7).
fn descriptor(segment: &kvm_segment) -> u64 {
    let pages = segment.g != 0;
    let limit = u64::from(if pages {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (segment.base >> 24 & 0xff) << 56
}

/// Writes the descriptors that belong to the segments. The task state's takes two entries, of which
/// the upper one is 0.
fn write_gdt(memory: &GuestMemory, sregs: &kvm_sregs) -> Result<()> {
    let entries = [
        0,
        0,
        descriptor(&sregs.cs),
        descriptor(&sregs.ds),
        descriptor(&sregs.tr),
        0,
    ];
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry: &u64| entry.to_le_bytes())
        .collect();
    memory::write(memory, "the descriptor table", sregs.gdt.base, &bytes)
}

/// Writes page tables that map the first 4 GiB one to one.
fn write_page_tables(memory: &GuestMemory) -> Result<()> {
    let put = |address: u64, entry: u64| {
        memory::write(memory, "the page tables", address, &entry.to_le_bytes())
    };
    put(PML4, PDPT | PTE_PRESENT_WRITABLE)?;
    let entries = PAGE_SIZE / 8;
    for directory in 0..PAGE_DIRECTORY_COUNT {
        let table = PAGE_DIRECTORIES + directory * PAGE_SIZE;
        put(PDPT + directory * 8, table | PTE_PRESENT_WRITABLE)?;
        for entry in 0..entries {
            let page = (directory * entries + entry) * LARGE_PAGE_SIZE;
            put(table + entry * 8, page | PTE_LARGE | PTE_PRESENT_WRITABLE)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn descriptors_are_the_well_known_ones() {
        assert_eq!(
            descriptor(&flat(BOOT_CODE, TYPE_CODE, true)),
            0x00af_9b00_0000_ffff
        );
        assert_eq!(
            descriptor(&flat(BOOT_CODE, TYPE_CODE, false)),
            0x00cf_9b00_0000_ffff
        );
        assert_eq!(
            descriptor(&flat(BOOT_DATA, TYPE_DATA, false)),
            0x00cf_9300_0000_ffff
        );
    }

    #[test]
    fn page_tables_map_four_gibibytes() {
        let memory = memory::allocate(2 << 20).unwrap();
        write_page_tables(&memory).unwrap();
        let entry = |at| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        assert_eq!(entry(PML4), PDPT | 3);
        assert_eq!(entry(PDPT + 3 * 8), PAGE_DIRECTORIES + 3 * PAGE_SIZE + 3);
        assert_eq!(entry(PAGE_DIRECTORIES + 4 * PAGE_SIZE - 8), 0xffe0_0083);
    }
}
