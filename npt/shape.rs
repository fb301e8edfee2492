// SPDX-License-Identifier: GPL-2.0-only

//! The shape of the tables: levels, sizes, ranges, and the trait behind which their memory is.

use crate::entry::{NptEntry, Rights};
use crate::Hpa;

/// Entries in a table.
pub(crate) const ENTRIES: usize = 512;
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
    #[inline]
    pub const fn level(self) -> u8 {
        self as u8
    }

    /// Bytes in a page.
    #[inline]
    pub const fn bytes(self) -> u64 {
        span(self.level())
    }

    /// The bits of an address that are the offset into the page.
    #[inline]
    pub const fn offset_mask(self) -> u64 {
        self.bytes().wrapping_sub(1)
    }

    /// The size of the pages that entries of `level` map.
    #[inline]
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
    #[inline]
    pub fn page(gpa: u64, size: PageSize) -> Self {
        let start = gpa & !size.offset_mask();
        GpaRange {
            start,
            end: start.saturating_add(size.bytes()),
        }
    }

    /// Whether all of `bytes` from `start` on are in the range.
    #[inline]
    pub(crate) fn covers(&self, start: u64, bytes: u64) -> bool {
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
    /// A and D: for [`Npt::map`](crate::Npt::map) those to be set from the beginning, which spares
    /// the CPU the update.
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

/// Bits of an address that an entry of `level` does not look at.
#[inline]
pub(crate) const fn shift(level: u8) -> u32 {
    PAGE_BITS.wrapping_add(INDEX_BITS.wrapping_mul(level.wrapping_sub(1) as u32))
}

/// Bytes that an entry of `level` translates.
#[inline]
pub(crate) const fn span(level: u8) -> u64 {
    1u64.wrapping_shl(shift(level))
}

/// The index of `gpa` in a table of `level`.
#[inline]
pub(crate) const fn index(level: u8, gpa: u64) -> usize {
    (gpa.wrapping_shr(shift(level)) as usize) & (ENTRIES - 1)
}
