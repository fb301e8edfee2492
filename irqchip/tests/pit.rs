// SPDX-License-Identifier: GPL-2.0-only

//! The 8254: its six modes, its reads and writes, port 61h, and that no period drifts.

use irqchip::pit::{FREQUENCY_HZ, MIN_PERIOD_NS, STATE_SIZE};
use irqchip::Pit;
use proptest::prelude::*;

const CHANNEL_0: u16 = 0x40;
const CHANNEL_2: u16 = 0x42;
const CONTROL: u16 = 0x43;
const SPEAKER: u16 = 0x61;
const OUT: u8 = 1 << 5;

/// The first nanosecond after `ticks`.
fn ns(ticks: u64) -> u64 {
    u64::try_from((u128::from(ticks) * 1_000_000_000).div_ceil(u128::from(FREQUENCY_HZ))).unwrap()
}

/// Programs `channel` with a two-byte count.
fn program(pit: &mut Pit, channel: u16, mode: u8, count: u16, now: u64) {
    assert!(pit.port_write(CONTROL, (channel as u8) << 6 | 0x30 | mode << 1, now));
    for byte in count.to_le_bytes() {
        assert!(pit.port_write(CHANNEL_0 + channel, byte, now));
    }
}

fn read_count(pit: &mut Pit, port: u16, now: u64) -> u16 {
    let low = pit.port_read(port, now).unwrap();
    u16::from_le_bytes([low, pit.port_read(port, now).unwrap()])
}

fn out_2(pit: &mut Pit, now: u64) -> bool {
    pit.port_read(SPEAKER, now).unwrap() & OUT != 0
}

#[test]
fn moved_time_has_not_passed() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 2, 5000, 1000);
    program(&mut pit, 2, 0, 60_000, 2000);
    assert!(pit.port_write(SPEAKER, 1, 2500));
    let mut later = pit;
    later.move_time(77_777_777);
    assert_eq!(
        later.next_event(),
        pit.next_event().map(|at| at + 77_777_777)
    );
    for now in [3000, 1_000_000, 30_000_000, 60_000_000] {
        let then = now + 77_777_777;
        assert_eq!(later.advance(then), pit.advance(now));
        assert_eq!(
            later.next_event(),
            pit.next_event().map(|at| at + 77_777_777)
        );
        assert_eq!(out_2(&mut later, then), out_2(&mut pit, now));
        assert!(pit.port_write(CONTROL, 0x80, now));
        assert!(later.port_write(CONTROL, 0x80, then));
        let count = read_count(&mut pit, CHANNEL_2, now);
        assert_eq!(read_count(&mut later, CHANNEL_2, then), count);
    }
}

#[test]
fn nothing_counts_after_power_up() {
    let mut pit = Pit::new();
    assert_eq!(pit.next_event(), None);
    assert_eq!(pit.advance(u64::MAX), 0);
    assert_eq!(pit.port_read(CONTROL, 0), Some(0));
    assert_eq!(pit.port_read(0x44, 0), None);
    assert_eq!(pit.port_read(0x3f, 0), None);
    assert!(!pit.port_write(0x44, 0, 0));
    assert!(!pit.port_write(0, 0, 0));
}

#[test]
fn rate_generator() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 2, 11_932, 1_000);
    assert_eq!(pit.next_event(), Some(1_000 + ns(11_932)));
    assert_eq!(pit.advance(1_000 + ns(11_932) - 1), 0);
    assert_eq!(pit.advance(1_000 + ns(11_932)), 1);
    assert_eq!(pit.advance(1_000 + ns(11_932)), 0);
    assert_eq!(pit.next_event(), Some(1_000 + ns(2 * 11_932)));
    // Five are missed, the next is in time.
    assert_eq!(pit.advance(1_000 + ns(6 * 11_932 + 3)), 5);
    assert_eq!(pit.next_event(), Some(1_000 + ns(7 * 11_932)));
    // The count that is read.
    assert_eq!(
        read_count(&mut pit, CHANNEL_0, 1_000 + ns(6 * 11_932)),
        11_932
    );
    assert_eq!(
        read_count(&mut pit, CHANNEL_0, 1_000 + ns(7 * 11_932 - 1)),
        1
    );
}

