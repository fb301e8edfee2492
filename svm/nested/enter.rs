// SPDX-License-Identifier: GPL-2.0-only

//! VMRUN of the guest (APM vol. 2, 15.5): into the inner guest.

use crate::dispatch::valid_dr6;
use crate::event::{Event, Events, Instruction, QueuedException, QueuedInterrupt};
use crate::exit::ExitCode;
use crate::features::SvmFeatures;
use crate::nested::area::{Control, Registers};
use crate::nested::{InnerExit, Nested};
use crate::state::VcpuState;
use crate::vmcb::{Vmcb, DR6_RESET};
use x86::cpu::{GuestMemory, MemError};
use x86::regs::{vector, Cr0, Exception};

/// In `int_state`: the inner guest is in an interrupt shadow.
const INTERRUPT_SHADOW: u64 = 1 << 0;

/// What VMRUN finds: the VMCB at `gpa`, read once.
pub(super) fn vmrun(
    vmcb: &mut Vmcb,
    state: &mut VcpuState,
    nested: &mut Nested,
    memory: &mut impl GuestMemory,
    (gpa, next): (u64, u64),
    host: SvmFeatures,
) -> Result<(), MemError> {
    let mut control = Control::load(memory, gpa)?;
    let registers = Registers::load(memory, gpa)?;
    let paged = vmcb.cr0().contains(Cr0::PG);
    let valid = control.is_valid(&state.features, paged)
        && registers.is_valid(&state.features, control.has_paging());
    if !valid {
        let exit = InnerExit::plain(ExitCode::INVALID);
        control.set_exit(exit, 0, 0, 0);
        control.store(memory, gpa)?;
        vmcb.set_rip(next);
        state.events.gif_clear = true;
        return Ok(());
    }
    vmcb.set_rip(next);
    nested.outer = Registers::of(vmcb, state);
    nested.outer_nmi_masked = state.events.nmi_masked;
    nested.vmcb = gpa;
    nested.enter(vmcb, state, control);
    registers.apply(vmcb, state);
    state
        .debug
        .set_dr6(vmcb, valid_dr6(registers.dr6).unwrap_or(DR6_RESET));
    vmcb.set_cr2(registers.cr2);
    if control.has_paging() {
        vmcb.set_g_pat(registers.g_pat);
    }
    state.events.gif_clear = false;
    inject(vmcb, &mut state.events, &control, host);
    Ok(())
}

impl Nested {
    /// The inner guest of this control area runs from now on.
    pub(super) fn enter(&mut self, vmcb: &mut Vmcb, state: &mut VcpuState, control: Control) {
        let paging = match control.has_paging() {
            true => control.ncr3,
            // No address of a table.
            false => u64::MAX,
        };
        self.flush |= control.tlb_control != 0 || self.last != (control.asid, paging);
        self.last = (control.asid, paging);
        self.control = control;
        self.inside = true;
        self.run_pending = true;
        self.switch(vmcb);
        self.pending = None;
        vmcb.set_interrupt_shadow(control.int_state & INTERRUPT_SHADOW != 0);
        state.forget_code();
    }
}

/// Queues what EVENTINJ says. The return address of INT3, INTO and INT n is nRIP on CPUs that have
/// it (APM vol. 2, 15.20).
fn inject(vmcb: &mut Vmcb, events: &mut Events, control: &Control, host: SvmFeatures) {
    let Some(event) = Event::decode(control.event_inj) else {
        return;
    };
    let soft = match event {
        Event::Interrupt(vector) => {
            events.interrupt = Some(QueuedInterrupt {
                vector,
                soft: false,
            });
            false
        }
        Event::Nmi => {
            events.nmi_injected = true;
            false
        }
        Event::Exception(vector, error_code) => {
            events.exception = Some(QueuedException {
                exception: Exception {
                    vector,
                    error_code,
                    payload: None,
                },
                injected: true,
            });
            matches!(vector, vector::BP | vector::OF)
        }
        Event::Software(vector) => {
            events.interrupt = Some(QueuedInterrupt { vector, soft: true });
            true
        }
    };
    if soft {
        let rip = vmcb.rip();
        let next = match host.contains(SvmFeatures::NRIPS) {
            true => control.next_rip,
            false => rip,
        };
        vmcb.set_rip(next);
        events.instruction = Some(Instruction { rip, next });
    }
}
