// SPDX-License-Identifier: GPL-2.0-only

//! Where the VMM takes part in interrupts: its own PIC and IOAPIC beside local APICs of the kernel,
//! lines that it holds until it hears of the end, and what has to be decided before the first vCPU.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::time::Duration;

use kvm_bindings::*;
use selftests::kvm::{number, Answer, Handle};
use selftests::patience::wait;
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
    (
        "KVM_IRQFD_FLAG_RESAMPLE with an edge-triggered pin",
        resample_edge,
    ),
    (
        "all resampling irqfds of a line hear of the end",
        resample_many,
    ),
    (
        "an irqfd takes what is written from other readers",
        irqfd_takes,
    ),
    (
        "KVM_GET_MP_STATE shows a vCPU that was kicked as runnable",
        kicked,
    ),
    ("KVM_REINJECT_CONTROL needs a PIT", reinject),
    ("KVM_CAP_X2APIC_API takes known flags only", x2apic_api),
    ("an MSI reaches an APIC ID of more than 8 bits", wide_id),
    (
        "two NMIs for a vCPU that does not run are two, and three are two",
        two_nmis,
    ),
    (
        "KVM_IRQ_LINE_STATUS tells of ticks of the clock that are lost",
        clock_ticks,
    ),
    ("KVM_CREATE_IRQCHIP races KVM_CREATE_VCPU", race),
];

/// Enables the local APIC by MSR, in x2APIC mode, with LINT0 as ExtINT; tells so; sti; waits.
const CODE: [u8; 53] = [
    0x66, 0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, 0x66, 0x0d, 0, 0x0c, 0, 0, 0x0f, 0x30, // APIC base
    0x66, 0xb9, 0x0f, 8, 0, 0, 0x66, 0xb8, 0xff, 1, 0, 0, 0x66, 0x31, 0xd2, 0x0f, 0x30, // SVR
    0x66, 0xb9, 0x35, 8, 0, 0, 0x66, 0xb8, 0, 7, 0, 0, 0x0f, 0x30, // LINT0
    OUT[0], OUT[1], 0xfb, 0xf4, 0xeb, 0xfd,
];

/// A guest with that code, and 0x41 and 0x43 led to an OUT of 0x77 with an end of interrupt, which
/// it does when it runs on.
fn waiting(path: &str, prepare: impl FnOnce(&Handle) -> Answer) -> Result<Bare, String> {
    waiting_as(path, 0, prepare)
}

