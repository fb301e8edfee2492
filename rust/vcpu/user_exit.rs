// SPDX-License-Identifier: GPL-2.0-only

//! What KVM_RUN tells the VMM: `struct kvm_run`, filled from a [`UserExit`].

use crate::linux;
use crate::linux::compat::is_poison;
use crate::linux::mm::report_poison;
use crate::uapi;
use crate::uapi::run_page::Common;
use crate::vcpu::apic::PicOwner;
use crate::vcpu::requests::ready_for_user_interrupt;
use crate::vcpu::LockedVcpu;
use crate::vm::stats::Count;
use kernel::prelude::*;
use npt::PageSize;
use svm::dispatch::{InternalError, UserExit};
use svm::io::UserIo;
use x86::regs::{Rflags, SegReg};

/// Fills `struct kvm_run`.
pub(crate) fn to_user(vcpu: &mut LockedVcpu, exit: UserExit) -> Result {
    let page = &vcpu.platform.run_page;
    vcpu.stats.count(Count::ToUser);
    match exit {
        UserExit::Io(UserIo::Port {
            port,
            size,
            count,
            write,
            data,
        }) => {
            let [a, b, c, d, ..] = data;
            page.set_io(
                port,
                size,
                count,
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
        UserExit::Io(UserIo::Msr {
            index,
            write,
            value,
            reason,
        }) => page.set_msr(index, write.then_some(value), reason),
        UserExit::Shutdown => page.set_reason(uapi::KVM_EXIT_SHUTDOWN),
        UserExit::Debug { vector, dr6 } => {
            let vmcb = &vcpu.vmcb;
            let pc = vmcb.segment(SegReg::Cs).base.wrapping_add(vmcb.rip());
            page.set_debug(vector, pc, dr6, vmcb.dr7());
        }
        UserExit::SetTpr => page.set_reason(uapi::KVM_EXIT_SET_TPR),
        UserExit::FailEntry { reason } => {
            vcpu.platform
                .vm
                .report(format_args!("VMRUN was refused, reason {reason:#x}"));
            page.set_fail_entry(reason);
        }
        UserExit::InternalError(error) => internal_error(vcpu, error),
        UserExit::Fault => return Err(no_memory(vcpu)),
    }
    Ok(())
}

/// What KVM_RUN fails with where the process has no usable memory. If the memory is poisoned, the
/// thread hears of it by a signal, as if it had touched the memory itself, and what the guest did
/// is tried again at the next KVM_RUN: by then another page may be there, or the VMM has given the
/// guest a machine check.
fn no_memory(vcpu: &mut LockedVcpu) -> Error {
    let error = unusable_memory(vcpu);
    if error == EINTR {
        vcpu.platform.run_page.set_reason(uapi::KVM_EXIT_INTR);
    }
    error
}

/// Why the last access or fault found no usable memory: `EINTR` if it is poisoned and the thread
/// has been told.
#[cold]
pub(crate) fn unusable_memory(vcpu: &mut LockedVcpu) -> Error {
    let error = vcpu.platform.memory.error.take();
    // An access that failed since may have left its address: what a nested fault says of itself
    // counts.
    let poisoned = vcpu.platform.memory.poisoned.take();
    if let Some(hva) = poisoned.filter(|_| error.is_none_or(is_poison)) {
        report_poison(hva & !PageSize::Size4K.offset_mask());
        return EINTR;
    }
    error.unwrap_or(EFAULT)
}

fn internal_error(vcpu: &LockedVcpu, error: InternalError) {
    let page = &vcpu.platform.run_page;
    match error {
        InternalError::Emulation { length, bytes } => {
            let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
            let mut second = [0; 8];
            second[..7].copy_from_slice(&rest);
            vcpu.platform
                .vm
                .report(format_args!("cannot emulate {:02x?}", &bytes));
            page.set_internal_error(
                uapi::KVM_INTERNAL_ERROR_EMULATION,
                &[
                    u64::from(uapi::KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES),
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
            uapi::KVM_INTERNAL_ERROR_DELIVERY_EV,
            &[event, exit_code, info, gpa, u64::from(linux::cpu())],
        ),
        InternalError::UnexpectedExit { exit_code } => {
            vcpu.platform
                .vm
                .report(format_args!("unknown exit code {exit_code:#x}"));
            page.set_internal_error(
                uapi::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
                &[exit_code, u64::from(linux::cpu())],
            );
        }
    }
}

/// What every return of KVM_RUN reports.
pub(crate) fn set_common(vcpu: &LockedVcpu) {
    vcpu.platform.run_page.set_common(&Common {
        ready_for_interrupt: vcpu.platform.pic == PicOwner::Kernel
            || ready_for_user_interrupt(vcpu),
        if_flag: vcpu.vmcb.rflags().contains(Rflags::IF),
        cr8: vcpu.platform.apic.cr8().into(),
        apic_base: vcpu.platform.apic.base(),
    });
}
