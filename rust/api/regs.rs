// SPDX-License-Identifier: GPL-2.0-only

//! Registers of a vCPU, to and from the VMM. Conversions, no more: the rules are in the pure
//! crates.

use crate::linux;
use crate::linux::Sleep;
use crate::uapi::{self, UserArg};
use crate::vcpu::apic::PicOwner;
use crate::vcpu::requests;
use crate::vcpu::LockedVcpu;
use crate::vm::option;
use kernel::ffi::c_long;
use kernel::prelude::*;
use svm::dispatch;
use svm::event::QueuedInterrupt;
use svm::inject;
use svm::requests::Requests;
use svm::state::MpState;
use x86::msr::Origin;
use x86::paging;
use x86::regs::{gpr, Rflags};

/// KVM_ENABLE_CAP of a vCPU. Guests have what their CPUID offers here, and no more, in any case.
pub(crate) fn enable_cap(cap: &uapi::kvm_enable_cap) -> Result {
    let known = cap.cap == uapi::KVM_CAP_ENFORCE_PV_FEATURE_CPUID && cap.flags == 0;
    known.then_some(()).ok_or(EINVAL)
}

/// Brings the state into the form in which it is shown. What others have sent belongs to it, and so
/// does what comes with a pending exception, if the VMM does not take it apart.
pub(crate) fn settle(vcpu: &mut LockedVcpu) {
    if vcpu.platform.mailbox.has_requests() {
        requests::process_requests_for_state(vcpu);
    }
    if !vcpu.platform.vm.has_option(option::EXCEPTION_PAYLOAD) {
        inject::expose_exception(&mut vcpu.vmcb, &mut vcpu.state);
    }
}

pub(crate) fn get_regs(vcpu: &LockedVcpu) -> uapi::kvm_regs {
    let r = &vcpu.state.regs;
    uapi::kvm_regs {
        rax: r.get(gpr::RAX),
        rbx: r.get(gpr::RBX),
        rcx: r.get(gpr::RCX),
        rdx: r.get(gpr::RDX),
        rsi: r.get(gpr::RSI),
        rdi: r.get(gpr::RDI),
        rsp: r.get(gpr::RSP),
        rbp: r.get(gpr::RBP),
        r8: r.get(8),
        r9: r.get(9),
        r10: r.get(10),
        r11: r.get(11),
        r12: r.get(12),
        r13: r.get(13),
        r14: r.get(14),
        r15: r.get(15),
        rip: vcpu.vmcb.rip(),
        rflags: vcpu.state.debug.rflags(&vcpu.vmcb).bits(),
    }
}

pub(crate) fn set_regs(vcpu: &mut LockedVcpu, regs: &uapi::kvm_regs) {
    vcpu.state.regs.gpr = [
        regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8,
        regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ];
    if regs.rip != vcpu.vmcb.rip() {
        vcpu.state.events.rip_set();
        vcpu.vmcb.set_rip(regs.rip);
    }
    let rflags = Rflags::from_bits_retain(regs.rflags) | Rflags::RESERVED1;
    vcpu.state.debug.set_rflags(&mut vcpu.vmcb, rflags);
    vcpu.state.events.forget_pending();
}

pub(crate) fn translate(vcpu: &mut LockedVcpu, arg: UserArg) -> Result {
    let mut t: uapi::kvm_translation = arg.read()?;
    let linear = t.linear_address;
    let guest = vcpu.guest(Sleep::Allowed);
    let paging = guest.paging();
    let result = paging::inspect(guest.platform, &paging, linear);
    match result {
        // KVM's word for "nowhere" is an address, too.
        Ok(translation) if translation.gpa != u64::MAX => {
            t.physical_address = translation.gpa;
            t.valid = 1;
        }
        _ => {
            t.physical_address = u64::MAX;
            t.valid = 0;
        }
    }
    t.writeable = 1;
    t.usermode = 0;
    arg.write(&t)
}

