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

/// What an MSR of the VMCB may hold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    /// Anything.
    Any,
    /// The CPU has the low 32 bits only, and drops the others.
    Low,
    /// A canonical address.
    Canonical,
    /// Eight memory types.
    MemoryTypes,
    /// The bits of DebugCtl.
    DebugCtl,
    /// Bits of SPEC_CTRL that the guest's CPUID offers. The CPU would refuse others at VMRUN, so a
    /// VMM cannot set them, either.
    SpecCtrl,
    /// The record of branches, which the CPU writes; a VMM restores it.
    Record,
}

/// The MSRs that the VMCB's save area holds: the one list of them.
macro_rules! vmcb_msrs {
    ($($(#[$doc:meta])* $msr:ident $index:ident $values:ident $(if $needs:ident)? $(, $direct:ident)?;)*) => {
        /// An MSR that the VMCB's save area holds.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum VmcbMsr { $($(#[$doc])* $msr,)* }

        impl VmcbMsr {
            /// The one of this number.
            const fn of(index: u32) -> Option<Self> {
                match index {
                    $(index::$index => Some(Self::$msr),)*
                    _ => None,
                }
            }

            /// What it may hold.
            const fn values(self) -> Values {
                match self { $(Self::$msr => Values::$values,)* }
            }

            /// What the guest's CPUID must offer; nothing for most.
            const fn needs(self) -> Feature {
                match self { $(Self::$msr => Feature::empty()$(.union(Feature::$needs))?,)* }
            }
        }

        /// The numbers of those that a guest accesses without an exit: VMLOAD and VMSAVE switch
        /// them.
        pub const DIRECT_MSRS: &[u32] = &[$($(vmcb_msrs!($direct $index),)?)*];
    };
    (direct $index:ident) => { index::$index };
}

vmcb_msrs! {
    /// EFER, which [`crate::sregs`] judges.
    Efer EFER Any;
    /// The page attribute table, G_PAT in the VMCB. Not direct: QEMU keeps no guest PAT, so that
    /// the host's own would change.
    Pat PAT MemoryTypes;
    /// STAR.
    Star STAR Any if SYSCALL, direct;
    /// LSTAR.
    Lstar LSTAR Canonical if LM, direct;
    /// CSTAR.
    Cstar CSTAR Canonical if LM, direct;
    /// SFMASK: SYSCALL masks RFLAGS in 32 bits (APM vol. 2, 6.1.1).
    Sfmask SFMASK Low if LM, direct;
    /// FS.base.
    FsBase FS_BASE Canonical if LM, direct;
    /// GS.base.
    GsBase GS_BASE Canonical if LM, direct;
    /// KernelGSBase.
    KernelGsBase KERNEL_GS_BASE Canonical if LM, direct;
    /// SYSENTER_CS.
    SysenterCs SYSENTER_CS Any, direct;
    /// SYSENTER_ESP: AMD has no SYSENTER in 64-bit mode, and 32 bits (APM vol. 2, 6.1.2).
    SysenterEsp SYSENTER_ESP Low, direct;
    /// SYSENTER_EIP: likewise.
    SysenterEip SYSENTER_EIP Low, direct;
    /// DebugCtl.
    DebugCtl DEBUG_CTL DebugCtl;
    /// LastBranchFromIP.
    LastBranchFrom LAST_BRANCH_FROM Record;
    /// LastBranchToIP.
    LastBranchTo LAST_BRANCH_TO Record;
    /// LastIntFromIP.
    LastExceptionFrom LAST_EXCEPTION_FROM Record;
    /// LastIntToIP.
    LastExceptionTo LAST_EXCEPTION_TO Record;
    /// SPEC_CTRL.
    SpecCtrl SPEC_CTRL SpecCtrl;
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
    /// Not known: #GP to the guest, an error to the VMM.
    Unknown,
}

/// Says who answers for MSR `index`.
pub fn classify(index: u32) -> MsrClass {
    if let Some(msr) = VmcbMsr::of(index) {
        return MsrClass::Vmcb(msr);
    }
    match index {
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
        _ if file::holds(index) => MsrClass::File,
        _ => MsrClass::Unknown,
    }
}

/// True if a guest with these features has the MSR: else its RDMSR and WRMSR are #GP.
pub fn has_vmcb(msr: VmcbMsr, features: &Features) -> bool {
    match msr {
        VmcbMsr::SpecCtrl => features.spec_ctrl() != 0,
        _ => features.has(msr.needs()),
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
    let valid = match msr.values() {
        Values::Any => true,
        Values::Low => return Ok(value & u64::from(u32::MAX)),
        Values::Canonical => is_canonical(value, features.linear_bits()),
        Values::MemoryTypes => is_valid_pat(value),
        Values::DebugCtl => value & !DEBUG_CTL_VALID == 0,
        Values::SpecCtrl => value & !features.spec_ctrl() == 0,
        Values::Record => origin == Origin::Host,
    };
    valid.then_some(value).ok_or(Exception::GP0)
}

/// Checks a write to PRED_CMD and answers whether predictors are to be flushed (IBPB, APM vol. 2,
/// 3.2.9; SBPB, Technical Guidance for Mitigating Branch Type Confusion). One flush does for both.
pub fn check_pred_cmd(value: u64, origin: Origin, features: &Features) -> Result<bool, Exception> {
    let mut allowed = 0;
    for (feature, command) in [(Feature::IBPB, 1 << 0), (Feature::SBPB, 1 << 7)] {
        if origin == Origin::Host || features.has(feature) {
            allowed |= command;
        }
    }
    match value {
        _ if allowed == 0 || value & !allowed != 0 => Err(Exception::GP0),
        _ => Ok(value != 0),
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
