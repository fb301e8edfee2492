// SPDX-License-Identifier: GPL-2.0-only

//! One counter of the 8254.
//!
//! Simplified: a new count takes effect at once, also where the 8254 would finish the running
//! period, and the tick that loading a count takes is not counted.

use super::clock::{nanoseconds, ticks};
use crate::wire::{Reader, Writer};
use core::num::NonZeroU64;

/// The size of `kvm_pit_channel_state`.
pub(super) const STATE_SIZE: usize = 24;

/// The counter's modes (8254, "Mode Definitions").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Mode {
    TerminalCount = 0,
    OneShot = 1,
    RateGenerator = 2,
    SquareWave = 3,
    SoftwareStrobe = 4,
    HardwareStrobe = 5,
}

impl Mode {
    const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::TerminalCount,
            1 => Self::OneShot,
            2 => Self::RateGenerator,
            3 => Self::SquareWave,
            4 => Self::SoftwareStrobe,
            5 => Self::HardwareStrobe,
            _ => return None,
        })
    }

    /// The mode of a control word, where modes 2 and 3 have a bit that does not count.
    const fn from_control(value: u8) -> Self {
        match value >> 1 & 7 {
            0 => Self::TerminalCount,
            1 => Self::OneShot,
            2 | 6 => Self::RateGenerator,
            3 | 7 => Self::SquareWave,
            4 => Self::SoftwareStrobe,
            _ => Self::HardwareStrobe,
        }
    }

    const fn is_periodic(self) -> bool {
        matches!(self, Self::RateGenerator | Self::SquareWave)
    }

    /// Counts after a rise of the gate only.
    const fn needs_trigger(self) -> bool {
        matches!(self, Self::OneShot | Self::HardwareStrobe)
    }
}

/// Which byte of a 16-bit value comes next; the numbers are those of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Bytes {
    /// Always the low byte.
    Low = 1,
    /// Always the high byte, or the high byte of a latched count whose low byte was read.
    High = 2,
    /// The low byte, then the high byte.
    Both = 3,
    /// The high byte, after the low one.
    BothHigh = 4,
}

impl Bytes {
    const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Low,
            2 => Self::High,
            3 => Self::Both,
            4 => Self::BothHigh,
            _ => return None,
        })
    }

    /// Where a sequence in `format` may be, if it is said to be at `number`.
    fn restored(number: u8, format: Self) -> Self {
        match (format, Self::from_number(number)) {
            (Self::Both, Some(Self::BothHigh)) => Self::BothHigh,
            _ => format,
        }
    }

    /// What comes after this byte.
    const fn next(self) -> Self {
        match self {
            Self::Both => Self::BothHigh,
            Self::BothHigh => Self::Both,
            other => other,
        }
    }

    const fn of(self, value: u16) -> u8 {
        let [low, high] = value.to_le_bytes();
        match self {
            Self::Low | Self::Both => low,
            Self::High | Self::BothHigh => high,
        }
    }
}

/// Control word (8254, "Control Word Format").
const FORMAT_SHIFT: u32 = 4;
const BCD: u8 = 1 << 0;
/// Status byte (8254, "Read-Back Command").
const STATUS_OUTPUT: u8 = 1 << 7;
const STATUS_NULL_COUNT: u8 = 1 << 6;

/// `kvm_pit_channel_state::mode` of a channel that was never programmed.
const MODE_NONE: u8 = 0xff;
/// Added to the mode of a channel that has no count yet. The interface has no place for this.
const MODE_NO_COUNT: u8 = 1 << 7;
/// Added to the mode of a channel that the gate has triggered.
const MODE_TRIGGERED: u8 = 1 << 6;
const MODE_NUMBER: u8 = 7;

