// SPDX-License-Identifier: GPL-2.0-only

//! The paravirtual clock's pages (the kernel's Documentation/virt/kvm/x86/msr.rst).
//!
//! To change a page that guests may be reading, write it with an odd version, then with the next
//! even one.

/// The rate of a TSC as shift and multiplier: `ns = ((ticks << shift) * mul) >> 32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// The multiplier, a 32-bit binary fraction.
    pub mul: u32,
    /// The shift before it: to the left if positive, to the right if negative.
    pub shift: i8,
}

const NS_PER_SECOND: u64 = 1_000_000_000;

impl Scale {
    /// The scale of a TSC of `khz`; zero is taken as one.
    pub const fn new(khz: u32) -> Self {
        let khz = if khz == 0 { 1 } else { khz as u64 };
        // Nanoseconds per tick as `ns / hz`, where a shift brings the quotient into 1/2 to 1, so
        // that the multiplier has all its 32 bits.
        let mut ns = NS_PER_SECOND;
        let mut hz = khz.wrapping_mul(1000);
        let mut shift: i8 = 0;
        while ns >= hz {
            hz <<= 1;
            shift = shift.wrapping_add(1);
        }
        while ns << 1 < hz {
            ns <<= 1;
            shift = shift.wrapping_sub(1);
        }
        Self {
            mul: fraction(ns, hz),
            shift,
        }
    }

    /// Nanoseconds in `ticks`, as a guest computes them; but where its numbers overflow, these do
    /// not: more than can be told are as many as can.
    pub const fn ns(&self, ticks: u64) -> u64 {
        let shift = (self.shift.unsigned_abs() & 31) as u32;
        let (ticks, left) = if self.shift < 0 {
            (ticks >> shift, 0)
        } else {
            (ticks, shift)
        };
        let ns = ((ticks as u128 * self.mul as u128) << left) >> 32;
        if ns > u64::MAX as u128 {
            return u64::MAX;
        }
        ns as u64
    }
}

/// `numerator / denominator` as a 32-bit binary fraction; the former is the smaller, and the latter
/// below 2^63.
const fn fraction(numerator: u64, denominator: u64) -> u32 {
    let mut remainder = numerator;
    let mut quotient = 0;
    let mut bit = 0;
    while bit < 32 {
        remainder <<= 1;
        quotient <<= 1;
        if remainder >= denominator {
            remainder = remainder.wrapping_sub(denominator);
            quotient |= 1;
        }
        bit += 1;
    }
    quotient
}

/// The clock of one vCPU at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PvClock {
    /// The guest's TSC at that instant.
    pub tsc: u64,
    /// The guest's nanoseconds since boot at that instant.
    pub system_time: u64,
    /// The TSC's rate.
    pub scale: Scale,
    /// The clock is the same on all vCPUs.
    pub stable: bool,
    /// The vCPU was stopped, so a watchdog must not bark.
    pub guest_stopped: bool,
}

/// The even version of a record that takes the place of one with this version. What counts is the
/// version in the guest's memory: a guest may have been saved while it read that record, and go on
/// in another VM.
pub const fn next_version(old: u32) -> u32 {
    (old.wrapping_add(1) | 1).wrapping_add(1)
}

impl PvClock {
    /// Bytes of the page that are used.
    pub const SIZE: usize = 32;

    const FLAG_STABLE: u8 = 1 << 0;
    const FLAG_GUEST_STOPPED: u8 = 1 << 1;

    /// Whether the guest has not noticed yet that this record told it of a stop: it clears the flag
    /// then.
    pub const fn tells_stop(old: &[u8; Self::SIZE]) -> bool {
        old[29] & Self::FLAG_GUEST_STOPPED != 0
    }

    /// The bytes to store; `version` is odd while the page is being changed.
    pub fn bytes(&self, version: u32) -> [u8; Self::SIZE] {
        let mut flags = 0;
        if self.stable {
            flags |= Self::FLAG_STABLE;
        }
        if self.guest_stopped {
            flags |= Self::FLAG_GUEST_STOPPED;
        }
        let [shift] = self.scale.shift.to_le_bytes();
        let mut page = [0; Self::SIZE];
        page[0..4].copy_from_slice(&version.to_le_bytes());
        page[8..16].copy_from_slice(&self.tsc.to_le_bytes());
        page[16..24].copy_from_slice(&self.system_time.to_le_bytes());
        page[24..28].copy_from_slice(&self.scale.mul.to_le_bytes());
        page[28] = shift;
        page[29] = flags;
        page
    }
}

/// The wall-clock time at the guest's boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallClock {
    /// Seconds since 1970.
    pub sec: u32,
    /// Nanoseconds of the second.
    pub nsec: u32,
}

impl WallClock {
    /// Bytes of the structure.
    pub const SIZE: usize = 12;

    /// The time at boot of a guest whose clock shows `system_time` when the world's shows `now`
    /// nanoseconds since 1970.
    pub const fn at_boot(now: u64, system_time: u64) -> Self {
        let boot = now.saturating_sub(system_time);
        Self {
            sec: (boot / NS_PER_SECOND) as u32,
            nsec: (boot % NS_PER_SECOND) as u32,
        }
    }

    /// The bytes to store; `version` is odd while the structure is being changed.
    pub fn bytes(&self, version: u32) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..4].copy_from_slice(&version.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.sec.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.nsec.to_le_bytes());
        bytes
    }
}
