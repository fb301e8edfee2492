// SPDX-License-Identifier: GPL-2.0-only

//! Before VMRUN the next event goes in, after #VMEXIT what was cut short is taken back.
//!
//! Order of what goes into EVENTINJ (APM vol. 2, 15.20 and table 8-6):
//!
//! | what                        | when                                                    |
//! |-----------------------------|---------------------------------------------------------|
//! | an exception                | always; of the VMM's own: behind the next row           |
//! | an injected NMI, interrupt  | its delivery has begun, so always                       |
//! | a pending NMI               | NMIs not masked, no shadow; else the NMI window opens   |
//! | a pending interrupt         | IF, no shadow; else the interrupt window opens          |
//!
//! Windows. The *interrupt window* is a virtual interrupt that never gets delivered, because its
//! intercept comes first. It ignores the task priority: the controller has looked at that. QEMU
//! aborts when a MOV to CR8 meets a virtual interrupt, so these exit meanwhile. The *NMI window*
//! has two steps:
//!
//! ```text
//!   masked ── IRET intercept ──► exit before the IRET ── single step ──► #DB behind it: unmasked
//! ```
//!
//! A CPU with virtual NMIs needs no such window: it has the mask and one NMI that waits, delivers
//! that as soon as it may, and knows the IRET (APM vol. 2, 15.21.10).

use crate::debug::GuestDebug;
use crate::debug_ctl;
use crate::event::{Event, Events, Given, Instruction, QueuedInterrupt, Step};
use crate::exit::ExitCode;
use crate::features::SvmFeatures;
use crate::intercept::{CrIntercepts, Word3};
use crate::state::VcpuState;
use crate::vmcb::{VirtualInterrupt, Vmcb};
use x86::regs::{gpr, vector, Cr0, Exception, Rflags};

/// Where interrupts come from: the local APIC in the kernel, or `KVM_INTERRUPT`.
pub trait InterruptSource {
    /// Whether an interrupt could be taken now, as far as the controller is concerned (task
    /// priority included). Must not change anything. May answer `true` without an interrupt if the
    /// VMM only asked for a window.
    fn has_interrupt(&self) -> bool;

    /// Takes the interrupt: the controller counts it as being in service.
    fn acknowledge(&mut self) -> Option<u8>;

    /// Whether a guest's write of CR8 must exit. With a local APIC in the kernel: only while an
    /// interrupt is held back by the task priority. With one in the VMM: always.
    fn watch_cr8(&self) -> bool;
}

/// What to do after [`prepare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// VMRUN.
    Run,
    /// VMRUN, and better have the guest exit again as soon as the event in EVENTINJ is delivered
    /// (an IPI to this CPU, sent with interrupts off, does): an NMI waits behind it. Without, it
    /// waits for the IRET of the event's handler at the latest.
    RunBriefly,
    /// A triple fault: `KVM_EXIT_SHUTDOWN`.
    Shutdown,
}

/// Makes the VMCB ready for VMRUN: puts RAX and RSP, the most urgent event and the intercepts of
/// windows into it.
///
/// May be called again without a VMRUN in between: nothing gets lost.
#[inline]
pub fn prepare(vmcb: &mut Vmcb, state: &mut VcpuState, source: &mut impl InterruptSource) -> Entry {
    if state.events.triple_fault {
        state.events.triple_fault = false;
        return Entry::Shutdown;
    }
    vmcb.set_rax(state.regs.get(gpr::RAX));
    vmcb.set_rsp(state.regs.get(gpr::RSP));
    let VcpuState { events, debug, .. } = state;
    events.release();
    let mut interrupt_window = source.has_interrupt();
    let mut nmi = events.nmi_pending != 0;
    if (interrupt_window || nmi) && (debug.blocks_interrupts() || events.gif_clear) {
        (interrupt_window, nmi) = (false, false);
    }
    if nmi {
        take_up_nmi(vmcb, events);
    }
    if interrupt_window {
        interrupt_window = take_up_interrupt(vmcb, events, source);
    }
    give(vmcb, events, debug);

    let mut briefly = events.vmm_waits();
    let waits = nmi && events.nmi_pending != 0;
    let mut iret_exits = events.nmi_masked && events.iret_at.is_none();
    if vmcb.has_virtual_nmis() {
        give_virtual_nmi(vmcb, events, waits);
        iret_exits = false;
    } else if waits {
        match nmi_window(vmcb, events) {
            NmiWindow::AfterDelivery => briefly = true,
            NmiWindow::EndOfShadow => interrupt_window = true,
            NmiWindow::Iret => {}
            NmiWindow::Step { iret } => step(vmcb, events, iret),
        }
    }
    let cr8_exits = interrupt_window || source.watch_cr8();
    set_windows(vmcb, interrupt_window, briefly || iret_exits, cr8_exits);
    if briefly {
        Entry::RunBriefly
    } else {
        Entry::Run
    }
}

