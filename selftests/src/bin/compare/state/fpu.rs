// SPDX-License-Identifier: GPL-2.0-only

//! The FPU, in its three forms, and XCR0.

use kvm_bindings::*;
use selftests::kvm::{number, Handle, Xsave};

use super::change;
use crate::cases::Mode;
use crate::guest::{errno, fnv, Machine};
use crate::probe::Probe;
use crate::random::Random;

pub(crate) fn xsave(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("xsave");
    let vcpu = &machine.vcpu.handle;
    let mut x: Xsave = vcpu.get(number::GET_XSAVE)?;
    x.0[128] &= !PKRU;
    // Software's own bytes, where KVM says which components there are.
    x.0[116..128].fill(0);
    for _ in 0..random.pick(&[1, 2, 4]) {
        let at = match random.below(4) {
            // The control words, the header, anything.
            0 => random.below(8),
            1 => random.below(16) + 128,
            2 => random.pick(&[6, 128, 130]),
            _ => random.below(220),
        };
        let word = &mut x.0[at as usize];
        *word = match random.below(3) {
            0 => random.value() as u32,
            _ => *word ^ random.bit(32) as u32,
        };
        probe.word(format!("word-{at}={word:x}"));
    }
    probe.put("set", errno(vcpu.set(number::SET_XSAVE, &x)));
    put_xsave("got", vcpu, probe)?;
    put_fpu("fpu", vcpu, probe)?;
    Ok(true)
}

/// The component's bit in XSTATE_BV.
const PKRU: u32 = 1 << 9;

fn put_xsave(name: &'static str, vcpu: &Handle, probe: &mut Probe) -> Result<(), String> {
    let x: Xsave = vcpu.get(number::GET_XSAVE)?;
    let bytes = |from: usize, to: usize| -> u32 {
        let bytes: Vec<u8> = x.0[from..to]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        fnv(&bytes)
    };
    // A PKRU of zero is as good as none.
    let pkru = if x.0[128] & PKRU != 0 { x.0[672] } else { 0 };
    probe.put(
        name,
        format!(
            "{:x?}:{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:{pkru:x}",
            &x.0[..8],
            bytes(8, 40),
            bytes(40, 104),
            x.0[128] & !PKRU,
            bytes(129, 132),
            bytes(132, 144),
            bytes(144, 208)
        ),
    );
    Ok(())
}

/// KVM knows no MXCSR here.
fn put_fpu(name: &'static str, vcpu: &Handle, probe: &mut Probe) -> Result<(), String> {
    let f: kvm_fpu = vcpu.get(number::GET_FPU)?;
    probe.put(
        name,
        format!(
            "{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:{:x}",
            f.fcw,
            f.fsw,
            f.ftwx,
            f.last_opcode,
            f.last_ip,
            f.last_dp,
            fnv(&f.fpr.concat()),
            fnv(&f.xmm.concat())
        ),
    );
    Ok(())
}

pub(crate) fn xcrs(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("xcrs");
    let vcpu = &machine.vcpu.handle;
    let mut x: kvm_xcrs = vcpu.get(number::GET_XCRS)?;
    let [first, second, ..] = &mut x.xcrs;
    change(
        random,
        probe,
        &mut [
            ("count", &mut x.nr_xcrs),
            ("flags", &mut x.flags),
            ("number", &mut first.xcr),
            ("value", &mut first.value),
            ("second", &mut second.value),
        ],
    );
    probe.put("set", errno(vcpu.set(number::SET_XCRS, &x)));
    let after: kvm_xcrs = vcpu.get(number::GET_XCRS)?;
    let first = after.xcrs[0];
    probe.put(
        "got",
        format!(
            "{}:{:x}:{:x}:{:x}",
            after.nr_xcrs, after.flags, first.xcr, first.value
        ),
    );
    Ok(true)
}

pub(crate) fn fpu(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("fpu");
    let vcpu = &machine.vcpu.handle;
    let mut f: kvm_fpu = vcpu.get(number::GET_FPU)?;
    f.mxcsr = 0x1f80;
    let [.., last] = &mut f.fpr[3];
    let [byte, ..] = &mut f.xmm[2];
    change(
        random,
        probe,
        &mut [
            ("fcw", &mut f.fcw),
            ("fsw", &mut f.fsw),
            ("ftwx", &mut f.ftwx),
            ("opcode", &mut f.last_opcode),
            ("ip", &mut f.last_ip),
            ("dp", &mut f.last_dp),
            ("st3", last),
            ("xmm2", byte),
        ],
    );
    probe.put("set", errno(vcpu.set(number::SET_FPU, &f)));
    put_fpu("got", vcpu, probe)?;
    Ok(true)
}
