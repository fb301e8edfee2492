// SPDX-License-Identifier: GPL-2.0-only

//! A value that is read often, in any context and without a lock, and seldom replaced.

use crate::memory_ffi::{Srcu, SrcuGuard};
use core::ops::Deref;
use core::sync::atomic::{AtomicPtr, Ordering::AcqRel, Ordering::Acquire};
use kernel::prelude::*;

/// The value.
///
/// # Invariants
///
/// `current` came from a box, which this owns. One that was replaced lives until nobody reads it.
#[pin_data(PinnedDrop)]
pub(crate) struct Published<T: Send + Sync> {
    #[pin]
    readers: Srcu,
    current: AtomicPtr<T>,
}

impl<T: Send + Sync> Published<T> {
    /// Publishes the first value.
    pub(crate) fn new(first: KBox<T>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            readers <- Srcu::new(),
            // INVARIANT: It comes from a box.
            current: AtomicPtr::new(KBox::into_raw(first)),
        })
    }

    /// The value of now, which stays as long as this is held.
    #[inline]
    pub(crate) fn read(&self) -> Reading<'_, T> {
        let guard = self.readers.read();
        // SAFETY: By the invariant, and since the guard was taken before.
        let value = unsafe { &*self.current.load(Acquire) };
        Reading {
            value,
            _guard: guard,
        }
    }

    /// Publishes another value, and waits until nobody reads the old one. May sleep.
    pub(crate) fn replace(&self, new: KBox<T>) {
        // INVARIANT: The new one comes from a box.
        let old = self.current.swap(KBox::into_raw(new), AcqRel);
        self.readers.synchronize();
        // SAFETY: By the invariant; nobody finds it any more, and those who had are done.
        drop(unsafe { KBox::from_raw(old) });
    }
}

#[pinned_drop]
impl<T: Send + Sync> PinnedDrop for Published<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the invariant, and a reader would hold a reference to this.
        drop(unsafe { KBox::from_raw(self.current.load(Acquire)) });
    }
}

/// A published value that is read.
pub(crate) struct Reading<'a, T> {
    value: &'a T,
    _guard: SrcuGuard<'a>,
}

impl<T> Deref for Reading<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.value
    }
}
