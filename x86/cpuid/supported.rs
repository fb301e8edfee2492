// SPDX-License-Identifier: GPL-2.0-only

//! The CPUID leaves that `KVM_GET_SUPPORTED_CPUID` offers.
//!
//! A bit is offered if the host CPU has it and a guest can use it under this hypervisor as it is,
//! or if the hypervisor supplies the feature itself. Anything that is not named here is hidden.

use super::bits::*;
use super::{function, Caps, Entry, PvFeatures};

/// Emits the list of `KVM_GET_SUPPORTED_CPUID`, in ascending order within each range.
///
/// `host` executes CPUID for (EAX, ECX). The first error of `emit` ends the list.
pub fn supported<E>(
    host: &mut impl FnMut(u32, u32) -> [u32; 4],
    caps: &Caps,
    emit: &mut impl FnMut(Entry) -> Result<(), E>,
) -> Result<(), E> {
    basic(host, caps, emit)?;
    hypervisor(caps, emit)?;
    extended(host, caps, emit)
}

/// The highest basic leaf that is described here.
const MAX_BASIC: u32 = function::XSTATE;
/// The highest extended leaf that is described here.
const MAX_EXTENDED: u32 = function::EXTENDED_FEATURES_2;
/// The highest hypervisor leaf.
const MAX_HYPERVISOR: u32 = function::PV_FEATURES;
/// The first leaf of the paravirtual interface holds this in EBX, ECX and EDX.
pub(super) const SIGNATURE: [u32; 3] = [
    u32::from_le_bytes(*b"KVMK"),
    u32::from_le_bytes(*b"VMKV"),
    u32::from_le_bytes(*b"M\0\0\0"),
];

fn basic<E>(
    host: &mut impl FnMut(u32, u32) -> [u32; 4],
    caps: &Caps,
    emit: &mut impl FnMut(Entry) -> Result<(), E>,
) -> Result<(), E> {
    let [host_max, vendor @ ..] = host(function::VENDOR, 0);
    let max = host_max.min(MAX_BASIC);
    let [ebx, ecx, edx] = vendor;
    emit(Entry::new(function::VENDOR, [max, ebx, ecx, edx]))?;

    let [signature, ebx, ecx, edx] = host(function::FEATURES, 0);
    let ebx = ebx & CLFLUSH_SIZE;
    let ecx = leaf_1_ecx(ecx, caps);
    let edx = leaf_1_edx(edx);
    emit(Entry::new(function::FEATURES, [signature, ebx, ecx, edx]))?;

    if max >= function::POWER {
        let arat = Leaf6Eax::ARAT.bits();
        emit(Entry::new(function::POWER, [arat, 0, 0, 0]))?;
    }
    if max >= function::STRUCTURED_FEATURES {
        leaf_7(host, caps, emit)?;
    }
    if max >= function::TOPOLOGY {
        // Only the VMM knows the topology. All zeros say that there is nothing to know.
        emit(Entry::indexed(function::TOPOLOGY, 0, [0; 4]))?;
    }
    if max >= function::XSTATE && caps.has_xsave() {
        leaf_d(host, caps, emit)?;
    }
    Ok(())
}

/// In leaf 1, EBX: the size that CLFLUSH works on. The rest is about one CPU of the host.
const CLFLUSH_SIZE: u32 = 0xff << 8;

fn leaf_1_ecx(host: u32, caps: &Caps) -> u32 {
    let mut native = Leaf1Ecx::SSE3
        | Leaf1Ecx::PCLMULQDQ
        | Leaf1Ecx::SSSE3
        | Leaf1Ecx::CMPXCHG16B
        | Leaf1Ecx::PCID
        | Leaf1Ecx::SSE41
        | Leaf1Ecx::SSE42
        | Leaf1Ecx::MOVBE
        | Leaf1Ecx::POPCNT
        | Leaf1Ecx::AES
        | Leaf1Ecx::RDRAND;
    native.set(Leaf1Ecx::XSAVE, caps.has_xsave());
    native.set(
        Leaf1Ecx::AVX | Leaf1Ecx::FMA | Leaf1Ecx::F16C,
        caps.has_avx(),
    );
    let mut supplied = Leaf1Ecx::HYPERVISOR;
    supplied.set(Leaf1Ecx::X2APIC, caps.x2apic);
    supplied.set(Leaf1Ecx::TSC_DEADLINE, caps.tsc_deadline);
    (host & native.bits()) | supplied.bits()
}

