// SPDX-License-Identifier: GPL-2.0-only

//! What this host's AMD-V can do: CPUID Fn8000_000A_EDX (APM vol. 3, E.4.9).

use bitflags::bitflags;

/// SVM features of the host CPU that change how a guest is run.
///
/// None of them is needed: without them lengths and operands come from the decoder, the TLB is
/// flushed whole, and every VMCB field is reloaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SvmFeatures(u32);

bitflags! {
    impl SvmFeatures: u32 {
        /// Nested paging. The module refuses hosts without it.
        const NP = 1 << 0;
        /// LBR virtualization.
        const LBR_VIRT = 1 << 1;
        /// SVM lock.
        const SVM_LOCK = 1 << 2;
        /// The CPU saves the address of the next instruction in nRIP.
        const NRIPS = 1 << 3;
        /// MSR-based TSC rate control.
        const TSC_RATE_MSR = 1 << 4;
        /// VMCB clean bits.
        const VMCB_CLEAN = 1 << 5;
        /// TLB_CONTROL can flush the entries of one ASID.
        const FLUSH_BY_ASID = 1 << 6;
        /// EXITINFO of CR, DR and INVLPG exits, and the instruction bytes of nested faults.
        const DECODE_ASSISTS = 1 << 7;
        /// PAUSE filter.
        const PAUSE_FILTER = 1 << 10;
        /// PAUSE filter threshold.
        const PAUSE_FILTER_THRESHOLD = 1 << 12;
        /// AVIC.
        const AVIC = 1 << 13;
        /// VMLOAD and VMSAVE of a guest without an exit.
        const V_VMSAVE_VMLOAD = 1 << 15;
        /// Virtual GIF.
        const VGIF = 1 << 16;
        /// Guest mode execute trap.
        const GMET = 1 << 17;
        /// A guest has a SPEC_CTRL of its own, in the VMCB, and what the host's asks for holds for
        /// it, too.
        const V_SPEC_CTRL = 1 << 20;
        /// NMI virtualization.
        const VNMI = 1 << 25;
        /// #GP for a bad address operand of VMRUN and its like comes before the intercept.
        const SVME_ADDR_CHK = 1 << 28;
        const _ = !0;
    }
}
