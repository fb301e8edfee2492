// SPDX-License-Identifier: GPL-2.0-only

//! What guests of KVM find by CPUID, or by trying: the end of interrupts without an exit, and the
//! host's time with the TSC of the same instant.

use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;

use kvm_bindings::*;
use selftests::kvm::{msrs, number, supported_cpuid, Handle, Number};
use selftests::snapshot::Snapshot;
use selftests::tap::{equal, skipped};

use crate::bare::{Bare, OUT};
use crate::irqchip::{pin_route, route, vm_msi};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    (
        "KVM_GET_SUPPORTED_CPUID has the paravirtual features that QEMU gives to every model",
        offered,
    ),
    ("a guest ends an interrupt without an exit", eoi),
    (
        "a guest ends an interrupt without an exit beside a snapshot",
        eoi_beside_a_snapshot,
    ),
    (
        "a page for it that cannot be written is seldom tried",
        unwritable,
    ),
    (
        "KVM_HC_CLOCK_PAIRING tells the time and the TSC of it",
        pairing,
    ),
    (
        "a wall clock at address 0 is none: a VMM that resets a guest writes nothing",
        no_wall_clock,
    ),
    (
        "the records of clocks go on from what the guest's memory has",
        records,
    ),
];

/// Bits of leaf 4000_0001, EAX.
const ASYNC_PF: u32 = 1 << 4;
const EOI: u32 = 1 << 6;
const POLL_CONTROL: u32 = 1 << 12;
const ASYNC_PF_INT: u32 = 1 << 14;

fn offered(path: &str) -> Result<(), String> {
    let device = Handle::open(path).map_err(|e| e.to_string())?;
    let leaves = supported_cpuid(&device)?;
    let leaf = leaves.iter().find(|leaf| leaf.function == 0x4000_0001);
    let eax = leaf.ok_or("no leaf")?.eax;
    let wanted = ASYNC_PF | EOI | POLL_CONTROL | ASYNC_PF_INT;
    equal("features", eax & wanted, wanted)
}

/// Where the guest keeps its byte, and the handler the byte that it has found.
const BYTE: usize = 0x3000;
const FOUND: usize = 0x5004;

/// Enables the local APIC, in x2APIC mode, and the byte; then sleeps, and writes out after each
/// interrupt what its handler has found.
const CODE: &[u8] = &[
    0x66, 0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, 0x66, 0x0d, 0, 0x0c, 0, 0, 0x0f, 0x30, // APIC base
    0x66, 0xb9, 0x0f, 8, 0, 0, 0x66, 0xb8, 0xff, 1, 0, 0, 0x66, 0x31, 0xd2, 0x0f, 0x30, // SVR
    0x66, 0xb9, 4, 0x4d, 0x56, 0x4b, 0x66, 0xb8, 1, 0x30, 0, 0, 0x0f,
    0x30, // 4b56_4d04 = 3001h
    OUT[0], OUT[1], // ready
    0xfb, 0xf4, 0xfa, // 1: sti; hlt; cli
    0xa0, 4, 0x50, OUT[0], OUT[1], // mov 5004h, %al; out
    0xeb, 0xf6, // jmp 1b
];

/// Notes the byte; clears it, or writes the EOI register if it was 0.
const HANDLER: &[u8] = &[
    0xa0, 0, 0x30, 0xa2, 4, 0x50, // mov 3000h, %al; mov %al, 5004h
    0x84, 0xc0, 0x74, 6, // test %al, %al; jz 1f
    0xc6, 6, 0, 0x30, 0,    // movb $0, 3000h
    0xcf, // iret
    0x66, 0xb9, 0x0b, 8, 0, 0, 0x66, 0x31, 0xc0, 0x66, 0x31, 0xd2, 0x0f, 0x30, // 1: EOI
    0xcf, // iret
];

