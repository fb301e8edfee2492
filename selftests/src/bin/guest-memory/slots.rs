// SPDX-License-Identifier: GPL-2.0-only

//! The rules of slots, and what a guest finds in them.

use std::ptr::null_mut;

use selftests::kvm::{Errno, Handle};
use selftests::memory::PAGE;
use selftests::tap::equal;

use crate::guest::*;

pub(crate) fn rules(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    let area = Area::new(4 * PAGE);
    let (size, at) = (4 * PAGE, area.start);
    let odd = at.wrapping_add(8);
    let kernel = (1u64 << 63) as *mut u8;
    let most = device.extension(10) as u32; // KVM_CAP_NR_MEMSLOTS
    refused(
        "unknown flag",
        vm.slot(1, 1 << 7, DATA, size, at),
        libc::EINVAL,
    )?;
    refused(
        "odd address",
        vm.slot(1, 0, DATA + 8, size, at),
        libc::EINVAL,
    )?;
    refused("odd size", vm.slot(1, 0, DATA, size + 1, at), libc::EINVAL)?;
    refused("odd memory", vm.slot(1, 0, DATA, size, odd), libc::EINVAL)?;
    refused(
        "kernel memory",
        vm.slot(1, 0, DATA, size, kernel),
        libc::EINVAL,
    )?;
    refused(
        "wraps",
        vm.slot(1, 0, 0u64.wrapping_sub(PAGE as u64), 2 * PAGE, at),
        libc::EINVAL,
    )?;
    refused("too high", vm.slot(1, 0, 1 << 52, size, at), libc::EINVAL)?;
    refused(
        "slot too high",
        vm.slot(most, 0, DATA, size, at),
        libc::EINVAL,
    )?;
    // KVM_CAP_MULTI_ADDRESS_SPACE
    if device.extension(118) <= 1 {
        let other = vm.slot(1 << 16 | 1, 0, DATA, size, at);
        refused("address space", other, libc::EINVAL)?;
    }
    refused("delete nothing", vm.slot(1, 0, DATA, 0, at), libc::EINVAL)?;
    equal(
        "last slot",
        vm.slot(most - 1, 0, DATA + (1 << 30), size, at),
        Ok(0),
    )?;
    equal("create", vm.slot(1, 0, DATA, size, at), Ok(0))?;
    equal("the same again", vm.slot(1, 0, DATA, size, at), Ok(0))?;
    refused("resize", vm.slot(1, 0, DATA, 2 * PAGE, at), libc::EINVAL)?;
    refused(
        "other memory",
        vm.slot(1, 0, DATA, size, at.wrapping_add(PAGE)),
        libc::EINVAL,
    )?;
    refused(
        "becomes read-only",
        vm.slot(1, READ_ONLY, DATA, size, at),
        libc::EINVAL,
    )?;
    refused(
        "overlap",
        vm.slot(2, 0, DATA + 3 * PAGE as u64, PAGE, at),
        libc::EEXIST,
    )?;
    refused(
        "overlap all",
        vm.slot(2, 0, DATA - PAGE as u64, 6 * PAGE, at),
        libc::EEXIST,
    )?;
    equal(
        "neighbour",
        vm.slot(2, 0, DATA + size as u64, PAGE, at),
        Ok(0),
    )?;
    refused(
        "move onto it",
        vm.slot(1, 0, DATA + PAGE as u64, size, at),
        libc::EEXIST,
    )?;
    equal("move", vm.slot(1, 0, DATA - PAGE as u64, size, at), Ok(0))?;
    equal("delete", vm.slot(1, 0, 0, 0, null_mut()), Ok(0))?;
    refused(
        "delete again",
        vm.slot(1, 0, 0, 0, null_mut()),
        libc::EINVAL,
    )
}

