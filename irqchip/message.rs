// SPDX-License-Identifier: GPL-2.0-only

//! The interrupt message: what IOAPIC and devices send to local APICs (APM vol. 2, 16.5).

use crate::dest::{Destination, Shorthand};

/// What a message or a local vector table entry asks of the processor (APM vol. 2, 16.5,
/// "Message Type").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The vector of the message, in every destination.
    Fixed,
    /// The vector of the message, in that destination which runs at the lowest priority.
    LowestPriority,
    /// A system management interrupt.
    Smi,
    /// Reserved; "remote read" of old APICs.
    Reserved,
    /// A non-maskable interrupt.
    Nmi,
    /// The INIT signal.
    Init,
    /// The start-up IPI; the vector is the page number of the code.
    StartUp,
    /// The vector comes from the external interrupt controller.
    ExtInt,
}

impl DeliveryMode {
    /// The mode of a three-bit field.
    pub const fn from_bits(bits: u32) -> Self {
        match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            3 => Self::Reserved,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            _ => Self::ExtInt,
        }
    }

    /// Whether the vector of the message becomes a request in the IRR.
    pub const fn has_vector(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// An interrupt on its way from an IOAPIC or a device to the local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The vector.
    pub vector: u8,
    /// What to do with it.
    pub delivery_mode: DeliveryMode,
    /// Whom it is for: an APIC ID or a logical destination.
    pub dest: u32,
    /// Whether `dest` is logical.
    pub logical: bool,
    /// Whether it is level-triggered: its end of interrupt goes back to the IOAPIC.
    pub level: bool,
}

const MSI_DEST_LOGICAL: u64 = 1 << 2;
/// Redirection hint: one of the destinations is enough.
const MSI_REDIRECT: u64 = 1 << 3;
const MSI_DATA_LEVEL: u32 = 1 << 15;
/// `address_hi` carries destination bits 31:8 in its own bits 31:8.
const MSI_HIGH_ID: u64 = 0xffff_ff00;

impl Message {
    /// The message that writing `data` to `address` sends. Bits 63:40 of the address are bits 31:8
    /// of the destination if `extended_ids` (`KVM_X2APIC_API_USE_32BIT_IDS`), else ignored, as
    /// the documentation of `KVM_SIGNAL_MSI` has it.
    pub const fn from_msi(address: u64, data: u32, extended_ids: bool) -> Self {
        let mut dest = (address >> 12) as u32 & 0xff;
        if extended_ids {
            dest |= ((address >> 32) & MSI_HIGH_ID) as u32;
        }
        let delivery_mode = match DeliveryMode::from_bits(data >> 8) {
            DeliveryMode::Fixed if address & MSI_REDIRECT != 0 => DeliveryMode::LowestPriority,
            mode => mode,
        };
        Self {
            vector: data as u8,
            delivery_mode,
            dest,
            logical: address & MSI_DEST_LOGICAL != 0,
            level: data & MSI_DATA_LEVEL != 0,
        }
    }

    /// Whether `address` is legal for the extended format: bits 39:32 must be zero.
    pub const fn extended_address_is_legal(address: u64) -> bool {
        (address >> 32) & !MSI_HIGH_ID == 0
    }

    /// Whom the message is for. `wide_broadcast` is false if 0xff means "everybody" to an x2APIC
    /// also, which KVM assumes until `KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK`.
    pub const fn destination(&self, wide_broadcast: bool) -> Destination {
        Destination {
            id: self.dest,
            logical: self.logical,
            shorthand: Shorthand::None,
            narrow_broadcast: !wide_broadcast,
        }
    }
}
