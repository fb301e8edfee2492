// SPDX-License-Identifier: GPL-2.0-only

//! Whatever the addresses are, and whenever tables run out: no panic, nothing leaked, nothing lost.

mod common;

use common::{finish, honour, Cpu, Memory, HUGE, LARGE, PAGE, PLACES};
use npt::{
    Entry, Flush, GpaRange, Hpa, Levels, MapError, Mapping, Near, Npt, NptEntry, PageSize, Rights,
};
use proptest::prelude::*;
use std::cell::RefCell;

fn size() -> impl Strategy<Value = PageSize> {
    prop_oneof![
        Just(PageSize::Size4K),
        Just(PageSize::Size2M),
        Just(PageSize::Size1G)
    ]
}

/// Any address, the extreme ones more often.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0..64u32, -1..2i64).prop_map(|(bit, off)| (1u64 << bit).wrapping_add(off as u64)),
        Just(u64::MAX),
        Just(u64::MAX - PAGE + 1),
        Just(1 << 48),
        Just(1 << 57),
    ]
}

fn levels() -> impl Strategy<Value = Levels> {
    prop_oneof![Just(Levels::Four), Just(Levels::Five)]
}

/// Five numbers that say what to do.
type Step = (u8, u64, u64, PageSize, bool);

fn do_anything(npt: &Npt, memory: &mut Memory, step: &Step) {
    let &(what, a, b, size, write) = step;
    let range = GpaRange { start: a, end: b };
    let mut rights = Rights::EXECUTE;
    rights.set(Rights::WRITE, write);
    rights.set(Rights::MAY_WRITE, write || a & 0x1000 == 0);
    let mapping = Mapping {
        gpa: a,
        page: Hpa(b),
        size,
        rights,
        history: NptEntry::empty(),
    };
    let flush = match what % 12 {
        0 | 1 => npt.map(memory, mapping).unwrap_or(Flush::All),
        2 => npt.unmap(memory, range),
        3 => npt.protect(memory, range),
        4 => npt.split(memory, a).unwrap_or(Flush::All),
        5 => npt.merge(memory, a, size),
        6 => npt.protect_pages(memory, a, b) | npt.merge_range(memory, range),
        7 => {
            let mut flush = Flush::None;
            let end = b.min(a.saturating_add(LARGE));
            let _ = npt.split_range(memory, GpaRange { start: a, end }, &mut flush);
            flush
        }
        8 => {
            let ahead = (1..20).map(|i| Hpa(b.wrapping_add(i * PAGE)));
            let run = npt.map_run(memory, mapping, ahead, rights - Rights::WRITE);
            run.unwrap_or(Flush::All)
        }
        9 => {
            npt.count(memory, range);
            npt.clear_accessed(memory, range);
            npt.is_accessed(memory, GpaRange::page(a, size));
            npt.permit(memory, b, rights, size);
            let mut last = Near::NOTHING;
            let (_, flush) = npt.take_written(memory, b, write, &mut last);
            flush | npt.take_written(memory, a, !write, &mut last).1
        }
        10 => npt.withdraw(memory, range),
        _ => {
            npt.look_up(memory, a);
            Flush::None
        }
    };
    honour(memory, flush);
}

fn steps(at: impl Strategy<Value = u64> + Clone) -> impl Strategy<Value = Vec<Step>> {
    let step = (any::<u8>(), at.clone(), at, size(), any::<bool>());
    prop::collection::vec(step, 1..40)
}

