// SPDX-License-Identifier: GPL-2.0-only

//! What is offered on a host like an EPYC of the third generation, and what a guest sees of it.

use proptest::prelude::*;
use x86::cpuid::bits::*;
use x86::cpuid::{
    function, guest_view, is_pv_signature, lookup, refresh, supported, valid, Caps, Dynamic, Entry,
    PvFeatures,
};
use x86::features::{Feature, Features};
use x86::regs::{Cr4, Efer};

/// CPUID made up after an EPYC of family 19h, model 1: the leaves that matter, zeros elsewhere.
fn epyc(leaf: u32, subleaf: u32) -> [u32; 4] {
    let name = |text: &[u8; 16]| {
        let word = |n: usize| u32::from_le_bytes(text[4 * n..4 * n + 4].try_into().unwrap());
        [word(0), word(1), word(2), word(3)]
    };
    let [ebx, edx, ecx] = [*b"Auth", *b"enti", *b"cAMD"].map(u32::from_le_bytes);
    match (leaf, subleaf) {
        (0, _) => [0x10, ebx, ecx, edx],
        (1, _) => [0x00a0_0f11, 0x2720_0800, 0x7ffa_320b, 0x178b_fbff],
        (5, _) => [0x40, 0x40, 3, 0x11],
        (6, _) => [4, 0, 1, 0],
        (7, 0) => [0, 0x219c_97a9, 0x0040_068c, 0x10],
        (0xb, 0) => [1, 2, 0x100, 0x27],
        (0xb, 1) => [7, 0x20, 0x201, 0x27],
        (0xd, 0) => [0x207, 0x988, 0x988, 0],
        (0xd, 1) => [0xf, 0x348, 0x1800, 0],
        (0xd, 2) => [0x100, 0x240, 0, 0],
        (0xd, 9) => [8, 0x980, 0, 0],
        (0xd, 11) => [0x10, 0, 1, 0],
        (0x8000_0000, _) => [0x8000_0023, ebx, ecx, edx],
        (0x8000_0001, _) => [0x00a0_0f11, 0x4000_0000, 0x75c2_37ff, 0x2fd3_fbff],
        (0x8000_0002, _) => name(b"AMD EPYC 7313 16"),
        (0x8000_0003, _) => name(b"-Core Processor "),
        (0x8000_0004, _) => name(b"               \0"),
        (0x8000_0005, _) => [0xff40_ff40, 0xff40_ff40, 0x2008_0140, 0x2008_0140],
        (0x8000_0006, _) => [0x4800_6400, 0x6800_6400, 0x0200_6140, 0x0200_9140],
        (0x8000_0007, _) => [0, 0x3b, 0, 0x6799],
        (0x8000_0008, _) => [0x3030, 0x91be_f75f, 0x501f, 0x0001_0000],
        (0x8000_000a, _) => [1, 0x8000, 0, 0x11eb_bcff],
        (0x8000_0019, _) => [0xf040_f040, 0xf040_0000, 0, 0],
        (0x8000_001a, _) => [6, 0, 0, 0],
        (0x8000_001d, 0) => [0x4121, 0x01c0_003f, 0x3f, 0],
        (0x8000_001d, 1) => [0x4122, 0x01c0_003f, 0x3f, 0],
        (0x8000_001d, 2) => [0x4143, 0x01c0_003f, 0x3ff, 2],
        (0x8000_001d, 3) => [0x1c163, 0x03c0_003f, 0x7fff, 1],
        (0x8000_001e, _) => [0x27, 0x0113, 0x0000_0100, 0],
        (0x8000_001f, _) => [0x101_fd3f, 0x4173, 0x1fd, 1],
        (0x8000_0021, _) => [0x2d, 0, 0, 0],
        _ => [0; 4],
    }
}

fn list(host: fn(u32, u32) -> [u32; 4], caps: &Caps) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut host = host;
    supported(&mut host, caps, &mut |entry| -> Result<(), ()> {
        entries.push(entry);
        Ok(())
    })
    .unwrap();
    entries
}

