// SPDX-License-Identifier: GPL-2.0-only

//! Slots change beside a snapshot. A reset puts back what is at its place then, and leaves alone
//! what is not.

use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::*;
use selftests::kvm::{number, Answer, Handle};
use selftests::machine::map;
use selftests::memory::Mapping;
use selftests::snapshot::{Snapshot, RESET_TIME};
use selftests::tap::equal;

use crate::many::a_page;
use crate::state::State;
use crate::writer::{Writer, TARGET};
use crate::LIMIT;

const MIB: usize = 1 << 20;
/// The slot of the writer's target.
const SLOT: u32 = 7;

/// Takes a slot away.
fn remove(vm: &Handle, slot: u32) -> Answer {
    vm.set(
        number::SET_USER_MEMORY_REGION,
        &kvm_userspace_memory_region {
            slot,
            ..Default::default()
        },
    )
}

/// A writer that has run, its snapshot, and what it looked like.
fn begin(device: &Handle, cpus: u32) -> Result<(Writer, Snapshot, State), String> {
    let writer = Writer::new(device, cpus, MIB)?;
    writer.run(10, 1)?;
    writer.look(device)?;
    let snapshot = Snapshot::create(&writer.machine.vm, LIMIT)?;
    let state = writer.look(device)?;
    Ok((writer, snapshot, state))
}

/// Memory that is full of ones.
fn ones() -> Result<Mapping, String> {
    let other = Mapping::anonymous(MIB).map_err(|error| error.to_string())?;
    other.write(0, &vec![1; MIB]);
    Ok(other)
}

/// The same slot again, and another one meanwhile or not: what was written before, between and
/// after is put back.
pub(crate) fn away_and_back(device: &Handle) -> Result<(), String> {
    let (writer, snapshot, state) = begin(device, 2)?;
    let vm = &writer.machine.vm;
    let other = ones()?;
    for round in 0..6 {
        writer.run(3, round)?;
        remove(vm, SLOT)?;
        if round % 3 == 1 {
            map(vm, 8, 0, TARGET, &other)?;
            writer.run(2, round)?;
            remove(vm, 8)?;
        }
        map(vm, SLOT, 0, TARGET, &writer.target)?;
        if round % 2 == 0 {
            writer.run(3, round + 9)?;
        }
        snapshot.reset(RESET_TIME)?;
        writer.is_back(device, &state, round)?;
    }
    Ok(())
}

/// Other memory stays where the slot was: the reset knows it from when it came, and does not touch
/// what was there before.
pub(crate) fn replaced(device: &Handle) -> Result<(), String> {
    let (writer, snapshot, _) = begin(device, 1)?;
    let vm = &writer.machine.vm;
    let other = ones()?;
    writer.run(5, 1)?;
    let left = writer.target.read(0, MIB);
    remove(vm, SLOT)?;
    map(vm, SLOT, 0, TARGET, &other)?;
    for round in 0..3 {
        writer.run(5, round)?;
        equal("written", other.read(0, MIB) == vec![1; MIB], false)?;
        snapshot.reset(0)?;
        equal("the other memory", other.read(0, MIB) == vec![1; MIB], true)?;
        equal("what was there", writer.target.read(0, MIB) == left, true)?;
    }
    Ok(())
}

/// The VMM has unmapped the memory, too, and something of its own is there now.
pub(crate) fn gone(device: &Handle) -> Result<(), String> {
    let (writer, snapshot, _) = begin(device, 1)?;
    let vm = &writer.machine.vm;
    writer.run(5, 1)?;
    snapshot.keep(TARGET, MIB as u64)?;
    remove(vm, SLOT)?;
    let start = writer.target.start().cast();
    let again = |protection| {
        // SAFETY: The mapping's own addresses; zeros are there then.
        let mapped = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            libc::mmap(start, MIB, protection, flags, -1, 0)
        };
        equal("mmap", mapped == start, true)
    };
    again(libc::PROT_NONE)?;
    equal("a reset", snapshot.reset(0).is_ok(), true)?;
    again(libc::PROT_READ | libc::PROT_WRITE)?;
    writer.target.write(0, &[7; MIB]);
    for _ in 0..2 {
        snapshot.reset(0)?;
        let is_own = writer.target.read(0, MIB) == [7; MIB];
        equal("the VMM's own memory", is_own, true)?;
    }
    // It comes back as it is now.
    map(vm, SLOT, 0, TARGET, &writer.target)?;
    writer.run(5, 2)?;
    snapshot.reset(0)?;
    let back = writer.target.read(0, MIB) == [7; MIB];
    equal("the memory that came", back, true)
}

/// Pages that the guest has not written for long are forgotten, too, if they are gone at a reset.
pub(crate) fn forgotten(device: &Handle) -> Result<(), String> {
    let (writer, snapshot, _) = begin(device, 1)?;
    let vm = &writer.machine.vm;
    writer.run(5, 1)?;
    let before = snapshot.kept()?;
    for _ in 0..20 {
        snapshot.reset(0)?;
    }
    remove(vm, SLOT)?;
    snapshot.reset(0)?;
    equal("less is kept", snapshot.kept()? < before, true)?;
    writer.target.write(0, &[7; MIB]);
    map(vm, SLOT, 0, TARGET, &writer.target)?;
    writer.run(5, 1)?;
    snapshot.reset(0)?;
    let back = writer.target.read(0, MIB) == [7; MIB];
    equal("the memory that came", back, true)
}

