// SPDX-License-Identifier: GPL-2.0-only

//! Counts what things cost, on an emulated host where one instruction is one nanosecond and one
//! tick of the TSC (`selftests/lab/boot --icount`). `selftests/status` calls it and explains it.
//!
//! `measure exits|machines|memory [DEVICE]` or `measure run PROGRAM [ARGUMENT]...`
//!
//! Each line of output is a name and a number.

use std::arch::global_asm;
use std::arch::x86_64::_rdtsc;
use std::fs;
use std::process::{Command, ExitCode};
use std::ptr::addr_of;
use std::time::Duration;

use kvm_bindings::{kvm_regs, kvm_run, KVM_EXIT_HLT};
use selftests::guest::{Guest, Irqchip, Mode};
use selftests::kvm::{number, Handle};
use selftests::machine::{map, Machine, Vcpu, LOAD};
use selftests::memory::{Mapping, PAGE};

/// How often a batch is repeated; the median of the batches counts.
const BATCHES: usize = 32;
/// How often the instruction is executed in a batch.
const TURNS: u64 = 64;
/// Where the guest writes what each batch took.
const RESULTS: usize = 0x1_0000;
/// Guest memory that only the test of nested faults touches: a page for each turn of each batch.
const FRESH: u64 = 0x100_0000;
/// An address without memory.
const DEVICE: u64 = 0xd000_0000;

// A guest is a loop around one instruction, timed by the guest itself. RBX is its pointer.
global_asm!(
    ".macro measured name, body",
    ".globl measure_\\name, measure_\\name\\()_end",
    "measure_\\name\\():",
    "mov $32, %r12d",
    "mov $0x10000, %r13d",
    "2: mov $64, %r11d",
    "rdtsc",
    "shl $32, %rdx",
    "or %rax, %rdx",
    "mov %rdx, %r14",
    "3: \\body",
    "dec %r11d",
    "jnz 3b",
    "rdtsc",
    "shl $32, %rdx",
    "or %rdx, %rax",
    "sub %r14, %rax",
    "mov %rax, (%r13)",
    "add $8, %r13",
    "dec %r12d",
    "jnz 2b",
    "hlt",
    "measure_\\name\\()_end:",
    ".endm",
    ".pushsection .rodata",
    "measured empty",
    "measured cpuid, \"xor %eax, %eax; push %rbx; cpuid; pop %rbx\"",
    "measured vmmcall, \"mov $-1, %eax; vmmcall\"",
    "measured rdmsr, \"mov $0xc0000080, %ecx; rdmsr\"",
    "measured port, \"out %al, $0xf0\"",
    "measured device, \"mov %eax, (%rbx)\"",
    "measured fault, \"mov %eax, (%rbx); add $4096, %rbx\"",
    ".popsection",
    options(att_syntax)
);

/// The code between two labels of the assembly above.
macro_rules! code {
    ($start:ident, $end:ident) => {{
        extern "C" {
            static $start: u8;
            static $end: u8;
        }
        let (start, end) = (addr_of!($start), addr_of!($end));
        // SAFETY: Both labels are in one section, in this order, and nobody writes it.
        unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) }
    }};
}

/// Runs one of the guests to its HLT; answers the median of the batches.
fn batch(device: &Handle, code: &[u8], pointer: u64, fresh: &Mapping) -> Result<u64, String> {
    let guest = Guest {
        name: "measure".into(),
        code: code.into(),
        mode: Mode::Long64,
        irqchip: Irqchip::None,
        pit: false,
        cpus: 1,
        limit: 0,
        after_hlt: false,
        rom: false,
        feature: None,
        bugs: Vec::new(),
        expected: Vec::new(),
    };
    let machine = Machine::new(device, &guest)?;
    map(&machine.vm, 2, 0, FRESH, fresh)?;
    let vcpu = &machine.vcpus[0];
    let mut regs: kvm_regs = vcpu.handle.get(number::GET_REGS)?;
    regs.rip = LOAD as u64;
    regs.rbx = pointer;
    vcpu.handle.set(number::SET_REGS, &regs)?;
    loop {
        vcpu.run()?;
        if reason(vcpu) == KVM_EXIT_HLT {
            break;
        }
    }
    let results = machine.ram.read(RESULTS, BATCHES * 8);
    let mut ticks: Vec<u64> = results
        .chunks_exact(8)
        .map(|bytes| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
        .collect();
    Ok(median(&mut ticks))
}

fn reason(vcpu: &Vcpu) -> u32 {
    let run: *const kvm_run = vcpu.page().start().cast();
    // SAFETY: The mapping begins with this structure; the kernel does not write it now.
    unsafe { addr_of!((*run).exit_reason).read_volatile() }
}

fn median(values: &mut [u64]) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}

