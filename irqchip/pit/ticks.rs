// SPDX-License-Identifier: GPL-2.0-only

//! Ticks that wait for their interrupt: a guest that counts ticks must see each of them, also those
//! that come while it handles another one (`KVM_REINJECT_CONTROL`).
//!
//! ```text
//!   tick ─► waiting ─ nothing in flight: an edge ─► in flight ─ end of interrupt ─► the next edge
//! ```

use crate::lines::Delivery;

/// An interrupt that has not ended after so many further ticks never will: its guest is gone.
const LOST: u32 = 1000;

/// The ticks of channel 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticks {
    reinject: bool,
    waiting: u32,
    in_flight: bool,
}

impl Ticks {
    /// None; those that come while another one is being handled will wait.
    pub const fn new() -> Self {
        Self {
            reinject: true,
            waiting: 0,
            in_flight: false,
        }
    }

    /// Whether ticks wait at all. What waited is forgotten.
    pub fn set_reinject(&mut self, reinject: bool) {
        *self = Self {
            reinject,
            ..Self::new()
        };
    }

    /// Whether the ends of interrupts matter.
    pub const fn reinject(&self) -> bool {
        self.reinject
    }

    /// Forgets what waits: the guest has set the timer anew.
    pub fn restart(&mut self) {
        self.set_reinject(self.reinject);
    }

    /// `rises` further ticks. Whether there must be an edge now; [`Self::sent`] wants to know what
    /// becomes of it.
    pub fn tick(&mut self, rises: u32) -> bool {
        if rises == 0 || !self.reinject {
            return rises != 0;
        }
        self.waiting = self.waiting.saturating_add(rises);
        !self.in_flight || self.waiting % LOST == 0
    }

    /// What became of an edge.
    pub fn sent(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Delivered => {
                self.waiting = self.waiting.saturating_sub(1);
                self.in_flight = true;
            }
            Delivery::Coalesced => self.in_flight = true,
            // A guest that has masked the interrupt does not count ticks.
            Delivery::Ignored => self.restart(),
        }
    }

    /// The guest has ended the interrupt. Whether there must be another edge now.
    pub fn ended(&mut self) -> bool {
        self.in_flight = false;
        self.waiting != 0
    }
}

impl Default for Ticks {
    fn default() -> Self {
        Self::new()
    }
}
