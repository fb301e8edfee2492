// SPDX-License-Identifier: GPL-2.0-only

//! What others ask of a vCPU, and what its own handlers have put off: done with interrupts on.

use crate::host::host;
use crate::irq::mailbox::request;
use crate::linux;
use crate::vcpu::halt;
use crate::vcpu::platform::deferred;
use crate::vcpu::pv_eoi;
use crate::vcpu::pvclock;
use crate::vcpu::steal_time;
use crate::vcpu::LockedVcpu;
use crate::vm::stats::Count;
use svm::inject::{self, InterruptSource};
use svm::state::MpState;
use x86::cpuid;
use x86::regs::Rflags;

/// Whether the guest has something to execute. One that was halted runs on if it has.
pub(crate) fn is_runnable(vcpu: &mut LockedVcpu) -> bool {
    match vcpu.state.mp_state {
        MpState::Runnable => true,
        MpState::Halted => {
            let interrupt =
                vcpu.vmcb.rflags().contains(Rflags::IF) && vcpu.platform.has_interrupt();
            let events = &vcpu.state.events;
            let awake = core::mem::take(&mut vcpu.platform.unhalted)
                || interrupt
                || events.exception.is_some()
                || events.interrupt.is_some()
                || events.triple_fault
                || events.nmi_is_next();
            if awake {
                vcpu.state.mp_state = MpState::Runnable;
            }
            awake
        }
        MpState::Uninitialized | MpState::InitReceived => false,
    }
}

/// Whether the VMM's own controller could interrupt the guest at the next entry:
/// `ready_for_interrupt_injection` in `struct kvm_run`.
pub(crate) fn ready_for_user_interrupt(vcpu: &LockedVcpu) -> bool {
    accepts_user_interrupt(vcpu) && inject::ready_for_interrupt(&vcpu.vmcb, &vcpu.state)
}

/// Whether a wire leads from the VMM's controller to the guest, and nothing is on it.
fn accepts_user_interrupt(vcpu: &LockedVcpu) -> bool {
    let lapic = vcpu.platform.apic.kernel();
    vcpu.platform.user_vector().is_none() && lapic.is_none_or(|lapic| lapic.accepts_pic_interrupt())
}

/// Whether the VMM waits for such a moment, which is not now: the window is to be opened.
pub(crate) fn wants_user_window(vcpu: &LockedVcpu) -> bool {
    accepts_user_interrupt(vcpu) && vcpu.platform.run_page.request_interrupt_window()
}

/// Does what other CPUs have asked for.
pub(crate) fn process_requests(vcpu: &mut LockedVcpu) {
    let requests = vcpu.platform.mailbox.take_requests();
    serve_these(vcpu, requests);
}

/// The same for a VMM that is about to read or set the state. The local APIC's timer waits for
/// KVM_RUN: its registers are not all in one ioctl, and must not change between two.
pub(crate) fn process_requests_for_state(vcpu: &mut LockedVcpu) {
    let requests = vcpu.platform.mailbox.take_requests_but(request::TIMER);
    serve_these(vcpu, requests);
}

