// SPDX-License-Identifier: GPL-2.0-only

//! The emulator against the CPU that runs this test: the same bytes, the same registers.
//!
//! Instructions and operands are random, but what they address is always inside a mapped region.
//! What the manual calls undefined is not compared.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use emulate_mock::Event;
use emulate_mock::Mock;
use native::*;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use x86::cpu::ExtendedState;
use x86::cpu::X87;
use x86::decode::decode;
use x86::decode::CodeSize;
use x86::decode::Insn;
use x86::decode::Map;
use x86::decode::Mem;
use x86::decode::Prefixes;
use x86::regs::gpr;
use x86::regs::Rflags;

mod emulate_mock;
mod native;

const CASES: usize = 150_000;

const STATUS: Rflags = Rflags::CF
    .union(Rflags::PF)
    .union(Rflags::AF)
    .union(Rflags::ZF)
    .union(Rflags::SF)
    .union(Rflags::OF);

fn one_byte_opcodes() -> Vec<u8> {
    let arithmetic = (0..0x40).filter(|opcode| opcode & 7 < 6);
    let rest = (0x50..=0x5f)
        .chain([0x63, 0x68, 0x69, 0x6a, 0x6b, 0x80, 0x81, 0x83])
        .chain(0x84..=0x8b)
        .chain([0x8d, 0x8f])
        .chain(0x90..=0x99)
        .chain([0x9e, 0x9f])
        .chain(0xa0..=0xbf)
        .chain([0xc0, 0xc1, 0xc6, 0xc7, 0xc9, 0xd0, 0xd1, 0xd2, 0xd3])
        .chain([0xf6, 0xf7, 0xfe, 0xff]);
    arithmetic.chain(rest).collect()
}

fn two_byte_moves() -> [u8; 17] {
    [
        0x10, 0x11, 0x12, 0x13, 0x16, 0x17, 0x28, 0x29, 0x2b, 0x6e, 0x6f, 0x7e, 0x7f, 0xd6, 0xe7,
        0xf0, 0xae,
    ]
}

fn two_byte_opcodes() -> Vec<u8> {
    let rest = [
        0x0d, 0x18, 0x1f, 0xa3, 0xa4, 0xa5, 0xab, 0xac, 0xad, 0xae, 0xaf, 0xb0, 0xb1, 0xb3, 0xb6,
        0xc4, 0xc5, 0xb7, 0xb8, 0xba, 0xbb, 0xbc, 0xbd, 0xbe, 0xbf, 0xc0, 0xc1, 0xc3, 0xc7,
    ];
    (0x40..=0x4f)
        .chain(0xc8..=0xcf)
        .chain(0x90..=0x9f)
        .chain(two_byte_moves())
        .chain(rest)
        .collect()
}

/// The same with a VEX prefix.
fn random_vex(random: &mut Random, mut bytes: [u8; 15]) -> [u8; 15] {
    let opcodes: [&[u8]; 3] = [
        &two_byte_moves(),
        &[
            0x2a, 0x18, 0x19, 0x1a, 0x58, 0x59, 0x5a, 0x78, 0x79, 0xf2, 0xf3, 0xf5, 0xf6, 0xf7,
        ],
        &[
            0xf0, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x20, 0x21, 0x22, 0x38, 0x39,
        ],
    ];
    let map = random.below(3) as usize;
    let opcode = opcodes[map][random.below(opcodes[map].len() as u64) as usize];
    // vvvv is mostly free.
    let free = if random.one_in(4) { 0 } else { 0x78 };
    bytes[0] = 0xc4;
    bytes[1] = bytes[1] & 0xe0 | (map as u8 + 1);
    bytes[2] |= free;
    bytes[3] = opcode;
    bytes
}

/// Random instruction bytes with an opcode that is emulated.
fn random_instruction(random: &mut Random) -> [u8; 15] {
    let mut bytes: [u8; 15] = std::array::from_fn(|_| (random.next() >> 32) as u8);
    let mut prefixes = Vec::new();
    for (prefix, chance) in [(0x66, 3), (0x67, 8), (0xf0, 8), (0xf2, 6), (0xf3, 4)] {
        if random.one_in(chance) {
            prefixes.push(prefix);
        }
    }
    if random.one_in(10) {
        return random_vex(random, bytes);
    }
    if random.one_in(2) {
        prefixes.push(0x40 | random.below(16) as u8);
    }
    let opcode = match random.below(16) {
        // ENTER with a small frame, which the CPU probes.
        0 if random.one_in(16) => vec![0xc8, random.below(256) as u8, 0, 0],
        0..=8 => {
            let opcodes = one_byte_opcodes();
            vec![opcodes[random.below(opcodes.len() as u64) as usize]]
        }
        9..=14 => {
            let opcodes = two_byte_opcodes();
            vec![0x0f, opcodes[random.below(opcodes.len() as u64) as usize]]
        }
        _ if random.one_in(2) => {
            let opcodes = [0x14, 0x15, 0x16, 0x17, 0x20, 0x21, 0x22];
            vec![0x0f, 0x3a, opcodes[random.below(7) as usize]]
        }
        _ => vec![
            0x0f,
            0x38,
            [0x2a, 0xf0, 0xf1, 0xf6][random.below(4) as usize],
        ],
    };
    prefixes.extend_from_slice(&opcode);
    bytes[..prefixes.len()].copy_from_slice(&prefixes);
    bytes
}

