// SPDX-License-Identifier: GPL-2.0-only

//! Guests and VMMs that mean no good: any state, then any access of any size. Nothing may panic
//! (arithmetic is checked in tests), and a state that was taken over can be given back.

use irqchip::bits::Vectors;
use irqchip::lapic::{self, BaseLimits, BaseWriter, Deadline, LocalSource};
use irqchip::lines::Source;
use irqchip::pic::{self, Which};
use irqchip::routing::{self, Limits, Route};
use irqchip::{ioapic, pit, Ioapic, Lapic, Now, Pic, Pit};
use proptest::prelude::*;

fn now() -> impl Strategy<Value = Now> {
    let time = prop_oneof![any::<u64>(), 0u64..1 << 40, Just(0), Just(u64::MAX),];
    (time.clone(), time).prop_map(|(ns, tsc)| Now { ns, tsc })
}

/// Bytes that are mostly zero, all ones or noise, for states to be both likely and unlikely.
fn bytes(size: usize) -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(0u8), Just(0xff), any::<u8>()];
    prop_oneof![
        prop::collection::vec(any::<u8>(), size),
        prop::collection::vec(byte, size),
    ]
}

#[derive(Clone, Debug)]
enum Op {
    Read(u32, usize),
    Write(u32, Vec<u8>),
    MsrRead(u32),
    MsrWrite(u32, u64),
    Base(u64, bool),
    Deadline(u64),
    Accept(u8, bool),
    Merge([u64; 4]),
    Raise(u8),
    Acknowledge,
    Expire,
    Init,
    Drive(u8, u8, bool),
    Eoi(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let offset = prop_oneof![
        any::<u32>(),
        0u32..0x1000,
        (0u32..0x40).prop_map(|n| n << 4)
    ];
    let msr = prop_oneof![any::<u32>(), 0x800u32..0x900];
    let value = prop_oneof![any::<u64>(), 0u64..0x400];
    let base = prop_oneof![any::<u64>(), (0u64..8).prop_map(|n| 0xfee0_0000 | n << 8)];
    prop_oneof![
        1 => (offset.clone(), 0usize..20).prop_map(|(offset, size)| Op::Read(offset, size)),
        4 => (offset, bytes(4)).prop_map(|(offset, data)| Op::Write(offset, data)),
        1 => (any::<u32>(), prop::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(offset, data)| Op::Write(offset, data)),
        1 => msr.clone().prop_map(Op::MsrRead),
        4 => (msr, value).prop_map(|(index, value)| Op::MsrWrite(index, value)),
        1 => (base, any::<bool>()).prop_map(|(base, guest)| Op::Base(base, guest)),
        1 => any::<u64>().prop_map(Op::Deadline),
        1 => any::<(u8, bool)>().prop_map(|(vector, level)| Op::Accept(vector, level)),
        1 => any::<[u64; 4]>().prop_map(Op::Merge),
        1 => (0u8..4).prop_map(Op::Raise),
        2 => Just(Op::Acknowledge),
        2 => Just(Op::Expire),
        1 => Just(Op::Init),
        1 => any::<(u8, u8, bool)>().prop_map(|(pin, source, level)| Op::Drive(pin, source, level)),
        1 => any::<u8>().prop_map(Op::Eoi),
    ]
}

fn ops() -> impl Strategy<Value = Vec<(Op, Now)>> {
    prop::collection::vec((op(), now()), 0..40)
}

fn apply_lapic(lapic: &mut Lapic, op: Op, now: Now) {
    const LIMITS: BaseLimits = BaseLimits {
        physical_bits: 48,
        x2apic: true,
    };
    match op {
        Op::Read(offset, size) => lapic.mmio_read(offset, &mut vec![0; size], now),
        Op::Write(offset, data) => {
            let _ = lapic.mmio_write(offset, &data, now);
        }
        Op::MsrRead(index) => {
            let _ = lapic.msr_read(index, now);
        }
        Op::MsrWrite(index, value) => {
            let _ = lapic.msr_write(index, value, now);
        }
        Op::Base(value, guest) => {
            let writer = if guest {
                BaseWriter::Guest
            } else {
                BaseWriter::Vmm
            };
            let _ = lapic.set_base(value, writer, LIMITS);
        }
        Op::Deadline(value) => {
            let _ = lapic.set_tsc_deadline(value, now);
            lapic.tsc_deadline();
        }
        Op::Accept(vector, level) => {
            lapic.accept(vector, level);
        }
        Op::Merge(words) => {
            let mut vectors = Vectors::EMPTY;
            for (i, word) in words.into_iter().enumerate() {
                vectors.set_word(i, word);
            }
            lapic.merge(&vectors, &vectors);
        }
        Op::Raise(source) => {
            use LocalSource::{Lint0, Lint1, Performance, Thermal};
            let _ = lapic.raise([Thermal, Performance, Lint0, Lint1][usize::from(source & 3)]);
        }
        Op::Acknowledge => {
            lapic.acknowledge();
        }
        Op::Expire => {
            lapic.timer_expired(now);
        }
        Op::Init => lapic.init(),
        Op::Drive(..) => lapic.set_cr8(now.ns),
        Op::Eoi(_) => {
            lapic.end_of_interrupt();
        }
    }
}

/// What must hold of an APIC in every state.
fn check_lapic(lapic: &Lapic) -> Result<(), TestCaseError> {
    if let Some(vector) = lapic.pending_vector() {
        prop_assert!(vector >= 16 && lapic.requests().contains(vector));
        prop_assert!(vector >> 4 > lapic.ppr() >> 4);
        let mut copy = *lapic;
        prop_assert_eq!(copy.acknowledge(), Some(vector));
        prop_assert!(copy.in_service().contains(vector) && !copy.requests().contains(vector));
        prop_assert_eq!(copy.ppr(), vector & 0xf0);
    }
    let serving = lapic.in_service().highest().unwrap_or(0) >> 4;
    prop_assert_eq!(lapic.ppr() >> 4, serving.max(lapic.tpr() >> 4));
    Ok(())
}

proptest! {
    #[test]
    fn lapic(
        page in bytes(lapic::STATE_SIZE),
        bus_cycle in any::<u32>(),
        start in now(),
        extended in any::<bool>(),
        ops in ops(),
        end in now(),
    ) {
        let mut lapic = Lapic::new(0x1_0003, true);
        lapic.set_bus_cycle_ns(bus_cycle);
        let _ = lapic.set_state(&page.try_into().unwrap(), start, extended);
        check_lapic(&lapic)?;
        for (op, now) in ops {
            apply_lapic(&mut lapic, op, now);
            check_lapic(&lapic)?;
            let _ = lapic.snapshot();
        }

        // Its state is complete: an APIC in the same mode with that state gives it back.
        let mut saved = [0; lapic::STATE_SIZE];
        lapic.state(&mut saved, end, extended);
        let mut copy = Lapic::new(0x1_0003, true);
        copy.set_bus_cycle_ns(bus_cycle);
        let limits = BaseLimits { physical_bits: 52, x2apic: true };
        prop_assert!(copy.set_base(lapic.base(), BaseWriter::Vmm, limits).is_ok());
        prop_assert_eq!(copy.set_state(&saved, end, extended), Ok(()));
        let mut again = [0; lapic::STATE_SIZE];
        copy.state(&mut again, end, extended);
        // A count that is longer than time itself is cut short.
        if end.ns < 1 << 60 && bus_cycle < 1 << 16 {
            prop_assert_eq!(&saved[..], &again[..]);
        }
        let _ = copy.restore_tsc_deadline(lapic.tsc_deadline());
        copy.timer_expired(end);
        lapic.timer_expired(end);
        prop_assert_eq!(copy.pending_vector(), lapic.pending_vector());
        prop_assert_eq!(copy.snapshot(), lapic.snapshot());
    }

    /// Whatever it is set to, a timer that is looked at when it asks for it comes to an end, or
    /// asks seldom.
    #[test]
    fn timers_are_patient(page in bytes(lapic::STATE_SIZE), tsc in any::<u64>()) {
        let mut lapic = Lapic::new(0, true);
        let mut now = Now { ns: 1 << 32, tsc: 0 };
        lapic.set_state(&page.try_into().unwrap(), now, false).unwrap();
        let _ = lapic.set_tsc_deadline(tsc, now);
        let begin = now.ns;
        for round in 0..50u64 {
            match lapic.timer_deadline() {
                None => break,
                Some(Deadline::Ns(ns)) => {
                    prop_assert!(ns > now.ns || round == 0);
                    now.ns = now.ns.max(ns);
                    lapic.timer_expired(now);
                }
                Some(Deadline::Tsc(deadline)) => {
                    now.tsc = deadline;
                    lapic.timer_expired(now);
                    prop_assert_eq!(lapic.timer_deadline(), None);
                }
            }
            let least = round.saturating_sub(1) * lapic::MIN_PERIOD_NS;
            prop_assert!(now.ns - begin >= least);
        }
    }

    #[test]
    fn ioapic(
        state in bytes(ioapic::STATE_SIZE),
        takes in any::<bool>(),
        ops in ops(),
    ) {
        let mut ioapic = Ioapic::new();
        let mut sent = 0;
        let mut send = |_| {
            sent += 1;
            takes
        };
        ioapic.set_state(&state.try_into().unwrap(), &mut send);
        let steps = ops.len() + 1;
        for (op, _) in ops {
            match op {
                Op::Read(offset, size) => ioapic.mmio_read(offset, &mut vec![0; size]),
                Op::Write(offset, data) => ioapic.mmio_write(offset, &data, &mut send),
                Op::MsrWrite(index, value) => {
                    let offset = if value & 1 == 0 { 0 } else { 0x10 };
                    ioapic.mmio_write(offset, &index.to_le_bytes(), &mut send);
                }
                Op::Drive(pin, source, level) => {
                    if let Some(source) = Source::new(source) {
                        ioapic.set_pin(pin, source, level, &mut send);
                    }
                }
                Op::Eoi(vector) => {
                    ioapic.eoi_pins(vector);
                    ioapic.eoi(vector, &mut send);
                }
                _ => {}
            }
        }
        prop_assert!(sent <= steps * ioapic::PINS);
        let (mut saved, mut again) = ([0; ioapic::STATE_SIZE], [0; ioapic::STATE_SIZE]);
        ioapic.state(&mut saved);
        let copy = |from: &_, to: &mut _| {
            let mut copy = Ioapic::new();
            copy.set_state(from, &mut |_| false);
            copy.state(to);
        };
        copy(&saved, &mut again);
        // An edge that had waited behind a mask was sent.
        prop_assert_eq!(&saved[..16], &again[..16]);
        prop_assert_eq!(&saved[20..], &again[20..]);
        copy(&again, &mut saved);
        prop_assert_eq!(&saved[..], &again[..]);
    }

    #[test]
    fn pic(
        states in [bytes(pic::STATE_SIZE), bytes(pic::STATE_SIZE)],
        ops in ops(),
    ) {
        let mut pic = Pic::new();
        let [master, slave] = states;
        pic.set_state(Which::Master, &master.try_into().unwrap());
        pic.set_state(Which::Slave, &slave.try_into().unwrap());
        let ports = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1];
        for (op, _) in ops {
            match op {
                Op::Read(offset, size) => {
                    pic.port_read(offset as u16);
                    pic.port_read(ports[size % 6]);
                }
                Op::MsrWrite(index, value) => {
                    pic.port_write(index as u16, value as u8);
                    pic.port_write(ports[index as usize % 6], value as u8);
                }
                Op::Drive(irq, source, level) => {
                    if let Some(source) = Source::new(source) {
                        pic.set_irq(irq % 20, source, level);
                    }
                }
                Op::Acknowledge => {
                    pic.acknowledge();
                }
                Op::Eoi(_) => {
                    pic.take_ended();
                }
                _ => {}
            }
            // Whatever happened, acknowledging ends: each input can be taken but once.
            let mut copy = pic;
            let mut taken = 0;
            while copy.output() && taken < 40 {
                copy.acknowledge();
                taken += 1;
            }
            let automatic = [Which::Master, Which::Slave].iter().any(|which| {
                let mut state = [0; pic::STATE_SIZE];
                pic.state(*which, &mut state);
                state[10] != 0
            });
            prop_assert!(taken <= 16 || automatic);
        }
        let mut copy = Pic::new();
        for which in [Which::Master, Which::Slave] {
            let mut saved = [0; pic::STATE_SIZE];
            pic.state(which, &mut saved);
            copy.set_state(which, &saved);
        }
        for which in [Which::Master, Which::Slave] {
            let (mut saved, mut again) = ([0; pic::STATE_SIZE], [0; pic::STATE_SIZE]);
            pic.state(which, &mut saved);
            copy.state(which, &mut again);
            prop_assert_eq!(saved, again);
        }
    }

