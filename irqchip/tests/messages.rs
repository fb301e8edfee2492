// SPDX-License-Identifier: GPL-2.0-only

//! MSI messages, destinations and the GSI routing table.

use irqchip::dest::{pick_lowest_priority, x2apic_logical_id};
use irqchip::routing::{self, Chip, Limits, Route, RouteError, Target};
use irqchip::{DeliveryMode, Destination, Message, Shorthand, Snapshot};
use proptest::prelude::*;

const FLAT: u32 = 0xffff_ffff;
const CLUSTER: u32 = 0x0fff_ffff;

fn to(id: u32, logical: bool) -> Destination {
    Destination {
        id,
        logical,
        shorthand: Shorthand::None,
        narrow_broadcast: false,
    }
}

fn xapic(id: u8, ldr: u8, dfr: u32) -> Snapshot {
    Snapshot::xapic(id.into(), u32::from(ldr) << 24, dfr, true)
}

#[test]
fn messages_of_devices() {
    let message = Message::from_msi(0xffff_ff00_fee5_a004, 0x0000_c941, false);
    let expected = Message {
        vector: 0x41,
        delivery_mode: DeliveryMode::LowestPriority,
        dest: 0x5a,
        logical: true,
        level: true,
    };
    assert_eq!(message, expected);
    let message = Message::from_msi(0xabcd_ef00_fee5_a000, 0x0000_0441, true);
    assert_eq!(message.dest, 0xabcd_ef5a);
    assert_eq!(message.delivery_mode, DeliveryMode::Nmi);
    assert!(!message.logical && !message.level);
    let message = Message::from_msi(0xfee0_100c, 0x41, false);
    assert_eq!(
        message.delivery_mode,
        DeliveryMode::LowestPriority,
        "redirection hint"
    );
    assert!(Message::extended_address_is_legal(0xffff_ff00_0000_0000));
    assert!(!Message::extended_address_is_legal(0x0000_0001_fee0_0000));
}

#[test]
fn physical_destinations() {
    let apic = xapic(3, 0, FLAT);
    assert!(apic.matches(&to(3, false), false));
    assert!(!apic.matches(&to(4, false), false));
    assert!(!apic.matches(&to(0x103, false), false), "not modulo 256");
    assert!(apic.matches(&to(0xff, false), false));
    assert!(apic.matches(&to(u32::MAX, false), false));

    let apic = Snapshot::x2apic(0x103, true);
    assert!(apic.matches(&to(0x103, false), false));
    assert!(!apic.matches(&to(3, false), false));
    assert!(apic.matches(&to(u32::MAX, false), false));
    assert!(!apic.matches(&to(0xff, false), false));
    let message = Message::from_msi(0xfeef_f000, 0x41, false);
    assert!(apic.matches(&message.destination(false), false));
    assert!(!apic.matches(&message.destination(true), false));
    assert!(Snapshot::x2apic(0xff, true).matches(&message.destination(true), false));
}

#[test]
fn logical_destinations() {
    let flat = xapic(0, 0b0100, FLAT);
    assert!(flat.matches(&to(0b0110, true), false));
    assert!(!flat.matches(&to(0b1011, true), false));
    assert!(flat.matches(&to(0xff, true), false));
    assert!(!flat.matches(&to(0, true), false));
    assert!(!flat.matches(&to(0x104, true), false));

    let cluster = xapic(0, 0x24, CLUSTER);
    assert!(cluster.matches(&to(0x26, true), false));
    assert!(!cluster.matches(&to(0x36, true), false));
    assert!(!cluster.matches(&to(0x2b, true), false));
    assert!(cluster.matches(&to(0xff, true), false));

    let reserved = xapic(0, 0xff, 0x5fff_ffff);
    assert!(!reserved.matches(&to(0x01, true), false));
    assert!(reserved.matches(&to(0xff, true), false));

    assert_eq!(x2apic_logical_id(0x125), 0x12_0020);
    let x2apic = Snapshot::x2apic(0x125, true);
    assert_eq!(x2apic.logical_id(), 0x12_0020);
    assert!(x2apic.matches(&to(0x12_ffff, true), false));
    assert!(!x2apic.matches(&to(0x12_ffdf, true), false));
    assert!(!x2apic.matches(&to(0x13_0020, true), false));
    assert!(x2apic.matches(&to(u32::MAX, true), false));
    // 0xff is processors 0 to 7 of cluster 0, whatever it means physically.
    let eighth = Snapshot::x2apic(8, true);
    let quirky = Destination {
        narrow_broadcast: true,
        ..to(0xff, true)
    };
    assert!(!eighth.matches(&quirky, false));
    assert!(Snapshot::x2apic(7, true).matches(&quirky, false));
}

