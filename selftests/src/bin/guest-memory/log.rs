// SPDX-License-Identifier: GPL-2.0-only

//! The dirty log: which pages were written, by the guest or for it.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvm_bindings::kvm_dirty_log;
use selftests::kvm::{number, Errno, Handle};
use selftests::memory::PAGE;
use selftests::tap::equal;

use crate::guest::*;

pub(crate) const LOG: u32 = 1 << 0;

/// The log of slot 1, as the numbers of pages.
pub(crate) fn dirty(vm: &Vm, pages: usize) -> Result<Vec<usize>, Errno> {
    let mut words = vec![0u64; pages.div_ceil(64)];
    get(vm, 1, words.as_mut_ptr())?;
    let is_dirty = |page: &usize| words[page / 64] >> (page % 64) & 1 == 1;
    Ok((0..words.len() * 64).filter(is_dirty).collect())
}

pub(crate) fn get(vm: &Vm, slot: u32, bitmap: *mut u64) -> Result<i32, Errno> {
    let mut log = kvm_dirty_log {
        slot,
        ..Default::default()
    };
    log.__bindgen_anon_1.dirty_bitmap = bitmap.cast();
    vm.vm.set(number::GET_DIRTY_LOG, &log)
}

pub(crate) fn logged(vm: &Vm, pages: usize) -> Result<Area, String> {
    let area = Area::new(pages * PAGE);
    area.advise(0, pages * PAGE, libc::MADV_HUGEPAGE);
    vm.slot(1, LOG, DATA, pages * PAGE, area.memory())?;
    Ok(area)
}

pub(crate) fn rules(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    let mut word = 0u64;
    refused("no log", get(&vm, 0, &mut word), libc::ENOENT)?;
    refused("no slot", get(&vm, 9, &mut word), libc::ENOENT)?;
    refused("no such slot", get(&vm, 40000, &mut word), libc::EINVAL)?;
    let area = logged(&vm, 64)?;
    vm.store(DATA, 1)?;
    refused("nowhere to put it", get(&vm, 1, null_mut()), libc::EFAULT)?;
    equal("off", vm.slot(1, 0, DATA, 64 * PAGE, area.memory()), Ok(0))?;
    refused("off", get(&vm, 1, &mut word), libc::ENOENT)?;
    vm.store(DATA, 2)?;
    equal("on", vm.slot(1, LOG, DATA, 64 * PAGE, area.memory()), Ok(0))?;
    equal("clean again", dirty(&vm, 64), Ok(vec![]))
}

pub(crate) fn exact(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    let area = logged(&vm, 1000)?;
    equal("nothing yet", dirty(&vm, 1000), Ok(vec![]))?;
    vm.call(SUM, DATA, 0, 1000)?;
    equal("only read", dirty(&vm, 1000), Ok(vec![]))?;
    for page in [0, 1, 63, 64, 500, 999] {
        vm.store(DATA + (page * PAGE) as u64, 1)?;
    }
    equal(
        "written",
        dirty(&vm, 1000),
        Ok(vec![0, 1, 63, 64, 500, 999]),
    )?;
    equal("cleared", dirty(&vm, 1000), Ok(vec![]))?;
    vm.call(SUM, DATA, 0, 1000)?;
    vm.store(DATA + 500 * PAGE as u64, 2)?;
    equal("again", dirty(&vm, 1000), Ok(vec![500]))?;
    vm.call(FILL, DATA + 100 * PAGE as u64, 3, 50)?;
    equal("many", dirty(&vm, 1000), Ok((100..150).collect()))?;
    // What this program writes is its own business.
    area.store(7 * PAGE, 9);
    equal("ours", dirty(&vm, 1000), Ok(vec![]))?;
    equal("and is there", vm.load(DATA + 7 * PAGE as u64)?, 9)
}