fn leaf_1_edx(host: u32) -> u32 {
    let native = Leaf1Edx::FPU
        | Leaf1Edx::VME
        | Leaf1Edx::DE
        | Leaf1Edx::PSE
        | Leaf1Edx::TSC
        | Leaf1Edx::MSR
        | Leaf1Edx::PAE
        | Leaf1Edx::MCE
        | Leaf1Edx::CMPXCHG8B
        | Leaf1Edx::APIC
        | Leaf1Edx::SEP
        | Leaf1Edx::MTRR
        | Leaf1Edx::PGE
        | Leaf1Edx::MCA
        | Leaf1Edx::CMOV
        | Leaf1Edx::PAT
        | Leaf1Edx::PSE36
        | Leaf1Edx::CLFLUSH
        | Leaf1Edx::MMX
        | Leaf1Edx::FXSR
        | Leaf1Edx::SSE
        | Leaf1Edx::SSE2;
    host & native.bits()
}

fn leaf_7<E>(
    host: &mut impl FnMut(u32, u32) -> [u32; 4],
    caps: &Caps,
    emit: &mut impl FnMut(Entry) -> Result<(), E>,
) -> Result<(), E> {
    let leaf = function::STRUCTURED_FEATURES;
    let [subleaves, ebx, ecx, edx] = host(leaf, 0);
    let max = subleaves.min(1);
    let edx = edx & Leaf7Edx::FSRM.bits();
    let answer = [max, leaf_7_ebx(ebx, caps), leaf_7_ecx(ecx, caps), edx];
    emit(Entry::indexed(leaf, 0, answer))?;
    if max >= 1 {
        let mut native = Leaf7Sub1Eax::FZRM | Leaf7Sub1Eax::FSRS | Leaf7Sub1Eax::FSRC;
        native.set(Leaf7Sub1Eax::AVX_VNNI, caps.has_avx());
        native.set(Leaf7Sub1Eax::AVX512_BF16, caps.has_avx512());
        let [eax, ..] = host(leaf, 1);
        emit(Entry::indexed(leaf, 1, [eax & native.bits(), 0, 0, 0]))?;
    }
    Ok(())
}

fn leaf_7_ebx(host: u32, caps: &Caps) -> u32 {
    // BMI is encoded with VEX, but works on general-purpose registers and does not need XSAVE.
    let mut native = Leaf7Ebx::FSGSBASE
        | Leaf7Ebx::BMI1
        | Leaf7Ebx::FDP_EXCEPTION_ONLY
        | Leaf7Ebx::SMEP
        | Leaf7Ebx::BMI2
        | Leaf7Ebx::ERMS
        | Leaf7Ebx::INVPCID
        | Leaf7Ebx::ZERO_FCS_FDS
        | Leaf7Ebx::RDSEED
        | Leaf7Ebx::ADX
        | Leaf7Ebx::SMAP
        | Leaf7Ebx::CLFLUSHOPT
        | Leaf7Ebx::CLWB
        | Leaf7Ebx::SHA;
    native.set(Leaf7Ebx::AVX2, caps.has_avx());
    let avx512 = Leaf7Ebx::AVX512F
        | Leaf7Ebx::AVX512DQ
        | Leaf7Ebx::AVX512_IFMA
        | Leaf7Ebx::AVX512CD
        | Leaf7Ebx::AVX512BW
        | Leaf7Ebx::AVX512VL;
    native.set(avx512, caps.has_avx512());
    let mut supplied = Leaf7Ebx::empty();
    supplied.set(Leaf7Ebx::TSC_ADJUST, caps.tsc_adjust);
    (host & native.bits()) | supplied.bits()
}

