// SPDX-License-Identifier: GPL-2.0-only

//! Whose an exit of the inner guest is: the outer guest's if it intercepts what the exit is about.
//!
//! Interrupts, NMIs, SMIs and machine checks of the host never get here, nor does a nested fault:
//! see [`crate::nested::resolve`].

use crate::cpu::Guest;
use crate::dispatch::{Action, Platform};
use crate::exit::{Exit, ExitCode};
use crate::msrpm;
use crate::nested::emulated::{changes_selected, selects_cr0};
use crate::nested::{leave, InnerExit, Told};
use x86::cpu::{MemError, Stop};
use x86::emulate::fetch;
use x86::regs::{gpr, vector};

/// Gives the exit to the outer guest, if it is its. `None` if it is ours, as all are outside of
/// the inner guest.
#[inline(never)] // It is not on the way of guests that have no SVM.
pub(crate) fn route<P: Platform>(
    guest: &mut Guest<'_, P>,
    exit: &Exit,
) -> Option<Result<Action, Stop>> {
    let code = match belongs_to_outer(guest, exit) {
        Ok(code) => code?,
        Err(stop) => return Some(Err(stop)),
    };
    let told = InnerExit {
        told: Told::ByCpu,
        ..InnerExit::plain(code)
    };
    let exit = match code {
        ExitCode::INVALID => InnerExit::plain(code),
        ExitCode::SHUTDOWN => {
            define(guest);
            InnerExit::plain(code)
        }
        code if has_info(code) => InnerExit {
            info1: guest.vmcb.exit_info1(),
            info2: guest.vmcb.exit_info2(),
            ..told
        },
        _ => told,
    };
    Some(leave(guest, exit).map(|()| Action::Resume))
}

/// Whether the CPU tells more than the code: of what it does not tell EXITINFO is undefined (APM
/// vol. 2, 15.7.2).
fn has_info(code: ExitCode) -> bool {
    code <= ExitCode::EXCP31
        || matches!(
            code,
            ExitCode::CR0_SEL_WRITE
                | ExitCode::SWINT
                | ExitCode::INVLPG
                | ExitCode::INVLPGA
                | ExitCode::IOIO
                | ExitCode::MSR
                | ExitCode::TASK_SWITCH
                | ExitCode::INVPCID
        )
}

/// What a shutdown saves is undefined (APM vol. 2, 15.14.3), and some of it would stay in the VMCB
/// for the outer guest: the inner one was reset.
fn define<P: Platform>(guest: &mut Guest<'_, P>) {
    guest.vmcb.reset_after_shutdown();
    guest.vmcb.reset_registers();
    guest.state.events.leave_guest();
    if let Some(nested) = guest.nested.as_deref() {
        guest.vmcb.set_g_pat(nested.outer.g_pat);
    }
}

/// The code with which the outer guest gets the exit.
fn belongs_to_outer<P: Platform>(
    guest: &mut Guest<'_, P>,
    exit: &Exit,
) -> Result<Option<ExitCode>, Stop> {
    let Some(nested) = guest.nested.as_deref().filter(|nested| nested.inside) else {
        return Ok(None);
    };
    let code = ExitCode(guest.vmcb.exit_code());
    let wanted = nested.intercepts(code);
    let its = match *exit {
        // The CPU has refused what our checks have let through.
        Exit::Invalid => return Ok(Some(ExitCode::INVALID)),
        Exit::Intr | Exit::Nmi | Exit::Smi | Exit::Init | Exit::Vintr => false,
        Exit::Exception { vector, .. } => wanted && !is_debuggers(guest, vector),
        // Ours is of all writes, the outer guest's of some.
        Exit::Cr(access)
            if !wanted
                && code == ExitCode::CR0_WRITE
                && nested.intercepts(ExitCode::CR0_SEL_WRITE) =>
        {
            let selects = match access.gpr {
                Some(gpr) => changes_selected(guest, gpr),
                None => {
                    let insn = fetch(guest, &[])?;
                    selects_cr0(guest, &insn)
                }
            };
            return Ok(selects.then_some(ExitCode::CR0_SEL_WRITE));
        }
        Exit::Cr0SelWrite(_) if !wanted && nested.intercepts(ExitCode::CR0_WRITE) => {
            return Ok(Some(ExitCode::CR0_WRITE));
        }
        Exit::Io(io) if wanted => {
            let map = nested.control.iopm;
            port_exits(guest, map, io.port, io.size)?
        }
        Exit::Msr { write } if wanted => {
            let map = nested.control.msrpm;
            msr_exits(guest, map, write)?
        }
        _ => wanted,
    };
    Ok(its.then_some(code))
}

/// Whether an exception is the VMM's debugger's, or of a step of our own.
fn is_debuggers<P: Platform>(guest: &Guest<'_, P>, number: u8) -> bool {
    let debug = &guest.state.debug;
    match number {
        vector::DB => guest.state.events.own_debug || debug.takes_db(),
        vector::BP => debug.takes_bp(),
        _ => false,
    }
}

/// Whether the outer guest's map says that the port exits (APM vol. 2, 15.10.1).
pub(super) fn port_exits<P: Platform>(
    guest: &mut Guest<'_, P>,
    map: u64,
    port: u16,
    size: u8,
) -> Result<bool, Stop> {
    let first = u64::from(port);
    for port in first..first.wrapping_add(u64::from(size)) {
        let byte = map_byte(guest, map, port >> 3)?;
        if byte >> (port & 7) & 1 != 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the outer guest's map says that the MSR exits (APM vol. 2, 15.11).
pub(super) fn msr_exits<P: Platform>(
    guest: &mut Guest<'_, P>,
    map: u64,
    write: bool,
) -> Result<bool, Stop> {
    let index = guest.state.regs.get(gpr::RCX) as u32;
    let Some((offset, shift)) = msrpm::position(index) else {
        return Ok(true);
    };
    let byte = map_byte(guest, map, offset as u64)?;
    let bit = shift.wrapping_add(u32::from(write));
    Ok(byte.wrapping_shr(bit) & 1 != 0)
}

/// A byte of a map in the outer guest's memory. Where there is none, everything exits.
fn map_byte<P: Platform>(guest: &mut Guest<'_, P>, map: u64, offset: u64) -> Result<u8, Stop> {
    let mut byte = [0xff];
    let at = (map & !0xfff).wrapping_add(offset);
    match guest.platform.read_gpa(at, &mut byte) {
        Ok(()) | Err(MemError::Unbacked | MemError::ReadOnly) => {}
        Err(MemError::WouldSleep) => return Err(Stop::WouldSleep),
        Err(MemError::Fault) => return Err(Stop::Fault),
    }
    let [byte] = byte;
    Ok(byte)
}
