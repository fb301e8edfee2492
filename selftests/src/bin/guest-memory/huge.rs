// SPDX-License-Identifier: GPL-2.0-only

//! Pages of 1 GiB: hugetlbfs has them where the host was started with `hugepagesz=1G hugepages=1`.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_pre_fault_memory, KVM_CAP_PRE_FAULT_MEMORY};
use selftests::kvm::{number, Errno, Handle};
use selftests::memory::PAGE;
use selftests::tap::{equal, skipped};

use crate::guest::*;
use crate::log::{dirty, LOG};

const GIB: usize = 1 << 30;
const PAGES: usize = GIB / PAGE;
/// The pages of 2 MiB that it has.
const LARGES: u64 = (GIB / LARGE) as u64;

/// The memory of one such page, at an address that is aligned to it; given back in the end.
struct Huge(Area);

impl Huge {
    const FLAGS: i32 =
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_1GB;

    fn new() -> Result<Self, String> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: A new mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(null_mut(), GIB, protection, Self::FLAGS, -1, 0) };
        if start == libc::MAP_FAILED {
            let why = Errno::last();
            skipped(&format!("the host gives no page of 1 GiB: {why:?}"))?;
        }
        let start = start.cast();
        Ok(Self(Area { start }))
    }
}

impl Drop for Huge {
    fn drop(&mut self) {
        self.0.unmap(0, GIB);
    }
}

/// A VM with such a page as slot 1 at [`DATA`].
fn with_page(device: &Handle) -> Result<(Vm, Huge), String> {
    let huge = Huge::new()?;
    let vm = Vm::new(device)?;
    vm.slot(1, 0, DATA, GIB, huge.0.start)?;
    Ok((vm, huge))
}

/// How many pages of 2 MiB and 1 GiB the guest has.
fn large(vm: &Vm) -> Result<[u64; 2], String> {
    let pages = vm.pages()?;
    Ok([pages[1], pages[2]])
}

fn fill(vm: &Vm, value: u32) -> Outcome {
    vm.call(FILL, DATA, value, PAGES as u32).map(|_| ())
}

fn sum(vm: &Vm) -> Result<u32, String> {
    vm.call(SUM, DATA, 0, PAGES as u32)
}

pub(crate) fn whole(device: &Handle) -> Outcome {
    let (vm, huge) = with_page(device)?;
    let Huge(area) = &huge;
    let places = [0, 5 * PAGE, LARGE - 4, 300 * LARGE + 8, GIB - 4];
    for (value, place) in places.into_iter().enumerate() {
        area.store(place, value as u32 + 100);
        let seen = vm.load(DATA + place as u64)?;
        equal("a word of ours", seen, value as u32 + 100)?;
    }
    equal("one page", large(&vm)?, [0, 1])?;
    fill(&vm, 3)?;
    equal("all of it", sum(&vm)?, 3 * PAGES as u32)?;
    equal("our view", area.load(GIB - PAGE), 3)?;
    equal("still one page", large(&vm)?, [0, 1])?;

    // Less than a page of the host's is not forgotten.
    area.advise(0, PAGE, libc::MADV_DONTNEED);
    equal("as before", sum(&vm)?, 3 * PAGES as u32)?;
    equal("forget", area.advise(0, GIB, libc::MADV_DONTNEED), 0)?;
    equal("forgotten", large(&vm)?, [0, 0])?;
    equal("empty", sum(&vm)?, 0)?;
    equal("one again", large(&vm)?, [0, 1])?;

    area.protect(0, GIB, libc::PROT_READ);
    let write = vm.exit(STORE, DATA + GIB as u64 - 4, 1, 1);
    equal("protected", write, Err(Errno(libc::EFAULT)))?;
    equal("but readable", sum(&vm)?, 0)?;
    area.protect(0, GIB, libc::PROT_READ | libc::PROT_WRITE);
    vm.store(DATA + 7 * LARGE as u64, 9)?;
    equal("written", area.load(7 * LARGE), 9)?;

    area.unmap(0, GIB);
    let read = vm.exit(LOAD, DATA + 7 * LARGE as u64, 0, 1);
    equal("unmapped", read, Err(Errno(libc::EFAULT)))
}

/// A log sees the small pages, and when it ends there is the large one again.
pub(crate) fn logged(device: &Handle) -> Outcome {
    let (vm, huge) = with_page(device)?;
    let Huge(area) = &huge;
    fill(&vm, 1)?;
    equal("one page", large(&vm)?, [0, 1])?;
    for round in 2..4 {
        vm.slot(1, LOG, DATA, GIB, area.start)?;
        equal("nothing yet", dirty(&vm, PAGES), Ok(vec![]))?;
        equal("readable", sum(&vm)? >= PAGES as u32, true)?;
        equal("only read", dirty(&vm, PAGES), Ok(vec![]))?;
        let some = [0, 1, 511, 512, 100_000, PAGES - 1];
        for page in some {
            vm.store(DATA + (page * PAGE) as u64, round)?;
        }
        equal("small pages", large(&vm)?, [0, 0])?;
        equal("written", dirty(&vm, PAGES), Ok(some.to_vec()))?;
        equal("and clean again", dirty(&vm, PAGES), Ok(vec![]))?;
        vm.call(FILL, DATA + (1000 * PAGE) as u64, round, 700)?;
        equal("many", dirty(&vm, PAGES), Ok((1000..1700).collect()))?;
        vm.slot(1, 0, DATA, GIB, area.start)?;
        for page in some {
            equal("a word", vm.load(DATA + (page * PAGE) as u64)?, round)?;
        }
        fill(&vm, round)?;
        equal("all of it", sum(&vm)?, round * PAGES as u32)?;
        equal("one page again", large(&vm)?, [0, 1])?;
    }
    equal("our view", area.load(1699 * PAGE), 3)
}

