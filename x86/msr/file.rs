// SPDX-License-Identifier: GPL-2.0-only

//! The guest's MSRs that are neither in the VMCB nor in a device.

use super::constant;
use super::mce::Mce;
use super::mtrr::Mtrr;
use super::pv::{self, Pv};
use super::{index, Origin};
use crate::features::{Feature, Features};
use crate::regs::Exception;

/// In DE_CFG: LFENCE waits for all instructions before it. Linux hosts set it on every CPU that
/// has it, and a guest cannot clear it for them.
pub(super) const DE_CFG_LFENCE_SERIALIZES: u64 = 1 << 1;

/// In PLATFORM_INFO: MISC_FEATURES_ENABLES can make CPUID fault.
pub(super) const PLATFORM_CPUID_FAULTING: u64 = 1 << 31;
/// In MISC_FEATURES_ENABLES: CPUID is #GP in programs.
const CPUID_FAULTS: u64 = 1 << 0;
/// Where system management mode begins after reset (APM vol. 2, 10.2.1). There is none here; a VMM
/// may keep the register's value.
const SMBASE_RESET: u64 = 0x3_0000;
/// The host's save area of a guest that could use SVM is a page.
const VM_HSAVE_RESERVED: u64 = 0xfff;

/// In MISC_ENABLE: there is no branch trace store and no precise event sampling; read-only.
const MISC_ENABLE_PMU: u64 = 1 << 11 | 1 << 12;
/// In MISC_ENABLE: performance monitoring; the guest's writes do not change it.
const MISC_ENABLE_EMON: u64 = 1 << 7;

/// HWCR bits that are kept: McStatusWrEn and TscFreqSel.
const HWCR_KEPT: u64 = HWCR_STATUS_WRITABLE | HWCR_TSC_FREQ_SEL;
/// In HWCR: MCi_STATUS can be written.
const HWCR_STATUS_WRITABLE: u64 = 1 << 18;
/// In HWCR: the TSC counts at the rate of P-state 0.
const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
/// In HWCR: CPUID is #GP in programs (APM vol. 2, 3.2.10).
const HWCR_CPUID_USER_DISABLE: u64 = 1 << 35;
/// HWCR bits that may be written and stay zero: TlbCacheDis, FFDIS and IGNNE_EM. Operating systems
/// set them for errata of old CPUs.
const HWCR_IGNORED: u64 = 1 << 3 | 1 << 6 | 1 << 8;

/// The patch level that KVM gives a new vCPU on AMD; a VMM may set the host's.
const PATCH_LEVEL_RESET: u64 = 0x0100_0065;

/// Errata whose workarounds a guest need not do: the first three of OSVW, which are settled by the
/// host (their status bits are clear), or about what guests do not have.
const OSVW_KNOWN: u64 = 3;
/// Of the host's status bits these two say that it has to do something itself.
const OSVW_OF_HOST: u64 = 0b110;

/// The record of stolen time has 64 bytes, and is aligned to them.
const PV_STEAL_RESERVED: u64 = 0x3e;

/// The guest's MSRs that are neither in the VMCB nor in a device. It is plain data.
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
    /// Where the guest wants to read how much time was stolen from it, and bit 0 for "on".
    pub pv_steal_time: u64,
    /// The memory-type range registers.
    pub mtrr: Mtrr,
    /// The machine-check registers.
    pub mce: Mce,
    pv: Pv,
    misc_enable: u64,
    platform_info: u64,
    cpuid_faults: u64,
    smbase: u64,
    smi_count: u64,
    vm_hsave_pa: u64,
    power_ctl: u64,
    patch_level: u64,
    hwcr: u64,
    de_cfg: u64,
    osvw_length: u64,
    osvw_status: u64,
}

impl Default for MsrFile {
    fn default() -> Self {
        Self::new()
    }
}

/// True if the file answers for `index`.
pub(super) fn holds(index: u32) -> bool {
    matches!(
        index,
        index::TSC_AUX
            | index::MISC_ENABLE
            | index::PLATFORM_INFO
            | index::MISC_FEATURES_ENABLES
            | index::SMBASE
            | index::SMI_COUNT
            | index::VM_HSAVE_PA
            | index::POWER_CTL
            | index::PATCH_LEVEL
            | index::HWCR
            | index::DE_CFG
            | index::OSVW_LENGTH
            | index::OSVW_STATUS
    ) || Pv::holds(index)
        || Mce::holds(index)
        || Mtrr::holds(index)
        || constant::holds(index)
}

/// Refuses what the guest's CPUID does not offer, except to the VMM.
fn require(present: bool, origin: Origin) -> Result<(), Exception> {
    if present || origin == Origin::Host {
        Ok(())
    } else {
        Err(Exception::GP0)
    }
}

