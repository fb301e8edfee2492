// SPDX-License-Identifier: GPL-2.0-only

//! KVM_RUN: the loop around VMRUN.
//!
//! ```text
//!   requests, pending work, block on HLT                interrupts on, may sleep
//!   ┌ window: interrupts off, guest's registers in the CPU
//!   │   ┌ inject, VMRUN, take back, decode, dispatch
//!   │   └ as long as the handler says Resume and nobody asks for anything
//!   └ host's registers back, interrupts on
//!   what the handler could not do without sleeping, or the VMM has to do
//! ```

use crate::abi;
use crate::clock;
use crate::ffi;
use crate::host::{host, Host, Local, MSR_TSC_AUX};
use crate::kick::request;
use crate::run_page::Common;
use crate::stats::Count;
use crate::vcpu::{Inner, Vcpu};
use crate::vcpu_cpuid;
use crate::world::deferred;
use irqchip::lapic::Deadline;
use kernel::ffi::c_long;
use kernel::prelude::*;
use svm::asid;
use svm::dispatch::{self, Action, InternalError, UserExit};
use svm::exit::Exit;
use svm::features::SvmFeatures;
use svm::inject::{self, Entry, InterruptSource};
use svm::io::UserIo;
use svm::state::{MpState, VcpuState};
use svm::vmcb::TlbControl;
use x86::features::Feature;
use x86::regs::{vector, Rflags};

/// Runs the guest until the VMM is needed, or a signal comes.
pub(crate) fn run(vcpu: &Vcpu, inner: &mut Inner) -> Result<c_long> {
    let old_mask = inner.signal_mask.as_ref().map(ffi::set_signal_mask);
    let result = run_unmasked(vcpu, inner);
    if let Some(mask) = &old_mask {
        ffi::set_signal_mask(mask);
    }
    set_common(vcpu, inner);
    match result {
        Ok(Leave::ToUser) => Ok(0),
        Ok(Leave::Interrupted) => {
            vcpu.run_page.set_reason(abi::KVM_EXIT_INTR);
            Err(EINTR)
        }
        Err(error) => Err(error),
    }
}

/// Why KVM_RUN returns.
enum Leave {
    /// The exit reason is in `struct kvm_run`.
    ToUser,
    /// A signal, or `immediate_exit`.
    Interrupted,
}

fn run_unmasked(vcpu: &Vcpu, inner: &mut Inner) -> Result<Leave> {
    inner.has_run = true;
    if inner.parts.lapic.is_none() {
        inner.parts.user_cr8 = (vcpu.run_page.cr8() & 0xf) as u8;
        inner.vmcb.set_v_tpr(inner.parts.user_cr8);
    }
    if let Some(io) = inner.state.io.pending() {
        let data = match io {
            UserIo::Port { .. } => u64::from(vcpu.run_page.io_data()).to_le_bytes(),
            UserIo::Mmio { .. } => vcpu.run_page.mmio_data(),
        };
        let action = inner.with_guest(vcpu, true, |guest| dispatch::finish_io(guest, data));
        if let Some(leave) = act(vcpu, inner, action)? {
            return Ok(leave);
        }
    }
    if vcpu.run_page.immediate_exit() {
        // The exit reason stays what it was: the VMM may only have wanted its answer taken.
        return Err(EINTR);
    }
    loop {
        if let Some(leave) = prepare(vcpu, inner)? {
            return Ok(leave);
        }
        let (action, exit) = window(vcpu, inner)?;
        let action = match (action, exit) {
            (Action::NeedSleep, Some(exit)) => {
                inner.with_guest(vcpu, true, |guest| dispatch::dispatch(guest, exit))
            }
            (action, _) => action,
        };
        if let Some(leave) = act(vcpu, inner, action)? {
            return Ok(leave);
        }
    }
}

