// SPDX-License-Identifier: GPL-2.0-only

//! The local APIC's timer: its modes, and a model that counts every single tick.

use irqchip::lapic::{Deadline, Effect, MIN_PERIOD_NS, STATE_SIZE};
use irqchip::{Lapic, Now};
use proptest::prelude::*;

const LVT: u32 = 0x320;
const INITIAL: u32 = 0x380;
const CURRENT: u32 = 0x390;
const DIVIDE: u32 = 0x3e0;
const BY_1: u32 = 0xb;
const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 2 << 17;
const VECTOR: u32 = 0xec;

fn at(ns: u64) -> Now {
    Now { ns, tsc: 3 * ns }
}

fn read(lapic: &mut Lapic, offset: u32, ns: u64) -> u32 {
    let mut bytes = [0; 4];
    lapic.mmio_read(offset, &mut bytes, at(ns));
    u32::from_le_bytes(bytes)
}

fn write(lapic: &mut Lapic, offset: u32, value: u32, ns: u64) {
    let _ = lapic.mmio_write(offset, &value.to_le_bytes(), at(ns));
}

fn timer(lvt: u32) -> Lapic {
    let mut lapic = Lapic::new(0, true);
    write(&mut lapic, 0xf0, 0x1ff, 0);
    write(&mut lapic, LVT, lvt, 0);
    write(&mut lapic, DIVIDE, BY_1, 0);
    lapic
}

/// Takes the timer's interrupt if it is requested.
fn take(lapic: &mut Lapic) -> bool {
    let taken = lapic.acknowledge().is_some();
    lapic.end_of_interrupt();
    taken
}

#[test]
fn moved_time_has_not_passed() {
    for lvt in [VECTOR, VECTOR | PERIODIC] {
        let mut lapic = timer(lvt);
        write(&mut lapic, INITIAL, 1_000_000, 500);
        let mut later = lapic;
        later.move_time(7_000_000);
        assert_eq!(later.timer_deadline(), Some(Deadline::Ns(8_000_500)));
        for ns in [600, 400_000, 1_000_499] {
            let count = read(&mut lapic, CURRENT, ns);
            assert_eq!(read(&mut later, CURRENT, ns + 7_000_000), count);
        }
        assert!(!later.timer_expired(at(8_000_499)));
        assert!(later.timer_expired(at(8_000_500)));
        assert!(lapic.timer_expired(at(1_000_500)));
        // The rest between two periods moves, too.
        let mut again = lapic;
        again.move_time(9_000_000);
        let deadline = |lapic: &Lapic| match lapic.timer_deadline() {
            Some(Deadline::Ns(ns)) => Some(ns),
            _ => None,
        };
        assert_eq!(deadline(&again), deadline(&lapic).map(|ns| ns + 9_000_000));
    }
    // A deadline is in the guest's own time.
    let mut lapic = timer(VECTOR | DEADLINE);
    let _ = lapic.set_tsc_deadline(12_345_678, at(0));
    lapic.move_time(1_000_000);
    assert_eq!(lapic.timer_deadline(), Some(Deadline::Tsc(12_345_678)));
    // Nothing that does not run begins to.
    let mut idle = timer(VECTOR);
    idle.move_time(u64::MAX);
    assert_eq!(idle.timer_deadline(), None);
}

#[test]
fn one_shot() {
    let mut lapic = timer(VECTOR);
    write(&mut lapic, INITIAL, 1000, 500);
    assert_eq!(lapic.timer_deadline(), Some(Deadline::Ns(1500)));
    assert_eq!(read(&mut lapic, CURRENT, 500), 1000);
    assert_eq!(read(&mut lapic, CURRENT, 1400), 100);
    assert!(!lapic.timer_expired(at(1499)));
    assert!(lapic.timer_expired(at(1500)));
    assert!(!lapic.timer_expired(at(1501)));
    assert_eq!(lapic.timer_deadline(), None);
    assert_eq!(read(&mut lapic, CURRENT, 1600), 0);
    assert_eq!(lapic.pending_vector(), Some(VECTOR as u8));
    // Writing zero stops it.
    write(&mut lapic, INITIAL, 1000, 2000);
    write(&mut lapic, INITIAL, 0, 2100);
    assert_eq!(lapic.timer_deadline(), None);
    assert!(!lapic.timer_expired(at(10_000)));
}

#[test]
fn dividers() {
    let fields = [
        (0, 2),
        (1, 4),
        (2, 8),
        (3, 16),
        (8, 32),
        (9, 64),
        (10, 128),
        (11, 1),
    ];
    for (field, divisor) in fields {
        let mut lapic = timer(VECTOR);
        write(&mut lapic, DIVIDE, field, 0);
        write(&mut lapic, INITIAL, 7, 0);
        assert_eq!(lapic.timer_deadline(), Some(Deadline::Ns(7 * divisor)));
        lapic.init();
        assert_eq!(lapic.timer_deadline(), None);
    }
    let mut lapic = timer(VECTOR);
    lapic.set_bus_cycle_ns(40);
    write(&mut lapic, INITIAL, 10, 0);
    assert_eq!(lapic.timer_deadline(), Some(Deadline::Ns(400)));
}

