// SPDX-License-Identifier: GPL-2.0-only

//! What others ask of a vCPU, and what its own handlers have put off: done with interrupts on.

use crate::host::host;
use crate::irq::mailbox::request;
use crate::linux;
use crate::linux::Sleep;
use crate::vcpu::halt;
use crate::vcpu::platform::deferred;
use crate::vcpu::pv_eoi;
use crate::vcpu::pvclock;
use crate::vcpu::steal_time;
use crate::vcpu::{Inner, Vcpu};
use crate::vm::stats::Count;
use svm::inject::{self, InterruptSource};
use svm::state::MpState;
use x86::cpuid;
use x86::regs::Rflags;

/// Whether the guest has something to execute. One that was halted runs on if it has.
pub(crate) fn is_runnable(vcpu: &Vcpu, inner: &mut Inner) -> bool {
    match inner.state.mp_state {
        MpState::Runnable => true,
        MpState::Halted => {
            let interrupt = inner.vmcb.rflags().contains(Rflags::IF)
                && inner.with_guest(vcpu, Sleep::Allowed, |guest| guest.platform.has_interrupt());
            let events = &inner.state.events;
            let awake = core::mem::take(&mut inner.parts.unhalted)
                || interrupt
                || events.exception.is_some()
                || events.interrupt.is_some()
                || events.triple_fault
                || events.nmi_is_next();
            if awake {
                inner.state.mp_state = MpState::Runnable;
            }
            awake
        }
        MpState::Uninitialized | MpState::InitReceived => false,
    }
}

/// Whether the VMM's own controller could interrupt the guest at the next entry:
/// `ready_for_interrupt_injection` in `struct kvm_run`.
pub(crate) fn ready_for_user_interrupt(inner: &Inner) -> bool {
    let wired = match &inner.parts.lapic {
        Some(lapic) => inner.parts.user_vector.is_none() && lapic.accepts_pic_interrupt(),
        None => true,
    };
    wired && inject::ready_for_interrupt(&inner.vmcb, &inner.state)
}

/// Whether the VMM waits for such a moment, which is not now: the window is to be opened.
pub(crate) fn wants_user_window(vcpu: &Vcpu, inner: &Inner) -> bool {
    let hears = inner.parts.lapic.as_ref();
    hears.is_none_or(|lapic| lapic.accepts_pic_interrupt())
        && inner.parts.user_vector.is_none()
        && vcpu.run_page.request_interrupt_window()
}

/// Does what other CPUs have asked for.
pub(crate) fn process_requests(vcpu: &Vcpu, inner: &mut Inner) {
    let requests = vcpu.mailbox.take_requests();
    serve_these(vcpu, inner, requests);
}

/// The same for a VMM that is about to read or set the state. The local APIC's timer waits for
/// KVM_RUN: its registers are not all in one ioctl, and must not change between two.
pub(crate) fn process_requests_for_state(vcpu: &Vcpu, inner: &mut Inner) {
    let requests = vcpu.mailbox.take_requests_but(request::TIMER);
    serve_these(vcpu, inner, requests);
}

fn serve_these(vcpu: &Vcpu, inner: &mut Inner, requests: u32) {
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
        let now = halt::meet_deadline(inner);
        if let Some(lapic) = &mut inner.parts.lapic {
            if lapic.timer_expired(now) {
                vcpu.stats.count(Count::Timer);
            }
            inner.parts.deferred |= deferred::TIMER;
        }
    }
    if requests & request::EXTINT != 0 {
        let takes = inner
            .parts
            .lapic
            .as_ref()
            .is_some_and(|l| l.accepts_pic_interrupt());
        inner.parts.ext_int =
            takes && (inner.parts.user_vector.is_some() || vcpu.vm.irqchip.pic_output());
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
    inner.parts.unhalted |= requests & request::UNHALT != 0;
    if requests & request::MSR_FILTER != 0 {
        set_msr_filter(vcpu, inner);
    }
    if requests & request::CLOCK != 0 {
        inner.parts.deferred |= deferred::PV_CLOCK;
    }
}

/// Takes the VM's filter of MSRs over.
#[cold]
pub(crate) fn set_msr_filter(vcpu: &Vcpu, inner: &mut Inner) {
    let filter = vcpu.vm.config.msr_filter();
    let map = match (&filter, host()) {
        (Some(filter), _) => filter.map.phys(),
        (None, Some(host)) => host.permission_maps().1,
        (None, None) => return,
    };
    inner.vmcb.set_msrpm_base(map);
    inner.parts.msr_filter = filter;
}

/// Family, model and stepping, which RDX holds after RESET and INIT.
fn signature(inner: &Inner) -> u32 {
    let [eax, ..] = cpuid::lookup(&inner.parts.cpuid, cpuid::function::FEATURES, 0);
    eax
}

/// An INIT (APM vol. 2, 14.1): application processors wait for a STARTUP IPI.
fn init(vcpu: &Vcpu, inner: &mut Inner) {
    let signature = signature(inner);
    inner.state.init(&mut inner.vmcb, signature);
    inner.parts.unhalted = false;
    if let Some(lapic) = &mut inner.parts.lapic {
        lapic.init();
        vcpu.vm
            .vcpu_table
            .publish_apic(&vcpu.mailbox, lapic.snapshot());
        let boot = vcpu.mailbox.id == vcpu.vm.boot_cpu();
        inner.state.mp_state = if boot {
            MpState::Runnable
        } else {
            MpState::InitReceived
        };
        inner.parts.deferred |= deferred::TIMER;
        vcpu.mailbox.request(request::EXTINT);
    }
    inner.parts.deferred |= deferred::FLUSH;
}

/// Does what the handlers have put off.
pub(crate) fn process_deferred(vcpu: &Vcpu, inner: &mut Inner) {
    let work = core::mem::take(&mut inner.parts.deferred);
    // Kept: until the CPU is known, where `load` flushes; and for the VMM.
    inner.parts.deferred |= work & (deferred::FLUSH | deferred::FOR_VMM);
    if work & deferred::TELL != 0 {
        vcpu.vm.irqchip.signal_resamplers();
    }
    if work & deferred::YIELD != 0 {
        halt::yield_cpu(vcpu, inner);
    }
    if work & deferred::TIMER != 0 {
        halt::set_timer(vcpu, inner);
    }
    if work & (deferred::PV_CLOCK | deferred::PV_WALL_CLOCK) != 0 {
        pvclock::update(vcpu, inner, work & deferred::PV_WALL_CLOCK != 0);
    }
    if work & deferred::WBINVD != 0 {
        linux::wbinvd();
    }
    if work & deferred::EOI_PAGE != 0 {
        pv_eoi::fetch_page(inner);
    }
    if work & deferred::STEAL_TIME != 0 {
        steal_time::start(inner);
    }
}
