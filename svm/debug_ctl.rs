// SPDX-License-Identifier: GPL-2.0-only

//! DebugCtl and the record of the last branch (APM vol. 2, 13.1.1.6, 15.23).
//!
//! VMRUN switches them only while LBR virtualization is on; else the CPU has one DebugCtl for guest
//! and host.
//!
//! | the host's CPU         | the guest's BTF                         | the guest's LBR |
//! |------------------------|-----------------------------------------|-----------------|
//! | has LBR virtualization | VMRUN, as soon as the guest wants a bit | likewise        |
//! | has none               | [`by_hand`], before each entry          | it reads as 0   |
//!
//! A single step that is not the guest's own (for an NMI, or by the VMM's debugger) ends at the
//! next instruction, not at the next branch: BTF is off meanwhile.

use crate::debug::GuestDebug;
use crate::features::SvmFeatures;
use crate::vmcb::Vmcb;

/// Record the last branch and the last exception.
pub const LBR: u64 = 1 << 0;
/// RFLAGS.TF traps behind a taken branch, not behind each instruction.
pub const BTF: u64 = 1 << 1;

/// Sets DebugCtl to what the CPU can do of `value`, which is a valid one. The performance-monitor
/// pins (bits 2 to 5) are the host's; on CPUs that trap bus locks bit 2 has become that.
pub fn set(vmcb: &mut Vmcb, debug: &GuestDebug, host: SvmFeatures, value: u64) {
    let kept = match host.contains(SvmFeatures::LBR_VIRT) {
        true => LBR | BTF,
        false => BTF,
    };
    vmcb.set_dbgctl(value & kept);
    virtualize(vmcb, debug, host);
}

/// Turns LBR virtualization on if the guest wants what it gives, and off if it does not, or is
/// stepped by a debugger.
pub(crate) fn virtualize(vmcb: &mut Vmcb, debug: &GuestDebug, host: SvmFeatures) {
    let wanted = vmcb.dbgctl() != 0 && !debug.steps();
    vmcb.set_lbr_virtualization(wanted && host.contains(SvmFeatures::LBR_VIRT));
}

/// What the CPU's own DebugCtl must be while the guest runs. The host's own value would act on the
/// guest.
#[inline]
pub fn by_hand(vmcb: &Vmcb, debug: &GuestDebug) -> u64 {
    let ctl = vmcb.dbgctl();
    if ctl == 0 || vmcb.lbr_virtualization() || debug.steps() {
        0
    } else {
        ctl & BTF
    }
}

/// A single step for the hypervisor itself begins: it ends at the next instruction. Answers what
/// [`end_step`] needs.
pub(crate) fn begin_step(vmcb: &mut Vmcb) -> u64 {
    let btf = vmcb.dbgctl() & BTF;
    debug_exception(vmcb);
    btf
}

/// It ends.
pub(crate) fn end_step(vmcb: &mut Vmcb, btf: u64) {
    if btf != 0 {
        vmcb.set_dbgctl(vmcb.dbgctl() | btf);
    }
}

/// A #DB is about to be delivered: the CPU clears BTF (APM vol. 2, 13.1.4).
pub(crate) fn debug_exception(vmcb: &mut Vmcb) {
    if vmcb.dbgctl() & BTF != 0 {
        vmcb.set_dbgctl(vmcb.dbgctl() & !BTF);
    }
}