/// The same as virtual CPU `id`.
fn waiting_as(
    path: &str,
    id: u32,
    prepare: impl FnOnce(&Handle) -> Answer,
) -> Result<Bare, String> {
    let bare = Bare::with_id(path, &CODE, id, |vm| {
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

fn clock_ticks(path: &str) -> Result<(), String> {
    const RTC: u32 = 8;
    let bare = waiting(path, |vm| vm.call(number::CREATE_IRQCHIP, 0))?;
    for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        bare.vm.exchange(number::GET_IRQCHIP, &mut chip)?;
        chip.chip.pic.imr = 0xff;
        bare.vm.exchange(number::SET_IRQCHIP, &mut chip)?;
    }
    let mut chip = kvm_irqchip {
        chip_id: KVM_IRQCHIP_IOAPIC,
        ..Default::default()
    };
    bare.vm.exchange(number::GET_IRQCHIP, &mut chip)?;
    // SAFETY: The chip's number says which part of the union is meant.
    unsafe { chip.chip.ioapic.redirtbl[RTC as usize].bits = 0x41 };
    bare.vm.exchange(number::SET_IRQCHIP, &mut chip)?;
    let tick = || -> Result<i32, String> {
        let mut status = 0;
        for level in [1, 0] {
            let mut irq = kvm_irq_level {
                level,
                ..Default::default()
            };
            irq.__bindgen_anon_1.irq = RTC;
            bare.vm.exchange(number::IRQ_LINE_STATUS, &mut irq)?;
            if level == 1 {
                // SAFETY: That is what the ioctl answers.
                status = unsafe { irq.__bindgen_anon_1.status };
            }
        }
        Ok(status)
    };
    for _ in 0..2 {
        equal("the first tick", tick()?, 1)?;
        equal("before the handler", tick()?, 0)?;
        equal("the handler's byte", bare.byte(), Ok(0x77))?;
        equal("before the end", tick()?, 0)?;
        // The handler ends it, and the guest halts; an MSI shows that.
        vm_msi(&bare.vm, 0xfee0_0000, 0x43, 0)?;
        equal("the MSI's byte", bare.byte(), Ok(0x77))?;
    }
    Ok(())
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

/// A resampling irqfd of GSI 10: what raises the line, and what hears of the end.
struct Resampling {
    event: File,
    ended: File,
    irqfd: kvm_irqfd,
}

impl Resampling {
    fn new(vm: &Handle) -> Result<Self, String> {
        let (event, ended) = (eventfd()?, eventfd()?);
        let irqfd = kvm_irqfd {
            fd: event.as_raw_fd() as u32,
            gsi: 10,
            flags: KVM_IRQFD_FLAG_RESAMPLE,
            resamplefd: ended.as_raw_fd() as u32,
            ..Default::default()
        };
        vm.set(number::IRQFD, &irqfd)?;
        Ok(Self {
            event,
            ended,
            irqfd,
        })
    }

    fn raise(&self) -> Result<(), String> {
        let written = (&self.event).write(&1u64.to_ne_bytes());
        written.map(|_| ()).map_err(|e| e.to_string())
    }
}

/// A waiting guest whose IOAPIC has this entry for GSI 10, which is not the PIC's as well.
fn with_pin(path: &str, entry: u64) -> Result<Bare, String> {
    if !has(path, KVM_CAP_IRQFD_RESAMPLE)? {
        skipped("the device has no resampling irqfds")?;
    }
    let bare = waiting(path, |vm| vm.call(number::CREATE_IRQCHIP, 0))?;
    let mut chip = ioapic(&bare.vm)?;
    // SAFETY: The chip is the IOAPIC.
    unsafe { chip.chip.ioapic.redirtbl[10].bits = entry };
    bare.vm.set(number::SET_IRQCHIP, &chip)?;
    route(&bare.vm, 0, &[pin_route(10, 2, 10)])?;
    Ok(bare)
}

/// Whether GSI 10 is high.
fn is_high(vm: &Handle) -> Result<bool, String> {
    // SAFETY: The chip is the IOAPIC.
    Ok(unsafe { ioapic(vm)?.chip.ioapic.irr } & 1 << 10 != 0)
}

/// Waits until GSI 10 has this level: KVM is a little late sometimes.
fn becomes(what: &str, vm: &Handle, level: bool) -> Result<(), String> {
    wait(what, || Ok((is_high(vm)? == level).then_some(())))
}

/// The guest ends the interrupt that it handles, and gets another one.
fn go_on(bare: &Bare) -> Result<(), String> {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            assert!(vm_msi(&bare.vm, 0xfee0_0000, 0x43, 0).is_ok());
        });
        equal("the other interrupt", bare.byte(), Ok(0x77))
    })
}

const LEVEL: u64 = 1 << 15;

fn resample(path: &str) -> Result<(), String> {
    let bare = with_pin(path, 0x41 | LEVEL)?;
    let line = Resampling::new(&bare.vm)?;
    for round in 0..5 {
        line.raise()?;
        equal("the handler's byte", bare.byte(), Ok(0x77))?;
        equal(
            "the end is told once it is there",
            signalled(&line.ended),
            0,
        )?;
        go_on(&bare)?;
        equal(
            "the end is told",
            (round, signalled(&line.ended)),
            (round, 1),
        )?;
        equal("the line is down", is_high(&bare.vm), Ok(false))?;
    }
    // A line that is held falls with its irqfd.
    line.raise()?;
    becomes("held", &bare.vm, true)?;
    let mut irqfd = line.irqfd;
    irqfd.flags = KVM_IRQFD_FLAG_DEASSIGN;
    bare.vm.set(number::IRQFD, &irqfd)?;
    equal("let go", is_high(&bare.vm), Ok(false))?;
    // And with its eventfd.
    let line = Resampling::new(&bare.vm)?;
    line.raise()?;
    becomes("held again", &bare.vm, true)?;
    drop(line.event);
    becomes("closed", &bare.vm, false)
}

