// SPDX-License-Identifier: GPL-2.0-only

//! The IOAPIC: Intel 82093AA, with 24 pins.
//!
//! ```text
//!   sources ─► line ─┬─ edge:  a rise sends ────────────────────────────┐
//!                    └─ level: high, and no remote IRR: sends, sets it ─┴─► Message
//!                                     ▲ EOI clears remote IRR
//! ```
//!
//! Whatever can send takes a callback, which delivers the message and tells whether any local APIC
//! took it. A level-triggered message that no LAPIC took leaves remote IRR clear: no EOI will come.

use crate::lines::{Delivery, Lines, Source};
use crate::message::{DeliveryMode, Message};
use crate::storm::Storms;
use crate::wire::{Reader, Writer};

/// How many pins, and entries of the redirection table, there are.
pub const PINS: usize = 24;
/// The size of `kvm_ioapic_state`.
pub const STATE_SIZE: usize = 24 + 8 * PINS;
/// Where the registers are; the page can not be moved.
pub const DEFAULT_ADDRESS: u64 = 0xfec0_0000;
/// How many bytes of addresses the registers take.
pub const MMIO_SIZE: u64 = 0x100;

/// The pin of the real-time clock, and its GSI.
pub const RTC_PIN: u8 = 8;
/// A tick of the real-time clock whose end was not seen after so many further ones never ends.
const MOST_TICKS: u32 = 1000;

/// Offset of the I/O register select register (82093AA, 3.1.1).
const SELECT: u32 = 0x00;
/// Offset of the I/O window register (82093AA, 3.1.2).
const WINDOW: u32 = 0x10;
/// Only these bits of an address are decoded.
const OFFSET_MASK: u32 = 0xff;

/// Register indices (82093AA, 3.2).
const INDEX_ID: u8 = 0x00;
const INDEX_VERSION: u8 = 0x01;
const INDEX_ARBITRATION: u8 = 0x02;
const INDEX_TABLE: u8 = 0x10;
/// Version 11h, and the number of the last entry.
const VERSION: u32 = 0x11 | (PINS as u32 - 1) << 16;
const ID_SHIFT: u32 = 24;
const ID_MASK: u32 = 0xf;

/// An entry of the redirection table (82093AA, 3.2.4). Delivery status always reads as zero, and
/// polarity has no effect: the interface has only "asserted" and "not asserted".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    const LOGICAL: u64 = 1 << 11;
    const REMOTE_IRR: u64 = 1 << 14;
    const LEVEL: u64 = 1 << 15;
    const MASKED: u64 = 1 << 16;
    /// Vector, delivery mode, destination mode, polarity, trigger mode, mask, destination.
    const WRITABLE: u64 = 0xff00_0000_0001_afff;

    const RESET: Self = Self(Self::MASKED);

    const fn vector(self) -> u8 {
        self.0 as u8
    }

    const fn is_masked(self) -> bool {
        self.0 & Self::MASKED != 0
    }

    const fn remote_irr(self) -> bool {
        self.0 & Self::REMOTE_IRR != 0
    }

    /// Messages without a vector have no EOI, so they are edges whatever the entry says
    /// (82093AA, 3.2.4, "Delivery Mode").
    const fn is_level(self) -> bool {
        self.0 & Self::LEVEL != 0 && self.delivery_mode().has_vector()
    }

    const fn delivery_mode(self) -> DeliveryMode {
        DeliveryMode::from_bits((self.0 >> 8) as u32)
    }

    const fn message(self) -> Message {
        Message {
            vector: self.vector(),
            delivery_mode: self.delivery_mode(),
            dest: (self.0 >> 56) as u32,
            logical: self.0 & Self::LOGICAL != 0,
            level: self.is_level(),
        }
    }

    /// This entry after software wrote `value` over it. An edge-triggered entry has no remote IRR,
    /// so toggling the trigger mode is how software without an EOI register clears it.
    const fn written(self, value: u64) -> Self {
        let new = Self(value & Self::WRITABLE);
        if new.is_level() {
            Self(new.0 | self.0 & Self::REMOTE_IRR)
        } else {
            new
        }
    }

    /// The entry of a saved state.
    const fn restored(value: u64) -> Self {
        Self(value).written(value)
    }
}