#[test]
fn shorthands() {
    let apic = xapic(3, 0, FLAT);
    for (shorthand, is_source, matches) in [
        (Shorthand::Myself, true, true),
        (Shorthand::Myself, false, false),
        (Shorthand::All, true, true),
        (Shorthand::All, false, true),
        (Shorthand::Others, true, false),
        (Shorthand::Others, false, true),
    ] {
        let dest = Destination {
            shorthand,
            ..to(9, false)
        };
        assert_eq!(apic.matches(&dest, is_source), matches);
        assert!(!Snapshot::ABSENT.matches(&dest, is_source));
    }
    assert!(!Snapshot::ABSENT.matches(&to(u32::MAX, false), false));
    assert!(!Snapshot::ABSENT.matches(&to(0, false), false));
}

#[test]
fn snapshots_survive_their_word() {
    for snapshot in [
        Snapshot::ABSENT,
        xapic(0xfe, 0x81, CLUSTER),
        Snapshot::x2apic(u32::MAX, false),
    ] {
        assert_eq!(Snapshot::from_bits(snapshot.to_bits()), snapshot);
    }
    let snapshot = Snapshot::x2apic(7, false);
    assert!(snapshot.is_present() && snapshot.is_x2apic() && !snapshot.is_enabled());
    assert_eq!(
        (snapshot.id(), xapic(9, 0x42, FLAT).logical_id()),
        (7, 0x42)
    );
}

#[test]
fn arbitration_goes_round() {
    let candidates = [2, 5, 7];
    let picks: Vec<_> = (0..6)
        .map(|seed| pick_lowest_priority(candidates.iter(), seed))
        .map(|pick| *pick.unwrap())
        .collect();
    assert_eq!(picks, [2, 5, 7, 2, 5, 7]);
    assert_eq!(pick_lowest_priority(std::iter::empty::<u8>(), 3), None);
}

const ALL: Limits = Limits {
    pins: true,
    extended_ids: false,
};

#[test]
fn default_routing() {
    let mut table = routing::default_routes();
    assert_eq!(routing::sort_and_check(&mut table), Ok(()));
    for gsi in 0..16u8 {
        let chip = if gsi < 8 {
            Chip::PicMaster
        } else {
            Chip::PicSlave
        };
        let targets: Vec<_> = routing::routes(&table, gsi.into())
            .iter()
            .map(|route| route.target)
            .collect();
        assert_eq!(targets.len(), 2);
        assert!(targets.contains(&Target::Pin { chip, pin: gsi % 8 }));
        assert!(targets.contains(&Target::Pin {
            chip: Chip::Ioapic,
            pin: gsi
        }));
    }
    for gsi in 16..24u8 {
        let target = Target::Pin {
            chip: Chip::Ioapic,
            pin: gsi,
        };
        let route = Route {
            gsi: gsi.into(),
            target,
        };
        assert_eq!(routing::routes(&table, gsi.into()), [route]);
    }
    assert!(routing::routes(&table, 24).is_empty());
    assert!(routing::routes(&[], 0).is_empty());
}

