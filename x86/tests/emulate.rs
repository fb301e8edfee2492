// SPDX-License-Identifier: GPL-2.0-only

//! The emulator on chosen instructions: what the comparison with a CPU in 64-bit mode cannot show.

use emulate_mock::cpu;
use emulate_mock::run;
use emulate_mock::Event;
use emulate_mock::Mock;
use emulate_mock::DE;
use emulate_mock::GP;
use emulate_mock::RAX;
use emulate_mock::RBX;
use emulate_mock::RCX;
use emulate_mock::RDI;
use emulate_mock::RDX;
use emulate_mock::RSI;
use emulate_mock::UD;
use x86::cpu::Access;
use x86::decode::CodeSize::Bits16;
use x86::decode::CodeSize::Bits32;
use x86::decode::CodeSize::Bits64;
use x86::emulate::emulate;
use x86::emulate::fetch;
use x86::regs::Cr0;
use x86::regs::Cr4;
use x86::regs::Rflags;
use x86::regs::SegReg;

mod emulate_mock;

fn flags(mock: &Mock) -> Rflags {
    mock.state.rflags.difference(Rflags::RESERVED1)
}

#[test]
fn moves() {
    let mock = run(Bits64, &[0x89, 0x03], &[(RAX, !0), (RBX, 0x2000)]);
    assert_eq!(mock.events, [Event::Write(0x2000, 4)]);
    assert_eq!(mock.peek(0x2000, 4), 0xffff_ffff);
    // A store takes its bytes from AH, a load of 32 bits clears the upper half.
    let mock = run(Bits64, &[0x88, 0x23], &[(RAX, 0x1234), (RBX, 0x2000)]);
    assert_eq!(mock.peek(0x2000, 1), 0x12);
    let mut mock = cpu(Bits64, &[0x8b, 0x03], &[(RAX, !0), (RBX, 0x2000)]);
    mock.poke(0x2000, &[1, 2, 3, 4, 5]);
    mock.step().expect("no fault");
    assert_eq!(mock.state.gpr[RAX], 0x0403_0201);
    assert_eq!(mock.events, [Event::Read(0x2000, 4, Access::Read)]);
    // moffs, with an address of 64, 32 and 16 bits.
    let mock = run(Bits64, &[0xa3, 0, 0x20, 0, 0, 1, 0, 0, 0], &[(RAX, 7)]);
    assert_eq!(mock.events, [Event::Write(0x1_0000_2000, 4)]);
    let mock = run(Bits64, &[0x67, 0xa2, 0, 0x20, 0, 0], &[(RAX, 7)]);
    assert_eq!(mock.events, [Event::Write(0x2000, 1)]);
    let mock = run(Bits16, &[0xa3, 0, 0x20], &[(RAX, 7)]);
    assert_eq!(mock.events, [Event::Write(0x2000, 2)]);
    // An immediate of 32 bits is extended to 64.
    let code = [0x48, 0xc7, 0x03, 0xff, 0xff, 0xff, 0xff];
    assert_eq!(run(Bits64, &code, &[(RBX, 0x2000)]).peek(0x2000, 8), !0);
}

#[test]
fn move_of_selector() {
    let mut mock = cpu(Bits32, &[0x8c, 0x1b], &[(RBX, 0x2000)]);
    mock.segment_mut(SegReg::Ds).selector = 0x1234;
    mock.step().expect("no fault");
    assert_eq!(mock.events, [Event::Write(0x2000, 2)]);
    assert_eq!(mock.peek(0x2000, 2), 0x1234);
    let mock = run(Bits32, &[0x8c, 0xd8], &[(RAX, 0xffff_ffff)]);
    assert_eq!(mock.state.gpr[RAX], 8);
    assert_eq!(cpu(Bits32, &[0x8c, 0xf8], &[]).step(), Err(UD));
}

#[test]
fn increments_outside_64_bit_mode() {
    let mock = run(Bits32, &[0x40], &[(RAX, 0xffff_ffff)]);
    assert_eq!(mock.state.gpr[RAX], 0);
    assert_eq!(flags(&mock), Rflags::ZF | Rflags::PF | Rflags::AF);
    let mock = run(Bits16, &[0x4b], &[(RBX, 0x1_0000)]);
    assert_eq!(mock.state.gpr[RBX], 0x1_ffff);
    assert_eq!(flags(&mock), Rflags::SF | Rflags::PF | Rflags::AF);
}

