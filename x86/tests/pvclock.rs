// SPDX-License-Identifier: GPL-2.0-only

//! The paravirtual clock, read as a guest reads it.

use proptest::prelude::*;
use x86::pvclock::{next_version, PvClock, Scale, WallClock};

/// The arithmetic of the guest, from the kernel's Documentation/virt/kvm/x86/msr.rst.
fn guest_clock(page: &[u8; 32], tsc: u64) -> u64 {
    let word = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
    let long = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
    let mut time = tsc - long(8);
    let shift = page[28] as i8;
    if shift >= 0 {
        time <<= shift;
    } else {
        time >>= -shift;
    }
    let scaled = ((u128::from(time) * u128::from(word(24))) >> 32) as u64;
    scaled + long(16)
}

#[test]
fn layout() {
    let clock = PvClock {
        tsc: 0x1122_3344_5566_7788,
        system_time: 0x99aa_bbcc_ddee_ff00,
        scale: Scale {
            mul: 0x1234_5678,
            shift: -2,
        },
        stable: true,
        guest_stopped: true,
    };
    let mut expected = [0; 32];
    expected[0] = 6;
    expected[8..16].copy_from_slice(&[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
    expected[16..24].copy_from_slice(&[0x00, 0xff, 0xee, 0xdd, 0xcc, 0xbb, 0xaa, 0x99]);
    expected[24..30].copy_from_slice(&[0x78, 0x56, 0x34, 0x12, 0xfe, 3]);
    assert_eq!(clock.bytes(6), expected);

    for (stable, guest_stopped, flags) in [(false, false, 0), (true, false, 1), (false, true, 2)] {
        let clock = PvClock {
            stable,
            guest_stopped,
            ..clock
        };
        assert_eq!(clock.bytes(6)[29], flags);
    }

    let wall = WallClock::at_boot(1_700_000_010_500_000_000, 10_250_000_000);
    assert_eq!((wall.sec, wall.nsec), (1_700_000_000, 250_000_000));
    let mut expected = [2, 0, 0, 0, 0, 0xf1, 0x53, 0x65, 0, 0, 0, 0];
    expected[8..].copy_from_slice(&250_000_000_u32.to_le_bytes());
    assert_eq!(wall.bytes(2), expected);
}

#[test]
fn well_known_rates() {
    // One gigahertz: a tick is a nanosecond.
    let scale = Scale::new(1_000_000);
    assert_eq!((scale.mul, scale.shift), (1 << 31, 1));
    assert_eq!(scale.ns(123_456_789), 123_456_789);
    // Two: half.
    assert_eq!(Scale::new(2_000_000).ns(2_000_000_000), 1_000_000_000);
    // A deadline that is far away stays so, at rates below a gigahertz, too.
    let scale = Scale::new(500_000);
    assert_eq!(scale.ns(1 << 62), 1 << 63);
    assert_eq!(scale.ns(1 << 63), u64::MAX);
    assert_eq!(Scale::new(1).ns(u64::MAX), u64::MAX);
    // Out of range, but no panic.
    for khz in [0, 1, 2, u32::MAX] {
        let scale = Scale::new(khz);
        let _ = scale.ns(u64::MAX);
        assert!(scale.mul >= 1 << 31, "{khz}");
    }
}

proptest! {
    /// A day of ticks, at any rate from 1 MHz to 10 GHz: within a microsecond of the truth, and
    /// never ahead of it.
    #[test]
    fn a_day_is_a_day(khz in 1_000_u32..10_000_000, milliseconds in 0_u64..86_400_000) {
        let ticks = milliseconds * u64::from(khz);
        let clock = PvClock {
            tsc: 1 << 40,
            system_time: 5_000,
            scale: Scale::new(khz),
            stable: true,
            guest_stopped: false,
        };
        let read = guest_clock(&clock.bytes(2), (1 << 40) + ticks);
        let truth = 5_000 + milliseconds * 1_000_000;
        prop_assert!(read <= truth);
        // The multiplier has 31 or 32 bits.
        let error = milliseconds * 1_000_000 / (1 << 31) + 2;
        prop_assert!(truth - read <= error, "{} ns late", truth - read);
        prop_assert_eq!(clock.scale.ns(ticks) + 5_000, read);
    }
}

#[test]
fn a_record_goes_on_from_what_is_there() {
    for (old, next) in [(0, 2), (2, 4), (3, 6), (u32::MAX - 1, 0), (u32::MAX, 2)] {
        assert_eq!(next_version(old), next, "{old}");
        assert_ne!(next_version(old).wrapping_sub(1), old);
    }
    let mut old = [0; PvClock::SIZE];
    assert!(!PvClock::tells_stop(&old));
    old[29] = 3;
    assert!(PvClock::tells_stop(&old));
}
