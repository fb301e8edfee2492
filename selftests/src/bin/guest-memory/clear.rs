// SPDX-License-Identifier: GPL-2.0-only

//! Dirty logs that the VMM clears itself, and dirty rings.

use std::ptr::null_mut;

use kvm_bindings::*;
use selftests::kvm::{number, Errno, Handle};
use selftests::machine::Vcpu;
use selftests::memory::PAGE;
use selftests::tap::equal;

use crate::guest::*;
use crate::log::{dirty, get, logged, LOG};

const MANUAL: u64 = 1;
const INITIALLY_SET: u64 = 2;
const RING_FULL: u32 = 31;

fn enable(vm: &Vm, cap: u32, value: u64) -> Result<i32, Errno> {
    let mut cap = kvm_enable_cap {
        cap,
        ..Default::default()
    };
    cap.args[0] = value;
    vm.vm.set(number::ENABLE_CAP, &cap)
}

fn manual(vm: &Vm, flags: u64) -> Result<i32, Errno> {
    enable(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, flags)
}

fn clear(vm: &Vm, slot: u32, first: u64, pages: u32, bitmap: *const u64) -> Result<i32, Errno> {
    let mut log = kvm_clear_dirty_log {
        slot,
        num_pages: pages,
        first_page: first,
        ..Default::default()
    };
    log.__bindgen_anon_1.dirty_bitmap = bitmap.cast_mut().cast();
    vm.vm.exchange(number::CLEAR_DIRTY_LOG, &mut log)
}

/// A bitmap that does not fit is an error, and changes nothing.
pub(crate) fn nothing_is_lost(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    let pages = 2 * 8 * PAGE;
    let _area = logged(&vm, pages)?;
    let written = [3, 70, 8 * PAGE - 1, 8 * PAGE, pages - 1];
    for page in written {
        vm.store(DATA + (page * PAGE) as u64, 1)?;
    }
    let bitmap = Area::new(2 * PAGE);
    bitmap.protect(PAGE, PAGE, libc::PROT_NONE);
    let got = get(&vm, 1, bitmap.memory().cast());
    refused("half of the bitmap", got, libc::EFAULT)?;
    equal("all are there", dirty(&vm, pages), Ok(written.to_vec()))
}

pub(crate) fn rules(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    equal(
        "without manual",
        manual(&vm, INITIALLY_SET),
        Err(Errno(libc::EINVAL)),
    )?;
    equal("another flag", manual(&vm, 5), Err(Errno(libc::EINVAL)))?;
    equal("off", manual(&vm, 0), Ok(0))?;
    let _area = logged(&vm, 100)?;
    let words = [u64::MAX; 4];
    let try_it = |slot, first, pages| clear(&vm, slot, first, pages, words.as_ptr());
    refused("no log", try_it(0, 0, 1), libc::ENOENT)?;
    refused("no slot", try_it(9, 0, 64), libc::ENOENT)?;
    refused("no such slot", try_it(40000, 0, 64), libc::EINVAL)?;
    refused("within a word", try_it(1, 32, 64), libc::EINVAL)?;
    refused("half a word", try_it(1, 0, 32), libc::EINVAL)?;
    refused("too many", try_it(1, 0, 128), libc::EINVAL)?;
    refused("too many behind", try_it(1, 64, 64), libc::EINVAL)?;
    refused("behind the end", try_it(1, 128, 0), libc::EINVAL)?;
    refused(
        "nowhere",
        clear(&vm, 1, 0, 64, 8 as *const u64),
        libc::EFAULT,
    )?;
    equal("none", try_it(1, 0, 0), Ok(0))?;
    equal("up to the end", try_it(1, 64, 36), Ok(0))?;
    equal("all", try_it(1, 0, 100), Ok(0))
}