/// A hypervisor that can do all but XSAVE, as the first version.
fn caps() -> Caps {
    Caps {
        x2apic: true,
        tsc_deadline: true,
        tsc_adjust: true,
        tsc_aux: true,
        invariant_tsc: true,
        xcr0: 0,
        xsaves: false,
        ibpb: false,
        spec_ctrl: false,
        host_knows: 0,
        topoext: false,
        max_gpa_bits: 48,
        svm: None,
    }
}

fn has_none<const N: usize>(register: u32, bits: [u32; N]) {
    for bit in bits {
        assert_eq!(register & bit, 0, "{bit:#x}");
    }
}

#[test]
fn leaves_and_their_order() {
    let entries = list(epyc, &caps());
    let expected: Vec<u32> = [0, 1, 6, 7, 0xb, 0x4000_0000, 0x4000_0001]
        .into_iter()
        .chain(0x8000_0000..=0x8000_0008)
        .chain([0x8000_0019, 0x8000_001a, 0x8000_0021])
        .collect();
    let found: Vec<u32> = entries.iter().map(|entry| entry.function).collect();
    assert_eq!(found, expected);
    for entry in &entries {
        let indexed = matches!(entry.function, 7 | 0xb);
        assert_eq!(entry.flags == Entry::SIGNIFICANT_INDEX, indexed);
        assert_eq!(entry.padding, [0; 3]);
    }
    // The layout and the flag of struct kvm_cpuid_entry2.
    assert_eq!(size_of::<Entry>(), 40);
    assert_eq!(Entry::SIGNIFICANT_INDEX, 1);
    assert_eq!(
        (Entry::new(5, [0; 4]).index, Entry::new(5, [0; 4]).flags),
        (0, 0)
    );
    assert!(valid(&entries));
    // Firecracker gives up if one of these is missing.
    for leaf in [
        0,
        1,
        7,
        0x8000_0000,
        0x8000_0001,
        0x8000_0005,
        0x8000_0006,
        0x8000_0008,
    ] {
        assert!(
            entries.iter().any(|entry| entry.answers(leaf, 0)),
            "{leaf:#x}"
        );
    }
    // Its way of telling the vendor.
    let [max, ebx, ecx, edx] = lookup(&entries, 0, 0);
    let vendor: Vec<u8> = [ebx, edx, ecx]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    assert_eq!(vendor, b"AuthenticAMD");
    assert_eq!(max, 0xd);
    assert_eq!(lookup(&entries, 0x8000_0000, 0)[0], 0x8000_0021);
}

#[test]
fn features_of_leaf_1() {
    let entries = list(epyc, &caps());
    let [eax, ebx, ecx, edx] = lookup(&entries, 1, 0);
    assert_eq!(eax, 0x00a0_0f11);
    assert_eq!(ebx, 0x0800, "CLFLUSH size only");
    let wanted = Leaf1Ecx::SSE3
        | Leaf1Ecx::PCLMULQDQ
        | Leaf1Ecx::SSSE3
        | Leaf1Ecx::CMPXCHG16B
        | Leaf1Ecx::PCID
        | Leaf1Ecx::SSE41
        | Leaf1Ecx::SSE42
        | Leaf1Ecx::X2APIC
        | Leaf1Ecx::MOVBE
        | Leaf1Ecx::POPCNT
        | Leaf1Ecx::TSC_DEADLINE
        | Leaf1Ecx::AES
        | Leaf1Ecx::RDRAND
        | Leaf1Ecx::HYPERVISOR;
    assert_eq!(ecx, wanted);
    // All the host has but HTT, which is for the VMM to say.
    assert_eq!(edx, 0x178b_fbff & !(1 << 28));
}

#[test]
fn features_of_leaf_7() {
    let entries = list(epyc, &caps());
    let [eax, ebx, ecx, edx] = lookup(&entries, 7, 0);
    assert_eq!(eax, 0);
    let wanted = Leaf7Ebx::FSGSBASE
        | Leaf7Ebx::TSC_ADJUST
        | Leaf7Ebx::BMI1
        | Leaf7Ebx::SMEP
        | Leaf7Ebx::BMI2
        | Leaf7Ebx::ERMS
        | Leaf7Ebx::INVPCID
        | Leaf7Ebx::RDSEED
        | Leaf7Ebx::ADX
        | Leaf7Ebx::SMAP
        | Leaf7Ebx::CLFLUSHOPT
        | Leaf7Ebx::CLWB
        | Leaf7Ebx::SHA;
    assert_eq!(ebx, wanted);
    assert_eq!(ecx, Leaf7Ecx::UMIP | Leaf7Ecx::RDPID);
    assert_eq!(edx, Leaf7Edx::FSRM);
}

