// SPDX-License-Identifier: GPL-2.0-only

//! The in-kernel interrupt controllers: made once and in time, state that is kept, routes,
//! irqfds and MSIs.

use std::io::Write;
use std::os::fd::AsRawFd;

use kvm_bindings::*;
use selftests::kvm::{number, Answer, Handle};
use selftests::tap::{equal, skipped};

use crate::bare::{vm, Bare, OUT};
use crate::vm::{eventfd, signalled};
use crate::{refused, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "without interrupt controllers their ioctls are refused",
        none,
    ),
    ("KVM_CREATE_IRQCHIP once, and before virtual CPUs", create),
    ("KVM_CAP_SPLIT_IRQCHIP once, and before virtual CPUs", split),
    (
        "KVM_CREATE_PIT2 once, and after the interrupt controllers",
        pit,
    ),
    (
        "KVM_SET_IRQCHIP keeps the state of PICs and IOAPIC",
        irqchip_state,
    ),
    ("KVM_SET_LAPIC keeps the local APIC's state", lapic_state),
    ("KVM_SET_MP_STATE with a local APIC", mp_state),
    ("KVM_INTERRUPT is refused with in-kernel PICs", no_interrupt),
    ("KVM_SET_GSI_ROUTING refuses bad routes", routing),
    ("KVM_IRQFD refuses bad arguments", irqfd_bad),
    ("KVM_IRQFD wakes a halted guest", irqfd),
    ("KVM_SIGNAL_MSI wakes a halted guest", msi),
];

fn has(path: &str, capability: u32) -> Result<bool, String> {
    let device = Handle::open(path).map_err(|e| e.to_string())?;
    Ok(device.extension(capability) > 0)
}

const NO_IRQCHIP: &str = "the device has no in-kernel interrupt controllers";

pub(crate) fn enable_split(vm: &Handle, pins: u64) -> Answer {
    let mut cap = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..Default::default()
    };
    cap.args[0] = pins;
    vm.set(number::ENABLE_CAP, &cap)
}

fn none(path: &str) -> Result<(), String> {
    let (_device, vm) = vm(path)?;
    let vcpu = vm.open_with(number::CREATE_VCPU, 0)?;
    let refused_somehow = |what: &str, answer: Answer| equal(what, answer.is_err(), true);
    refused(
        "KVM_IRQ_LINE",
        vm.set(number::IRQ_LINE, &kvm_irq_level::default()),
        libc::ENXIO,
    )?;
    refused_somehow(
        "KVM_GET_IRQCHIP",
        vm.exchange(number::GET_IRQCHIP, &mut kvm_irqchip::default()),
    )?;
    refused_somehow(
        "KVM_SET_IRQCHIP",
        vm.exchange(number::SET_IRQCHIP, &mut kvm_irqchip::default()),
    )?;
    refused_somehow(
        "KVM_GET_PIT2",
        vm.exchange(number::GET_PIT2, &mut kvm_pit_state2::default()),
    )?;
    refused_somehow(
        "KVM_SIGNAL_MSI",
        vm.set(number::SIGNAL_MSI, &kvm_msi::default()),
    )?;
    refused(
        "KVM_GET_LAPIC",
        vcpu.exchange(number::GET_LAPIC, &mut kvm_lapic_state::default()),
        libc::EINVAL,
    )
}

fn create(path: &str) -> Result<(), String> {
    if !has(path, KVM_CAP_IRQCHIP)? {
        return skipped(NO_IRQCHIP);
    }
    let (_device, first) = vm(path)?;
    equal("first", first.call(number::CREATE_IRQCHIP, 0), Ok(0))?;
    refused(
        "second",
        first.call(number::CREATE_IRQCHIP, 0),
        libc::EEXIST,
    )?;
    refused("split as well", enable_split(&first, 24), libc::EEXIST)?;
    let _vcpu = first.open_with(number::CREATE_VCPU, 0)?;
    refused(
        "second, and late",
        first.call(number::CREATE_IRQCHIP, 0),
        libc::EEXIST,
    )?;
    let (_device, late) = vm(path)?;
    let _vcpu = late.open_with(number::CREATE_VCPU, 0)?;
    refused("late", late.call(number::CREATE_IRQCHIP, 0), libc::EINVAL)
}

