// SPDX-License-Identifier: GPL-2.0-only

//! The tables against a model: a map from address to page, changed by the plainest code.

mod common;

use common::{honour, Contents, Memory, HUGE, LARGE, PAGE, PLACES};
use npt::{Flush, GpaRange, Hpa, Kind, Levels, Mapping, Near, Npt, NptEntry, PageSize, Permit};
use npt::{Rights, Written};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Op {
    Map(Mapping),
    Run(u64, u64),
    Unmap(GpaRange),
    Protect(GpaRange),
    Withdraw(GpaRange),
    ProtectPages(u64, u64),
    Permit(u64, Rights, PageSize),
    Split(u64),
    SplitRange(GpaRange),
    Merge(u64, PageSize),
    MergeRange(GpaRange),
    Age(GpaRange),
    TakeWritten(u64, u64, bool),
    Access(u64, bool),
}

/// A page in the model.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Page {
    size: PageSize,
    host: u64,
    rights: Rights,
    accessed: bool,
    dirty: bool,
}

impl Page {
    fn new(new: &Mapping) -> Self {
        Page {
            size: new.size,
            host: new.page.0,
            rights: new.rights,
            accessed: new.history.contains(NptEntry::ACCESSED),
            dirty: new.history.contains(NptEntry::DIRTY),
        }
    }

    /// Takes the right to write; true if there was one.
    fn protect(&mut self) -> bool {
        let had = self.rights.contains(Rights::WRITE);
        self.rights.remove(Rights::WRITE);
        had
    }
}

#[derive(Default, Clone)]
struct Model {
    pages: BTreeMap<u64, Page>,
}

impl Model {
    fn touched(&self, range: GpaRange) -> Vec<u64> {
        let touches = |(&gpa, page): (&u64, &Page)| {
            let inside =
                range.start < range.end && gpa < range.end && gpa + page.size.bytes() > range.start;
            inside.then_some(gpa)
        };
        self.pages.iter().filter_map(touches).collect()
    }

    fn at(&self, gpa: u64) -> Option<(u64, Page)> {
        let (&start, &page) = self.pages.range(..=gpa).next_back()?;
        (gpa < start + page.size.bytes()).then_some((start, page))
    }

    fn remove(&mut self, range: GpaRange) -> bool {
        let touched = self.touched(range);
        for gpa in &touched {
            self.pages.remove(gpa);
        }
        !touched.is_empty()
    }

    /// Whether a CPU that has this page in its TLB does only what the tables permit now. If it has
    /// set D, it does not set it again.
    fn permits(&self, start: u64, page: &Page) -> bool {
        let mut at = start;
        while at < start + page.size.bytes() {
            let Some((first, now)) = self.at(at) else {
                return false;
            };
            let same = now.host.wrapping_sub(first) == page.host.wrapping_sub(start);
            let rights = now.rights.contains(page.rights - Rights::MAY_WRITE);
            if !same || !rights || page.dirty && !now.dirty {
                return false;
            }
            at = first + now.size.bytes();
        }
        true
    }

    fn split(&mut self, gpa: u64) -> bool {
        let Some((start, page)) = self.at(gpa) else {
            return false;
        };
        let Some(size) = PageSize::of_level(page.size.level() - 1) else {
            return false;
        };
        for offset in (0..512).map(|i| i * size.bytes()) {
            let host = page.host + offset;
            self.pages
                .insert(start + offset, Page { size, host, ..page });
        }
        true
    }

