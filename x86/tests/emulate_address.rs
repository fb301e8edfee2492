// SPDX-License-Identifier: GPL-2.0-only

//! Where the emulator finds code and operands: addresses, segments, stacks.

use emulate_mock::cpu;
use emulate_mock::run;
use emulate_mock::Event;
use emulate_mock::Mock;
use emulate_mock::GP;
use emulate_mock::RAX;
use emulate_mock::RBP;
use emulate_mock::RBX;
use emulate_mock::RSI;
use emulate_mock::RSP;
use emulate_mock::SS;
use x86::cpu::Access;
use x86::cpu::Stop;
use x86::decode::CodeSize::Bits16;
use x86::decode::CodeSize::Bits32;
use x86::decode::CodeSize::Bits64;
use x86::emulate::fetch;
use x86::emulate::linear_address;
use x86::regs::Cr4;
use x86::regs::SegReg;

mod emulate_mock;

#[test]
fn addresses_wrap() {
    let address = |mode, code: &[u8], registers: &[(usize, u64)]| {
        let mut mock = cpu(mode, code, registers);
        let insn = fetch(&mut mock, &[]).expect("an instruction");
        linear_address(&mock, &insn)
    };
    // mov al, [bx+si]
    let registers = [(RBX, 0xf000), (RSI, 0x2000)];
    assert_eq!(address(Bits16, &[0x8a, 0x00], &registers), Some(0x1000));
    // mov al, [ebx+esi*4-1]
    let registers = [(RBX, 0xffff_fff0), (RSI, 0x4000_0008)];
    let code = [0x8a, 0x44, 0xb3, 0xff];
    assert_eq!(address(Bits32, &code, &registers), Some(0xf));
    assert_eq!(address(Bits64, &code, &registers), Some(0x2_0000_000f));
    let code = [0x67, 0x8a, 0x44, 0xb3, 0xff];
    assert_eq!(address(Bits64, &code, &registers), Some(0xf));
    // mov al, [rip-8], [eip-0x2000]
    let code = [0x8a, 0x05, 0xf8, 0xff, 0xff, 0xff];
    assert_eq!(address(Bits64, &code, &[]), Some(0xffe));
    let code = [0x67, 0x8a, 0x05, 0x00, 0xe0, 0xff, 0xff];
    assert_eq!(address(Bits64, &code, &[]), Some(0xffff_f007));
    // invlpg [eax] with a base: the linear address has 32 bits.
    let mut mock = cpu(Bits32, &[0x0f, 0x01, 0x38], &[(RAX, 0x2000)]);
    mock.segment_mut(SegReg::Ds).base = 0xffff_f000;
    let insn = fetch(&mut mock, &[]).expect("an instruction");
    assert_eq!(linear_address(&mock, &insn), Some(0x1000));
}

#[test]
fn segment_bases() {
    let mut mock = cpu(Bits64, &[0x65, 0x8a, 0x03], &[(RBX, 0x10)]);
    mock.segment_mut(SegReg::Gs).base = 0xffff_8000_0000_0000;
    mock.segment_mut(SegReg::Ds).base = 0x1000;
    mock.step().expect("no fault");
    let read = Event::Read(0xffff_8000_0000_0010, 1, Access::Read);
    assert_eq!(mock.events, [read]);
    let mut mock = cpu(Bits64, &[0x8a, 0x03], &[(RBX, 0x10)]);
    mock.segment_mut(SegReg::Ds).base = 0x1000;
    mock.step().expect("no fault");
    assert_eq!(mock.events, [Event::Read(0x10, 1, Access::Read)]);
}

#[test]
fn canonical_addresses() {
    let read = |code: &[u8], address| cpu(Bits64, code, &[(RBX, address), (RBP, address)]).step();
    assert_eq!(read(&[0x8b, 0x03], 0x8000_0000_0000), Err(GP));
    assert_eq!(read(&[0x8b, 0x03], 0x7fff_ffff_fffd), Err(GP));
    assert!(read(&[0x8b, 0x03], 0x7fff_ffff_fffc).is_ok());
    assert_eq!(read(&[0x8b, 0x03], 0xffff_7fff_ffff_ffff), Err(GP));
    assert!(read(&[0x8b, 0x03], 0xffff_8000_0000_0000).is_ok());
    assert_eq!(read(&[0x8b, 0x45, 0x00], 0x8000_0000_0000), Err(SS));
    assert_eq!(read(&[0x64, 0x8b, 0x45, 0x00], 0x8000_0000_0000), Err(GP));
    assert_eq!(read(&[0x8b, 0x03], !0), Err(Stop::Unhandled));
    let mut mock = cpu(Bits64, &[0x8b, 0x03], &[(RBX, 0x8000_0000_0000)]);
    mock.cr4 |= Cr4::LA57;
    assert!(mock.step().is_ok());
}

