// SPDX-License-Identifier: GPL-2.0-only

//! The permission maps and the ASIDs.

use proptest::prelude::*;
use std::collections::HashSet;
use svm::asid::{flush_guest, AsidPool};
use svm::features::SvmFeatures;
use svm::vmcb::TlbControl;
use svm::{iopm, msrpm};
use x86::msr::DIRECT_MSRS;

/// Whether RDMSR or WRMSR of an MSR that the map covers exits: two bits an MSR (APM vol. 2, 15.11).
fn exits(map: &[u8; msrpm::SIZE], msr: u32) -> bool {
    let start = match msr >> 16 {
        0 => 0,
        0xc000 => 0x800,
        _ => 0x1000,
    };
    let msr = msr as usize & 0x1fff;
    map[start + msr / 4] >> (msr % 4 * 2) & 3 != 0
}

#[test]
fn msrpm_passes_what_it_should() {
    let mut map = [0; msrpm::SIZE];
    msrpm::init(&mut map);
    for &msr in DIRECT_MSRS {
        assert!(!exits(&map, msr));
    }
    // EFER, PAT, TSC, APIC_BASE, TSC_AUX, DebugCtl, SPEC_CTRL, HWCR.
    for msr in [
        0xc000_0080,
        0x277,
        0x10,
        0x1b,
        0xc000_0103,
        0x1d9,
        0x48,
        0xc001_0015,
    ] {
        assert!(exits(&map, msr));
    }
    let passed: u32 = map.iter().map(|byte| byte.count_zeros()).sum();
    assert_eq!(passed, 2 * DIRECT_MSRS.len() as u32);
}

#[test]
fn msrpm_bits_are_where_the_manual_says() {
    let mut map = [0; msrpm::SIZE];
    msrpm::init(&mut map);
    // SYSENTER_CS, ESP, EIP; STAR, LSTAR, CSTAR behind EFER; SFMASK; FS, GS and KernelGS base.
    assert_eq!(map[0x174 / 4], 0b1100_0000);
    assert_eq!(map[0x800 + 0x80 / 4], 0b0000_0011);
    assert_eq!(map[0x800 + 0x84 / 4], 0b1111_1100);
    assert_eq!(map[0x800 + 0x100 / 4], 0b1100_0000);
    msrpm::set(&mut map, 0x175, true, false);
    assert_eq!(map[0x174 / 4], 0b1100_0100);
    msrpm::set(&mut map, 0xc000_0082, false, true);
    assert_eq!(map[0x800 + 0x80 / 4], 0b0010_0011);
    msrpm::set(&mut map, 0xc001_1fff, false, false);
    assert_eq!(map[0x17ff], 0b0011_1111);
    let before = map;
    msrpm::set(&mut map, 0x2000, false, false);
    msrpm::set(&mut map, u32::MAX, false, false);
    assert_eq!(map, before);
}

#[test]
fn every_port_exits() {
    let mut map = [0; iopm::SIZE];
    iopm::init(&mut map);
    assert!(map.iter().all(|byte| *byte == 0xff));
}

proptest! {
    #[test]
    fn asids_are_never_shared(count in 0_u32..20, turns in proptest::collection::vec(0_usize..40, 1..200)) {
        let mut pool = AsidPool::new(count);
        let mut held = [None; 40];
        let mut in_use = HashSet::new();
        let mut owner = std::collections::HashMap::new();
        let mut flushed = false;
        for vcpu in turns {
            let (asid, flush) = pool.assign(held[vcpu]);
            prop_assert!(asid.number >= 1 && asid.number <= count.saturating_sub(1).max(1));
            match flush {
                TlbControl::Nothing => {}
                TlbControl::AllAsids => {
                    in_use.clear();
                    owner.clear();
                    flushed = true;
                }
                _ => prop_assert!(false, "no other flush is needed"),
            }
            prop_assert!(flushed, "the first use flushes");
            if held[vcpu] != Some(asid) {
                prop_assert!(in_use.insert(asid.number), "a number was handed out twice");
            }
            let first = *owner.entry(asid.number).or_insert(vcpu);
            prop_assert_eq!(first, vcpu);
            held[vcpu] = Some(asid);
        }
    }
}

#[test]
fn a_kept_asid_costs_nothing() {
    let mut pool = AsidPool::new(16);
    let (asid, flush) = pool.assign(None);
    assert_eq!(flush, TlbControl::AllAsids);
    assert_eq!(pool.assign(Some(asid)), (asid, TlbControl::Nothing));
    assert_eq!(flush_guest(SvmFeatures::empty()), None);
    assert_eq!(
        flush_guest(SvmFeatures::FLUSH_BY_ASID),
        Some(TlbControl::Asid)
    );
}

/// After a restart no vCPU keeps an ASID of before, and nobody gets one twice.
#[test]
fn a_restart_invalidates_every_asid() {
    let mut pool = AsidPool::new(16);
    let (first, _) = pool.assign(None);
    let (second, _) = pool.assign(None);
    pool.restart();
    let (again, flush) = pool.assign(Some(first));
    assert_ne!(again, first);
    assert_eq!(flush, TlbControl::AllAsids);
    let (third, _) = pool.assign(None);
    let (other, flush) = pool.assign(Some(second));
    assert_ne!(other.number, third.number);
    assert_ne!(other.number, again.number);
    assert_eq!(flush, TlbControl::Nothing);
}
