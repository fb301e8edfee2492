// SPDX-License-Identifier: GPL-2.0-only

//! The IOAPIC: its registers, and the life of level-triggered interrupts.

use irqchip::ioapic::{PINS, STATE_SIZE};
use irqchip::lines::{Delivery, Source};
use irqchip::pit::Ticks;
use irqchip::{DeliveryMode, Ioapic, Message};
use proptest::prelude::*;

const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const REMOTE_IRR: u64 = 1 << 14;
const A: Source = Source::USER;
const B: Source = Source::RESAMPLE;

/// Somebody who takes every message.
#[derive(Default)]
struct Bus(Vec<Message>);

impl Bus {
    fn send(&mut self) -> impl FnMut(Message) -> bool + '_ {
        |message| {
            self.0.push(message);
            true
        }
    }

    fn take(&mut self) -> Vec<u8> {
        self.0.drain(..).map(|message| message.vector).collect()
    }
}

fn select(ioapic: &mut Ioapic, index: u8) {
    ioapic.mmio_write(0, &[index, 0, 0, 0], &mut |_| panic!("select sends"));
}

fn read(ioapic: &mut Ioapic, index: u8) -> u32 {
    select(ioapic, index);
    let mut bytes = [0; 4];
    ioapic.mmio_read(0x10, &mut bytes);
    u32::from_le_bytes(bytes)
}

fn write(ioapic: &mut Ioapic, bus: &mut Bus, index: u8, value: u32) {
    select(ioapic, index);
    ioapic.mmio_write(0x10, &value.to_le_bytes(), &mut bus.send());
}

fn entry(ioapic: &mut Ioapic, pin: u8) -> u64 {
    let low = read(ioapic, 0x10 + 2 * pin);
    u64::from(read(ioapic, 0x11 + 2 * pin)) << 32 | u64::from(low)
}

/// `irr` of `kvm_ioapic_state`.
fn saved_irr(ioapic: &Ioapic) -> u32 {
    let mut bytes = [0; STATE_SIZE];
    ioapic.state(&mut bytes);
    u32::from_le_bytes(bytes[16..20].try_into().unwrap())
}

fn program(ioapic: &mut Ioapic, bus: &mut Bus, pin: u8, value: u64) {
    write(ioapic, bus, 0x11 + 2 * pin, (value >> 32) as u32);
    write(ioapic, bus, 0x10 + 2 * pin, value as u32);
}

#[test]
fn registers() {
    let mut ioapic = Ioapic::new();
    let mut bus = Bus::default();
    assert_eq!(read(&mut ioapic, 1), 0x0017_0011);
    write(&mut ioapic, &mut bus, 0, 0xffff_ffff);
    assert_eq!(read(&mut ioapic, 0), 0x0f00_0000);
    assert_eq!(read(&mut ioapic, 2), 0x0f00_0000);
    for pin in 0..PINS as u8 {
        assert_eq!(entry(&mut ioapic, pin), MASKED);
        program(&mut ioapic, &mut bus, pin, u64::MAX);
        assert_eq!(entry(&mut ioapic, pin), 0xff00_0000_0001_afff);
    }
    for index in [3, 0xf, 0x40, 0xff] {
        write(&mut ioapic, &mut bus, index, u32::MAX);
        assert_eq!(read(&mut ioapic, index), 0);
    }
    // Bytes of the window, and other addresses.
    select(&mut ioapic, 1);
    let mut byte = [0xff; 1];
    ioapic.mmio_read(0x12, &mut byte);
    assert_eq!(byte, [0x17]);
    let mut long = [0xff; 8];
    ioapic.mmio_read(0x10, &mut long);
    assert_eq!(long, [0x11, 0, 0x17, 0, 0, 0, 0, 0]);
    ioapic.mmio_read(0x20, &mut byte);
    assert_eq!(byte, [0]);
    assert!(bus.0.is_empty());
}

