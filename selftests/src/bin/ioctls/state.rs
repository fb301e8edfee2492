// SPDX-License-Identifier: GPL-2.0-only

//! The state of a virtual CPU: what is set is what is read, and states that no CPU can be in are
//! refused.

use kvm_bindings::*;
use selftests::kvm::{msrs, named_msrs, number, set_cpuid, supported_cpuid, Errno, Handle, Xsave};
use selftests::tap::{equal, skipped};

use crate::bare::{vm, Bare, OUT};
use crate::{refused, Test};

pub(crate) const TESTS: &[Test] = &[
    ("KVM_SET_REGS keeps every register", regs),
    ("KVM_SET_SREGS keeps every register", sregs),
    ("KVM_SET_SREGS refuses impossible states", sregs_bad),
    ("CR8 takes no reserved bits", cr8_bad),
    (
        "every listed MSR can be read, and written with what was read",
        all_msrs,
    ),
    (
        "KVM_GET_MSRS and KVM_SET_MSRS stop at the first that they refuse",
        msrs_bad,
    ),
    ("KVM_SET_CPUID2 keeps the leaves", cpuid),
    ("KVM_SET_FPU keeps every register", fpu),
    ("KVM_SET_XSAVE keeps the image and refuses bad ones", xsave),
    ("KVM_SET_XCRS refuses impossible values", xcrs),
    (
        "KVM_SET_DEBUGREGS keeps the registers and refuses reserved bits",
        debugregs,
    ),
    (
        "KVM_SET_VCPU_EVENTS keeps the events and refuses impossible ones",
        vcpu_events,
    ),
    ("KVM_SET_MP_STATE without an in-kernel local APIC", mp_state),
    ("KVM_X86_SET_MCE makes a machine check", machine_check),
    (
        "KVM_X86_SETUP_MCE takes what KVM_X86_GET_MCE_CAP_SUPPORTED offers",
        mce,
    ),
    ("KVM_GET_TSC_KHZ says a frequency", tsc_khz),
];