#[test]
fn periods_do_not_drift_and_catch_up_at_once() {
    const PERIOD: u32 = 1_000_000;
    let mut lapic = timer(VECTOR | PERIODIC);
    write(&mut lapic, INITIAL, PERIOD, 7);
    assert_eq!(lapic.timer_deadline(), Some(Deadline::Ns(1_000_007)));
    // Late by half a period.
    assert!(lapic.timer_expired(at(1_500_007)));
    assert_eq!(lapic.timer_deadline(), Some(Deadline::Ns(2_000_007)));
    assert_eq!(read(&mut lapic, CURRENT, 1_500_007), 500_000);
    // Late by a year.
    let year = 365 * 24 * 3600 * 1_000_000_000 + 500_007;
    assert!(lapic.timer_expired(at(year)));
    let Some(Deadline::Ns(next)) = lapic.timer_deadline() else {
        panic!("stopped");
    };
    assert_eq!(next, year + 500_000);
}

#[test]
fn short_periods_cannot_keep_the_host_busy() {
    let mut lapic = timer(VECTOR | PERIODIC);
    write(&mut lapic, INITIAL, 1, 0);
    let mut now = 0;
    for _ in 0..100 {
        let Some(Deadline::Ns(next)) = lapic.timer_deadline() else {
            panic!("stopped");
        };
        assert!(now == 0 || next >= now + MIN_PERIOD_NS);
        now = next;
        assert!(lapic.timer_expired(at(now)));
    }
}

#[test]
fn tsc_deadline() {
    let mut lapic = timer(VECTOR | DEADLINE);
    assert_eq!(lapic.set_tsc_deadline(900, at(100)), Effect::Timer);
    assert_eq!(lapic.timer_deadline(), Some(Deadline::Tsc(900)));
    assert_eq!(lapic.tsc_deadline(), 900);
    assert_eq!(read(&mut lapic, CURRENT, 200), 0);
    write(&mut lapic, INITIAL, 5, 200);
    assert_eq!(read(&mut lapic, INITIAL, 200), 0, "ignored in this mode");
    assert!(lapic.timer_expired(at(300)));
    assert_eq!(lapic.tsc_deadline(), 0);
    assert!(take(&mut lapic));
    // One that has passed.
    assert_eq!(lapic.set_tsc_deadline(1, at(400)), Effect::None);
    assert_eq!(lapic.timer_deadline(), None);
    assert!(take(&mut lapic));
    // Zero disarms.
    let _ = lapic.set_tsc_deadline(10_000, at(400));
    let _ = lapic.set_tsc_deadline(0, at(400));
    assert_eq!(lapic.timer_deadline(), None);
    // Leaving the mode disarms, and in other modes the register is dead.
    let _ = lapic.set_tsc_deadline(10_000, at(400));
    write(&mut lapic, LVT, VECTOR, 400);
    assert_eq!(lapic.tsc_deadline(), 0);
    assert_eq!(lapic.set_tsc_deadline(10_000, at(400)), Effect::None);
    assert_eq!(lapic.timer_deadline(), None);
}

#[test]
fn masked_it_runs_but_requests_nothing() {
    let mut lapic = timer(VECTOR | MASKED);
    write(&mut lapic, INITIAL, 1000, 0);
    assert_eq!(lapic.timer_deadline(), None);
    assert_eq!(read(&mut lapic, CURRENT, 400), 600);
    write(&mut lapic, LVT, VECTOR, 400);
    assert_eq!(lapic.timer_deadline(), Some(Deadline::Ns(1000)));
    write(&mut lapic, LVT, VECTOR | MASKED, 500);
    // Unmasked after its end it is too late.
    write(&mut lapic, LVT, VECTOR, 1001);
    assert_eq!(lapic.timer_deadline(), None);
    assert!(!lapic.timer_expired(at(1002)));
    assert!(!take(&mut lapic));
}

#[test]
fn an_end_that_nobody_noticed_is_not_lost() {
    for access in [LVT, INITIAL, DIVIDE, 0xf0] {
        let mut lapic = timer(VECTOR);
        write(&mut lapic, INITIAL, 10, 0);
        write(&mut lapic, access, MASKED, 11);
        assert!(take(&mut lapic), "{access:x}");
    }
}

#[test]
fn goes_on_after_saving_and_restoring() {
    let mut lapic = timer(VECTOR | PERIODIC);
    write(&mut lapic, INITIAL, 1000, 0);
    let mut page = [0; STATE_SIZE];
    lapic.state(&mut page, at(300), false);
    let mut copy = Lapic::new(0, true);
    assert_eq!(copy.set_state(&page, at(1_000_000), false), Ok(()));
    assert_eq!(copy.timer_deadline(), Some(Deadline::Ns(1_000_700)));
    assert!(copy.timer_expired(at(1_000_700)));

    // What was due before saving is in the IRR.
    lapic.state(&mut page, at(1500), false);
    assert_eq!(copy.set_state(&page, at(0), false), Ok(()));
    assert!(take(&mut copy));
    // A period that ended just when another program saved it begins anew.
    page[0x390..0x394].fill(0);
    assert_eq!(copy.set_state(&page, at(50), false), Ok(()));
    assert_eq!(copy.timer_deadline(), Some(Deadline::Ns(1050)));
    // And reading the state did not change it.
    assert!(lapic.timer_expired(at(1500)));
}

