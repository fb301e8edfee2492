// SPDX-License-Identifier: GPL-2.0-only

//! The feature bits of CPUID, by leaf and register (APM vol. 3, appendix D and E), and who may have
//! them: the one list of both.
//!
//! | word | a guest is offered the bit |
//! |---|---|
//! | `host` | if the host's CPU has it |
//! | `ours` | in any case: the hypervisor supplies the feature itself |
//! | `hidden` | never |
//!
//! A condition behind `if` must hold, too.

#![allow(missing_docs, reason = "the names of features are the manual's")]

use super::Caps;

/// A register of a leaf: its bits as constants, and what guests are offered of it.
macro_rules! register {
    ($caps:ident; $($(#[$doc:meta])* $name:ident {
        $($(#[$bit_doc:meta])* $feature:ident = $bit:literal: $source:ident $(if $condition:expr)?;)*
    })*) => { $(
        $(#[$doc])*
        pub struct $name;

        impl $name {
            $($(#[$bit_doc])* pub const $feature: u32 = 1 << $bit;)*

            /// What a guest is offered where the host's CPU has `host`.
            #[allow(unused_mut, unused_variables, reason = "not all have both, or a condition")]
            pub(super) fn offered(host: u32, $caps: &Caps) -> u32 {
                let (mut native, mut supplied) = (0, 0);
                $(if true $(&& $condition)? {
                    register!($source native supplied |= Self::$feature);
                })*
                (host & native) | supplied
            }
        }
    )* };
    (host $native:ident $supplied:ident |= $bit:expr) => { $native |= $bit };
    (ours $native:ident $supplied:ident |= $bit:expr) => { $supplied |= $bit };
    (hidden $native:ident $supplied:ident |= $bit:expr) => {};
}

register! {
    caps;

    /// Leaf 1, ECX.
    Leaf1Ecx {
        SSE3 = 0: host;
        PCLMULQDQ = 1: host;
        MONITOR = 3: hidden;
        SSSE3 = 9: host;
        FMA = 12: host if caps.has_avx();
        CMPXCHG16B = 13: host;
        PCID = 17: host;
        SSE41 = 19: host;
        SSE42 = 20: host;
        X2APIC = 21: ours if caps.x2apic;
        MOVBE = 22: host;
        POPCNT = 23: host;
        TSC_DEADLINE = 24: ours if caps.tsc_deadline;
        AES = 25: host;
        XSAVE = 26: host if caps.has_xsave();
        OSXSAVE = 27: hidden;
        AVX = 28: host if caps.has_avx();
        F16C = 29: host if caps.has_avx();
        RDRAND = 30: host;
        HYPERVISOR = 31: ours;
    }

    /// Leaf 1, EDX.
    Leaf1Edx {
        FPU = 0: host;
        VME = 1: host;
        DE = 2: host;
        PSE = 3: host;
        TSC = 4: host;
        MSR = 5: host;
        PAE = 6: host;
        MCE = 7: host;
        CMPXCHG8B = 8: host;
        APIC = 9: host;
        SEP = 11: host;
        MTRR = 12: host;
        PGE = 13: host;
        MCA = 14: host;
        CMOV = 15: host;
        PAT = 16: host;
        PSE36 = 17: host;
        CLFLUSH = 19: host;
        MMX = 23: host;
        FXSR = 24: host;
        SSE = 25: host;
        SSE2 = 26: host;
    }

    /// Leaf 6, EAX.
    Leaf6Eax {
        /// The timer of the local APIC never stops.
        ARAT = 2: ours;
    }

    /// Leaf 7, subleaf 0, EBX.
    Leaf7Ebx {
        FSGSBASE = 0: host;
        TSC_ADJUST = 1: ours if caps.tsc_adjust;
        BMI1 = 3: host;
        AVX2 = 5: host if caps.has_avx();
        FDP_EXCEPTION_ONLY = 6: host;
        SMEP = 7: host;
        BMI2 = 8: host;
        ERMS = 9: host;
        INVPCID = 10: host;
        ZERO_FCS_FDS = 13: host;
        AVX512F = 16: host if caps.has_avx512();
        AVX512DQ = 17: host if caps.has_avx512();
        RDSEED = 18: host;
        ADX = 19: host;
        SMAP = 20: host;
        AVX512_IFMA = 21: host if caps.has_avx512();
        CLFLUSHOPT = 23: host;
        CLWB = 24: host;
        AVX512CD = 28: host if caps.has_avx512();
        SHA = 29: host;
        AVX512BW = 30: host if caps.has_avx512();
        AVX512VL = 31: host if caps.has_avx512();
    }

    /// Leaf 7, subleaf 0, ECX.
    Leaf7Ecx {
        AVX512_VBMI = 1: host if caps.has_avx512();
        UMIP = 2: host;
        PKU = 3: host if caps.has_pku();
        OSPKE = 4: hidden;
        AVX512_VBMI2 = 6: host if caps.has_avx512();
        CET_SS = 7: hidden;
        GFNI = 8: host;
        VAES = 9: host if caps.has_avx();
        VPCLMULQDQ = 10: host if caps.has_avx();
        AVX512_VNNI = 11: host if caps.has_avx512();
        AVX512_BITALG = 12: host if caps.has_avx512();
        AVX512_VPOPCNTDQ = 14: host if caps.has_avx512();
        LA57 = 16: host;
        RDPID = 22: host if caps.tsc_aux;
        MOVDIRI = 27: host;
        MOVDIR64B = 28: host;
    }

    /// Leaf 7, subleaf 0, EDX.
    Leaf7Edx {
        FSRM = 4: host;
        AVX512_VP2INTERSECT = 8: host if caps.has_avx512();
    }

    /// Leaf 7, subleaf 1, EAX.
    Leaf7Sub1Eax {
        AVX_VNNI = 4: host if caps.has_avx();
        AVX512_BF16 = 5: host if caps.has_avx512();
        FZRM = 10: host;
        FSRS = 11: host;
        FSRC = 12: host;
    }

    /// Leaf d, subleaf 1, EAX.
    LeafDSub1Eax {
        XSAVEOPT = 0: host;
        XSAVEC = 1: host;
        XGETBV1 = 2: host;
        XSAVES = 3: host if caps.xsaves;
    }

    /// Leaf 8000_0001, ECX.
    Ext1Ecx {
        LAHF_LM = 0: host;
        CMP_LEGACY = 1: host;
        /// AMD-V; what it can do is in leaf 8000_000a.
        SVM = 2: host if caps.svm.is_some();
        CR8_LEGACY = 4: host;
        ABM = 5: host;
        SSE4A = 6: host;
        MISALIGN_SSE = 7: host;
        PREFETCHW = 8: host;
        OSVW = 9: host;
        XOP = 11: host if caps.has_avx();
        FMA4 = 16: host if caps.has_avx();
        TCE = 17: hidden;
        TBM = 21: host if caps.has_avx();
        TOPOEXT = 22: host if caps.topoext;
        PERFCTR_CORE = 23: host;
    }

    /// Leaf 8000_0001, EDX. Bits 0-9, 12-17, 23 and 24 are those of leaf 1.
    Ext1Edx {
        APIC = 9: hidden;
        SYSCALL = 11: host;
        NX = 20: host;
        MMX_EXT = 22: host;
        FFXSR = 25: host;
        GBPAGES = 26: host;
        RDTSCP = 27: host if caps.tsc_aux;
        LM = 29: host;
        NOW3D_EXT = 30: host;
        NOW3D = 31: host;
    }

    /// Leaf 8000_0007, EDX.
    Ext7Edx {
        TSC_INVARIANT = 8: host if caps.invariant_tsc;
    }

    /// Leaf 8000_0008, EBX.
    Ext8Ebx {
        CLZERO = 0: host;
        XSAVE_ERROR_POINTERS = 2: host if caps.has_xsave();
        WBNOINVD = 9: host;
        IBPB = 12: host if caps.ibpb;
        IBRS = 14: host if caps.spec_ctrl;
        STIBP = 15: host if caps.spec_ctrl;
        STIBP_ALWAYS_ON = 17: host if caps.spec_ctrl;
        IBRS_SAME_MODE = 19: host if caps.spec_ctrl;
        NO_EFER_LMSLE = 20: host;
        SSBD = 24: host if caps.spec_ctrl;
        SSB_NO = 26: host;
        PSFD = 28: host if caps.spec_ctrl;
        IBPB_FLUSHES_RETURNS = 30: host if caps.ibpb;
    }

    /// Leaf 8000_0021, EAX.
    Ext21Eax {
        NO_NESTED_DATA_BP = 0: host;
        FSGS_BASE_WRMSR_NOT_SERIALIZING = 1: host;
        LFENCE_SERIALIZING = 2: host;
        VERW_CLEARS_BUFFERS = 5: host;
        NULL_SELECTOR_CLEARS_BASE = 6: host;
        AUTOMATIC_IBRS = 8: host;
        NO_SMM_CTL_MSR = 9: ours;
        FSRS = 10: host;
        FSRC = 11: host;
        CPUID_USER_DISABLE = 17: ours;
        PREFETCHI = 20: host;
        /// PRED_CMD has a second command, which flushes less.
        SBPB = 27: host if caps.ibpb;
        IBPB_FLUSHES_TYPES = 28: host;
        SRSO_NO = 29: host;
        SRSO_USER_KERNEL_NO = 30: host;
    }
}
