// SPDX-License-Identifier: GPL-2.0-only

//! How much is kept, and what happens when no more may be.

use kvm_bindings::*;
use selftests::kvm::{msrs, number, Errno, Handle};
use selftests::machine::map;
use selftests::memory::{growth, kernel_memory, PAGE};
use selftests::snapshot::{Snapshot, RESET_TIME};
use selftests::tap::equal;

use crate::hostile::refused;
use crate::writer::{Writer, TARGET};
use crate::LIMIT;

const MIB: usize = 1 << 20;
/// Where the paravirtual clock of the guest is (`MSR_KVM_SYSTEM_TIME_NEW`).
const SYSTEM_TIME: u32 = 0x4b56_4d01;

/// The log has what a reset has written.
pub(crate) fn dirty_log(device: &Handle) -> Result<(), String> {
    let writer = Writer::new(device, 1, MIB)?;
    let vm = &writer.machine.vm;
    map(vm, 7, KVM_MEM_LOG_DIRTY_PAGES, TARGET, &writer.target)?;
    let log = || -> Result<u32, String> {
        let mut bitmap = [0u64; MIB / PAGE / 64];
        let request = kvm_dirty_log {
            slot: 7,
            padding1: 0,
            __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 {
                dirty_bitmap: bitmap.as_mut_ptr().cast(),
            },
        };
        vm.set(number::GET_DIRTY_LOG, &request)?;
        Ok(bitmap.iter().map(|word| word.count_ones()).sum())
    };
    writer.look(device)?;
    let snapshot = Snapshot::create(vm, LIMIT)?;
    let state = writer.look(device)?;
    for round in 0..3 {
        writer.run_one(0, 4, round)?;
        equal("the guest has written", log()? > 0, true)?;
        equal("and no more", log()?, 0)?;
        snapshot.reset(0)?;
        equal("the reset has written", log()? > 0, true)?;
        state.same(&writer.look(device)?)?;
    }
    Ok(())
}

/// Runs CPU 0 until it stops for want of room; answers after how many exits.
fn until_full(writer: &Writer) -> Result<u64, String> {
    for count in 0.. {
        match writer.machine.vcpus[0].run() {
            Ok(_) => writer.machine.vcpus[0].page().write(PAGE, &[7; 4]),
            Err(Errno(libc::ENOSPC)) => return Ok(count),
            Err(error) => return Err(format!("KVM_RUN: {error:?}")),
        }
    }
    Ok(0)
}

/// A guest that met the limit ends as one that did not.
pub(crate) fn limit(device: &Handle) -> Result<(), String> {
    let writer = Writer::new(device, 1, 4 * MIB)?;
    let vcpu = &writer.machine.vcpus[0];
    writer.look(device)?;
    let snapshot = Snapshot::create(&writer.machine.vm, LIMIT)?;
    let state = writer.look(device)?;
    let go_on = |exits: u64| -> Result<(), String> {
        let mut left = exits;
        let mut limit = 64;
        while left > 0 {
            match vcpu.run() {
                Ok(_) => {
                    vcpu.page().write(PAGE, &[7; 4]);
                    left -= 1;
                }
                Err(Errno(libc::ENOSPC)) => {
                    limit += 64;
                    snapshot.set_limit(limit * PAGE as u64)?;
                }
                Err(error) => return Err(format!("KVM_RUN: {error:?}")),
            }
        }
        Ok(())
    };
    go_on(40)?;
    let free = writer.look(device)?;
    // What is full begins anew.
    snapshot.set_limit(snapshot.kept()?)?;
    snapshot.reset(RESET_TIME)?;
    equal("kept after it was full", snapshot.kept()?, 0)?;
    snapshot.set_limit(64 * PAGE as u64)?;
    go_on(40)?;
    let limited = writer.look(device)?;
    free.same(&limited)?;
    snapshot.set_limit(8 * PAGE as u64)?;
    refused("above the limit", vcpu.run(), libc::ENOSPC)?;
    for round in 0..5 {
        snapshot.reset(RESET_TIME)?;
        let now = writer.look(device)?;
        state
            .same(&now)
            .map_err(|e| format!("round {round}: {e}"))?;
        until_full(&writer)?;
        equal("kept", snapshot.kept()?, 8 * PAGE as u64)?;
    }
    // When the snapshot has ended, the guest goes on.
    drop(snapshot);
    writer.run_one(0, 10, 7)
}

