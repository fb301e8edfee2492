// SPDX-License-Identifier: GPL-2.0-only

//! Control and debug registers (APM vol. 2, 15.8.1, 15.9).

use super::device::emulate;
use super::rip::{advance, next_rip, Opcode};
use super::{Action, Platform, UserExit};
use crate::cpu::Guest;
use crate::exit::RegAccess;
use crate::features::SvmFeatures;
use crate::nested::Nested;
use crate::requests::Requests;
use crate::state::{guest_cr0, guest_cr4, set_guest_cr0, set_guest_cr4, set_guest_efer};
use x86::cpu::{Cpu, Stop};
use x86::decode::CodeSize;
use x86::emulate::{code_size, fetch};
use x86::regs::{vector, Cr0, Cr4, Efer, Exception, SegAttr, SegReg};
use x86::sregs::{write_cr0, write_cr3, write_cr4, ControlRegs};

/// A MOV between a general-purpose register and a control or debug register, and what follows it.
#[derive(Clone, Copy)]
struct Move {
    register: u8,
    gpr: u8,
    write: bool,
    next: u64,
}

/// The registers that depend on each other, as the guest sees them.
pub fn control_regs<P: Platform>(guest: &Guest<'_, P>) -> ControlRegs {
    ControlRegs {
        cr0: guest_cr0(guest.vmcb, guest.state),
        cr3: guest.vmcb.cr3(),
        cr4: guest_cr4(guest.vmcb, guest.state),
        efer: guest.efer(),
        cs_l: guest
            .vmcb
            .segment(SegReg::Cs)
            .attributes
            .contains(SegAttr::L),
    }
}

/// Sets them, to values that have been checked. If the translation of addresses may have changed,
/// the guest's TLB entries go (APM vol. 2, 5.5.2).
pub fn set_control_regs<P: Platform>(guest: &mut Guest<'_, P>, regs: &ControlRegs) {
    const CR0: Cr0 = Cr0::PG.union(Cr0::WP);
    const CR4: Cr4 = Cr4::PSE
        .union(Cr4::PAE)
        .union(Cr4::PGE)
        .union(Cr4::LA57)
        .union(Cr4::PCIDE)
        .union(Cr4::SMEP)
        .union(Cr4::SMAP)
        .union(Cr4::PKE)
        .union(Cr4::CET);
    const EFER: Efer = Efer::NXE.union(Efer::LMA);
    let old = control_regs(guest);
    let translation_changed = (old.cr0 ^ regs.cr0).intersects(CR0)
        || (old.cr4 ^ regs.cr4).intersects(CR4)
        || (old.efer ^ regs.efer).intersects(EFER)
        || old.cr3 != regs.cr3;
    set_guest_cr0(guest.vmcb, guest.state, regs.cr0);
    guest.vmcb.set_cr3(regs.cr3);
    set_guest_cr4(guest.vmcb, guest.state, regs.cr4);
    set_guest_efer(guest.vmcb, guest.state, regs.efer);
    if translation_changed {
        guest.platform.request(Requests::TLB_FLUSH);
    }
}

/// MOV CRn, LMSW, SMSW, CLTS.
pub(super) fn cr<P: Platform>(guest: &mut Guest<'_, P>, access: RegAccess) -> Result<Action, Stop> {
    if let Some(gpr) = access.gpr {
        let next = behind(guest, access)?;
        return move_cr(
            guest,
            Move {
                register: access.register,
                gpr,
                write: access.write,
                next,
            },
        );
    }
    // Of those without a register, the emulator leaves only CLTS to this.
    if let Some(next) = access.next {
        return clts(guest, next);
    }
    let insn = fetch(guest, &[])?;
    let next = insn.next_rip(guest.vmcb.rip());
    if let Some(operand) = insn.mov_cr_operand() {
        return move_cr(
            guest,
            Move {
                register: operand.register,
                gpr: operand.gpr,
                write: operand.write,
                next,
            },
        );
    }
    if insn.is_smsw() || insn.is_lmsw() {
        return emulate(guest, None);
    }
    match insn.is_clts() {
        true => clts(guest, next),
        false => Err(Stop::Unhandled),
    }
}

/// RIP behind the MOV.
fn behind<P: Platform>(guest: &mut Guest<'_, P>, access: RegAccess) -> Result<u64, Stop> {
    match access.next {
        Some(next) => Ok(next),
        None => next_rip(guest, Opcode::ANY),
    }
}

