// SPDX-License-Identifier: GPL-2.0-only

//! The guest's TSC and clock as the VMM sets them, feature MSRs, and files of statistics.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvm_bindings::*;
use selftests::cpus::{pin, usable};
use selftests::kvm::{msrs, number, set_cpuid, supported_cpuid, Errno, Handle, Number};
use selftests::machine::Vcpu;
use selftests::patience::wait;
use selftests::stats::{counter, read, word};
use selftests::tap::{equal, skipped};

use crate::bare::{vm, Bare, CODE, OUT};
use crate::{refused, Test};

pub(crate) const TESTS: &[Test] = &[
    ("KVM_SET_CLOCK takes the real time into account", real_time),
    ("KVM_VCPU_TSC_OFFSET sets the TSC", tsc_offset),
    ("TSCs that are set to nearly the same are equal", tsc_sync),
    ("KVM_SET_TSC_KHZ on a VM takes the host's rate", tsc_khz),
    ("a guest without TSC_AUX does not read the host's", tsc_aux),
    ("the clock follows the CPU if TSCs differ", unstable),
    (
        "the clocks' records say whether all vCPUs have the same time",
        stable_clocks,
    ),
    ("stolen time is told, and who is not running", steal_time),
    ("feature MSRs can be read on the device", feature_msrs),
    ("KVM_GET_STATS_FD describes and counts", statistics),
    ("KVM_CAP_HALT_POLL limits how long HLT is polled", halt_poll),
];

const TSC: u32 = 0x10;
const SECOND: u64 = 1_000_000_000;

fn steal_time(path: &str) -> Result<(), String> {
    const STEAL_TIME: u32 = 0x4b56_4d03;
    const RECORD: usize = 0x4000;
    /// Time, version, flags, preempted.
    type Record = (u64, u32, u32, u8);
    let bare = Bare::new(path, &[OUT[0], OUT[1], 0xeb, 0xfc])?;
    if bare.device.extension(KVM_CAP_STEAL_TIME) == 0 {
        return skipped("no steal time");
    }
    let set = |value| {
        msrs(
            &bare.vcpu.handle,
            number::SET_MSRS,
            &mut [(STEAL_TIME, value)],
        )
    };
    let record = || -> Record {
        let bytes = bare.ram.read(RECORD, 20);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or([0; 4]));
        let time = u64::from(word(0)) | u64::from(word(4)) << 32;
        (time, word(8), word(12), bytes[16])
    };
    for bit in 1..6 {
        equal("reserved", set(RECORD as u64 | 1 << bit), Ok(0))?;
    }
    equal("set", set(RECORD as u64 | 1), Ok(1))?;
    // As another vCPU leaves it that wants the TLB flushed.
    bare.ram.write(RECORD + 16, &[3]);
    bare.ram.write(RECORD + 8, &[7]);
    bare.byte()?;
    let (first, version, flags, preempted) = record();
    equal("version", (version % 2, version > 7), (0, true))?;
    equal("flags, preempted", (flags, preempted), (0, 0))?;
    bare.byte()?;
    equal("time goes on", record().0 >= first, true)?;
    equal("off", set(0), Ok(1))?;
    bare.ram.write(RECORD, &[0xaa; 20]);
    bare.byte()?;
    equal("untouched", record().3, 0xaa)?;
    equal("no memory there", set(1 << 40 | 1), Ok(1))?;
    bare.byte()?;
    Ok(())
}

fn real_time(path: &str) -> Result<(), String> {
    let (device, vm) = vm(path)?;
    if device.extension(KVM_CAP_ADJUST_CLOCK) & KVM_CLOCK_REALTIME as i32 == 0 {
        return skipped("no KVM_CLOCK_REALTIME");
    }
    let first: kvm_clock_data = vm.get(number::GET_CLOCK)?;
    if first.flags & KVM_CLOCK_REALTIME == 0 {
        return skipped("the host's clock is not the TSC");
    }
    let mut old = kvm_clock_data {
        clock: 5 * SECOND,
        realtime: first.realtime - 100 * SECOND,
        flags: first.flags,
        ..Default::default()
    };
    vm.set(number::SET_CLOCK, &old)?;
    let second: kvm_clock_data = vm.get(number::GET_CLOCK)?;
    let (passed, real) = (
        second.clock - 105 * SECOND,
        second.realtime - first.realtime,
    );
    equal(
        "100 seconds later",
        passed.abs_diff(real) < SECOND / 10,
        true,
    )?;
    equal("TSC", second.host_tsc > first.host_tsc, true)?;
    // Not backwards: the clock goes on from 5 seconds, for as long as these two calls take.
    old.realtime = first.realtime + 100 * SECOND;
    let start = Instant::now();
    vm.set(number::SET_CLOCK, &old)?;
    let third: kvm_clock_data = vm.get(number::GET_CLOCK)?;
    let most = 6 * SECOND + start.elapsed().as_nanos() as u64;
    equal("5 seconds", (5 * SECOND..most).contains(&third.clock), true)
}

