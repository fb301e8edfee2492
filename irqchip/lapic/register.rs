// SPDX-License-Identifier: GPL-2.0-only

//! Reading and writing the registers: as memory in xAPIC mode, as MSRs in x2APIC mode (APM vol. 2,
//! 16.3.2 and 16.11).

use super::lvt::{forced_mask, Entry, ENTRIES};
use super::{esr, Effect, GeneralProtection, Lapic};
use super::{DFR_ONES, ID_MASK, SVR_ENABLED, SVR_MASK};
use crate::dest::x2apic_logical_id;
use crate::Now;

/// The numbers of the registers: their offset in the page divided by 16, which is also the low
/// byte of their MSR.
pub(super) mod reg {
    pub(crate) const ID: u8 = 0x02;
    pub(crate) const VERSION: u8 = 0x03;
    pub(crate) const TPR: u8 = 0x08;
    pub(crate) const APR: u8 = 0x09;
    pub(crate) const PPR: u8 = 0x0a;
    pub(crate) const EOI: u8 = 0x0b;
    pub(crate) const REMOTE_READ: u8 = 0x0c;
    pub(crate) const LDR: u8 = 0x0d;
    pub(crate) const DFR: u8 = 0x0e;
    pub(crate) const SVR: u8 = 0x0f;
    pub(crate) const ISR: u8 = 0x10;
    pub(crate) const ISR_LAST: u8 = 0x17;
    pub(crate) const TMR: u8 = 0x18;
    pub(crate) const TMR_LAST: u8 = 0x1f;
    pub(crate) const IRR: u8 = 0x20;
    pub(crate) const IRR_LAST: u8 = 0x27;
    pub(crate) const ESR: u8 = 0x28;
    pub(crate) const ICR_LOW: u8 = 0x30;
    pub(crate) const ICR_HIGH: u8 = 0x31;
    pub(crate) const LVT_TIMER: u8 = 0x32;
    pub(crate) const LVT_THERMAL: u8 = 0x33;
    pub(crate) const LVT_ERROR: u8 = 0x37;
    pub(crate) const TIMER_INITIAL: u8 = 0x38;
    pub(crate) const TIMER_CURRENT: u8 = 0x39;
    pub(crate) const TIMER_DIVIDE: u8 = 0x3e;
    pub(crate) const SELF_IPI: u8 = 0x3f;
}

/// Version 14h, and the number of the last LVT entry (APM vol. 2, 16.3.4). There is no extended
/// APIC space, and end-of-interrupt messages cannot be suppressed.
pub(super) const VERSION: u32 = 0x14 | (ENTRIES as u32 - 1) << 16;

/// The first MSR of an x2APIC.
pub const X2APIC_MSR_FIRST: u32 = 0x800;
/// The last MSR of an x2APIC.
pub const X2APIC_MSR_LAST: u32 = 0x8ff;

/// Whether `index` is an MSR of an x2APIC.
pub const fn is_x2apic_msr(index: u32) -> bool {
    index >= X2APIC_MSR_FIRST && index <= X2APIC_MSR_LAST
}

/// Registers are 16 bytes apart; only the first four bytes of each exist.
const REGISTER_SHIFT: u32 = 4;
const REGISTER_BYTES: u32 = 4;
const PAGE_MASK: u32 = 0xfff;

impl Lapic {
    /// Reads `data.len()` bytes at `offset` of the registers' page. An access that is not one of
    /// aligned 32 bits gets what hardware may give: the bytes of the registers, and zeros between.
    pub fn mmio_read(&mut self, offset: u32, data: &mut [u8], now: Now) {
        let mut loaded = None;
        for (i, byte) in data.iter_mut().enumerate() {
            let at = offset.wrapping_add(i as u32) & PAGE_MASK;
            let within = at & ((1 << REGISTER_SHIFT) - 1);
            let number = (at >> REGISTER_SHIFT) as u8;
            *byte = 0;
            if within < REGISTER_BYTES {
                let value = match loaded {
                    Some((known, value)) if known == number => value,
                    _ => self.mmio_read_register(number, now),
                };
                loaded = Some((number, value));
                *byte = (value >> (8 * within)) as u8;
            }
        }
    }

    fn mmio_read_register(&mut self, number: u8, now: Now) -> u32 {
        let value = match number {
            reg::ICR_LOW => Some(self.icr() as u32),
            reg::ICR_HIGH => Some((self.icr() >> 32) as u32),
            // These can be read, but there is nothing in them.
            reg::EOI | reg::APR | reg::REMOTE_READ => Some(0),
            reg::DFR => Some(self.dfr),
            _ => self.read(number, now),
        };
        value.unwrap_or_else(|| {
            self.error(esr::ILLEGAL_REGISTER);
            0
        })
    }

    /// Writes `data` at `offset` of the registers' page. Only aligned writes of at least 32 bits
    /// do anything, and of longer ones only the first 32 bits.
    pub fn mmio_write(&mut self, offset: u32, data: &[u8], now: Now) -> Effect {
        let offset = offset & PAGE_MASK;
        let is_register = offset & ((1 << REGISTER_SHIFT) - 1) == 0;
        let value = match data.first_chunk() {
            Some(bytes) if is_register => u32::from_le_bytes(*bytes),
            _ => return Effect::None,
        };
        match (offset >> REGISTER_SHIFT) as u8 {
            reg::ID => {
                self.xapic_id = (value >> 24) as u8;
                Effect::Routing
            }
            reg::LDR => {
                self.ldr = value & ID_MASK;
                Effect::Routing
            }
            reg::DFR => {
                self.dfr = value | DFR_ONES;
                Effect::Routing
            }
            reg::ICR_HIGH => {
                self.write_icr_high(value);
                Effect::None
            }
            reg::ICR_LOW => self.write_icr_low(value),
            number => self.write(number, value, now).unwrap_or_else(|| {
                self.error(esr::ILLEGAL_REGISTER);
                Effect::None
            }),
        }
    }

