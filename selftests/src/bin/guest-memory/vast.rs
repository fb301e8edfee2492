// SPDX-License-Identifier: GPL-2.0-only

//! Much address space of which little is used: the tables cost what was touched.

use std::ptr::null_mut;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use selftests::kvm::{number, set_cpuid, supported_cpuid, Handle};
use selftests::machine::Vcpu;
use selftests::memory::{meminfo, table_pages, PAGE};
use selftests::tap::{equal, skipped};

use crate::guest::*;

const GIB: usize = 1 << 30;
/// The slot, and where the guest has it.
const SIZE: usize = 64 * GIB;
const AT: u64 = 4 << 30;
/// The guest's page tables.
const TABLES: u64 = 0x10_0000;
/// The tables of the next level that it takes: one for each GiB.
const UPPER: i64 = 64;

/// The guest's functions, in 64-bit mode: RDI is an address, RCX a count, RSI what is between.
///
/// again: mov [rdi], rdi; add rdi, rsi; dec rcx; jnz again; hlt
const TOUCH: &[u8] = &[
    0x48, 0x89, 0x3f, 0x48, 0x01, 0xf7, 0x48, 0xff, 0xc9, 0x75, 0xf5, 0xf4,
];
/// again: cmp [rdi], rdi; jne end; add rdi, rsi; dec rcx; jnz again; end: hlt
const VERIFY: &[u8] = &[
    0x48, 0x39, 0x3f, 0x75, 0x08, 0x48, 0x01, 0xf7, 0x48, 0xff, 0xc9, 0x75, 0xf3, 0xf4,
];
/// Where they are in the page of code.
const TOUCH_AT: usize = 0x100;
const VERIFY_AT: usize = 0x200;
const HLT_AT: usize = TOUCH_AT + TOUCH.len() - 1;

/// Which pages are touched: `areas` of them begin `distance` bytes after each other; in each are
/// `pages` with a distance of `stride`.
struct Pattern {
    areas: usize,
    distance: usize,
    pages: usize,
    stride: usize,
    advice: i32,
    /// The tables of the last level that this takes.
    last_level: i64,
}

impl Pattern {
    const NOTHING: Self = Self {
        areas: 1,
        distance: 0,
        pages: 0,
        stride: 0,
        advice: libc::MADV_NORMAL,
        last_level: 0,
    };
}

/// A VM whose vCPU sees 512 GiB as they are, through pages of 1 GiB.
struct Vast {
    vm: Vm,
    memory: *mut u8,
}

impl Vast {
    fn new(device: &Handle) -> Result<Self, String> {
        const PAGE_1GB: u32 = 1 << 26;
        let cpuid = supported_cpuid(device)?;
        let leaf = cpuid.iter().find(|leaf| leaf.function == 0x8000_0001);
        if leaf.is_none_or(|leaf| leaf.edx & PAGE_1GB == 0) {
            skipped("the CPU has no pages of 1 GiB")?;
        }
        let vm = Vm::new(device)?;
        for (at, code) in [(TOUCH_AT, TOUCH), (VERIFY_AT, VERIFY)] {
            vm.code.write(at, code);
        }
        let tables = Area::new(2 * PAGE);
        // Present, writable, and (in the second) large.
        tables.write(0, &(TABLES + PAGE as u64 | 3).to_le_bytes());
        for gib in 0..512 {
            tables.write(PAGE + gib * 8, &((gib << 30 | 0x83) as u64).to_le_bytes());
        }
        vm.slot(2, 0, TABLES, 2 * PAGE, tables.memory())?;
        set_cpuid(&vm.vcpu.handle, &cpuid)?;
        long_mode(&vm.vcpu)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: A new mapping at an address of the kernel's choice.
        let memory = unsafe { libc::mmap(null_mut(), SIZE, protection, flags, -1, 0) };
        equal("64 GiB of address space", memory == libc::MAP_FAILED, false)?;
        let memory = memory.cast();
        vm.slot(1, 0, AT, SIZE, memory)?;
        Ok(Self { vm, memory })
    }

