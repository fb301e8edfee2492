// SPDX-License-Identifier: GPL-2.0-only

//! What the guest's CPUID offers, in the form in which other rules ask for it.

#![allow(missing_docs, reason = "the names of features are the manual's")]

use bitflags::bitflags;

use crate::cpuid::bits::*;
use crate::cpuid::{self, function, Caps, Entry, PvFeatures};
use crate::regs::{Cr4, Efer};

/// A feature of the guest's CPUID that decides about the validity of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Feature(u64);

bitflags! {
    impl Feature: u64 {
        const MTRR = 1 << 0;
        const MCE = 1 << 1;
        const PAT = 1 << 2;
        const APIC = 1 << 3;
        const SEP = 1 << 4;
        const PCID = 1 << 5;
        const X2APIC = 1 << 6;
        const TSC_DEADLINE = 1 << 7;
        const XSAVE = 1 << 8;
        const FSGSBASE = 1 << 9;
        const TSC_ADJUST = 1 << 10;
        const SMEP = 1 << 11;
        const INVPCID = 1 << 12;
        const SMAP = 1 << 13;
        const UMIP = 1 << 14;
        const PKU = 1 << 15;
        const CET_SS = 1 << 16;
        const LA57 = 1 << 17;
        const RDPID = 1 << 18;
        const SYSCALL = 1 << 19;
        const NX = 1 << 20;
        const FFXSR = 1 << 21;
        const GBPAGES = 1 << 22;
        const RDTSCP = 1 << 23;
        const LM = 1 << 24;
        const SVM = 1 << 25;
        const TCE = 1 << 26;
        const PV_CLOCK = 1 << 27;
        const PV_CLOCK2 = 1 << 28;
        const XSAVES = 1 << 29;
        const PV_UNHALT = 1 << 30;
        const PV_SEND_IPI = 1 << 31;
        const PV_STEAL_TIME = 1 << 32;
        const PV_SCHED_YIELD = 1 << 33;
        const IBPB = 1 << 34;
        const IBRS = 1 << 35;
        const STIBP = 1 << 36;
        const SSBD = 1 << 37;
        const PSFD = 1 << 38;
        const AUTOMATIC_IBRS = 1 << 39;
        const PV_EOI = 1 << 40;
        const PV_ASYNC_PF = 1 << 41;
        const PV_ASYNC_PF_VMEXIT = 1 << 42;
        const PV_ASYNC_PF_INT = 1 << 43;
        const PV_POLL_CONTROL = 1 << 44;
        const OSVW = 1 << 45;
        const PERFCTR_CORE = 1 << 46;
        const CPUID_USER_DISABLE = 1 << 47;
        // Instructions that the emulator knows.
        const AVX = 1 << 48;
        const AVX2 = 1 << 49;
        const BMI1 = 1 << 50;
        const BMI2 = 1 << 51;
        const ADX = 1 << 52;
        const ABM = 1 << 53;
        const MOVBE = 1 << 54;
        const POPCNT = 1 << 55;
        const SSE42 = 1 << 56;
        const SSE2 = 1 << 57;
        const SSE3 = 1 << 58;
        const SSE41 = 1 << 59;
        const SSE4A = 1 << 60;
        const FXSR = 1 << 61;
    }
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
                features.set |= pv(entry.eax);
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
            features.set |= pv(eax);
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
        match entry.function {
            function::FEATURES => self.set |= leaf_1(entry),
            function::STRUCTURED_FEATURES if entry.answers(function::STRUCTURED_FEATURES, 0) => {
                self.set |= leaf_7(entry);
            }
            function::XSTATE if entry.answers(function::XSTATE, 0) => {
                self.xcr0 = u64::from(entry.edx) << 32 | u64::from(entry.eax);
            }
            function::XSTATE if entry.answers(function::XSTATE, 1) => {
                let eax = LeafDSub1Eax::from_bits_retain(entry.eax);
                self.set
                    .set(Feature::XSAVES, eax.contains(LeafDSub1Eax::XSAVES));
            }
            function::EXTENDED_FEATURES => self.set |= ext_1(entry),
            function::EXTENDED_FEATURES_2 => self.set |= ext_21(entry),
            function::ADDRESS_SIZES => {
                self.set |= ext_8(entry);
                let [bits, ..] = entry.eax.to_le_bytes();
                if bits != 0 {
                    self.max_phys_bits = bits.clamp(32, 52);
                }
            }
            _ => {}
        }
    }
}

fn collect<const N: usize>(found: [(bool, Feature); N]) -> Feature {
    let mut set = Feature::empty();
    for (present, feature) in found {
        set.set(feature, present);
    }
    set
}

fn leaf_1(entry: &Entry) -> Feature {
    let ecx = Leaf1Ecx::from_bits_retain(entry.ecx);
    let edx = Leaf1Edx::from_bits_retain(entry.edx);
    collect([
        (edx.contains(Leaf1Edx::MTRR), Feature::MTRR),
        (edx.contains(Leaf1Edx::MCE), Feature::MCE),
        (edx.contains(Leaf1Edx::PAT), Feature::PAT),
        (edx.contains(Leaf1Edx::APIC), Feature::APIC),
        (edx.contains(Leaf1Edx::SEP), Feature::SEP),
        (ecx.contains(Leaf1Ecx::PCID), Feature::PCID),
        (ecx.contains(Leaf1Ecx::X2APIC), Feature::X2APIC),
        (ecx.contains(Leaf1Ecx::TSC_DEADLINE), Feature::TSC_DEADLINE),
        (ecx.contains(Leaf1Ecx::XSAVE), Feature::XSAVE),
        (ecx.contains(Leaf1Ecx::AVX), Feature::AVX),
        (ecx.contains(Leaf1Ecx::MOVBE), Feature::MOVBE),
        (ecx.contains(Leaf1Ecx::POPCNT), Feature::POPCNT),
        (edx.contains(Leaf1Edx::FXSR), Feature::FXSR),
        (edx.contains(Leaf1Edx::SSE2), Feature::SSE2),
        (ecx.contains(Leaf1Ecx::SSE3), Feature::SSE3),
        (ecx.contains(Leaf1Ecx::SSE41), Feature::SSE41),
        (ecx.contains(Leaf1Ecx::SSE42), Feature::SSE42),
    ])
}

