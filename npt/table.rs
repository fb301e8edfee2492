// SPDX-License-Identifier: GPL-2.0-only

//! The tree: walk, map, unmap, split, merge.
//!
//! ```text
//!   guest-physical address
//!   56     48 47     39 38     30 29     21 20     12 11          0
//!   ┌────────┬─────────┬─────────┬─────────┬─────────┬─────────────┐
//!   │ index5 │ index4  │ index3  │ index2  │ index1  │   offset    │
//!   └───┬────┴────┬────┴────┬────┴────┬────┴────┬────┴─────────────┘
//!       │         │         │         │         │
//!   root▼   table ▼   table ▼   table ▼   table ▼
//!   ┌──────┐ ┌──────┐  ┌──────┐  ┌──────┐  ┌──────┐
//!   │      │ │      │  │      │  │      │  │entry─┼──► 4 KiB page
//!   │entry─┼►│entry─┼─►│entry─┼─►│entry─┼─►│      │
//!   │      │ │      │  │ PS ──┼┐ │ PS ──┼┐ │      │
//!   └──────┘ └──────┘  └──────┘│ └──────┘│ └──────┘
//!   level 5   level 4   level 3│  level 2│  level 1
//!   (only if the host          │         └► 2 MiB page: the offset is 21 bits wide
//!   uses 5 levels)             └► 1 GiB page: the offset is 30 bits wide
//! ```
//!
//! Who may change what: software writes entries under the caller's lock, one at a time. The CPU
//! writes without it, but only sets A and D in present entries. So a compare-and-exchange loop
//! ends, and an entry that was taken out ([`Place::take`]) holds the final A and D of its time.

use crate::entry::{Entry, Kind, Rights};
use crate::flush::Flush;
use crate::place::{clear, is_page, merge_all, split_all, visit, Place};
use crate::shape::{span, GpaRange, Levels, MapError, Mapping, PageSize, Tables};
use crate::Hpa;

/// A tree of nested page tables. It is a handle: dropping it frees nothing, and after
/// [`Npt::destroy`] no copy of it may be used.
#[derive(Clone, Copy, Debug)]
pub struct Npt {
    root: Hpa,
    levels: u8,
}

impl Npt {
    /// An empty tree. `None` if there is no table for its root.
    #[inline]
    pub fn new<T: Tables>(tables: &mut T, levels: Levels) -> Option<Self> {
        let root = tables.alloc()?;
        Some(Npt {
            root,
            levels: levels as u8,
        })
    }

    /// The root, for nCR3.
    #[inline]
    pub fn root(&self) -> Hpa {
        self.root
    }

    /// The first address that is too high for the tables.
    #[inline]
    pub fn limit(&self) -> u64 {
        span(self.levels.wrapping_add(1))
    }

    /// The page that `gpa` is in.
    pub fn look_up<T: Tables>(&self, tables: &T, gpa: u64) -> Option<Mapping> {
        let (place, entry) = self.find(tables, gpa)?;
        let Kind::Page(page) = entry.kind(place.level) else {
            return None;
        };
        Some(Mapping {
            gpa: place.gpa,
            page,
            size: PageSize::of_level(place.level)?,
            rights: entry.rights(),
            history: entry.history(),
        })
    }

    /// Maps a page. What was mapped there before, at whatever size, is replaced; where a larger
    /// page is in the way, it is split, unless it already gives all that is asked for.
    pub fn map<T: Tables>(&self, tables: &mut T, new: Mapping) -> Result<Flush, MapError> {
        self.map_run(tables, new, core::iter::empty(), new.rights)
    }

