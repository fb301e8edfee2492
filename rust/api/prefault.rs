// SPDX-License-Identifier: GPL-2.0-only

//! KVM_PRE_FAULT_MEMORY: maps guest memory before the guest faults on it.

use crate::linux;
use crate::uapi::{kvm_pre_fault_memory, UserArg};
use crate::vcpu::user_exit::unusable_memory;
use crate::vcpu::LockedVcpu;
use kernel::prelude::*;
use npt::PageSize;
use x86::cpu::MemError;

/// Maps the range page by page, whatever their size, as reads of the guest would. What is left goes
/// back to the caller; an error is one only if nothing was done.
pub(crate) fn ioctl(vcpu: &mut LockedVcpu, arg: UserArg) -> Result {
    let mut range: kvm_pre_fault_memory = arg.read()?;
    let end = range.gpa.checked_add(range.size);
    let aligned = (range.gpa | range.size) & PageSize::Size4K.offset_mask() == 0;
    if range.flags != 0 || range.padding != [0; 5] || range.size == 0 || !aligned || end.is_none() {
        return Err(EINVAL);
    }
    let whole = range.size;
    let result = map(vcpu, &mut range);
    arg.write(&range)?;
    match range.size == whole {
        true => result,
        false => Ok(()),
    }
}

fn map(vcpu: &mut LockedVcpu, range: &mut kvm_pre_fault_memory) -> Result {
    while range.size != 0 {
        if linux::work_pending() {
            if linux::signal_pending() {
                return Err(EINTR);
            }
            linux::handle_work()?;
        }
        match vcpu.platform.memory.fault(range.gpa, false, true) {
            Ok(()) => {}
            Err(MemError::Unbacked) => return Err(ENOENT),
            Err(MemError::Fault) => return Err(unusable_memory(vcpu)),
            // A read, and sleeping is allowed.
            Err(MemError::ReadOnly | MemError::WouldSleep) => return Err(EIO),
        }
        // Otherwise it was taken away again.
        if let Some(end) = vcpu.platform.memory.page_end(range.gpa) {
            let done = end.wrapping_sub(range.gpa).min(range.size);
            range.gpa = range.gpa.wrapping_add(done);
            range.size = range.size.wrapping_sub(done);
        }
    }
    Ok(())
}