#[test]
fn locked_instructions() {
    // lock add [rbx], eax: a read, and a compare-and-exchange.
    let mut mock = cpu(Bits64, &[0xf0, 0x01, 0x03], &[(RAX, 5), (RBX, 0x2000)]);
    mock.poke(0x2000, &[1, 0, 0, 0]);
    mock.lost_races = 3;
    mock.step().expect("no fault");
    assert_eq!(mock.events[0], Event::Read(0x2000, 4, Access::Write));
    assert_eq!(mock.events[1..], [Event::CompareExchange(0x2000, 4); 4]);
    assert_eq!(mock.peek(0x2000, 4), 1 + 3 + 5);
    // XCHG with memory is locked without the prefix.
    let mut mock = cpu(Bits64, &[0x87, 0x03], &[(RAX, 5), (RBX, 0x2000)]);
    mock.poke(0x2000, &[1, 0, 0, 0]);
    mock.lost_races = 1;
    mock.step().expect("no fault");
    assert_eq!((mock.peek(0x2000, 4), mock.state.gpr[RAX]), (5, 2));
    // A race that cannot be won leaves everything as it was.
    let code = [0xf0, 0x0f, 0xc1, 0x03];
    let mut mock = cpu(Bits64, &code, &[(RAX, 5), (RBX, 0x2000)]);
    mock.lost_races = 1000;
    let insn = fetch(&mut mock, &[]).expect("an instruction");
    let before = (mock.state.gpr, mock.state.rip, mock.state.rflags);
    assert_eq!(emulate(&mut mock, &insn), Ok(()));
    assert_eq!(before, (mock.state.gpr, mock.state.rip, mock.state.rflags));
}

#[test]
fn illegal_locks() {
    let illegal: &[&[u8]] = &[
        &[0xf0, 0x01, 0xc3],
        &[0xf0, 0x03, 0x03],
        &[0xf0, 0x39, 0x03],
        &[0xf0, 0x80, 0x3b, 0x01],
        &[0xf0, 0x89, 0x03],
        &[0xf0, 0x8b, 0x03],
        &[0xf0, 0xf6, 0x03, 0x01],
        &[0xf0, 0xff, 0x33],
        &[0xf0, 0xd1, 0x23],
        &[0xf0, 0x0f, 0xa3, 0x03],
        &[0xf0, 0x0f, 0xba, 0x23, 0x01],
        &[0xf0, 0x87, 0xc3],
        &[0xf0, 0x90],
        &[0xf0, 0xa5],
        &[0xf0, 0x05, 0, 0, 0, 0],
        &[0xf0, 0x0f, 0x10, 0x03],
    ];
    for code in illegal {
        assert_eq!(
            cpu(Bits64, code, &[(RBX, 0x2000)]).step(),
            Err(UD),
            "{code:02x?}"
        );
    }
}

#[test]
fn compare_exchange_of_pairs() {
    let registers = [(RAX, 1), (RDX, 2), (RBX, 3), (RCX, 4), (RSI, 0x2000)];
    let mut mock = cpu(Bits64, &[0xf0, 0x0f, 0xc7, 0x0e], &registers);
    mock.poke(0x2000, &0x2_0000_0001u64.to_le_bytes());
    mock.step().expect("no fault");
    assert_eq!(mock.peek(0x2000, 8), 0x4_0000_0003);
    assert!(mock.state.rflags.contains(Rflags::ZF));
    assert_eq!(mock.events[1], Event::CompareExchange(0x2000, 8));
    let mut mock = cpu(Bits64, &[0x0f, 0xc7, 0x0e], &registers);
    mock.poke(0x2000, &0x6_0000_0005u64.to_le_bytes());
    mock.step().expect("no fault");
    assert_eq!((mock.state.gpr[RAX], mock.state.gpr[RDX]), (5, 6));
    assert!(!mock.state.rflags.contains(Rflags::ZF));
    let mut unaligned = cpu(Bits64, &[0x48, 0x0f, 0xc7, 0x0e], &[(RSI, 0x2008)]);
    assert_eq!(unaligned.step(), Err(GP));
}

