// SPDX-License-Identifier: GPL-2.0-only

//! Model-specific registers, as a guest and as a VMM see them.

use proptest::prelude::*;
use x86::features::{Feature, Features};
use x86::msr::{
    check_pred_cmd, check_vmcb, classify, feature, has_vmcb, index, is_valid_pat, Mce, MsrClass,
    MsrFile, Mtrr, Origin, Report, Reported, VmcbMsr, FEATURE_MSRS, MAX_BANKS, SAVED_MSRS,
};
use x86::regs::Exception;

const GP: Exception = Exception::GP0;
const GUEST: Origin = Origin::Guest;
const HOST: Origin = Origin::Host;

fn full() -> Features {
    Features {
        xcr0: 0,
        set: Feature::all(),
        max_phys_bits: 40,
    }
}

fn is_in_file(index: u32) -> bool {
    matches!(
        classify(index),
        MsrClass::File
            | MsrClass::MiscEnable
            | MsrClass::PlatformInfo
            | MsrClass::TscAdjust
            | MsrClass::PvWallClock
            | MsrClass::PvSystemTime
            | MsrClass::PvStealTime
    )
}

struct Machine {
    file: MsrFile,
    features: Features,
}

impl Machine {
    fn new() -> Self {
        Self {
            file: MsrFile::new(),
            features: full(),
        }
    }

    fn read(&self, index: u32) -> Result<u64, Exception> {
        assert!(is_in_file(index), "{index:#x}");
        self.file.read(index, GUEST, &self.features)
    }

    fn write(&mut self, index: u32, value: u64) -> Result<(), Exception> {
        assert!(is_in_file(index), "{index:#x}");
        self.file.write(index, value, GUEST, &self.features)
    }

    fn host_write(&mut self, index: u32, value: u64) -> Result<(), Exception> {
        self.file.write(index, value, HOST, &self.features)
    }
}

#[test]
fn classes() {
    for (index, class) in [
        (0x10, MsrClass::Tsc),
        (0x1b, MsrClass::ApicBase),
        (0x3b, MsrClass::TscAdjust),
        (0x6e0, MsrClass::TscDeadline),
        (0x800, MsrClass::X2Apic(0)),
        (0x80b, MsrClass::X2Apic(0xb)),
        (0x8ff, MsrClass::X2Apic(0xff)),
        (0x900, MsrClass::Unknown),
        (0x11, MsrClass::PvWallClock),
        (0x12, MsrClass::PvSystemTime),
        (0x4b56_4d00, MsrClass::PvWallClock),
        (0x4b56_4d01, MsrClass::PvSystemTime),
        (0x4b56_4d08, MsrClass::Unknown),
        (0xc000_0080, MsrClass::Vmcb(VmcbMsr::Efer)),
        (0xc000_0082, MsrClass::Vmcb(VmcbMsr::Lstar)),
        (0x277, MsrClass::Vmcb(VmcbMsr::Pat)),
        (0xc000_0103, MsrClass::File),
        (0x8b, MsrClass::File),
        (0x480, MsrClass::Unknown),
        // What hosts have, and guests do not: APERF, SSBD by LS_CFG.
        (0xe8, MsrClass::Unknown),
        (0xda0, MsrClass::File),
        (0xc001_1020, MsrClass::Unknown),
        (0, MsrClass::File),
        (u32::MAX, MsrClass::Unknown),
    ] {
        assert_eq!(classify(index), class, "{index:#x}");
    }
}

/// The registers that a Linux guest on AMD reads at boot with an RDMSR that must not fail.
#[test]
fn linux_finds_what_it_reads_without_care() {
    let machine = Machine::new();
    for (index, value) in [
        (index::PATCH_LEVEL, 0x0100_0065),
        (index::HWCR, 0),
        (index::SYSCFG, 0),
        (index::TOP_MEM, 0),
        (index::TOP_MEM2, 0),
        (index::INT_PENDING, 0),
        (index::MMIO_CFG_BASE, 0),
        (index::NB_CFG, 0),
        (index::IORR_FIRST, 0),
        (index::IORR_LAST, 0),
        (index::SMM_ADDR, 0),
        (index::SMM_MASK, 0),
        (index::MTRR_CAP, 0x508),
        (index::MTRR_DEF_TYPE, 0),
        (index::MCG_CAP, 32),
        (index::MCG_STATUS, 0),
        (index::MISC_ENABLE, 1 << 11 | 1 << 12),
        (index::TSC_ADJUST, 0),
        (index::TSC_AUX, 0),
        (index::PLATFORM_INFO, 1 << 31),
        (index::PV_WALL_CLOCK, 0),
        (index::PV_SYSTEM_TIME, 0),
    ] {
        assert_eq!(machine.read(index), Ok(value), "{index:#x}");
    }
    for bank in 0..32 {
        for register in 0..4 {
            assert_eq!(machine.read(0x400 + 4 * bank + register), Ok(0));
        }
    }
}

