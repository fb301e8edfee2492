// SPDX-License-Identifier: GPL-2.0-only

//! The local vector table (APM vol. 2, 16.4).

use super::timer::TimerMode;
use super::Lapic;
use crate::message::DeliveryMode;

const MASKED: u32 = 1 << 16;
const VECTOR: u32 = 0xff;
const MODE: u32 = 7 << 8;
/// The mode ExtINT.
const EXT_INT: u32 = 7 << 8;
/// Polarity and trigger mode of the LINT pins. Remote IRR and delivery status read as zero.
const PIN: u32 = 1 << 13 | 1 << 15;
const TIMER_MODE: u32 = 3 << 17;

/// The entries, in the order of their registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Entry {
    Timer,
    Thermal,
    Performance,
    Lint0,
    Lint1,
    Error,
}

/// How many entries there are.
pub(super) const ENTRIES: usize = 6;
const WRITABLE: [u32; ENTRIES] = [
    VECTOR | MASKED | TIMER_MODE,
    VECTOR | MASKED | MODE,
    VECTOR | MASKED | MODE,
    VECTOR | MASKED | MODE | PIN,
    VECTOR | MASKED | MODE | PIN,
    VECTOR | MASKED,
];

/// A source of interrupts at the processor itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalSource {
    /// The temperature sensor.
    Thermal,
    /// A performance counter that overflowed.
    Performance,
    /// The LINT0 pin, where a PC has its 8259A.
    Lint0,
    /// The LINT1 pin, where a PC has its NMI.
    Lint1,
}

/// What becomes of an interrupt of a [`LocalSource`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum LocalEvent {
    /// Nothing: it is masked, or the entry is not valid.
    None,
    /// It is in the IRR.
    Requested,
    /// The processor gets an NMI.
    Nmi,
    /// The processor gets an SMI.
    Smi,
    /// The processor gets an INIT.
    Init,
    /// The processor asks the external interrupt controller for a vector.
    ExtInt,
}

/// The table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lvts([u32; ENTRIES]);

impl Lvts {
    /// After reset everything is masked, but that LINT0 of the boot strap processor hears the PIC
    /// at once, as firmware would leave it (virtual wire mode, APM vol. 2, 16.1): VMMs without
    /// firmware rely on it.
    pub(super) const fn reset(is_bsp: bool) -> Self {
        let mut entries = [MASKED; ENTRIES];
        if is_bsp {
            entries[Entry::Lint0 as usize] = EXT_INT;
        }
        Self(entries)
    }

    /// Entry `index`, or a masked one if there is none.
    pub(super) fn register(&self, index: usize) -> u32 {
        self.0.get(index).copied().unwrap_or(MASKED)
    }

    pub(super) fn set_register(&mut self, index: usize, value: u32) {
        if let (Some(entry), Some(writable)) = (self.0.get_mut(index), WRITABLE.get(index)) {
            *entry = value & writable;
        }
    }

    pub(super) fn mask_all(&mut self) {
        for entry in &mut self.0 {
            *entry |= MASKED;
        }
    }

    const fn entry(&self, entry: Entry) -> u32 {
        self.0[entry as usize]
    }

    const fn is_masked(&self, entry: Entry) -> bool {
        self.entry(entry) & MASKED != 0
    }

    fn vector(&self, entry: Entry) -> Option<u8> {
        (!self.is_masked(entry)).then_some(self.entry(entry) as u8)
    }

    pub(super) fn error_vector(&self) -> Option<u8> {
        self.vector(Entry::Error)
    }

    pub(super) fn timer_vector(&self) -> Option<u8> {
        self.vector(Entry::Timer)
    }

    pub(super) const fn timer_mode(&self) -> TimerMode {
        TimerMode::from_bits(self.entry(Entry::Timer) >> 17)
    }
}

/// The writable bits of entry `index` while the APIC is disabled: it stays masked.
pub(super) const fn forced_mask(enabled: bool) -> u32 {
    if enabled {
        0
    } else {
        MASKED
    }
}

impl Lapic {
    /// Lets `source` request an interrupt, by its entry of the table. LINT pins are edges here: the
    /// level of the wire to the 8259A is [`Pic::output`](crate::Pic::output).
    pub fn raise(&mut self, source: LocalSource) -> LocalEvent {
        let entry = match source {
            LocalSource::Thermal => Entry::Thermal,
            LocalSource::Performance => Entry::Performance,
            LocalSource::Lint0 => Entry::Lint0,
            LocalSource::Lint1 => Entry::Lint1,
        };
        if !self.base.is_enabled() {
            // Without an APIC the pins are INTR and NMI (APM vol. 2, 16.3.1).
            return match source {
                LocalSource::Lint0 => LocalEvent::ExtInt,
                LocalSource::Lint1 => LocalEvent::Nmi,
                _ => LocalEvent::None,
            };
        }
        let Some(vector) = self.lvts.vector(entry) else {
            return LocalEvent::None;
        };
        match DeliveryMode::from_bits(self.lvts.entry(entry) >> 8) {
            DeliveryMode::Fixed if self.accept(vector, false) => LocalEvent::Requested,
            DeliveryMode::Nmi => LocalEvent::Nmi,
            DeliveryMode::Smi => LocalEvent::Smi,
            DeliveryMode::Init => LocalEvent::Init,
            DeliveryMode::ExtInt => LocalEvent::ExtInt,
            _ => LocalEvent::None,
        }
    }

    /// Whether the processor listens to the 8259A: LINT0 is an unmasked ExtINT, or the APIC is off.
    #[inline]
    pub const fn accepts_pic_interrupt(&self) -> bool {
        if !self.base.is_enabled() {
            return true;
        }
        let lint0 = self.lvts.entry(Entry::Lint0);
        lint0 & MASKED == 0 && matches!(DeliveryMode::from_bits(lint0 >> 8), DeliveryMode::ExtInt)
    }
}
