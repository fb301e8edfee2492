// SPDX-License-Identifier: GPL-2.0-only

//! The instruction emulator: executes one decoded instruction on a [`Cpu`].
//!
//! # How it is used
//!
//! ```text
//!   let insn = fetch(cpu, &[])?;                 once for each fault
//!   loop {
//!       match emulate(cpu, &insn) {
//!           Ok(()) if RIP is still at insn       a REP instruction did one iteration,
//!                                                or a locked one lost too many races: go on
//!           Ok(())                               done
//!           Err(stop)                            nothing has happened: answer, run it again
//!       }
//!   }
//! ```
//!
//! # The rule for restart
//!
//! Within one call all reads come first and in an order that depends on nothing but the CPU's state
//! and the values read, then comes at most one write of memory or of a port, then the registers,
//! RFLAGS, and RIP. What writes several times (PUSHA, ENTER, far CALL) probes all places before the
//! first write, and writes the same again when it is run again. A call that stopped can therefore
//! be repeated, with the answers of devices put in the place of their reads and writes, until it
//! returns `Ok`. Then the answers are used up: the next iteration of a REP instruction asks anew.
//!
//! # What is left out
//!
//! Call gates, task switches, interrupts by software in protected mode, numbers of the x87 unit,
//! and what computes with vectors: [`Stop::Unhandled`]. So is what the hypervisor intercepts
//! (CPUID, MSRs, control registers). Alignment checks (#AC) and breakpoints on data and ports.
//! CMPXCHG16B is not atomic. An access around the end of the linear address space is `Unhandled`,
//! too. In real mode a #GP has no error code; the exceptions returned here have one always, and who
//! injects them drops it.

use crate::cpu::Access;
use crate::cpu::Cpu;
use crate::cpu::Stop;
use crate::decode::decode;
use crate::decode::DecodeError;
use crate::decode::Insn;
use crate::decode::Map;
use crate::decode::Prefixes;
use crate::decode::MAX_LENGTH;
use crate::regs::gpr;
use crate::regs::Exception;
use crate::regs::Rflags;
use crate::regs::SegReg;
use operand::Place;

mod address;
mod alu;
mod bits;
mod decimal;
mod far;
mod flow;
mod fxstate;
mod integer;
mod lanes;
mod mmx;
mod multiply;
mod operand;
mod port;
mod segment;
mod stack;
mod string;
mod system;
mod vector;
mod verify;

pub use address::checked_address;
pub use address::code_address;
pub use address::code_size;
pub use address::linear_address;
pub use port::io_allowed;

/// Reads and decodes the instruction at CS:RIP.
///
/// `known` are its first bytes as far as the CPU has saved them (decode assists), or empty. The
/// page behind the instruction's first one is read only if the instruction goes on there.
pub fn fetch<C: Cpu>(cpu: &mut C, known: &[u8]) -> Result<Insn, Stop> {
    let mode = code_size(cpu);
    let mut bytes = [0; MAX_LENGTH];
    let mut length = 0;
    for (byte, known) in bytes.iter_mut().zip(known) {
        *byte = *known;
        length += 1;
    }
    loop {
        match decode(bytes.get(..length).unwrap_or(&bytes), mode) {
            Ok(insn) => return Ok(insn),
            Err(DecodeError::TooLong) => return Err(Exception::GP0.into()),
            Err(DecodeError::Unknown) => return Err(Stop::Unhandled),
            Err(DecodeError::NeedMoreBytes) => {}
        }
        let rip = cpu.rip().wrapping_add(length as u64);
        let (linear, room) = address::code_address(cpu, mode, rip)?;
        let end = length.saturating_add(room).min(MAX_LENGTH);
        let part = bytes.get_mut(length..end).ok_or(Stop::Unhandled)?;
        cpu.read(linear, part, Access::Fetch)?;
        length = end;
    }
}

/// Executes one instruction, or one iteration of a repeated one, and advances RIP behind it.
///
/// RIP stays at a REP instruction until its last iteration. It also stays, and nothing else
/// changes, when a locked instruction lost its race for memory too often, or another CPU has
/// changed a descriptor. The trap flag is left to the caller: when it was set before a call that
/// returned `Ok`, a #DB is due.
///
/// IN, OUT, INS and OUTS are checked with [`io_allowed`], even if the CPU has done so before it
/// intercepted them: the guest may have written another instruction there since.
pub fn emulate<C: Cpu>(cpu: &mut C, insn: &Insn) -> Result<(), Stop> {
    let mut run = Run {
        cpu,
        insn,
        shadow: false,
    };
    let rip = match run.execute() {
        Ok(Flow::Next) => insn.next_rip(run.cpu.rip()),
        Ok(Flow::Jump(rip)) => rip,
        Ok(Flow::Stay) | Err(Stop::Again) => return Ok(()),
        Err(stop) => return Err(stop),
    };
    let flags = run.flags();
    if flags.contains(Rflags::RF) && !insn.is(Map::OneByte, 0xcf) {
        run.cpu.set_rflags(flags.difference(Rflags::RF));
    }
    run.cpu.set_rip(rip);
    if run.shadow {
        run.cpu.begin_interrupt_shadow();
    }
    Ok(())
}