/// Reading changes nothing; each page is cleared by itself.
pub(crate) fn by_hand(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    manual(&vm, MANUAL)?;
    let pages = 2 * LARGE / PAGE;
    let area = logged(&vm, pages)?;
    for page in [0, 5, 64, 700] {
        vm.store(DATA + (page * PAGE) as u64, 1)?;
    }
    equal("written", dirty(&vm, pages), Ok(vec![0, 5, 64, 700]))?;
    equal("still", dirty(&vm, pages), Ok(vec![0, 5, 64, 700]))?;
    let only = [1u64 << 5 | 1 << 6];
    equal("clear one", clear(&vm, 1, 0, 64, only.as_ptr()), Ok(0))?;
    equal("the others", dirty(&vm, pages), Ok(vec![0, 64, 700]))?;
    vm.store(DATA, 2)?;
    vm.store(DATA + 6 * PAGE as u64, 2)?;
    equal("one more", dirty(&vm, pages), Ok(vec![0, 6, 64, 700]))?;
    vm.store(DATA + 5 * PAGE as u64, 2)?;
    equal("again", dirty(&vm, pages), Ok(vec![0, 5, 6, 64, 700]))?;
    let all = vec![u64::MAX; pages / 64];
    let none = Ok(0);
    equal(
        "clear all",
        clear(&vm, 1, 0, pages as u32, all.as_ptr()),
        none,
    )?;
    equal("clean", dirty(&vm, pages), Ok(vec![]))?;
    equal("and there", area.load(700 * PAGE), 1)
}

/// With all bits set in the beginning, logging begins where the VMM has cleared.
pub(crate) fn initially_set(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    manual(&vm, MANUAL | INITIALLY_SET)?;
    let pages = 2 * LARGE / PAGE - 3;
    let area = vm.with_data(pages * PAGE)?;
    area.advise(0, 2 * LARGE, libc::MADV_HUGEPAGE);
    vm.call(FILL, DATA, 1, pages as u32)?;
    vm.slot(1, LOG, DATA, pages * PAGE, area.memory())?;
    equal("all", dirty(&vm, pages), Ok((0..pages).collect()))?;
    let all = vec![u64::MAX; pages.div_ceil(64)];
    clear(&vm, 1, 0, 128, all.as_ptr())?;
    equal("the rest", dirty(&vm, pages), Ok((128..pages).collect()))?;
    clear(&vm, 1, 0, pages as u32, all.as_ptr())?;
    equal("none", dirty(&vm, pages), Ok(vec![]))?;
    vm.store(DATA + 127 * PAGE as u64, 2)?;
    vm.store(DATA + 600 * PAGE as u64, 2)?;
    equal("two", dirty(&vm, pages), Ok(vec![127, 600]))
}

/// The ring of a vCPU.
struct Ring {
    start: *mut kvm_dirty_gfn,
    entries: usize,
    next: usize,
}

impl Ring {
    fn map(vcpu: &Vcpu, bytes: usize, flags: i32) -> Result<Self, Errno> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let offset = (KVM_DIRTY_LOG_PAGE_OFFSET as usize * PAGE) as libc::off_t;
        // SAFETY: A new mapping.
        let start = unsafe {
            libc::mmap(
                null_mut(),
                bytes,
                protection,
                flags,
                vcpu.handle.fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Self {
            start: start.cast(),
            entries: bytes / size_of::<kvm_dirty_gfn>(),
            next: 0,
        })
    }

    /// Takes all entries: slot and page.
    fn harvest(&mut self) -> Vec<(u32, u64)> {
        let mut found = Vec::new();
        loop {
            // SAFETY: Within the ring.
            let entry = unsafe { self.start.add(self.next % self.entries) };
            // SAFETY: Any bits are valid.
            let mut value = unsafe { entry.read_volatile() };
            if value.flags != 1 {
                return found;
            }
            found.push((value.slot, value.offset));
            value.flags = 2;
            // SAFETY: As above.
            unsafe { entry.write_volatile(value) };
            self.next += 1;
        }
    }
}