/// What is wrong with a state, and how to make it so.
type Change<T> = (&'static str, fn(&mut T));

pub(crate) fn vcpu(path: &str) -> Result<(Handle, Handle), String> {
    let (device, vm) = vm(path)?;
    let vcpu = vm.open_with(number::CREATE_VCPU, 0)?;
    set_cpuid(&vcpu, &supported_cpuid(&device)?)?;
    Ok((device, vcpu))
}

fn regs(path: &str) -> Result<(), String> {
    let (_device, vcpu) = vcpu(path)?;
    let first: kvm_regs = vcpu.get(number::GET_REGS)?;
    equal("RIP after reset", first.rip, 0xfff0)?;
    equal("RFLAGS after reset", first.rflags, 2)?;
    let value = |number: u64| number * 0x0101_0101_0101_0101;
    let mut new = kvm_regs {
        rax: value(1),
        rbx: value(2),
        rcx: value(3),
        rdx: value(4),
        rsi: value(5),
        rdi: value(6),
        rsp: value(7),
        rbp: value(8),
        r8: value(9),
        r9: value(10),
        r10: value(11),
        r11: value(12),
        r12: value(13),
        r13: value(14),
        r14: value(15),
        r15: value(16),
        rip: 0x1234_5678,
        rflags: 0x202,
    };
    vcpu.set(number::SET_REGS, &new)?;
    equal("registers", vcpu.get(number::GET_REGS), Ok(new))?;
    new.rflags = 0;
    vcpu.set(number::SET_REGS, &new)?;
    equal(
        "bit 1 of RFLAGS",
        vcpu.get::<kvm_regs>(number::GET_REGS)?.rflags,
        2,
    )
}

fn sregs(path: &str) -> Result<(), String> {
    let (_device, vcpu) = vcpu(path)?;
    let reset: kvm_sregs = vcpu.get(number::GET_SREGS)?;
    equal("CR0 after reset", reset.cr0, 0x6000_0010)?;
    equal(
        "CS after reset",
        (reset.cs.selector, reset.cs.base),
        (0xf000, 0xffff_0000),
    )?;
    equal("EFER after reset", reset.efer, 0)?;
    let mut new = reset;
    new.cr0 = 0x8005_0033;
    new.cr2 = 0x1234_5678_9abc;
    new.cr3 = 0x7_f000;
    new.cr4 = 0x6a0;
    new.cr8 = 5;
    new.efer = 0xd01;
    new.gdt = kvm_dtable {
        base: 0xffff_8000_0000_1000,
        limit: 0x7f,
        ..Default::default()
    };
    new.idt = kvm_dtable {
        base: 0xffff_8000_0000_2000,
        limit: 0xfff,
        ..Default::default()
    };
    let code = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 0x10,
        type_: 11,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    new.cs = code;
    let data = kvm_segment {
        selector: 0x18,
        type_: 3,
        l: 0,
        db: 1,
        ..code
    };
    (new.ds, new.es, new.ss) = (data, data, data);
    new.fs = kvm_segment {
        base: 0x7fff_0000_1000,
        ..data
    };
    new.gs = kvm_segment {
        base: 0xffff_9000_0000_0000,
        ..data
    };
    new.ldt = kvm_segment {
        unusable: 1,
        ..Default::default()
    };
    new.tr = kvm_segment {
        selector: 0x40,
        type_: 11,
        present: 1,
        limit: 0x67,
        base: 0xffff_8000_0000_3000,
        ..Default::default()
    };
    vcpu.set(number::SET_SREGS, &new)?;
    let got: kvm_sregs = vcpu.get(number::GET_SREGS)?;
    for (name, got, want) in [
        ("CS", got.cs, new.cs),
        ("DS", got.ds, new.ds),
        ("SS", got.ss, new.ss),
        ("FS", got.fs, new.fs),
        ("GS", got.gs, new.gs),
        ("TR", got.tr, new.tr),
    ] {
        equal(name, got, want)?;
    }
    equal("LDTR is unusable", got.ldt.unusable, 1)?;
    equal("CR8", got.cr8, 5)?;
    let plain = |sregs: &kvm_sregs| {
        [
            sregs.cr0,
            sregs.cr2,
            sregs.cr3,
            sregs.cr4,
            sregs.efer,
            sregs.gdt.base,
            sregs.idt.base,
        ]
    };
    equal("control registers", plain(&got), plain(&new))?;
    equal("limits", (got.gdt.limit, got.idt.limit), (0x7f, 0xfff))
}

fn cr8_bad(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &OUT)?;
    let vcpu = &bare.vcpu.handle;
    let mut sregs: kvm_sregs = vcpu.get(number::GET_SREGS)?;
    for (value, want) in [(5, 5), (0x12, 5), (1 << 63 | 3, 5), (0, 0)] {
        sregs.cr8 = value;
        vcpu.set(number::SET_SREGS, &sregs)?;
        let got: kvm_sregs = vcpu.get(number::GET_SREGS)?;
        equal("CR8", got.cr8, want)?;
    }
    let in_page = |value| bare.vcpu.share(|shared| shared.cr8 = value);
    in_page(0x10);
    refused("CR8 in the page", bare.vcpu.run(), libc::EINVAL)?;
    in_page(0xf);
    bare.byte()?;
    equal("CR8 in the page", bare.vcpu.shared().cr8, 0xf)
}

