// SPDX-License-Identifier: GPL-2.0-only

//! Model-specific registers: what each one is, and the file of those that the VMCB does not hold.

use crate::features::Features;
use crate::regs::{Cr4, Exception};

/// Who reads or writes an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The guest: what real hardware refuses is #GP.
    Guest,
    /// The VMM: it may also set what is read-only to the guest, and what CPUID does not offer.
    Host,
}

/// An MSR that the VMCB's save area holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmcbMsr {
    /// EFER.
    Efer,
    /// The page attribute table, G_PAT in the VMCB.
    Pat,
    /// STAR.
    Star,
    /// LSTAR.
    Lstar,
    /// CSTAR.
    Cstar,
    /// SFMASK.
    Sfmask,
    /// FS.base.
    FsBase,
    /// GS.base.
    GsBase,
    /// KernelGSBase.
    KernelGsBase,
    /// SYSENTER_CS.
    SysenterCs,
    /// SYSENTER_ESP.
    SysenterEsp,
    /// SYSENTER_EIP.
    SysenterEip,
    /// DebugCtl.
    DebugCtl,
    /// LastBranchFromIP.
    LastBranchFrom,
    /// LastBranchToIP.
    LastBranchTo,
    /// LastIntFromIP.
    LastExceptionFrom,
    /// LastIntToIP.
    LastExceptionTo,
}

/// Which part of the hypervisor answers for an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrClass {
    /// The save area of the VMCB; see [`check_vmcb`].
    Vmcb(VmcbMsr),
    /// [`MsrFile::read`] and [`MsrFile::write`].
    File,
    /// `IA32_APIC_BASE`: the local APIC.
    ApicBase,
    /// Register `0x800 + n`: the local APIC in x2APIC mode.
    X2Apic(u8),
    /// The time-stamp counter.
    Tsc,
    /// `IA32_TSC_ADJUST`: kept in the file; a guest's write also moves the TSC by the difference.
    TscAdjust,
    /// The deadline of the local APIC's timer.
    TscDeadline,
    /// The wall clock's address: kept in the file; a write also fills the page.
    PvWallClock,
    /// The vCPU clock's address and enable bit: kept in the file; a write also starts the clock.
    PvSystemTime,
    /// Nobody: #GP to the guest, an error to the VMM.
    Unknown,
}

/// Says who answers for MSR `index`.
pub fn classify(index: u32) -> MsrClass {
    let _ = index;
    todo!()
}

/// The guest's MSRs that are neither in the VMCB nor in a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrFile {
    /// TSC_AUX, which RDTSCP and RDPID read.
    pub tsc_aux: u32,
    /// `IA32_TSC_ADJUST`.
    pub tsc_adjust: u64,
    /// Where the guest wants its wall clock.
    pub pv_wall_clock: u64,
    /// Where the guest wants its vCPU clock, and bit 0 for "on".
    pub pv_system_time: u64,
}

impl MsrFile {
    /// The registers after reset.
    pub fn new() -> Self {
        todo!()
    }

    /// Reads an MSR of class `File`, `TscAdjust`, `PvWallClock` or `PvSystemTime`.
    pub fn read(&self, index: u32, origin: Origin, features: &Features) -> Result<u64, Exception> {
        let _ = (index, origin, features);
        todo!()
    }

    /// Writes an MSR of one of these classes.
    pub fn write(
        &mut self,
        index: u32,
        value: u64,
        origin: Origin,
        features: &Features,
    ) -> Result<(), Exception> {
        let _ = (index, value, origin, features);
        todo!()
    }
}

impl Default for MsrFile {
    fn default() -> Self {
        Self::new()
    }
}

/// Checks a write to an MSR in the VMCB (but EFER: [`crate::sregs::write_efer`]) and answers what is
/// to be stored.
pub fn check_vmcb(
    msr: VmcbMsr,
    value: u64,
    cr4: Cr4,
    features: &Features,
) -> Result<u64, Exception> {
    let _ = (msr, value, cr4, features);
    todo!()
}

/// The list of `KVM_GET_MSR_INDEX_LIST`.
pub const SAVED_MSRS: &[u32] = &[];

/// The list of `KVM_GET_MSR_FEATURE_INDEX_LIST`.
pub const FEATURE_MSRS: &[u32] = &[];