/// What Windows, the BSDs, loaders of macOS and Linux of old read and write for other CPUs' sake.
#[test]
fn other_systems_find_what_they_read_without_care() {
    let mut machine = Machine::new();
    for (index, value) in [
        (0, 0),
        (1, 0),
        (0x17, 0),
        (0x2a, 0),
        (0x2c, 0x100_0000),
        (0x34, 0),
        (0xc1, 0),
        (0xc2, 0),
        (0xcd, 3),
        (0x11e, 0xbe70_2111),
        (0x140, 0),
        (0x186, 0),
        (0x187, 0),
        (0x198, 0x400_0000_03e8),
        (0x199, 0),
        (0x606, 0),
        (0x611, 0),
        (0x619, 0),
        (0x639, 0),
        (0x641, 0),
        (0xc001_001b, 0x2000_0000),
        (0xc001_0114, 0),
        (0xc001_0117, 0),
    ] {
        assert_eq!(machine.read(index), Ok(value), "{index:#x}");
    }
    for (index, value) in [
        (0x79, 0x1_2345),
        (0x140, 0),
        (0xc1, 0),
        (0xc2, 7),
        (0x186, 0),
        (0xc001_0020, 5),
        (0xc001_0114, 0),
        (0xc001_0115, 0),
        (0xc001_0117, 0x5000),
    ] {
        assert_eq!(machine.write(index, value), Ok(()), "{index:#x}");
    }
    assert_eq!(machine.read(0xc001_0117), Ok(0x5000));
    // These say what they are, and no more.
    for index in [0, 1, 0x17, 0x2a, 0x2c, 0x34, 0xcd, 0x198, 0x199, 0x606] {
        assert_eq!(machine.write(index, 0), Err(GP), "{index:#x}");
    }
    for (index, value) in [
        (0xc001_0117, 0x5008),
        (0xc001_0117, 1 << 40),
        (0xc001_0114, 1),
    ] {
        assert_eq!(machine.write(index, value), Err(GP), "{index:#x}");
    }
    for index in [0x79, 0x9e, 0xc001_0020, 0xc001_0115] {
        assert_eq!(machine.read(index), Err(GP), "{index:#x}");
    }
}

/// What KVM lists, and its VMMs save and restore, can be saved and restored, though no guest has
/// it.
#[test]
fn a_vmm_restores_what_no_guest_has() {
    let mut machine = Machine::new();
    for (index, value) in [
        (0x3a, 0),
        (0x10a, feature(0x10a, 0).unwrap()),
        (0x1c4, 0),
        (0x1c5, 0),
        (0x280, 0),
        (0x345, 0),
        (0xc000_0104, 1 << 32),
        (0xc001_011f, 0),
    ] {
        let features = machine.features;
        assert_eq!(machine.file.read(index, HOST, &features), Ok(value));
        assert_eq!(machine.host_write(index, value), Ok(()), "{index:#x}");
        assert_eq!(machine.host_write(index, 0), Ok(()), "{index:#x}");
        assert_eq!(machine.host_write(index, 2), Err(GP), "{index:#x}");
        assert_eq!(machine.read(index), Err(GP), "{index:#x}");
        assert_eq!(machine.write(index, 0), Err(GP), "{index:#x}");
    }
    assert_eq!(machine.host_write(0x9e, 0x4_0000), Ok(()));
    let smbase = machine.file.read(0x9e, HOST, &machine.features);
    assert_eq!(smbase, Ok(0x4_0000));
}

