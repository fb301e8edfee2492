// SPDX-License-Identifier: GPL-2.0-only

//! The dirty log of a slot: one bit for each page that was written.
//!
//! The guest's own writes are found by harvesting the D bits of the nested tables; this bitmap
//! collects them, those of pages that left the tables, and those of the emulator.

use kernel::bindings;
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Full};
use kernel::sync::Arc;

/// A bitmap that anybody may set bits in, at any time.
pub(crate) struct DirtyLog {
    words: KVVec<Atomic<u64>>,
    pages: u64,
}

impl DirtyLog {
    /// An empty log of so many pages.
    pub(crate) fn new(pages: u64) -> Result<Arc<Self>> {
        let count = usize::try_from(pages.div_ceil(64))?;
        let mut words = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..count {
            words.push(Atomic::new(0), GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Arc::new(Self { words, pages }, GFP_KERNEL_ACCOUNT)?)
    }

    /// Marks `count` pages from `first` on as dirty.
    pub(crate) fn set(&self, first: u64, count: u64) {
        for page in first..first.saturating_add(count).min(self.pages) {
            if let Some(word) = self.words.get((page / 64) as usize) {
                // SAFETY: The word is in the bitmap; the C function sets its bit atomically.
                unsafe { bindings::set_bit((page % 64) as usize, word.as_ptr().cast()) };
            }
        }
    }

    /// How many words of 64 pages there are.
    pub(crate) fn words(&self) -> usize {
        self.words.len()
    }

    /// Takes 64 pages out of the log.
    pub(crate) fn take(&self, word: usize) -> u64 {
        self.words.get(word).map_or(0, |word| word.xchg(0, Full))
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        for word in &self.words {
            word.xchg(0, Full);
        }
    }
}