/// The registers are in two ioctls, and time goes on between them. Both ways to save, both ways to
/// restore.
#[test]
fn a_deadline_that_passes_while_it_is_saved_comes_once() {
    let armed = || {
        let mut lapic = timer(VECTOR | DEADLINE);
        let _ = lapic.set_tsc_deadline(900, at(100));
        lapic
    };
    // With the interrupt requested between the two, after both, or before: the deadline is at 300.
    for (first, requested, second) in [(200, 0, 400), (400, 0, 500), (200, 0, 250), (400, 350, 500)]
    {
        for page_first in [true, false] {
            let mut lapic = armed();
            if requested != 0 {
                assert!(lapic.timer_expired(at(requested)));
            }
            let mut page = [0; STATE_SIZE];
            let deadline;
            if page_first {
                lapic.state(&mut page, at(first), false);
                deadline = lapic.tsc_deadline();
            } else {
                deadline = lapic.tsc_deadline();
                lapic.state(&mut page, at(second), false);
            }
            for order in [true, false] {
                let mut copy = Lapic::new(0, true);
                // What it was before does not matter.
                let _ = copy.restore_tsc_deadline(77);
                if order {
                    assert_eq!(copy.set_state(&page, at(600), false), Ok(()));
                }
                assert_eq!(copy.restore_tsc_deadline(deadline), Effect::Timer);
                if !order {
                    assert_eq!(copy.set_state(&page, at(600), false), Ok(()));
                }
                assert_eq!(copy.tsc_deadline(), deadline);
                copy.timer_expired(at(1000));
                let case = (first, requested, page_first, order);
                assert!(take(&mut copy), "{case:?} is lost");
                copy.timer_expired(at(2000));
                assert!(!take(&mut copy), "{case:?} comes twice");
            }
        }
    }
}

/// In other modes the register is zero, and what a VMM wrote to it has no effect later.
#[test]
fn a_deadline_needs_its_mode() {
    let mut lapic = timer(VECTOR);
    let _ = lapic.restore_tsc_deadline(300);
    assert_eq!((lapic.tsc_deadline(), lapic.timer_deadline()), (0, None));
    assert!(!lapic.timer_expired(at(1000)));
    write(&mut lapic, LVT, VECTOR | DEADLINE, 1000);
    assert_eq!((lapic.tsc_deadline(), lapic.timer_deadline()), (0, None));
}

/// A timer that is nothing but a counter.
#[derive(Debug, Default)]
struct Model {
    initial: u64,
    count: u64,
    /// Nanoseconds since the count last changed.
    phase: u64,
    divisor: u64,
    periodic: bool,
    fired: bool,
}

impl Model {
    fn step(&mut self) {
        if self.count == 0 {
            return;
        }
        self.phase += 1;
        if self.phase < self.divisor {
            return;
        }
        self.phase = 0;
        self.count -= 1;
        if self.count == 0 {
            self.fired = true;
            if self.periodic {
                self.count = self.initial;
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Pass(u64),
    Look,
    Start(u32),
    Divide(u32),
    Mode(bool),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0u64..300).prop_map(Op::Pass),
        2 => Just(Op::Look),
        2 => (0u32..40).prop_map(Op::Start),
        1 => prop_oneof![Just(0u32), Just(1), Just(2), Just(11)].prop_map(Op::Divide),
        1 => any::<bool>().prop_map(Op::Mode),
    ]
}

proptest! {
    #[test]
    fn counts_like_a_counter(ops in prop::collection::vec(op(), 1..80)) {
        let mut lapic = timer(VECTOR);
        let mut model = Model { divisor: 1, ..Model::default() };
        let mut now = 1000;
        for op in ops {
            match op {
                Op::Pass(ns) => {
                    now += ns;
                    (0..ns).for_each(|_| model.step());
                }
                Op::Look => {
                    prop_assert_eq!(u64::from(read(&mut lapic, CURRENT, now)), model.count);
                    prop_assert_eq!(take(&mut lapic), model.fired);
                    model.fired = false;
                }
                Op::Start(count) => {
                    write(&mut lapic, INITIAL, count, now);
                    model.initial = u64::from(count);
                    model.count = model.initial;
                    model.phase = 0;
                }
                Op::Divide(field) => {
                    write(&mut lapic, DIVIDE, field, now);
                    model.divisor = match field { 0 => 2, 1 => 4, 2 => 8, _ => 1 };
                    model.phase = 0;
                }
                Op::Mode(periodic) => {
                    let mode = if periodic { PERIODIC } else { 0 };
                    write(&mut lapic, LVT, VECTOR | mode, now);
                    model.periodic = periodic;
                }
            }
        }
    }
}