/// CPUID faults only where something says that it can: PLATFORM_INFO, or CPUID itself.
#[test]
fn cpuid_faulting() {
    const FAULTING: u64 = 1 << 31;
    const USER_DISABLE: u64 = 1 << 35;
    let (enables, info) = (index::MISC_FEATURES_ENABLES, index::PLATFORM_INFO);
    let mut machine = Machine::new();
    assert!(!machine.file.cpuid_faults());
    assert_eq!(machine.write(enables, 1), Ok(()));
    assert!(machine.file.cpuid_faults());
    assert_eq!(machine.read(enables), Ok(1));
    for bit in 1..64 {
        assert_eq!(machine.write(enables, 1 << bit), Err(GP), "bit {bit}");
    }
    assert_eq!(machine.write(enables, 0), Ok(()));
    assert_eq!(machine.write(info, 0), Err(GP), "read-only");
    assert_eq!(machine.host_write(info, !FAULTING), Ok(()));
    assert_eq!(machine.write(enables, 1), Err(GP));
    assert_eq!(machine.host_write(enables, 1), Err(GP));
    assert_eq!(machine.write(enables, 0), Ok(()));
    assert!(!machine.file.cpuid_faults());

    assert_eq!(machine.write(index::HWCR, USER_DISABLE), Ok(()));
    assert!(machine.file.cpuid_faults());
    assert_eq!(machine.write(index::HWCR, 0), Ok(()));
    machine.features.set -= Feature::CPUID_USER_DISABLE;
    assert_eq!(machine.write(index::HWCR, USER_DISABLE), Err(GP));
    assert_eq!(machine.host_write(index::HWCR, USER_DISABLE), Err(GP));
    assert!(!machine.file.cpuid_faults());
}

/// Every saved register can be read and written back by the VMM, before it has set CPUID, too.
#[test]
fn saved_registers_round_trip() {
    let none = Features::default();
    let mut file = MsrFile::new();
    for &index in SAVED_MSRS {
        if is_in_file(index) {
            let value = file.read(index, HOST, &none).unwrap();
            file.write(index, value, HOST, &none).unwrap();
        } else {
            assert_ne!(classify(index), MsrClass::Unknown, "{index:#x}");
        }
    }
    assert_eq!(file, MsrFile::new());
    let mut sorted = SAVED_MSRS.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), SAVED_MSRS.len(), "no register twice");
}

/// Saving and restoring carries all that a guest has written.
#[test]
fn saved_registers_hold_the_state() {
    let mut machine = Machine::new();
    for (index, value) in [
        (index::TSC_AUX, 5),
        (index::TSC_ADJUST, 77),
        (index::HWCR, 1 << 18),
        (index::DE_CFG, 2),
        (index::MTRR_DEF_TYPE, 0xc06),
        (index::MTRR_FIX_4K_LAST, 0x0606_0606_0505_0505),
        (index::MTRR_VARIABLE_LAST, 0xff_ff00_0800),
        (index::PV_SYSTEM_TIME, 0x1234_0001),
        (index::PV_STEAL_TIME, 0x1_2340_0041),
        (index::PV_WALL_CLOCK, 0x5678),
        (index::PV_EOI, 0x9001),
        (index::PV_ASYNC_PF, 0x6009),
        (index::PV_ASYNC_PF_INT, 0xf3),
        (index::PV_POLL_CONTROL, 0),
        (index::MCG_STATUS, 4),
    ] {
        machine.write(index, value).unwrap();
    }
    let mut copy = MsrFile::new();
    for &index in SAVED_MSRS.iter().filter(|index| is_in_file(**index)) {
        let value = machine.file.read(index, HOST, &machine.features).unwrap();
        copy.write(index, value, HOST, &machine.features).unwrap();
    }
    assert_eq!(copy, machine.file);
    assert_eq!(copy.pv_system_time, 0x1234_0001);
}

#[test]
fn registers_need_their_feature() {
    for (index, feature) in [
        (index::TSC_AUX, Feature::RDTSCP | Feature::RDPID),
        (index::TSC_ADJUST, Feature::TSC_ADJUST),
        (index::PV_SYSTEM_TIME, Feature::PV_CLOCK2),
        (index::PV_WALL_CLOCK, Feature::PV_CLOCK2),
        (index::PV_STEAL_TIME, Feature::PV_STEAL_TIME),
        (index::PV_EOI, Feature::PV_EOI),
        (index::PV_ASYNC_PF, Feature::PV_ASYNC_PF),
        (index::PV_ASYNC_PF_INT, Feature::PV_ASYNC_PF_INT),
        (index::PV_SYSTEM_TIME_OLD, Feature::PV_CLOCK),
        (index::PV_WALL_CLOCK_OLD, Feature::PV_CLOCK),
    ] {
        let mut machine = Machine::new();
        assert_eq!(machine.write(index, 64), Ok(()));
        assert_eq!(machine.read(index), Ok(64));
        machine.features.set -= feature;
        assert_eq!(machine.read(index), Err(GP), "{index:#x}");
        assert_eq!(machine.write(index, 128), Err(GP));
        assert_eq!(machine.host_write(index, 128), Ok(()));
        assert_eq!(machine.file.read(index, HOST, &machine.features), Ok(128));
    }
    let none = Features::default();
    for msr in [
        VmcbMsr::Lstar,
        VmcbMsr::Star,
        VmcbMsr::FsBase,
        VmcbMsr::Sfmask,
    ] {
        assert_eq!(check_vmcb(msr, 0, GUEST, &none), Err(GP));
        assert_eq!(check_vmcb(msr, 0, HOST, &none), Ok(0));
    }
}

