// SPDX-License-Identifier: GPL-2.0-only

//! A guest that was away for a while, between cloud-hypervisor's save and restore: its TSC does not
//! count that time, its kvmclock does, and a flag in each record of that tells the guest's
//! watchdogs. Without it Linux takes the leap of its clock for a lockup.

use std::thread::sleep;
use std::time::{Duration, Instant};

use kvm_bindings::*;
use selftests::kvm::{msrs, named_msrs, number, Handle};
use selftests::machine::Machine;

use crate::guest::{CPUS, RECORD, RECORDS};
use crate::run::go_on;
use crate::state::{State, Way, TSC};
use crate::{new, start};

/// How long the guest is away.
const AWAY: Duration = Duration::from_secs(2);
/// Where a kvmclock's record is in that of its CPU, and its flags in it
/// (Documentation/virt/kvm/x86/msr.rst).
const KVMCLOCK: u64 = 0x800;
const FLAGS: u64 = 29;
/// The guest was stopped by the host.
const STOPPED: u8 = 1 << 1;

pub(crate) fn clocks_of_a_guest_that_was_away(path: &str, way: Way) -> Result<(), String> {
    let device = Handle::open(path).map_err(|e| format!("{path}: {e}"))?;
    let old = new(&device, way)?;
    start(&old, way, false)?;
    go_on(&[&old])?;
    let saved_at = Instant::now();
    let state = State::save(&old, way, &named_msrs(&device)?)?;
    drop(old);
    sleep(AWAY);
    let copy = new(&device, way)?;
    let restored_at = Instant::now();
    state.restore(&copy, way)?;
    let (tsc, ns) = clocks(&copy)?;
    let (tsc_before, ns_before) = state.clocks();
    let khz = copy.vcpus[0].handle.call(number::GET_TSC_KHZ, 0)? as u64;
    let ticks = |time: Duration| time.as_micros() as u64 * khz / 1000;
    within(
        "its TSC",
        tsc,
        tsc_before,
        (0, ticks(restored_at.elapsed())),
    )?;
    let (least, most) = (AWAY.as_nanos() as u64, saved_at.elapsed().as_nanos() as u64);
    within("its kvmclock", ns, ns_before, (least, most))?;
    // KVM writes the flag when the guest that was saved runs again, which it does not.
    let tells = !path.ends_with("/kvm");
    let told = |when: &str| match stopped(&copy) {
        told if told == [tells; CPUS] => Ok(()),
        told => Err(format!("{when}, told that it was stopped: {told:?}")),
    };
    told("before it runs")?;
    go_on(&[&copy])?;
    told("when it has run")
}

/// Fails if a clock has gone on by less than the one or more than the other, but for the host's
/// clocks, whose rates differ a little.
fn within(what: &str, now: u64, before: u64, (least, most): (u64, u64)) -> Result<(), String> {
    let on = now.wrapping_sub(before);
    let (least, most) = (least - least / 50, most + most / 50);
    match (least..=most).contains(&on) {
        true => Ok(()),
        false => Err(format!(
            "{what} went on by {on}, and not by {least} to {most}"
        )),
    }
}

/// The first virtual CPU's TSC, and the guest's nanoseconds.
fn clocks(machine: &Machine) -> Result<(u64, u64), String> {
    let mut pairs = [(TSC, 0)];
    msrs(&machine.vcpus[0].handle, number::GET_MSRS, &mut pairs)?;
    let clock: kvm_clock_data = machine.vm.get(number::GET_CLOCK)?;
    Ok((pairs[0].1, clock.clock))
}

/// Whether each CPU's record says that the guest was stopped.
fn stopped(machine: &Machine) -> [bool; CPUS] {
    std::array::from_fn(|cpu| {
        let at = RECORDS + cpu as u64 * RECORD + KVMCLOCK + FLAGS;
        machine.ram.read(at as usize, 1)[0] & STOPPED != 0
    })
}
