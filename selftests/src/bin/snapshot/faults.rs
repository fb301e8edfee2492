// SPDX-License-Identifier: GPL-2.0-only

//! Snapshots, resets and forks with each of the kernel's allocations and copies failing once: what
//! was refused has lost nothing. On kernels with fault injection only.

use std::cell::Cell;

use selftests::faults::{self, each, some};
use selftests::kvm::{number, Errno, Handle};
use selftests::memory::{growth, kernel_memory, unreferenced, PAGE};
use selftests::snapshot::{Snapshot, FORK_TIME};
use selftests::tap::equal;

use crate::family::Member;
use crate::state::State;
use crate::writer::{Writer, TARGET};
use crate::{Test, LIMIT};

const BYTES: usize = 64 * PAGE;

/// The tests, if this kernel can inject faults.
pub(crate) fn tests() -> &'static [(&'static str, Test)] {
    match faults::available() {
        true => TESTS,
        false => &[],
    }
}

const TESTS: &[(&str, Test)] = &[
    ("a snapshot, each allocation failing", create),
    ("a guest whose pages are kept, each allocation failing", run),
    ("an announced write, each allocation failing", announce),
    ("a reset, each allocation failing", reset),
    ("snapshots that go, each allocation failing", close),
    ("a fork, each allocation failing", fork),
    ("what failed left no memory behind", nothing_left),
];

/// A guest, and what it looks like now.
fn prepared(device: &Handle) -> Result<(Writer, State), String> {
    faults::prepare()?;
    let writer = Writer::new(device, 2, BYTES)?;
    writer.run(2, 1)?;
    // What is pending is brought into its form for the VMM by being shown.
    writer.look(device)?;
    let state = writer.look(device)?;
    Ok((writer, state))
}

fn create(device: &Handle) -> Result<(), String> {
    let (writer, state) = prepared(device)?;
    let vm = &writer.machine.vm;
    let before = || writer.is_back(device, &state, 0);
    some("PACIFICA_CREATE_SNAPSHOT", before, |()| {
        Snapshot::create(vm, LIMIT)
    })?;
    some("of the state alone", before, |()| Snapshot::of_state(vm))?;
    // Where there was one, a second one comes on top.
    let first = Snapshot::create(vm, LIMIT)?;
    some("on another one", before, |()| Snapshot::create(vm, LIMIT))?;
    writer.run(3, 2)?;
    first.reset(0)?;
    before()
}

/// What the guest does after a fault is what it does without one.
fn run(device: &Handle) -> Result<(), String> {
    let (writer, state) = prepared(device)?;
    let vcpu = &writer.machine.vcpus[0];
    let snapshot = Snapshot::create(&writer.machine.vm, LIMIT)?;
    writer.run_one(0, 1, 5)?;
    let free = writer.look(device)?;
    let has_run = Cell::new(true);
    let anew = || -> Result<(), String> {
        if has_run.replace(false) {
            writer.is_back(device, &free, 1)?;
        }
        snapshot.set_limit(snapshot.kept()?)?;
        snapshot.reset(0)?;
        equal("all is kept anew", snapshot.kept()?, 0)?;
        snapshot.set_limit(LIMIT)?;
        writer.is_back(device, &state, 0)
    };
    some("KVM_RUN", anew, |()| {
        vcpu.run()?;
        vcpu.page().write(PAGE, &5u32.to_le_bytes());
        has_run.set(true);
        Ok(0)
    })?;
    anew()
}

fn announce(device: &Handle) -> Result<(), String> {
    let (writer, state) = prepared(device)?;
    let snapshot = Snapshot::create(&writer.machine.vm, LIMIT)?;
    let write = |byte: u8| (0..8).for_each(|page| writer.target.write(page * PAGE, &[byte; 64]));
    let back = || -> Result<(), String> {
        snapshot.set_limit(snapshot.kept()?)?;
        snapshot.reset(0)?;
        snapshot.set_limit(LIMIT)?;
        writer.is_back(device, &state, 0)
    };
    some("PACIFICA_KEEP_PAGES", back, |()| {
        let (mut gpa, end) = (TARGET, TARGET + 8 * PAGE as u64);
        while gpa < end {
            // What a fault leaves is done by the next call.
            let left = snapshot.keep_once(gpa, end - gpa)?;
            if left == end - gpa {
                return Err(Errno(libc::EIO));
            }
            gpa = end - left;
        }
        write(0xa5);
        Ok(0)
    })?;
    back()
}