#[test]
fn values_of_the_vmcb() {
    let mut features = full();
    let noncanonical = 0xaaaa_aaaa_aaaa_aaaa;
    for msr in [
        VmcbMsr::Lstar,
        VmcbMsr::Cstar,
        VmcbMsr::FsBase,
        VmcbMsr::GsBase,
        VmcbMsr::KernelGsBase,
    ] {
        for origin in [GUEST, HOST] {
            assert_eq!(check_vmcb(msr, noncanonical, origin, &features), Err(GP));
            let high = 0xffff_8000_0000_1234;
            assert_eq!(check_vmcb(msr, high, origin, &features), Ok(high));
        }
        // 57 bits if the CPU has them, whatever the mode is.
        let wide = 0x00ff_0000_0000_0000;
        features.set |= Feature::LA57;
        assert_eq!(check_vmcb(msr, wide, GUEST, &features), Ok(wide));
        features.set -= Feature::LA57;
        assert_eq!(check_vmcb(msr, wide, GUEST, &features), Err(GP));
    }
    let any = 0x1234_5678_9abc_def0;
    for msr in [VmcbMsr::SysenterEsp, VmcbMsr::SysenterEip, VmcbMsr::Sfmask] {
        assert_eq!(check_vmcb(msr, any, GUEST, &features), Ok(0x9abc_def0));
    }
    for msr in [VmcbMsr::Star, VmcbMsr::SysenterCs] {
        assert_eq!(check_vmcb(msr, any, GUEST, &features), Ok(any));
    }
    assert_eq!(
        check_vmcb(VmcbMsr::DebugCtl, 0x3f, GUEST, &features),
        Ok(0x3f)
    );
    assert_eq!(
        check_vmcb(VmcbMsr::DebugCtl, 0x40, GUEST, &features),
        Err(GP)
    );
    assert_eq!(
        check_vmcb(VmcbMsr::LastBranchTo, 1, GUEST, &features),
        Err(GP)
    );
    assert_eq!(check_vmcb(VmcbMsr::LastBranchTo, 1, HOST, &features), Ok(1));
}

#[test]
fn speculation_controls() {
    let mut features = full();
    let check =
        |value, origin, features: &Features| check_vmcb(VmcbMsr::SpecCtrl, value, origin, features);
    assert_eq!(classify(0x48), MsrClass::Vmcb(VmcbMsr::SpecCtrl));
    for value in [0, 1, 2, 4, 0x80, 0x87] {
        assert_eq!(check(value, GUEST, &features), Ok(value));
    }
    assert_eq!(check(8, GUEST, &features), Err(GP));
    features.set -= Feature::STIBP;
    for origin in [GUEST, HOST] {
        assert_eq!(check(2, origin, &features), Err(GP));
    }
    features.set -= Feature::IBRS | Feature::SSBD | Feature::PSFD;
    assert!(!has_vmcb(VmcbMsr::SpecCtrl, &features));
    assert_eq!(check(0, GUEST, &features), Err(GP));
    assert_eq!(check(0, HOST, &features), Ok(0));

    assert_eq!(classify(0x49), MsrClass::PredCmd);
    assert_eq!(check_pred_cmd(0, GUEST, &features), Ok(false));
    assert_eq!(check_pred_cmd(1, GUEST, &features), Ok(true));
    assert_eq!(check_pred_cmd(2, GUEST, &features), Err(GP));
    // The second command.
    features.set -= Feature::SBPB;
    assert_eq!(check_pred_cmd(1 << 7, GUEST, &features), Err(GP));
    features.set |= Feature::SBPB;
    assert_eq!(check_pred_cmd(1 << 7, GUEST, &features), Ok(true));
    assert_eq!(check_pred_cmd(1 << 7, HOST, &features), Ok(true));
    assert_eq!(check_pred_cmd(1 << 6, HOST, &features), Err(GP));
    features.set -= Feature::IBPB;
    assert_eq!(check_pred_cmd(0x81, GUEST, &features), Err(GP));
    assert_eq!(check_pred_cmd(1 << 7, GUEST, &features), Ok(true));
    features.set -= Feature::SBPB;
    assert_eq!(check_pred_cmd(1, GUEST, &features), Err(GP));
    assert_eq!(check_pred_cmd(1, HOST, &features), Ok(true));
}

