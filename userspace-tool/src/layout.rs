// SPDX-License-Identifier: GPL-2.0-only

//! Every address, port and interrupt number of the virtual machine, in one place.

/// One mebibyte.
pub(crate) const MIB: u64 = 1 << 20;
/// One gibibyte.
pub(crate) const GIB: u64 = 1 << 30;
/// Size of a page.
pub(crate) const PAGE_SIZE: u64 = 4096;

// Guest memory below 1 MiB, in ascending order.

/// The global descriptor table that the first processor starts with.
pub(crate) const GDT: u64 = 0x500;
/// The PVH start-of-day structure.
pub(crate) const PVH_START_INFO: u64 = 0x6000;
/// The PVH module list (the initrd).
pub(crate) const PVH_MODULES: u64 = 0x6100;
/// The PVH memory map.
pub(crate) const PVH_MEMORY_MAP: u64 = 0x6200;
/// The Linux boot parameters ("zero page").
pub(crate) const ZERO_PAGE: u64 = 0x7000;
/// The stack that the first processor starts with (it grows down).
pub(crate) const BOOT_STACK: u64 = 0x8ff0;
/// The identity-mapping page tables: one PML4 page, one PDPT page, four page directories.
pub(crate) const PML4: u64 = 0x9000;
/// The page-directory-pointer table.
pub(crate) const PDPT: u64 = 0xa000;
/// The first of four page directories, of 2 MiB pages.
pub(crate) const PAGE_DIRECTORIES: u64 = 0xb000;
/// How many page directories there are: each maps 1 GiB.
pub(crate) const PAGE_DIRECTORY_COUNT: u64 = 4;
/// The kernel command line.
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// Room for the command line, with its terminating NUL.
pub(crate) const COMMAND_LINE_SIZE: u64 = 0x1_0000;
/// Where a PC keeps its extended BIOS data area: usable memory below 1 MiB ends here.
pub(crate) const LOW_MEMORY_END: u64 = 0x9_fc00;
/// The ACPI tables, the root pointer first. Systems search for it from here on.
pub(crate) const ACPI: u64 = 0xe_0000;
/// Where the ACPI tables must end.
pub(crate) const ACPI_END: u64 = 0x10_0000;

/// The page with the machine's generation ID, behind the tables.
pub(crate) const GENERATION: u64 = ACPI_END - PAGE_SIZE;

/// High memory: where kernels are loaded.
pub(crate) const HIGH_MEMORY: u64 = MIB;
/// The gap for memory-mapped devices below 4 GiB.
pub(crate) const MMIO_GAP: u64 = 3 * GIB;
/// Memory that does not fit below the gap goes on here.
pub(crate) const ABOVE_4G: u64 = 4 * GIB;

/// The registers of PCI devices: one after the other from here on.
pub(crate) const PCI_WINDOW: u32 = 0xc000_0000;
/// The size of the window: up to where other devices may be.
pub(crate) const PCI_WINDOW_SIZE: u32 = 0x1000_0000;

/// The I/O APIC.
pub(crate) const IOAPIC: u32 = 0xfec0_0000;
/// The local APIC.
pub(crate) const LAPIC: u32 = 0xfee0_0000;
/// One page that a KVM on VMX needs for its identity map; never visible to the guest.
pub(crate) const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that a KVM on VMX needs for its TSS; never visible to the guest.
pub(crate) const TSS: u64 = 0xfffb_d000;

/// The first serial port.
pub(crate) const COM1: u16 = 0x3f8;
/// The interrupt of the first serial port.
pub(crate) const COM1_IRQ: u32 = 4;
/// How many ports a 16550 has.
pub(crate) const COM_PORTS: u16 = 8;
/// The real-time clock's index and data ports.
pub(crate) const RTC: u16 = 0x70;
/// The keyboard controller's command port; of the controller, only reset is there.
pub(crate) const I8042_COMMAND: u16 = 0x64;
/// The debug-exit port: a guest that writes to it ends the run.
pub(crate) const DEBUG_EXIT: u16 = 0xf4;
/// The PCI configuration ports: address at +0, data at +4.
pub(crate) const PCI_CONFIG: u16 = 0xcf8;
/// How many ports these are.
pub(crate) const PCI_CONFIG_PORTS: u16 = 8;
/// The reset control register, a byte in the middle of the PCI configuration address.
pub(crate) const RESET_CONTROL: u16 = 0xcf9;
/// The ACPI PM1a event block: status, then enable.
pub(crate) const PM1A_EVENT: u16 = 0x600;
/// The ACPI PM1a control register.
pub(crate) const PM1A_CONTROL: u16 = 0x604;
/// The ACPI power-management timer.
pub(crate) const PM_TIMER: u16 = 0x608;
/// The ACPI general-purpose events: a byte of status, a byte that enables.
pub(crate) const GPE0: u16 = 0x60c;
/// How many ports the ACPI blocks take together.
pub(crate) const PM_PORTS: u16 = 14;
/// How many pins the I/O APIC has. Messages have the interrupt numbers behind them.
pub(crate) const IOAPIC_PINS: u32 = 24;
/// The ACPI system control interrupt.
pub(crate) const SCI_IRQ: u8 = 9;
