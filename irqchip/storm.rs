// SPDX-License-Identifier: GPL-2.0-only

//! Level-triggered storms: a line that stays high, and a guest whose handler only ends the
//! interrupt. It would come again before the guest has executed anything else, for ever.
//!
//! ```text
//!   end, line still high ─► sent again at once     9,999 times in a row
//!                        └► the pin pauses         then, for PAUSE_NS: the guest gets on meanwhile
//! ```
//!
//! Real chips take a moment to send again; this is the moment, seldom and longer.

/// So many ends in a row with the line high are a storm.
pub const ENDS: u16 = 10_000;
/// How long the pin is quiet then.
pub const PAUSE_NS: u64 = 10_000_000;

/// The ends in a row of `N` pins, and which of these pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Storms<const N: usize> {
    ends: [u16; N],
    /// One bit for each pin whose line rose again just because it was let fall at the end.
    again: u32,
    paused: u32,
    /// A pause has begun since [`Self::take_begun`] was called.
    begun: bool,
}

impl<const N: usize> Storms<N> {
    pub(crate) const NONE: Self = Self {
        ends: [0; N],
        again: 0,
        paused: 0,
        begun: false,
    };

    /// The line of `pin` rises again because a resampler was told of the end, before the guest runs
    /// on.
    pub(crate) fn raised_at_end(&mut self, pin: usize) {
        self.again |= bit(pin);
    }

    /// An interrupt of `pin` has ended, and its line is `high`.
    pub(crate) fn ended(&mut self, pin: usize, high: bool) {
        let again = self.again & bit(pin) != 0;
        self.again &= !bit(pin);
        let Some(ends) = self.ends.get_mut(pin) else {
            return;
        };
        *ends = if high || again {
            ends.saturating_add(1)
        } else {
            0
        };
        if *ends >= ENDS {
            *ends = 0;
            self.paused |= bit(pin);
            self.begun = true;
        }
    }

    /// The line of `pin` has fallen, so the device was served.
    pub(crate) fn fell(&mut self, pin: usize) {
        if let Some(ends) = self.ends.get_mut(pin) {
            *ends = 0;
        }
    }

    /// The pins that pause, one bit each.
    #[inline]
    pub(crate) fn paused(&self) -> u32 {
        self.paused
    }

    /// Whether a pause has begun since the last call.
    pub(crate) fn take_begun(&mut self) -> bool {
        core::mem::take(&mut self.begun)
    }

    /// The pause is over; for which pins.
    pub(crate) fn resume(&mut self) -> u32 {
        core::mem::take(&mut self.paused)
    }
}

fn bit(pin: usize) -> u32 {
    1u32.wrapping_shl(pin as u32)
}