/// The guest, when it is ready.
fn ender(path: &str) -> Result<Bare, String> {
    let bare = Bare::with(path, CODE, |vm| {
        vm.call(number::CREATE_IRQCHIP, 0)?;
        Ok(())
    })?;
    if bare.device.extension(KVM_CAP_IRQCHIP) == 0 {
        return skipped("the device has no in-kernel interrupt controllers");
    }
    for vector in [0x41, 0x51] {
        bare.ram.write(vector * 4, &[0, 0x20, 0, 0]);
    }
    bare.ram.write(0x2000, HANDLER);
    bare.ram.write(BYTE, &[0]);
    equal("ready", bare.byte(), Ok(1))?;
    Ok(bare)
}

/// The page faults of this thread, those that end in an error too.
struct PageFaults(File);

impl PageFaults {
    fn new() -> Option<Self> {
        const SOFTWARE: u64 = 1;
        const SIZE: u64 = 64;
        const PAGE_FAULTS: u64 = 2;
        let mut attributes = [0u64; 8];
        (attributes[0], attributes[1]) = (SOFTWARE | SIZE << 32, PAGE_FAULTS);
        let number = libc::SYS_perf_event_open;
        // SAFETY: It reads the attributes, as long as they say, and makes a file.
        let file = unsafe { libc::syscall(number, &attributes, 0, -1, -1, 0) } as i32;
        // SAFETY: The file is new.
        (file >= 0).then(|| Self(unsafe { File::from_raw_fd(file) }))
    }

    fn count(&self) -> u64 {
        let mut count = [0; 8];
        let _ = (&self.0).read(&mut count);
        u64::from_ne_bytes(count)
    }
}

/// The VMM has taken the page away, and later gives it back.
fn unwritable(path: &str) -> Result<(), String> {
    let bare = ender(path)?;
    let protect = |protection| {
        // SAFETY: The page is the guest's, and nothing in this program is in it.
        let answer = unsafe { libc::mprotect(bare.ram.start().add(BYTE).cast(), 4096, protection) };
        equal("mprotect", answer, 0)
    };
    let interrupt = || {
        vm_msi(&bare.vm, 0xfee0_0000, 0x41, 0)?;
        bare.byte()
    };
    equal("with the page", interrupt(), Ok(1))?;
    protect(libc::PROT_READ)?;
    let faults = PageFaults::new();
    let before = faults.as_ref().map(PageFaults::count);
    for _ in 0..200 {
        equal("without the page", interrupt(), Ok(0))?;
    }
    if let (Some(faults), Some(before)) = (&faults, before) {
        let tries = faults.count() - before;
        equal("more than a few tries", (tries, tries > 20), (tries, false))?;
    }
    protect(libc::PROT_READ | libc::PROT_WRITE)?;
    for _ in 0..2000 {
        if interrupt()? == 1 {
            return Ok(());
        }
    }
    Err("the page is never used again".into())
}

/// The page of the byte is kept once in each round, and put back.
fn eoi_beside_a_snapshot(path: &str) -> Result<(), String> {
    let bare = ender(path)?;
    if path.ends_with("/kvm") {
        return skipped("KVM has no snapshots");
    }
    let interrupt = || {
        vm_msi(&bare.vm, 0xfee0_0000, 0x41, 0)?;
        bare.byte()
    };
    bare.ram.write(BYTE + 1, &[0x5a]);
    let snapshot = Snapshot::create(&bare.vm, 1 << 20)?;
    for round in 0..4 {
        // The first one of a round may find that the page is still to be kept.
        interrupt()?;
        for _ in 0..3 {
            equal("an edge", interrupt(), Ok(1))?;
        }
        equal("the byte", bare.ram.read(BYTE, 2), vec![0, 0x5a])?;
        equal("pages", snapshot.reset(round & 1)? >= 2, true)?;
        equal("what was found is gone", bare.ram.read(FOUND, 1), vec![0])?;
    }
    drop(snapshot);
    equal("after it", interrupt(), Ok(1))
}

