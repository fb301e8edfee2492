// SPDX-License-Identifier: GPL-2.0-only

//! The link to the process' address space: the host takes pages back.
//!
//! ```text
//!   the host unmaps, moves, write-protects or merges pages of the process
//!     invalidate_range_start ─► faults in the range wait; unmap; flush every vCPU
//!     ... the host changes its tables and may reuse the pages ...
//!     invalidate_range_end   ─► the sequence moves on; faults go on
//! ```
//!
//! If it only takes the right to write away, as fork(2) does, the pages stay, without that right.
//!
//! The kernel calls these functions with its own locks held, some of them spinlocks or in places
//! that must not sleep; they take the memory's spinlock only.

use crate::linux::mm::only_write_goes;
use crate::linux::Sleep;
use crate::memory::{Loss, VmMemory};
use core::pin::Pin;
use kernel::bindings;
use kernel::error::to_result;
use kernel::ffi::{c_int, c_ulong};
use kernel::prelude::*;
use kernel::types::Opaque;

/// The kernel's side of the link. It is part of [`VmMemory`], and finds it from its own address.
#[repr(transparent)]
pub(crate) struct Notifier(Opaque<bindings::mmu_notifier>);

// SAFETY: The kernel's functions synchronise themselves.
unsafe impl Send for Notifier {}
// SAFETY: Likewise.
unsafe impl Sync for Notifier {}

const OPS: bindings::mmu_notifier_ops = bindings::mmu_notifier_ops {
    release: Some(release),
    clear_flush_young: Some(clear_young),
    clear_young: Some(clear_young),
    test_young: Some(test_young),
    invalidate_range_start: Some(invalidate_range_start),
    invalidate_range_end: Some(invalidate_range_end),
    arch_invalidate_secondary_tlbs: None,
    alloc_notifier: None,
    free_notifier: None,
};

impl Notifier {
    /// One that is linked to nothing yet.
    pub(crate) fn new() -> Self {
        let notifier = bindings::mmu_notifier {
            ops: &OPS,
            ..Default::default()
        };
        Self(Opaque::new(notifier))
    }

    /// Links it to `mm`, once. May sleep.
    ///
    /// # Safety
    ///
    /// `self` must be the notifier of a pinned [`VmMemory`] that is complete, and that unregisters
    /// it before it goes away. `mm` must be the address space of the current process.
    pub(crate) unsafe fn register(self: Pin<&Self>, mm: *mut bindings::mm_struct) -> Result {
        // SAFETY: As promised by the caller.
        to_result(unsafe { bindings::mmu_notifier_register(self.0.get(), mm) })
    }

    /// Ends the link. When it returns, no function below runs or will run. May sleep.
    ///
    /// # Safety
    ///
    /// It must be registered on `mm`, which the caller keeps from being freed.
    pub(crate) unsafe fn unregister(&self, mm: *mut bindings::mm_struct) {
        // SAFETY: As promised by the caller. It calls `release` if the process still lives.
        unsafe { bindings::mmu_notifier_unregister(self.0.get(), mm) };
    }
}

/// The memory that a notifier belongs to.
///
/// # Safety
///
/// `notifier` is registered, and the reference does not outlive the callback.
unsafe fn memory<'a>(notifier: *mut bindings::mmu_notifier) -> &'a VmMemory {
    let notifier = Opaque::cast_from(notifier).cast::<Notifier>();
    // SAFETY: `register` was called on that field of a memory, which unregisters before it goes.
    unsafe { &*VmMemory::of_notifier(notifier) }
}

/// The process dies, or the VM does: all pages go.
///
/// # Safety
///
/// To be called by the kernel, for a registered notifier.
unsafe extern "C" fn release(notifier: *mut bindings::mmu_notifier, _mm: *mut bindings::mm_struct) {
    // SAFETY: The kernel calls this for a registered notifier.
    unsafe { memory(notifier) }.release();
}

/// The host wants to know, and forget, whether pages were used. It flushes no TLB: a page in use
/// then merely looks older than it is.
///
/// # Safety
///
/// To be called by the kernel, for a registered notifier.
unsafe extern "C" fn clear_young(
    notifier: *mut bindings::mmu_notifier,
    _mm: *mut bindings::mm_struct,
    start: c_ulong,
    end: c_ulong,
) -> bool {
    // SAFETY: The kernel calls this for a registered notifier.
    unsafe { memory(notifier) }.was_accessed(start as u64, end as u64, true)
}

/// The host wants to know whether a page was used.
///
/// # Safety
///
/// To be called by the kernel, for a registered notifier.
unsafe extern "C" fn test_young(
    notifier: *mut bindings::mmu_notifier,
    _mm: *mut bindings::mm_struct,
    address: c_ulong,
) -> bool {
    let start = address as u64;
    // SAFETY: The kernel calls this for a registered notifier.
    unsafe { memory(notifier) }.was_accessed(start, start.saturating_add(1), false)
}

/// The host is going to change its tables.
///
/// # Safety
///
/// To be called by the kernel, for a registered notifier.
unsafe extern "C" fn invalidate_range_start(
    notifier: *mut bindings::mmu_notifier,
    range: *const bindings::mmu_notifier_range,
) -> c_int {
    // SAFETY: The kernel calls this with a range that is valid for the time of the call.
    let (range, only_write) = unsafe { (&*range, only_write_goes(range)) };
    let sleep = match range.flags & bindings::MMU_NOTIFIER_RANGE_BLOCKABLE {
        0 => Sleep::Forbidden,
        _ => Sleep::Allowed,
    };
    let loss = match only_write {
        true => Loss::Write,
        false => Loss::Page,
    };
    let (start, end) = (range.start as u64, range.end as u64);
    // SAFETY: The kernel calls this for a registered notifier.
    unsafe { memory(notifier) }.begin_invalidation(start, end, loss, sleep);
    0
}

/// The host has changed its tables.
///
/// # Safety
///
/// To be called by the kernel, for a registered notifier.
unsafe extern "C" fn invalidate_range_end(
    notifier: *mut bindings::mmu_notifier,
    _range: *const bindings::mmu_notifier_range,
) {
    // SAFETY: The kernel calls this for a registered notifier.
    unsafe { memory(notifier) }.end_invalidation();
}