pub(crate) fn reads_and_writes(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    let area = vm.with_data(64 * PAGE)?;
    area.store(5 * PAGE + 4, 0x1234);
    equal(
        "a word of ours",
        vm.load(DATA + 5 * PAGE as u64 + 4)?,
        0x1234,
    )?;
    vm.store(DATA + 9 * PAGE as u64, 0x5678)?;
    equal("a word of the guest's", area.load(9 * PAGE), 0x5678)?;
    vm.call(FILL, DATA, 3, 64)?;
    equal("the sum", vm.call(SUM, DATA, 0, 64)?, 192)?;
    for page in 0..64 {
        equal("a page", area.load(page * PAGE), 3)?;
    }
    Ok(())
}

pub(crate) fn come_and_go(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    equal("no slot", vm.exit(LOAD, DATA, 0, 1), Ok(EXIT_MMIO))?;
    vm.finish_access()?;
    let area = vm.with_data(16 * PAGE)?;
    vm.call(FILL, DATA, 7, 16)?;
    vm.slot(1, 0, DATA + LARGE as u64, 16 * PAGE, area.start)?;
    equal("the old place", vm.exit(STORE, DATA, 0, 1), Ok(EXIT_MMIO))?;
    vm.finish_access()?;
    equal(
        "the new place",
        vm.call(SUM, DATA + LARGE as u64, 0, 16)?,
        112,
    )?;
    // Moved by less than its size.
    vm.slot(
        1,
        0,
        DATA + LARGE as u64 + PAGE as u64,
        16 * PAGE,
        area.start,
    )?;
    area.store(0, 1000);
    equal(
        "moved a little",
        vm.load(DATA + LARGE as u64 + PAGE as u64)?,
        1000,
    )?;
    vm.slot(1, 0, 0, 0, null_mut())?;
    equal(
        "deleted",
        vm.exit(LOAD, DATA + LARGE as u64 + PAGE as u64, 0, 1),
        Ok(EXIT_MMIO),
    )?;
    vm.finish_access()?;
    // Two slots, the same memory.
    vm.slot(1, 0, DATA, 16 * PAGE, area.start)?;
    vm.slot(2, 0, DATA + LARGE as u64, 16 * PAGE, area.start)?;
    vm.store(DATA + 8, 0xabc)?;
    equal("seen twice", vm.load(DATA + LARGE as u64 + 8)?, 0xabc)?;
    area.advise(0, 16 * PAGE, libc::MADV_DONTNEED);
    equal("gone once", vm.load(DATA + 8)?, 0)?;
    equal("gone twice", vm.load(DATA + LARGE as u64 + 8)?, 0)
}

pub(crate) fn read_only(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    let area = Area::new(16 * PAGE);
    area.store(0, 0x11);
    vm.slot(1, READ_ONLY, DATA, 16 * PAGE, area.start)?;
    equal("read", vm.load(DATA)?, 0x11)?;
    equal("write", vm.exit(STORE, DATA, 0x22, 1), Ok(EXIT_MMIO))?;
    let run = vm.vcpu.shared();
    // SAFETY: The exit reason says that this is the one.
    let mmio = unsafe { run.__bindgen_anon_1.mmio };
    equal(
        "where",
        (mmio.phys_addr, mmio.len, mmio.is_write),
        (DATA, 4, 1),
    )?;
    vm.finish_access()?;
    equal("unchanged", area.load(0), 0x11)?;
    area.store(0, 0x33);
    equal("read again", vm.load(DATA)?, 0x33)
}

