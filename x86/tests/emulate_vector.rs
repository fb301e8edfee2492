// SPDX-License-Identifier: GPL-2.0-only

//! The emulator's SSE, AVX and MMX moves, and the x87 instructions without numbers.

use emulate_mock::*;
use x86::cpu::ExtendedState;
use x86::cpu::Stop;
use x86::cpu::X87;
use x86::decode::CodeSize::*;
use x86::features::Feature;
use x86::regs::vector;
use x86::regs::Cr0;
use x86::regs::Cr4;
use x86::regs::Efer;
use x86::regs::Exception;

mod emulate_mock;

#[test]
fn vector_moves() {
    let value = 0x0123_4567_89ab_cdef_0011_2233_4455_6677u128;
    let store = |code: &[u8], size: usize| {
        let mut mock = cpu(Bits64, code, &[(RBX, 0x2000)]);
        mock.state.ymm[1] = [value, 0];
        mock.step().expect("no fault");
        assert_eq!(mock.events, [Event::Write(0x2000, size)], "{code:02x?}");
        mock.peek(0x2000, size.min(8))
    };
    let low = value as u64;
    assert_eq!(store(&[0x0f, 0x29, 0x0b], 16), low);
    assert_eq!(store(&[0x0f, 0x2b, 0x0b], 16), low);
    assert_eq!(store(&[0x66, 0x0f, 0xe7, 0x0b], 16), low);
    assert_eq!(store(&[0xf3, 0x0f, 0x7f, 0x0b], 16), low);
    assert_eq!(store(&[0x66, 0x0f, 0xd6, 0x0b], 8), low);
    assert_eq!(store(&[0x66, 0x0f, 0x7e, 0x0b], 4), low & 0xffff_ffff);
    assert_eq!(store(&[0x66, 0x48, 0x0f, 0x7e, 0x0b], 8), low);
    assert_eq!(store(&[0x0f, 0x17, 0x0b], 8), (value >> 64) as u64);
    let load = |code: &[u8]| {
        let mut mock = cpu(Bits64, code, &[(RBX, 0x2000)]);
        mock.poke(0x2000, &value.to_le_bytes());
        mock.state.ymm[1] = [u128::MAX; 2];
        mock.step().expect("no fault");
        assert_eq!(mock.state.ymm[1][1], u128::MAX);
        mock.state.ymm[1][0]
    };
    assert_eq!(load(&[0x66, 0x0f, 0x6f, 0x0b]), value);
    assert_eq!(load(&[0xf3, 0x0f, 0x10, 0x0b]), value & 0xffff_ffff);
    assert_eq!(load(&[0xf3, 0x0f, 0x7e, 0x0b]), u128::from(low));
    assert_eq!(
        load(&[0x0f, 0x16, 0x0b]),
        u128::from(low) << 64 | u128::from(u64::MAX)
    );
}

#[test]
fn vector_moves_that_fault() {
    let attempt = |code: &[u8], address, cr0, cr4| {
        let mut mock = cpu(Bits64, code, &[(RBX, address)]);
        mock.cr0 |= cr0;
        mock.cr4 = cr4;
        mock.step().err()
    };
    let (none, sse) = (Cr0::empty(), Cr4::OSFXSR);
    assert_eq!(attempt(&[0x0f, 0x28, 0x03], 0x2008, none, sse), Some(GP));
    assert_eq!(attempt(&[0x0f, 0x10, 0x03], 0x2008, none, sse), None);
    assert_eq!(attempt(&[0x0f, 0x10, 0x03], 0x2008, Cr0::EM, sse), Some(UD));
    assert_eq!(attempt(&[0x0f, 0x10, 0x03], 0x2008, Cr0::TS, sse), Some(NM));
    let without = Cr4::empty();
    assert_eq!(
        attempt(&[0x0f, 0x10, 0x03], 0x2008, none, without),
        Some(UD)
    );
}

const YMM: [u128; 2] = [
    0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100,
    0x1f1e_1d1c_1b1a_1918_1716_1514_1312_1110,
];

fn put(mock: &mut Mock, linear: u64, value: [u128; 2]) {
    mock.poke(linear, &value[0].to_le_bytes());
    mock.poke(linear + 16, &value[1].to_le_bytes());
}

