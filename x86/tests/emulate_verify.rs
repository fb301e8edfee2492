// SPDX-License-Identifier: GPL-2.0-only

//! The emulator's instructions on selectors, bounds and decimal numbers, and the interrupts of real
//! mode.

use emulate_mock::*;
use x86::cpu::Access;
use x86::cpu::Stop;
use x86::decode::CodeSize::*;
use x86::regs::vector;
use x86::regs::Exception;
use x86::regs::Rflags;
use x86::regs::SegReg;
use x86::regs::Segment;

mod emulate_mock;

const GDT: u64 = 0x6000;

/// Selectors, and the descriptors behind them.
const CODE0: u16 = 0x08;
const EXECUTE_ONLY: u16 = 0x10;
const CONFORMING: u16 = 0x18;
const DATA3: u16 = 0x20;
const READ_ONLY: u16 = 0x28;
const LDT: u16 = 0x30;
const TSS_16: u16 = 0x38;
const CALL_GATE: u16 = 0x40;
const INTERRUPT_GATE: u16 = 0x48;

fn with_gdt(mut mock: Mock) -> Mock {
    let gdt: [u64; 12] = [
        0,
        0x00cf_9b00_0000_ffff,
        0x00cf_9900_0000_ffff,
        0x00cf_9e00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x0040_f100_0000_1234,
        0x0000_8200_7000_00ff,
        0x0000_8100_7100_002b,
        0x0000_8c00_0008_0000,
        0x0000_8e00_0008_0000,
        0,
        0,
    ];
    for (index, descriptor) in gdt.iter().enumerate() {
        mock.poke(GDT + 8 * index as u64, &descriptor.to_le_bytes());
    }
    mock.gdtr.base = GDT;
    mock.gdtr.limit = 0x5f;
    *mock.segment_mut(SegReg::Ldtr) = Segment::default();
    mock
}

/// Executes an instruction with this selector in memory at EBX and these bits set in EAX; whether
/// it set ZF, and EAX.
fn look(code: &[u8], selector: u16, cpl: u8) -> (bool, u64) {
    let mut mock = with_gdt(cpu(Bits32, code, &[(RBX, 0x2000), (RAX, 77)]));
    mock.poke(0x2000, &selector.to_le_bytes());
    mock.cpl = cpl;
    mock.step().expect("no fault");
    assert_eq!(mock.events[0], Event::Read(0x2000, 2, Access::Read));
    (mock.state.rflags.contains(Rflags::ZF), mock.state.gpr[RAX])
}

#[test]
fn verr_and_verw() {
    let verr = |selector, cpl| look(&[0x0f, 0x00, 0x23], selector, cpl).0;
    let verw = |selector, cpl| look(&[0x0f, 0x00, 0x2b], selector, cpl).0;
    for (selector, readable, writable) in [
        (0, false, false),
        (3, false, false),
        (CODE0, true, false),
        (EXECUTE_ONLY, false, false),
        (CONFORMING, true, false),
        (DATA3, true, true),
        (READ_ONLY, true, false),
        (LDT, false, false),
        (CALL_GATE, false, false),
        (0x60, false, false),
        (DATA3 | 4, false, false),
    ] {
        assert_eq!(verr(selector, 0), readable, "{selector:x}");
        assert_eq!(verw(selector, 0), writable, "{selector:x}");
    }
    // Privilege of program and selector; conforming code is for all.
    assert!(!verr(CODE0 | 3, 0) && !verr(CODE0, 3));
    assert!(verr(CONFORMING | 3, 3) && verr(DATA3 | 3, 3) && verw(DATA3 | 3, 3));
}