/// Nothing may be kept: the first write ends `KVM_RUN`.
pub(crate) fn zero(device: &Handle) -> Result<(), String> {
    let writer = Writer::new(device, 1, MIB)?;
    let vcpu = &writer.machine.vcpus[0];
    let snapshot = Snapshot::create(&writer.machine.vm, 0)?;
    for _ in 0..3 {
        refused("run", vcpu.run(), libc::ENOSPC)?;
        refused("keep", snapshot.keep(TARGET, PAGE as u64), libc::ENOSPC)?;
        equal("reset", snapshot.reset(0), Ok(0))?;
    }
    equal(
        "less than a page",
        snapshot.set_limit(PAGE as u64 - 1),
        Ok(0),
    )?;
    refused("run", vcpu.run(), libc::ENOSPC)?;
    snapshot.set_limit(LIMIT)?;
    writer.run_one(0, 3, 1)
}

/// The kernel's own writes: here those of the paravirtual clock. They are kept beyond the limit,
/// and end `KVM_RUN` then.
pub(crate) fn emulator(device: &Handle) -> Result<(), String> {
    let writer = Writer::new(device, 1, MIB)?;
    let vcpu = &writer.machine.vcpus[0];
    let mut pair = [(SYSTEM_TIME, 0x18_0001)];
    writer.run_one(0, 1, 1)?;
    writer.look(device)?;
    let snapshot = Snapshot::create(&writer.machine.vm, LIMIT)?;
    let state = writer.look(device)?;
    msrs(&vcpu.handle, number::SET_MSRS, &mut pair)?;
    writer.run_one(0, 1, 1)?;
    equal(
        "the clock is on",
        writer.machine.ram.read(0x18_0000, 4) != [0; 4],
        true,
    )?;
    snapshot.reset(0)?;
    state.same(&writer.look(device)?)?;
    snapshot.set_limit(snapshot.kept()?)?;
    snapshot.reset(0)?;
    snapshot.set_limit(0)?;
    msrs(&vcpu.handle, number::SET_MSRS, &mut pair)?;
    refused("run", vcpu.run(), libc::ENOSPC)?;
    equal("kept", snapshot.kept()?, PAGE as u64)?;
    snapshot.reset(0)?;
    state.same(&writer.look(device)?)
}

/// Rounds of all of it, and processes that are killed in the midst of it.
pub(crate) fn left_behind(device: &Handle) -> Result<(), String> {
    const MOST: i64 = 2048;
    let once = || -> Result<(), String> {
        let writer = Writer::new(device, 2, 4 * MIB)?;
        let snapshot = Snapshot::create(&writer.machine.vm, LIMIT)?;
        for round in 0..3 {
            writer.run(5, round)?;
            snapshot.reset(0)?;
        }
        Ok(())
    };
    once()?;
    let before = kernel_memory();
    for _ in 0..20 {
        once()?;
        killed(device)?;
    }
    let more = growth(before, MOST)?;
    println!("# {more} KiB more");
    Ok(())
}

/// A child that is killed while it runs, resets and closes.
fn killed(device: &Handle) -> Result<(), String> {
    // SAFETY: The child calls nothing that needs another thread of this process.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let forever = || -> Result<(), String> {
            let writer = Writer::new(device, 1, 4 * MIB)?;
            loop {
                let snapshot = Snapshot::create(&writer.machine.vm, LIMIT)?;
                for round in 0..20 {
                    writer.run_one(0, 3, round)?;
                    snapshot.reset(round & 1)?;
                }
            }
        };
        let failed = forever().is_err();
        // SAFETY: Ends the child at once.
        unsafe { libc::_exit(if failed { 1 } else { 2 }) };
    }
    std::thread::sleep(std::time::Duration::from_millis(150));
    let mut status = 0;
    // SAFETY: The child is this process' own; the variable is valid for the write.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, &mut status, 0);
    }
    equal("killed", libc::WIFSIGNALED(status), true)
}
