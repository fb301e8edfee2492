// SPDX-License-Identifier: GPL-2.0-only

//! What others ask of a vCPU, and what its own handlers have put off: done with interrupts on.

use crate::host::host;
use crate::linux;
use crate::vcpu::halt;
use crate::vcpu::inner;
use crate::vcpu::pv_eoi;
use crate::vcpu::pvclock;
use crate::vcpu::steal_time;
use crate::vcpu::LockedVcpu;
use crate::vm::stats::Count;
use svm::dispatch::Platform;
use svm::inject::{self, InterruptSource};
use svm::requests::Requests;
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
            let interrupt = match vcpu.nested {
                Some(_) => inner::is_awake(vcpu, interrupt),
                None => interrupt,
            };
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
        MpState::SipiReceived => {
            begin(vcpu);
            true
        }
        MpState::Uninitialized | MpState::InitReceived => false,
    }
}

/// The start-up IPI that the VMM has set takes effect: now the vector counts, and the registers are
/// no more what they were.
pub(crate) fn begin(vcpu: &mut LockedVcpu) {
    if vcpu.state.mp_state == MpState::SipiReceived {
        let vector = vcpu.platform.mailbox.sipi_vector();
        vcpu.state.start_up(&mut vcpu.vmcb, vector);
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
    let requests = vcpu
        .platform
        .mailbox
        .take_requests_but(Requests::TIMER_EXPIRED);
    serve_these(vcpu, requests);
}

fn serve_these(vcpu: &mut LockedVcpu, requests: Requests) {
    // These are done where the guest's memory, or the CPU, is at hand.
    vcpu.platform.requests |= requests & (Requests::TLB_FLUSH | Requests::PV_CLOCK);
    if let (true, Some(nested)) = (requests.intersects(Requests::TLB_FLUSH), &mut vcpu.nested) {
        nested.flush();
    }
    if requests.intersects(Requests::INBOX) {
        let (requests, levels) = vcpu.platform.mailbox.take_interrupts();
        if let Some(lapic) = vcpu.platform.apic.kernel_mut() {
            lapic.merge(&requests, &levels);
        }
    }
    if requests.intersects(Requests::TIMER_EXPIRED) {
        let now = halt::meet_deadline(vcpu);
        if let Some(lapic) = vcpu.platform.apic.kernel_mut() {
            if lapic.timer_expired(now) {
                vcpu.stats.count(Count::Timer);
            }
            vcpu.platform.requests |= Requests::SET_TIMER;
        }
    }
    if requests.intersects(Requests::EXTINT) {
        let lapic = vcpu.platform.apic.kernel();
        let takes = lapic.is_some_and(|lapic| lapic.accepts_pic_interrupt());
        vcpu.platform.ext_int = takes
            && (vcpu.platform.user_vector().is_some() || vcpu.platform.vm.irqchip.pic_output());
    }
    for nmi in [Requests::NMI, Requests::SECOND_NMI] {
        if requests.intersects(nmi) {
            vcpu.state.events.raise_nmi();
        }
    }
    if requests.intersects(Requests::INIT) && !inner::holds_init(vcpu) {
        init(vcpu);
    }
    if requests.intersects(Requests::SIPI) && vcpu.state.mp_state == MpState::InitReceived {
        vcpu.state
            .start_up(&mut vcpu.vmcb, vcpu.platform.mailbox.sipi_vector());
    }
    vcpu.platform.unhalted |= requests.intersects(Requests::UNHALT);
    if requests.intersects(Requests::MSR_FILTER) {
        set_msr_filter(vcpu);
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
    let [eax, ..] = cpuid::lookup(&vcpu.cpuid, cpuid::function::FEATURES, 0);
    eax
}

/// An INIT (APM vol. 2, 14.1): application processors wait for a STARTUP IPI.
pub(crate) fn init(vcpu: &mut LockedVcpu) {
    inner::forget(vcpu);
    let signature = signature(vcpu);
    vcpu.state.init(&mut vcpu.vmcb, signature);
    vcpu.platform.unhalted = false;
    if vcpu.platform.apic.is_kernel() {
        vcpu.platform.init_apic();
        let boot = vcpu.platform.mailbox.id == vcpu.platform.vm.boot_cpu();
        vcpu.state.mp_state = if boot {
            MpState::Runnable
        } else {
            MpState::InitReceived
        };
    }
    vcpu.platform.requests |= Requests::TLB_FLUSH;
}

/// Does what the handlers have put off.
pub(crate) fn process_deferred(vcpu: &mut LockedVcpu) {
    let work = core::mem::take(&mut vcpu.platform.requests);
    // Kept: until the CPU is known, where `enter_context` flushes; and for the VMM.
    vcpu.platform.requests |= work & (Requests::TLB_FLUSH | Requests::FOR_VMM);
    if work.intersects(Requests::RESAMPLE) {
        vcpu.platform.vm.irqchip.signal_resamplers();
    }
    if work.intersects(Requests::YIELD) {
        halt::yield_cpu(vcpu);
    }
    if work.intersects(Requests::SET_TIMER) {
        halt::set_timer(vcpu);
    }
    if work.intersects(Requests::PV_CLOCK | Requests::PV_WALL_CLOCK) {
        pvclock::update(vcpu, work.intersects(Requests::PV_WALL_CLOCK));
        vcpu.platform.guest_stopped = false;
    }
    if work.intersects(Requests::WBINVD) {
        linux::wbinvd();
    }
    if work.intersects(Requests::EOI_PAGE) {
        pv_eoi::fetch_page(vcpu);
    }
    if work.intersects(Requests::STEAL_TIME) {
        steal_time::start(vcpu);
    }
}