fn serve_these(vcpu: &mut LockedVcpu, requests: u32) {
    if requests & request::TLB_FLUSH != 0 {
        vcpu.platform.deferred |= deferred::FLUSH;
    }
    if requests & request::INBOX != 0 {
        let (requests, levels) = vcpu.platform.mailbox.take_interrupts();
        if let Some(lapic) = vcpu.platform.apic.kernel_mut() {
            lapic.merge(&requests, &levels);
        }
    }
    if requests & request::TIMER != 0 {
        let now = halt::meet_deadline(vcpu);
        if let Some(lapic) = vcpu.platform.apic.kernel_mut() {
            if lapic.timer_expired(now) {
                vcpu.stats.count(Count::Timer);
            }
            vcpu.platform.deferred |= deferred::TIMER;
        }
    }
    if requests & request::EXTINT != 0 {
        let lapic = vcpu.platform.apic.kernel();
        let takes = lapic.is_some_and(|lapic| lapic.accepts_pic_interrupt());
        vcpu.platform.ext_int = takes
            && (vcpu.platform.user_vector().is_some() || vcpu.platform.vm.irqchip.pic_output());
    }
    if requests & request::NMI != 0 {
        vcpu.state.events.raise_nmi();
    }
    if requests & request::INIT != 0 {
        init(vcpu);
    }
    if requests & request::SIPI != 0 && vcpu.state.mp_state == MpState::InitReceived {
        vcpu.state
            .start_up(&mut vcpu.vmcb, vcpu.platform.mailbox.sipi_vector());
    }
    vcpu.platform.unhalted |= requests & request::UNHALT != 0;
    if requests & request::MSR_FILTER != 0 {
        set_msr_filter(vcpu);
    }
    if requests & request::CLOCK != 0 {
        vcpu.platform.deferred |= deferred::PV_CLOCK;
    }
}

/// Takes the VM's filter of MSRs over.
#[cold]
pub(crate) fn set_msr_filter(vcpu: &mut LockedVcpu) {
    let filter = vcpu.platform.vm.config.msr_filter();
    let map = match (&filter, host()) {
        (Some(filter), _) => filter.map.phys(),
        (None, Some(host)) => host.permission_maps().1,
        (None, None) => return,
    };
    vcpu.vmcb.set_msrpm_base(map);
    vcpu.platform.msr_filter = filter;
}

/// Family, model and stepping, which RDX holds after RESET and INIT.
fn signature(vcpu: &LockedVcpu) -> u32 {
    let [eax, ..] = cpuid::lookup(&vcpu.platform.cpuid, cpuid::function::FEATURES, 0);
    eax
}

/// An INIT (APM vol. 2, 14.1): application processors wait for a STARTUP IPI.
fn init(vcpu: &mut LockedVcpu) {
    let signature = signature(vcpu);
    vcpu.state.init(&mut vcpu.vmcb, signature);
    vcpu.platform.unhalted = false;
    if let Some(lapic) = vcpu.platform.apic.kernel_mut() {
        lapic.init();
        vcpu.platform
            .vm
            .vcpu_table
            .publish_apic(&vcpu.platform.mailbox, lapic.snapshot());
        let boot = vcpu.platform.mailbox.id == vcpu.platform.vm.boot_cpu();
        vcpu.state.mp_state = if boot {
            MpState::Runnable
        } else {
            MpState::InitReceived
        };
        vcpu.platform.deferred |= deferred::TIMER;
        vcpu.platform.mailbox.request(request::EXTINT);
    }
    vcpu.platform.deferred |= deferred::FLUSH;
}

/// Does what the handlers have put off.
pub(crate) fn process_deferred(vcpu: &mut LockedVcpu) {
    let work = core::mem::take(&mut vcpu.platform.deferred);
    // Kept: until the CPU is known, where `load` flushes; and for the VMM.
    vcpu.platform.deferred |= work & (deferred::FLUSH | deferred::FOR_VMM);
    if work & deferred::TELL != 0 {
        vcpu.platform.vm.irqchip.signal_resamplers();
    }
    if work & deferred::YIELD != 0 {
        halt::yield_cpu(vcpu);
    }
    if work & deferred::TIMER != 0 {
        halt::set_timer(vcpu);
    }
    if work & (deferred::PV_CLOCK | deferred::PV_WALL_CLOCK) != 0 {
        pvclock::update(vcpu, work & deferred::PV_WALL_CLOCK != 0);
    }
    if work & deferred::WBINVD != 0 {
        linux::wbinvd();
    }
    if work & deferred::EOI_PAGE != 0 {
        pv_eoi::fetch_page(vcpu);
    }
    if work & deferred::STEAL_TIME != 0 {
        steal_time::start(vcpu);
    }
}
