// SPDX-License-Identifier: GPL-2.0-only

//! Input pins that several sources drive together.

/// Who drives a pin. A pin is asserted as long as one of its sources asserts it, so the source of
/// `KVM_IRQ_LINE`, each resampling irqfd and the PIT cannot clear each other's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source(u8);

impl Source {
    /// How many sources there are.
    pub const COUNT: u8 = 32;
    /// The VMM, through `KVM_IRQ_LINE`.
    pub const USER: Self = Self(0);
    /// Resampling irqfds, all together.
    pub const RESAMPLE: Self = Self(1);
    /// The PIT.
    pub const PIT: Self = Self(2);
    /// irqfds that do not resample: they send edges only.
    pub const EVENTFD: Self = Self(3);

    /// Source `id`, if there is such a source.
    pub const fn new(id: u8) -> Option<Self> {
        if id < Self::COUNT {
            Some(Self(id))
        } else {
            None
        }
    }
}

/// What became of a change of a pin; the answer of `KVM_IRQ_LINE_STATUS`.
/// Where a change goes several ways, the greatest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Delivery {
    /// The pin is masked, or there is no such pin.
    Ignored,
    /// An earlier request of the pin was not served yet, and stands for this one also.
    Coalesced,
    /// It went through, or it released the pin.
    Delivered,
}

/// The levels that all sources drive into `N` pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lines<const N: usize>([u32; N]);

impl<const N: usize> Lines<N> {
    pub(crate) const LOW: Self = Self([0; N]);

    /// Notes that `source` drives `level` into `pin`; the resulting level, or nothing if there is
    /// no such pin.
    pub(crate) fn drive(&mut self, pin: usize, source: Source, level: bool) -> Option<bool> {
        let sources = self.0.get_mut(pin)?;
        let bit = 1 << (source.0 & 31);
        if level {
            *sources |= bit;
        } else {
            *sources &= !bit;
        }
        Some(*sources != 0)
    }
}
