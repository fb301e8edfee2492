// SPDX-License-Identifier: GPL-2.0-only

//! MSRs that the VMM filters and answers itself, and other choices of `KVM_ENABLE_CAP`.

use std::time::Duration;

use kvm_bindings::*;
use selftests::kvm::{number, Answer, Handle};
use selftests::machine::with_signals;
use selftests::tap::{equal, skipped};

use crate::bare::{vm, Bare, OUT};
use crate::{refused, Test};

pub(crate) const TESTS: &[Test] = &[
    ("KVM_X86_SET_MSR_FILTER refuses bad filters", bad_filters),
    ("KVM_X86_SET_MSR_FILTER hides MSRs from the guest", filter),
    (
        "a VMM answers RDMSR and WRMSR, for each of the reasons",
        exits,
    ),
    (
        "KVM_CAP_X86_DISABLE_EXITS: HLT stops the CPU without an exit",
        hlt,
    ),
    (
        "the page of a local APIC that has no registers in memory, without and with KVM_X86_QUIRK_LAPIC_MMIO_HOLE",
        lapic_hole,
    ),
    ("KVM_ENABLE_CAP refuses what it does not know", bad_caps),
];

/// STAR, which needs no exit, and a number that no CPU has.
const STAR: u32 = 0xc000_0081;
const NOBODYS: u32 = 0x1234_5678;
/// EFER, of which 0x11 has a reserved bit.
const RESERVED: u32 = 0xc000_0080;

fn enable(vm: &Handle, cap: u32, value: u64) -> Answer {
    let mut cap = kvm_enable_cap {
        cap,
        ..Default::default()
    };
    cap.args[0] = value;
    vm.set(number::ENABLE_CAP, &cap)
}

/// Denies reads, writes or both of one MSR, and allows the rest.
fn deny(vm: &Handle, flags: u32, msr: u32) -> Answer {
    let mut bits = [0_u8; 8];
    let mut filter = kvm_msr_filter::default();
    filter.ranges[0] = kvm_msr_filter_range {
        flags,
        nmsrs: 1,
        base: msr,
        bitmap: bits.as_mut_ptr(),
    };
    vm.set(number::X86_SET_MSR_FILTER, &filter)
}

/// `mov ecx, msr; rdmsr; out; mov eax, 0x11; wrmsr; out; hlt` in real mode, over and over.
fn accesses(msr: u32) -> Vec<u8> {
    let [a, b, c, d] = msr.to_le_bytes();
    let mut code = vec![0x66, 0xb9, a, b, c, d, 0x0f, 0x32];
    code.extend(OUT);
    code.extend([0x66, 0xb8, 0x11, 0, 0, 0, 0x0f, 0x30]);
    code.extend(OUT);
    let back = -(code.len() as i8) - 2;
    code.extend([0xeb, back as u8]);
    code
}

fn bad_filters(path: &str) -> Result<(), String> {
    let (device, vm) = vm(path)?;
    if device.extension(KVM_CAP_X86_MSR_FILTER) == 0 {
        return skipped("no KVM_CAP_X86_MSR_FILTER");
    }
    equal("one MSR", deny(&vm, KVM_MSR_FILTER_READ, STAR), Ok(0))?;
    refused("flags of a range", deny(&vm, 4, STAR), libc::EINVAL)?;
    let mut filter = kvm_msr_filter {
        flags: 2,
        ..Default::default()
    };
    let set = |filter: &kvm_msr_filter| vm.set(number::X86_SET_MSR_FILTER, filter);
    refused("flags", set(&filter), libc::EINVAL)?;
    filter.flags = KVM_MSR_FILTER_DEFAULT_DENY;
    refused("denies all", set(&filter), libc::EINVAL)?;
    filter.ranges[3] = kvm_msr_filter_range {
        flags: KVM_MSR_FILTER_READ,
        nmsrs: KVM_MSR_FILTER_MAX_BITMAP_SIZE * 8 + 1,
        base: 0,
        bitmap: std::ptr::null_mut(),
    };
    refused("too long", set(&filter), libc::EINVAL)?;
    filter.ranges[3].nmsrs = 1;
    refused("no bitmap", set(&filter), libc::EFAULT)?;
    filter.ranges[3].nmsrs = u32::MAX;
    refused("much too long", set(&filter), libc::EINVAL)
}