#[test]
fn lar_and_lsl() {
    let lar = |selector, cpl| look(&[0x0f, 0x02, 0x03], selector, cpl);
    let lsl = |selector, cpl| look(&[0x0f, 0x03, 0x03], selector, cpl);
    for (selector, rights, limit) in [
        (0, None, None),
        (CODE0, Some(0xc0_9b00), Some(0xffff_ffff)),
        (READ_ONLY, Some(0x40_f100), Some(0x1234)),
        (LDT, Some(0x8200), Some(0xff)),
        (TSS_16, Some(0x8100), Some(0x2b)),
        (CALL_GATE, Some(0x8c00), None),
        (INTERRUPT_GATE, None, None),
        (0x60, None, None),
    ] {
        let expected = |value: Option<u64>| (value.is_some(), value.unwrap_or(77));
        assert_eq!(lar(selector, 0), expected(rights), "{selector:x}");
        assert_eq!(lsl(selector, 0), expected(limit), "{selector:x}");
    }
    assert_eq!(lar(CODE0, 3), (false, 77));
    // Two bytes of it.
    assert_eq!(look(&[0x66, 0x0f, 0x02, 0x03], CODE0, 0).1, 0x9b00);
    assert_eq!(look(&[0x66, 0x0f, 0x03, 0x03], CODE0, 0).1, 0xffff);
    // Long mode has no 16-bit TSS.
    let mut mock = with_gdt(cpu(Bits64, &[0x0f, 0x03, 0xc3], &[(RBX, 0x38)]));
    mock.step().expect("no fault");
    assert!(!mock.state.rflags.contains(Rflags::ZF));
    for code in [[0x0f, 0x02, 0x07], [0x0f, 0x03, 0x07], [0x0f, 0x00, 0x27]] {
        let mut mock = cpu(Bits16, &code, &[(RBX, 0x2000)]);
        assert_eq!(mock.step(), Err(UD));
    }
}

#[test]
fn arpl() {
    // arpl [ebx], cx
    let adjust = |old: u16, other: u64| {
        let mut mock = cpu(Bits32, &[0x63, 0x0b], &[(RBX, 0x2000), (RCX, other)]);
        mock.poke(0x2000, &old.to_le_bytes());
        mock.step().expect("no fault");
        let zero = mock.state.rflags.contains(Rflags::ZF);
        (zero, mock.peek(0x2000, 2), mock.events.len())
    };
    assert_eq!(adjust(0x1234, 0x1b), (true, 0x1237, 2));
    assert_eq!(adjust(0x1237, 0x18), (false, 0x1237, 1));
    let mut mock = cpu(Bits16, &[0x63, 0x0f], &[(RBX, 0x2000)]);
    assert_eq!(mock.step(), Err(UD));
}

#[test]
fn bound() {
    let check = |index: u64, code: &[u8]| {
        let mut mock = cpu(Bits32, code, &[(RBX, 0x2000), (RCX, index)]);
        let bounds = [0xfffe_u16, 5].map(u16::to_le_bytes).concat();
        mock.poke(0x2000, &bounds);
        mock.poke(0x3000, &[0xfe, 0xff, 0xff, 0xff, 5, 0, 0, 0]);
        mock.step().err()
    };
    let br = Some(Stop::Exception(Exception::new(vector::BR)));
    // bound cx, [ebx]; bound ecx, [ebx + 1000h]
    for (code, minus) in [
        (&[0x66, 0x62, 0x0b][..], 0xffff_u64),
        (&[0x62, 0x8b, 0, 0x10, 0, 0], 0xffff_ffff),
    ] {
        for (index, result) in [
            (5, None),
            (6, br),
            (0, None),
            (minus - 1, None),
            (minus - 2, br),
        ] {
            assert_eq!(check(index, code), result, "{index:x}");
        }
    }
}

/// AL and AH, CF and AF after an instruction on these.
fn adjust(opcode: u8, ax: u64, carry: bool, half: bool) -> (u64, bool, bool) {
    let mut mock = cpu(Bits32, &[opcode], &[(RAX, ax)]);
    mock.state.rflags.set(Rflags::CF, carry);
    mock.state.rflags.set(Rflags::AF, half);
    mock.step().expect("no fault");
    let flags = mock.state.rflags;
    (
        mock.state.gpr[RAX],
        flags.contains(Rflags::CF),
        flags.contains(Rflags::AF),
    )
}

