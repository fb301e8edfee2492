// SPDX-License-Identifier: GPL-2.0-only

//! A snapshot of a local APIC whose TSC deadline passes meanwhile: its registers are in two ioctls.

use std::thread::sleep;
use std::time::Duration;

use kvm_bindings::*;
use selftests::kvm::{msrs, number, Handle};
use selftests::machine::with_signals;
use selftests::tap::equal;

use crate::bare::{Bare, OUT};
use crate::{refused, Test};

pub(crate) const TESTS: &[Test] = &[(
    "a TSC deadline survives a snapshot, in whatever order",
    snapshot,
)];

const TSC: u32 = 0x10;
const DEADLINE: u32 = 0x6e0;
const VECTOR: usize = 0x30;

/// A virtual CPU whose local APIC is in x2APIC mode, and sleeps; it writes 0x77 when it is
/// interrupted.
fn sleeper(path: &str) -> Result<Bare, String> {
    let bare = Bare::with(path, &[0xfb, 0xf4, 0xeb, 0xfc], |vm| {
        vm.call(number::CREATE_IRQCHIP, 0)?;
        Ok(())
    })?;
    bare.ram.write(VECTOR * 4, &[0, 0x20, 0, 0]);
    // mov $0x77, %al; out; EOI; iret
    let handler = [
        0xb0, 0x77, OUT[0], OUT[1], 0x66, 0xb9, 0x0b, 8, 0, 0, 0x66, 0x31, 0xc0, 0x66, 0x31, 0xd2,
        0x0f, 0x30, 0xcf,
    ];
    bare.ram.write(0x2000, &handler);
    let mut sregs: kvm_sregs = bare.vcpu.handle.get(number::GET_SREGS)?;
    sregs.apic_base |= 0xc00;
    bare.vcpu.handle.set(number::SET_SREGS, &sregs)?;
    Ok(bare)
}

fn read(vcpu: &Handle, index: u32) -> Result<u64, String> {
    let mut pair = [(index, 0)];
    equal("read", msrs(vcpu, number::GET_MSRS, &mut pair), Ok(1))?;
    Ok(pair[0].1)
}

fn write(vcpu: &Handle, index: u32, value: u64) -> Result<(), String> {
    equal(
        "set",
        msrs(vcpu, number::SET_MSRS, &mut [(index, value)]),
        Ok(1),
    )
}

/// Arms the timer for so many milliseconds from now.
fn arm(bare: &Bare, milliseconds: u64) -> Result<(), String> {
    let vcpu = &bare.vcpu.handle;
    let mut state: kvm_lapic_state = vcpu.get(number::GET_LAPIC)?;
    for (register, value) in [(0xf0, 0x1ff), (0x320, 0x4_0030_u32)] {
        for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
            state.regs[register + i] = byte as _;
        }
    }
    vcpu.set(number::SET_LAPIC, &state)?;
    let khz = vcpu.call(number::GET_TSC_KHZ, 0)? as u64;
    write(vcpu, DEADLINE, read(vcpu, TSC)? + milliseconds * khz)
}

fn snapshot(path: &str) -> Result<(), String> {
    for lapic_saved_first in [true, false] {
        for lapic_restored_first in [true, false] {
            // KVM drops a deadline that comes before its mode.
            if path.ends_with("/kvm") && !lapic_restored_first {
                continue;
            }
            let what = format!("saved {lapic_saved_first}, restored {lapic_restored_first}");
            moved(path, lapic_saved_first, lapic_restored_first)
                .map_err(|error| format!("{what}: {error}"))?;
        }
    }
    Ok(())
}

fn moved(path: &str, lapic_saved_first: bool, lapic_restored_first: bool) -> Result<(), String> {
    const MILLISECONDS: u64 = 100;
    let (page, deadline, tsc);
    {
        let from = sleeper(path)?;
        arm(&from, MILLISECONDS)?;
        let vcpu = &from.vcpu.handle;
        let pass = || sleep(Duration::from_millis(3 * MILLISECONDS));
        if lapic_saved_first {
            page = vcpu.get::<kvm_lapic_state>(number::GET_LAPIC)?;
            pass();
            deadline = read(vcpu, DEADLINE)?;
        } else {
            deadline = read(vcpu, DEADLINE)?;
            pass();
            page = vcpu.get::<kvm_lapic_state>(number::GET_LAPIC)?;
        }
        tsc = read(vcpu, TSC)?;
    }
    let to = sleeper(path)?;
    let vcpu = &to.vcpu.handle;
    write(vcpu, TSC, tsc)?;
    if lapic_restored_first {
        vcpu.set(number::SET_LAPIC, &page)?;
    }
    write(vcpu, DEADLINE, deadline)?;
    if !lapic_restored_first {
        vcpu.set(number::SET_LAPIC, &page)?;
    }
    equal("the interrupt", to.byte(), Ok(0x77))?;
    let answer = with_signals(Duration::from_millis(50), || to.vcpu.run());
    refused("no second one", answer, libc::EINTR)
}
