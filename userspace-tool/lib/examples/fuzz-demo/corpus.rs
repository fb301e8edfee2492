// SPDX-License-Identifier: GPL-2.0-only

//! Which inputs are worth keeping, and what becomes of them.

use crate::machine::{COVERAGE_SIZE, INPUT_MOST};

/// Random numbers: the same from the same seed.
pub(crate) struct Random(u64);

impl Random {
    /// From a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// One below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }

    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }
}

/// Bytes that are often at a limit, and those that the first input has.
const INTERESTING: &[u8] = b"\0\x01\x02\x03\x04\x10\x20\x40\x7f\x80\xffNSOLRG";

/// The feedback: what no run before has shown.
pub(crate) struct Feedback([u8; COVERAGE_SIZE]);

impl Feedback {
    /// Nothing was shown.
    pub(crate) fn new() -> Self {
        Self([0; COVERAGE_SIZE])
    }

    /// Whether the run came by a new place, or by one more often, on the scale 1, 2, 3, 4, 8, 16,
    /// 32, 128.
    pub(crate) fn is_new(&mut self, coverage: &[u8; COVERAGE_SIZE]) -> bool {
        let mut new = false;
        for (seen, &count) in self.0.iter_mut().zip(coverage) {
            let bit = match count {
                0 => continue,
                1..=3 => 1 << (count - 1),
                4..=7 => 1 << 3,
                8..=15 => 1 << 4,
                16..=31 => 1 << 5,
                32..=127 => 1 << 6,
                _ => 1 << 7,
            };
            new |= *seen & bit == 0;
            *seen |= bit;
        }
        new
    }

    /// How many places are known.
    pub(crate) fn places(&self) -> usize {
        self.0.iter().filter(|&&seen| seen != 0).count()
    }
}

/// Inputs that have shown something new.
pub(crate) struct Corpus {
    inputs: Vec<Vec<u8>>,
    random: Random,
}

impl Corpus {
    /// Begins with one input.
    pub(crate) fn new(first: &[u8], seed: u64) -> Self {
        Self {
            inputs: vec![first.to_vec()],
            random: Random::new(seed),
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.inputs.len()
    }

    /// Another one.
    pub(crate) fn add(&mut self, input: Vec<u8>) {
        self.inputs.push(input);
    }

    /// One of them, the newer ones more often, with some changes.
    pub(crate) fn next(&mut self) -> Vec<u8> {
        let count = self.inputs.len();
        let index = self.random.below(count).max(self.random.below(count));
        let mut input = self.inputs[index].clone();
        for _ in 0..1 << self.random.below(4) {
            self.change(&mut input);
        }
        input.truncate(INPUT_MOST);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let random = &mut self.random;
        let place = random.below(input.len() + 1);
        let end = input.len().min(place + 1 + random.below(16));
        match random.below(10) {
            0 => input.insert(place, random.byte()),
            1 => drop(input.drain(place..end)),
            2 => {
                // A piece of another input.
                let other = &self.inputs[random.below(self.inputs.len())];
                let start = random.below(other.len() + 1);
                let end = other.len().min(start + 1 + random.below(32));
                input.splice(place..place, other[start..end].iter().copied());
            }
            3 => {
                // A piece of itself, again and again.
                let piece = input[place..end].repeat(1 + random.below(8));
                input.splice(place..place, piece);
            }
            4 => {
                // The same byte again.
                if let [one, two] = *input.get(place..place + 2).unwrap_or(&[]) {
                    (input[place], input[place + 1]) = (one, if one == two { 0 } else { one });
                }
            }
            kind => {
                let Some(byte) = input.get_mut(place) else {
                    input.push(random.byte());
                    return;
                };
                *byte = match kind {
                    5 => random.byte(),
                    6 => *byte ^ 1 << random.below(8),
                    7 => byte.wrapping_add(random.below(35) as u8).wrapping_sub(17),
                    _ => INTERESTING[random.below(INTERESTING.len())],
                };
            }
        }
    }
}
