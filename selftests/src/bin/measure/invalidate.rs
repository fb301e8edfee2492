// SPDX-License-Identifier: GPL-2.0-only

//! The host takes a page back that running vCPUs may use: what it costs the caller, by how many of them run. The emulator's
//! plugin counts, between the marks; `selftests/shootdown` reads it.

use std::ops::Range;
use std::thread::available_parallelism;

use kvm_bindings::kvm_pre_fault_memory;
use selftests::guest::Irqchip;
use selftests::kvm::{number, Handle};
use selftests::machine::{map, Vcpu};
use selftests::memory::{Mapping, PAGE};

use crate::guests::Code;
use crate::machine::{begin, beside, end, machine};
use crate::{Row, Rows, FRESH};

/// The vCPUs, and the caller.
const CPUS: usize = 17;
/// How often the page is taken.
const ROUNDS: usize = 32;

/// Does something while all of these run their guests.
fn beside_all<'a, T: 'a>(
    others: &'a [Vcpu],
    work: Box<dyn FnOnce() -> T + 'a>,
) -> Result<T, String> {
    match others {
        [] => Ok(work()),
        [other, rest @ ..] => beside(other, || beside_all(rest, work))?,
    }
}

/// This thread, and those that it starts, are to stay on these CPUs.
fn stay_on(cpus: Range<usize>) {
    // SAFETY: The set is plain data, and large enough.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        for cpu in cpus {
            libc::CPU_SET(cpu, &mut set);
        }
        libc::sched_setaffinity(0, size_of_val(&set), &set);
    }
}

fn with(device: &Handle, name: &'static str, vcpus: usize) -> Result<Row, String> {
    let machine = machine(device, &vec![Code::Spin; vcpus + 1], Irqchip::None)?;
    let fresh = Mapping::anonymous(PAGE).map_err(|e| e.to_string())?;
    map(&machine.vm, 2, 0, FRESH, &fresh)?;
    // The last one does not run: it maps the page.
    let (mapper, runners) = machine.vcpus.split_last().ok_or("no vCPU")?;
    // The caller has a CPU of its own, whose instructions are counted.
    stay_on(1..CPUS);
    let rounds = || {
        stay_on(0..1);
        for _ in 0..ROUNDS {
            fresh.write(0, &[1]);
            let mut page = kvm_pre_fault_memory {
                gpa: FRESH,
                size: PAGE as u64,
                ..Default::default()
            };
            mapper
                .handle
                .exchange(number::PRE_FAULT_MEMORY, &mut page)?;
            begin();
            // SAFETY: The page is this function's own, and no reference covers it.
            unsafe { libc::madvise(fresh.start().cast(), PAGE, libc::MADV_DONTNEED) };
            end();
        }
        Ok::<(), String>(())
    };
    beside_all(runners, Box::new(rounds))??;
    Ok(Row {
        name,
        value: 0,
        times: ROUNDS as u64,
    })
}

/// Nothing on a host with fewer CPUs.
pub(crate) fn invalidate(device: &Handle) -> Rows {
    if available_parallelism().map_or(1, usize::from) < CPUS {
        return Ok(Vec::new());
    }
    [
        ("invalidate_1", 1),
        ("invalidate_4", 4),
        ("invalidate_16", 16),
    ]
    .into_iter()
    .map(|(name, vcpus)| with(device, name, vcpus))
    .collect()
}