/// The IOAPIC.
#[derive(Clone, Copy, Debug)]
pub struct Ioapic {
    select: u8,
    id: u8,
    table: [Entry; PINS],
    lines: Lines<PINS>,
    /// One bit for each pin that is asserted.
    asserted: u32,
    /// One bit for each pin whose last rise has been sent.
    sent: u32,
    /// One bit for each pin with an edge that came in a pause.
    waiting: u32,
    storms: Storms<PINS>,
    /// The real-time clock's interrupt is on its way, and so many ticks came meanwhile.
    rtc: Option<u32>,
    /// A LAPIC has taken its interrupt since [`Self::rtc_loses`].
    rtc_taken: bool,
}

impl Default for Ioapic {
    fn default() -> Self {
        Self::new()
    }
}

impl Ioapic {
    /// An IOAPIC after power-up: every pin is masked.
    pub const fn new() -> Self {
        Self {
            select: 0,
            id: 0,
            table: [Entry::RESET; PINS],
            lines: Lines::LOW,
            asserted: 0,
            sent: 0,
            waiting: 0,
            storms: Storms::NONE,
            rtc: None,
            rtc_taken: false,
        }
    }

    /// Whether a tick of the real-time clock is lost, because the interrupt of the last one has not
    /// ended. It is asked by a VMM that sends what is lost again (`KVM_IRQ_LINE_STATUS`).
    pub fn rtc_loses(&mut self) -> bool {
        self.rtc_taken = false;
        self.rtc = self
            .rtc
            .map(|lost| lost.saturating_add(1))
            .filter(|lost| *lost < MOST_TICKS);
        self.rtc.is_some()
    }

    /// A tick of the real-time clock went through. It is to end if it went through here: a PIC that
    /// took it tells of no end.
    pub fn rtc_sent(&mut self) {
        self.rtc = self.rtc_taken.then_some(0);
    }

    /// A local APIC was reset: the real-time clock's interrupt may never end.
    pub fn forget_rtc(&mut self) {
        self.rtc = None;
    }

    /// `source` drives `level` into `pin`.
    pub fn set_pin(
        &mut self,
        pin: u8,
        source: Source,
        level: bool,
        send: &mut impl FnMut(Message) -> bool,
    ) -> Delivery {
        let index = usize::from(pin);
        let (Some(asserted), Some(entry)) = (
            self.lines.drive(index, source, level),
            self.table.get(index).copied(),
        ) else {
            return Delivery::Ignored;
        };
        let bit = 1 << (pin & 31);
        if !asserted {
            self.asserted &= !bit;
            return Delivery::Delivered;
        }
        let rises = self.asserted & bit == 0;
        self.asserted |= bit;
        if rises {
            self.sent &= !bit;
        }
        let paused = self.storms.paused() & bit != 0;
        if rises && paused && !entry.is_level() && !entry.is_masked() {
            self.waiting |= bit;
        }
        let waits = entry.remote_irr() || paused;
        if !entry.is_level() && !rises || waits {
            Delivery::Coalesced
        } else if self.service(index, send) {
            self.rtc_taken |= pin == RTC_PIN;
            Delivery::Delivered
        } else {
            Delivery::Ignored
        }
    }

    /// Sends the message of `pin`, if its entry allows; whether a LAPIC took it. The caller has
    /// found that there is something to send.
    fn service(&mut self, index: usize, send: &mut impl FnMut(Message) -> bool) -> bool {
        let Some(entry) = self.table.get_mut(index) else {
            return false;
        };
        let bit = 1u32.wrapping_shl(index as u32);
        let paused = self.storms.paused() & bit != 0;
        if entry.is_masked() || entry.remote_irr() || paused {
            return false;
        }
        // An edge is sent once, whether a LAPIC takes it or not.
        self.sent |= bit;
        self.waiting &= !bit;
        let taken = send(entry.message());
        if taken && entry.is_level() {
            entry.0 |= Entry::REMOTE_IRR;
        }
        taken
    }

