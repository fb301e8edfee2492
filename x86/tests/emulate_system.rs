// SPDX-License-Identifier: GPL-2.0-only

//! The emulator's stack, segments, far transfers and system instructions: which accesses they make,
//! in which order, and when they fault.

use emulate_mock::*;
use x86::cpu::Access;
use x86::cpu::Stop;
use x86::decode::CodeSize::*;
use x86::features::Feature;
use x86::regs::vector;
use x86::regs::Cr0;
use x86::regs::Cr4;
use x86::regs::Exception;
use x86::regs::Rflags;
use x86::regs::SegAttr;
use x86::regs::SegReg;

mod emulate_mock;

const GDT: u64 = 0x6000;

/// Null, code, data that was never loaded, code of user mode, data of user mode, an LDT, a TSS,
/// absent data.
fn with_gdt(mut mock: Mock) -> Mock {
    let gdt: [u64; 8] = [
        0,
        0x00cf_9b00_0000_ffff,
        0x00cf_9200_1000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x0000_8200_7000_00ff,
        0x0000_8900_7100_0067,
        0x00cf_1300_0000_ffff,
    ];
    for (index, descriptor) in gdt.iter().enumerate() {
        mock.poke(GDT + 8 * index as u64, &descriptor.to_le_bytes());
    }
    mock.gdtr.base = GDT;
    mock.gdtr.limit = 0x3f;
    mock
}

fn gp(selector: u32) -> Result<x86::decode::Insn, Stop> {
    Err(Exception::with_code(vector::GP, selector).into())
}

#[test]
fn pusha_and_popa() {
    let registers: Vec<_> = (0..8)
        .map(|index| (index, if index == RSP { 0x3000 } else { index as u64 }))
        .collect();
    let mock = run(Bits32, &[0x60], &registers);
    let places = (1..=8).map(|number| 0x3000 - 4 * number);
    let probes = places.clone().map(|at| Event::Probe(at, 4));
    let writes = places.map(|at| Event::Write(at, 4));
    assert_eq!(mock.events, probes.chain(writes).collect::<Vec<_>>());
    assert_eq!(mock.peek(0x2ffc, 4), 0);
    assert_eq!(mock.peek(0x2fec, 4), 0x3000);
    assert_eq!(mock.peek(0x2fe0, 4), 7);
    assert_eq!(mock.state.gpr[RSP], 0x2fe0);
    let mut mock = cpu(Bits32, &[0x61], &[(RSP, 0x3000)]);
    mock.step().expect("no fault");
    let reads = [0, 1, 2, 4, 5, 6, 7].map(|n| Event::Read(0x3000 + 4 * n, 4, Access::Read));
    assert_eq!(mock.events, reads);
    assert_eq!(mock.state.gpr[RSP], 0x3020);
    assert_eq!(mock.state.gpr[RAX], mock.peek(0x301c, 4));
    assert_eq!(mock.state.gpr[RDI], mock.peek(0x3000, 4));
}

#[test]
fn flags_on_the_stack() {
    let mut mock = cpu(Bits64, &[0x9c], &[(RSP, 0x3000)]);
    mock.state.rflags |= Rflags::RF | Rflags::IF | Rflags::CF;
    mock.step().expect("no fault");
    assert_eq!(mock.events, [Event::Write(0x2ff8, 8)]);
    assert_eq!(mock.peek(0x2ff8, 8), 0x203);
    let pop = |code: &[u8], cpl, value: u64, before: Rflags| {
        let mut mock = cpu(Bits64, code, &[(RSP, 0x3000)]);
        mock.cpl = cpl;
        mock.state.rflags = before | Rflags::RESERVED1;
        mock.poke(0x3000, &value.to_le_bytes());
        mock.step().expect("no fault");
        mock.state.rflags.bits()
    };
    assert_eq!(pop(&[0x9d], 0, 0xffff_ffff, Rflags::empty()), 0x24_7fd7);
    // IOPL stays for those outside of level 0, and IF for those above IOPL.
    assert_eq!(pop(&[0x9d], 3, 0xffff_ffff, Rflags::empty()), 0x24_4dd7);
    assert_eq!(pop(&[0x9d], 3, 0, Rflags::IF), 0x202);
    assert_eq!(pop(&[0x9d], 3, 0, Rflags::IF | Rflags::IOPL), 0x3002);
    // Two bytes leave AC and ID alone.
    assert_eq!(pop(&[0x66, 0x9d], 0, 0, Rflags::ID | Rflags::CF), 0x20_0002);
}

