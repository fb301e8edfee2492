// SPDX-License-Identifier: GPL-2.0-only

//! The ACPI tables: processors, interrupt controllers, the serial port, PCI, power-off and reset,
//! and the machine's generation ID (ACPI specification 6.5, chapter 5).

use super::aml;
use crate::devices::power::{GPE_GENERATION, RESET_SYSTEM, SLEEP_TYPE_OFF};
use crate::layout::{
    ACPI, COM1, COM1_IRQ, COM_PORTS, GENERATION, GPE0, IOAPIC, LAPIC, PCI_CONFIG, PCI_CONFIG_PORTS,
    PCI_WINDOW, PCI_WINDOW_SIZE, PM1A_CONTROL, PM1A_EVENT, PM_TIMER, RESET_CONTROL, SCI_IRQ,
};

const OEM_ID: &[u8; 6] = b"PACIFI";
const OEM_TABLE_ID: &[u8; 8] = b"PACIFICA";
const OEM_REVISION: u32 = 1;
const CREATOR_ID: &[u8; 4] = b"PCFC";
const CREATOR_REVISION: u32 = 1;

/// Where a table's header has the length, and where the checksum.
const LENGTH_OFFSET: usize = 4;
const CHECKSUM_OFFSET: usize = 9;
/// Alignment of the tables.
const ALIGN: u64 = 16;
/// Alignment of the firmware control structure.
const FACS_ALIGN: u64 = 64;

/// The size of the root pointer, and of the part of it that version 1 had: it has its own checksum.
const ROOT_SIZE: usize = 36;
const ROOT_V1_SIZE: usize = 20;
const ROOT_V1_CHECKSUM_OFFSET: usize = 8;
const ROOT_CHECKSUM_OFFSET: usize = 32;

/// The tables as they are to lie in memory from [`Tables::ADDRESS`] on.
#[derive(Debug)]
pub(crate) struct Tables {
    /// All tables.
    pub(crate) bytes: Vec<u8>,
}

impl Tables {
    /// Where the tables begin: with the root pointer.
    pub(crate) const ADDRESS: u64 = ACPI;

    /// Makes the tables of a machine with this many processors.
    pub(crate) fn new(cpus: u32) -> Self {
        // The root pointer comes first, but can only be made last.
        let mut tables = Tables {
            bytes: vec![0; ROOT_SIZE],
        };
        let facs = tables.append(&facs(), FACS_ALIGN);
        let dsdt = tables.append(&dsdt(), ALIGN);
        let fadt = tables.append(&fadt(dsdt, facs), ALIGN);
        let madt = tables.append(&madt(cpus), ALIGN);
        let xsdt = tables.append(&xsdt(&[fadt, madt]), ALIGN);
        tables.bytes[..ROOT_SIZE].copy_from_slice(&root(xsdt));
        debug_assert!(Self::ADDRESS + tables.bytes.len() as u64 <= GENERATION);
        tables
    }

    /// Adds a table and returns its address.
    fn append(&mut self, table: &[u8], align: u64) -> u64 {
        let address = (Self::ADDRESS + self.bytes.len() as u64).next_multiple_of(align);
        self.bytes.resize((address - Self::ADDRESS) as usize, 0);
        self.bytes.extend(table);
        address
    }
}

/// Makes the bytes sum to zero, by way of the one at `offset`.
fn set_checksum(bytes: &mut [u8], offset: usize) {
    bytes[offset] = 0;
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[offset] = sum.wrapping_neg();
}

/// A table with its header (5.2.6).
fn table(signature: &[u8; 4], revision: u8, contents: &[u8]) -> Vec<u8> {
    let mut table = Vec::new();
    table.extend(signature);
    table.extend([0; 4]); // length
    table.extend([revision, 0]); // checksum
    table.extend(OEM_ID);
    table.extend(OEM_TABLE_ID);
    table.extend(OEM_REVISION.to_le_bytes());
    table.extend(CREATOR_ID);
    table.extend(CREATOR_REVISION.to_le_bytes());
    table.extend(contents);
    let length = table.len() as u32;
    table[LENGTH_OFFSET..LENGTH_OFFSET + 4].copy_from_slice(&length.to_le_bytes());
    set_checksum(&mut table, CHECKSUM_OFFSET);
    table
}

