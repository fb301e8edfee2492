// SPDX-License-Identifier: GPL-2.0-only

//! The guest and the host at once.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvm_bindings::kvm_regs;
use selftests::kvm::{number, Handle};
use selftests::memory::PAGE;
use selftests::tap::equal;

use crate::guest::*;

const CANARY: u32 = 0xdead_beef;

/// The guest writes all the time, and the host takes the memory away all the time.
pub(crate) fn under_fire(device: &Handle, time: Duration) -> Outcome {
    let vm = Vm::new(device)?;
    let pages = 1024;
    let area = vm.with_data(pages * PAGE)?;
    let other = Area::new(256 * PAGE);
    let canary = Area::new(128 * PAGE);
    let second = flat_vcpu(device, &vm.vm, 1)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let attacks = scope.spawn(|| {
            let mut round = 0usize;
            let mut wrong = 0;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let at = (round * 37 % 960) * PAGE;
                match round % 6 {
                    0 => drop(area.advise(at, 64 * PAGE, libc::MADV_DONTNEED)),
                    1 => area.fresh(at, 16 * PAGE),
                    2 => drop(area.advise(0, pages * PAGE, libc::MADV_HUGEPAGE)),
                    3 => drop(area.advise(at, 64 * PAGE, libc::MADV_COLD)),
                    4 => drop(area.advise(at, 64 * PAGE, libc::MADV_FREE)),
                    _ => drop(area.advise(at, 64 * PAGE, libc::MADV_PAGEOUT)),
                }
                let _ = vm.slot(2, 0, DATA + (16 << 20), 256 * PAGE, other.memory());
                let _ = vm.slot(2, 0, 0, 0, null_mut());
                // Pages that the guest has just lost come back here, and must be ours alone.
                for page in 0..128 {
                    canary.store(page * PAGE, CANARY);
                }
                wrong += (0..128)
                    .filter(|page| canary.load(page * PAGE) != CANARY)
                    .count();
                canary.advise(0, 128 * PAGE, libc::MADV_DONTNEED);
            }
            (round, wrong)
        });
        let other_vcpu = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                let (from, count) = (rounds * 61 % 900, 1 + rounds % 100);
                let at = DATA + u64::from(from) * PAGE as u64;
                match exit_of(&second, FILL, at, rounds, count) {
                    Ok(EXIT_HLT) => rounds += 1,
                    other => return Err(format!("the other vCPU ended with {other:?}")),
                }
            }
            Ok(rounds)
        });
        let begin = Instant::now();
        let mut result = Ok(0);
        let mut rounds = 0;
        while begin.elapsed() < time && result.is_ok() {
            rounds += 1;
            result = vm.call(FILL, DATA, rounds, pages as u32);
            if result.is_ok() {
                result = vm.call(SUM, DATA, 0, pages as u32);
            }
        }
        stop.store(true, Ordering::Relaxed);
        let (attacks, wrong) = attacks.join().map_err(|_| "the attacker panicked")?;
        let other = other_vcpu.join().map_err(|_| "the other vCPU panicked")?;
        let other = other?;
        println!("# {rounds} and {other} rounds of the guest's CPUs, {attacks} of the host");
        equal(
            "pages that the guest wrote to though they were not its own",
            wrong,
            0,
        )?;
        result.map(|_| ())
    })?;
    vm.call(FILL, DATA, 9, pages as u32)?;
    for page in 0..pages {
        equal("a page in the end", area.load(page * PAGE), 9)?;
    }
    Ok(())
}

/// Slots that come, go and change under a vCPU that uses them: it sees the old memory, the new, or
/// none, and once the ioctl has returned only the new.
pub(crate) fn slots_change(device: &Handle, time: Duration) -> Outcome {
    const SIZE: usize = 4 * LARGE;
    const AT: usize = LARGE + 5 * PAGE;
    let address = DATA + AT as u64;
    let vm = Vm::new(device)?;
    let areas = [Area::new(SIZE), Area::new(SIZE)];
    for (area, value) in areas.iter().zip([1, 2]) {
        area.advise(0, SIZE, libc::MADV_HUGEPAGE);
        area.store(AT, value);
    }
    let second = flat_vcpu(device, &vm.vm, 1)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let user = scope.spawn(|| {
            let mut seen = [0u32; 3];
            while !stop.load(Ordering::Relaxed) {
                let reason = exit_of(&second, LOAD, address, 9, 1).map_err(|e| format!("{e:?}"))?;
                if reason == EXIT_MMIO {
                    seen[0] += 1;
                    finish_access_of(&second);
                    continue;
                }
                equal("the exit", reason, EXIT_HLT)?;
                let regs: kvm_regs = second.handle.get(number::GET_REGS)?;
                match regs.rax {
                    value @ (1 | 2) => seen[value as usize] += 1,
                    value => return Err(format!("the guest read {value:#x}")),
                }
            }
            Ok(seen)
        });
        let begin = Instant::now();
        let mut outcome = Ok(());
        let mut rounds = 0u32;
        while begin.elapsed() < time && outcome.is_ok() {
            rounds += 1;
            let area = &areas[rounds as usize % 2];
            let flags = [0, LOG_DIRTY][rounds as usize / 2 % 2];
            outcome = replace(&vm, area, SIZE, flags, rounds % 2 + 1, address);
        }
        stop.store(true, Ordering::Relaxed);
        let seen = user.join().map_err(|_| "the vCPU's thread panicked")??;
        println!("# {rounds} changes; the guest saw nothing, the one, the other: {seen:?}");
        outcome
    })?;
    let values = [areas[0].load(AT), areas[1].load(AT)];
    equal("the memory in the end", values, [1, 2])
}

const LOG_DIRTY: u32 = 1;

/// Puts other memory into slot 1, and looks.
fn replace(vm: &Vm, area: &Area, size: usize, flags: u32, value: u32, at: u64) -> Outcome {
    // The first time there is nothing to delete.
    let _ = vm.slot(1, 0, 0, 0, null_mut());
    equal("none", vm.exit(LOAD, at, 0, 1), Ok(EXIT_MMIO))?;
    vm.finish_access()?;
    vm.slot(1, flags, DATA, size, area.memory())?;
    equal("the new memory", vm.load(at)?, value)?;
    vm.slot(1, flags ^ LOG_DIRTY, DATA, size, area.memory())?;
    equal("with other flags", vm.load(at)?, value)
}