pub(crate) fn attribute(
    vcpu: &Handle,
    number: Number,
    attr: u64,
    value: &mut u64,
) -> Result<i32, String> {
    let attr = kvm_device_attr {
        group: 0, // KVM_VCPU_TSC_CTRL
        attr,
        addr: std::ptr::from_mut(value) as u64,
        ..Default::default()
    };
    Ok(vcpu.set(number, &attr)?)
}

fn tsc_offset(path: &str) -> Result<(), String> {
    let (_device, vm) = vm(path)?;
    let first = vm.open_with(number::CREATE_VCPU, 0)?;
    let (mut old, mut new) = (0, 1 << 50);
    attribute(&first, number::HAS_DEVICE_ATTR, 0, &mut old)?;
    equal(
        "another attribute",
        attribute(&first, number::HAS_DEVICE_ATTR, 1, &mut old).is_err(),
        true,
    )?;
    attribute(&first, number::GET_DEVICE_ATTR, 0, &mut old)?;
    let before = tsc(&first)?;
    new += old;
    attribute(&first, number::SET_DEVICE_ATTR, 0, &mut new)?;
    let moved = tsc(&first)?.wrapping_sub(before);
    equal("moved by 2^50", moved >> 50, 1)?;
    // Those that come later are set like the first.
    let second = vm.open_with(number::CREATE_VCPU, 1)?;
    let mut its = 0;
    attribute(&second, number::GET_DEVICE_ATTR, 0, &mut its)?;
    equal("the next one", its, new)
}

/// The flag of two vCPUs' records, each after a run of its own.
fn stable_clocks(path: &str) -> Result<(), String> {
    const CLOCK: u32 = 0x4b56_4d01;
    const OLD_CLOCK: u32 = 0x12;
    const RECORDS: [u64; 2] = [0x4000, 0x5000];
    const FLAGS: u64 = 29;
    const PLACE: usize = 0x100;
    // 1: out %al, $0x10; jmp 1b
    let bare = Bare::new(path, &[OUT[0], OUT[1], 0xeb, 0xfc])?;
    let first = &bare.vcpu;
    let second = Vcpu::create(&bare.device, &bare.vm, 1)?;
    set_cpuid(&second.handle, &supported_cpuid(&bare.device)?)?;
    let sregs: kvm_sregs = first.handle.get(number::GET_SREGS)?;
    second.handle.set(number::SET_SREGS, &sregs)?;
    let mut regs: kvm_regs = first.handle.get(number::GET_REGS)?;
    second.handle.set(number::SET_REGS, &regs)?;
    let both = [first, &second];
    for (vcpu, record) in both.iter().zip(RECORDS) {
        let mut pair = [(CLOCK, record | 1)];
        equal(
            "set",
            msrs(&vcpu.handle, number::SET_MSRS, &mut pair),
            Ok(1),
        )?;
    }
    let expect = |what: &str, stable: u8| -> Result<(), String> {
        // Of what one does the other hears when it runs.
        for vcpu in both.iter().chain(&both) {
            vcpu.run()?;
        }
        let flags = RECORDS.map(|record| bare.ram.read((record + FLAGS) as usize, 1)[0] & 1);
        equal(what, flags, [stable; 2])
    };
    if expect("at first", 1).is_err() {
        return skipped("the host's TSC is not stable");
    }
    let ahead = 10_000 * first.handle.call(number::GET_TSC_KHZ, 0)? as u64;
    let mut offset = 0;
    attribute(&second.handle, number::GET_DEVICE_ATTR, 0, &mut offset)?;
    offset = offset.wrapping_add(ahead);
    attribute(&second.handle, number::SET_DEVICE_ATTR, 0, &mut offset)?;
    expect("one is ahead by its offset", 0)?;
    attribute(&first.handle, number::SET_DEVICE_ATTR, 0, &mut offset)?;
    expect("together again", 1)?;
    let mut pair = [(TSC, tsc(&second.handle)? + ahead)];
    msrs(&second.handle, number::SET_MSRS, &mut pair)?;
    expect("one is ahead by its MSR", 0)?;
    attribute(&second.handle, number::SET_DEVICE_ATTR, 0, &mut offset)?;
    attribute(&first.handle, number::SET_DEVICE_ATTR, 0, &mut offset)?;
    expect("together once more", 1)?;
    for (what, index, stable) in [("the MSR of old", OLD_CLOCK, 0), ("today's", CLOCK, 1)] {
        // mov $index, %ecx; mov $(record | 1), %eax; xor %edx, %edx; wrmsr; and back to the loop
        let [a, b, c, d] = index.to_le_bytes();
        let mut code = vec![0x66, 0xb9, a, b, c, d, 0x66, 0xb8, 1, 0x40, 0, 0];
        code.extend([
            0x66,
            0x31,
            0xd2,
            0x0f,
            0x30,
            0xea,
            0,
            CODE.to_le_bytes()[1],
            0,
            0,
        ]);
        bare.ram.write(CODE as usize + PLACE, &code);
        regs.rip = CODE + PLACE as u64;
        first.handle.set(number::SET_REGS, &regs)?;
        expect(what, stable)?;
    }
    Ok(())
}

