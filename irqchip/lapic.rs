// SPDX-License-Identifier: GPL-2.0-only

//! The local APIC (APM vol. 2, chapter 16): xAPIC and x2APIC.
//!
//! ```text
//!   accept ──► IRR ── pending_vector (above PPR?) ── acknowledge ──► ISR ── EOI ──► Effect::Eoi
//!   timer ─────┘                                                      └──► PPR ◄── TPR
//! ```
//!
//! A [`Lapic`] belongs to one vCPU. Whatever comes from elsewhere is collected by the caller and
//! handed over with [`Lapic::accept`] or [`Lapic::merge`] before the guest is entered.

mod base;
mod icr;
mod lvt;
mod register;
mod state;
mod timer;

pub use base::{BaseLimits, BaseWriter};
pub use icr::Ipi;
pub use lvt::{LocalEvent, LocalSource};
pub use register::{is_x2apic_msr, X2APIC_MSR_FIRST, X2APIC_MSR_LAST};
pub use state::STATE_SIZE;
pub use timer::{Deadline, MIN_PERIOD_NS};

use crate::bits::Vectors;
use crate::dest::Snapshot;
use base::ApicBase;
use lvt::Lvts;
use timer::Timer;

/// The access faults: the guest gets #GP(0), a VMM gets `EINVAL` or a short count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// The end of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eoi {
    /// The vector that was in service.
    pub vector: u8,
    /// Whether it was level-triggered, so that the IOAPIC must hear of it.
    pub level: bool,
}

/// What the caller has to do because of a register write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing.
    None,
    /// An interrupt ended: tell the IOAPIC.
    Eoi(Eoi),
    /// Send an interprocessor interrupt.
    Ipi(Ipi),
    /// [`Lapic::timer_deadline`] changed.
    Timer,
    /// The wiring changed: publish [`Lapic::snapshot`], ask [`Lapic::accepts_pic_interrupt`] again,
    /// and [`Lapic::timer_deadline`] also.
    Routing,
}

/// Vectors below this are exceptions; no interrupt may have them (APM vol. 2, 16.6.3).
const FIRST_VECTOR: u8 = 16;
/// The upper half of a vector is its priority (APM vol. 2, 16.6.3).
const PRIORITY_CLASS: u8 = 0xf0;

/// Spurious interrupt vector register: the bits that exist (APM vol. 2, 16.4.7).
const SVR_MASK: u32 = 0x3ff;
const SVR_ENABLED: u32 = 1 << 8;
const SVR_RESET: u32 = 0xff;
/// DFR: only the model, bits 31:28, can be written.
const DFR_ONES: u32 = 0x0fff_ffff;
/// LDR and xAPIC ID: only bits 31:24 exist.
const ID_MASK: u32 = 0xff00_0000;

/// Error status register (APM vol. 2, 16.4.6).
mod esr {
    /// A vector below 16 was to be sent.
    pub(super) const SENT_ILLEGAL_VECTOR: u32 = 1 << 5;
    /// A vector below 16 was received.
    pub(super) const RECEIVED_ILLEGAL_VECTOR: u32 = 1 << 6;
    /// A register that does not exist was accessed.
    pub(super) const ILLEGAL_REGISTER: u32 = 1 << 7;
    /// All bits that exist.
    pub(super) const MASK: u32 = 0xef;
}

/// The local APIC of one vCPU.
#[derive(Clone, Copy, Debug)]
pub struct Lapic {
    /// The x2APIC ID, which never changes.
    id: u32,
    /// The xAPIC ID, which the guest may change.
    xapic_id: u8,
    base: ApicBase,
    tpr: u8,
    /// Always what TPR and ISR make it.
    ppr: u8,
    /// The highest vector in service; 0 if there is none.
    in_service: u8,
    svr: u32,
    ldr: u32,
    dfr: u32,
    esr: u32,
    /// Errors since the last write of the ESR, which is what shows them.
    esr_pending: u32,
    icr: u64,
    lvts: Lvts,
    timer: Timer,
    irr: Vectors,
    isr: Vectors,
    tmr: Vectors,
}

impl Lapic {
    /// The APIC of a processor that has just got its power.
    pub fn new(id: u32, is_bsp: bool) -> Self {
        Self {
            id,
            xapic_id: id as u8,
            base: ApicBase::reset(is_bsp),
            tpr: 0,
            ppr: 0,
            in_service: 0,
            svr: SVR_RESET,
            ldr: 0,
            dfr: u32::MAX,
            esr: 0,
            esr_pending: 0,
            icr: 0,
            lvts: Lvts::reset(is_bsp),
            timer: Timer::reset(timer::DEFAULT_BUS_CYCLE_NS),
            irr: Vectors::EMPTY,
            isr: Vectors::EMPTY,
            tmr: Vectors::EMPTY,
        }
    }

    /// What an INIT does: everything is as after power-up but the IDs and the base register, hence
    /// the mode (APM vol. 2, 16.3.2). [`Self::snapshot`] changes.
    pub fn init(&mut self) {
        *self = Self {
            xapic_id: self.xapic_id,
            base: self.base,
            timer: Timer::reset(self.timer.bus_cycle_ns()),
            ..Self::new(self.id, self.base.is_bsp())
        };
    }

    /// The x2APIC ID.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Whether software has enabled the APIC, so that it takes interrupts with a vector.
    #[inline]
    pub const fn is_enabled(&self) -> bool {
        self.base.is_enabled() && self.svr & SVR_ENABLED != 0
    }

