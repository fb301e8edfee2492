// SPDX-License-Identifier: GPL-2.0-only

//! Registers in the shared page, the page-directory-pointer entries of KVM_SET_SREGS2, and events
//! that have to be enabled.

use kvm_bindings::*;
use selftests::kvm::{number, Handle, Sregs2};
use selftests::tap::{equal, skipped};

use crate::bare::{Bare, CODE, OUT};
use crate::{refused, Test};

pub(crate) const TESTS: &[Test] = &[
    ("KVM_CAP_SYNC_REGS: registers in the shared page", sync_regs),
    ("KVM_CAP_SYNC_REGS refuses what it does not know", sync_bad),
    ("KVM_SET_SREGS2 and the entries of PAE mode", sregs2),
    ("KVM_CAP_EXCEPTION_PAYLOAD: pending exceptions", payload),
    ("KVM_CAP_X86_TRIPLE_FAULT_EVENT", triple_fault),
];

/// CR2 behind a guest that did not change it; on Bochs, VMRUN does not load it (`bochs-cr2`).
fn ran_with_cr2(sregs: &kvm_sregs, value: u64) -> Result<(), String> {
    if std::env::var("LAB_MACHINE").as_deref() == Ok("bochs") {
        return Ok(());
    }
    equal("CR2", sregs.cr2, value)
}

/// inc %eax; out %al, $0x10; jmp back
const LOOP: [u8; 6] = [0x66, 0x40, OUT[0], OUT[1], 0xeb, 0xfa];
const REGS: u64 = KVM_SYNC_X86_REGS as u64;
const SREGS: u64 = KVM_SYNC_X86_SREGS as u64;
const EVENTS: u64 = KVM_SYNC_X86_EVENTS as u64;

/// Skips a device without the capability.
fn require(bare: &Bare, capability: u32) -> Result<i32, String> {
    match bare.device.extension(capability) {
        0 => skipped("the device has no such capability").map(|()| unreachable!()),
        value => Ok(value),
    }
}

fn sync_regs(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &LOOP)?;
    equal("sets", require(&bare, KVM_CAP_SYNC_REGS)?, 7)?;
    bare.vcpu
        .share(|shared| shared.kvm_valid_regs = REGS | SREGS | EVENTS);
    equal("first", bare.byte()?, 1)?;
    // SAFETY: The kernel has just filled all three.
    let shown = unsafe { bare.vcpu.shared().s.regs };
    let regs: kvm_regs = bare.vcpu.handle.get(number::GET_REGS)?;
    let sregs: kvm_sregs = bare.vcpu.handle.get(number::GET_SREGS)?;
    let events: kvm_vcpu_events = bare.vcpu.handle.get(number::GET_VCPU_EVENTS)?;
    equal("registers", shown.regs, regs)?;
    equal("special registers", shown.sregs, sregs)?;
    equal("events", shown.events, events)?;
    bare.vcpu.share(|shared| {
        shared.kvm_dirty_regs = REGS | SREGS;
        shared.s.regs.regs.rax = 0x40;
        shared.s.regs.sregs.cr2 = 0x1234;
    });
    equal("changed", bare.byte()?, 0x41)?;
    let shared = bare.vcpu.shared();
    equal("taken", shared.kvm_dirty_regs, 0)?;
    let sregs: kvm_sregs = bare.vcpu.handle.get(number::GET_SREGS)?;
    ran_with_cr2(&sregs, 0x1234)?;
    bare.vcpu.share(|shared| {
        shared.kvm_valid_regs = 0;
        shared.s.regs.regs.rax = 0x70;
    });
    equal("not taken", bare.byte()?, 0x42)?;
    // SAFETY: As above.
    let shown = unsafe { bare.vcpu.shared().s.regs };
    equal("not shown", shown.regs.rax, 0x70)
}

