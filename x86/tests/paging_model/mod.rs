// SPDX-License-Identifier: GPL-2.0-only

//! A model of address translation, and a small guest memory to run it on.
//!
//! It shares no code with the walk: the formats are written out bit by bit, as in the figures of
//! APM vol. 2, 5.2 and 5.3.

#![allow(unreachable_pub, reason = "a module of a test")]

use std::collections::BTreeMap;

use x86::cpu::{Access, GuestMemory, MemError};
use x86::paging::{PagingState, Translation, WalkError};
use x86::regs::{Cr0, Cr4, Efer, Exception};

/// Xorshift, for repeatable noise.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Memory has 64 pages from address zero.
const PAGES: u64 = 64;

/// What memory holds where nobody wrote.
#[derive(Clone, Copy)]
enum Content {
    Zeros,
    /// Entries that mostly point to other entries.
    Tables {
        seed: u64,
        wide: bool,
        /// The page-directory-pointer entries, if there are such, begin here.
        pdptes: Option<u64>,
        /// So many in 64 entries have a bit that is wrong.
        strange: u64,
    },
    /// Any bytes at any address.
    Noise {
        seed: u64,
    },
}

pub struct Memory {
    content: Content,
    /// What was written, in aligned units of eight bytes.
    pub cells: BTreeMap<u64, u64>,
    /// Writes by another CPU: before each exchange at such an address, the first one is taken.
    pub interfere: Vec<(u64, u64)>,
    pub read_only: bool,
    pub exchanges: usize,
    pub reads: usize,
}

impl Memory {
    fn new(content: Content) -> Self {
        Self {
            content,
            cells: BTreeMap::new(),
            interfere: Vec::new(),
            read_only: false,
            exchanges: 0,
            reads: 0,
        }
    }

    pub fn zeroed() -> Self {
        Self::new(Content::Zeros)
    }

    pub fn noise(seed: u64) -> Self {
        Self::new(Content::Noise { seed })
    }

    pub fn random(seed: u64, state: &PagingState, strange: u64) -> Self {
        let long = state.efer.contains(Efer::LMA);
        let wide = long || state.cr4.contains(Cr4::PAE);
        let pdptes = (wide && !long).then_some(state.cr3 & 0xffff_ffe0);
        Self::new(Content::Tables {
            seed,
            wide,
            pdptes,
            strange,
        })
    }

    /// The same memory once more.
    pub fn fresh(&self) -> Self {
        let mut copy = Self::new(self.content);
        copy.cells.clone_from(&self.cells);
        copy
    }

    pub fn get(&self, gpa: u64) -> u64 {
        self.fetch(gpa, 8).unwrap()
    }

    pub fn put(&mut self, gpa: u64, value: u64) {
        assert_eq!(gpa % 8, 0);
        self.cells.insert(gpa, value);
    }

    pub fn put32(&mut self, gpa: u64, value: u32) {
        store(self, gpa, 4, u64::from(value));
    }

    fn cell(&self, gpa: u64) -> Option<u64> {
        if let Some(value) = self.cells.get(&gpa) {
            return Some(*value);
        }
        if let Content::Noise { seed } = self.content {
            return Some(Rng(seed ^ gpa).next() | u64::from(gpa / 8 % 3 != 0));
        }
        if gpa >= PAGES * 4096 {
            return None;
        }
        let Content::Tables {
            seed,
            wide,
            pdptes,
            strange,
        } = self.content
        else {
            return Some(0);
        };
        let mut rng = Rng(seed ^ gpa.wrapping_mul(0x1_0001));
        if pdptes.is_some_and(|root| (root..root + 32).contains(&gpa)) {
            return Some(random_pdpte(&mut rng, strange));
        }
        let entry = random_entry(&mut rng, wide, strange);
        if wide {
            return Some(entry);
        }
        let second = random_entry(&mut rng, wide, strange);
        Some(entry & 0xffff_ffff | second << 32)
    }

    fn fetch(&self, gpa: u64, size: usize) -> Option<u64> {
        let cell = self.cell(gpa & !7)?;
        Some(if size == 8 {
            cell
        } else {
            cell >> (8 * (gpa & 4)) & 0xffff_ffff
        })
    }
}

