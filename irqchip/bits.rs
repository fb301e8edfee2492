// SPDX-License-Identifier: GPL-2.0-only

//! A set of interrupt vectors: the shape of the IRR, ISR and TMR.

/// One bit for each of the 256 vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vectors([u64; 4]);

impl Vectors {
    /// No vector.
    pub const EMPTY: Self = Self([0; 4]);

    /// Adds `vector`.
    #[inline]
    pub fn insert(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] |= 1 << (vector & 63);
    }

    /// Takes `vector` away.
    #[inline]
    pub fn remove(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] &= !(1 << (vector & 63));
    }

    /// Adds `vector` or takes it away.
    #[inline]
    pub fn set(&mut self, vector: u8, on: bool) {
        if on {
            self.insert(vector);
        } else {
            self.remove(vector);
        }
    }

    /// Whether `vector` is in the set.
    #[inline]
    pub const fn contains(&self, vector: u8) -> bool {
        self.0[(vector >> 6) as usize] & (1 << (vector & 63)) != 0
    }

    /// The highest vector, which is the one of the highest priority.
    #[inline]
    pub const fn highest(&self) -> Option<u8> {
        // Written out, not a loop: this is on the path of every world switch.
        let [a, b, c, d] = self.0;
        let (base, word) = if d != 0 {
            (192, d)
        } else if c != 0 {
            (128, c)
        } else if b != 0 {
            (64, b)
        } else if a != 0 {
            (0, a)
        } else {
            return None;
        };
        Some(base + (63 - word.leading_zeros() as u8))
    }

    /// Whether the set is empty.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        let [a, b, c, d] = self.0;
        a | b | c | d == 0
    }

    /// Vectors `64 * index` to `64 * index + 63` as one word.
    #[inline]
    pub const fn word(&self, index: usize) -> u64 {
        self.0[index & 3]
    }

    /// Replaces vectors `64 * index` to `64 * index + 63`.
    #[inline]
    pub fn set_word(&mut self, index: usize, word: u64) {
        self.0[index & 3] = word;
    }

    /// Vectors `32 * index` to `32 * index + 31`, as one register of the APIC shows them.
    #[inline]
    pub const fn register(&self, index: usize) -> u32 {
        (self.0[(index >> 1) & 3] >> (32 * (index & 1))) as u32
    }

    /// Replaces vectors `32 * index` to `32 * index + 31`.
    pub fn set_register(&mut self, index: usize, value: u32) {
        let shift = 32 * (index & 1);
        let word = &mut self.0[(index >> 1) & 3];
        *word = *word & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift;
    }
}
