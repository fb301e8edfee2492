// SPDX-License-Identifier: GPL-2.0-only

//! The state for `KVM_GET_NESTED_STATE` and `KVM_SET_NESTED_STATE`: as KVM has it, a page with the
//! control area of the outer guest's VMCB and the outer guest's registers. The inner guest's are
//! those of all other ioctls.

use crate::nested::area::{Control, Field, Registers, SAVE};
use crate::nested::Nested;
use crate::state::{guest_efer, VcpuState};
use crate::vmcb::Vmcb;
use bitflags::bitflags;
use x86::msr::is_valid_pat;
use x86::regs::{Cr0, Efer};

/// Bytes that follow the header if there is an inner guest.
pub const STATE_PAGE: usize = 4096;

/// Two words of the page that the APM (vol. 2, table B-1) leaves to hypervisors, and KVM to others:
/// QEMU carries no more of the header than the VMCB's address. First the inner guest's PAT, ...
const OWN_PAT: usize = 0x3f0;
/// ... then flags.
const OWN_FLAGS: usize = 0x3f8;

/// The flags.
#[derive(Clone, Copy)]
struct OwnFlags(u64);

bitflags! {
    impl OwnFlags: u64 {
        /// NMIs were masked in the outer guest when VMRUN came.
        const OUTER_NMI_MASKED = 1 << 0;
        /// There is a PAT.
        const HAS_PAT = 1 << 1;
    }
}

/// `kvm_nested_state.flags`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateFlags(u16);

bitflags! {
    impl StateFlags: u16 {
        /// There is an inner guest.
        const GUEST_MODE = 1 << 0;
        /// It has not been entered yet.
        const RUN_PENDING = 1 << 1;
        /// GIF.
        const GIF_SET = 1 << 8;
    }
}

impl Nested {
    /// The flags, the address of the outer guest's VMCB, and the inner guest's PAT, if it has one
    /// of its own.
    pub fn header(&self, vmcb: &Vmcb, state: &VcpuState) -> (StateFlags, u64, u64) {
        let mut flags = StateFlags::empty();
        flags.set(StateFlags::GUEST_MODE, self.inside);
        flags.set(StateFlags::RUN_PENDING, self.inside && self.run_pending);
        flags.set(StateFlags::GIF_SET, !state.events.gif_clear);
        let address = if self.inside { self.vmcb } else { 0 };
        let pat = if self.has_paging() { vmcb.g_pat() } else { 0 };
        (flags, address, pat)
    }

    /// PAT of the outer guest, which is the VMM's to read and write.
    pub(crate) fn outer_pat(&self, vmcb: &Vmcb) -> u64 {
        match self.has_paging() {
            true => self.outer.g_pat,
            false => vmcb.g_pat(),
        }
    }

    /// Sets [`Self::outer_pat`].
    pub(crate) fn set_outer_pat(&mut self, vmcb: &mut Vmcb, value: u64) {
        match self.has_paging() {
            true => self.outer.g_pat = value,
            false => vmcb.set_g_pat(value),
        }
    }

    /// Fills the page. nRIP is that of the last exit, or of the event that is to be injected.
    pub fn write_page(&self, vmcb: &Vmcb, page: &mut [u8]) {
        let mut control = self.control;
        if !self.run_pending {
            control.next_rip = vmcb.next_rip();
        }
        control.write(page);
        let mut flags = OwnFlags::empty();
        flags.set(OwnFlags::OUTER_NMI_MASKED, self.outer_nmi_masked);
        if self.has_paging() {
            flags |= OwnFlags::HAS_PAT;
            vmcb.g_pat().put(page, OWN_PAT);
        }
        flags.bits().put(page, OWN_FLAGS);
        if let Some(save) = page.get_mut(SAVE..) {
            self.outer.write(save);
        }
    }

    /// Takes a state over; false if there can be no such.
    pub fn restore(
        &mut self,
        vmcb: &mut Vmcb,
        state: &mut VcpuState,
        flags: StateFlags,
        (address, pat): (u64, u64),
        page: &[u8],
    ) -> bool {
        /// The offset into a page.
        const OFFSET: u64 = 0xfff;
        let inside = flags.contains(StateFlags::GUEST_MODE);
        let gif = flags.contains(StateFlags::GIF_SET);
        if !StateFlags::all().contains(flags) {
            return false;
        }
        if inside && !guest_efer(vmcb, state).contains(Efer::SVME) {
            return false;
        }
        if !inside && flags.contains(StateFlags::RUN_PENDING) {
            return false;
        }
        if !inside {
            self.reset(vmcb);
            state.events.gif_clear = !gif;
            return true;
        }
        let Some((control, save)) = page.split_at_checked(SAVE) else {
            return false;
        };
        let own = OwnFlags::from_bits_retain(u64::get(control, OWN_FLAGS));
        let pat = match own.contains(OwnFlags::HAS_PAT) {
            true => u64::get(control, OWN_PAT),
            false => pat,
        };
        let (control, mut outer) = (Control::read(control), Registers::read(save));
        // The outer guest's is the one that `KVM_SET_MSRS` sets.
        outer.g_pat = self.outer_pat(vmcb);
        let features = &state.features;
        let paged = Cr0::from_bits_retain(outer.cr0).contains(Cr0::PG);
        let valid = address & (OFFSET | features.reserved_phys()) == 0
            && control.is_valid(features, paged)
            // A CPU runs only guests from protected mode.
            && Cr0::from_bits_retain(outer.cr0).contains(Cr0::PE)
            && outer.is_valid(features, false)
            && (!control.has_paging() || is_valid_pat(pat));
        if !valid {
            return false;
        }
        // By this the CPU walks the outer guest's tables.
        let mut efer = Efer::from_bits_retain(outer.efer);
        efer.set(Efer::LMA, paged && efer.contains(Efer::LME));
        outer.efer = efer.bits();
        vmcb.set_g_pat(outer.g_pat);
        self.init = false;
        let shadow = vmcb.interrupt_shadow();
        self.enter(vmcb, state, control);
        vmcb.set_interrupt_shadow(shadow);
        (self.vmcb, self.outer) = (address, outer);
        if self.has_paging() {
            vmcb.set_g_pat(pat);
        }
        self.outer_nmi_masked = own.contains(OwnFlags::OUTER_NMI_MASKED);
        self.run_pending = flags.contains(StateFlags::RUN_PENDING);
        self.flush = true;
        state.events.gif_clear = !gif;
        true
    }
}