/// Stores four or eight bytes.
fn store(mem: &mut Memory, gpa: u64, size: usize, value: u64) {
    let cell = gpa & !7;
    let old = mem.cell(cell).unwrap();
    let new = match (size, gpa & 4) {
        (8, _) => value,
        (_, 0) => old & !0xffff_ffff | value,
        _ => old & 0xffff_ffff | value << 32,
    };
    if new != old {
        mem.cells.insert(cell, new);
    }
}

fn disturb(rng: &mut Rng, strange: u64, entry: u64) -> u64 {
    if rng.next() % 64 < strange {
        entry ^ 1 << (rng.next() % 64)
    } else {
        entry
    }
}

fn random_pdpte(rng: &mut Rng, strange: u64) -> u64 {
    let entry = (rng.next() % PAGES) << 12 | (rng.next() & 0xe18) | 1;
    disturb(rng, strange, entry)
}

fn random_entry(rng: &mut Rng, wide: bool, strange: u64) -> u64 {
    let mut entry = (rng.next() % PAGES) << 12 | (rng.next() & 0xe78) | 0x7;
    // Present, writable, user: mostly.
    for bit in [0, 1, 2] {
        if rng.next() % 16 == 0 {
            entry &= !(1 << bit);
        }
    }
    if rng.next() % 4 == 0 {
        // A large page, which may be anywhere. Its low address bits must be zero, or it is a
        // strange one; which they are, depends on its size.
        let clear = match rng.next() % 8 {
            0 => 0,
            1..=3 => 0x1f_e000,
            _ => 0x3fff_e000,
        };
        let high = match rng.next() % 4 {
            0 => 0x00ff_fff0_0000,
            1 => 0x007f_fff0_0000,
            _ => 0x0000_fff0_0000,
        };
        entry |= 1 << 7 | (rng.next() & high);
        entry &= !clear;
    }
    if wide && rng.next() % 16 == 0 {
        entry |= 1 << 63;
    }
    disturb(rng, strange, entry)
}

impl GuestMemory for Memory {
    fn read_gpa(&mut self, gpa: u64, buf: &mut [u8]) -> Result<(), MemError> {
        self.reads += 1;
        assert_eq!(gpa / 4096, (gpa + (buf.len() as u64 - 1)) / 4096);
        let value = self.fetch(gpa, buf.len()).ok_or(MemError::Unbacked)?;
        buf.copy_from_slice(&value.to_le_bytes()[..buf.len()]);
        Ok(())
    }

    fn write_gpa(&mut self, _: u64, _: &[u8]) -> Result<(), MemError> {
        panic!("a walk must not write without comparing");
    }

    fn compare_exchange_gpa(
        &mut self,
        gpa: u64,
        size: usize,
        old: u64,
        new: u64,
    ) -> Result<Result<(), u64>, MemError> {
        self.exchanges += 1;
        assert_eq!(gpa % size as u64, 0);
        if let Content::Noise { .. } = self.content {
            return Ok(if old % 5 == 0 { Err(new) } else { Ok(()) });
        }
        if self.read_only {
            return Err(MemError::ReadOnly);
        }
        if self.interfere.first().is_some_and(|(at, _)| *at == gpa) {
            let (_, value) = self.interfere.remove(0);
            store(self, gpa, size, value);
        }
        let current = self.fetch(gpa, size).ok_or(MemError::Unbacked)?;
        if current != old {
            return Ok(Err(current));
        }
        store(self, gpa, size, new);
        Ok(Ok(()))
    }
}

/// The bits `from..=to`.
fn span(from: u32, to: u32) -> u64 {
    (from..=to).map(|bit| 1 << bit).sum()
}

/// An entry of the path, as the model sees it.
struct Hop {
    gpa: u64,
    size: usize,
    value: u64,
    marks: bool,
}

enum Failure {
    Absent,
    Reserved,
    Memory,
}

