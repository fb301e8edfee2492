// SPDX-License-Identifier: GPL-2.0-only

//! The feature bits of CPUID, by leaf and register (APM vol. 3, appendix D and E).

#![allow(missing_docs, reason = "the names of features are the manual's")]

use bitflags::bitflags;

/// Leaf 1, ECX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf1Ecx(u32);

bitflags! {
    impl Leaf1Ecx: u32 {
        const SSE3 = 1 << 0;
        const PCLMULQDQ = 1 << 1;
        const MONITOR = 1 << 3;
        const SSSE3 = 1 << 9;
        const FMA = 1 << 12;
        const CMPXCHG16B = 1 << 13;
        const PCID = 1 << 17;
        const SSE41 = 1 << 19;
        const SSE42 = 1 << 20;
        const X2APIC = 1 << 21;
        const MOVBE = 1 << 22;
        const POPCNT = 1 << 23;
        const TSC_DEADLINE = 1 << 24;
        const AES = 1 << 25;
        const XSAVE = 1 << 26;
        const OSXSAVE = 1 << 27;
        const AVX = 1 << 28;
        const F16C = 1 << 29;
        const RDRAND = 1 << 30;
        const HYPERVISOR = 1 << 31;
        const _ = !0;
    }
}

/// Leaf 1, EDX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf1Edx(u32);

bitflags! {
    impl Leaf1Edx: u32 {
        const FPU = 1 << 0;
        const VME = 1 << 1;
        const DE = 1 << 2;
        const PSE = 1 << 3;
        const TSC = 1 << 4;
        const MSR = 1 << 5;
        const PAE = 1 << 6;
        const MCE = 1 << 7;
        const CMPXCHG8B = 1 << 8;
        const APIC = 1 << 9;
        const SEP = 1 << 11;
        const MTRR = 1 << 12;
        const PGE = 1 << 13;
        const MCA = 1 << 14;
        const CMOV = 1 << 15;
        const PAT = 1 << 16;
        const PSE36 = 1 << 17;
        const CLFLUSH = 1 << 19;
        const MMX = 1 << 23;
        const FXSR = 1 << 24;
        const SSE = 1 << 25;
        const SSE2 = 1 << 26;
        const _ = !0;
    }
}

/// Leaf 6, EAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf6Eax(u32);

bitflags! {
    impl Leaf6Eax: u32 {
        /// The timer of the local APIC never stops.
        const ARAT = 1 << 2;
        const _ = !0;
    }
}

/// Leaf 7, subleaf 0, EBX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf7Ebx(u32);

bitflags! {
    impl Leaf7Ebx: u32 {
        const FSGSBASE = 1 << 0;
        const TSC_ADJUST = 1 << 1;
        const BMI1 = 1 << 3;
        const AVX2 = 1 << 5;
        const FDP_EXCEPTION_ONLY = 1 << 6;
        const SMEP = 1 << 7;
        const BMI2 = 1 << 8;
        const ERMS = 1 << 9;
        const INVPCID = 1 << 10;
        const ZERO_FCS_FDS = 1 << 13;
        const AVX512F = 1 << 16;
        const AVX512DQ = 1 << 17;
        const RDSEED = 1 << 18;
        const ADX = 1 << 19;
        const SMAP = 1 << 20;
        const AVX512_IFMA = 1 << 21;
        const CLFLUSHOPT = 1 << 23;
        const CLWB = 1 << 24;
        const AVX512CD = 1 << 28;
        const SHA = 1 << 29;
        const AVX512BW = 1 << 30;
        const AVX512VL = 1 << 31;
        const _ = !0;
    }
}

/// Leaf 7, subleaf 0, ECX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf7Ecx(u32);

bitflags! {
    impl Leaf7Ecx: u32 {
        const AVX512_VBMI = 1 << 1;
        const UMIP = 1 << 2;
        const PKU = 1 << 3;
        const OSPKE = 1 << 4;
        const AVX512_VBMI2 = 1 << 6;
        const CET_SS = 1 << 7;
        const GFNI = 1 << 8;
        const VAES = 1 << 9;
        const VPCLMULQDQ = 1 << 10;
        const AVX512_VNNI = 1 << 11;
        const AVX512_BITALG = 1 << 12;
        const AVX512_VPOPCNTDQ = 1 << 14;
        const LA57 = 1 << 16;
        const RDPID = 1 << 22;
        const MOVDIRI = 1 << 27;
        const MOVDIR64B = 1 << 28;
        const _ = !0;
    }
}