fn eoi(path: &str) -> Result<(), String> {
    const LEVEL: u64 = 1 << 15;
    let bare = ender(path)?;
    let after = |what: &str, found: u8| -> Result<(), String> {
        equal(what, bare.byte(), Ok(found))?;
        equal("the byte is cleared", bare.ram.read(BYTE, 1)[0], 0)?;
        let lapic: kvm_lapic_state = bare.vcpu.handle.get(number::GET_LAPIC)?;
        let in_service = (0..8).any(|i| (0..4).any(|j| lapic.regs[0x100 + 16 * i + j] != 0));
        equal("something is in service", in_service, false)
    };
    let send = |vector| vm_msi(&bare.vm, 0xfee0_0000, vector, 0);
    for _ in 0..5 {
        send(0x41)?;
        after("an edge", 1)?;
    }
    // The first of two ends by the register, or the other one would wait.
    for _ in 0..5 {
        send(0x41)?;
        send(0x51)?;
        after("two", 1)?;
        equal("only one at a time", bare.ram.read(FOUND, 1)[0], 1)?;
    }
    // The IOAPIC must hear of this one.
    let mut chip = kvm_irqchip {
        chip_id: KVM_IRQCHIP_IOAPIC,
        ..Default::default()
    };
    bare.vm.exchange(number::GET_IRQCHIP, &mut chip)?;
    // SAFETY: The chip is the IOAPIC.
    unsafe { chip.chip.ioapic.redirtbl[10].bits = 0x41 | LEVEL };
    bare.vm.set(number::SET_IRQCHIP, &chip)?;
    route(&bare.vm, 0, &[pin_route(10, 2, 10)])?;
    for _ in 0..5 {
        for level in [1, 0] {
            let mut irq = kvm_irq_level {
                level,
                ..Default::default()
            };
            irq.__bindgen_anon_1.irq = 10;
            bare.vm.set(number::IRQ_LINE, &irq)?;
        }
        after("a level", 0)?;
    }
    Ok(())
}

/// The host's clock source.
const SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";

/// Calls KVM_HC_CLOCK_PAIRING with this address and clock; the answer, and what is there.
fn pair(bare: &Bare, address: u32, clock: u8) -> Result<(i32, [u64; 4]), String> {
    let [a, b, c, d] = address.to_le_bytes();
    let code = [
        0x66, 0xb8, 9, 0, 0, 0, 0x66, 0xbb, a, b, c, d, // mov $9, %eax; mov $address, %ebx
        0x66, 0xb9, clock, 0, 0, 0, 0x0f, 0x01, 0xd9, // mov $clock, %ecx; vmmcall
        0x66, 0xa3, 0, 0xa0, OUT[0], OUT[1], // mov %eax, 0a000h; out
    ];
    bare.ram.write(crate::bare::CODE as usize, &code);
    bare.ram.write(PAIR, &[0xff; 64]);
    bare.start()?;
    bare.byte()?;
    let word = |at: usize| {
        let bytes = bare.ram.read(at, 8);
        u64::from_le_bytes(bytes.try_into().unwrap_or_default())
    };
    let answer = word(0xa000) as i32;
    Ok((answer, [0, 8, 16, 24].map(|offset| word(PAIR + offset))))
}

const PAIR: usize = 0xb000;