/// One counter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Channel {
    /// Nothing before the first control word.
    mode: Option<Mode>,
    bcd: bool,
    format: Bytes,
    next_read: Bytes,
    next_write: Bytes,
    write_latch: u8,
    /// The latched count, and what of it is still to be read.
    latched_count: u16,
    count_latched: Option<Bytes>,
    latched_status: Option<u8>,
    /// The initial count, 1 to 65,536.
    count: u32,
    /// A count was written after the control word.
    loaded: bool,
    triggered: bool,
    gate: bool,
    /// When the count was `count`.
    loaded_at: u64,
    /// How many ticks had passed when the gate stopped the counter.
    stopped_after: Option<u64>,
}

/// The count of a zero: 65,536, or 10,000 in BCD.
const fn modulus(bcd: bool) -> u32 {
    if bcd {
        10_000
    } else {
        1 << 16
    }
}

/// The value of four decimal digits. Digits above nine count as what they are.
fn from_bcd(value: u16) -> u32 {
    (0..4).rev().fold(0, |sum, digit| {
        sum * 10 + u32::from(value >> (4 * digit) & 0xf)
    })
}

fn to_bcd(value: u32) -> u16 {
    let digits = [1000, 100, 10, 1];
    digits
        .iter()
        .fold(0, |bcd, power| bcd << 4 | (value / power % 10) as u16)
}

impl Channel {
    pub(super) const fn new(gate: bool) -> Self {
        Self {
            mode: None,
            bcd: false,
            format: Bytes::Both,
            next_read: Bytes::Both,
            next_write: Bytes::Both,
            write_latch: 0,
            latched_count: 0,
            count_latched: None,
            latched_status: None,
            count: modulus(false),
            loaded: false,
            triggered: false,
            gate,
            loaded_at: 0,
            stopped_after: None,
        }
    }

    /// The count was loaded `ns` later.
    pub(super) fn move_time(&mut self, ns: u64) {
        self.loaded_at = self.loaded_at.saturating_add(ns);
    }

    pub(super) const fn gate(&self) -> bool {
        self.gate
    }

    /// The mode, if the channel has all that it needs to count or to wait for a trigger.
    fn running_mode(&self) -> Option<Mode> {
        self.mode.filter(|_| self.loaded)
    }

    /// Ticks since the count was loaded.
    const fn elapsed(&self, now: u64) -> u64 {
        match self.stopped_after {
            Some(ticks) => ticks,
            None => ticks(now.saturating_sub(self.loaded_at)),
        }
    }

    /// The length of a period; a count of one is not legal in the periodic modes.
    fn period(&self) -> NonZeroU64 {
        NonZeroU64::new(self.count.max(2).into()).unwrap_or(NonZeroU64::MIN)
    }

    /// How many ticks after `elapsed` are left of a period.
    fn left(&self, elapsed: u64) -> u64 {
        let period = self.period();
        period.get().wrapping_sub(elapsed % period)
    }

    /// The level of OUT.
    pub(super) fn output(&self, now: u64) -> bool {
        let elapsed = self.elapsed(now);
        let count = u64::from(self.count);
        match self.running_mode() {
            None => self.mode != Some(Mode::TerminalCount),
            Some(Mode::TerminalCount) => elapsed >= count,
            Some(Mode::OneShot) => !self.triggered || elapsed >= count,
            // Low for the last tick of a period only.
            Some(Mode::RateGenerator) => !self.gate || self.left(elapsed) != 1,
            Some(Mode::SquareWave) => {
                // The longer half of an odd period comes first.
                let passed = elapsed % self.period();
                !self.gate || passed < self.left(elapsed)
            }
            Some(Mode::SoftwareStrobe) => elapsed != count,
            Some(Mode::HardwareStrobe) => !self.triggered || elapsed != count,
        }
    }

    /// How often OUT has risen since the count was loaded.
    pub(super) fn rises(&self, now: u64) -> u64 {
        let elapsed = self.elapsed(now);
        match self.running_mode() {
            Some(mode) if mode.is_periodic() => elapsed / self.period(),
            Some(mode) => u64::from(self.only_rise(mode).is_some_and(|rise| elapsed >= rise)),
            None => 0,
        }
    }