fn is_string(insn: &Insn) -> bool {
    insn.map == Map::OneByte && matches!(insn.opcode, 0xa4..=0xa7 | 0xaa..=0xaf)
}

fn is_bit_string(insn: &Insn) -> bool {
    insn.map == Map::TwoByte && matches!(insn.opcode, 0xa3 | 0xab | 0xb3 | 0xbb)
}

fn is_branch(insn: &Insn) -> bool {
    insn.is(Map::OneByte, 0xff) && matches!(insn.group(), 2..=5)
}

fn uses_stack(insn: &Insn) -> bool {
    let opcode = insn.opcode;
    insn.map == Map::OneByte
        && matches!(
            opcode,
            0x50..=0x5f | 0x68 | 0x6a | 0x8f | 0xc8 | 0xc9 | 0xff
        )
}

/// An address in the region. With 32-bit addressing, what is above the address is noise.
fn pointer(random: &mut Random, address: u64, address_size: u8) -> u64 {
    if address_size == 4 {
        (random.next() << 32) | (address & 0xffff_ffff)
    } else {
        address
    }
}

/// Sets the registers so that the memory operand is in the region. False if that cannot be.
fn place_operand(random: &mut Random, insn: &Insn, mock: &mut Mock) -> bool {
    let Some(mem) = insn.mem else {
        return true;
    };
    let Some(base) = mem.base else {
        return false;
    };
    if mem.index == Some(base) || mem.segment as u8 > 3 {
        return false;
    }
    let mut target = MIDDLE + 8 * random.below(16) + u64::from(random.one_in(2));
    if random.one_in(2) {
        target &= !15;
    }
    target = target.wrapping_sub(mem.displacement);
    if let Some(index) = mem.index {
        let value = random.below(16);
        mock.state.gpr[usize::from(index)] = value;
        target = target.wrapping_sub(value << mem.shift);
    }
    if uses_stack(insn) && (base == gpr::RSP || mem.index == Some(gpr::RSP)) {
        return false;
    }
    if is_bit_string(insn) && insn.mem.is_some() {
        if insn.reg == base || Some(insn.reg) == mem.index {
            return false;
        }
        let bit = random.below(16000).wrapping_sub(8000);
        mock.state.gpr[usize::from(insn.reg)] = bit;
    }
    mock.state.gpr[usize::from(base)] = pointer(random, target, insn.address_size);
    true
}

/// Random x87 registers, tags and top of the stack; no exception is pending.
fn random_x87(random: &mut Random, mock: &mut Mock) {
    for register in 0..8 {
        for byte in 0..10 {
            mock.state.x87[32 + 16 * register + byte] = random.next() as u8;
        }
    }
    mock.set_x87(X87 {
        status: random.next() as u16 & 0x7f00,
        tags: random.next() as u8,
        ..mock.clone().x87()
    });
}

/// Whether the CPU that runs this test has the instruction, of those that not all with AVX2 have.
fn this_cpu_has(insn: &Insn) -> bool {
    // MOVNTSS and MOVNTSD, which Intel's CPUs have not.
    let repeats = insn.repeats();
    if insn.is(Map::TwoByte, 0x2b) && repeats {
        return is_x86_feature_detected!("sse4a");
    }
    let movbe = insn.map == Map::ThreeByte38 && insn.opcode >= 0xf0 && insn.vex.is_none();
    !movbe || is_x86_feature_detected!("movbe")
}

/// Whether the CPU that runs this test is AMD's. Others differ in two places:
///
/// | instruction                           | AMD                | Intel                 |
/// |---------------------------------------|--------------------|-----------------------|
/// | a string one with REP, 67 and ECX = 0 | leaves RCX alone   | clears its upper half |
/// | F3 90 with REX.B                      | XCHG of R8 and RAX | PAUSE                 |
fn is_amd() -> bool {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpus.contains("AuthenticAMD") || cpus.contains("HygonGenuine")
}