/// A 32-byte access is one, and a VEX instruction leaves nothing of the register's old value.
#[test]
fn avx_moves() {
    let load = |code: &[u8], size: usize| {
        let mut mock = cpu(Bits64, code, &[(RDI, 0x2000)]);
        put(&mut mock, 0x2000, YMM);
        mock.state.ymm = [[u128::MAX; 2]; 16];
        mock.step().expect("no fault");
        let read = Event::Read(0x2000, size, x86::cpu::Access::Read);
        assert_eq!(mock.events, [read], "{code:02x?}");
        mock.state.ymm[0]
    };
    let [low, _] = YMM;
    let low64 = low & u128::from(u64::MAX);
    let low32 = low & u128::from(u32::MAX);
    // vmovdqu, vmovntdqa, vlddqu, vmovaps; then with 128 bits.
    assert_eq!(load(&[0xc5, 0xfe, 0x6f, 0x07], 32), YMM);
    assert_eq!(load(&[0xc4, 0xe2, 0x7d, 0x2a, 0x07], 32), YMM);
    assert_eq!(load(&[0xc5, 0xff, 0xf0, 0x07], 32), YMM);
    assert_eq!(load(&[0xc5, 0xfc, 0x28, 0x07], 32), YMM);
    assert_eq!(load(&[0xc5, 0xf9, 0x6f, 0x07], 16), [low, 0]);
    assert_eq!(load(&[0xc4, 0xe1, 0x79, 0x6f, 0x07], 16), [low, 0]);
    // vmovd, vmovq, vmovss, vmovsd.
    assert_eq!(load(&[0xc5, 0xf9, 0x6e, 0x07], 4), [low32, 0]);
    assert_eq!(load(&[0xc4, 0xe1, 0xf9, 0x6e, 0x07], 8), [low64, 0]);
    assert_eq!(load(&[0xc5, 0xfa, 0x7e, 0x07], 8), [low64, 0]);
    assert_eq!(load(&[0xc5, 0xfa, 0x10, 0x07], 4), [low32, 0]);
    assert_eq!(load(&[0xc5, 0xfb, 0x10, 0x07], 8), [low64, 0]);
    // vmovlps and vmovhpd xmm0, xmm3, [rdi].
    let ones = u128::MAX << 64;
    assert_eq!(load(&[0xc5, 0xe0, 0x12, 0x07], 8), [ones | low64, 0]);
    assert_eq!(
        load(&[0xc5, 0xe1, 0x16, 0x07], 8),
        [low64 << 64 | ones >> 64, 0]
    );
    // vbroadcastss, vpbroadcastb, vbroadcastf128.
    let four = u128::from_le_bytes([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]);
    assert_eq!(load(&[0xc4, 0xe2, 0x7d, 0x18, 0x07], 4), [four; 2]);
    assert_eq!(load(&[0xc4, 0xe2, 0x79, 0x78, 0x07], 1), [0, 0]);
    assert_eq!(load(&[0xc4, 0xe2, 0x7d, 0x1a, 0x07], 16), [low; 2]);
    // A legacy instruction leaves the upper half alone.
    assert_eq!(load(&[0x66, 0x0f, 0x6f, 0x07], 16), [low, u128::MAX]);
}

#[test]
fn avx_stores() {
    let store = |code: &[u8], size: usize| {
        let mut mock = cpu(Bits64, code, &[(RDI, 0x2000)]);
        mock.state.ymm[0] = YMM;
        mock.step().expect("no fault");
        assert_eq!(mock.events, [Event::Write(0x2000, size)], "{code:02x?}");
        assert_eq!(mock.peek(0x2000, 8), YMM[0] as u64);
        if size == 32 {
            assert_eq!(mock.peek(0x2018, 8), (YMM[1] >> 64) as u64);
        }
    };
    store(&[0xc5, 0xfe, 0x7f, 0x07], 32);
    store(&[0xc5, 0xfc, 0x29, 0x07], 32);
    store(&[0xc5, 0xfc, 0x11, 0x07], 32);
    store(&[0xc5, 0xfd, 0xe7, 0x07], 32);
    store(&[0xc5, 0xfc, 0x2b, 0x07], 32);
    store(&[0xc5, 0xf9, 0x7f, 0x07], 16);
    store(&[0xc5, 0xf9, 0xd6, 0x07], 8);
}