    #[test]
    fn pit(
        state in bytes(pit::STATE_SIZE),
        start in now(),
        ops in ops(),
        end in now(),
    ) {
        let mut pit = Pit::new();
        pit.set_state(&state.try_into().unwrap(), start.ns);
        for (op, now) in ops {
            match op {
                Op::Read(offset, size) => {
                    pit.port_read(offset as u16, now.ns);
                    pit.port_read(0x40 + size as u16 % 4, now.ns);
                    pit.port_read(0x61, now.ns);
                }
                Op::MsrWrite(index, value) => {
                    pit.port_write(index as u16, value as u8, now.ns);
                    pit.port_write(0x40 + index as u16 % 4, value as u8, now.ns);
                }
                Op::Drive(_, value, _) => {
                    pit.port_write(0x61, value, now.ns);
                }
                _ => {
                    pit.advance(now.ns);
                }
            }
            if let Some(next) = pit.next_event() {
                let mut copy = pit;
                copy.advance(next);
                let after = copy.next_event();
                prop_assert!(after.is_none_or(|after| after > next || after == u64::MAX));
            }
        }
        let (mut saved, mut again) = ([0; pit::STATE_SIZE], [0; pit::STATE_SIZE]);
        pit.set_state(&{ pit.state(&mut saved); saved }, end.ns);
        pit.state(&mut saved);
        let mut copy = Pit::new();
        copy.set_state(&saved, end.ns);
        copy.state(&mut again);
        prop_assert_eq!(&saved[..], &again[..]);
        prop_assert_eq!(copy.next_event(), pit.next_event());
    }

    #[test]
    fn routes(entries in prop::collection::vec(any::<(u32, u32, u32, [u32; 4])>(), 0..20)) {
        let limits = Limits { pins: true, extended_ids: true };
        let mut table: Vec<_> = entries
            .into_iter()
            .filter_map(|(gsi, kind, flags, words)| {
                let words = words.map(|word| word & 0xff00_001f);
                Route::from_entry(gsi % 5000, kind % 4, flags & 1, words, limits).ok()
            })
            .collect();
        let _ = routing::sort_and_check(&mut table);
        for gsi in [0, 1, 4095, u32::MAX] {
            for route in routing::routes(&table, gsi) {
                let _ = route.target.message(true);
            }
        }
    }
}