#[test]
fn page_attribute_table() {
    assert!(is_valid_pat(0x0007_0406_0007_0406) && is_valid_pat(0x0707_0707));
    for position in 0..8 {
        for kind in 0..=255_u64 {
            let good = [0, 1, 4, 5, 6, 7].contains(&kind);
            assert_eq!(is_valid_pat(kind << (8 * position)), good);
            let pat = check_vmcb(VmcbMsr::Pat, kind << (8 * position), GUEST, &full());
            assert_eq!(pat.is_ok(), good);
        }
    }
}

#[test]
fn memory_type_ranges() {
    let mut machine = Machine::new();
    let fixed = [
        0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
    ];
    for (n, index) in fixed.into_iter().enumerate() {
        let value = 0x0606_0606_0606_0600 | [0, 1, 4, 5, 6][n % 5];
        assert_eq!(machine.write(index, value), Ok(()));
        assert_eq!(machine.write(index, 2), Err(GP));
        assert_eq!(machine.write(index, 7 << 56), Err(GP));
        assert_eq!(machine.read(index), Ok(value));
    }
    for n in 0..16 {
        let index = 0x200 + n;
        let (good, bad) = match n % 2 {
            0 => (u64::from(n) << 20 | 6, [2, 0x106, 1 << 40]),
            _ => (u64::from(n) << 20 | 0x800, [1, 0x400, 1 << 40]),
        };
        assert_eq!(machine.write(index, good), Ok(()));
        for value in bad {
            assert_eq!(
                machine.write(index, value),
                Err(GP),
                "{index:#x} {value:#x}"
            );
        }
        assert_eq!(machine.read(index), Ok(good));
    }
    for (value, good) in [
        (0, true),
        (0xc06, true),
        (0x800, true),
        (0x1000, false),
        (3, false),
    ] {
        assert_eq!(
            machine.write(index::MTRR_DEF_TYPE, value).is_ok(),
            good,
            "{value:#x}"
        );
    }
    assert_eq!(machine.write(index::MTRR_CAP, Mtrr::CAP), Err(GP));
    assert_eq!(machine.host_write(index::MTRR_CAP, Mtrr::CAP), Ok(()));
    assert_eq!(machine.host_write(index::MTRR_CAP, 0), Err(GP));
    for index in [0x210, 0x24f, 0x251, 0x25a, 0x267, 0x270, 0x2fe] {
        assert_eq!(classify(index), MsrClass::Unknown, "{index:#x}");
    }
}

#[test]
fn machine_check_banks() {
    let mut machine = Machine::new();
    assert!(!machine.file.mce.setup(0), "no bank");
    assert!(!machine.file.mce.setup(33));
    assert!(!machine.file.mce.setup(10 | 1 << 10), "no CMCI");
    assert!(machine.file.mce.setup(3 | 1 << 24));
    assert_eq!(machine.read(index::MCG_CAP), Ok(3 | 1 << 24));
    assert_eq!(machine.read(index::MCG_CTL), Err(GP), "not in MCG_CAP");
    assert_eq!(
        machine.file.read(index::MCG_CTL, HOST, &machine.features),
        Ok(0)
    );
    assert_eq!(machine.host_write(index::MCG_CTL, u64::MAX), Err(GP));
    assert_eq!(machine.host_write(index::MCG_CTL, 0), Ok(()));
    assert_eq!(
        machine.write(index::MCG_CAP, 3 | 1 << 24),
        Err(GP),
        "read-only"
    );
    assert_eq!(
        machine.host_write(index::MCG_CAP, 3),
        Err(GP),
        "KVM_X86_SETUP_MCE does that"
    );
    assert_eq!(machine.host_write(index::MCG_CAP, 3 | 1 << 24), Ok(()));
    let (status, address, beyond) = (0x409, 0x40a, 0x40c);
    assert_eq!(machine.read(0x400), Ok(u64::MAX), "enabled");
    for (value, good) in [
        (0, true),
        (!(1 << 10), true),
        (!1, true),
        (!2, false),
        (1, false),
    ] {
        assert_eq!(machine.write(0x400, value).is_ok(), good, "{value:#x}");
    }
    assert_eq!(machine.write(status, 1), Err(GP), "software only clears it");
    assert_eq!(machine.write(status, 0), Ok(()));
    assert_eq!(machine.host_write(status, 9), Ok(()));
    assert_eq!(machine.read(status), Ok(9));
    assert_eq!(machine.write(address, 0x1234), Ok(()));
    assert_eq!(machine.read(address), Ok(0x1234));
    assert_eq!(machine.read(beyond), Err(GP));
    assert_eq!(machine.host_write(beyond, 0), Err(GP));
    assert_eq!(machine.write(index::MCG_STATUS, 7), Ok(()));
    // HWCR.McStatusWrEn.
    assert_eq!(machine.write(index::HWCR, 1 << 18), Ok(()));
    assert_eq!(machine.write(status, 1), Ok(()));
    assert!(machine.file.mce.setup(1 | 1 << 8));
    assert_eq!(machine.read(index::MCG_CTL), Ok(u64::MAX));
    assert_eq!(machine.write(index::MCG_CTL, 0), Ok(()));
    assert_eq!(machine.write(index::MCG_CTL, 1), Err(GP));
    assert!(machine.file.mce.setup(MAX_BANKS as u64));
    assert_eq!(machine.read(0x47f), Ok(0));
}