fn reset(vm: &Vm) -> Result<i32, Errno> {
    vm.vm.call(number::RESET_DIRTY_RINGS, 0)
}

pub(crate) fn ring(device: &Handle) -> Outcome {
    let bytes = PAGE;
    let with_vcpu = Vm::new(device)?;
    let cap = KVM_CAP_DIRTY_LOG_RING;
    refused("late", enable(&with_vcpu, cap, bytes as u64), libc::EINVAL)?;
    refused("no rings", reset(&with_vcpu), libc::EINVAL)?;
    let vm = Vm::before_vcpu(device, |vm| {
        let set = |bytes: u64| {
            let mut cap = kvm_enable_cap {
                cap,
                ..Default::default()
            };
            cap.args[0] = bytes;
            vm.set(number::ENABLE_CAP, &cap)
        };
        refused("no size", set(0), libc::EINVAL)?;
        refused("no power of two", set(3 * PAGE as u64), libc::EINVAL)?;
        refused("too little", set(PAGE as u64 / 2), libc::EINVAL)?;
        refused("too much", set(2 << 20), libc::E2BIG)?;
        equal("a page", set(bytes as u64), Ok(0))?;
        refused("twice", set(bytes as u64), libc::EINVAL)
    })?;
    let private = Ring::map(&vm.vcpu, bytes, libc::MAP_PRIVATE);
    equal("private", private.err(), Some(Errno(libc::EINVAL)))?;
    let mut ring = Ring::map(&vm.vcpu, bytes, libc::MAP_SHARED)?;
    let area = logged(&vm, 1000)?;
    let mut word = 0;
    refused("no bitmap", get(&vm, 1, &mut word), libc::ENXIO)?;
    refused(
        "no bitmap to clear",
        clear(&vm, 1, 0, 64, &word),
        libc::ENXIO,
    )?;
    for page in [7, 3, 999] {
        vm.store(DATA + (page * PAGE) as u64, 1)?;
    }
    equal("nothing to reset", reset(&vm), Ok(0))?;
    equal("in order", ring.harvest(), vec![(1, 7), (1, 3), (1, 999)])?;
    vm.store(DATA + 3 * PAGE as u64, 2)?;
    equal("writable until reset", ring.harvest(), vec![])?;
    equal("reset", reset(&vm), Ok(3))?;
    vm.store(DATA + 3 * PAGE as u64, 3)?;
    equal("logged again", ring.harvest(), vec![(1, 3)])?;
    equal("reset one", reset(&vm), Ok(1))?;

    let mut seen = Vec::new();
    let mut reason = vm.exit(FILL, DATA, 9, 1000)?;
    let mut full = 0;
    while reason == RING_FULL {
        full += 1;
        equal(
            "still full",
            vm.vcpu.run().map(|_| vm.vcpu.shared().exit_reason),
            Ok(RING_FULL),
        )?;
        seen.extend(ring.harvest().into_iter().map(|(_, page)| page));
        reset(&vm)?;
        vm.vcpu.run()?;
        reason = vm.vcpu.shared().exit_reason;
    }
    equal("the end", reason, EXIT_HLT)?;
    seen.extend(ring.harvest().into_iter().map(|(_, page)| page));
    seen.dedup();
    equal("all were seen", seen, (0..1000).collect())?;
    equal("often full", full >= 1000 / 256, true)?;
    // Whatever the VMM writes there is none of the kernel's business.
    for index in 0..ring.entries {
        // SAFETY: Within the ring.
        unsafe {
            ring.start.add(index).write_volatile(kvm_dirty_gfn {
                flags: 2,
                slot: (index as u32).wrapping_mul(0x4001_0001),
                offset: (index as u64).wrapping_mul(0x8000_0000_0000_1000),
            });
        }
    }
    reset(&vm)?;
    equal("unharmed", area.load(999 * PAGE), 9)
}
