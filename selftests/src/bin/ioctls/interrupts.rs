// SPDX-License-Identifier: GPL-2.0-only

//! Where the VMM takes part in interrupts: its own PIC and IOAPIC beside local APICs of the kernel,
//! lines that it holds until it hears of the end, and what has to be decided before the first vCPU.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::time::Duration;

use kvm_bindings::*;
use selftests::kvm::{number, Answer, Handle};
use selftests::tap::{equal, skipped};

use crate::bare::{vm, Bare, OUT};
use crate::irqchip::{enable_split, msi_route, pin_route, route, vm_msi};
use crate::vm::{eventfd, signalled};
use crate::{refused, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "KVM_EXIT_IOAPIC_EOI tells of the end of a level-triggered interrupt",
        eoi,
    ),
    (
        "KVM_INTERRUPT and the interrupt window with a local APIC",
        external,
    ),
    ("a split irqchip takes routes of MSIs only", split_routes),
    (
        "KVM_IRQFD_FLAG_RESAMPLE lets the line fall and tells so",
        resample,
    ),
    ("KVM_REINJECT_CONTROL needs a PIT", reinject),
    (
        "KVM_REGISTER_COALESCED_MMIO refuses bad zones",
        coalesced_zones,
    ),
    ("KVM_CAP_X2APIC_API takes known flags only", x2apic_api),
    ("KVM_CREATE_IRQCHIP races KVM_CREATE_VCPU", race),
];

/// Enables the local APIC by MSR, in x2APIC mode, with LINT0 as ExtINT; tells so; sti; waits.
const CODE: [u8; 53] = [
    0x66, 0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, 0x66, 0x0d, 0, 0x0c, 0, 0, 0x0f, 0x30, // APIC base
    0x66, 0xb9, 0x0f, 8, 0, 0, 0x66, 0xb8, 0xff, 1, 0, 0, 0x66, 0x31, 0xd2, 0x0f, 0x30, // SVR
    0x66, 0xb9, 0x35, 8, 0, 0, 0x66, 0xb8, 0, 7, 0, 0, 0x0f, 0x30, // LINT0
    OUT[0], OUT[1], 0xfb, 0xf4, 0xeb, 0xfd,
];

/// A guest with that code, and 0x41 and 0x43 led to an OUT of 0x77 with an end of interrupt, which it does
/// when it runs on.
fn waiting(path: &str, prepare: impl FnOnce(&Handle) -> Answer) -> Result<Bare, String> {
    let bare = Bare::with(path, &CODE, |vm| {
        prepare(vm)?;
        Ok(())
    })?;
    for vector in [0x41, 0x43] {
        bare.ram.write(vector * 4, &[0, 0x20, 0, 0]);
    }
    bare.ram.write(
        0x2000,
        &[
            0xb0, 0x77, OUT[0], OUT[1], 0x66, 0xb9, 0x0b, 8, 0, 0, 0x66, 0x31, 0xc0, 0x66, 0x31,
            0xd2, 0x0f, 0x30, 0xcf,
        ],
    );
    equal("ready", bare.byte(), Ok(0))?;
    Ok(bare)
}

fn has(path: &str, capability: u32) -> Result<bool, String> {
    let device = Handle::open(path).map_err(|e| e.to_string())?;
    Ok(device.extension(capability) > 0)
}

fn line(vm: &Handle, gsi: u32, level: u32) -> Answer {
    let mut irq = kvm_irq_level {
        level,
        ..Default::default()
    };
    irq.__bindgen_anon_1.irq = gsi;
    vm.set(number::IRQ_LINE, &irq)
}

fn eoi(path: &str) -> Result<(), String> {
    const LEVEL: u32 = 1 << 15;
    if !has(path, KVM_CAP_SPLIT_IRQCHIP)? {
        return skipped("the device has no split irqchip");
    }
    let bare = waiting(path, |vm| enable_split(vm, 24))?;
    route(&bare.vm, 0, &[msi_route(4, 0x41 | LEVEL)])?;
    for _ in 0..5 {
        line(&bare.vm, 4, 1)?;
        equal("the handler's byte", bare.byte(), Ok(0x77))?;
        equal("the reason", bare.exit(), Ok(KVM_EXIT_IOAPIC_EOI))?;
        let shared = bare.vcpu.shared();
        // SAFETY: The exit reason says which part of the union is meant.
        let vector = unsafe { shared.__bindgen_anon_1.eoi.vector };
        equal("the vector", vector, 0x41)?;
    }
    Ok(())
}

