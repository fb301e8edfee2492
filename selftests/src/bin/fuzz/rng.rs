// SPDX-License-Identifier: GPL-2.0-only

//! Random numbers that a seed repeats, and the values that software most often gets wrong.

/// A generator; two of the same seed say the same.
#[derive(Clone)]
pub(crate) struct Rng(u64);

/// Numbers at the edges of types, pages, registers and address spaces.
const EDGES: [u64; 24] = [
    0,
    1,
    2,
    7,
    8,
    0x10,
    0x1f,
    0x20,
    0xff,
    0x100,
    0xfff,
    0x1000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xfee0_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_f000,
    0x8000_0000_0000,
    0xffff_8000_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_f000,
    u64::MAX,
];

impl Rng {
    /// The generator number `number` of a seed.
    pub(crate) fn new(seed: u64, number: u64) -> Self {
        let mut rng = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number);
        rng.0 = rng.next();
        rng
    }

    /// Any number (splitmix64).
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// True once in `times`.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&mut self, choice: &[T]) -> T {
        choice[self.below(choice.len())]
    }

    /// A number as hostile callers give: an edge, one bit, few bits, or anything.
    pub(crate) fn value(&mut self) -> u64 {
        match self.below(8) {
            0..=2 => self.pick(&EDGES),
            3 => self.pick(&EDGES).wrapping_sub(1),
            4 => 1 << self.below(64),
            5 => self.next() & self.next() & self.next(),
            6 => self.next() >> self.below(64),
            _ => self.next(),
        }
    }

    /// Overwrites bytes with hostile numbers, at places where fields may be.
    pub(crate) fn mutate(&mut self, bytes: &mut [u8]) {
        for _ in 0..self.below(4) {
            let width = self.pick(&[1usize, 2, 4, 8]);
            if bytes.len() < width {
                continue;
            }
            let at = self.below(bytes.len() / width) * width;
            let value = self.value().to_le_bytes();
            if self.once_in(3) {
                bytes[at] ^= 1 << self.below(8);
            } else {
                bytes[at..at + width].copy_from_slice(&value[..width]);
            }
        }
    }

    /// Fills bytes with anything.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let value = self.next().to_le_bytes();
            chunk.copy_from_slice(&value[..chunk.len()]);
        }
    }
}
