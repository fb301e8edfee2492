// SPDX-License-Identifier: GPL-2.0-only

//! The timer of the local APIC (APM vol. 2, 16.4.1; TSC deadline: Intel SDM vol. 3, 11.5.4).
//!
//! The count is not kept: it follows from the time at which it will be zero. So a period that is
//! noticed late does not shift the ones after it, and any number of missed periods costs the same.

use super::{Effect, Lapic};
use crate::Now;
use core::num::NonZeroU64;

/// One tick of the APIC's bus clock unless [`Lapic::set_bus_cycle_ns`] changes it.
pub(super) const DEFAULT_BUS_CYCLE_NS: u32 = 1;
/// A periodic timer asks to be looked at no more often than this: a guest that wants a shorter
/// period must not be able to keep the host busy with it.
pub const MIN_PERIOD_NS: u64 = 200_000;

/// When [`Lapic::timer_expired`] should be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// At this time of the monotonic clock.
    Ns(u64),
    /// When the guest's time-stamp counter has this value.
    Tsc(u64),
}

/// The mode field of the timer's LVT entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
    Reserved,
}

impl TimerMode {
    pub(super) const fn from_bits(bits: u32) -> Self {
        match bits & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }
}

/// Divide configuration: the bits that exist.
const DIVIDE_MASK: u32 = 0b1011;

/// The registers of the timer but for its LVT entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timer {
    initial: u32,
    divide: u32,
    bus_cycle_ns: u32,
    /// When the count becomes zero, while it runs.
    zero_at: Option<u64>,
    /// When a period last ended; 0 if none has.
    last_period_ns: u64,
    /// The TSC deadline; 0 if there is none.
    tsc_deadline: u64,
}

impl Timer {
    pub(super) const fn reset(bus_cycle_ns: u32) -> Self {
        Self {
            initial: 0,
            divide: 0,
            bus_cycle_ns,
            zero_at: None,
            last_period_ns: 0,
            tsc_deadline: 0,
        }
    }

    pub(super) const fn bus_cycle_ns(&self) -> u32 {
        self.bus_cycle_ns
    }

    pub(super) const fn initial(&self) -> u32 {
        self.initial
    }

    pub(super) const fn divide(&self) -> u32 {
        self.divide
    }

    /// Nanoseconds that one step of the count takes.
    fn unit_ns(&self) -> NonZeroU64 {
        let field = self.divide & 3 | (self.divide >> 1) & 4;
        let shift = (field + 1) & 7;
        NonZeroU64::new(u64::from(self.bus_cycle_ns) << shift).unwrap_or(NonZeroU64::MIN)
    }

    fn duration(&self, count: u32) -> u64 {
        self.unit_ns().get().saturating_mul(u64::from(count))
    }

    fn stop(&mut self) {
        self.zero_at = None;
        self.tsc_deadline = 0;
    }

    fn start(&mut self, count: u32, now: Now) {
        self.last_period_ns = 0;
        self.zero_at = (count != 0).then(|| now.ns.saturating_add(self.duration(count)));
    }

    /// The current count. Something that expired must have been handled before.
    fn count(&self, now: Now) -> u32 {
        let left = self.zero_at.and_then(|zero| zero.checked_sub(now.ns));
        let Some(but_one) = left.and_then(|left| left.checked_sub(1)) else {
            return 0;
        };
        let count = (but_one / self.unit_ns()).saturating_add(1);
        u32::try_from(count).unwrap_or(u32::MAX).min(self.initial)
    }

    /// Whether the timer has reached its end since the last call.
    fn expire(&mut self, mode: TimerMode, now: Now) -> bool {
        match mode {
            TimerMode::Reserved => false,
            TimerMode::TscDeadline => {
                let expired = self.tsc_deadline != 0 && now.tsc >= self.tsc_deadline;
                if expired {
                    self.tsc_deadline = 0;
                }
                expired
            }
            TimerMode::OneShot | TimerMode::Periodic => {
                let Some(zero) = self.zero_at.filter(|zero| now.ns >= *zero) else {
                    return false;
                };
                self.zero_at = None;
                if mode == TimerMode::Periodic {
                    self.last_period_ns = now.ns;
                    self.zero_at = self.next_period(zero, now.ns);
                }
                true
            }
        }
    }

    /// The first end of a period after `now`, if one ended at `zero`, which is not after `now`.
    fn next_period(&self, zero: u64, now: u64) -> Option<u64> {
        let period = self.duration(self.initial);
        let missed = now.wrapping_sub(zero).checked_div(period)?;
        let ends = missed.checked_add(1)?;
        zero.checked_add(ends.checked_mul(period)?)
    }

    fn deadline(&self, mode: TimerMode) -> Option<Deadline> {
        match mode {
            TimerMode::Reserved => None,
            TimerMode::TscDeadline => {
                (self.tsc_deadline != 0).then_some(Deadline::Tsc(self.tsc_deadline))
            }
            TimerMode::OneShot => self.zero_at.map(Deadline::Ns),
            TimerMode::Periodic => {
                let earliest = match self.last_period_ns {
                    0 => 0,
                    last => last.saturating_add(MIN_PERIOD_NS),
                };
                self.zero_at.map(|zero| Deadline::Ns(zero.max(earliest)))
            }
        }
    }