/// Slots that have only a part of the page, or have it where it does not fit.
pub(crate) fn in_part(device: &Handle) -> Outcome {
    let (vm, huge) = with_page(device)?;
    let Huge(area) = &huge;
    for page in 0..PAGES {
        area.store(page * PAGE, page as u32);
    }
    let all = (0..PAGES as u32).fold(0u32, u32::wrapping_add);
    equal("all of it", sum(&vm)?, all)?;
    equal("one page", large(&vm)?, [0, 1])?;

    let moved = DATA + LARGE as u64;
    vm.slot(1, 0, moved, GIB, area.start)?;
    equal("moved away", large(&vm)?, [0, 0])?;
    equal("nothing", vm.exit(LOAD, DATA, 0, 1), Ok(EXIT_MMIO))?;
    vm.finish_access()?;
    equal("moved", vm.call(SUM, moved, 0, PAGES as u32)?, all)?;
    equal("in parts", large(&vm)?, [LARGES, 0])?;

    vm.slot(1, 0, DATA + PAGE as u64, GIB, area.start)?;
    let some = vm.call(SUM, DATA + PAGE as u64, 0, 1000)?;
    equal("moved by a small page", some, 999 * 500)?;
    equal("small ones", large(&vm)?, [0, 0])?;

    vm.slot(1, 0, DATA, GIB, area.start)?;
    equal("moved back", sum(&vm)?, all)?;
    equal("one page again", large(&vm)?, [0, 1])?;
    vm.slot(1, 0, 0, 0, null_mut())?;
    equal("deleted", large(&vm)?, [0, 0])?;
    equal("no slot", vm.exit(LOAD, DATA, 0, 1), Ok(EXIT_MMIO))?;
    vm.finish_access()?;

    // Two slots that share it, with a small page of another between.
    let first = 100 * LARGE + 3 * PAGE;
    let rest = first + PAGE;
    let other = Area::new(PAGE);
    other.store(0, 7);
    vm.slot(1, 0, DATA, first, area.start)?;
    vm.slot(2, 0, DATA + first as u64, PAGE, other.start)?;
    let behind = area.start.wrapping_add(rest);
    vm.slot(3, 0, DATA + rest as u64, GIB - rest, behind)?;
    let replaced = all.wrapping_sub((first / PAGE) as u32).wrapping_add(7);
    equal("with a hole", sum(&vm)?, replaced)?;
    equal("all but one", large(&vm)?, [LARGES - 1, 0])?;
    fill(&vm, 1)?;
    equal("the hole's", area.load(first), (first / PAGE) as u32)?;
    equal("behind it", area.load(rest), 1)
}

pub(crate) fn pre_faulted(device: &Handle) -> Outcome {
    if device.extension(KVM_CAP_PRE_FAULT_MEMORY) == 0 {
        return skipped("no KVM_CAP_PRE_FAULT_MEMORY");
    }
    let (vm, _huge) = with_page(device)?;
    let mut range = kvm_pre_fault_memory {
        gpa: DATA + 5 * PAGE as u64,
        size: PAGE as u64,
        ..Default::default()
    };
    let vcpu = &vm.vcpu.handle;
    equal(
        "pre-fault",
        vcpu.exchange(number::PRE_FAULT_MEMORY, &mut range),
        Ok(0),
    )?;
    equal("all done", range.size, 0)?;
    equal("one page", large(&vm)?, [0, 1])
}

/// A log begins and ends, and the page goes and comes, under a vCPU that uses it.
pub(crate) fn under_fire(device: &Handle, time: Duration) -> Outcome {
    let (vm, huge) = with_page(device)?;
    let Huge(area) = &huge;
    let second = flat_vcpu(device, &vm.vm, 1)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let user = scope.spawn(|| -> Result<u32, String> {
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let at = DATA + (round as usize * 7919 % (PAGES - 1000) * PAGE) as u64;
                for (function, value) in [(FILL, round), (SUM, 0)] {
                    let mut end = exit_of(&second, function, at, value, 1000);
                    while end == Err(Errno(libc::EFAULT)) {
                        end = second.run().map(|_| second.shared().exit_reason);
                    }
                    equal("the exit", end, Ok(EXIT_HLT))?;
                }
                let regs: kvm_bindings::kvm_regs = second.handle.get(number::GET_REGS)?;
                equal("what was written", regs.rax as u32, round * 1000)?;
            }
            Ok(round)
        });
        let begin = Instant::now();
        let mut outcome = Ok(());
        let mut changes = 0;
        while begin.elapsed() < time && outcome.is_ok() && !user.is_finished() {
            changes += 1;
            outcome = (|| -> Outcome {
                vm.slot(1, LOG, DATA, GIB, area.start)?;
                dirty(&vm, PAGES)?;
                if changes % 2 == 0 {
                    area.protect(0, GIB, libc::PROT_NONE);
                    area.protect(0, GIB, libc::PROT_READ | libc::PROT_WRITE);
                }
                dirty(&vm, PAGES)?;
                vm.slot(1, 0, DATA, GIB, area.start)?;
                Ok(())
            })();
        }
        stop.store(true, Ordering::Relaxed);
        let rounds = user.join().map_err(|_| "the vCPU's thread panicked")??;
        println!("# {changes} logs, {rounds} rounds of the guest");
        outcome
    })?;
    vm.load(DATA)?;
    fill(&vm, 2)?;
    equal("all of it", sum(&vm)?, 2 * PAGES as u32)?;
    equal("one page", large(&vm)?, [0, 1])
}
