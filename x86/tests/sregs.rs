// SPDX-License-Identifier: GPL-2.0-only

//! Transitions of the control registers and EFER.

use proptest::prelude::*;
use x86::features::{Feature, Features};
use x86::regs::{Cr0, Cr4, Efer, Exception};
use x86::sregs::{
    is_canonical, linear_bits, normalize_cr0, valid, write_cr0, write_cr3, write_cr4, write_efer,
    ControlRegs,
};

fn all() -> Features {
    Features {
        set: Feature::all() - Feature::SVM,
        xcr0: 0,
        max_phys_bits: 48,
    }
}

/// What the first version offers: no XSAVE, protection keys or shadow stacks.
fn first_version() -> Features {
    Features {
        set: Feature::all()
            - (Feature::SVM | Feature::XSAVE | Feature::PKU | Feature::CET_SS | Feature::TCE),
        xcr0: 0,
        max_phys_bits: 48,
    }
}

fn reset() -> ControlRegs {
    ControlRegs {
        cr0: Cr0::ET | Cr0::NW | Cr0::CD,
        cr3: 0,
        cr4: Cr4::empty(),
        efer: Efer::empty(),
        cs_l: false,
    }
}

fn protected() -> ControlRegs {
    ControlRegs {
        cr0: Cr0::ET | Cr0::PE,
        ..reset()
    }
}

fn long(cs_l: bool) -> ControlRegs {
    ControlRegs {
        cr0: Cr0::ET | Cr0::PE | Cr0::PG | Cr0::WP,
        cr3: 0x1000,
        cr4: Cr4::PAE,
        efer: Efer::LME | Efer::LMA,
        cs_l,
    }
}

const GP: Exception = Exception::GP0;

#[test]
fn cr0_values() {
    let write = |value: u64| write_cr0(&protected(), value).map(|new| new.cr0);
    let pe = Cr0::PE.bits();
    assert_eq!(write(pe | Cr0::PG.bits()), Ok(Cr0::ET | Cr0::PE | Cr0::PG));
    assert_eq!(write(Cr0::PG.bits()), Err(GP), "paging without protection");
    assert_eq!(write(pe | Cr0::NW.bits()), Err(GP), "NW without CD");
    assert_eq!(
        write(pe | (Cr0::NW | Cr0::CD).bits()),
        Ok(Cr0::ET | Cr0::PE | Cr0::NW | Cr0::CD)
    );
    for bit in 32..64 {
        assert_eq!(write(pe | 1 << bit), Err(GP), "bit {bit}");
    }
    // The undefined low bits and ET cannot be changed.
    for bit in [4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 19, 20, 24, 28] {
        assert_eq!(write(pe | 1 << bit), Ok(Cr0::ET | Cr0::PE), "bit {bit}");
    }
    assert_eq!(
        normalize_cr0(Cr0::from_bits_retain(0xffff_ffff)).bits(),
        0xe005_003f
    );
}

#[test]
fn long_mode_begins_and_ends_with_paging() {
    let features = all();
    let ready = |cr4, efer| ControlRegs {
        cr4,
        efer,
        ..protected()
    };
    let paging = (Cr0::PE | Cr0::PG).bits();

    let new = write_cr0(&ready(Cr4::PAE, Efer::LME), paging).unwrap();
    assert_eq!(new.efer, Efer::LME | Efer::LMA);
    assert!(valid(&new, &features));
    let new = write_cr0(&ready(Cr4::PAE, Efer::empty()), paging).unwrap();
    assert_eq!(new.efer, Efer::empty(), "legacy PAE");
    // Without PAE, or in a code segment with L.
    assert_eq!(write_cr0(&ready(Cr4::empty(), Efer::LME), paging), Err(GP));
    let mut with_l = ready(Cr4::PAE, Efer::LME);
    with_l.cs_l = true;
    assert_eq!(write_cr0(&with_l, paging), Err(GP));

    // Out again: from compatibility mode only.
    let out = write_cr0(&long(false), Cr0::PE.bits()).unwrap();
    assert_eq!(out.efer, Efer::LME);
    assert_eq!(write_cr0(&long(true), Cr0::PE.bits()), Err(GP));
    // Other bits can change in 64-bit mode.
    let value = (long(true).cr0 | Cr0::TS).bits();
    let new = write_cr0(&long(true), value).unwrap();
    assert_eq!(new.efer, long(true).efer);
    // Not while process-context identifiers are on.
    let mut pcid = long(false);
    pcid.cr4 |= Cr4::PCIDE;
    assert_eq!(write_cr0(&pcid, Cr0::PE.bits()), Err(GP));
    // Shadow stacks need WP.
    let mut cet = long(true);
    cet.cr4 |= Cr4::CET;
    assert_eq!(write_cr0(&cet, (cet.cr0 - Cr0::WP).bits()), Err(GP));
}