fn clts<P: Platform>(guest: &mut Guest<'_, P>, next: u64) -> Result<Action, Stop> {
    if guest.cpl() != 0 {
        return Err(Exception::GP0.into());
    }
    let value = guest_cr0(guest.vmcb, guest.state).difference(Cr0::TS);
    let regs = write_cr0(&control_regs(guest), value.bits())?;
    set_control_regs(guest, &regs);
    advance(guest, next);
    Ok(Action::Resume)
}

/// Does what LMSW does with its operand.
pub(crate) fn load_machine_status_word<P: Platform>(
    guest: &mut Guest<'_, P>,
    value: u16,
) -> Result<(), Stop> {
    /// What LMSW writes; it can set PE, and not clear it.
    const LMSW: Cr0 = Cr0::PE.union(Cr0::MP).union(Cr0::EM).union(Cr0::TS);
    let cr0 = guest_cr0(guest.vmcb, guest.state);
    let value = Cr0::from_bits_retain(u64::from(value)) & LMSW;
    let new = cr0.difference(LMSW) | value | (cr0 & Cr0::PE);
    let regs = write_cr0(&control_regs(guest), new.bits())?;
    set_control_regs(guest, &regs);
    Ok(())
}

fn move_cr<P: Platform>(guest: &mut Guest<'_, P>, operand: Move) -> Result<Action, Stop> {
    if guest.cpl() != 0 {
        return Err(Exception::GP0.into());
    }
    let action = if operand.write {
        let value = guest.gpr(operand.gpr) & width(guest);
        write_cr(guest, operand.register, value)?
    } else {
        let value = read_cr(guest, operand.register)? & width(guest);
        guest.set_gpr(operand.gpr, value);
        Action::Resume
    };
    advance(guest, operand.next);
    Ok(action)
}

/// MOV CRn and MOV DRn are 64 bits wide in 64-bit mode, and 32 bits elsewhere.
pub(crate) fn width<P: Platform>(guest: &Guest<'_, P>) -> u64 {
    const LOW: u64 = 0xffff_ffff;
    match code_size(guest) {
        CodeSize::Bits64 => u64::MAX,
        _ => LOW,
    }
}

fn read_cr<P: Platform>(guest: &Guest<'_, P>, register: u8) -> Result<u64, Exception> {
    match register {
        0 => Ok(guest_cr0(guest.vmcb, guest.state).bits()),
        2 => Ok(guest.vmcb.cr2()),
        3 => Ok(guest.vmcb.cr3()),
        4 => Ok(guest_cr4(guest.vmcb, guest.state).bits()),
        8 => Ok(match own_tpr(guest) {
            Some(nested) => u64::from(nested.v_tpr()),
            None => u64::from(guest.vmcb.v_tpr()),
        }),
        _ => Err(Exception::UD),
    }
}

fn write_cr<P: Platform>(
    guest: &mut Guest<'_, P>,
    register: u8,
    value: u64,
) -> Result<Action, Exception> {
    let old = control_regs(guest);
    let new = match register {
        0 => write_cr0(&old, value)?,
        2 => {
            guest.vmcb.set_cr2(value);
            return Ok(Action::Resume);
        }
        3 => {
            let (new, keep_tlb) = write_cr3(&old, value, &guest.state.features)?;
            guest.vmcb.set_cr3(new.cr3);
            if !keep_tlb {
                guest.platform.request(Requests::TLB_FLUSH);
            }
            return Ok(Action::Resume);
        }
        4 => write_cr4(&old, value, &guest.state.features)?,
        8 => return write_cr8(guest, value),
        _ => return Err(Exception::UD),
    };
    set_control_regs(guest, &new);
    Ok(Action::Resume)
}

/// The inner guest, if CR8 is its own.
fn own_tpr<'a, P: Platform>(guest: &'a Guest<'_, P>) -> Option<&'a Nested> {
    guest
        .nested
        .as_deref()
        .filter(|nested| nested.has_own_tpr())
}

/// CR8 is the task priority (APM vol. 2, 16.6.4); V_TPR holds it (APM vol. 2, 15.21.2).
fn write_cr8<P: Platform>(guest: &mut Guest<'_, P>, value: u64) -> Result<Action, Exception> {
    const MAX: u64 = 15;
    if value > MAX {
        return Err(Exception::GP0);
    }
    if let Some(nested) = guest
        .nested
        .as_deref_mut()
        .filter(|nested| nested.has_own_tpr())
    {
        nested.set_v_tpr(value as u8);
        return Ok(Action::Resume);
    }
    let (old, new) = (guest.vmcb.v_tpr(), value as u8);
    guest.vmcb.set_v_tpr(new);
    Ok(if guest.platform.cr8_written(old, new) {
        Action::User(UserExit::SetTpr)
    } else {
        Action::Resume
    })
}

