// SPDX-License-Identifier: GPL-2.0-only

//! Ticks that wait, against a model that counts them one by one.

use irqchip::lines::Delivery;
use irqchip::pit::Ticks;
use irqchip::routing::{Chip, Pins, Target};
use proptest::prelude::*;

#[test]
fn each_tick_gets_its_interrupt() {
    let mut ticks = Ticks::new();
    assert!(ticks.tick(1));
    ticks.sent(Delivery::Delivered);
    // Two more come while the first is handled.
    assert!(!ticks.tick(1));
    assert!(!ticks.tick(1));
    for _ in 0..2 {
        assert!(ticks.ended());
        ticks.sent(Delivery::Delivered);
    }
    assert!(!ticks.ended());
    assert!(!ticks.tick(0));
}

#[test]
fn without_reinjection_every_tick_is_an_edge() {
    let mut ticks = Ticks::new();
    ticks.set_reinject(false);
    for _ in 0..5 {
        assert!(ticks.tick(3));
        ticks.sent(Delivery::Delivered);
    }
    assert!(!ticks.reinject());
}

#[test]
fn a_masked_interrupt_counts_nothing() {
    let mut ticks = Ticks::new();
    assert!(ticks.tick(7));
    ticks.sent(Delivery::Ignored);
    assert!(!ticks.ended());
    assert!(ticks.tick(1));
}

#[test]
fn an_interrupt_that_never_ends_does_not_stop_the_clock() {
    let mut ticks = Ticks::new();
    assert!(ticks.tick(1));
    ticks.sent(Delivery::Delivered);
    assert!((0..2000).any(|_| ticks.tick(1)));
}

#[test]
fn pins_are_those_of_their_chip() {
    let pin = |chip, pin| Target::Pin { chip, pin };
    let pins = Pins {
        ioapic: 1 << 23 | 1 << 2,
        pic: 1 << 8 | 1 << 3,
    };
    assert!(pins.contains(&pin(Chip::Ioapic, 23)));
    assert!(pins.contains(&pin(Chip::PicMaster, 3)));
    assert!(pins.contains(&pin(Chip::PicSlave, 0)));
    assert!(!pins.contains(&pin(Chip::PicSlave, 3)));
    assert!(!pins.contains(&pin(Chip::PicMaster, 2)));
    assert!(!pins.contains(&Target::Msi {
        address: 0,
        data: 2
    }));
}

proptest! {
    /// A guest that ends each interrupt gets as many as there were ticks, and one at a time.
    #[test]
    fn follows_the_model(steps in prop::collection::vec(0u32..6, 1..400)) {
        let mut ticks = Ticks::new();
        let (mut came, mut served, mut in_flight) = (0u32, 0u32, false);
        for step in steps {
            let edge = if step == 5 {
                in_flight = false;
                ticks.ended()
            } else {
                came += step;
                ticks.tick(step)
            };
            // Within the limit of what counts as lost, there is no edge while one is in flight.
            if came - served < 1000 {
                prop_assert_eq!(edge, !in_flight && came != served && (step != 0));
            }
            if edge {
                served += 1;
                in_flight = true;
                ticks.sent(Delivery::Delivered);
            }
        }
        while ticks.ended() {
            served += 1;
            ticks.sent(Delivery::Delivered);
        }
        prop_assert_eq!(served, came);
    }
}
