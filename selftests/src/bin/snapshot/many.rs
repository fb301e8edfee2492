// SPDX-License-Identifier: GPL-2.0-only

//! Rounds: on, and back.

use kvm_bindings::*;
use selftests::kvm::{msrs, number, Handle};
use selftests::machine::{map, RAM};
use selftests::memory::{Mapping, PAGE};
use selftests::snapshot::{Snapshot, RESET_TIME};
use selftests::stats;
use selftests::tap::equal;

use crate::state::State;
use crate::writer::{Writer, TARGET};
use crate::LIMIT;

const MIB: usize = 1 << 20;
const TSC: u32 = 0x10;

/// After each round all is as it was, whatever was done in it.
pub(crate) fn rounds(device: &Handle) -> Result<(), String> {
    let writer = Writer::new(device, 4, 8 * MIB)?;
    writer.run(20, 1)?;
    writer.look(device)?;
    let snapshot = Snapshot::create(&writer.machine.vm, LIMIT)?;
    let state = writer.look(device)?;
    for round in 0..30 {
        writer.run(1 + round % 7, round)?;
        let pages = snapshot.reset(if round % 2 == 0 { RESET_TIME } else { 0 })?;
        let kept = snapshot.kept()?;
        equal("pages put back", pages * PAGE as u64 <= kept, true)?;
        writer.is_back(device, &state, round)?;
    }
    // Whatever it was that went back goes on as before: the same answers lead to the same end.
    let end = |seed| -> Result<State, String> {
        snapshot.reset(RESET_TIME)?;
        writer.run_one(0, 10, seed)?;
        writer.look(device)
    };
    let (one, another, other) = (end(5)?, end(5)?, end(6)?);
    one.same(&another)?;
    equal("another seed, another end", other.same(&one).is_err(), true)
}

/// The second round writes the same pages.
pub(crate) fn no_faults(device: &Handle) -> Result<(), String> {
    let writer = Writer::new(device, 1, 4 * MIB)?;
    let vcpu = &writer.machine.vcpus[0].handle;
    let file = vcpu.open_with(number::GET_STATS_FD, 0)?;
    let faults = || {
        let count = stats::counter(&file, "exit_nested_fault")?;
        count.ok_or("no such counter".to_owned())
    };
    writer.run_one(0, 5, 3)?;
    let snapshot = Snapshot::create(&writer.machine.vm, LIMIT)?;
    let mut counts = Vec::new();
    for _ in 0..4 {
        let before = faults()?;
        writer.run_one(0, 40, 3)?;
        counts.push(faults()? - before);
        snapshot.reset(RESET_TIME)?;
    }
    println!("# nested faults in each round: {counts:?}");
    equal("the first round has faults", counts[0] > 0, true)?;
    equal("faults of the later rounds", &counts[1..], &[0, 0, 0])
}

/// What the VMM has announced is put back, though the guest has not written it.
pub(crate) fn announced(device: &Handle) -> Result<(), String> {
    let writer = Writer::new(device, 1, MIB)?;
    writer.run_one(0, 3, 1)?;
    writer.look(device)?;
    let snapshot = Snapshot::create(&writer.machine.vm, LIMIT)?;
    let state = writer.look(device)?;
    equal("left", snapshot.keep(TARGET, (3 * PAGE) as u64)?, 0)?;
    equal("kept", snapshot.kept()?, (3 * PAGE) as u64)?;
    equal("left", snapshot.keep(TARGET + PAGE as u64, PAGE as u64)?, 0)?;
    equal("kept once", snapshot.kept()?, (3 * PAGE) as u64)?;
    for round in 0..3 {
        writer.target.write(0, &[0xa5; 2 * PAGE]);
        // SAFETY: A page of the mapping, which is zeros then.
        unsafe {
            let page = writer.target.start().add(2 * PAGE);
            libc::madvise(page.cast(), PAGE, libc::MADV_DONTNEED)
        };
        writer.run_one(0, 3, round)?;
        snapshot.reset(0)?;
        let now = writer.look(device)?;
        state.same(&now)?;
    }
    // Beyond the slot nothing is left undone silently.
    let end = TARGET + MIB as u64;
    let left = snapshot.keep(end - PAGE as u64, (2 * PAGE) as u64)?;
    equal("left at the end of the slot", left, PAGE as u64)
}

/// What is kept last may have been written by way of the other place.
pub(crate) fn twice(device: &Handle) -> Result<(), String> {
    let writer = Writer::new(device, 1, MIB)?;
    let vm = &writer.machine.vm;
    map(vm, 8, 0, TARGET + MIB as u64, &writer.target)?;
    // One slot after the other, of the same memory: the guest writes to both.
    let vcpu = &writer.machine.vcpus[0].handle;
    let mut regs: kvm_regs = vcpu.get(number::GET_REGS)?;
    regs.r10 = 2 * MIB as u64 / 8 - 1;
    vcpu.set(number::SET_REGS, &regs)?;
    writer.look(device)?;
    let snapshot = Snapshot::create(vm, LIMIT)?;
    let state = writer.look(device)?;
    for round in 0..5 {
        writer.run_one(0, 60, round)?;
        snapshot.reset(0)?;
        state.same(&writer.look(device)?)?;
    }
    equal("both places are kept", snapshot.kept()? > MIB as u64, true)
}

/// The guest's TSC, its clock and its timers go on, or go back.
pub(crate) fn time(device: &Handle) -> Result<(), String> {
    let writer = Writer::new(device, 1, MIB)?;
    let (vm, vcpu) = (&writer.machine.vm, &writer.machine.vcpus[0].handle);
    let tsc = || -> Result<u64, String> {
        let mut pair = [(TSC, 0)];
        msrs(vcpu, number::GET_MSRS, &mut pair)?;
        Ok(pair[0].1)
    };
    let clock = || -> Result<u64, String> {
        let clock: kvm_clock_data = vm.get(number::GET_CLOCK)?;
        Ok(clock.clock)
    };
    let snapshot = Snapshot::create(vm, LIMIT)?;
    let (tsc_then, clock_then) = (tsc()?, clock()?);
    let a_while = || -> Result<(u64, u64), String> {
        let start = clock()?;
        while clock()? < start + 200_000_000 {
            writer.run_one(0, 1, 1)?;
        }
        Ok((tsc()?, clock()?))
    };
    let (tsc_late, clock_late) = a_while()?;
    snapshot.reset(0)?;
    equal("the TSC goes on", tsc()? >= tsc_late, true)?;
    equal("the clock goes on", clock()? >= clock_late, true)?;
    let (tsc_late, clock_late) = a_while()?;
    snapshot.reset(RESET_TIME)?;
    let (tsc_now, clock_now) = (tsc()?, clock()?);
    equal("the TSC has gone back", tsc_now < tsc_late, true)?;
    equal("the clock has gone back", clock_now < clock_late, true)?;
    equal("not too far", tsc_now > tsc_then - tsc_then / 2, true)?;
    equal("nor the clock", clock_now > clock_then / 2, true)?;
    equal("memory", writer.machine.ram.len(), RAM)
}

/// For tests that want a second piece of memory.
pub(crate) fn a_page() -> Result<Mapping, String> {
    Mapping::anonymous(PAGE).map_err(|error| error.to_string())
}