fn leaf_7_ecx(host: u32, caps: &Caps) -> u32 {
    let mut native =
        Leaf7Ecx::UMIP | Leaf7Ecx::GFNI | Leaf7Ecx::LA57 | Leaf7Ecx::MOVDIRI | Leaf7Ecx::MOVDIR64B;
    native.set(Leaf7Ecx::RDPID, caps.tsc_aux);
    native.set(Leaf7Ecx::PKU, caps.has_pku());
    native.set(Leaf7Ecx::VAES | Leaf7Ecx::VPCLMULQDQ, caps.has_avx());
    let avx512 = Leaf7Ecx::AVX512_VBMI
        | Leaf7Ecx::AVX512_VBMI2
        | Leaf7Ecx::AVX512_VNNI
        | Leaf7Ecx::AVX512_BITALG
        | Leaf7Ecx::AVX512_VPOPCNTDQ;
    native.set(avx512, caps.has_avx512());
    host & native.bits()
}

/// The extended registers, restricted to those that are switched (APM vol. 2, 11.5).
fn leaf_d<E>(
    host: &mut impl FnMut(u32, u32) -> [u32; 4],
    caps: &Caps,
    emit: &mut impl FnMut(Entry) -> Result<(), E>,
) -> Result<(), E> {
    let leaf = function::XSTATE;
    let [low, _, _, high] = host(leaf, 0);
    let xcr0 = caps.xcr0 & (u64::from(high) << 32 | u64::from(low));
    let mut standard = Caps::XSAVE_LEGACY_SIZE;
    let mut compacted = Caps::XSAVE_LEGACY_SIZE;
    for component in components(xcr0) {
        let [size, offset, flags, _] = host(leaf, component);
        standard = standard.max(offset.saturating_add(size));
        if flags & COMPONENT_ALIGNED != 0 {
            compacted = compacted.saturating_add(63) & !63;
        }
        compacted = compacted.saturating_add(size);
    }
    let answer = [xcr0 as u32, standard, standard, (xcr0 >> 32) as u32];
    emit(Entry::indexed(leaf, 0, answer))?;

    let mut native = LeafDSub1Eax::XSAVEOPT | LeafDSub1Eax::XSAVEC | LeafDSub1Eax::XGETBV1;
    native.set(LeafDSub1Eax::XSAVES, caps.xsaves);
    let [eax, ..] = host(leaf, 1);
    let eax = eax & native.bits();
    let has_compacted = eax & LeafDSub1Eax::XSAVEC.bits() != 0;
    let ebx = if has_compacted { compacted } else { 0 };
    emit(Entry::indexed(leaf, 1, [eax, ebx, 0, 0]))?;

    for component in components(xcr0) {
        let [size, offset, flags, _] = host(leaf, component);
        let flags = flags & COMPONENT_ALIGNED;
        emit(Entry::indexed(leaf, component, [size, offset, flags, 0]))?;
    }
    Ok(())
}

/// In the subleaf of an XSAVE component, ECX: the compacted form begins it at 64 bytes.
const COMPONENT_ALIGNED: u32 = 1 << 1;

/// The XSAVE components that have a subleaf of their own: all but x87 and SSE.
fn components(xcr0: u64) -> impl Iterator<Item = u32> {
    (2..63).filter(move |component| xcr0.wrapping_shr(*component) & 1 != 0)
}

fn hypervisor<E>(caps: &Caps, emit: &mut impl FnMut(Entry) -> Result<(), E>) -> Result<(), E> {
    let [ebx, ecx, edx] = SIGNATURE;
    emit(Entry::new(
        function::HYPERVISOR,
        [MAX_HYPERVISOR, ebx, ecx, edx],
    ))?;
    let features = caps.pv & PvFeatures::all();
    emit(Entry::new(
        function::PV_FEATURES,
        [features.bits(), 0, 0, 0],
    ))
}