#[test]
fn extended_features() {
    let entries = list(epyc, &caps());
    let [_, ebx, ecx, edx] = lookup(&entries, 0x8000_0001, 0);
    assert_eq!(ebx, 0x4000_0000);
    let wanted = Ext1Ecx::LAHF_LM
        | Ext1Ecx::CMP_LEGACY
        | Ext1Ecx::CR8_LEGACY
        | Ext1Ecx::ABM
        | Ext1Ecx::SSE4A
        | Ext1Ecx::MISALIGN_SSE
        | Ext1Ecx::PREFETCHW
        | Ext1Ecx::OSVW
        | Ext1Ecx::PERFCTR_CORE;
    assert_eq!(ecx, wanted);
    // Everything the host has: the bits of leaf 1, SYSCALL, NX, MMX extensions, fast FXSAVE,
    // 1 GiB pages, RDTSCP and long mode.
    assert_eq!(edx, 0x2fd3_fbff);
    assert_eq!(lookup(&entries, 0x8000_0007, 0), [0, 0, 0, 1 << 8]);
    // 48 physical, 48 linear, 48 that can be mapped; CLZERO, WBNOINVD, no EFER.LMSLE.
    let sizes = [0x0030_3030, 0x0010_0201, 0, 0];
    assert_eq!(lookup(&entries, 0x8000_0008, 0), sizes);
    let [eax, ebx, ecx, edx] = lookup(&entries, 0x8000_0021, 0);
    let wanted = Ext21Eax::NO_NESTED_DATA_BP
        | Ext21Eax::LFENCE_SERIALIZING
        | Ext21Eax::VERW_CLEARS_BUFFERS
        | Ext21Eax::NO_SMM_CTL_MSR
        | Ext21Eax::CPUID_USER_DISABLE;
    assert_eq!([eax, ebx, ecx, edx], [wanted, 0, 0, 0]);
}

#[test]
fn other_leaves() {
    let entries = list(epyc, &caps());
    assert_eq!(
        lookup(&entries, 6, 0),
        [4, 0, 0, 0],
        "the APIC's timer never stops"
    );
    let topology: Vec<_> = entries
        .iter()
        .filter(|entry| entry.function == 0xb)
        .collect();
    assert_eq!(topology, [&Entry::indexed(0xb, 0, [0; 4])]);
    for leaf in (0x8000_0002..=0x8000_0006).chain([0x8000_0019, 0x8000_001a]) {
        assert_eq!(lookup(&entries, leaf, 0), epyc(leaf, 0), "{leaf:#x}");
    }
    // A host with everything set: what is hidden, and what is not passed on.
    let entries = list(
        |leaf, subleaf| match leaf {
            0 | 0x8000_0000 => epyc(leaf, subleaf),
            _ => [u32::MAX; 4],
        },
        &caps(),
    );
    assert_eq!(lookup(&entries, 1, 0)[1], 0xff00);
    assert_eq!(lookup(&entries, 7, 0)[0], 1, "one more subleaf");
    assert_eq!(lookup(&entries, 7, 1), [7 << 10, 0, 0, 0]);
    assert_eq!(lookup(&entries, 0x8000_0001, 0)[1], 0xf << 28);
    assert_eq!(lookup(&entries, 0x8000_0007, 0), [0, 0, 0, 1 << 8]);
    let sizes = [0x0030_ffff, 0x0410_0201, 0, 0];
    assert_eq!(lookup(&entries, 0x8000_0008, 0), sizes);
    assert_eq!(lookup(&entries, 0x8000_0019, 0), [u32::MAX, u32::MAX, 0, 0]);
    assert_eq!(lookup(&entries, 0x8000_001a, 0), [7, 0, 0, 0]);
    assert_eq!(lookup(&entries, 0x8000_0021, 0), [0x7012_0f67, 0, 6, 0]);
}

