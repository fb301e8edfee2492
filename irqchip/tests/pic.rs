// SPDX-License-Identifier: GPL-2.0-only

//! The pair of 8259As: command words one by one, and an oracle that keeps its priorities as a list.

use irqchip::lines::{Delivery, Source};
use irqchip::pic::{Which, STATE_SIZE};
use irqchip::Pic;
use proptest::prelude::*;

const A: Source = Source::USER;
const B: Source = Source::PIT;

fn initialized() -> Pic {
    let mut pic = Pic::new();
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x30),
        (0x21, 0x04),
        (0x21, 0x01),
        (0xa0, 0x11),
        (0xa1, 0x38),
        (0xa1, 0x02),
        (0xa1, 0x01),
    ] {
        assert!(pic.port_write(port, value));
    }
    pic
}

fn pulse(pic: &mut Pic, irq: u8) {
    pic.set_irq(irq, A, true);
    pic.set_irq(irq, A, false);
}

fn isr(pic: &mut Pic, port: u16) -> u8 {
    pic.port_write(port, 0x0b);
    let isr = pic.port_read(port);
    pic.port_write(port, 0x0a);
    isr.unwrap()
}

#[test]
fn fully_nested() {
    let mut pic = initialized();
    assert!(!pic.output());
    pulse(&mut pic, 4);
    assert!(pic.output());
    assert_eq!(pic.port_read(0x20), Some(0x10));
    assert_eq!(pic.acknowledge(), 0x34);
    assert_eq!(pic.port_read(0x20), Some(0));
    assert_eq!(isr(&mut pic, 0x20), 0x10);
    pulse(&mut pic, 5);
    pulse(&mut pic, 4);
    assert!(!pic.output(), "lower and equal wait");
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x31);
    pic.port_write(0x20, 0x20);
    assert_eq!(isr(&mut pic, 0x20), 0x10, "the EOI is of the highest");
    pic.port_write(0x20, 0x20);
    assert_eq!(pic.take_ended(), 0x12);
    assert_eq!(pic.take_ended(), 0);
    assert_eq!(pic.acknowledge(), 0x34);
    pic.port_write(0x20, 0x64);
    assert_eq!(pic.acknowledge(), 0x35);
}

#[test]
fn slave() {
    let mut pic = initialized();
    pulse(&mut pic, 12);
    assert_eq!(pic.port_read(0x20), Some(0x04));
    assert_eq!(pic.acknowledge(), 0x3c);
    pulse(&mut pic, 9);
    assert!(!pic.output(), "the master serves input 2 already");
    pic.port_write(0xa0, 0x20);
    assert!(!pic.output());
    pic.port_write(0x20, 0x20);
    assert_eq!(pic.take_ended(), 1 << 12);
    assert_eq!(pic.acknowledge(), 0x39);
    // Input 2 itself belongs to the slave.
    assert_eq!(pic.set_irq(2, A, true), Delivery::Ignored);
    assert_eq!(pic.set_irq(16, A, true), Delivery::Ignored);
}

#[test]
fn special_fully_nested_mode_lets_the_slave_nest() {
    let mut pic = initialized();
    pic.port_write(0x20, 0x11);
    for value in [0x30, 0x04, 0x11] {
        pic.port_write(0x21, value);
    }
    pulse(&mut pic, 12);
    assert_eq!(pic.acknowledge(), 0x3c);
    pulse(&mut pic, 9);
    assert_eq!(pic.acknowledge(), 0x39);
    pulse(&mut pic, 13);
    assert!(!pic.output());
}

/// Two devices hold a line when the VMM sets the state: when one lets go, the other still asks.
#[test]
fn sources_outlive_a_restored_state() {
    for (which, irq, elcr) in [(Which::Master, 5, 0x4d0), (Which::Slave, 10, 0x4d1)] {
        let mut pic = initialized();
        pic.port_write(elcr, 1 << (irq & 7));
        pic.set_irq(irq, A, true);
        pic.set_irq(irq, B, true);
        let mut bytes = [0; STATE_SIZE];
        pic.state(which, &mut bytes);
        pic.set_state(which, &bytes);
        pic.set_irq(irq, A, false);
        assert!(pic.output(), "the other source still asks");
        pic.set_irq(irq, B, false);
        assert!(!pic.output());
    }
}