/// Instructions for one exit of each kind and the way back into the guest.
fn exits(device: &Handle) -> Result<(), String> {
    let pages = BATCHES * TURNS as usize;
    let fresh = Mapping::anonymous(pages * PAGE).map_err(|e| e.to_string())?;
    // SAFETY: The advice changes the size of pages, not what is in them.
    unsafe { libc::madvise(fresh.start().cast(), fresh.len(), libc::MADV_NOHUGEPAGE) };
    for page in 0..pages {
        fresh.write(page * PAGE, &[1]);
    }
    // Written at the end: the host's serial port takes millions of instructions for each line.
    let mut lines = String::new();
    let empty = batch(device, code!(measure_empty, measure_empty_end), 0, &fresh)?;
    let each = [
        ("cpuid", code!(measure_cpuid, measure_cpuid_end), 0x8000, 3),
        ("vmmcall", code!(measure_vmmcall, measure_vmmcall_end), 0, 1),
        ("rdmsr", code!(measure_rdmsr, measure_rdmsr_end), 0, 1),
        ("port", code!(measure_port, measure_port_end), 0, 0),
        (
            "device",
            code!(measure_device, measure_device_end),
            DEVICE,
            0,
        ),
        ("fault", code!(measure_fault, measure_fault_end), FRESH, 1),
    ];
    for (name, code, pointer, others) in each {
        let ticks = batch(device, code, pointer, &fresh)?;
        // Neither the loop nor the instructions beside the one that exits.
        let cost = ticks.saturating_sub(empty) / TURNS;
        lines.push_str(&format!("{name} {}\n", cost.saturating_sub(others)));
    }
    print!("{lines}");
    Ok(())
}

fn ticks() -> u64 {
    // SAFETY: Every x86-64 CPU has the instruction.
    unsafe { _rdtsc() }
}

/// CPU time of this process, in nanoseconds.
fn cpu_time() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: The structure is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A machine with one CPU, made and destroyed.
fn machines(device: &Handle) -> Result<(), String> {
    let (mut spans, mut own) = (Vec::new(), Vec::new());
    for _ in 0..17 {
        let (start, cpu) = (ticks(), cpu_time());
        let vm = device.open_with(number::CREATE_VM, 0)?;
        let vcpu = vm.open_with(number::CREATE_VCPU, 0)?;
        drop(vcpu);
        drop(vm);
        spans.push(ticks() - start);
        own.push(cpu_time() - cpu);
    }
    println!("machine {}", median(&mut own));
    println!("machine_with_waiting {}", median(&mut spans));
    Ok(())
}

/// Bytes of memory that are free for anything. Each CPU keeps some pages back, which do not count
/// as free: as few as can be, or they would make up for most of what is allocated.
fn free() -> Result<u64, String> {
    for (file, text) in [
        ("percpu_pagelist_high_fraction", "1000000"),
        ("drop_caches", "3"),
    ] {
        let path = format!("/proc/sys/vm/{file}");
        fs::write(&path, text).map_err(|e| format!("{path}: {e}"))?;
    }
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
fn memory(device: &Handle) -> Result<(), String> {
    const COUNT: u64 = 400;
    let ram = Mapping::anonymous(PAGE).map_err(|e| e.to_string())?;
    let make = || -> Result<(Handle, Handle), String> {
        let vm = device.open_with(number::CREATE_VM, 0)?;
        map(&vm, 0, 0, 0, &ram)?;
        vm.call(number::CREATE_IRQCHIP, 0)?;
        let vcpu = vm.open_with(number::CREATE_VCPU, 0)?;
        Ok((vm, vcpu))
    };
    // One round that does not count: the host's own caches grow and shrink in the first.
    let mut each = 0;
    for _ in 0..2 {
        let first = make()?;
        let before = settled()?;
        let all = (0..COUNT).map(|_| make()).collect::<Result<Vec<_>, _>>()?;
        each = before.saturating_sub(settled()?) / COUNT;
        drop((first, all));
    }
    println!("memory {each}");
    Ok(())
}

/// CPU time of a program and its children, and how long it took.
fn run(words: &[String]) -> Result<(), String> {
    let (program, arguments) = words.split_first().ok_or("which program?")?;
    let start = ticks();
    let status = Command::new(program)
        .args(arguments)
        .status()
        .map_err(|e| format!("{program}: {e}"))?;
    let span = ticks() - start;
    // SAFETY: All zeroes is a value of this structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: The structure is ours.
    unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage) };
    let microseconds = (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1_000_000
        + usage.ru_utime.tv_usec
        + usage.ru_stime.tv_usec;
    println!("run {}", microseconds * 1000);
    println!("run_with_waiting {span}");
    match status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {status}")),
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let node = words.get(1).map_or("/dev/pacifica", String::as_str);
    let device = || Handle::open(node).map_err(|e| format!("{node}: {e}"));
    let result = match words.first().map(String::as_str) {
        Some("exits") => device().and_then(|device| exits(&device)),
        Some("machines") => device().and_then(|device| machines(&device)),
        Some("memory") => device().and_then(|device| memory(&device)),
        Some("run") => run(&words[1..]),
        _ => Err("usage: measure exits|machines|memory [DEVICE] | run PROGRAM...".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("measure: {error}");
            ExitCode::FAILURE
        }
    }
}
