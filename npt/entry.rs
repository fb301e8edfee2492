// SPDX-License-Identifier: GPL-2.0-only

//! One entry of a nested page table (APM vol. 2, 15.25.5 and 5.3.3).
//!
//! ```text
//!   63  62     52 51                       12 11 9  8 7    6 5 4   3   2 1  0
//!   NX  available  address of table or page   avail G PS   D A PCD PWT U RW P
//!                  (bit 12: PAT, large pages)         PAT (4 KiB pages)
//! ```

use crate::shape::PageSize;
use crate::Hpa;
use bitflags::bitflags;

/// The bits of an entry; the address is in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NptEntry(u64);

bitflags! {
    impl NptEntry: u64 {
        /// P: the entry is valid. Without it the CPU looks at no other bit.
        const PRESENT = 1 << 0;
        /// R/W: writes are permitted.
        const WRITABLE = 1 << 1;
        /// U/S: must be set everywhere, for the CPU treats each access of a guest as one of a user
        /// (APM vol. 2, 15.25.5).
        const USER = 1 << 2;
        /// PWT: page-level write-through.
        const WRITE_THROUGH = 1 << 3;
        /// PCD: page-level cache disable.
        const CACHE_DISABLE = 1 << 4;
        /// A: set by the CPU when it uses the entry.
        const ACCESSED = 1 << 5;
        /// D: set by the CPU when the guest writes to the page. Only in entries that map a page.
        const DIRTY = 1 << 6;
        /// PS: the entry maps a 2 MiB or 1 GiB page. In a 4 KiB entry the same bit is PAT.
        const LARGE = 1 << 7;
        /// G: has no meaning in nested tables; kept 0.
        const GLOBAL = 1 << 8;
        /// Software's own: see [`Rights::MAY_WRITE`].
        const MAY_WRITE = 1 << 9;
        /// NX: instruction fetches are not permitted. Needs the host's EFER.NXE.
        const NO_EXECUTE = 1 << 63;
    }
}

/// What a guest may do with a page, besides reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights(u8);

bitflags! {
    impl Rights: u8 {
        /// Writing.
        const WRITE = 1 << 0;
        /// Instruction fetches.
        const EXECUTE = 1 << 1;
        /// Writing, as far as the host is concerned: without [`Rights::WRITE`], only a dirty log
        /// withholds it. `WRITE` implies it.
        const MAY_WRITE = 1 << 2;
    }
}

/// Bits 12 to 51: the address, as wide as the architecture allows.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A decoded entry: the raw value with its meaning at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(u64);

/// What an entry at some level of the tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not present.
    Absent,
    /// Points to a table of the next lower level.
    Table(Hpa),
    /// Maps a page.
    Page(Hpa),
}

impl Entry {
    /// The entry that maps nothing.
    pub const ABSENT: Entry = Entry(0);

    /// The entry that stands for `raw`.
    #[inline]
    pub fn from_raw(raw: u64) -> Self {
        Entry(raw)
    }

    /// What is in memory.
    #[inline]
    pub fn raw(self) -> u64 {
        self.0
    }

    /// An entry that points to a table. Permissions are decided by the last level alone, so it
    /// permits everything.
    #[inline]
    pub fn table(table: Hpa) -> Self {
        let bits = NptEntry::PRESENT | NptEntry::WRITABLE | NptEntry::USER | NptEntry::ACCESSED;
        Entry(table.0 & ADDRESS | bits.bits())
    }

    /// An entry that maps the page at `page`, write-back cached (PAT entry 0 of the host), neither
    /// accessed nor dirty.
    #[inline]
    pub fn page(page: Hpa, size: PageSize, rights: Rights) -> Self {
        let mut bits = NptEntry::PRESENT | NptEntry::USER;
        bits.set(NptEntry::LARGE, size != PageSize::Size4K);
        bits.set(NptEntry::WRITABLE, rights.contains(Rights::WRITE));
        bits.set(
            NptEntry::MAY_WRITE,
            rights.intersects(Rights::WRITE | Rights::MAY_WRITE),
        );
        bits.set(NptEntry::NO_EXECUTE, !rights.contains(Rights::EXECUTE));
        Entry(page.0 & ADDRESS & !size.offset_mask() | bits.bits())
    }

