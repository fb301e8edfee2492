// SPDX-License-Identifier: GPL-2.0-only

//! The CPUID leaves that `KVM_GET_SUPPORTED_CPUID` offers.
//!
//! A bit is offered if the host CPU has it and a guest can use it under this hypervisor as it is,
//! or if the hypervisor supplies the feature itself: [`super::bits`] says which. What is not named
//! there is hidden.

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
    hypervisor(emit)?;
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
    let ecx = Leaf1Ecx::offered(ecx, caps);
    let edx = Leaf1Edx::offered(edx, caps);
    emit(Entry::new(function::FEATURES, [signature, ebx, ecx, edx]))?;

    if max >= function::POWER {
        let eax = Leaf6Eax::offered(0, caps);
        emit(Entry::new(function::POWER, [eax, 0, 0, 0]))?;
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

fn leaf_7<E>(
    host: &mut impl FnMut(u32, u32) -> [u32; 4],
    caps: &Caps,
    emit: &mut impl FnMut(Entry) -> Result<(), E>,
) -> Result<(), E> {
    let leaf = function::STRUCTURED_FEATURES;
    let [subleaves, ebx, ecx, edx] = host(leaf, 0);
    let max = subleaves.min(1);
    let answer = [
        max,
        Leaf7Ebx::offered(ebx, caps),
        Leaf7Ecx::offered(ecx, caps),
        Leaf7Edx::offered(edx, caps),
    ];
    emit(Entry::indexed(leaf, 0, answer))?;
    if max >= 1 {
        let [eax, ..] = host(leaf, 1);
        let eax = Leaf7Sub1Eax::offered(eax, caps);
        emit(Entry::indexed(leaf, 1, [eax, 0, 0, 0]))?;
    }
    Ok(())
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

    let [eax, ..] = host(leaf, 1);
    let eax = LeafDSub1Eax::offered(eax, caps);
    let has_compacted = eax & LeafDSub1Eax::XSAVEC != 0;
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

/// All of it on every host: whether the clock is the same on all vCPUs, its record says.
fn hypervisor<E>(emit: &mut impl FnMut(Entry) -> Result<(), E>) -> Result<(), E> {
    let [ebx, ecx, edx] = SIGNATURE;
    emit(Entry::new(
        function::HYPERVISOR,
        [MAX_HYPERVISOR, ebx, ecx, edx],
    ))?;
    let features = PvFeatures::all().bits();
    emit(Entry::new(function::PV_FEATURES, [features, 0, 0, 0]))
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
            Ext1Ecx::offered(ecx, caps),
            ext_1_edx(edx, caps),
        ],
        function::BRAND_FIRST..=function::BRAND_LAST | function::L1_CACHE | function::L2_CACHE => {
            host
        }
        function::ADVANCED_POWER => [0, 0, 0, Ext7Edx::offered(edx, caps)],
        function::ADDRESS_SIZES => [address_sizes(eax, caps), Ext8Ebx::offered(ebx, caps), 0, 0],
        function::SVM => match caps.svm {
            Some(features) => [SVM_REVISION, SVM_ASIDS, 0, features],
            None => return None,
        },
        function::TLB_1G => [eax, ebx, 0, 0],
        function::OPTIMIZATION => [eax & OPTIMIZATION_HINTS, 0, 0, 0],
        function::CPU_TOPOLOGY if caps.topoext => [0; 4],
        function::EXTENDED_FEATURES_2 => {
            let eax = Ext21Eax::offered(eax | caps.host_knows, caps);
            [eax, 0, ecx & TSA_IMMUNE, 0]
        }
        _ => return None,
    })
}

/// In leaf 8000_0001, EBX: the kind of package; the rest names the host's model.
const PACKAGE_TYPE: u32 = 0xf << 28;
/// In leaf 8000_000a, EAX: the version of AMD-V, of which there is one.
const SVM_REVISION: u32 = 1;
/// In leaf 8000_000a, EBX: how many ASIDs there are. They are names only.
const SVM_ASIDS: u32 = 64;
/// In leaf 8000_001a, EAX: FP128, MOVU, FP256.
const OPTIMIZATION_HINTS: u32 = 0b111;
/// In leaf 8000_0021, ECX: `TSA_SQ_NO` and `TSA_L1_NO`, two vulnerabilities that it does not have.
const TSA_IMMUNE: u32 = 0b110;

fn ext_1_edx(host: u32, caps: &Caps) -> u32 {
    let shared = Leaf1Edx::offered(SHARED_WITH_LEAF_1, caps);
    Ext1Edx::offered(host, caps) | (host & shared)
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
