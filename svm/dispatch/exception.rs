// SPDX-License-Identifier: GPL-2.0-only

//! Intercepted exceptions go on to the guest (APM vol. 2, 15.12), except those that are the host's.

use super::{Action, Platform};
use crate::cpu::Guest;
use x86::regs::{vector, Exception};

/// An exception of the guest. The CPU has put DR6 into the VMCB, and not yet CR2.
pub(super) fn exception<P: Platform>(
    guest: &mut Guest<'_, P>,
    number: u8,
    error_code: u32,
    info2: u64,
) -> Action {
    let exception = match number {
        vector::MC => {
            guest.platform.machine_check();
            return Action::Resume;
        }
        vector::DB if guest.state.events.own_debug => return Action::Resume,
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
    Action::Resume
}

/// IRET with NMIs masked: it has not been executed yet, and NMIs stay masked until it has.
pub(super) fn iret<P: Platform>(guest: &mut Guest<'_, P>) -> Action {
    guest.state.events.iret_at = Some(guest.vmcb.rip());
    Action::Resume
}