/// What the CPU does: the outcome, and memory afterwards.
pub fn model(
    mem: &Memory,
    state: &PagingState,
    linear: u64,
    access: Access,
) -> (Result<Translation, WalkError>, BTreeMap<u64, u64>) {
    let mut after = mem.fresh();
    let long = state.efer.contains(Efer::LMA);
    let linear = if long { linear } else { linear % (1 << 32) };
    if !state.cr0.contains(Cr0::PG) {
        let everything = Translation {
            gpa: linear,
            page_bits: 12,
            user: true,
            writable: true,
            executable: true,
        };
        return (Ok(everything), after.cells);
    }
    let mut hops = Vec::new();
    let found = if long {
        long_mode(mem, state, linear, &mut hops)
    } else if state.cr4.contains(Cr4::PAE) {
        pae(mem, state, linear, &mut hops)
    } else {
        legacy(mem, state, linear, &mut hops)
    };
    let write = matches!(access, Access::Write | Access::SystemWrite);
    let fault = |code: u32| Err(WalkError::Fault(fault(state, linear, access, code)));
    let (gpa, page_bits) = match found {
        Ok(page) => page,
        Err(Failure::Absent | Failure::Memory) => return (fault(0), after.cells),
        Err(Failure::Reserved) => return (fault(0b1001), after.cells),
    };
    let all = |bit: u32| {
        hops.iter()
            .filter(|hop| hop.marks)
            .all(|hop| hop.value >> bit & 1 == 1)
    };
    let any = |bit: u32| {
        hops.iter()
            .filter(|hop| hop.marks)
            .any(|hop| hop.value >> bit & 1 == 1)
    };
    let translation = Translation {
        gpa,
        page_bits,
        user: all(2),
        writable: all(1),
        executable: !any(63),
    };
    if !allowed(state, &translation, access) {
        return (fault(1), after.cells);
    }
    let last = hops.len() - 1;
    for (n, hop) in hops.iter().enumerate().filter(|(_, hop)| hop.marks) {
        let dirty = if n == last && write { 0x40 } else { 0 };
        let value = hop.value | 0x20 | dirty;
        store(&mut after, hop.gpa, hop.size, value);
    }
    (Ok(translation), after.cells)
}

fn fault(state: &PagingState, linear: u64, access: Access, mut code: u32) -> Exception {
    let system = matches!(access, Access::SystemRead | Access::SystemWrite);
    if matches!(access, Access::Write | Access::SystemWrite) {
        code += 0b10;
    }
    if state.cpl == 3 && !system {
        code += 0b100;
    }
    let nx_enabled = state.efer.contains(Efer::NXE)
        && (state.cr4.contains(Cr4::PAE) || state.efer.contains(Efer::LMA));
    if access == Access::Fetch && (nx_enabled || state.cr4.contains(Cr4::SMEP)) {
        code += 0b10000;
    }
    Exception::page_fault(linear, code)
}

fn allowed(state: &PagingState, page: &Translation, access: Access) -> bool {
    let user_mode = state.cpl == 3;
    let smap_blocks = page.user && state.cr4.contains(Cr4::SMAP);
    let supervisor_write = page.writable || !state.cr0.contains(Cr0::WP);
    match access {
        Access::Read if user_mode => page.user,
        Access::Write if user_mode => page.user && page.writable,
        Access::Fetch if user_mode => page.user && page.executable,
        Access::Read => !smap_blocks || state.rflags_ac,
        Access::Write => (!smap_blocks || state.rflags_ac) && supervisor_write,
        Access::Fetch => page.executable && !(page.user && state.cr4.contains(Cr4::SMEP)),
        Access::SystemRead => !smap_blocks,
        Access::SystemWrite => !smap_blocks && supervisor_write,
    }
}

fn hop(mem: &Memory, hops: &mut Vec<Hop>, gpa: u64, size: usize) -> Result<u64, Failure> {
    let value = mem.fetch(gpa, size).ok_or(Failure::Memory)?;
    hops.push(Hop {
        gpa,
        size,
        value,
        marks: true,
    });
    if value & 1 == 0 {
        return Err(Failure::Absent);
    }
    Ok(value)
}

fn check(entry: u64, must_be_zero: u64) -> Result<(), Failure> {
    if entry & must_be_zero == 0 {
        Ok(())
    } else {
        Err(Failure::Reserved)
    }
}