#[test]
fn a_zero_is_the_longest_count() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 3, 0, 0);
    assert_eq!(pit.next_event(), Some(ns(65_536)));
    assert_eq!(pit.advance(1_000_000_000), 18);
}

#[test]
fn terminal_count() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 0, 5_000, 0);
    assert_eq!(pit.next_event(), Some(ns(5_000)));
    assert_eq!(read_count(&mut pit, CHANNEL_0, ns(4_999)), 1);
    assert_eq!(pit.advance(ns(5_000)), 1);
    assert_eq!(pit.next_event(), None);
    assert_eq!(pit.advance(ns(500_000)), 0);
    assert_eq!(read_count(&mut pit, CHANNEL_0, ns(5_001)), 0xffff);
    // The first byte of a new count stops it, the second starts it.
    program(&mut pit, 0, 0, 5_000, 0);
    pit.port_write(CHANNEL_0, 0x10, ns(100));
    assert_eq!(pit.next_event(), None);
    pit.port_write(CHANNEL_0, 0x20, ns(100));
    assert_eq!(pit.next_event(), Some(ns(100) + ns(0x2010)));
}

#[test]
fn strobes_and_one_shots() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 4, 5_000, 0);
    assert_eq!(pit.next_event(), Some(ns(5_001)));
    assert_eq!(pit.advance(ns(5_001)), 1);
    assert_eq!(pit.next_event(), None);
    // The gate of channel 0 never rises, so nothing triggers these.
    for mode in [1, 5] {
        program(&mut pit, 0, mode, 5_000, 0);
        assert_eq!(pit.next_event(), None);
        assert_eq!(pit.advance(ns(1_000_000)), 0);
    }
}

#[test]
fn short_periods_cannot_keep_the_host_busy() {
    for mode in [2, 3] {
        let mut pit = Pit::new();
        program(&mut pit, 0, mode, 1, 0);
        let mut now = pit.next_event().unwrap();
        assert!(pit.advance(now) > 0);
        for _ in 0..100 {
            let next = pit.next_event().unwrap();
            assert!(next >= now + MIN_PERIOD_NS);
            now = next;
            assert!(pit.advance(now) > 100, "and the number is right");
        }
    }
}

#[test]
fn output_of_each_mode() {
    // Levels of OUT after so many ticks, for a count of 5 and a gate that rises at the start.
    let expected: [(u8, [bool; 12]); 6] = [
        (0, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1].map(|x| x != 0)),
        (1, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1].map(|x| x != 0)),
        (2, [1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1].map(|x| x != 0)),
        (3, [1, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1, 1].map(|x| x != 0)),
        (4, [1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1].map(|x| x != 0)),
        (5, [1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1].map(|x| x != 0)),
    ];
    for (mode, levels) in expected {
        let mut pit = Pit::new();
        program(&mut pit, 2, mode, 5, 0);
        assert_eq!(
            out_2(&mut pit, 0),
            mode != 0,
            "mode {mode} before the gate rises"
        );
        pit.port_write(SPEAKER, 1, 0);
        for (ticks, level) in levels.into_iter().enumerate() {
            let now = ns(ticks as u64);
            assert_eq!(out_2(&mut pit, now), level, "mode {mode}, tick {ticks}");
        }
    }
}

