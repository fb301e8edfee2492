// SPDX-License-Identifier: GPL-2.0-only

//! The decoder on chosen instructions.

use x86::decode::decode;
use x86::decode::CodeSize;
use x86::decode::CodeSize::Bits16;
use x86::decode::CodeSize::Bits32;
use x86::decode::CodeSize::Bits64;
use x86::decode::CrAccess;
use x86::decode::DecodeError;
use x86::decode::Insn;
use x86::decode::Map;
use x86::decode::Prefixes;
use x86::regs::gpr;
use x86::regs::SegReg;

fn insn(bytes: &[u8], mode: CodeSize) -> Insn {
    let insn = decode(bytes, mode).expect("a known instruction");
    assert_eq!(usize::from(insn.length), bytes.len(), "{insn:?}");
    insn
}

/// The instructions that the CPU intercepts without telling their length.
#[test]
fn lengths_of_intercepted_instructions() {
    let instructions: &[(&str, &[u8])] = &[
        ("CPUID", &[0x0f, 0xa2]),
        ("HLT", &[0xf4]),
        ("RDMSR", &[0x0f, 0x32]),
        ("WRMSR", &[0x0f, 0x30]),
        ("RDTSC", &[0x0f, 0x31]),
        ("RDPMC", &[0x0f, 0x33]),
        ("RDTSCP", &[0x0f, 0x01, 0xf9]),
        ("VMMCALL", &[0x0f, 0x01, 0xd9]),
        ("VMRUN", &[0x0f, 0x01, 0xd8]),
        ("STGI", &[0x0f, 0x01, 0xdc]),
        ("INVLPGA", &[0x0f, 0x01, 0xdf]),
        ("XSETBV", &[0x0f, 0x01, 0xd1]),
        ("WBINVD", &[0x0f, 0x09]),
        ("WBNOINVD", &[0xf3, 0x0f, 0x09]),
        ("INVD", &[0x0f, 0x08]),
        ("PAUSE", &[0xf3, 0x90]),
        ("MONITOR", &[0x0f, 0x01, 0xc8]),
        ("MWAIT", &[0x0f, 0x01, 0xc9]),
        ("CLTS", &[0x0f, 0x06]),
        ("RSM", &[0x0f, 0xaa]),
        ("LMSW AX", &[0x0f, 0x01, 0xf0]),
        ("INT 80", &[0xcd, 0x80]),
        ("INT3", &[0xcc]),
        ("ICEBP", &[0xf1]),
        ("IRET", &[0xcf]),
        ("PUSHF", &[0x9c]),
        ("IN AL, 60", &[0xe4, 0x60]),
        ("OUT DX, EAX", &[0xef]),
        ("INVPCID", &[0x66, 0x0f, 0x38, 0x82, 0x00]),
        ("RDPRU", &[0x0f, 0x01, 0xfd]),
    ];
    for (name, bytes) in instructions {
        for mode in [Bits32, Bits64] {
            println!("{name} {mode:?}");
            insn(bytes, mode);
            let mut prefixed = [0x2e, 0x36, 0x65].to_vec();
            prefixed.extend_from_slice(bytes);
            insn(&prefixed, mode);
        }
    }
}

#[test]
fn fifteen_bytes_are_the_most() {
    let mut bytes = [0x66; 16];
    bytes[14] = 0x90;
    assert_eq!(insn(&bytes[..15], Bits64).length, 15);
    bytes[14] = 0x66;
    bytes[15] = 0x90;
    assert_eq!(decode(&bytes, Bits64), Err(DecodeError::TooLong));
    assert_eq!(decode(&bytes[..15], Bits64), Err(DecodeError::TooLong));
    assert_eq!(
        decode(&bytes[..14], Bits64),
        Err(DecodeError::NeedMoreBytes)
    );
    assert_eq!(decode(&[], Bits16), Err(DecodeError::NeedMoreBytes));
}

#[test]
fn only_the_last_rex_counts() {
    assert_eq!(insn(&[0x48, 0x89, 0xc3], Bits64).operand_size, 8);
    assert_eq!(insn(&[0x48, 0x66, 0x89, 0xc3], Bits64).operand_size, 2);
    assert_eq!(insn(&[0x4f, 0x40, 0x89, 0xc3], Bits64).reg, gpr::RAX);
    assert_eq!(insn(&[0x66, 0x48, 0x89, 0xc3], Bits64).operand_size, 8);
}

#[test]
fn of_rep_and_repne_the_last_counts() {
    assert!(insn(&[0xf2, 0xf3, 0xa6], Bits32).has(Prefixes::REP));
    assert!(!insn(&[0xf2, 0xf3, 0xa6], Bits32).has(Prefixes::REPNE));
    assert!(insn(&[0xf3, 0xf2, 0xa6], Bits32).has(Prefixes::REPNE));
}