    /// Maps; true if a flush is needed for what was there.
    fn map(&mut self, new: &Mapping) -> bool {
        let mut flush = false;
        while let Some((start, page)) = self.at(new.gpa).filter(|(_, p)| p.size > new.size) {
            if page.host + (new.gpa - start) == new.page.0 && page.rights.contains(new.rights) {
                let page = self.pages.get_mut(&start).unwrap();
                page.accessed |= new.history.contains(NptEntry::ACCESSED);
                page.dirty |= new.history.contains(NptEntry::DIRTY);
                return flush;
            }
            flush |= self.split(new.gpa);
        }
        let mut page = Page::new(new);
        match self.pages.get(&new.gpa).copied() {
            Some(old) if old.size == new.size && old.host == new.page.0 => {
                page.accessed |= old.accessed;
                page.dirty |= old.dirty;
                if new.rights.contains(Rights::MAY_WRITE) {
                    page.rights |= old.rights & Rights::WRITE;
                }
            }
            _ => flush |= self.remove(GpaRange::page(new.gpa, new.size)),
        }
        self.pages.insert(new.gpa, page);
        flush
    }

    fn merge(&mut self, gpa: u64, size: PageSize) -> bool {
        let start = gpa & !(size.bytes() - 1);
        let Some(small) = PageSize::of_level(size.level() - 1) else {
            return false;
        };
        let parts: Vec<_> = (0..512)
            .map_while(|i| self.pages.get(&(start + i * small.bytes())).copied())
            .collect();
        let Some(first) = parts.first().copied() else {
            return false;
        };
        let fits = |(i, part): (usize, &Page)| {
            part.size == small
                && part.host == first.host + i as u64 * small.bytes()
                && part.rights - Rights::WRITE == first.rights - Rights::WRITE
        };
        if parts.len() < 512 || first.host % size.bytes() != 0 {
            return false;
        }
        if !parts.iter().enumerate().all(fits) {
            return false;
        }
        for i in 0..512 {
            self.pages.remove(&(start + i * small.bytes()));
        }
        let page = Page {
            size,
            rights: parts
                .iter()
                .fold(first.rights, |all, part| all & part.rights),
            accessed: parts.iter().any(|part| part.accessed),
            dirty: parts.iter().any(|part| part.dirty),
            ..first
        };
        self.pages.insert(start, page);
        true
    }
}

fn size() -> impl Strategy<Value = PageSize> {
    prop_oneof![
        3 => Just(PageSize::Size4K),
        3 => Just(PageSize::Size2M),
        1 => Just(PageSize::Size1G),
    ]
}

fn place() -> impl Strategy<Value = u64> {
    (0..PLACES.len(), 0..3u64)
        .prop_map(|(i, pages)| PLACES[i].wrapping_add(pages * PAGE) % (1 << 48))
}

fn range() -> impl Strategy<Value = GpaRange> {
    let length = prop_oneof![
        Just(PAGE),
        Just(3 * PAGE),
        Just(LARGE),
        Just(HUGE),
        Just(600 * HUGE),
        Just(0),
        Just(1)
    ];
    (place(), length).prop_map(|(start, length)| GpaRange {
        start,
        end: start.wrapping_add(length),
    })
}

/// Mostly with execution, so that neighbours can be merged.
fn rights() -> impl Strategy<Value = Rights> {
    (any::<bool>(), any::<bool>(), prop::bool::weighted(0.9)).prop_map(
        |(write, may_write, execute)| {
            let mut rights = Rights::empty();
            rights.set(Rights::WRITE, write);
            rights.set(Rights::MAY_WRITE, write || may_write);
            rights.set(Rights::EXECUTE, execute);
            rights
        },
    )
}

/// A range with little in it, for what makes many small pages.
fn short_range() -> impl Strategy<Value = GpaRange> {
    let length = prop_oneof![
        Just(0),
        Just(1),
        Just(PAGE),
        Just(LARGE),
        Just(LARGE + PAGE)
    ];
    (place(), length).prop_map(|(start, length)| GpaRange {
        start,
        end: start.wrapping_add(length),
    })
}