/// What the handler of #GP writes.
const GP: u8 = 0xee;

/// A handler of #GP for real mode: it writes a byte, which no MSR holds.
fn handle_gp(bare: &Bare) {
    const HANDLER: u8 = 0x20;
    const VECTOR: usize = 13;
    bare.ram.write(VECTOR * 4, &[0, HANDLER, 0, 0]);
    let code = [&[0xb0, GP], &OUT[..]].concat();
    bare.ram.write(usize::from(HANDLER) << 8, &code);
}

/// Without the exits, a denied access is #GP.
fn filter(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &accesses(STAR))?;
    if bare.device.extension(KVM_CAP_X86_MSR_FILTER) == 0 {
        return skipped("no KVM_CAP_X86_MSR_FILTER");
    }
    handle_gp(&bare);
    deny(&bare.vm, KVM_MSR_FILTER_WRITE, STAR)?;
    equal("read", bare.byte()?, 0)?;
    equal("not written", bare.byte()?, GP)?;
    bare.start()?;
    deny(&bare.vm, KVM_MSR_FILTER_READ, STAR)?;
    equal("not read", bare.byte()?, GP)?;
    bare.start()?;
    // The x2APIC's registers cannot be filtered.
    deny(&bare.vm, KVM_MSR_FILTER_READ, 0x802)?;
    equal("read again", bare.byte()?, 0)?;
    equal("written", bare.byte()?, 0x11)
}

fn exits(path: &str) -> Result<(), String> {
    for (msr, reason) in [
        (STAR, KVM_MSR_EXIT_REASON_FILTER),
        (NOBODYS, KVM_MSR_EXIT_REASON_UNKNOWN),
        (RESERVED, KVM_MSR_EXIT_REASON_INVAL),
    ] {
        let bare = Bare::new(path, &accesses(msr))?;
        if bare.device.extension(KVM_CAP_X86_USER_SPACE_MSR) == 0 {
            return skipped("no KVM_CAP_X86_USER_SPACE_MSR");
        }
        enable(&bare.vm, KVM_CAP_X86_USER_SPACE_MSR, reason.into())?;
        if msr == STAR {
            deny(&bare.vm, KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE, msr)?;
        }
        if msr != RESERVED {
            access(&bare, KVM_EXIT_X86_RDMSR, msr, reason)?;
            bare.vcpu
                .share(|run| run.__bindgen_anon_1.msr.data = 0x5_0000_0042);
        }
        equal("the byte that was read", bare.byte()? != 0, msr != RESERVED)?;
        access(&bare, KVM_EXIT_X86_WRMSR, msr, reason)?;
        bare.vcpu.share(|run| run.__bindgen_anon_1.msr.data = 0);
        equal("went on", bare.byte()?, 0x11)?;
        if msr == RESERVED {
            continue;
        }
        access(&bare, KVM_EXIT_X86_RDMSR, msr, reason)?;
        bare.vcpu.share(|run| run.__bindgen_anon_1.msr.error = 1);
        handle_gp(&bare);
        equal("an error", bare.byte()?, GP)?;
    }
    Ok(())
}

fn access(bare: &Bare, exit: u32, msr: u32, reason: u32) -> Result<(), String> {
    equal("exit", bare.exit()?, exit)?;
    // SAFETY: The exit reason says which part of the union is meant.
    let shown = unsafe { bare.vcpu.shared().__bindgen_anon_1.msr };
    equal("MSR", shown.index, msr)?;
    equal("reason", shown.reason, reason)?;
    let data = if exit == KVM_EXIT_X86_WRMSR {
        shown.data as u32
    } else {
        0x11
    };
    equal("data", data, 0x11)
}

