// SPDX-License-Identifier: GPL-2.0-only

//! Runs VMs beside each other until all their timers have come again.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::Mutex;
use std::thread::sleep;
use std::time::Duration;

use kvm_bindings::*;
use selftests::kvm::Errno;
use selftests::machine::{Machine, Vcpu};
use selftests::patience::wait;
use selftests::state::describe;

use crate::guest::{Field, ASKED, CPUS, FAULTS, RECORD, RECORDS};

/// So often each timer and each CPU's work must come again.
const TIMES: u64 = 5;

/// A field of a CPU's record.
fn field(machine: &Machine, cpu: usize, field: Field) -> u64 {
    word_at(machine, cpu, field as usize)
}

fn word_at(machine: &Machine, cpu: usize, index: usize) -> u64 {
    let at = RECORDS as usize + cpu * RECORD as usize + index * 8;
    let bytes = machine.ram.read(at, 8);
    bytes
        .iter()
        .rev()
        .fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// What counts in a VM, each with what it is.
fn counts(machine: &Machine) -> Vec<(String, u64)> {
    let mut counts = Vec::new();
    for cpu in 0..CPUS {
        let mut count =
            |what, of| counts.push((format!("CPU {cpu}, {what}"), field(machine, cpu, of)));
        count("its timer", Field::Timer);
        count("its work", Field::Work);
        if field(machine, cpu, Field::HasPit) != 0 {
            count("the PIT", Field::Pit);
        }
    }
    counts
}

/// Fails if a guest has found something wrong.
fn healthy(machine: &Machine) -> Result<(), String> {
    for cpu in 0..CPUS {
        let fault = field(machine, cpu, Field::Fault);
        if fault != 0 {
            let what = FAULTS.get(fault as usize).unwrap_or(&"what?");
            return Err(format!("CPU {cpu}: {what}"));
        }
    }
    Ok(())
}

/// Lets all these run until each timer has come, and each CPU has worked, some times more. After
/// that none runs, and no access to a port is unfinished.
pub(crate) fn go_on(machines: &[&Machine]) -> Result<(), String> {
    let before: Vec<_> = machines.iter().map(|machine| counts(machine)).collect();
    let missing = || -> Option<String> {
        for (number, (machine, before)) in machines.iter().zip(&before).enumerate() {
            let pairs = counts(machine).into_iter().zip(before);
            for ((what, now), (_, before)) in pairs {
                if now < before + TIMES {
                    return Some(format!("VM {number}, {what}: {before}, and now {now}"));
                }
            }
        }
        None
    };
    let outcome = beside(machines, || {
        machines.iter().try_for_each(|machine| healthy(machine))?;
        Ok(missing().is_none().then_some(()))
    });
    outcome.map_err(|error| {
        let mut lines = vec![error];
        lines.extend(missing());
        for (number, machine) in machines.iter().enumerate() {
            for (cpu, vcpu) in machine.vcpus.iter().enumerate() {
                let of = |of| field(machine, cpu, of);
                let record: Vec<_> = (0..4)
                    .map(|word| word_at(machine, cpu, Field::Record as usize + word))
                    .collect();
                lines.push(format!(
                    "VM {number}, CPU {cpu}: kvmclock {} after {}, its record {record:x?}",
                    of(Field::Shown),
                    of(Field::Clock)
                ));
                let state = describe(&vcpu.handle);
                lines.extend(
                    state
                        .iter()
                        .map(|line| format!("VM {number}, CPU {cpu}: {line}")),
                );
            }
        }
        lines.join("\n")
    })
}

/// Runs all virtual CPUs, each in a thread, until there is an answer.
fn beside(
    machines: &[&Machine],
    answer: impl FnMut() -> Result<Option<()>, String>,
) -> Result<(), String> {
    let (stop, failure) = (AtomicBool::new(false), Mutex::new(None));
    let threads = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let handles: Vec<_> = (machines.iter().flat_map(|machine| &machine.vcpus))
            .map(|vcpu| {
                let (stop, failure, threads) = (&stop, &failure, &threads);
                scope.spawn(move || {
                    // SAFETY: This only asks for the calling thread's name.
                    let this = unsafe { libc::pthread_self() };
                    threads.lock().expect("nobody panics").push(this);
                    if let Err(error) = run(vcpu, stop) {
                        *failure.lock().expect("nobody panics") = Some(error);
                    }
                })
            })
            .collect();
        let mut answer = answer;
        let outcome = wait("the timers", || {
            match failure.lock().expect("nobody panics").take() {
                Some(error) => Err(error),
                None => answer(),
            }
        });
        stop.store(true, SeqCst);
        while !handles.iter().all(|handle| handle.is_finished()) {
            for thread in threads.lock().expect("nobody panics").iter() {
                // SAFETY: The thread is not joined before the end of this scope.
                unsafe { libc::pthread_kill(*thread, libc::SIGUSR1) };
            }
            sleep(Duration::from_millis(1));
        }
        outcome
    })?;
    failure
        .into_inner()
        .expect("nobody panics")
        .map_or(Ok(()), Err)
}

/// Runs a virtual CPU until it is to stop; then it ends the access to a port that it may be in.
fn run(vcpu: &Vcpu, stop: &AtomicBool) -> Result<(), String> {
    while !stop.load(SeqCst) {
        match vcpu.run() {
            Ok(_) => port(vcpu)?,
            Err(Errno(libc::EINTR | libc::EAGAIN)) => {}
            Err(error) => return Err(format!("KVM_RUN: {error:?}")),
        }
    }
    vcpu.share(|shared| shared.immediate_exit = 1);
    let finished = vcpu.run();
    vcpu.share(|shared| shared.immediate_exit = 0);
    match finished {
        Err(Errno(libc::EINTR)) => Ok(()),
        other => Err(format!("KVM_RUN with immediate_exit: {other:?}")),
    }
}

/// What the guest reads from a port is what it wants to read.
fn port(vcpu: &Vcpu) -> Result<(), String> {
    let shared = vcpu.shared();
    if shared.exit_reason != KVM_EXIT_IO {
        return Err(format!("exit {}", shared.exit_reason));
    }
    // SAFETY: The exit reason says which part of the union is meant.
    let io = unsafe { shared.__bindgen_anon_1.io };
    if io.port == ASKED.0 {
        vcpu.page().write(io.data_offset as usize, &[ASKED.1]);
    }
    Ok(())
}