fn pairing(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &[])?;
    let source = std::fs::read_to_string(SOURCE).map_err(|e| e.to_string())?;
    if source.trim() != "tsc" {
        let (answer, _) = pair(&bare, PAIR as u32, 0)?;
        return equal("without the TSC", answer, -libc::EOPNOTSUPP);
    }
    let real = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map(|now| now.as_nanos() as u64).unwrap_or_default()
    };
    let tsc = || {
        let mut pair = [(0x10, 0)];
        msrs(&bare.vcpu.handle, number::GET_MSRS, &mut pair).map(|_| pair[0].1)
    };
    for _ in 0..10 {
        let before = (real(), tsc()?);
        let (answer, [sec, nsec, at, flags]) = pair(&bare, PAIR as u32, 0)?;
        let after = (real(), tsc()?);
        equal("answer", answer, 0)?;
        equal("flags", flags as u32, 0)?;
        let ns = sec * 1_000_000_000 + nsec;
        let between = (before.0..=after.0).contains(&ns) && (before.1..=after.1).contains(&at);
        equal(&format!("{ns} and {at} are of now"), between, true)?;
    }
    equal(
        "another clock",
        pair(&bare, PAIR as u32, 1)?.0,
        -libc::EOPNOTSUPP,
    )?;
    equal("a hole", pair(&bare, 0xd000_0000, 0)?.0, -libc::EFAULT)?;
    // Across two pages, and into a hole.
    equal("two pages", pair(&bare, 0xbfe0, 0)?.0, 0)?;
    let end = crate::bare::RAM as u32 - 32;
    equal("half a hole", pair(&bare, end, 0)?.0, -libc::EFAULT)
}

/// What a VMM sets at a reset, or for a guest that has no such clock, leaves memory alone.
fn no_wall_clock(path: &str) -> Result<(), String> {
    const RECORD: [u8; 12] = [0xa5; 12];
    let bare = Bare::new(path, &[OUT[0], OUT[1], 0xeb, 0xfc])?;
    bare.ram.write(0, &RECORD);
    let vcpu = &bare.vcpu.handle;
    let mut pairs = [0x11, 0x12, 0x4b56_4d00, 0x4b56_4d01].map(|msr| (msr, 0));
    equal("set", msrs(vcpu, number::SET_MSRS, &mut pairs), Ok(4))?;
    bare.byte()?;
    equal("at 0", bare.ram.read(0, RECORD.len()), RECORD.to_vec())
}

/// A guest that was saved while it read a record finds, where it goes on, that the record has
/// changed meanwhile, and is told until it has noticed that it was stopped.
fn records(path: &str) -> Result<(), String> {
    const KVMCLOCK_CTRL: Number = Number::plain(0xad);
    const WALL_CLOCK: u32 = 0x4b56_4d00;
    const SYSTEM_TIME: u32 = 0x4b56_4d01;
    const STOPPED: u8 = 1 << 1;
    let (time, wall, flags) = (0x4000, 0x4100, 0x4000 + 29);
    let bare = Bare::new(path, &[OUT[0], OUT[1], 0xeb, 0xfc])?;
    let vcpu = &bare.vcpu.handle;
    let renew = || -> Result<(), String> {
        let mut pairs = [(SYSTEM_TIME, time as u64 | 1), (WALL_CLOCK, wall as u64)];
        equal("set", msrs(vcpu, number::SET_MSRS, &mut pairs), Ok(2))?;
        bare.byte().map(|_| ())
    };
    for before in [0u32, 2, 3, 100, u32::MAX - 1, u32::MAX] {
        bare.ram.write(time, &before.to_le_bytes());
        bare.ram.write(wall, &before.to_le_bytes());
        renew()?;
        for at in [time, wall] {
            let bytes = bare.ram.read(at, 4).try_into().unwrap_or_default();
            let after = u32::from_le_bytes(bytes);
            let on = after % 2 == 0 && (1..=10).contains(&after.wrapping_sub(before));
            equal(&format!("{before} before, {after} after"), on, true)?;
        }
    }
    let stopped = || bare.ram.read(flags, 1)[0] & STOPPED != 0;
    vcpu.call(KVMCLOCK_CTRL, 0)?;
    bare.byte()?;
    equal("told", stopped(), true)?;
    renew()?;
    equal("not noticed", stopped(), true)?;
    bare.ram.write(flags, &[0]);
    renew()?;
    equal("noticed", stopped(), false)
}