#[test]
fn cr3_values() {
    let features = all();
    let regs = long(true);
    let write = |regs: &ControlRegs, value| write_cr3(regs, value, &features);
    assert_eq!(
        write(&regs, 0x0000_ffff_ffff_f018).unwrap().0.cr3,
        0x0000_ffff_ffff_f018
    );
    for bit in 48..64 {
        assert_eq!(write(&regs, 1 << bit), Err(GP), "bit {bit}");
    }
    let mut pcid = regs;
    pcid.cr4 |= Cr4::PCIDE;
    let (new, keep) = write(&pcid, 1 << 63 | 0x2007).unwrap();
    assert_eq!((new.cr3, keep), (0x2007, true));
    assert!(!write(&pcid, 0x2007).unwrap().1);
    assert_eq!(write(&pcid, 1 << 62), Err(GP));
    // Outside long mode the register has 32 bits.
    let (new, keep) = write(&protected(), 0xffff_ffff_1234_5678).unwrap();
    assert_eq!((new.cr3, keep), (0x1234_5678, false));
}

#[test]
fn cr4_follows_the_features() {
    let (all, first) = (all(), first_version());
    let always = Cr4::VME
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
    let by_feature = [
        (Cr4::UMIP, Feature::UMIP),
        (Cr4::LA57, Feature::LA57),
        (Cr4::FSGSBASE, Feature::FSGSBASE),
        (Cr4::SMEP, Feature::SMEP),
        (Cr4::SMAP, Feature::SMAP),
        (Cr4::OSXSAVE, Feature::XSAVE),
        (Cr4::PKE, Feature::PKU),
    ];
    for bit in 0..64 {
        let cr4 = Cr4::from_bits_retain(1 << bit);
        let feature = by_feature.iter().find(|(bit, _)| *bit == cr4);
        let none = Features::default();
        let expect = always.contains(cr4);
        assert_eq!(
            write_cr4(&protected(), cr4.bits(), &none).is_ok(),
            expect,
            "bit {bit}"
        );
        if let Some((_, feature)) = feature {
            assert!(write_cr4(&protected(), cr4.bits(), &all).is_ok());
            let without = Features {
                set: all.set - *feature,
                ..all
            };
            assert_eq!(write_cr4(&protected(), cr4.bits(), &without), Err(GP));
        }
    }
    for bit in [Cr4::OSXSAVE, Cr4::PKE, Cr4::CET] {
        assert_eq!(
            write_cr4(&long(true), (Cr4::PAE | bit).bits(), &first),
            Err(GP)
        );
    }
}

