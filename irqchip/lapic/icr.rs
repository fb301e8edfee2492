// SPDX-License-Identifier: GPL-2.0-only

//! The interrupt command register (APM vol. 2, 16.5 and 16.13).

use super::{esr, Effect, Lapic, FIRST_VECTOR};
use crate::dest::{Destination, Shorthand};
use crate::message::DeliveryMode;

/// Delivery status. Sending takes no time, so it always reads as zero.
const DELIVERY_STATUS: u64 = 1 << 12;
const LOGICAL: u64 = 1 << 11;
const LEVEL_ASSERT: u64 = 1 << 14;
const TRIGGER_LEVEL: u64 = 1 << 15;
/// Bits of the low half that an x2APIC refuses: 13, 17:16 and 31:20. The delivery status, which it
/// might refuse also, is ignored.
const X2APIC_RESERVED: u64 = 0xfff3_2000;
/// The destination of an xAPIC; its other bits of the upper half do not exist.
const XAPIC_DEST: u64 = 0xff << 56;
const LOW_HALF: u64 = 0xffff_ffff;

/// An interprocessor interrupt to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipi {
    /// [`DeliveryMode::Fixed`], [`DeliveryMode::LowestPriority`], [`DeliveryMode::Smi`],
    /// [`DeliveryMode::Nmi`], [`DeliveryMode::Init`] or [`DeliveryMode::StartUp`].
    pub mode: DeliveryMode,
    /// The vector, or the page of the start-up code.
    pub vector: u8,
    /// Whether it is level-triggered.
    pub level: bool,
    /// Whom it is for. The source is the vCPU whose register was written.
    pub dest: Destination,
}

impl Lapic {
    /// The register as a whole.
    pub(super) const fn icr(&self) -> u64 {
        self.icr
    }

    /// Sets the register without sending anything.
    pub(super) fn restore_icr(&mut self, value: u64) {
        self.icr = value & !DELIVERY_STATUS & self.icr_mask();
    }

    const fn icr_mask(&self) -> u64 {
        if self.base.is_x2apic() {
            u64::MAX
        } else {
            XAPIC_DEST | LOW_HALF
        }
    }

    /// A write of the upper half of an xAPIC's register.
    pub(super) fn write_icr_high(&mut self, value: u32) {
        self.icr = u64::from(value) << 32 & XAPIC_DEST | self.icr & LOW_HALF;
    }

    /// A write of the lower half of an xAPIC's register: sends.
    pub(super) fn write_icr_low(&mut self, value: u32) -> Effect {
        self.icr = self.icr & !LOW_HALF | u64::from(value) & !DELIVERY_STATUS;
        self.send()
    }

    /// A write of an x2APIC's register: sends.
    pub(super) fn write_icr(&mut self, value: u64) -> Result<Effect, super::GeneralProtection> {
        if value & X2APIC_RESERVED != 0 {
            return Err(super::GeneralProtection);
        }
        self.icr = value & !DELIVERY_STATUS;
        Ok(self.send())
    }

    fn send(&mut self) -> Effect {
        let icr = self.icr;
        let mode = DeliveryMode::from_bits((icr >> 8) as u32);
        let vector = icr as u8;
        let level = icr & TRIGGER_LEVEL != 0;
        if level && icr & LEVEL_ASSERT == 0 {
            // A level de-assert did something in the APICs of the 1990s only.
            return Effect::None;
        }
        if matches!(mode, DeliveryMode::Reserved | DeliveryMode::ExtInt) {
            return Effect::None;
        }
        let shorthand = Shorthand::from_bits((icr >> 18) as u32);
        if mode.has_vector() {
            if vector < FIRST_VECTOR {
                self.error(esr::SENT_ILLEGAL_VECTOR);
                return Effect::None;
            }
            if shorthand == Shorthand::Myself {
                self.accept(vector, level);
                return Effect::None;
            }
        }
        let id = if self.base.is_x2apic() {
            (icr >> 32) as u32
        } else {
            (icr >> 56) as u32
        };
        Effect::Ipi(Ipi {
            mode,
            vector,
            level,
            dest: Destination {
                id,
                logical: icr & LOGICAL != 0,
                shorthand,
                narrow_broadcast: !self.base.is_x2apic(),
            },
        })
    }

    /// A write of an x2APIC's self IPI register.
    pub(super) fn write_self_ipi(&mut self, vector: u8) {
        if vector < FIRST_VECTOR {
            self.error(esr::SENT_ILLEGAL_VECTOR);
        } else {
            self.accept(vector, false);
        }
    }
}