#[test]
fn hardware_configuration() {
    let mut machine = Machine::new();
    for bit in 0..64 {
        let value = 1 << bit;
        let (ignored, kept) = ([3, 6, 8].contains(&bit), [18, 24, 35].contains(&bit));
        machine.host_write(index::HWCR, 0).unwrap();
        assert_eq!(
            machine.host_write(index::HWCR, value).is_ok(),
            ignored || kept,
            "bit {bit}"
        );
        assert_eq!(machine.read(index::HWCR), Ok(if kept { value } else { 0 }));
    }
    assert_eq!(feature(index::DE_CFG, 0), Some(2));
    assert_eq!(feature(index::PATCH_LEVEL, 77), Some(77));
    assert_eq!(feature(index::HWCR, 77), None);
    for &index in FEATURE_MSRS {
        let value = feature(index, 0x0a00_1234).unwrap();
        machine.host_write(index, value).unwrap();
        assert_eq!(machine.file.read(index, HOST, &full()), Ok(value));
    }
    assert_eq!(machine.write(index::DE_CFG, 1 << 9), Err(GP));
    assert_eq!(machine.write(index::DE_CFG, 0), Ok(()));
}

#[test]
fn read_only_and_ignored() {
    let mut machine = Machine::new();
    // MISC_ENABLE: the guest cannot claim performance monitoring.
    let reset = 1 << 11 | 1 << 12;
    assert_eq!(machine.write(index::MISC_ENABLE, reset | 1), Ok(()));
    assert_eq!(machine.read(index::MISC_ENABLE), Ok(reset | 1));
    assert_eq!(machine.write(index::MISC_ENABLE, 1), Err(GP));
    assert_eq!(machine.write(index::MISC_ENABLE, reset | 1 << 7), Ok(()));
    assert_eq!(machine.read(index::MISC_ENABLE), Ok(reset));
    assert_eq!(machine.host_write(index::MISC_ENABLE, 1), Ok(()));
    assert_eq!(machine.read(index::MISC_ENABLE), Ok(1));

    assert_eq!(machine.write(index::PLATFORM_INFO, 0), Err(GP));
    assert_eq!(machine.host_write(index::PLATFORM_INFO, 0xff00), Ok(()));
    assert_eq!(machine.read(index::PLATFORM_INFO), Ok(0xff00));

    // Microcode cannot be loaded, but trying does no harm.
    assert_eq!(machine.write(index::PATCH_LOADER, 0x1000), Ok(()));
    assert_eq!(machine.write(index::PATCH_LEVEL, 0), Ok(()));
    assert_eq!(machine.read(index::PATCH_LEVEL), Ok(0x0100_0065));

    for index in [index::SYSCFG, index::TOP_MEM2, index::MMIO_CFG_BASE] {
        assert_eq!(machine.write(index, 0), Ok(()));
        assert_eq!(machine.write(index, 1), Err(GP));
        assert_eq!(machine.host_write(index, 1), Err(GP));
    }
    for index in [index::IC_CFG, index::DC_CFG, index::PERF_LEGACY_LAST] {
        assert_eq!(machine.write(index, 1 << 14), Ok(()));
        assert_eq!(machine.read(index), Ok(0));
    }
    // AMD keeps 32 bits of TSC_AUX.
    assert_eq!(machine.write(index::TSC_AUX, 0xaaaa_5555_aaaa_5555), Ok(()));
    assert_eq!(machine.read(index::TSC_AUX), Ok(0xaaaa_5555));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// Whoever writes what to where: no panic, nothing changed by a write that fails, and what was
    /// written by the VMM can be read by it.
    #[test]
    fn hostile_accesses(
        accesses in prop::collection::vec(
            (prop_oneof![
                any::<u32>(),
                0_u32..0x1000,
                0xc000_0000_u32..0xc000_0200,
                0xc001_0000_u32..0xc001_1100,
                prop::sample::select(SAVED_MSRS.to_vec()),
            ], any::<u64>(), any::<bool>()),
            1..40,
        ),
        set: u64,
        max_phys_bits: u8,
    ) {
        let features = Features { set: Feature::from_bits_truncate(set), xcr0: 0, max_phys_bits };
        let mut file = MsrFile::new();
        for (index, value, host) in accesses {
            let origin = if host { HOST } else { GUEST };
            let before = file;
            let read = file.read(index, origin, &features);
            if !is_in_file(index) {
                prop_assert_eq!(read, Err(GP));
                if let MsrClass::Vmcb(msr) = classify(index) {
                    let _ = check_vmcb(msr, value, origin, &features);
                }
            }
            match file.write(index, value, origin, &features) {
                Err(error) => {
                    prop_assert_eq!(error, GP);
                    prop_assert!(file == before);
                }
                // All but three can be read then.
                Ok(()) if matches!(index, 0x79 | 0xc001_0020 | 0xc001_0115) => {}
                Ok(()) => prop_assert!(file.read(index, origin, &features).is_ok()),
            }
            // Writing back what was read changes nothing.
            let value = file.read(index, HOST, &features);
            if let Ok(value) = value {
                let before = file;
                let written = file.write(index, value, HOST, &features);
                prop_assert!(file == before, "{:#x}", index);
                prop_assert!(written.is_ok() || !SAVED_MSRS.contains(&index), "{:#x}", index);
            }
        }
    }
}

