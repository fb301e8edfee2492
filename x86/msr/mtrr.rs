// SPDX-License-Identifier: GPL-2.0-only

//! The memory-type range registers (APM vol. 2, 7.7).
//!
//! The hypervisor keeps what the guest writes. It does not act on it: under nested paging, the
//! memory types come from the guest's PAT and the nested tables (APM vol. 2, 15.25.8).

use super::index;
use super::Origin;
use crate::features::Features;
use crate::regs::Exception;

/// Pairs of base and mask.
const VARIABLE_RANGES: usize = 8;
/// Where the registers are in the array: first the variable ranges, then those for fixed ranges of
/// 64 KiB (one register), 16 KiB (two) and 4 KiB (eight), then MTRRdefType.
const FIX_64K: usize = 2 * VARIABLE_RANGES;
const FIX_16K: usize = FIX_64K + 1;
const FIX_4K: usize = FIX_16K + 2;
const DEF_TYPE: usize = FIX_4K + 8;
const COUNT: usize = DEF_TYPE + 1;

/// In MTRRcap: write-combining is a type.
const CAP_WC: u64 = 1 << 10;
/// In MTRRcap: there are fixed ranges.
const CAP_FIX: u64 = 1 << 8;
/// In MTRRdefType: all MTRRs on (E), the fixed ones on (FE), and the type.
const DEF_TYPE_VALID: u64 = 1 << 11 | 1 << 10 | TYPE;
/// The memory type in MTRRdefType and in a variable range's base.
const TYPE: u64 = 0xff;
/// Reserved in a variable range's base.
const BASE_RESERVED: u64 = 0xf00;
/// Reserved in a variable range's mask; bit 11 is "valid".
const MASK_RESERVED: u64 = 0x7ff;

/// The registers. After reset all are zero: memory is uncacheable, as far as the guest can see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mtrr {
    registers: [u64; COUNT],
}

impl Mtrr {
    /// What MTRRcap reads.
    pub const CAP: u64 = CAP_WC | CAP_FIX | VARIABLE_RANGES as u64;

    /// True if `index` is one of these registers.
    pub(super) fn holds(index: u32) -> bool {
        index == index::MTRR_CAP || position(index).is_some()
    }

    pub(super) fn read(&self, index: u32) -> Result<u64, Exception> {
        if index == index::MTRR_CAP {
            return Ok(Self::CAP);
        }
        position(index)
            .and_then(|position| self.registers.get(position).copied())
            .ok_or(Exception::GP0)
    }

    pub(super) fn write(
        &mut self,
        index: u32,
        value: u64,
        origin: Origin,
        features: &Features,
    ) -> Result<(), Exception> {
        if index == index::MTRR_CAP {
            // Read-only, but a VMM may restore what it read.
            let same = origin == Origin::Host && value == Self::CAP;
            return if same { Ok(()) } else { Err(Exception::GP0) };
        }
        if !is_valid(index, value, features) {
            return Err(Exception::GP0);
        }
        let position = position(index).ok_or(Exception::GP0)?;
        *self.registers.get_mut(position).ok_or(Exception::GP0)? = value;
        Ok(())
    }
}

/// Where register `index` is in the array.
fn position(index: u32) -> Option<usize> {
    let (first, position) = match index {
        index::MTRR_VARIABLE_FIRST..=index::MTRR_VARIABLE_LAST => (index::MTRR_VARIABLE_FIRST, 0),
        index::MTRR_FIX_64K => (index::MTRR_FIX_64K, FIX_64K),
        index::MTRR_FIX_16K..=index::MTRR_FIX_16K_LAST => (index::MTRR_FIX_16K, FIX_16K),
        index::MTRR_FIX_4K..=index::MTRR_FIX_4K_LAST => (index::MTRR_FIX_4K, FIX_4K),
        index::MTRR_DEF_TYPE => (index::MTRR_DEF_TYPE, DEF_TYPE),
        _ => return None,
    };
    Some(position + index.wrapping_sub(first) as usize)
}

fn is_valid(index: u32, value: u64, features: &Features) -> bool {
    let [lowest, ..] = value.to_le_bytes();
    match index {
        index::MTRR_DEF_TYPE => value & !DEF_TYPE_VALID == 0 && is_type(lowest),
        index::MTRR_VARIABLE_FIRST..=index::MTRR_VARIABLE_LAST if index % 2 == 0 => {
            value & (BASE_RESERVED | features.reserved_phys()) == 0 && is_type(lowest)
        }
        index::MTRR_VARIABLE_FIRST..=index::MTRR_VARIABLE_LAST => {
            value & (MASK_RESERVED | features.reserved_phys()) == 0
        }
        _ => value.to_le_bytes().into_iter().all(is_type),
    }
}

/// True for the memory types UC, WC, WT, WP and WB (APM vol. 2, table 7-5).
fn is_type(kind: u8) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6)
}