/// General detect enable, in DR7.
const DR7_GD: u64 = 1 << 13;
/// General detect, in DR6.
const DR6_BD: u64 = 1 << 13;

/// MOV DRn (APM vol. 2, 13.1.1).
pub(super) fn dr<P: Platform>(guest: &mut Guest<'_, P>, access: RegAccess) -> Result<Action, Stop> {
    let operand = match access.gpr {
        Some(gpr) if access.next.is_some() || guest.host.contains(SvmFeatures::DECODE_ASSISTS) => {
            Move {
                register: access.register,
                gpr,
                write: access.write,
                next: behind(guest, access)?,
            }
        }
        _ => {
            let insn = fetch(guest, &[])?;
            let operand = insn.mov_dr_operand().ok_or(Stop::Unhandled)?;
            Move {
                register: operand.register,
                gpr: operand.gpr,
                write: operand.write,
                next: insn.next_rip(guest.vmcb.rip()),
            }
        }
    };
    let register = check_dr(guest, operand.register)?;
    if guest.vmcb.dr7() & DR7_GD != 0 {
        let dr6 = guest.vmcb.dr6() | DR6_BD;
        return Ok(Action::User(UserExit::Debug {
            vector: vector::DB,
            dr6,
        }));
    }
    if operand.write {
        let value = guest.gpr(operand.gpr) & width(guest);
        write_dr(guest, register, value)?;
    } else {
        let value = read_dr(guest, register) & width(guest);
        guest.set_gpr(operand.gpr, value);
    }
    advance(guest, operand.next);
    Ok(Action::Resume)
}

/// The register that this number means, if the guest may access it now. With general detect the
/// access is a #DB, or the VMM's, if it debugs the guest.
pub(crate) fn check_dr<P: Platform>(guest: &Guest<'_, P>, number: u8) -> Result<u8, Exception> {
    let register = dr_number(guest, number)?;
    if guest.cpl() != 0 {
        return Err(Exception::GP0);
    }
    if guest.vmcb.dr7() & DR7_GD != 0 && guest.state.debug.breakpoints().is_none() {
        return Err(Exception {
            payload: Some(DR6_BD),
            ..Exception::new(vector::DB)
        });
    }
    Ok(register)
}

/// DR4 and DR5 are DR6 and DR7 under other names, until CR4.DE makes them undefined.
fn dr_number<P: Platform>(guest: &Guest<'_, P>, register: u8) -> Result<u8, Exception> {
    match register {
        0..=3 | 6 | 7 => Ok(register),
        4 | 5 if !guest.cr4().contains(Cr4::DE) => Ok(register | 2),
        _ => Err(Exception::UD),
    }
}

fn read_dr<P: Platform>(guest: &Guest<'_, P>, register: u8) -> u64 {
    match guest.state.db.get(usize::from(register)) {
        Some(&value) => value,
        None if register == 6 => guest.state.debug.dr6(guest.vmcb),
        None => guest.state.debug.dr7(guest.vmcb),
    }
}

fn write_dr<P: Platform>(
    guest: &mut Guest<'_, P>,
    register: u8,
    value: u64,
) -> Result<(), Exception> {
    if let Some(breakpoint) = guest.state.db.get_mut(usize::from(register)) {
        *breakpoint = value;
    } else if register == 6 {
        guest.state.debug.set_dr6(guest.vmcb, valid_dr6(value)?);
    } else {
        guest.state.debug.set_dr7(guest.vmcb, valid_dr7(value)?);
    }
    Ok(())
}

/// What DR6 becomes when the guest or the VMM writes it (APM vol. 2, 13.1.1.3): #GP for the upper
/// half, reserved bits read as they always do.
pub fn valid_dr6(value: u64) -> Result<u64, Exception> {
    /// B0 to B3, BD, BS, BT.
    const WRITABLE: u64 = 0xe00f;
    if value >> 32 != 0 {
        return Err(Exception::GP0);
    }
    Ok(value & WRITABLE | crate::vmcb::DR6_RESET)
}

/// What DR7 becomes (APM vol. 2, 13.1.1.4), likewise.
pub fn valid_dr7(value: u64) -> Result<u64, Exception> {
    /// All but bits 10 (one), 11, 12, 14 and 15 (zero).
    const WRITABLE: u64 = 0xffff_23ff;
    if value >> 32 != 0 {
        return Err(Exception::GP0);
    }
    Ok(value & WRITABLE | crate::vmcb::DR7_RESET)
}
