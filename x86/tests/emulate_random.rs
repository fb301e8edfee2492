// SPDX-License-Identifier: GPL-2.0-only

//! What must hold for any bytes in any state of the CPU: no panic, and a clean restart.

use emulate_mock::Event;
use emulate_mock::Mock;
use emulate_mock::State;
use proptest::prelude::*;
use x86::cpu::Access;
use x86::cpu::Stop;
use x86::decode::decode;
use x86::decode::CodeSize;
use x86::decode::Insn;
use x86::emulate::checked_address;
use x86::emulate::emulate;
use x86::emulate::fetch;
use x86::emulate::io_allowed;
use x86::emulate::linear_address;
use x86::regs::Cr0;
use x86::regs::Cr4;
use x86::regs::Efer;
use x86::regs::Rflags;
use x86::regs::SegAttr;
use x86::regs::Segment;

mod emulate_mock;

fn any_mode() -> impl Strategy<Value = CodeSize> {
    prop_oneof![
        Just(CodeSize::Bits16),
        Just(CodeSize::Bits32),
        Just(CodeSize::Bits64)
    ]
}

/// Random numbers from a seed. A strategy for each register would be too big for proptest.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 27)
    }

    /// A number with a liking for the ends of ranges.
    fn number(&mut self) -> u64 {
        let near = (self.next() % 64).wrapping_sub(32);
        let end = match self.next() % 6 {
            0 => return self.next(),
            1 => 0,
            2 => 0x1_0000_0000,
            3 => 0x1_0000,
            4 => 0x8000_0000_0000,
            _ => 0xffff_8000_0000_0000,
        };
        near.wrapping_add(end)
    }

    fn segment(&mut self) -> Segment {
        let attributes = [0x93, 0xc93, 0xc97, self.next() as u16][self.next() as usize % 4];
        Segment {
            selector: self.next() as u16,
            attributes: SegAttr::from_bits_retain(attributes),
            limit: [0xffff, 0xffff_ffff, self.next() as u32][self.next() as usize % 3],
            base: self.number(),
        }
    }
}

/// A CPU in any state, a possible one or not.
fn any_cpu() -> impl Strategy<Value = Mock> {
    any::<u64>().prop_map(|seed| {
        let mut random = Random(seed);
        let mut mock = Mock::new(CodeSize::Bits32);
        mock.cr0 = Cr0::from_bits_retain(random.next());
        mock.cr4 = Cr4::from_bits_retain(random.next());
        mock.efer = Efer::from_bits_retain(random.next());
        mock.cpl = (random.next() % 4) as u8;
        mock.state.rip = random.number();
        mock.state.rflags = Rflags::from_bits_retain(random.next());
        mock.state.gpr = std::array::from_fn(|_| random.number());
        mock.segments = std::array::from_fn(|_| random.segment());
        mock
    })
}

/// A CPU in a state where most instructions get as far as their memory.
fn usual_cpu() -> impl Strategy<Value = Mock> {
    (any_mode(), any::<u64>()).prop_map(|(mode, seed)| {
        let mut random = Random(seed);
        let mut mock = Mock::new(mode);
        let kept = Rflags::from_bits_retain(0xcd5) | Rflags::RF;
        let flags = Rflags::from_bits_retain(random.next()) & kept;
        mock.state.rflags = flags | Rflags::RESERVED1;
        mock.state.gpr = std::array::from_fn(|_| random.next() % 0x8000);
        mock
    })
}

/// Bytes that are often the beginning of an instruction we emulate.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let prefix = prop_oneof![
        Just(vec![]),
        Just(vec![0x66]),
        Just(vec![0x67]),
        Just(vec![0xf0]),
        Just(vec![0xf2]),
        Just(vec![0xf3]),
        Just(vec![0x48]),
        Just(vec![0x66, 0x0f]),
        Just(vec![0xf0, 0x0f]),
        Just(vec![0x0f]),
        Just(vec![0x0f, 0x38]),
        Just(vec![0xc5]),
        Just(vec![0xc4, 0xe1]),
        Just(vec![0xc4, 0xe2]),
    ];
    (prefix, prop::collection::vec(any::<u8>(), 15)).prop_map(|(mut prefix, rest)| {
        prefix.extend(rest);
        prefix.truncate(15);
        prefix
    })
}