#[test]
fn cr4_transitions() {
    let features = all();
    let regs = long(true);
    let write = |regs: &ControlRegs, cr4: Cr4| write_cr4(regs, cr4.bits(), &features);
    assert_eq!(write(&regs, Cr4::empty()), Err(GP), "PAE in long mode");
    assert_eq!(
        write(&regs, Cr4::PAE | Cr4::LA57),
        Err(GP),
        "LA57 in long mode"
    );
    let mut five = regs;
    five.cr4 |= Cr4::LA57;
    assert_eq!(write(&five, Cr4::PAE), Err(GP));
    assert!(write(&five, Cr4::PAE | Cr4::LA57 | Cr4::PGE).is_ok());
    assert!(write(&protected(), Cr4::LA57).is_ok());

    // Process-context identifiers: in long mode, and from identifier 0.
    assert!(write(&regs, Cr4::PAE | Cr4::PCIDE).is_ok());
    assert_eq!(write(&protected(), Cr4::PCIDE), Err(GP));
    let mut odd = regs;
    odd.cr3 |= 1 << 3;
    assert_eq!(write(&odd, Cr4::PAE | Cr4::PCIDE), Err(GP));
    odd.cr4 |= Cr4::PCIDE;
    assert!(
        write(&odd, Cr4::PAE | Cr4::PCIDE | Cr4::PGE).is_ok(),
        "on already"
    );
    assert!(write(&odd, Cr4::PAE).is_ok(), "off");

    let mut unprotected = regs;
    unprotected.cr0 -= Cr0::WP;
    assert_eq!(write(&unprotected, Cr4::PAE | Cr4::CET), Err(GP));
    assert!(write(&regs, Cr4::PAE | Cr4::CET).is_ok());
}

#[test]
fn efer_follows_features_and_paging() {
    let features = first_version();
    let write = |regs: &ControlRegs, efer: Efer| write_efer(regs, efer.bits(), &features);
    let by_feature = [
        (Efer::SCE, Feature::SYSCALL),
        (Efer::LME, Feature::LM),
        (Efer::NXE, Feature::NX),
        (Efer::FFXSR, Feature::FFXSR),
        (Efer::AIBRSE, Feature::AUTOMATIC_IBRS),
    ];
    for bit in 0..64 {
        let efer = Efer::from_bits_retain(1 << bit);
        let known = by_feature.iter().find(|(known, _)| *known == efer);
        let is_lma = efer == Efer::LMA;
        assert_eq!(
            write(&protected(), efer).is_ok(),
            known.is_some() || is_lma,
            "bit {bit}"
        );
        if let Some((_, feature)) = known {
            let without = Features {
                set: features.set - *feature,
                ..features
            };
            assert_eq!(write_efer(&protected(), efer.bits(), &without), Err(GP));
        }
    }
    assert_eq!(write(&protected(), Efer::SVME), Err(GP));
    // LMA is not for writing.
    assert_eq!(write(&protected(), Efer::LMA).unwrap().efer, Efer::empty());
    assert_eq!(
        write(&long(true), Efer::LME).unwrap().efer,
        Efer::LME | Efer::LMA
    );
    // LME cannot change under paging.
    assert_eq!(write(&long(true), Efer::empty()), Err(GP));
    let legacy = ControlRegs {
        efer: Efer::empty(),
        ..long(false)
    };
    assert_eq!(write(&legacy, Efer::LME), Err(GP));
    assert!(write(&legacy, Efer::NXE).is_ok());
}

