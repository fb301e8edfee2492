// SPDX-License-Identifier: GPL-2.0-only

//! KVM_RUN: the loop around VMRUN.
//!
//! ```text
//!   requests, pending work, block on HLT                interrupts on, may sleep
//!   ┌ interrupts off, guest's registers in the CPU
//!   │   ┌ inject, VMRUN, take back, decode, dispatch
//!   │   └ as long as the handler says Resume and no request waits
//!   └ host's registers back, interrupts on
//!   what the handler could not do without sleeping, or the VMM has to do
//! ```

use crate::host::{host, Host};
use crate::linux::{self, IrqsOff, Sleep};
use crate::uapi;
use crate::vcpu::apic::{Apic, PicOwner};
use crate::vcpu::context::{context_is_stale, enter_context, follow_debug_ctl, leave_context};
use crate::vcpu::halt;
use crate::vcpu::inner;
use crate::vcpu::pv_eoi;
use crate::vcpu::pvclock;
use crate::vcpu::requests::{
    is_runnable, process_deferred, process_requests, ready_for_user_interrupt, wants_user_window,
};
use crate::vcpu::steal_time;
use crate::vcpu::user_exit::{set_common, to_user};
use crate::vcpu::LockedVcpu;
use kernel::ffi::c_long;
use kernel::prelude::*;
use svm::dispatch::{self, Action, UserExit};
use svm::exit::{Exit, ExitCode, NestedError};
use svm::inject::{self, Entry};
use svm::io::UserIo;
use svm::nested::Turn;
use svm::requests::Requests;
use svm::state::MpState;
use svm::vmcb::TlbControl;
use x86::regs::vector;
use x86::sregs::is_valid_cr8;

/// Runs the guest until the VMM is needed, or a signal comes.
#[inline(never)]
pub(crate) fn run(vcpu: &mut LockedVcpu) -> Result<c_long> {
    vcpu.platform.mailbox.runner.set();
    let old_mask = vcpu.signal_mask.as_ref().map(linux::set_signal_mask);
    let result = run_unmasked(vcpu);
    vcpu.platform.mailbox.runner.clear();
    if vcpu.platform.requests.intersects(Requests::RESAMPLE) {
        process_deferred(vcpu);
    }
    if let Some(mask) = &old_mask {
        linux::set_signal_mask(mask);
    }
    set_common(vcpu);
    match result {
        Ok(RunExit::ToUser) => Ok(0),
        Ok(RunExit::Interrupted) => {
            vcpu.platform.run_page.set_reason(uapi::KVM_EXIT_INTR);
            Err(EINTR)
        }
        Err(error) => Err(error),
    }
}

/// Why KVM_RUN returns.
enum RunExit {
    /// The exit reason is in `struct kvm_run`.
    ToUser,
    /// A signal, or `immediate_exit`.
    Interrupted,
}

fn run_unmasked(vcpu: &mut LockedVcpu) -> Result<RunExit> {
    vcpu.has_run = true;
    if let Apic::User(apic) = &mut vcpu.platform.apic {
        let cr8 = vcpu.platform.run_page.cr8();
        if !is_valid_cr8(cr8) {
            return Err(EINVAL);
        }
        apic.cr8 = cr8 as u8;
        vcpu.vmcb.set_v_tpr(apic.cr8);
    }
    if let Some(io) = vcpu.state.io.pending() {
        let guest = &mut vcpu.guest(Sleep::Allowed);
        let action = match io {
            UserIo::Port { .. } => {
                let mut data = [0; 8];
                guest.platform.run_page.io_answer(0, &mut data);
                dispatch::finish_io(guest, data)
            }
            UserIo::Mmio { .. } => {
                let data = guest.platform.run_page.mmio_data();
                dispatch::finish_io(guest, data)
            }
            UserIo::Msr { .. } => {
                let answer = guest.platform.run_page.msr_answer();
                dispatch::finish_msr(guest, answer);
                Action::Resume
            }
        };
        if let Some(leave) = apply_action(vcpu, action)? {
            return Ok(leave);
        }
    }
    if vcpu.platform.run_page.immediate_exit() {
        // The exit reason stays what it was: the VMM may only have wanted its answer taken.
        return Err(EINTR);
    }
    steal_time::after_pause(vcpu);
    loop {
        if let Some(leave) = pre_entry(vcpu)? {
            return Ok(leave);
        }
        let left = run_irqs_off(vcpu);
        pv_eoi::take_back(vcpu, Sleep::Allowed);
        let action = match left? {
            Left::Yield => {
                linux::cond_resched();
                continue;
            }
            Left::Exit(Exit::NestedFault { gpa, error }) if inner::has_paging(vcpu) => {
                inner::nested_fault(vcpu, gpa, error)
            }
            Left::Exit(Exit::NestedFault { gpa, error }) => nested_fault(vcpu, gpa, error),
            Left::Exit(exit) => dispatch::dispatch(&mut vcpu.guest(Sleep::Allowed), exit),
            Left::Handled(action) => action,
        };
        if let Some(leave) = apply_action(vcpu, action)? {
            return Ok(leave);
        }
    }
}

