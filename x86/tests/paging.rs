// SPDX-License-Identifier: GPL-2.0-only

//! The page walk against a model that was written from the manual's figures, one mode at a time.

mod paging_model;

use paging_model::{model, Memory, Rng};
use proptest::prelude::*;
use x86::cpu::{Access, MemError, Stop};
use x86::paging::{inspect, walk, PagingState, Translation, WalkError};
use x86::regs::{vector, Cr0, Cr4, Efer, Exception};

const P: u64 = 1 << 0;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const NX: u64 = 1 << 63;

const ACCESSES: [Access; 5] = [
    Access::Read,
    Access::Write,
    Access::Fetch,
    Access::SystemRead,
    Access::SystemWrite,
];

fn long_mode() -> PagingState {
    PagingState {
        cr0: Cr0::PE | Cr0::PG | Cr0::WP,
        cr3: 0x1000,
        cr4: Cr4::PAE,
        efer: Efer::LME | Efer::LMA | Efer::NXE,
        cpl: 0,
        rflags_ac: false,
        pkru: 0,
        max_phys_bits: 40,
        gbpages: true,
    }
}

fn mode(choice: u8) -> (Cr0, Cr4, Efer) {
    let paged = Cr0::PE | Cr0::PG;
    match choice % 7 {
        0 => (Cr0::PE, Cr4::empty(), Efer::empty()),
        1 => (paged, Cr4::empty(), Efer::empty()),
        2 => (paged, Cr4::PSE, Efer::NXE),
        3 => (paged, Cr4::PAE, Efer::empty()),
        4 => (paged, Cr4::PAE | Cr4::PSE, Efer::empty()),
        5 => (paged, Cr4::PAE, Efer::LME | Efer::LMA),
        _ => (paged, Cr4::PAE | Cr4::LA57, Efer::LME | Efer::LMA),
    }
}

prop_compose! {
    fn any_state()(
        choice: u8,
        flags: [bool; 6],
        cpl in 0_u8..4,
        max_phys_bits in prop_oneof![Just(32_u8), Just(36), Just(40), Just(48), Just(52), any::<u8>()],
        cr3 in 0_u64..64,
        cr3_low in 0_u64..0x1000,
        cr3_high: u32,
    ) -> PagingState {
        let (mut cr0, mut cr4, mut efer) = mode(choice);
        let [wp, smep, smap, nxe, rflags_ac, gbpages] = flags;
        cr0.set(Cr0::WP, wp);
        cr4.set(Cr4::SMEP, smep);
        cr4.set(Cr4::SMAP, smap);
        if nxe {
            efer |= Efer::NXE;
        }
        let mut cr3 = cr3 << 12 | cr3_low;
        if !efer.contains(Efer::LMA) {
            // The register has 32 bits in these modes, whatever a VMM writes.
            cr3 |= u64::from(cr3_high) << 32;
        }
        PagingState { cr0, cr3, cr4, efer, cpl, rflags_ac, pkru: 0, max_phys_bits, gbpages }
    }
}

