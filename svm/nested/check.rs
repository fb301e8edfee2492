// SPDX-License-Identifier: GPL-2.0-only

//! What VMRUN refuses: #VMEXIT(INVALID) (APM vol. 2, 15.5.1, 15.20, 15.25.3, 15.25.4).

use crate::exit::ExitCode;
use crate::iopm;
use crate::msrpm;
use crate::nested::area::{Control, Registers};
use x86::features::Features;
use x86::msr::is_valid_pat;
use x86::regs::{vector, Cr0, Cr4, Efer, SegAttr};

/// The bits that may be set in DR6 and DR7.
const LOW: u64 = 0xffff_ffff;

impl Control {
    /// Whether VMRUN takes this control area. `outer_paging` says that the outer guest uses paging,
    /// which nested paging needs.
    pub(crate) fn is_valid(&self, features: &Features, outer_paging: bool) -> bool {
        let reserved = features.reserved_phys();
        // The CPU ignores the offset into the page.
        let holds = |base: u64, size: usize| {
            let last = (base & !0xfff).saturating_add(size as u64 - 1);
            last & reserved == 0
        };
        self.intercepts(ExitCode::VMRUN)
            && self.asid != 0
            && holds(self.msrpm, msrpm::SIZE)
            && holds(self.iopm, iopm::SIZE)
            && is_valid_event(self.event_inj)
            && (!self.has_paging() || (outer_paging && self.ncr3 & reserved == 0))
    }
}

impl Registers {
    /// Whether VMRUN takes these registers.
    pub(crate) fn is_valid(&self, features: &Features, paging: bool) -> bool {
        let cr0 = Cr0::from_bits_retain(self.cr0);
        let cr4 = Cr4::from_bits_retain(self.cr4);
        let efer = Efer::from_bits_retain(self.efer);
        let paged = cr0.contains(Cr0::PG);
        let long = efer.contains(Efer::LME) && paged;
        // LMA is not looked at: it is LME and PG.
        features.efer().union(Efer::LMA).contains(efer)
            && efer.contains(Efer::SVME)
            && (cr0.contains(Cr0::CD) || !cr0.contains(Cr0::NW))
            && cr0.bits() >> 32 == 0
            && features.cr4().contains(cr4)
            && (self.dr6 | self.dr7) & !LOW == 0
            && (!long || self.is_valid_long(cr0, cr4, features))
            && (cr0.contains(Cr0::WP) || !cr4.contains(Cr4::CET))
            && (!paging || is_valid_pat(self.g_pat))
    }

    fn is_valid_long(&self, cr0: Cr0, cr4: Cr4, features: &Features) -> bool {
        let both = SegAttr::L | SegAttr::DB;
        cr4.contains(Cr4::PAE)
            && cr0.contains(Cr0::PE)
            && self.cr3 & features.reserved_phys() == 0
            && !self.cs.attributes.contains(both)
    }
}

/// Whether EVENTINJ is empty, or an event that there is (APM vol. 2, 15.20).
fn is_valid_event(event: u64) -> bool {
    const VALID: u64 = 1 << 31;
    const EXCEPTIONS: u8 = 32;
    let number = event as u8;
    match event >> 8 & 7 {
        _ if event & VALID == 0 => true,
        // Interrupt, NMI, INT n.
        0 | 2 | 4 => true,
        3 => number != vector::NMI && number < EXCEPTIONS,
        _ => false,
    }
}