#[test]
fn paravirtual_leaves() {
    // They need nothing of the host, not even a TSC that is the same on all CPUs.
    let entries = list(epyc, &Caps::default());
    let [max, ebx, ecx, edx] = lookup(&entries, 0x4000_0000, 0);
    let signature: Vec<u8> = [ebx, ecx, edx]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    assert_eq!(signature, b"KVMKVMKVM\0\0\0");
    assert_eq!(max, 0x4000_0001);
    assert_eq!(lookup(&entries, 0x4000_0001, 0), [0x0100_7efb, 0, 0, 0]);
    assert_eq!(
        entries
            .iter()
            .filter(|entry| is_pv_signature(entry))
            .count(),
        1
    );
}

#[test]
fn nothing_is_offered_that_needs_a_missing_capability() {
    let entries = list(epyc, &Caps::default());
    let [_, _, ecx, _] = lookup(&entries, 1, 0);
    let bits = [
        Leaf1Ecx::X2APIC,
        Leaf1Ecx::TSC_DEADLINE,
        Leaf1Ecx::MONITOR,
        Leaf1Ecx::XSAVE,
        Leaf1Ecx::OSXSAVE,
        Leaf1Ecx::AVX,
        Leaf1Ecx::FMA,
        Leaf1Ecx::F16C,
    ];
    has_none(ecx, bits);
    let [_, ebx, ecx, _] = lookup(&entries, 7, 0);
    has_none(ebx, [Leaf7Ebx::AVX2, Leaf7Ebx::TSC_ADJUST]);
    let bits = [
        Leaf7Ecx::PKU,
        Leaf7Ecx::OSPKE,
        Leaf7Ecx::CET_SS,
        Leaf7Ecx::VAES,
        Leaf7Ecx::VPCLMULQDQ,
        Leaf7Ecx::RDPID,
    ];
    has_none(ecx, bits);
    let [_, _, ecx, edx] = lookup(&entries, 0x8000_0001, 0);
    has_none(ecx, [Ext1Ecx::SVM, Ext1Ecx::TOPOEXT, 1 << 24]);
    has_none(edx, [Ext1Edx::RDTSCP]);
    assert_eq!(lookup(&entries, 0x8000_0007, 0), [0; 4]);
    for leaf in [0xd, 0x8000_000a, 0x8000_001d, 0x8000_001e, 0x8000_001f] {
        assert_eq!(lookup(&entries, leaf, 0), [0; 4]);
    }
    let [_, ebx, _, _] = lookup(&entries, 0x8000_0008, 0);
    let controls = Ext8Ebx::IBPB | Ext8Ebx::IBRS | Ext8Ebx::STIBP | Ext8Ebx::SSBD | Ext8Ebx::PSFD;
    has_none(ebx, [controls, Ext8Ebx::XSAVE_ERROR_POINTERS]);
}

#[test]
fn xsave_with_avx_and_protection_keys() {
    let all = Caps {
        xcr0: 0x207,
        ..caps()
    };
    let entries = list(epyc, &all);
    let [_, _, ecx, _] = lookup(&entries, 1, 0);
    let avx = Leaf1Ecx::XSAVE | Leaf1Ecx::AVX | Leaf1Ecx::FMA | Leaf1Ecx::F16C;
    assert_eq!(ecx & avx, avx);
    assert_eq!(ecx & Leaf1Ecx::OSXSAVE, 0);
    let [_, ebx, ecx, _] = lookup(&entries, 7, 0);
    assert_ne!(ebx & Leaf7Ebx::AVX2, 0);
    assert_ne!(ecx & Leaf7Ecx::PKU, 0);
    assert_eq!(lookup(&entries, 0xd, 0), [0x207, 0x988, 0x988, 0]);
    // XSAVES is not offered; the compacted area is the sum of its parts.
    assert_eq!(lookup(&entries, 0xd, 1), [0x7, 576 + 0x100 + 8, 0, 0]);
    assert_eq!(lookup(&entries, 0xd, 2), [0x100, 0x240, 0, 0]);
    assert_eq!(lookup(&entries, 0xd, 9), [8, 0x980, 0, 0]);
    assert_eq!(lookup(&entries, 0xd, 11), [0; 4]);
    // Without AVX, the area ends after the header.
    let sse = list(epyc, &Caps { xcr0: 3, ..caps() });
    assert_eq!(lookup(&sse, 0xd, 0), [3, 576, 576, 0]);
    assert_eq!(lookup(&sse, 1, 0)[2] & Leaf1Ecx::AVX, 0);
}

