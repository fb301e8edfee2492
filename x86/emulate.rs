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
//! Within one call all reads come first and in an order that depends on nothing but the CPU's
//! state and the values read, then comes at most one write of memory or of a port, then the
//! registers, RFLAGS, and RIP. A call that stopped can therefore be repeated, with the answers of
//! devices put in the place of their reads and writes, until it returns `Ok`. Then the answers
//! are used up: the next iteration of a REP instruction asks anew.

use crate::cpu::Access;
use crate::cpu::Cpu;
use crate::cpu::Stop;
use crate::decode::Insn;

/// Reads and decodes the instruction at CS:RIP.
///
/// `known` are its first bytes as far as the CPU has saved them (decode assists), or empty.
pub fn fetch<C: Cpu>(cpu: &mut C, known: &[u8]) -> Result<Insn, Stop> {
    let _ = (cpu, known);
    Err(Stop::Unhandled)
}

/// Executes one instruction, or one iteration of a repeated one, and advances RIP behind it.
///
/// RIP stays at a REP instruction until its last iteration. It also stays, and nothing else
/// changes, when a locked instruction lost its race for memory too often. The trap flag is left
/// to the caller: when it was set before a call that advanced RIP, a #DB is due.
///
/// IN, OUT, INS and OUTS are checked with [`io_allowed`], even if the CPU has done so before it
/// intercepted them: the guest may have written another instruction there since.
pub fn emulate<C: Cpu>(cpu: &mut C, insn: &Insn) -> Result<(), Stop> {
    let _ = (cpu, insn);
    Err(Stop::Unhandled)
}

/// The linear address of the memory operand, without any check: what INVLPG uses.
pub fn linear_address<C: Cpu>(cpu: &C, insn: &Insn) -> Option<u64> {
    let _ = (cpu, insn);
    None
}

/// The linear address of the memory operand, checked for an access of `size` bytes.
pub fn checked_address<C: Cpu>(
    cpu: &C,
    insn: &Insn,
    size: usize,
    access: Access,
) -> Result<u64, Stop> {
    let _ = (cpu, insn, size, access);
    Err(Stop::Unhandled)
}

/// The 16-bit operand of LMSW.
pub fn lmsw_value<C: Cpu>(cpu: &mut C, insn: &Insn) -> Result<u16, Stop> {
    let _ = (cpu, insn);
    Err(Stop::Unhandled)
}

/// Whether the CPU may access `size` I/O ports from `port` on (APM vol. 2, 12.2.4): else #GP(0).
pub fn io_allowed<C: Cpu>(cpu: &mut C, port: u16, size: u8) -> Result<(), Stop> {
    let _ = (cpu, port, size);
    Err(Stop::Unhandled)
}