fn external(path: &str) -> Result<(), String> {
    if !has(path, KVM_CAP_SPLIT_IRQCHIP)? {
        return skipped("the device has no split irqchip");
    }
    let bare = waiting(path, |vm| enable_split(vm, 24))?;
    let interrupt = |irq| {
        bare.vcpu
            .handle
            .set(number::INTERRUPT, &kvm_interrupt { irq })
    };
    let ready = || bare.vcpu.shared().ready_for_interrupt_injection;
    equal("not ready with interrupts off", ready(), 0)?;
    for _ in 0..3 {
        bare.vcpu
            .share(|shared| shared.request_interrupt_window = 1);
        equal("the window", bare.exit(), Ok(KVM_EXIT_IRQ_WINDOW_OPEN))?;
        equal("ready", ready(), 1)?;
        bare.vcpu
            .share(|shared| shared.request_interrupt_window = 0);
        equal("one", interrupt(0x41), Ok(0))?;
        refused("a second", interrupt(0x42), libc::EEXIST)?;
        equal("the handler's byte", bare.byte(), Ok(0x77))?;
    }
    refused("a vector", interrupt(256), libc::EINVAL)
}

fn split_routes(path: &str) -> Result<(), String> {
    if !has(path, KVM_CAP_SPLIT_IRQCHIP)? {
        return skipped("the device has no split irqchip");
    }
    let (_device, vm) = vm(path)?;
    enable_split(&vm, 24)?;
    let pin = pin_route(0, 2, 4);
    refused("a pin", route(&vm, 0, &[pin]), libc::EINVAL)?;
    equal("an MSI", route(&vm, 0, &[msi_route(0, 0x41)]), Ok(0))?;
    refused(
        "the chips' state",
        vm.exchange(number::GET_IRQCHIP, &mut kvm_irqchip::default()),
        libc::ENXIO,
    )?;
    let pit = vm.set(number::CREATE_PIT2, &kvm_pit_config::default());
    equal("a PIT", pit.is_err(), true)?;
    let event = eventfd()?;
    let resampling = kvm_irqfd {
        fd: event.as_raw_fd() as u32,
        gsi: 4,
        flags: KVM_IRQFD_FLAG_RESAMPLE,
        resamplefd: event.as_raw_fd() as u32,
        ..Default::default()
    };
    refused(
        "resampling",
        vm.set(number::IRQFD, &resampling),
        libc::EINVAL,
    )
}

/// The IOAPIC's state.
fn ioapic(vm: &Handle) -> Result<kvm_irqchip, String> {
    let mut chip = kvm_irqchip {
        chip_id: KVM_IRQCHIP_IOAPIC,
        ..Default::default()
    };
    vm.exchange(number::GET_IRQCHIP, &mut chip)?;
    Ok(chip)
}

