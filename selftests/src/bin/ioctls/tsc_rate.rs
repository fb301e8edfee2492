// SPDX-License-Identifier: GPL-2.0-only

//! A guest whose TSC runs at another rate than the host's: KVM_CAP_TSC_CONTROL.

use std::arch::x86_64::_rdtsc;

use kvm_bindings::*;
use selftests::kvm::{msrs, number, Handle};
use selftests::patience::wait;
use selftests::tap::{equal, skipped};

use crate::bare::{vm, Bare, OUT};
use crate::time::{attribute, tsc};
use crate::{refused, Test};

pub(crate) const TESTS: &[Test] = &[
    ("KVM_SET_TSC_KHZ: which rates there are", rates),
    (
        "KVM_SET_TSC_KHZ: the guest's TSC runs at that rate",
        counting,
    ),
    ("KVM_SET_TSC_KHZ: vCPUs of one rate are equal", together),
    (
        "KVM_SET_TSC_KHZ: the paravirtual clock keeps the time",
        clock,
    ),
    (
        "KVM_SET_TSC_KHZ: a TSC deadline comes at that rate",
        deadline,
    ),
];

/// Where the guest stores what it has read: by RDTSC, and by RDMSR.
const BY_RDTSC: usize = 0x3000;
const BY_RDMSR: usize = 0x3008;

/// 1: rdtsc; mov %eax, 3000h; mov %edx, 3004h; mov $10h, %ecx; rdmsr; mov %eax, 3008h;
/// mov %edx, 300ch; out; jmp 1b
const READER: &[u8] = &[
    0x0f, 0x31, 0x66, 0xa3, 0, 0x30, 0x66, 0x89, 0x16, 4, 0x30, // RDTSC
    0x66, 0xb9, 0x10, 0, 0, 0, 0x0f, 0x32, // RDMSR
    0x66, 0xa3, 8, 0x30, 0x66, 0x89, 0x16, 0xc, 0x30, OUT[0], OUT[1], 0xeb, 0xe0,
];

fn word(bare: &Bare, at: usize) -> u64 {
    u64::from_le_bytes(bare.ram.read(at, 8).try_into().unwrap_or_default())
}

fn host_tsc() -> u64 {
    // SAFETY: The instruction reads a counter.
    unsafe { _rdtsc() }
}

/// A guest that reads its TSC, and the host's rate. Nothing without the capability.
fn reader(path: &str) -> Result<(Bare, u64), String> {
    let bare = Bare::new(path, READER)?;
    control(&bare.device)?;
    let khz = bare.vcpu.handle.call(number::GET_TSC_KHZ, 0)? as u64;
    Ok((bare, khz))
}

fn control(device: &Handle) -> Result<(), String> {
    let vm = device.extension(KVM_CAP_VM_TSC_CONTROL);
    equal("of the VM, too", vm, device.extension(KVM_CAP_TSC_CONTROL))?;
    match vm {
        0 => skipped("the CPU has no TSC ratio, or it is not used"),
        _ => Ok(()),
    }
}

/// What the CPU makes of its TSC (APM vol. 2, 15.30.5).
fn scale(tsc: u64, khz: u64, host: u64) -> u64 {
    let ratio = match khz.abs_diff(host) <= host / 4000 {
        true => 1 << 32,
        false => (khz << 32) / host,
    };
    ((u128::from(tsc) * u128::from(ratio)) >> 32) as u64
}

fn offset(vcpu: &Handle) -> Result<u64, String> {
    let mut offset = 0;
    attribute(vcpu, number::GET_DEVICE_ATTR, 0, &mut offset)?;
    Ok(offset)
}