/// What was written into the guest's memory is not, after INIT.
#[test]
fn init_ends_the_paravirtual_records() {
    let mut file = MsrFile::new();
    file.pv_system_time = 0x1001;
    file.pv_steal_time = 0x2001;
    let features = full();
    file.write(index::PV_EOI, 0x3001, GUEST, &features).unwrap();
    assert_eq!(file.pv_eoi_gpa(), Some(0x3000));
    assert_eq!(file.pv_steal_gpa(), Some(0x2000));
    file.init();
    assert_eq!((file.pv_system_time, file.pv_steal_gpa()), (0, None));
    assert_eq!(file.pv_eoi_gpa(), None);
}

/// Reserved bits, and ways of delivery that CPUID does not offer.
#[test]
fn paravirtual_permissions() {
    let mut machine = Machine::new();
    for (index, good, bad) in [
        (index::PV_EOI, 0x1005, 0x1003),
        (index::PV_ASYNC_PF, 0x104f, 0x1011),
        (index::PV_ASYNC_PF_INT, 0xff, 0x100),
        (index::PV_POLL_CONTROL, 0, 2),
    ] {
        assert_eq!(machine.write(index, good), Ok(()), "{index:#x}");
        assert_eq!(machine.write(index, bad), Err(GP), "{index:#x}");
        assert_eq!(machine.host_write(index, bad), Err(GP), "{index:#x}");
        assert_eq!(machine.read(index), Ok(good), "{index:#x}");
    }
    assert!(!machine.file.pv_may_poll());
    assert_eq!(machine.write(index::PV_ASYNC_PF_ACK, 1), Ok(()));
    assert_eq!(machine.read(index::PV_ASYNC_PF_ACK), Ok(0));
    for (feature, value) in [
        (Feature::PV_ASYNC_PF_VMEXIT, 0x1005),
        (Feature::PV_ASYNC_PF_INT, 0x1009),
    ] {
        machine.features = full();
        machine.features.set -= feature;
        assert_eq!(machine.write(index::PV_ASYNC_PF, value), Err(GP));
        assert_eq!(machine.host_write(index::PV_ASYNC_PF, value), Ok(()));
    }
}