fn split(path: &str) -> Result<(), String> {
    if !has(path, KVM_CAP_SPLIT_IRQCHIP)? {
        return skipped("the device has no split irqchip");
    }
    let (_device, first) = vm(path)?;
    refused("too many pins", enable_split(&first, 100_000), libc::EINVAL)?;
    equal("first", enable_split(&first, 24), Ok(0))?;
    refused("second", enable_split(&first, 24), libc::EEXIST)?;
    refused(
        "full as well",
        first.call(number::CREATE_IRQCHIP, 0),
        libc::EEXIST,
    )?;
    let _vcpu = first.open_with(number::CREATE_VCPU, 0)?;
    refused(
        "full as well, and late",
        first.call(number::CREATE_IRQCHIP, 0),
        libc::EEXIST,
    )?;
    let (_device, late) = vm(path)?;
    let _vcpu = late.open_with(number::CREATE_VCPU, 0)?;
    equal("late is refused", enable_split(&late, 24).is_err(), true)
}

fn pit(path: &str) -> Result<(), String> {
    if !has(path, KVM_CAP_PIT2)? {
        return skipped("the device has no PIT");
    }
    let (_device, vm) = vm(path)?;
    let create = || vm.set(number::CREATE_PIT2, &kvm_pit_config::default());
    equal("without PICs", create().is_err(), true)?;
    vm.call(number::CREATE_IRQCHIP, 0)?;
    equal("first", create(), Ok(0))?;
    refused("second", create(), libc::EEXIST)?;
    let mut state: kvm_pit_state2 = vm.get(number::GET_PIT2)?;
    state.channels[2].count = 0x1234;
    state.channels[2].mode = 3;
    vm.set(number::SET_PIT2, &state)?;
    let got: kvm_pit_state2 = vm.get(number::GET_PIT2)?;
    equal(
        "channel 2",
        (got.channels[2].count, got.channels[2].mode),
        (0x1234, 3),
    )
}

fn irqchip_state(path: &str) -> Result<(), String> {
    if !has(path, KVM_CAP_IRQCHIP)? {
        return skipped(NO_IRQCHIP);
    }
    let (_device, vm) = vm(path)?;
    vm.call(number::CREATE_IRQCHIP, 0)?;
    for chip_id in [0, 1, 2] {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        vm.exchange(number::GET_IRQCHIP, &mut chip)?;
        // SAFETY: The id says which part of the union is meant.
        unsafe {
            if chip_id == 2 {
                chip.chip.ioapic.redirtbl[5].bits = 0x0100_0000_0001_a055;
            } else {
                chip.chip.pic.imr = 0x5a;
                chip.chip.pic.irq_base = 10;
                chip.chip.pic.elcr_mask = 0x7e;
            }
        }
        vm.exchange(number::SET_IRQCHIP, &mut chip)?;
        let mut got = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        vm.exchange(number::GET_IRQCHIP, &mut got)?;
        // SAFETY: As above.
        unsafe {
            if chip_id == 2 {
                equal(
                    "pin 5",
                    got.chip.ioapic.redirtbl[5].bits,
                    0x0100_0000_0001_a055,
                )?;
            } else {
                equal(
                    "PIC",
                    (
                        got.chip.pic.imr,
                        got.chip.pic.irq_base,
                        got.chip.pic.elcr_mask,
                    ),
                    (0x5a, 10, 0x7e),
                )?;
            }
        }
    }
    let mut bad = kvm_irqchip {
        chip_id: 3,
        ..Default::default()
    };
    refused(
        "get chip 3",
        vm.exchange(number::GET_IRQCHIP, &mut bad),
        libc::EINVAL,
    )?;
    refused(
        "set chip 3",
        vm.exchange(number::SET_IRQCHIP, &mut bad),
        libc::EINVAL,
    )
}

fn lapic_state(path: &str) -> Result<(), String> {
    if !has(path, KVM_CAP_IRQCHIP)? {
        return skipped(NO_IRQCHIP);
    }
    let (_device, vm) = vm(path)?;
    vm.call(number::CREATE_IRQCHIP, 0)?;
    let vcpu = vm.open_with(number::CREATE_VCPU, 3)?;
    let mut state: kvm_lapic_state = vcpu.get(number::GET_LAPIC)?;
    let byte = |state: &kvm_lapic_state, offset: usize| state.regs[offset] as u8;
    equal("the ID is the virtual CPU's", byte(&state, 0x23), 3)?;
    state.regs[0xf1] = 1; // spurious-interrupt register: enabled
    state.regs[0x320] = 0x31; // timer vector
    state.regs[0x322] = 1; // masked
    vcpu.set(number::SET_LAPIC, &state)?;
    let got: kvm_lapic_state = vcpu.get(number::GET_LAPIC)?;
    equal("enabled", byte(&got, 0xf1), 1)?;
    equal("timer", (byte(&got, 0x320), byte(&got, 0x322)), (0x31, 1))
}

