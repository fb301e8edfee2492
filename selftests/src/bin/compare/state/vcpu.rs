// SPDX-License-Identifier: GPL-2.0-only

//! What else a vCPU and a VM have: whether it runs, its debugger, clocks, guests of the guest,
//! routes of interrupts.

use kvm_bindings::*;
use selftests::kvm::number;

use super::change;
use crate::cases::Mode;
use crate::guest::{errno, Machine};
use crate::probe::Probe;
use crate::random::Random;

pub(crate) fn mp_state(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("mp-state");
    let vcpu = &machine.vcpu.handle;
    let mp_state = match random.below(4) {
        0 => random.value() as u32,
        _ => random.below(12) as u32,
    };
    probe.word(format!("state={mp_state:x}"));
    let done = vcpu.set(number::SET_MP_STATE, &kvm_mp_state { mp_state });
    probe.put("set", errno(done));
    let after: kvm_mp_state = vcpu.get(number::GET_MP_STATE)?;
    probe.put("got", after.mp_state);
    Ok(after.mp_state == KVM_MP_STATE_RUNNABLE)
}

pub(crate) fn guest_debug(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("guest-debug");
    let vcpu = &machine.vcpu.handle;
    let mut debug = kvm_guest_debug::default();
    let mut control = match random.below(2) {
        0 => random.bit(32),
        _ => random.next() & 0x7f_0003,
    } as u32;
    // The events have a kind of their own.
    control &= !(KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP);
    debug.control = control;
    debug.arch.debugreg[7] = match random.below(3) {
        0 => random.value(),
        _ => 0x400,
    };
    probe.word(format!("control={control:x}"));
    probe.word(format!("dr7={:x}", debug.arch.debugreg[7]));
    let done = vcpu.set(number::SET_GUEST_DEBUG, &debug);
    probe.put("set", errno(done));
    let breakpoints = control & KVM_GUESTDBG_USE_HW_BP != 0;
    Ok(done.is_ok() && !breakpoints)
}

pub(crate) fn clock(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("clock");
    let mut clock: kvm_clock_data = machine.vm.get(number::GET_CLOCK)?;
    probe.put("flags", format!("{:x}", clock.flags));
    change(
        random,
        probe,
        &mut [("flags", &mut clock.flags), ("pad", &mut clock.pad0)],
    );
    probe.put("set", errno(machine.vm.set(number::SET_CLOCK, &clock)));
    Ok(true)
}

pub(crate) fn tsc_khz(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("tsc-khz");
    let vcpu = &machine.vcpu.handle;
    let khz = random.value();
    probe.word(format!("khz={khz:x}"));
    let before = vcpu.call(number::GET_TSC_KHZ, 0)?;
    probe.put("set", errno(vcpu.call(number::SET_TSC_KHZ, khz)));
    vcpu.call(number::SET_TSC_KHZ, before as u64)?;
    Ok(false)
}

pub(crate) fn nested_state(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("nested-state");
    let vcpu = &machine.vcpu.handle;
    let mut state = kvm_nested_state {
        format: 1,
        flags: 0x100,
        size: 128,
        ..Default::default()
    };
    change(
        random,
        probe,
        &mut [
            ("flags", &mut state.flags),
            ("format", &mut state.format),
            ("size", &mut state.size),
        ],
    );
    probe.put("set", errno(vcpu.set(number::SET_NESTED_STATE, &state)));
    Ok(false)
}

/// The routing table is empty again at the end.
pub(crate) fn routing(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("routing");
    let mut entry = kvm_irq_routing_entry {
        gsi: random.pick(&[0, 23, 24, 4095, 4096, u32::MAX]),
        type_: random.below(7) as u32,
        flags: random.pick(&[0, 0, 0, 1, 8]),
        pad: random.pick(&[0, 0, 1]),
        ..Default::default()
    };
    entry.u.pad = [
        random.below(26) as u32,
        random.below(26) as u32,
        0x30,
        0,
        0,
        0,
        0,
        0,
    ];
    probe.word(
        format!(
            "gsi={:x} type={} eflags={} pad={} u={:?}",
            entry.gsi,
            entry.type_,
            entry.flags,
            entry.pad,
            // SAFETY: Plain numbers, just written.
            unsafe { &entry.u.pad[..2] }
        )
        .replace(", ", ","),
    );
    let flags = random.pick(&[0, 0, 0, 1]);
    let mut table = vec![1 | flags << 32];
    probe.word(format!("flags={flags}"));
    // SAFETY: The structure has no padding between its numbers.
    let words: [u64; 6] = unsafe { std::mem::transmute(entry) };
    table.extend(words);
    let set = |table: &mut Vec<u64>| {
        let room = table.len() * 8;
        machine.vm.array(number::SET_GSI_ROUTING, table, room)
    };
    probe.put("set", errno(set(&mut table)));
    Ok(false)
}
