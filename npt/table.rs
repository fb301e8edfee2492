// SPDX-License-Identifier: GPL-2.0-only

//! The tree: walk, map, unmap, protect, split, merge.
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
//! ends, and an entry that was taken out ([`take`]) holds the final A and D of its time.

use crate::entry::{Entry, Kind, NptEntry, Rights};
use crate::flush::Flush;
use crate::Hpa;

/// Entries in a table.
const ENTRIES: usize = 512;
/// Bits of an index.
const INDEX_BITS: u32 = 9;
/// Bits of the offset into a 4 KiB page.
const PAGE_BITS: u32 = 12;

/// The memory that holds the tables.
///
/// Tables are named by their host-physical address, as entries name them. Reads and exchanges must
/// be single atomic accesses, with the ordering that the host needs between its stores to a new
/// table and the entry that publishes it (on x86 any locked instruction has it).
pub trait Tables {
    /// Reads entry `index` (below 512) of `table`.
    fn read(&self, table: Hpa, index: usize) -> u64;
    /// Replaces the entry by `new` if it is `old`, else returns what it is.
    fn compare_exchange(&self, table: Hpa, index: usize, old: u64, new: u64) -> Result<(), u64>;
    /// Takes a zeroed table from a cache that was filled beforehand.
    fn alloc(&mut self) -> Option<Hpa>;
    /// Gives a table back, with no present entry in it. The CPU may still read it until the flush
    /// that the operation returned was done; its first entry may be written over with any value
    /// that has P clear.
    fn free(&mut self, table: Hpa);
    /// Hears of a dirty page that leaves the tables, so that a dirty log can keep it.
    fn dirty_page_left(&mut self, _gpa: u64, _size: PageSize) {}
}

/// The sizes of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PageSize {
    /// 4 KiB.
    Size4K = 1,
    /// 2 MiB.
    Size2M = 2,
    /// 1 GiB.
    Size1G = 3,
}

impl PageSize {
    /// The level whose entries map pages of this size.
    pub const fn level(self) -> u8 {
        self as u8
    }

    /// Bytes in a page.
    pub const fn bytes(self) -> u64 {
        span(self.level())
    }

    /// The bits of an address that are the offset into the page.
    pub const fn offset_mask(self) -> u64 {
        self.bytes().wrapping_sub(1)
    }

    /// The size of the pages that entries of `level` map.
    pub const fn of_level(level: u8) -> Option<Self> {
        match level {
            1 => Some(PageSize::Size4K),
            2 => Some(PageSize::Size2M),
            3 => Some(PageSize::Size1G),
            _ => None,
        }
    }
}

/// How many levels the tree has: as many as the host itself uses at VMRUN (APM vol. 2, 15.25.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Levels {
    /// 48 bits of guest-physical address.
    Four = 4,
    /// 57 bits; an address can use 52 of them.
    Five = 5,
}

/// Guest-physical addresses from `start` up to, not including, `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpaRange {
    /// The first address.
    pub start: u64,
    /// The first address after the range. Nothing is in a range whose end is not above its start.
    pub end: u64,
}

impl GpaRange {
    /// Every address that there can be.
    pub const ALL: GpaRange = GpaRange {
        start: 0,
        end: u64::MAX,
    };

    /// The page of `size` that `gpa` is in.
    pub fn page(gpa: u64, size: PageSize) -> Self {
        let start = gpa & !size.offset_mask();
        GpaRange {
            start,
            end: start.saturating_add(size.bytes()),
        }
    }

    fn covers(&self, start: u64, bytes: u64) -> bool {
        self.start <= start && start.saturating_add(bytes) <= self.end
    }
}

/// A page in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Where the guest sees it. Aligned to its size.
    pub gpa: u64,
    /// Where the host has it. Aligned to its size.
    pub page: Hpa,
    /// Its size.
    pub size: PageSize,
    /// What the guest may do with it.
    pub rights: Rights,
    /// A and D: for [`Npt::map`] those to be set from the beginning, which spares the CPU the
    /// update.
    pub history: NptEntry,
}

/// Why a page could not be mapped. Tables that were added on the way stay, and are no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The cache of tables ran dry. Refill it and do it again.
    NoTable,
    /// The address does not fit into the tables.
    OutOfRange,
    /// An address is not aligned to the size of the page.
    Misaligned,
}