#[test]
fn entries() {
    let entry = Route::from_entry;
    let pin = |chip, pin| Target::Pin { chip, pin };
    let target = |result: Result<Route, _>| result.map(|route| route.target);
    assert_eq!(
        target(entry(4095, 1, 0, [2, 23, 0, 0], ALL)),
        Ok(pin(Chip::Ioapic, 23))
    );
    assert_eq!(
        target(entry(0, 1, 0, [0, 7, 0, 0], ALL)),
        Ok(pin(Chip::PicMaster, 7))
    );
    let msi = entry(5, 2, 0, [0xfee0_0000, 0x1234_5601, 0x41, 9], ALL).unwrap();
    let address = 0x1234_5601_fee0_0000;
    assert_eq!(
        msi.target,
        Target::Msi {
            address,
            data: 0x41
        }
    );
    assert_eq!(msi.target.message(false).unwrap().vector, 0x41);
    assert_eq!(pin(Chip::Ioapic, 1).message(false), None);

    // The ID of the device that sends it, if the VMM says that there is one, is not needed.
    assert_eq!(
        entry(5, 2, 1, [0xfee0_0000, 0x1234_5601, 0x41, 9], ALL),
        Ok(msi)
    );
    assert_eq!(
        entry(5, 2, 2, [0xfee0_0000, 0, 0x41, 9], ALL),
        Err(RouteError::Kind)
    );
    assert_eq!(
        entry(5, 2, 3, [0xfee0_0000, 0, 0x41, 9], ALL),
        Err(RouteError::Kind)
    );

    let split = Limits {
        pins: false,
        extended_ids: true,
    };
    assert_eq!(
        entry(5, 2, 0, [0xfee0_0000, 1, 0, 0], split),
        Err(RouteError::Address)
    );
    assert!(entry(5, 2, 0, [0xfee0_0000, 0x100, 0, 0], split).is_ok());
    assert_eq!(entry(5, 1, 0, [0, 0, 0, 0], split), Err(RouteError::Kind));
    assert_eq!(entry(4096, 1, 0, [0; 4], ALL), Err(RouteError::Gsi));
    assert_eq!(entry(0, 1, 1, [0; 4], ALL), Err(RouteError::Kind));
    assert_eq!(entry(0, 1, 0, [3, 0, 0, 0], ALL), Err(RouteError::Kind));
    assert_eq!(entry(0, 1, 0, [0, 8, 0, 0], ALL), Err(RouteError::Pin));
    assert_eq!(entry(0, 1, 0, [2, 24, 0, 0], ALL), Err(RouteError::Pin));
    for kind in [0, 3, 4, 5, u32::MAX] {
        assert_eq!(entry(0, kind, 0, [0; 4], ALL), Err(RouteError::Kind));
    }
}

fn route() -> impl Strategy<Value = Route> {
    let chips = prop_oneof![
        Just(Chip::PicMaster),
        Just(Chip::PicSlave),
        Just(Chip::Ioapic)
    ];
    let target = prop_oneof![
        6 => (chips, 0u8..8).prop_map(|(chip, pin)| Target::Pin { chip, pin }),
        1 => Just(Target::Msi { address: 0xfee0_0000, data: 1 }),
    ];
    (0u32..6, target).prop_map(|(gsi, target)| Route { gsi, target })
}

proptest! {
    #[test]
    fn tables(table in prop::collection::vec(route(), 0..12)) {
        let conflict = table.iter().enumerate().any(|(i, a)| {
            table.iter().skip(i + 1).any(|b| {
                let joinable = match (a.target, b.target) {
                    (Target::Pin { chip: a, .. }, Target::Pin { chip: b, .. }) => a != b,
                    _ => false,
                };
                a.gsi == b.gsi && !joinable
            })
        });
        let mut sorted = table.clone();
        prop_assert_eq!(routing::sort_and_check(&mut sorted).is_err(), conflict);
        for gsi in 0..7 {
            let of_gsi = routing::routes(&sorted, gsi);
            prop_assert!(of_gsi.iter().all(|route| route.gsi == gsi));
            prop_assert_eq!(of_gsi.len(), table.iter().filter(|route| route.gsi == gsi).count());
        }
    }
}
