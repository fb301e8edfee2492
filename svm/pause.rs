// SPDX-License-Identifier: GPL-2.0-only

//! How many PAUSEs close together make an exit: the filter's count, which follows the guest (APM
//! vol. 2, 15.14.4).
//!
//! A guest that spins again after it has been let in waits for longer, so its next exit comes
//! later: the window grows. When its thread has waited for a CPU the others may have gone on, and
//! the window shrinks. The parameters are those of kvm_amd, by name, value and effect.

/// The parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PauseFilter {
    /// `pause_filter_count`: the least, and the first one.
    pub count: u16,
    /// `pause_filter_thresh`: so many cycles without a PAUSE end the series.
    pub threshold: u16,
    /// `pause_filter_count_grow`: below the count it is a factor, else it is added; 0 resets.
    pub grow: u16,
    /// `pause_filter_count_shrink`: likewise a divisor, or subtracted; 0 resets.
    pub shrink: u16,
    /// `pause_filter_count_max`: the most.
    pub max: u16,
}

impl PauseFilter {
    /// What the parameters are by themselves.
    pub const DEFAULT: Self = Self {
        count: 3000,
        threshold: 128,
        grow: 2,
        shrink: 0,
        max: u16::MAX,
    };

    /// The count after an exit that came of `old`.
    pub const fn grown(&self, old: u16) -> u16 {
        let new = if self.grow < 1 {
            self.count
        } else if self.grow < self.count {
            old.saturating_mul(self.grow)
        } else {
            old.saturating_add(self.grow)
        };
        if new < self.max {
            new
        } else if self.max < self.count {
            // The parameters contradict each other.
            self.count
        } else {
            self.max
        }
    }

    /// The count after the thread has waited for a CPU.
    pub const fn shrunk(&self, old: u16) -> u16 {
        let new = if self.shrink < 1 {
            self.count
        } else if self.shrink < self.count {
            old / self.shrink
        } else {
            old.saturating_sub(self.shrink)
        };
        if new < self.count {
            self.count
        } else {
            new
        }
    }
}