#[test]
fn gate() {
    let mut pit = Pit::new();
    // Mode 0 pauses while the gate is low.
    program(&mut pit, 2, 0, 100, 0);
    assert_eq!(read_count(&mut pit, CHANNEL_2, ns(50)), 100);
    pit.port_write(SPEAKER, 1, ns(50));
    assert_eq!(read_count(&mut pit, CHANNEL_2, ns(80)), 70);
    pit.port_write(SPEAKER, 0, ns(80));
    assert_eq!(read_count(&mut pit, CHANNEL_2, ns(1_000)), 70);
    pit.port_write(SPEAKER, 1, ns(1_000));
    assert!(!out_2(&mut pit, ns(1_069)));
    assert!(out_2(&mut pit, ns(1_071)));
    // A square wave stays high, and begins anew.
    program(&mut pit, 2, 3, 100, 0);
    assert!(!out_2(&mut pit, ns(60)));
    pit.port_write(SPEAKER, 0, ns(60));
    assert!(out_2(&mut pit, ns(60)));
    pit.port_write(SPEAKER, 1, ns(70));
    assert!(out_2(&mut pit, ns(119)));
    assert!(!out_2(&mut pit, ns(121)));
    // A rise triggers a one-shot again.
    program(&mut pit, 2, 1, 100, 0);
    assert!(out_2(&mut pit, 10));
    for start in [ns(10), ns(50)] {
        pit.port_write(SPEAKER, 0, start);
        pit.port_write(SPEAKER, 1, start);
        assert!(!out_2(&mut pit, start));
    }
    assert!(!out_2(&mut pit, ns(149)));
    assert!(out_2(&mut pit, ns(151)));
}

#[test]
fn speaker_port() {
    let mut pit = Pit::new();
    pit.set_speaker_port(false);
    assert_eq!(pit.port_read(SPEAKER, 0), None);
    assert!(!pit.port_write(SPEAKER, 3, 0));
    pit.set_speaker_port(true);
    pit.port_write(SPEAKER, 0xff, 0);
    assert_eq!(pit.port_read(SPEAKER, 0).unwrap() & 0x0f, 3);
    let refresh = |now| pit.clone().port_read(SPEAKER, now).unwrap() >> 4 & 1;
    let toggles = (0..2_000).filter(|us| refresh(us * 1000) != refresh(us * 1000 + 1000));
    assert!(
        (120..=140).contains(&toggles.count()),
        "every 15 microseconds"
    );
}

#[test]
fn latch_and_read_back() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 2, 0x1234, 0);
    pit.port_write(CONTROL, 0x00, ns(4));
    pit.port_write(CONTROL, 0x00, ns(100));
    assert_eq!(
        read_count(&mut pit, CHANNEL_0, ns(200)),
        0x1230,
        "the first latch counts"
    );
    assert_eq!(read_count(&mut pit, CHANNEL_0, ns(0x34)), 0x1200);
    // Status and count of channel 0: the status comes first.
    pit.port_write(CONTROL, 0xc2, ns(8));
    assert_eq!(pit.port_read(CHANNEL_0, 0), Some(0xb4));
    assert_eq!(read_count(&mut pit, CHANNEL_0, 0), 0x122c);
    // Of the others nothing was latched.
    pit.port_write(CONTROL, 0xe0, 0);
    // A control word without a count: null count.
    pit.port_write(CONTROL, 0x36, 0);
    pit.port_write(CONTROL, 0xe2, 0);
    assert_eq!(pit.port_read(CHANNEL_0, 0), Some(0xf6));
    assert_eq!(pit.next_event(), None);
}

#[test]
fn byte_formats() {
    let mut pit = Pit::new();
    pit.port_write(CONTROL, 0x14, 0);
    pit.port_write(CHANNEL_0, 0xf0, 0);
    assert_eq!(pit.next_event(), Some(ns(0xf0)));
    assert_eq!(pit.port_read(CHANNEL_0, 0), Some(0xf0));
    assert_eq!(pit.port_read(CHANNEL_0, 0), Some(0xf0));
    pit.port_write(CONTROL, 0x24, 0);
    pit.port_write(CHANNEL_0, 0x12, 0);
    assert_eq!(pit.next_event(), Some(ns(0x1200)));
    assert_eq!(pit.port_read(CHANNEL_0, 0), Some(0x12));
    pit.port_write(CONTROL, 0x00, 0);
    assert_eq!(pit.port_read(CHANNEL_0, ns(0x100)), Some(0x12), "latched");
    assert_eq!(pit.port_read(CHANNEL_0, ns(0x101)), Some(0x10));
}