fn sregs_bad(path: &str) -> Result<(), String> {
    let (_device, vcpu) = vcpu(path)?;
    let reset: kvm_sregs = vcpu.get(number::GET_SREGS)?;
    let cases: [Change<kvm_sregs>; 8] = [
        ("CR0 upper half", |s| s.cr0 |= 1 << 32),
        ("PG without PE", |s| s.cr0 = 0x8000_0010),
        ("NW without CD", |s| s.cr0 = 0x2000_0010),
        ("CR4 reserved", |s| s.cr4 |= 1 << 31),
        ("CR4 upper half", |s| s.cr4 |= 1 << 40),
        ("EFER reserved", |s| s.efer |= 1 << 30),
        ("long mode without PAE", |s| {
            s.efer = 0x500;
            s.cr0 = 0x8000_0011;
        }),
        ("long mode with reserved CR3 bits", |s| {
            s.efer = 0x500;
            s.cr0 = 0x8000_0011;
            s.cr4 = 0x20;
            s.cr3 = 1 << 60;
        }),
    ];
    for (what, change) in cases {
        let mut bad = reset;
        change(&mut bad);
        refused(what, vcpu.set(number::SET_SREGS, &bad), libc::EINVAL)?;
        equal(
            "nothing has changed",
            vcpu.get::<kvm_sregs>(number::GET_SREGS)?.cr0,
            reset.cr0,
        )?;
    }
    Ok(())
}

fn all_msrs(path: &str) -> Result<(), String> {
    let (device, vcpu) = vcpu(path)?;
    let named = named_msrs(&device)?;
    for &msr in &named {
        let mut pair = [(msr, 0)];
        equal(
            &format!("read {msr:#x}"),
            msrs(&vcpu, number::GET_MSRS, &mut pair),
            Ok(1),
        )?;
        // KVM's own MSRs are commands; that of asynchronous page faults does not take 0.
        if msr >> 8 != 0x4b_564d {
            equal(
                &format!("write {pair:x?}"),
                msrs(&vcpu, number::SET_MSRS, &mut pair),
                Ok(1),
            )?;
        }
    }
    // What all VMMs set at start.
    for needed in [
        0x174,
        0x175,
        0x176,
        0x277,
        0xc000_0081,
        0xc000_0082,
        0xc000_0083,
        0xc000_0084,
        0xc000_0102,
        0x10,
    ] {
        equal(
            &format!("{needed:#x} is listed"),
            named.contains(&needed),
            true,
        )?;
    }
    Ok(())
}

fn msrs_bad(path: &str) -> Result<(), String> {
    let (_device, vcpu) = vcpu(path)?;
    equal("none", msrs(&vcpu, number::GET_MSRS, &mut []), Ok(0))?;
    const GOOD: u32 = 0xc000_0081;
    const BAD: u32 = 0x1234_5678;
    let mut pairs = [(GOOD, 0x77), (BAD, 0), (GOOD, 0x88)];
    equal("set", msrs(&vcpu, number::SET_MSRS, &mut pairs), Ok(1))?;
    equal("get", msrs(&vcpu, number::GET_MSRS, &mut pairs), Ok(1))?;
    equal("the third was not set", pairs[0].1, 0x77)?;
    let mut efer = [(0xc000_0080, 1 << 30)];
    equal(
        "reserved bit",
        msrs(&vcpu, number::SET_MSRS, &mut efer),
        Ok(0),
    )?;
    let mut words = vec![0u64; 2 * 5000];
    words[0] = 4096;
    refused(
        "too many",
        vcpu.array(number::GET_MSRS, &mut words, 8 + 4096 * 16),
        libc::E2BIG,
    )
}

fn cpuid(path: &str) -> Result<(), String> {
    let (device, vcpu) = vcpu(path)?;
    let entries = supported_cpuid(&device)?;
    let mut words = vec![0u64; 1 + 256 * 5];
    words[0] = 256;
    let room = words.len() * 8;
    if vcpu.array(number::GET_CPUID2, &mut words, room) == Err(Errno(libc::ENOTTY)) {
        return skipped("the device has no KVM_GET_CPUID2");
    }
    equal("count", words[0] & 0xffff_ffff, entries.len() as u64)?;
    words[0] = 1;
    refused(
        "too few",
        vcpu.array(number::GET_CPUID2, &mut words, room),
        libc::E2BIG,
    )?;
    words[0] = 10_000;
    refused(
        "too many",
        vcpu.array(number::SET_CPUID2, &mut words, room),
        libc::E2BIG,
    )
}

