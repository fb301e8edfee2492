// SPDX-License-Identifier: GPL-2.0-only

//! What the guest's CPUID offers, in the form in which other rules ask for it.

#![allow(missing_docs, reason = "the names of features are the manual's")]

use bitflags::bitflags;

use crate::cpuid::Entry;

bitflags! {
    /// A feature of the guest's CPUID that decides about the validity of something.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Feature: u64 {
        const VME = 1 << 0;
        const DE = 1 << 1;
        const PSE = 1 << 2;
        const TSC = 1 << 3;
        const PAE = 1 << 4;
        const MCE = 1 << 5;
        const APIC = 1 << 6;
        const SEP = 1 << 7;
        const MTRR = 1 << 8;
        const PGE = 1 << 9;
        const MCA = 1 << 10;
        const PAT = 1 << 11;
        const FXSR = 1 << 12;
        const SSE = 1 << 13;
        const PCID = 1 << 14;
        const X2APIC = 1 << 15;
        const TSC_DEADLINE = 1 << 16;
        const XSAVE = 1 << 17;
        const FSGSBASE = 1 << 18;
        const TSC_ADJUST = 1 << 19;
        const SMEP = 1 << 20;
        const INVPCID = 1 << 21;
        const SMAP = 1 << 22;
        const UMIP = 1 << 23;
        const PKU = 1 << 24;
        const CET_SS = 1 << 25;
        const LA57 = 1 << 26;
        const RDPID = 1 << 27;
        const SYSCALL = 1 << 28;
        const NX = 1 << 29;
        const FFXSR = 1 << 30;
        const GBPAGES = 1 << 31;
        const RDTSCP = 1 << 32;
        const LM = 1 << 33;
        const SVM = 1 << 34;
        const TCE = 1 << 35;
        const MONITOR = 1 << 36;
        const PV_CLOCK = 1 << 37;
        const PV_CLOCK2 = 1 << 38;
    }
}

/// The guest's features, computed once from its CPUID list.
///
/// The default is a vCPU that was not given a list: it has none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// The features it has.
    pub set: Feature,
    /// Width of physical addresses, 32 to 52.
    pub max_phys_bits: u8,
}

impl Features {
    /// Features of a CPUID list, as `KVM_SET_CPUID2` gives it.
    pub fn new(entries: &[Entry]) -> Self {
        let _ = entries;
        todo!()
    }

    /// True if the guest has all of `feature`.
    #[inline]
    pub fn has(&self, feature: Feature) -> bool {
        self.set.contains(feature)
    }
}

impl Default for Features {
    fn default() -> Self {
        Self {
            set: Feature::empty(),
            max_phys_bits: 36,
        }
    }
}
