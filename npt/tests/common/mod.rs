// SPDX-License-Identifier: GPL-2.0-only

//! Memory for tables, and the CPU that walks them.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test uses a part"
)]

use npt::{Entry, Flush, GpaRange, Hpa, Kind, Npt, NptEntry, PageSize, Tables};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

pub const PAGE: u64 = 4 << 10;
pub const LARGE: u64 = 2 << 20;
pub const HUGE: u64 = 1 << 30;

/// Addresses at the edges of tables and of the address space.
pub const PLACES: [u64; 14] = [
    0,
    PAGE,
    LARGE - PAGE,
    LARGE,
    LARGE + 7 * PAGE,
    HUGE - LARGE,
    HUGE - PAGE,
    HUGE,
    HUGE + LARGE,
    3 * HUGE,
    512 * HUGE - PAGE,
    512 * HUGE,
    (1 << 48) - HUGE,
    (1 << 48) - PAGE,
];

pub type Table = Box<[Cell<u64>; 512]>;

/// The memory of the tables. Freed ones stay readable, as they do for a CPU before its flush.
#[derive(Default)]
pub struct Memory {
    tables: BTreeMap<u64, Table>,
    /// Those that were given and not freed.
    pub live: BTreeSet<u64>,
    /// How many were freed.
    pub freed: usize,
    pub stock: usize,
    next: u64,
    /// What the CPU does before each exchange.
    pub cpu: Option<Box<RefCell<Cpu>>>,
}

impl Memory {
    pub fn new(stock: usize) -> Self {
        Memory {
            stock,
            next: 0x1000,
            ..Default::default()
        }
    }

    fn entry(&self, table: Hpa, index: usize) -> &Cell<u64> {
        &self
            .tables
            .get(&table.0)
            .expect("a table that was never given")[index]
    }

    /// Sets bits as the CPU does.
    fn set(&self, table: Hpa, index: usize, bits: NptEntry) {
        let cell = self.entry(table, index);
        cell.set(cell.get() | bits.bits());
    }

    /// Walks as the CPU does, from `level` on. `Some` if it reached a page that permits the access:
    /// A and D are then set.
    pub fn walk(&self, mut table: Hpa, mut level: u8, gpa: u64, write: bool) -> Option<PageSize> {
        loop {
            let shift = 12 + 9 * (u32::from(level) - 1);
            let index = (gpa >> shift) as usize & 511;
            let entry = Entry::from_raw(self.entry(table, index).get());
            match entry.kind(level) {
                Kind::Absent => return None,
                Kind::Table(next) => {
                    assert!(entry.has(NptEntry::USER | NptEntry::WRITABLE));
                    if let (2, Some(cpu)) = (level, &self.cpu) {
                        if let Ok(mut cpu) = cpu.try_borrow_mut() {
                            cpu.cached.insert(gpa / LARGE, next);
                        }
                    }
                    (table, level) = (next, level - 1);
                }
                Kind::Page(_) if write && !entry.has(NptEntry::WRITABLE) => return None,
                Kind::Page(_) => {
                    assert!(!entry.has_reserved_bits(level, 52));
                    self.set(table, index, NptEntry::ACCESSED);
                    if write {
                        self.set(table, index, NptEntry::DIRTY);
                    }
                    return PageSize::of_level(level);
                }
            }
        }
    }

    fn let_the_cpu_run(&self) {
        let Some(cpu) = &self.cpu else { return };
        let Ok(mut state) = cpu.try_borrow_mut() else {
            return;
        };
        let Some((root, levels)) = state.root else {
            return;
        };
        if state.only.is_some() && state.random() % 8 != 0 {
            return;
        }
        for _ in 0..state.random() % 3 {
            let any = PLACES[state.random() as usize % PLACES.len()];
            let gpa = state.only.unwrap_or(any);
            // Half of the time from a table that it remembers, even if that was freed.
            let reached = match state.cached.get(&(gpa / LARGE)).copied() {
                Some(table) if state.random() % 2 == 0 => self.walk(table, 1, gpa, true),
                _ => {
                    drop(state);
                    let reached = self.walk(root, levels, gpa, true);
                    state = cpu.borrow_mut();
                    reached
                }
            };
            if reached.is_some() {
                state.written.push(gpa);
            }
        }
    }
}