/// A pending NMI becomes an injected one, if it may.
#[inline]
fn take_up_nmi(vmcb: &Vmcb, events: &mut Events) {
    if !events.busy() && !events.nmi_masked && !vmcb.interrupt_shadow() {
        events.nmi_pending = events.nmi_pending.saturating_sub(1);
        events.nmi_injected = true;
        events.nmi_masked = true;
        events.iret_at = None;
    }
}

/// A pending interrupt becomes an injected one, if it may. Whether one is pending still.
fn take_up_interrupt(vmcb: &Vmcb, events: &mut Events, source: &mut impl InterruptSource) -> bool {
    if events.busy() || !interrupts_allowed(vmcb) {
        return true;
    }
    events.interrupt = source.acknowledge().map(|vector| QueuedInterrupt {
        vector,
        soft: false,
    });
    source.has_interrupt()
}

#[inline]
fn interrupts_allowed(vmcb: &Vmcb) -> bool {
    vmcb.rflags().contains(Rflags::IF) && !vmcb.interrupt_shadow()
}

/// Writes EVENTINJ.
#[inline]
fn give(vmcb: &mut Vmcb, events: &mut Events, debug: &mut GuestDebug) {
    let (given, event) = next(vmcb, events, debug);
    events.given = given;
    vmcb.set_event_inj(event.map_or(0, Event::encode));
}

/// The most urgent event.
#[inline]
fn next(vmcb: &mut Vmcb, events: &mut Events, debug: &mut GuestDebug) -> (Given, Option<Event>) {
    let waits = events.exception_waits();
    if let Some(queued) = events.exception.as_mut().filter(|_| !waits) {
        if !queued.injected {
            deliver_payload(vmcb, debug, queued.exception);
            queued.injected = true;
        }
        let Exception {
            vector, error_code, ..
        } = queued.exception;
        if let Some(instruction) = events.instruction {
            if matches!(vector, vector::BP | vector::OF) {
                return (soft(vmcb), Some(Event::Exception(vector, None)));
            }
            go_back(vmcb, events, instruction);
        }
        if matches!(vector, vector::BP | vector::OF) {
            vmcb.set_next_rip(vmcb.rip());
        }
        // Real mode has none (APM vol. 2, 8.6).
        let error_code = error_code.filter(|_| vmcb.cr0().contains(Cr0::PE));
        return (Given::Exception, Some(Event::Exception(vector, error_code)));
    }
    if events.nmi_injected {
        if !events.nmi_masked {
            events.set_nmi_masked(true);
        }
        return (Given::Nmi, Some(Event::Nmi));
    }
    match events.interrupt {
        Some(QueuedInterrupt {
            vector,
            soft: false,
        }) => (Given::Interrupt, Some(Event::Interrupt(vector))),
        Some(QueuedInterrupt { vector, soft: true }) if events.instruction.is_some() => {
            (soft(vmcb), Some(Event::Software(vector)))
        }
        // RIP is at the INT n: it is executed again.
        Some(QueuedInterrupt { soft: true, .. }) => (Given::Interrupt, None),
        None => (Given::Nothing, None),
    }
}

/// The delivery of an INT3 or INT n has ended in an exception, whose handler returns to that
/// instruction.
#[cold]
fn go_back(vmcb: &mut Vmcb, events: &mut Events, instruction: Instruction) {
    events.instruction = None;
    events.interrupt = events.interrupt.filter(|interrupt| !interrupt.soft);
    if vmcb.rip() == instruction.next {
        vmcb.set_rip(instruction.rip);
    }
}

/// Some CPUs take the return address from RIP, others from nRIP (APM vol. 2, 15.20).
#[cold]
fn soft(vmcb: &mut Vmcb) -> Given {
    vmcb.set_next_rip(vmcb.rip());
    Given::Soft(vmcb.rip())
}

/// Puts the payload of a pending exception to where its handler will find it: CR2, DR6. For a VMM
/// that is about to read the state, and knows no payloads. The exception stays pending.
pub fn expose_exception(vmcb: &mut Vmcb, state: &mut VcpuState) {
    if let Some(queued) = &mut state.events.exception {
        if !queued.injected {
            deliver_payload(vmcb, &mut state.debug, queued.exception);
            queued.exception.payload = None;
        }
    }
}

