// SPDX-License-Identifier: GPL-2.0-only

//! Numbers that are the same for the same seed.

/// SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A sequence for one probe, which does not depend on those before it.
    pub(crate) fn for_probe(seed: u64, number: u64) -> Self {
        let mut first = Self(seed);
        let start = first.next();
        let mut second = Self(start ^ number);
        Self(second.next())
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below this.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// True once in so many times.
    pub(crate) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// A single bit, of the lowest `bits`.
    pub(crate) fn bit(&mut self, bits: u64) -> u64 {
        1 << self.below(bits)
    }

    /// Values that are at a boundary, or have few bits, or any.
    pub(crate) fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 | 3 => self.bit(64),
            4 => self.next() & self.next() & self.next(),
            5 => self.below(0x1000),
            6 => self.next() & 0xffff_ffff,
            _ => self.next(),
        }
    }
}
