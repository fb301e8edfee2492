// SPDX-License-Identifier: GPL-2.0-only

//! The tables against a model: a map from address to page, changed by the plainest code.

mod common;

use common::{finish, honour, pages, Memory, HUGE, LARGE, PAGE, PLACES};
use npt::{Flush, GpaRange, Hpa, Kind, Levels, Mapping, Npt, NptEntry, PageSize, Permit, Rights};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Op {
    Map(Mapping),
    Run(u64, u64),
    Unmap(GpaRange),
    Protect(GpaRange),
    ProtectPages(u64, u64),
    Permit(u64, bool, PageSize),
    Split(u64),
    Merge(u64, PageSize),
    MergeRange(GpaRange),
    Age(GpaRange),
    Access(u64, bool),
}

/// A page in the model.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Page {
    size: PageSize,
    host: u64,
    write: bool,
    may_write: bool,
    accessed: bool,
    dirty: bool,
}

#[derive(Default)]
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
        let write = new.rights.contains(Rights::WRITE);
        let may_write = new.rights.contains(Rights::MAY_WRITE);
        while let Some((start, page)) = self.at(new.gpa).filter(|(_, p)| p.size > new.size) {
            if page.host + (new.gpa - start) == new.page.0
                && (page.write || !write)
                && (page.may_write || !may_write)
            {
                let page = self.pages.get_mut(&start).unwrap();
                page.accessed |= new.history.contains(NptEntry::ACCESSED);
                page.dirty |= new.history.contains(NptEntry::DIRTY);
                return flush;
            }
            flush |= self.split(new.gpa);
        }
        let mut page = Page {
            size: new.size,
            host: new.page.0,
            write,
            may_write,
            accessed: new.history.contains(NptEntry::ACCESSED),
            dirty: new.history.contains(NptEntry::DIRTY),
        };
        match self.pages.get(&new.gpa).copied() {
            Some(old) if old.size == new.size && old.host == new.page.0 => {
                page.accessed |= old.accessed;
                page.dirty |= old.dirty;
                page.write |= old.write && may_write;
                flush |= old.write && !page.write;
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
                && part.may_write == first.may_write
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
            write: parts.iter().all(|part| part.write),
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

fn mapping() -> impl Strategy<Value = Mapping> {
    // Host memory mostly mirrors the guest's, so that neighbours adjoin.
    (
        place(),
        size(),
        prop_oneof![3 => Just(0), 1 => 1..4u64],
        any::<[bool; 4]>(),
    )
        .prop_map(|(gpa, size, other, [write, may_write, accessed, dirty])| {
            let gpa = gpa & !(size.bytes() - 1);
            let mut history = NptEntry::empty();
            history.set(NptEntry::ACCESSED, accessed);
            history.set(NptEntry::DIRTY, dirty && write);
            let mut rights = Rights::EXECUTE;
            rights.set(Rights::WRITE, write);
            rights.set(Rights::MAY_WRITE, write || may_write);
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
        3 => (place(), any::<u64>()).prop_map(|(gpa, mask)| Op::ProtectPages(gpa, mask)),
        4 => (place(), any::<bool>(), size()).prop_map(|(gpa, w, size)| Op::Permit(gpa, w, size)),
        1 => range().prop_map(Op::MergeRange),
        3 => place().prop_map(Op::Split),
        3 => (place(), size()).prop_map(|(gpa, size)| Op::Merge(gpa, size)),
        2 => range().prop_map(Op::Age),
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

/// Does `op` to both; the flush that the tables ask for must be one if the model needs one.
fn step(op: &Op, npt: &Npt, memory: &mut Memory, model: &mut Model) {
    let (flush, needed) = match op.clone() {
        Op::Map(new) => (npt.map(memory, new).unwrap(), model.map(&new)),
        Op::Run(gpa, count) => {
            let (first, ahead) = run(gpa, count);
            let flush = npt
                .map_run(memory, first, ahead.iter().copied(), withheld())
                .unwrap();
            let small = model.map(&first);
            let mapped_small = model
                .at(gpa)
                .is_some_and(|(_, p)| p.size == PageSize::Size4K);
            let room = 511 - (gpa / PAGE % 512);
            for host in ahead
                .iter()
                .take(if mapped_small { room as usize } else { 0 })
            {
                let at = host.0;
                if model.at(at).is_none() {
                    let page = Page {
                        size: PageSize::Size4K,
                        host: at,
                        write: false,
                        may_write: true,
                        accessed: false,
                        dirty: false,
                    };
                    model.pages.insert(at, page);
                }
            }
            (flush, small)
        }
        Op::Unmap(range) => (npt.unmap(memory, range), model.remove(range)),
        Op::Protect(range) => {
            let mut needed = false;
            for gpa in model.touched(range) {
                needed |= std::mem::take(&mut model.pages.get_mut(&gpa).unwrap().write);
            }
            (npt.protect(memory, range), needed)
        }
        Op::ProtectPages(gpa, mask) => {
            let mut needed = false;
            for i in (0..64).filter(|i| mask >> i & 1 == 1) {
                if let Some((at, _)) = model.at((gpa & !(PAGE - 1)) + i * PAGE) {
                    needed |= std::mem::take(&mut model.pages.get_mut(&at).unwrap().write);
                }
            }
            (npt.protect_pages(memory, gpa, mask), needed)
        }
        Op::Permit(gpa, write, most) => {
            let mut wanted = Rights::EXECUTE;
            wanted.set(Rights::WRITE, write);
            let got = npt.permit(memory, gpa, wanted, most);
            let expected = match model.at(gpa) {
                None => Permit::Refused,
                Some((_, page)) if page.write || !write => Permit::Held,
                Some((at, page)) if page.may_write && page.size <= most => {
                    let page = model.pages.get_mut(&at).unwrap();
                    (page.write, page.accessed, page.dirty) = (true, true, true);
                    Permit::Given
                }
                Some(_) => Permit::Refused,
            };
            assert_eq!(got, expected);
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
        Op::Merge(gpa, size) => (npt.merge(memory, gpa, size), model.merge(gpa, size)),
        Op::Age(range) => {
            let seen = npt.is_accessed(memory, range);
            assert_eq!(seen, npt.clear_accessed(memory, range));
            assert!(!npt.is_accessed(memory, range));
            let mut expected = false;
            for gpa in model.touched(range) {
                expected |= std::mem::take(&mut model.pages.get_mut(&gpa).unwrap().accessed);
            }
            assert_eq!(seen, expected);
            (Flush::None, false)
        }
        Op::Access(gpa, write) => {
            let reached = memory.walk(npt.root(), levels(npt), gpa, write);
            let page = model.at(gpa).filter(|(_, page)| page.write || !write);
            assert_eq!(reached, page.map(|(_, page)| page.size));
            if let Some((start, _)) = page {
                let page = model.pages.get_mut(&start).unwrap();
                page.accessed = true;
                page.dirty |= write;
            }
            (Flush::None, false)
        }
    };
    assert!(flush.is_needed() || !needed, "no flush after {op:?}");
    honour(memory, flush);
}

fn levels(npt: &Npt) -> u8 {
    if npt.limit() > 1 << 48 {
        5
    } else {
        4
    }
}

fn compare(npt: &Npt, memory: &mut Memory, model: &mut Model) {
    let found: BTreeMap<_, _> = pages(memory, npt.root(), levels(npt))
        .into_iter()
        .map(|(gpa, size, entry)| {
            let Kind::Page(host) = entry.kind(size.level()) else {
                unreachable!()
            };
            let page = Page {
                size,
                host: host.0,
                write: entry.has(NptEntry::WRITABLE),
                may_write: entry.has(NptEntry::MAY_WRITE),
                accessed: entry.has(NptEntry::ACCESSED),
                dirty: entry.has(NptEntry::DIRTY),
            };
            (gpa, page)
        })
        .collect();
    assert_eq!(found, model.pages);
    let mut counts = [0; 3];
    for page in model.pages.values() {
        counts[usize::from(page.size.level()) - 1] += 1;
    }
    assert_eq!(npt.count(memory, GpaRange::ALL), counts);
    // Who counts in two steps counts the page that he has cut through once.
    let cut = model.pages.iter().max_by_key(|(_, page)| page.size);
    let cut = cut.map_or(0, |(gpa, page)| gpa + page.size.bytes() / 2);
    let [below, above] =
        [(0, cut), (cut, u64::MAX)].map(|(start, end)| npt.count(memory, GpaRange { start, end }));
    assert_eq!([0, 1, 2].map(|size| below[size] + above[size]), counts);
}

fn check(depth: Levels, ops: &[Op]) {
    let mut memory = Memory::new(usize::MAX);
    let npt = Npt::new(&mut memory, depth).unwrap();
    let mut model = Model::default();
    for op in ops {
        step(op, &npt, &mut memory, &mut model);
        for gpa in PLACES {
            let found = npt.look_up(&memory, gpa);
            let found = found.map(|m| (m.gpa, m.size, m.page.0, m.rights.contains(Rights::WRITE)));
            let expected = model.at(gpa).map(|(at, p)| (at, p.size, p.host, p.write));
            assert_eq!(found, expected, "after {op:?}");
        }
    }
    compare(&npt, &mut memory, &mut model);
    finish(npt, &mut memory);
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