#[test]
fn edge() {
    let mut ioapic = Ioapic::new();
    let mut bus = Bus::default();
    program(&mut ioapic, &mut bus, 4, 0x0300_0000_0000_0934);
    assert_eq!(
        ioapic.set_pin(4, A, true, &mut bus.send()),
        Delivery::Delivered
    );
    let message = Message {
        vector: 0x34,
        delivery_mode: DeliveryMode::LowestPriority,
        dest: 3,
        logical: true,
        level: false,
    };
    assert_eq!(bus.0, [message]);
    assert_eq!(
        ioapic.set_pin(4, A, true, &mut bus.send()),
        Delivery::Coalesced
    );
    ioapic.eoi(0x34, &mut bus.send());
    assert_eq!(bus.take(), [0x34]);
    ioapic.set_pin(4, A, false, &mut bus.send());
    ioapic.set_pin(4, A, true, &mut bus.send());
    assert_eq!(bus.take(), [0x34]);
    // An edge at a masked pin is forgotten (82093AA, 3.2.4, "Interrupt Mask").
    ioapic.set_pin(4, A, false, &mut bus.send());
    program(&mut ioapic, &mut bus, 4, MASKED | 0x34);
    assert_eq!(
        ioapic.set_pin(4, A, true, &mut bus.send()),
        Delivery::Ignored
    );
    program(&mut ioapic, &mut bus, 4, 0x34);
    assert_eq!(bus.take(), []);
    assert_eq!(
        ioapic.set_pin(24, A, true, &mut bus.send()),
        Delivery::Ignored
    );
    assert_eq!(
        ioapic.set_pin(255, A, true, &mut bus.send()),
        Delivery::Ignored
    );
}

#[test]
fn level_sends_again_until_released() {
    let mut ioapic = Ioapic::new();
    let mut bus = Bus::default();
    program(&mut ioapic, &mut bus, 10, LEVEL | 0x50);
    ioapic.set_pin(10, A, true, &mut bus.send());
    assert_eq!(bus.take(), [0x50]);
    assert_eq!(entry(&mut ioapic, 10), LEVEL | REMOTE_IRR | 0x50);
    assert_eq!(
        ioapic.set_pin(10, A, true, &mut bus.send()),
        Delivery::Coalesced
    );
    ioapic.eoi(0x51, &mut bus.send());
    assert_eq!(bus.take(), []);
    assert_eq!(ioapic.eoi_pins(0x50), 1 << 10);
    ioapic.eoi(0x50, &mut bus.send());
    assert_eq!(bus.take(), [0x50]);
    ioapic.set_pin(10, A, false, &mut bus.send());
    ioapic.eoi(0x50, &mut bus.send());
    assert_eq!(bus.take(), []);
    assert_eq!(entry(&mut ioapic, 10), LEVEL | 0x50);
}

/// What software does that masks an interrupt before it acknowledges it: the end of an edge is
/// heard all the same, so whoever counts ticks sends the next one.
#[test]
fn a_pin_masked_in_service_ends() {
    let mut ioapic = Ioapic::new();
    let mut bus = Bus::default();
    let mut ticks = Ticks::new();
    program(&mut ioapic, &mut bus, 2, 0x50);
    assert!(ticks.tick(1));
    ticks.sent(ioapic.set_pin(2, A, true, &mut bus.send()));
    ioapic.set_pin(2, A, false, &mut bus.send());
    assert!(!ticks.tick(1));
    program(&mut ioapic, &mut bus, 2, MASKED | 0x50);
    assert_eq!(ioapic.eoi_pins(0x50), 1 << 2);
    ioapic.eoi(0x50, &mut bus.send());
    assert!(ticks.ended());
    program(&mut ioapic, &mut bus, 2, 0x50);
    assert!(ticks.tick(1));
    ticks.sent(ioapic.set_pin(2, A, true, &mut bus.send()));
    assert_eq!(bus.take(), [0x50, 0x50]);
}