fn fpu(path: &str) -> Result<(), String> {
    let (_device, vcpu) = vcpu(path)?;
    let mut new = kvm_fpu {
        fcw: 0x37f,
        ftwx: 0xff,
        fsw: 0x3800,
        ..Default::default()
    };
    for (number, register) in new.fpr.iter_mut().enumerate() {
        register[..10].fill(number as u8 + 1);
    }
    for (number, register) in new.xmm.iter_mut().enumerate() {
        register.fill(number as u8 + 0x80);
    }
    vcpu.set(number::SET_FPU, &new)?;
    let got: kvm_fpu = vcpu.get(number::GET_FPU)?;
    equal("XMM", got.xmm, new.xmm)?;
    equal(
        "x87",
        got.fpr.map(|register| register[..10].to_vec()),
        new.fpr.map(|register| register[..10].to_vec()),
    )?;
    equal(
        "control",
        (got.fcw, got.fsw, got.ftwx),
        (0x37f, 0x3800, 0xff),
    )
}

fn xsave(path: &str) -> Result<(), String> {
    let (_device, vcpu) = vcpu(path)?;
    let mut image: Xsave = vcpu.get(number::GET_XSAVE)?;
    image.0[0] = 0x37f;
    image.0[6] = 0x1f80;
    image.0[40..104].fill(0x1234_5678); // XMM0 to XMM15
    image.0[128] = 3; // XSTATE_BV: x87 and SSE
    vcpu.set(number::SET_XSAVE, &image)?;
    let got: Xsave = vcpu.get(number::GET_XSAVE)?;
    equal("XMM", &got.0[40..104], &image.0[40..104])?;
    equal("MXCSR", got.0[6], 0x1f80)?;
    let mut bad = Xsave(image.0);
    bad.0[129] = 0x4000_0000;
    refused(
        "unknown component",
        vcpu.set(number::SET_XSAVE, &bad),
        libc::EINVAL,
    )?;
    let mut bad = Xsave(image.0);
    bad.0[6] = 0xffff_ffff;
    refused("MXCSR", vcpu.set(number::SET_XSAVE, &bad), libc::EINVAL)
}

fn xcrs(path: &str) -> Result<(), String> {
    let (device, vcpu) = vcpu(path)?;
    if device.extension(KVM_CAP_XCRS) == 0 || !selftests::machine::offers(&device, 1, 26) {
        return skipped("the device has no XCR0");
    }
    let reset: kvm_xcrs = vcpu.get(number::GET_XCRS)?;
    equal(
        "after reset",
        (reset.nr_xcrs, reset.xcrs[0].xcr, reset.xcrs[0].value),
        (1, 0, 1),
    )?;
    let with = |value| {
        let mut xcrs = reset;
        xcrs.xcrs[0].value = value;
        xcrs
    };
    equal("x87 and SSE", vcpu.set(number::SET_XCRS, &with(3)), Ok(0))?;
    refused(
        "without x87",
        vcpu.set(number::SET_XCRS, &with(2)),
        libc::EINVAL,
    )?;
    refused(
        "AVX without SSE",
        vcpu.set(number::SET_XCRS, &with(5)),
        libc::EINVAL,
    )?;
    refused(
        "reserved",
        vcpu.set(number::SET_XCRS, &with(1 << 62 | 1)),
        libc::EINVAL,
    )?;
    refused(
        "count",
        vcpu.set(
            number::SET_XCRS,
            &kvm_xcrs {
                nr_xcrs: 17,
                ..reset
            },
        ),
        libc::EINVAL,
    )?;
    refused(
        "flags",
        vcpu.set(number::SET_XCRS, &kvm_xcrs { flags: 1, ..reset }),
        libc::EINVAL,
    )?;
    equal(
        "kept",
        vcpu.get::<kvm_xcrs>(number::GET_XCRS)?.xcrs[0].value,
        3,
    )
}