/// A page that the host takes back has still been written.
pub(crate) fn survives(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    let area = logged(&vm, 256)?;
    vm.call(FILL, DATA, 1, 256)?;
    dirty(&vm, 256)?;
    vm.store(DATA + 8 * PAGE as u64, 2)?;
    area.advise(8 * PAGE, PAGE, libc::MADV_DONTNEED);
    vm.store(DATA + 9 * PAGE as u64, 2)?;
    area.protect(0, 256 * PAGE, libc::PROT_READ);
    area.protect(0, 256 * PAGE, libc::PROT_READ | libc::PROT_WRITE);
    vm.call(SUM, DATA, 0, 256)?;
    equal("taken back", dirty(&vm, 256), Ok(vec![8, 9]))
}

/// A slot takes its log along, whatever it moves by.
pub(crate) fn moves(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    let area = logged(&vm, 256)?;
    vm.store(DATA + 8 * PAGE as u64, 2)?;
    let at = DATA + 4 * PAGE as u64;
    equal(
        "move",
        vm.slot(1, LOG, at, 256 * PAGE, area.memory()),
        Ok(0),
    )?;
    vm.store(at + 9 * PAGE as u64, 2)?;
    let got = dirty(&vm, 256)?;
    equal("written before", got.contains(&8), true)?;
    equal("written after", got.contains(&9), true)?;
    equal("all there", vm.load(at + 8 * PAGE as u64)?, 2)
}

/// Large pages that were mapped before the log began are logged as small ones.
pub(crate) fn large_pages(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    let (size, pages) = (2 * LARGE, 2 * LARGE / PAGE);
    let area = vm.with_data(size)?;
    area.advise(0, size, libc::MADV_HUGEPAGE);
    vm.call(FILL, DATA, 1, pages as u32)?;
    vm.slot(1, LOG, DATA, size, area.memory())?;
    vm.call(SUM, DATA, 0, pages as u32)?;
    equal("nothing yet", dirty(&vm, pages), Ok(vec![]))?;
    vm.store(DATA + 700 * PAGE as u64, 2)?;
    equal("one small page", dirty(&vm, pages), Ok(vec![700]))?;
    vm.slot(1, 0, DATA, size, area.memory())?;
    vm.call(FILL, DATA, 3, pages as u32)?;
    equal(
        "all there",
        vm.call(SUM, DATA, 0, pages as u32)?,
        3 * pages as u32,
    )
}

/// What a live migration does: a copy is brought up to date from the log while the guest writes,
/// and is equal to the memory in the end.
pub(crate) fn copy_while_it_runs(device: &Handle, time: Duration) -> Outcome {
    let vm = Vm::new(device)?;
    let pages = 1024;
    let area = logged(&vm, pages)?;
    let mut copy = vec![0; pages];
    let stop = AtomicBool::new(false);
    let (rounds, copies) = std::thread::scope(|scope| {
        let copier = scope.spawn(|| -> Result<usize, String> {
            let mut copies = 0;
            while !stop.load(Ordering::Relaxed) {
                for page in dirty(&vm, pages)? {
                    copy[page] = area.load(page * PAGE);
                    copies += 1;
                }
                area.advise(copies % 900 * PAGE, 32 * PAGE, libc::MADV_COLD);
            }
            Ok(copies)
        });
        let begin = Instant::now();
        let (mut rounds, mut result) = (0u32, Ok(0));
        while begin.elapsed() < time && result.is_ok() {
            rounds += 1;
            let from = rounds.wrapping_mul(377) % 900;
            let at = DATA + u64::from(from) * PAGE as u64;
            result = vm.call(FILL, at, rounds, 1 + rounds % 120);
        }
        stop.store(true, Ordering::Relaxed);
        let copies = copier.join().map_err(|_| "the copier panicked")??;
        result.map(|_| (rounds, copies))
    })?;
    println!("# {rounds} rounds of the guest, {copies} pages copied");
    for page in dirty(&vm, pages)? {
        copy[page] = area.load(page * PAGE);
    }
    for (page, &word) in copy.iter().enumerate() {
        equal(
            &format!("page {page} of the copy"),
            word,
            area.load(page * PAGE),
        )?;
    }
    Ok(())
}
