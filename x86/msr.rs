// SPDX-License-Identifier: GPL-2.0-only

//! Model-specific registers: what each one is, and the file of those that the VMCB does not hold.
//!
//! ```text
//!   RDMSR, WRMSR, KVM_GET_MSRS, KVM_SET_MSRS
//!      └─ classify ─┬─ Vmcb ──────► check_vmcb, then the VMCB's save area
//!                   ├─ File ──────► MsrFile::read, MsrFile::write
//!                   ├─ Tsc, TscAdjust, Pv...: the caller, which has the clocks
//!                   ├─ ApicBase, X2Apic, TscDeadline: the local APIC
//!                   └─ Unknown ───► #GP, or an error to the VMM
//! ```

mod constant;
mod file;
pub mod index;
mod mce;
mod mtrr;
mod pv;

pub use file::MsrFile;
pub use mce::{Mce, Report, Reported, MAX_BANKS};
pub use mtrr::Mtrr;

use crate::features::{Feature, Features};
use crate::regs::Exception;
use crate::sregs::is_canonical;

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
    /// SPEC_CTRL.
    SpecCtrl,
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
    /// PRED_CMD, which can only be written: [`check_pred_cmd`].
    PredCmd,
    /// MISC_ENABLE: kept in the file; CPUID may follow it.
    MiscEnable,
    /// PLATFORM_INFO: kept in the file; the VMM may hide it.
    PlatformInfo,
    /// `IA32_TSC_ADJUST`: kept in the file; a guest's write also moves the TSC by the difference.
    TscAdjust,
    /// The deadline of the local APIC's timer.
    TscDeadline,
    /// The wall clock's address: kept in the file; a write also fills the page.
    PvWallClock,
    /// The vCPU clock's address and enable bit: kept in the file; a write also starts the clock.
    PvSystemTime,
    /// The address of the record of stolen time, and its enable bit: likewise.
    PvStealTime,
    /// Nobody: #GP to the guest, an error to the VMM.
    Unknown,
}

/// Says who answers for MSR `index`.
pub fn classify(index: u32) -> MsrClass {
    use MsrClass::{File, Vmcb};
    match index {
        index::EFER => Vmcb(VmcbMsr::Efer),
        index::STAR => Vmcb(VmcbMsr::Star),
        index::LSTAR => Vmcb(VmcbMsr::Lstar),
        index::CSTAR => Vmcb(VmcbMsr::Cstar),
        index::SFMASK => Vmcb(VmcbMsr::Sfmask),
        index::FS_BASE => Vmcb(VmcbMsr::FsBase),
        index::GS_BASE => Vmcb(VmcbMsr::GsBase),
        index::KERNEL_GS_BASE => Vmcb(VmcbMsr::KernelGsBase),
        index::SYSENTER_CS => Vmcb(VmcbMsr::SysenterCs),
        index::SYSENTER_ESP => Vmcb(VmcbMsr::SysenterEsp),
        index::SYSENTER_EIP => Vmcb(VmcbMsr::SysenterEip),
        index::PAT => Vmcb(VmcbMsr::Pat),
        index::DEBUG_CTL => Vmcb(VmcbMsr::DebugCtl),
        index::LAST_BRANCH_FROM => Vmcb(VmcbMsr::LastBranchFrom),
        index::LAST_BRANCH_TO => Vmcb(VmcbMsr::LastBranchTo),
        index::LAST_EXCEPTION_FROM => Vmcb(VmcbMsr::LastExceptionFrom),
        index::LAST_EXCEPTION_TO => Vmcb(VmcbMsr::LastExceptionTo),
        index::SPEC_CTRL => Vmcb(VmcbMsr::SpecCtrl),
        index::PRED_CMD => MsrClass::PredCmd,
        index::TSC => MsrClass::Tsc,
        index::TSC_ADJUST => MsrClass::TscAdjust,
        index::MISC_ENABLE => MsrClass::MiscEnable,
        index::PLATFORM_INFO => MsrClass::PlatformInfo,
        index::TSC_DEADLINE => MsrClass::TscDeadline,
        index::APIC_BASE => MsrClass::ApicBase,
        index::X2APIC_FIRST..=index::X2APIC_LAST => MsrClass::X2Apic((index & 0xff) as u8),
        index::PV_WALL_CLOCK | index::PV_WALL_CLOCK_OLD => MsrClass::PvWallClock,
        index::PV_SYSTEM_TIME | index::PV_SYSTEM_TIME_OLD => MsrClass::PvSystemTime,
        index::PV_STEAL_TIME => MsrClass::PvStealTime,
        _ if file::holds(index) => File,
        _ => MsrClass::Unknown,
    }
}

