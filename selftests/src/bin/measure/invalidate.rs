// SPDX-License-Identifier: GPL-2.0-only

//! The host takes a page back that running vCPUs may use: what it costs the caller, by how many of
//! them run. The emulator's plugin counts, between the marks; `selftests/shootdown` reads it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kvm_bindings::kvm_pre_fault_memory;
use selftests::cpus::{pin, usable};
use selftests::guest::Irqchip;
use selftests::kvm::{number, Handle};
use selftests::machine::{map, Vcpu};
use selftests::memory::{Mapping, PAGE};
use selftests::patience;

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

/// The page is written, mapped as `map` does it, and taken.
fn rounds(fresh: &Mapping, map: impl Fn() -> Result<(), String>) -> Result<(), String> {
    // The caller has a CPU of its own, whose instructions are counted.
    pin(&usable()[..1])?;
    for _ in 0..ROUNDS {
        fresh.write(0, &[1]);
        map()?;
        begin();
        // SAFETY: The page is the caller's own, and no reference covers it.
        unsafe { libc::madvise(fresh.start().cast(), PAGE, libc::MADV_DONTNEED) };
        end();
    }
    Ok(())
}

fn row(name: &'static str) -> Row {
    Row {
        name,
        value: 0,
        times: ROUNDS as u64,
    }
}

/// What the host does by itself: as many threads that run, and no VM.
fn without(name: &'static str, threads: usize) -> Result<Row, String> {
    let fresh = Mapping::anonymous(PAGE).map_err(|e| e.to_string())?;
    pin(&usable()[1..])?;
    let (running, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                running.fetch_add(1, Ordering::SeqCst);
                while !over.load(Ordering::SeqCst) {
                    std::hint::spin_loop();
                }
            });
        }
        let ready = || running.load(Ordering::SeqCst) == threads;
        let result =
            patience::until("the threads run", ready).and_then(|()| rounds(&fresh, || Ok(())));
        over.store(true, Ordering::SeqCst);
        result
    })?;
    Ok(row(name))
}

fn with(device: &Handle, name: &'static str, vcpus: usize) -> Result<Row, String> {
    let machine = machine(device, &vec![Code::Spin; vcpus + 1], Irqchip::None)?;
    let fresh = Mapping::anonymous(PAGE).map_err(|e| e.to_string())?;
    map(&machine.vm, 2, 0, FRESH, &fresh)?;
    // The last one does not run: it maps the page.
    let (mapper, runners) = machine.vcpus.split_last().ok_or("no vCPU")?;
    pin(&usable()[1..])?;
    let map = || {
        let mut page = kvm_pre_fault_memory {
            gpa: FRESH,
            size: PAGE as u64,
            ..Default::default()
        };
        let pre_fault = number::PRE_FAULT_MEMORY;
        mapper.handle.exchange(pre_fault, &mut page)?;
        Ok(())
    };
    beside_all(runners, Box::new(|| rounds(&fresh, map)))??;
    Ok(row(name))
}

/// Nothing on a host with fewer CPUs.
pub(crate) fn invalidate(device: &Handle) -> Rows {
    if usable().len() < CPUS {
        return Ok(Vec::new());
    }
    Ok(vec![
        with(device, "invalidate_1", 1)?,
        with(device, "invalidate_4", 4)?,
        with(device, "invalidate_16", 16)?,
        without("host_1", 1)?,
        without("host_4", 4)?,
        without("host_16", 16)?,
    ])
}
