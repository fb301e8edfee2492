// SPDX-License-Identifier: GPL-2.0-only

//! The formats of page tables: what each level looks like in each mode.

use super::PagingState;
use crate::regs::{Cr4, Efer};

/// Bits of a page-table entry that all formats share (APM vol. 2, 5.4.1).
pub(super) mod entry {
    pub(in crate::paging) const P: u64 = 1 << 0;
    pub(in crate::paging) const RW: u64 = 1 << 1;
    pub(in crate::paging) const US: u64 = 1 << 2;
    pub(in crate::paging) const A: u64 = 1 << 5;
    pub(in crate::paging) const D: u64 = 1 << 6;
    pub(in crate::paging) const PS: u64 = 1 << 7;
    pub(in crate::paging) const G: u64 = 1 << 8;
    pub(in crate::paging) const NX: u64 = 1 << 63;
    /// The protection key, in the entry of a page (APM vol. 2, 5.4.1).
    pub(in crate::paging) const KEY_SHIFT: u32 = 59;
    pub(in crate::paging) const KEY_MASK: u32 = 0xf;
    /// Where a table or a page begins, before the width of physical addresses is applied.
    pub(in crate::paging) const ADDRESS: u64 = bits(12, 51);
    /// Reserved in a PAE page-directory-pointer entry (APM vol. 2, 5.2.3): bits 1, 2 and 5 to 8.
    /// Bit 5 is let through, since QEMU's CPUs set it as if it were an accessed bit.
    pub(in crate::paging) const PAE_PDPE_RESERVED: u64 = bits(1, 2) | bits(6, 8) | NX;
    /// Available to software in long mode, reserved in PAE mode.
    pub(in crate::paging) const PAE_HIGH: u64 = bits(52, 62);
    /// Reserved in the entries of large pages: between PAT, bit 12, and where the address begins.
    pub(in crate::paging) const PAGE_2M_RESERVED: u64 = bits(13, 20);
    pub(in crate::paging) const PAGE_1G_RESERVED: u64 = bits(13, 29);
    /// The low part of the address in a 4 MiB page's entry.
    pub(in crate::paging) const PSE_ADDRESS: u64 = bits(22, 31);
    /// In a 4 MiB page's entry, physical address bits 32 to 39 (APM vol. 2, 5.2.2).
    pub(in crate::paging) const PSE_HIGH: u64 = bits(13, 20);
    pub(in crate::paging) const PSE_RESERVED: u64 = bits(21, 21);

    /// Bits `low` to `high`, both included.
    pub(in crate::paging) const fn bits(low: u32, high: u32) -> u64 {
        (u64::MAX >> (63 - high)) & (u64::MAX << low)
    }

    /// Bits below `count`.
    pub(in crate::paging) const fn below(count: u32) -> u64 {
        !u64::MAX.wrapping_shl(count)
    }
}

/// True in long mode: linear addresses have more than 32 bits.
pub(super) fn is_long(state: &PagingState) -> bool {
    state.efer.contains(Efer::LMA)
}

/// The shape of the tables (APM vol. 2, table 5-1).
#[derive(Clone, Copy)]
pub(super) struct Format {
    pub(super) levels: u32,
    /// log2 of what one entry of the topmost table maps.
    pub(super) root_shift: u32,
    /// Bits of the linear address that index one table.
    pub(super) index_bits: u32,
    /// The same as a mask.
    pub(super) index_mask: u64,
    /// Bytes of an entry.
    pub(super) size: u64,
    /// Entries have eight bytes, not four.
    pub(super) wide: bool,
    /// PAE without long mode: the third level has entries of its own kind.
    pub(super) pae: bool,
    /// The bits of CR3 that are the topmost table's address (APM vol. 2, figures 5-3 and 5-16).
    root_mask: u64,
}