/// Runs the instruction until it is done, and returns the accesses of its last call.
fn run(mock: &mut Mock, insn: &Insn) -> Result<Vec<Event>, Stop> {
    mock.events.clear();
    emulate(mock, insn)?;
    Ok(mock.events.clone())
}

fn is_write(event: &Event) -> bool {
    matches!(
        event,
        Event::Write(..) | Event::Mark(..) | Event::Out(..) | Event::CompareExchange(..)
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 10_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn decode_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..20), mode in any_mode()) {
        if let Ok(insn) = decode(&bytes, mode) {
            prop_assert!((1..=15).contains(&insn.length));
            prop_assert!(usize::from(insn.length) <= bytes.len());
        }
    }

    #[test]
    fn nothing_panics(mut mock in any_cpu(), bytes in any_bytes(), mode in any_mode()) {
        let _ = fetch(&mut mock, &[]);
        let _ = fetch(&mut mock, &bytes);
        let _ = io_allowed(&mut mock, bytes[0].into(), bytes[1]);
        if let Ok(insn) = decode(&bytes, mode) {
            let _ = linear_address(&mock, &insn);
            let _ = checked_address(&mock, &insn, bytes[2], Access::Read);
            let _ = emulate(&mut mock, &insn);
        }
    }

    /// Even an `Insn` that no bytes decode to is harmless, as long as its sizes are sizes.
    #[test]
    fn no_instruction_panics(
        mut mock in any_cpu(),
        bytes in any_bytes(),
        mode in any_mode(),
        noise in any::<[u8; 8]>(),
    ) {
        if let Ok(mut insn) = decode(&bytes, mode) {
            insn.operand_size = [2, 4, 8][usize::from(noise[0] % 3)];
            insn.address_size = [2, 4, 8][usize::from(noise[1] % 3)];
            insn.reg = noise[2] & 15;
            insn.rm = noise[3] & 15;
            insn.modrm = noise[4];
            insn.length = noise[5];
            insn.opcode = noise[6];
            let _ = emulate(&mut mock, &insn);
        }
    }

    /// An instruction that stops at any of its accesses has changed nothing, but memory that it has
    /// written before that, and when it is run again, it makes the same accesses and ends in the
    /// same state.
    #[test]
    fn a_stopped_instruction_can_be_run_again(mock in usual_cpu(), bytes in any_bytes()) {
        let mode = x86::emulate::code_size(&mock);
        let Ok(insn) = decode(&bytes, mode) else { return Ok(()); };
        let mut whole = mock.clone();
        let Ok(events) = run(&mut whole, &insn) else { return Ok(()); };
        let mut again = mock.clone();
        for at in 0..events.len() {
            let before = again.state.clone();
            again.stop_at = Some((at, Stop::User));
            prop_assert_eq!(run(&mut again, &insn), Err(Stop::User));
            prop_assert_eq!(&again.events[..], &events[..=at]);
            if !events[..at].iter().any(is_write) {
                prop_assert_eq!(&again.state.memory, &before.memory);
            }
            let before = State { memory: again.state.memory.clone(), ..before };
            prop_assert_eq!(&again.state, &before);
        }
        again.stop_at = None;
        prop_assert_eq!(run(&mut again, &insn), Ok(events));
        prop_assert_eq!(&again.state, &whole.state);
    }

    /// Reads come first, then one write, or several whose places were all probed before.
    #[test]
    fn one_write_and_nothing_after_it(mock in usual_cpu(), bytes in any_bytes()) {
        let mut mock = mock;
        let Ok(insn) = decode(&bytes, x86::emulate::code_size(&mock)) else { return Ok(()); };
        let Ok(events) = run(&mut mock, &insn) else { return Ok(()); };
        let begin = events.iter().position(is_write).unwrap_or(events.len());
        let (before, writes) = events.split_at(begin);
        prop_assert!(writes.iter().all(is_write));
        let probed = |event: &Event| match event {
            Event::Write(linear, size) => before.contains(&Event::Probe(*linear, *size)),
            _ => false,
        };
        prop_assert!(writes.len() <= 1 || writes.iter().filter(|event| !matches!(event, Event::Mark(..))).all(probed));
    }
}
