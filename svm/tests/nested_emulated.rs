// SPDX-License-Identifier: GPL-2.0-only

//! Instructions of an inner guest that the module executes, because the CPU could not read them:
//! what the outer guest intercepts is its exit.

mod support;

use support::outer::*;
use support::{Machine, CODE, NRIP};
use svm::dispatch::Action;
use svm::exit::{ExitCode, NestedError};
use svm::features::SvmFeatures;
use x86::cpu::MemError;
use x86::regs::{gpr, vector, Cr0, Cr4, Exception, Rflags, SegReg};

/// Intercepts follow each other in the order of their exit codes.
fn intercept(machine: &mut Machine, code: u64) {
    let word = VMCB as usize + (code / 32 * 4) as usize;
    let bytes = &mut machine.world.ram[word..word + 4];
    let old = u32::from_le_bytes(bytes.try_into().expect("four"));
    bytes.copy_from_slice(&(old | 1 << (code % 32)).to_le_bytes());
}

/// An inner guest at this code, whose page tables cannot be written; the outer guest intercepts
/// the codes.
fn at(code: &[u8], codes: &[u64], host: SvmFeatures) -> Machine {
    let mut machine = outer();
    machine.host = host;
    // With XSETBV.
    machine.set(at::CR4, 0x4_0020);
    for &code in codes {
        intercept(&mut machine, code);
    }
    let start = INNER as usize;
    machine.world.ram[start..start + code.len()].copy_from_slice(code);
    assert_eq!(machine.vmrun(), Action::Resume);
    assert!(machine.is_inside());
    machine.run();
    machine.world.fault = Err(MemError::ReadOnly);
    machine
}

/// The CPU cannot set an accessed bit.
fn emulate(machine: &mut Machine) -> Action {
    let error = NestedError::TABLE_WALK | NestedError::WRITE | NestedError::PRESENT;
    machine.vmcb.set_next_rip(0x1234);
    machine.exit(ExitCode::NPF, error.bits(), 0x8000)
}

const ASSISTS: SvmFeatures = SvmFeatures::NRIPS.union(SvmFeatures::DECODE_ASSISTS);
const MOV: u64 = 1 << 63;

/// Code, exit code, EXITINFO1 of a CPU with decode assists.
const CASES: &[(&[u8], u64, u64)] = &[
    (&[0x0f, 0x20, 0xc3], 0x00, MOV | 3),
    (&[0x0f, 0x20, 0xd1], 0x02, MOV | 1),
    (&[0x41, 0x0f, 0x20, 0xde], 0x03, MOV | 14),
    (&[0x0f, 0x20, 0xe0], 0x04, MOV),
    (&[0x44, 0x0f, 0x20, 0xc0], 0x08, MOV),
    (&[0xf0, 0x0f, 0x20, 0xc2], 0x08, MOV | 2),
    (&[0x0f, 0x22, 0xc3], 0x10, MOV | 3),
    (&[0x0f, 0x22, 0xdb], 0x13, MOV | 3),
    (&[0x44, 0x0f, 0x22, 0xc1], 0x18, MOV | 1),
    (&[0x0f, 0x06], 0x10, 0),
    (&[0x0f, 0x01, 0xf0], 0x10, 0),
    (&[0x0f, 0x01, 0x30], 0x10, 0),
    (&[0x0f, 0x01, 0xe0], 0x00, 0),
    (&[0x0f, 0x01, 0x20], 0x00, 0),
    (&[0x0f, 0x21, 0xc2], 0x20, 2),
    (&[0x0f, 0x21, 0xe2], 0x24, 2),
    (&[0x0f, 0x23, 0xf9], 0x37, 1),
    (&[0x0f, 0x01, 0x08], 0x66, 0),
    (&[0x0f, 0x01, 0x00], 0x67, 0),
    (&[0x0f, 0x00, 0xc0], 0x68, 0),
    (&[0x0f, 0x00, 0x08], 0x69, 0),
    (&[0x0f, 0x01, 0x18], 0x6a, 0),
    (&[0x0f, 0x01, 0x10], 0x6b, 0),
    (&[0x0f, 0x00, 0xd0], 0x6c, 0),
    (&[0x0f, 0x00, 0x18], 0x6d, 0),
    (&[0x0f, 0x31], 0x6e, 0),
    (&[0x0f, 0x33], 0x6f, 0),
    (&[0x9c], 0x70, 0),
    (&[0x66, 0x9d], 0x71, 0),
    (&[0x0f, 0xa2], 0x72, 0),
    (&[0x48, 0xcf], 0x74, 0),
    (&[0xcd, 0x80], 0x75, 0x80),
    (&[0x0f, 0x08], 0x76, 0),
    (&[0xf3, 0x90], 0x77, 0),
    (&[0xf4], 0x78, 0),
    (&[0x0f, 0x01, 0x7b, 0x10], 0x79, 0x1234_5010),
    (&[0x0f, 0x01, 0xdf], 0x7a, 0),
    (&[0x0f, 0x01, 0xd8], 0x80, 0),
    (&[0x0f, 0x01, 0xd9], 0x81, 0),
    (&[0x0f, 0x01, 0xda], 0x82, 0),
    (&[0x0f, 0x01, 0xdb], 0x83, 0),
    (&[0x0f, 0x01, 0xdc], 0x84, 0),
    (&[0x0f, 0x01, 0xdd], 0x85, 0),
    (&[0x0f, 0x01, 0xde], 0x86, 0),
    (&[0x0f, 0x01, 0xf9], 0x87, 0),
    (&[0xf1], 0x88, 0),
    (&[0x0f, 0x09], 0x89, 0),
    (&[0x0f, 0x01, 0xc8], 0x8a, 0),
    (&[0x0f, 0x01, 0xc9], 0x8b, 0),
    (&[0x0f, 0x01, 0xd1], 0x8d, 0),
];

