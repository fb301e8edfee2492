// SPDX-License-Identifier: GPL-2.0-only

//! The registers as `KVM_GET_LAPIC` and `KVM_SET_LAPIC` carry them: the first KiB of the page.

use super::lvt::ENTRIES;
use super::register::{reg, VERSION};
use super::timer::TimerMode;
use super::{esr, Lapic, DFR_ONES, ID_MASK, SVR_MASK};
use crate::bits::Vectors;
use crate::wire::{Reader, Writer};
use crate::{InvalidState, Now};

/// The size of `kvm_lapic_state`.
pub const STATE_SIZE: usize = 0x400;

/// Registers of 256 bits are eight of 32.
const BANKS: usize = 8;
/// Errors that the ESR does not show yet are kept in the register's unused second word.
const ESR_PENDING_WORD: usize = 1;

/// Where word `word` of register `number` begins.
const fn position(number: u8, word: usize) -> usize {
    ((number as usize) << 4) + 4 * word
}

fn put(page: &mut Writer<'_>, number: u8, value: u32) {
    page.seek(position(number, 0));
    page.put_u32(value);
}

fn get(page: &mut Reader<'_>, number: u8) -> u32 {
    page.seek(position(number, 0));
    page.get_u32()
}

fn put_vectors(page: &mut Writer<'_>, first: u8, vectors: &Vectors) {
    for i in 0..BANKS {
        put(page, first + i as u8, vectors.register(i));
    }
}

fn get_vectors(page: &mut Reader<'_>, first: u8) -> Vectors {
    let mut vectors = Vectors::EMPTY;
    for i in 0..BANKS {
        vectors.set_register(i, get(page, first + i as u8));
    }
    vectors
}

impl Lapic {
    /// Fills in `page`. `extended_ids`: the ID of an x2APIC is shown with 32 bits
    /// (`KVM_X2APIC_API_USE_32BIT_IDS`), else as an xAPIC would.
    pub fn state(&self, page: &mut [u8; STATE_SIZE], now: Now, extended_ids: bool) {
        // What a count requests until now belongs to the state, but reading must not change it. A
        // TSC deadline is in a register of its own until then.
        let mut copy = *self;
        if copy.lvts.timer_mode() != TimerMode::TscDeadline {
            copy.timer_expired(now);
        }
        let id = if copy.is_x2apic() && !extended_ids {
            copy.id << 24
        } else {
            copy.id_register()
        };
        let page = &mut Writer::new(page);
        put(page, reg::ID, id);
        put(page, reg::VERSION, VERSION);
        put(page, reg::TPR, u32::from(copy.tpr));
        put(page, reg::PPR, u32::from(copy.ppr));
        put(page, reg::LDR, copy.ldr_register());
        put(page, reg::DFR, copy.dfr);
        put(page, reg::SVR, copy.svr);
        put_vectors(page, reg::ISR, &copy.isr);
        put_vectors(page, reg::TMR, &copy.tmr);
        put_vectors(page, reg::IRR, &copy.irr);
        put(page, reg::ESR, copy.esr);
        page.seek(position(reg::ESR, ESR_PENDING_WORD));
        page.put_u32(copy.esr_pending);
        put(page, reg::ICR_LOW, copy.icr() as u32);
        put(page, reg::ICR_HIGH, (copy.icr() >> 32) as u32);
        for i in 0..ENTRIES {
            put(page, reg::LVT_TIMER + i as u8, copy.lvts.register(i));
        }
        put(page, reg::TIMER_INITIAL, copy.timer.initial());
        put(page, reg::TIMER_CURRENT, copy.count_left(now));
        put(page, reg::TIMER_DIVIDE, copy.timer.divide());
    }

    /// Takes over `page`; the mode must have been set with the base register before. The version,
    /// the PPR and all bits that do not exist are ignored; a timer goes on from its current count.
    /// [`Self::snapshot`] and [`Self::timer_deadline`] may change.
    ///
    /// An extended ID that is not the processor's is refused; a short one of an x2APIC is ignored.
    pub fn set_state(
        &mut self,
        page: &[u8; STATE_SIZE],
        now: Now,
        extended_ids: bool,
    ) -> Result<(), InvalidState> {
        let page = &mut Reader::new(page);
        let id = get(page, reg::ID);
        if !self.is_x2apic() {
            self.xapic_id = (id >> 24) as u8;
            self.ldr = get(page, reg::LDR) & ID_MASK;
        } else if extended_ids && id != self.id {
            return Err(InvalidState);
        }
        self.tpr = get(page, reg::TPR) as u8;
        self.dfr = get(page, reg::DFR) | DFR_ONES;
        self.svr = get(page, reg::SVR) & SVR_MASK;
        self.isr = get_vectors(page, reg::ISR);
        self.tmr = get_vectors(page, reg::TMR);
        self.irr = get_vectors(page, reg::IRR);
        self.esr = get(page, reg::ESR) & esr::MASK;
        page.seek(position(reg::ESR, ESR_PENDING_WORD));
        self.esr_pending = page.get_u32() & esr::MASK;
        let icr_high = u64::from(get(page, reg::ICR_HIGH)) << 32;
        self.restore_icr(icr_high | u64::from(get(page, reg::ICR_LOW)));
        // Entries of a disabled APIC need not be masked: VMMs set LINT0 up before they enable it.
        for i in 0..ENTRIES {
            self.lvts
                .set_register(i, get(page, reg::LVT_TIMER + i as u8));
        }
        let initial = get(page, reg::TIMER_INITIAL);
        let current = get(page, reg::TIMER_CURRENT);
        let divide = get(page, reg::TIMER_DIVIDE);
        let mode = self.lvts.timer_mode();
        self.timer.restore(mode, initial, current, divide, now);
        self.update_service();
        Ok(())
    }
}