fn differs_elsewhere(insn: &Insn, before: &Mock) -> bool {
    let none_left = before.state.gpr[usize::from(gpr::RCX)] as u32 == 0;
    let string = is_string(insn) && insn.repeats() && insn.address_size == 4 && none_left;
    string || (insn.is(Map::OneByte, 0x90) && insn.has(Prefixes::REP) && insn.rm != 0)
}

/// A CPU with random registers, in which the instruction finds its operands.
fn random_cpu(random: &mut Random, insn: &Insn) -> Option<Mock> {
    let mut mock = Mock::new(CodeSize::Bits64);
    for index in 0..16 {
        mock.state.gpr[index] = random.value();
        let half =
            |random: &mut Random| u128::from(random.next()) << 64 | u128::from(random.value());
        mock.state.ymm[index] = [half(random), half(random)];
    }
    random_x87(random, &mut mock);
    let flags = Rflags::from_bits_retain(random.next()) & (STATUS | Rflags::DF);
    mock.state.rflags = flags | Rflags::RESERVED1 | Rflags::IF;
    let somewhere = MIDDLE + random.below(64);
    if uses_stack(insn) {
        mock.state.gpr[usize::from(gpr::RSP)] = somewhere;
    }
    if insn.map == Map::OneByte && insn.opcode == 0xc9 {
        mock.state.gpr[usize::from(gpr::RBP)] = somewhere;
    }
    if is_string(insn) {
        let destination = pointer(random, somewhere, insn.address_size);
        let source = MIDDLE + random.below(64);
        mock.state.gpr[usize::from(gpr::RDI)] = destination;
        mock.state.gpr[usize::from(gpr::RSI)] = pointer(random, source, insn.address_size);
        let count = random.below(6);
        mock.state.gpr[usize::from(gpr::RCX)] = pointer(random, count, insn.address_size);
    }
    if insn.segment_override.is_some() || !this_cpu_has(insn) {
        return None;
    }
    if insn.is(Map::OneByte, 0x8d) || place_operand(random, insn, &mut mock) {
        Some(mock)
    } else {
        None
    }
}

/// Lets half of the comparisons of CMPXCHG and its kin succeed, and more than a few divisions.
fn suit_accumulator(random: &mut Random, insn: &Insn, mock: &mut Mock) {
    let divides = matches!(insn.opcode, 0xf6 | 0xf7) && insn.map == Map::OneByte;
    let in_address = |mem: Mem| [mem.base, mem.index].contains(&Some(gpr::RDX));
    if divides && !insn.mem.is_some_and(in_address) && random.one_in(2) {
        // A small dividend, positive or negative.
        mock.state.gpr[usize::from(gpr::RDX)] = random.below(5).wrapping_sub(2);
    }
    let compares = matches!(insn.opcode, 0xb0 | 0xb1 | 0xc7) && insn.map == Map::TwoByte;
    if !compares || random.one_in(2) {
        return;
    }
    let Some(linear) = x86::emulate::linear_address(mock, insn) else {
        return;
    };
    let half = if insn.rex_w() { 8 } else { 4 };
    let accumulator = mock.state.gpr[usize::from(gpr::RAX)].to_le_bytes();
    let upper = mock.state.gpr[usize::from(gpr::RDX)].to_le_bytes();
    mock.poke(linear, &accumulator[..half]);
    mock.poke(linear + half as u64, &upper[..half]);
}

fn is_fxstate(insn: &Insn, group: u8) -> bool {
    insn.is(Map::TwoByte, 0xae) && insn.group() == group && insn.mem.is_some()
}

/// Makes what FXRSTOR reads such that it can be restored.
fn suit_fxrstor(insn: &Insn, mock: &mut Mock) {
    if !is_fxstate(insn, 1) {
        return;
    }
    let Some(linear) = x86::emulate::linear_address(mock, insn) else {
        return;
    };
    let status = mock.x87().status.to_le_bytes();
    mock.poke(linear, &0x37f_u16.to_le_bytes());
    mock.poke(linear + 2, &status);
    mock.poke(linear + 24, &0x1fa0_u32.to_le_bytes());
}

/// Where FXSAVE saves what is the CPU's own: the pointers to the last instruction, and the mask of
/// MXCSR, which CPUs without misaligned SSE do not share with others. They are not compared.
fn own(insn: &Insn, before: &Mock) -> impl Iterator<Item = u64> {
    let image = x86::emulate::linear_address(before, insn).filter(|_| is_fxstate(insn, 0));
    let at = image.into_iter();
    at.flat_map(|linear| (linear + 6..linear + 24).chain(linear + 28..linear + 32))
}

