// SPDX-License-Identifier: GPL-2.0-only

//! Dirty bits of pages that may be written (APM vol. 2, 15.25.5 and 5.4.2): which pages were
//! written since the last question.
//!
//! Clearing a bit needs a flush: a CPU that has the translation with it in its TLB does not set it
//! again.

use crate::entry::{Entry, NptEntry};
use crate::flush::Flush;
use crate::place::{is_page, Place};
use crate::shape::{index, PageSize, Tables};
use crate::table::Npt;

/// What the entry of a page tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Nothing: there is no small page that may be written.
    Unknown,
    /// Not written.
    No,
    /// Written.
    Yes,
}

impl Npt {
    /// Tells whether the page at `gpa` was written, and forgets it. With `withhold` the right to
    /// write is taken from one that was not.
    ///
    /// `last` is where the page before was found: a page near it is found without a walk. It must
    /// be [`Near::NOTHING`] whenever tables may have changed since.
    pub fn take_written<T: Tables>(
        &self,
        tables: &mut T,
        gpa: u64,
        withhold: bool,
        last: &mut Near,
    ) -> (Written, Flush) {
        let gpa = gpa & !PageSize::Size4K.offset_mask();
        let place = match last.0 {
            Some(place) if (place.gpa ^ gpa) >> 21 == 0 => Place {
                index: index(1, gpa),
                gpa,
                ..place
            },
            _ => match self.find(tables, gpa) {
                Some((place, _)) if place.level == 1 => place,
                _ => return (Written::Unknown, Flush::None),
            },
        };
        last.0 = Some(place);
        let take = |entry: Entry| match entry.has(NptEntry::DIRTY) {
            true => entry.without(NptEntry::DIRTY),
            false if withhold => entry.without(NptEntry::WRITABLE),
            false => entry,
        };
        let tells = |entry: Entry| is_page(entry, 1) && entry.has(NptEntry::WRITABLE);
        let old = place.update(tables, |entry| match tells(entry) {
            true => take(entry),
            false => entry,
        });
        match tells(old) {
            false => (Written::Unknown, Flush::None),
            true if old.has(NptEntry::DIRTY) => (Written::Yes, Flush::All),
            true => (Written::No, Flush::when(withhold)),
        }
    }
}

/// Where a small page was found.
#[derive(Clone, Copy)]
pub struct Near(Option<Place>);

impl Near {
    /// Nowhere yet.
    pub const NOTHING: Near = Near(None);
}