/// Leaf 7, subleaf 0, EDX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf7Edx(u32);

bitflags! {
    impl Leaf7Edx: u32 {
        const FSRM = 1 << 4;
        const _ = !0;
    }
}

/// Leaf 7, subleaf 1, EAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf7Sub1Eax(u32);

bitflags! {
    impl Leaf7Sub1Eax: u32 {
        const AVX_VNNI = 1 << 4;
        const AVX512_BF16 = 1 << 5;
        const FZRM = 1 << 10;
        const FSRS = 1 << 11;
        const FSRC = 1 << 12;
        const _ = !0;
    }
}

/// Leaf d, subleaf 1, EAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafDSub1Eax(u32);

bitflags! {
    impl LeafDSub1Eax: u32 {
        const XSAVEOPT = 1 << 0;
        const XSAVEC = 1 << 1;
        const XGETBV1 = 1 << 2;
        const XSAVES = 1 << 3;
        const _ = !0;
    }
}

/// Leaf 8000_0001, ECX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ext1Ecx(u32);

bitflags! {
    impl Ext1Ecx: u32 {
        const LAHF_LM = 1 << 0;
        const CMP_LEGACY = 1 << 1;
        const SVM = 1 << 2;
        const CR8_LEGACY = 1 << 4;
        const ABM = 1 << 5;
        const SSE4A = 1 << 6;
        const MISALIGN_SSE = 1 << 7;
        const PREFETCHW = 1 << 8;
        const OSVW = 1 << 9;
        const XOP = 1 << 11;
        const FMA4 = 1 << 16;
        const TCE = 1 << 17;
        const TBM = 1 << 21;
        const TOPOEXT = 1 << 22;
        const PERFCTR_CORE = 1 << 23;
        const _ = !0;
    }
}

/// Leaf 8000_0001, EDX. Bits 0-9, 12-17, 23 and 24 are those of leaf 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ext1Edx(u32);

bitflags! {
    impl Ext1Edx: u32 {
        const APIC = 1 << 9;
        const SYSCALL = 1 << 11;
        const NX = 1 << 20;
        const MMX_EXT = 1 << 22;
        const FFXSR = 1 << 25;
        const GBPAGES = 1 << 26;
        const RDTSCP = 1 << 27;
        const LM = 1 << 29;
        const NOW3D_EXT = 1 << 30;
        const NOW3D = 1 << 31;
        const _ = !0;
    }
}

/// Leaf 8000_0007, EDX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ext7Edx(u32);

bitflags! {
    impl Ext7Edx: u32 {
        const TSC_INVARIANT = 1 << 8;
        const _ = !0;
    }
}

/// Leaf 8000_0008, EBX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ext8Ebx(u32);

bitflags! {
    impl Ext8Ebx: u32 {
        const CLZERO = 1 << 0;
        const XSAVE_ERROR_POINTERS = 1 << 2;
        const WBNOINVD = 1 << 9;
        const IBPB = 1 << 12;
        const IBRS = 1 << 14;
        const STIBP = 1 << 15;
        const STIBP_ALWAYS_ON = 1 << 17;
        const IBRS_SAME_MODE = 1 << 19;
        const NO_EFER_LMSLE = 1 << 20;
        const SSBD = 1 << 24;
        const SSB_NO = 1 << 26;
        const PSFD = 1 << 28;
        const IBPB_FLUSHES_RETURNS = 1 << 30;
        const _ = !0;
    }
}

/// Leaf 8000_0021, EAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ext21Eax(u32);

bitflags! {
    impl Ext21Eax: u32 {
        const NO_NESTED_DATA_BP = 1 << 0;
        const FSGS_BASE_WRMSR_NOT_SERIALIZING = 1 << 1;
        const LFENCE_SERIALIZING = 1 << 2;
        const VERW_CLEARS_BUFFERS = 1 << 5;
        const NULL_SELECTOR_CLEARS_BASE = 1 << 6;
        const AUTOMATIC_IBRS = 1 << 8;
        const NO_SMM_CTL_MSR = 1 << 9;
        const FSRS = 1 << 10;
        const FSRC = 1 << 11;
        const CPUID_USER_DISABLE = 1 << 17;
        const IBPB_FLUSHES_TYPES = 1 << 28;
        const SRSO_NO = 1 << 29;
        const SRSO_USER_KERNEL_NO = 1 << 30;
        const _ = !0;
    }
}