    /// When OUT rises for the `n`th time since the count was loaded, if nothing intervenes.
    pub(super) fn rise_at(&self, n: u64) -> Option<u64> {
        if self.stopped_after.is_some() {
            return None;
        }
        let ticks = match self.running_mode()? {
            mode if mode.is_periodic() => self.period().get().saturating_mul(n),
            mode if n == 1 => self.only_rise(mode)?,
            _ => return None,
        };
        Some(self.loaded_at.saturating_add(nanoseconds(ticks)))
    }

    /// After how many ticks OUT rises, in a mode where it does so once.
    fn only_rise(&self, mode: Mode) -> Option<u64> {
        let count = u64::from(self.count);
        match mode {
            Mode::TerminalCount => Some(count),
            Mode::OneShot => self.triggered.then_some(count),
            Mode::SoftwareStrobe => Some(count + 1),
            Mode::HardwareStrobe => self.triggered.then_some(count + 1),
            Mode::RateGenerator | Mode::SquareWave => None,
        }
    }

    /// The counting element, as a read shows it.
    fn current(&self, now: u64) -> u16 {
        let elapsed = self.elapsed(now);
        let value = match self.running_mode() {
            Some(mode) if mode.is_periodic() => {
                // A square wave counts by two, once for each half of its period.
                let step = if mode == Mode::SquareWave { 2 } else { 1 };
                self.left(elapsed.wrapping_mul(step)) as u32
            }
            Some(mode) if !mode.needs_trigger() || self.triggered => {
                // It goes on below zero.
                let modulus = modulus(self.bcd);
                let passed = (elapsed % u64::from(modulus)) as u32;
                (self.count % modulus + modulus).wrapping_sub(passed) % modulus
            }
            _ => self.count,
        };
        if self.bcd {
            to_bcd(value)
        } else {
            value as u16
        }
    }

    /// A control word for this channel; whether the counter was reprogrammed.
    pub(super) fn control(&mut self, value: u8, now: u64) -> bool {
        // Format zero is the counter latch command.
        let Some(format) = Bytes::from_number(value >> FORMAT_SHIFT & 3) else {
            self.latch_count(now);
            return false;
        };
        *self = Self {
            mode: Some(Mode::from_control(value)),
            bcd: value & BCD != 0,
            format,
            next_read: format,
            next_write: format,
            count: self.count,
            loaded_at: now,
            ..Self::new(self.gate)
        };
        true
    }

    /// A write of the count's port; whether the counter was changed.
    pub(super) fn write(&mut self, value: u8, now: u64) -> bool {
        let byte = self.next_write;
        self.next_write = byte.next();
        match byte {
            Bytes::Low => self.load(u16::from(value), now),
            Bytes::High => self.load(u16::from(value) << 8, now),
            Bytes::Both => {
                self.write_latch = value;
                if self.mode != Some(Mode::TerminalCount) {
                    return false;
                }
                // The first byte stops the counter (8254, "Mode 0").
                self.loaded = false;
            }
            Bytes::BothHigh => self.load(u16::from_le_bytes([self.write_latch, value]), now),
        }
        true
    }

    fn load(&mut self, value: u16, now: u64) {
        let value = if self.bcd {
            from_bcd(value)
        } else {
            u32::from(value)
        };
        self.begin(value, now);
    }

    /// Counts from `count`, as far as gate and trigger allow.
    fn begin(&mut self, count: u32, now: u64) {
        self.count = match count {
            0 => modulus(self.bcd),
            count => count.min(1 << 16),
        };
        self.loaded = true;
        self.triggered = false;
        self.loaded_at = now;
        let waits = self.mode.is_some_and(|mode| !mode.needs_trigger()) && !self.gate;
        self.stopped_after = waits.then_some(0);
    }