/// A CPU that writes to guest memory at any time, and remembers where tables are until a flush.
#[derive(Default)]
pub struct Cpu {
    pub root: Option<(Hpa, u8)>,
    pub cached: BTreeMap<u64, Hpa>,
    pub written: Vec<u64>,
    pub seed: u64,
    /// The one place that it seldom writes to, if not to all.
    pub only: Option<u64>,
}

impl Cpu {
    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }
}

impl Tables for Memory {
    fn read(&self, table: Hpa, index: usize) -> u64 {
        self.entry(table, index).get()
    }

    fn compare_exchange(&self, table: Hpa, index: usize, old: u64, new: u64) -> Result<(), u64> {
        self.let_the_cpu_run();
        let cell = self.entry(table, index);
        if cell.get() != old {
            return Err(cell.get());
        }
        cell.set(new);
        Ok(())
    }

    fn alloc(&mut self) -> Option<Hpa> {
        self.stock = self.stock.checked_sub(1)?;
        let at = self.next;
        self.live.insert(at);
        self.next += PAGE;
        let table = Box::new([const { Cell::new(0) }; 512]);
        self.tables.insert(at, table);
        Some(Hpa(at))
    }

    fn free(&mut self, table: Hpa) {
        assert!(self.live.remove(&table.0), "a table was freed twice");
        self.freed += 1;
        let present = |cell: &Cell<u64>| cell.get() & 1 != 0;
        assert!(
            !self.tables[&table.0].iter().any(present),
            "a table was freed with something in it"
        );
    }
}

/// Takes everything out, and checks that nothing is left.
pub fn finish(npt: Npt, memory: &mut Memory) {
    let _ = npt.unmap(memory, GpaRange::ALL);
    assert_eq!(memory.live.len(), 1, "tables besides the root are left");
    let _ = npt.destroy(memory);
    assert!(memory.live.is_empty());
}

/// What is in the tables, found by walking them without `npt`.
#[derive(Default)]
pub struct Contents {
    pub pages: Vec<(u64, PageSize, Entry)>,
    pub tables: BTreeSet<u64>,
    /// Tables besides the root that have nothing in them.
    pub empty: usize,
}

impl Contents {
    pub fn of(memory: &Memory, root: Hpa, levels: u8) -> Self {
        let mut found = Contents::default();
        found.add(memory, root, levels, 0);
        found.empty -= usize::from(found.tables.len() == 1 && found.pages.is_empty());
        found
    }

    fn add(&mut self, memory: &Memory, table: Hpa, level: u8, base: u64) {
        assert!(self.tables.insert(table.0), "a table is there twice");
        let mut empty = true;
        for (index, cell) in memory.tables[&table.0].iter().enumerate() {
            let entry = Entry::from_raw(cell.get());
            if entry == Entry::ABSENT {
                continue;
            }
            empty = false;
            let gpa = base + ((index as u64) << (12 + 9 * (u32::from(level) - 1)));
            match entry.kind(level) {
                Kind::Absent => panic!("bits in an absent entry: {entry:?}"),
                Kind::Table(next) => self.add(memory, next, level - 1, gpa),
                Kind::Page(_) => {
                    let size = PageSize::of_level(level).unwrap();
                    self.pages.push((gpa, size, entry));
                }
            }
        }
        self.empty += usize::from(empty);
    }
}

/// Does what the caller of an operation must do.
pub fn honour(memory: &mut Memory, flush: Flush) {
    if let (true, Some(cpu)) = (flush.is_needed(), &memory.cpu) {
        cpu.borrow_mut().cached.clear();
    }
}
