// SPDX-License-Identifier: GPL-2.0-only

//! What has to be flushed after the tables changed.
//!
//! SVM has no instruction that invalidates by guest-physical address: INVLPGA takes a
//! guest-virtual one (APM vol. 2, 15.16.2), and the TLB holds combined translations. So there is no
//! range to carry, only whether the TLBs of every CPU that may run the guest must lose the
//! guest's translations.

use core::ops::{BitOr, BitOrAssign};

/// What an operation on the tables leaves to the caller.
///
/// Until an [`All`](Flush::All) has been honoured on every CPU that may hold translations of this
/// guest, no host page that was unmapped may be used for anything else, and no table page that the
/// operation freed may be given back. Values are joined with `|`, so that a caller can do a number
/// of operations and flush once.
#[must_use = "stale translations remain until the flush is done"]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Flush {
    /// No CPU can hold anything that is now wrong.
    #[default]
    None,
    /// All translations of this guest must go, cached table entries included.
    All,
}

impl Flush {
    /// True if something must be flushed.
    #[inline]
    pub fn is_needed(self) -> bool {
        self == Flush::All
    }

    /// `All` if `condition` holds.
    #[inline]
    pub(crate) fn when(condition: bool) -> Self {
        if condition {
            Flush::All
        } else {
            Flush::None
        }
    }
}

impl BitOr for Flush {
    type Output = Self;

    #[inline]
    fn bitor(self, other: Self) -> Self {
        Flush::when(self.is_needed() || other.is_needed())
    }
}

impl BitOrAssign for Flush {
    #[inline]
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}