    /// Sends for `pin` if its level still asks for it.
    fn service_level(&mut self, index: usize, send: &mut impl FnMut(Message) -> bool) {
        let is_level = self.table.get(index).is_some_and(|entry| entry.is_level());
        if is_level && self.asserted & 1u32.wrapping_shl(index as u32) != 0 {
            self.service(index, send);
        }
    }

    /// Sends for `pin` if its level asks for it, or an edge that came in a pause.
    fn service_waiting(&mut self, index: usize, send: &mut impl FnMut(Message) -> bool) {
        if self.waiting & 1u32.wrapping_shl(index as u32) != 0 {
            self.service(index, send);
        } else {
            self.service_level(index, send);
        }
    }

    /// The vector that `pin` sends; 0 if there is no such pin.
    pub fn vector(&self, pin: u8) -> u8 {
        self.table
            .get(usize::from(pin))
            .map_or(0, |entry| entry.vector())
    }

    /// The pins, one bit each, that an EOI of `vector` concerns. Those with a resampling irqfd
    /// should be released before [`Self::eoi`], and the irqfd be told after it.
    pub fn eoi_pins(&self, vector: u8) -> u32 {
        let mut pins = 0;
        for (i, entry) in self.table.iter().enumerate() {
            // Also of one that was masked after it had sent.
            if entry.vector() == vector {
                pins |= 1 << i;
            }
        }
        pins
    }

    /// A local APIC ended the interrupt `vector`. Pins that are still asserted send again, if there
    /// is no storm: see [`Self::take_pause`].
    pub fn eoi(&mut self, vector: u8, send: &mut impl FnMut(Message) -> bool) {
        if self.vector(RTC_PIN) == vector {
            self.rtc = None;
        }
        for index in 0..PINS {
            let Some(entry) = self.table.get_mut(index) else {
                continue;
            };
            if entry.vector() != vector {
                continue;
            }
            let level = entry.remote_irr();
            entry.0 &= !Entry::REMOTE_IRR;
            let asserted = self.asserted & 1u32.wrapping_shl(index as u32) != 0;
            let high = level && asserted && !entry.is_masked();
            self.storms.ended(index, high);
            if level {
                self.service_level(index, send);
            }
        }
    }

    /// The line of `pin` rises again because a resampler was told of the end of its interrupt,
    /// before the guest has run on.
    pub fn raised_at_end(&mut self, pin: u8) {
        self.storms.raised_at_end(usize::from(pin));
    }

    /// Whether a pin pauses since the last call, for [`PAUSE_NS`](crate::storm::PAUSE_NS): then
    /// [`Self::resume`] is due.
    pub fn take_pause(&mut self) -> bool {
        self.storms.take_begun()
    }

    /// Whether a pin pauses.
    pub fn is_paused(&self) -> bool {
        self.storms.paused() != 0
    }

    /// The pause is over.
    pub fn resume(&mut self, send: &mut impl FnMut(Message) -> bool) {
        let pins = self.storms.resume();
        for index in 0..PINS {
            let bit = 1u32.wrapping_shl(index as u32);
            if pins & bit != 0 {
                self.service_waiting(index, send);
            }
        }
    }