/// True if a guest with these features has the MSR: else its RDMSR and WRMSR are #GP.
pub fn has_vmcb(msr: VmcbMsr, features: &Features) -> bool {
    match msr {
        VmcbMsr::Star => features.has(Feature::SYSCALL),
        VmcbMsr::Lstar
        | VmcbMsr::Cstar
        | VmcbMsr::Sfmask
        | VmcbMsr::FsBase
        | VmcbMsr::GsBase
        | VmcbMsr::KernelGsBase => features.has(Feature::LM),
        VmcbMsr::SpecCtrl => features.spec_ctrl() != 0,
        _ => true,
    }
}

/// DebugCtl bits that a guest may set: LBR, BTF and the performance-monitor pins (APM vol. 2,
/// 13.1.1.6).
const DEBUG_CTL_VALID: u64 = 0x3f;

/// Checks a write to an MSR in the VMCB and answers what is to be stored there.
///
/// EFER is not judged here: a guest's write is for [`crate::sregs::write_efer`], and a VMM's for
/// [`crate::sregs::valid_efer`].
pub fn check_vmcb(
    msr: VmcbMsr,
    value: u64,
    origin: Origin,
    features: &Features,
) -> Result<u64, Exception> {
    if origin == Origin::Guest && !has_vmcb(msr, features) {
        return Err(Exception::GP0);
    }
    let valid = match msr {
        VmcbMsr::Lstar
        | VmcbMsr::Cstar
        | VmcbMsr::FsBase
        | VmcbMsr::GsBase
        | VmcbMsr::KernelGsBase => is_canonical(value, features.linear_bits()),
        VmcbMsr::Pat => is_valid_pat(value),
        VmcbMsr::DebugCtl => value & !DEBUG_CTL_VALID == 0,
        // The CPU would refuse other bits at VMRUN, so a VMM cannot set them, either.
        VmcbMsr::SpecCtrl => value & !features.spec_ctrl() == 0,
        // The guest cannot write the record of branches; a VMM restores it.
        VmcbMsr::LastBranchFrom
        | VmcbMsr::LastBranchTo
        | VmcbMsr::LastExceptionFrom
        | VmcbMsr::LastExceptionTo => origin == Origin::Host,
        _ => true,
    };
    if !valid {
        return Err(Exception::GP0);
    }
    Ok(match msr {
        // AMD has no SYSENTER in 64-bit mode, and 32 bits of these (APM vol. 2, 6.1.2).
        VmcbMsr::SysenterEsp | VmcbMsr::SysenterEip => value & u64::from(u32::MAX),
        // SYSCALL masks RFLAGS in 32 bits (APM vol. 2, 6.1.1).
        VmcbMsr::Sfmask => value & u64::from(u32::MAX),
        _ => value,
    })
}

/// Checks a write to PRED_CMD and answers whether predictors are to be flushed (IBPB, APM vol. 2,
/// 3.2.9).
pub fn check_pred_cmd(value: u64, origin: Origin, features: &Features) -> Result<bool, Exception> {
    const IBPB: u64 = 1 << 0;
    let there = origin == Origin::Host || features.has(Feature::IBPB);
    match value {
        _ if !there => Err(Exception::GP0),
        0 => Ok(false),
        IBPB => Ok(true),
        _ => Err(Exception::GP0),
    }
}

/// True if all eight entries are memory types that the PAT knows (APM vol. 2, 7.8.1): not 2 and 3.
pub fn is_valid_pat(value: u64) -> bool {
    value
        .to_le_bytes()
        .iter()
        .all(|entry| matches!(entry, 0 | 1 | 4..=7))
}

