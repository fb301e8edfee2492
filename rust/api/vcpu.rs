// SPDX-License-Identifier: GPL-2.0-only

//! Ioctls of a vCPU.

use crate::api::cpuid;
use crate::api::events;
use crate::api::fpu;
use crate::api::nested_state;
use crate::api::prefault;
use crate::api::regs;
use crate::api::sregs;
use crate::api::stats_fd::StatsFd;
use crate::api::sync_regs;
use crate::host::resumes;
use crate::uapi::file::{self, FileObject};
use crate::uapi::{self, UserArg};
use crate::vcpu::pvclock;
use crate::vcpu::requests;
use crate::vcpu::run;
use crate::vcpu::{LockedVcpu, Vcpu};
use crate::vm::Vm;
use kernel::bindings;
use kernel::ffi::c_long;
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};
use svm::state::MpState;

/// KVM_CREATE_VCPU: a vCPU in the state after power-up, and its descriptor.
pub(crate) fn create(vm: ArcBorrow<'_, Vm>, id: u32) -> Result<c_long> {
    let vcpu = Vcpu::create(vm, id)?;
    open(vcpu.clone()).inspect_err(|_| vcpu.discard())
}

/// A descriptor for one that has none.
pub(crate) fn open(vcpu: Arc<Vcpu>) -> Result<c_long> {
    file::new_fd(c"pacifica-vcpu", vcpu.clone())
        .inspect(|_| vcpu.vm.stats.add(vcpu.mailbox.id, vcpu.stats.clone()))
}

impl Vcpu {
    /// An ioctl that has the vCPU for itself.
    fn locked_ioctl(&self, cmd: u32, arg: UserArg) -> Result<c_long> {
        let mut vcpu = self.locked.lock()?;
        let vcpu = &mut *vcpu;
        if vcpu.resumes != resumes() {
            pvclock::after_suspend(vcpu);
        }
        if cmd != uapi::KVM_RUN {
            self.vm.irqchip.broadcasts.finish();
        }
        match cmd {
            uapi::KVM_RUN => {
                if arg.0 != 0 {
                    return Err(EINVAL);
                }
                sync_regs::take(vcpu)?;
                let result = run::run(vcpu);
                sync_regs::show(vcpu);
                result
            }
            uapi::KVM_GET_STATS_FD => StatsFd::of_vcpu(self),
            uapi::KVM_KVMCLOCK_CTRL => pvclock::pause_notice(vcpu),
            _ => {
                let result = ioctl(vcpu, cmd, arg);
                pvclock::publish(vcpu);
                result
            }
        }
    }
}

/// Whether the VMM maps the dirty ring, and not the pages before it.
///
/// # Safety
///
/// `vma` comes from an `mmap` call that is under way.
unsafe fn is_ring(vma: *mut bindings::vm_area_struct) -> bool {
    // SAFETY: As promised by the caller.
    unsafe { (*vma).vm_pgoff >= uapi::KVM_DIRTY_LOG_PAGE_OFFSET as usize }
}

impl FileObject for Vcpu {
    fn ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: UserArg) -> Result<c_long> {
        if !this.vm.memory.is_current() {
            return Err(EIO);
        }
        this.locked_ioctl(cmd, arg)
    }

    fn release(this: ArcBorrow<'_, Self>) {
        this.vm.vcpus.remove(&this);
    }

    unsafe fn mmap(this: ArcBorrow<'_, Self>, vma: *mut bindings::vm_area_struct) -> Result {
        // SAFETY: As promised by the caller.
        unsafe {
            match &this.ring {
                Some(ring) if is_ring(vma) => ring.map(vma),
                _ => this.run_page.map(vma),
            }
        }
    }
}

