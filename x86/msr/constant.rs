// SPDX-License-Identifier: GPL-2.0-only

//! Registers that exist but hold no state: what systems read, and write, without being prepared for
//! #GP, because of family and model alone, or because the CPUs that they know best have them.

use super::{index, Origin};
use crate::regs::Exception;

/// What is read from such a register, and what becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Constant {
    /// Writing anything else than what is read is #GP.
    Fixed(u64),
    /// Writes are accepted, and change nothing.
    WriteIgnored(u64),
    /// Writes are #GP.
    ReadOnly(u64),
    /// Writes are accepted, and change nothing; reads are #GP.
    WriteOnly,
    /// The guest has no such register. A VMM that saves or restores what KVM lists finds this, and
    /// may write it, or zero.
    VmmOnly(u64),
}

use Constant::{Fixed, ReadOnly, VmmOnly, WriteIgnored, WriteOnly};

/// Kept from the P5, where these tell of a machine check: none.
const P5_MC: Constant = ReadOnly(0);
/// Pentium 4: 100 MHz, and a core that runs at once the bus frequency: no guest divides by 0.
const EBC_FREQUENCY: u64 = 1 << 24;
/// The second level's cache of a Pentium III: on.
const BBL_CR_CTL3: u64 = 0xbe70_2111;
/// In the FSB's frequency: 100 MHz.
const FSB_100_MHZ: u64 = 3;
/// The present P-state: 1000, and the maximum's multiplier 4 in bits 44:40.
const PERF_STATUS: u64 = 4 << 40 | 1000;
/// K7: the ramp of its clock.
const CLK_CTL: u64 = 0x2000_0000;
/// A TSC that runs at the host's rate (APM vol. 2, 15.30.5).
const TSC_RATIO_ONE: u64 = 1 << 32;

/// In ARCH_CAPABILITIES: vulnerabilities of Intel's CPUs that AMD's do not have (RDCL, MDS, GDS,
/// RFDS and ITS), page sizes that may change under the CPU, and no flush of the first cache at VM
/// entries.
pub(super) const NOT_INTELS: u64 = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 26 | 1 << 27 | 1 << 62;

fn constant(index: u32) -> Option<Constant> {
    Some(match index {
        index::P5_MC_ADDR | index::P5_MC_TYPE => P5_MC,
        index::PLATFORM_ID | index::EBL_CR_POWERON => ReadOnly(0),
        index::EBC_FREQUENCY_ID => ReadOnly(EBC_FREQUENCY),
        index::UCODE_WRITE => WriteOnly,
        index::P6_PERFCTR0..=index::P6_PERFCTR1 => WriteIgnored(0),
        index::P6_EVNTSEL0..=index::P6_EVNTSEL1 => WriteIgnored(0),
        index::FSB_FREQ => ReadOnly(FSB_100_MHZ),
        index::BBL_CR_CTL3 => WriteIgnored(BBL_CR_CTL3),
        index::PERF_STATUS => ReadOnly(PERF_STATUS),
        index::PERF_CTL => ReadOnly(0),
        // How much energy is used: that is the host's business.
        index::RAPL_POWER_UNIT
        | index::PKG_ENERGY_STATUS
        | index::DRAM_ENERGY_STATUS
        | index::PP0_ENERGY_STATUS
        | index::PP1_ENERGY_STATUS => ReadOnly(0),
        index::FEAT_CTL | index::PERF_CAPABILITIES => VmmOnly(0),
        index::ARCH_CAPABILITIES => VmmOnly(NOT_INTELS),
        index::XFD | index::XFD_ERR | index::VIRT_SPEC_CTRL => VmmOnly(0),
        index::TSC_RATIO => VmmOnly(TSC_RATIO_ONE),
        // No DRAM behind MTRRs and no memory above 4 GiB that TOP_MEM2 has to declare.
        index::SYSCFG | index::TOP_MEM | index::TOP_MEM2 => Fixed(0),
        index::IORR_FIRST..=index::IORR_LAST => Fixed(0),
        index::CLK_CTL => WriteIgnored(CLK_CTL),
        index::INT_PENDING | index::MMIO_CFG_BASE => Fixed(0),
        index::SMM_ADDR | index::SMM_MASK => Fixed(0),
        // Firmware has neither disabled SVM nor locked it.
        index::VM_CR => Fixed(0),
        index::IGNNE => WriteOnly,
        index::IC_CFG | index::DC_CFG | index::TW_CFG => WriteIgnored(0),
        index::BU_CFG2 | index::EX_CFG | index::NB_CFG => WriteIgnored(0),
        index::PATCH_LOADER => WriteOnly,
        // No supervisor component is offered, so XSAVES has none to save.
        index::XSS => Fixed(0),
        // The four counters of old count nothing.
        index::PERF_LEGACY_FIRST..=index::PERF_LEGACY_LAST => WriteIgnored(0),
        // Nor do the six of now.
        index::PERF_CORE_FIRST..=index::PERF_CORE_LAST => WriteIgnored(0),
        _ => return None,
    })
}

/// True if `index` is one of them.
pub(super) fn holds(index: u32) -> bool {
    constant(index).is_some()
}

pub(super) fn read(index: u32, origin: Origin) -> Result<u64, Exception> {
    match constant(index) {
        Some(Fixed(value) | WriteIgnored(value) | ReadOnly(value)) => Ok(value),
        Some(VmmOnly(value)) if origin == Origin::Host => Ok(value),
        _ => Err(Exception::GP0),
    }
}

pub(super) fn write(index: u32, value: u64, origin: Origin) -> Result<(), Exception> {
    match constant(index) {
        Some(WriteIgnored(_) | WriteOnly) => Ok(()),
        Some(Fixed(fixed)) if fixed == value => Ok(()),
        Some(VmmOnly(fixed)) if origin == Origin::Host && (value == 0 || value == fixed) => Ok(()),
        _ => Err(Exception::GP0),
    }
}
