// SPDX-License-Identifier: GPL-2.0-only

//! VMCB clean bits (APM vol. 2, 15.15.3).
//!
//! A set bit promises that software has not changed the fields of its group since the last VMRUN of
//! this VMCB on this CPU. The setters of [`crate::vmcb::Vmcb`] clear the right bit, so no write can
//! forget it; [`Vmcb::set_clean`](crate::vmcb::Vmcb::set_clean) sets them all after a #VMEXIT, and
//! [`Vmcb::set_all_dirty`](crate::vmcb::Vmcb::set_all_dirty) clears them when the VMCB moves.
//!
//! Not cached, and so without a bit: RIP, RSP, RAX, RFLAGS, EVENTINJ, TLB_CONTROL, the interrupt
//! shadow, and what VMLOAD and VMSAVE move.

use bitflags::bitflags;

/// Groups of VMCB fields that the CPU may keep from the last VMRUN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clean(u32);

bitflags! {
    impl Clean: u32 {
        /// Intercept words, TSC_OFFSET, PAUSE filter.
        const INTERCEPTS = 1 << 0;
        /// IOPM_BASE_PA and MSRPM_BASE_PA.
        const PERMISSIONS = 1 << 1;
        /// ASID.
        const ASID = 1 << 2;
        /// The virtual interrupt: V_TPR, V_IRQ, V_INTR_PRIO, V_IGN_TPR, V_INTR_MASKING, vector.
        const INTERRUPT = 1 << 3;
        /// Nested paging: NP_ENABLE, nCR3, G_PAT.
        const NESTED_PAGING = 1 << 4;
        /// CR0, CR3, CR4, EFER.
        const CR = 1 << 5;
        /// DR6, DR7.
        const DR = 1 << 6;
        /// GDTR, IDTR.
        const DESCRIPTOR_TABLES = 1 << 7;
        /// CS, DS, ES, SS and CPL.
        const SEGMENTS = 1 << 8;
        /// CR2.
        const CR2 = 1 << 9;
        /// DBGCTL and the last-branch registers.
        const LBR = 1 << 10;
        /// AVIC's four addresses.
        const AVIC = 1 << 11;
        /// S_CET, SSP, ISST_ADDR.
        const CET = 1 << 12;
        const _ = !0;
    }
}