    /// Reads an MSR of the range 800h to 8FFh.
    pub fn msr_read(&mut self, index: u32, now: Now) -> Result<u64, GeneralProtection> {
        let number = self.msr_register(index)?;
        match number {
            reg::ICR_LOW => Ok(self.icr()),
            _ => self
                .read(number, now)
                .map(u64::from)
                .ok_or(GeneralProtection),
        }
    }

    /// Writes an MSR of the range 800h to 8FFh.
    #[inline]
    pub fn msr_write(
        &mut self,
        index: u32,
        value: u64,
        now: Now,
    ) -> Result<Effect, GeneralProtection> {
        let number = self.msr_register(index)?;
        if number == reg::ICR_LOW {
            return self.write_icr(value);
        }
        let value = u32::try_from(value).map_err(|_| GeneralProtection)?;
        match number {
            reg::EOI | reg::ESR if value != 0 => Err(GeneralProtection),
            reg::TPR if value > 0xff => Err(GeneralProtection),
            reg::SELF_IPI if value > 0xff => Err(GeneralProtection),
            reg::SELF_IPI => {
                self.write_self_ipi(value as u8);
                Ok(Effect::None)
            }
            _ => self.write(number, value, now).ok_or(GeneralProtection),
        }
    }

    fn msr_register(&self, index: u32) -> Result<u8, GeneralProtection> {
        if self.is_x2apic() && is_x2apic_msr(index) {
            Ok(index as u8)
        } else {
            Err(GeneralProtection)
        }
    }

    /// The ID register, in the format of the present mode.
    pub(super) const fn id_register(&self) -> u32 {
        if self.base.is_x2apic() {
            self.id
        } else {
            (self.xapic_id as u32) << 24
        }
    }

    pub(super) const fn ldr_register(&self) -> u32 {
        if self.base.is_x2apic() {
            x2apic_logical_id(self.id)
        } else {
            self.ldr
        }
    }

    /// Registers that both modes can read.
    fn read(&mut self, number: u8, now: Now) -> Option<u32> {
        let bank = |first| usize::from(number.wrapping_sub(first));
        Some(match number {
            reg::ID => self.id_register(),
            reg::VERSION => VERSION,
            reg::TPR => u32::from(self.tpr),
            reg::PPR => u32::from(self.ppr),
            reg::LDR => self.ldr_register(),
            reg::SVR => self.svr,
            reg::ISR..=reg::ISR_LAST => self.isr.register(bank(reg::ISR)),
            reg::TMR..=reg::TMR_LAST => self.tmr.register(bank(reg::TMR)),
            reg::IRR..=reg::IRR_LAST => {
                self.timer_expired(now);
                self.irr.register(bank(reg::IRR))
            }
            reg::ESR => self.esr,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.lvts.register(bank(reg::LVT_TIMER)),
            reg::TIMER_INITIAL => self.timer.initial(),
            reg::TIMER_CURRENT => self.timer_count(now),
            reg::TIMER_DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    /// Registers that both modes can write.
    #[inline]
    fn write(&mut self, number: u8, value: u32, now: Now) -> Option<Effect> {
        Some(match number {
            reg::TPR => {
                self.set_tpr(value as u8);
                Effect::None
            }
            reg::EOI => self.end_of_interrupt().map_or(Effect::None, Effect::Eoi),
            reg::SVR => self.write_svr(value, now),
            reg::ESR => {
                self.esr = self.esr_pending;
                self.esr_pending = 0;
                Effect::None
            }
            reg::LVT_TIMER => self.write_timer_lvt(value | forced_mask(self.is_enabled()), now),
            reg::LVT_THERMAL..=reg::LVT_ERROR => {
                let index = Entry::Thermal as usize + usize::from(number - reg::LVT_THERMAL);
                self.write_lvt(index, value | forced_mask(self.is_enabled()))
            }
            reg::TIMER_INITIAL => self.write_timer_initial(value, now),
            reg::TIMER_DIVIDE => self.write_timer_divide(value, now),
            _ => return None,
        })
    }

    fn write_lvt(&mut self, index: usize, value: u32) -> Effect {
        let heard_pic = self.accepts_pic_interrupt();
        self.lvts.set_register(index, value);
        if self.accepts_pic_interrupt() == heard_pic {
            Effect::None
        } else {
            Effect::Routing
        }
    }

    /// Disabling masks the whole local vector table (APM vol. 2, 16.4.7).
    fn write_svr(&mut self, value: u32, now: Now) -> Effect {
        self.timer_expired(now);
        let changed = (self.svr ^ value) & SVR_ENABLED != 0;
        self.svr = value & SVR_MASK;
        if self.svr & SVR_ENABLED == 0 {
            self.lvts.mask_all();
        }
        if changed {
            Effect::Routing
        } else {
            Effect::None
        }
    }
}
