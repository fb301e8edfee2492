// SPDX-License-Identifier: GPL-2.0-only

//! Accessed and dirty bits (APM vol. 2, 15.25.5 and 5.4.2): look, harvest, clear.
//!
//! A CPU that has a translation in its TLB does not look at the entry again. After D was cleared, it
//! therefore writes on unnoticed until its TLB is flushed; so a harvest returns a [`Flush`], and
//! only what was written after that flush is sure to be in the next harvest. Clearing A needs no
//! flush: a page in use merely looks older than it is.

use crate::entry::NptEntry;
use crate::flush::Flush;
use crate::shape::{GpaRange, PageSize, Tables};
use crate::table::Npt;

impl Npt {
    /// Clears D in every page that `range` touches, and calls `found` for each one that had it set.
    pub fn harvest_dirty<T: Tables>(
        &self,
        tables: &mut T,
        range: GpaRange,
        mut found: impl FnMut(u64, PageSize),
    ) -> Flush {
        let mut flush = Flush::None;
        self.visit_pages(tables, range, &mut |tables, place| {
            let old = place.update(tables, |entry| entry.without(NptEntry::DIRTY));
            if let (true, Some(size)) = (old.has(NptEntry::DIRTY), PageSize::of_level(place.level))
            {
                found(place.gpa, size);
                flush |= Flush::All;
            }
        });
        flush
    }

    /// True if any page that `range` touches was accessed since A was last cleared.
    pub fn is_accessed<T: Tables>(&self, tables: &mut T, range: GpaRange) -> bool {
        let mut accessed = false;
        self.visit_pages(tables, range, &mut |tables, place| {
            accessed |= place.update(tables, |entry| entry).has(NptEntry::ACCESSED);
        });
        accessed
    }

    /// Clears A in every page that `range` touches. True if it was set in any.
    pub fn clear_accessed<T: Tables>(&self, tables: &mut T, range: GpaRange) -> bool {
        let mut accessed = false;
        self.visit_pages(tables, range, &mut |tables, place| {
            let old = place.update(tables, |entry| entry.without(NptEntry::ACCESSED));
            accessed |= old.has(NptEntry::ACCESSED);
        });
        accessed
    }
}