/// A nested fault is memory's, unless no memory is there for the access: a device.
fn nested_fault(vcpu: &mut LockedVcpu, gpa: u64, error: NestedError) -> Action {
    let write = error.contains(NestedError::WRITE);
    let present = error.contains(NestedError::PRESENT);
    match vcpu.platform.memory.fault(gpa, write, present) {
        Ok(()) => Action::Resume,
        Err(why) => dispatch::nested_fault(&mut vcpu.guest(Sleep::Allowed), gpa, error, why),
    }
}

/// What is to be done with interrupts on, before the guest can be entered.
fn pre_entry(vcpu: &mut LockedVcpu) -> Result<Option<RunExit>> {
    loop {
        // Before a signal: a VMM that stops then and saves the vCPU would lose it.
        if vcpu.platform.requests.intersects(Requests::FOR_VMM) {
            return exit_for_deferred(vcpu).map(Some);
        }
        if linux::work_pending() {
            if linux::signal_pending() {
                return Ok(Some(RunExit::Interrupted));
            }
            steal_time::before_pause(vcpu);
            if linux::handle_work().is_err() {
                return Ok(Some(RunExit::Interrupted));
            }
            halt::shrink_pause_count(vcpu);
        }
        // Also of a pause that was not announced: the kernel may be a preemptible one.
        steal_time::after_pause(vcpu);
        if vcpu.platform.mailbox.has_requests() {
            process_requests(vcpu);
        }
        if vcpu
            .platform
            .memory
            .ring()
            .is_some_and(|ring| ring.is_full())
        {
            vcpu.platform
                .run_page
                .set_reason(uapi::KVM_EXIT_DIRTY_RING_FULL);
            return Ok(Some(RunExit::ToUser));
        }
        if vcpu.platform.memory.keeping.is_exceeded() {
            return Err(ENOSPC);
        }
        if !vcpu.platform.requests.is_empty() {
            process_deferred(vcpu);
        }
        if vcpu.nested.is_some() {
            inner::serve(vcpu)?;
        }
        let mut window = false;
        if vcpu.platform.pic != PicOwner::Kernel {
            // The wish for a window alone does not wake the guest.
            vcpu.platform.user_window = false;
            window = wants_user_window(vcpu);
            let nmi = vcpu.state.events.nmi_is_next();
            if window && !nmi && ready_for_user_interrupt(vcpu) {
                vcpu.platform
                    .run_page
                    .set_reason(uapi::KVM_EXIT_IRQ_WINDOW_OPEN);
                return Ok(Some(RunExit::ToUser));
            }
        }
        if is_runnable(vcpu) {
            vcpu.platform.user_window = window;
            break;
        }
        if halt::wait(vcpu).is_err() {
            return Ok(Some(RunExit::Interrupted));
        }
    }
    Ok(None)
}

/// What the handlers have put off that is the VMM's.
#[cold]
fn exit_for_deferred(vcpu: &mut LockedVcpu) -> Result<RunExit> {
    if vcpu.platform.requests.intersects(Requests::EOI) {
        vcpu.platform.requests.remove(Requests::EOI);
        vcpu.platform.run_page.set_eoi(vcpu.platform.ended);
    } else {
        vcpu.platform.requests.remove(Requests::STEPPED);
        to_user(vcpu, UserExit::STEPPED)?;
    }
    Ok(RunExit::ToUser)
}

/// How the guest was left.
enum Left {
    /// Another thread had better have the CPU.
    Yield,
    /// The last exit was handled; what follows from it is to be done.
    Handled(Action),
    /// The last exit is to be handled where sleeping is allowed.
    Exit(Exit),
}

/// Resumes the guest as soon as that is in order.
const RESUME: Left = Left::Handled(Action::Resume);