#[test]
fn spurious() {
    let mut pic = initialized();
    assert_eq!(pic.acknowledge(), 0x37);
    assert_eq!(isr(&mut pic, 0x20), 0);
    // A level that goes away before it is acknowledged.
    pic.port_write(0x4d0, 0x20);
    pic.set_irq(5, A, true);
    assert!(pic.output());
    pic.set_irq(5, A, false);
    assert!(!pic.output());
    // Masked before it is acknowledged, at the slave.
    pulse(&mut pic, 10);
    pic.port_write(0xa1, 0xff);
    assert_eq!(pic.acknowledge(), 0x37);
}

#[test]
fn level_triggered_inputs() {
    let mut pic = initialized();
    for (port, all) in [(0x4d0, 0xf8), (0x4d1, 0xde)] {
        pic.port_write(port, 0xff);
        assert_eq!(pic.port_read(port), Some(all));
    }
    pic.set_irq(11, A, true);
    pic.set_irq(11, B, true);
    for _ in 0..3 {
        assert_eq!(pic.acknowledge(), 0x3b);
        assert!(!pic.output());
        pic.set_irq(11, A, false);
        pic.port_write(0xa0, 0x20);
        pic.port_write(0x20, 0x20);
        assert!(pic.output(), "the other source still asks");
    }
    pic.set_irq(11, B, false);
    assert!(!pic.output());
    // An input that becomes level-triggered while it is high asks.
    let mut pic = initialized();
    pic.set_irq(5, A, true);
    pic.acknowledge();
    pic.port_write(0x20, 0x20);
    assert!(!pic.output());
    pic.port_write(0x4d0, 0x20);
    assert!(pic.output());
}

#[test]
fn initialization() {
    let mut pic = initialized();
    pic.port_write(0x21, 0x55);
    pic.port_write(0x20, 0x68);
    pulse(&mut pic, 1);
    pic.set_irq(3, A, true);
    pic.port_write(0x20, 0x10);
    // Two bytes follow if ICW1 does not ask for ICW4.
    pic.port_write(0x21, 0x47);
    pic.port_write(0x21, 0x04);
    assert_eq!(pic.port_read(0x21), Some(0), "the mask is cleared");
    pic.port_write(0x21, 0x02);
    assert_eq!(pic.port_read(0x21), Some(0x02));
    assert!(
        !pic.output(),
        "edges are forgotten, also of an input that is still high"
    );
    pic.set_irq(3, B, true);
    assert!(!pic.output(), "it was high before");
    pic.set_irq(3, A, false);
    pic.set_irq(3, B, false);
    pic.set_irq(3, A, true);
    assert_eq!(pic.acknowledge(), 0x43);
    assert_eq!(pic.port_read(0x42), None);
    assert!(!pic.port_write(0x42, 0));
}

#[test]
fn automatic_eoi_and_rotation() {
    let mut pic = initialized();
    pic.port_write(0x20, 0x11);
    for value in [0x30, 0x04, 0x03] {
        pic.port_write(0x21, value);
    }
    pic.port_write(0x20, 0x80);
    pulse(&mut pic, 3);
    pulse(&mut pic, 5);
    assert_eq!(pic.acknowledge(), 0x33);
    assert_eq!(isr(&mut pic, 0x20), 0);
    pulse(&mut pic, 3);
    assert_eq!(pic.acknowledge(), 0x35, "3 is the lowest now");
    assert_eq!(pic.acknowledge(), 0x33);
    assert_eq!(pic.take_ended(), 0x28);
    // Set priority: 5 is the lowest, so 6 is the highest.
    pic.port_write(0x20, 0x00);
    pic.port_write(0x20, 0xc5);
    for irq in [0, 5, 6] {
        pulse(&mut pic, irq);
    }
    let order: Vec<_> = (0..3).map(|_| pic.acknowledge()).collect();
    assert_eq!(order, [0x36, 0x30, 0x35]);
}