fn rates(path: &str) -> Result<(), String> {
    let (device, vm) = vm(path)?;
    control(&device)?;
    let khz = vm.call(number::GET_TSC_KHZ, 0)? as u64;
    let refuse = |of: &Handle| -> Result<(), String> {
        for khz in [256 * khz, u64::from(u32::MAX)] {
            let answer = of.call(number::SET_TSC_KHZ, khz);
            refused(&format!("{khz} kHz"), answer, libc::EINVAL)?;
        }
        Ok(())
    };
    refuse(&vm)?;
    equal("set", vm.call(number::SET_TSC_KHZ, 3 * khz), Ok(0))?;
    equal("get", vm.call(number::GET_TSC_KHZ, 0)? as u64, 3 * khz)?;
    let vcpu = vm.open_with(number::CREATE_VCPU, 0)?;
    let get = || Ok::<_, String>(vcpu.call(number::GET_TSC_KHZ, 0)? as u64);
    equal("a new vCPU's", get()?, 3 * khz)?;
    refused("too late", vm.call(number::SET_TSC_KHZ, khz), libc::EINVAL)?;
    refuse(&vcpu)?;
    // Within 250 ppm it is the host's, but not called so.
    for its in [khz / 2, khz, khz + khz / 5000, 100 * khz] {
        equal("set", vcpu.call(number::SET_TSC_KHZ, its), Ok(0))?;
        equal("get", get()?, its)?;
    }
    equal("zero", vcpu.call(number::SET_TSC_KHZ, 0), Ok(0))?;
    equal("means the host's", get()?, khz)?;
    equal(
        "the VM's stays",
        vm.call(number::GET_TSC_KHZ, 0)? as u64,
        3 * khz,
    )
}

fn counting(path: &str) -> Result<(), String> {
    let (bare, host) = reader(path)?;
    let vcpu = &bare.vcpu.handle;
    // The last one again is the host's: no guest leaves its ratio to the next.
    for khz in [host / 3, 2 * host, 200 * host, host + 1, host / 1000, host] {
        equal("set", vcpu.call(number::SET_TSC_KHZ, khz), Ok(0))?;
        for _ in 0..3 {
            let offset = offset(vcpu)?;
            let at = |tsc| scale(tsc, khz, host).wrapping_add(offset);
            let first = host_tsc();
            bare.byte()?;
            let middle = host_tsc();
            let by_vmm = tsc(vcpu)?;
            let last = host_tsc();
            for (what, from, to, value) in [
                ("RDTSC", first, middle, word(&bare, BY_RDTSC)),
                ("RDMSR", first, middle, word(&bare, BY_RDMSR)),
                ("KVM_GET_MSRS", middle, last, by_vmm),
            ] {
                let (least, most) = (at(from), at(to));
                let inside = value.wrapping_sub(least) <= most.wrapping_sub(least);
                let what = format!("{what} at {khz} kHz: {value}, of {least} to {most}");
                equal(&what, inside, true)?;
            }
        }
        // Both begin at zero when the VM is made, and the VMM can set them.
        equal(
            "set the TSC",
            msrs(vcpu, number::SET_MSRS, &mut [(0x10, 1 << 50)]),
            Ok(1),
        )?;
        equal("it is set", tsc(vcpu)? >> 50, 1)?;
    }
    Ok(())
}

fn together(path: &str) -> Result<(), String> {
    let (device, vm) = vm(path)?;
    control(&device)?;
    let khz = vm.call(number::GET_TSC_KHZ, 0)? as u64;
    let create = |id| -> Result<Handle, String> {
        let vcpu = vm.open_with(number::CREATE_VCPU, id)?;
        equal("set", vcpu.call(number::SET_TSC_KHZ, 5 * khz / 3), Ok(0))?;
        Ok(vcpu)
    };
    let (a, b) = (create(0)?, create(1)?);
    equal("both begin together", offset(&a)?, offset(&b)?)?;
    let set = |vcpu: &Handle, value| msrs(vcpu, number::SET_MSRS, &mut [(0x10, value)]);
    equal("set", set(&a, 1 << 45), Ok(1))?;
    equal("zero joins the last", set(&b, 0), Ok(1))?;
    equal("both", offset(&a)?, offset(&b)?)?;
    let c = create(2)?;
    equal("a third", offset(&a)?, offset(&c)?)
}