/// What is to be done with interrupts on, before the guest can be entered.
fn prepare(vcpu: &Vcpu, inner: &mut Inner) -> Result<Option<Leave>> {
    loop {
        if ffi::work_pending() {
            if ffi::signal_pending() {
                return Ok(Some(Leave::Interrupted));
            }
            ffi::handle_work()?;
        }
        if vcpu.vm.is_dead() {
            return Err(EIO);
        }
        if vcpu.mailbox.is_asked() {
            serve(vcpu, inner);
        }
        if inner.parts.deferred != 0 {
            do_deferred(vcpu, inner);
        }
        if is_runnable(vcpu, inner) {
            break;
        }
        vcpu.stats.count(Count::Blocked);
        if vcpu.mailbox.sleep().is_err() {
            return Ok(Some(Leave::Interrupted));
        }
    }
    if inner.parts.lapic.is_none() {
        inner.parts.user_window = vcpu.run_page.request_interrupt_window();
        if inner.parts.user_window && inject::ready_for_interrupt(&inner.vmcb, &inner.state) {
            vcpu.run_page.set_reason(abi::KVM_EXIT_IRQ_WINDOW_OPEN);
            return Ok(Some(Leave::ToUser));
        }
    }
    Ok(None)
}

/// Whether the guest has something to execute. One that was halted runs on if it has.
fn is_runnable(vcpu: &Vcpu, inner: &mut Inner) -> bool {
    match inner.state.mp_state {
        MpState::Runnable => true,
        MpState::Halted => {
            let interrupt = inner.vmcb.rflags().contains(Rflags::IF)
                && inner.with_guest(vcpu, true, |guest| guest.platform.has_interrupt());
            let events = &inner.state.events;
            let awake = interrupt
                || events.exception.is_some()
                || events.interrupt.is_some()
                || events.triple_fault
                || (events.nmi_pending != 0 && !events.nmi_masked);
            if awake {
                inner.state.mp_state = MpState::Runnable;
            }
            awake
        }
        MpState::Uninitialized | MpState::InitReceived => false,
    }
}

/// Does what other CPUs have asked for.
pub(crate) fn serve(vcpu: &Vcpu, inner: &mut Inner) {
    let requests = vcpu.mailbox.take();
    if requests & request::TLB_FLUSH != 0 {
        inner.parts.deferred |= deferred::FLUSH;
    }
    if requests & request::INBOX != 0 {
        let (requests, levels) = vcpu.mailbox.take_interrupts();
        if let Some(lapic) = &mut inner.parts.lapic {
            lapic.merge(&requests, &levels);
        }
    }
    if requests & request::TIMER != 0 {
        let now = crate::world::now(inner.vmcb.tsc_offset());
        if let Some(lapic) = &mut inner.parts.lapic {
            if lapic.timer_expired(now) {
                vcpu.stats.count(Count::Timer);
            }
            inner.parts.deferred |= deferred::TIMER;
        }
    }
    if requests & request::CHIPS != 0 {
        let takes = inner
            .parts
            .lapic
            .as_ref()
            .is_some_and(|l| l.accepts_pic_interrupt());
        inner.parts.ext_int = takes && vcpu.vm.chips.pic_output();
    }
    if requests & request::NMI != 0 {
        inner.state.events.raise_nmi();
    }
    if requests & request::INIT != 0 {
        init(vcpu, inner);
    }
    if requests & request::SIPI != 0 && inner.state.mp_state == MpState::InitReceived {
        inner
            .state
            .start_up(&mut inner.vmcb, vcpu.mailbox.sipi_vector());
    }
    if requests & request::CLOCK != 0 {
        inner.parts.deferred |= deferred::PV_CLOCK;
    }
}

/// An INIT (APM vol. 2, 14.1): application processors wait for a STARTUP IPI.
fn init(vcpu: &Vcpu, inner: &mut Inner) {
    let signature = vcpu_cpuid::signature(inner);
    inner.state.init(&mut inner.vmcb, signature);
    if let Some(lapic) = &mut inner.parts.lapic {
        lapic.init();
        vcpu.mailbox.publish_apic(lapic.snapshot());
        let boot = vcpu.mailbox.id == vcpu.vm.boot_cpu();
        inner.state.mp_state = if boot {
            MpState::Runnable
        } else {
            MpState::InitReceived
        };
        inner.parts.deferred |= deferred::TIMER;
        vcpu.mailbox.ask(request::CHIPS);
    }
    inner.parts.deferred |= deferred::FLUSH;
}

/// Does what the handlers have put off.
fn do_deferred(vcpu: &Vcpu, inner: &mut Inner) {
    let work = core::mem::take(&mut inner.parts.deferred);
    if work & deferred::FLUSH != 0 {
        // Kept until the CPU is known; `load` does it.
        inner.parts.deferred |= deferred::FLUSH;
    }
    if work & deferred::TIMER != 0 {
        set_timer(vcpu, inner);
    }
    if work & (deferred::PV_CLOCK | deferred::PV_WALL_CLOCK) != 0 {
        clock::update(vcpu, inner, work & deferred::PV_WALL_CLOCK != 0);
    }
}