fn resample_edge(path: &str) -> Result<(), String> {
    let bare = with_pin(path, 0x41)?;
    let line = Resampling::new(&bare.vm)?;
    for round in 0..3 {
        line.raise()?;
        equal("the handler's byte", bare.byte(), Ok(0x77))?;
        go_on(&bare)?;
        equal(
            "the end is told",
            (round, signalled(&line.ended)),
            (round, 1),
        )?;
    }
    Ok(())
}

fn resample_many(path: &str) -> Result<(), String> {
    let bare = with_pin(path, 0x41 | LEVEL)?;
    let lines: Vec<Resampling> = (0..200)
        .map(|_| Resampling::new(&bare.vm))
        .collect::<Result<_, _>>()?;
    for _ in 0..3 {
        lines[7].raise()?;
        equal("the handler's byte", bare.byte(), Ok(0x77))?;
        go_on(&bare)?;
        let heard = lines.iter().map(|line| signalled(&line.ended));
        equal(
            "all hear of it once",
            heard.filter(|n| *n == 1).count(),
            200,
        )?;
        equal("the line is down", is_high(&bare.vm), Ok(false))?;
    }
    Ok(())
}

/// How often the thread has gone to sleep.
fn sleeps(thread: i32) -> Result<u64, String> {
    let status = std::fs::read_to_string(format!("/proc/self/task/{thread}/status"));
    let status = status.map_err(|e| e.to_string())?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    let count = line.and_then(|count| count.trim().parse().ok());
    count.ok_or_else(|| "no count".into())
}

fn irqfd_takes(path: &str) -> Result<(), String> {
    if !has(path, KVM_CAP_IRQCHIP)? {
        return skipped("the device has no in-kernel interrupt controllers");
    }
    let (_device, vm) = vm(path)?;
    vm.call(number::CREATE_IRQCHIP, 0)?;
    let event = eventfd()?;
    // SAFETY: Takes no pointer. The reader is to wait.
    unsafe { libc::fcntl(event.as_raw_fd(), libc::F_SETFL, 0) };
    let mut irqfd = kvm_irqfd {
        fd: event.as_raw_fd() as u32,
        gsi: 10,
        ..Default::default()
    };
    vm.set(number::IRQFD, &irqfd)?;
    let write = || {
        (&event)
            .write(&1u64.to_ne_bytes())
            .map_err(|e| e.to_string())
    };
    std::thread::scope(|scope| {
        let (say, hear) = std::sync::mpsc::channel();
        let event = &event;
        scope.spawn(move || {
            // SAFETY: Takes nothing.
            let _ = say.send(unsafe { libc::gettid() });
            signalled(event)
        });
        let reader = hear.recv().map_err(|e| e.to_string())?;
        let pause = || std::thread::sleep(Duration::from_millis(2));
        (0..25).for_each(|_| pause());
        let before = sleeps(reader)?;
        for _ in 0..50 {
            write()?;
            pause();
        }
        let after = sleeps(reader);
        irqfd.flags = KVM_IRQFD_FLAG_DEASSIGN;
        vm.set(number::IRQFD, &irqfd)?;
        write()?;
        equal("the reader sleeps on", after? - before < 10, true)
    })
}

