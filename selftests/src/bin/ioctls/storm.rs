// SPDX-License-Identifier: GPL-2.0-only

//! Level-triggered lines that nobody lets fall, and handlers that only end the interrupt: the rest
//! of the guest must get on all the same.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::time::Duration;

use kvm_bindings::*;
use selftests::kvm::{number, Handle};
use selftests::machine::with_signals;
use selftests::patience::wait;
use selftests::tap::{equal, skipped};

use crate::bare::{Bare, OUT};
use crate::irqchip::{pin_route, route};
use crate::vm::eventfd;
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a line of the IOAPIC is high for ever", ioapic),
    ("a line of the PIC is high for ever", pic),
    ("an irqfd that resamples hears of its own end", resampled),
];

/// Where the guest counts: in its main loop, and in its handler.
const MAIN: usize = 0x3000;
const HANDLED: usize = 0x3004;
/// So much the main loop has to count before the handler has counted so much. Without pauses it
/// gets on by one or two when a signal ends KVM_RUN.
const ENOUGH: u32 = 1000;
const MOST: u32 = 100_000;
const VECTOR: usize = 0x41;
/// What the slave makes of its input 2.
const PIC_VECTOR: usize = 0x42;
const PIN: u32 = 10;

/// Enables the local APIC, in x2APIC mode, and LINT0 for the PIC; tells so; counts for ever.
const CODE: &[u8] = &[
    0x66, 0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, 0x66, 0x0d, 0, 0x0c, 0, 0, 0x0f, 0x30, // APIC base
    0x66, 0xb9, 0x0f, 8, 0, 0, 0x66, 0xb8, 0xff, 1, 0, 0, 0x66, 0x31, 0xd2, 0x0f, 0x30, // SVR
    0x66, 0xb9, 0x35, 8, 0, 0, 0x66, 0xb8, 0, 7, 0, 0, 0x0f, 0x30, // LINT0
    OUT[0], OUT[1], 0xfb, // sti
    0x66, 0xff, 0x06, 0, 0x30, 0xeb, 0xf9, // 1: incl 3000h; jmp 1b
];

/// Counts, and ends the interrupt of the local APIC.
const APIC_HANDLER: &[u8] = &[
    0x66, 0xff, 0x06, 4, 0x30, // incl 3004h
    0x66, 0xb9, 0x0b, 8, 0, 0, 0x66, 0x31, 0xc0, 0x66, 0x31, 0xd2, 0x0f, 0x30, 0xcf,
];
/// Counts, and ends the interrupt of both PICs.
const PIC_HANDLER: &[u8] = &[
    0x66, 0xff, 0x06, 4, 0x30, // incl 3004h
    0xb0, 0x20, 0xe6, 0xa0, 0xe6, 0x20, 0xcf, // mov $20h, %al; out; out; iret
];

fn guest(path: &str, handler: &[u8]) -> Result<Bare, String> {
    let bare = Bare::with(path, CODE, |vm| {
        vm.call(number::CREATE_IRQCHIP, 0)?;
        Ok(())
    })?;
    for vector in [VECTOR, PIC_VECTOR] {
        bare.ram.write(vector * 4, &[0, 0x20, 0, 0]);
    }
    bare.ram.write(0x2000, handler);
    bare.ram.write(MAIN, &[0; 8]);
    equal("ready", bare.byte(), Ok(0))?;
    Ok(bare)
}

fn chip(vm: &Handle, chip_id: u32, change: impl FnOnce(&mut kvm_irqchip)) -> Result<(), String> {
    let mut chip = kvm_irqchip {
        chip_id,
        ..Default::default()
    };
    vm.exchange(number::GET_IRQCHIP, &mut chip)?;
    change(&mut chip);
    vm.set(number::SET_IRQCHIP, &chip)?;
    Ok(())
}

/// The IOAPIC has a level-triggered interrupt for the pin, and no PIC hears of it.
fn by_ioapic(vm: &Handle) -> Result<(), String> {
    const LEVEL: u64 = 1 << 15;
    chip(vm, KVM_IRQCHIP_IOAPIC, |chip| {
        // SAFETY: The chip is the IOAPIC.
        unsafe { chip.chip.ioapic.redirtbl[PIN as usize].bits = VECTOR as u64 | LEVEL };
    })?;
    route(vm, 0, &[pin_route(PIN, 2, PIN)])?;
    Ok(())
}

fn raise(vm: &Handle) -> Result<(), String> {
    let mut irq = kvm_irq_level {
        level: 1,
        ..Default::default()
    };
    irq.__bindgen_anon_1.irq = PIN;
    vm.set(number::IRQ_LINE, &irq)?;
    Ok(())
}

/// Runs the guest until its main loop has counted enough.
fn gets_on(bare: &Bare) -> Result<(), String> {
    let count = |at| {
        let bytes = bare.ram.read(at, 4);
        u32::from_le_bytes(bytes.try_into().unwrap_or_default())
    };
    wait("the main loop", || {
        // A signal comes now and then.
        let _ = with_signals(Duration::from_millis(100), || bare.vcpu.run());
        match (count(MAIN), count(HANDLED)) {
            (ENOUGH.., _) => Ok(Some(())),
            (main, MOST..) => Err(format!("{main} in {MOST} interrupts")),
            _ => Ok(None),
        }
    })
}

fn ioapic(path: &str) -> Result<(), String> {
    let bare = guest(path, APIC_HANDLER)?;
    by_ioapic(&bare.vm)?;
    raise(&bare.vm)?;
    gets_on(&bare)
}

fn pic(path: &str) -> Result<(), String> {
    if path.ends_with("/kvm") {
        return skipped("KVM gives the guest no room there");
    }
    let bare = guest(path, PIC_HANDLER)?;
    for (which, base, elcr) in [(0, 0x30, 0), (1, 0x40, 1 << (PIN - 8))] {
        chip(&bare.vm, which, |chip| {
            // SAFETY: The chip is a PIC.
            let pic = unsafe { &mut chip.chip.pic };
            (pic.irq_base, pic.elcr, pic.imr) = (base, elcr, 0);
        })?;
    }
    raise(&bare.vm)?;
    gets_on(&bare)
}

/// The eventfd that hears of the end is the one that raises the line.
fn resampled(path: &str) -> Result<(), String> {
    let bare = guest(path, APIC_HANDLER)?;
    by_ioapic(&bare.vm)?;
    let event: File = eventfd()?;
    let fd = event.as_raw_fd() as u32;
    let irqfd = kvm_irqfd {
        fd,
        gsi: PIN,
        flags: KVM_IRQFD_FLAG_RESAMPLE,
        resamplefd: fd,
        ..Default::default()
    };
    bare.vm.set(number::IRQFD, &irqfd)?;
    (&event)
        .write(&1u64.to_ne_bytes())
        .map_err(|e| e.to_string())?;
    gets_on(&bare)
}