fn sync_bad(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &LOOP)?;
    require(&bare, KVM_CAP_SYNC_REGS)?;
    for bits in [8, 1 << 31, 1 << 63, 7 | 1 << 40] {
        bare.vcpu.share(|shared| shared.kvm_valid_regs = bits);
        refused("valid", bare.vcpu.run(), libc::EINVAL)?;
        bare.vcpu.share(|shared| {
            shared.kvm_valid_regs = 0;
            shared.kvm_dirty_regs = bits;
        });
        refused("dirty", bare.vcpu.run(), libc::EINVAL)?;
        bare.vcpu.share(|shared| shared.kvm_dirty_regs = 0);
    }
    bare.vcpu.share(|shared| shared.kvm_valid_regs = 7);
    bare.byte()?;
    bare.vcpu.share(|shared| {
        shared.kvm_dirty_regs = SREGS;
        // SAFETY: The kernel has just filled it.
        unsafe { shared.s.regs.sregs.cr4 |= 1 << 63 };
    });
    refused("CR4", bare.vcpu.run(), libc::EINVAL)?;
    bare.vcpu.share(|shared| {
        shared.kvm_dirty_regs = EVENTS;
        // SAFETY: As above.
        let events = unsafe { &mut shared.s.regs.events };
        events.exception.injected = 1;
        events.exception.nr = 255;
    });
    refused("vector", bare.vcpu.run(), libc::EINVAL)?;
    bare.vcpu.share(|shared| shared.kvm_dirty_regs = 0);
    bare.byte()?;
    Ok(())
}

fn sregs2(path: &str) -> Result<(), String> {
    const VALID: u64 = KVM_SREGS2_FLAGS_PDPTRS_VALID as u64;
    const TABLE: usize = 0x2000;
    let bare = Bare::new(path, &LOOP)?;
    require(&bare, KVM_CAP_SREGS2)?;
    let vcpu = &bare.vcpu.handle;
    let mut sregs: Sregs2 = vcpu.get(number::GET_SREGS2)?;
    let old: kvm_sregs = vcpu.get(number::GET_SREGS)?;
    equal("CS", sregs.segments[0], old.cs)?;
    equal("CR0", sregs.cr0, old.cr0)?;
    equal("flags", sregs.flags, 0)?;
    sregs.flags = VALID;
    refused(
        "entries without PAE",
        vcpu.set(number::SET_SREGS2, &sregs),
        libc::EINVAL,
    )?;
    sregs.flags = 2;
    refused("flag", vcpu.set(number::SET_SREGS2, &sregs), libc::EINVAL)?;
    let entries = [0x3001, 0, 0x4001, 0x5001];
    bare.ram.write_words(TABLE, &entries);
    sregs.flags = VALID;
    sregs.pdptrs = entries;
    sregs.cr0 |= 1 << 31 | 1;
    sregs.cr3 = TABLE as u64;
    sregs.cr4 = 1 << 5;
    equal("PAE", vcpu.set(number::SET_SREGS2, &sregs), Ok(0))?;
    let got: Sregs2 = vcpu.get(number::GET_SREGS2)?;
    equal("entries", (got.flags, got.pdptrs), (VALID, entries))
}

fn enable(bare: &Bare, capability: u32, on: u64) -> Result<(), String> {
    require(bare, capability)?;
    let mut cap = kvm_enable_cap {
        cap: capability,
        ..Default::default()
    };
    cap.args[0] = on;
    bare.vm.set(number::ENABLE_CAP, &cap)?;
    Ok(())
}

fn events(vcpu: &Handle) -> Result<kvm_vcpu_events, String> {
    Ok(vcpu.get(number::GET_VCPU_EVENTS)?)
}

