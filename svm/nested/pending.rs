// SPDX-License-Identifier: GPL-2.0-only

//! Events while there is an inner guest: which of them are the outer guest's exits.
//!
//! | event | in the inner guest |
//! |---|---|
//! | an exception that the module raises | an exit, if the outer guest intercepts its vector |
//! | INIT, NMI, interrupt | likewise, by their intercepts; else as ever |
//! | V_IRQ of the outer guest's VMCB | VINTR, if it is intercepted; else it is delivered (APM vol. 2, 15.21.4) |
//!
//! An interrupt is masked by RFLAGS.IF of the outer guest with V_INTR_MASKING, else by that of the
//! inner one (APM vol. 2, 15.21.1). V_IRQ never gets to the CPU: [`Source`] makes an interrupt like
//! any other of it.

use crate::event::Given;
use crate::exit::ExitCode;
use crate::inject::{self, Entry, InterruptSource};
use crate::nested::{InnerExit, Nested};
use crate::state::VcpuState;
use crate::vmcb::{VirtualInterrupt, Vmcb};
use x86::regs::{vector, Exception, Rflags};

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// VMRUN, or what [`inject::prepare`] says.
    Enter(Entry),
    /// The outer guest is to get an exit first: [`due`] tells which.
    Leave,
}

/// [`inject::prepare`], for a vCPU that has SVM.
pub fn prepare(
    vmcb: &mut Vmcb,
    state: &mut VcpuState,
    nested: &mut Nested,
    source: &mut impl InterruptSource,
) -> Turn {
    if !nested.inside {
        return Turn::Enter(inject::prepare(vmcb, state, source));
    }
    if due(vmcb, state, nested, source).is_some() {
        return Turn::Leave;
    }
    let entry = inject::prepare(vmcb, state, &mut Source { nested, source });
    // What waits for the delivery of another event has its turn right after that.
    let waits = nested.run_pending || state.events.given != Given::Nothing;
    match entry {
        Entry::Run if waits && event(vmcb, state, nested, source).is_some() => {
            Turn::Enter(Entry::RunBriefly)
        }
        entry => Turn::Enter(entry),
    }
}

/// The exit that the outer guest is to get before the vCPU is entered again.
pub fn due(
    vmcb: &Vmcb,
    state: &VcpuState,
    nested: &Nested,
    source: &impl InterruptSource,
) -> Option<InnerExit> {
    if !nested.inside {
        return None;
    }
    let events = &state.events;
    if events.triple_fault {
        let shutdown = ExitCode::SHUTDOWN;
        return nested
            .intercepts(shutdown)
            .then_some(InnerExit::plain(shutdown));
    }
    if let Some(pending) = nested.pending {
        return Some(pending);
    }
    if nested.run_pending {
        return None;
    }
    match events.exception {
        Some(queued) if !queued.injected => exception(nested, queued.exception),
        _ => event(vmcb, state, nested, source),
    }
}

/// The exit that an exception makes (APM vol. 2, 15.12).
fn exception(nested: &Nested, exception: Exception) -> Option<InnerExit> {
    let code = ExitCode(ExitCode::EXCP0.0 | u64::from(exception.vector & 31));
    let info2 = match exception.vector {
        vector::PF => exception.payload.unwrap_or(0),
        _ => 0,
    };
    nested.intercepts(code).then_some(InnerExit {
        info1: u64::from(exception.error_code.unwrap_or(0)),
        info2,
        ..InnerExit::plain(code)
    })
}

/// The exit that an event from outside makes.
fn event(
    vmcb: &Vmcb,
    state: &VcpuState,
    nested: &Nested,
    source: &impl InterruptSource,
) -> Option<InnerExit> {
    let events = &state.events;
    if events.gif_clear || state.debug.blocks_interrupts() {
        return None;
    }
    let inner_if = vmcb.rflags().contains(Rflags::IF);
    let code = if nested.init && nested.intercepts(ExitCode::INIT) {
        ExitCode::INIT
    } else if events.nmi_pending != 0
        && !(nested.outer_nmi_masked && events.nmi_masked)
        && nested.intercepts(ExitCode::NMI)
    {
        ExitCode::NMI
    } else if nested.intercepts(ExitCode::INTR)
        && nested.lets_interrupts_in(inner_if)
        && source.has_interrupt()
    {
        ExitCode::INTR
    } else if nested.intercepts(ExitCode::VINTR)
        && nested.has_virtual_interrupt()
        && inner_if
        && !vmcb.interrupt_shadow()
        && !events.busy()
    {
        ExitCode::VINTR
    } else {
        return None;
    };
    Some(InnerExit::plain(code))
}