#[test]
fn segment_limits() {
    let read = |address, limit| {
        let mut mock = cpu(Bits32, &[0x8b, 0x03], &[(RBX, address)]);
        mock.segment_mut(SegReg::Ds).limit = limit;
        mock.step()
    };
    assert!(read(0xffc, 0xfff).is_ok());
    assert_eq!(read(0xffd, 0xfff), Err(GP));
    assert_eq!(read(0xffff_fffe, 0xffff_ffff), Err(GP));
    assert!(read(0xffff_fffc, 0xffff_ffff).is_ok());
    // push with a stack segment that is too small
    let mut mock = cpu(Bits32, &[0x50], &[(RSP, 0x2004)]);
    mock.segment_mut(SegReg::Ss).limit = 0x2002;
    assert_eq!(mock.step(), Err(SS));
    assert_eq!(mock.state.gpr[RSP], 0x2004);
}

#[test]
fn expand_down_segments() {
    let read = |address, limit, big: bool| {
        let mut mock = cpu(Bits32, &[0x8b, 0x03], &[(RBX, address)]);
        let segment = mock.segment_mut(SegReg::Ds);
        segment.limit = limit;
        segment.attributes |= x86::regs::SegAttr::EXPAND_DOWN;
        segment.attributes.set(x86::regs::SegAttr::DB, big);
        mock.step()
    };
    assert_eq!(read(0xfff, 0xfff, true), Err(GP));
    assert!(read(0x1000, 0xfff, true).is_ok());
    assert!(read(0xffff_fffc, 0xfff, true).is_ok());
    assert_eq!(read(0xffff_fffd, 0xfff, true), Err(GP));
    assert!(read(0xfffc, 0xfff, false).is_ok());
    assert_eq!(read(0xfffd, 0xfff, false), Err(GP));
}

#[test]
fn segment_rights() {
    use x86::regs::SegAttr;
    let access = |code: &[u8], change: fn(&mut SegAttr)| {
        let mut mock = cpu(Bits32, code, &[(RBX, 0x2000)]);
        change(&mut mock.segment_mut(SegReg::Ds).attributes);
        mock.step()
    };
    const READ: &[u8] = &[0x8b, 0x03];
    const WRITE: &[u8] = &[0x89, 0x03];
    const MODIFY: &[u8] = &[0x01, 0x03];
    assert!(access(READ, |a| a.remove(SegAttr::WRITABLE)).is_ok());
    assert_eq!(access(WRITE, |a| a.remove(SegAttr::WRITABLE)), Err(GP));
    assert_eq!(access(MODIFY, |a| a.remove(SegAttr::WRITABLE)), Err(GP));
    assert_eq!(access(READ, |a| a.remove(SegAttr::P)), Err(GP));
    assert!(access(READ, |a| a.insert(SegAttr::CODE)).is_ok());
    assert_eq!(access(WRITE, |a| a.insert(SegAttr::CODE)), Err(GP));
    let execute_only = |a: &mut SegAttr| {
        a.insert(SegAttr::CODE);
        a.remove(SegAttr::WRITABLE);
    };
    assert_eq!(access(READ, execute_only), Err(GP));
    // Real mode has no rights.
    let mut mock = cpu(Bits16, &[0x2e, 0x88, 0x07], &[(RBX, 0x2000)]);
    mock.segment_mut(SegReg::Cs).attributes = SegAttr::empty();
    assert!(mock.step().is_ok());
}

#[test]
fn real_mode_addresses() {
    let mut mock = cpu(Bits16, &[0x89, 0x46, 0x02], &[(RAX, 0x55aa), (RBP, 0x10)]);
    mock.segment_mut(SegReg::Ss).base = 0x12340;
    mock.step().expect("no fault");
    assert_eq!(mock.events, [Event::Write(0x12352, 2)]);
    assert_eq!(cpu(Bits16, &[0x8b, 0x07], &[(RBX, 0xffff)]).step(), Err(GP));
    // 32-bit addressing in real mode: the limit counts.
    let code = [0x67, 0x8b, 0x03];
    assert_eq!(cpu(Bits16, &code, &[(RBX, 0x1_0000)]).step(), Err(GP));
    let mut mock = cpu(Bits16, &code, &[(RBX, 0xfee0_0000)]);
    mock.segment_mut(SegReg::Ds).limit = 0xffff_ffff;
    assert!(mock.step().is_ok());
}

