// SPDX-License-Identifier: GPL-2.0-only

//! What the guest's CPUID offers, in the form in which other rules ask for it.

#![allow(missing_docs, reason = "the names of features are the manual's")]

use bitflags::bitflags;

use crate::cpuid::bits::*;
use crate::cpuid::{self, function, Caps, Entry, PvFeatures};
use crate::regs::{Cr4, Efer};

/// The features, each with the bit of CPUID that says so: the one list of them.
macro_rules! features {
    (paravirtual { $($pv:ident = $pv_bit:ident)* }
     $($leaf:ident $(/ $subleaf:literal)?: $register:ident $bits:ident { $($feature:ident)* })*) => {
        /// Their numbers.
        #[allow(
            non_camel_case_types,
            clippy::upper_case_acronyms,
            reason = "the names are the constants'"
        )]
        enum Number { $($($feature,)*)* $($pv,)* }

        /// A feature of the guest's CPUID that decides about the validity of something.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Feature(u64);

        bitflags! {
            impl Feature: u64 {
                $($(const $feature = 1 << Number::$feature as u32;)*)*
                $(const $pv = 1 << Number::$pv as u32;)*
            }
        }

        /// What one entry says.
        fn of_entry(entry: &Entry) -> Feature {
            let mut set = Feature::empty();
            $(if entry.function == function::$leaf $(&& entry.answers(entry.function, $subleaf))? {
                $(set.set(Feature::$feature, entry.$register & $bits::$feature != 0);)*
            })*
            set
        }

        /// What the leaf of paravirtual features says.
        fn of_pv(eax: u32) -> Feature {
            let mut set = Feature::empty();
            $(set.set(Feature::$pv, eax & PvFeatures::$pv_bit.bits() != 0);)*
            set
        }
    };
}

features! {
    paravirtual {
        PV_CLOCK = CLOCKSOURCE
        PV_CLOCK2 = CLOCKSOURCE2
        PV_UNHALT = UNHALT
        PV_SEND_IPI = SEND_IPI
        PV_STEAL_TIME = STEAL_TIME
        PV_SCHED_YIELD = SCHED_YIELD
        PV_EOI = EOI
        PV_ASYNC_PF = ASYNC_PF
        PV_ASYNC_PF_VMEXIT = ASYNC_PF_VMEXIT
        PV_ASYNC_PF_INT = ASYNC_PF_INT
        PV_POLL_CONTROL = POLL_CONTROL
    }
    FEATURES: edx Leaf1Edx { MTRR MCE PAT APIC SEP FXSR SSE2 }
    FEATURES: ecx Leaf1Ecx {
        PCID X2APIC TSC_DEADLINE XSAVE AVX MOVBE POPCNT SSE3 SSE41 SSE42
    }
    STRUCTURED_FEATURES / 0: ebx Leaf7Ebx {
        FSGSBASE TSC_ADJUST SMEP INVPCID SMAP AVX2 BMI1 BMI2 ADX
    }
    STRUCTURED_FEATURES / 0: ecx Leaf7Ecx { UMIP PKU CET_SS LA57 RDPID }
    XSTATE / 1: eax LeafDSub1Eax { XSAVES }
    EXTENDED_FEATURES: ecx Ext1Ecx { SVM TCE ABM SSE4A OSVW PERFCTR_CORE }
    EXTENDED_FEATURES: edx Ext1Edx { SYSCALL NX FFXSR GBPAGES RDTSCP LM }
    ADDRESS_SIZES: ebx Ext8Ebx { IBPB IBRS STIBP SSBD PSFD }
    EXTENDED_FEATURES_2: eax Ext21Eax { AUTOMATIC_IBRS CPUID_USER_DISABLE SBPB }
}

/// The guest's features, computed once from its CPUID list.
///
/// The default is a vCPU that was not given a list: it has none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// The features it has.
    pub set: Feature,
    /// The components that XCR0 may have.
    pub xcr0: u64,
    /// Width of physical addresses, 32 to 52.
    pub max_phys_bits: u8,
}

/// Width of physical addresses of a CPU that does not say.
const DEFAULT_PHYS_BITS: u8 = 36;

impl Default for Features {
    fn default() -> Self {
        Self {
            set: Feature::empty(),
            xcr0: 0,
            max_phys_bits: DEFAULT_PHYS_BITS,
        }
    }
}