/// The flags that the manual defines for the instruction; `None` if not even its result.
fn defined_flags(insn: &Insn, before: &Mock) -> Option<Rflags> {
    let all = STATUS | Rflags::DF;
    let undefined_in_bit_test = Rflags::OF | Rflags::SF | Rflags::AF | Rflags::PF;
    let count = |from_cl: bool, by_one: bool| {
        let count = if from_cl {
            before.state.gpr[usize::from(gpr::RCX)]
        } else if by_one {
            1
        } else {
            insn.immediate
        };
        let wide = insn.operand_size == 8;
        count & if wide { 63 } else { 31 }
    };
    Some(match (insn.map, insn.opcode) {
        (Map::OneByte, opcode @ 0..=0x3f) if matches!(opcode >> 3, 1 | 4 | 6) => all - Rflags::AF,
        (Map::OneByte, 0x80..=0x83) if matches!(insn.group(), 1 | 4 | 6) => all - Rflags::AF,
        (Map::OneByte, 0x84 | 0x85 | 0xa8 | 0xa9) => all - Rflags::AF,
        (Map::OneByte, 0xf6 | 0xf7) if insn.group() < 2 => all - Rflags::AF,
        (Map::OneByte, opcode @ (0xc0 | 0xc1 | 0xd0..=0xd3)) => {
            let byte = opcode & 1 == 0;
            let wide = insn.operand_size == 8 && !byte;
            let count = count(opcode >= 0xd2, opcode >= 0xd0) & if wide { 63 } else { 31 };
            let bits = if byte {
                8
            } else {
                u64::from(insn.operand_size) * 8
            };
            let mut defined = all;
            if count > 1 {
                defined -= Rflags::OF;
            }
            if insn.group() >= 4 && count > 0 {
                defined -= Rflags::AF;
                if count >= bits {
                    defined -= Rflags::CF;
                }
            }
            defined
        }
        (Map::TwoByte, opcode @ (0xa4 | 0xa5 | 0xac | 0xad)) => {
            let count = count(opcode & 1 != 0, false);
            if count > u64::from(insn.operand_size) * 8 {
                return None;
            }
            match count {
                0 => all,
                1 => all - Rflags::AF,
                _ => all - Rflags::AF - Rflags::OF,
            }
        }
        (Map::TwoByte, 0xbc | 0xbd) if insn.has(Prefixes::REP) => {
            Rflags::ZF | Rflags::CF | Rflags::DF
        }
        (Map::ThreeByte38, 0xf7) => all - Rflags::AF - Rflags::PF - Rflags::SF,
        (Map::ThreeByte38, 0xf2 | 0xf3 | 0xf5) => all - Rflags::AF - Rflags::PF,
        // A product defines two flags, a division none, a bit scan one.
        (Map::OneByte, 0x69 | 0x6b) | (Map::TwoByte, 0xaf) => Rflags::CF | Rflags::OF | Rflags::DF,
        (Map::OneByte, 0xf6 | 0xf7) if matches!(insn.group(), 4 | 5) => {
            Rflags::CF | Rflags::OF | Rflags::DF
        }
        (Map::OneByte, 0xf6 | 0xf7) if insn.group() > 5 => Rflags::DF,
        (Map::TwoByte, 0xbc | 0xbd) => Rflags::ZF | Rflags::DF,
        (Map::TwoByte, 0xa3 | 0xab | 0xb3 | 0xbb | 0xba) => all - undefined_in_bit_test,
        _ => all,
    })
}

/// Restores the bytes that an instruction wrote. Answers those of which the CPU wrote others: each
/// with its address, as the CPU wrote it, and as the emulator did.
fn compare_memory(
    machine: &mut Machine,
    memory: &BTreeMap<u64, u8>,
    untouched: &Mock,
) -> Vec<(u64, u8, u8)> {
    let mut other = Vec::new();
    for (&address, &emulated) in memory {
        let native = &mut machine.bytes(address, 1)[0];
        if *native != emulated {
            other.push((address, *native, emulated));
        }
        *native = untouched.peek(address, 1) as u8;
    }
    other
}

fn is_in_region(events: &[Event]) -> bool {
    events.iter().all(|event| match event {
        Event::Read(linear, size, _) | Event::Write(linear, size) | Event::Probe(linear, size) => {
            *linear >= DATA && linear + *size as u64 <= DATA + DATA_SIZE
        }
        Event::CompareExchange(linear, _) => *linear >= DATA,
        _ => false,
    })
}