#[test]
fn flags_in_virtual_8086_mode() {
    let attempt = |code: &[u8], flags| {
        let mut mock = cpu(Bits16, code, &[(RSP, 0x3000)]);
        mock.cr0 = Cr0::PE;
        mock.cpl = 3;
        mock.state.rflags |= Rflags::VM | flags;
        mock.step().err()
    };
    for code in [[0x9c], [0x9d], [0xcf], [0xfa]] {
        assert_eq!(attempt(&code, Rflags::empty()), Some(GP), "{code:02x?}");
        assert_eq!(attempt(&code, Rflags::IOPL), None, "{code:02x?}");
    }
}

#[test]
fn nested_enter() {
    // enter 16, 3
    let registers = [(RSP, 0x3000), (RBP, 0x4000)];
    let mut mock = cpu(Bits64, &[0xc8, 16, 0, 3], &registers);
    mock.step().expect("no fault");
    assert_eq!(mock.peek(0x2ff8, 8), 0x4000);
    assert_eq!(mock.peek(0x2ff0, 8), mock.peek(0x3ff8, 8));
    assert_eq!(mock.peek(0x2fe8, 8), mock.peek(0x3ff0, 8));
    assert_eq!(mock.peek(0x2fe0, 8), 0x2ff8);
    assert_eq!(mock.state.gpr[RBP], 0x2ff8);
    assert_eq!(mock.state.gpr[RSP], 0x2fe0 - 16);
    // What it would read from a place where it has just pushed something.
    for (rbp, result) in [
        (0x2fe0, None),
        (0x2fe8, Some(Stop::Unhandled)),
        (0x3008, Some(Stop::Unhandled)),
        (0x3010, None),
    ] {
        let mut mock = cpu(Bits64, &[0xc8, 0, 0, 3], &[(RSP, 0x3000), (RBP, rbp)]);
        assert_eq!(mock.step().err(), result, "{rbp:x}");
    }
}