/// The root system description pointer (5.2.5.3).
fn root(xsdt: u64) -> [u8; ROOT_SIZE] {
    let mut root = Vec::new();
    root.extend(b"RSD PTR ");
    root.push(0); // checksum of the first part
    root.extend(OEM_ID);
    root.push(2); // revision
    root.extend([0; 4]); // no RSDT
    root.extend((ROOT_SIZE as u32).to_le_bytes());
    root.extend(xsdt.to_le_bytes());
    let mut bytes = [0; ROOT_SIZE];
    bytes[..root.len()].copy_from_slice(&root);
    set_checksum(&mut bytes[..ROOT_V1_SIZE], ROOT_V1_CHECKSUM_OFFSET);
    set_checksum(&mut bytes, ROOT_CHECKSUM_OFFSET);
    bytes
}

/// The list of tables (5.2.8).
fn xsdt(tables: &[u64]) -> Vec<u8> {
    let entries: Vec<u8> = tables
        .iter()
        .flat_map(|address| address.to_le_bytes())
        .collect();
    table(b"XSDT", 1, &entries)
}

/// The firmware control structure, which has no checksum (5.2.10).
fn facs() -> [u8; 64] {
    let mut facs = [0; 64];
    facs[..4].copy_from_slice(b"FACS");
    facs[4..8].copy_from_slice(&64u32.to_le_bytes());
    facs[32] = 2; // version
    facs
}

// FADT fixed feature flags (5.2.9, table 5.10).
const WBINVD: u32 = 1 << 0;
const PROC_C1: u32 = 1 << 2;
/// The sleep button is not fixed hardware, and so not there. The power button is.
const NO_FIXED_SLEEP_BUTTON: u32 = 1 << 5;
/// The clock's alarm cannot wake the machine through a fixed event.
const NO_FIXED_RTC: u32 = 1 << 6;
const TIMER_32_BITS: u32 = 1 << 8;
const RESET_REGISTER: u32 = 1 << 10;
const HEADLESS: u32 = 1 << 12;

// FADT boot architecture flags (table 5.11): there is an ISA bus, there is no VGA.
const LEGACY_DEVICES: u16 = 1 << 0;
const NO_VGA: u16 = 1 << 2;

/// The FADT's preferred profile of an enterprise server.
const PROFILE_SERVER: u8 = 4;
/// Latencies that say that C2 and C3 do not exist.
const NO_C2: u16 = 0xffff;
const NO_C3: u16 = 0xffff;
/// Where the CMOS memory has the century.
const RTC_CENTURY: u8 = 0x32;
/// The revision of the FADT.
const FADT_REVISION: u8 = 6;
const FADT_MINOR_REVISION: u8 = 5;

// The sizes of the register blocks, in bytes.
const PM1A_EVENT_SIZE: u8 = 4;
const PM1A_CONTROL_SIZE: u8 = 2;
const PM_TIMER_SIZE: u8 = 4;
const GPE0_SIZE: u8 = 2;

// Generic addresses (5.2.3.2): the space of I/O ports, and how wide accesses are.
const SPACE_IO: u8 = 1;
const ACCESS_BYTE: u8 = 1;
const ACCESS_WORD: u8 = 2;
const ACCESS_DWORD: u8 = 3;

/// The generic address of an I/O register of `size` bytes.
fn io_register(port: u16, size: u8, access: u8) -> [u8; 12] {
    let mut address = [0; 12];
    address[..4].copy_from_slice(&[SPACE_IO, size * 8, 0, access]);
    address[4..6].copy_from_slice(&port.to_le_bytes());
    address
}

/// The size of the FADT.
const FADT_SIZE: usize = 276;
/// The size of a table's header.
const HEADER_SIZE: usize = 36;