fn extended<E>(
    host: &mut impl FnMut(u32, u32) -> [u32; 4],
    caps: &Caps,
    emit: &mut impl FnMut(Entry) -> Result<(), E>,
) -> Result<(), E> {
    let [host_max, ebx, ecx, edx] = host(function::EXTENDED, 0);
    // Some of the last leaf is supplied. But programs take the host's for those before it.
    let max = match host_max {
        function::CACHE_TOPOLOGY.. => MAX_EXTENDED,
        _ => host_max,
    };
    emit(Entry::new(function::EXTENDED, [max, ebx, ecx, edx]))?;
    for leaf in function::EXTENDED + 1..=max {
        let answer = if leaf <= host_max {
            host(leaf, 0)
        } else {
            [0; 4]
        };
        match leaf {
            function::CACHE_TOPOLOGY if caps.topoext => cache_topology(host, emit)?,
            _ => {
                if let Some(answer) = extended_leaf(leaf, answer, caps) {
                    emit(Entry::new(leaf, answer))?;
                }
            }
        }
    }
    Ok(())
}

/// What the guest gets of extended `leaf`; nothing for those that stay all zeros.
fn extended_leaf(leaf: u32, host: [u32; 4], caps: &Caps) -> Option<[u32; 4]> {
    let [eax, ebx, ecx, edx] = host;
    Some(match leaf {
        function::EXTENDED_FEATURES => [
            eax,
            ebx & PACKAGE_TYPE,
            ext_1_ecx(ecx, caps),
            ext_1_edx(edx, caps),
        ],
        function::BRAND_FIRST..=function::BRAND_LAST | function::L1_CACHE | function::L2_CACHE => {
            host
        }
        function::ADVANCED_POWER => {
            let mut native = Ext7Edx::empty();
            native.set(Ext7Edx::TSC_INVARIANT, caps.invariant_tsc);
            [0, 0, 0, edx & native.bits()]
        }
        function::ADDRESS_SIZES => [address_sizes(eax, caps), ext_8_ebx(ebx, caps), 0, 0],
        function::TLB_1G => [eax, ebx, 0, 0],
        function::OPTIMIZATION => [eax & OPTIMIZATION_HINTS, 0, 0, 0],
        function::CPU_TOPOLOGY if caps.topoext => [0; 4],
        function::EXTENDED_FEATURES_2 => [ext_21_eax(eax, caps), 0, ecx & TSA_IMMUNE, 0],
        _ => return None,
    })
}

/// In leaf 8000_0001, EBX: the kind of package; the rest names the host's model.
const PACKAGE_TYPE: u32 = 0xf << 28;
/// In leaf 8000_001a, EAX: FP128, MOVU, FP256.
const OPTIMIZATION_HINTS: u32 = 0b111;
/// In leaf 8000_0021, ECX: `TSA_SQ_NO` and `TSA_L1_NO`, two vulnerabilities that it does not have.
const TSA_IMMUNE: u32 = 0b110;

fn ext_1_ecx(host: u32, caps: &Caps) -> u32 {
    let mut native = Ext1Ecx::LAHF_LM
        | Ext1Ecx::CMP_LEGACY
        | Ext1Ecx::CR8_LEGACY
        | Ext1Ecx::ABM
        | Ext1Ecx::SSE4A
        | Ext1Ecx::MISALIGN_SSE
        | Ext1Ecx::PREFETCHW
        | Ext1Ecx::OSVW
        | Ext1Ecx::PERFCTR_CORE;
    native.set(Ext1Ecx::TOPOEXT, caps.topoext);
    let wide = Ext1Ecx::XOP | Ext1Ecx::FMA4 | Ext1Ecx::TBM;
    native.set(wide, caps.has_avx());
    host & native.bits()
}