#[test]
fn one_iteration_at_a_time() {
    let registers = [(RCX, 3), (RSI, 0x2000), (RDI, 0x3000)];
    let mut mock = cpu(Bits64, &[0xf3, 0xa4], &registers);
    let insn = fetch(&mut mock, &[]).expect("an instruction");
    for left in [2, 1] {
        assert_eq!(emulate(&mut mock, &insn), Ok(()));
        assert_eq!((mock.state.rip, mock.state.gpr[RCX]), (0x1000, left));
    }
    assert_eq!(emulate(&mut mock, &insn), Ok(()));
    assert_eq!((mock.state.rip, mock.state.gpr[RCX]), (0x1002, 0));
    assert_eq!(mock.state.gpr[RSI..=RDI], [0x2003, 0x3003]);
    assert_eq!(mock.peek(0x2000, 3), mock.peek(0x3000, 3));
    // With a count of zero there is none.
    let mock = run(Bits64, &[0xf3, 0xa4], &[(RSI, 0x2000)]);
    assert_eq!(mock.events, []);
}

#[test]
fn a_fault_in_an_iteration_keeps_those_before_it() {
    let mut mock = cpu(Bits64, &[0xf3, 0xab], &[(RCX, 3), (RDI, 0x7fff_ffff_fff8)]);
    let insn = fetch(&mut mock, &[]).expect("an instruction");
    assert_eq!(emulate(&mut mock, &insn), Ok(()));
    assert_eq!(emulate(&mut mock, &insn), Ok(()));
    assert_eq!(emulate(&mut mock, &insn), Err(GP));
    assert_eq!((mock.state.rip, mock.state.gpr[RCX]), (0x1000, 1));
    assert_eq!(mock.state.gpr[RDI], 0x8000_0000_0000);
}

#[test]
fn string_registers_have_the_address_size() {
    // A 16-bit count and pointers wrap; what is above them stays.
    let registers = [(RCX, 0xabcd_0002), (RSI, 0x1_ffff), (RDI, 0x5_0000)];
    let mock = run(Bits16, &[0xf3, 0xa4], &registers);
    assert_eq!(mock.state.gpr[RCX], 0xabcd_0000);
    assert_eq!(mock.state.gpr[RSI..=RDI], [0x1_0001, 0x5_0002]);
    assert_eq!(mock.events[2], Event::Read(0, 1, Access::Read));
    // 32-bit ones in 64-bit mode clear the upper half.
    let registers = [(RCX, 0xab_0000_0001), (RSI, 0xcd_ffff_ffff), (RDI, 0x2000)];
    let mock = run(Bits64, &[0x67, 0xf3, 0xa4], &registers);
    assert_eq!((mock.state.gpr[RCX], mock.state.gpr[RSI]), (0, 0));
}

#[test]
fn string_segments() {
    // The source can be overridden, the destination is ES.
    let mut mock = cpu(Bits32, &[0x64, 0xa5], &[(RSI, 0x2000), (RDI, 0x3000)]);
    mock.segment_mut(SegReg::Fs).base = 0x10_0000;
    mock.segment_mut(SegReg::Es).base = 0x20_0000;
    mock.step().expect("no fault");
    let accesses = [
        Event::Read(0x10_2000, 4, Access::Read),
        Event::Write(0x20_3000, 4),
    ];
    assert_eq!(mock.events, accesses);
}

#[test]
fn comparing_strings() {
    // repe cmpsb ends at the first difference, repne scasb at the first equality.
    let registers = [(RCX, 9), (RSI, 0x2000), (RDI, 0x3000)];
    let mut mock = cpu(Bits64, &[0xf3, 0xa6], &registers);
    mock.poke(0x2000, b"abcX");
    mock.poke(0x3000, b"abcY");
    mock.step().expect("no fault");
    assert_eq!((mock.state.gpr[RCX], mock.state.gpr[RSI]), (5, 0x2004));
    assert!(mock.state.rflags.contains(Rflags::CF | Rflags::SF));
    let registers = [(RCX, 9), (RAX, b'c'.into()), (RDI, 0x3000)];
    let mut mock = cpu(Bits64, &[0xf2, 0xae], &registers);
    mock.poke(0x3000, b"abcY");
    mock.step().expect("no fault");
    assert_eq!((mock.state.gpr[RCX], mock.state.gpr[RDI]), (6, 0x3003));
    assert!(mock.state.rflags.contains(Rflags::ZF));
}

#[test]
fn translation() {
    let mut mock = cpu(Bits16, &[0x2e, 0xd7], &[(RAX, 0x1234), (RBX, 0x1_fff0)]);
    mock.segment_mut(SegReg::Cs).base = 0;
    mock.poke(0x24, &[0x77]);
    mock.step().expect("no fault");
    assert_eq!(mock.events, [Event::Read(0x24, 1, Access::Read)]);
    assert_eq!(mock.state.gpr[RAX], 0x1277);
}

