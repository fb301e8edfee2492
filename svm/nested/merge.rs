// SPDX-License-Identifier: GPL-2.0-only

//! What the CPU gets while it is in the inner guest.
//!
//! Between exits the VMCB holds our own intercepts, map, TSC offset, tables and task priority, so
//! that no other code need know of inner guests. They are merged with the outer guest's wishes
//! right before VMRUN, and taken back right after #VMEXIT.
//!
//! | what | in the inner guest |
//! |---|---|
//! | intercepts | the union |
//! | MSR permission map | all MSRs exit, and the outer guest's map is read then |
//! | I/O permission map | likewise: ours has all bits set already |
//! | TSC offset | the sum |
//! | nCR3 | the tables that [`crate::nested::resolve`] fills, if the inner guest has nested paging |
//! | V_TPR | the inner guest's own, with V_INTR_MASKING |

use crate::intercept::{Intercepts, Word3};
use crate::nested::Nested;
use crate::vmcb::Vmcb;

impl Intercepts {
    /// What either of the two intercepts.
    fn union(self, other: Self) -> Self {
        Self {
            cr: self.cr | other.cr,
            dr: self.dr | other.dr,
            exceptions: self.exceptions | other.exceptions,
            word3: self.word3 | other.word3,
            word4: self.word4 | other.word4,
            word5: self.word5 | other.word5,
        }
    }
}

/// What is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Merged {
    intercepts: Intercepts,
    msrpm_base: u64,
    tsc_offset: u64,
    ncr3: u64,
    v_tpr: u8,
    pause_count: u16,
}

impl Merged {
    fn of(vmcb: &Vmcb) -> Self {
        Self {
            intercepts: *vmcb.intercepts(),
            msrpm_base: vmcb.msrpm_base(),
            tsc_offset: vmcb.tsc_offset(),
            ncr3: vmcb.ncr3(),
            v_tpr: vmcb.v_tpr(),
            pause_count: vmcb.pause_filter_count(),
        }
    }

    fn apply(&self, vmcb: &mut Vmcb) {
        vmcb.set_intercepts(self.intercepts);
        vmcb.set_msrpm_base(self.msrpm_base);
        vmcb.set_tsc_offset(self.tsc_offset);
        vmcb.set_ncr3(self.ncr3);
        vmcb.set_v_tpr(self.v_tpr);
        vmcb.set_pause_filter_count(self.pause_count);
    }
}

impl Nested {
    /// To be called right before VMRUN.
    pub fn merge(&mut self, vmcb: &mut Vmcb) {
        if !self.inside || self.own.is_some() {
            return;
        }
        let own = Merged::of(vmcb);
        let theirs = self.control.all_intercepts();
        let mut merged = Merged {
            intercepts: own.intercepts.union(theirs),
            msrpm_base: self.all_msrs,
            tsc_offset: own.tsc_offset.wrapping_add(self.control.tsc_offset),
            ..own
        };
        if theirs.word3.contains(Word3::PAUSE) {
            // The outer guest has no filter: each one exits.
            merged.pause_count = 0;
        }
        if self.has_paging() {
            merged.ncr3 = self.root;
        }
        if self.has_own_tpr() {
            merged.v_tpr = self.v_tpr();
        }
        let clean = vmcb.clean();
        merged.apply(vmcb);
        if self.in_cpu == Some(merged) {
            vmcb.restore_clean(clean);
        } else {
            // V_TPR may be as it was in between, and another one in the CPU.
            vmcb.set_all_dirty();
        }
        self.own = Some(own);
    }

    /// To be called right after #VMEXIT, or if there was no VMRUN. What the CPU has is what
    /// [`Self::merge`] will put back, so what is clean stays so.
    pub fn unmerge(&mut self, vmcb: &mut Vmcb) {
        let Some(mut own) = self.own.take() else {
            return;
        };
        self.run_pending = false;
        self.in_cpu = Some(Merged::of(vmcb));
        match self.has_own_tpr() {
            true => self.set_v_tpr(vmcb.v_tpr()),
            false => own.v_tpr = vmcb.v_tpr(),
        }
        let clean = vmcb.clean();
        own.apply(vmcb);
        vmcb.restore_clean(clean);
    }

    /// From one guest to the other: nothing of the VMCB is what the CPU has.
    pub(super) fn switch(&mut self, vmcb: &mut Vmcb) {
        self.switched = true;
        self.in_cpu = None;
        vmcb.set_all_dirty();
    }
}