/// A reset that failed can be done again, and all is as it was.
fn reset(device: &Handle) -> Result<(), String> {
    let (writer, state) = prepared(device)?;
    let vm = &writer.machine.vm;
    let outer = Snapshot::create(vm, LIMIT)?;
    let round = Cell::new(0);
    let changed = |inner: bool| -> Result<Option<Snapshot>, String> {
        writer.is_back(device, &state, round.get())?;
        round.set(round.get() + 1);
        writer.run(2, round.get())?;
        let inner = inner.then(|| Snapshot::create(vm, LIMIT)).transpose()?;
        writer.run(2, round.get() * 7)?;
        Ok(inner)
    };
    each("PACIFICA_RESET", || changed(false), |_| outer.reset(0))?;
    each("with one on top", || changed(true), |_| outer.reset(0))?;
    writer.is_back(device, &state, round.get())?;
    let forgotten = || -> Result<Option<Snapshot>, String> {
        let changed = changed(false)?;
        outer.set_limit(outer.kept()?)?;
        Ok(changed)
    };
    each("when it is full", forgotten, |_| {
        let pages = outer.reset(0)?;
        outer.set_limit(LIMIT)?;
        Ok(pages)
    })?;
    writer.is_back(device, &state, round.get())
}

/// The end of a snapshot cannot fail; what it kept goes to the one below.
fn close(device: &Handle) -> Result<(), String> {
    let (writer, state) = prepared(device)?;
    let vm = &writer.machine.vm;
    let outer = Snapshot::create(vm, LIMIT)?;
    let inner = || -> Result<Cell<Option<Snapshot>>, String> {
        outer.reset(0)?;
        writer.is_back(device, &state, 0)?;
        writer.run(2, 3)?;
        let inner = Snapshot::create(vm, LIMIT)?;
        writer.run(2, 4)?;
        Ok(Cell::new(Some(inner)))
    };
    let refused = each("close", inner, |inner| {
        drop(inner.take());
        Ok(0)
    })?;
    equal("refused", refused, 0)?;
    outer.reset(0)?;
    writer.is_back(device, &state, 0)
}

/// The child tries until it has a VM, which then is the parent's twin.
fn fork(device: &Handle) -> Result<(), String> {
    faults::prepare()?;
    let mut parent = Member::new(device, 2, BYTES)?;
    parent.rounds(3, 1)?;
    parent.writer.look(device)?;
    let state = parent.writer.look(device)?;
    let snapshot = Snapshot::of_state(&parent.writer.machine.vm)?;
    let same = |flags: u64| {
        some(
            "PACIFICA_FORK",
            || Ok(()),
            |()| {
                let vm = snapshot.fork(flags)?;
                vm.open_with(number::CREATE_VCPU, 0)
            },
        )
    };
    let child = parent.child_of(&snapshot, |child| {
        same(0)?;
        same(FORK_TIME)?;
        child.writer.is_back(device, &state, 0)?;
        child.rounds(3, 2)
    })?;
    child.join()?;
    parent.rounds(3, 3)
}

/// All of it once more takes no more pages, and leaves nothing that is not pointed to.
fn nothing_left(device: &Handle) -> Result<(), String> {
    let again = &TESTS[..TESTS.len() - 1];
    let before = kernel_memory();
    for (_, test) in again {
        test(device)?;
    }
    growth(before, 1000)?;
    let leaks = unreferenced().map_err(|e| e.to_string())?;
    equal("leaks", leaks.as_str(), "")
}