fn debugregs(path: &str) -> Result<(), String> {
    let (_device, vcpu) = vcpu(path)?;
    let reset: kvm_debugregs = vcpu.get(number::GET_DEBUGREGS)?;
    equal("after reset", (reset.dr6, reset.dr7), (0xffff_0ff0, 0x400))?;
    let new = kvm_debugregs {
        db: [0x1000, 0x2000, 0x3000, 0x7fff_ffff_f000],
        dr6: 0xffff_0ff1,
        dr7: 0x401,
        ..Default::default()
    };
    vcpu.set(number::SET_DEBUGREGS, &new)?;
    let got: kvm_debugregs = vcpu.get(number::GET_DEBUGREGS)?;
    equal(
        "kept",
        (got.db, got.dr6, got.dr7),
        (new.db, new.dr6, new.dr7),
    )?;
    refused(
        "flags",
        vcpu.set(number::SET_DEBUGREGS, &kvm_debugregs { flags: 1, ..new }),
        libc::EINVAL,
    )?;
    refused(
        "DR6",
        vcpu.set(
            number::SET_DEBUGREGS,
            &kvm_debugregs {
                dr6: 1 << 32,
                ..new
            },
        ),
        libc::EINVAL,
    )?;
    refused(
        "DR7",
        vcpu.set(
            number::SET_DEBUGREGS,
            &kvm_debugregs {
                dr7: 1 << 32,
                ..new
            },
        ),
        libc::EINVAL,
    )
}

fn vcpu_events(path: &str) -> Result<(), String> {
    let (_device, vcpu) = vcpu(path)?;
    let reset: kvm_vcpu_events = vcpu.get(number::GET_VCPU_EVENTS)?;
    equal(
        "nothing is pending",
        (
            reset.exception.injected,
            reset.nmi.pending,
            reset.interrupt.injected,
        ),
        (0, 0, 0),
    )?;
    let mut new = reset;
    new.nmi.masked = 1;
    new.interrupt.shadow = 1;
    new.flags |= KVM_VCPUEVENT_VALID_SHADOW;
    vcpu.set(number::SET_VCPU_EVENTS, &new)?;
    let got: kvm_vcpu_events = vcpu.get(number::GET_VCPU_EVENTS)?;
    equal("NMI mask", got.nmi.masked, 1)?;
    equal("shadow", got.interrupt.shadow != 0, true)?;
    // Other registers drop no exception whose delivery has begun, nor an interrupt or an NMI.
    new = reset;
    new.exception.injected = 1;
    new.exception.nr = 1;
    new.interrupt.injected = 1;
    new.interrupt.nr = 0x31;
    new.nmi.injected = 1;
    vcpu.set(number::SET_VCPU_EVENTS, &new)?;
    let mut regs: kvm_regs = vcpu.get(number::GET_REGS)?;
    regs.rip += 2;
    vcpu.set(number::SET_REGS, &regs)?;
    let sregs: kvm_sregs = vcpu.get(number::GET_SREGS)?;
    vcpu.set(number::SET_SREGS, &sregs)?;
    let got: kvm_vcpu_events = vcpu.get(number::GET_VCPU_EVENTS)?;
    equal(
        "what is being delivered",
        (
            (got.exception.injected, got.exception.nr),
            (got.interrupt.injected, got.interrupt.nr),
            got.nmi.injected,
        ),
        ((1, 1), (1, 0x31), 1),
    )?;
    vcpu.set(number::SET_VCPU_EVENTS, &reset)?;
    let cases: [Change<kvm_vcpu_events>; 3] = [
        ("flags", |e| e.flags = 1 << 31),
        ("exception 32", |e| {
            e.exception.injected = 1;
            e.exception.nr = 32;
        }),
        ("exception 2", |e| {
            e.exception.injected = 1;
            e.exception.nr = 2;
        }),
    ];
    for (what, change) in cases {
        let mut bad = reset;
        change(&mut bad);
        refused(what, vcpu.set(number::SET_VCPU_EVENTS, &bad), libc::EINVAL)?;
    }
    Ok(())
}