/// What comes with an exception besides its stack frame: CR2, DR6 and DR7 (APM vol. 2, 8.2.2,
/// 8.2.15), and RFLAGS.RF in the frame of a fault (APM vol. 2, 3.1.6).
fn deliver_payload(vmcb: &mut Vmcb, debug: &mut GuestDebug, exception: Exception) {
    /// General detect enable in DR7.
    const DR7_GD: u64 = 1 << 13;
    /// The breakpoint conditions in DR6, which every #DB sets anew, ...
    const DR6_BREAKPOINTS: u64 = 0xf;
    /// ... and BD, BS and BT. A VMM may ask for anything.
    const DR6_CAUSES: u64 = DR6_BREAKPOINTS | 0b111 << 13;
    match (exception.vector, exception.payload) {
        (vector::PF, Some(address)) => vmcb.set_cr2(address),
        (vector::DB, payload) => {
            if let Some(bits) = payload {
                let dr6 = (debug.dr6(vmcb) & !DR6_BREAKPOINTS) | bits & DR6_CAUSES;
                debug.set_dr6(vmcb, dr6);
            }
            let dr7 = debug.dr7(vmcb);
            if dr7 & DR7_GD != 0 {
                debug.set_dr7(vmcb, dr7 & !DR7_GD);
            }
            debug_ctl::debug_exception(vmcb);
        }
        _ => {}
    }
    if !matches!(
        exception.vector,
        vector::DB | vector::BP | vector::OF | vector::DF | vector::MC
    ) {
        vmcb.set_rflags(vmcb.rflags() | Rflags::RF);
    }
}

/// The CPU has the mask, and delivers the NMI that waits.
#[inline]
fn give_virtual_nmi(vmcb: &mut Vmcb, events: &mut Events, waits: bool) {
    events.virtual_nmi = waits;
    let mut control = vmcb.virtual_interrupt();
    control.set(VirtualInterrupt::V_NMI_PENDING, waits);
    control.set(VirtualInterrupt::V_NMI_BLOCKING, events.nmi_masked);
    if control != vmcb.virtual_interrupt() {
        vmcb.set_virtual_interrupt(control);
    }
}

/// Takes back what the CPU has made of it.
#[inline]
fn take_back_virtual_nmi(vmcb: &Vmcb, events: &mut Events) {
    let control = vmcb.virtual_interrupt();
    if core::mem::take(&mut events.virtual_nmi)
        && !control.contains(VirtualInterrupt::V_NMI_PENDING)
    {
        events.nmi_pending = events.nmi_pending.saturating_sub(1);
    }
    events.nmi_masked = control.contains(VirtualInterrupt::V_NMI_BLOCKING);
}

/// How the guest gets to the point where an NMI can be delivered.
enum NmiWindow {
    /// Something else is being delivered at this entry.
    AfterDelivery,
    /// The interrupt window opens when the shadow ends.
    EndOfShadow,
    /// By an IRET, which exits.
    Iret,
    /// By one step.
    Step { iret: bool },
}

fn nmi_window(vmcb: &Vmcb, events: &Events) -> NmiWindow {
    if events.nmi_masked && events.iret_at.is_none() {
        NmiWindow::Iret
    } else if events.given != Given::Nothing {
        NmiWindow::AfterDelivery
    } else if events.nmi_masked {
        NmiWindow::Step { iret: true }
    } else if vmcb.rflags().contains(Rflags::IF) {
        NmiWindow::EndOfShadow
    } else {
        NmiWindow::Step { iret: false }
    }
}

/// Single-steps the guest. RF keeps an instruction breakpoint on an IRET, which was met already,
/// from being met again.
fn step(vmcb: &mut Vmcb, events: &mut Events, iret: bool) {
    if events.step.is_some() {
        return;
    }
    let flags = vmcb.rflags();
    events.step = Some(Step {
        rip: vmcb.rip(),
        iret,
        flags: flags.bits(),
        dr6: vmcb.dr6(),
        btf: debug_ctl::begin_step(vmcb),
    });
    let rf = if iret { Rflags::RF } else { Rflags::empty() };
    vmcb.set_rflags(flags | Rflags::TF | rf);
}

/// Takes back what [`prepare`] did to the guest's registers: to be called when the vCPU goes back
/// to the VMM, or is copied, without a VMRUN. Events stay queued.
pub fn cancel(vmcb: &mut Vmcb, state: &mut VcpuState) {
    if let Some(step) = state.events.step.take() {
        let had = Rflags::from_bits_retain(step.flags);
        let ours = (Rflags::TF | Rflags::RF).difference(had);
        vmcb.set_rflags(vmcb.rflags().difference(ours));
        debug_ctl::end_step(vmcb, step.btf);
    }
}

