// SPDX-License-Identifier: GPL-2.0-only

//! Registers in `struct kvm_run` (`KVM_CAP_SYNC_REGS`): set before KVM_RUN, shown after it, without
//! ioctls of their own.

use crate::api::events;
use crate::api::regs;
use crate::api::sregs;
use crate::uapi;
use crate::vcpu::requests;
use crate::vcpu::{Inner, Vcpu};
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
pub(crate) fn take(vcpu: &Vcpu, inner: &mut Inner) -> Result {
    let (valid, dirty) = vcpu.run_page.sync_fields();
    if (valid | dirty) & !u64::from(FIELDS) != 0 {
        return Err(EINVAL);
    }
    if dirty != 0 {
        take_fields(vcpu, inner, dirty)?;
    }
    Ok(())
}

#[inline(never)] // Its frame must not lie under the guest's.
fn take_fields(vcpu: &Vcpu, inner: &mut Inner, dirty: u64) -> Result {
    let page = &vcpu.run_page;
    if vcpu.mailbox.has_requests() {
        requests::process_requests(vcpu, inner);
    }
    if has(dirty, uapi::KVM_SYNC_X86_REGS) {
        regs::set_regs(inner, &page.sync_regs());
    }
    if has(dirty, uapi::KVM_SYNC_X86_SREGS) {
        sregs::set(vcpu, inner, &page.sync_sregs())?;
    }
    if has(dirty, uapi::KVM_SYNC_X86_EVENTS) {
        events::set_events(vcpu, inner, &page.sync_events())?;
    }
    page.clear_dirty();
    Ok(())
}

/// Shows what the VMM wants to see, at the end of KVM_RUN.
#[inline]
pub(crate) fn show(vcpu: &Vcpu, inner: &mut Inner) {
    let (valid, _) = vcpu.run_page.sync_fields();
    if has(valid, FIELDS) {
        show_fields(vcpu, inner, valid);
    }
}

#[inline(never)]
fn show_fields(vcpu: &Vcpu, inner: &mut Inner, valid: u64) {
    let page = &vcpu.run_page;
    regs::settle(vcpu, inner);
    if has(valid, uapi::KVM_SYNC_X86_REGS) {
        page.show_regs(regs::get_regs(inner));
    }
    if has(valid, uapi::KVM_SYNC_X86_SREGS) {
        page.show_sregs(sregs::get(inner));
    }
    if has(valid, uapi::KVM_SYNC_X86_EVENTS) {
        page.show_events(events::get_events(vcpu, inner));
    }
}