/// Sets the timer to the LAPIC's next deadline.
pub(crate) fn set_timer(vcpu: &Vcpu, inner: &Inner) {
    let Some(lapic) = &inner.parts.lapic else {
        return;
    };
    match lapic.timer_deadline() {
        None => vcpu.timer.cancel(),
        Some(Deadline::Ns(ns)) => vcpu.timer.start(ns),
        Some(Deadline::Tsc(tsc)) => {
            let now = crate::world::now(inner.vmcb.tsc_offset());
            let ticks = tsc.saturating_sub(now.tsc);
            vcpu.timer
                .start(now.ns.saturating_add(clock::ticks_to_ns(ticks)));
        }
    }
}

/// The guest in the CPU: from here on interrupts are off, until the last exit is decoded.
fn window(vcpu: &Vcpu, inner: &mut Inner) -> Result<(Action, Option<Exit>)> {
    let host = host().ok_or(ENODEV)?;
    ffi::irq_disable();
    vcpu.mailbox.enter();
    // SAFETY: Interrupts are off until `leave`, and this is the only reference on this CPU.
    let local = unsafe { host.local() };
    let result = match local {
        // The CPU is going offline or down. The thread will be moved, or it dies.
        Some(local) if !local.is_on() => Ok((Action::Resume, None)),
        Some(local) if !must_leave(vcpu) => {
            load(vcpu, inner, local);
            let result = turns(vcpu, inner, host);
            unload(inner, local);
            result
        }
        _ => Ok((Action::Resume, None)),
    };
    vcpu.mailbox.leave();
    ffi::irq_enable();
    if let Ok((Action::Resume, None)) = result {
        ffi::yield_now();
    }
    result
}

/// Whether something waits for this thread that needs interrupts on.
#[inline]
fn must_leave(vcpu: &Vcpu) -> bool {
    vcpu.mailbox.is_asked() || ffi::work_pending()
}

/// Enters the guest as often as its exits can be handled right here.
///
/// Whoever wants this thread from outside sends an interrupt, which ends the guest as soon as it is
/// entered. So only what the handlers themselves may have asked for is looked at.
fn turns(vcpu: &Vcpu, inner: &mut Inner, host: &Host) -> Result<(Action, Option<Exit>)> {
    let features = vcpu.vm.features;
    let (vmcb, save) = (inner.vmcb.phys(), host.host_save());
    let tracing = ffi::tracing();
    loop {
        if let Some(lapic) = &inner.parts.lapic {
            inner.vmcb.set_v_tpr(lapic.cr8() as u8);
        }
        let entry = inner.with_guest(vcpu, false, |guest| {
            inject::prepare(guest.vmcb, guest.state, guest.platform)
        });
        if entry == Entry::Shutdown {
            return Ok((Action::User(UserExit::Shutdown), None));
        }
        if tracing && inner.vmcb.event_inj() != 0 {
            ffi::trace_inject(vcpu.mailbox.id, inner.vmcb.event_inj());
        }
        // SAFETY: The VMCB was made by `Vmcb::reset` and changed through its setters only, so all
        // that could reach the host is intercepted; its maps and tables are alive. The page is
        // this CPU's, and interrupts are off.
        unsafe { ffi::enter_guest(vmcb, save, inner.state.regs.gpr.as_mut_ptr()) }?;
        inner.vmcb.set_tlb_control(TlbControl::Nothing);
        if features.contains(SvmFeatures::VMCB_CLEAN) {
            inner.vmcb.set_clean();
        }
        inject::after_exit(&mut inner.vmcb, &mut inner.state, features);
        if let Some(lapic) = &mut inner.parts.lapic {
            let cr8 = u64::from(inner.vmcb.v_tpr());
            if cr8 != lapic.cr8() {
                lapic.set_cr8(cr8);
            }
        }

        let exit = Exit::decode(&inner.vmcb);
        vcpu.stats.exit(&exit);
        if tracing {
            trace_exit(vcpu, inner);
        }
        match exit {
            // They are taken as soon as interrupts are on.
            Exit::Intr | Exit::Smi | Exit::Init => return Ok((Action::Resume, Some(exit))),
            // Taken already, when GIF was set.
            Exit::Nmi => return Ok((Action::Resume, Some(exit))),
            Exit::Exception {
                vector: vector::MC, ..
            } => {
                ffi::machine_check();
                return Ok((Action::Resume, Some(exit)));
            }
            // They take locks whose holders may wait for this CPU to take an interrupt.
            Exit::NestedFault { .. } => return Ok((Action::NeedSleep, Some(exit))),
            // The VMM waits for the window.
            Exit::Vintr if inner.parts.user_window => return Ok((Action::Resume, Some(exit))),
            _ => {}
        }
        let action = inner.with_guest(vcpu, false, |guest| dispatch::dispatch(guest, exit));
        if action != Action::Resume
            || inner.parts.deferred != 0
            || vcpu.mailbox.is_asked()
            || is_stale(inner, &exit)
        {
            return Ok((action, Some(exit)));
        }
    }
}

