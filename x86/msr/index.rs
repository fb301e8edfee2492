// SPDX-License-Identifier: GPL-2.0-only

//! Indices of model-specific registers (APM vol. 2, appendix A).

#![allow(missing_docs, reason = "the names of registers are the manual's")]

/// Intel's, as many of the registers below C000_0000.
pub const P5_MC_ADDR: u32 = 0;
pub const P5_MC_TYPE: u32 = 1;
pub const TSC: u32 = 0x10;
pub const PV_WALL_CLOCK_OLD: u32 = 0x11;
pub const PV_SYSTEM_TIME_OLD: u32 = 0x12;
pub const PLATFORM_ID: u32 = 0x17;
pub const APIC_BASE: u32 = 0x1b;
pub const EBL_CR_POWERON: u32 = 0x2a;
pub const EBC_FREQUENCY_ID: u32 = 0x2c;
/// How many SMIs there were.
pub const SMI_COUNT: u32 = 0x34;
pub const FEAT_CTL: u32 = 0x3a;
pub const TSC_ADJUST: u32 = 0x3b;
pub const SPEC_CTRL: u32 = 0x48;
pub const PRED_CMD: u32 = 0x49;
pub const UCODE_WRITE: u32 = 0x79;
pub const PATCH_LEVEL: u32 = 0x8b;
pub const SMBASE: u32 = 0x9e;
pub const P6_PERFCTR0: u32 = 0xc1;
pub const P6_PERFCTR1: u32 = 0xc2;
pub const FSB_FREQ: u32 = 0xcd;
pub const PLATFORM_INFO: u32 = 0xce;
pub const MTRR_CAP: u32 = 0xfe;
pub const ARCH_CAPABILITIES: u32 = 0x10a;
pub const BBL_CR_CTL3: u32 = 0x11e;
/// Its one bit makes CPUID fault in programs.
pub const MISC_FEATURES_ENABLES: u32 = 0x140;
pub const SYSENTER_CS: u32 = 0x174;
pub const SYSENTER_ESP: u32 = 0x175;
pub const SYSENTER_EIP: u32 = 0x176;
pub const MCG_CAP: u32 = 0x179;
pub const MCG_STATUS: u32 = 0x17a;
pub const MCG_CTL: u32 = 0x17b;
pub const P6_EVNTSEL0: u32 = 0x186;
pub const P6_EVNTSEL1: u32 = 0x187;
pub const PERF_STATUS: u32 = 0x198;
pub const PERF_CTL: u32 = 0x199;
pub const MISC_ENABLE: u32 = 0x1a0;
pub const XFD: u32 = 0x1c4;
pub const XFD_ERR: u32 = 0x1c5;
pub const DEBUG_CTL: u32 = 0x1d9;
pub const LAST_BRANCH_FROM: u32 = 0x1db;
pub const LAST_BRANCH_TO: u32 = 0x1dc;
pub const LAST_EXCEPTION_FROM: u32 = 0x1dd;
pub const LAST_EXCEPTION_TO: u32 = 0x1de;
/// Intel's, but guests of other makes find it, too.
pub const POWER_CTL: u32 = 0x1fc;

/// Eight pairs of base and mask.
pub const MTRR_VARIABLE_FIRST: u32 = 0x200;
pub const MTRR_VARIABLE_LAST: u32 = 0x20f;
pub const MTRR_FIX_64K: u32 = 0x250;
/// Two of them.
pub const MTRR_FIX_16K: u32 = 0x258;
pub const MTRR_FIX_16K_LAST: u32 = 0x259;
/// Eight of them.
pub const MTRR_FIX_4K: u32 = 0x268;
pub const MTRR_FIX_4K_LAST: u32 = 0x26f;
pub const PAT: u32 = 0x277;
pub const MTRR_DEF_TYPE: u32 = 0x2ff;

/// One register a bank: how often it tells of corrected errors.
pub const MC0_CTL2: u32 = 0x280;
pub const MC_CTL2_LAST: u32 = 0x29f;
pub const PERF_CAPABILITIES: u32 = 0x345;