fn mapping() -> impl Strategy<Value = Mapping> {
    // Host memory mostly mirrors the guest's, so that neighbours adjoin.
    (
        place(),
        size(),
        prop_oneof![3 => Just(0), 1 => 1..4u64],
        rights(),
        any::<[bool; 2]>(),
    )
        .prop_map(|(gpa, size, other, rights, [accessed, dirty])| {
            let gpa = gpa & !(size.bytes() - 1);
            let mut history = NptEntry::empty();
            history.set(NptEntry::ACCESSED, accessed);
            history.set(NptEntry::DIRTY, dirty && rights.contains(Rights::WRITE));
            Mapping {
                gpa,
                page: Hpa(gpa + other * HUGE),
                size,
                rights,
                history,
            }
        })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => mapping().prop_map(Op::Map),
        2 => (place(), 1..20u64).prop_map(|(gpa, count)| Op::Run(gpa & !(PAGE - 1), count)),
        2 => range().prop_map(Op::Unmap),
        2 => range().prop_map(Op::Protect),
        1 => range().prop_map(Op::Withdraw),
        3 => (place(), any::<u64>()).prop_map(|(gpa, mask)| Op::ProtectPages(gpa, mask)),
        4 => (place(), rights(), size()).prop_map(|(gpa, rights, size)| {
            Op::Permit(gpa, rights - Rights::MAY_WRITE, size)
        }),
        1 => range().prop_map(Op::MergeRange),
        3 => place().prop_map(Op::Split),
        2 => short_range().prop_map(Op::SplitRange),
        3 => (place(), size()).prop_map(|(gpa, size)| Op::Merge(gpa, size)),
        2 => range().prop_map(Op::Age),
        4 => (place(), any::<u64>(), any::<bool>())
            .prop_map(|(gpa, mask, withhold)| Op::TakeWritten(gpa, mask, withhold)),
        5 => (place(), any::<bool>()).prop_map(|(gpa, write)| Op::Access(gpa, write)),
    ]
}

/// A run of small pages, writable, without history.
fn run(gpa: u64, count: u64) -> (Mapping, Vec<Hpa>) {
    let first = Mapping {
        gpa,
        page: Hpa(gpa),
        size: PageSize::Size4K,
        rights: Rights::WRITE | Rights::MAY_WRITE | Rights::EXECUTE,
        history: NptEntry::ACCESSED,
    };
    let ahead = (1..count).map(|i| Hpa(gpa + i * PAGE)).collect();
    (first, ahead)
}

/// What pages get that are mapped ahead.
fn withheld() -> Rights {
    Rights::MAY_WRITE | Rights::EXECUTE
}

