// SPDX-License-Identifier: GPL-2.0-only

//! What is known of one region: which of its pages are announced, and how many slices of it live.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

/// The size of a page.
pub(crate) const PAGE: u64 = 4096;

/// The bitmap of a region of [`Memory`](crate::Memory): with it a VMM makes mappings of its own.
///
/// It is no dirty bitmap: a bit says that the page was announced to the snapshot, which happens
/// before somebody may write, and not that it was written.
#[derive(Clone, Debug, Default)]
pub struct Tracking(Arc<Pages>);

#[derive(Debug, Default)]
pub(crate) struct Pages {
    /// A bit for each page.
    announced: Box<[AtomicU64]>,
    /// The words of which a bit is set.
    touched: Mutex<Vec<usize>>,
    slices: AtomicUsize,
}

impl Pages {
    /// Whether this page is announced.
    pub(crate) fn has(&self, page: usize) -> bool {
        let word = self.announced.get(page / 64);
        word.is_some_and(|word| word.load(Ordering::Relaxed) >> (page % 64) & 1 != 0)
    }

    /// It is.
    pub(crate) fn add(&self, page: usize) {
        let (index, bit) = (page / 64, 1 << (page % 64));
        let Some(word) = self.announced.get(index) else {
            return;
        };
        if word.fetch_or(bit, Ordering::Relaxed) == 0 {
            let touched = self.touched.lock();
            touched.unwrap_or_else(PoisonError::into_inner).push(index);
        }
    }

    /// None is. Costs as much as there were.
    pub(crate) fn clear(&self) {
        let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        for index in touched.drain(..) {
            self.announced[index].store(0, Ordering::Relaxed);
        }
    }

    /// How many slices live.
    pub(crate) fn slices(&self) -> usize {
        // What was written through those that are gone is to be seen.
        self.slices.load(Ordering::Acquire)
    }
}

impl Tracking {
    pub(crate) fn pages(&self) -> &Pages {
        &self.0
    }
}

impl<'a> WithBitmapSlice<'a> for Tracking {
    type S = InUse<'a>;
}

impl Bitmap for Tracking {
    /// Comes after the write, which is too late: nothing is done.
    fn mark_dirty(&self, _offset: usize, _len: usize) {}

    fn dirty_at(&self, offset: usize) -> bool {
        self.0.has(offset / PAGE as usize)
    }

    fn slice_at(&self, offset: usize) -> InUse<'_> {
        InUse::new(&self.0, offset)
    }
}

impl NewBitmap for Tracking {
    fn with_len(len: usize) -> Self {
        // A region that does not begin with a page has a piece of one more.
        let words = (len.div_ceil(PAGE as usize) + 1).div_ceil(64);
        Self(Arc::new(Pages {
            announced: (0..words).map(|_| AtomicU64::new(0)).collect(),
            ..Default::default()
        }))
    }
}

/// Counts a slice of guest memory, as long as it lives.
#[derive(Debug)]
pub struct InUse<'a> {
    pages: &'a Pages,
    offset: usize,
}

impl<'a> InUse<'a> {
    fn new(pages: &'a Pages, offset: usize) -> Self {
        pages.slices.fetch_add(1, Ordering::Relaxed);
        Self { pages, offset }
    }
}

impl Clone for InUse<'_> {
    fn clone(&self) -> Self {
        Self::new(self.pages, self.offset)
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.pages.slices.fetch_sub(1, Ordering::Release);
    }
}

impl WithBitmapSlice<'_> for InUse<'_> {
    type S = Self;
}

impl BitmapSlice for InUse<'_> {}

impl Bitmap for InUse<'_> {
    fn mark_dirty(&self, _offset: usize, _len: usize) {}

    fn dirty_at(&self, offset: usize) -> bool {
        self.pages.has((self.offset + offset) / PAGE as usize)
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self::new(self.pages, self.offset + offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_announced_until_cleared() {
        let tracking = Tracking::with_len(200 * PAGE as usize);
        for page in [0, 63, 64, 199] {
            tracking.pages().add(page);
        }
        let all: Vec<_> = (0..200)
            .filter(|&page| tracking.pages().has(page))
            .collect();
        assert_eq!(all, [0, 63, 64, 199]);
        assert!(tracking.dirty_at(64 * PAGE as usize + 1));
        tracking.pages().clear();
        assert!((0..200).all(|page| !tracking.pages().has(page)));
        // Beyond the end is never announced, and so asked for each time.
        tracking.pages().add(100_000);
        assert!(!tracking.pages().has(100_000));
    }

    #[test]
    fn slices_are_counted() {
        let tracking = Tracking::with_len(PAGE as usize);
        let slice = tracking.slice_at(5);
        let (other, part) = (slice.clone(), slice.slice_at(7));
        assert_eq!(tracking.pages().slices(), 3);
        drop((slice, other));
        assert_eq!(tracking.pages().slices(), 1);
        drop(part);
        assert_eq!(tracking.pages().slices(), 0);
    }
}