fn mp_state(path: &str) -> Result<(), String> {
    if !has(path, KVM_CAP_IRQCHIP)? {
        return skipped(NO_IRQCHIP);
    }
    let (_device, vm) = vm(path)?;
    vm.call(number::CREATE_IRQCHIP, 0)?;
    let first = vm.open_with(number::CREATE_VCPU, 0)?;
    let second = vm.open_with(number::CREATE_VCPU, 1)?;
    let get = |vcpu: &Handle| {
        vcpu.get::<kvm_mp_state>(number::GET_MP_STATE)
            .map(|state| state.mp_state)
    };
    equal("the first runs", get(&first), Ok(KVM_MP_STATE_RUNNABLE))?;
    equal(
        "the second waits",
        get(&second),
        Ok(KVM_MP_STATE_UNINITIALIZED),
    )?;
    for mp_state in [
        KVM_MP_STATE_HALTED,
        KVM_MP_STATE_INIT_RECEIVED,
        KVM_MP_STATE_RUNNABLE,
    ] {
        second.set(number::SET_MP_STATE, &kvm_mp_state { mp_state })?;
        equal("kept", get(&second), Ok(mp_state))?;
    }
    Ok(())
}

fn no_interrupt(path: &str) -> Result<(), String> {
    if !has(path, KVM_CAP_IRQCHIP)? {
        return skipped(NO_IRQCHIP);
    }
    let (_device, vm) = vm(path)?;
    vm.call(number::CREATE_IRQCHIP, 0)?;
    let vcpu = vm.open_with(number::CREATE_VCPU, 0)?;
    refused(
        "vector 32",
        vcpu.set(number::INTERRUPT, &kvm_interrupt { irq: 32 }),
        libc::ENXIO,
    )
}

/// `KVM_SET_GSI_ROUTING` with these entries.
pub(crate) fn route(vm: &Handle, flags: u32, entries: &[kvm_irq_routing_entry]) -> Answer {
    #[repr(C)]
    struct Table {
        count: u32,
        flags: u32,
        entries: [kvm_irq_routing_entry; 4],
    }
    let mut table = Table {
        count: entries.len() as u32,
        flags,
        entries: Default::default(),
    };
    table.entries[..entries.len()].copy_from_slice(entries);
    // SAFETY: The table is as long as its count says.
    unsafe { vm.raw(number::SET_GSI_ROUTING, (&raw const table) as usize) }
}

pub(crate) fn msi_route(gsi: u32, vector: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi = kvm_irq_routing_msi {
        address_lo: 0xfee0_0000,
        data: vector,
        ..Default::default()
    };
    entry
}

pub(crate) fn pin_route(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    entry
}

fn routing(path: &str) -> Result<(), String> {
    if !has(path, KVM_CAP_IRQCHIP)? {
        return skipped(NO_IRQCHIP);
    }
    let (device, vm) = vm(path)?;
    vm.call(number::CREATE_IRQCHIP, 0)?;
    equal("none", route(&vm, 0, &[]), Ok(0))?;
    equal(
        "good",
        route(
            &vm,
            0,
            &[msi_route(0, 0x41), pin_route(1, 2, 5), pin_route(1, 0, 5)],
        ),
        Ok(0),
    )?;
    refused("flags", route(&vm, 1, &[]), libc::EINVAL)?;
    let limit = device.extension(KVM_CAP_IRQ_ROUTING) as u32;
    refused(
        "GSI",
        route(&vm, 0, &[msi_route(limit, 0x41)]),
        libc::EINVAL,
    )?;
    refused("pin", route(&vm, 0, &[pin_route(0, 2, 24)]), libc::EINVAL)?;
    refused("chip", route(&vm, 0, &[pin_route(0, 7, 0)]), libc::EINVAL)?;
    let unknown = kvm_irq_routing_entry {
        type_: 99,
        ..Default::default()
    };
    refused("type", route(&vm, 0, &[unknown]), libc::EINVAL)?;
    refused(
        "MSI twice",
        route(&vm, 0, &[msi_route(0, 0x41), msi_route(0, 0x42)]),
        libc::EINVAL,
    )
}

fn assign(vm: &Handle, event: &std::fs::File, gsi: u32, flags: u32) -> Answer {
    let fd = event.as_raw_fd() as u32;
    vm.set(
        number::IRQFD,
        &kvm_irqfd {
            fd,
            gsi,
            flags,
            ..Default::default()
        },
    )
}