    /// Reads `data.len()` bytes at `offset` of the registers. What is not a register is zero.
    pub fn mmio_read(&self, offset: u32, data: &mut [u8]) {
        let offset = offset & OFFSET_MASK;
        let value = match offset & !3 {
            SELECT => u32::from(self.select),
            WINDOW => self.read_selected(),
            _ => 0,
        };
        let bytes = (value >> (8 * (offset & 3))).to_le_bytes();
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get(i).copied().unwrap_or(0);
        }
    }

    /// Writes `data` at `offset` of the registers: short data is extended with zeros, of long data
    /// the first 32 bits count. What is not a register ignores it.
    pub fn mmio_write(&mut self, offset: u32, data: &[u8], send: &mut impl FnMut(Message) -> bool) {
        if data.is_empty() {
            return;
        }
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let value = u32::from_le_bytes(bytes);
        match offset & OFFSET_MASK {
            SELECT => self.select = value as u8,
            WINDOW => self.write_selected(value, send),
            _ => {}
        }
    }

    /// The entry that is selected, and whether its upper half is.
    fn selected_entry(&self) -> Option<(usize, bool)> {
        let offset = self.select.checked_sub(INDEX_TABLE)?;
        let index = usize::from(offset >> 1);
        (index < PINS).then_some((index, offset & 1 != 0))
    }

    fn read_selected(&self) -> u32 {
        match self.select {
            INDEX_ID | INDEX_ARBITRATION => u32::from(self.id) << ID_SHIFT,
            INDEX_VERSION => VERSION,
            _ => match self.selected_entry() {
                Some((index, upper)) => {
                    let entry = self.table.get(index).map_or(0, |entry| entry.0);
                    (if upper { entry >> 32 } else { entry }) as u32
                }
                None => 0,
            },
        }
    }

    fn write_selected(&mut self, value: u32, send: &mut impl FnMut(Message) -> bool) {
        if self.select == INDEX_ID {
            self.id = (value >> ID_SHIFT & ID_MASK) as u8;
            return;
        }
        let Some((index, upper)) = self.selected_entry() else {
            return;
        };
        if let Some(entry) = self.table.get_mut(index) {
            let low = u64::from(u32::MAX);
            let written = if upper {
                entry.0 & low | u64::from(value) << 32
            } else {
                entry.0 & !low | u64::from(value)
            };
            *entry = entry.written(written);
            if entry.is_level() {
                self.waiting &= !1u32.wrapping_shl(index as u32);
            }
        }
        if index == usize::from(RTC_PIN) {
            self.rtc = None;
        }
        self.service_waiting(index, send);
    }

    /// Fills in `kvm_ioapic_state`. Its `irr` has the levels, but no edge that was sent.
    pub fn state(&self, bytes: &mut [u8; STATE_SIZE]) {
        let mut irr = 0;
        for (i, entry) in self.table.iter().enumerate() {
            let bit = 1 << i;
            let asks = entry.is_level() || self.sent & bit == 0;
            if self.asserted & bit != 0 && asks || self.waiting & bit != 0 {
                irr |= bit;
            }
        }
        let mut writer = Writer::new(bytes);
        writer.put_u64(DEFAULT_ADDRESS);
        writer.put_u32(u32::from(self.select));
        writer.put_u32(u32::from(self.id));
        writer.put_u32(irr);
        writer.put_u32(0);
        for entry in &self.table {
            writer.put_u64(entry.0);
        }
    }

    /// Takes `kvm_ioapic_state` over, and sends what it asks for and was not sent yet. The levels
    /// hold until a source next drives its pin. What each source drives is not part of the
    /// structure: it stays as it is.
    pub fn set_state(&mut self, bytes: &[u8; STATE_SIZE], send: &mut impl FnMut(Message) -> bool) {
        let mut reader = Reader::new(bytes);
        let _base_address = reader.get_u64();
        self.select = reader.get_u32() as u8;
        self.id = (reader.get_u32() & ID_MASK) as u8;
        self.asserted = reader.get_u32() & ((1 << PINS) - 1);
        let _padding = reader.get_u32();
        self.sent = 0;
        self.waiting = 0;
        self.storms = Storms::NONE;
        self.rtc = None;
        for entry in &mut self.table {
            *entry = Entry::restored(reader.get_u64());
        }
        for index in 0..PINS {
            if self.asserted & 1u32.wrapping_shl(index as u32) != 0 {
                self.service(index, send);
            }
        }
    }
}