/// Dispatches on the number. Interrupts are on; the vCPU is locked.
#[inline(never)] // Its frame must not lie under the guest's.
fn ioctl(vcpu: &mut LockedVcpu, cmd: u32, arg: UserArg) -> Result<c_long> {
    if matches!(
        cmd,
        uapi::KVM_GET_VCPU_EVENTS
            | uapi::KVM_GET_SREGS
            | uapi::KVM_GET_SREGS2
            | uapi::KVM_GET_DEBUGREGS
    ) {
        regs::settle(vcpu);
    } else if vcpu.platform.mailbox.has_requests() {
        requests::process_requests_for_state(vcpu);
    }
    match cmd {
        uapi::KVM_GET_REGS => arg.write(&regs::get_regs(vcpu))?,
        uapi::KVM_SET_REGS => regs::set_regs(vcpu, &arg.read()?),
        uapi::KVM_GET_SREGS => arg.write(&sregs::get(vcpu))?,
        uapi::KVM_SET_SREGS => sregs::set(vcpu, &arg.read()?)?,
        uapi::KVM_GET_SREGS2 => arg.write(&sregs::get2(vcpu))?,
        uapi::KVM_SET_SREGS2 => sregs::set2(vcpu, &arg.read()?)?,
        uapi::KVM_TRANSLATE => regs::translate(vcpu, arg)?,
        uapi::KVM_INTERRUPT => regs::interrupt(vcpu, &arg.read()?)?,
        uapi::KVM_NMI => vcpu.state.events.raise_nmi(),
        uapi::KVM_GET_MSRS => return regs::get_msrs(vcpu, arg),
        uapi::KVM_SET_MSRS => return regs::set_msrs(vcpu, arg),
        uapi::KVM_SET_SIGNAL_MASK => regs::set_signal_mask(vcpu, arg)?,
        uapi::KVM_GET_MP_STATE => {
            requests::begin(vcpu);
            arg.write(&uapi::kvm_mp_state {
                mp_state: match vcpu.state.mp_state {
                    // It wakes at the next KVM_RUN, wherever that is.
                    MpState::Halted if vcpu.platform.unhalted => MpState::Runnable,
                    state => state,
                } as u32,
            })?;
        }
        uapi::KVM_SET_MP_STATE => regs::set_mp_state(vcpu, &arg.read()?)?,
        uapi::KVM_GET_TSC_KHZ => return Ok(vcpu.platform.tsc_rate.khz as c_long),
        uapi::KVM_SET_TSC_KHZ => pvclock::set_khz(vcpu, arg.0)?,
        uapi::KVM_GET_FPU
        | uapi::KVM_SET_FPU
        | uapi::KVM_GET_XSAVE
        | uapi::KVM_GET_XSAVE2
        | uapi::KVM_SET_XSAVE
        | uapi::KVM_GET_XCRS
        | uapi::KVM_SET_XCRS => fpu::ioctl(vcpu, cmd, arg)?,
        uapi::KVM_GET_VCPU_EVENTS
        | uapi::KVM_SET_VCPU_EVENTS
        | uapi::KVM_GET_DEBUGREGS
        | uapi::KVM_SET_DEBUGREGS
        | uapi::KVM_SET_GUEST_DEBUG
        | uapi::KVM_X86_SETUP_MCE
        | uapi::KVM_X86_SET_MCE
        | uapi::KVM_GET_LAPIC
        | uapi::KVM_SET_LAPIC
        | uapi::KVM_SET_VAPIC_ADDR => events::ioctl(vcpu, cmd, arg)?,
        uapi::KVM_HAS_DEVICE_ATTR | uapi::KVM_GET_DEVICE_ATTR | uapi::KVM_SET_DEVICE_ATTR => {
            pvclock::attribute(vcpu, cmd, arg)?
        }
        uapi::KVM_PRE_FAULT_MEMORY => prefault::ioctl(vcpu, arg)?,
        uapi::KVM_SET_CPUID => cpuid::set_old(vcpu, arg)?,
        uapi::KVM_SET_CPUID2 => cpuid::set(vcpu, arg)?,
        uapi::KVM_GET_CPUID2 => cpuid::get(vcpu, arg)?,
        uapi::KVM_ENABLE_CAP => regs::enable_cap(&arg.read()?)?,
        uapi::KVM_GET_NESTED_STATE => nested_state::get(vcpu, arg)?,
        uapi::KVM_SET_NESTED_STATE => nested_state::set(vcpu, arg)?,
        _ => return Err(ENOTTY),
    }
    Ok(0)
}