fn resample(path: &str) -> Result<(), String> {
    const LEVEL: u64 = 1 << 15;
    if !has(path, KVM_CAP_IRQFD_RESAMPLE)? {
        return skipped("the device has no resampling irqfds");
    }
    let bare = waiting(path, |vm| vm.call(number::CREATE_IRQCHIP, 0))?;
    let mut chip = ioapic(&bare.vm)?;
    // SAFETY: The chip is the IOAPIC.
    unsafe { chip.chip.ioapic.redirtbl[10].bits = 0x41 | LEVEL };
    bare.vm.set(number::SET_IRQCHIP, &chip)?;
    // Not to the PIC as well.
    route(&bare.vm, 0, &[pin_route(10, 2, 10)])?;
    let (event, ended) = (eventfd()?, eventfd()?);
    let mut irqfd = kvm_irqfd {
        fd: event.as_raw_fd() as u32,
        gsi: 10,
        flags: KVM_IRQFD_FLAG_RESAMPLE,
        resamplefd: ended.as_raw_fd() as u32,
        ..Default::default()
    };
    bare.vm.set(number::IRQFD, &irqfd)?;
    let is_high = || -> Result<bool, String> {
        // SAFETY: The chip is the IOAPIC.
        Ok(unsafe { ioapic(&bare.vm)?.chip.ioapic.irr } & 1 << 10 != 0)
    };
    for round in 0..5 {
        (&event)
            .write(&1u64.to_ne_bytes())
            .map_err(|e| e.to_string())?;
        equal("the handler's byte", bare.byte(), Ok(0x77))?;
        equal("the end is told once it is there", signalled(&ended), 0)?;
        // The guest ends it, and then gets something else.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                assert!(vm_msi(&bare.vm, 0xfee0_0000, 0x43, 0).is_ok());
            });
            equal("the other interrupt", bare.byte(), Ok(0x77))
        })?;
        equal("the end is told", (round, signalled(&ended)), (round, 1))?;
        equal("the line is down", is_high(), Ok(false))?;
    }
    // A line that is held falls with its irqfd.
    (&event)
        .write(&1u64.to_ne_bytes())
        .map_err(|e| e.to_string())?;
    // KVM raises it a little later.
    for _ in 0..100 {
        if is_high()? {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    equal("held", is_high(), Ok(true))?;
    irqfd.flags = KVM_IRQFD_FLAG_DEASSIGN;
    bare.vm.set(number::IRQFD, &irqfd)?;
    equal("let go", is_high(), Ok(false))
}

fn reinject(path: &str) -> Result<(), String> {
    if !has(path, KVM_CAP_REINJECT_CONTROL)? {
        return skipped("the device has no KVM_REINJECT_CONTROL");
    }
    let (_device, vm) = vm(path)?;
    let control = kvm_reinject_control::default();
    // The number says that there is no argument, but there is one.
    // SAFETY: The kernel reads the structure.
    let set = || unsafe {
        vm.raw(
            number::REINJECT_CONTROL,
            std::ptr::from_ref(&control) as usize,
        )
    };
    refused("no chips", set(), libc::ENXIO)?;
    vm.call(number::CREATE_IRQCHIP, 0)?;
    refused("no PIT", set(), libc::ENXIO)?;
    vm.set(number::CREATE_PIT2, &kvm_pit_config::default())?;
    equal("a PIT", set(), Ok(0))
}

fn coalesced_zones(path: &str) -> Result<(), String> {
    if !has(path, KVM_CAP_COALESCED_MMIO)? {
        return skipped("the device has no coalesced MMIO");
    }
    let (_device, vm) = vm(path)?;
    let zone = |pio| kvm_coalesced_mmio_zone {
        addr: 0xd000_0000,
        size: 0x1000,
        __bindgen_anon_1: kvm_coalesced_mmio_zone__bindgen_ty_1 { pio },
    };
    let register = number::REGISTER_COALESCED_MMIO;
    refused("a third kind", vm.set(register, &zone(2)), libc::EINVAL)?;
    for _ in 0..50 {
        equal("memory", vm.set(register, &zone(0)), Ok(0))?;
        equal("ports", vm.set(register, &zone(1)), Ok(0))?;
    }
    Ok(())
}

fn x2apic_api(path: &str) -> Result<(), String> {
    let (device, vm) = vm(path)?;
    let known = device.extension(KVM_CAP_X2APIC_API);
    if known == 0 {
        return skipped("the device has no KVM_CAP_X2APIC_API");
    }
    let enable = |flags: u64| {
        let mut cap = kvm_enable_cap {
            cap: KVM_CAP_X2APIC_API,
            ..Default::default()
        };
        cap.args[0] = flags;
        vm.set(number::ENABLE_CAP, &cap)
    };
    refused("an unknown flag", enable(1 << 20), libc::EINVAL)?;
    equal("wide IDs", enable(1), Ok(0))?;
    vm.call(number::CREATE_IRQCHIP, 0)?;
    // Bits 7:0 of the upper half of an address must be zero now.
    let msi = |address_hi| kvm_msi {
        address_lo: 0xfee0_0000,
        address_hi,
        data: 0x41,
        ..Default::default()
    };
    refused(
        "an address",
        vm.set(number::SIGNAL_MSI, &msi(1)),
        libc::EINVAL,
    )?;
    let _ = vm.set(number::SIGNAL_MSI, &msi(0x100));
    Ok(())
}

/// Either the interrupt controllers come first, and the vCPU has a local APIC, or they are refused.
fn race(path: &str) -> Result<(), String> {
    if !has(path, KVM_CAP_IRQCHIP)? {
        return skipped("the device has no in-kernel interrupt controllers");
    }
    for _ in 0..300 {
        let (_device, vm) = vm(path)?;
        let start = std::sync::Barrier::new(2);
        let (vcpu, chips) = std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                start.wait();
                vm.open_with(number::CREATE_VCPU, 0)
            });
            start.wait();
            let chips = vm.call(number::CREATE_IRQCHIP, 0);
            (other.join(), chips)
        });
        let vcpu = vcpu.map_err(|_| "the thread died")??;
        let lapic: Answer<kvm_lapic_state> = vcpu.get(number::GET_LAPIC);
        equal("a local APIC", lapic.is_ok(), chips.is_ok())?;
    }
    Ok(())
}