pub(crate) fn tsc(vcpu: &Handle) -> Result<u64, String> {
    let mut pair = [(TSC, 0)];
    equal("read TSC", msrs(vcpu, number::GET_MSRS, &mut pair)?, 1)?;
    Ok(pair[0].1)
}

fn tsc_sync(path: &str) -> Result<(), String> {
    let (_device, vm) = vm(path)?;
    let vcpus = [0, 1].map(|id| vm.open_with(number::CREATE_VCPU, id));
    let [Ok(a), Ok(b)] = vcpus else {
        return Err("two vCPUs".into());
    };
    let offset = |vcpu: &Handle| -> Result<u64, String> {
        let mut offset = 0;
        attribute(vcpu, number::GET_DEVICE_ATTR, 0, &mut offset)?;
        Ok(offset)
    };
    let set = |vcpu: &Handle, value| msrs(vcpu, number::SET_MSRS, &mut [(TSC, value)]);
    equal("both begin together", offset(&a)?, offset(&b)?)?;
    set(&a, 1 << 40)?;
    equal("the first write counts", offset(&a)? != offset(&b)?, true)?;
    // What is nearly the same is a matter of a second, also between the calls.
    wait("the TSCs, set at once", || {
        let start = Instant::now();
        set(&a, 1 << 40)?;
        set(&b, (1 << 40) + 1000)?;
        Ok((start.elapsed() < Duration::from_millis(200)).then_some(()))
    })?;
    equal("nearly the same", offset(&a)?, offset(&b)?)?;
    set(&b, 1 << 45)?;
    equal("far away", offset(&a)? != offset(&b)?, true)?;
    set(&a, 0)?;
    equal("zero joins the last", offset(&a)?, offset(&b)?)
}

fn tsc_khz(path: &str) -> Result<(), String> {
    let (device, vm) = vm(path)?;
    let khz = vm.call(number::GET_TSC_KHZ, 0)? as u64;
    equal("set", vm.call(number::SET_TSC_KHZ, khz), Ok(0))?;
    equal(
        "zero means the same",
        vm.call(number::SET_TSC_KHZ, 0),
        Ok(0),
    )?;
    let vcpu = vm.open_with(number::CREATE_VCPU, 0)?;
    equal(
        "of the vCPU",
        vcpu.call(number::GET_TSC_KHZ, 0)? as u64,
        khz,
    )?;
    refused("too late", vm.call(number::SET_TSC_KHZ, khz), libc::EINVAL)?;
    if device.extension(KVM_CAP_TSC_CONTROL) == 0 {
        let double = vcpu.call(number::SET_TSC_KHZ, 2 * khz);
        // KVM makes up for a faster TSC with pauses, and refuses a slower one only.
        let half = vcpu.call(number::SET_TSC_KHZ, khz / 2);
        equal("half", half.is_err() || double.is_err(), true)?;
    }
    Ok(())
}