fn payload(path: &str) -> Result<(), String> {
    const PAGE_FAULT: u8 = 14;
    let bare = Bare::new(path, &LOOP)?;
    let vcpu = &bare.vcpu.handle;
    let mut new = events(vcpu)?;
    new.flags = KVM_VCPUEVENT_VALID_PAYLOAD;
    refused(
        "before",
        vcpu.set(number::SET_VCPU_EVENTS, &new),
        libc::EINVAL,
    )?;
    enable(&bare, KVM_CAP_EXCEPTION_PAYLOAD, 1)?;
    equal(
        "flag",
        events(vcpu)?.flags & KVM_VCPUEVENT_VALID_PAYLOAD,
        KVM_VCPUEVENT_VALID_PAYLOAD,
    )?;
    new.exception.pending = 1;
    new.exception.nr = PAGE_FAULT;
    new.exception.has_error_code = 1;
    new.exception.error_code = 2;
    new.exception_has_payload = 1;
    new.exception_payload = 0xcafe_0000;
    vcpu.set(number::SET_VCPU_EVENTS, &new)?;
    let got = events(vcpu)?;
    equal(
        "pending",
        (got.exception.pending, got.exception.injected),
        (1, 0),
    )?;
    equal("payload", got.exception_payload, 0xcafe_0000)?;
    let sregs: kvm_sregs = vcpu.get(number::GET_SREGS)?;
    equal("CR2 before", sregs.cr2, 0)?;
    for vector in [2, 32, 255] {
        let mut bad = new;
        bad.exception.nr = vector;
        refused(
            "vector",
            vcpu.set(number::SET_VCPU_EVENTS, &bad),
            libc::EINVAL,
        )?;
    }
    // In real mode an exception has no error code; its handler is the loop.
    let mut sregs: kvm_sregs = vcpu.get(number::GET_SREGS)?;
    sregs.idt.base = 0;
    sregs.idt.limit = 0x3ff;
    vcpu.set(number::SET_SREGS, &sregs)?;
    bare.ram
        .write(4 * usize::from(PAGE_FAULT), &(CODE as u32).to_le_bytes());
    new.exception.has_error_code = 0;
    vcpu.set(number::SET_VCPU_EVENTS, &new)?;
    bare.byte()?;
    let sregs: kvm_sregs = vcpu.get(number::GET_SREGS)?;
    ran_with_cr2(&sregs, 0xcafe_0000)?;
    // Whatever a #DB is said to bring must not harm the host.
    bare.ram.write(4, &(CODE as u32).to_le_bytes());
    new.exception.nr = 1;
    new.exception_payload = 0xffff_ffff_0000_4000;
    vcpu.set(number::SET_VCPU_EVENTS, &new)?;
    let _ = bare.exit();
    enable(&bare, KVM_CAP_EXCEPTION_PAYLOAD, 0)
}

fn triple_fault(path: &str) -> Result<(), String> {
    const VALID: u32 = KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    let bare = Bare::new(path, &LOOP)?;
    let vcpu = &bare.vcpu.handle;
    let mut new = events(vcpu)?;
    new.flags = VALID;
    refused(
        "before",
        vcpu.set(number::SET_VCPU_EVENTS, &new),
        libc::EINVAL,
    )?;
    enable(&bare, KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1)?;
    equal("flag", events(vcpu)?.flags & VALID, VALID)?;
    new.triple_fault.pending = 1;
    vcpu.set(number::SET_VCPU_EVENTS, &new)?;
    equal("pending", events(vcpu)?.triple_fault.pending, 1)?;
    let debug = kvm_guest_debug {
        control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB,
        ..Default::default()
    };
    refused(
        "a #DB besides",
        vcpu.set(number::SET_GUEST_DEBUG, &debug),
        libc::EBUSY,
    )?;
    // The window does not come before it.
    let mut regs: kvm_regs = vcpu.get(number::GET_REGS)?;
    regs.rflags |= 0x200;
    vcpu.set(number::SET_REGS, &regs)?;
    let window = |on: u8| {
        bare.vcpu
            .share(|shared| shared.request_interrupt_window = on)
    };
    window(1);
    let exit = bare.exit();
    window(0);
    equal("shutdown", exit?, KVM_EXIT_SHUTDOWN)?;
    equal("done", events(vcpu)?.triple_fault.pending, 0)
}