    /// The ID that messages find the APIC by. An xAPIC has no room for an ID above 255; such a
    /// processor is found by the ID that it will have as an x2APIC, and not by that of another one.
    const fn present_id(&self) -> u32 {
        if self.base.is_x2apic() || self.id > u8::MAX as u32 {
            self.id
        } else {
            self.xapic_id as u32
        }
    }

    /// What the routing of messages needs of this APIC.
    pub const fn snapshot(&self) -> Snapshot {
        let snapshot = if !self.base.is_enabled() {
            Snapshot::ABSENT
        } else if self.base.is_x2apic() {
            Snapshot::x2apic(self.id, self.is_enabled())
        } else {
            Snapshot::xapic(self.present_id(), self.ldr, self.dfr, self.is_enabled())
        };
        snapshot.with_pic(self.accepts_pic_interrupt())
    }

    /// Takes an interrupt in: a fixed message, or one that won the arbitration. Whether it is now
    /// requested; an APIC that is disabled refuses, and so does every APIC a vector below 16.
    pub fn accept(&mut self, vector: u8, level: bool) -> bool {
        if !self.is_enabled() {
            return false;
        }
        if vector < FIRST_VECTOR {
            self.error(esr::RECEIVED_ILLEGAL_VECTOR);
            return false;
        }
        self.irr.insert(vector);
        self.tmr.set(vector, level);
        true
    }

    /// Takes many interrupts in at once: those of `requests`; the ones of them in `levels` are
    /// level-triggered.
    #[inline]
    pub fn merge(&mut self, requests: &Vectors, levels: &Vectors) {
        if !self.is_enabled() {
            return;
        }
        let illegal = requests.word(0) & 0xffff;
        if illegal != 0 {
            self.error(esr::RECEIVED_ILLEGAL_VECTOR);
        }
        for i in 0..4 {
            let mut new = requests.word(i);
            if i == 0 {
                new &= !illegal;
            }
            self.irr.set_word(i, self.irr.word(i) | new);
            self.tmr
                .set_word(i, self.tmr.word(i) & !new | levels.word(i) & new);
        }
    }

    /// The vector that the processor should take as soon as its interrupt flag allows.
    #[inline]
    pub fn pending_vector(&self) -> Option<u8> {
        let vector = self.irr.highest()?;
        let deliverable = vector & PRIORITY_CLASS > self.ppr & PRIORITY_CLASS;
        (deliverable && self.base.is_enabled()).then_some(vector)
    }

    /// Moves the pending vector from request to service, for the processor to take it now.
    #[inline]
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending_vector()?;
        self.irr.remove(vector);
        self.isr.insert(vector);
        // It is above PPR, so it is above TPR and whatever was in service.
        self.in_service = vector;
        self.ppr = vector & PRIORITY_CLASS;
        Some(vector)
    }

    /// Ends the interrupt in service, as a write of the EOI register does. Nothing if none was.
    #[inline]
    pub fn end_of_interrupt(&mut self) -> Option<Eoi> {
        let vector = self.isr.highest()?;
        self.isr.remove(vector);
        self.update_service();
        Some(Eoi {
            vector,
            level: self.tmr.contains(vector),
        })
    }

    /// The vector in service whose end would change nothing but that it is over: nothing waits for
    /// it here, and no IOAPIC hears of it.
    #[inline]
    pub fn quiet_service(&self) -> Option<u8> {
        let vector = self.in_service;
        let quiet = self.irr.is_empty() && !self.tmr.contains(vector);
        (vector != 0 && quiet).then_some(vector)
    }

    /// The task priority register.
    #[inline]
    pub const fn tpr(&self) -> u8 {
        self.tpr
    }

    /// Writes the task priority register. An interrupt may become deliverable.
    #[inline]
    pub fn set_tpr(&mut self, tpr: u8) {
        self.tpr = tpr;
        self.update_ppr();
    }

    /// CR8: the upper half of the TPR.
    #[inline]
    pub const fn cr8(&self) -> u64 {
        (self.tpr >> 4) as u64
    }

    /// Writes CR8; bits above 3 are ignored.
    #[inline]
    pub fn set_cr8(&mut self, cr8: u64) {
        self.set_tpr((cr8 as u8) << 4);
    }

    /// The processor priority register.
    #[inline]
    pub const fn ppr(&self) -> u8 {
        self.ppr
    }

    /// The vectors that are requested and not yet taken.
    pub const fn requests(&self) -> &Vectors {
        &self.irr
    }

    /// The vectors in service.
    pub const fn in_service(&self) -> &Vectors {
        &self.isr
    }

    fn update_service(&mut self) {
        self.in_service = self.isr.highest().unwrap_or(0);
        self.update_ppr();
    }

    /// APM vol. 2, 16.6.4: the higher of TPR and the class of the interrupt in service.
    #[inline]
    fn update_ppr(&mut self) {
        let class = self.in_service & PRIORITY_CLASS;
        self.ppr = if self.tpr & PRIORITY_CLASS >= class {
            self.tpr
        } else {
            class
        };
    }

    /// Notes an error, and requests the error interrupt if the guest wants it.
    fn error(&mut self, bit: u32) {
        if self.esr_pending & bit != 0 {
            return;
        }
        self.esr_pending |= bit;
        // The error vector may itself be illegal; that is noted above, and ends here.
        if let Some(vector) = self.lvts.error_vector() {
            if vector < FIRST_VECTOR {
                self.esr_pending |= esr::RECEIVED_ILLEGAL_VECTOR;
            } else {
                self.accept(vector, false);
            }
        }
    }
}