impl Features {
    /// What [`cpuid::supported`] offers: no guest gets more, whatever its list says.
    pub fn offered(host: &mut impl FnMut(u32, u32) -> [u32; 4], caps: &Caps) -> Self {
        let mut features = Self::default();
        let mut add = |entry: Entry| -> Result<(), core::convert::Infallible> {
            features.add(&entry);
            if entry.function == function::PV_FEATURES {
                features.set |= of_pv(entry.eax);
            }
            Ok(())
        };
        // It cannot fail: the sink does not.
        let _ = cpuid::supported(host, caps, &mut add);
        features
    }

    /// Features of a guest's CPUID list, as far as they are `offered`.
    pub fn new(entries: &[Entry], offered: &Features) -> Self {
        let mut features = Self::default();
        for entry in entries {
            features.add(entry);
        }
        if let Some(signature) = entries.iter().find(|entry| cpuid::is_pv_signature(entry)) {
            let [eax, ..] = cpuid::lookup(entries, signature.function.wrapping_add(1), 0);
            features.set |= of_pv(eax);
        }
        features.set &= offered.set;
        features.xcr0 &= offered.xcr0;
        features
    }

    /// True if the guest has all of `feature`.
    #[inline]
    pub fn has(&self, feature: Feature) -> bool {
        self.set.contains(feature)
    }

    /// The bits that MOV CR4 may set.
    pub fn cr4(&self) -> Cr4 {
        let mut allowed = Cr4::VME
            | Cr4::PVI
            | Cr4::TSD
            | Cr4::DE
            | Cr4::PSE
            | Cr4::PAE
            | Cr4::MCE
            | Cr4::PGE
            | Cr4::PCE
            | Cr4::OSFXSR
            | Cr4::OSXMMEXCPT;
        for (feature, bit) in [
            (Feature::UMIP, Cr4::UMIP),
            (Feature::LA57, Cr4::LA57),
            (Feature::FSGSBASE, Cr4::FSGSBASE),
            (Feature::PCID, Cr4::PCIDE),
            (Feature::XSAVE, Cr4::OSXSAVE),
            (Feature::SMEP, Cr4::SMEP),
            (Feature::SMAP, Cr4::SMAP),
            (Feature::PKU, Cr4::PKE),
            (Feature::CET_SS, Cr4::CET),
        ] {
            allowed.set(bit, self.has(feature));
        }
        allowed
    }

    /// The bits that WRMSR may set in EFER.
    pub fn efer(&self) -> Efer {
        let mut allowed = Efer::empty();
        for (feature, bits) in [
            (Feature::SYSCALL, Efer::SCE),
            (Feature::LM, Efer::LME.union(Efer::LMA)),
            (Feature::NX, Efer::NXE),
            (Feature::FFXSR, Efer::FFXSR),
            (Feature::TCE, Efer::TCE),
            (Feature::SVM, Efer::SVME),
            (Feature::AUTOMATIC_IBRS, Efer::AIBRSE),
        ] {
            allowed.set(bits, self.has(feature));
        }
        allowed
    }

    /// The bits that WRMSR may set in SPEC_CTRL; without any there is no such register (APM vol. 2,
    /// 3.2.9).
    pub fn spec_ctrl(&self) -> u64 {
        let bits = [
            (Feature::IBRS, 1 << 0),
            (Feature::STIBP, 1 << 1),
            (Feature::SSBD, 1 << 2),
            (Feature::PSFD, 1 << 7),
        ];
        let there = bits.iter().filter(|(feature, _)| self.has(*feature));
        there.fold(0, |all, (_, bit)| all | bit)
    }

    /// Width of linear addresses that the CPU has, whatever CR4.LA57 says.
    #[inline]
    pub fn linear_bits(&self) -> u32 {
        if self.has(Feature::LA57) {
            57
        } else {
            48
        }
    }

    /// The bits that must be zero in a physical address.
    #[inline]
    pub fn reserved_phys(&self) -> u64 {
        !0 << self.max_phys_bits.clamp(32, 52)
    }

    /// Adds what one entry says.
    fn add(&mut self, entry: &Entry) {
        self.set |= of_entry(entry);
        if entry.answers(function::XSTATE, 0) {
            self.xcr0 = u64::from(entry.edx) << 32 | u64::from(entry.eax);
        }
        let [bits, ..] = entry.eax.to_le_bytes();
        if entry.function == function::ADDRESS_SIZES && bits != 0 {
            self.max_phys_bits = bits.clamp(32, 52);
        }
    }
}
