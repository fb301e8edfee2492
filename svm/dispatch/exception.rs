// SPDX-License-Identifier: GPL-2.0-only

//! Intercepted exceptions go on to the guest (APM vol. 2, 15.12), except those that are the host's.

use super::rip::linear_rip;
use super::{Action, Platform, Policy, UserExit};
use crate::cpu::Guest;
use crate::event::{Instruction, QueuedInterrupt};
use crate::vmcb::DR6_RESET;
use x86::cpu::Stop;
use x86::decode::{Insn, Map};
use x86::emulate::fetch;
use x86::regs::{vector, Exception, Rflags};

/// An exception of the guest. The CPU has put DR6 into the VMCB, and not yet CR2.
pub(super) fn exception<P: Platform>(
    guest: &mut Guest<'_, P>,
    number: u8,
    error_code: u32,
    info2: u64,
) -> Result<Action, Stop> {
    let exception = match number {
        // The host's, which the run loop has given to it.
        vector::MC => return Ok(Action::Resume),
        vector::DB if guest.state.events.own_debug => return Ok(Action::Resume),
        vector::DB if guest.state.debug.takes_db() => {
            let dr6 = guest.vmcb.dr6();
            guest.vmcb.set_dr6(DR6_RESET);
            return Ok(debug(number, dr6));
        }
        vector::BP if guest.state.debug.takes_bp() => return Ok(debug(number, 0)),
        vector::UD if fix_vmcall(guest)? => return Ok(Action::Resume),
        vector::PF => Exception::page_fault(info2, error_code),
        vector::DF
        | vector::TS
        | vector::NP
        | vector::SS
        | vector::GP
        | vector::AC
        | vector::CP => Exception::with_code(number, error_code),
        _ => Exception::new(number),
    };
    guest.state.events.raise(exception);
    Ok(Action::Resume)
}

/// Makes the VMCALL at RIP the VMMCALL that this CPU knows, as guests of KVM expect. It is executed
/// again then.
fn fix_vmcall<P: Platform>(guest: &mut Guest<'_, P>) -> Result<bool, Stop> {
    /// Their last bytes, and only these, differ.
    const VMCALL: u8 = 0xc1;
    const VMMCALL: u8 = 0xd9;
    if guest.policy.contains(Policy::VMCALL_FAULTS) {
        return Ok(false);
    }
    let insn = match fetch(guest, &[]) {
        Err(Stop::WouldSleep) => return Err(Stop::WouldSleep),
        Ok(insn) if insn.is(Map::TwoByte, 0x01) && insn.modrm == VMCALL && insn.length == 3 => insn,
        _ => {
            if let Some(nested) = guest.nested.as_deref_mut() {
                nested.drop_exit();
            }
            return Ok(false);
        }
    };
    let linear = linear_rip(guest, insn.mode);
    match guest.patch(linear, insn.length.into(), VMMCALL) {
        // #PF where the guest may not write.
        Err(stop @ (Stop::WouldSleep | Stop::Exception(_))) => Err(stop),
        result => Ok(result.unwrap_or(false)),
    }
}

/// IRET with NMIs masked: it has not been executed yet, and NMIs stay masked until it has. A CPU
/// with virtual NMIs sees it, and it exits only to end what was entered briefly.
pub(super) fn iret<P: Platform>(guest: &mut Guest<'_, P>) -> Action {
    if !guest.vmcb.has_virtual_nmis() {
        guest.state.events.iret_at = Some(guest.vmcb.rip());
    }
    Action::Resume
}

fn debug(vector: u8, dr6: u64) -> Action {
    Action::User(UserExit::Debug { vector, dr6 })
}

/// INT n, while the VMM debugs a guest on a CPU that may take INT3 for one.
pub(super) fn software_interrupt<P: Platform>(guest: &mut Guest<'_, P>) -> Result<Action, Stop> {
    let insn = fetch(guest, &[])?;
    if is_int3(&insn) {
        return Ok(debug(vector::BP, 0));
    }
    guest.state.events.interrupt = Some(QueuedInterrupt {
        vector: insn.immediate as u8,
        soft: true,
    });
    go_behind(guest, &insn);
    Ok(Action::Resume)
}

/// The VMM has set the events. The handler of a #BP or #OF returns behind the INT3 or INTO, if
/// there is one at RIP.
pub fn events_set<P: Platform>(guest: &mut Guest<'_, P>) {
    let events = &mut guest.state.events;
    let exception = events.exception.map(|queued| queued.exception.vector);
    let trap = exception.filter(|number| matches!(*number, vector::BP | vector::OF));
    let soft = matches!(&events.interrupt, Some(interrupt) if interrupt.soft);
    if trap.is_none() && !soft {
        events.instruction = None;
    } else if let (Some(number), None) = (trap, events.instruction) {
        if let Ok(insn) = fetch(guest, &[]) {
            let its = match number {
                vector::BP => is_int3(&insn),
                _ => insn.is(Map::OneByte, 0xce),
            };
            if its {
                go_behind(guest, &insn);
            }
        }
    }
}

fn is_int3(insn: &Insn) -> bool {
    insn.is(Map::OneByte, 0xcc)
}

/// An event from this instruction is to be injected: its handler returns behind it, and with RF
/// clear, as after any instruction (APM vol. 2, 3.1.6).
fn go_behind<P: Platform>(guest: &mut Guest<'_, P>, insn: &Insn) {
    let rip = guest.vmcb.rip();
    let next = insn.next_rip(rip);
    guest.vmcb.set_rip(next);
    let flags = guest.vmcb.rflags();
    guest.vmcb.set_rflags(flags.difference(Rflags::RF));
    let events = &mut guest.state.events;
    events.instruction = Some(Instruction { rip, next });
}