#[test]
fn segment_registers() {
    // mov ds, [rbx]
    let load = |selector: u16| {
        let mut mock = with_gdt(cpu(Bits32, &[0x8e, 0x1b], &[(RBX, 0x2000)]));
        mock.poke(0x2000, &selector.to_le_bytes());
        mock.step().map(|_| mock)
    };
    let mock = load(0x10).expect("a data segment");
    let marked = GDT + 0x15;
    assert_eq!(
        mock.events,
        [
            Event::Read(0x2000, 2, Access::Read),
            Event::Read(GDT + 0x10, 8, Access::SystemRead),
            Event::Mark(marked, 1),
        ]
    );
    assert_eq!(mock.peek(marked, 1), 0x93);
    let ds = mock.segments[SegReg::Ds as usize];
    assert_eq!((ds.base, ds.limit, ds.selector), (0x1000, !0, 0x10));
    // One that is accessed already is not written.
    assert_eq!(load(0x20).expect("a data segment").events.len(), 2);
    assert_eq!(load(0).expect("none").events.len(), 1);
    assert_eq!(load(0x40).map(|_| ()), gp(0x40).map(|_| ()));
    assert_eq!(load(0x28).map(|_| ()), gp(0x28).map(|_| ()));
    let absent = Exception::with_code(vector::NP, 0x38);
    assert_eq!(load(0x38).err(), Some(absent.into()));
    // Another CPU gives it another base before it is marked: it is read again.
    let mut mock = with_gdt(cpu(Bits32, &[0x8e, 0xd8], &[(RAX, 0x10)]));
    mock.lost_races = 1;
    mock.step().expect("a data segment");
    let again = [
        Event::Read(GDT + 0x10, 8, Access::SystemRead),
        Event::Mark(marked, 1),
    ];
    assert_eq!(mock.events, [again, again].concat());
    assert_eq!(mock.segments[SegReg::Ds as usize].base, 0x0100_1000);
    // mov ss, ax begins an interrupt shadow; mov cs, ax is undefined.
    let mut mock = with_gdt(cpu(Bits32, &[0x8e, 0xd0], &[(RAX, 0x10)]));
    mock.step().expect("a stack");
    assert!(mock.shadow);
    let mut mock = with_gdt(cpu(Bits32, &[0x8e, 0xd0], &[(RAX, 0x23)]));
    assert_eq!(mock.step(), gp(0x20));
    let mut mock = cpu(Bits32, &[0x8e, 0xc8], &[(RAX, 0x10)]);
    assert_eq!(mock.step(), Err(UD));
    // lds eax, [rbx]: one access; in real mode the base is the selector's.
    let mut mock = cpu(Bits16, &[0xc5, 0x07], &[(RBX, 0x2000)]);
    mock.poke(0x2000, &[0x34, 0x12, 0x78, 0x56]);
    mock.step().expect("no fault");
    assert_eq!(mock.events, [Event::Read(0x2000, 4, Access::Read)]);
    assert_eq!(mock.segments[SegReg::Ds as usize].base, 0x5_6780);
    assert_eq!(mock.state.gpr[RAX], 0x1234);
    // push fs and pop es.
    let mock = run(Bits64, &[0x0f, 0xa0], &[(RSP, 0x3000)]);
    assert_eq!(mock.events, [Event::Write(0x2ff8, 8)]);
    let mut mock = with_gdt(cpu(Bits32, &[0x07], &[(RSP, 0x3000)]));
    mock.poke(0x3000, &[0x20, 0]);
    mock.step().expect("no fault");
    assert_eq!(mock.events[0], Event::Read(0x3000, 2, Access::Read));
    assert_eq!(mock.state.gpr[RSP], 0x3004);
    // pop ss: the stack that is left counts, here one of 16 bits.
    let mut mock = with_gdt(cpu(Bits32, &[0x17], &[(RSP, 0x1_fffe)]));
    mock.segments[SegReg::Ss as usize].attributes -= SegAttr::DB;
    mock.poke(0xfffe, &[0x10, 0]);
    mock.step().expect("a stack");
    assert_eq!(mock.state.gpr[RSP], 0x1_0002);
    assert!(mock.shadow);
}

