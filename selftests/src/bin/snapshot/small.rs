// SPDX-License-Identifier: GPL-2.0-only

//! All small guests that end by themselves: each goes back to some of its exits, and ends again as
//! it should.

use std::fs;
use std::path::Path;
use std::sync::mpsc;

use selftests::guest::{compare, Guest};
use selftests::kvm::Handle;
use selftests::machine::{missing, Machine, Step};
use selftests::patience;
use selftests::process::Child;
use selftests::snapshot::{Snapshot, FORK_TIME, RESET_TIME};
use selftests::trace::Trace;

use crate::state::State;
use crate::LIMIT;

const GUESTS: &str = "/selftests/guests";
/// How many exits of each guest it goes back to.
const POINTS: u64 = 3;

/// Runs them all.
pub(crate) fn all(device: &Handle) -> Result<(), String> {
    each(device, |guest| {
        interrupted_if_it_hangs(|| one(device, guest))
    })
}

/// Calls `test` with each.
fn each(device: &Handle, mut test: impl FnMut(&Guest) -> Result<(), String>) -> Result<(), String> {
    let files = fs::read_dir(GUESTS).map_err(|error| format!("{GUESTS}: {error}"))?;
    let mut names: Vec<String> = files
        .flatten()
        .filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".bin")?.to_owned()))
        .collect();
    names.sort();
    let mut count = 0;
    for name in &names {
        let guest = Guest::load(Path::new(GUESTS), name)?;
        // What an emulator's bug may end is left to run-guests, and so is what does not end.
        let single = guest.cpus == 1 && guest.limit.is_none() && guest.bugs.is_empty();
        if !single || missing(device, &guest).is_some() {
            continue;
        }
        test(&guest).map_err(|e| format!("{name}: {e}"))?;
        count += 1;
    }
    println!("# {count} guests");
    if count < 50 {
        return Err(format!("only {count} guests"));
    }
    Ok(())
}

/// Forks them all, where they are half done.
pub(crate) fn forked(device: &Handle) -> Result<(), String> {
    each(device, |guest| {
        let expected = without_registers(guest);
        let mut trace = Trace::default();
        let machine = Machine::new(device, guest)?;
        let (entries, _) = go(&machine, guest, &mut trace, u64::MAX)?;
        let mut machine = Machine::new(device, guest)?;
        let mut before = Trace::default();
        go(&machine, guest, &mut before, entries / 2)?;
        let snapshot = Snapshot::of_state(&machine.vm)?;
        let child = Child::start(|| {
            machine.fork_from(device, &snapshot, FORK_TIME)?;
            interrupted_if_it_hangs(|| {
                let mut trace = before.clone();
                go(&machine, guest, &mut trace, u64::MAX)?;
                compare(&expected, &trace.lines)
            })
        })?;
        let mut trace = before.clone();
        let parent = go(&machine, guest, &mut trace, u64::MAX)
            .and_then(|_| compare(&expected, &trace.lines));
        child.join().and(parent)
    })
}

/// Sends `SIGUSR1` to this thread when the time is over.
fn interrupted_if_it_hangs<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: This only asks for the calling thread's name.
    let thread = unsafe { libc::pthread_self() };
    let (done, is_done) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while is_done.recv_timeout(patience::limit()) == Err(mpsc::RecvTimeoutError::Timeout) {
                // SAFETY: The thread lives until this scope has ended.
                unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
            }
        });
        let result = work();
        drop(done);
        result
    })
}

/// Enters the guest at most so many times; answers how often it was, and whether it has ended.
fn go(
    machine: &Machine,
    guest: &Guest,
    trace: &mut Trace,
    most: u64,
) -> Result<(u64, bool), String> {
    for count in 0..most {
        match machine.step(guest, 0, trace) {
            Step::Go => {}
            Step::End => return Ok((count, true)),
            Step::Interrupted => return Err("hangs".into()),
        }
    }
    Ok((most, false))
}

/// What the guest should do, but for the registers at its end.
fn without_registers(guest: &Guest) -> Vec<String> {
    let lines = guest.expected.iter();
    lines
        .filter(|line| !line.starts_with("regs "))
        .cloned()
        .collect()
}

fn one(device: &Handle, guest: &Guest) -> Result<(), String> {
    let expected = without_registers(guest);
    let mut trace = Trace::default();
    let (entries, _) = go(&Machine::new(device, guest)?, guest, &mut trace, u64::MAX)?;
    compare(&expected, &trace.lines)?;
    for point in 0..POINTS {
        let before = entries * point / POINTS;
        let machine = Machine::new(device, guest)?;
        let mut first = Trace::default();
        go(&machine, guest, &mut first, before)?;
        back_and_on(device, &machine, guest, &first, &expected)
            .map_err(|error| format!("after exit {before} of {entries}: {error}"))?;
    }
    Ok(())
}

/// The guest ends, goes back to where it is now, and ends again, twice.
fn back_and_on(
    device: &Handle,
    machine: &Machine,
    guest: &Guest,
    before: &Trace,
    expected: &[String],
) -> Result<(), String> {
    let look = || -> Result<State, String> {
        let state = State::of(device, machine, &[&machine.ram])?;
        Ok(match guest.pit {
            true => state.without_chips(),
            false => state,
        })
    };
    // What is pending is brought into its form for the VMM by being shown.
    look()?;
    let snapshot = Snapshot::create(&machine.vm, LIMIT)?;
    let state = look()?;
    for round in 0..2 {
        let mut trace = before.clone();
        go(machine, guest, &mut trace, u64::MAX)?;
        compare(expected, &trace.lines).map_err(|error| format!("round {round}: {error}"))?;
        snapshot.reset(RESET_TIME)?;
        state
            .same(&look()?)
            .map_err(|error| format!("round {round}: {error}"))?;
    }
    // Without a snapshot it goes on as well.
    drop(snapshot);
    let mut trace = before.clone();
    go(machine, guest, &mut trace, u64::MAX)?;
    compare(expected, &trace.lines).map_err(|error| format!("without: {error}"))
}