#[test]
fn special_mask_mode() {
    let mut pic = initialized();
    pulse(&mut pic, 1);
    pic.acknowledge();
    pulse(&mut pic, 6);
    assert!(!pic.output());
    pic.port_write(0x21, 0x02);
    assert!(!pic.output());
    pic.port_write(0x20, 0x68);
    assert_eq!(
        pic.acknowledge(),
        0x36,
        "a masked input in service does not inhibit"
    );
    pic.port_write(0x20, 0x20);
    assert_eq!(isr(&mut pic, 0x20), 0x02, "nor does a plain EOI end it");
    pic.port_write(0x20, 0x61);
    assert_eq!(isr(&mut pic, 0x20), 0);
    pic.port_write(0x20, 0x48);
}

#[test]
fn poll() {
    let mut pic = initialized();
    pic.port_write(0x20, 0x0c);
    assert_eq!(pic.port_read(0x20), Some(0));
    pulse(&mut pic, 14);
    pic.port_write(0x20, 0x0c);
    assert_eq!(pic.port_read(0x20), Some(0x82));
    pic.port_write(0xa0, 0x0c);
    assert_eq!(pic.port_read(0xa1), Some(0x86));
    assert_eq!(isr(&mut pic, 0x20), 0x04);
    assert_eq!(isr(&mut pic, 0xa0), 0x40);
    assert!(!pic.output());
}

#[test]
fn answers_of_set_irq() {
    let mut pic = initialized();
    pic.port_write(0x21, 0x08);
    assert_eq!(pic.set_irq(3, A, true), Delivery::Ignored);
    assert_eq!(pic.set_irq(4, A, true), Delivery::Delivered);
    assert_eq!(pic.set_irq(4, A, false), Delivery::Delivered);
    assert_eq!(pic.set_irq(4, A, true), Delivery::Coalesced);
}

/// One chip. Sets are arrays of Booleans, the priorities a list with the highest first.
#[derive(Debug)]
struct OracleChip {
    order: Vec<usize>,
    line: [bool; 8],
    irr: [bool; 8],
    imr: [bool; 8],
    isr: [bool; 8],
    level: [bool; 8],
    auto_eoi: bool,
    rotate: bool,
    special: bool,
    nested: bool,
    base: u8,
}

impl OracleChip {
    fn new(base: u8, auto_eoi: bool, nested: bool) -> Self {
        Self {
            order: (0..8).collect(),
            line: [false; 8],
            irr: [false; 8],
            imr: [false; 8],
            isr: [false; 8],
            level: [false; 8],
            auto_eoi,
            rotate: false,
            special: false,
            nested,
            base,
        }
    }

    fn drive(&mut self, input: usize, high: bool) {
        if self.level[input] {
            self.irr[input] = high;
        } else if high && !self.line[input] {
            self.irr[input] = true;
        }
        self.line[input] = high;
    }

    fn pending(&self) -> Option<usize> {
        for &input in &self.order {
            let ignored = self.special && self.imr[input] || self.nested && input == 2;
            if self.isr[input] && !ignored {
                return None;
            }
            if self.irr[input] && !self.imr[input] {
                return Some(input);
            }
        }
        None
    }

    fn make_lowest(&mut self, input: usize) {
        while self.order[7] != input {
            self.order.rotate_left(1);
        }
    }

    fn acknowledge(&mut self, input: usize) {
        if !self.level[input] {
            self.irr[input] = false;
        }
        if !self.auto_eoi {
            self.isr[input] = true;
        } else if self.rotate {
            self.make_lowest(input);
        }
    }

    fn end(&mut self, specific: Option<usize>, rotate: bool) {
        let highest = || {
            let serving = |i: &&usize| self.isr[**i] && !(self.special && self.imr[**i]);
            self.order.iter().find(serving).copied()
        };
        if let Some(input) = specific.or_else(highest) {
            self.isr[input] = false;
            if rotate {
                self.make_lowest(input);
            }
        }
    }
}

#[derive(Debug)]
struct Oracle {
    chips: [OracleChip; 2],
}

impl Oracle {
    fn pending(&mut self) -> Option<usize> {
        self.chips[0].irr[2] = self.chips[1].pending().is_some();
        self.chips[0].pending()
    }

    fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.pending() else {
            return self.chips[0].base + 7;
        };
        self.chips[0].acknowledge(input);
        if input != 2 {
            return self.chips[0].base + input as u8;
        }
        let input = self.chips[1].pending().unwrap();
        self.chips[1].acknowledge(input);
        self.chips[1].base + input as u8
    }
}