/// The fixed hardware: the PM1a registers, the timer, the reset register. The numbers are the
/// fields' offsets (5.2.9, table 5.9); what is not named stays 0 and means that it is not there.
/// There is no SMI command port: the machine is always in ACPI mode.
fn fadt(dsdt: u64, facs: u64) -> Vec<u8> {
    let flags = WBINVD
        | PROC_C1
        | NO_FIXED_SLEEP_BUTTON
        | NO_FIXED_RTC
        | TIMER_32_BITS
        | RESET_REGISTER
        | HEADLESS;
    let boot_flags = LEGACY_DEVICES | NO_VGA;
    let mut contents = [0; FADT_SIZE - HEADER_SIZE];
    let mut put = |offset: usize, bytes: &[u8]| {
        let start = offset - HEADER_SIZE;
        contents[start..start + bytes.len()].copy_from_slice(bytes);
    };
    put(45, &[PROFILE_SERVER]);
    put(46, &u16::from(SCI_IRQ).to_le_bytes());
    put(56, &u32::from(PM1A_EVENT).to_le_bytes());
    put(64, &u32::from(PM1A_CONTROL).to_le_bytes());
    put(76, &u32::from(PM_TIMER).to_le_bytes());
    put(80, &u32::from(GPE0).to_le_bytes());
    put(
        88,
        &[
            PM1A_EVENT_SIZE,
            PM1A_CONTROL_SIZE,
            0,
            PM_TIMER_SIZE,
            GPE0_SIZE,
        ],
    );
    put(96, &NO_C2.to_le_bytes());
    put(98, &NO_C3.to_le_bytes());
    put(108, &[RTC_CENTURY]);
    put(109, &boot_flags.to_le_bytes());
    put(112, &flags.to_le_bytes());
    put(116, &io_register(RESET_CONTROL, 1, ACCESS_BYTE));
    put(128, &[RESET_SYSTEM]);
    put(131, &[FADT_MINOR_REVISION]);
    put(132, &facs.to_le_bytes());
    put(140, &dsdt.to_le_bytes());
    put(148, &io_register(PM1A_EVENT, PM1A_EVENT_SIZE, ACCESS_WORD));
    put(
        172,
        &io_register(PM1A_CONTROL, PM1A_CONTROL_SIZE, ACCESS_WORD),
    );
    put(208, &io_register(PM_TIMER, PM_TIMER_SIZE, ACCESS_DWORD));
    put(220, &io_register(GPE0, GPE0_SIZE, ACCESS_BYTE));
    table(b"FACP", FADT_REVISION, &contents)
}

// MADT structure types (5.2.12).
const LOCAL_APIC: u8 = 0;
const IO_APIC: u8 = 1;
const INTERRUPT_OVERRIDE: u8 = 2;
const LOCAL_APIC_NMI: u8 = 4;
/// MADT flags: the machine also has two 8259 PICs.
const PCAT_COMPAT: u32 = 1 << 0;
/// Local APIC flags: the processor can be used.
const ENABLED: u32 = 1 << 0;
/// Interrupt flags: active high, level triggered.
const ACTIVE_HIGH_LEVEL: u16 = 0b11 << 2 | 0b01;
/// All processors.
const ALL_PROCESSORS: u8 = 0xff;
/// The number of the I/O APIC's first pin.
const FIRST_INTERRUPT: u32 = 0;
/// The revision of the MADT.
const MADT_REVISION: u8 = 5;

/// The processors and interrupt controllers.
fn madt(cpus: u32) -> Vec<u8> {
    let mut contents = Vec::new();
    contents.extend(LAPIC.to_le_bytes());
    contents.extend(PCAT_COMPAT.to_le_bytes());
    for id in (0..cpus).filter_map(|id| u8::try_from(id).ok()) {
        contents.extend([LOCAL_APIC, 8, id, id]);
        contents.extend(ENABLED.to_le_bytes());
    }
    contents.extend([IO_APIC, 12, io_apic_id(cpus), 0]);
    contents.extend(IOAPIC.to_le_bytes());
    contents.extend(FIRST_INTERRUPT.to_le_bytes());
    // ISA interrupts are wired one to one, so only the system control interrupt differs from the
    // default of edge-triggered pins.
    contents.extend([INTERRUPT_OVERRIDE, 10, 0, SCI_IRQ]);
    contents.extend(u32::from(SCI_IRQ).to_le_bytes());
    contents.extend(ACTIVE_HIGH_LEVEL.to_le_bytes());
    // Non-maskable interrupts come to LINT1.
    contents.extend([LOCAL_APIC_NMI, 6, ALL_PROCESSORS, 0, 0, 1]);
    table(b"APIC", MADT_REVISION, &contents)
}

/// The I/O APIC's number: behind those of the processors, within its four bits.
fn io_apic_id(cpus: u32) -> u8 {
    u8::try_from(cpus).map_or(0, |id| id & 0xf)
}

/// What a driver is told when the generation ID is another one.
const GENERATION_CHANGED: u8 = 0x80;
const _: () = assert!(GENERATION % 8 == 0 && GENERATION < 1 << 32);

