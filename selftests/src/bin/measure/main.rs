// SPDX-License-Identifier: GPL-2.0-only

//! Counts what things cost, on an emulated host where one instruction is one nanosecond and one
//! tick of the TSC. `make bench` calls it; docs/performance.md explains it.
//!
//! `measure [DEVICE [GROUP]...]` or `measure run PROGRAM [ARGUMENT]...`
//!
//! Each line of output is a name, a number, and how often what is measured happened between two
//! marks for the emulator's plugin, in the order of the marks (0 if there were none).

mod forks;
mod guests;
mod host;
mod invalidate;
mod machine;
mod pair;
mod resets;
mod saved;
mod slots;
mod touch;

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::process::ExitCode;

use selftests::guest::Irqchip;
use selftests::kvm::Handle;
use selftests::machine::{catch_interruptions, map, Machine};
use selftests::memory::{Mapping, PAGE};

use guests::{Code, RESULT_COUNT, TURNS};
use machine::{bell, eventfd, listen, machine, ring, run, run_with, set_pointer};

/// Guest memory that only the tests of nested faults touch.
const FRESH: u64 = 0x100_0000;
/// An address without memory, and the local APIC's.
const DEVICE: u64 = 0xd000_0000;
const APIC: u64 = 0xfee0_0000;
/// How far apart pages are that nothing else is present beside.
const APART: usize = 0x1_0000;

/// What was found.
pub(crate) struct Row {
    name: &'static str,
    value: u64,
    /// How often it happened between the marks.
    times: u64,
}

type Rows = Result<Vec<Row>, String>;

/// The middle one.
pub(crate) fn median(values: &mut [u64]) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}

/// The cost of one turn, where the turns of an empty guest cost so much.
fn row(name: &'static str, code: Code, mut results: Vec<u64>, empty: u64) -> Row {
    let value = median(&mut results).saturating_sub(empty) / code.turns();
    let times = RESULT_COUNT as u64 * code.turns();
    Row { name, value, times }
}

/// Exits of one CPU: the guest does the same over and over.
fn exits(device: &Handle) -> Rows {
    use Code::{
        Cpuid, Device, Empty, Eoi, EoiMemory, Port, Rdmsr, Sector, SelfIpi, TimerSet, Vmmcall,
    };
    let one = |code, pointer, irqchip| {
        let machine = machine(device, &[code], irqchip)?;
        set_pointer(&machine.vcpus[0].handle, pointer)?;
        run(&machine)
    };
    let mut rows = vec![row("empty", Empty, one(Empty, 0, Irqchip::None)?, 0)];
    let empty = rows[0].value * TURNS;
    for (name, code, pointer, irqchip, others) in [
        ("cpuid", Cpuid, 0, Irqchip::None, 3),
        ("vmmcall", Vmmcall, 0, Irqchip::None, 1),
        ("rdmsr", Rdmsr, 0, Irqchip::None, 1),
        ("port", Port, 0, Irqchip::None, 0),
        ("sector", Sector, 0, Irqchip::None, 3),
        ("device", Device, DEVICE, Irqchip::None, 0),
        ("eoi", Eoi, 0, Irqchip::Kernel, 3),
        ("eoi_memory", EoiMemory, APIC, Irqchip::Kernel, 0),
        ("timer_set", TimerSet, 0, Irqchip::Kernel, 3),
        ("self_ipi", SelfIpi, 0, Irqchip::Kernel, 4),
    ] {
        let mut row = row(name, code, one(code, pointer, irqchip)?, empty);
        // Without the guest's instructions beside the one that exits.
        row.value = row.value.saturating_sub(others);
        rows.push(row);
    }
    Ok(rows)
}

/// Memory that is populated `APART`, or everywhere.
fn populated(step: usize) -> Result<Mapping, String> {
    let pages = RESULT_COUNT * TURNS as usize;
    let fresh = Mapping::anonymous(pages * step).map_err(|e| e.to_string())?;
    // SAFETY: The advice changes the size of pages, not what is in them.
    unsafe { libc::madvise(fresh.start().cast(), fresh.len(), libc::MADV_NOHUGEPAGE) };
    for page in 0..pages {
        fresh.write(page * step, &[1]);
    }
    Ok(fresh)
}

/// Nested faults on pages of 4 KiB that the host has.
fn faults(device: &Handle) -> Rows {
    let mut rows = Vec::new();
    for (name, code, step) in [
        ("fault_lone", Code::FaultLone, APART),
        ("fault", Code::Fault, PAGE),
    ] {
        let fresh = populated(step)?;
        let machine = machine(device, &[code], Irqchip::None)?;
        map(&machine.vm, 2, 0, FRESH, &fresh)?;
        set_pointer(&machine.vcpus[0].handle, FRESH)?;
        rows.push(row(name, code, run(&machine)?, 0));
    }
    Ok(rows)
}

