// SPDX-License-Identifier: GPL-2.0-only

//! The rate of a guest's TSC: the CPU multiplies its own by a ratio (APM vol. 2, 15.30.5).

/// How much faster than the host's a guest's TSC runs: 8 bits of integer, 32 of fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscRatio(u64);

impl TscRatio {
    /// As fast.
    pub const ONE: Self = Self(1 << Self::FRACTION);

    const FRACTION: u32 = 32;
    /// The bits above are reserved.
    const BITS: u32 = 40;

    /// The MSR's value.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// What the CPU makes of its own TSC.
    #[inline]
    pub const fn scale(self, tsc: u64) -> u64 {
        ((tsc as u128 * self.0 as u128) >> Self::FRACTION) as u64
    }

    /// The same for a distance that may be negative.
    const fn scale_signed(self, ticks: u64) -> u64 {
        ((ticks as i64 as i128 * self.0 as i128) >> Self::FRACTION) as u64
    }
}

/// The rate of a guest's TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscRate {
    /// What the VMM has asked for.
    pub khz: u32,
    /// What the CPU does.
    pub ratio: TscRatio,
}

impl TscRate {
    /// The host's own.
    pub const fn host(khz: u32) -> Self {
        Self {
            khz,
            ratio: TscRatio::ONE,
        }
    }

    /// A TSC of `khz` on a host whose own has `host`; zero means the host's. What differs by at
    /// most 250 ppm is as good as the host's, as with KVM. `None` if that cannot be had: without
    /// `scaling` no other rate can.
    pub const fn new(khz: u32, host: u32, scaling: bool) -> Option<Self> {
        if khz == 0 || host == 0 {
            return Some(Self::host(host));
        }
        if khz.abs_diff(host) <= host / 4000 {
            return Some(Self::host(khz));
        }
        let ratio = ((khz as u64) << TscRatio::FRACTION) / host as u64;
        if !scaling || ratio == 0 || ratio >> TscRatio::BITS != 0 {
            return None;
        }
        Some(Self {
            khz,
            ratio: TscRatio(ratio),
        })
    }

    /// At what rate the guest's TSC counts.
    pub const fn real_khz(&self, host: u32) -> u32 {
        if self.ratio.0 == TscRatio::ONE.0 {
            host
        } else {
            self.khz
        }
    }
}

/// An instant for all TSCs of a VM, whatever their rates: when the host's TSC was `host`, each of
/// them was `guest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscOrigin {
    /// The host's TSC; negative if that was before the host's TSC went back.
    pub host: u64,
    /// The guest's.
    pub guest: u64,
}

impl TscOrigin {
    /// `tsc` is the host's TSC now, and the TSC of a guest of this rate has this offset.
    pub const fn of(ratio: TscRatio, offset: u64, tsc: u64) -> Self {
        Self {
            host: tsc,
            guest: ratio.scale(tsc).wrapping_add(offset),
        }
    }

    /// The offset for a TSC of this rate.
    pub const fn offset(&self, ratio: TscRatio) -> u64 {
        self.guest.wrapping_sub(ratio.scale_signed(self.host))
    }

    /// The offset for a TSC that is as far from the others as with `old` and `offset`, at another
    /// rate.
    pub const fn at_ratio(&self, ratio: TscRatio, old: TscRatio, offset: u64) -> u64 {
        let ahead = offset.wrapping_sub(self.offset(old));
        self.offset(ratio).wrapping_add(ahead)
    }
}