/// Aligned addresses near each other, so that pages meet.
fn near() -> BoxedStrategy<u64> {
    (0..PLACES.len(), size())
        .prop_map(|(i, size)| PLACES[i] & !(size.bytes() - 1))
        .boxed()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_address(depth in levels(), ops in steps(address().boxed())) {
        let mut memory = Memory::new(usize::MAX);
        let npt = Npt::new(&mut memory, depth).unwrap();
        for op in &ops {
            do_anything(&npt, &mut memory, op);
        }
        finish(npt, &mut memory);
    }

    #[test]
    fn tables_run_out(depth in levels(), stock in 1..8usize, ops in steps(near())) {
        let mut memory = Memory::new(stock);
        let npt = Npt::new(&mut memory, depth).unwrap();
        for op in &ops {
            do_anything(&npt, &mut memory, op);
            memory.stock = (memory.stock + 1).min(stock);
        }
        finish(npt, &mut memory);
    }

    /// The CPU writes between any two of our exchanges, partly through tables that it remembers. A
    /// page that was protected and flushed is not written before a write to it was permitted.
    #[test]
    fn no_write_is_unseen(seed in 1..u64::MAX, ops in steps(near())) {
        let mut memory = Memory::new(usize::MAX);
        let npt = Npt::new(&mut memory, Levels::Four).unwrap();
        let cpu = Cpu { root: Some((npt.root(), 4)), seed, ..Default::default() };
        memory.cpu = Some(Box::new(RefCell::new(cpu)));
        for op in &ops {
            do_anything(&npt, &mut memory, op);
            let flush = npt.protect(&mut memory, GpaRange::ALL);
            honour(&mut memory, flush);
            memory.cpu.as_ref().unwrap().borrow_mut().written.clear();
            // These give no right to write; but for the splits and merges they do a lot.
            let at = op.1;
            let flush = npt.split(&mut memory, at).unwrap_or(Flush::All);
            honour(&mut memory, flush);
            let flush = npt.merge_range(&mut memory, GpaRange::page(at, PageSize::Size1G));
            honour(&mut memory, flush);
            npt.clear_accessed(&mut memory, GpaRange::page(at, PageSize::Size1G));
            let flush = npt.protect_pages(&mut memory, at, u64::MAX);
            prop_assert_eq!(flush, Flush::None);
            prop_assert!(memory.cpu.as_ref().unwrap().borrow().written.is_empty());
            npt.permit(&mut memory, at, Rights::WRITE, PageSize::Size1G);
        }
        memory.cpu = None;
        finish(npt, &mut memory);
    }

    /// D is carried through split and merge, whatever the CPU does meanwhile.
    #[test]
    fn no_write_is_lost_in_merge(seed in 1..u64::MAX) {
        let mut memory = Memory::new(usize::MAX);
        let npt = Npt::new(&mut memory, Levels::Four).unwrap();
        let page = Mapping {
            gpa: 0,
            page: Hpa(0),
            size: PageSize::Size2M,
            rights: Rights::WRITE,
            history: NptEntry::empty(),
        };
        prop_assert_eq!(npt.map(&mut memory, page), Ok(Flush::None));
        let cpu = Cpu { root: Some((npt.root(), 4)), seed, only: Some(0), ..Default::default() };
        let split = npt.split(&mut memory, 0).unwrap();
        honour(&mut memory, split);
        memory.cpu = Some(Box::new(RefCell::new(cpu)));
        prop_assert_eq!(npt.merge(&mut memory, 0, PageSize::Size2M), Flush::All);
        let cpu = memory.cpu.take().unwrap().into_inner();
        let dirty = npt.look_up(&memory, 0).unwrap().history.contains(NptEntry::DIRTY);
        prop_assert_eq!(dirty, !cpu.written.is_empty());
        finish(npt, &mut memory);
    }

    #[test]
    fn any_entry(raw in any::<u64>(), level in any::<u8>(), bits in any::<u8>()) {
        let entry = Entry::from_raw(raw);
        let _ = (entry.kind(level), entry.rights(), entry.has_reserved_bits(level, bits));
        prop_assert_eq!(entry.raw(), raw);
    }
}

#[test]
fn refusals() {
    let mut memory = Memory::new(1);
    let npt = Npt::new(&mut memory, Levels::Four).unwrap();
    let mut page = Mapping {
        gpa: 0,
        page: Hpa(0),
        size: PageSize::Size2M,
        rights: Rights::empty(),
        history: NptEntry::empty(),
    };
    assert_eq!(npt.map(&mut memory, page), Err(MapError::NoTable));
    page.gpa = PAGE;
    assert_eq!(npt.map(&mut memory, page), Err(MapError::Misaligned));
    (page.gpa, page.page) = (LARGE, Hpa(PAGE));
    assert_eq!(npt.map(&mut memory, page), Err(MapError::Misaligned));
    (page.gpa, page.page) = (1 << 48, Hpa(HUGE));
    assert_eq!(npt.map(&mut memory, page), Err(MapError::OutOfRange));
    finish(npt, &mut memory);
    assert!(
        Npt::new(&mut memory, Levels::Five).is_none(),
        "no table for the root"
    );
}