#[test]
fn each_intercept() {
    for &(code, exit, info1) in CASES {
        for host in [ASSISTS, SvmFeatures::NRIPS, SvmFeatures::empty()] {
            let mut machine = at(code, &[exit], host);
            machine.state.regs.set(gpr::RBX, 0x1234_5000);
            assert_eq!(emulate(&mut machine), Action::Resume, "{code:02x?}");
            assert!(!machine.is_inside(), "{code:02x?} {host:?}");
            assert_eq!(machine.field(at::EXITCODE), exit, "{code:02x?}");
            let known = host.contains(SvmFeatures::DECODE_ASSISTS);
            assert_eq!(
                machine.field(at::EXITINFO1),
                if known { info1 } else { 0 },
                "{code:02x?}"
            );
            assert_eq!(machine.field(at::EXITINFO2), 0, "{code:02x?}");
            assert_eq!(machine.field(at::RIP), INNER, "{code:02x?}");
            let next = match host.contains(SvmFeatures::NRIPS) {
                true => INNER + code.len() as u64,
                false => 0,
            };
            assert_eq!(machine.field(NRIP), next, "{code:02x?} {host:?}");
            assert_eq!(machine.field(NRIP + 8), 0, "no bytes of the instruction");
        }
    }
}

/// The outer guest intercepts all else, but not this: then it is not its exit. What the module
/// cannot execute leaves the inner guest where it is.
#[test]
fn and_no_other() {
    for &(code, exit, _) in CASES {
        // These two the outer guest always intercepts here.
        if matches!(exit, 0x80 | 0x81) {
            continue;
        }
        let others: Vec<u64> = (0..0x96)
            .filter(|&other| other != exit && !(0x40..0x66).contains(&other))
            .collect();
        let mut machine = at(code, &others, ASSISTS);
        machine.state.regs.set(gpr::RBX, 0x3000);
        machine.state.regs.set(gpr::RAX, 0x3000);
        emulate(&mut machine);
        assert!(machine.is_inside(), "{code:02x?}");
    }
}

#[test]
fn exceptions_come_before_the_intercept() {
    for &(code, exit, _) in CASES {
        let mut machine = at(code, &[exit], ASSISTS);
        machine.vmcb.set_cpl(3);
        let cr4 = machine.vmcb.cr4() | Cr4::UMIP | Cr4::TSD;
        machine.vmcb.set_cr4(cr4);
        let expected = match exit {
            0x70..=0x72 | 0x74 | 0x75 | 0x77 | 0x81 | 0x88 | 0x8d => None,
            0x8a | 0x8b => Some(Exception::UD),
            _ => Some(Exception::GP0),
        };
        assert_eq!(emulate(&mut machine), Action::Resume, "{code:02x?}");
        assert_eq!(machine.exception(), expected, "{code:02x?}");
        assert_eq!(machine.is_inside(), expected.is_some(), "{code:02x?}");
    }
}

