// SPDX-License-Identifier: GPL-2.0-only

//! The right to write: taken away, and given again.
//!
//! A dirty log takes the right from pages whose next write it wants to hear of. Their entries keep
//! the mark that the host lets the guest write ([`Rights::MAY_WRITE`]); so the fault that the write
//! causes is answered here, and need not ask the host. The host itself takes the mark, too.

use crate::entry::{Entry, NptEntry, Rights};
use crate::flush::Flush;
use crate::place::{is_page, Place};
use crate::shape::{index, GpaRange, PageSize, Tables};
use crate::table::Npt;

/// What became of an access that found a page, but not the right to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// The page permits it already.
    Held,
    /// It does now.
    Given,
    /// The host must be asked: there is no page, or it may not be written, or it is too large.
    Refused,
}

impl Npt {
    /// Takes the right to write from every page that `range` touches.
    pub fn protect<T: Tables>(&self, tables: &mut T, range: GpaRange) -> Flush {
        let mut flush = Flush::None;
        self.visit_pages(tables, range, &mut |tables, place| {
            flush |= place.protect(tables);
        });
        flush
    }

    /// The host takes the right to write back from every page that `range` touches: only the host
    /// gives it again. The pages stay.
    pub fn withdraw<T: Tables>(&self, tables: &mut T, range: GpaRange) -> Flush {
        let rights = NptEntry::WRITABLE | NptEntry::MAY_WRITE;
        let mut flush = Flush::None;
        self.visit_pages(tables, range, &mut |tables, place| {
            let old = place.update(tables, |entry| match is_page(entry, place.level) {
                true => entry.without(rights),
                false => entry,
            });
            flush |= Flush::when(old.has(NptEntry::WRITABLE));
        });
        flush
    }

    /// Takes the right to write from pages of the 64 that begin at `gpa`: those whose bits are set
    /// in `pages`, and, where such a one is a part of a large page, from all of that.
    pub fn protect_pages<T: Tables>(&self, tables: &mut T, gpa: u64, pages: u64) -> Flush {
        let mut flush = Flush::None;
        let mut last: Option<Place> = None;
        let mut left = pages;
        while left != 0 {
            let offset = u64::from(left.trailing_zeros()) << 12;
            left &= left.wrapping_sub(1);
            let at = gpa.wrapping_add(offset) & !PageSize::Size4K.offset_mask();
            let place = match last {
                // In the same table as the one before: no need to walk.
                Some(place) if place.level == 1 && (place.gpa ^ at) >> 21 == 0 => Place {
                    index: index(1, at),
                    gpa: at,
                    ..place
                },
                _ => match self.find(tables, at) {
                    Some((place, _)) => place,
                    None => continue,
                },
            };
            flush |= place.protect(tables);
            last = Some(place);
        }
        flush
    }

    /// Gives `wanted` to an access at `gpa` if the host permits it, and the page is not larger than
    /// `most` in case that a right must be given.
    pub fn permit<T: Tables>(
        &self,
        tables: &mut T,
        gpa: u64,
        wanted: Rights,
        most: PageSize,
    ) -> Permit {
        let Some((place, entry)) = self.find(tables, gpa) else {
            return Permit::Refused;
        };
        if !is_page(entry, place.level) {
            return Permit::Refused;
        }
        let rights = entry.rights();
        if rights.contains(wanted) {
            return Permit::Held;
        }
        let withheld =
            rights.contains(Rights::MAY_WRITE) && (rights | Rights::WRITE).contains(wanted);
        if !withheld || place.level > most.level() {
            return Permit::Refused;
        }
        // A and D spare the CPU the update.
        let bits = NptEntry::WRITABLE | NptEntry::ACCESSED | NptEntry::DIRTY;
        place.update(tables, |entry| entry.with(bits));
        Permit::Given
    }
}

impl Place {
    /// Takes the right to write from the page, if there is one.
    fn protect<T: Tables>(self, tables: &T) -> Flush {
        let take = |entry: Entry| match is_page(entry, self.level) {
            true => entry.without(NptEntry::WRITABLE),
            false => entry,
        };
        let old = self.update(tables, take);
        Flush::when(take(old) != old)
    }
}