#[test]
fn states_that_a_vmm_sets() {
    let features = all();
    assert!(valid(&reset(), &Features::default()));
    assert!(valid(&long(true), &features) && valid(&long(false), &features));
    assert!(
        !valid(&long(true), &Features::default()),
        "before the CPUID list"
    );
    for (efer, feature) in [
        (Efer::SCE, None),
        (Efer::LME, Some(Feature::LM)),
        (Efer::NXE, Some(Feature::NX)),
        (Efer::FFXSR, Some(Feature::FFXSR)),
        (Efer::AIBRSE, Some(Feature::AUTOMATIC_IBRS)),
    ] {
        let regs = ControlRegs {
            efer,
            ..protected()
        };
        assert!(valid(&regs, &features));
        if let Some(feature) = feature {
            let without = Features {
                set: features.set - feature,
                ..features
            };
            assert!(!valid(&regs, &without), "{efer:?}");
        }
    }
    let bad = |change: fn(&mut ControlRegs)| {
        let mut regs = long(false);
        change(&mut regs);
        !valid(&regs, &features)
    };
    assert!(bad(|regs| regs.cr4 -= Cr4::PAE));
    assert!(bad(|regs| regs.efer -= Efer::LMA));
    assert!(bad(|regs| regs.efer -= Efer::LME));
    assert!(bad(|regs| regs.efer |= Efer::SVME));
    assert!(bad(|regs| regs.cr0 -= Cr0::PE));
    assert!(bad(|regs| regs.cr0 |= Cr0::NW));
    assert!(bad(|regs| regs.cr0 |= Cr0::from_bits_retain(1 << 32)));
    assert!(bad(|regs| regs.cr3 |= 1 << 48));
    assert!(bad(|regs| regs.cr4 |= Cr4::from_bits_retain(1 << 13)));
    let mut legacy = protected();
    legacy.cs_l = true;
    assert!(!valid(&legacy, &features), "CS.L outside long mode");
}

#[test]
fn canonical_addresses() {
    for (address, bits, canonical) in [
        (0, 48, true),
        (0x0000_7fff_ffff_ffff, 48, true),
        (0x0000_8000_0000_0000, 48, false),
        (0xffff_8000_0000_0000, 48, true),
        (0xffff_7fff_ffff_ffff, 48, false),
        (0x0000_8000_0000_0000, 57, true),
        (0x00ff_ffff_ffff_ffff, 57, true),
        (0x0100_0000_0000_0000, 57, false),
        (0xff00_0000_0000_0000, 57, true),
        (u64::MAX, 48, true),
    ] {
        assert_eq!(
            is_canonical(address, bits),
            canonical,
            "{address:#x} {bits}"
        );
    }
    assert_eq!(
        (linear_bits(Cr4::empty()), linear_bits(Cr4::LA57)),
        (48, 57)
    );
}

proptest! {
    /// Whatever a guest writes, in whatever order: each state on the way is one that is valid.
    #[test]
    fn guests_stay_in_valid_states(
        writes in prop::collection::vec((0_u8..4, any::<u64>(), any::<bool>()), 1..60),
    ) {
        let features = first_version();
        let mut regs = reset();
        for (register, value, likely) in writes {
            // Make the writes that matter probable.
            let sparse = value & value.rotate_left(17) & value.rotate_left(31);
            let (c0, c4, e) = (regs.cr0.bits(), regs.cr4.bits(), regs.efer.bits());
            let result = match register {
                0 if likely => {
                    let toggled = (Cr0::PG | Cr0::PE | Cr0::WP | Cr0::CD).bits() & value;
                    write_cr0(&regs, c0 ^ toggled)
                }
                0 => write_cr0(&regs, value & 0xffff_ffff),
                1 => write_cr3(&regs, sparse & 0x0000_ffff_ffff_ffff, &features).map(|new| new.0),
                2 if likely => write_cr4(&regs, c4 ^ (value & 0x0037_1fff), &features),
                2 => write_cr4(&regs, sparse, &features),
                _ if likely => write_efer(&regs, e ^ (value & 0x901), &features),
                _ => write_efer(&regs, sparse, &features),
            };
            if let Ok(new) = result {
                prop_assert!(valid(&new, &features), "{:?} -> {:?}", regs, new);
                regs = new;
            }
            // Far jumps change CS.L, in long mode only.
            regs.cs_l = regs.efer.contains(Efer::LMA) && value & 1 << 40 != 0;
        }
    }

    #[test]
    fn canonical_is_sign_extension(address: u64, bits: u32) {
        let upper = address >> 47;
        prop_assert_eq!(is_canonical(address, 48), upper == 0 || upper == 0x1_ffff);
        let _ = is_canonical(address, bits);
    }
}