/// Where an entry is, and what it stands for.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) table: Hpa,
    pub(crate) index: usize,
    pub(crate) level: u8,
    /// The first address that the entry translates.
    pub(crate) gpa: u64,
}

/// A tree of nested page tables. It is a handle: dropping it frees nothing, and after
/// [`Npt::destroy`] no copy of it may be used.
#[derive(Clone, Copy, Debug)]
pub struct Npt {
    root: Hpa,
    levels: u8,
}

impl Npt {
    /// An empty tree. `None` if there is no table for its root.
    pub fn new<T: Tables>(tables: &mut T, levels: Levels) -> Option<Self> {
        let root = tables.alloc()?;
        Some(Npt {
            root,
            levels: levels as u8,
        })
    }

    /// The root, for nCR3.
    pub fn root(&self) -> Hpa {
        self.root
    }

    /// The first address that is too high for the tables.
    pub fn limit(&self) -> u64 {
        span(self.levels.wrapping_add(1))
    }

    /// The most tables that one [`map`](Npt::map) or [`split`](Npt::split) takes: one at each
    /// level below the root.
    pub fn most_tables(&self) -> usize {
        usize::from(self.levels).saturating_sub(1)
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

    /// Maps a page. What was mapped there before, at whatever size, is replaced; where a larger page
    /// is in the way, it is split, unless it already gives all that is asked for.
    pub fn map<T: Tables>(&self, tables: &mut T, new: Mapping) -> Result<Flush, MapError> {
        self.map_run(tables, new, core::iter::empty())
    }

    /// Maps a page as [`map`](Npt::map) does. If it is a small one, the pages `ahead` follow it, with
    /// the same rights and no history: until the end of its table, and only where nothing is mapped.
    pub fn map_run<T: Tables>(
        &self,
        tables: &mut T,
        new: Mapping,
        ahead: impl Iterator<Item = Hpa>,
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
            place.fill_ahead(tables, new.rights, ahead);
        }
        Ok(flush)
    }

    /// Takes out every page that `range` touches, wholly, and frees the tables that lie inside it.
    pub fn unmap<T: Tables>(&self, tables: &mut T, range: GpaRange) -> Flush {
        clear(tables, self.root, self.levels, 0, range)
    }