    /// What the entry is, found at `level` (1 is the last).
    #[inline]
    pub fn kind(self, level: u8) -> Kind {
        if !self.has(NptEntry::PRESENT) {
            Kind::Absent
        } else if let Some(size) = self.page_size(level) {
            Kind::Page(Hpa(self.0 & ADDRESS & !size.offset_mask()))
        } else {
            Kind::Table(Hpa(self.0 & ADDRESS))
        }
    }

    /// The size of the page that this entry maps if it is a present one at `level`.
    #[inline]
    fn page_size(self, level: u8) -> Option<PageSize> {
        match level {
            1 => Some(PageSize::Size4K),
            2 if self.has(NptEntry::LARGE) => Some(PageSize::Size2M),
            3 if self.has(NptEntry::LARGE) => Some(PageSize::Size1G),
            _ => None,
        }
    }

    /// True if all of `bits` are set.
    #[inline]
    pub fn has(self, bits: NptEntry) -> bool {
        self.0 & bits.bits() == bits.bits()
    }

    /// The same with `bits` set.
    #[must_use]
    #[inline]
    pub fn with(self, bits: NptEntry) -> Self {
        Entry(self.0 | bits.bits())
    }

    /// The same with `bits` clear.
    #[must_use]
    #[inline]
    pub fn without(self, bits: NptEntry) -> Self {
        Entry(self.0 & !bits.bits())
    }

    /// The accessed and dirty bits alone.
    #[inline]
    pub fn history(self) -> NptEntry {
        NptEntry::from_bits_truncate(self.0) & (NptEntry::ACCESSED | NptEntry::DIRTY)
    }

    /// The right to write alone.
    #[inline]
    pub(crate) fn right(self) -> NptEntry {
        NptEntry::from_bits_truncate(self.0) & NptEntry::WRITABLE
    }

    /// What the entry permits, if it maps a page.
    #[inline]
    pub fn rights(self) -> Rights {
        let mut rights = Rights::empty();
        rights.set(Rights::WRITE, self.has(NptEntry::WRITABLE));
        rights.set(Rights::MAY_WRITE, self.has(NptEntry::MAY_WRITE));
        rights.set(Rights::EXECUTE, !self.has(NptEntry::NO_EXECUTE));
        rights
    }

    /// True if any bit is set that must be 0 in a present entry at `level`, on a CPU with
    /// `address_bits` of physical address.
    pub fn has_reserved_bits(self, level: u8, address_bits: u8) -> bool {
        let below = 1u64
            .checked_shl(address_bits.into())
            .map_or(u64::MAX, |top| top.wrapping_sub(1));
        let mut reserved = ADDRESS & !below;
        if level > 3 {
            reserved |= NptEntry::LARGE.bits() | NptEntry::GLOBAL.bits();
        }
        if let (Kind::Page(_), Some(size)) = (self.kind(level), self.page_size(level)) {
            // Bit 12 of a large page is PAT.
            reserved |= size.offset_mask() & ADDRESS & !(1 << 12);
        }
        self.has(NptEntry::PRESENT) && self.0 & reserved != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_round_trip() {
        let rights = Rights::WRITE | Rights::MAY_WRITE | Rights::EXECUTE;
        for (size, level) in [
            (PageSize::Size4K, 1),
            (PageSize::Size2M, 2),
            (PageSize::Size1G, 3),
        ] {
            let entry = Entry::page(Hpa(0x7_c000_0000), size, rights);
            assert_eq!(entry.kind(level), Kind::Page(Hpa(0x7_c000_0000)));
            assert_eq!(entry.rights(), rights);
            assert!(!entry.has_reserved_bits(level, 48));
            assert!(entry.has_reserved_bits(level, 34));
        }
    }

    #[test]
    fn large_bit_is_no_page_above_1_gib() {
        let entry = Entry::page(Hpa(0), PageSize::Size1G, Rights::empty());
        assert!(matches!(entry.kind(4), Kind::Table(_)));
        assert!(entry.has_reserved_bits(4, 52));
        assert_eq!(Entry::ABSENT.kind(1), Kind::Absent);
        assert!(
            !Entry::from_raw(!1).has_reserved_bits(4, 40),
            "not present: anything goes"
        );
    }

    #[test]
    fn misaligned_large_page_is_reserved() {
        let entry =
            Entry::from_raw(Entry::page(Hpa(0), PageSize::Size2M, Rights::WRITE).raw() | 1 << 13);
        assert!(entry.has_reserved_bits(2, 52));
        assert!(!entry
            .without(NptEntry::from_bits_retain(1 << 13))
            .has_reserved_bits(2, 52));
    }
}
