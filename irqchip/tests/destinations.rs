// SPDX-License-Identifier: GPL-2.0-only

//! Whom a message is looked for: among the candidates are all that it is for.

use irqchip::dest::{ApicModes, IdSet};
use irqchip::{Destination, Shorthand, Snapshot};
use proptest::prelude::*;

fn dest() -> impl Strategy<Value = Destination> {
    let id = prop_oneof![
        0..300u32,
        Just(0xff),
        Just(u32::MAX),
        (0..20u32, any::<u16>()).prop_map(|(cluster, bits)| cluster << 16 | u32::from(bits)),
        any::<u32>(),
    ];
    (id, any::<bool>(), 0..8u32, any::<bool>()).prop_map(|(id, logical, shorthand, narrow)| {
        Destination {
            id,
            logical,
            // Mostly none.
            shorthand: Shorthand::from_bits(shorthand.saturating_sub(4)),
            narrow_broadcast: narrow,
        }
    })
}

/// A processor of this number in some state: absent, an xAPIC with an ID of its own or another, an
/// x2APIC.
fn processor() -> impl Strategy<Value = (u32, Snapshot)> {
    let odd = (0..4u8, any::<u8>(), any::<u32>(), any::<bool>());
    (0..300u32, odd).prop_map(|(number, (kind, other, logical, flat))| {
        let dfr = if flat { u32::MAX } else { 0x0fff_ffff };
        let snapshot = match kind {
            0 => Snapshot::ABSENT,
            1 => Snapshot::xapic(number, logical, dfr, true),
            2 if number < 256 => Snapshot::xapic(u32::from(other), logical, dfr, true),
            _ => Snapshot::x2apic(number, true),
        };
        (number, snapshot)
    })
}

proptest! {
    #[test]
    fn nobody_is_missed(machine in prop::collection::vec(processor(), 1..8), dest in dest()) {
        let census = ApicModes {
            all_x2apic: !machine.iter().any(|(_, apic)| apic.is_xapic()),
            own_ids: !machine.iter().any(|(number, apic)| apic.is_renumbered(*number)),
        };
        if let Some(set) = dest.candidates(census) {
            for (number, apic) in &machine {
                for is_source in [false, true] {
                    prop_assert!(!apic.matches(&dest, is_source) || set.contains(*number));
                }
            }
        }
    }

    #[test]
    fn words_of_a_set(first in prop_oneof![0..300u32, any::<u32>()], bits: u128, id: u32, near in 0..400u32) {
        let set = IdSet { first, bits };
        for id in [id, near, first.saturating_add(near), first.saturating_sub(near)] {
            // The set does not go round at the highest number.
            let expected = id >= first && id - first < 128 && bits >> (id - first) & 1 != 0;
            prop_assert_eq!(set.contains(id), expected);
            prop_assert_eq!(set.word(id / 64) >> (id % 64) & 1 != 0, expected);
            let (begin, end) = set.words();
            prop_assert!(!expected || (begin..end).contains(&(id / 64)));
        }
    }
}

#[test]
fn one_or_a_cluster() {
    let to = |id, logical| Destination {
        id,
        logical,
        shorthand: Shorthand::None,
        narrow_broadcast: true,
    };
    let mixed = ApicModes {
        all_x2apic: false,
        own_ids: true,
    };
    let x2apics = ApicModes {
        all_x2apic: true,
        ..mixed
    };
    let odd = ApicModes {
        own_ids: false,
        ..mixed
    };
    assert_eq!(to(70, false).candidates(mixed), Some(IdSet::one(70)));
    assert_eq!(to(70, false).candidates(odd), None);
    assert_eq!(to(0xff, false).candidates(mixed), None);
    assert_eq!(to(u32::MAX, true).candidates(x2apics), None);
    let cluster = Some(IdSet {
        first: 0x30,
        bits: 0x8001,
    });
    assert_eq!(to(0x3_8001, true).candidates(odd), cluster);
    assert_eq!(to(0x41, true).candidates(mixed), None);
    let low = Some(IdSet {
        first: 0,
        bits: 0x41,
    });
    assert_eq!(to(0x41, true).candidates(x2apics), low);
}