/// What the VMM has announced for good stays so while the memory is away, unless a reset finds it
/// gone.
pub(crate) fn announced(device: &Handle) -> Result<(), String> {
    let (writer, snapshot, state) = begin(device, 1)?;
    let vm = &writer.machine.vm;
    let other = ones()?;
    snapshot.keep(TARGET, MIB as u64)?;
    for round in 0..3 {
        remove(vm, SLOT)?;
        map(vm, SLOT, 0, TARGET, &other)?;
        writer.run(5, round)?;
        remove(vm, SLOT)?;
        map(vm, SLOT, 0, TARGET, &writer.target)?;
        if round == 1 {
            // It is kept once more, and then as it is now.
            writer.run(5, round)?;
        }
        snapshot.reset(RESET_TIME)?;
        state.same(&writer.look(device)?)?;
        writer.target.write(0, &[round as u8; MIB]);
        snapshot.reset(RESET_TIME)?;
        writer.is_back(device, &state, round)?;
    }
    remove(vm, SLOT)?;
    snapshot.reset(0)?;
    map(vm, SLOT, 0, TARGET, &writer.target)?;
    writer.target.write(0, &[9; MIB]);
    snapshot.reset(0)?;
    let own = writer.target.read(0, MIB) == [9; MIB];
    equal("no more of the announcement", own, true)
}

/// A slot that was not there: the guest and the VMM may write it, and a reset puts it back as it
/// came.
pub(crate) fn new(device: &Handle) -> Result<(), String> {
    const AT: u64 = 1 << 32;
    let (writer, snapshot, state) = begin(device, 1)?;
    let vm = &writer.machine.vm;
    let page = a_page()?;
    page.write(0, b"as it came");
    map(vm, 9, 0, AT, &page)?;
    for _ in 0..3 {
        writer.run(2, 3)?;
        snapshot.keep_once(AT, page.len() as u64)?;
        page.write(0, b"written   ");
        snapshot.reset(0)?;
        equal("the new slot", page.read(0, 10) == b"as it came", true)?;
        state.same(&writer.look(device)?)?;
    }
    remove(vm, 9)?;
    snapshot.reset(0)?;
    state.same(&writer.look(device)?)
}

/// It goes and comes back under the inner of two, of which the outer one resets.
pub(crate) fn stack(device: &Handle) -> Result<(), String> {
    let (writer, outer, state) = begin(device, 2)?;
    let vm = &writer.machine.vm;
    let other = ones()?;
    for round in 0..4 {
        writer.run(2, round)?;
        let inner = Snapshot::create(vm, LIMIT)?;
        writer.run(2, round + 20)?;
        remove(vm, SLOT)?;
        map(vm, SLOT, 0, TARGET, &other)?;
        writer.run(2, round + 30)?;
        remove(vm, SLOT)?;
        map(vm, SLOT, 0, TARGET, &writer.target)?;
        writer.run(2, round + 40)?;
        if round % 2 == 0 {
            // What it has kept goes to the outer one.
            drop(inner);
            writer.run(2, round + 50)?;
        }
        outer.reset(RESET_TIME)?;
        writer.is_back(device, &state, round)?;
    }
    Ok(())
}

/// A log that ends would make large pages, whose dirty bits tell nothing.
pub(crate) fn logs(device: &Handle) -> Result<(), String> {
    let writer = Writer::new(device, 1, 8 * MIB)?;
    writer.run(10, 1)?;
    writer.look(device)?;
    let snapshot = Snapshot::create(&writer.machine.vm, LIMIT)?;
    let state = writer.look(device)?;
    // All of it is written, and in small pages.
    snapshot.keep(TARGET, 8 * MIB as u64)?;
    writer.run(2000, 5)?;
    for round in 0..6 {
        writer.run(10, round)?;
        let flags = if round % 2 == 0 {
            KVM_MEM_LOG_DIRTY_PAGES
        } else {
            0
        };
        map(&writer.machine.vm, SLOT, flags, TARGET, &writer.target)?;
        writer.run(10, round + 9)?;
        snapshot.reset(RESET_TIME)?;
        writer.is_back(device, &state, round)?;
    }
    Ok(())
}

/// Another slot comes and goes all the time, and so does a log of the one that all CPUs write to.
pub(crate) fn at_any_time(device: &Handle) -> Result<(), String> {
    let (writer, snapshot, state) = begin(device, 3)?;
    let vm = &writer.machine.vm;
    let page = a_page()?;
    for round in 0..10 {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let changes = scope.spawn(|| {
                let mut count = 0;
                while !stop.load(Ordering::SeqCst) || count == 0 {
                    map(vm, 9, 0, 1 << 32, &page)?;
                    map(vm, SLOT, KVM_MEM_LOG_DIRTY_PAGES, TARGET, &writer.target)?;
                    remove(vm, 9)?;
                    map(vm, SLOT, 0, TARGET, &writer.target)?;
                    count += 1;
                }
                Ok::<u64, String>(count)
            });
            let ran = writer.run(40, round);
            stop.store(true, Ordering::SeqCst);
            let changed = changes.join().map_err(|_| "a panic".to_owned())?;
            changed.and(ran)
        })?;
        snapshot.reset(RESET_TIME)?;
        writer.is_back(device, &state, round)?;
    }
    Ok(())
}