    /// Sets the registers to what a VMM saved.
    pub(super) fn restore(
        &mut self,
        mode: TimerMode,
        initial: u32,
        current: u32,
        divide: u32,
        now: Now,
    ) {
        self.initial = initial;
        self.divide = divide & DIVIDE_MASK;
        self.zero_at = None;
        if mode == TimerMode::TscDeadline {
            return;
        }
        self.tsc_deadline = 0;
        let current = current.min(initial);
        match mode {
            TimerMode::Periodic if current == 0 => self.start(initial, now),
            _ => self.start(current, now),
        }
    }
}

impl Lapic {
    /// When [`Self::timer_expired`] should be called, if ever. A masked timer needs no call.
    #[inline]
    pub fn timer_deadline(&self) -> Option<Deadline> {
        self.lvts.timer_vector()?;
        self.timer.deadline(self.lvts.timer_mode())
    }

    /// Lets the timer see what time it is. Whether it requested an interrupt; if it is periodic,
    /// its deadline is a new one then. Calls that come too early or too often do no harm.
    #[inline]
    pub fn timer_expired(&mut self, now: Now) -> bool {
        if !self.timer.expire(self.lvts.timer_mode(), now) {
            return false;
        }
        match self.lvts.timer_vector() {
            Some(vector) => self.accept(vector, false),
            None => false,
        }
    }

    /// The TSC deadline MSR, 6E0h. It is zero as soon as the interrupt is requested, and not
    /// before: a VMM that saves this and [`Self::state`], in either order, finds the timer in
    /// exactly one of them. For the guest, [`Self::timer_expired`] comes first.
    pub fn tsc_deadline(&self) -> u64 {
        match self.lvts.timer_mode() {
            TimerMode::TscDeadline => self.timer.tsc_deadline,
            _ => 0,
        }
    }

    /// Sets the TSC deadline to what a VMM has saved. Nothing is requested yet, even if it has
    /// passed; and it is kept for a mode that may still come with [`Self::set_state`].
    pub fn restore_tsc_deadline(&mut self, value: u64) -> Effect {
        self.timer.tsc_deadline = value;
        Effect::Timer
    }

    /// Writes the TSC deadline MSR. Without effect in other modes of the timer. A deadline that has
    /// passed requests the interrupt at once.
    #[inline]
    pub fn set_tsc_deadline(&mut self, value: u64, now: Now) -> Effect {
        if self.lvts.timer_mode() != TimerMode::TscDeadline || !self.base.is_enabled() {
            return Effect::None;
        }
        let before = self.timer_deadline();
        self.timer_expired(now);
        self.timer.tsc_deadline = value;
        self.timer_expired(now);
        self.timer_effect(before)
    }

    /// What the caller has to do if the deadline was `before`.
    fn timer_effect(&self, before: Option<Deadline>) -> Effect {
        if self.timer_deadline() == before {
            Effect::None
        } else {
            Effect::Timer
        }
    }

    /// What is to come at a time of the monotonic clock comes `ns` later: so much time did not pass
    /// for the guest. TSC deadlines are in the guest's own time.
    pub fn move_time(&mut self, ns: u64) {
        let timer = &mut self.timer;
        timer.zero_at = timer.zero_at.map(|zero| zero.saturating_add(ns));
        if timer.last_period_ns != 0 {
            timer.last_period_ns = timer.last_period_ns.saturating_add(ns);
        }
    }

    /// Sets the length of a tick (`KVM_CAP_X86_APIC_BUS_CYCLES_NS`). For before the guest runs.
    pub fn set_bus_cycle_ns(&mut self, ns: u32) {
        self.timer.bus_cycle_ns = ns.max(1);
    }

    pub(super) fn timer_count(&mut self, now: Now) -> u32 {
        self.timer_expired(now);
        self.count_left(now)
    }

    /// The current count of a timer that has seen `now`.
    pub(super) fn count_left(&self, now: Now) -> u32 {
        match self.lvts.timer_mode() {
            TimerMode::TscDeadline => 0,
            _ => self.timer.count(now),
        }
    }

    pub(super) fn write_timer_initial(&mut self, value: u32, now: Now) -> Effect {
        let before = self.timer_deadline();
        self.timer_expired(now);
        if self.lvts.timer_mode() == TimerMode::TscDeadline {
            return self.timer_effect(before);
        }
        self.timer.initial = value;
        self.timer.start(value, now);
        self.timer_effect(before)
    }

    /// The count goes on from where it is, at the new pace.
    pub(super) fn write_timer_divide(&mut self, value: u32, now: Now) -> Effect {
        let before = self.timer_deadline();
        self.timer_expired(now);
        let count = self.timer.count(now);
        self.timer.divide = value & DIVIDE_MASK;
        if self.timer.zero_at.is_some() {
            self.timer.start(count, now);
        }
        self.timer_effect(before)
    }

    /// Entering or leaving TSC deadline mode stops the timer; the other modes share the count.
    pub(super) fn write_timer_lvt(&mut self, value: u32, now: Now) -> Effect {
        let before = self.timer_deadline();
        self.timer_expired(now);
        let was_deadline = self.lvts.timer_mode() == TimerMode::TscDeadline;
        self.lvts
            .set_register(super::lvt::Entry::Timer as usize, value);
        if was_deadline != (self.lvts.timer_mode() == TimerMode::TscDeadline) {
            self.timer.stop();
            self.timer.initial = 0;
        }
        self.timer_effect(before)
    }
}