fn ext_1_edx(host: u32, caps: &Caps) -> u32 {
    let mut native = Ext1Edx::SYSCALL
        | Ext1Edx::NX
        | Ext1Edx::MMX_EXT
        | Ext1Edx::FFXSR
        | Ext1Edx::GBPAGES
        | Ext1Edx::LM
        | Ext1Edx::NOW3D_EXT
        | Ext1Edx::NOW3D;
    native.set(Ext1Edx::RDTSCP, caps.tsc_aux);
    (host & native.bits()) | (host & leaf_1_edx(SHARED_WITH_LEAF_1))
}

/// The bits of leaf 1, EDX, that leaf 8000_0001, EDX, repeats.
const SHARED_WITH_LEAF_1: u32 = 0x3ff | 0x3f << 12 | 0b11 << 23;

/// In leaf 8000_0008, EAX: physical bits, linear bits, and the physical bits that can be reached.
fn address_sizes(host: u32, caps: &Caps) -> u32 {
    let physical = host & 0xff;
    let linear = host >> 8 & 0xff;
    let reachable = match caps.max_gpa_bits {
        0 => physical,
        limit => physical.min(u32::from(limit)),
    };
    physical | linear << 8 | reachable << 16
}

fn ext_8_ebx(host: u32, caps: &Caps) -> u32 {
    let mut native = Ext8Ebx::CLZERO | Ext8Ebx::WBNOINVD | Ext8Ebx::NO_EFER_LMSLE | Ext8Ebx::SSB_NO;
    native.set(Ext8Ebx::XSAVE_ERROR_POINTERS, caps.has_xsave());
    native.set(Ext8Ebx::IBPB | Ext8Ebx::IBPB_FLUSHES_RETURNS, caps.ibpb);
    let controlled = Ext8Ebx::IBRS
        | Ext8Ebx::STIBP
        | Ext8Ebx::STIBP_ALWAYS_ON
        | Ext8Ebx::IBRS_SAME_MODE
        | Ext8Ebx::SSBD
        | Ext8Ebx::PSFD;
    native.set(controlled, caps.spec_ctrl);
    host & native.bits()
}

fn ext_21_eax(host: u32, caps: &Caps) -> u32 {
    let native = Ext21Eax::NO_NESTED_DATA_BP
        | Ext21Eax::FSGS_BASE_WRMSR_NOT_SERIALIZING
        | Ext21Eax::LFENCE_SERIALIZING
        | Ext21Eax::VERW_CLEARS_BUFFERS
        | Ext21Eax::NULL_SELECTOR_CLEARS_BASE
        | Ext21Eax::FSRS
        | Ext21Eax::FSRC
        | Ext21Eax::AUTOMATIC_IBRS
        | Ext21Eax::IBPB_FLUSHES_TYPES
        | Ext21Eax::SRSO_NO
        | Ext21Eax::SRSO_USER_KERNEL_NO;
    // There is no SMM in a guest, so there is no SMM_CTL either.
    let supplied = Ext21Eax::NO_SMM_CTL_MSR | Ext21Eax::CPUID_USER_DISABLE;
    ((host | caps.host_knows) & native.bits()) | supplied.bits()
}

/// The host's caches, one subleaf each; the one of type 0 ends the list.
fn cache_topology<E>(
    host: &mut impl FnMut(u32, u32) -> [u32; 4],
    emit: &mut impl FnMut(Entry) -> Result<(), E>,
) -> Result<(), E> {
    for index in 0..MAX_CACHES {
        let answer = host(function::CACHE_TOPOLOGY, index);
        let [eax, ..] = answer;
        emit(Entry::indexed(function::CACHE_TOPOLOGY, index, answer))?;
        if eax & CACHE_TYPE == 0 {
            break;
        }
    }
    Ok(())
}

/// In leaf 8000_001d, EAX: what kind of cache it is; 0 for none.
const CACHE_TYPE: u32 = 0x1f;
/// More caches than any CPU has.
const MAX_CACHES: u32 = 8;