#[test]
fn decimal() {
    let mut pit = Pit::new();
    pit.port_write(CONTROL, 0x31, 0);
    pit.port_write(CHANNEL_0, 0x34, 0);
    pit.port_write(CHANNEL_0, 0x12, 0);
    assert_eq!(pit.next_event(), Some(ns(1234)));
    assert_eq!(read_count(&mut pit, CHANNEL_0, ns(5)), 0x1229);
    assert_eq!(read_count(&mut pit, CHANNEL_0, ns(1235)), 0x9999);
    pit.port_write(CONTROL, 0x35, 0);
    pit.port_write(CHANNEL_0, 0, 0);
    pit.port_write(CHANNEL_0, 0, 0);
    assert_eq!(pit.next_event(), Some(ns(10_000)));
}

#[test]
fn saved_state() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 2, 0x1234, 5);
    program(&mut pit, 2, 3, 0, 5);
    pit.port_write(SPEAKER, 3, 5);
    pit.port_write(CONTROL, 0x00, 5);
    pit.port_write(CONTROL, 0x70, 5);
    let mut bytes = [0; STATE_SIZE];
    pit.state(&mut bytes);
    assert_eq!(bytes[0..4], 0x1234u32.to_le_bytes());
    assert_eq!(bytes[4..16], [0x34, 0x12, 3, 0, 0, 3, 3, 0x34, 3, 2, 0, 1]);
    assert_eq!(bytes[16..24], 5u64.to_le_bytes());
    assert_eq!(bytes[48..52], 65_536u32.to_le_bytes());
    assert_eq!(bytes[72..76], 2u32.to_le_bytes());
    let mut copy = Pit::new();
    copy.set_state(&bytes, 1_000_000);
    assert_eq!(copy.next_event(), Some(1_000_000 + ns(0x1234)));
    assert_eq!(read_count(&mut copy, CHANNEL_0, 1_000_000), 0x1234);
    assert_eq!(copy.port_read(SPEAKER, 1_000_000).unwrap() & 3, 3);
    // With an HPET in its place channel 0 is silent.
    bytes[72] |= 1;
    copy.set_state(&bytes, 0);
    assert_eq!(copy.next_event(), None);
    assert_eq!(copy.advance(1_000_000_000), 0);
}

proptest! {
    /// However late and however often somebody looks: after any time as many interrupts have been
    /// reported as periods have ended, and the next event is the end of the next one.
    #[test]
    fn no_drift(
        square in any::<bool>(),
        count in 300u16..,
        start in 0u64..1 << 40,
        steps in prop::collection::vec(0u64..200_000_000, 1..50),
    ) {
        let mut pit = Pit::new();
        program(&mut pit, 0, if square { 3 } else { 2 }, count, start);
        let (mut now, mut reported) = (start, 0);
        for step in steps {
            now += step;
            reported += u64::from(pit.advance(now));
            let ticks = u128::from(now - start) * u128::from(FREQUENCY_HZ) / 1_000_000_000;
            let periods = u64::try_from(ticks).unwrap() / u64::from(count);
            prop_assert_eq!(reported, periods);
            let end = start + ns((periods + 1) * u64::from(count));
            let next = pit.next_event().unwrap();
            prop_assert!(next == end || end < next && next <= now + MIN_PERIOD_NS);
            prop_assert!(pit.clone().advance(next) > 0);
            prop_assert!(pit.clone().advance(end - 1) == 0);
        }
    }
}
