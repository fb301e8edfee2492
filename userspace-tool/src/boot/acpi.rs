// SPDX-License-Identifier: GPL-2.0-only

//! The ACPI tables: processors, interrupt controllers, the serial port, power-off and reset
//! (ACPI specification 6.5).

use acpi_tables::aml::{
    Device, EISAName, Interrupt, Name, Package, Path, ResourceTemplate, Scope, IO,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

use crate::devices::power::{RESET_SYSTEM, SLEEP_TYPE_OFF};
use crate::layout::{
    ACPI, ACPI_END, COM1, COM1_IRQ, COM_PORTS, IOAPIC, LAPIC, PM1A_CONTROL, PM1A_EVENT, PM_TIMER,
    RESET_CONTROL, SCI_IRQ,
};

const OEM_ID: [u8; 6] = *b"PACIFI";
const OEM_TABLE_ID: [u8; 8] = *b"PACIFICA";
const OEM_REVISION: u32 = 1;

/// The size of a table's header.
const HEADER: u32 = 36;
/// MADT flags: the machine also has two 8259 PICs.
const PCAT_COMPAT: u32 = 1 << 0;
/// FADT boot flags: there are devices on the ISA bus.
const LEGACY_DEVICES: u16 = 1 << 0;
/// FADT boot flags: there is no VGA.
const NO_VGA: u16 = 1 << 2;
/// FADT boot flags: message-signalled interrupts are not supported.
const NO_MSI: u16 = 1 << 3;
/// MADT structure type of an interrupt override.
const INTERRUPT_OVERRIDE: u8 = 2;
/// MADT structure type of the pin for non-maskable interrupts.
const LOCAL_APIC_NMI: u8 = 4;
/// MADT interrupt flags: active high, level triggered.
const ACTIVE_HIGH_LEVEL: u16 = 0b01 | 0b11 << 2;
/// Alignment of the tables.
const ALIGN: u64 = 16;
/// Alignment of the firmware control structure.
const FACS_ALIGN: u64 = 64;

/// The tables, and where they belong.
#[derive(Debug)]
pub(crate) struct Tables {
    /// All tables as they are to lie in memory from [`Tables::ADDRESS`] on.
    pub(crate) bytes: Vec<u8>,
}

impl Tables {
    /// Where the tables begin: with the root pointer.
    pub(crate) const ADDRESS: u64 = ACPI;

    /// Makes the tables of a machine with this many processors.
    pub(crate) fn new(cpus: u32) -> Self {
        let mut tables = Tables { bytes: Vec::new() };
        // The root pointer comes first, but can only be made last.
        let root_size = Rsdp::len();
        tables.bytes.resize(root_size, 0);

        let facs = tables.append(&FACS::new(), FACS_ALIGN);
        let dsdt = tables.append(&dsdt(), ALIGN);
        let fadt = tables.append(&fadt(dsdt, facs), ALIGN);
        let madt = tables.append(&madt(cpus), ALIGN);
        let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        xsdt.add_entry(fadt);
        xsdt.add_entry(madt);
        let xsdt = tables.append(&xsdt, ALIGN);

        let root = bytes(&Rsdp::new(OEM_ID, xsdt));
        tables.bytes[..root_size].copy_from_slice(&root);
        debug_assert!(Self::ADDRESS + tables.bytes.len() as u64 <= ACPI_END);
        tables
    }

    /// Adds a table and returns its address.
    fn append(&mut self, table: &dyn Aml, align: u64) -> u64 {
        let address = (Self::ADDRESS + self.bytes.len() as u64).next_multiple_of(align);
        self.bytes.resize((address - Self::ADDRESS) as usize, 0);
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

/// The bytes of a table or object.
fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

/// An I/O register of so many bytes.
fn io_register(port: u16, size: u8) -> GAS {
    let access = match size {
        1 => AccessSize::ByteAccess,
        2 => AccessSize::WordAccess,
        _ => AccessSize::DwordAccess,
    };
    GAS::new(AddressSpace::SystemIo, size * 8, 0, access, u64::from(port))
}

/// The fixed hardware: the PM1a registers, the timer, the reset register.
fn fadt(dsdt: u64, facs: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .firmware_ctrl_64(facs)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.sci_int = u16::from(SCI_IRQ).into();
    fadt.pm1a_evt_blk = u32::from(PM1A_EVENT).into();
    fadt.pm1a_cnt_blk = u32::from(PM1A_CONTROL).into();
    fadt.pm_tmr_blk = u32::from(PM_TIMER).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_len = 4;
    // Latencies above these limits say that C2 and C3 do not exist.
    fadt.p_lvl2_lat = 0xffff.into();
    fadt.p_lvl3_lat = 0xffff.into();
    fadt.iapc_boot_arch = (LEGACY_DEVICES | NO_VGA | NO_MSI).into();
    fadt.x_pm1a_evt_blk = GAS::new(
        AddressSpace::SystemIo,
        32,
        0,
        AccessSize::WordAccess,
        u64::from(PM1A_EVENT),
    );
    fadt.x_pm1a_cnt_blk = io_register(PM1A_CONTROL, 2);
    fadt.x_pm_tmr_blk = io_register(PM_TIMER, 4);
    fadt.reset_reg = io_register(RESET_CONTROL, 1);
    fadt.reset_value = RESET_SYSTEM;
    fadt.finalize()
}

/// The processors and interrupt controllers.
fn madt(cpus: u32) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", HEADER, 5, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.append_slice(&LAPIC.to_le_bytes());
    madt.append_slice(&PCAT_COMPAT.to_le_bytes());
    for id in (0..cpus).filter_map(|id| u8::try_from(id).ok()) {
        madt.append_slice(&bytes(&ProcessorLocalApic::new(
            id,
            id,
            EnabledStatus::Enabled,
        )));
    }
    madt.append_slice(&bytes(&IoApic::new(io_apic_id(cpus), IOAPIC, 0)));
    // ISA interrupts are wired one to one, so only the system control interrupt differs from the
    // default of edge-triggered pins.
    let mut sci = vec![INTERRUPT_OVERRIDE, 10, 0, SCI_IRQ];
    sci.dword(u32::from(SCI_IRQ));
    sci.word(ACTIVE_HIGH_LEVEL);
    madt.append_slice(&sci);
    // On all processors, non-maskable interrupts come to LINT1.
    madt.append_slice(&[LOCAL_APIC_NMI, 6, 0xff, 0, 0, 1]);
    madt
}

/// The I/O APIC's number: behind those of the processors, within its four bits.
fn io_apic_id(cpus: u32) -> u8 {
    u8::try_from(cpus).map_or(0, |id| id & 0xf)
}

/// The definition block: the serial port, the clock, and how to power off.
fn dsdt() -> Sdt {
    let zero = 0u8;
    let off = Name::new(
        Path::new("_S5_"),
        &Package::new(vec![&SLEEP_TYPE_OFF, &zero, &zero, &zero]),
    );
    let (hid, uid) = (EISAName::new("PNP0501"), zero);
    let (hid, uid) = (
        Name::new(Path::new("_HID"), &hid),
        Name::new(Path::new("_UID"), &uid),
    );
    let ports = IO::new(COM1, COM1, 0, COM_PORTS as u8);
    let interrupt = Interrupt::new(true, true, false, false, COM1_IRQ);
    let resources = Name::new(
        Path::new("_CRS"),
        &ResourceTemplate::new(vec![&ports, &interrupt]),
    );
    let com1 = Device::new(Path::new("COM1"), vec![&hid, &uid, &resources]);
    let scope = Scope::new(Path::new("_SB_"), vec![&com1]);
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, 6, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&bytes(&off));
    dsdt.append_slice(&bytes(&scope));
    dsdt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn read<const N: usize>(tables: &Tables, address: u64) -> [u8; N] {
        let at = (address - Tables::ADDRESS) as usize;
        tables.bytes[at..at + N].try_into().unwrap()
    }

    fn table(tables: &Tables, address: u64, signature: &[u8; 4]) -> Vec<u8> {
        assert_eq!(&read::<4>(tables, address), signature);
        let length = u32::from_le_bytes(read(tables, address + 4)) as usize;
        let at = (address - Tables::ADDRESS) as usize;
        tables.bytes[at..at + length].to_vec()
    }

    #[test]
    fn every_table_is_reachable_and_sums_to_zero() {
        for cpus in [1, 2, 254] {
            let tables = Tables::new(cpus);
            assert!(Tables::ADDRESS + tables.bytes.len() as u64 <= ACPI_END);
            assert_eq!(&tables.bytes[..8], b"RSD PTR ");
            assert_eq!(sum(&tables.bytes[..20]), 0);
            assert_eq!(sum(&tables.bytes[..36]), 0);

            let xsdt = table(
                &tables,
                u64::from_le_bytes(read(&tables, ACPI + 24)),
                b"XSDT",
            );
            assert_eq!(sum(&xsdt), 0);
            let entry =
                |n: usize| u64::from_le_bytes(xsdt[36 + 8 * n..44 + 8 * n].try_into().unwrap());
            assert_eq!(xsdt.len(), 36 + 2 * 8);
            let fadt = table(&tables, entry(0), b"FACP");
            let madt = table(&tables, entry(1), b"APIC");
            assert_eq!((sum(&fadt), sum(&madt)), (0, 0));
            let dsdt = u64::from_le_bytes(fadt[140..148].try_into().unwrap());
            assert_eq!(sum(&table(&tables, dsdt, b"DSDT")), 0);
            let facs = u64::from_le_bytes(fadt[132..140].try_into().unwrap());
            assert_eq!(facs % FACS_ALIGN, 0);
            assert_eq!(table(&tables, facs, b"FACS").len(), 64);
        }
    }

    #[test]
    fn the_madt_lists_the_processors() {
        let madt = bytes(&madt(3));
        let mut rest = &madt[44..];
        let mut ids = Vec::new();
        let mut kinds = Vec::new();
        while let [kind, length, ..] = *rest {
            if kind == 0 {
                ids.push((rest[2], rest[3]));
            }
            kinds.push(kind);
            rest = &rest[usize::from(length)..];
        }
        assert!(rest.is_empty());
        assert_eq!(ids, [(0, 0), (1, 1), (2, 2)]);
        assert_eq!(kinds, [0, 0, 0, 1, 2, 4]);
    }
}
