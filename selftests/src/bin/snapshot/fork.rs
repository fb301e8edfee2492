// SPDX-License-Identifier: GPL-2.0-only

//! A VM becomes two, and more: each has its own memory, and goes on as if there were no other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use selftests::kvm::{number, Handle};
use selftests::memory::{growth, kernel_memory, Mapping};
use selftests::process::Child;
use selftests::snapshot::{Snapshot, FORK_TIME};
use selftests::stats;
use selftests::tap::{equal, skipped};
use selftests::{memory::PAGE, patience};

use crate::family::Member;
use crate::LIMIT;

const MIB: usize = 1 << 20;

/// All CPUs of a parent and of its children write at once, and so do the programs.
pub(crate) fn apart(device: &Handle) -> Result<(), String> {
    let mut parent = Member::new(device, 4, MIB)?;
    parent.rounds(10, 1)?;
    let mut children = Vec::new();
    for seed in 0..4 {
        children.push(parent.child(|child| child.rounds(25, 100 + seed))?);
        parent.rounds(15, 50 + seed)?;
    }
    children.into_iter().try_for_each(Child::join)?;
    parent.check()
}

/// What can be seen of a child is what could be seen of the parent.
pub(crate) fn same_state(device: &Handle) -> Result<(), String> {
    let mut parent = Member::new(device, 3, MIB)?;
    parent.rounds(5, 7)?;
    let look = |member: &Member<'_>| member.writer.look(device);
    // What is pending is brought into its form for the VMM by being shown.
    look(&parent)?;
    let state = look(&parent)?;
    for _ in 0..2 {
        let child = parent.child(|child| state.same(&look(child)?))?;
        child.join()?;
    }
    state.same(&look(&parent)?)
}

/// How many processes there are below one with so many levels.
fn size(levels: u32) -> u64 {
    (1..=levels).map(|level| 3u64.pow(level)).sum()
}

/// Counts the processes that were content with what they saw.
fn counter(shared: &Mapping) -> &AtomicU64 {
    // SAFETY: The mapping begins with it, and nobody uses it as anything else.
    unsafe { &*shared.start().cast::<AtomicU64>() }
}

fn branch(member: &mut Member<'_>, levels: u32, seed: u64, good: &Mapping) -> Result<(), String> {
    let mut children = Vec::new();
    for child in 0..u64::from(levels > 0) * 3 {
        member.rounds(2, seed + child)?;
        let own = seed * 3 + child + 1;
        children.push(member.child(|child| branch(child, levels - 1, own, good))?);
    }
    member.rounds(3, seed)?;
    counter(good).fetch_add(1, Ordering::SeqCst);
    match seed % 3 {
        // It ends before its children do.
        0 => Ok(()),
        1 => children.into_iter().try_for_each(Child::join),
        _ => children.into_iter().rev().try_for_each(Child::join),
    }
}

/// Children of children, each of which ends when it likes.
pub(crate) fn tree(device: &Handle) -> Result<(), String> {
    const LEVELS: u32 = 3;
    let good = Mapping::shared(PAGE).map_err(|error| error.to_string())?;
    let mut root = Member::new(device, 2, MIB / 4)?;
    branch(&mut root, LEVELS, 1, &good)?;
    patience::until("all processes have ended well", || {
        counter(&good).load(Ordering::SeqCst) == size(LEVELS) + 1
    })?;
    root.check()
}

/// A hundred from the same instant, which all are there at once.
pub(crate) fn hundred(device: &Handle) -> Result<(), String> {
    const COUNT: u64 = 100;
    let good = Mapping::shared(PAGE).map_err(|error| error.to_string())?;
    let mut parent = Member::new(device, 1, MIB)?;
    parent.rounds(5, 3)?;
    let before = kernel_memory();
    let snapshot = Snapshot::of_state(&parent.writer.machine.vm)?;
    let mut children = Vec::new();
    for seed in 0..COUNT {
        children.push(parent.child_of(&snapshot, |child| {
            child.rounds(1, seed)?;
            counter(&good).fetch_add(1, Ordering::SeqCst);
            loop {
                // SAFETY: Until a signal comes.
                unsafe { libc::pause() };
            }
        })?);
    }
    patience::until("all children have run", || {
        counter(&good).load(Ordering::SeqCst) == COUNT
    })?;
    println!(
        "# kernel memory of a child's process and VM: {} KiB",
        (kernel_memory() - before) / COUNT as i64
    );
    parent.rounds(5, 4)?;
    // Every other one, then the rest.
    while children.len() > 1 {
        let mut left = Vec::new();
        for (index, child) in children.into_iter().enumerate() {
            match index % 2 {
                0 => child.kill(),
                _ => left.push(child),
            }
        }
        children = left;
        parent.rounds(1, 9)?;
    }
    children.into_iter().for_each(Child::kill);
    parent.check()
}