pub(crate) fn many(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    let most = (device.extension(10) as u32).min(512);
    let area = Area::new(PAGE * most as usize);
    let place = |slot: u32| DATA + 2 * PAGE as u64 * u64::from(slot * 211 % most);
    for slot in 1..most {
        vm.slot(
            slot,
            0,
            place(slot),
            PAGE,
            area.start.wrapping_add(slot as usize * PAGE),
        )?;
    }
    for slot in 1..most {
        area.store(slot as usize * PAGE, slot);
        equal("a slot's word", vm.load(place(slot))?, slot)?;
    }
    area.advise(7 * PAGE, PAGE, libc::MADV_DONTNEED);
    equal("one forgotten", vm.load(place(7))?, 0)?;
    equal("its neighbour", vm.load(place(8))?, 8)?;
    for slot in (1..most).step_by(2) {
        vm.slot(slot, 0, 0, 0, null_mut())?;
    }
    equal("deleted", vm.exit(LOAD, place(9), 0, 1), Ok(EXIT_MMIO))?;
    vm.finish_access()?;
    equal("not deleted", vm.load(place(10))?, 10)
}

/// Random changes of a few hundred slots, against a model that is a list. They share memory, and
/// the host takes pages of it back: each slot must lose them.
pub(crate) fn random_changes(device: &Handle) -> Outcome {
    const PLACES: u64 = 512;
    let vm = Vm::new(device)?;
    let area = Area::new(PAGE * 64);
    let mut words: Vec<u32> = (1..=64).collect();
    (0..64).for_each(|page| area.store(page * PAGE, words[page]));
    let mut seed = 12345u64;
    let mut random = |below: u64| {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    // The place, size and first page of memory of each slot, in pages.
    let mut slots: Vec<Option<(u64, u64, u64)>> = vec![None; 300];
    for step in 0..3000 {
        let id = 1 + random(slots.len() as u64 - 1) as usize;
        let (place, size, page) = (random(PLACES), 1 + random(3), random(60));
        let delete = random(8) == 0;
        let (size, page) = match slots[id] {
            // An existing slot can only move.
            Some((_, size, page)) if random(4) != 0 => (size, page),
            _ => (size, page),
        };
        let bytes = if delete { 0 } else { size as usize * PAGE };
        let memory = area.memory().wrapping_add(page as usize * PAGE);
        let got = vm.slot(id as u32, 0, DATA + place * PAGE as u64, bytes, memory);
        let others = slots.iter().enumerate().filter(|(other, _)| *other != id);
        let overlaps = others
            .flat_map(|(_, slot)| slot)
            .any(|slot| slot.0 < place + size && place < slot.0 + slot.1);
        let expected = match slots[id] {
            None if delete => Err(Errno(libc::EINVAL)),
            Some((_, s, p)) if !delete && (s, p) != (size, page) => Err(Errno(libc::EINVAL)),
            Some((at, _, _)) if !delete && at == place => Ok(0),
            _ if !delete && overlaps => Err(Errno(libc::EEXIST)),
            _ => Ok(0),
        };
        equal(&format!("step {step}, slot {id}"), got, expected)?;
        if got.is_ok() {
            slots[id] = (!delete).then_some((place, size, page));
        }
        if random(4) == 0 {
            let (first, count) = (random(60) as usize, 1 + random(4) as usize);
            area.advise(first * PAGE, count * PAGE, libc::MADV_DONTNEED);
            for (page, word) in words.iter_mut().enumerate().skip(first).take(count) {
                *word = 100 + step;
                area.store(page * PAGE, *word);
            }
        }
        let at = random(PLACES + 2);
        let backed = slots
            .iter()
            .flatten()
            .find(|slot| slot.0 <= at && at < slot.0 + slot.1);
        let gpa = DATA + at * PAGE as u64;
        match backed {
            Some(slot) => {
                let word = words[(slot.2 + at - slot.0) as usize];
                equal(
                    &format!("step {step}, the word at page {at}"),
                    vm.load(gpa)?,
                    word,
                )?;
            }
            None => {
                equal(
                    &format!("step {step}, page {at}"),
                    vm.exit(LOAD, gpa, 0, 1),
                    Ok(EXIT_MMIO),
                )?;
                vm.finish_access()?;
            }
        }
    }
    println!("# {} slots in the end", slots.iter().flatten().count());
    Ok(())
}
