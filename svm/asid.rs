// SPDX-License-Identifier: GPL-2.0-only

//! Address space identifiers: one pool per CPU, with generations (APM vol. 2, 15.15.1, 15.16).
//!
//! A guest's TLB entries carry its ASID. Numbers are handed out in order; when they are used up, a
//! new generation begins, and everything is flushed once. A vCPU keeps its number as long as it
//! stays on the CPU and the generation lasts:
//!
//! | what the vCPU has                     | what it gets      | flush                        |
//! |---------------------------------------|-------------------|------------------------------|
//! | a number of this CPU's generation     | the same          | nothing                      |
//! | none, an old one, or another CPU's    | the next number   | nothing: it is fresh         |
//! | the same, and no number is left       | number 1 of a     | all ASIDs                    |
//! |                                       | new generation    |                              |
//!
//! A vCPU that comes from another CPU must forget its ASID first ([`AsidPool`] cannot tell). A
//! *fresh* number has no entries in this CPU's TLB, since the generation began with a flush of all.
//! What a guest or the host itself wants flushed comes on top: [`flush_guest`].

use crate::features::SvmFeatures;
use crate::vmcb::TlbControl;

/// An ASID that a vCPU holds on one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asid {
    /// The generation in which it was handed out.
    pub generation: u64,
    /// The number for the VMCB; at least 1.
    pub number: u32,
}

/// The ASIDs of one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsidPool {
    generation: u64,
    next: u32,
    max: u32,
}

impl AsidPool {
    /// The first number: 0 is the host's.
    const FIRST: u32 = 1;

    /// A pool of the ASIDs 1 to `count - 1`, as CPUID Fn8000_000A_EBX counts them. The first
    /// assignment flushes all: another hypervisor may have used AMD-V before.
    pub const fn new(count: u32) -> Self {
        let max = if count > 1 { count - 1 } else { 1 };
        Self {
            generation: 0,
            next: max.saturating_add(1),
            max,
        }
    }

    /// Begins a new generation at the next assignment: the TLB may hold anything. The number of the
    /// generation goes on, so that no vCPU takes an ASID of before for one of now.
    pub fn restart(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.next = self.max.saturating_add(1);
    }

    /// The ASID to run with now, and what to flush for it.
    #[inline]
    pub fn assign(&mut self, current: Option<Asid>) -> (Asid, TlbControl) {
        match current {
            Some(asid) if asid.generation == self.generation => (asid, TlbControl::Nothing),
            _ => self.take(),
        }
    }

    /// Hands out a fresh number.
    fn take(&mut self) -> (Asid, TlbControl) {
        let mut flush = TlbControl::Nothing;
        if self.next > self.max {
            self.generation = self.generation.wrapping_add(1);
            self.next = Self::FIRST;
            flush = TlbControl::AllAsids;
        }
        let asid = Asid {
            generation: self.generation,
            number: self.next,
        };
        self.next = self.next.wrapping_add(1);
        (asid, flush)
    }
}

/// How to flush what one guest has in the TLB.
///
/// Without flush by ASID it is cheaper to drop the ASID and [`AsidPool::assign`] another, than to
/// flush every guest and the host: `None` says so.
pub fn flush_guest(host: SvmFeatures) -> Option<TlbControl> {
    host.contains(SvmFeatures::FLUSH_BY_ASID)
        .then_some(TlbControl::Asid)
}