/// Does `op` to both. What the tables ask to be flushed, and whether the model must.
fn step(op: &Op, npt: &Npt, memory: &mut Memory, model: &mut Model) -> (Flush, bool) {
    match op.clone() {
        Op::Map(new) => (npt.map(memory, new).unwrap(), model.map(&new)),
        Op::Run(gpa, count) => map_run(gpa, count, npt, memory, model),
        Op::Unmap(range) => (npt.unmap(memory, range), model.remove(range)),
        Op::Protect(range) => {
            let mut needed = false;
            for gpa in model.touched(range) {
                needed |= model.pages.get_mut(&gpa).unwrap().protect();
            }
            (npt.protect(memory, range), needed)
        }
        Op::Withdraw(range) => {
            let mut needed = false;
            for gpa in model.touched(range) {
                let page = model.pages.get_mut(&gpa).unwrap();
                needed |= page.protect();
                page.rights.remove(Rights::MAY_WRITE);
            }
            (npt.withdraw(memory, range), needed)
        }
        Op::ProtectPages(gpa, mask) => {
            let mut needed = false;
            for i in (0..64).filter(|i| mask >> i & 1 == 1) {
                if let Some((at, _)) = model.at((gpa & !(PAGE - 1)) + i * PAGE) {
                    needed |= model.pages.get_mut(&at).unwrap().protect();
                }
            }
            (npt.protect_pages(memory, gpa, mask), needed)
        }
        Op::Permit(gpa, wanted, most) => {
            let got = npt.permit(memory, gpa, wanted, most);
            assert_eq!(got, permit(gpa, wanted, most, model));
            (Flush::None, false)
        }
        Op::MergeRange(range) => {
            let mut needed = false;
            for size in [PageSize::Size2M, PageSize::Size1G] {
                let starts: Vec<_> = model.touched(range).into_iter().collect();
                for gpa in starts.into_iter().filter(|gpa| gpa % size.bytes() == 0) {
                    if gpa >= range.start && gpa.saturating_add(size.bytes()) <= range.end {
                        needed |= model.merge(gpa, size);
                    }
                }
            }
            (npt.merge_range(memory, range), needed)
        }
        Op::Split(gpa) => (npt.split(memory, gpa).unwrap(), model.split(gpa)),
        Op::SplitRange(range) => {
            let mut flush = Flush::None;
            npt.split_range(memory, range, &mut flush).unwrap();
            let mut needed = false;
            for size in [PageSize::Size1G, PageSize::Size2M] {
                for gpa in model.touched(range) {
                    if model.pages[&gpa].size == size {
                        needed |= model.split(gpa);
                    }
                }
            }
            (flush, needed)
        }
        Op::Merge(gpa, size) => (npt.merge(memory, gpa, size), model.merge(gpa, size)),
        Op::Age(range) => {
            let seen = npt.is_accessed(memory, range);
            assert_eq!(seen, npt.clear_accessed(memory, range));
            assert!(!npt.is_accessed(memory, range));
            let (mut expected, mut counts) = (false, [0; 3]);
            for gpa in model.touched(range) {
                let page = model.pages.get_mut(&gpa).unwrap();
                expected |= std::mem::take(&mut page.accessed);
                // One that begins before the range is counted with those there.
                counts[usize::from(page.size.level()) - 1] += u64::from(gpa >= range.start);
            }
            assert_eq!(seen, expected);
            assert_eq!(npt.count(memory, range), counts);
            (Flush::None, false)
        }
        Op::TakeWritten(gpa, mask, withhold) => {
            let (mut flush, mut needed) = (Flush::None, false);
            let mut last = Near::NOTHING;
            for i in (0..64).filter(|i| mask >> i & 1 == 1) {
                let at = (gpa & !(PAGE - 1)).wrapping_add(i * PAGE);
                let (written, more) = npt.take_written(memory, at, withhold, &mut last);
                flush |= more;
                assert_eq!(written, take_written(at, withhold, model, &mut needed));
            }
            (flush, needed)
        }
        Op::Access(gpa, write) => {
            let reached = memory.walk(npt.root(), levels(npt), gpa, write);
            let permits = |page: &Page| page.rights.contains(Rights::WRITE) || !write;
            let page = model.at(gpa).filter(|(_, page)| permits(page));
            assert_eq!(reached, page.map(|(_, page)| page.size));
            if let Some((start, _)) = page {
                let page = model.pages.get_mut(&start).unwrap();
                page.accessed = true;
                page.dirty |= write;
            }
            (Flush::None, false)
        }
    }
}

fn map_run(
    gpa: u64,
    count: u64,
    npt: &Npt,
    memory: &mut Memory,
    model: &mut Model,
) -> (Flush, bool) {
    let (first, ahead) = run(gpa, count);
    let flush = npt.map_run(memory, first, ahead.iter().copied(), withheld());
    let needed = model.map(&first);
    let is_small = |(_, page): (u64, Page)| page.size == PageSize::Size4K;
    if model.at(gpa).is_some_and(is_small) {
        let room = 511 - (gpa / PAGE % 512);
        for host in ahead.iter().take(room as usize) {
            let new = Mapping {
                gpa: host.0,
                page: *host,
                rights: withheld(),
                history: NptEntry::empty(),
                ..first
            };
            model.pages.entry(new.gpa).or_insert(Page::new(&new));
        }
    }
    (flush.unwrap(), needed)
}

/// What a page tells of writes to it.
fn take_written(gpa: u64, withhold: bool, model: &mut Model, needed: &mut bool) -> Written {
    let page = model.pages.get_mut(&gpa);
    let small = |page: &&mut Page| page.size == PageSize::Size4K;
    match page.filter(small) {
        Some(page) if page.rights.contains(Rights::WRITE) => {
            *needed |= page.dirty || withhold;
            if std::mem::take(&mut page.dirty) {
                return Written::Yes;
            }
            if withhold {
                page.protect();
            }
            Written::No
        }
        _ => Written::Unknown,
    }
}

