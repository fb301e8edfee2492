// SPDX-License-Identifier: GPL-2.0-only

//! #VMEXIT of the inner guest (APM vol. 2, 15.6): back to the outer one.

use crate::cpu::Guest;
use crate::dispatch::Platform;
use crate::event::{Event, Events};
use crate::exit::ExitCode;
use crate::inject;
use crate::nested::area::{Control, Registers};
use crate::nested::{InnerExit, Nested, Told};
use crate::state::{MpState, VcpuState};
use crate::vmcb::{Vmcb, DR7_RESET};
use x86::cpu::{MemError, Stop};
use x86::regs::{vector, Cr0, Rflags};

impl Control {
    /// Notes why the inner guest exited. The event that was to be injected is gone, and all of its
    /// field is clear: kvm_amd looks at that after an NMI.
    pub(super) fn set_exit(&mut self, exit: InnerExit, event: u64, next: u64, instruction: u128) {
        self.exit_code = exit.code.0;
        (self.exit_info1, self.exit_info2) = (exit.info1, exit.info2);
        self.exit_int_info = event;
        self.event_inj = 0;
        (self.next_rip, self.instruction) = (next, instruction);
    }
}

/// The outer guest gets this exit. Its VMCB is written first; if that must wait, nothing has
/// happened. One that cannot be written shuts the guest down.
pub fn leave<P: Platform>(guest: &mut Guest<'_, P>, exit: InnerExit) -> Result<(), Stop> {
    let (vmcb, state) = (&mut *guest.vmcb, &mut *guest.state);
    let Some(nested) = guest.nested.as_deref_mut().filter(|nested| nested.inside) else {
        return Ok(());
    };
    inject::cancel(vmcb, state);
    if exit.code.0 == ExitCode::EXCP0.0 | u64::from(vector::DB) {
        // The CPU sets DR6 before it looks at the intercept (APM vol. 2, 15.12.2).
        inject::expose_exception(vmcb, state);
    }
    let (event, rip) = cut_short(vmcb, &state.events);
    let mut control = nested.control;
    let refused = exit.code == ExitCode::INVALID;
    let shadow = vmcb.interrupt_shadow() && !refused;
    control.int_state = control.int_state & !1 | u64::from(shadow);
    let (next, instruction) = match exit.told {
        Told::ByCpu => (vmcb.next_rip(), vmcb.instruction()),
        Told::NextRip(next) => (next, 0),
        Told::Nothing => (0, 0),
    };
    control.set_exit(exit, event, next, instruction);
    let mut written = control.store(guest.platform, nested.vmcb);
    if written.is_ok() && !refused {
        let registers = Registers {
            rip,
            ..Registers::of(vmcb, state)
        };
        written = registers.store(guest.platform, nested.vmcb, control.has_paging());
    }
    state.events.triple_fault = match written {
        Ok(()) => false,
        Err(MemError::WouldSleep) => return Err(Stop::WouldSleep),
        Err(MemError::Fault) => return Err(Stop::Fault),
        Err(MemError::Unbacked | MemError::ReadOnly) => true,
    };
    nested.return_to_outer(vmcb, state);
    Ok(())
}

impl Nested {
    /// The outer guest's registers are those of now.
    fn return_to_outer(&mut self, vmcb: &mut Vmcb, state: &mut VcpuState) {
        let outer = self.outer;
        let after = Registers {
            cpl: 0,
            dr7: DR7_RESET,
            cr0: outer.cr0 | Cr0::PE.bits(),
            rflags: outer.rflags & !Rflags::VM.bits(),
            ..outer
        };
        after.apply(vmcb, state);
        vmcb.set_interrupt_shadow(false);
        vmcb.set_next_rip(0);
        let events = &mut state.events;
        events.gif_clear = true;
        let nmi_masked = self.outer_nmi_masked && events.nmi_masked;
        events.leave_guest();
        events.set_nmi_masked(nmi_masked);
        state.io.clear();
        state.mp_state = MpState::Runnable;
        self.forget(vmcb);
    }
}

/// The event whose delivery the exit has cut short, for EXITINTINFO, and RIP: that of the
/// instruction, if an instruction made the event.
fn cut_short(vmcb: &Vmcb, events: &Events) -> (u64, u64) {
    let exception = events.exception.filter(|queued| queued.injected);
    let (event, soft) = if let Some(queued) = exception {
        let number = queued.exception.vector;
        let event = Event::Exception(number, queued.exception.error_code);
        (Some(event), matches!(number, vector::BP | vector::OF))
    } else if events.nmi_injected {
        (Some(Event::Nmi), false)
    } else if let Some(interrupt) = events.interrupt {
        let event = match interrupt.soft {
            true => Event::Software(interrupt.vector),
            false => Event::Interrupt(interrupt.vector),
        };
        (Some(event), interrupt.soft)
    } else {
        (None, false)
    };
    let rip = match events.instruction {
        Some(instruction) if soft && vmcb.rip() == instruction.next => instruction.rip,
        _ => vmcb.rip(),
    };
    (event.map_or(0, Event::encode), rip)
}