#[cold]
fn trace_exit(vcpu: &Vcpu, inner: &Inner) {
    let vmcb = &inner.vmcb;
    let (code, info1, info2) = (vmcb.exit_code(), vmcb.exit_info1(), vmcb.exit_info2());
    ffi::trace_exit(vcpu.mailbox.id, code, info1, info2, vmcb.rip());
}

/// Whether the handler changed what [`load`] has put into the CPU.
fn is_stale(inner: &Inner, exit: &Exit) -> bool {
    match exit {
        Exit::Dr(_) => true,
        Exit::Msr { write } => {
            *write
                && inner
                    .tsc_aux
                    .is_some_and(|aux| aux != inner.state.msrs.tsc_aux)
        }
        _ => false,
    }
}

/// Puts the guest into this CPU.
fn load(vcpu: &Vcpu, inner: &mut Inner, local: &mut Local) {
    let cpu = ffi::cpu();
    if inner.cpu != cpu {
        inner.cpu = cpu;
        inner.asid = None;
        inner.vmcb.set_all_dirty();
    }
    let identity = core::ptr::from_ref(vcpu) as u64;
    if local.last_vcpu != identity {
        // What another guest has trained must not steer this one.
        if local.last_vcpu != 0 {
            ffi::flush_predictors();
        }
        local.last_vcpu = identity;
    }
    let mut flush = TlbControl::Nothing;
    if inner.parts.deferred & deferred::FLUSH != 0 {
        inner.parts.deferred &= !deferred::FLUSH;
        match asid::flush_guest(vcpu.vm.features) {
            Some(control) => flush = control,
            None => inner.asid = None,
        }
    }
    let (asid, control) = local.asids.assign(inner.asid);
    inner.asid = Some(asid);
    inner.vmcb.set_asid(asid.number);
    inner
        .vmcb
        .set_tlb_control(if control == TlbControl::Nothing {
            flush
        } else {
            control
        });

    inner.tsc_aux = uses_tsc_aux(inner).then_some(inner.state.msrs.tsc_aux);
    if inner
        .tsc_aux
        .is_some_and(|aux| u64::from(aux) != local.tsc_aux)
    {
        // SAFETY: Only RDTSCP and RDPID read it, and `unload` brings the host's value back.
        let _ = unsafe { ffi::wrmsr(MSR_TSC_AUX, u64::from(inner.state.msrs.tsc_aux)) };
    }
    let guest = VcpuState::breakpoints_enabled(&inner.vmcb).then_some(&inner.state.db);
    ffi::debug_enter(guest, &mut inner.host_breakpoints);
    ffi::guest_timing_enter();
    // SAFETY: Whoever writes the image (KVM_SET_FPU, XMM accesses) keeps MXCSR legal.
    unsafe { ffi::fpu_enter(&inner.parts.fpu) };
}

/// Puts the host's own state back.
fn unload(inner: &mut Inner, local: &Local) {
    ffi::fpu_exit(&mut inner.parts.fpu);
    ffi::debug_exit(&inner.host_breakpoints);
    if inner
        .tsc_aux
        .is_some_and(|aux| u64::from(aux) != local.tsc_aux)
    {
        // SAFETY: The host's own value.
        let _ = unsafe { ffi::wrmsr(MSR_TSC_AUX, local.tsc_aux) };
    }
    ffi::guest_was_here();
    ffi::guest_timing_exit();
}

