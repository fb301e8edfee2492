// SPDX-License-Identifier: GPL-2.0-only

//! Instructions of the inner guest that the module executes: the outer guest gets those that it
//! intercepts, as if the CPU had met the intercept.

use crate::cpu::Guest;
use crate::dispatch::{width, Platform};
use crate::exit::{ExitCode, IoExit, RegAccess};
use crate::features::SvmFeatures;
use crate::nested::route::{msr_exits, port_exits};
use crate::nested::{InnerExit, Told};
use crate::watched::Watched;
use x86::cpu::{Cpu, Stop};
use x86::decode::Insn;
use x86::emulate::{io_allowed, linear_address};
use x86::regs::{gpr, Cr0, SegReg};

/// The exit that the outer guest gets in place of the instruction, if it gets one.
pub(crate) fn outer_exit<P: Platform>(
    guest: &mut Guest<'_, P>,
    insn: &Insn,
    watched: &Watched,
) -> Result<Option<InnerExit>, Stop> {
    let Some(nested) = guest.nested.as_deref() else {
        return Ok(None);
    };
    let mut code = watched.code;
    if code == ExitCode::CR0_WRITE && !nested.intercepts(code) && selects_cr0(guest, insn) {
        code = ExitCode::CR0_SEL_WRITE;
    }
    if !nested.intercepts(code) {
        return Ok(None);
    }
    watched.first.check(guest)?;
    let next = insn.next_rip(guest.vmcb.rip());
    let told = match guest.host.contains(SvmFeatures::NRIPS) {
        true => Told::NextRip(next),
        false => Told::Nothing,
    };
    let Some((info1, info2)) = info(guest, insn, code, next)? else {
        return Ok(None);
    };
    Ok(Some(InnerExit {
        code,
        info1,
        info2,
        told,
    }))
}

/// Whether the instruction, a write of CR0, is one for the intercept of selected writes: a MOV that
/// changes more than TS and MP, and LMSW in any case (APM vol. 2, 15.9).
pub(super) fn selects_cr0<P: Platform>(guest: &Guest<'_, P>, insn: &Insn) -> bool {
    match insn.mov_cr_operand() {
        None => insn.is_lmsw(),
        Some(operand) => changes_selected(guest, operand.gpr),
    }
}

/// Whether a MOV of this register to CR0 changes more than TS and MP.
pub(super) fn changes_selected<P: Platform>(guest: &Guest<'_, P>, gpr: u8) -> bool {
    const OTHERS: Cr0 = Cr0::TS.union(Cr0::MP);
    let new = guest.gpr(gpr) & width(guest);
    (guest.cr0().bits() ^ new) & !OTHERS.bits() != 0
}

/// EXITINFO1 and 2, or nothing if a map of the outer guest's lets the access pass.
fn info<P: Platform>(
    guest: &mut Guest<'_, P>,
    insn: &Insn,
    code: ExitCode,
    next: u64,
) -> Result<Option<(u64, u64)>, Stop> {
    /// WRMSR; RDMSR is 32.
    const WRMSR: u8 = 0x30;
    let assists = guest.host.contains(SvmFeatures::DECODE_ASSISTS);
    let info1 = match code {
        ExitCode::MSR => {
            let write = insn.opcode == WRMSR;
            let map = control(guest).1;
            if !msr_exits(guest, map, write)? {
                return Ok(None);
            }
            u64::from(write)
        }
        ExitCode::IOIO => {
            let Some(info1) = port(guest, insn)? else {
                return Ok(None);
            };
            return Ok(Some((info1, next)));
        }
        _ if !assists => 0,
        ExitCode::SWINT => u64::from(insn.immediate as u8),
        ExitCode::INVLPG => linear_address(guest, insn).unwrap_or(0),
        _ => match (insn.mov_cr_operand(), insn.mov_dr_operand()) {
            (Some(operand), _) => RegAccess::IS_MOV | u64::from(operand.gpr),
            (None, Some(operand)) => u64::from(operand.gpr),
            (None, None) => 0,
        },
    };
    Ok(Some((info1, 0)))
}

/// The outer guest's maps: of ports, and of MSRs.
fn control<P: Platform>(guest: &Guest<'_, P>) -> (u64, u64) {
    match guest.nested.as_deref() {
        Some(nested) => (nested.control.iopm, nested.control.msrpm),
        None => (0, 0),
    }
}

/// EXITINFO1 of IN, OUT, INS and OUTS. What the inner guest's own rules refuse is an exception
/// first (APM vol. 2, 15.10.1); REP without a count accesses no port.
fn port<P: Platform>(guest: &mut Guest<'_, P>, insn: &Insn) -> Result<Option<u64>, Stop> {
    let string = insn.is_string_io();
    let size = match insn.opcode & 1 {
        0 => 1,
        _ => insn.operand_size.min(4),
    };
    let rep = string && insn.repeats();
    let count = match insn.address_size {
        2 => u64::from(guest.gpr(gpr::RCX) as u16),
        4 => u64::from(guest.gpr(gpr::RCX) as u32),
        _ => guest.gpr(gpr::RCX),
    };
    if rep && count == 0 {
        return Ok(None);
    }
    let immediate = !string && insn.opcode & 8 == 0;
    let port = match immediate {
        true => u16::from(insn.immediate as u8),
        false => guest.gpr(gpr::RDX) as u16,
    };
    // The bitmap may be a device's, whose answers the instruction itself finds again.
    let rip = guest.vmcb.rip();
    guest.state.io.restart(rip);
    io_allowed(guest, port, size)?;
    let map = control(guest).0;
    if !port_exits(guest, map, port, size)? {
        return Ok(None);
    }
    let assists = guest.host.contains(SvmFeatures::DECODE_ASSISTS);
    let input = insn.opcode & 2 == 0;
    let exit = IoExit {
        port,
        size,
        input,
        string,
        rep,
        address_size: Some(insn.address_size),
        segment: match string && !input && assists {
            true => Some(insn.segment_override.unwrap_or(SegReg::Ds)),
            false => None,
        },
        next_rip: 0,
    };
    Ok(Some(exit.info1()))
}