#[derive(Clone, Debug)]
enum Op {
    Drive(u8, bool),
    Acknowledge,
    End(bool, Option<u8>, bool),
    Mask(bool, u8),
    SpecialMask(bool, bool),
    Rotate(bool, bool),
    Lowest(bool, u8),
    Elcr(bool, u8),
    Poll(bool),
}

fn op() -> impl Strategy<Value = Op> {
    let chip = any::<bool>;
    let input = || 0u8..8;
    prop_oneof![
        8 => (0u8..16, any::<bool>()).prop_map(|(irq, high)| Op::Drive(irq, high)),
        5 => Just(Op::Acknowledge),
        5 => (chip(), prop::option::of(input()), any::<bool>())
            .prop_map(|(c, i, r)| Op::End(c, i, r)),
        1 => (chip(), any::<u8>()).prop_map(|(c, m)| Op::Mask(c, m)),
        1 => (chip(), Just(0)).prop_map(|(c, m)| Op::Mask(c, m)),
        1 => (chip(), any::<bool>()).prop_map(|(c, on)| Op::SpecialMask(c, on)),
        1 => (chip(), any::<bool>()).prop_map(|(c, on)| Op::Rotate(c, on)),
        1 => (chip(), input()).prop_map(|(c, i)| Op::Lowest(c, i)),
        1 => (chip(), any::<u8>()).prop_map(|(c, bits)| Op::Elcr(c, bits)),
        1 => chip().prop_map(Op::Poll),
    ]
}

fn bits(set: &[bool; 8]) -> u8 {
    (0..8).map(|i| u8::from(set[i]) << i).sum()
}

proptest! {
    #[test]
    fn like_the_oracle(
        modes in any::<[bool; 3]>(),
        ops in prop::collection::vec(op(), 1..150),
    ) {
        let [auto_master, auto_slave, nested] = modes;
        let mut pic = initialized();
        for (port, base, auto, nested) in
            [(0x20, 0x30, auto_master, nested), (0xa0, 0x38, auto_slave, false)]
        {
            pic.port_write(port, 0x11);
            for value in [base, 0, 1 | u8::from(auto) << 1 | u8::from(nested) << 4] {
                pic.port_write(port + 1, value);
            }
        }
        let mut oracle = Oracle {
            chips: [
                OracleChip::new(0x30, auto_master, nested),
                OracleChip::new(0x38, auto_slave, false),
            ],
        };
        for op in ops {
            let port = |slave: bool| if slave { 0xa0 } else { 0x20 };
            match op {
                Op::Drive(irq, high) => {
                    pic.set_irq(irq, A, high);
                    if irq != 2 {
                        let chip = &mut oracle.chips[usize::from(irq / 8)];
                        chip.drive(usize::from(irq % 8), high);
                    }
                }
                Op::Acknowledge => prop_assert_eq!(pic.acknowledge(), oracle.acknowledge()),
                Op::End(slave, specific, rotate) => {
                    let command = 0x20
                        | specific.map_or(0, |input| 0x40 | input)
                        | if rotate { 0x80 } else { 0 };
                    pic.port_write(port(slave), command);
                    oracle.chips[usize::from(slave)].end(specific.map(usize::from), rotate);
                }
                Op::Mask(slave, mask) => {
                    pic.port_write(port(slave) + 1, mask);
                    oracle.chips[usize::from(slave)].imr =
                        std::array::from_fn(|i| mask >> i & 1 != 0);
                }
                Op::SpecialMask(slave, on) => {
                    pic.port_write(port(slave), if on { 0x68 } else { 0x48 });
                    oracle.chips[usize::from(slave)].special = on;
                }
                Op::Rotate(slave, on) => {
                    pic.port_write(port(slave), if on { 0x80 } else { 0 });
                    oracle.chips[usize::from(slave)].rotate = on;
                }
                Op::Lowest(slave, input) => {
                    pic.port_write(port(slave), 0xc0 | input);
                    oracle.chips[usize::from(slave)].make_lowest(input.into());
                }
                Op::Elcr(slave, value) => {
                    pic.port_write(0x4d0 + u16::from(slave), value);
                    let value = value & if slave { 0xde } else { 0xf8 };
                    let chip = &mut oracle.chips[usize::from(slave)];
                    for input in 0..8 {
                        let level = value >> input & 1 != 0;
                        if level && !chip.level[input] {
                            chip.irr[input] = chip.line[input];
                        }
                        chip.level[input] = level;
                    }
                }
                Op::Poll(slave) => {
                    pic.port_write(port(slave), 0x0c);
                    let answer = pic.port_read(port(slave)).unwrap();
                    oracle.pending();
                    let chip = &mut oracle.chips[usize::from(slave)];
                    let pending = chip.pending();
                    prop_assert_eq!(answer, pending.map_or(0, |input| 0x80 | input as u8));
                    if let Some(input) = pending {
                        chip.acknowledge(input);
                    }
                }
            }
            prop_assert_eq!(pic.output(), oracle.pending().is_some());
            for (i, port) in [0x20, 0xa0].into_iter().enumerate() {
                prop_assert_eq!(pic.port_read(port), Some(bits(&oracle.chips[i].irr)));
                prop_assert_eq!(isr(&mut pic, port), bits(&oracle.chips[i].isr));
            }
            // A saved and restored pair behaves the same.
            let mut copy = Pic::new();
            for which in [Which::Master, Which::Slave] {
                let mut bytes = [0; STATE_SIZE];
                pic.state(which, &mut bytes);
                copy.set_state(which, &bytes);
            }
            prop_assert_eq!(copy.output(), pic.output());
            prop_assert_eq!(copy.clone().acknowledge(), pic.clone().acknowledge());
        }
    }
}