fn uses_tsc_aux(inner: &Inner) -> bool {
    inner.state.features.has(Feature::RDTSCP) || inner.state.features.has(Feature::RDPID)
}

/// Does what an exit asks for, with interrupts on.
fn act(vcpu: &Vcpu, inner: &mut Inner, action: Action) -> Result<Option<Leave>> {
    match action {
        Action::Resume => Ok(None),
        Action::Halt if inner.parts.lapic.is_some() => {
            inner.state.mp_state = MpState::Halted;
            Ok(None)
        }
        Action::Halt => {
            vcpu.run_page.set_reason(abi::KVM_EXIT_HLT);
            Ok(Some(Leave::ToUser))
        }
        Action::NeedSleep => {
            let action = inner.with_guest(vcpu, true, |guest| dispatch::resume_io(guest));
            match action {
                // Sleeping was allowed, so nothing is left to wait for.
                Action::NeedSleep => Err(EFAULT),
                other => act(vcpu, inner, other),
            }
        }
        Action::User(exit) => to_user(vcpu, inner, exit).map(Some),
    }
}

/// Fills `struct kvm_run`.
fn to_user(vcpu: &Vcpu, inner: &mut Inner, exit: UserExit) -> Result<Leave> {
    let page = &vcpu.run_page;
    vcpu.stats.count(Count::ToUser);
    match exit {
        UserExit::Io(UserIo::Port {
            port,
            size,
            write,
            data,
        }) => {
            let [a, b, c, d, ..] = data;
            page.set_io(
                port,
                size,
                write.then_some(u32::from_le_bytes([a, b, c, d])),
            );
        }
        UserExit::Io(UserIo::Mmio {
            gpa,
            size,
            write,
            data,
        }) => {
            page.set_mmio(gpa, size, write.then_some(data));
        }
        UserExit::Shutdown => page.set_reason(abi::KVM_EXIT_SHUTDOWN),
        UserExit::SetTpr => page.set_reason(abi::KVM_EXIT_SET_TPR),
        UserExit::FailEntry { reason } => {
            vcpu.vm
                .report(format_args!("VMRUN was refused, reason {reason:#x}"));
            page.set_fail_entry(reason);
        }
        UserExit::InternalError(error) => internal_error(vcpu, error),
        UserExit::Fault => return Err(inner.parts.host_error.take().unwrap_or(EFAULT)),
    }
    Ok(Leave::ToUser)
}

fn internal_error(vcpu: &Vcpu, error: InternalError) {
    let page = &vcpu.run_page;
    match error {
        InternalError::Emulation { length, bytes } => {
            let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
            let mut second = [0; 8];
            second[..7].copy_from_slice(&rest);
            vcpu.vm
                .report(format_args!("cannot emulate {:02x?}", &bytes));
            page.set_internal_error(
                abi::KVM_INTERNAL_ERROR_EMULATION,
                &[
                    u64::from(abi::KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES),
                    // Size and bytes, packed as `struct kvm_run` has them.
                    u64::from_le_bytes([length, a, b, c, d, e, f, g]),
                    u64::from_le_bytes([
                        h, second[0], second[1], second[2], second[3], second[4], second[5],
                        second[6],
                    ]),
                ],
            );
        }
        InternalError::Delivery {
            event,
            exit_code,
            info,
            gpa,
        } => page.set_internal_error(
            abi::KVM_INTERNAL_ERROR_DELIVERY_EV,
            &[event, exit_code, info, gpa],
        ),
        InternalError::UnexpectedExit { exit_code } => {
            vcpu.vm
                .report(format_args!("unknown exit code {exit_code:#x}"));
            page.set_internal_error(
                abi::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
                &[exit_code, u64::from(ffi::cpu())],
            );
        }
    }
}

/// What every return of KVM_RUN reports.
fn set_common(vcpu: &Vcpu, inner: &Inner) {
    let lapic = inner.parts.lapic.as_ref();
    vcpu.run_page.set_common(&Common {
        ready_for_interrupt: lapic.is_none()
            && inject::ready_for_interrupt(&inner.vmcb, &inner.state),
        if_flag: inner.vmcb.rflags().contains(Rflags::IF),
        cr8: lapic.map_or(u64::from(inner.parts.user_cr8), |lapic| lapic.cr8()),
        apic_base: lapic.map_or(crate::world::APIC_BASE_RESET, |lapic| lapic.base()),
    });
}
