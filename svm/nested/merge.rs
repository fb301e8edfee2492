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
use crate::nested::{Nested, Own};
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

impl Nested {
    /// To be called right before VMRUN.
    pub fn merge(&mut self, vmcb: &mut Vmcb) {
        if !self.inside || self.own.is_some() {
            return;
        }
        let own = Own {
            intercepts: *vmcb.intercepts(),
            msrpm_base: vmcb.msrpm_base(),
            tsc_offset: vmcb.tsc_offset(),
            ncr3: vmcb.ncr3(),
            v_tpr: vmcb.v_tpr(),
            pause_count: vmcb.pause_filter_count(),
        };
        let theirs = self.control.all_intercepts();
        vmcb.set_intercepts(own.intercepts.union(theirs));
        if theirs.word3.contains(Word3::PAUSE) {
            // The outer guest has no filter: each one exits.
            vmcb.set_pause_filter_count(0);
        }
        vmcb.set_msrpm_base(self.all_msrs);
        vmcb.set_tsc_offset(own.tsc_offset.wrapping_add(self.control.tsc_offset));
        if self.has_paging() {
            vmcb.set_ncr3(self.root);
        }
        if self.has_own_tpr() {
            vmcb.set_v_tpr(self.v_tpr());
        }
        self.own = Some(own);
    }

    /// To be called right after #VMEXIT, or if there was no VMRUN.
    pub fn unmerge(&mut self, vmcb: &mut Vmcb) {
        let Some(own) = self.own.take() else {
            return;
        };
        self.run_pending = false;
        if self.has_own_tpr() {
            self.set_v_tpr(vmcb.v_tpr());
            vmcb.set_v_tpr(own.v_tpr);
        }
        vmcb.set_intercepts(own.intercepts);
        vmcb.set_msrpm_base(own.msrpm_base);
        vmcb.set_tsc_offset(own.tsc_offset);
        vmcb.set_ncr3(own.ncr3);
        if own.pause_count != vmcb.pause_filter_count() {
            vmcb.set_pause_filter_count(own.pause_count);
        }
    }
}