#[test]
fn stack_pointer_width() {
    use x86::regs::SegAttr;
    // A 16-bit stack wraps and leaves the upper half alone.
    let mut mock = cpu(Bits32, &[0x50], &[(RSP, 0x1234_0000), (RAX, 0x1122_3344)]);
    mock.segment_mut(SegReg::Ss).attributes.remove(SegAttr::DB);
    mock.step().expect("no fault");
    assert_eq!(mock.state.gpr[RSP], 0x1234_fffc);
    assert_eq!(mock.events, [Event::Write(0xfffc, 4)]);
    let mock = run(Bits64, &[0x66, 0x50], &[(RSP, 0x1_0000_0000), (RAX, 1)]);
    assert_eq!(mock.state.gpr[RSP], 0xffff_fffe);
    // PUSH RSP pushes what it was; POP RSP ends with what was popped.
    let mock = run(Bits64, &[0x54], &[(RSP, 0x2000)]);
    assert_eq!(mock.peek(0x1ff8, 8), 0x2000);
    let mut mock = cpu(Bits64, &[0x5c], &[(RSP, 0x2000)]);
    mock.poke(0x2000, &0x1234_5678_9abc_def0u64.to_le_bytes());
    mock.step().expect("no fault");
    assert_eq!(mock.state.gpr[RSP], 0x1234_5678_9abc_def0);
}

#[test]
fn pop_to_memory_uses_the_new_stack_pointer() {
    // pop qword [rsp+8]
    let mut mock = cpu(Bits64, &[0x8f, 0x44, 0x24, 0x08], &[(RSP, 0x2000)]);
    mock.poke(0x2000, &[1, 2, 3, 4, 5, 6, 7, 8]);
    mock.step().expect("no fault");
    let accesses = [
        Event::Read(0x2000, 8, Access::Read),
        Event::Write(0x2010, 8),
    ];
    assert_eq!(mock.events, accesses);
    assert_eq!(mock.state.gpr[RSP], 0x2008);
    // push qword [rsp]
    let mock = run(Bits64, &[0xff, 0x34, 0x24], &[(RSP, 0x2000)]);
    let accesses = [
        Event::Read(0x2000, 8, Access::Read),
        Event::Write(0x1ff8, 8),
    ];
    assert_eq!(mock.events, accesses);
}

#[test]
fn branches_through_memory() {
    let branch = |mode, code: &[u8], target: u64| {
        let mut mock = cpu(mode, code, &[(RBX, 0x2000), (RSP, 0x3000)]);
        mock.poke(0x2000, &target.to_le_bytes());
        mock.step().map(|_| mock)
    };
    let mock = branch(Bits64, &[0xff, 0x13], 0xffff_8000_0000_1234).expect("no fault");
    assert_eq!(mock.state.rip, 0xffff_8000_0000_1234);
    assert_eq!(mock.peek(0x2ff8, 8), 0x1002);
    let mock = branch(Bits64, &[0xff, 0x23], 0x1234).expect("no fault");
    assert_eq!((mock.state.rip, mock.state.gpr[RSP]), (0x1234, 0x3000));
    assert_eq!(branch(Bits64, &[0xff, 0x13], 1 << 50).err(), Some(GP));
    let mock = branch(Bits32, &[0xff, 0x13], 0x5_0000_6000).expect("no fault");
    assert_eq!(mock.state.rip, 0x6000);
    assert_eq!(mock.peek(0x2ffc, 4), 0x1002);
    let mock = branch(Bits32, &[0x66, 0xff, 0x23], 0x12_6000).expect("no fault");
    assert_eq!(mock.state.rip, 0x6000);
    assert_eq!(
        branch(Bits16, &[0x66, 0xff, 0x27], 0x1_0000).err(),
        Some(GP)
    );
}

#[test]
fn bit_strings_reach_far() {
    // bts [rbx], eax with a negative bit number; bt with a 16-bit one that is negative.
    let registers = [(RAX, (-33i64) as u64), (RBX, 0x2000)];
    let mock = run(Bits64, &[0x0f, 0xab, 0x03], &registers);
    assert_eq!(mock.events[0], Event::Read(0x1ff8, 4, Access::Write));
    let mock = run(
        Bits32,
        &[0x66, 0x0f, 0xa3, 0x03],
        &[(RAX, 0x8000), (RBX, 0x2000)],
    );
    assert_eq!(mock.events, [Event::Read(0x1000, 2, Access::Read)]);
    let mock = run(
        Bits64,
        &[0x48, 0x0f, 0xab, 0x03],
        &[(RAX, 1 << 20), (RBX, 0x2000)],
    );
    assert_eq!(mock.events[1], Event::Write(0x2000 + (1 << 17), 8));
    // The sum is cut to the address size.
    let mock = run(Bits16, &[0x0f, 0xa3, 0x07], &[(RAX, 0xfff0), (RBX, 0)]);
    assert_eq!(mock.events, [Event::Read(0xfffe, 2, Access::Read)]);
}