#[test]
fn ports() {
    let mock = run(Bits64, &[0xe4, 0x80], &[(RAX, !0)]);
    assert_eq!(mock.events, [Event::In(0x80, 1)]);
    assert_eq!(mock.state.gpr[RAX], 0xffff_ffff_ffff_ff21);
    let mock = run(Bits64, &[0xed], &[(RAX, !0), (RDX, 0xa_1234)]);
    assert_eq!(mock.events, [Event::In(0x1234, 4)]);
    assert_eq!(mock.state.gpr[RAX], 0x8765_4321);
    let mock = run(Bits64, &[0x48, 0xef], &[(RAX, !0), (RDX, 0x1234)]);
    assert_eq!(mock.events, [Event::Out(0x1234, 4, 0xffff_ffff)]);
    let mock = run(Bits16, &[0xe7, 0xff], &[(RAX, 0xabcd_1234)]);
    assert_eq!(mock.events, [Event::Out(0xff, 2, 0x1234)]);
}

#[test]
fn port_strings() {
    let registers = [(RCX, 2), (RDX, 0x70), (RSI, 0x2000), (RDI, 0x3000)];
    let mock = run(Bits64, &[0xf3, 0x66, 0x6d], &registers);
    let probe = |linear| Event::Probe(linear, 2);
    let once = |linear| [probe(linear), Event::In(0x70, 2), Event::Write(linear, 2)];
    assert_eq!(mock.events, [once(0x3000), once(0x3002)].concat());
    assert_eq!(mock.peek(0x3000, 4), 0x4321_4321);
    let mut mock = cpu(Bits32, &[0xf3, 0x6e], &registers);
    mock.state.rflags |= Rflags::DF;
    mock.poke(0x1fff, &[0x11, 0x22]);
    mock.step().expect("no fault");
    assert_eq!(mock.events[1], Event::Out(0x70, 1, 0x22));
    assert_eq!(mock.events[3], Event::Out(0x70, 1, 0x11));
    assert_eq!(mock.state.gpr[RSI], 0x1ffe);
}

/// A CPU at privilege level 3 with a TSS whose bitmap allows the ports 0x10 to 0x17.
fn user_with_bitmap(code: &[u8]) -> Mock {
    let mut mock = cpu(Bits64, code, &[]);
    mock.cpl = 3;
    let task = mock.segment_mut(SegReg::Tr);
    task.base = 0x8000;
    task.limit = 0x68 + 4;
    task.attributes = x86::regs::SegAttr::from_bits_retain(0x8b);
    mock.poke(0x8066, &[0x68, 0x00, 0xff, 0xff, 0x00, 0xff, 0xff]);
    mock
}

#[test]
fn port_permissions() {
    let access = |code: &[u8], change: fn(&mut Mock)| {
        let mut mock = user_with_bitmap(code);
        change(&mut mock);
        mock.step().map(|_| ())
    };
    let none = |_: &mut Mock| {};
    assert_eq!(access(&[0xe4, 0x10], none), Ok(()));
    assert_eq!(access(&[0xe4, 0x17], none), Ok(()));
    assert_eq!(access(&[0xe4, 0x18], none), Err(GP));
    assert_eq!(access(&[0xe4, 0x0f], none), Err(GP));
    assert_eq!(access(&[0xe5, 0x14], none), Ok(()));
    assert_eq!(access(&[0xe5, 0x15], none), Err(GP));
    // The second byte of the bitmap that is read must be inside the limit.
    assert_eq!(access(&[0xe4, 0x20], none), Err(GP));
    assert_eq!(
        access(&[0xe4, 0x10], |m| m.segments[7].limit = 0x6b),
        Ok(())
    );
    assert_eq!(
        access(&[0xe4, 0x10], |m| m.segments[7].limit = 0x6a),
        Err(GP)
    );
    // IOPL, but not in virtual-8086 mode; real mode; no TSS.
    let iopl = |m: &mut Mock| m.state.rflags |= Rflags::IOPL;
    assert_eq!(access(&[0xe4, 0x80], iopl), Ok(()));
    let virtual_8086 = |m: &mut Mock| {
        m.state.rflags |= Rflags::IOPL | Rflags::VM;
        m.efer = x86::regs::Efer::empty();
    };
    assert_eq!(access(&[0xe4, 0x80], virtual_8086), Err(GP));
    assert_eq!(access(&[0xe4, 0x10], virtual_8086), Ok(()));
    assert_eq!(access(&[0xe4, 0x80], |m| m.cr0 = Cr0::empty()), Ok(()));
    let unusable = |m: &mut Mock| m.segments[7].attributes = x86::regs::SegAttr::empty();
    assert_eq!(access(&[0xe4, 0x10], unusable), Err(GP));
    let mut mock = user_with_bitmap(&[0xe4, 0x10]);
    mock.step().expect("no fault");
    assert_eq!(mock.events[0], Event::Read(0x8066, 2, Access::SystemRead));
    assert_eq!(mock.events[1], Event::Read(0x806a, 2, Access::SystemRead));
    // INS asks, too.
    let mut mock = user_with_bitmap(&[0x6c]);
    mock.state.gpr[RDX] = 0x80;
    assert_eq!(mock.step(), Err(GP));
}

