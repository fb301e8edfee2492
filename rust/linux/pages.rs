// SPDX-License-Identifier: GPL-2.0-only

//! Pages of the kernel as values.

use super::{pacifica_alloc_pages, pacifica_free_pages, pacifica_phys};
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use kernel::ffi::c_uint;
use kernel::prelude::*;

/// Physically contiguous pages of the kernel, seen as a `T`.
///
/// # Invariants
///
/// `0` points to `2^order` pages, at least `size_of::<T>()` bytes, owned by this value.
pub(crate) struct Pages<T>(NonNull<T>);

// SAFETY: The pages are owned like a box.
unsafe impl<T: Send> Send for Pages<T> {}
// SAFETY: Likewise.
unsafe impl<T: Sync> Sync for Pages<T> {}

/// Types for which all zeroes is a value, and which any page can hold.
///
/// # Safety
///
/// All zeroes must be a valid value, and the alignment at most 4096.
pub(crate) unsafe trait PageData {}
// SAFETY: Plain bytes.
unsafe impl<const N: usize> PageData for [u8; N] {}
// SAFETY: Every bit pattern is a VMCB, and its alignment is a page's.
unsafe impl PageData for svm::vmcb::Vmcb {}

impl<T: PageData> Pages<T> {
    const ORDER: c_uint = {
        let pages = core::mem::size_of::<T>().div_ceil(4096);
        pages.next_power_of_two().trailing_zeros()
    };

    /// Allocates; `ENOMEM` if there is no memory.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: No preconditions.
        let p = unsafe { pacifica_alloc_pages(Self::ORDER) };
        // INVARIANT: 2^ORDER pages are enough for a `T`, and zero is a value of it.
        Ok(Self(NonNull::new(p.cast()).ok_or(ENOMEM)?))
    }
}

impl<T> Pages<T> {
    /// Takes pages over.
    ///
    /// # Safety
    ///
    /// They must be as many as a `T` needs, from the kernel's allocator, hold a `T`, and belong to
    /// the caller.
    pub(crate) unsafe fn from_raw(pages: NonNull<T>) -> Self {
        // INVARIANT: As promised by the caller.
        Self(pages)
    }

    /// The physical address, as the CPU wants it (with the encryption bit, where there is one).
    pub(crate) fn phys(&self) -> u64 {
        // SAFETY: The address is in the kernel's linear mapping.
        unsafe { pacifica_phys(self.0.as_ptr().cast()) }
    }

    /// The address.
    pub(crate) fn as_ptr(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T> Deref for Pages<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: By the invariant the pages hold a `T`.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: By the invariant the pages hold a `T`, and they are ours alone.
        unsafe { self.0.as_mut() }
    }
}

impl<T> Drop for Pages<T> {
    fn drop(&mut self) {
        let pages = core::mem::size_of::<T>().div_ceil(4096);
        let order = pages.next_power_of_two().trailing_zeros();
        // SAFETY: `new` allocated them with the same order, and their owner goes.
        unsafe { pacifica_free_pages(self.0.as_ptr().cast(), order) };
    }
}