/// Whether a halted inner guest has something to execute, or the outer one has.
pub fn awake(
    vmcb: &Vmcb,
    state: &VcpuState,
    nested: &mut Nested,
    source: &mut impl InterruptSource,
) -> bool {
    let interrupts = vmcb.rflags().contains(Rflags::IF) && !state.events.gif_clear;
    due(vmcb, state, nested, source).is_some()
        || (interrupts && Source { nested, source }.has_interrupt())
}

impl Nested {
    /// Whether RFLAGS.IF lets the outer guest's interrupts in.
    fn lets_interrupts_in(&self, inner_if: bool) -> bool {
        match self.has_own_tpr() {
            true => Rflags::from_bits_retain(self.outer.rflags).contains(Rflags::IF),
            false => inner_if,
        }
    }

    /// Whether V_IRQ is set, and V_TPR does not hold it back (APM vol. 2, 15.21.4).
    fn has_virtual_interrupt(&self) -> bool {
        const PRIORITY_SHIFT: u32 = 16;
        let control = self.interrupt();
        let priority = (control & VirtualInterrupt::V_INTR_PRIO).bits() >> PRIORITY_SHIFT;
        control.contains(VirtualInterrupt::V_IRQ)
            && (control.contains(VirtualInterrupt::V_IGN_TPR) || priority > u32::from(self.v_tpr()))
    }

    /// V_IRQ is being delivered.
    fn take_virtual_interrupt(&mut self) -> u8 {
        self.control.int_control &= !VirtualInterrupt::V_IRQ.bits();
        self.control.int_vector as u8
    }
}

/// The inner guest's interrupts.
struct Source<'a, S> {
    nested: &'a mut Nested,
    source: &'a mut S,
}

impl<S: InterruptSource> Source<'_, S> {
    /// Whether an interrupt of the outer guest's gets into the inner one. If it is intercepted, it
    /// gets no further than to the window.
    fn passes(&self) -> bool {
        let intercepted = self.nested.intercepts(ExitCode::INTR);
        match self.nested.has_own_tpr() {
            true => !intercepted && self.nested.lets_interrupts_in(false),
            false => true,
        }
    }
}

impl<S: InterruptSource> InterruptSource for Source<'_, S> {
    fn has_interrupt(&self) -> bool {
        self.nested.has_virtual_interrupt() || (self.passes() && self.source.has_interrupt())
    }

    fn acknowledge(&mut self) -> Option<u8> {
        if self.passes() && !self.nested.intercepts(ExitCode::INTR) && self.source.has_interrupt() {
            return self.source.acknowledge();
        }
        // With the intercept it is an exit, as soon as nothing else is being delivered.
        let delivered =
            self.nested.has_virtual_interrupt() && !self.nested.intercepts(ExitCode::VINTR);
        delivered.then(|| self.nested.take_virtual_interrupt())
    }

    fn watch_cr8(&self) -> bool {
        match self.nested.has_own_tpr() {
            true => self.nested.interrupt().contains(VirtualInterrupt::V_IRQ),
            false => self.source.watch_cr8(),
        }
    }
}

impl crate::event::Events {
    /// The inner guest's events are gone: into EXITINTINFO, or with it. NMIs that wait stay.
    pub(crate) fn leave_guest(&mut self) {
        (self.exception, self.held) = (None, None);
        (self.interrupt, self.interrupt_cut_short) = (None, false);
        (self.nmi_injected, self.nmi_cut_short) = (false, false);
        self.of_vmm = false;
        self.given = Given::Nothing;
        self.instruction = None;
        self.own_debug = false;
    }
}