/// KVM_INTERRUPT: an interrupt of the VMM's own controller.
pub(crate) fn interrupt(vcpu: &mut LockedVcpu, interrupt: &uapi::kvm_interrupt) -> Result {
    let vector = u8::try_from(interrupt.irq).map_err(|_| EINVAL)?;
    let PicOwner::User(waiting) = &mut vcpu.platform.pic else {
        return Err(ENXIO);
    };
    if vcpu.platform.apic.is_kernel() {
        // The processor takes it as it would from a PIC: through LINT0, when it is ready.
        if waiting.is_some() {
            return Err(EEXIST);
        }
        *waiting = Some(vector);
        vcpu.platform.mailbox.request(Requests::EXTINT);
        return Ok(());
    }
    if vcpu.state.events.interrupt.is_some() {
        return Err(EEXIST);
    }
    vcpu.state.events.interrupt = Some(QueuedInterrupt {
        vector,
        soft: false,
    });
    vcpu.state.mp_state = MpState::Runnable;
    Ok(())
}

/// Most MSRs of one call, as KVM has it.
const MAX_MSRS: u32 = 256;

/// The MSRs that a call is about.
pub(crate) fn read_msrs(arg: UserArg) -> Result<KVec<uapi::kvm_msr_entry>> {
    let header: uapi::kvm_msrs = arg.read()?;
    if header.nmsrs >= MAX_MSRS {
        return Err(E2BIG);
    }
    arg.after::<uapi::kvm_msrs>()
        .read_array(header.nmsrs as usize)
}

/// Answers how many could be read.
pub(crate) fn get_msrs(vcpu: &mut LockedVcpu, arg: UserArg) -> Result<c_long> {
    let mut entries = read_msrs(arg)?;
    let mut done = 0;
    for entry in entries.iter_mut() {
        let index = entry.index;
        let guest = &mut vcpu.guest(Sleep::Allowed);
        let value = dispatch::read_msr(guest, index, Origin::Host);
        match value {
            Ok(value) => entry.data = value,
            Err(_) => break,
        }
        done += 1;
    }
    arg.after::<uapi::kvm_msrs>().write_array(&entries)?;
    Ok(done)
}

/// Answers how many could be set.
pub(crate) fn set_msrs(vcpu: &mut LockedVcpu, arg: UserArg) -> Result<c_long> {
    let entries = read_msrs(arg)?;
    let mut done = 0;
    for entry in entries.iter() {
        let (index, value) = (entry.index, entry.data);
        let guest = &mut vcpu.guest(Sleep::Allowed);
        let result = dispatch::write_msr(guest, index, value, Origin::Host);
        if result.is_err() {
            break;
        }
        done += 1;
    }
    Ok(done)
}

pub(crate) fn set_signal_mask(vcpu: &mut LockedVcpu, arg: UserArg) -> Result {
    if arg.0 == 0 {
        vcpu.signal_mask = None;
        return Ok(());
    }
    let header: uapi::kvm_signal_mask = arg.read()?;
    let set: u64 = match header.len {
        8 => arg.after::<uapi::kvm_signal_mask>().read()?,
        _ => return Err(EINVAL),
    };
    // The same as the kernel's own: a word with a bit for each signal but two.
    vcpu.signal_mask = Some(linux::signal_set(set));
    Ok(())
}

pub(crate) fn set_mp_state(vcpu: &mut LockedVcpu, state: &uapi::kvm_mp_state) -> Result {
    let new = match state.mp_state {
        uapi::KVM_MP_STATE_RUNNABLE => MpState::Runnable,
        // Without a LAPIC in the kernel nothing would wake it.
        _ if !vcpu.platform.apic.is_kernel() => return Err(EINVAL),
        uapi::KVM_MP_STATE_UNINITIALIZED => MpState::Uninitialized,
        uapi::KVM_MP_STATE_INIT_RECEIVED => MpState::InitReceived,
        uapi::KVM_MP_STATE_HALTED => MpState::Halted,
        uapi::KVM_MP_STATE_SIPI_RECEIVED => MpState::SipiReceived,
        _ => return Err(EINVAL),
    };
    vcpu.state.mp_state = new;
    vcpu.platform.unhalted = false;
    Ok(())
}