#[test]
fn each_component_of_xcr0_brings_its_features() {
    fn everything(leaf: u32, subleaf: u32) -> [u32; 4] {
        match leaf {
            0 | 0x8000_0000 => epyc(leaf, subleaf),
            _ => [u32::MAX; 4],
        }
    }
    for (xcr0, avx, avx512, pku) in [
        (0, false, false, false),
        (0b1, false, false, false),
        (0b11, false, false, false),
        (0b111, true, false, false),
        (0x47, true, false, false),
        (0xe7, true, true, false),
        (0xe3, false, false, false),
        (0x203, false, false, true),
        (0x200, false, false, false),
    ] {
        let entries = list(everything, &Caps { xcr0, ..caps() });
        let [_, ebx, ecx, _] = lookup(&entries, 7, 0);
        assert_eq!(ebx & Leaf7Ebx::AVX2 != 0, avx, "{xcr0:#x}");
        assert_eq!(ebx & Leaf7Ebx::AVX512F != 0, avx512, "{xcr0:#x}");
        assert_eq!(ecx & Leaf7Ecx::PKU != 0, pku, "{xcr0:#x}");
        let [_, _, ecx, _] = lookup(&entries, 1, 0);
        assert_eq!(ecx & Leaf1Ecx::XSAVE != 0, xcr0 & 3 == 3, "{xcr0:#x}");
    }
}

#[test]
fn cache_topology_ends_with_an_empty_subleaf() {
    let entries = list(
        epyc,
        &Caps {
            topoext: true,
            ..caps()
        },
    );
    let caches: Vec<_> = entries
        .iter()
        .filter(|entry| entry.function == 0x8000_001d)
        .collect();
    assert_eq!(caches.len(), 5);
    assert_eq!(caches[4].answer(), [0; 4]);
    assert_eq!(lookup(&entries, 0x8000_001e, 0), [0; 4]);
}

/// IBPB as soon as the hypervisor passes it on, IBRS, STIBP, SSBD and PSFD only with a SPEC_CTRL of
/// the guest's own.
#[test]
fn speculation_controls() {
    let none = Ext8Ebx::IBPB | Ext8Ebx::IBRS | Ext8Ebx::STIBP | Ext8Ebx::SSBD;
    let ebx = |caps: &Caps| {
        let entries = list(epyc, caps);
        let offered = Features::new(&entries, &Features::offered(&mut |f, i| epyc(f, i), caps));
        let [_, ebx, _, _] = lookup(&entries, 0x8000_0008, 0);
        (ebx, offered.spec_ctrl())
    };
    let (hidden, bits) = ebx(&caps());
    assert_eq!((hidden & none, bits), (0, 0));
    let ibpb = Caps {
        ibpb: true,
        ..caps()
    };
    let (some, bits) = ebx(&ibpb);
    assert_eq!((some & none, bits), (Ext8Ebx::IBPB, 0));
    let (all, bits) = ebx(&Caps {
        spec_ctrl: true,
        ..ibpb
    });
    assert_eq!((all & none, bits), (none, 0x87));
    // What the kernel knows, and CPUID does not say.
    let knows = Caps {
        host_knows: Ext21Eax::IBPB_FLUSHES_TYPES | 1 << 4,
        ..caps()
    };
    let [before, ..] = lookup(&list(epyc, &caps()), 0x8000_0021, 0);
    let [after, ..] = lookup(&list(epyc, &knows), 0x8000_0021, 0);
    assert_eq!(after, before | Ext21Eax::IBPB_FLUSHES_TYPES);
}

