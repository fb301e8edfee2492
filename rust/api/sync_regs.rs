// SPDX-License-Identifier: GPL-2.0-only

//! Registers in `struct kvm_run` (`KVM_CAP_SYNC_REGS`): set before KVM_RUN, shown after it, without
//! ioctls of their own.

use crate::api::events;
use crate::api::regs;
use crate::api::sregs;
use crate::uapi;
use crate::vcpu::requests;
use crate::vcpu::LockedVcpu;
use kernel::prelude::*;

/// All sets of registers that are known.
pub(crate) const FIELDS: u32 = uapi::KVM_SYNC_X86_VALID_FIELDS;

fn has(fields: u64, field: u32) -> bool {
    fields & u64::from(field) != 0
}

/// Takes what the VMM has changed, at the start of KVM_RUN.
///
/// # Errors
///
/// `EINVAL` for sets that are not known, or values that cannot be.
#[inline]
pub(crate) fn take(vcpu: &mut LockedVcpu) -> Result {
    let (valid, dirty) = vcpu.platform.run_page.sync_fields();
    if (valid | dirty) & !u64::from(FIELDS) != 0 {
        return Err(EINVAL);
    }
    if dirty != 0 {
        take_fields(vcpu, dirty)?;
    }
    Ok(())
}

#[inline(never)] // Its frame must not lie under the guest's.
fn take_fields(vcpu: &mut LockedVcpu, dirty: u64) -> Result {
    if vcpu.platform.mailbox.has_requests() {
        requests::process_requests(vcpu);
    }
    if has(dirty, uapi::KVM_SYNC_X86_REGS) {
        regs::set_regs(vcpu, &vcpu.platform.run_page.sync_regs());
    }
    if has(dirty, uapi::KVM_SYNC_X86_SREGS) {
        sregs::set(vcpu, &vcpu.platform.run_page.sync_sregs())?;
    }
    if has(dirty, uapi::KVM_SYNC_X86_EVENTS) {
        events::set_events(vcpu, &vcpu.platform.run_page.sync_events())?;
    }
    vcpu.platform.run_page.clear_dirty();
    Ok(())
}

/// Shows what the VMM wants to see, at the end of KVM_RUN.
#[inline]
pub(crate) fn show(vcpu: &mut LockedVcpu) {
    let (valid, _) = vcpu.platform.run_page.sync_fields();
    if has(valid, FIELDS) {
        show_fields(vcpu, valid);
    }
}

#[inline(never)]
fn show_fields(vcpu: &mut LockedVcpu, valid: u64) {
    regs::settle(vcpu);
    if has(valid, uapi::KVM_SYNC_X86_REGS) {
        vcpu.platform.run_page.show_regs(regs::get_regs(vcpu));
    }
    if has(valid, uapi::KVM_SYNC_X86_SREGS) {
        vcpu.platform.run_page.show_sregs(sregs::get(vcpu));
    }
    if has(valid, uapi::KVM_SYNC_X86_EVENTS) {
        vcpu.platform.run_page.show_events(events::get_events(vcpu));
    }
}