    /// Maps a page as [`map`](Npt::map) does. If it is a small one, the pages `ahead` follow it,
    /// with these rights and no history: until the end of its table, and only where nothing is
    /// mapped.
    pub fn map_run<T: Tables>(
        &self,
        tables: &mut T,
        new: Mapping,
        ahead: impl Iterator<Item = Hpa>,
        rights: Rights,
    ) -> Result<Flush, MapError> {
        if (new.gpa | new.page.0) & new.size.offset_mask() != 0 {
            return Err(MapError::Misaligned);
        }
        if new.gpa >= self.limit() {
            return Err(MapError::OutOfRange);
        }
        let mut flush = Flush::None;
        let mut place = self.top(new.gpa);
        while place.level > new.size.level() {
            let entry = place.read(tables);
            let next = match entry.kind(place.level) {
                Kind::Table(next) => next,
                Kind::Absent => place.grow(tables)?,
                Kind::Page(page) if place.already_gives(page, entry, &new) => {
                    place.update(tables, |entry| entry.with(new.history));
                    return Ok(flush);
                }
                Kind::Page(_) => {
                    flush |= Flush::All;
                    place.split(tables)?
                }
            };
            place = place.below(next, new.gpa);
        }
        flush |= place.replace(tables, &new);
        if new.size == PageSize::Size4K {
            place.fill_ahead(tables, rights, ahead);
        }
        Ok(flush)
    }

    /// Takes out every page that `range` touches, wholly, and frees the tables that lie inside it
    /// or have become empty. So no table but the root is ever empty, unless a [`map`](Npt::map)
    /// that failed has left it.
    pub fn unmap<T: Tables>(&self, tables: &mut T, range: GpaRange) -> Flush {
        clear(tables, self.root, self.levels, 0, range)
    }

    /// Splits the large page at `gpa` into pages of the next smaller size. They inherit A and D.
    /// Does nothing where there is no large page.
    pub fn split<T: Tables>(&self, tables: &mut T, gpa: u64) -> Result<Flush, MapError> {
        match self.find(tables, gpa) {
            Some((place, entry)) if is_page(entry, place.level) && place.level > 1 => {
                place.split(tables)?;
                Ok(Flush::All)
            }
            _ => Ok(Flush::None),
        }
    }

    /// Splits every large page that `range` touches into pages of 4 KiB. If the tables run out, as
    /// much as could be done is done, and what is to be flushed is in `flush` either way.
    pub fn split_range<T: Tables>(
        &self,
        tables: &mut T,
        range: GpaRange,
        flush: &mut Flush,
    ) -> Result<(), MapError> {
        split_all(tables, self.root, self.levels, 0, range, flush)
    }

    /// Makes one page of `size` at `gpa` out of the smaller pages there, if all of them are
    /// present, adjoin in host memory and have the same rights, but for what a log withholds. The
    /// result is accessed or dirty if any of them was, and withheld if it was in any. Does nothing
    /// otherwise.
    pub fn merge<T: Tables>(&self, tables: &mut T, gpa: u64, size: PageSize) -> Flush {
        if gpa >= self.limit() {
            return Flush::None;
        }
        let mut place = self.top(gpa);
        while place.level > size.level() {
            match place.read(tables).kind(place.level) {
                Kind::Table(next) => place = place.below(next, gpa),
                _ => return Flush::None,
            }
        }
        Flush::when(place.merge(tables, size))
    }

    /// Does so wherever it is possible within `range`, first to 2 MiB, and then to 1 GiB.
    pub fn merge_range<T: Tables>(&self, tables: &mut T, range: GpaRange) -> Flush {
        merge_all(tables, self.root, self.levels, 0, range)
    }

    /// Takes everything out and gives the root back, too. No CPU may use the tables any more, or
    /// the flush must be done before their memory is reused.
    pub fn destroy<T: Tables>(self, tables: &mut T) -> Flush {
        let flush = self.unmap(tables, GpaRange::ALL);
        tables.free(self.root);
        flush
    }

    /// Calls `f` for each present page that `range` touches, in order of address.
    pub(crate) fn visit_pages<T: Tables, F>(&self, tables: &mut T, range: GpaRange, f: &mut F)
    where
        F: FnMut(&mut T, Place),
    {
        visit(tables, self.root, self.levels, 0, range, f);
    }

    /// The entry at which the walk for `gpa` ends.
    #[inline]
    pub(crate) fn find<T: Tables>(&self, tables: &T, gpa: u64) -> Option<(Place, Entry)> {
        if gpa >= self.limit() {
            return None;
        }
        let mut place = self.top(gpa);
        loop {
            let entry = place.read(tables);
            match entry.kind(place.level) {
                Kind::Table(next) => place = place.below(next, gpa),
                _ => return Some((place, entry)),
            }
        }
    }

    /// Where the walk for `gpa` begins.
    #[inline]
    fn top(&self, gpa: u64) -> Place {
        Place::new(self.root, self.levels, gpa)
    }
}
