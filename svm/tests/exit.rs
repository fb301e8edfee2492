// SPDX-License-Identifier: GPL-2.0-only

//! Exit decoding is total, and right.

mod support;

use proptest::prelude::*;
use support::{poke, EXITCODE, EXITINFO1, EXITINFO2};
use svm::exit::{Exit, ExitCode, IoExit, NestedError, RegAccess, TaskSwitch, TaskSwitchSource};
use x86::regs::SegReg;

fn decode(code: u64, info1: u64, info2: u64) -> Exit {
    let mut vmcb = support::zeroed_vmcb();
    poke(&mut vmcb, EXITCODE, code);
    poke(&mut vmcb, EXITINFO1, info1);
    poke(&mut vmcb, EXITINFO2, info2);
    Exit::decode(&vmcb)
}

#[test]
fn ports() {
    // OUT DX, AL to COM1 on QEMU: no address size, no segment that means anything.
    let out = decode(0x7b, 0x03f8_0010, 0x1001);
    let expected = IoExit {
        port: 0x3f8,
        size: 1,
        input: false,
        string: false,
        rep: false,
        address_size: None,
        segment: Some(SegReg::Es),
        next_rip: 0x1001,
    };
    assert_eq!(out, Exit::Io(expected));
    // REP INSD with 64-bit addresses.
    let ins = decode(0x7b, 0x0cf8_024d | 3 << 10, 7);
    let expected = IoExit {
        port: 0xcf8,
        size: 4,
        input: true,
        string: true,
        rep: true,
        address_size: Some(8),
        segment: Some(SegReg::Ds),
        next_rip: 7,
    };
    assert_eq!(ins, Exit::Io(expected));
    // No size: not a value that a CPU writes.
    assert_eq!(decode(0x7b, 0x03f8_0000, 0), Exit::Unknown(ExitCode::IOIO));
}

#[test]
fn registers() {
    let mov = |register, write, gpr| RegAccess {
        next: None,
        register,
        write,
        gpr,
    };
    assert_eq!(decode(0x00, 0, 0), Exit::Cr(mov(0, false, None)));
    assert_eq!(
        decode(0x04, 1 << 63 | 3, 0),
        Exit::Cr(mov(4, false, Some(3)))
    );
    assert_eq!(
        decode(0x18, 1 << 63 | 15, 0),
        Exit::Cr(mov(8, true, Some(15)))
    );
    assert_eq!(decode(0x1f, 0, 0), Exit::Cr(mov(15, true, None)));
    assert_eq!(decode(0x65, 0, 0), Exit::Cr0SelWrite(mov(0, true, None)));
    assert_eq!(decode(0x20, 5, 0), Exit::Dr(mov(0, false, Some(5))));
    assert_eq!(decode(0x37, 0, 0), Exit::Dr(mov(7, true, Some(0))));
}

#[test]
fn exceptions_and_faults() {
    assert_eq!(
        decode(0x4e, 6, 0xdead_b000),
        Exit::Exception {
            vector: 14,
            error_code: 6,
            info2: 0xdead_b000
        }
    );
    assert_eq!(
        decode(0x400, 1 << 32 | 6, 0xfee0_0020),
        Exit::NestedFault {
            gpa: 0xfee0_0020,
            error: NestedError::FINAL | NestedError::WRITE | NestedError::USER
        }
    );
    assert_eq!(decode(0x7c, 1, 0), Exit::Msr { write: true });
    assert_eq!(decode(0x7c, 0, 0), Exit::Msr { write: false });
    assert_eq!(
        decode(0x7d, 0x28, 1 << 36 | 1 << 44 | 9),
        Exit::TaskSwitch(TaskSwitch {
            selector: 0x28,
            source: TaskSwitchSource::Iret,
            error_code: Some(9),
            resume_flag: false
        })
    );
}

#[test]
fn invalid_has_two_forms() {
    assert_eq!(decode(u64::MAX, 0, 0), Exit::Invalid);
    assert_eq!(decode(0xffff_ffff, 0, 0), Exit::Invalid);
    assert_eq!(decode(0x403, 0, 0), Exit::Unknown(ExitCode(0x403)));
}

proptest! {
    #[test]
    fn decoding_is_total(code in prop_oneof![any::<u64>(), 0_u64..0x420], info1: u64, info2: u64) {
        let exit = decode(code, info1, info2);
        if let Exit::Unknown(kept) = exit {
            prop_assert_eq!(kept.0, code);
        }
        if let Exit::Io(io) = exit {
            prop_assert!(matches!(io.size, 1 | 2 | 4));
        }
    }
}