    /// Calls one of the functions for each area; all must come to their end.
    fn each_area(&self, function: usize, pattern: &Pattern) -> Outcome {
        for area in 0..pattern.areas {
            let regs = kvm_regs {
                rip: CODE + function as u64,
                rdi: AT + (area * pattern.distance) as u64,
                rsi: pattern.stride as u64,
                rcx: pattern.pages as u64,
                rflags: 0x202,
                ..Default::default()
            };
            let vcpu = &self.vm.vcpu;
            vcpu.handle.set(number::SET_REGS, &regs)?;
            vcpu.run()?;
            equal("the exit", vcpu.shared().exit_reason, EXIT_HLT)?;
            let regs: kvm_regs = vcpu.handle.get(number::GET_REGS)?;
            equal("pages that are wrong", regs.rcx, 0)?;
        }
        Ok(())
    }

    /// `madvise` for all of it.
    fn advise(&self, advice: i32) -> Outcome {
        // SAFETY: The range is this object's own.
        let done = unsafe { libc::madvise(self.memory.cast(), SIZE, advice) };
        equal("madvise", done, 0)
    }
}

impl Drop for Vast {
    fn drop(&mut self) {
        // SAFETY: As above.
        unsafe { libc::munmap(self.memory.cast(), SIZE) };
    }
}

fn long_mode(vcpu: &Vcpu) -> Outcome {
    const PAE: u64 = 1 << 5;
    const PG: u64 = 1 << 31;
    const LME_LMA: u64 = 5 << 8;
    let mut sregs: kvm_sregs = vcpu.handle.get(number::GET_SREGS)?;
    sregs.cs = kvm_segment {
        l: 1,
        db: 0,
        ..sregs.cs
    };
    sregs.cr3 = TABLES;
    sregs.cr4 |= PAE;
    sregs.cr0 |= PG;
    sregs.efer |= LME_LMA;
    vcpu.handle.set(number::SET_SREGS, &sregs)?;
    Ok(())
}

/// The guest touches the pages; the slot goes and comes back; and the host forgets them.
fn touch(device: &Handle, pattern: &Pattern) -> Outcome {
    let needed = pattern.areas * pattern.pages * PAGE;
    // Half as much again for tables, the host's and ours.
    if meminfo("MemAvailable") << 10 < needed as i64 * 3 / 2 {
        return skipped("the host has too little memory");
    }
    let vast = Vast::new(device)?;
    vast.advise(pattern.advice)?;
    // What the guest needs to run at all: its code and its page tables.
    vast.each_area(HLT_AT, &Pattern::NOTHING)?;
    let before = table_pages();
    let expect = |when: &str, least: i64, most: i64| {
        let tables = table_pages() - before;
        println!("# {when}: {tables} tables");
        match (least..=most).contains(&tables) {
            true => Ok(()),
            false => Err(format!("{when}: {tables} tables, not {least} to {most}")),
        }
    };
    let (least, most) = (pattern.last_level, pattern.last_level + UPPER);
    vast.each_area(TOUCH_AT, pattern)?;
    vast.each_area(VERIFY_AT, pattern)?;
    expect(&format!("{} pages", needed / PAGE), least, most)?;
    vast.vm.slot(1, 0, 0, 0, null_mut())?;
    expect("no slot", 0, 0)?;
    vast.vm.slot(1, 0, AT, SIZE, vast.memory)?;
    vast.each_area(VERIFY_AT, pattern)?;
    expect("the slot again", least, most)?;
    vast.advise(libc::MADV_DONTNEED)?;
    expect("forgotten", 0, UPPER)?;
    vast.vm.slot(1, 0, 0, 0, null_mut())?;
    expect("no slot again", 0, 0)
}

/// 256 areas of 4 MiB in small pages: 2 tables for each.
pub(crate) fn small_pages(device: &Handle) -> Outcome {
    touch(
        device,
        &Pattern {
            areas: 256,
            distance: SIZE / 256,
            pages: 1024,
            stride: PAGE,
            advice: libc::MADV_NOHUGEPAGE,
            last_level: 512,
        },
    )
}

/// The same in pages of 2 MiB, which need none.
pub(crate) fn large_pages(device: &Handle) -> Outcome {
    touch(
        device,
        &Pattern {
            areas: 256,
            distance: SIZE / 256,
            pages: 1024,
            stride: PAGE,
            advice: libc::MADV_HUGEPAGE,
            last_level: 0,
        },
    )
}

/// Every 64th page: a table for each 2 MiB of the slot.
pub(crate) fn sparse(device: &Handle) -> Outcome {
    touch(
        device,
        &Pattern {
            areas: 1,
            distance: 0,
            pages: SIZE / PAGE / 64,
            stride: 64 * PAGE,
            advice: libc::MADV_NOHUGEPAGE,
            last_level: (SIZE / LARGE) as i64,
        },
    )
}