fn kicked(path: &str) -> Result<(), String> {
    /// `KVM_HC_KICK_CPU` for APIC 1.
    const KICK: [u8; 20] = [
        0x66, 0xb8, 5, 0, 0, 0, 0x66, 0x31, 0xdb, 0x66, 0xb9, 1, 0, 0, 0, 0x0f, 0x01, 0xd9, OUT[0],
        OUT[1],
    ];
    if !has(path, KVM_CAP_IRQCHIP)? {
        return skipped("the device has no in-kernel interrupt controllers");
    }
    let bare = Bare::with(path, &KICK, |vm| {
        vm.call(number::CREATE_IRQCHIP, 0)?;
        Ok(())
    })?;
    let other = bare.vm.open_with(number::CREATE_VCPU, 1)?;
    // KVM does not find a local APIC that nothing was done to.
    let lapic: kvm_lapic_state = other.get(number::GET_LAPIC)?;
    other.set(number::SET_LAPIC, &lapic)?;
    let state = || {
        other
            .get(number::GET_MP_STATE)
            .map(|s: kvm_mp_state| s.mp_state)
    };
    let mp_state = KVM_MP_STATE_HALTED;
    other.set(number::SET_MP_STATE, &kvm_mp_state { mp_state })?;
    equal("before", state(), Ok(KVM_MP_STATE_HALTED))?;
    equal("the call's result", bare.byte(), Ok(0))?;
    equal("kicked", state(), Ok(KVM_MP_STATE_RUNNABLE))?;
    equal("still", state(), Ok(KVM_MP_STATE_RUNNABLE))
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
    let send = |address_hi| vm.set(number::SIGNAL_MSI, &msi(address_hi));
    refused("an address", send(1), libc::EINVAL)?;
    equal("to nobody", send(0x100).unwrap_or(0) <= 0, true)
}

/// An MSI finds the vCPU whose APIC ID has more than 8 bits, and none that has the same low ones.
fn wide_id(path: &str) -> Result<(), String> {
    const ID: u32 = 0x12c;
    if !has(path, KVM_CAP_X2APIC_API)? {
        return skipped("the device has no KVM_CAP_X2APIC_API");
    }
    let bare = waiting_as(path, ID, |vm| {
        let mut cap = kvm_enable_cap {
            cap: KVM_CAP_X2APIC_API,
            ..Default::default()
        };
        cap.args[0] = 1;
        vm.set(number::ENABLE_CAP, &cap)?;
        vm.call(number::CREATE_IRQCHIP, 0)
    })?;
    let send = |id: u32| {
        let msi = kvm_msi {
            address_lo: 0xfee0_0000 | (id & 0xff) << 12,
            address_hi: id & !0xff,
            data: 0x41,
            ..Default::default()
        };
        bare.vm.set(number::SIGNAL_MSI, &msi)
    };
    for id in [ID & 0xff, ID + 0x100, ID + 0x1_0000, ID + 1] {
        equal("to nobody", send(id).unwrap_or(0) <= 0, true)?;
    }
    for _ in 0..3 {
        equal("delivered", send(ID), Ok(1))?;
        equal("the handler's byte", bare.byte(), Ok(0x77))?;
    }
    Ok(())
}

/// A CPU keeps one NMI beside the one that it is about to take.
fn two_nmis(path: &str) -> Result<(), String> {
    if !has(path, KVM_CAP_IRQCHIP)? {
        return skipped("the device has no in-kernel interrupt controllers");
    }
    let bare = Bare::with(path, &OUT, |vm| {
        vm.call(number::CREATE_IRQCHIP, 0)?;
        Ok(())
    })?;
    let nmi = kvm_msi {
        address_lo: 0xfee0_0000,
        data: 0x400,
        ..Default::default()
    };
    for (sent, kept) in [(1, 1), (2, 2), (3, 2)] {
        for _ in 0..sent {
            equal("delivered", bare.vm.set(number::SIGNAL_MSI, &nmi), Ok(1))?;
        }
        let mut events: kvm_vcpu_events = bare.vcpu.handle.get(number::GET_VCPU_EVENTS)?;
        equal("NMIs that wait", events.nmi.pending, kept)?;
        events.nmi.pending = 0;
        events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING;
        bare.vcpu.handle.set(number::SET_VCPU_EVENTS, &events)?;
    }
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