fn leaf_7(entry: &Entry) -> Feature {
    let ebx = Leaf7Ebx::from_bits_retain(entry.ebx);
    let ecx = Leaf7Ecx::from_bits_retain(entry.ecx);
    collect([
        (ebx.contains(Leaf7Ebx::FSGSBASE), Feature::FSGSBASE),
        (ebx.contains(Leaf7Ebx::TSC_ADJUST), Feature::TSC_ADJUST),
        (ebx.contains(Leaf7Ebx::SMEP), Feature::SMEP),
        (ebx.contains(Leaf7Ebx::INVPCID), Feature::INVPCID),
        (ebx.contains(Leaf7Ebx::SMAP), Feature::SMAP),
        (ecx.contains(Leaf7Ecx::UMIP), Feature::UMIP),
        (ecx.contains(Leaf7Ecx::PKU), Feature::PKU),
        (ecx.contains(Leaf7Ecx::CET_SS), Feature::CET_SS),
        (ecx.contains(Leaf7Ecx::LA57), Feature::LA57),
        (ecx.contains(Leaf7Ecx::RDPID), Feature::RDPID),
        (ebx.contains(Leaf7Ebx::AVX2), Feature::AVX2),
        (ebx.contains(Leaf7Ebx::BMI1), Feature::BMI1),
        (ebx.contains(Leaf7Ebx::BMI2), Feature::BMI2),
        (ebx.contains(Leaf7Ebx::ADX), Feature::ADX),
    ])
}

fn ext_1(entry: &Entry) -> Feature {
    let ecx = Ext1Ecx::from_bits_retain(entry.ecx);
    let edx = Ext1Edx::from_bits_retain(entry.edx);
    collect([
        (ecx.contains(Ext1Ecx::SVM), Feature::SVM),
        (ecx.contains(Ext1Ecx::TCE), Feature::TCE),
        (ecx.contains(Ext1Ecx::ABM), Feature::ABM),
        (ecx.contains(Ext1Ecx::SSE4A), Feature::SSE4A),
        (ecx.contains(Ext1Ecx::OSVW), Feature::OSVW),
        (ecx.contains(Ext1Ecx::PERFCTR_CORE), Feature::PERFCTR_CORE),
        (edx.contains(Ext1Edx::SYSCALL), Feature::SYSCALL),
        (edx.contains(Ext1Edx::NX), Feature::NX),
        (edx.contains(Ext1Edx::FFXSR), Feature::FFXSR),
        (edx.contains(Ext1Edx::GBPAGES), Feature::GBPAGES),
        (edx.contains(Ext1Edx::RDTSCP), Feature::RDTSCP),
        (edx.contains(Ext1Edx::LM), Feature::LM),
    ])
}

fn ext_8(entry: &Entry) -> Feature {
    let ebx = Ext8Ebx::from_bits_retain(entry.ebx);
    collect([
        (ebx.contains(Ext8Ebx::IBPB), Feature::IBPB),
        (ebx.contains(Ext8Ebx::IBRS), Feature::IBRS),
        (ebx.contains(Ext8Ebx::STIBP), Feature::STIBP),
        (ebx.contains(Ext8Ebx::SSBD), Feature::SSBD),
        (ebx.contains(Ext8Ebx::PSFD), Feature::PSFD),
    ])
}

fn ext_21(entry: &Entry) -> Feature {
    let eax = Ext21Eax::from_bits_retain(entry.eax);
    collect([
        (
            eax.contains(Ext21Eax::AUTOMATIC_IBRS),
            Feature::AUTOMATIC_IBRS,
        ),
        (
            eax.contains(Ext21Eax::CPUID_USER_DISABLE),
            Feature::CPUID_USER_DISABLE,
        ),
    ])
}

fn pv(eax: u32) -> Feature {
    let pv = PvFeatures::from_bits_truncate(eax);
    collect([
        (pv.contains(PvFeatures::CLOCKSOURCE), Feature::PV_CLOCK),
        (pv.contains(PvFeatures::CLOCKSOURCE2), Feature::PV_CLOCK2),
        (pv.contains(PvFeatures::UNHALT), Feature::PV_UNHALT),
        (pv.contains(PvFeatures::SEND_IPI), Feature::PV_SEND_IPI),
        (pv.contains(PvFeatures::STEAL_TIME), Feature::PV_STEAL_TIME),
        (
            pv.contains(PvFeatures::SCHED_YIELD),
            Feature::PV_SCHED_YIELD,
        ),
        (pv.contains(PvFeatures::EOI), Feature::PV_EOI),
        (pv.contains(PvFeatures::ASYNC_PF), Feature::PV_ASYNC_PF),
        (
            pv.contains(PvFeatures::ASYNC_PF_VMEXIT),
            Feature::PV_ASYNC_PF_VMEXIT,
        ),
        (
            pv.contains(PvFeatures::ASYNC_PF_INT),
            Feature::PV_ASYNC_PF_INT,
        ),
        (
            pv.contains(PvFeatures::POLL_CONTROL),
            Feature::PV_POLL_CONTROL,
        ),
    ])
}
