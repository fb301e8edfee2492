// SPDX-License-Identifier: GPL-2.0-only

//! The permission maps and the ASIDs.

use proptest::prelude::*;
use std::collections::HashSet;
use svm::asid::{flush_guest, AsidPool};
use svm::features::SvmFeatures;
use svm::vmcb::TlbControl;
use svm::{iopm, msrpm};

#[test]
fn msrpm_passes_what_it_should() {
    let mut map = [0; msrpm::SIZE];
    msrpm::init(&mut map);
    for msr in msrpm::PASSED_THROUGH {
        assert!(!msrpm::exits(&map, msr, false) && !msrpm::exits(&map, msr, true));
    }
    // EFER, PAT, TSC, APIC_BASE, TSC_AUX, and one outside of the map.
    for msr in [0xc000_0080, 0x277, 0x10, 0x1b, 0xc000_0103, 0x4b56_4d00] {
        assert!(msrpm::exits(&map, msr, false) && msrpm::exits(&map, msr, true));
    }
    let passed: u32 = map.iter().map(|byte| byte.count_zeros()).sum();
    assert_eq!(passed, 2 * msrpm::PASSED_THROUGH.len() as u32);
}

#[test]
fn msrpm_bits_are_where_the_manual_says() {
    let mut map = [0; msrpm::SIZE];
    assert!(msrpm::set(&mut map, 0x175, true, false));
    assert_eq!(map[0x175 / 4], 1 << 2);
    assert!(msrpm::set(&mut map, 0xc000_0082, false, true));
    assert_eq!(map[0x800 + 0x82 / 4], 1 << 5);
    assert!(msrpm::set(&mut map, 0xc001_1fff, true, true));
    assert_eq!(map[0x17ff], 3 << 6);
    assert!(!msrpm::set(&mut map, 0x2000, true, true));
    assert!(!msrpm::set(&mut map, 0xffff_ffff, true, true));
}

#[test]
fn iopm_bits_are_where_the_manual_says() {
    let mut map = [0; iopm::SIZE];
    iopm::set(&mut map, 0x3f8, true);
    assert_eq!(map[0x7f], 1);
    assert!(iopm::exits(&map, 0x3f8, 1) && iopm::exits(&map, 0x3f5, 4));
    assert!(!iopm::exits(&map, 0x3f4, 4) && !iopm::exits(&map, 0x3f9, 1));
    iopm::set(&mut map, 0x3f8, false);
    assert!(map.iter().all(|byte| *byte == 0));
    iopm::init(&mut map);
    assert!(iopm::exits(&map, 0xffff, 4));
}

proptest! {
    #[test]
    fn msrpm_set_changes_one_msr(msr: u32, other: u32, read: bool, write: bool) {
        let mut map = [0; msrpm::SIZE];
        let covered = msrpm::set(&mut map, msr, read, write);
        prop_assert_eq!(msrpm::exits(&map, msr, false), read || !covered);
        prop_assert_eq!(msrpm::exits(&map, msr, true), write || !covered);
        if other != msr && other < 0x2000 {
            prop_assert!(!msrpm::exits(&map, other, false) && !msrpm::exits(&map, other, true));
        }
    }

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
