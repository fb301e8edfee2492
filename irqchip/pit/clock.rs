// SPDX-License-Identifier: GPL-2.0-only

//! The PIT's clock: converting between its ticks and nanoseconds, without 128-bit division.

/// Ticks in a second.
pub const FREQUENCY_HZ: u64 = 1_193_182;
const NS_PER_SECOND: u64 = 1_000_000_000;

/// How many ticks have passed after `ns`.
pub(super) const fn ticks(ns: u64) -> u64 {
    let seconds = ns / NS_PER_SECOND;
    let rest = ns % NS_PER_SECOND;
    seconds * FREQUENCY_HZ + rest * FREQUENCY_HZ / NS_PER_SECOND
}

/// The first nanosecond by which `ticks` have passed.
pub(super) const fn nanoseconds(ticks: u64) -> u64 {
    let seconds = ticks / FREQUENCY_HZ;
    let rest = ticks % FREQUENCY_HZ;
    seconds
        .saturating_mul(NS_PER_SECOND)
        .saturating_add((rest * NS_PER_SECOND).div_ceil(FREQUENCY_HZ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_are_exact() {
        for t in (0..10_000).chain([u64::from(u32::MAX), 1 << 53]) {
            let ns = nanoseconds(t);
            assert_eq!(ticks(ns), t);
            if t > 0 {
                assert_eq!(ticks(ns - 1), t - 1);
            }
        }
        assert_eq!(ticks(NS_PER_SECOND), FREQUENCY_HZ);
        assert!(ticks(u64::MAX) > 0);
        assert_eq!(nanoseconds(u64::MAX), u64::MAX);
    }
}