#[test]
fn far_transfers() {
    // call [rbx] and ret far, in 32-bit code.
    let mut mock = with_gdt(cpu(Bits32, &[0xff, 0x1b], &[(RBX, 0x2000), (RSP, 0x3000)]));
    mock.poke(0x2000, &[0, 0x40, 0, 0, 8, 0]);
    mock.step().expect("no fault");
    assert_eq!(mock.events[0], Event::Read(0x2000, 6, Access::Read));
    assert_eq!(mock.events[4], Event::Write(0x2ffc, 4));
    assert_eq!(mock.events.last(), Some(&Event::Write(0x2ff8, 4)));
    assert_eq!((mock.state.rip, mock.state.gpr[RSP]), (0x4000, 0x2ff8));
    mock.poke(0x4000, &[0xca, 0x10, 0]);
    mock.step().expect("no fault");
    assert_eq!((mock.state.rip, mock.state.gpr[RSP]), (0x1002, 0x3010));
    // To user mode, with its stack; what level 0 alone may use is gone.
    let mut mock = with_gdt(cpu(Bits32, &[0xcb], &[(RSP, 0x3000)]));
    let frame: [u32; 4] = [0x5000, 0x1b, 0x8000, 0x23];
    mock.poke(0x3000, &frame.map(u32::to_le_bytes).concat());
    mock.step().expect("no fault");
    assert_eq!((mock.state.rip, mock.state.gpr[RSP]), (0x5000, 0x8000));
    assert_eq!(mock.cpl, 3);
    assert_eq!(mock.segments[SegReg::Ds as usize].selector, 0);
    // iret to the same level, and out.
    for (selector, count) in [(8_u32, 3), (0x1b, 5)] {
        let mut mock = with_gdt(cpu(Bits32, &[0xcf], &[(RSP, 0x3000)]));
        let frame: [u32; 5] = [0x5000, selector, 0x202, 0x8000, 0x23];
        mock.poke(0x3000, &frame.map(u32::to_le_bytes).concat());
        mock.step().expect("no fault");
        let reads = mock
            .events
            .iter()
            .filter(|e| matches!(e, Event::Read(_, 4, Access::Read)));
        assert_eq!(reads.count(), count);
        assert_eq!(mock.state.rflags.bits(), 0x202);
    }
    // The stack pointer has the width of the new stack, whatever that of the operands.
    let mut mock = with_gdt(cpu(Bits32, &[0x66, 0xcb], &[(RSP, 0x1_3000)]));
    let frame: [u16; 4] = [0x5000, 0x1b, 0x8000, 0x23];
    mock.poke(0x1_3000, &frame.map(u16::to_le_bytes).concat());
    mock.step().expect("no fault");
    assert_eq!((mock.state.rip, mock.state.gpr[RSP]), (0x5000, 0x8000));
    // IRET of 64-bit code always changes stacks; segments go only with the privilege level.
    let mut mock = with_gdt(cpu(Bits64, &[0x48, 0xcf], &[(RSP, 0x3000)]));
    mock.cpl = 3;
    let frame: [u64; 5] = [0x5000, 0x1b, 0x202, 0x8000, 0x23];
    mock.poke(0x3000, &frame.map(u64::to_le_bytes).concat());
    mock.step().expect("no fault");
    assert_eq!((mock.state.rip, mock.state.gpr[RSP]), (0x5000, 0x8000));
    assert_eq!(mock.segments[SegReg::Ds as usize].selector, 8);
    // A data segment, a null one, and a call gate's place.
    let jump = |selector: u16| {
        let mut code = vec![0xea, 0, 0x40, 0, 0];
        code.extend(selector.to_le_bytes());
        let mut mock = with_gdt(cpu(Bits32, &code, &[]));
        mock.step()
    };
    assert!(jump(8).is_ok());
    assert_eq!(jump(0x10), gp(0x10));
    assert_eq!(jump(0), gp(0));
    assert_eq!(jump(0x18), gp(0x18));
    assert_eq!(jump(0x30), Err(Stop::Unhandled));
}