/// Where the CPU goes after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// To the next instruction.
    Next,
    /// Nowhere: the same instruction goes on.
    Stay,
    /// To this RIP.
    Jump(u64),
}

/// One instruction on its CPU.
struct Run<'a, C> {
    cpu: &'a mut C,
    insn: &'a Insn,
    /// Interrupts wait for the next instruction to be completed, too.
    shadow: bool,
}

impl<C: Cpu> Run<'_, C> {
    fn execute(&mut self) -> Result<Flow, Stop> {
        if self.insn.has(Prefixes::LOCK) && !self.may_be_locked() {
            return Err(Exception::UD.into());
        }
        if self.insn.vex.is_some() {
            return self.vex();
        }
        match self.insn.map {
            Map::OneByte => self.one_byte(),
            Map::TwoByte => self.two_byte(),
            Map::ThreeByte38 => self.three_byte(),
            Map::ThreeByte3a => self.lane_move(),
        }
    }

    /// LOCK is for these, and only if they modify memory (APM vol. 3, 1.2.5); #UD for all others.
    fn may_be_locked(&self) -> bool {
        let group = self.insn.group();
        let lockable = match (self.insn.map, self.insn.opcode) {
            (Map::OneByte, opcode @ 0x00..=0x37) => opcode & 7 < 2,
            (Map::OneByte, 0x80..=0x83) => group != 7,
            (Map::OneByte, 0x86 | 0x87) => true,
            (Map::OneByte, 0xf6 | 0xf7) => matches!(group, 2 | 3),
            (Map::OneByte, 0xfe | 0xff) => group < 2,
            (Map::TwoByte, 0xab | 0xb0 | 0xb1 | 0xb3 | 0xbb | 0xc0 | 0xc1) => true,
            (Map::TwoByte, 0xba) => group > 4,
            (Map::TwoByte, 0xc7) => group == 1,
            _ => false,
        };
        lockable && self.insn.mem.is_some()
    }

    fn one_byte(&mut self) -> Result<Flow, Stop> {
        let insn = self.insn;
        let size = self.width();
        let operand_size = insn.operand_size;
        match insn.opcode {
            opcode @ 0x00..=0x3f if opcode & 7 < 6 => self.arithmetic(),
            0x06 | 0x0e | 0x16 | 0x1e => self.push_segment(),
            0x07 | 0x17 | 0x1f => self.pop_segment(),
            opcode @ 0x40..=0x4f => {
                // Only outside 64-bit mode: there they are REX prefixes.
                let place = Place::Register(opcode & 7);
                self.increment(place, opcode & 8 != 0, operand_size)
            }
            0x27 | 0x2f => self.adjust_packed(),
            0x37 | 0x3f => self.adjust_digit(),
            0x50..=0x57 => {
                self.push(self.register(insn.rm, operand_size), operand_size)?;
                Ok(Flow::Next)
            }
            0x58..=0x5f => self.pop(),
            0x60 => self.push_registers(),
            0x61 => self.pop_registers(),
            0x63 if insn.is_64_bit() => self.load_extended(operand_size.min(4), operand_size, true),
            0x62 => self.check_bounds(),
            0x63 => self.adjust_rpl(),
            0x68 | 0x6a => {
                self.push(insn.immediate, operand_size)?;
                Ok(Flow::Next)
            }
            0x69 | 0x6b => self.multiply_into(insn.immediate),
            0x6c..=0x6f | 0xa4..=0xa7 | 0xaa..=0xaf => self.string(),
            opcode @ 0x70..=0x7f => self.branch(alu::condition(opcode, self.flags())),
            0x80..=0x83 => self.arithmetic_immediate(),
            0x84 | 0x85 => self.test_register(),
            0x86 | 0x87 => self.exchange(),
            0x88 | 0x89 => self.store_value(size, self.register(insn.reg, size)),
            0x8a | 0x8b => self.load_extended(size, size, false),
            0x8c => self.store_selector(),
            0x8d => self.load_effective_address(),
            0x8e => self.load_selector(),
            0x8f => self.pop(),
            0x90..=0x97 => self.exchange_accumulator(),
            0x98 | 0x99 => self.extend_accumulator(),
            0x9a => self.call_far(insn.immediate, insn.immediate2),
            0x9b => self.wait(),
            0x9c => self.push_flags(),
            0x9d => self.pop_flags(),
            0x9e | 0x9f => self.flags_and_ah(),
            0xa0 | 0xa1 => self.load_extended(size, size, false),
            0xa2 | 0xa3 => self.store_value(size, self.register(gpr::RAX, size)),
            0xa8 | 0xa9 => self.test(Place::Register(gpr::RAX), insn.immediate, size),
            opcode @ 0xb0..=0xbf => {
                let size = if opcode & 8 == 0 { 1 } else { operand_size };
                self.set_register(insn.rm, size, insn.immediate);
                Ok(Flow::Next)
            }
            0xc0 | 0xc1 | 0xd0..=0xd3 => self.shift(),
            0xc2 | 0xc3 => self.return_near(),
            0xc4 => self.load_far_pointer(SegReg::Es),
            0xc5 => self.load_far_pointer(SegReg::Ds),
            0xc6 | 0xc7 if insn.group() == 0 => self.store_value(size, insn.immediate),
            0xc8 => self.enter(),
            0xc9 => self.leave(),
            0xca | 0xcb => self.return_far(),
            0xcc..=0xce => self.software_interrupt(),
            0xcf => self.interrupt_return(),
            0xd4 | 0xd5 => self.adjust_product(),
            0xd6 => self.set_al_on_carry(),
            0xd7 => self.translate(),
            0xd8..=0xdf => self.x87(),
            0xe0..=0xe3 => self.count_and_branch(),
            0xe4..=0xe7 | 0xec..=0xef => self.port_access(),
            0xe8 => self.call_relative(),
            0xe9 | 0xeb => self.branch(true),
            0xea => self.jump_far(insn.immediate, insn.immediate2),
            0xf5 | 0xf8..=0xfd => self.set_flag(),
            0xf6 | 0xf7 => self.group3(),
            0xfe | 0xff => self.group5(),
            _ => Err(Stop::Unhandled),
        }
    }

    fn two_byte(&mut self) -> Result<Flow, Stop> {
        let size = self.width();
        let operand_size = self.insn.operand_size;
        match self.insn.opcode {
            0x00 => self.group6(),
            0x01 => self.group7(),
            0x02 | 0x03 => self.load_rights_or_limit(),
            // PREFETCH has no register form; the hints have one.
            0x0d if self.insn.mem.is_none() => Err(Exception::UD.into()),
            0x0d | 0x18..=0x1f => Ok(Flow::Next),
            0x6e | 0x6f | 0x7e | 0x7f | 0xe7 if self.is_mmx() => self.mmx_move(),
            0x10..=0x17 | 0x28 | 0x29 | 0x2b | 0x6e | 0x6f => self.vector_move(),
            0x7e | 0x7f | 0xd6 | 0xe7 | 0xf0 => self.vector_move(),
            0xae if self.is_mxcsr() => self.mxcsr(),
            0xae if self.is_fxstate() => self.fxstate(),
            0x40..=0x4f => self.move_on_condition(),
            0x80..=0x8f => self.branch(alu::condition(self.insn.opcode, self.flags())),
            0x90..=0x9f => self.set_on_condition(),
            0xa0 | 0xa8 => self.push_segment(),
            0xa1 | 0xa9 => self.pop_segment(),
            0xa3 | 0xab | 0xb3 | 0xbb => self.bit_test_register(),
            0xa4 | 0xa5 | 0xac | 0xad => self.double_shift(),
            0xae => self.flush_cache_line(),
            0xaf => self.multiply_into(self.register(self.insn.reg, operand_size)),
            0xb0 | 0xb1 => self.compare_exchange(),
            0xb2 => self.load_far_pointer(SegReg::Ss),
            0xb4 => self.load_far_pointer(SegReg::Fs),
            0xb5 => self.load_far_pointer(SegReg::Gs),
            0xb6 | 0xb7 => self.load_extended(size.min(2), operand_size, false),
            0xb8 => self.count_bits(),
            0xba => self.bit_test_immediate(),
            0xbc | 0xbd if self.counts_zeros() => self.count_zeros(),
            0xbc | 0xbd => self.bit_scan(),
            0xbe | 0xbf => self.load_extended(size.min(2), operand_size, true),
            0xc0 | 0xc1 => self.exchange_add(),
            0xc3 => self.store_direct(),
            0xc4 | 0xc5 => self.lane_move(),
            0xc7 => self.compare_exchange_pair(),
            0xc8..=0xcf => self.swap_bytes(),
            _ => Err(Stop::Unhandled),
        }
    }

    /// The instructions with a VEX prefix.
    fn vex(&mut self) -> Result<Flow, Stop> {
        match (self.insn.map, self.insn.opcode) {
            (Map::TwoByte, 0xae) if self.is_mxcsr() => self.mxcsr(),
            (Map::ThreeByte38, 0xf2..=0xf7) | (Map::ThreeByte3a, 0xf0) => self.vex_bits(),
            (Map::TwoByte, 0xc4 | 0xc5) | (Map::ThreeByte3a, _) => self.lane_move(),
            _ => self.vector_move(),
        }
    }

    fn three_byte(&mut self) -> Result<Flow, Stop> {
        match self.insn.opcode {
            0x2a => self.vector_move(),
            0xf0 | 0xf1 if self.insn.has(Prefixes::REPNE) => self.checksum(),
            0xf0 | 0xf1 if !self.insn.repeats() => self.move_big_endian(),
            0xf6 => self.add_with_flag(),
            0xf9 => self.store_direct(),
            _ => Err(Stop::Unhandled),
        }
    }
}