#[test]
fn avx_moves_that_fault() {
    let attempt = |code: &[u8], change: fn(&mut Mock)| {
        let mut mock = cpu(Bits64, code, &[(RDI, 0x2000)]);
        change(&mut mock);
        mock.step().err()
    };
    let load = [0xc5, 0xfd, 0x6f, 0x07];
    assert_eq!(attempt(&load, |_| {}), None);
    // vmovdqa ymm0, [rdi + 1], and with an address that suits 16 bytes only.
    assert_eq!(attempt(&[0xc5, 0xfd, 0x6f, 0x47, 0x01], |_| {}), Some(GP));
    assert_eq!(
        attempt(&load, |mock| mock.state.gpr[RDI] = 0x2010),
        Some(GP)
    );
    assert_eq!(attempt(&[0xc5, 0xfe, 0x6f, 0x47, 0x01], |_| {}), None);
    // vmovsldup and vmovshdup take any address; their legacy forms do not.
    assert_eq!(attempt(&[0xc5, 0xfe, 0x12, 0x47, 0x01], |_| {}), None);
    assert_eq!(attempt(&[0xc5, 0xfe, 0x16, 0x47, 0x01], |_| {}), None);
    assert_eq!(attempt(&[0xf3, 0x0f, 0x12, 0x47, 0x01], |_| {}), Some(GP));
    assert_eq!(attempt(&[0xf3, 0x0f, 0x16, 0x47, 0x01], |_| {}), Some(GP));
    assert_eq!(attempt(&load, |mock| mock.cr4 -= Cr4::OSXSAVE), Some(UD));
    assert_eq!(attempt(&load, |mock| mock.xcr0 = 3), Some(UD));
    assert_eq!(
        attempt(&load, |mock| mock.features -= Feature::AVX),
        Some(UD)
    );
    assert_eq!(attempt(&load, |mock| mock.cr0 |= Cr0::TS), Some(NM));
    // CR0.EM is for what came before.
    assert_eq!(attempt(&load, |mock| mock.cr0 |= Cr0::EM), None);
    let no_avx2 = |mock: &mut Mock| mock.features -= Feature::AVX2;
    assert_eq!(attempt(&[0xc4, 0xe2, 0x7d, 0x2a, 0x07], no_avx2), Some(UD));
    assert_eq!(attempt(&[0xc4, 0xe2, 0x79, 0x2a, 0x07], no_avx2), None);
    // vvvv and VEX.L must be free where they mean nothing.
    assert_eq!(attempt(&[0xc5, 0xf5, 0x6f, 0x07], |_| {}), Some(UD));
    assert_eq!(attempt(&[0xc5, 0xfd, 0xd6, 0x07], |_| {}), Some(UD));
    // VEX in real mode.
    let mut mock = cpu(Bits16, &[0xc5, 0xf9, 0x6f, 0x05], &[(RDI, 0x2000)]);
    mock.cr0 = Cr0::empty();
    assert_eq!(mock.step(), Err(UD));
}

#[test]
fn mmx_moves() {
    let mut mock = cpu(Bits64, &[0x0f, 0x6f, 0x0f], &[(RDI, 0x2000)]);
    mock.poke(0x2000, &0x1122_3344_5566_7788_u64.to_le_bytes());
    // The top of the stack is 3, and nothing is in it but ST(0).
    mock.set_x87(X87 {
        status: 3 << 11 | 0x4700,
        tags: 1 << 3,
        ..mock.clone().x87()
    });
    mock.step().expect("no fault");
    assert_eq!(mock.mmx(1), 0x1122_3344_5566_7788);
    let x87 = mock.x87();
    assert_eq!((x87.status, x87.tags), (0x4700, 0xff));
    // Sign and exponent are ones.
    assert_eq!(mock.state.x87[32 + 16 + 8..][..2], [0xff; 2]);
    // movntq, movd, movq with REX.W; movd clears the upper half.
    for (code, size) in [
        (&[0x0f, 0xe7, 0x0f][..], 8),
        (&[0x0f, 0x7f, 0x0f], 8),
        (&[0x0f, 0x7e, 0x0f], 4),
        (&[0x48, 0x0f, 0x7e, 0x0f], 8),
    ] {
        let mut mock = cpu(Bits64, code, &[(RDI, 0x3000)]);
        mock.use_mmx(Some((1, 0x1122_3344_5566_7788)));
        mock.step().expect("no fault");
        assert_eq!(mock.events, [Event::Write(0x3000, size)], "{code:02x?}");
        assert_eq!(mock.peek(0x3000, 4), 0x5566_7788);
    }
    let mock = run(Bits32, &[0x0f, 0x6e, 0x07], &[(RDI, 0x2000)]);
    assert_eq!(mock.clone().mmx(0), mock.peek(0x2000, 4));
}