/// Four registers a bank: CTL, STATUS, ADDR, MISC.
pub const MC0_CTL: u32 = 0x400;
pub const MC_LAST: u32 = 0x47f;

pub const RAPL_POWER_UNIT: u32 = 0x606;
pub const PKG_ENERGY_STATUS: u32 = 0x611;
pub const DRAM_ENERGY_STATUS: u32 = 0x619;
pub const PP0_ENERGY_STATUS: u32 = 0x639;
pub const PP1_ENERGY_STATUS: u32 = 0x641;
pub const TSC_DEADLINE: u32 = 0x6e0;
pub const X2APIC_FIRST: u32 = 0x800;
pub const X2APIC_LAST: u32 = 0x8ff;
pub const XSS: u32 = 0xda0;

pub const PV_WALL_CLOCK: u32 = 0x4b56_4d00;
pub const PV_SYSTEM_TIME: u32 = 0x4b56_4d01;
pub const PV_ASYNC_PF: u32 = 0x4b56_4d02;
pub const PV_STEAL_TIME: u32 = 0x4b56_4d03;
pub const PV_EOI: u32 = 0x4b56_4d04;
pub const PV_POLL_CONTROL: u32 = 0x4b56_4d05;
pub const PV_ASYNC_PF_INT: u32 = 0x4b56_4d06;
pub const PV_ASYNC_PF_ACK: u32 = 0x4b56_4d07;

pub const EFER: u32 = 0xc000_0080;
pub const STAR: u32 = 0xc000_0081;
pub const LSTAR: u32 = 0xc000_0082;
pub const CSTAR: u32 = 0xc000_0083;
pub const SFMASK: u32 = 0xc000_0084;
pub const FS_BASE: u32 = 0xc000_0100;
pub const GS_BASE: u32 = 0xc000_0101;
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
pub const TSC_AUX: u32 = 0xc000_0103;
pub const TSC_RATIO: u32 = 0xc000_0104;

/// Four event selectors, then four counters.
pub const PERF_LEGACY_FIRST: u32 = 0xc001_0000;
pub const PERF_LEGACY_LAST: u32 = 0xc001_0007;
/// Six event selectors, each with its counter behind it.
pub const PERF_CORE_FIRST: u32 = 0xc001_0200;
pub const PERF_CORE_LAST: u32 = 0xc001_020b;
/// OS-visible workarounds: how many errata there are bits for, and the bits.
pub const OSVW_LENGTH: u32 = 0xc001_0140;
pub const OSVW_STATUS: u32 = 0xc001_0141;
pub const SYSCFG: u32 = 0xc001_0010;
pub const HWCR: u32 = 0xc001_0015;
/// Base and mask of two ranges.
pub const IORR_FIRST: u32 = 0xc001_0016;
pub const IORR_LAST: u32 = 0xc001_0019;
pub const TOP_MEM: u32 = 0xc001_001a;
pub const CLK_CTL: u32 = 0xc001_001b;
pub const TOP_MEM2: u32 = 0xc001_001d;
pub const NB_CFG: u32 = 0xc001_001f;
pub const PATCH_LOADER: u32 = 0xc001_0020;
pub const INT_PENDING: u32 = 0xc001_0055;
pub const MMIO_CFG_BASE: u32 = 0xc001_0058;
pub const SMM_ADDR: u32 = 0xc001_0112;
pub const SMM_MASK: u32 = 0xc001_0113;
pub const VM_CR: u32 = 0xc001_0114;
pub const IGNNE: u32 = 0xc001_0115;
pub const VM_HSAVE_PA: u32 = 0xc001_0117;
pub const VIRT_SPEC_CTRL: u32 = 0xc001_011f;
pub const IC_CFG: u32 = 0xc001_1021;
pub const DC_CFG: u32 = 0xc001_1022;
pub const TW_CFG: u32 = 0xc001_1023;
pub const DE_CFG: u32 = 0xc001_1029;
pub const BU_CFG2: u32 = 0xc001_102a;
pub const EX_CFG: u32 = 0xc001_102c;