/// What a Zen 5 has and no emulated CPU: it needs AVX-512, and IBPB for its small sister.
#[test]
fn features_of_turin() {
    fn turin(leaf: u32, subleaf: u32) -> [u32; 4] {
        match (leaf, subleaf) {
            (7, 0) => [1, 0xf1bf_97a9, 0x1840_5fce, 0x110],
            (0xd, 0) => [0x2e7, 0x988, 0x988, 0],
            (0x8000_0021, _) => [0x3816_7fff, 0, 6, 0],
            _ => epyc(leaf, subleaf),
        }
    }
    let all = Caps {
        xcr0: 0x2e7,
        ibpb: true,
        ..caps()
    };
    for (caps, wanted) in [(&all, true), (&caps(), false)] {
        let entries = list(turin, caps);
        let [_, _, _, edx] = lookup(&entries, 7, 0);
        assert_eq!(edx & Leaf7Edx::AVX512_VP2INTERSECT != 0, wanted);
        let [eax, ..] = lookup(&entries, 0x8000_0021, 0);
        assert_eq!(eax & Ext21Eax::SBPB != 0, wanted);
        assert_ne!(eax & Ext21Eax::PREFETCHI, 0);
        let offered = Features::offered(&mut |f, i| turin(f, i), caps);
        let features = Features::new(&entries, &offered);
        assert_eq!(features.has(Feature::SBPB), wanted);
    }
}

#[test]
fn look_up_as_amd_does() {
    let entries = [
        Entry::new(1, [1, 2, 3, 4]),
        Entry::indexed(7, 0, [5, 6, 7, 8]),
        Entry::indexed(0xb, 0, [1, 2, 0x100, 9]),
        Entry::indexed(0xb, 1, [4, 8, 0x201, 9]),
    ];
    assert_eq!(
        lookup(&entries, 1, 77),
        [1, 2, 3, 4],
        "a leaf without subleaves"
    );
    assert_eq!(lookup(&entries, 7, 0), [5, 6, 7, 8]);
    assert_eq!(lookup(&entries, 7, 1), [0; 4]);
    assert_eq!(lookup(&entries, 0x1234, 0), [0; 4]);
    assert_eq!(lookup(&entries, 0xffff_ffff, 0), [0; 4]);
    assert_eq!(
        lookup(&entries, 0xb, 2),
        [0, 0, 2, 9],
        "topology goes on for ever"
    );
    assert_eq!(lookup(&entries, 0xb, 0x1ff), [0, 0, 0xff, 9]);
    assert_eq!(lookup(&[], 0, 0), [0; 4]);
}

#[test]
fn state_that_shows_through() {
    let all = Caps {
        xcr0: 0x207,
        ..caps()
    };
    let entries = list(epyc, &all);
    let off = Dynamic::default();
    let on = Dynamic {
        osxsave: true,
        pke: true,
        apic_enabled: true,
        xsave_size: 832,
        xsave_compacted_size: 848,
    };
    let view = |leaf, subleaf, state| guest_view(&entries, leaf, subleaf, state);
    assert_eq!(view(1, 0, &off)[2] & Leaf1Ecx::OSXSAVE, 0);
    assert_ne!(view(1, 0, &on)[2] & Leaf1Ecx::OSXSAVE, 0);
    for leaf in [1, 0x8000_0001] {
        assert_eq!(view(leaf, 0, &off)[3] & 1 << 9, 0);
        assert_ne!(view(leaf, 0, &on)[3] & 1 << 9, 0);
    }
    assert_eq!(view(7, 0, &off)[2] & Leaf7Ecx::OSPKE, 0);
    assert_ne!(view(7, 0, &on)[2] & Leaf7Ecx::OSPKE, 0);
    assert_eq!(view(0xd, 0, &on)[1], 832);
    assert_eq!(view(0xd, 1, &on)[1], 848);
    // A list that claims the state of now is corrected.
    let mut entry = Entry::new(1, [0, 0, Leaf1Ecx::OSXSAVE, 0]);
    refresh(&mut entry, &on);
    assert_eq!(entry.ecx, 0, "no XSAVE, no OSXSAVE");
    let mut entry = Entry::indexed(7, 0, [0, 0, Leaf7Ecx::OSPKE, 0]);
    refresh(&mut entry, &on);
    assert_eq!(entry.ecx, 0, "no PKU, no OSPKE");
    // Without XSAVE, leaf d stays zero.
    assert_eq!(guest_view(&list(epyc, &caps()), 0xd, 0, &on), [0; 4]);
}

