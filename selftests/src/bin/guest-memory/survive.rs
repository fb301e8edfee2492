// SPDX-License-Identifier: GPL-2.0-only

//! What the guest has written is what it reads, whatever the host does to the memory meanwhile.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use selftests::kvm::{Errno, Handle};
use selftests::machine::Vcpu;
use selftests::memory::PAGE;
use selftests::patience::limit;
use selftests::swap::{vmstat, Swap};
use selftests::tap::equal;

use crate::guest::*;

const PAGES: usize = 1024;
const MADV_COLLAPSE: i32 = 25;

/// Calls a function of the guest; while the memory is away, or a child ends, as often as it takes.
fn call(vcpu: &Vcpu, function: (u64, &[u8]), page: usize, eax: u32) -> Result<u32, String> {
    let at = DATA + (page * PAGE) as u64;
    let mut result = exit_of(vcpu, function, at, eax, PAGES as u32 / 2);
    while [Err(Errno(libc::EFAULT)), Err(Errno(libc::EINTR))].contains(&result) {
        result = vcpu.run().map(|_| vcpu.shared().exit_reason);
    }
    equal("the end", result, Ok(EXIT_HLT))?;
    let regs: kvm_bindings::kvm_regs = vcpu.handle.get(selftests::kvm::number::GET_REGS)?;
    Ok(regs.rax as u32)
}

/// Half of the memory, written and read until `stop`; answers what is in it then.
fn verify(vcpu: &Vcpu, first: usize, stop: &AtomicBool) -> Result<u32, String> {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        call(vcpu, FILL, first, round)?;
        for _ in 0..3 {
            let sum = call(vcpu, SUM, first, 0)?;
            equal("what was written", sum, round * (PAGES as u32 / 2))?;
        }
    }
    Ok(round)
}

/// How many things [`attack`] knows.
const KINDS: usize = 10;

/// One of the things that hosts do and processes ask for; none of them changes what is there.
fn attack(area: &Area, elsewhere: &Area, round: usize) {
    let at = (round * 37 % 896) * PAGE;
    let some = 64 * PAGE;
    let all = libc::PROT_READ | libc::PROT_WRITE;
    match round % KINDS {
        0 => {
            area.protect(at, some, libc::PROT_READ);
            area.protect(at, some, all);
        }
        1 => {
            area.protect(at, some, libc::PROT_NONE);
            area.protect(at, some, all);
        }
        2 => {
            // The child does nothing but write to its copy, and end.
            let child = fork(|| {
                (0..16).for_each(|page| area.store(at + page * PAGE, 0xdead_beef));
                true
            });
            child.join();
        }
        3 => drop(area.advise(at, some, libc::MADV_MERGEABLE)),
        4 => drop(fs::write("/proc/sys/vm/compact_memory", "1")),
        5 | 6 => drop(area.advise(at, 2 * some, libc::MADV_PAGEOUT)),
        7 => {
            // SAFETY: Both ranges are the areas' own. Nothing else is mapped meanwhile.
            unsafe {
                let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                let (here, there) = (area.memory().add(at), elsewhere.memory());
                libc::mremap(here.cast(), some, some, flags, there);
                libc::mremap(there.cast(), some, some, flags, here);
            }
            elsewhere.fresh(0, some);
        }
        8 => {
            area.advise(0, PAGES * PAGE, libc::MADV_HUGEPAGE);
            area.advise(0, PAGES * PAGE, MADV_COLLAPSE);
        }
        _ => drop(area.advise(at, some, libc::MADV_COLD)),
    }
}

pub(crate) fn contents(device: &Handle, time: Duration) -> Outcome {
    let swap = Swap::on();
    let names = [
        "pswpout",
        "pswpin",
        "pgmigrate_success",
        "thp_collapse_alloc",
        "thp_split_pmd",
    ];
    let before = names.map(vmstat);
    let ksm = |name: &str, value: &str| fs::write(format!("/sys/kernel/mm/ksm/{name}"), value);
    let _ = (
        ksm("pages_to_scan", "500"),
        ksm("sleep_millisecs", "5"),
        ksm("run", "1"),
    );

    let vm = Vm::new(device)?;
    let area = vm.with_data(PAGES * PAGE)?;
    let elsewhere = Area::new(64 * PAGE);
    let second = flat_vcpu(device, &vm.vm, 1)?;
    let stop = AtomicBool::new(false);
    let half = PAGES / 2;
    let (result, rounds, attacks) = std::thread::scope(|scope| {
        let one = scope.spawn(|| verify(&vm.vcpu, 0, &stop));
        let two = scope.spawn(|| verify(&second, half, &stop));
        let begin = Instant::now();
        let mut round = 0;
        let swapped = || swap.is_none() || vmstat(names[0]) > before[0];
        // However slow the host is, everything comes once, and something is swapped out.
        let more = |round| {
            let must = round < KINDS || !swapped() && begin.elapsed() < limit();
            begin.elapsed() < time || must
        };
        while more(round) && !one.is_finished() && !two.is_finished() {
            round += 1;
            attack(&area, &elsewhere, round);
        }
        stop.store(true, Ordering::Relaxed);
        let rounds = [one.join(), two.join()].map(|end| end.unwrap_or(Err("panic".into())));
        (
            rounds.iter().find_map(|end| end.clone().err()),
            rounds,
            round,
        )
    });
    let _ = ksm("run", "2");
    let after = names.map(vmstat);
    let counts: Vec<_> = (0..names.len())
        .map(|i| format!("{} {}", names[i], after[i] - before[i]))
        .collect();
    println!(
        "# {rounds:?} rounds, {attacks} of the host: {}",
        counts.join(", ")
    );
    if let Some(error) = result {
        return Err(error);
    }
    for (index, end) in rounds.into_iter().enumerate() {
        let value = end?;
        for page in 0..half {
            equal(
                "a page in the end",
                area.load((index * half + page) * PAGE),
                value,
            )?;
        }
    }
    if swap.is_some() {
        equal("anything was swapped out", after[0] > before[0], true)?;
    } else {
        println!("# there is nothing to swap to");
    }
    Ok(())
}
