// SPDX-License-Identifier: GPL-2.0-only

//! The VMCB of a virtual CPU that comes out of RESET or INIT.

use super::access::NP_ENABLE;
use super::{VirtualInterrupt, Vmcb};
use crate::clean::Clean;
use crate::features::SvmFeatures;
use crate::intercept::Intercepts;
use crate::pause::PauseFilter;
use x86::regs::{Cr0, Cr4, Efer, Rflags, SegAttr, SegReg, Segment};

/// PAT after RESET (APM vol. 2, 7.8.2).
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// DR6 after RESET: the bits that always read as one (APM vol. 2, 13.1.1.3).
pub const DR6_RESET: u64 = 0xffff_0ff0;
/// DR7 after RESET (APM vol. 2, 13.1.1.4).
pub const DR7_RESET: u64 = 0x400;
/// Where the first instruction is (APM vol. 2, 14.1.5).
const RESET_CS: u16 = 0xf000;
const RESET_CS_BASE: u64 = 0xffff_0000;
const RESET_RIP: u64 = 0xfff0;
/// The limit of all segments and tables after RESET.
const RESET_LIMIT: u32 = 0xffff;
/// System descriptor types (APM vol. 2, table 4-6).
const TYPE_LDT: u16 = 2;
const TYPE_BUSY_TSS16: u16 = 3;

/// A segment that RESET left.
fn reset_segment(selector: u16, base: u64, attributes: SegAttr) -> Segment {
    Segment {
        selector,
        attributes,
        limit: RESET_LIMIT,
        base,
    }
}

impl Vmcb {
    /// The baseline of the control area, and registers as after RESET.
    ///
    /// The owner still sets [`Self::set_iopm_base`], [`Self::set_msrpm_base`], [`Self::set_ncr3`],
    /// [`Self::set_asid`] and [`Self::set_tsc_offset`].
    pub fn reset(&mut self, features: SvmFeatures) {
        self.control.virt_ext = 0;
        self.control.np_control = NP_ENABLE;
        self.control.int_vector = 0;
        self.set_virtual_interrupt(VirtualInterrupt::V_INTR_MASKING);
        self.set_intercepts(Intercepts::for_host(features));
        self.set_pause_filter(features, &PauseFilter::DEFAULT);
        self.set_event_inj(0);
        self.reset_registers();
        // What INIT leaves alone (APM vol. 2, table 14-1).
        self.set_g_pat(PAT_RESET);
        self.set_star(0);
        self.set_lstar(0);
        self.set_cstar(0);
        self.set_sfmask(0);
        self.set_kernel_gs_base(0);
        self.set_sysenter_cs(0);
        self.set_sysenter_esp(0);
        self.set_sysenter_eip(0);
        self.set_dbgctl(0);
        self.set_all_dirty();
    }

    /// How many PAUSEs in a row make an exit, as far as the CPU counts them.
    pub fn set_pause_filter(&mut self, features: SvmFeatures, filter: &PauseFilter) {
        if features.contains(SvmFeatures::PAUSE_FILTER) {
            self.set_pause_filter_count(filter.count);
        }
        if features.contains(SvmFeatures::PAUSE_FILTER_THRESHOLD) {
            self.set_pause_filter_threshold(filter.threshold);
        }
    }

    /// All that #VMEXIT saves and INIT leaves alone, as after RESET: what SHUTDOWN leaves there is
    /// undefined (APM vol. 2, 15.14.3).
    pub(crate) fn reset_after_shutdown(&mut self) {
        self.set_v_tpr(0);
        self.set_g_pat(PAT_RESET);
        self.set_spec_ctrl(0);
        self.set_dbgctl(0);
        self.set_lbr_virtualization(false);
        self.set_br_from(0);
        self.set_br_to(0);
        self.set_last_excp_from(0);
        self.set_last_excp_to(0);
        self.save.s_cet = 0;
        self.save.ssp = 0;
        self.save.isst_addr = 0;
    }

    /// The registers that both RESET and INIT set (APM vol. 2, table 14-1). Cache disable and
    /// not-write-through of CR0, which the CPU never gets, are in [`crate::state::VcpuState`].
    pub fn reset_registers(&mut self) {
        let data = SegAttr::P | SegAttr::S | SegAttr::WRITABLE | SegAttr::ACCESSED;
        for reg in [SegReg::Es, SegReg::Ss, SegReg::Ds, SegReg::Fs, SegReg::Gs] {
            self.set_segment(reg, reset_segment(0, 0, data));
        }
        self.set_segment(
            SegReg::Cs,
            reset_segment(RESET_CS, RESET_CS_BASE, data | SegAttr::CODE),
        );
        let system = |kind| reset_segment(0, 0, SegAttr::P | SegAttr::from_bits_retain(kind));
        self.set_segment(SegReg::Ldtr, system(TYPE_LDT));
        self.set_segment(SegReg::Tr, system(TYPE_BUSY_TSS16));
        self.set_gdtr(reset_segment(0, 0, SegAttr::empty()));
        self.set_idtr(reset_segment(0, 0, SegAttr::empty()));
        self.set_cpl(0);
        self.set_cr0(Cr0::ET);
        self.set_cr2(0);
        self.set_cr3(0);
        self.set_cr4(Cr4::MCE);
        self.set_efer(Efer::SVME);
        self.set_dr6(DR6_RESET);
        self.set_dr7(DR7_RESET);
        self.set_rflags(Rflags::RESERVED1);
        self.set_rip(RESET_RIP);
        self.set_interrupt_shadow(false);
        self.touch(Clean::all());
    }
}