/// Two CPUs of the host.
fn two_cpus() -> Result<[usize; 2], String> {
    match usable() {
        [first, second, ..] => Ok([*first, *second]),
        _ => skipped("the host has one CPU"),
    }
}

/// In a thread of its own, which a test may pin.
fn apart(test: impl FnOnce() -> Result<(), String> + Send) -> Result<(), String> {
    std::thread::scope(|scope| scope.spawn(test).join().map_err(|_| "a panic")?)
}

fn tsc_aux(path: &str) -> Result<(), String> {
    const RDTSCP: u32 = 1 << 27;
    const RDPID: u32 = 1 << 22;
    const INVALID_OPCODE: usize = 6;
    const HANDLER: u8 = 0x40;
    let code = [
        &[0x0f, 0x01, 0xf9, 0x89, 0xc8][..], // rdtscp; mov ax, cx
        &OUT,
        &[0xf3, 0x0f, 0xc7, 0xf8], // rdpid eax
        &OUT,
    ]
    .concat();
    apart(|| {
        // Linux has the number of the CPU there.
        pin(&two_cpus()?[1..])?;
        let bare = Bare::new(path, &code)?;
        let mut cpuid = supported_cpuid(&bare.device)?;
        for leaf in &mut cpuid {
            match leaf.function {
                7 => leaf.ecx &= !RDPID,
                0x8000_0001 => leaf.edx &= !RDTSCP,
                _ => {}
            }
        }
        set_cpuid(&bare.vcpu.handle, &cpuid)?;
        let handler = [&[0xb0, 0][..], &OUT].concat(); // mov al, 0
        bare.ram
            .write(CODE as usize + usize::from(HANDLER), &handler);
        bare.ram.write(4 * INVALID_OPCODE, &[HANDLER, 0x10, 0, 0]);
        // Or #UD; QEMU does not know this intercept.
        equal("RDTSCP", bare.byte()?, 0)?;
        let mut regs: kvm_regs = bare.vcpu.handle.get(number::GET_REGS)?;
        regs.rip = CODE + 7;
        bare.vcpu.handle.set(number::SET_REGS, &regs)?;
        // Without RDPID in the CPU the handler says it.
        equal("RDPID", bare.byte()?, 0)
    })
}

fn unstable(path: &str) -> Result<(), String> {
    const SYSTEM_TIME: u32 = 0x4b56_4d01;
    const PAGE: u64 = 0x4000;
    let (_device, vm) = vm(path)?;
    let clock: kvm_clock_data = vm.get(number::GET_CLOCK)?;
    if clock.flags & KVM_CLOCK_TSC_STABLE != 0 {
        return skipped("they do not differ here");
    }
    apart(|| {
        let code = [&OUT[..], &[0xeb, 0xfc]].concat(); // jmp to the start
        let bare = Bare::new(path, &code)?;
        msrs(
            &bare.vcpu.handle,
            number::SET_MSRS,
            &mut [(SYSTEM_TIME, PAGE | 1)],
        )?;
        let mut last = 0;
        for round in 0..10 {
            pin(&[two_cpus()?[round % 2]])?;
            bare.byte()?;
            let version = word(&bare.ram.read(PAGE as usize, 4), 0);
            equal("even", version % 2, 0)?;
            equal(&format!("written in round {round}"), version != last, true)?;
            last = version;
        }
        Ok(())
    })
}

fn feature_msrs(path: &str) -> Result<(), String> {
    let (device, _vm) = vm(path)?;
    if device.extension(KVM_CAP_GET_MSR_FEATURES) == 0 {
        return skipped("no KVM_CAP_GET_MSR_FEATURES");
    }
    let mut words = [0_u64; 64];
    words[0] = 100;
    device.array(number::GET_MSR_FEATURE_INDEX_LIST, &mut words, 8 + 400)?;
    let count = words[0] as usize & 0xffff;
    for n in 0..count {
        let index = (words[(4 + 4 * n) / 8] >> (32 * ((n + 1) % 2))) as u32;
        let answer = msrs(&device, number::GET_MSRS, &mut [(index, 0)])?;
        equal(&format!("MSR {index:#x}"), answer, 1)?;
    }
    equal(
        "an unknown one",
        msrs(&device, number::GET_MSRS, &mut [(0x1234_5678, 0)])?,
        0,
    )
}