#[test]
fn a_masked_level_waits() {
    let mut ioapic = Ioapic::new();
    let mut bus = Bus::default();
    program(&mut ioapic, &mut bus, 3, MASKED | LEVEL | 0x50);
    assert_eq!(
        ioapic.set_pin(3, A, true, &mut bus.send()),
        Delivery::Ignored
    );
    assert_eq!(bus.take(), []);
    program(&mut ioapic, &mut bus, 3, LEVEL | 0x50);
    assert_eq!(bus.take(), [0x50]);
    // Masked in service, ended, unmasked.
    program(&mut ioapic, &mut bus, 3, MASKED | LEVEL | 0x50);
    ioapic.eoi(0x50, &mut bus.send());
    assert_eq!(bus.take(), []);
    program(&mut ioapic, &mut bus, 3, LEVEL | 0x50);
    assert_eq!(bus.take(), [0x50]);
    // Software without an EOI register clears remote IRR by way of edge mode.
    program(&mut ioapic, &mut bus, 3, MASKED | 0x50);
    assert_eq!(entry(&mut ioapic, 3), MASKED | 0x50);
    program(&mut ioapic, &mut bus, 3, MASKED | LEVEL | 0x50);
    program(&mut ioapic, &mut bus, 3, LEVEL | 0x50);
    assert_eq!(bus.take(), [0x50]);
}

#[test]
fn sources_share_a_pin() {
    let mut ioapic = Ioapic::new();
    let mut bus = Bus::default();
    program(&mut ioapic, &mut bus, 5, LEVEL | 0x60);
    ioapic.set_pin(5, A, true, &mut bus.send());
    ioapic.set_pin(5, B, true, &mut bus.send());
    assert_eq!(bus.take(), [0x60]);
    ioapic.set_pin(5, A, false, &mut bus.send());
    ioapic.eoi(0x60, &mut bus.send());
    assert_eq!(bus.take(), [0x60], "the other source still asks");
    ioapic.set_pin(5, B, false, &mut bus.send());
    ioapic.eoi(0x60, &mut bus.send());
    assert_eq!(bus.take(), []);
}

#[test]
fn a_message_that_nobody_took_leaves_no_remote_irr() {
    let mut ioapic = Ioapic::new();
    let mut bus = Bus::default();
    program(&mut ioapic, &mut bus, 5, LEVEL | 0x60);
    assert_eq!(
        ioapic.set_pin(5, A, true, &mut |_| false),
        Delivery::Ignored
    );
    assert_eq!(entry(&mut ioapic, 5), LEVEL | 0x60);
    assert_eq!(
        ioapic.set_pin(5, A, true, &mut bus.send()),
        Delivery::Delivered
    );
    // An NMI has no EOI, so it is an edge.
    program(&mut ioapic, &mut bus, 6, LEVEL | 0x400);
    ioapic.set_pin(6, A, true, &mut bus.send());
    assert_eq!(entry(&mut ioapic, 6), LEVEL | 0x400);
}

#[test]
fn an_edge_that_nobody_took_is_gone() {
    let mut ioapic = Ioapic::new();
    let mut bus = Bus::default();
    program(&mut ioapic, &mut bus, 13, 0x3d);
    ioapic.set_pin(13, A, true, &mut |_| false);
    let mut bytes = [0; STATE_SIZE];
    ioapic.state(&mut bytes);
    assert_eq!(bytes[16..20], [0; 4]);
    Ioapic::new().set_state(&bytes, &mut bus.send());
    assert_eq!(bus.take(), []);
}

#[test]
fn saved_state() {
    let mut ioapic = Ioapic::new();
    let mut bus = Bus::default();
    program(&mut ioapic, &mut bus, 1, 0x31);
    program(&mut ioapic, &mut bus, 2, LEVEL | 0x32);
    program(&mut ioapic, &mut bus, 3, MASKED | LEVEL | 0x33);
    for pin in 1..4 {
        ioapic.set_pin(pin, A, true, &mut bus.send());
    }
    assert_eq!(bus.take(), [0x31, 0x32]);
    let mut bytes = [0; STATE_SIZE];
    ioapic.state(&mut bytes);
    assert_eq!(bytes[0..8], 0xfec0_0000u64.to_le_bytes());
    assert_eq!(bytes[16..20], 0b1100u32.to_le_bytes(), "the edge was sent");
    assert_eq!(bytes[40..48], (LEVEL | REMOTE_IRR | 0x32).to_le_bytes());

    let mut copy = Ioapic::new();
    copy.set_state(&bytes, &mut bus.send());
    assert_eq!(bus.take(), []);
    copy.eoi(0x32, &mut bus.send());
    assert_eq!(bus.take(), [0x32]);
    // The source need not have driven it before.
    copy.set_pin(2, B, false, &mut bus.send());
    copy.eoi(0x32, &mut bus.send());
    // A second edge, which could not be sent, is sent if the pin is open after restoring.
    ioapic.set_pin(1, A, false, &mut bus.send());
    program(&mut ioapic, &mut bus, 1, MASKED | 0x31);
    ioapic.set_pin(1, A, true, &mut bus.send());
    ioapic.state(&mut bytes);
    assert_eq!(bytes[16..20], 0b1110u32.to_le_bytes());
    bytes[32..40].copy_from_slice(&0x31u64.to_le_bytes());
    Ioapic::new().set_state(&bytes, &mut bus.send());
    assert_eq!(bus.take(), [0x31]);
    program(&mut copy, &mut bus, 3, LEVEL | 0x33);
    assert_eq!(bus.take(), [0x33]);
}

