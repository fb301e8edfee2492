// SPDX-License-Identifier: GPL-2.0-only

//! What the host does for machines that never run, and whole programs.

use std::arch::x86_64::_rdtsc;
use std::fs;
use std::process::Command;
use std::time::Duration;

use selftests::kvm::{number, Handle};
use selftests::machine::map;
use selftests::memory::{Mapping, PAGE};

use crate::machine::{begin, end};
use crate::{median, Row, Rows};

pub(crate) fn ticks() -> u64 {
    // SAFETY: Every x86-64 CPU has the instruction.
    unsafe { _rdtsc() }
}

/// A clock, in nanoseconds.
fn clock(id: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: The structure is ours.
    unsafe { libc::clock_gettime(id, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// CPU time of this process, in nanoseconds.
fn cpu_time() -> u64 {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// The CPU time that `work` takes, in ticks.
pub(crate) fn own_ticks(work: impl FnOnce() -> Result<(), String>) -> Result<u64, String> {
    let (first, origin, cpu) = (ticks(), clock(libc::CLOCK_MONOTONIC), cpu_time());
    work()?;
    // CPU time is in nanoseconds; instructions are ticks of the TSC.
    let time = u128::from((clock(libc::CLOCK_MONOTONIC) - origin).max(1));
    let all = u128::from(ticks() - first);
    Ok((u128::from(cpu_time() - cpu) * all / time) as u64)
}

/// How many machines are made.
const MACHINES: u64 = 17;

/// A machine with one CPU, made and destroyed.
pub(crate) fn machines(device: &Handle) -> Rows {
    let (mut spans, mut own) = (Vec::new(), Vec::new());
    let (first, origin) = (ticks(), clock(libc::CLOCK_MONOTONIC));
    begin();
    for _ in 0..MACHINES {
        let (start, cpu) = (ticks(), cpu_time());
        let vm = device.open_with(number::CREATE_VM, 0)?;
        let vcpu = vm.open_with(number::CREATE_VCPU, 0)?;
        drop(vcpu);
        drop(vm);
        spans.push(ticks() - start);
        own.push(cpu_time() - cpu);
    }
    end();
    // CPU time is in nanoseconds; instructions are ticks of the TSC.
    let time = u128::from((clock(libc::CLOCK_MONOTONIC) - origin).max(1));
    let all = u128::from(ticks() - first);
    let in_ticks = |nanoseconds| (u128::from(nanoseconds) * all / time) as u64;
    let row = |name, value| Row {
        name,
        value,
        times: 0,
    };
    let made = Row {
        times: MACHINES,
        ..row("machine", in_ticks(median(&mut own)))
    };
    Ok(vec![made, row("machine_with_waiting", median(&mut spans))])
}

/// How many pages each CPU keeps back when they are freed: 0 is the kernel's own choice, more is
/// less. It makes up for a fifth of what giving memory up costs.
fn keep_back(fraction: u32) -> Result<(), String> {
    let path = "/proc/sys/vm/percpu_pagelist_high_fraction";
    fs::write(path, fraction.to_string()).map_err(|e| format!("{path}: {e}"))
}

/// Bytes of memory that are free for anything. The pages that CPUs keep back do not count as free;
/// so they must be few, or they would make up for most of what is allocated.
fn free() -> Result<u64, String> {
    let path = "/proc/sys/vm/drop_caches";
    fs::write(path, "3").map_err(|e| format!("{path}: {e}"))?;
    let text = fs::read_to_string("/proc/meminfo").map_err(|e| e.to_string())?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemFree:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(number.ok_or("no MemFree")? * 1024)
}

/// The same, when it does not change any more.
fn settled() -> Result<u64, String> {
    let mut last = free()?;
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(100));
        let now = free()?;
        if now.abs_diff(last) <= 16 * PAGE as u64 {
            return Ok(now);
        }
        last = now;
    }
    Err("the free memory does not settle".into())
}

/// What an idle machine with one CPU and interrupt controllers takes of the host's memory.
pub(crate) fn memory(device: &Handle) -> Rows {
    const COUNT: u64 = 400;
    let ram = Mapping::anonymous(PAGE).map_err(|e| e.to_string())?;
    let make = || -> Result<(Handle, Handle), String> {
        let vm = device.open_with(number::CREATE_VM, 0)?;
        map(&vm, 0, 0, 0, &ram)?;
        vm.call(number::CREATE_IRQCHIP, 0)?;
        let vcpu = vm.open_with(number::CREATE_VCPU, 0)?;
        Ok((vm, vcpu))
    };
    keep_back(1_000_000)?;
    // One round that does not count: the host's own caches grow and shrink in the first.
    let mut each = 0;
    for _ in 0..2 {
        let first = make()?;
        let before = settled()?;
        let all = (0..COUNT).map(|_| make()).collect::<Result<Vec<_>, _>>()?;
        each = before.saturating_sub(settled()?) / COUNT;
        drop((first, all));
    }
    keep_back(0)?;
    Ok(vec![Row {
        name: "memory",
        value: each,
        times: 0,
    }])
}

/// How long a program takes.
pub(crate) fn run(words: &[String]) -> Rows {
    let (program, arguments) = words.split_first().ok_or("which program?")?;
    let start = ticks();
    begin();
    let status = Command::new(program).args(arguments).status();
    end();
    let value = ticks() - start;
    let status = status.map_err(|e| format!("{program}: {e}"))?;
    if !status.success() {
        return Err(format!("{program}: {status}"));
    }
    Ok(vec![Row {
        name: "run",
        value,
        times: 1,
    }])
}
