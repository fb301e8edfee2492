// SPDX-License-Identifier: GPL-2.0-only

//! Events, debug registers, machine-check set-up and LAPIC of a vCPU, to and from the VMM.

use crate::linux::Sleep;
use crate::uapi::{self, UserArg};
use crate::vcpu::pvclock::touch_time;
use crate::vcpu::LockedVcpu;
use crate::vm::option;
use irqchip::lapic::STATE_SIZE;
use kernel::prelude::*;
use svm::debug::DebugControl;
use svm::dispatch;
use svm::event::{QueuedException, QueuedInterrupt};
use svm::requests::Requests;
use svm::state::guest_cr4;
use x86::msr::{Report, Reported};
use x86::regs::{vector, Cr4, Exception};

/// Dispatches on the number.
pub(crate) fn ioctl(vcpu: &mut LockedVcpu, cmd: u32, arg: UserArg) -> Result {
    match cmd {
        uapi::KVM_GET_VCPU_EVENTS => arg.write(&get_events(vcpu)),
        uapi::KVM_SET_VCPU_EVENTS => set_events(vcpu, &arg.read()?),
        uapi::KVM_GET_DEBUGREGS => arg.write(&uapi::kvm_debugregs {
            db: vcpu.state.db,
            dr6: vcpu.state.debug.dr6(&vcpu.vmcb),
            dr7: vcpu.state.debug.dr7(&vcpu.vmcb),
            ..Default::default()
        }),
        uapi::KVM_SET_DEBUGREGS => set_debugregs(vcpu, &arg.read()?),
        uapi::KVM_SET_GUEST_DEBUG => set_guest_debug(vcpu, &arg.read()?),
        uapi::KVM_X86_SETUP_MCE => setup_mce(vcpu, arg.read()?),
        uapi::KVM_X86_SET_MCE => set_mce(vcpu, &arg.read()?),
        uapi::KVM_GET_LAPIC => get_lapic(vcpu, arg),
        uapi::KVM_SET_LAPIC => set_lapic(vcpu, arg),
        // Where TPR accesses that are reported would leave their value; none are reported.
        uapi::KVM_SET_VAPIC_ADDR => {
            vcpu.platform.apic.kernel().ok_or(EINVAL)?;
            arg.read::<u64>().map(|_| ())
        }
        _ => Err(ENOTTY),
    }
}