#[test]
fn fetch_reads_no_more_than_it_must() {
    // Two bytes before the end of a page are enough for CPUID.
    let mut mock = Mock::new(Bits64);
    mock.state.rip = 0x1ffe;
    mock.poke(0x1ffe, &[0x0f, 0xa2]);
    assert_eq!(fetch(&mut mock, &[]).map(|insn| insn.length), Ok(2));
    assert_eq!(mock.events, [Event::Read(0x1ffe, 2, Access::Fetch)]);
    // One more byte is needed: the rest comes from the next page.
    mock.events.clear();
    mock.poke(0x1ffe, &[0x0f, 0x01, 0xd9]);
    assert_eq!(fetch(&mut mock, &[]).map(|insn| insn.length), Ok(3));
    let second = Event::Read(0x2000, 13, Access::Fetch);
    assert_eq!(mock.events, [Event::Read(0x1ffe, 2, Access::Fetch), second]);
    // What the CPU has saved is not read again.
    mock.events.clear();
    assert_eq!(
        fetch(&mut mock, &[0x0f, 0xa2]).map(|insn| insn.length),
        Ok(2)
    );
    assert_eq!(mock.events, []);
    assert_eq!(fetch(&mut mock, &[0x0f]).map(|insn| insn.length), Ok(3));
    assert_eq!(
        mock.events,
        [
            Event::Read(0x1fff, 1, Access::Fetch),
            Event::Read(0x2000, 13, Access::Fetch)
        ]
    );
}

#[test]
fn fetch_respects_the_code_segment() {
    let mut mock = Mock::with_code(Bits32, &[0x0f, 0xa2]);
    mock.segment_mut(SegReg::Cs).limit = 0x1001;
    assert!(fetch(&mut mock, &[]).is_ok());
    mock.segment_mut(SegReg::Cs).limit = 0x1000;
    assert_eq!(fetch(&mut mock, &[]), Err(GP));
    mock.segment_mut(SegReg::Cs).limit = 0xfff;
    mock.events.clear();
    assert_eq!(fetch(&mut mock, &[]), Err(GP));
    assert_eq!(mock.events, []);
    let mut mock = Mock::with_code(Bits16, &[0x90]);
    mock.segment_mut(SegReg::Cs).base = 0xffff_0000;
    mock.state.rip = 0xfff0;
    let _ = fetch(&mut mock, &[]);
    assert_eq!(mock.events, [Event::Read(0xffff_fff0, 15, Access::Fetch)]);
    let mut mock = Mock::new(Bits64);
    mock.state.rip = 0x8000_0000_0000;
    assert_eq!(fetch(&mut mock, &[]), Err(GP));
    // Sixteen prefixes, and an encoding that is not known.
    let mut mock = Mock::with_code(Bits64, &[0x66; 16]);
    assert_eq!(fetch(&mut mock, &[]), Err(GP));
    let mut mock = Mock::with_code(Bits64, &[0x62, 0xf1, 0x7c, 0x48, 0x28, 0xc1]);
    assert_eq!(fetch(&mut mock, &[]), Err(Stop::Unhandled));
}

#[test]
fn calls_and_returns() {
    // call rel32 backwards, and with IP only
    let mut mock = cpu(Bits64, &[0xe8, 0xfb, 0xef, 0xff, 0xff], &[(RSP, 0x3000)]);
    mock.step().expect("no fault");
    assert_eq!((mock.state.rip, mock.state.gpr[RSP]), (0, 0x2ff8));
    assert_eq!(mock.peek(0x2ff8, 8), 0x1005);
    let mut mock = cpu(Bits16, &[0xe8, 0xf0, 0xef], &[(RSP, 0x3000)]);
    mock.step().expect("no fault");
    assert_eq!((mock.state.rip, mock.state.gpr[RSP]), (0xfff3, 0x2ffe));
    // ret 16
    let mut mock = cpu(Bits32, &[0xc2, 0x10, 0x00], &[(RSP, 0x3000)]);
    mock.poke(0x3000, &[0x78, 0x56, 0x34, 0x12]);
    mock.step().expect("no fault");
    assert_eq!((mock.state.rip, mock.state.gpr[RSP]), (0x1234_5678, 0x3014));
    let mut mock = cpu(Bits64, &[0xc3], &[(RSP, 0x3000)]);
    mock.poke(0x3000, &(1u64 << 47).to_le_bytes());
    assert_eq!(mock.step(), Err(GP));
    assert_eq!(mock.state.gpr[RSP], 0x3000);
}