/// fork(2) takes the right to write from the parent's pages, and leaves them in the nested tables.
pub(crate) fn pages_stay(device: &Handle) -> Result<(), String> {
    let mut parent = Member::new(device, 1, 4 * MIB)?;
    let start = parent.writer.target.start().cast();
    // SAFETY: Only a wish for small pages in a part of the mapping.
    unsafe { libc::madvise(start, 2 * MIB, libc::MADV_NOHUGEPAGE) };
    parent.rounds(40, 5)?;
    let file = parent
        .writer
        .machine
        .vm
        .open_with(number::GET_STATS_FD, 0)?;
    let pages = || -> Result<[u64; 2], String> {
        let count = |name| stats::counter(&file, name).map(Option::unwrap_or_default);
        Ok([count("pages_4k")?, count("pages_2m")?])
    };
    let before = pages()?;
    let child = parent.child(|child| child.rounds(3, 1))?;
    child.join()?;
    let after = pages()?;
    println!("# small and large pages before: {before:?}, after: {after:?}");
    equal("pages after a fork", after, before)?;
    equal("small ones", before[0] > 0, true)?;
    parent.rounds(10, 6)?;
    match before[1] {
        0 => skipped("the small pages stay; this host had no large one to spare"),
        _ => Ok(()),
    }
}

/// Parent or child is killed in the midst of it, and nothing is left behind.
pub(crate) fn killed(device: &Handle) -> Result<(), String> {
    const ROUNDS: u64 = 200;
    const MOST: i64 = 2048;
    let once = |round: u64| -> Result<(), String> {
        let parent = Child::start(|| {
            let mut parent = Member::new(device, 2, MIB / 2)?;
            for seed in 0.. {
                parent.rounds(1, seed)?;
                let child = parent.child(|child| child.rounds(2, seed))?;
                parent.rounds(1, seed)?;
                match seed % 3 {
                    0 => child.kill(),
                    _ => child.join()?,
                }
            }
            Ok(())
        })?;
        std::thread::sleep(Duration::from_micros(round * 7919 % 40_000));
        parent.kill();
        Ok(())
    };
    once(1)?;
    let before = kernel_memory();
    (0..ROUNDS).try_for_each(once)?;
    let more = growth(before, MOST)?;
    println!("# {more} KiB more after {ROUNDS} processes that were killed");
    Ok(())
}

/// The parent goes at once, with its VM, and its child lives on.
pub(crate) fn orphan(device: &Handle) -> Result<(), String> {
    let good = Mapping::shared(PAGE).map_err(|error| error.to_string())?;
    let first = Child::start(|| {
        let mut parent = Member::new(device, 2, MIB / 4)?;
        parent.rounds(5, 1)?;
        parent.child(|child| {
            // SAFETY: Only asks for a number.
            patience::until("the parent is gone", || unsafe { libc::getppid() } == 1)?;
            child.rounds(5, 2)?;
            counter(&good).fetch_add(1, Ordering::SeqCst);
            Ok(())
        })?;
        Ok(())
    })?;
    first.join()?;
    patience::until("the orphan has run", || {
        counter(&good).load(Ordering::SeqCst) == 1
    })
}

/// A snapshot that keeps memory, too: a reset to it, then fork(2); the child takes snapshots of its
/// own.
pub(crate) fn after_reset(device: &Handle) -> Result<(), String> {
    let mut parent = Member::new(device, 2, MIB / 2)?;
    parent.rounds(5, 1)?;
    let snapshot = Snapshot::create(&parent.writer.machine.vm, LIMIT)?;
    for seed in 0..3 {
        parent.writer.run(9, seed)?;
        snapshot.reset(0)?;
        parent.check()?;
        let child = parent.child_of(&snapshot, |child| {
            let own = Snapshot::create(&child.writer.machine.vm, LIMIT)?;
            for round in 0..3 {
                child.writer.run(4, round)?;
                own.reset(round & 1)?;
                child.check()?;
            }
            drop(own);
            child.rounds(3, seed)
        })?;
        parent.writer.run(3, seed)?;
        child.join()?;
    }
    snapshot.reset(0)?;
    drop(snapshot);
    parent.rounds(5, 4)
}

/// The child's clock goes on from the snapshot, or has gone on.
pub(crate) fn time(device: &Handle) -> Result<(), String> {
    let mut parent = Member::new(device, 1, MIB / 4)?;
    let clock = |member: &Member<'_>| -> Result<u64, String> {
        let vm = &member.writer.machine.vm;
        Ok(vm
            .get::<kvm_bindings::kvm_clock_data>(number::GET_CLOCK)?
            .clock)
    };
    let snapshot = Snapshot::of_state(&parent.writer.machine.vm)?;
    let then = clock(&parent)?;
    while clock(&parent)? < then + 200_000_000 {}
    let late = clock(&parent)?;
    let child = Child::start(|| {
        let vm = &mut parent.writer.machine;
        vm.fork_from(device, &snapshot, FORK_TIME)?;
        equal("back", clock(&parent)? < late, true)
    })?;
    child.join()?;
    let child = parent.child_of(&snapshot, |child| equal("on", clock(child)? >= late, true))?;
    child.join()
}