    /// Takes the right to write from every page that `range` touches.
    pub fn protect<T: Tables>(&self, tables: &mut T, range: GpaRange) -> Flush {
        let mut flush = Flush::None;
        self.visit_pages(tables, range, &mut |tables, place| {
            let old = place.update(tables, |entry| entry.without(NptEntry::WRITABLE));
            flush |= Flush::when(old.has(NptEntry::WRITABLE));
        });
        flush
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

    /// Makes one page of `size` at `gpa` out of the smaller pages there, if all of them are present,
    /// adjoin in host memory and have the same rights. The result is accessed or dirty if any of
    /// them was. Does nothing otherwise.
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
    fn find<T: Tables>(&self, tables: &T, gpa: u64) -> Option<(Place, Entry)> {
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
    fn top(&self, gpa: u64) -> Place {
        Place::new(self.root, self.levels, gpa)
    }
}

impl Place {
    fn new(table: Hpa, level: u8, gpa: u64) -> Self {
        Place {
            table,
            index: index(level, gpa),
            level,
            gpa: gpa & !span(level).wrapping_sub(1),
        }
    }

    fn below(self, table: Hpa, gpa: u64) -> Self {
        Place::new(table, self.level.saturating_sub(1), gpa)
    }

    fn read<T: Tables>(self, tables: &T) -> Entry {
        Entry::from_raw(tables.read(self.table, self.index))
    }

    /// Replaces the entry by what `f` makes of it, and returns what it was. If the CPU sets a bit
    /// meanwhile, `f` is asked again.
    pub(crate) fn update<T: Tables>(self, tables: &T, f: impl Fn(Entry) -> Entry) -> Entry {
        let mut old = self.read(tables);
        loop {
            let new = f(old);
            if new == old {
                return old;
            }
            match tables.compare_exchange(self.table, self.index, old.raw(), new.raw()) {
                Ok(()) => return old,
                Err(current) => old = Entry::from_raw(current),
            }
        }
    }

    /// Takes the entry out. What it returns has the final A and D.
    fn take<T: Tables>(self, tables: &T) -> Entry {
        self.update(tables, |_| Entry::ABSENT)
    }

    /// Puts an empty table into an absent entry.
    fn grow<T: Tables>(self, tables: &mut T) -> Result<Hpa, MapError> {
        let table = tables.alloc().ok_or(MapError::NoTable)?;
        self.update(tables, |_| Entry::table(table));
        Ok(table)
    }

    /// True if the large page that this entry maps makes `new` superfluous.
    fn already_gives(self, page: Hpa, entry: Entry, new: &Mapping) -> bool {
        let offset = new.gpa.wrapping_sub(self.gpa);
        page.0.wrapping_add(offset) == new.page.0 && entry.rights().contains(new.rights)
    }

    /// Sets the entry, which is at the level of the size of `new`.
    fn replace<T: Tables>(self, tables: &mut T, new: &Mapping) -> Flush {
        let wanted = Entry::page(new.page, new.size, new.rights).with(new.history);
        let mut flush = Flush::None;
        // The pages below a table leave it before it goes: with its address cached, a CPU could
        // set D in them unseen afterwards.
        let table = match self.read(tables).kind(self.level) {
            Kind::Table(table) => {
                flush |= clear(
                    tables,
                    table,
                    self.level.saturating_sub(1),
                    self.gpa,
                    GpaRange::ALL,
                );
                flush |= Flush::All;
                Some(table)
            }
            _ => None,
        };
        let stays = |old: Entry| is_page(old, self.level) && same_page(old, wanted, self.level);
        let old = self.update(tables, |old| match stays(old) {
            true => wanted.with(old.history()),
            false => wanted,
        });
        if let Some(table) = table {
            tables.free(table);
        } else if stays(old) {
            flush |= Flush::when(!new.rights.contains(old.rights()));
        } else if is_page(old, self.level) {
            flush |= Flush::All;
            self.report(tables, old);
        }
        flush
    }

    /// Maps pages in the entries after this one, where there is nothing yet.
    fn fill_ahead<T: Tables>(
        self,
        tables: &mut T,
        rights: Rights,
        pages: impl Iterator<Item = Hpa>,
    ) {
        for (index, page) in (self.index.wrapping_add(1)..ENTRIES).zip(pages) {
            let entry = Entry::page(page, PageSize::Size4K, rights).raw();
            // Not to lose what is there, the exchange is tried once, with an absent entry.
            let _ = tables.compare_exchange(self.table, index, Entry::ABSENT.raw(), entry);
        }
    }

    /// Tells the tables of a dirty page that was taken out here.
    fn report<T: Tables>(self, tables: &mut T, old: Entry) {
        if let (true, Some(size)) = (old.has(NptEntry::DIRTY), PageSize::of_level(self.level)) {
            tables.dirty_page_left(self.gpa, size);
        }
    }

    /// Puts a table of smaller pages in the place of a large one, and returns it.
    fn split<T: Tables>(self, tables: &mut T) -> Result<Hpa, MapError> {
        let level = self.level.saturating_sub(1);
        let size = PageSize::of_level(level).ok_or(MapError::OutOfRange)?;
        let table = tables.alloc().ok_or(MapError::NoTable)?;
        let mut old = self.read(tables);
        loop {
            fill(tables, table, size, old);
            let new = Entry::table(table).raw();
            match tables.compare_exchange(self.table, self.index, old.raw(), new) {
                Ok(()) => return Ok(table),
                // The CPU has set A or D: the small pages must have it, too.
                Err(current) => old = Entry::from_raw(current),
            }
        }
    }

    /// Puts one page in the place of a table of smaller ones. False if they do not fit together.
    fn merge<T: Tables>(self, tables: &mut T, size: PageSize) -> bool {
        let Kind::Table(table) = self.read(tables).kind(self.level) else {
            return false;
        };
        let level = self.level.saturating_sub(1);
        let child = |index: usize| Place {
            table,
            index,
            level,
            gpa: 0,
        };
        let first = child(0).read(tables);
        let Kind::Page(page) = first.kind(level) else {
            return false;
        };
        let fits = |index: usize| {
            let entry = child(index).read(tables);
            let offset = (index as u64).wrapping_mul(span(level));
            entry.kind(level) == Kind::Page(Hpa(page.0.wrapping_add(offset)))
                && entry.rights() == first.rights()
        };
        if page.0 & size.offset_mask() != 0 || !(0..ENTRIES).all(fits) {
            return false;
        }
        // As in `replace`: each page leaves with its final A and D before the large one comes.
        let history = (0..ENTRIES).fold(NptEntry::empty(), |all, index| {
            all | child(index).take(tables).history()
        });
        let merged = Entry::page(page, size, first.rights()).with(history);
        self.update(tables, |_| merged);
        tables.free(table);
        true
    }
}

/// Fills a table that no CPU can see yet with the small pages that make up the large one `old`.
fn fill<T: Tables>(tables: &T, table: Hpa, size: PageSize, old: Entry) {
    let Kind::Page(page) = old.kind(size.level().saturating_add(1)) else {
        return;
    };
    for index in 0..ENTRIES {
        let offset = (index as u64).wrapping_mul(size.bytes());
        let small = Entry::page(Hpa(page.0.wrapping_add(offset)), size, old.rights());
        let place = Place {
            table,
            index,
            level: size.level(),
            gpa: 0,
        };
        place.update(tables, |_| small.with(old.history()));
    }
}

/// Takes out what `range` touches below `table`, which begins at `base`.
fn clear<T: Tables>(tables: &mut T, table: Hpa, level: u8, base: u64, range: GpaRange) -> Flush {
    let mut flush = Flush::None;
    for place in places(table, level, base, range) {
        match place.read(tables).kind(level) {
            Kind::Absent => {}
            Kind::Page(_) => {
                let old = place.take(tables);
                place.report(tables, old);
                flush |= Flush::All;
            }
            Kind::Table(next) => {
                flush |= clear(tables, next, level.saturating_sub(1), place.gpa, range);
                if range.covers(place.gpa, span(level)) {
                    place.take(tables);
                    tables.free(next);
                    flush |= Flush::All;
                }
            }
        }
    }
    flush
}

/// Calls `f` for each page that `range` touches below `table`, which begins at `base`.
fn visit<T: Tables, F>(tables: &mut T, table: Hpa, level: u8, base: u64, range: GpaRange, f: &mut F)
where
    F: FnMut(&mut T, Place),
{
    for place in places(table, level, base, range) {
        match place.read(tables).kind(level) {
            Kind::Absent => {}
            Kind::Page(_) => f(tables, place),
            Kind::Table(next) => {
                visit(tables, next, level.saturating_sub(1), place.gpa, range, f);
            }
        }
    }
}

/// The entries of `table`, which begins at `base`, that `range` touches.
fn places(table: Hpa, level: u8, base: u64, range: GpaRange) -> impl Iterator<Item = Place> {
    let last = (ENTRIES as u64).wrapping_sub(1);
    let from = range.start.saturating_sub(base).wrapping_shr(shift(level));
    let to = match range.end.checked_sub(base) {
        // Rounded up, so that an entry which the range ends in is among them.
        Some(end) if range.start < range.end => end.wrapping_sub(1).wrapping_shr(shift(level)),
        _ => 0,
    };
    let some = range.start < range.end && range.end > base;
    let indices = if some {
        from..to.min(last).wrapping_add(1)
    } else {
        0..0
    };
    indices.map(move |index| Place {
        table,
        index: index as usize,
        level,
        gpa: base.wrapping_add(index.wrapping_shl(shift(level))),
    })
}

fn is_page(entry: Entry, level: u8) -> bool {
    matches!(entry.kind(level), Kind::Page(_))
}

fn same_page(a: Entry, b: Entry, level: u8) -> bool {
    a.kind(level) == b.kind(level)
}

/// Bits of an address that an entry of `level` does not look at.
const fn shift(level: u8) -> u32 {
    PAGE_BITS.wrapping_add(INDEX_BITS.wrapping_mul(level.wrapping_sub(1) as u32))
}

/// Bytes that an entry of `level` translates.
const fn span(level: u8) -> u64 {
    1u64.wrapping_shl(shift(level))
}

/// The index of `gpa` in a table of `level`.
const fn index(level: u8, gpa: u64) -> usize {
    (gpa.wrapping_shr(shift(level)) as usize) & (ENTRIES - 1)
}
