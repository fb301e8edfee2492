// SPDX-License-Identifier: GPL-2.0-only

//! The MSR permission map: which RDMSR and WRMSR exit (APM vol. 2, 15.11).
//!
//! ```text
//!   byte 0000   0000_0000 to 0000_1fff     two bits an MSR: even bit set = RDMSR exits,
//!   byte 0800   c000_0000 to c000_1fff                      odd bit set = WRMSR exits
//!   byte 1000   c001_0000 to c001_1fff     all other MSRs always exit
//!   byte 1800   unused
//! ```

/// Bytes in the map: two pages, physically contiguous.
pub const SIZE: usize = 0x2000;

/// The MSRs that a guest may access without an exit: VMLOAD and VMSAVE switch them. PAT is not
/// among them: QEMU keeps no guest PAT, so that the host's own would change.
pub const PASSED_THROUGH: [u32; 10] = [
    0x174,       // SYSENTER_CS
    0x175,       // SYSENTER_ESP
    0x176,       // SYSENTER_EIP
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // SFMASK
    0xc000_0100, // FS.base
    0xc000_0101, // GS.base
    0xc000_0102, // KernelGSBase
];

/// The ranges that the map covers: first MSR and byte offset.
const RANGES: [(u32, usize); 3] = [(0, 0), (0xc000_0000, 0x800), (0xc001_0000, 0x1000)];
/// MSRs in each range.
const RANGE_MSRS: u32 = 0x2000;

/// Byte and shift of the two bits of an MSR; `None` if the map does not cover it.
fn position(msr: u32) -> Option<(usize, u32)> {
    RANGES.iter().find_map(|&(first, offset)| {
        let n = msr.wrapping_sub(first);
        (n < RANGE_MSRS).then_some((offset + (n / 4) as usize, n % 4 * 2))
    })
}

/// Fills the map: everything exits but [`PASSED_THROUGH`].
pub fn init(map: &mut [u8; SIZE]) {
    map.fill(0xff);
    for msr in PASSED_THROUGH {
        set(map, msr, false, false);
    }
}

/// Sets whether RDMSR and WRMSR of `msr` exit. `false` if the map does not cover it: it exits.
pub fn set(map: &mut [u8; SIZE], msr: u32, read_exits: bool, write_exits: bool) -> bool {
    let Some((byte, shift)) = position(msr) else {
        return false;
    };
    let Some(byte) = map.get_mut(byte) else {
        return false;
    };
    *byte &= !(3 << shift);
    *byte |= (u8::from(read_exits) | u8::from(write_exits) << 1) << shift;
    true
}

/// Whether RDMSR (or WRMSR) of `msr` exits.
pub fn exits(map: &[u8; SIZE], msr: u32, write: bool) -> bool {
    match position(msr).and_then(|(byte, shift)| Some((map.get(byte)?, shift))) {
        Some((byte, shift)) => byte >> shift & (1 << u8::from(write)) != 0,
        None => true,
    }
}