#[test]
fn undefined_instructions_come_before_the_intercept() {
    // mov cr1; mov dr4 with CR4.DE; xsetbv without CR4.OSXSAVE; lock hlt
    for (code, exit) in [
        (&[0x0f, 0x20, 0xc8][..], 0x01),
        (&[0x0f, 0x21, 0xe2], 0x24),
        (&[0x0f, 0x01, 0xd1], 0x8d),
        (&[0xf0, 0xf4], 0x78),
    ] {
        let mut machine = at(code, &[exit], ASSISTS);
        let cr4 = machine.vmcb.cr4();
        machine
            .vmcb
            .set_cr4(cr4.union(Cr4::DE).difference(Cr4::OSXSAVE));
        assert_eq!(emulate(&mut machine), Action::Resume);
        assert_eq!(machine.exception(), Some(Exception::UD), "{code:02x?}");
    }
    // In real mode: str; vmload.
    for (code, exit) in [(&[0x0f, 0x00, 0xc8][..], 0x69), (&[0x0f, 0x01, 0xda], 0x82)] {
        let mut machine = at(code, &[exit], ASSISTS);
        machine.vmcb.set_cr0(Cr0::ET);
        machine.vmcb.set_efer(x86::regs::Efer::SVME);
        assert_eq!(emulate(&mut machine), Action::Resume);
        assert_eq!(machine.exception(), Some(Exception::UD), "{code:02x?}");
    }
}

/// General detect.
#[test]
fn a_debug_register_that_is_guarded() {
    let mut machine = at(&[0x0f, 0x21, 0xc2], &[0x20], ASSISTS);
    machine.vmcb.set_dr7(0x2400);
    assert_eq!(emulate(&mut machine), Action::Resume);
    let exception = machine.exception().expect("#DB");
    assert_eq!(exception.vector, vector::DB);
    assert!(machine.is_inside());
}

#[test]
fn msrs_by_the_map() {
    for (write, code) in [(false, &[0x0f, 0x32]), (true, &[0x0f, 0x30])] {
        for exits in [false, true] {
            let mut machine = at(code, &[0x7c], ASSISTS);
            machine.state.regs.set(gpr::RCX, 0x174);
            machine.state.regs.set(gpr::RAX, 0);
            machine.state.regs.set(gpr::RDX, 0);
            let bit = 0x174 * 2 + usize::from(write);
            machine.world.ram[MSRPM as usize + bit / 8] = u8::from(exits) << (bit % 8);
            assert_eq!(emulate(&mut machine), Action::Resume);
            assert_eq!(machine.is_inside(), !exits);
            if exits {
                assert_eq!(machine.field(at::EXITCODE), 0x7c);
                assert_eq!(machine.field(at::EXITINFO1), u64::from(write));
            }
        }
        let mut machine = at(code, &[0x7c], ASSISTS);
        machine.state.regs.set(gpr::RCX, 0x4000_0000);
        assert_eq!(emulate(&mut machine), Action::Resume);
        assert!(!machine.is_inside(), "no map has this one");
    }
}

#[test]
fn ports_by_the_map() {
    // Code, what EXITINFO1 says beside the port.
    let cases: &[(&[u8], u64)] = &[
        (&[0xe4, 0x60], 0x211),
        (&[0xe5, 0x60], 0x241),
        (&[0xe6, 0x60], 0x210),
        (&[0x66, 0xe7, 0x60], 0x220),
        (&[0xec], 0x211),
        (&[0x66, 0xed], 0x221),
        (&[0x67, 0xee], 0x110),
        (&[0x48, 0xef], 0x240),
        (&[0x6c], 0x215),
        (&[0xf3, 0x6d], 0x24d),
        (&[0xf3, 0x6e], 0xe1c),
        (&[0x64, 0x66, 0x6f], 0x1224),
    ];
    for &(code, info1) in cases {
        for exits in [false, true] {
            let mut machine = at(code, &[0x7b], ASSISTS);
            machine.state.regs.set(gpr::RDX, 0x60);
            machine.state.regs.set(gpr::RCX, 2);
            machine.state.regs.set(gpr::RDI, 0x3000);
            machine.state.regs.set(gpr::RSI, 0x3000);
            machine.world.ram[IOPM as usize + 0x60 / 8] = u8::from(exits);
            let action = emulate(&mut machine);
            assert_eq!(machine.is_inside(), !exits, "{code:02x?}");
            if exits {
                assert_eq!(action, Action::Resume);
                assert_eq!(machine.field(at::EXITCODE), 0x7b);
                let expected = 0x60 << 16 | info1;
                assert_eq!(machine.field(at::EXITINFO1), expected, "{code:02x?}");
                let next = INNER + code.len() as u64;
                assert_eq!(machine.field(at::EXITINFO2), next, "{code:02x?}");
            }
        }
    }
    // What the inner guest itself does not permit is #GP; no count is no access.
    let mut machine = at(&[0xec], &[0x7b], ASSISTS);
    machine.world.ram[IOPM as usize] = 0xff;
    machine.vmcb.set_cpl(3);
    machine.state.regs.set(gpr::RDX, 0);
    assert_eq!(emulate(&mut machine), Action::Resume);
    assert_eq!(machine.exception(), Some(Exception::GP0));
    let mut machine = at(&[0xf3, 0x6e], &[0x7b], ASSISTS);
    machine.world.ram[IOPM as usize] = 0xff;
    machine.state.regs.set(gpr::RDX, 0);
    machine.state.regs.set(gpr::RCX, 0);
    assert_eq!(emulate(&mut machine), Action::Resume);
    assert!(machine.is_inside());
    assert_eq!(machine.vmcb.rip(), INNER + 2);
}