fn clock(path: &str) -> Result<(), String> {
    const SYSTEM_TIME: u32 = 0x4b56_4d01;
    const PAGE: usize = 0x4000;
    let (bare, host) = reader(path)?;
    let get = || -> Result<(u64, bool), String> {
        let clock: kvm_clock_data = bare.vm.get(number::GET_CLOCK)?;
        Ok((clock.clock, clock.flags & KVM_CLOCK_TSC_STABLE != 0))
    };
    if !get()?.1 {
        return skipped("the host's clock is not the TSC");
    }
    let vcpu = &bare.vcpu.handle;
    let on = PAGE as u64 | 1;
    equal(
        "on",
        msrs(vcpu, number::SET_MSRS, &mut [(SYSTEM_TIME, on)]),
        Ok(1),
    )?;
    for khz in [3 * host, host / 3, host + 1] {
        equal("set", vcpu.call(number::SET_TSC_KHZ, khz), Ok(0))?;
        for _ in 0..3 {
            let (first, _) = get()?;
            bare.byte()?;
            let (last, _) = get()?;
            let page = bare.ram.read(PAGE, 32);
            let passed = word(&bare, BY_RDTSC).wrapping_sub(word(&bare, PAGE + 8));
            let mul = u32::from_le_bytes(page[24..28].try_into().unwrap_or_default());
            let ticks = match page[28] as i8 {
                shift @ 0.. => passed << shift,
                shift => passed >> -shift,
            };
            let ns = ((u128::from(ticks) * u128::from(mul)) >> 32) as u64;
            let time = word(&bare, PAGE + 16) + ns;
            // The rate is rounded to 2^-32 of itself, and a tick may be some nanoseconds.
            let (least, most) = (first.saturating_sub(1000), last + 1000);
            let what = format!("{time} ns at {khz} kHz, of {least} to {most}");
            equal(&what, (least..=most).contains(&time), true)?;
        }
    }
    Ok(())
}

/// Sleeps until its local APIC's timer is at the deadline, reads its TSC, and is ready for another.
/// The VMM writes the deadline to 3010h.
fn sleeper(path: &str) -> Result<Bare, String> {
    const VECTOR: usize = 0x30;
    let code = [
        &[
            0x66, 0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, 0x66, 0x0d, 0, 0x0c, 0, 0, 0x0f, 0x30,
        ][..], // x2APIC
        &[
            0x66, 0xb9, 0x0f, 8, 0, 0, 0x66, 0xb8, 0xff, 1, 0, 0, 0x66, 0x31, 0xd2, 0x0f, 0x30,
        ], // SVR
        &[
            0x66, 0xb9, 0x32, 8, 0, 0, 0x66, 0xb8, 0x30, 0, 4, 0, 0x66, 0x31, 0xd2, 0x0f, 0x30,
        ], // LVT
        &OUT,
        // 1: mov $6e0h, %ecx; mov 3010h, %eax; mov 3014h, %edx; wrmsr; sti; hlt; cli
        &[
            0x66, 0xb9, 0xe0, 6, 0, 0, 0x66, 0xa1, 0x10, 0x30, 0x66, 0x8b, 0x16, 0x14, 0x30,
        ],
        &[0x0f, 0x30, 0xfb, 0xf4, 0xfa],
        // rdtsc; mov %eax, 3000h; mov %edx, 3004h; out; jmp 1b
        &[
            0x0f, 0x31, 0x66, 0xa3, 0, 0x30, 0x66, 0x89, 0x16, 4, 0x30, OUT[0], OUT[1], 0xeb, 0xdd,
        ],
    ]
    .concat();
    let bare = Bare::with(path, &code, |vm| {
        vm.call(number::CREATE_IRQCHIP, 0)?;
        Ok(())
    })?;
    control(&bare.device)?;
    // EOI; iret
    bare.ram.write(VECTOR * 4, &[0, 0x20, 0, 0]);
    let handler = [
        0x66, 0xb9, 0x0b, 8, 0, 0, 0x66, 0x31, 0xc0, 0x66, 0x31, 0xd2, 0x0f, 0x30, 0xcf,
    ];
    bare.ram.write(0x2000, &handler);
    equal("ready", bare.byte().is_ok(), true)?;
    Ok(bare)
}

fn deadline(path: &str) -> Result<(), String> {
    let bare = sleeper(path)?;
    let vcpu = &bare.vcpu.handle;
    let host = vcpu.call(number::GET_TSC_KHZ, 0)? as u64;
    for (khz, milliseconds) in [(host / 20, 5), (20 * host, 50)] {
        equal("set", vcpu.call(number::SET_TSC_KHZ, khz), Ok(0))?;
        // Never early. A busy host may be late, but not each time: with the rate of the host's
        // TSC the guest would sleep twenty times as long.
        wait(&format!("a deadline that is met, at {khz} kHz"), || {
            let ticks = milliseconds * khz;
            let deadline = tsc(vcpu)? + ticks;
            bare.ram.write(0x3010, &deadline.to_le_bytes());
            bare.byte()?;
            let woken = word(&bare, BY_RDTSC);
            equal("not early", woken >= deadline, true)?;
            Ok((woken - deadline < 5 * ticks).then_some(()))
        })?;
    }
    Ok(())
}
