// SPDX-License-Identifier: GPL-2.0-only

//! The decoder against iced-x86, over random bytes in the three kinds of code.

use iced_x86::Code;
use iced_x86::CpuidFeature;
use iced_x86::Decoder;
use iced_x86::DecoderOptions;
use iced_x86::EncodingKind;
use iced_x86::Instruction;
use iced_x86::Mnemonic;
use iced_x86::OpKind;
use iced_x86::Register;
use std::collections::BTreeMap;
use std::collections::HashSet;
use x86::decode::decode;
use x86::decode::CodeSize;
use x86::decode::DecodeError;
use x86::decode::Insn;
use x86::decode::Map;
use x86::decode::Prefixes;
use x86::regs::SegReg;

const CASES: u64 = 200_000;

/// Xorshift with a multiplication: enough for test data, and the same on each machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Random bytes that begin like an instruction: perhaps prefixes, perhaps an escape.
fn random_bytes(random: &mut Random) -> [u8; 15] {
    const PREFIXES: [u8; 13] = [
        0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x48, 0x41,
    ];
    let mut bytes = [0; 15];
    for byte in &mut bytes {
        *byte = (random.next() >> 32) as u8;
    }
    let mut at = 0;
    while random.next() >> 61 < 3 && at < 4 {
        bytes[at] = PREFIXES[(random.next() >> 32) as usize % PREFIXES.len()];
        at += 1;
    }
    match random.next() >> 61 {
        0 => bytes[at] = 0xc4 | (random.next() >> 63) as u8,
        1..=2 => bytes[at] = 0x0f,
        3 => {
            bytes[at] = 0x0f;
            bytes[at + 1] = 0x38;
        }
        4 => {
            bytes[at] = 0x0f;
            bytes[at + 1] = 0x3a;
        }
        _ => {}
    }
    bytes
}

fn oracle(bytes: &[u8], mode: CodeSize) -> Instruction {
    let bits = match mode {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    };
    Decoder::with_ip(bits, bytes, 0, DecoderOptions::AMD).decode()
}