/// The intercept of selected writes: not of TS and MP alone, but of any LMSW, and of no CLTS. The
/// one of all writes comes first.
#[test]
fn selected_writes_of_cr0() {
    const ALL: u64 = 0x10;
    const SELECTED: u64 = 0x65;
    let mov = &[0x0f, 0x22, 0xc3][..];
    let cr0 = 0x8001_0031;
    for (code, value, codes, expected) in [
        (mov, cr0 ^ 0b1010, &[SELECTED][..], None),
        (mov, cr0 ^ 0b0100, &[SELECTED], Some(SELECTED)),
        (mov, cr0 | 1 << 30, &[SELECTED], Some(SELECTED)),
        (mov, cr0 ^ 0b0100, &[ALL, SELECTED], Some(ALL)),
        (&[0x0f, 0x01, 0xf3], cr0, &[SELECTED], Some(SELECTED)),
        (&[0x0f, 0x06], 0, &[SELECTED], None),
    ] {
        let mut machine = at(code, codes, ASSISTS);
        machine.state.regs.set(gpr::RBX, value);
        assert_eq!(emulate(&mut machine), Action::Resume, "{code:02x?}");
        assert_eq!(
            machine.is_inside(),
            expected.is_none(),
            "{code:02x?} {value:x}"
        );
        if let Some(expected) = expected {
            assert_eq!(machine.field(at::EXITCODE), expected, "{code:02x?}");
        }
    }
}

/// While the module hides bits of CR0, each write of it exits, and the outer guest gets those that
/// it has selected.
#[test]
fn selected_writes_of_cr0_that_all_exit() {
    for (value, expected) in [
        (0x8001_0031 ^ 0b1010, None),
        (0x8001_0031 | 1 << 30, Some(0x65)),
    ] {
        let mut machine = at(&[0x0f, 0x22, 0xc3], &[0x65], SvmFeatures::empty());
        machine.state.regs.set(gpr::RBX, value);
        assert_eq!(machine.exit(ExitCode::CR0_WRITE, 0, 0), Action::Resume);
        assert_eq!(machine.is_inside(), expected.is_none(), "{value:x}");
        if let Some(expected) = expected {
            assert_eq!(machine.field(at::EXITCODE), expected);
        }
    }
}

/// What the CPU tells of such a write counts, not what another vCPU has made of the instruction.
#[test]
fn selected_writes_of_cr0_are_as_the_cpu_tells() {
    let clts = &[0x0f, 0x06, 0x90][..];
    for (value, expected) in [
        (0x8001_0031 ^ 0b1010, None),
        (0x8001_0031 | 1 << 30, Some(0x65)),
    ] {
        let mut machine = at(clts, &[0x65], ASSISTS);
        machine.state.regs.set(gpr::RBX, value);
        machine.vmcb.set_next_rip(INNER + 3);
        let action = machine.exit(ExitCode::CR0_WRITE, MOV | 3, 0);
        assert_eq!(action, Action::Resume);
        assert_eq!(machine.is_inside(), expected.is_none(), "{value:x}");
        if let Some(expected) = expected {
            assert_eq!(machine.field(at::EXITCODE), expected);
        }
    }
}

