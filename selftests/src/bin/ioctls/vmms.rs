// SPDX-License-Identifier: GPL-2.0-only

//! What VMMs take for granted, without asking a capability: each test names the one that does.

use kvm_bindings::*;
use selftests::kvm::{msrs, number};
use selftests::tap::equal;

use crate::bare::{vm, Bare};
use crate::state::vcpu;
use crate::vm::{assign, eventfd, signalled, PORT};
use crate::{refused, Test};

pub(crate) const TESTS: &[Test] = &[
    ("Firecracker saves 32 banks of machine checks", banks),
    (
        "Firecracker, crosvm and kvmtool leave LINT0 unmasked as it is",
        lint0,
    ),
    ("cloud-hypervisor saves the state of nested guests", nested),
    ("QEMU has thousands of doorbells", doorbells),
    ("events that KVM saved are taken", events),
];

fn banks(path: &str) -> Result<(), String> {
    let (_device, vcpu) = vcpu(path)?;
    let mut banks: Vec<_> = (0x400..0x480).map(|index| (index, 0)).collect();
    equal("read", msrs(&vcpu, number::GET_MSRS, &mut banks), Ok(128))?;
    equal(
        "restored",
        msrs(&vcpu, number::SET_MSRS, &mut banks),
        Ok(128),
    )
}

fn lint0(path: &str) -> Result<(), String> {
    const LVT0: usize = 0x350;
    const EXT_INT: u32 = 7 << 8;
    const MASKED: u32 = 1 << 16;
    let (_device, vm) = vm(path)?;
    vm.call(number::CREATE_IRQCHIP, 0)?;
    for (id, wanted) in [(0, EXT_INT), (1, MASKED)] {
        let vcpu = vm.open_with(number::CREATE_VCPU, id)?;
        let state: kvm_lapic_state = vcpu.get(number::GET_LAPIC)?;
        let lvt0 = [0, 1, 2, 3].map(|byte| state.regs[LVT0 + byte] as u8);
        equal(
            &format!("LVT0 of vCPU {id}"),
            u32::from_le_bytes(lvt0),
            wanted,
        )?;
    }
    Ok(())
}

fn nested(path: &str) -> Result<(), String> {
    let (_device, vcpu) = vcpu(path)?;
    let mut state = kvm_nested_state {
        size: 128,
        ..Default::default()
    };
    vcpu.exchange(number::GET_NESTED_STATE, &mut state)?;
    equal(
        "a header",
        (state.size, u32::from(state.format)),
        (128, KVM_STATE_NESTED_FORMAT_SVM),
    )?;
    equal("flags", u32::from(state.flags), KVM_STATE_NESTED_GIF_SET)?;
    vcpu.set(number::SET_NESTED_STATE, &state)?;
    state.flags |= KVM_STATE_NESTED_GUEST_MODE as u16;
    refused(
        "a guest's guest without state",
        vcpu.set(number::SET_NESTED_STATE, &state),
        libc::EINVAL,
    )?;
    state.size = 127;
    refused(
        "no room",
        vcpu.exchange(number::GET_NESTED_STATE, &mut state),
        libc::E2BIG,
    )?;
    equal("the size that it wants", state.size, 128)
}

/// On each of so many ports and addresses; the one that the guest writes to is in the middle.
fn doorbells(path: &str) -> Result<(), String> {
    const COUNT: u64 = 1500;
    // mov $2, %al; mov $750, %dx; out %al, (%dx); out %al, $0x10
    let bare = Bare::new(path, &[0xb0, 2, 0xba, 0xee, 0x02, 0xee, 0xe6, 0x10])?;
    let (right, wrong) = (eventfd()?, eventfd()?);
    for at in (0..COUNT).rev().filter(|&at| at != 0x10) {
        let event = if at == 750 { &right } else { &wrong };
        assign(&bare.vm, event, at, 1, PORT, 0)?;
    }
    for at in 0..COUNT {
        assign(&bare.vm, &wrong, 0xf_0000 + 8 * at, 0, 0, 0)?;
    }
    equal("no exit for its port", bare.byte(), Ok(2))?;
    equal("its eventfd", signalled(&right), 1)?;
    equal("the others'", signalled(&wrong), 0)
}

fn events(path: &str) -> Result<(), String> {
    let (_device, vcpu) = vcpu(path)?;
    let mut events: kvm_vcpu_events = vcpu.get(number::GET_VCPU_EVENTS)?;
    events.flags |= KVM_VCPUEVENT_VALID_SMM;
    vcpu.set(number::SET_VCPU_EVENTS, &events)?;
    if path == "/dev/kvm" {
        return Ok(());
    }
    events.smi.smm = 1;
    refused(
        "there is no SMM",
        vcpu.set(number::SET_VCPU_EVENTS, &events),
        libc::EINVAL,
    )
}