/// Sums and differences of all pairs of decimal numbers.
#[test]
fn decimal_numbers() {
    let packed = |number: u64| number / 10 << 4 | number % 10;
    for a in 0..100_u64 {
        for b in 0..100_u64 {
            let (x, y) = (packed(a), packed(b));
            let half = (x & 15) + (y & 15) > 15;
            let (sum, carry, _) = adjust(0x27, (x + y) & 0xff, x + y > 0xff, half);
            assert_eq!((sum, carry), (packed((a + b) % 100), a + b > 99));
            let difference = x.wrapping_sub(y) & 0xff;
            let (left, borrow, _) = adjust(0x2f, difference, x < y, x & 15 < y & 15);
            assert_eq!((left, borrow), (packed((a + 100 - b) % 100), a < b));
        }
    }
    for a in 0..10_u64 {
        for b in 0..10_u64 {
            let (sum, carry, half) = adjust(0x37, 0x500 | (a + b), false, a + b > 15);
            let tens = (a + b) / 10;
            assert_eq!(sum, 0x500 + (tens << 8) + (a + b) % 10);
            assert_eq!((carry, half), (tens != 0, tens != 0));
            let difference = 0x500 | a.wrapping_sub(b) & 0xff;
            let (left, borrow, _) = adjust(0x3f, difference, a < b, a < b);
            let tens = u64::from(a < b);
            assert_eq!(left, 0x500 - (tens << 8) + (a + 10 - b) % 10);
            assert_eq!(borrow, a < b);
        }
    }
    // SALC
    assert_eq!(adjust(0xd6, 0x1234, true, false).0, 0x12ff);
    assert_eq!(adjust(0xd6, 0x1234, false, false).0, 0x1200);
}

#[test]
fn interrupts_of_real_mode() {
    let interrupt = |code: &[u8], flags: Rflags, limit: u32| {
        let mut mock = cpu(Bits16, code, &[(RSP, 0x3000)]);
        mock.state.rflags |= flags;
        mock.idtr.limit = limit;
        mock.poke(4 * 0x21, &[0x34, 0x12, 0x00, 0xf0]);
        mock.poke(4 * 3, &[0x78, 0x56, 0x00, 0xe0]);
        mock.poke(4 * 4, &[0x9a, 0x00, 0x00, 0xd0]);
        let result = mock.step().err();
        (result, mock)
    };
    let flags = Rflags::IF | Rflags::TF | Rflags::CF | Rflags::OF;
    let (result, mock) = interrupt(&[0xcd, 0x21], flags, 0x3ff);
    assert_eq!(result, None);
    let places = [0x2ffe, 0x2ffc, 0x2ffa];
    let mut events = vec![Event::Read(0x84, 4, Access::SystemRead)];
    events.extend(places.map(|at| Event::Probe(at, 2)));
    events.extend(places.map(|at| Event::Write(at, 2)));
    assert_eq!(mock.events, events);
    assert_eq!(mock.peek(0x2ffe, 2), (flags | Rflags::RESERVED1).bits());
    assert_eq!((mock.peek(0x2ffc, 2), mock.peek(0x2ffa, 2)), (8, 0x1002));
    assert_eq!((mock.state.rip, mock.state.gpr[RSP]), (0x1234, 0x2ffa));
    assert_eq!(mock.segments[SegReg::Cs as usize].base, 0xf_0000);
    let kept = Rflags::CF | Rflags::OF | Rflags::RESERVED1;
    assert_eq!(mock.state.rflags, kept);
    assert_eq!(interrupt(&[0xcc], flags, 0x3ff).1.state.rip, 0x5678);
    assert_eq!(interrupt(&[0xce], flags, 0x3ff).1.state.rip, 0x9a);
    let without = interrupt(&[0xce], Rflags::CF, 0x3ff).1;
    assert_eq!((without.state.rip, without.events.len()), (0x1001, 0));
    assert_eq!(interrupt(&[0xcd, 0x21], flags, 0x86).0, Some(GP));
    // Through gates the CPU must go.
    for mode in [Bits32, Bits64] {
        let mut mock = cpu(mode, &[0xcd, 0x21], &[(RSP, 0x3000)]);
        assert_eq!(mock.step(), Err(Stop::Unhandled));
    }
}