    /// Sets the gate (8254, "Gate Pin Operations Summary").
    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        let rises = gate && !self.gate;
        let falls = !gate && self.gate;
        let elapsed = self.elapsed(now);
        self.gate = gate;
        let Some(mode) = self.mode else {
            return;
        };
        if mode.needs_trigger() {
            if rises {
                self.triggered = true;
                self.loaded_at = now;
            }
        } else if falls {
            self.stopped_after = Some(elapsed);
        } else if rises {
            self.stopped_after = None;
            let passed = if mode.is_periodic() { 0 } else { elapsed };
            self.loaded_at = now.saturating_sub(nanoseconds(passed));
        }
    }

    /// A read of the count's port.
    pub(super) fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        if let Some(byte) = self.count_latched {
            self.count_latched = (byte == Bytes::Both).then_some(Bytes::High);
            return byte.of(self.latched_count);
        }
        let byte = self.next_read;
        self.next_read = byte.next();
        byte.of(self.current(now))
    }

    /// Latches the count, unless a latched one is still to be read.
    pub(super) fn latch_count(&mut self, now: u64) {
        if self.count_latched.is_none() {
            self.latched_count = self.current(now);
            self.count_latched = Some(self.format);
        }
    }

    /// Latches the status, unless a latched one is still to be read.
    pub(super) fn latch_status(&mut self, now: u64) {
        if self.latched_status.is_some() {
            return;
        }
        let mut status = (self.format as u8) << FORMAT_SHIFT;
        status |= self.mode.map_or(0, |mode| (mode as u8) << 1);
        if self.bcd {
            status |= BCD;
        }
        if self.output(now) {
            status |= STATUS_OUTPUT;
        }
        if !self.loaded {
            status |= STATUS_NULL_COUNT;
        }
        self.latched_status = Some(status);
    }

    /// Appends `kvm_pit_channel_state`.
    pub(super) fn put(&self, writer: &mut Writer<'_>) {
        let mode = self.mode.map_or(MODE_NONE, |mode| {
            let no_count = if self.loaded { 0 } else { MODE_NO_COUNT };
            let triggered = if self.triggered { MODE_TRIGGERED } else { 0 };
            mode as u8 | no_count | triggered
        });
        writer.put_u32(self.count);
        writer.put_u16(self.latched_count);
        writer.put_u8(self.count_latched.map_or(0, |byte| byte as u8));
        writer.put_bool(self.latched_status.is_some());
        writer.put_u8(self.latched_status.unwrap_or(0));
        writer.put_u8(self.next_read as u8);
        writer.put_u8(self.next_write as u8);
        writer.put_u8(self.write_latch);
        writer.put_u8(self.format as u8);
        writer.put_u8(mode);
        writer.put_bool(self.bcd);
        writer.put_bool(self.gate);
        writer.put_u64(self.loaded_at);
    }

    /// Takes the next `kvm_pit_channel_state`. Its count begins at `now`.
    pub(super) fn get(reader: &mut Reader<'_>, now: u64) -> Self {
        let count = reader.get_u32();
        let latched_count = reader.get_u16();
        let count_latched = reader.get_u8();
        let status_latched = reader.get_bool();
        let status = reader.get_u8();
        let next_read = reader.get_u8();
        let next_write = reader.get_u8();
        let write_latch = reader.get_u8();
        let format = match Bytes::from_number(reader.get_u8()) {
            Some(format @ (Bytes::Low | Bytes::High)) => format,
            _ => Bytes::Both,
        };
        let mode = reader.get_u8();
        let bcd = reader.get_bool();
        let gate = reader.get_bool();
        let _loaded_at = reader.get_u64();
        let number = match mode {
            MODE_NONE => MODE_NONE,
            mode => mode & MODE_NUMBER,
        };
        let mut channel = Self {
            mode: Mode::from_number(number),
            bcd,
            format,
            next_read: Bytes::restored(next_read, format),
            next_write: Bytes::restored(next_write, format),
            write_latch,
            latched_count,
            count_latched: match Bytes::from_number(count_latched) {
                Some(Bytes::BothHigh) => Some(Bytes::High),
                byte => byte,
            },
            latched_status: status_latched.then_some(status),
            ..Self::new(gate)
        };
        channel.begin(count, now);
        channel.loaded = channel.mode.is_some() && mode & MODE_NO_COUNT == 0;
        channel.triggered = mode != MODE_NONE && mode & MODE_TRIGGERED != 0;
        channel
    }
}