/// The feature without which a guest does not have the register.
fn is_present(index: u32, features: &Features) -> bool {
    match index {
        index::TSC_AUX => features.has(Feature::RDTSCP) || features.has(Feature::RDPID),
        index::TSC_ADJUST => features.has(Feature::TSC_ADJUST),
        index::XSS => features.has(Feature::XSAVES),
        index::PV_WALL_CLOCK_OLD | index::PV_SYSTEM_TIME_OLD => features.has(Feature::PV_CLOCK),
        index::PV_WALL_CLOCK | index::PV_SYSTEM_TIME => features.has(Feature::PV_CLOCK2),
        index::PV_STEAL_TIME => features.has(Feature::PV_STEAL_TIME),
        index::OSVW_LENGTH | index::OSVW_STATUS => features.has(Feature::OSVW),
        index::PERF_CORE_FIRST..=index::PERF_CORE_LAST => features.has(Feature::PERFCTR_CORE),
        _ => Pv::is_present(index, features),
    }
}

impl MsrFile {
    /// The registers after reset.
    pub fn new() -> Self {
        Self {
            tsc_aux: 0,
            tsc_adjust: 0,
            pv_wall_clock: 0,
            pv_system_time: 0,
            pv_steal_time: 0,
            mtrr: Mtrr::default(),
            pv: Pv::RESET,
            mce: Mce::default(),
            misc_enable: MISC_ENABLE_PMU,
            platform_info: PLATFORM_CPUID_FAULTING,
            cpuid_faults: 0,
            smbase: SMBASE_RESET,
            smi_count: 0,
            vm_hsave_pa: 0,
            power_ctl: 0,
            patch_level: PATCH_LEVEL_RESET,
            hwcr: 0,
            de_cfg: 0,
            osvw_length: OSVW_KNOWN,
            osvw_status: 0,
        }
    }

    /// Which errata the guest's operating system need not work around (OSVW, APM vol. 2, appendix
    /// E), from what the host's CPU says: how many it knows, and which of them it has.
    pub fn set_errata(&mut self, length: u64, status: u64) {
        self.osvw_length = length.max(OSVW_KNOWN);
        self.osvw_status = status & !OSVW_OF_HOST;
    }

    /// INIT leaves what real CPUs have. But what is written into the guest's memory ends: the
    /// kernel that starts the CPU next has other uses for it.
    pub fn init(&mut self) {
        self.pv_system_time = 0;
        self.pv_steal_time = 0;
        self.pv.init();
    }

    /// The guest-physical address of the record of stolen time, if it is on.
    #[inline]
    pub fn pv_steal_gpa(&self) -> Option<u64> {
        (self.pv_steal_time & pv::ENABLED != 0).then_some(self.pv_steal_time & !pv::ENABLED)
    }

    /// The guest-physical address of the byte whose clearing by the guest is an EOI, if it wants
    /// that.
    #[inline]
    pub fn pv_eoi_gpa(&self) -> Option<u64> {
        self.pv.eoi_gpa()
    }

    /// Whether the guest lets the host poll while it is halted.
    pub fn pv_may_poll(&self) -> bool {
        self.pv.may_poll()
    }

    /// Reads an MSR of class `File`, `TscAdjust` or one of the `Pv` ones.
    pub fn read(&self, index: u32, origin: Origin, features: &Features) -> Result<u64, Exception> {
        require(is_present(index, features), origin)?;
        match index {
            index::TSC_AUX => Ok(u64::from(self.tsc_aux)),
            index::TSC_ADJUST => Ok(self.tsc_adjust),
            index::PV_WALL_CLOCK | index::PV_WALL_CLOCK_OLD => Ok(self.pv_wall_clock),
            index::PV_SYSTEM_TIME | index::PV_SYSTEM_TIME_OLD => Ok(self.pv_system_time),
            index::PV_STEAL_TIME => Ok(self.pv_steal_time),
            index::MISC_ENABLE => Ok(self.misc_enable),
            index::PLATFORM_INFO => Ok(self.platform_info),
            index::MISC_FEATURES_ENABLES => Ok(self.cpuid_faults),
            index::SMBASE => require(false, origin).map(|()| self.smbase),
            index::SMI_COUNT => Ok(self.smi_count),
            index::VM_HSAVE_PA => Ok(self.vm_hsave_pa),
            index::POWER_CTL => Ok(self.power_ctl),
            index::PATCH_LEVEL => Ok(self.patch_level),
            index::HWCR => Ok(self.hwcr),
            index::DE_CFG => Ok(self.de_cfg),
            index::OSVW_LENGTH => Ok(self.osvw_length),
            index::OSVW_STATUS => Ok(self.osvw_status),
            _ if Pv::holds(index) => self.pv.read(index),
            _ if Mce::holds(index) => self.mce.read(index, origin),
            _ if Mtrr::holds(index) => self.mtrr.read(index),
            _ => constant::read(index, origin),
        }
    }