fn any_access() -> impl Strategy<Value = Access> {
    prop::sample::select(ACCESSES.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn agrees_with_the_model(
        state in any_state(),
        access in any_access(),
        linear: u64,
        seed: u64,
        strange in 0_u64..8,
    ) {
        let mut mem = Memory::random(seed, &state, strange);
        let before = mem.cells.clone();
        let (expected, after) = model(&mem, &state, linear, access);

        if let Ok(translation) = expected {
            // Without paging a VMM gets back the address that it has asked for.
            let gpa = match state.cr0.contains(Cr0::PG) {
                true => translation.gpa,
                false => linear,
            };
            let translation = Translation { gpa, ..translation };
            prop_assert_eq!(inspect(&mut mem, &state, linear), Ok(translation));
            prop_assert!(mem.cells == before, "inspect must change nothing");
        }
        prop_assert_eq!(walk(&mut mem, &state, linear, access), expected);
        prop_assert!(mem.cells == after, "accessed and dirty bits");
        // A second walk finds everything marked, unless a table is also one of its own pages.
        let (again, settled) = model(&mem, &state, linear, access);
        mem.exchanges = 0;
        prop_assert_eq!(walk(&mut mem, &state, linear, access), again);
        if settled == after {
            prop_assert_eq!(mem.exchanges, 0);
        }
    }
}

/// What the random test meets must not be faults only.
#[test]
fn random_tables_reach_every_outcome() {
    let mut rng = Rng(7);
    let mut sizes = [0_u32; 64];
    let (mut absent, mut reserved, mut denied) = (0, 0, 0);
    for round in 0..60_000_u64 {
        let (cr0, cr4, efer) = mode(round as u8);
        let state = PagingState {
            cr0,
            cr4,
            efer,
            cr3: 0x3000,
            cpl: (round % 2) as u8 * 3,
            ..long_mode()
        };
        let mem = Memory::random(rng.next(), &state, round % 8);
        match model(&mem, &state, rng.next(), Access::Write).0 {
            Ok(translation) => sizes[usize::from(translation.page_bits)] += 1,
            Err(WalkError::Fault(fault)) => match fault.error_code.unwrap() {
                code if code & 1 << 3 != 0 => reserved += 1,
                code if code & 1 == 0 => absent += 1,
                _ => denied += 1,
            },
            Err(WalkError::Mem(_)) => {}
        }
    }
    for bits in [12, 21, 22, 30] {
        assert!(sizes[bits] > 100, "pages of 2^{bits}: {}", sizes[bits]);
    }
    assert!(absent > 100 && reserved > 100 && denied > 100);
}

/// The table of APM vol. 2, 5.6, for a 4-level walk: each of the two lowest levels with each
/// combination of R/W, U/S and NX, for each state and access.
#[test]
fn permissions_of_all_combinations() {
    for case in 0..1_u32 << 13 {
        let bit = |n: u32| case >> n & 1 != 0;
        let (lower, upper) = ([bit(0), bit(1), bit(2)], [bit(3), bit(4), bit(5)]);
        let mut state = long_mode();
        state.cr0.set(Cr0::WP, bit(6));
        state.cr4.set(Cr4::SMEP, bit(7));
        state.cr4.set(Cr4::SMAP, bit(8));
        state.rflags_ac = bit(9);
        state.cpl = if bit(10) { 3 } else { 0 };
        // CPL 1 and 2 are supervisor, too.
        if !bit(10) && bit(11) {
            state.cpl = 2;
        }
        let flags = |[rw, us, nx]: [bool; 3]| {
            P | if rw { RW } else { 0 } | if us { US } else { 0 } | if nx { NX } else { 0 }
        };
        for access in ACCESSES {
            let mut mem = Memory::zeroed();
            mem.put(0x1000, 0x2000 | P | RW | US);
            mem.put(0x2000, 0x3000 | P | RW | US);
            mem.put(0x3000, 0x4000 | flags(upper));
            mem.put(0x4000, 0x5000 | flags(lower));

            let writable = lower[0] && upper[0];
            let user_page = lower[1] && upper[1];
            let executable = !lower[2] && !upper[2];
            let system = matches!(access, Access::SystemRead | Access::SystemWrite);
            let user = state.cpl == 3 && !system;
            let write = matches!(access, Access::Write | Access::SystemWrite);
            let allowed = match access {
                Access::Fetch if user => user_page && executable,
                Access::Fetch => executable && (!user_page || !state.cr4.contains(Cr4::SMEP)),
                _ if user => user_page && (!write || writable),
                _ => {
                    let smap =
                        user_page && state.cr4.contains(Cr4::SMAP) && (system || !state.rflags_ac);
                    let wp = write && !writable && state.cr0.contains(Cr0::WP);
                    !smap && !wp
                }
            };
            let result = walk(&mut mem, &state, 0x123, access);
            if allowed {
                assert_eq!(result.unwrap().gpa, 0x5123, "{case:#x} {access:?}");
                for table in [0x1000, 0x2000, 0x3000] {
                    assert_eq!(mem.get(table) & (A | D), A);
                }
                let expected = if write { A | D } else { A };
                assert_eq!(mem.get(0x4000) & (A | D), expected);
            } else {
                let mut code = 1;
                code |= u32::from(write) << 1;
                code |= u32::from(user) << 2;
                code |= u32::from(access == Access::Fetch) << 4;
                let fault = Exception::page_fault(0x123, code);
                assert_eq!(result, Err(WalkError::Fault(fault)), "{case:#x} {access:?}");
                for table in [0x1000, 0x2000, 0x3000, 0x4000] {
                    assert_eq!(mem.get(table) & (A | D), 0, "marked without permission");
                }
            }
        }
    }
}

/// Each bit of each entry on the path, alone: ignored, reserved or what it means.
#[test]
fn every_bit_of_every_entry() {
    for choice in 1..7 {
        let (cr0, cr4, efer) = mode(choice);
        for (nx, max_phys_bits, page_level) in [(false, 36, 1), (true, 40, 2), (true, 52, 3)] {
            let mut state = PagingState {
                cr0,
                cr4,
                efer,
                max_phys_bits,
                ..long_mode()
            };
            if nx {
                state.efer |= Efer::NXE;
            }
            let wide = cr4.contains(Cr4::PAE);
            let levels = match (cr4.contains(Cr4::LA57), efer.contains(Efer::LMA)) {
                (true, _) => 5,
                (_, true) => 4,
                _ if wide => 3,
                _ => 2,
            };
            for changed in 1..=levels {
                for bit in 0..if wide { 64 } else { 32 } {
                    let mut mem = Memory::zeroed();
                    let mut table = 0x1000;
                    for level in (1..=levels).rev() {
                        // The first entry of each table points to the next page.
                        let pdpte = wide && levels == 3 && level == 3;
                        let mut entry = (table + 0x1000) | if pdpte { P } else { P | RW | US };
                        if level == page_level && !pdpte {
                            entry = P | RW | US | PS;
                        }
                        if level == changed {
                            entry ^= 1 << bit;
                        }
                        mem.put(table, entry);
                        table += 0x1000;
                    }
                    for access in ACCESSES {
                        let (expected, after) = model(&mem, &state, 0x77, access);
                        let mut mem = mem.fresh();
                        let found = walk(&mut mem, &state, 0x77, access);
                        assert_eq!(found, expected, "{state:?} level {changed} bit {bit}");
                        assert!(mem.cells == after, "{state:?} level {changed} bit {bit}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_changed_entry_is_walked_again() {
    let state = long_mode();
    let mut mem = Memory::zeroed();
    mem.put(0x1000, 0x2000 | P | RW);
    mem.put(0x2000, 0x3000 | P | RW);
    mem.put(0x3000, 0x4000 | P | RW);
    mem.put(0x4000, 0x5000 | P | RW);
    // Another CPU moves the page while its entry is about to be marked.
    mem.interfere = vec![(0x4000, 0x6000 | P | RW)];
    let translation = walk(&mut mem, &state, 0, Access::Write).unwrap();
    assert_eq!(translation.gpa, 0x6000);
    assert_eq!(mem.get(0x4000), 0x6000 | P | RW | A | D);

    // It takes the page away.
    mem.put(0x4000, 0x5000 | P | RW);
    mem.interfere = vec![(0x4000, 0)];
    let fault = Exception::page_fault(0, 1 << 1);
    assert_eq!(
        walk(&mut mem, &state, 0, Access::Write),
        Err(WalkError::Fault(fault))
    );
}

#[test]
fn endless_interference_ends_the_walk() {
    let state = long_mode();
    let mut mem = Memory::zeroed();
    mem.put(0x1000, 0x2000 | P | RW);
    for n in 1..1000_u64 {
        mem.interfere.push((0x1000, 0x2000 | P | RW | (n % 2) << 9));
    }
    // It must be an entry that is there, so that only the marking fails.
    mem.put(0x2000, P | PS);
    let result = walk(&mut mem, &state, 0, Access::Read);
    assert_eq!(result, Err(WalkError::Mem(MemError::WouldSleep)));
    assert!(mem.exchanges < 20);
    assert_eq!(Stop::from(result.unwrap_err()), Stop::WouldSleep);
}

#[test]
fn read_only_tables_are_used_unmarked() {
    let state = long_mode();
    let mut mem = Memory::zeroed();
    mem.put(0x1000, 0x2000 | P | RW);
    mem.put(0x2000, P | RW | PS);
    mem.read_only = true;
    assert_eq!(walk(&mut mem, &state, 5, Access::Write).unwrap().gpa, 5);
    assert_eq!(mem.get(0x2000) & (A | D), 0);
}

#[test]
fn nothing_is_present_in_missing_tables() {
    let state = PagingState {
        cr3: 1 << 39,
        ..long_mode()
    };
    let result = walk(&mut Memory::zeroed(), &state, 5, Access::Read);
    let fault = Exception::page_fault(5, 0);
    assert_eq!(result, Err(WalkError::Fault(fault)));
}

#[test]
fn unpaged_addresses_have_32_bits() {
    let state = PagingState {
        cr0: Cr0::empty(),
        efer: Efer::empty(),
        ..long_mode()
    };
    let expected = Translation {
        gpa: 0x8765_4321,
        page_bits: 12,
        user: true,
        writable: true,
        executable: true,
    };
    for access in ACCESSES {
        let result = walk(&mut Memory::zeroed(), &state, 0xffff_ffff_8765_4321, access);
        assert_eq!(result, Ok(expected));
    }
}

/// PSE-36 (APM vol. 2, 5.2.2): bits 13 to 20 of the entry are bits 32 to 39 of the address.
#[test]
fn four_mebibyte_pages_above_four_gibibytes() {
    let mut state = PagingState {
        cr4: Cr4::PSE,
        efer: Efer::empty(),
        ..long_mode()
    };
    let mut mem = Memory::zeroed();
    mem.put32(0x1000 + 4, 0x0040_0000 | 0xab << 13 | (P | RW | PS) as u32);
    let translation = walk(&mut mem, &state, 0x0040_0000 + 0x12_3456, Access::Write).unwrap();
    assert_eq!(translation.gpa, 0xab_0040_0000 + 0x12_3456);
    assert_eq!(translation.page_bits, 22);
    // With 39 bits, address bit 39 is reserved.
    state.max_phys_bits = 39;
    let fault = Exception::page_fault(0x0040_0000, 1 << 3 | 1);
    assert_eq!(
        walk(&mut mem, &state, 0x0040_0000, Access::Read),
        Err(WalkError::Fault(fault))
    );
    // Without PSE the bit is ignored, and the entry is that of a table.
    state.cr4 = Cr4::empty();
    mem.put32(0x1000, 0x2000 | (P | RW | PS) as u32);
    mem.put32(0x2000, 0x5000 | P as u32);
    assert_eq!(walk(&mut mem, &state, 0, Access::Read).unwrap().gpa, 0x5000);
}

/// The ID bit of the error code tells of a fetch only where NX or SMEP exist.
#[test]
fn error_code_of_fetches() {
    let code = |state: &PagingState| match walk(&mut Memory::zeroed(), state, 0, Access::Fetch) {
        Err(WalkError::Fault(fault)) => {
            assert_eq!(fault.vector, vector::PF);
            fault.error_code.unwrap()
        }
        other => panic!("{other:?}"),
    };
    let mut state = long_mode();
    assert_eq!(code(&state), 1 << 4);
    state.efer.remove(Efer::NXE);
    assert_eq!(code(&state), 0);
    state.cr4 |= Cr4::SMEP;
    assert_eq!(code(&state), 1 << 4);
    // Two-level tables have no NX, whatever EFER says.
    state.cr4 = Cr4::PSE;
    state.efer = Efer::NXE;
    assert_eq!(code(&state), 0);
    state.cpl = 3;
    assert_eq!(code(&state), 1 << 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    /// Any register values and any bytes: no panic, and an answer after a bounded number of reads.
    #[test]
    fn hostile_values(
        registers: [u64; 4],
        cpl: u8,
        max_phys_bits: u8,
        gbpages: bool,
        rflags_ac: bool,
        linear: u64,
        access in any_access(),
        seed: u64,
    ) {
        let [cr0, cr3, cr4, efer] = registers;
        let state = PagingState {
            cr0: Cr0::from_bits_retain(cr0),
            cr3,
            cr4: Cr4::from_bits_retain(cr4),
            efer: Efer::from_bits_retain(efer),
            cpl,
            rflags_ac,
            pkru: cr0 as u32,
            max_phys_bits,
            gbpages,
        };
        let mut mem = Memory::noise(seed);
        let _ = walk(&mut mem, &state, linear, access);
        let _ = inspect(&mut mem, &state, linear);
        prop_assert!(mem.reads < 64);
    }
}

/// Protection keys (APM vol. 2, 5.6.7): each of the 16 has two bits in PKRU.
#[test]
fn protection_keys() {
    const US: u64 = 1 << 2;
    const PAGE: u64 = 0x5000;
    for key in 0..16_u64 {
        let mut mem = Memory::zeroed();
        for table in [0x1000, 0x2000, 0x3000_u64] {
            mem.put(table, (table + 0x1000) | P | RW | US);
        }
        mem.put(0x4000, PAGE | key << 59 | P | RW | US);
        mem.put(0x4008, PAGE | key << 59 | P | RW);
        for (rights, cpl, wp) in (0..4_u32).flat_map(|rights| {
            [
                (rights, 0, true),
                (rights, 0, false),
                (rights, 3, true),
                (rights, 3, false),
            ]
        }) {
            let mut state = PagingState {
                cpl,
                cr4: Cr4::PAE | Cr4::PKE,
                pkru: rights << (2 * key),
                ..long_mode()
            };
            state.cr0.set(Cr0::WP, wp);
            for access in ACCESSES {
                let write = matches!(access, Access::Write | Access::SystemWrite);
                let user = cpl == 3 && !matches!(access, Access::SystemRead | Access::SystemWrite);
                let denied = access != Access::Fetch
                    && (rights & 1 != 0 || (rights & 2 != 0 && write && (user || wp)));
                let code = 0x21 | u32::from(write) << 1 | u32::from(user) << 2;
                let expected = if denied {
                    Err(WalkError::Fault(Exception::page_fault(0, code)))
                } else {
                    Ok(PAGE)
                };
                let result = walk(&mut mem, &state, 0, access).map(|found| found.gpa);
                assert_eq!(result, expected, "{key} {rights} {cpl} {wp} {access:?}");
                // A supervisor's page has no key, and neither has any without CR4.PKE.
                if !user {
                    assert!(walk(&mut mem, &state, 0x1000, access).is_ok());
                }
                let off = PagingState {
                    cr4: Cr4::PAE,
                    ..state
                };
                assert!(walk(&mut mem, &off, 0, access).is_ok());
            }
        }
    }
}

/// Bit 8 is G in the entry of a page. Of the entries that point to tables, those of the upper two
/// levels must have it clear, and the lower two need not.
#[test]
fn bit_8_of_the_entries_above_a_page() {
    const G: u64 = 1 << 8;
    for level in 1..=5_u64 {
        let mut state = long_mode();
        state.cr4 |= Cr4::LA57;
        let mut mem = Memory::zeroed();
        for table in 1..=5 {
            let bit = if table == 6 - level { G } else { 0 };
            mem.put(table * 0x1000, ((table + 1) * 0x1000) | P | RW | bit);
        }
        let found = inspect(&mut mem, &state, 0x77);
        assert_eq!(found.is_ok(), level < 4, "level {level}");
    }
}

/// KVM_TRANSLATE without paging: an address is what it is.
#[test]
fn inspecting_without_paging() {
    let state = PagingState {
        cr0: Cr0::PE,
        ..long_mode()
    };
    let mut state = state;
    state.efer = Efer::empty();
    for linear in [0, 0xffff_ffff, 0x1_0000_1000, u64::MAX] {
        let found = inspect(&mut Memory::zeroed(), &state, linear);
        assert_eq!(found.map(|page| page.gpa), Ok(linear));
    }
}