/// Interrupts, eventfds and CPUs that sleep.
fn events(device: &Handle) -> Rows {
    let mut rows = Vec::new();
    let mut add = |name, code, results| rows.push(row(name, code, results, 0));

    let one = |code| machine(device, &[code], Irqchip::Kernel);
    add("timer", Code::Timer, run(&one(Code::Timer)?)?);

    let (machine, fd) = (one(Code::Bell)?, eventfd()?);
    bell(&machine, fd.as_raw_fd())?;
    add("bell", Code::Bell, run(&machine)?);

    let (machine, fd) = (one(Code::Device)?, eventfd()?);
    ring(&machine, fd.as_raw_fd(), DEVICE, 0)?;
    set_pointer(&machine.vcpus[0].handle, DEVICE)?;
    add("bell_memory", Code::Device, run(&machine)?);

    let (machine, fd) = (one(Code::Loopback)?, eventfd()?);
    bell(&machine, fd.as_raw_fd())?;
    listen(&machine, fd.as_raw_fd())?;
    add("loopback", Code::Loopback, run(&machine)?);

    add("backend", Code::BellSleep, backend(one(Code::BellSleep)?)?);

    let two = machine::machine(device, &[Code::Ipi, Code::IpiAnswer], Irqchip::Kernel)?;
    add("ipi", Code::Ipi, run_with(&two, &two.vcpus[1])?);

    let (first, second) = (one(Code::BellSleep)?, one(Code::BellAnswer)?);
    let (there, back) = (eventfd()?, eventfd()?);
    bell(&first, there.as_raw_fd())?;
    listen(&second, there.as_raw_fd())?;
    bell(&second, back.as_raw_fd())?;
    listen(&first, back.as_raw_fd())?;
    let results = run_with(&first, &second.vcpus[0])?;
    add("switch", Code::BellSleep, results);
    Ok(rows)
}

/// The guest's doorbell wakes a thread, which interrupts the guest: what a device of a VMM does.
fn backend(machine: Machine) -> Result<Vec<u64>, String> {
    let (there, back) = (eventfd()?, eventfd()?);
    bell(&machine, there.as_raw_fd())?;
    listen(&machine, back.as_raw_fd())?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut word = [0; 8];
            for _ in 0..RESULT_COUNT {
                let done = (&there)
                    .read_exact(&mut word)
                    .and((&back).write_all(&1u64.to_ne_bytes()));
                if done.is_err() {
                    break;
                }
            }
        });
        run(&machine)
    })
}

/// A name, and what measures.
type Group = (&'static str, fn(&Handle) -> Rows);

/// What can be asked for alone.
const GROUPS: [Group; 11] = [
    ("exits", exits),
    ("faults", faults),
    ("events", events),
    ("guest_memory", touch::memory),
    ("slots", slots::slots),
    ("pair", pair::pair),
    ("invalidate", invalidate::invalidate),
    ("resets", resets::resets),
    ("forks", forks::forks),
    ("machines", host::machines),
    ("memory", host::memory),
];

/// What is measured only if it is asked for: it wants a host of its own.
const ASKED: [&str; 2] = ["resets", "forks"];

/// The groups that were asked for; all but [`ASKED`], if none was.
fn measure(device: &Handle, wanted: &[String]) -> Rows {
    let mut rows = Vec::new();
    for (name, group) in GROUPS {
        let by_itself = wanted.is_empty() && !ASKED.contains(&name);
        if by_itself || wanted.iter().any(|word| word == name) {
            rows.extend(group(device)?);
        }
    }
    Ok(rows)
}

fn main() -> ExitCode {
    catch_interruptions();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = if words.first().is_some_and(|word| word == "run") {
        host::run(&words[1..])
    } else {
        let node = words.first().map_or("/dev/pacifica", String::as_str);
        let device = Handle::open(node).map_err(|e| format!("{node}: {e}"));
        device.and_then(|device| measure(&device, words.get(1..).unwrap_or_default()))
    };
    match result {
        Ok(rows) => {
            // At the end: the host's serial port takes millions of instructions for each line.
            let line = |row: &Row| format!("{} {} {}\n", row.name, row.value, row.times);
            print!("{}", rows.iter().map(line).collect::<String>());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("measure: {error}");
            ExitCode::FAILURE
        }
    }
}