/// The guest in the CPU: from here on interrupts are off, until the last exit is decoded.
fn run_irqs_off(vcpu: &mut LockedVcpu) -> Result<Left> {
    let host = host().ok_or(ENODEV)?;
    // SAFETY: They are on in the thread's own system call.
    let mut irqs = unsafe { IrqsOff::new() };
    vcpu.platform.sleep = Sleep::Forbidden;
    vcpu.platform.mailbox.enter(&irqs);
    let result = match host.local(&mut irqs) {
        // The CPU is going offline or down. The thread will be moved, or it dies.
        Some((local, _)) if !local.is_on() => Ok(Left::Yield),
        Some((_, irqs)) if pvclock::is_elsewhere(vcpu, irqs) => Ok(RESUME),
        Some((local, irqs)) if !must_leave(vcpu) => {
            host.refresh_hsave(irqs);
            enter_context(vcpu, host, local, irqs);
            let result = guest_loop(vcpu, host, irqs);
            leave_context(vcpu, host, local, irqs);
            if core::mem::take(&mut vcpu.machine_check) {
                linux::machine_check();
            }
            result
        }
        _ => Ok(Left::Yield),
    };
    vcpu.platform.mailbox.leave();
    drop(irqs);
    if vcpu.platform.requests.intersects(Requests::IPI) {
        vcpu.platform.send_ipi();
    }
    result
}

/// Whether something waits for this thread that needs interrupts on.
#[inline]
fn must_leave(vcpu: &LockedVcpu) -> bool {
    vcpu.platform.mailbox.has_requests() || linux::work_pending()
}