/// The device with the address of the generation ID (Microsoft, "Virtual Machine Generation ID",
/// 2012): Linux's driver vmgenid.
fn generation() -> Vec<u8> {
    let address = [aml::dword(GENERATION as u32), aml::dword(0)];
    aml::device(
        b"VGEN",
        &[
            aml::name(b"_HID", &aml::string("PCFC0001")),
            aml::name(b"_CID", &aml::string("VM_Gen_Counter")),
            aml::name(b"_DDN", &aml::string("VM_Gen_Counter")),
            aml::name(b"ADDR", &aml::package(&address)),
        ],
    )
}

/// The definition block: the serial port, the PCI bus, the generation ID, and how to power off.
fn dsdt() -> Vec<u8> {
    let off = [SLEEP_TYPE_OFF, 0, 0, 0].map(aml::byte);
    let resources = [
        aml::ports(COM1, COM_PORTS as u8),
        aml::interrupt(COM1_IRQ as u8),
    ];
    let com1 = aml::device(
        b"COM1",
        &[
            aml::name(b"_HID", &aml::eisa_id(*b"PNP", 0x0501)),
            aml::name(b"_UID", &aml::byte(0)),
            aml::name(b"_CRS", &aml::resources(&resources)),
        ],
    );
    let resources = [
        aml::first_bus(),
        aml::ports(PCI_CONFIG, PCI_CONFIG_PORTS as u8),
        aml::memory(PCI_WINDOW, PCI_WINDOW_SIZE),
    ];
    let pci = aml::device(
        b"PCI0",
        &[
            aml::name(b"_HID", &aml::eisa_id(*b"PNP", 0x0a03)),
            aml::name(b"_UID", &aml::byte(0)),
            aml::name(b"_CRS", &aml::resources(&resources)),
        ],
    );
    let event: [u8; 4] = [b'_', b'E', b'0', b'0' + GPE_GENERATION];
    let changed = aml::notify(b"_SB_", b"VGEN", GENERATION_CHANGED);
    let contents = [
        aml::name(b"_S5_", &aml::package(&off)),
        aml::scope(b"_SB_", &[com1, pci, generation()].concat()),
        aml::scope(b"_GPE", &aml::method(&event, &changed)),
    ]
    .concat();
    table(b"DSDT", 2, &contents)
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

    fn find(tables: &Tables, address: u64, signature: &[u8; 4]) -> Vec<u8> {
        assert_eq!(&read::<4>(tables, address), signature);
        let length = u32::from_le_bytes(read(tables, address + 4)) as usize;
        let at = (address - Tables::ADDRESS) as usize;
        tables.bytes[at..at + length].to_vec()
    }

    #[test]
    fn every_table_is_reachable_and_sums_to_zero() {
        for cpus in [1, 2, 254] {
            let tables = Tables::new(cpus);
            assert!(Tables::ADDRESS + tables.bytes.len() as u64 <= GENERATION);
            assert_eq!(&tables.bytes[..8], b"RSD PTR ");
            assert_eq!(sum(&tables.bytes[..20]), 0);
            assert_eq!(sum(&tables.bytes[..36]), 0);

            let xsdt = find(
                &tables,
                u64::from_le_bytes(read(&tables, ACPI + 24)),
                b"XSDT",
            );
            assert_eq!(sum(&xsdt), 0);
            let entry =
                |n: usize| u64::from_le_bytes(xsdt[36 + 8 * n..44 + 8 * n].try_into().unwrap());
            assert_eq!(xsdt.len(), 36 + 2 * 8);
            let fadt = find(&tables, entry(0), b"FACP");
            let madt = find(&tables, entry(1), b"APIC");
            assert_eq!((sum(&fadt), sum(&madt)), (0, 0));
            let dsdt = u64::from_le_bytes(fadt[140..148].try_into().unwrap());
            assert_eq!(sum(&find(&tables, dsdt, b"DSDT")), 0);
            let facs = u64::from_le_bytes(fadt[132..140].try_into().unwrap());
            assert_eq!(facs % FACS_ALIGN, 0);
            assert_eq!(find(&tables, facs, b"FACS").len(), 64);
        }
    }

    #[test]
    fn the_madt_lists_the_processors() {
        let madt = madt(3);
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