/// A tick of the real-time clock that comes before the end of the last is lost, until that end, a
/// new entry, or so many ticks that the end will never come.
#[test]
fn ticks_of_the_clock_are_counted() {
    let mut ioapic = Ioapic::new();
    let mut bus = Bus::default();
    let tick = |ioapic: &mut Ioapic, bus: &mut Bus| {
        assert!(!ioapic.rtc_loses());
        ioapic.set_pin(8, A, true, &mut bus.send());
        ioapic.set_pin(8, A, false, &mut bus.send());
        // The PIC took it, if this did not.
        ioapic.rtc_sent();
    };
    for _ in 0..2 {
        tick(&mut ioapic, &mut bus);
        assert!(!ioapic.rtc_loses(), "the pin is masked");
    }
    program(&mut ioapic, &mut bus, 8, 0x38);
    ioapic.set_pin(8, A, true, &mut |_| false);
    ioapic.set_pin(8, A, false, &mut |_| false);
    ioapic.rtc_sent();
    assert!(!ioapic.rtc_loses(), "no LAPIC took it");
    for end in 0..4 {
        tick(&mut ioapic, &mut bus);
        ioapic.eoi(0x39, &mut bus.send());
        assert!(ioapic.rtc_loses() && ioapic.rtc_loses());
        match end {
            0 => ioapic.eoi(0x38, &mut bus.send()),
            1 => program(&mut ioapic, &mut bus, 8, 0x38),
            2 => ioapic.forget_rtc(),
            _ => assert_eq!((0..2000).position(|_| !ioapic.rtc_loses()), Some(997)),
        }
        assert!(!ioapic.rtc_loses());
    }
}

/// Two devices hold a line when the VMM sets the state: when one lets go, the other still asks.
#[test]
fn sources_outlive_a_restored_state() {
    let mut ioapic = Ioapic::new();
    let mut bus = Bus::default();
    program(&mut ioapic, &mut bus, 5, LEVEL | 0x60);
    ioapic.set_pin(5, A, true, &mut bus.send());
    ioapic.set_pin(5, B, true, &mut bus.send());
    let mut bytes = [0; STATE_SIZE];
    ioapic.state(&mut bytes);
    ioapic.set_state(&bytes, &mut bus.send());
    assert_eq!(bus.take(), [0x60]);
    ioapic.set_pin(5, A, false, &mut bus.send());
    assert_eq!(saved_irr(&ioapic), 1 << 5);
    ioapic.eoi(0x60, &mut bus.send());
    assert_eq!(bus.take(), [0x60], "the other source still asks");
    ioapic.set_pin(5, B, false, &mut bus.send());
    assert_eq!(saved_irr(&ioapic), 0);
}