#[test]
fn mmx_moves_that_fault() {
    let attempt = |change: fn(&mut Mock)| {
        let mut mock = cpu(Bits64, &[0x0f, 0x6f, 0x07], &[(RDI, 0x2000)]);
        change(&mut mock);
        mock.step().err()
    };
    assert_eq!(attempt(|mock| mock.cr4 = Cr4::empty()), None);
    assert_eq!(attempt(|mock| mock.cr0 |= Cr0::EM | Cr0::TS), Some(UD));
    assert_eq!(attempt(|mock| mock.cr0 |= Cr0::TS), Some(NM));
    let pending = |mock: &mut Mock| {
        let x87 = mock.x87();
        mock.set_x87(X87 {
            status: 0x8081,
            ..x87
        });
    };
    let mf = Stop::Exception(Exception::new(vector::MF));
    assert_eq!(attempt(pending), Some(mf));
}

#[test]
fn x87_control_and_status() {
    // fnstcw [rdi], fnstsw [rdi], fnstsw ax, fninit.
    let mut mock = cpu(Bits64, &[0xd9, 0x3f], &[(RDI, 0x2000)]);
    mock.step().expect("no fault");
    assert_eq!(mock.events, [Event::Write(0x2000, 2)]);
    assert_eq!(mock.peek(0x2000, 2), 0x37f);
    let mut mock = cpu(Bits64, &[0xdd, 0x3f], &[(RDI, 0x2000)]);
    mock.set_x87(X87 {
        status: 0xb8ff,
        ..X87::default()
    });
    mock.step().expect("no fault");
    assert_eq!(mock.peek(0x2000, 2), 0xb8ff);
    let mock = run(Bits64, &[0xdf, 0xe0], &[(RAX, !0)]);
    assert_eq!(mock.state.gpr[RAX], 0xffff_ffff_ffff_0000);
    let mut mock = run(Bits64, &[0xdb, 0xe3], &[]);
    assert_eq!(mock.x87().control, 0x37f);
    // fldcw that unmasks a pending exception.
    let mut mock = cpu(Bits64, &[0xd9, 0x2f], &[(RDI, 0x2000)]);
    mock.poke(0x2000, &[0xff, 0xff]);
    mock.step().expect("no fault");
    assert_eq!(mock.x87().control, 0x1f7f);
    let mut mock = cpu(Bits64, &[0xd9, 0x3f], &[(RDI, 0x2000)]);
    mock.cr0 |= Cr0::EM;
    assert_eq!(mock.step(), Err(NM));
}

#[test]
fn mxcsr() {
    let mut mock = cpu(Bits64, &[0x0f, 0xae, 0x1f], &[(RDI, 0x2000)]);
    mock.step().expect("no fault");
    assert_eq!(mock.events, [Event::Write(0x2000, 4)]);
    assert_eq!(mock.peek(0x2000, 4), 0x1f80);
    let load = |value: u32| {
        let mut mock = cpu(Bits64, &[0xc5, 0xf8, 0xae, 0x17], &[(RDI, 0x2000)]);
        mock.poke(0x2000, &value.to_le_bytes());
        mock.step().map(|_| mock.mxcsr())
    };
    assert_eq!(load(0x9fc0), Ok(0x9fc0));
    assert_eq!(load(0x1_0000), Err(GP));
}