#[test]
fn system_registers() {
    let mut mock = with_gdt(cpu(Bits64, &[0x0f, 0x01, 0x03], &[(RBX, 0x2000)]));
    mock.step().expect("no fault");
    assert_eq!(mock.events, [Event::Write(0x2000, 10)]);
    assert_eq!((mock.peek(0x2000, 2), mock.peek(0x2002, 8)), (0x3f, GDT));
    let mut mock = cpu(Bits32, &[0x0f, 0x01, 0x1b], &[(RBX, 0x2000)]);
    mock.poke(0x2000, &[0xff, 0x0f, 0x78, 0x56, 0x34, 0x12]);
    mock.step().expect("no fault");
    assert_eq!(mock.events, [Event::Read(0x2000, 6, Access::Read)]);
    assert_eq!((mock.idtr.limit, mock.idtr.base), (0xfff, 0x1234_5678));
    // str [rbx]: two bytes.
    let mut mock = cpu(Bits64, &[0x0f, 0x00, 0x0b], &[(RBX, 0x2000)]);
    mock.step().expect("no fault");
    assert_eq!(mock.events, [Event::Write(0x2000, 2)]);
    // ltr [rbx] makes the TSS busy; it must not be so already.
    let mut mock = with_gdt(cpu(Bits32, &[0x0f, 0x00, 0x1b], &[(RBX, 0x2000)]));
    mock.poke(0x2000, &[0x30, 0]);
    mock.step().expect("no fault");
    assert_eq!(mock.peek(GDT + 0x35, 1), 0x8b);
    let tr = mock.segments[SegReg::Tr as usize];
    assert_eq!((tr.base, tr.limit), (0x7100, 0x67));
    mock.state.rip = 0x1000;
    assert_eq!(mock.step(), gp(0x30));
    // lmsw [rbx].
    let mut mock = cpu(Bits32, &[0x0f, 0x01, 0x33], &[(RBX, 0x2000)]);
    mock.poke(0x2000, &[0x09, 0]);
    mock.step().expect("no fault");
    assert!(mock.cr0.contains(Cr0::TS));
    // In user mode.
    for code in [[0x0f, 0x01, 0x13], [0x0f, 0x00, 0x13], [0x0f, 0x01, 0x33]] {
        let mut mock = cpu(Bits32, &code, &[(RBX, 0x2000)]);
        mock.cpl = 3;
        assert_eq!(mock.step(), Err(GP), "{code:02x?}");
    }
    for code in [[0x0f, 0x01, 0x03], [0x0f, 0x00, 0x03]] {
        let mut mock = cpu(Bits32, &code, &[(RBX, 0x2000)]);
        mock.cpl = 3;
        mock.cr4 |= Cr4::UMIP;
        assert_eq!(mock.step(), Err(GP), "{code:02x?}");
    }
    let mut mock = cpu(Bits16, &[0x0f, 0x00, 0x07], &[(RBX, 0x2000)]);
    assert_eq!(mock.step(), Err(UD));
}

#[test]
fn branches() {
    let mock = cpu(Bits64, &[0xe2, 0x10], &[(RCX, 2)]);
    let after = |mut mock: Mock| {
        mock.step().expect("no fault");
        (mock.state.rip, mock.state.gpr[RCX])
    };
    assert_eq!(after(mock), (0x1012, 1));
    assert_eq!(after(cpu(Bits64, &[0xe2, 0x10], &[(RCX, 1)])), (0x1002, 0));
    assert_eq!(after(cpu(Bits64, &[0xe1, 0x10], &[(RCX, 2)])), (0x1002, 1));
    assert_eq!(
        after(cpu(Bits32, &[0x67, 0xe3, 0x10], &[(RCX, 0x10000)])),
        (0x1013, 0x10000)
    );
    assert_eq!(after(cpu(Bits64, &[0x75, 0xf0], &[])), (0x0ff2, 0));
    assert_eq!(after(cpu(Bits64, &[0x74, 0xfe], &[])), (0x1002, 0));
    assert_eq!(after(cpu(Bits16, &[0xe9, 0, 0x10], &[])), (0x2003, 0));
}

#[test]
fn interrupt_flag() {
    let mock = run(Bits64, &[0xfb], &[]);
    assert!(mock.shadow && mock.state.rflags.contains(Rflags::IF));
    let mut mock = cpu(Bits64, &[0xfb], &[]);
    mock.state.rflags |= Rflags::IF;
    mock.step().expect("no fault");
    assert!(!mock.shadow);
    mock = cpu(Bits64, &[0xfa], &[]);
    mock.cpl = 3;
    assert_eq!(mock.step(), Err(GP));
}