fn hlt(path: &str) -> Result<(), String> {
    // The host's own interrupts may end a HLT: hlt; jmp to it
    let code = [0xf4, 0xeb, 0xfd];
    let mut offered = 0;
    let bare = Bare::with(path, &code, |vm| {
        offered = vm.extension(KVM_CAP_X86_DISABLE_EXITS) as u64;
        if offered & u64::from(KVM_X86_DISABLE_EXITS_HLT) != 0 {
            enable(
                vm,
                KVM_CAP_X86_DISABLE_EXITS,
                KVM_X86_DISABLE_EXITS_HLT.into(),
            )?;
        }
        Ok(())
    })?
    .interrupts_on()?;
    if offered & u64::from(KVM_X86_DISABLE_EXITS_HLT) == 0 {
        return skipped("not offered");
    }
    let answer = with_signals(Duration::from_millis(50), || bare.vcpu.run());
    refused("HLT without an exit", answer, libc::EINTR)?;
    let late = enable(&bare.vm, KVM_CAP_X86_DISABLE_EXITS, 0);
    refused("after the vCPU", late, libc::EINVAL)
}

/// The page of the local APIC's registers.
const LAPIC: u64 = 0xfee0_0000;
/// `IA32_APIC_BASE` in x2APIC mode and switched off, of the boot processor.
const X2APIC_MODE: u64 = LAPIC | 0xd00;
const SWITCHED_OFF: u64 = LAPIC | 0x100;
/// `mov [0x80], eax; mov eax, [0x30]; out; hlt`
const LAPIC_ACCESSES: [u8; 11] = [
    0x66, 0xa3, 0x80, 0, 0x66, 0xa1, 0x30, 0, OUT[0], OUT[1], 0xf4,
];

/// A guest that writes to the page and reads it in this mode of its local APIC, which it reaches
/// by the base of DS.
fn in_lapic_page(path: &str, apic_base: u64, quirk: bool) -> Result<Bare, String> {
    let bare = Bare::with(path, &LAPIC_ACCESSES, |vm| {
        vm.call(number::CREATE_IRQCHIP, 0)?;
        if !quirk {
            let hole = KVM_X86_QUIRK_LAPIC_MMIO_HOLE.into();
            enable(vm, KVM_CAP_DISABLE_QUIRKS2, hole)?;
        }
        Ok(())
    })?;
    let mut sregs: kvm_sregs = bare.vcpu.handle.get(number::GET_SREGS)?;
    sregs.apic_base = apic_base;
    sregs.ds.base = LAPIC;
    bare.vcpu.handle.set(number::SET_SREGS, &sregs)?;
    Ok(bare)
}

fn lapic_hole(path: &str) -> Result<(), String> {
    for apic_base in [X2APIC_MODE, SWITCHED_OFF] {
        let read = in_lapic_page(path, apic_base, true)?.byte();
        equal("what is read there", read?, 0xff)?;
        let bare = in_lapic_page(path, apic_base, false)?;
        bare.vcpu.run()?;
        let reason = bare.vcpu.shared().exit_reason;
        equal("exit without the quirk", reason, KVM_EXIT_MMIO)?;
    }
    Ok(())
}

fn bad_caps(path: &str) -> Result<(), String> {
    let (_device, vm) = vm(path)?;
    for cap in [
        KVM_CAP_X86_USER_SPACE_MSR,
        KVM_CAP_X86_DISABLE_EXITS,
        KVM_CAP_EXIT_ON_EMULATION_FAILURE,
        KVM_CAP_DISABLE_QUIRKS2,
        KVM_CAP_HLT,
        0xffff,
    ] {
        let what = format!("capability {cap}");
        refused(&what, enable(&vm, cap, 1 << 63), libc::EINVAL)?;
    }
    let flags = kvm_enable_cap {
        cap: KVM_CAP_MSR_PLATFORM_INFO,
        flags: 1,
        ..Default::default()
    };
    refused("flags", vm.set(number::ENABLE_CAP, &flags), libc::EINVAL)
}