/// What becomes of an access that finds a page but no right to it.
fn permit(gpa: u64, wanted: Rights, most: PageSize, model: &mut Model) -> Permit {
    match model.at(gpa) {
        None => Permit::Refused,
        Some((_, page)) if page.rights.contains(wanted) => Permit::Held,
        Some((at, page))
            if page.rights.contains(Rights::MAY_WRITE)
                && (page.rights | Rights::WRITE).contains(wanted)
                && page.size <= most =>
        {
            let page = model.pages.get_mut(&at).unwrap();
            (page.accessed, page.dirty) = (true, true);
            page.rights |= Rights::WRITE;
            Permit::Given
        }
        Some(_) => Permit::Refused,
    }
}

fn levels(npt: &Npt) -> u8 {
    if npt.limit() > 1 << 48 {
        5
    } else {
        4
    }
}

/// The tables hold what the model does, and consist of the tables that were taken and not given
/// back. None is empty.
fn compare(npt: &Npt, memory: &Memory, model: &Model) {
    let found = Contents::of(memory, npt.root(), levels(npt));
    let page = |&(gpa, size, entry): &(u64, PageSize, npt::Entry)| {
        let Kind::Page(host) = entry.kind(size.level()) else {
            unreachable!()
        };
        let page = Page {
            size,
            host: host.0,
            rights: entry.rights(),
            accessed: entry.has(NptEntry::ACCESSED),
            dirty: entry.has(NptEntry::DIRTY),
        };
        (gpa, page)
    };
    assert!(found.pages.iter().map(page).eq(model.pages.clone()));
    assert_eq!(found.tables, memory.live);
    assert_eq!(found.empty, 0);
    for gpa in PLACES {
        let found = npt.look_up(memory, gpa);
        let expected = model.at(gpa).map(|(at, page)| {
            let mut history = NptEntry::empty();
            history.set(NptEntry::ACCESSED, page.accessed);
            history.set(NptEntry::DIRTY, page.dirty);
            Mapping {
                gpa: at,
                page: Hpa(page.host),
                size: page.size,
                rights: page.rights,
                history,
            }
        });
        assert_eq!(found, expected);
    }
}

/// After an operation that asked for no flush: nothing that a CPU may have cached is wrong now.
fn nothing_is_stale(before: &Model, model: &Model, op: &Op) {
    for (&start, page) in &before.pages {
        let unchanged = model.pages.get(&start) == Some(page);
        assert!(
            unchanged || model.permits(start, page),
            "no flush after {op:?}, but a CPU may have {page:?} at {start:#x}"
        );
    }
}

fn check(depth: Levels, ops: &[Op]) {
    let mut memory = Memory::new(usize::MAX);
    let npt = Npt::new(&mut memory, depth).unwrap();
    let mut model = Model::default();
    for op in ops {
        let (before, tables, freed) = (model.clone(), memory.live.clone(), memory.freed);
        let (flush, needed) = step(op, &npt, &mut memory, &mut model);
        let added = memory.live.difference(&tables).count();
        if let Op::Map(_) | Op::Run(..) | Op::Split(_) = op {
            // One at each level below the root.
            assert!(added < depth as usize);
        }
        if !flush.is_needed() {
            assert!(!needed, "no flush after {op:?}");
            assert_eq!(freed, memory.freed, "a CPU may walk what {op:?} freed");
            nothing_is_stale(&before, &model, op);
        }
        honour(&mut memory, flush);
        compare(&npt, &memory, &model);
    }
    let _ = npt.destroy(&mut memory);
    assert!(memory.live.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn four_levels_follow_the_model(ops in prop::collection::vec(op(), 1..40)) {
        check(Levels::Four, &ops);
    }

    #[test]
    fn five_levels_follow_the_model(ops in prop::collection::vec(op(), 1..20)) {
        check(Levels::Five, &ops);
    }
}