/// A level-triggered input that nobody lets fall: 10,000 ends in a row, and then a pause. Of both
/// chips, with EOI commands and without.
#[test]
fn a_storm_pauses() {
    use irqchip::storm::ENDS;
    for (irq, elcr, icw4) in [(5, 0x4d0, 1), (5, 0x4d0, 3), (10, 0x4d1, 1), (10, 0x4d1, 3)] {
        let mut pic = initialized();
        for (command, data, base) in [(0x20, 0x21, 0x30), (0xa0, 0xa1, 0x38)] {
            pic.port_write(command, 0x11);
            pic.port_write(data, base);
            pic.port_write(data, if base == 0x30 { 4 } else { 2 });
            pic.port_write(data, icw4);
        }
        pic.port_write(elcr, 1 << (irq & 7));
        pic.set_irq(irq, A, true);
        let end = |pic: &mut Pic| {
            assert_eq!(pic.acknowledge(), 0x30 + irq);
            if icw4 == 1 {
                pic.port_write(0xa0, 0x20);
                pic.port_write(0x20, 0x20);
            }
        };
        for round in 0..3 {
            for count in 1..ENDS {
                end(&mut pic);
                assert!(pic.output(), "{irq} {round} {count}");
                assert!(!pic.take_pause());
            }
            end(&mut pic);
            assert!(!pic.output(), "the pause");
            assert!(pic.take_pause());
            pic.resume();
            assert!(pic.output());
        }
        // A line that falls ends the row.
        for _ in 0..3 * u32::from(ENDS) {
            pic.set_irq(irq, A, true);
            assert_eq!(pic.acknowledge(), 0x30 + irq);
            pic.set_irq(irq, A, false);
            if icw4 == 1 {
                pic.port_write(0xa0, 0x20);
                pic.port_write(0x20, 0x20);
            }
        }
        assert!(!pic.take_pause());
    }
}

/// Devices of the slave that take turns are no storm, though the master's input 2 never falls.
#[test]
fn the_cascade_does_not_pause() {
    use irqchip::storm::ENDS;
    let mut pic = initialized();
    // Level-triggered, all but those that cannot be.
    pic.port_write(0x4d1, 0xde);
    pic.set_irq(10, A, true);
    for end in 0..3 * u32::from(ENDS) {
        let (now, next) = if end % 2 == 0 { (10, 11) } else { (11, 10) };
        assert_eq!(pic.acknowledge(), 0x38 + now - 8, "{end}");
        pic.set_irq(next, A, true);
        pic.set_irq(now, A, false);
        pic.port_write(0xa0, 0x20);
        pic.port_write(0x20, 0x20);
        assert!(pic.output(), "{end}");
    }
    assert!(!pic.take_pause());
}
