// SPDX-License-Identifier: GPL-2.0-only

//! Instructions that access a device many times: each ends, with what it is for or with an error.

mod support;

use support::{Machine, USER_MMIO};
use svm::dispatch::{finish_io, Action, UserExit};
use svm::exit::ExitCode;
use svm::features::SvmFeatures;
use svm::io::UserIo;
use x86::regs::{gpr, SegAttr, SegReg};

/// No instruction needs as many.
const ENDLESS: usize = 200;

/// Runs the instruction at RIP on a device that answers with its addresses: what it wrote, in
/// order, how often it read, and how it ended.
fn run(machine: &mut Machine, gpa: u64) -> (Vec<(u64, Vec<u8>)>, usize, Action) {
    let (mut writes, mut reads) = (Vec::new(), 0);
    let mut action = machine.exit(ExitCode::NPF, 4, gpa);
    for _ in 0..ENDLESS {
        let Action::User(UserExit::Io(UserIo::Mmio {
            gpa,
            size,
            write,
            data,
        })) = action
        else {
            return (writes, reads, action);
        };
        if write {
            writes.push((gpa, data[..usize::from(size)].to_vec()));
        } else {
            reads += 1;
        }
        let answer = (gpa | gpa << 32).to_le_bytes();
        action = finish_io(&mut machine.guest(), answer);
    }
    panic!("endless");
}

/// In 64-bit mode with RSP, RBP and RBX at the device.
fn long(code: &[u8]) -> Machine {
    let mut machine = Machine::long(SvmFeatures::empty()).code(code);
    for register in [gpr::RSP, gpr::RBP, gpr::RBX] {
        machine.state.regs.set(register, USER_MMIO + 0x800);
    }
    machine
}

/// ENTER 0, 31 copies thirty frame pointers, and pushes the old and the new one.
#[test]
fn enter_with_all_levels() {
    // enter 16, 31
    let mut machine = long(&[0xc8, 16, 0, 31]);
    machine.state.regs.set(gpr::RBP, USER_MMIO + 0x900);
    let (writes, reads, action) = run(&mut machine, USER_MMIO + 0x8f8);
    assert_eq!(action, Action::Resume);
    assert_eq!((reads, writes.len()), (30, 32));
    let (last, frame) = writes.last().expect("written");
    assert_eq!(*last, USER_MMIO + 0x800 - 32 * 8);
    assert_eq!(*frame, (USER_MMIO + 0x7f8).to_le_bytes());
    assert_eq!(machine.vmcb.rip(), support::CODE + 4);
    assert_eq!(
        machine.state.regs.get(gpr::RSP),
        USER_MMIO + 0x800 - 32 * 8 - 16
    );
    assert_eq!(machine.state.regs.get(gpr::RBP), USER_MMIO + 0x7f8);

    // The same over a page boundary, which one read and one write cross.
    let mut machine = long(&[0xc8, 16, 0, 31]);
    machine.state.regs.set(gpr::RBP, USER_MMIO + 0x1044);
    machine.state.regs.set(gpr::RSP, USER_MMIO + 0x2044);
    let (writes, reads, action) = run(&mut machine, USER_MMIO + 0x103c);
    assert_eq!((action, reads, writes.len()), (Action::Resume, 31, 33));
}

/// PUSHA and POPA in 32-bit code, over a page boundary.
#[test]
fn all_registers() {
    for (code, moved) in [(0x60, 0), (0x61, 1)] {
        let mut machine = long(&[code]);
        let mut cs = machine.vmcb.segment(SegReg::Cs);
        cs.attributes.remove(SegAttr::L);
        cs.attributes |= SegAttr::DB;
        machine.vmcb.set_segment(SegReg::Cs, cs);
        let mut ss = machine.vmcb.segment(SegReg::Ss);
        ss.attributes |= SegAttr::DB;
        ss.limit = u32::MAX;
        machine.vmcb.set_segment(SegReg::Ss, ss);
        let rsp = USER_MMIO + 0x1012 - 28 * moved;
        machine.state.regs.set(gpr::RSP, rsp);
        let (writes, reads, action) = run(&mut machine, rsp);
        assert_eq!(action, Action::Resume);
        assert_eq!(
            (reads, writes.len()),
            if moved == 0 { (0, 9) } else { (8, 0) }
        );
    }
}

/// FXSAVE writes all but the reserved end of its 512 bytes, and FXRSTOR reads as much.
#[test]
fn fxsave_and_fxrstor() {
    const SIZE: usize = 416;
    // fxsave [rbx]; fxsave64 [rbx]
    for code in [&[0x0f, 0xae, 0x03][..], &[0x48, 0x0f, 0xae, 0x03]] {
        let mut machine = long(code);
        machine.world.x87.control = 0x37f;
        machine.world.xmm[15] = 0x1234 << 112;
        let (writes, reads, action) = run(&mut machine, USER_MMIO + 0x800);
        assert_eq!((action, reads, writes.len()), (Action::Resume, 0, SIZE / 8));
        let bytes: Vec<u8> = writes.iter().flat_map(|(_, data)| data).copied().collect();
        assert_eq!(bytes[..2], 0x37f_u16.to_le_bytes());
        assert_eq!(bytes[24..28], 0x1f80_u32.to_le_bytes());
        assert_eq!(bytes[SIZE - 2..], 0x1234_u16.to_le_bytes());
        assert_eq!(machine.vmcb.rip(), support::CODE + code.len() as u64);
    }
    // fxrstor [rbx]
    let mut machine = long(&[0x0f, 0xae, 0x0b]);
    let (_, reads, action) = run(&mut machine, USER_MMIO + 0x800);
    assert_eq!((action, reads), (Action::Resume, SIZE / 8));
    let place = (USER_MMIO + 0x800 + SIZE as u64 - 8) as u32;
    assert_eq!(
        machine.world.xmm[15] >> 64,
        u128::from(place) << 32 | u128::from(place)
    );
}
