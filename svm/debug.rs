// SPDX-License-Identifier: GPL-2.0-only

//! A VMM that debugs its guest: `KVM_SET_GUEST_DEBUG`.
//!
//! While it does, the VMCB holds what the debugger needs, and the guest's own registers are here:
//!
//! | what         | in the VMCB               | the guest's own                                    |
//! |--------------|---------------------------|----------------------------------------------------|
//! | RFLAGS.TF    | set while single-stepping | not kept: it reads as zero                         |
//! | DR0-3, DR7   | the debugger's            | [`crate::state::VcpuState::db`], [`GuestDebug::dr7`] |
//! | DR6          | cleared for each stop     | [`GuestDebug::dr6`]                                |

use crate::debug_ctl;
use crate::features::SvmFeatures;
use crate::intercept::{DrIntercepts, ExceptionIntercepts, Intercepts, Word3};
use crate::vmcb::{Vmcb, DR6_RESET};
use bitflags::bitflags;
use x86::regs::Rflags;

/// `kvm_guest_debug.control`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugControl(u32);

bitflags! {
    impl DebugControl: u32 {
        /// Nothing else counts without it.
        const ENABLE = 1 << 0;
        /// Stop behind each instruction.
        const SINGLESTEP = 1 << 1;
        /// Stop at each INT3.
        const USE_SW_BP = 1 << 16;
        /// The debugger has the breakpoint registers.
        const USE_HW_BP = 1 << 17;
        /// Queue a #DB, once.
        const INJECT_DB = 1 << 18;
        /// Queue a #BP, once.
        const INJECT_BP = 1 << 19;
        /// No interrupts and NMIs for the guest.
        const BLOCKIRQ = 1 << 20;
    }
}

/// What the VMM has set, and the guest's registers that this replaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestDebug {
    control: DebugControl,
    /// The debugger's DR0 to DR3.
    db: [u64; 4],
    /// The guest's DR6, while every #DB is the debugger's.
    dr6: u64,
    /// The guest's DR7, while the debugger has its own.
    dr7: u64,
}

impl GuestDebug {
    /// Every #DB is the debugger's.
    pub fn takes_db(&self) -> bool {
        self.control
            .intersects(DebugControl::SINGLESTEP | DebugControl::USE_HW_BP)
    }

    /// Every #BP is.
    pub fn takes_bp(&self) -> bool {
        self.control.contains(DebugControl::USE_SW_BP)
    }

    /// TF in the VMCB is the debugger's.
    pub fn steps(&self) -> bool {
        self.control.contains(DebugControl::SINGLESTEP)
    }

    /// The guest gets no interrupts.
    pub fn blocks_interrupts(&self) -> bool {
        self.control.contains(DebugControl::BLOCKIRQ)
    }

    /// DR0 to DR3, if they are the debugger's.
    pub fn breakpoints(&self) -> Option<&[u64; 4]> {
        let own = self.control.contains(DebugControl::USE_HW_BP);
        own.then_some(&self.db)
    }

    /// The guest's DR6.
    pub fn dr6(&self, vmcb: &Vmcb) -> u64 {
        if self.takes_db() {
            self.dr6
        } else {
            vmcb.dr6()
        }
    }

    /// Sets the guest's DR6.
    pub fn set_dr6(&mut self, vmcb: &mut Vmcb, value: u64) {
        if self.takes_db() {
            self.dr6 = value;
        } else {
            vmcb.set_dr6(value);
        }
    }

    /// The guest's DR7.
    pub fn dr7(&self, vmcb: &Vmcb) -> u64 {
        match self.breakpoints() {
            Some(_) => self.dr7,
            None => vmcb.dr7(),
        }
    }

    /// Sets the guest's DR7.
    pub fn set_dr7(&mut self, vmcb: &mut Vmcb, value: u64) {
        match self.breakpoints() {
            Some(_) => self.dr7 = value,
            None => vmcb.set_dr7(value),
        }
    }

    /// The flags as the guest and the VMM see them.
    pub fn rflags(&self, vmcb: &Vmcb) -> Rflags {
        let stepping = if self.steps() {
            Rflags::TF
        } else {
            Rflags::empty()
        };
        vmcb.rflags().difference(stepping)
    }

    /// Sets the guest's flags.
    pub fn set_rflags(&self, vmcb: &mut Vmcb, value: Rflags) {
        let stepping = if self.steps() {
            Rflags::TF
        } else {
            Rflags::empty()
        };
        vmcb.set_rflags(value | stepping);
    }

    /// `KVM_SET_GUEST_DEBUG`, with the debugger's DR0 to DR3 and a valid DR7.
    pub fn set(
        &mut self,
        vmcb: &mut Vmcb,
        host: SvmFeatures,
        control: DebugControl,
        db: [u64; 4],
        dr7: u64,
    ) {
        let (dr6, guest_dr7, flags) = (self.dr6(vmcb), self.dr7(vmcb), self.rflags(vmcb));
        self.control = match control.contains(DebugControl::ENABLE) {
            true => control,
            false => DebugControl::empty(),
        };
        self.db = db;
        self.set_dr6(vmcb, dr6);
        self.set_dr7(vmcb, guest_dr7);
        self.set_rflags(vmcb, flags);
        if self.takes_db() {
            vmcb.set_dr6(DR6_RESET);
        }
        if self.breakpoints().is_some() {
            vmcb.set_dr7(dr7);
        }
        self.set_intercepts(vmcb, host);
    }

    /// The guest's debug registers exit while the VMCB has others. INT3 is an exception to CPUs
    /// that save the next RIP; an emulator that does not may take it for INT n.
    fn set_intercepts(&self, vmcb: &mut Vmcb, host: SvmFeatures) {
        let bp = self.takes_bp();
        vmcb.update_intercepts(|intercepts| {
            intercepts.dr = match self.takes_db() {
                true => DrIntercepts::all(),
                false => Intercepts::BASELINE.dr,
            };
            intercepts.exceptions.set(ExceptionIntercepts::BP, bp);
            let int_n = bp && !host.contains(SvmFeatures::NRIPS);
            intercepts.word3.set(Word3::SWINT, int_n);
        });
        debug_ctl::virtualize(vmcb, self, host);
    }

    /// INIT has reset the VMCB's registers, which had this DR7.
    pub(crate) fn after_init(&mut self, vmcb: &mut Vmcb, dr7: u64) {
        (self.dr6, self.dr7) = (vmcb.dr6(), vmcb.dr7());
        self.set_rflags(vmcb, vmcb.rflags());
        if self.breakpoints().is_some() {
            vmcb.set_dr7(dr7);
        }
    }
}