fn irqfd_bad(path: &str) -> Result<(), String> {
    if !has(path, KVM_CAP_IRQCHIP)? || !has(path, KVM_CAP_IRQFD)? {
        return skipped("the device has no irqfd");
    }
    let (_device, vm) = vm(path)?;
    let event = eventfd()?;
    refused(
        "before the interrupt controllers",
        assign(&vm, &event, 5, 0),
        libc::EINVAL,
    )?;
    vm.call(number::CREATE_IRQCHIP, 0)?;
    refused("flags", assign(&vm, &event, 5, 0x100), libc::EINVAL)?;
    let file = std::fs::File::open("/proc/self/stat").map_err(|e| e.to_string())?;
    refused("no eventfd", assign(&vm, &file, 5, 0), libc::EINVAL)?;
    let bad = kvm_irqfd {
        fd: 999,
        gsi: 5,
        ..Default::default()
    };
    refused("no file", vm.set(number::IRQFD, &bad), libc::EBADF)?;
    equal("good", assign(&vm, &event, 5, 0), Ok(0))?;
    refused("twice", assign(&vm, &event, 6, 0), libc::EBUSY)?;
    equal(
        "taken away",
        assign(&vm, &event, 5, KVM_IRQFD_FLAG_DEASSIGN),
        Ok(0),
    )?;
    equal("again", assign(&vm, &event, 6, 0), Ok(0))
}

/// Real mode with the interrupt 0x41 led to an OUT of 0x77: enable the local APIC (by MSR, in
/// x2APIC mode), sti; 1: hlt; jmp 1b.
fn waiting(path: &str) -> Result<Bare, String> {
    let code = [
        0x66, 0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, 0x66, 0x0d, 0, 0x0c, 0, 0, 0x0f,
        0x30, // APIC base
        0x66, 0xb9, 0x0f, 8, 0, 0, 0x66, 0xb8, 0xff, 1, 0, 0, 0x66, 0x31, 0xd2, 0x0f,
        0x30, // enabled
        OUT[0], OUT[1], 0xfb, 0xf4, 0xeb, 0xfd,
    ];
    let bare = Bare::with(path, &code, |vm| {
        vm.call(number::CREATE_IRQCHIP, 0)?;
        Ok(())
    })?;
    bare.ram.write(0x41 * 4, &[0, 0x20, 0, 0]);
    // mov $0x77, %al; out; EOI: mov $0x80b, %ecx; xor %eax, %eax; wrmsr; iret
    bare.ram.write(
        0x2000,
        &[
            0xb0, 0x77, OUT[0], OUT[1], 0x66, 0xb9, 0x0b, 8, 0, 0, 0x66, 0x31, 0xc0, 0x0f, 0x30,
            0xcf,
        ],
    );
    equal("ready", bare.byte(), Ok(0xff))?;
    Ok(bare)
}

/// Wakes the waiting guest ten times, each time after it has answered the last.
fn wake(bare: &Bare, send: impl Fn() + Sync) -> Result<(), String> {
    for _ in 0..10 {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(20));
                send();
            });
            equal("the handler's byte", bare.byte(), Ok(0x77))
        })?;
    }
    Ok(())
}

fn irqfd(path: &str) -> Result<(), String> {
    if !has(path, KVM_CAP_IRQCHIP)? || !has(path, KVM_CAP_IRQFD)? {
        return skipped("the device has no irqfd");
    }
    let bare = waiting(path)?;
    route(&bare.vm, 0, &[msi_route(30, 0x41)])?;
    let event = eventfd()?;
    assign(&bare.vm, &event, 30, 0)?;
    // The event is an irqfd's: the kernel takes it.
    wake(&bare, || drop((&event).write(&1u64.to_ne_bytes())))?;
    assign(&bare.vm, &event, 30, KVM_IRQFD_FLAG_DEASSIGN)?;
    let _ = (&event).write(&1u64.to_ne_bytes());
    equal("the event stays here now", signalled(&event) > 0, true)
}

fn msi(path: &str) -> Result<(), String> {
    if !has(path, KVM_CAP_IRQCHIP)? {
        return skipped(NO_IRQCHIP);
    }
    let bare = waiting(path)?;
    let send = |address_lo, data, flags| vm_msi(&bare.vm, address_lo, data, flags);
    wake(&bare, || assert!(send(0xfee0_0000, 0x41, 0).is_ok()))?;
    equal("delivered", send(0xfee0_0000, 0x41, 0), Ok(1))?;
    equal(
        "to nobody",
        send(0xfee0_5000, 0x41, 0).unwrap_or(0) <= 0,
        true,
    )?;
    refused("flags", send(0xfee0_0000, 0x41, 0x100), libc::EINVAL)
}

pub(crate) fn vm_msi(vm: &Handle, address_lo: u32, data: u32, flags: u32) -> Answer {
    vm.set(
        number::SIGNAL_MSI,
        &kvm_msi {
            address_lo,
            data,
            flags,
            ..Default::default()
        },
    )
}