#[test]
fn flat_segments_are_not_overridden_in_64_bit_mode() {
    let mem = |bytes, mode| insn(bytes, mode).mem.expect("a memory operand");
    assert_eq!(mem(&[0x2e, 0x8b, 0x00], Bits64).segment, SegReg::Ds);
    assert_eq!(mem(&[0x64, 0x2e, 0x8b, 0x00], Bits64).segment, SegReg::Fs);
    assert_eq!(mem(&[0x64, 0x2e, 0x8b, 0x00], Bits32).segment, SegReg::Cs);
    assert_eq!(mem(&[0x3e, 0x8b, 0x45, 0x00], Bits64).segment, SegReg::Ss);
    assert_eq!(mem(&[0x41, 0x8b, 0x45, 0x00], Bits64).segment, SegReg::Ds);
}

#[test]
fn control_and_debug_register_moves() {
    let access = |register, gpr, write| {
        Some(CrAccess {
            register,
            gpr,
            write,
        })
    };
    let cr = |bytes, mode| insn(bytes, mode).mov_cr_operand();
    assert_eq!(cr(&[0x0f, 0x20, 0xd8], Bits32), access(3, gpr::RAX, false));
    assert_eq!(cr(&[0x0f, 0x22, 0xe1], Bits64), access(4, gpr::RCX, true));
    assert_eq!(cr(&[0x45, 0x0f, 0x22, 0xc7], Bits64), access(8, 15, true));
    assert_eq!(cr(&[0xf0, 0x0f, 0x20, 0xc0], Bits32), access(8, 0, false));
    // ModRM.mod does not make it a memory operand.
    assert_eq!(cr(&[0x0f, 0x20, 0x05], Bits64), access(0, gpr::RBP, false));
    let dr = insn(&[0x0f, 0x23, 0xfb], Bits64).mov_dr_operand();
    assert_eq!(dr, access(7, gpr::RBX, true));
    assert_eq!(insn(&[0x0f, 0x23, 0xfb], Bits64).mov_cr_operand(), None);
    assert_eq!(insn(&[0x89, 0xc0], Bits64).mov_cr_operand(), None);
    assert_eq!(insn(&[0x66, 0x0f, 0x20, 0xd8], Bits64).operand_size, 8);
}

#[test]
fn kinds_of_system_instructions() {
    assert!(insn(&[0x0f, 0x06], Bits16).is_clts());
    assert!(insn(&[0x0f, 0x01, 0xf2], Bits16).is_lmsw());
    assert!(insn(&[0x0f, 0x01, 0x20], Bits64).is_smsw());
    assert!(insn(&[0x0f, 0x01, 0x38], Bits64).is_invlpg());
    assert!(!insn(&[0x0f, 0x01, 0xf8], Bits64).is_invlpg());
    assert!(insn(&[0xf3, 0x6c], Bits64).is_string_io());
    assert_eq!(insn(&[0xcd, 0x80], Bits32).software_interrupt(), Some(0x80));
    assert_eq!(insn(&[0xcc], Bits32).software_interrupt(), Some(3));
    assert_eq!(insn(&[0xce], Bits32).software_interrupt(), Some(4));
    assert_eq!(insn(&[0xf1], Bits32).software_interrupt(), None);
}

#[test]
fn vector_encodings() {
    for bytes in [
        &[0xc5, 0xf8, 0x28, 0xc1][..],
        &[0xc4, 0xe1, 0x78, 0x28, 0xc1],
    ] {
        for mode in [Bits16, Bits32, Bits64] {
            assert!(insn(bytes, mode).is(Map::TwoByte, 0x28));
        }
    }
    // A mandatory prefix, LOCK or REX before it, and a map that is not there.
    for prefix in [0x66, 0xf2, 0xf3, 0xf0, 0x48] {
        let bytes = [prefix, 0xc5, 0xf8, 0x28, 0xc1];
        assert_eq!(decode(&bytes, Bits64), Err(DecodeError::Unknown));
    }
    let map4 = [0xc4, 0xe4, 0x78, 0x28, 0xc1];
    assert_eq!(decode(&map4, Bits64), Err(DecodeError::Unknown));
    let evex = [0x62, 0xf1, 0x7c, 0x48, 0x28, 0xc1];
    assert_eq!(decode(&evex, Bits64), Err(DecodeError::Unknown));
    let xop = [0x8f, 0xe8, 0x78, 0xa2, 0, 0, 0, 0];
    assert_eq!(decode(&xop, Bits64), Err(DecodeError::Unknown));
    assert_eq!(decode(&[0x0e], Bits64), Err(DecodeError::Unknown));
    assert!(insn(&[0xc5, 0x00], Bits32).is(Map::OneByte, 0xc5));
}

#[test]
fn instruction_pointer_wraps() {
    let nop = |mode| insn(&[0x90], mode);
    assert_eq!(nop(Bits16).next_rip(0xffff), 0x1_0000);
    assert_eq!(nop(Bits16).next_rip(0xffff_ffff), 0);
    assert_eq!(nop(Bits32).next_rip(0xffff_ffff), 0);
    assert_eq!(nop(Bits64).next_rip(0xffff_ffff), 0x1_0000_0000);
}