    /// Writes an MSR of one of these classes. Nothing is changed if it fails.
    pub fn write(
        &mut self,
        index: u32,
        value: u64,
        origin: Origin,
        features: &Features,
    ) -> Result<(), Exception> {
        require(is_present(index, features), origin)?;
        match index {
            // AMD keeps 32 bits of it.
            index::TSC_AUX => self.tsc_aux = value as u32,
            index::TSC_ADJUST => self.tsc_adjust = value,
            index::PV_WALL_CLOCK | index::PV_WALL_CLOCK_OLD => self.pv_wall_clock = value,
            index::PV_SYSTEM_TIME | index::PV_SYSTEM_TIME_OLD => self.pv_system_time = value,
            index::PV_STEAL_TIME if value & PV_STEAL_RESERVED != 0 => return Err(Exception::GP0),
            index::PV_STEAL_TIME => self.pv_steal_time = value,
            index::MISC_ENABLE => self.write_misc_enable(value, origin)?,
            index::PLATFORM_INFO => {
                require(false, origin)?;
                self.platform_info = value;
            }
            index::MISC_FEATURES_ENABLES => self.write_misc_features(value)?,
            index::SMBASE => {
                require(false, origin)?;
                self.smbase = value;
            }
            index::SMI_COUNT => {
                require(false, origin)?;
                self.smi_count = value;
            }
            index::VM_HSAVE_PA => {
                let reserved = VM_HSAVE_RESERVED | features.reserved_phys();
                require(value & reserved == 0, origin)?;
                self.vm_hsave_pa = value & !VM_HSAVE_RESERVED;
            }
            index::POWER_CTL => self.power_ctl = value,
            // The guest writes zero before CPUID brings the revision on some CPUs.
            index::PATCH_LEVEL if origin == Origin::Guest => {}
            index::PATCH_LEVEL => self.patch_level = value,
            index::HWCR => self.write_hwcr(value, features)?,
            index::DE_CFG => self.write_de_cfg(value)?,
            index::OSVW_LENGTH | index::OSVW_STATUS if origin == Origin::Guest => {
                return Err(Exception::GP0);
            }
            index::OSVW_LENGTH => self.osvw_length = value,
            index::OSVW_STATUS => self.osvw_status = value,
            _ if Pv::holds(index) => {
                self.pv
                    .write(index, value, origin == Origin::Host, features)?;
            }
            _ if Mce::holds(index) => {
                let status_writable = self.hwcr & HWCR_STATUS_WRITABLE != 0;
                self.mce.write(index, value, origin, status_writable)?;
            }
            _ if Mtrr::holds(index) => self.mtrr.write(index, value, origin, features)?,
            _ => constant::write(index, value, origin)?,
        }
        Ok(())
    }

    fn write_misc_enable(&mut self, value: u64, origin: Origin) -> Result<(), Exception> {
        let mut value = value;
        if origin == Origin::Guest {
            if (value ^ self.misc_enable) & MISC_ENABLE_PMU != 0 {
                return Err(Exception::GP0);
            }
            value = (value & !MISC_ENABLE_EMON) | (self.misc_enable & MISC_ENABLE_EMON);
        }
        self.misc_enable = value;
        Ok(())
    }

    /// The bit can be set only where PLATFORM_INFO says so.
    fn write_misc_features(&mut self, value: u64) -> Result<(), Exception> {
        let can_fault = self.platform_info & PLATFORM_CPUID_FAULTING != 0;
        if value & !CPUID_FAULTS != 0 || (value & CPUID_FAULTS != 0 && !can_fault) {
            return Err(Exception::GP0);
        }
        self.cpuid_faults = value;
        Ok(())
    }

    /// Whether CPUID is #GP in programs of the guest.
    #[inline]
    pub fn cpuid_faults(&self) -> bool {
        (self.cpuid_faults & CPUID_FAULTS) | (self.hwcr & HWCR_CPUID_USER_DISABLE) != 0
    }

    fn write_hwcr(&mut self, value: u64, features: &Features) -> Result<(), Exception> {
        let mut kept = HWCR_KEPT;
        if features.has(Feature::CPUID_USER_DISABLE) {
            kept |= HWCR_CPUID_USER_DISABLE;
        }
        if value & !(kept | HWCR_IGNORED) != 0 {
            return Err(Exception::GP0);
        }
        self.hwcr = value & kept;
        Ok(())
    }

    fn write_de_cfg(&mut self, value: u64) -> Result<(), Exception> {
        if value & !DE_CFG_LFENCE_SERIALIZES != 0 {
            return Err(Exception::GP0);
        }
        self.de_cfg = value;
        Ok(())
    }
}