#[test]
fn a_guest_gets_what_it_asks_for_and_is_offered() {
    let mut host = epyc;
    let offered = Features::offered(&mut host, &caps());
    let entries = list(epyc, &caps());
    assert_eq!(Features::new(&entries, &offered), offered);
    assert_eq!(offered.max_phys_bits, 48);
    let all = Feature::MTRR
        | Feature::MCE
        | Feature::PAT
        | Feature::APIC
        | Feature::SEP
        | Feature::PCID
        | Feature::X2APIC
        | Feature::TSC_DEADLINE
        | Feature::FSGSBASE
        | Feature::TSC_ADJUST
        | Feature::SMEP
        | Feature::INVPCID
        | Feature::SMAP
        | Feature::UMIP
        | Feature::RDPID
        | Feature::SYSCALL
        | Feature::NX
        | Feature::FFXSR
        | Feature::GBPAGES
        | Feature::RDTSCP
        | Feature::LM
        | Feature::PV_CLOCK
        | Feature::PV_CLOCK2
        | Feature::PV_UNHALT
        | Feature::PV_SEND_IPI
        | Feature::PV_STEAL_TIME
        | Feature::PV_SCHED_YIELD
        | Feature::PV_EOI
        | Feature::PV_ASYNC_PF
        | Feature::PV_ASYNC_PF_VMEXIT
        | Feature::PV_ASYNC_PF_INT
        | Feature::PV_POLL_CONTROL
        | Feature::CPUID_USER_DISABLE
        | Feature::BMI1
        | Feature::BMI2
        | Feature::ADX
        | Feature::ABM
        | Feature::MOVBE
        | Feature::POPCNT
        | Feature::FXSR
        | Feature::SSE2
        | Feature::SSE3
        | Feature::SSE41
        | Feature::SSE42
        | Feature::SSE4A
        | Feature::OSVW
        | Feature::PERFCTR_CORE;
    assert_eq!(offered.set, all);

    // A VMM that passes the host's CPUID on gets no more.
    let raw: Vec<Entry> = [0, 1, 7, 0x8000_0000, 0x8000_0001, 0x8000_0008]
        .into_iter()
        .map(|leaf| Entry::new(leaf, epyc(leaf, 0)))
        .collect();
    let features = Features::new(&raw, &offered);
    assert!(!features.has(Feature::XSAVE) && !features.has(Feature::PKU));
    assert!(!features.has(Feature::SVM) && !features.has(Feature::CET_SS));
    assert!(!features.has(Feature::PV_CLOCK), "no signature, no clock");
    assert!(!features
        .cr4()
        .intersects(Cr4::OSXSAVE | Cr4::PKE | Cr4::CET));
    assert_eq!(
        features.efer(),
        Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE | Efer::FFXSR
    );

    // The paravirtual leaves may be moved.
    let mut moved = entries;
    for entry in &mut moved {
        if entry.function >> 8 == 0x40_0000 {
            entry.function += 0x100;
        }
    }
    assert!(Features::new(&moved, &offered).has(Feature::PV_CLOCK2));
    // But not out of their range.
    for entry in &mut moved {
        if entry.function >> 8 == 0x40_0001 {
            entry.function -= 0x100_0100;
        }
    }
    assert!(!Features::new(&moved, &offered).has(Feature::PV_CLOCK2));
    // Nothing given, nothing had.
    assert_eq!(Features::new(&[], &offered), Features::default());
}

#[test]
fn linear_width_of_a_list() {
    let list = |eax| [Entry::new(function::ADDRESS_SIZES, [eax, 0, 0, 0])];
    for (eax, good) in [
        (0x3030, true),
        (0x3930, true),
        (0x0030, true),
        (0x3130, false),
    ] {
        assert_eq!(valid(&list(eax)), good, "{eax:#x}");
    }
    assert!(valid(&[]));
}