const LEGACY: Format = Format {
    levels: 2,
    root_shift: 22,
    index_bits: 10,
    index_mask: entry::below(10),
    size: 4,
    wide: false,
    pae: false,
    root_mask: entry::bits(12, 31),
};

const PAE: Format = Format {
    levels: 3,
    root_shift: 30,
    index_bits: 9,
    index_mask: entry::below(9),
    size: 8,
    wide: true,
    pae: true,
    root_mask: entry::bits(5, 31),
};

const FOUR_LEVELS: Format = Format {
    levels: 4,
    root_shift: 39,
    pae: false,
    root_mask: entry::ADDRESS,
    ..PAE
};

const FIVE_LEVELS: Format = Format {
    levels: 5,
    root_shift: 48,
    ..FOUR_LEVELS
};

impl Format {
    #[inline]
    pub(super) fn of(state: &PagingState) -> &'static Self {
        if is_long(state) {
            if state.cr4.contains(Cr4::LA57) {
                &FIVE_LEVELS
            } else {
                &FOUR_LEVELS
            }
        } else if state.cr4.contains(Cr4::PAE) {
            &PAE
        } else {
            &LEGACY
        }
    }

    /// Where the topmost table begins.
    #[inline]
    pub(super) fn root(&self, cr3: u64) -> u64 {
        cr3 & self.root_mask
    }

    /// True if entries have an NX bit that counts.
    #[inline]
    pub(super) fn has_nx(&self, state: &PagingState) -> bool {
        self.wide && state.efer.contains(Efer::NXE)
    }

    /// True if an entry of `level`, above the lowest, can map a page.
    #[inline]
    pub(super) fn has_pages(&self, state: &PagingState, level: u32) -> bool {
        match level {
            2 => self.wide || state.cr4.contains(Cr4::PSE),
            3 => !self.pae && state.gbpages,
            _ => false,
        }
    }

    /// The bits that must be zero in every entry.
    #[inline]
    pub(super) fn reserved_high(&self, state: &PagingState) -> u64 {
        if !self.wide {
            return 0;
        }
        let beyond = entry::ADDRESS & !entry::below(phys_bits(state));
        let nx = if self.has_nx(state) { 0 } else { entry::NX };
        let pae = if self.pae { entry::PAE_HIGH } else { 0 };
        beyond | nx | pae
    }

    /// The bits that must be zero in an entry of `level`, apart from [`Format::reserved_high`].
    #[inline]
    pub(super) fn reserved_low(&self, state: &PagingState, level: u32, leaf: bool) -> u64 {
        match (level, leaf) {
            (1, _) | (2, false) => 0,
            (2, true) if !self.wide => {
                let beyond = phys_bits(state).saturating_sub(32).min(8);
                (entry::PSE_HIGH & entry::PSE_HIGH.wrapping_shl(beyond)) | entry::PSE_RESERVED
            }
            (2, true) => entry::PAGE_2M_RESERVED,
            (_, true) => entry::PAGE_1G_RESERVED,
            (3, false) if self.pae => entry::PAE_PDPE_RESERVED,
            // A page size is there only where it is offered. In PML5Es and PML4Es bit 8 must be
            // zero, too; in PDPEs and PDEs that point to tables it is ignored (APM vol. 2, figures
            // 5-20 to 5-22).
            (3, false) => entry::PS,
            (_, false) => entry::PS | entry::G,
        }
    }

    /// Where the page of `2^shift` bytes begins that a leaf `entry` maps.
    #[inline]
    pub(super) fn page(&self, shift: u32, entry: u64) -> u64 {
        if !self.wide && shift == 22 {
            let high = (entry & entry::PSE_HIGH) >> 13 << 32;
            return (entry & entry::PSE_ADDRESS) | high;
        }
        entry & entry::ADDRESS & !entry::below(shift)
    }
}

/// Width of physical addresses, forced into what the architecture allows.
#[inline]
fn phys_bits(state: &PagingState) -> u32 {
    u32::from(state.max_phys_bits).clamp(32, 52)
}