#[test]
fn errata_and_counters_of_models() {
    let mut machine = Machine::new();
    for index in [
        index::OSVW_LENGTH,
        index::OSVW_STATUS,
        0xc001_0200,
        0xc001_020b,
    ] {
        assert!(matches!(classify(index), MsrClass::File));
        machine.features.set = Feature::empty();
        assert_eq!(machine.read(index), Err(GP), "{index:x}");
        assert_eq!(machine.write(index, 0), Err(GP), "{index:x}");
        assert!(machine.host_write(index, 0).is_ok());
    }
    assert!(matches!(classify(0xc001_020c), MsrClass::Unknown));
    machine.features.set = Feature::OSVW | Feature::PERFCTR_CORE;
    // The host's CPU has errata 0 to 4, of which it leaves 0, 3 and 4 to a guest.
    machine.file.set_errata(5, 0b11111);
    assert_eq!(machine.read(index::OSVW_LENGTH), Ok(5));
    assert_eq!(machine.read(index::OSVW_STATUS), Ok(0b11001));
    assert_eq!(machine.write(index::OSVW_LENGTH, 5), Err(GP), "read-only");
    assert_eq!(machine.host_write(index::OSVW_STATUS, 1), Ok(()));
    assert_eq!(machine.read(index::OSVW_STATUS), Ok(1));
    // An old CPU knows fewer.
    machine.file.set_errata(0, 0);
    assert_eq!(machine.read(index::OSVW_LENGTH), Ok(3));
    // The counters stand still.
    for index in 0xc001_0200..0xc001_020c {
        assert_eq!(machine.write(index, 77), Ok(()));
        assert_eq!(machine.read(index), Ok(0));
    }
}

/// `KVM_X86_SET_MCE`.
#[test]
fn a_vmm_reports_machine_checks() {
    const VAL: u64 = 1 << 63;
    const OVERFLOW: u64 = 1 << 62;
    const UC: u64 = 1 << 61;
    const AR: u64 = 1 << 55;
    let corrected = |bank| Report {
        status: VAL | 0x11,
        addr: 0x1000,
        misc: 0x77,
        mcg_status: 0,
        bank,
    };
    let fatal = |bank| Report {
        status: VAL | UC | AR,
        addr: 0x2000,
        misc: 0x8c,
        mcg_status: 0b101,
        bank,
    };
    let bank = |mce: &Mce, number: u32| {
        let read = |register| {
            let mut machine = Machine::new();
            machine.file.mce = *mce;
            machine.read(0x401 + 4 * number + register).unwrap()
        };
        [read(0), read(1), read(2)]
    };
    let new = || {
        let mut mce = Mce::default();
        assert!(mce.setup(3 | 1 << 8));
        mce
    };

    let mut mce = new();
    let before = mce;
    assert_eq!(mce.report(&corrected(3), true), None, "no such bank");
    let nothing = Report::default();
    assert_eq!(mce.report(&nothing, true), None, "no error");
    assert_eq!(mce, before);

    // A corrected error is kept, and the next one takes its place.
    for overflow in [0, OVERFLOW] {
        assert_eq!(mce.report(&corrected(1), true), Some(Reported::Quiet));
        assert_eq!(bank(&mce, 1), [VAL | overflow | 0x11, 0x1000, 0x77]);
    }
    // One that was not corrected takes it, too, with #MC.
    let checked = Some(Reported::MachineCheck);
    assert_eq!(mce.report(&fatal(1), true), checked);
    assert_eq!(bank(&mce, 1), [VAL | OVERFLOW | UC | AR, 0x2000, 0x8c]);
    // And keeps it.
    assert_eq!(mce.report(&corrected(1), true), Some(Reported::Quiet));
    assert_eq!(bank(&mce, 1), [VAL | OVERFLOW | UC | AR, 0x2000, 0x8c]);
    // A second one before the guest has cleared MCIP.
    assert_eq!(mce.report(&fatal(0), true), Some(Reported::Shutdown));
    // CR4.MCE clear.
    assert_eq!(new().report(&fatal(0), false), Some(Reported::Shutdown));
    assert_eq!(new().report(&corrected(0), false), Some(Reported::Quiet));

    // The guest has turned reports off: of one bank, of all.
    for index in [0x400, index::MCG_CTL] {
        let mut machine = Machine::new();
        machine.file.mce = new();
        assert_eq!(machine.write(index, 0), Ok(()));
        let quiet = Some(Reported::Quiet);
        assert_eq!(machine.file.mce.report(&fatal(0), true), quiet);
        assert_eq!(machine.read(0x401), Ok(0));
    }
    // What needs no action at once is only kept.
    let deferred = Report {
        status: VAL | UC,
        mcg_status: 0,
        ..fatal(2)
    };
    let mut mce = new();
    assert_eq!(mce.report(&deferred, false), Some(Reported::Quiet));
    assert_eq!(bank(&mce, 2), [VAL | UC, 0x2000, 0x8c]);
}
