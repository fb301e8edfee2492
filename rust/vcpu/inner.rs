// SPDX-License-Identifier: GPL-2.0-only

//! A guest's own guest: what the run loop does for it. The rules are in `svm/nested.rs`, its tables
//! in `memory/inner_tables.rs`.

use crate::host::host;
use crate::linux::Sleep;
use crate::vcpu::requests;
use crate::vcpu::LockedVcpu;
use kernel::prelude::*;
use svm::dispatch::{self, Action, UserExit};
use svm::exit::NestedError;
use svm::nested::{self, Nested, Turn};
use svm::requests::Requests;
use x86::cpu::Stop;
use x86::features::Feature;

/// The guest's CPUID has SVM, or has not.
pub(crate) fn give(vcpu: &mut LockedVcpu, has_svm: bool) -> Result {
    if !has_svm {
        if vcpu.nested.take().is_some() {
            // Nothing could set GIF again.
            vcpu.state.events.gif_clear = false;
            // Under the inner guest's ASID the CPU may know of tables that go now.
            (vcpu.asid, vcpu.other_asid, vcpu.asid_is_inner) = (None, None, false);
            vcpu.platform.memory.inner.clear();
        }
    } else if vcpu.nested.is_none() {
        // All ports exit, so all bits of the map are set, and it is larger than that of MSRs.
        let (all_ones, _) = host().ok_or(ENODEV)?.permission_maps();
        vcpu.nested = Some(KBox::new(Nested::new(all_ones), GFP_KERNEL_ACCOUNT)?);
    }
    Ok(())
}

/// Whether the inner guest has the CPU, with nested paging of its own.
pub(crate) fn has_paging(vcpu: &LockedVcpu) -> bool {
    vcpu.nested
        .as_ref()
        .is_some_and(|nested| nested.has_paging())
}

/// INIT: there is no inner guest any more.
pub(crate) fn forget(vcpu: &mut LockedVcpu) {
    if let Some(nested) = &mut vcpu.nested {
        nested.reset(&mut vcpu.vmcb);
    }
}

/// Whether an INIT waits for GIF, or for an exit of the inner guest: it is then done later.
pub(crate) fn holds_init(vcpu: &mut LockedVcpu) -> bool {
    match &mut vcpu.nested {
        None => false,
        Some(nested) => {
            let waits = vcpu.state.events.gif_clear || nested.takes_init();
            nested.init |= waits;
            waits
        }
    }
}

/// Gives the outer guest the exit that is due, and makes ready what the CPU needs for the inner
/// one. Interrupts are on.
#[cold]
pub(crate) fn serve(vcpu: &mut LockedVcpu) -> Result {
    if let Some(nested) = vcpu.nested.as_deref() {
        let due = nested::due(&vcpu.vmcb, &vcpu.state, nested, &vcpu.platform);
        if nested.init && due.is_none() && !vcpu.state.events.gif_clear && !nested.is_inside() {
            requests::init(vcpu);
        } else if let Some(exit) = due {
            if nested::leave(&mut vcpu.guest(Sleep::Allowed), exit).is_err() {
                return Err(EFAULT);
            }
        }
    }
    let too_many = vcpu.platform.memory.has_too_many_inner_tables();
    let Some(nested) = vcpu.nested.as_deref_mut() else {
        return Ok(());
    };
    if nested.take_flush() || too_many {
        vcpu.platform.memory.inner.clear();
        nested.root = 0;
        if vcpu.asid_is_inner {
            vcpu.asid = None;
        } else {
            vcpu.other_asid = None;
        }
    }
    if nested.has_paging() && nested.root == 0 {
        nested.root = vcpu.platform.memory.inner_root()?;
    }
    // `enter_context` is yet to come.
    nested.take_switched();
    Ok(())
}

/// The ASID is that of the guest that is about to run. True if the CPU's predictors must not know
/// what ran before: to the CPU both guests are one, but an outer guest whose CPUID has IBRS may
/// take its own guest for less privileged than itself (APM vol. 2, 3.2.9).
pub(crate) fn choose_asid(vcpu: &mut LockedVcpu) -> bool {
    let inner = vcpu
        .nested
        .as_ref()
        .is_some_and(|nested| nested.is_inside());
    if inner == vcpu.asid_is_inner {
        return false;
    }
    vcpu.asid_is_inner = inner;
    core::mem::swap(&mut vcpu.asid, &mut vcpu.other_asid);
    let features = &vcpu.state.features;
    !inner && (features.has(Feature::IBRS) || features.has(Feature::AUTOMATIC_IBRS))
}

/// What comes next, with interrupts off.
pub(crate) fn prepare(vcpu: &mut LockedVcpu) -> Turn {
    let Some(nested) = vcpu.nested.as_deref_mut() else {
        return Turn::Leave;
    };
    nested::prepare(&mut vcpu.vmcb, &mut vcpu.state, nested, &mut vcpu.platform)
}

/// Whether a halted guest that has SVM is to run on. `interrupt`: it has one, if it is the outer
/// guest.
pub(crate) fn is_awake(vcpu: &mut LockedVcpu, interrupt: bool) -> bool {
    let Some(nested) = vcpu.nested.as_deref_mut() else {
        return interrupt;
    };
    match nested.is_inside() {
        true => nested::awake(&vcpu.vmcb, &vcpu.state, nested, &mut vcpu.platform),
        false => interrupt && !vcpu.state.events.gif_clear,
    }
}

/// A nested fault of an inner guest that has nested paging: the outer guest's, if its tables do not
/// permit the access; else memory's, or a device's.
pub(crate) fn nested_fault(vcpu: &mut LockedVcpu, address: u64, error: NestedError) -> Action {
    let write = error.contains(NestedError::WRITE);
    let page = match nested::resolve(&mut vcpu.guest(Sleep::Allowed), address, error) {
        Ok(Some(page)) => page,
        Err(Stop::Fault) => return Action::User(UserExit::Fault),
        // An exit is due; or the tables change all the time.
        Ok(None) | Err(_) => return Action::Resume,
    };
    match vcpu.platform.memory.inner_fault(address, &page, write) {
        Ok(flush) => {
            if flush {
                vcpu.platform.requests |= Requests::TLB_FLUSH;
            }
            Action::Resume
        }
        Err(why) => dispatch::nested_fault(&mut vcpu.guest(Sleep::Allowed), page.gpa, error, why),
    }
}