fn statistics(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &[&OUT[..], &OUT[..]].concat())?;
    if bare.device.extension(KVM_CAP_BINARY_STATS_FD) == 0 {
        return skipped("no KVM_CAP_BINARY_STATS_FD");
    }
    let of_vcpu = bare.vcpu.handle.open_with(number::GET_STATS_FD, 0)?;
    let of_vm = bare.vm.open_with(number::GET_STATS_FD, 0)?;
    let exits = |file: &Handle| counter(file, "exits").map(Option::unwrap_or_default);
    equal("behind the end", read(&of_vcpu, u32::MAX, 8)?.len(), 0)?;
    equal("none yet", exits(&of_vcpu)?, 0)?;
    bare.byte()?;
    equal("exits", exits(&of_vcpu)? > 0, true)?;
    // KVM's own counts for a VM have no exits.
    let sum = exits(&of_vm)?;
    drop(bare);
    equal("the file outlives the VM", exits(&of_vm)?, sum)?;
    equal("and that of the vCPU, too", exits(&of_vcpu)? > 0, true)
}

fn halt_poll(path: &str) -> Result<(), String> {
    if std::env::var("LAB_MACHINE").as_deref() == Ok("bochs") {
        return skipped("not run: on Bochs the time of a poll is another");
    }
    // HLT, fifty times, out of which NMIs wake it: mov $50, %cx; hlt; loop.
    const HLT: [u8; 6] = [0xb9, 50, 0, 0xf4, 0xe2, 0xfd];
    for limit in [0, 1_000_000_000] {
        let code = [&HLT[..], &OUT[..]].concat();
        let bare = Bare::with(path, &code, |vm| {
            vm.call(number::CREATE_IRQCHIP, 0)?;
            let mut cap = kvm_enable_cap {
                cap: KVM_CAP_HALT_POLL,
                ..Default::default()
            };
            for (nanoseconds, answer) in [(1 << 32, Err(Errno(libc::EINVAL))), (limit, Ok(0))] {
                cap.args[0] = nanoseconds;
                equal(
                    "KVM_CAP_HALT_POLL",
                    vm.set(number::ENABLE_CAP, &cap),
                    answer,
                )?;
            }
            Ok(())
        })?;
        // Their handler is an IRET.
        bare.ram.write(2 * 4, &[0x00, 0x20, 0, 0]);
        bare.ram.write(0x2000, &[0xcf]);
        let file = bare.vcpu.handle.open_with(number::GET_STATS_FD, 0)?;
        let value = |name| counter(&file, name).map(|count| count.unwrap_or(u64::MAX));
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let msi = kvm_msi {
                    address_lo: 0xfee0_0000,
                    data: 0x400,
                    ..Default::default()
                };
                while !over.load(Ordering::SeqCst) {
                    let _ = bare.vm.set(number::SIGNAL_MSI, &msi);
                    std::thread::sleep(Duration::from_micros(100));
                }
            });
            // On a busy host each NMI may be there before its HLT, and then there is nothing to
            // poll for.
            let result = wait("the end, and a poll", || {
                bare.start()?;
                bare.byte()?;
                Ok((limit == 0 || value("halt_attempted_poll")? != 0).then_some(()))
            });
            over.store(true, Ordering::SeqCst);
            result
        })?;
        let polls = value("halt_attempted_poll")?;
        equal(&format!("polls, up to {limit} ns"), polls != 0, limit != 0)?;
        equal("met", value("halt_successful_poll")? <= polls, true)?;
        let spent = value("halt_poll_success_ns")?.saturating_add(value("halt_poll_fail_ns")?);
        equal("time", spent != 0, limit != 0)?;
        equal("woken", value("halt_wakeup")? < u64::MAX, true)?;
    }
    Ok(())
}