/// FXSAVE and FXRSTOR in pieces of 16 bytes; what is saved depends on the mode.
#[test]
fn fxsave_and_fxrstor() {
    let saved = |mode, code: &[u8], change: fn(&mut Mock)| {
        let mut mock = cpu(mode, code, &[(RDI, 0x2000)]);
        mock.state.ymm[0][0] = 0x77;
        change(&mut mock);
        let result = mock.step();
        let written = |event: &&Event| matches!(event, Event::Write(..));
        let count = mock.events.iter().filter(written).count();
        (result.err(), 16 * count, mock)
    };
    let (_, size, mock) = saved(Bits64, &[0x0f, 0xae, 0x07], |_| {});
    assert_eq!((size, mock.events[0]), (416, Event::Probe(0x2000, 16)));
    assert_eq!(mock.peek(0x2000, 2), 0x37f);
    assert_eq!(mock.peek(0x2018, 8), 0xffff_0000_1f80);
    assert_eq!(mock.peek(0x20a0, 8), 0x77);
    // Without the upper registers; without any.
    assert_eq!(saved(Bits32, &[0x0f, 0xae, 0x07], |_| {}).1, 288);
    assert_eq!(saved(Bits16, &[0x0f, 0xae, 0x05], |_| {}).1, 288);
    let fast = |mock: &mut Mock| mock.efer |= Efer::FFXSR;
    assert_eq!(saved(Bits64, &[0x0f, 0xae, 0x07], fast).1, 160);
    let slow = |mock: &mut Mock| (mock.efer, mock.cpl) = (mock.efer | Efer::FFXSR, 3);
    assert_eq!(saved(Bits64, &[0x0f, 0xae, 0x07], slow).1, 416);
    // Without CR4.OSFXSR no XMM register, but MXCSR, as by kvm_amd.
    let none = |mock: &mut Mock| mock.cr4 = Cr4::empty();
    let (_, size, mock) = saved(Bits64, &[0x0f, 0xae, 0x07], none);
    assert_eq!((size, mock.peek(0x2018, 8)), (160, 0xffff_0000_1f80));
    let mut mock = cpu(Bits64, &[0x0f, 0xae, 0x0f], &[(RDI, 0x2000)]);
    mock.cr4 = Cr4::empty();
    mock.poke(0x2018, &0x9fc0_u32.to_le_bytes());
    mock.state.ymm[0][0] = 0x77;
    mock.step().expect("no fault");
    assert_eq!((mock.mxcsr(), mock.state.ymm[0][0]), (0x9fc0, 0x77));
    // Over a page boundary both pages are probed before the first write.
    let (_, _, mock) = saved(Bits64, &[0x0f, 0xae, 0x87, 0xf0, 0x0f, 0, 0], |_| {});
    let probes = (0..26).map(|piece| Event::Probe(0x2ff0 + 16 * piece, 16));
    assert_eq!(mock.events[..26], probes.collect::<Vec<_>>());

    for operation in [0x07, 0x0f] {
        let code = [0x0f, 0xae, operation];
        let ts = |mock: &mut Mock| (mock.cr0, mock.state.gpr[RDI]) = (mock.cr0 | Cr0::TS, 1);
        assert_eq!(saved(Bits64, &code, ts).0, Some(NM));
        let em = |mock: &mut Mock| mock.cr0 |= Cr0::EM;
        assert_eq!(saved(Bits64, &code, em).0, Some(NM));
        let odd = |mock: &mut Mock| mock.state.gpr[RDI] = 0x2008;
        assert_eq!(saved(Bits64, &code, odd).0, Some(GP));
    }

    let code = [0x66, 0x0f, 0xae, 0x07];
    assert_eq!(saved(Bits64, &code, |_| {}).0, Some(UD));

    let restored = |mxcsr: u32| {
        let mut mock = cpu(Bits64, &[0x0f, 0xae, 0x0f], &[(RDI, 0x2000)]);
        mock.poke(0x2000, &0x27f_u16.to_le_bytes());
        mock.poke(0x2018, &mxcsr.to_le_bytes());
        let result = mock.step().err();
        (result, mock)
    };
    let (result, mut mock) = restored(0x9fc0);
    assert_eq!((result, mock.events.len()), (None, 26));
    assert_eq!((mock.x87().control, mock.mxcsr()), (0x27f, 0x9fc0));
    let last = u128::from(mock.peek(0x2198, 8)) << 64 | u128::from(mock.peek(0x2190, 8));
    assert_eq!(mock.state.ymm[15][0], last);
    let (result, mut mock) = restored(0x1_0000);
    assert_eq!((result, mock.x87().control), (Some(GP), 0x37f));
    // A legacy form keeps the upper registers.
    let mut mock = cpu(Bits32, &[0x0f, 0xae, 0x0f], &[(RDI, 0x2000)]);
    mock.poke(0x2018, &0x1f80_u32.to_le_bytes());
    mock.state.ymm[8][0] = 5;
    mock.step().expect("no fault");
    assert_eq!((mock.state.ymm[8][0], mock.events.len()), (5, 18));
}