/// Undoes [`step`], and finds out whether the exit is its #DB.
#[inline(never)]
fn end_step(vmcb: &mut Vmcb, events: &mut Events, step: Step) {
    const DR6_BS: u64 = 1 << 14;
    let had = Rflags::from_bits_retain(step.flags);
    let executed = vmcb.rip() != step.rip;
    debug_ctl::end_step(vmcb, step.btf);
    if !(step.iret && executed) {
        let ours = (Rflags::TF | Rflags::RF).difference(had);
        vmcb.set_rflags(vmcb.rflags().difference(ours));
    }
    let debug = ExitCode(ExitCode::EXCP0.0 | u64::from(vector::DB));
    if ExitCode(vmcb.exit_code()) != debug || had.contains(Rflags::TF) {
        return;
    }
    let dr6 = vmcb.dr6();
    if dr6 & DR6_BS != 0 {
        // A breakpoint that was met in the same instruction is still the guest's.
        let theirs = dr6 & !DR6_BS & !unused_breakpoints(vmcb.dr7());
        events.own_debug = theirs & !step.dr6 == 0;
        vmcb.set_dr6(match events.own_debug {
            true => step.dr6,
            false => theirs | (step.dr6 & DR6_BS),
        });
    }
}

/// The breakpoint conditions in DR6 that mean nothing, because DR7 enables no such breakpoint: a
/// CPU may show them all the same (APM vol. 2, 13.1.1.3), and a guest without breakpoints has those
/// addresses in DR0 to DR3 that another program has left there.
fn unused_breakpoints(dr7: u64) -> u64 {
    (0..4)
        .filter(|number| dr7 >> (2 * number) & 0b11 == 0)
        .fold(0, |bits, number| bits | 1 << number)
}

/// Opens and closes the windows. V_IRQ is set exactly while VINTR is intercepted.
#[inline]
fn set_windows(vmcb: &mut Vmcb, interrupt: bool, iret: bool, cr8: bool) {
    let (mut word3, mut cr) = (vmcb.intercepts().word3, vmcb.intercepts().cr);
    word3.set(Word3::VINTR, interrupt);
    word3.set(Word3::IRET, iret);
    cr.set(CrIntercepts::CR8_WRITE, cr8);
    if word3 != vmcb.intercepts().word3 || cr != vmcb.intercepts().cr {
        change_windows(vmcb, word3, cr);
    }
}

#[inline(never)]
fn change_windows(vmcb: &mut Vmcb, word3: Word3, cr: CrIntercepts) {
    let open = word3.contains(Word3::VINTR);
    if open != vmcb.intercepts().word3.contains(Word3::VINTR) {
        let window =
            VirtualInterrupt::V_IRQ | VirtualInterrupt::V_IGN_TPR | VirtualInterrupt::V_INTR_PRIO;
        let mut control = vmcb.virtual_interrupt();
        control.set(window, open);
        vmcb.set_virtual_interrupt(control);
    }
    vmcb.update_intercepts(|intercepts| {
        intercepts.word3 = word3;
        intercepts.cr = cr;
    });
}

/// Takes RAX, RSP and the event whose delivery was cut short back from the VMCB. To be called
/// once after each #VMEXIT, before [`crate::exit::Exit::decode`] and anything else.
///
/// After a VMRUN that was refused the guest's registers are those of RESET, but for the sixteen
/// general-purpose ones.
#[inline]
pub fn after_exit(vmcb: &mut Vmcb, state: &mut VcpuState, host: SvmFeatures) {
    if matches!(
        ExitCode(vmcb.exit_code()),
        ExitCode::INVALID | ExitCode::INVALID_32
    ) {
        // Nothing ran. On some hosts the save area holds the host's registers now, which the
        // guest must not see.
        state.events.given = Given::Nothing;
        state.events.step = None;
        state.events.virtual_nmi = false;
        vmcb.reset_registers();
        vmcb.set_all_dirty();
        return;
    }
    if host.contains(SvmFeatures::VMCB_CLEAN) {
        vmcb.set_clean();
    }
    state.regs.set(gpr::RAX, vmcb.rax());
    state.regs.set(gpr::RSP, vmcb.rsp());
    state.io.forget();
    let events = &mut state.events;
    if vmcb.has_virtual_nmis() {
        take_back_virtual_nmi(vmcb, events);
    }
    events.delivered(vmcb.exit_int_info(), vmcb.rip());
    events.own_debug = false;
    events.may_sleep = false;
    if let Some(step) = events.step.take() {
        end_step(vmcb, events, step);
    }
    if events.iret_at.is_some_and(|rip| rip != vmcb.rip()) {
        events.iret_executed();
    }
}

/// Whether an interrupt of the VMM's own controller would be taken at the next entry:
/// `ready_for_interrupt_injection` in `struct kvm_run`.
pub fn ready_for_interrupt(vmcb: &Vmcb, state: &VcpuState) -> bool {
    let events = &state.events;
    interrupts_allowed(vmcb) && !events.busy() && !events.triple_fault && !events.gif_clear
}