fn mp_state(path: &str) -> Result<(), String> {
    let (_device, vcpu) = vcpu(path)?;
    equal(
        "runnable",
        vcpu.get::<kvm_mp_state>(number::GET_MP_STATE)?.mp_state,
        KVM_MP_STATE_RUNNABLE,
    )?;
    let set = |mp_state| vcpu.set(number::SET_MP_STATE, &kvm_mp_state { mp_state });
    equal("runnable", set(KVM_MP_STATE_RUNNABLE), Ok(0))?;
    refused("unknown", set(77), libc::EINVAL)?;
    refused(
        "waiting for SIPI without a local APIC",
        set(KVM_MP_STATE_INIT_RECEIVED),
        libc::EINVAL,
    )
}

fn mce(path: &str) -> Result<(), String> {
    let (device, vcpu) = vcpu(path)?;
    let offered: u64 = device.get(number::X86_GET_MCE_CAP_SUPPORTED)?;
    let banks = device.extension(KVM_CAP_MCE);
    equal("enough banks for QEMU", banks >= 10, true)?;
    equal(
        "ten banks",
        vcpu.set(number::X86_SETUP_MCE, &((offered & !0xff) | 10)),
        Ok(0),
    )?;
    refused(
        "too many",
        vcpu.set(number::X86_SETUP_MCE, &((offered & !0xff) | 255)),
        libc::EINVAL,
    )?;
    refused(
        "not offered",
        vcpu.set(number::X86_SETUP_MCE, &(1u64 << 63 | 10)),
        libc::EINVAL,
    )
}

fn msr(vcpu: &Handle, index: u32) -> Result<u64, String> {
    let mut pair = [(index, 0)];
    equal("read", msrs(vcpu, number::GET_MSRS, &mut pair), Ok(1))?;
    Ok(pair[0].1)
}

/// One that is not corrected goes into its bank, and reaches the guest as an exception.
fn machine_check(path: &str) -> Result<(), String> {
    const CR4_MCE: u64 = 1 << 6;
    const MC: u8 = 18;
    const BANK_1: u32 = 0x404;
    // A valid, uncorrected error with an address, which software must act upon.
    const STATUS: u64 = 1 << 63 | 1 << 61 | 1 << 60 | 1 << 58 | 1 << 55;
    let bare = Bare::new(path, &[])?;
    let vcpu = &bare.vcpu.handle;
    let offered: u64 = bare.device.get(number::X86_GET_MCE_CAP_SUPPORTED)?;
    vcpu.set(number::X86_SETUP_MCE, &((offered & 1 << 8) | 10))?;
    let error = kvm_x86_mce {
        status: STATUS,
        addr: 0x1000,
        mcg_status: 0b101,
        bank: 1,
        ..Default::default()
    };
    let none = kvm_x86_mce { bank: 10, ..error };
    refused(
        "no such bank",
        vcpu.set(number::X86_SET_MCE, &none),
        libc::EINVAL,
    )?;
    let none = kvm_x86_mce { status: 0, ..error };
    refused(
        "no error",
        vcpu.set(number::X86_SET_MCE, &none),
        libc::EINVAL,
    )?;
    let mut sregs: kvm_sregs = vcpu.get(number::GET_SREGS)?;
    sregs.cr4 |= CR4_MCE;
    vcpu.set(number::SET_SREGS, &sregs)?;
    vcpu.set(number::X86_SET_MCE, &error)?;
    let events: kvm_vcpu_events = vcpu.get(number::GET_VCPU_EVENTS)?;
    equal(
        "#MC",
        (events.exception.injected, events.exception.nr),
        (1, MC),
    )?;
    equal("status", msr(vcpu, BANK_1 + 1)?, STATUS)?;
    equal("address", msr(vcpu, BANK_1 + 2)?, 0x1000)?;
    // A second one while the first is handled.
    vcpu.set(number::X86_SET_MCE, &error)?;
    equal("shutdown", bare.exit()?, KVM_EXIT_SHUTDOWN)
}

fn tsc_khz(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &[])?;
    if bare.device.extension(KVM_CAP_GET_TSC_KHZ) == 0 {
        return skipped("the device does not say");
    }
    let khz = bare.vcpu.handle.call(number::GET_TSC_KHZ, 0)?;
    equal(
        "between 100 MHz and 10 GHz",
        (100_000..10_000_000).contains(&khz),
        true,
    )
}
