// SPDX-License-Identifier: GPL-2.0-only

//! One place in the tree: an entry at a level, and what is done to it.

use crate::entry::{Entry, Kind, NptEntry, Rights};
use crate::flush::Flush;
use crate::shape::{index, shift, span, ENTRIES};
use crate::shape::{GpaRange, MapError, Mapping, PageSize, Tables};
use crate::Hpa;

/// Where an entry is, and what it stands for.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) table: Hpa,
    pub(crate) index: usize,
    pub(crate) level: u8,
    /// The first address that the entry translates.
    pub(crate) gpa: u64,
}

impl Place {
    /// Where the walk for `gpa` looks in a table of `level`.
    #[inline]
    pub(crate) fn new(table: Hpa, level: u8, gpa: u64) -> Self {
        Place {
            table,
            index: index(level, gpa),
            level,
            gpa: gpa & !span(level).wrapping_sub(1),
        }
    }

    /// Where it looks next.
    #[inline]
    pub(crate) fn below(self, table: Hpa, gpa: u64) -> Self {
        Place::new(table, self.level.saturating_sub(1), gpa)
    }

    /// What the entry is now.
    #[inline]
    pub(crate) fn read<T: Tables>(self, tables: &T) -> Entry {
        Entry::from_raw(tables.read(self.table, self.index))
    }

    /// Replaces the entry by what `f` makes of it, and returns what it was. If the CPU sets a bit
    /// meanwhile, `f` is asked again.
    #[inline]
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
    #[inline]
    fn take<T: Tables>(self, tables: &T) -> Entry {
        self.update(tables, |_| Entry::ABSENT)
    }

    /// Puts an empty table into an absent entry.
    pub(crate) fn grow<T: Tables>(self, tables: &mut T) -> Result<Hpa, MapError> {
        let table = tables.alloc().ok_or(MapError::NoTable)?;
        self.update(tables, |_| Entry::table(table));
        Ok(table)
    }

    /// True if the large page that this entry maps makes `new` superfluous.
    #[inline]
    pub(crate) fn already_gives(self, page: Hpa, entry: Entry, new: &Mapping) -> bool {
        let offset = new.gpa.wrapping_sub(self.gpa);
        page.0.wrapping_add(offset) == new.page.0 && entry.rights().contains(new.rights)
    }

    /// Sets the entry, which is at the level of the size of `new`.
    pub(crate) fn replace<T: Tables>(self, tables: &mut T, new: &Mapping) -> Flush {
        let wanted = Entry::page(new.page, new.size, new.rights).with(new.history);
        let mut flush = Flush::None;
        // The pages below a table leave it before it goes: with its address cached, a CPU could
        // set D in them unseen afterwards.
        let table = match self.read(tables).kind(self.level) {
            Kind::Table(table) => {
                let level = self.level.saturating_sub(1);
                flush = clear(tables, table, level, self.gpa, GpaRange::ALL) | Flush::All;
                Some(table)
            }
            _ => None,
        };
        let stays = |old: Entry| is_page(old, self.level) && same_page(old, wanted, self.level);
        let becomes = |old: Entry| match stays(old) {
            // A right that only a log withholds is not taken back from who has been given it.
            true if wanted.has(NptEntry::MAY_WRITE) => wanted.with(old.history() | old.right()),
            true => wanted.with(old.history()),
            false => wanted,
        };
        let old = self.update(tables, becomes);
        if let Some(table) = table {
            tables.free(table);
        } else if stays(old) {
            flush |= Flush::when(!becomes(old).rights().contains(old.rights()));
        } else if is_page(old, self.level) {
            flush |= Flush::All;
        }
        flush
    }