/// Enters the guest as often as its exits can be handled right here.
///
/// A CPU that wants this thread sends it an interrupt, which ends the guest as soon as it is
/// entered. So only what the handlers themselves may have caused is looked at: requests to
/// this vCPU, and threads that they woke on this CPU.
///
/// But an event that is injected comes before an interrupt, and a guest can make its delivery raise
/// the same exception again, for ever: #AC on a misaligned stack, #DB on a stack with a breakpoint.
/// So interrupts are let in after each exception.
fn guest_loop(vcpu: &mut LockedVcpu, host: &Host, irqs: &IrqsOff) -> Result<Left> {
    let features = vcpu.platform.vm.features;
    let (vmcb, save) = (vcpu.vmcb.phys(), host.host_save(irqs));
    let tracing = linux::tracing();
    let switches = vcpu.platform.fpu.switches();
    // SAFETY: The page is this CPU's.
    unsafe { linux::save_host(save, irqs) };
    loop {
        if let Some(lapic) = vcpu.platform.apic.kernel() {
            vcpu.vmcb.set_v_tpr(lapic.cr8() as u8);
        }
        let entry = match vcpu.nested {
            None => inject::prepare(&mut vcpu.vmcb, &mut vcpu.state, &mut vcpu.platform),
            Some(_) => match inner::prepare(vcpu) {
                Turn::Enter(entry) => entry,
                Turn::Leave => return Ok(RESUME),
            },
        };
        follow_debug_ctl(vcpu);
        if entry != Entry::Run {
            if entry == Entry::Shutdown {
                return Ok(Left::Handled(Action::User(UserExit::Shutdown)));
            }
            // The event in EVENTINJ comes first, then this ends the guest: the NMI that waits is
            // next.
            linux::kick_cpu(linux::cpu());
        }
        if tracing && vcpu.vmcb.event_inj() != 0 {
            linux::trace_inject(vcpu.platform.mailbox.id, vcpu.vmcb.event_inj());
        }
        pv_eoi::offer(vcpu);
        if let Some(nested) = &mut vcpu.nested {
            nested.merge(&mut vcpu.vmcb);
        }
        // SAFETY: The VMCB was made by `Vmcb::reset` and changed through its setters only, so all
        // that could reach the host is intercepted; its maps and tables are alive. The page is
        // this CPU's, and was filled above.
        let entered = unsafe {
            if switches {
                let (gpr, pkru) = (vcpu.state.regs.gpr.as_mut_ptr(), &mut vcpu.state.pkru);
                vcpu.platform.fpu.enter_guest(vmcb, save, gpr, pkru, irqs)
            } else {
                linux::enter_guest(vmcb, save, vcpu.state.regs.gpr.as_mut_ptr(), irqs)
            }
        };
        if let Err(error) = entered {
            if let Some(nested) = &mut vcpu.nested {
                nested.unmerge(&mut vcpu.vmcb);
            }
            inject::cancel(&mut vcpu.vmcb, &mut vcpu.state);
            return Err(error);
        }
        inject::after_exit(&mut vcpu.vmcb, &mut vcpu.state, features);
        // Not before that sets all clean bits: it clears some.
        if let Some(nested) = &mut vcpu.nested {
            nested.unmerge(&mut vcpu.vmcb);
        }
        if let Some(lapic) = vcpu.platform.apic.kernel_mut() {
            let cr8 = u64::from(vcpu.vmcb.v_tpr());
            // After SHUTDOWN the VMCB's state is undefined (APM vol. 2, 15.14.3).
            if cr8 != lapic.cr8() && ExitCode(vcpu.vmcb.exit_code()) != ExitCode::SHUTDOWN {
                lapic.set_cr8(cr8);
            }
        }

        let exit = Exit::decode(&vcpu.vmcb);
        if !matches!(exit, Exit::Invalid) {
            // Done. A VMRUN that was refused may have flushed nothing.
            vcpu.vmcb.set_tlb_control(TlbControl::Nothing);
        }
        vcpu.stats.exit(&exit);
        if tracing {
            trace_exit(vcpu);
        }
        match exit {
            // They are taken as soon as interrupts are on.
            Exit::Intr | Exit::Smi | Exit::Init => return Ok(RESUME),
            // Taken already, when GIF was set.
            Exit::Nmi => return Ok(RESUME),
            Exit::Exception {
                vector: vector::MC, ..
            } => {
                // For when the host's own state is back.
                vcpu.machine_check = true;
                return Ok(RESUME);
            }
            // They take locks whose holders may wait for this CPU to take an interrupt.
            Exit::NestedFault { .. } => return Ok(Left::Exit(exit)),
            // Many doorbells at once, each with many waiters.
            Exit::Io(io) if io.string => return Ok(Left::Exit(exit)),
            // The VMM waits for the window.
            Exit::Vintr if vcpu.platform.user_window => return Ok(RESUME),
            _ => {}
        }
        if !pv_eoi::take_back(vcpu, Sleep::Forbidden) {
            return Ok(Left::Exit(exit));
        }
        let action = dispatch::dispatch(&mut vcpu.guest(Sleep::Forbidden), exit);
        if !matches!(action, Action::Resume)
            || !vcpu.platform.requests.is_empty()
            || vcpu.platform.mailbox.has_requests()
            || context_is_stale(vcpu, host, &exit)
            || vcpu
                .platform
                .memory
                .ring()
                .is_some_and(|ring| ring.is_full())
            || (may_wake(&exit) && linux::work_pending())
            || matches!(exit, Exit::Exception { .. })
        {
            return Ok(match action {
                Action::NeedSleep => Left::Exit(exit),
                action => Left::Handled(action),
            });
        }
    }
}

/// Whether the handler of such an exit can wake another thread: a doorbell, an IPI, a hypercall.
fn may_wake(exit: &Exit) -> bool {
    matches!(exit, Exit::Io(_) | Exit::Msr { .. } | Exit::Vmmcall)
}

#[cold]
fn trace_exit(vcpu: &LockedVcpu) {
    let vmcb = &vcpu.vmcb;
    let (code, info1, info2) = (vmcb.exit_code(), vmcb.exit_info1(), vmcb.exit_info2());
    linux::trace_exit(vcpu.platform.mailbox.id, code, info1, info2, vmcb.rip());
}

/// Does what an exit asks for, with interrupts on.
fn apply_action(vcpu: &mut LockedVcpu, action: Action) -> Result<Option<RunExit>> {
    match action {
        Action::Resume => Ok(None),
        Action::Halt if vcpu.platform.apic.is_kernel() => {
            vcpu.state.mp_state = MpState::Halted;
            Ok(None)
        }
        Action::Halt => {
            vcpu.platform.run_page.set_reason(uapi::KVM_EXIT_HLT);
            Ok(Some(RunExit::ToUser))
        }
        Action::NeedSleep => {
            match dispatch::resume_io(&mut vcpu.guest(Sleep::Allowed)) {
                // Sleeping was allowed, so nothing is left to wait for.
                Action::NeedSleep => Err(EFAULT),
                other => apply_action(vcpu, other),
            }
        }
        Action::User(exit) => to_user(vcpu, exit).map(|()| Some(RunExit::ToUser)),
    }
}
