// SPDX-License-Identifier: GPL-2.0-only

//! The guest's registers that VMRUN does not switch, and its ASID: into the CPU and out of it.
//!
//! Interrupts stay off from [`enter_context`] to [`leave_context`].

use crate::host::{Host, PerCpu, MSR_DEBUG_CTL, MSR_TSC_AUX, MSR_TSC_RATIO};
use crate::linux::{self, IrqsOff};
use crate::vcpu::inner;
use crate::vcpu::LockedVcpu;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use kernel::prelude::*;
use svm::asid;
use svm::debug_ctl;
use svm::exit::Exit;
use svm::requests::Requests;
use svm::vmcb::{TlbControl, DR6_RESET};
use x86::tsc::TscRatio;

/// Whether the handler changed what [`enter_context`] has put into the CPU.
pub(crate) fn context_is_stale(vcpu: &mut LockedVcpu, host: &Host, exit: &Exit) -> bool {
    if let Some(nested) = &mut vcpu.nested {
        if nested.take_switched() {
            return true;
        }
    }
    match exit {
        Exit::Dr(_) => true,
        Exit::Xsetbv | Exit::Cr(_) => {
            let (cr4, xcr0) = (vcpu.vmcb.cr4(), vcpu.state.xcr0);
            vcpu.platform.fpu.is_stale(cr4, xcr0, &host.fpu)
        }
        Exit::Msr { write } => *write && vcpu.tsc_aux != vcpu.state.msrs.tsc_aux,
        _ => false,
    }
}

/// Puts the guest into this CPU.
pub(crate) fn enter_context(
    vcpu: &mut LockedVcpu,
    host: &Host,
    local: &mut PerCpu,
    irqs: &IrqsOff,
) {
    let cpu = linux::cpu();
    if vcpu.cpu != cpu {
        vcpu.cpu = cpu;
        (vcpu.asid, vcpu.other_asid) = (None, None);
        vcpu.vmcb.set_all_dirty();
    }
    let from_inner = vcpu.nested.is_some() && inner::choose_asid(vcpu);
    if local.last_guest.changes_to(vcpu.serial) || from_inner {
        linux::flush_predictors();
    }
    let mut flush = TlbControl::Nothing;
    if vcpu.platform.requests.intersects(Requests::TLB_FLUSH) {
        vcpu.platform.requests.remove(Requests::TLB_FLUSH);
        vcpu.other_asid = None;
        match asid::flush_guest(vcpu.platform.vm.features) {
            Some(control) => flush = control,
            None => vcpu.asid = None,
        }
    }
    let (asid, control) = local.asids.assign(vcpu.asid);
    if vcpu.asid != Some(asid) {
        // A new generation may have begun with a CPU that has forgotten everything.
        vcpu.asid = Some(asid);
        vcpu.vmcb.set_all_dirty();
    }
    vcpu.vmcb.set_asid(asid.number);
    vcpu.vmcb
        .set_tlb_control(if control == TlbControl::Nothing {
            flush
        } else {
            control
        });

    // Even for a guest that does not have it: RDPID reads it whatever CPUID says.
    vcpu.tsc_aux = vcpu.state.msrs.tsc_aux;
    if u64::from(vcpu.tsc_aux) != local.tsc_aux {
        // SAFETY: Only RDTSCP and RDPID read it, and `leave_context` brings the host's value back.
        let _ = unsafe { linux::wrmsr(MSR_TSC_AUX, u64::from(vcpu.tsc_aux)) };
    }
    let ratio = vcpu.platform.tsc_rate.ratio;
    if ratio != local.tsc_ratio {
        set_tsc_ratio(local, ratio);
    }
    let guest = vcpu.state.breakpoints(&vcpu.vmcb);
    vcpu.debug_ctl = debug_ctl::by_hand(&vcpu.vmcb, &vcpu.state.debug);
    linux::debug_enter(guest, vcpu.debug_ctl, &mut vcpu.host_breakpoints, irqs);
    linux::guest_timing_enter(irqs);
    let (cr4, xcr0) = (vcpu.vmcb.cr4(), vcpu.state.xcr0);
    vcpu.platform.fpu.enter(cr4, xcr0, &host.fpu, irqs);
}

/// It stays in the CPU until another guest needs another one.
#[cold]
fn set_tsc_ratio(local: &mut PerCpu, ratio: TscRatio) {
    static SAID: AtomicBool = AtomicBool::new(false);
    // SAFETY: It acts on guests only.
    if unsafe { linux::wrmsr(MSR_TSC_RATIO, ratio.bits()) }.is_ok() {
        local.tsc_ratio = ratio;
    } else if !SAID.swap(true, Relaxed) {
        pr_warn!(
            "a CPU refuses a TSC ratio: guests' TSCs run at another rate than they are told\n"
        );
    }
}

/// Gives the CPU the guest's DebugCtl if that is another one than before: the guest has written it,
/// a #DB has cleared a bit, or a step of ours has begun or ended.
#[inline]
pub(crate) fn follow_debug_ctl(vcpu: &mut LockedVcpu) {
    let wanted = debug_ctl::by_hand(&vcpu.vmcb, &vcpu.state.debug);
    if wanted != vcpu.debug_ctl {
        set_debug_ctl(vcpu, wanted);
    }
}

#[cold]
fn set_debug_ctl(vcpu: &mut LockedVcpu, value: u64) {
    vcpu.debug_ctl = value;
    // SAFETY: A bit that acts on single steps only, of which the kernel makes none here;
    // `leave_context` brings the host's value back.
    let _ = unsafe { linux::wrmsr(MSR_DEBUG_CTL, value) };
}

/// Puts the host's own state back.
pub(crate) fn leave_context(
    vcpu: &mut LockedVcpu,
    host: &Host,
    local: &mut PerCpu,
    irqs: &IrqsOff,
) {
    keep_flush(vcpu, local);
    vcpu.platform.fpu.exit(&host.fpu, irqs);
    // #VMEXIT leaves DR6 as it was in the guest (APM vol. 2, 15.6).
    let dr6 = vcpu.vmcb.dr6() != DR6_RESET;
    linux::debug_exit(&vcpu.host_breakpoints, vcpu.debug_ctl, dr6, irqs);
    if u64::from(vcpu.tsc_aux) != local.tsc_aux {
        // SAFETY: The host's own value.
        let _ = unsafe { linux::wrmsr(MSR_TSC_AUX, local.tsc_aux) };
    }
    if !linux::tsc_stable() {
        vcpu.last_tsc = linux::rdtsc();
    }
    linux::guest_was_here();
    linux::guest_timing_exit(irqs);
}

/// A flush that no VMRUN has done is still due.
fn keep_flush(vcpu: &mut LockedVcpu, local: &mut PerCpu) {
    let due = vcpu.vmcb.tlb_control();
    if due == TlbControl::Nothing as u8 {
        return;
    }
    if due == TlbControl::AllAsids as u8 {
        local.asids.restart();
        vcpu.asid = None;
    } else {
        vcpu.platform.requests |= Requests::TLB_FLUSH;
    }
    vcpu.vmcb.set_tlb_control(TlbControl::Nothing);
}