/// What is undefined, outside the four maps, or in another vendor's CPU (`0F 37`, `0F A6`, `0F
/// A7`).
fn is_out_of_scope(oracle: &Instruction) -> bool {
    let foreign = [
        CpuidFeature::SMX,
        CpuidFeature::PADLOCK_ACE,
        CpuidFeature::PADLOCK_PHE,
        CpuidFeature::PADLOCK_PMM,
        CpuidFeature::PADLOCK_RNG,
        CpuidFeature::PADLOCK_GMI,
        CpuidFeature::PADLOCK_UNDOC,
    ];
    oracle.code() == Code::INVALID
        || !matches!(oracle.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        // Their index is a vector register.
        || oracle.is_vsib()
        || oracle.cpuid_features().iter().any(|f| foreign.contains(f))
}

fn gpr(register: Register) -> Option<u8> {
    (register != Register::None).then(|| register.number() as u8)
}

fn segment(register: Register) -> SegReg {
    match register {
        Register::ES => SegReg::Es,
        Register::CS => SegReg::Cs,
        Register::SS => SegReg::Ss,
        Register::DS => SegReg::Ds,
        Register::FS => SegReg::Fs,
        Register::GS => SegReg::Gs,
        other => panic!("{other:?} is no segment"),
    }
}

fn has_memory_operand(oracle: &Instruction) -> bool {
    let explicit = oracle.mnemonic() != Mnemonic::Xlatb;
    explicit && oracle.op_kinds().any(|kind| kind == OpKind::Memory)
}

/// The memory operand, in the terms of iced.
fn check_memory(insn: &Insn, oracle: &Instruction) {
    let mem = insn.mem.expect("a memory operand");
    // Overrides of the flat segments do nothing in 64-bit mode; iced only reports them.
    let flat = matches!(
        oracle.segment_prefix(),
        Register::ES | Register::CS | Register::SS | Register::DS
    );
    if insn.mode != CodeSize::Bits64 || !flat {
        assert_eq!(mem.segment, segment(oracle.memory_segment()));
    }
    if mem.rip_relative {
        assert!(oracle.is_ip_rel_memory_operand());
        let mut target = mem.displacement.wrapping_add(u64::from(insn.length));
        if insn.address_size == 4 {
            target &= 0xffff_ffff;
        }
        assert_eq!(target, oracle.memory_displacement64());
        return;
    }
    assert_eq!(mem.base, gpr(oracle.memory_base()));
    assert_eq!(mem.index, gpr(oracle.memory_index()));
    if mem.index.is_some() {
        assert_eq!(1 << mem.shift, oracle.memory_index_scale());
    }
    let mask = match insn.address_size {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    };
    assert_eq!(
        mem.displacement & mask,
        oracle.memory_displacement64() & mask
    );
}

/// An immediate operand, cut to the bits that the instruction has.
fn check_immediate(insn: &Insn, oracle: &Instruction) {
    for operand in 0..oracle.op_count() {
        let (mask, second) = match oracle.op_kind(operand) {
            OpKind::Immediate8 => (0xff, false),
            OpKind::Immediate16 | OpKind::Immediate8to16 => (0xffff, false),
            OpKind::Immediate32 | OpKind::Immediate8to32 => (0xffff_ffff, false),
            OpKind::Immediate64 | OpKind::Immediate8to64 | OpKind::Immediate32to64 => {
                (u64::MAX, false)
            }
            OpKind::Immediate8_2nd => (0xff, true),
            _ => continue,
        };
        // Shifts by one and INT3 have an immediate that is no byte of theirs.
        if matches!(insn.opcode, 0xd0 | 0xd1) && insn.map == Map::OneByte {
            continue;
        }
        if second {
            assert_eq!(u64::from(insn.immediate2), oracle.immediate(operand));
        } else {
            assert_eq!(insn.immediate & mask, oracle.immediate(operand) & mask);
        }
    }
}

/// The operand size, where memory operand or stack show it.
fn check_operand_size(insn: &Insn, oracle: &Instruction) {
    if insn.map != Map::OneByte {
        return;
    }
    let far = insn.opcode == 0xff && matches!(insn.group(), 3 | 5);
    let sized = matches!(
        insn.opcode,
        0x81 | 0x83 | 0x85 | 0x87 | 0x89 | 0x8b | 0xc1 | 0xc7
    ) || matches!(
        insn.opcode,
        0xa1 | 0xa3 | 0xa5 | 0xab | 0xd1 | 0xd3 | 0xf7 | 0xff
    ) || (insn.opcode < 0x40 && matches!(insn.opcode & 7, 1 | 3));
    if sized && !far && has_memory_operand(oracle) {
        assert_eq!(usize::from(insn.operand_size), oracle.memory_size().size());
    }
    if matches!(
        insn.opcode,
        0x50..=0x5f | 0x68 | 0x6a | 0x8f | 0x9c | 0x9d | 0xe8
    ) {
        let step = oracle.stack_pointer_increment().unsigned_abs();
        assert_eq!(u32::from(insn.operand_size), step);
    }
}

fn check_prefixes(insn: &Insn, oracle: &Instruction) {
    if oracle.has_lock_prefix() {
        assert!(insn.has(Prefixes::LOCK));
    }
    if oracle.has_rep_prefix() {
        assert!(insn.repeats());
    }
}

/// What differs between our decoder and iced, if anything does.
fn compare(bytes: &[u8], mode: CodeSize, oracle: &Instruction) -> Result<(), String> {
    let insn = decode(bytes, mode).map_err(|error| format!("{error:?}"))?;
    let compared = std::panic::catch_unwind(|| {
        assert_eq!(usize::from(insn.length), oracle.len(), "length");
        assert_eq!(insn.mem.is_some(), has_memory_operand(oracle), "memory");
        if insn.mem.is_some() {
            check_memory(&insn, oracle);
        }
        // Four bits of some VEX immediates are a register.
        if oracle.encoding() == EncodingKind::Legacy {
            check_immediate(&insn, oracle);
        }
        check_operand_size(&insn, oracle);
        check_prefixes(&insn, oracle);
    });
    compared.map_err(|_| format!("{insn:?}"))
}

/// Decodes everything legacy that iced decodes, with the same length and operands.
#[test]
fn agrees_with_iced() {
    let mut random = Random(0x05ee_d0fd_ec0d);
    let mut failures = BTreeMap::new();
    for mode in [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64] {
        let mut valid = 0;
        let mut seen = HashSet::new();
        for _ in 0..CASES {
            let bytes = random_bytes(&mut random);
            let oracle = oracle(&bytes, mode);
            if is_out_of_scope(&oracle) {
                continue;
            }
            valid += 1;
            seen.insert(oracle.code());
            if let Err(difference) = compare(&bytes, mode, &oracle) {
                let report = format!("{bytes:02x?} {mode:?}: {oracle}: {difference}");
                failures.insert(format!("{:?}", oracle.code()), report);
            }
        }
        println!("{mode:?}: {valid} valid, {} codes", seen.len());
        assert!(valid > CASES / 2);
        assert!(seen.len() > 700);
    }
    for report in failures.values() {
        println!("{report}");
    }
    assert!(failures.is_empty());
}

/// Every beginning of an instruction asks for more bytes, and bytes behind it change nothing.
#[test]
fn length_does_not_depend_on_what_follows() {
    let mut random = Random(0x5eed);
    for mode in [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64] {
        for _ in 0..CASES / 10 {
            let bytes = random_bytes(&mut random);
            let Ok(insn) = decode(&bytes, mode) else {
                continue;
            };
            let length = usize::from(insn.length);
            assert_eq!(decode(&bytes[..length], mode), Ok(insn));
            for end in 0..length {
                assert_eq!(decode(&bytes[..end], mode), Err(DecodeError::NeedMoreBytes));
            }
        }
    }
}