pub(crate) fn get_events(vcpu: &LockedVcpu) -> uapi::kvm_vcpu_events {
    let events = &vcpu.state.events;
    let mut out = uapi::kvm_vcpu_events {
        flags: uapi::KVM_VCPUEVENT_VALID_NMI_PENDING | uapi::KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    if let Some(queued) = events.shown() {
        // A VMM without KVM_CAP_EXCEPTION_PAYLOAD knows no pending ones.
        let injected = queued.injected || !vcpu.platform.vm.has_option(option::EXCEPTION_PAYLOAD);
        let payload = queued.exception.payload.filter(|_| !injected);
        out.exception.injected = u8::from(injected);
        out.exception.pending = u8::from(!injected);
        out.exception_has_payload = u8::from(payload.is_some());
        out.exception_payload = payload.unwrap_or(0);
        out.exception.nr = queued.exception.vector;
        out.exception.has_error_code = u8::from(queued.exception.error_code.is_some());
        out.exception.error_code = queued.exception.error_code.unwrap_or(0);
    }
    if let Some(interrupt) = &events.interrupt {
        out.interrupt.injected = u8::from(!interrupt.soft);
        out.interrupt.nr = interrupt.vector;
        out.interrupt.soft = u8::from(interrupt.soft);
    }
    if vcpu.vmcb.interrupt_shadow() {
        // The CPU does not tell which of the two it is.
        out.interrupt.shadow =
            (uapi::KVM_X86_SHADOW_INT_STI | uapi::KVM_X86_SHADOW_INT_MOV_SS) as u8;
    }
    out.nmi.injected = u8::from(events.nmi_injected);
    out.nmi.pending = events.nmi_pending;
    out.nmi.masked = u8::from(events.nmi_masked);
    if vcpu.platform.vm.has_option(option::EXCEPTION_PAYLOAD) {
        out.flags |= uapi::KVM_VCPUEVENT_VALID_PAYLOAD;
    }
    if vcpu.platform.vm.has_option(option::TRIPLE_FAULT) {
        out.flags |= uapi::KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
        out.triple_fault.pending = u8::from(events.triple_fault);
    }
    out
}

pub(crate) fn set_events(vcpu: &mut LockedVcpu, new: &uapi::kvm_vcpu_events) -> Result {
    let mut known = uapi::KVM_VCPUEVENT_VALID_NMI_PENDING
        | uapi::KVM_VCPUEVENT_VALID_SIPI_VECTOR
        | uapi::KVM_VCPUEVENT_VALID_SHADOW;
    // There is no SMM, which what was saved on KVM may say as well.
    let smi = &new.smi;
    if smi.smm == 0 && smi.pending == 0 && smi.smm_inside_nmi == 0 && smi.latched_init == 0 {
        known |= uapi::KVM_VCPUEVENT_VALID_SMM;
    }
    if vcpu.platform.vm.has_option(option::EXCEPTION_PAYLOAD) {
        known |= uapi::KVM_VCPUEVENT_VALID_PAYLOAD;
    }
    if vcpu.platform.vm.has_option(option::TRIPLE_FAULT) {
        known |= uapi::KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    }
    if new.flags & !known != 0 {
        return Err(EINVAL);
    }
    let exception = new.exception;
    let has_pending = new.flags & uapi::KVM_VCPUEVENT_VALID_PAYLOAD != 0;
    let pending = has_pending && exception.pending != 0;
    let queued = pending || exception.injected != 0;
    if queued && (exception.nr > 31 || exception.nr == vector::NMI) {
        return Err(EINVAL);
    }
    let events = &mut vcpu.state.events;
    events.exception = queued.then(|| QueuedException {
        exception: Exception {
            vector: exception.nr,
            error_code: (exception.has_error_code != 0).then_some(exception.error_code),
            payload: (pending && new.exception_has_payload != 0).then_some(new.exception_payload),
        },
        injected: !pending,
    });
    events.interrupt =
        (new.interrupt.injected != 0 || new.interrupt.soft != 0).then_some(QueuedInterrupt {
            vector: new.interrupt.nr,
            soft: new.interrupt.soft != 0,
        });
    if new.flags & uapi::KVM_VCPUEVENT_VALID_NMI_PENDING != 0 {
        events.nmi_pending = new.nmi.pending.min(svm::event::Events::MAX_NMIS);
    }
    events.nmi_injected = new.nmi.injected != 0;
    events.set_nmi_masked(new.nmi.masked != 0);
    events.deliveries_began();
    if new.flags & uapi::KVM_VCPUEVENT_VALID_TRIPLE_FAULT != 0 {
        events.triple_fault = new.triple_fault.pending != 0;
    }
    if new.flags & uapi::KVM_VCPUEVENT_VALID_SHADOW != 0 {
        vcpu.vmcb.set_interrupt_shadow(new.interrupt.shadow != 0);
    }
    if new.flags & uapi::KVM_VCPUEVENT_VALID_SIPI_VECTOR != 0 {
        vcpu.platform.mailbox.set_sipi_vector(new.sipi_vector as u8);
    }
    dispatch::events_set(&mut vcpu.guest(Sleep::Allowed));
    Ok(())
}

fn set_debugregs(vcpu: &mut LockedVcpu, new: &uapi::kvm_debugregs) -> Result {
    // The upper halves must be zero (APM vol. 2, 13.1.1.3).
    if new.flags != 0 || new.dr6 >> 32 != 0 || new.dr7 >> 32 != 0 {
        return Err(EINVAL);
    }
    vcpu.state.db = new.db;
    vcpu.state.debug.set_dr6(&mut vcpu.vmcb, new.dr6);
    vcpu.state.debug.set_dr7(&mut vcpu.vmcb, new.dr7);
    Ok(())
}

/// KVM_SET_GUEST_DEBUG: the VMM's debugger takes breakpoints and single steps over, or gives them
/// back.
fn set_guest_debug(vcpu: &mut LockedVcpu, new: &uapi::kvm_guest_debug) -> Result {
    let control = DebugControl::from_bits(new.control).ok_or(EINVAL)?;
    let [a, b, c, d, .., dr7] = new.arch.debugreg;
    // Otherwise the registers are not read.
    if control.contains(DebugControl::USE_HW_BP) && dr7 >> 32 != 0 {
        return Err(EINVAL);
    }
    if control.intersects(DebugControl::INJECT_DB | DebugControl::INJECT_BP) {
        let events = &vcpu.state.events;
        if events.exception.is_some() || events.triple_fault {
            return Err(EBUSY);
        }
        let db = control.contains(DebugControl::INJECT_DB);
        let vector = if db { vector::DB } else { vector::BP };
        vcpu.state.events.raise_for_vmm(Exception::new(vector));
        dispatch::events_set(&mut vcpu.guest(Sleep::Allowed));
    }
    let features = vcpu.platform.vm.features;
    let debug = &mut vcpu.state.debug;
    debug.set(&mut vcpu.vmcb, features, control, [a, b, c, d], dr7);
    vcpu.platform.requests.remove(Requests::STEPPED);
    Ok(())
}

/// KVM_X86_SETUP_MCE: how many banks, and which abilities.
fn setup_mce(vcpu: &mut LockedVcpu, capability: u64) -> Result {
    if vcpu.state.msrs.mce.setup(capability) {
        Ok(())
    } else {
        Err(EINVAL)
    }
}

/// KVM_X86_SET_MCE: a machine check happens to the guest.
fn set_mce(vcpu: &mut LockedVcpu, new: &uapi::kvm_x86_mce) -> Result {
    let report = Report {
        status: new.status,
        addr: new.addr,
        misc: new.misc,
        mcg_status: new.mcg_status,
        bank: new.bank,
    };
    let enabled = guest_cr4(&vcpu.vmcb, &vcpu.state).contains(Cr4::MCE);
    let state = &mut vcpu.state;
    match state.msrs.mce.report(&report, enabled).ok_or(EINVAL)? {
        Reported::Quiet => {}
        Reported::MachineCheck => state.events.raise_for_vmm(Exception::new(vector::MC)),
        Reported::Shutdown => state.events.triple_fault = true,
    }
    Ok(())
}

fn get_lapic(vcpu: &LockedVcpu, arg: UserArg) -> Result {
    let mut page = [0u8; STATE_SIZE];
    let lapic = vcpu.platform.apic.kernel().ok_or(EINVAL)?;
    let wide_ids = vcpu.platform.vm.irqchip.has_wide_ids();
    lapic.state(&mut page, vcpu.now(), wide_ids);
    arg.write_bytes(&page)
}

fn set_lapic(vcpu: &mut LockedVcpu, arg: UserArg) -> Result {
    let now = vcpu.now();
    let lapic = vcpu.platform.apic.kernel_mut().ok_or(EINVAL)?;
    let mut page = [0u8; STATE_SIZE];
    arg.read_bytes(&mut page)?;
    lapic
        .set_state(&page, now, vcpu.platform.vm.irqchip.has_wide_ids())
        .map_err(|_| EINVAL)?;
    vcpu.platform
        .vm
        .vcpu_table
        .publish_apic(&vcpu.platform.mailbox, lapic.snapshot());
    vcpu.platform.vm.irqchip.lapic_was_set();
    vcpu.platform.mailbox.request(Requests::EXTINT);
    touch_time(vcpu);
    Ok(())
}