#[test]
fn machine_status_word() {
    let mut mock = cpu(Bits64, &[0x0f, 0x01, 0x23], &[(RBX, 0x2000)]);
    mock.cr0 = Cr0::PE | Cr0::TS | Cr0::PG;
    mock.step().expect("no fault");
    assert_eq!(mock.events, [Event::Write(0x2000, 2)]);
    assert_eq!(mock.peek(0x2000, 2), 9);
    mock.cpl = 3;
    mock.cr4 |= Cr4::UMIP;
    mock.state.rip = 0x1000;
    assert_eq!(mock.step(), Err(GP));
    let mut mock = cpu(Bits64, &[0x0f, 0x01, 0x33], &[(RBX, 0x2000)]);
    mock.poke(0x2000, &[0x0b, 0x00]);
    mock.step().expect("no fault");
    assert_eq!(mock.cr0.bits(), 0x0b);
    let mut mock = cpu(Bits64, &[0x0f, 0x01, 0xf0], &[(RAX, 0x1_000e)]);
    mock.step().expect("no fault");
    assert_eq!(mock.cr0.bits(), 0x0f);
}

#[test]
fn restart_flag_is_cleared() {
    let mut mock = cpu(Bits64, &[0x90], &[]);
    mock.state.rflags |= Rflags::RF | Rflags::TF;
    mock.step().expect("no fault");
    assert_eq!(flags(&mock), Rflags::TF);
}

#[test]
fn cache_and_prefetch_instructions() {
    let mock = run(Bits64, &[0x0f, 0x0d, 0x0b], &[(RBX, 1 << 50)]);
    assert_eq!(mock.events, []);
    run(Bits64, &[0x0f, 0x1f, 0x44, 0x00, 0x00], &[]);
    run(Bits64, &[0xf3, 0x90], &[]);
    run(Bits64, &[0x0f, 0xae, 0x3b], &[(RBX, 0xfee0_0000)]);
    let mut mock = cpu(Bits64, &[0x0f, 0xae, 0x3b], &[(RBX, 1 << 50)]);
    assert_eq!(mock.step(), Err(GP));
}

#[test]
fn divisions_that_fault() {
    let divide =
        |code: &[u8], registers: &[(usize, u64)]| cpu(Bits64, code, registers).step().err();
    // div rbx: by zero, and with a quotient of one bit too much.
    let code = [0x48, 0xf7, 0xf3];
    assert_eq!(divide(&code, &[(RAX, 7)]), Some(DE));
    assert_eq!(divide(&code, &[(RDX, 5), (RBX, 5)]), Some(DE));
    assert_eq!(divide(&code, &[(RDX, 4), (RBX, 5)]), None);
    // idiv rbx, idiv bl: the smallest number by -1.
    let code = [0x48, 0xf7, 0xfb];
    assert_eq!(
        divide(&code, &[(RDX, !0), (RAX, 1 << 63), (RBX, !0)]),
        Some(DE)
    );
    assert_eq!(divide(&code, &[(RDX, !0), (RAX, 1 << 63), (RBX, 1)]), None);
    assert_eq!(
        divide(&[0xf6, 0xfb], &[(RAX, 0xff80), (RBX, 0xff)]),
        Some(DE)
    );
    assert_eq!(divide(&[0xf6, 0xfb], &[(RAX, 0xff80), (RBX, 1)]), None);
}
