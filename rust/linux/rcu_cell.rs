// SPDX-License-Identifier: GPL-2.0-only

//! A value that is read often, in any context and without a lock, and seldom replaced.

use core::ops::Deref;
use core::sync::atomic::{AtomicPtr, Ordering::AcqRel, Ordering::Acquire};
use kernel::bindings;
use kernel::prelude::*;
use kernel::sync::rcu;

/// The value.
///
/// # Invariants
///
/// The pointer came from a box, which this owns. A replaced one lives as long as its readers.
pub(crate) struct RcuCell<T: Send + Sync>(AtomicPtr<T>);

impl<T: Send + Sync> RcuCell<T> {
    /// Publishes the first value.
    pub(crate) fn new(first: KBox<T>) -> Self {
        // INVARIANT: It comes from a box.
        Self(AtomicPtr::new(KBox::into_raw(first)))
    }

    /// The value of now, which stays as long as this is held. The reader may not sleep meanwhile.
    #[inline]
    pub(crate) fn read(&self) -> RcuRef<'_, T> {
        let guard = rcu::read_lock();
        // SAFETY: By the invariant, and since the guard was taken before.
        let value = unsafe { &*self.0.load(Acquire) };
        RcuRef {
            value,
            _guard: guard,
        }
    }

    /// Publishes another value, and waits for the readers of the old one. May sleep.
    pub(crate) fn replace(&self, new: KBox<T>) {
        // INVARIANT: The new one comes from a box.
        let old = self.0.swap(KBox::into_raw(new), AcqRel);
        // SAFETY: No preconditions but that we may sleep.
        unsafe { bindings::synchronize_rcu_expedited() };
        // SAFETY: By the invariant; new readers do not find it, and the old ones are done.
        drop(unsafe { KBox::from_raw(old) });
    }
}

impl<T: Send + Sync> Drop for RcuCell<T> {
    fn drop(&mut self) {
        // SAFETY: By the invariant, and a reader would hold a reference to this.
        drop(unsafe { KBox::from_raw(*self.0.get_mut()) });
    }
}

/// A published value that is read.
pub(crate) struct RcuRef<'a, T> {
    value: &'a T,
    _guard: rcu::Guard,
}

impl<T> Deref for RcuRef<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.value
    }
}