proptest! {
    /// Whatever the host says and the VMM wants: an end, and no feature without its capability.
    #[test]
    fn hostile_lists(
        words in prop::collection::vec(any::<u32>(), 64),
        max_leaf in 0_u32..0x40,
        xcr0: u64,
        x2apic: bool,
        leaf: u32,
        subleaf: u32,
        short in prop::collection::vec((0_u32..16, 0_u32..3, any::<[u32; 5]>()), 0..20),
    ) {
        let mut host = |leaf: u32, subleaf: u32| match leaf {
            0 => [max_leaf, 1, 2, 3],
            0x8000_0000 => [0x8000_0000 | max_leaf, 1, 2, 3],
            _ => [0, 1, 2, 3].map(|n: u32| {
                words[(leaf.wrapping_mul(7) ^ subleaf ^ n.wrapping_mul(17)) as usize % 64]
            }),
        };
        let caps = Caps { xcr0, x2apic, ..Caps::default() };
        let mut count = 0;
        let result = supported(&mut host, &caps, &mut |_| { count += 1; Ok::<(), ()>(()) });
        prop_assert!(result.is_ok());
        prop_assert!(count < 128);
        let offered = Features::offered(&mut host, &caps);
        prop_assert_eq!(offered.has(Feature::X2APIC), x2apic);
        prop_assert!(!offered.has(Feature::SVM));
        prop_assert!((32..=52).contains(&offered.max_phys_bits));

        let entries: Vec<Entry> = short
            .into_iter()
            .map(|(function, index, [flags, eax, ebx, ecx, edx])| Entry {
                function: function & 7 | (function & 8) << 28,
                index,
                flags,
                eax,
                ebx,
                ecx,
                edx,
                padding: [0; 3],
            })
            .collect();
        let features = Features::new(&entries, &offered);
        prop_assert!(offered.set.contains(features.set));
        let dynamic = Dynamic { osxsave: true, ..Dynamic::default() };
        let _ = guest_view(&entries, leaf, subleaf, &dynamic);
        for entry in &entries {
            let [_, _, ecx, _] = guest_view(&entries, entry.function, entry.index, &dynamic);
            if entry.function == 1 && ecx & Leaf1Ecx::XSAVE == 0 {
                prop_assert_eq!(ecx & Leaf1Ecx::OSXSAVE, 0);
            }
        }
    }

    /// The first error of the sink ends the list, as for a buffer that is too small.
    #[test]
    fn errors_of_the_sink_are_passed_on(room in 0_usize..40) {
        let mut host = epyc;
        let total = list(epyc, &caps()).len();
        let mut taken = 0;
        let result = supported(&mut host, &caps(), &mut |_| {
            if taken == room {
                return Err("full");
            }
            taken += 1;
            Ok(())
        });
        prop_assert_eq!(result.is_ok(), total <= room);
        prop_assert_eq!(taken, total.min(room));
    }
}

/// A feature is withheld wherever the VMM has put the paravirtual leaves, and only there.
#[test]
fn withheld_features() {
    for base in [0x4000_0000, 0x4000_0100] {
        let mut entries = list(epyc, &caps());
        for entry in &mut entries {
            if entry.function & !1 == 0x4000_0000 {
                entry.function = entry.function - 0x4000_0000 + base;
            }
        }
        let before = entries.clone();
        x86::cpuid::withhold(&mut entries, PvFeatures::UNHALT);
        for (new, old) in entries.iter().zip(&before) {
            let gone = if old.function == base + 1 { 1 << 7 } else { 0 };
            assert_eq!(new.eax, old.eax & !gone);
        }
        let Some(signature) = entries.iter_mut().find(|entry| entry.function == base) else {
            panic!("no signature");
        };
        signature.ebx ^= 1;
        let before = entries.clone();
        x86::cpuid::withhold(&mut entries, PvFeatures::STEAL_TIME);
        assert_eq!(entries, before);
    }
}