#[derive(Clone, Debug)]
enum Op {
    Drive(u8, bool, bool),
    Mask(u8, bool),
    Retrigger(u8),
    End(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let pin = 0u8..4;
    prop_oneof![
        4 => (pin.clone(), any::<bool>(), any::<bool>()).prop_map(|(p, s, l)| Op::Drive(p, s, l)),
        2 => (pin.clone(), any::<bool>()).prop_map(|(p, m)| Op::Mask(p, m)),
        1 => pin.clone().prop_map(Op::Retrigger),
        4 => pin.prop_map(Op::End),
    ]
}

/// Pins 0 and 1 share a vector.
fn vector(pin: u8) -> u8 {
    0x40 + pin.max(1)
}

proptest! {
    /// However pins, masks and EOIs follow each other: while a level-triggered pin asks and may,
    /// an interrupt is on its way (none is lost), and each message has a cause (none is endless).
    #[test]
    fn level_triggered_life(ops in prop::collection::vec(op(), 1..200)) {
        let mut ioapic = Ioapic::new();
        let mut bus = Bus::default();
        let mut lines = [[false; 2]; 4];
        let mut masked = [true; 4];
        let mut on_the_way = [0u32; 256];
        for op in ops {
            let causes = match op {
                Op::Drive(pin, source, level) => {
                    let source_id = if source { A } else { B };
                    ioapic.set_pin(pin, source_id, level, &mut bus.send());
                    lines[usize::from(pin)][usize::from(source)] = level;
                    usize::from(level)
                }
                Op::Mask(pin, mask) => {
                    let bits = u64::from(vector(pin)) | LEVEL | if mask { MASKED } else { 0 };
                    program(&mut ioapic, &mut bus, pin, bits);
                    masked[usize::from(pin)] = mask;
                    1
                }
                Op::Retrigger(pin) => {
                    program(&mut ioapic, &mut bus, pin, u64::from(vector(pin)) | MASKED);
                    program(&mut ioapic, &mut bus, pin, u64::from(vector(pin)) | MASKED | LEVEL);
                    masked[usize::from(pin)] = true;
                    0
                }
                Op::End(pin) => {
                    let vector = vector(pin);
                    let ended = &mut on_the_way[usize::from(vector)];
                    if *ended == 0 {
                        continue;
                    }
                    // The LAPIC has one bit for a vector: several messages are one interrupt.
                    *ended = 0;
                    ioapic.eoi(vector, &mut bus.send());
                    2
                }
            };
            prop_assert!(bus.0.len() <= causes);
            for vector in bus.take() {
                on_the_way[usize::from(vector)] += 1;
            }
            for pin in 0..4u8 {
                let index = usize::from(pin);
                let asks = lines[index].contains(&true) && !masked[index];
                let remote_irr = entry(&mut ioapic, pin) & REMOTE_IRR != 0;
                prop_assert!(!asks || remote_irr);
                prop_assert!(!remote_irr || on_the_way[usize::from(vector(pin))] > 0);
            }
        }
        // Released, everything comes to rest after at most one more round.
        for pin in 0..4 {
            ioapic.set_pin(pin, A, false, &mut bus.send());
            ioapic.set_pin(pin, B, false, &mut bus.send());
        }
        for pin in 0..4 {
            ioapic.eoi(vector(pin), &mut bus.send());
            prop_assert_eq!(entry(&mut ioapic, pin) & REMOTE_IRR, 0);
        }
        prop_assert!(bus.0.is_empty());
    }
}

/// A line that nobody lets fall: 10,000 ends in a row, and then a pause.
#[test]
fn a_storm_pauses() {
    use irqchip::storm::ENDS;
    let mut ioapic = Ioapic::new();
    let mut bus = Bus::default();
    program(&mut ioapic, &mut bus, 10, 0x40 | LEVEL);
    ioapic.set_pin(10, A, true, &mut bus.send());
    assert_eq!(bus.take(), [0x40]);
    for round in 0..3 {
        for end in 1..ENDS {
            ioapic.eoi(0x40, &mut bus.send());
            assert_eq!(bus.take(), [0x40], "{round} {end}");
            assert!(!ioapic.take_pause());
        }
        ioapic.eoi(0x40, &mut bus.send());
        assert_eq!(bus.take(), [], "the pause");
        assert!(ioapic.take_pause());
        assert!(!ioapic.take_pause(), "told once");
        // Whatever the guest and the sources do meanwhile.
        ioapic.set_pin(10, B, true, &mut bus.send());
        program(&mut ioapic, &mut bus, 10, 0x40 | LEVEL | MASKED);
        program(&mut ioapic, &mut bus, 10, 0x40 | LEVEL);
        assert_eq!(bus.take(), []);
        ioapic.resume(&mut bus.send());
        assert_eq!(bus.take(), [0x40]);
    }
    // A line that falls ends the row.
    for _ in 0..3 * u32::from(ENDS) {
        ioapic.set_pin(10, A, false, &mut bus.send());
        ioapic.set_pin(10, B, false, &mut bus.send());
        ioapic.eoi(0x40, &mut bus.send());
        ioapic.set_pin(10, A, true, &mut bus.send());
        assert_eq!(bus.take(), [0x40]);
    }
    assert!(!ioapic.take_pause());
    // One that falls in the pause sends nothing after it.
    for _ in 0..ENDS {
        ioapic.eoi(0x40, &mut bus.send());
    }
    ioapic.set_pin(10, A, false, &mut bus.send());
    bus.take();
    ioapic.resume(&mut bus.send());
    assert_eq!(bus.take(), []);
}

/// A line that falls at the end, and rises at once because somebody was told of the end.
#[test]
fn a_storm_of_a_resampler_pauses() {
    use irqchip::storm::ENDS;
    for mode in [LEVEL, 0] {
        let mut ioapic = Ioapic::new();
        let mut bus = Bus::default();
        program(&mut ioapic, &mut bus, 10, 0x40 | mode);
        let mut sent = 0;
        for end in 0..ENDS {
            ioapic.raised_at_end(10);
            ioapic.set_pin(10, B, true, &mut bus.send());
            sent += bus.take().len();
            ioapic.set_pin(10, B, false, &mut bus.send());
            ioapic.eoi(0x40, &mut bus.send());
            assert_eq!(ioapic.take_pause(), end == ENDS - 1);
        }
        assert_eq!(sent, usize::from(ENDS));
        ioapic.set_pin(10, B, true, &mut bus.send());
        assert_eq!(bus.take(), []);
        ioapic.resume(&mut bus.send());
        assert_eq!(bus.take(), [0x40]);
    }
}

/// An edge in a pause comes after it, also of a line that has fallen, and of an entry that was
/// masked meanwhile; once.
#[test]
fn an_edge_in_a_pause_is_kept() {
    use irqchip::storm::ENDS;
    let mut ioapic = Ioapic::new();
    let mut bus = Bus::default();
    program(&mut ioapic, &mut bus, 10, 0x40);
    let pause = |ioapic: &mut Ioapic, bus: &mut Bus| {
        for _ in 0..ENDS {
            ioapic.raised_at_end(10);
            ioapic.eoi(0x40, &mut bus.send());
        }
        assert!(ioapic.take_pause());
    };
    let pulse = |ioapic: &mut Ioapic, bus: &mut Bus| {
        ioapic.set_pin(10, A, true, &mut bus.send());
        ioapic.set_pin(10, A, false, &mut bus.send());
        bus.take()
    };
    pause(&mut ioapic, &mut bus);
    assert_eq!(pulse(&mut ioapic, &mut bus), []);
    assert_eq!(pulse(&mut ioapic, &mut bus), []);
    assert_eq!(saved_irr(&ioapic), 1 << 10, "the state has it");
    ioapic.resume(&mut bus.send());
    assert_eq!(bus.take(), [0x40]);
    ioapic.resume(&mut bus.send());
    assert_eq!(bus.take(), [], "once");
    assert_eq!(saved_irr(&ioapic), 0);

    pause(&mut ioapic, &mut bus);
    assert_eq!(pulse(&mut ioapic, &mut bus), []);
    program(&mut ioapic, &mut bus, 10, 0x40 | MASKED);
    ioapic.resume(&mut bus.send());
    assert_eq!(bus.take(), [], "masked");
    program(&mut ioapic, &mut bus, 10, 0x40);
    assert_eq!(bus.take(), [0x40]);

    // One of a masked entry is nothing, as without a pause; a level that has fallen likewise.
    pause(&mut ioapic, &mut bus);
    program(&mut ioapic, &mut bus, 10, 0x40 | MASKED);
    assert_eq!(pulse(&mut ioapic, &mut bus), []);
    program(&mut ioapic, &mut bus, 10, 0x40 | LEVEL);
    assert_eq!(pulse(&mut ioapic, &mut bus), []);
    program(&mut ioapic, &mut bus, 10, 0x40);
    ioapic.resume(&mut bus.send());
    assert_eq!(bus.take(), []);
}