/// The list of `KVM_GET_MSR_INDEX_LIST`: what makes up a vCPU's state, without the registers of
/// the machine-check banks, whose number the VMM chooses.
///
/// The VMM can read and write all of them, whatever the guest's CPUID says.
pub const SAVED_MSRS: &[u32] = &[
    index::TSC,
    index::TSC_ADJUST,
    index::TSC_AUX,
    index::TSC_DEADLINE,
    index::STAR,
    index::LSTAR,
    index::CSTAR,
    index::SFMASK,
    index::KERNEL_GS_BASE,
    index::SYSENTER_CS,
    index::SYSENTER_ESP,
    index::SYSENTER_EIP,
    index::PAT,
    index::SPEC_CTRL,
    index::MISC_ENABLE,
    index::POWER_CTL,
    index::PLATFORM_INFO,
    index::MISC_FEATURES_ENABLES,
    index::PATCH_LEVEL,
    index::HWCR,
    index::MCG_STATUS,
    index::MCG_CTL,
    index::PV_WALL_CLOCK_OLD,
    index::PV_SYSTEM_TIME_OLD,
    index::PV_WALL_CLOCK,
    index::PV_SYSTEM_TIME,
    index::PV_STEAL_TIME,
    index::PV_ASYNC_PF,
    index::PV_ASYNC_PF_INT,
    index::PV_EOI,
    index::PV_POLL_CONTROL,
    index::MTRR_DEF_TYPE,
    index::MTRR_FIX_64K,
    index::MTRR_FIX_16K,
    index::MTRR_FIX_16K + 1,
    index::MTRR_FIX_4K,
    index::MTRR_FIX_4K + 1,
    index::MTRR_FIX_4K + 2,
    index::MTRR_FIX_4K + 3,
    index::MTRR_FIX_4K + 4,
    index::MTRR_FIX_4K + 5,
    index::MTRR_FIX_4K + 6,
    index::MTRR_FIX_4K + 7,
    index::MTRR_VARIABLE_FIRST,
    index::MTRR_VARIABLE_FIRST + 1,
    index::MTRR_VARIABLE_FIRST + 2,
    index::MTRR_VARIABLE_FIRST + 3,
    index::MTRR_VARIABLE_FIRST + 4,
    index::MTRR_VARIABLE_FIRST + 5,
    index::MTRR_VARIABLE_FIRST + 6,
    index::MTRR_VARIABLE_FIRST + 7,
    index::MTRR_VARIABLE_FIRST + 8,
    index::MTRR_VARIABLE_FIRST + 9,
    index::MTRR_VARIABLE_FIRST + 10,
    index::MTRR_VARIABLE_FIRST + 11,
    index::MTRR_VARIABLE_FIRST + 12,
    index::MTRR_VARIABLE_FIRST + 13,
    index::MTRR_VARIABLE_FIRST + 14,
    index::MTRR_VARIABLE_FIRST + 15,
    index::DE_CFG,
    index::VM_HSAVE_PA,
];

/// The list of `KVM_GET_MSR_FEATURE_INDEX_LIST`; [`feature`] has the values.
pub const FEATURE_MSRS: &[u32] = &[
    index::DE_CFG,
    index::PATCH_LEVEL,
    index::ARCH_CAPABILITIES,
    index::PERF_CAPABILITIES,
    index::PLATFORM_INFO,
];

/// What can be had of a feature MSR. `host_patch_level` is the microcode's revision.
pub fn feature(index: u32, host_patch_level: u64) -> Option<u64> {
    match index {
        index::DE_CFG => Some(file::DE_CFG_LFENCE_SERIALIZES),
        index::PATCH_LEVEL => Some(host_patch_level),
        index::ARCH_CAPABILITIES => Some(constant::NOT_INTELS),
        index::PERF_CAPABILITIES => Some(0),
        index::PLATFORM_INFO => Some(file::PLATFORM_CPUID_FAULTING),
        _ => None,
    }
}
