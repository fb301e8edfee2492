// SPDX-License-Identifier: GPL-2.0-only

//! The MSR permission map: which RDMSR and WRMSR exit (APM vol. 2, 15.11).
//!
//! ```text
//!   byte 0000   0000_0000 to 0000_1fff     two bits an MSR: even bit set = RDMSR exits,
//!   byte 0800   c000_0000 to c000_1fff                      odd bit set = WRMSR exits
//!   byte 1000   c001_0000 to c001_1fff     all other MSRs always exit
//!   byte 1800   unused
//! ```

use x86::msr::DIRECT_MSRS;

/// Bytes in the map: two pages, physically contiguous.
pub const SIZE: usize = 0x2000;

/// The ranges that the map covers: first MSR and byte offset.
const RANGES: [(u32, usize); 3] = [(0, 0), (0xc000_0000, 0x800), (0xc001_0000, 0x1000)];
/// MSRs in each range.
const RANGE_MSRS: u32 = 0x2000;

/// Byte and shift of the two bits of an MSR; `None` if the map does not cover it.
pub(crate) fn position(msr: u32) -> Option<(usize, u32)> {
    RANGES.iter().find_map(|&(first, offset)| {
        let n = msr.wrapping_sub(first);
        (n < RANGE_MSRS).then_some((offset + (n / 4) as usize, n % 4 * 2))
    })
}

/// Fills the map: everything exits but [`DIRECT_MSRS`].
pub fn init(map: &mut [u8; SIZE]) {
    map.fill(0xff);
    for &msr in DIRECT_MSRS {
        set(map, msr, false, false);
    }
}

/// Sets whether RDMSR and WRMSR of `msr` exit. One that the map does not cover exits always.
pub fn set(map: &mut [u8; SIZE], msr: u32, read_exits: bool, write_exits: bool) {
    if let Some((byte, shift)) = position(msr) {
        if let Some(byte) = map.get_mut(byte) {
            *byte &= !(3 << shift);
            *byte |= (u8::from(read_exits) | u8::from(write_exits) << 1) << shift;
        }
    }
}
