// SPDX-License-Identifier: GPL-2.0-only

//! Accessed bits (APM vol. 2, 15.25.5 and 5.4.2): look, and clear.
//!
//! Clearing them needs no flush: a CPU that has the translation in its TLB does not set the bit
//! again, so a page in use merely looks older than it is.

use crate::entry::NptEntry;
use crate::shape::{GpaRange, Tables};
use crate::table::Npt;

impl Npt {
    /// True if any page that `range` touches was accessed since A was last cleared.
    pub fn is_accessed<T: Tables>(&self, tables: &mut T, range: GpaRange) -> bool {
        let mut accessed = false;
        self.visit_pages(tables, range, &mut |tables, place| {
            accessed |= place.read(tables).has(NptEntry::ACCESSED);
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

    /// How many pages there are of 4 KiB, 2 MiB and 1 GiB that begin in `range`.
    pub fn count<T: Tables>(&self, tables: &mut T, range: GpaRange) -> [u64; 3] {
        let mut counts = [0u64; 3];
        self.visit_pages(tables, range, &mut |_, place| {
            if place.gpa < range.start {
                return;
            }
            if let Some(count) = counts.get_mut(usize::from(place.level).wrapping_sub(1)) {
                *count = count.wrapping_add(1);
            }
        });
        counts
    }
}