fn width(state: &PagingState) -> u32 {
    u32::from(state.max_phys_bits).clamp(32, 52)
}

/// Address bits that the CPU does not have, and NX if it is off.
fn common(state: &PagingState) -> u64 {
    let mut bits = 0;
    for bit in width(state)..52 {
        bits |= 1 << bit;
    }
    if !state.efer.contains(Efer::NXE) {
        bits |= 1 << 63;
    }
    bits
}

const FRAME: u64 = 0x000f_ffff_ffff_f000;

fn long_mode(
    mem: &Memory,
    state: &PagingState,
    linear: u64,
    hops: &mut Vec<Hop>,
) -> Result<(u64, u8), Failure> {
    let common = common(state);
    let mut table = state.cr3 & FRAME;
    if state.cr4.contains(Cr4::LA57) {
        let pml5e = hop(mem, hops, table + 8 * (linear >> 48 & 511), 8)?;
        check(pml5e, common | span(7, 8))?;
        table = pml5e & FRAME;
    }
    let pml4e = hop(mem, hops, table + 8 * (linear >> 39 & 511), 8)?;
    check(pml4e, common | span(7, 8))?;

    let pdpe = hop(mem, hops, (pml4e & FRAME) + 8 * (linear >> 30 & 511), 8)?;
    if pdpe >> 7 & 1 == 1 && state.gbpages {
        check(pdpe, common | span(13, 29))?;
        return Ok(((pdpe & FRAME & !span(12, 29)) + linear % (1 << 30), 30));
    }
    // Bit 8 of an entry that points to a table is reserved in the levels above only.
    check(pdpe, common | span(7, 7))?;
    directory(mem, common, pdpe & FRAME, linear, hops)
}

fn pae(
    mem: &Memory,
    state: &PagingState,
    linear: u64,
    hops: &mut Vec<Hop>,
) -> Result<(u64, u8), Failure> {
    let common = common(state) | span(52, 62);
    let pdpe = hop(mem, hops, (state.cr3 & span(5, 31)) + 8 * (linear >> 30), 8)?;
    hops[0].marks = false;
    check(pdpe, common | span(1, 2) | span(6, 8) | span(63, 63))?;
    directory(mem, common, pdpe & FRAME, linear, hops)
}

/// A page directory of entries of eight bytes, and what is below.
fn directory(
    mem: &Memory,
    common: u64,
    table: u64,
    linear: u64,
    hops: &mut Vec<Hop>,
) -> Result<(u64, u8), Failure> {
    let pde = hop(mem, hops, table + 8 * (linear >> 21 & 511), 8)?;
    if pde >> 7 & 1 == 1 {
        check(pde, common | span(13, 20))?;
        return Ok(((pde & FRAME & !span(12, 20)) + linear % (1 << 21), 21));
    }
    check(pde, common)?;
    let pte = hop(mem, hops, (pde & FRAME) + 8 * (linear >> 12 & 511), 8)?;
    check(pte, common)?;
    Ok(((pte & FRAME) + linear % 4096, 12))
}

fn legacy(
    mem: &Memory,
    state: &PagingState,
    linear: u64,
    hops: &mut Vec<Hop>,
) -> Result<(u64, u8), Failure> {
    let table = state.cr3 & 0xffff_f000;
    let pde = hop(mem, hops, table + 4 * (linear >> 22 & 1023), 4)?;
    if pde >> 7 & 1 == 1 && state.cr4.contains(Cr4::PSE) {
        let mut zero = span(21, 21);
        for bit in 13..=20 {
            if bit - 13 + 32 >= width(state) {
                zero |= 1 << bit;
            }
        }
        check(pde, zero)?;
        let high = (pde >> 13 & 0xff) << 32;
        return Ok((high + (pde & 0xffc0_0000) + linear % (1 << 22), 22));
    }
    let pte = hop(
        mem,
        hops,
        (pde & 0xffff_f000) + 4 * (linear >> 12 & 1023),
        4,
    )?;
    Ok(((pte & 0xffff_f000) + linear % 4096, 12))
}