/// Pointers to the last instruction aside, which only the CPU keeps; and its mask of MXCSR.
fn same_x87(native: &Mock, emulated: &Mock) -> bool {
    let (a, b) = (&native.state.x87, &emulated.state.x87);
    a[..6] == b[..6] && a[24..28] == b[24..28] && a[32..] == b[32..]
}

/// Executes one instruction on both. `Err` tells how they differ.
fn compare(
    machine: &mut Machine,
    insn: &Insn,
    before: &Mock,
    emulated: &Mock,
    flags: Rflags,
) -> Result<(), String> {
    let length = usize::from(insn.length);
    let code = before.state.rip..before.state.rip + length as u64;
    let bytes: Vec<u8> = code.clone().map(|at| before.peek(at, 1) as u8).collect();
    let untouched = Mock::new(CodeSize::Bits64);
    let data = |memory: &BTreeMap<u64, u8>| {
        let mut memory = memory.clone();
        memory.retain(|address, _| !code.contains(address));
        memory
    };
    for (address, byte) in data(&before.state.memory) {
        machine.bytes(address, 1)[0] = byte;
    }
    let mut native = before.clone();
    machine.execute(&bytes, &mut native);
    let mut memory = data(&emulated.state.memory);
    for address in own(insn, before) {
        memory.insert(address, machine.bytes(address, 1)[0]);
    }
    let other_memory = compare_memory(machine, &memory, &untouched);
    let flags = (native.state.rflags ^ emulated.state.rflags) & flags;
    let same = native.state.gpr == emulated.state.gpr
        && native.state.ymm == emulated.state.ymm
        && same_x87(&native, emulated);
    if same && other_memory.is_empty() && flags.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{bytes:02x?} flags {flags:?}\nmemory {other_memory:x?}\n{:x?}\nnative {:x?}\nemulated {:x?}",
        before.state.gpr, native.state.gpr, emulated.state.gpr,
    ))
}

/// A random instruction, and a CPU that can execute it.
fn random_case(random: &mut Random) -> Option<(Vec<u8>, Insn, Mock)> {
    let bytes = random_instruction(random);
    let insn = decode(&bytes, CodeSize::Bits64).ok()?;
    if is_branch(&insn) {
        return None;
    }
    let bytes = bytes[..usize::from(insn.length)].to_vec();
    let mut before = random_cpu(random, &insn)?;
    before.state.rip = BASE + program(&[]).1 as u64;
    before.poke(before.state.rip, &bytes);
    suit_accumulator(random, &insn, &mut before);
    suit_fxrstor(&insn, &mut before);
    Some((bytes, insn, before))
}

#[test]
fn agrees_with_this_cpu() {
    if !is_x86_feature_detected!("avx2") {
        println!("this CPU has no AVX2");
        return;
    }
    let mut machine = Machine::new();
    let untouched = Mock::new(CodeSize::Bits64);
    for address in DATA..DATA + DATA_SIZE {
        machine.bytes(address, 1)[0] = untouched.peek(address, 1) as u8;
    }
    let amd = is_amd();
    let mut random = Random(0xc0_ffee);
    let mut kinds = BTreeSet::new();
    let mut failures = BTreeMap::new();
    let mut executed = 0;
    for _ in 0..CASES {
        let Some((bytes, insn, before)) = random_case(&mut random) else {
            continue;
        };
        if !amd && differs_elsewhere(&insn, &before) {
            continue;
        }
        let Some(flags) = defined_flags(&insn, &before) else {
            continue;
        };
        let mut emulated = before.clone();
        if emulated.step().is_err() {
            continue;
        }
        assert!(is_in_region(&emulated.events), "{bytes:02x?}");
        if let Err(report) = compare(&mut machine, &insn, &before, &emulated, flags) {
            failures.insert((insn.map as u8, insn.opcode, insn.group()), report);
        }
        kinds.insert((insn.map as u8, insn.opcode, insn.has(Prefixes::LOCK)));
        executed += 1;
    }
    for address in DATA..DATA + DATA_SIZE {
        let expected = untouched.peek(address, 1) as u8;
        assert_eq!(machine.bytes(address, 1)[0], expected);
    }
    for report in failures.values() {
        println!("{report}");
    }
    println!("{executed} instructions, {} kinds", kinds.len());
    assert!(failures.is_empty());
    assert!(executed > CASES / 2);
    assert!(kinds.len() > 200);
}