/// Another vCPU changes the instruction at some point between the check of the outer guest's
/// intercepts and the execution: what was checked is executed.
#[test]
fn what_was_checked_is_executed() {
    const CR3_WRITE: u64 = 0x13;
    const DR7_WRITE: u64 = 0x37;
    for (code, other) in [
        // MOV to CR2 or CR3, to DR0 or DR7; CLTS or MOV to CR3; all of RBX.
        (&[0x0f, 0x22, 0xd3][..], (2, 0xdb)),
        (&[0x0f, 0x23, 0xc3], (2, 0xfb)),
        (&[0x0f, 0x06, 0xdb], (1, 0x22)),
    ] {
        for host in [SvmFeatures::empty(), SvmFeatures::NRIPS, ASSISTS] {
            let run = |change| {
                let mut machine = at(code, &[CR3_WRITE, DR7_WRITE], host);
                machine.state.regs.set(gpr::RBX, 0x8018);
                machine.world.reads = 0;
                machine.world.change = change;
                assert_eq!(emulate(&mut machine), Action::Resume);
                let untouched = machine.vmcb.cr3() == 0x8000 && machine.vmcb.dr7() == 0x400;
                assert!(!machine.is_inside() || untouched, "{code:02x?} {change:?}");
                machine.world.reads
            };
            for reads in 1..=run(None) {
                run(Some((reads, INNER as usize + other.0, other.1)));
            }
        }
    }
}

/// The exit must wait for a page of the outer guest: nothing has happened then.
#[test]
fn an_exit_that_must_wait() {
    let mut machine = at(&[0xf4], &[0x78], ASSISTS);
    machine.world.would_sleep = true;
    machine.vmcb.set_next_rip(0x1234);
    assert_eq!(emulate(&mut machine), Action::NeedSleep);
    assert!(machine.is_inside());
    machine.world.would_sleep = false;
    assert_eq!(emulate(&mut machine), Action::Resume);
    assert_eq!(machine.field(at::EXITCODE), 0x78);
}

/// The outer guest's own page tables cannot be written: its VMRUN and its like are executed.
#[test]
fn instructions_of_the_outer_guest() {
    // vmload rax; vmsave rax; clgi; stgi; invlpga; vmrun rax
    let code = [0xda, 0xdb, 0xdd, 0xdc, 0xdf, 0xd8].map(|modrm| [0x0f, 0x01, modrm]);
    let mut machine = outer().code(&code.concat());
    machine.host = ASSISTS;
    machine.world.fault = Err(MemError::ReadOnly);
    machine.set(at::LSTAR, 0x7777);
    machine.state.regs.set(gpr::RAX, VMCB);
    for step in 1..6 {
        assert_eq!(emulate(&mut machine), Action::Resume);
        assert_eq!(machine.vmcb.rip(), CODE + 3 * step);
        assert_eq!(machine.state.events.gif_clear, step == 3);
    }
    assert_eq!(machine.vmcb.lstar(), 0x7777);
    assert_eq!(emulate(&mut machine), Action::Resume);
    assert!(machine.is_inside());
    assert_eq!(machine.vmcb.rip(), INNER);
    // Without SVM there are none.
    let mut machine = outer().code(&code.concat());
    machine.nested = None;
    machine.world.fault = Err(MemError::ReadOnly);
    assert_eq!(emulate(&mut machine), Action::Resume);
    assert_eq!(machine.exception(), Some(Exception::UD));
}

/// The stack of an IRET, or of a PUSHF, is of no interest then, nor is a selector's descriptor.
#[test]
fn operands_are_not_touched() {
    let mut machine = at(&[0x9c], &[0x70], ASSISTS);
    machine.state.regs.set(gpr::RSP, 0x6008);
    machine.world.ram[0x6000..0x6008].fill(0xaa);
    assert_eq!(emulate(&mut machine), Action::Resume);
    assert_eq!(machine.world.ram[0x6000..0x6008], [0xaa; 8]);
    assert_eq!(machine.field(at::RSP), 0x6008);
    let mut machine = at(&[0x48, 0xcf], &[0x74], ASSISTS);
    machine.state.events.set_nmi_masked(true);
    assert_eq!(emulate(&mut machine), Action::Resume);
    assert!(machine.field(at::RFLAGS) & Rflags::RESERVED1.bits() != 0);
    let mut machine = at(&[0x0f, 0x00, 0xd0], &[0x6c], ASSISTS);
    machine.state.regs.set(gpr::RAX, 0xfff8);
    assert_eq!(emulate(&mut machine), Action::Resume);
    assert_eq!(machine.exception(), None);
    assert_eq!(machine.vmcb.segment(SegReg::Ldtr).selector, 0);
}
