// SPDX-License-Identifier: GPL-2.0-only

//! The rate of a guest's TSC: which can be had, and what the offset is for.

use proptest::prelude::*;
use x86::tsc::{TscOrigin, TscRate, TscRatio};

const HOST: u32 = 2_596_000;

fn rate(khz: u32) -> Option<TscRate> {
    TscRate::new(khz, HOST, true)
}

#[test]
fn which_rates_there_are() {
    let host = TscRate::host(HOST);
    assert_eq!(rate(0), Some(host));
    assert_eq!(rate(HOST), Some(host));
    // 250 ppm: what the VMM asked for is told, and the CPU's own TSC is used.
    for khz in [HOST - 649, HOST + 649] {
        let near = rate(khz).unwrap();
        assert_eq!((near.khz, near.ratio), (khz, TscRatio::ONE));
        assert_eq!(near.real_khz(HOST), HOST);
        assert_eq!(TscRate::new(khz, HOST, false), Some(near));
    }
    for khz in [HOST - 650, HOST + 650, 1, 2 * HOST, 255 * HOST] {
        let other = rate(khz).unwrap();
        assert_ne!(other.ratio, TscRatio::ONE);
        assert_eq!(other.ratio.bits() >> 40, 0);
        assert_eq!(other.real_khz(HOST), khz);
        assert_eq!(TscRate::new(khz, HOST, false), None);
    }
    assert_eq!(rate(2 * HOST).unwrap().ratio.bits(), 2 << 32);
    // Eight bits of integer, and not nothing.
    assert_eq!(rate(256 * HOST), None);
    assert_eq!(TscRate::new(1, u32::MAX, true).unwrap().ratio.bits(), 1);
    assert_eq!(TscRate::new(5, 0, true), Some(TscRate::host(0)));
}

proptest! {
    #[test]
    fn the_origin_is_where_all_rates_meet(
        host in 0..1_u64 << 60, guest: u64, khz in 1..10 * HOST, later in 0..1_u64 << 58, lost in 0..1_u64 << 61,
    ) {
        let ratio = rate(khz).unwrap().ratio;
        let origin = TscOrigin { host, guest };
        let tsc = |origin: &TscOrigin, host: u64| ratio.scale(host).wrapping_add(origin.offset(ratio));
        prop_assert_eq!(tsc(&origin, host), guest);
        // From there on each runs at its own rate.
        let passed = tsc(&origin, host + later).wrapping_sub(guest);
        prop_assert!(passed.wrapping_sub(ratio.scale(later)) <= 1);
        // The offset that the VMM sets is the offset that it reads.
        let offset = origin.offset(ratio);
        prop_assert_eq!(TscOrigin::of(ratio, offset, host + later).offset(ratio), offset);
        // At another rate it is as far from the others as before.
        let ahead = later ^ guest;
        let old = origin.offset(TscRatio::ONE).wrapping_add(ahead);
        let moved = origin.at_ratio(ratio, TscRatio::ONE, old);
        prop_assert_eq!(ratio.scale(host).wrapping_add(moved), guest.wrapping_add(ahead));
        // The host's TSC has gone back: the guest's has not, and counts on at its rate.
        let back = TscOrigin { host: host.wrapping_sub(lost), guest };
        let now = host.saturating_sub(lost);
        let since = now.wrapping_sub(back.host);
        let passed = tsc(&back, now).wrapping_sub(guest);
        prop_assert!(passed.wrapping_sub(ratio.scale(since)) <= 1);
    }
}