#[test]
fn what_the_guest_does_not_have_is_undefined() {
    let attempt = |code: &[u8], feature| {
        let mut mock = cpu(Bits64, code, &[(RBX, 0x2000)]);
        mock.features -= feature;
        mock.step().err()
    };
    let cases: [(&[u8], Feature); 25] = [
        // pextrb, pextrw, pextrd, extractps, pinsrb, insertps, pinsrd, movntdqa
        (&[0x66, 0x0f, 0x3a, 0x14, 0x03, 1], Feature::SSE41),
        (&[0x66, 0x0f, 0x3a, 0x15, 0x03, 1], Feature::SSE41),
        (&[0x66, 0x0f, 0x3a, 0x16, 0x03, 1], Feature::SSE41),
        (&[0x66, 0x0f, 0x3a, 0x17, 0x03, 1], Feature::SSE41),
        (&[0x66, 0x0f, 0x3a, 0x20, 0x03, 1], Feature::SSE41),
        (&[0x66, 0x0f, 0x3a, 0x21, 0x03, 1], Feature::SSE41),
        (&[0x66, 0x0f, 0x3a, 0x22, 0x03, 1], Feature::SSE41),
        (&[0x66, 0x0f, 0x38, 0x2a, 0x03], Feature::SSE41),
        // fxsave
        (&[0x0f, 0xae, 0x03], Feature::FXSR),
        // pinsrw, pextrw
        (&[0x66, 0x0f, 0xc4, 0x03, 1], Feature::SSE2),
        (&[0x66, 0x0f, 0xc5, 0xc3, 1], Feature::SSE2),
        // movsldup, movshdup, movddup, lddqu
        (&[0xf3, 0x0f, 0x12, 0x03], Feature::SSE3),
        (&[0xf3, 0x0f, 0x16, 0x03], Feature::SSE3),
        (&[0xf2, 0x0f, 0x12, 0x03], Feature::SSE3),
        (&[0xf2, 0x0f, 0xf0, 0x03], Feature::SSE3),
        // movntss, movntsd
        (&[0xf3, 0x0f, 0x2b, 0x03], Feature::SSE4A),
        (&[0xf2, 0x0f, 0x2b, 0x03], Feature::SSE4A),
        // vpextrb
        (&[0xc4, 0xe3, 0x79, 0x14, 0x03, 1], Feature::AVX),
        (&[0xf3, 0x0f, 0xb8, 0x03], Feature::POPCNT),
        (&[0x0f, 0x38, 0xf0, 0x03], Feature::MOVBE),
        (&[0xf2, 0x0f, 0x38, 0xf1, 0x03], Feature::SSE42),
        (&[0x66, 0x0f, 0x38, 0xf6, 0x03], Feature::ADX),
        (&[0xc4, 0xe2, 0x70, 0xf2, 0x03], Feature::BMI1),
        (&[0xc4, 0xe2, 0x71, 0xf7, 0x03], Feature::BMI2),
        (&[0xc4, 0xe3, 0x7b, 0xf0, 0x03, 5], Feature::BMI2),
    ];
    for (code, feature) in cases {
        assert_eq!(attempt(code, feature), Some(UD), "{code:02x?}");
        assert_eq!(attempt(code, Feature::empty()), None, "{code:02x?}");
    }
    // FXRSTOR, of an image that is none.
    assert_eq!(attempt(&[0x0f, 0xae, 0x0b], Feature::FXSR), Some(UD));
    // TZCNT of a CPU without it is BSF.
    let tzcnt = |features| {
        let mut mock = cpu(
            Bits64,
            &[0xf3, 0x0f, 0xbc, 0x03],
            &[(RBX, 0x2000), (RAX, 77)],
        );
        mock.features -= features;
        mock.poke(0x2000, &[0; 4]);
        mock.step().expect("no fault");
        mock.state.gpr[RAX]
    };
    assert_eq!((tzcnt(Feature::empty()), tzcnt(Feature::BMI1)), (32, 77));
}