    /// Maps pages in the entries after this one, where there is nothing yet.
    pub(crate) fn fill_ahead<T: Tables>(
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

    /// Puts a table of smaller pages in the place of a large one, and returns it.
    pub(crate) fn split<T: Tables>(self, tables: &mut T) -> Result<Hpa, MapError> {
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
    pub(crate) fn merge<T: Tables>(self, tables: &mut T, size: PageSize) -> bool {
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
                && (entry.rights() ^ first.rights())
                    .difference(Rights::WRITE)
                    .is_empty()
        };
        if page.0 & size.offset_mask() != 0 || !(0..ENTRIES).all(fits) {
            return false;
        }
        // As in `replace`: each page leaves with its final A and D before the large one comes.
        let mut rights = first.rights();
        let mut history = NptEntry::empty();
        for index in 0..ENTRIES {
            let old = child(index).take(tables);
            history |= old.history();
            rights &= old.rights();
        }
        let merged = Entry::page(page, size, rights).with(history);
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

/// Takes out what `range` touches below `table`, which begins at `base`, and the tables that become
/// empty.
pub(crate) fn clear<T: Tables>(
    tables: &mut T,
    table: Hpa,
    level: u8,
    base: u64,
    range: GpaRange,
) -> Flush {
    let mut flush = Flush::None;
    for place in places(table, level, base, range) {
        match place.read(tables).kind(level) {
            Kind::Absent => {}
            Kind::Page(_) => {
                place.take(tables);
                flush |= Flush::All;
            }
            Kind::Table(next) => {
                let below = level.saturating_sub(1);
                let taken = clear(tables, next, below, place.gpa, range);
                let first = index(below, place.gpa.max(range.start));
                if range.covers(place.gpa, span(level))
                    || taken.is_needed() && is_empty(tables, next, first)
                {
                    place.take(tables);
                    tables.free(next);
                    flush |= Flush::All;
                }
                flush |= taken;
            }
        }
    }
    flush
}

/// Whether there is nothing in a table. It looks first around the entry `from`, which was just
/// taken out: the host takes pages back one after the other, upwards, downwards or at random, and
/// in each case another is near, as long as there are any.
fn is_empty<T: Tables>(tables: &T, table: Hpa, from: usize) -> bool {
    let absent = |index: usize| {
        let entry = Entry::from_raw(tables.read(table, index % ENTRIES));
        !entry.has(NptEntry::PRESENT)
    };
    (0..=ENTRIES / 2).all(|step| absent(from.wrapping_add(step)) && absent(from.wrapping_sub(step)))
}

/// Splits the large pages below `table`, which begins at `base`, that `range` touches.
pub(crate) fn split_all<T: Tables>(
    tables: &mut T,
    table: Hpa,
    level: u8,
    base: u64,
    range: GpaRange,
    flush: &mut Flush,
) -> Result<(), MapError> {
    for place in places(table, level, base, range) {
        let next = match place.read(tables).kind(level) {
            Kind::Absent => continue,
            Kind::Table(next) => next,
            Kind::Page(_) => {
                let next = place.split(tables)?;
                *flush |= Flush::All;
                next
            }
        };
        if level > 2 {
            let below = level.saturating_sub(1);
            split_all(tables, next, below, place.gpa, range, flush)?;
        }
    }
    Ok(())
}

/// Merges what can be merged below `table`, which begins at `base`, within `range`.
pub(crate) fn merge_all<T: Tables>(
    tables: &mut T,
    table: Hpa,
    level: u8,
    base: u64,
    range: GpaRange,
) -> Flush {
    let mut flush = Flush::None;
    for place in places(table, level, base, range) {
        let Kind::Table(next) = place.read(tables).kind(level) else {
            continue;
        };
        if level > 2 {
            flush |= merge_all(tables, next, level.saturating_sub(1), place.gpa, range);
        }
        if let (true, Some(size)) = (
            range.covers(place.gpa, span(level)),
            PageSize::of_level(level),
        ) {
            flush |= Flush::when(place.merge(tables, size));
        }
    }
    flush
}

/// Calls `f` for each page that `range` touches below `table`, which begins at `base`.
pub(crate) fn visit<T: Tables, F>(
    tables: &mut T,
    table: Hpa,
    level: u8,
    base: u64,
    range: GpaRange,
    f: &mut F,
) where
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

/// Whether an entry at `level` maps a page.
#[inline]
pub(crate) fn is_page(entry: Entry, level: u8) -> bool {
    matches!(entry.kind(level), Kind::Page(_))
}

#[inline]
fn same_page(a: Entry, b: Entry, level: u8) -> bool {
    a.kind(level) == b.kind(level)
}
