// SPDX-License-Identifier: GPL-2.0-only

//! A machine becomes two: by a snapshot of its state, or where there is none, with all ioctls that
//! get and set state. In both cases fork(2) shares the memory.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use selftests::kvm::Handle;
use selftests::memory::{kernel_memory, Mapping, PAGE};
use selftests::patience;
use selftests::process::Child;
use selftests::snapshot::Snapshot;

use crate::guests::TOUCH_WRITES;
use crate::host::own_ticks;
use crate::resets::{has_snapshots, used};
use crate::saved::{Plan, Saved};
use crate::touch::{ticks, Memory};
use crate::{Row, Rows};

/// How many children there are at once.
const CHILDREN: u64 = 100;
const SMALL: i32 = libc::MADV_NOHUGEPAGE;
const LARGE: i32 = libc::MADV_HUGEPAGE;
const MIB: usize = 1 << 20;

/// A machine's state.
enum State {
    Snapshot(Snapshot),
    Saved(Box<Saved>, Plan),
}

/// What the VMM knows before it forks.
struct Parent<'a> {
    device: &'a Handle,
    memory: Memory,
    /// Of each child: what it took to its guest's first exit, or 0.
    taken: Mapping,
}

impl<'a> Parent<'a> {
    fn new(device: &'a Handle, advice: i32, size: usize) -> Result<Self, String> {
        let memory = used(device, advice, size)?;
        let taken = Mapping::shared(PAGE).map_err(|e| e.to_string())?;
        Ok(Self {
            device,
            memory,
            taken,
        })
    }

    fn taken(&self, child: u64) -> &AtomicU64 {
        assert!(child < CHILDREN);
        // SAFETY: There is room for all in the page, and it is used as these only.
        unsafe { &*self.taken.start().cast::<AtomicU64>().add(child as usize) }
    }

    /// Whether its guest writes or reads.
    fn set_writes(&self, writes: bool) {
        let ram = &self.memory.machine.ram;
        ram.write_words(TOUCH_WRITES, &[writes.into()]);
    }

    /// Waits until all children have said what it took.
    fn wait_for_all(&self) -> Result<(), String> {
        let start = Instant::now();
        while (0..CHILDREN).any(|id| self.taken(id).load(Ordering::SeqCst) == 0) {
            if start.elapsed() > patience::limit() {
                return Err("a child has not said what it took".into());
            }
            // SAFETY: Lets the others run.
            unsafe { libc::sched_yield() };
        }
        Ok(())
    }

    /// Forgets what they have said.
    fn forget_all(&self) {
        (0..CHILDREN).for_each(|id| self.taken(id).store(0, Ordering::SeqCst));
    }

    /// Without a plan by a snapshot.
    fn state(&self, plan: Option<Plan>) -> Result<State, String> {
        let machine = &self.memory.machine;
        Ok(match plan {
            None => State::Snapshot(Snapshot::of_state(&machine.vm)?),
            Some(plan) => State::Saved(Box::new(Saved::take(&plan, machine)?), plan),
        })
    }

    fn plan(&self) -> Result<Option<Plan>, String> {
        match has_snapshots(self.device) {
            true => Ok(None),
            false => Plan::new(self.device, &self.memory.machine).map(Some),
        }
    }

    /// In a child: a machine of its own, whose guest runs to its first exit.
    fn become_child(&mut self, state: &mut State) -> Result<(), String> {
        match state {
            State::Snapshot(snapshot) => {
                self.memory.machine.fork_from(self.device, snapshot, 0)?;
            }
            State::Saved(saved, plan) => saved.fork(self.device, plan, &mut self.memory)?,
        }
        self.memory.go(0).map(drop)
    }

    /// A child without a machine.
    fn child_without(&self, id: u64) -> Result<Child, String> {
        Child::start(|| {
            self.taken(id).store(1, Ordering::SeqCst);
            idle()
        })
    }

    /// A child that does so, says what it took, and waits for its end.
    fn child(&mut self, state: &mut State, id: u64) -> Result<Child, String> {
        Child::start(|| {
            let ticks = own_ticks(|| self.become_child(state))?;
            self.taken(id).store(ticks, Ordering::SeqCst);
            idle()
        })
    }
}

/// Waits for its end.
fn idle() -> ! {
    loop {
        // SAFETY: It only waits.
        unsafe { libc::pause() };
    }
}

fn row(name: &'static str, value: u64) -> Row {
    Row {
        name,
        value,
        times: 0,
    }
}

/// The names of what is measured with memory of one kind.
struct Names {
    pause: &'static str,
    alone: &'static str,
    child: &'static str,
    reads: &'static str,
    writes: Option<&'static str>,
}

/// One child, and what its parent does afterwards.
fn one(device: &Handle, advice: i32, size: usize, names: &Names) -> Rows {
    let mut rows = vec![row(names.alone, alone(device, advice, size)?)];
    let mut parent = Parent::new(device, advice, size)?;
    let pages = (size / PAGE) as u64;
    // The child's guest reads a page, and leaves.
    parent.set_writes(false);
    parent.memory.prepare(0, 0, 1, 0)?;
    let plan = parent.plan()?;
    let mut child = None;
    let pause = own_ticks(|| {
        let mut state = parent.state(plan)?;
        child = Some(parent.child(&mut state, 0)?);
        Ok(())
    })?;
    rows.push(row(names.pause, pause));
    patience::until("the child has run", || {
        parent.taken(0).load(Ordering::SeqCst) > 0
    })?;
    rows.push(row(names.child, parent.taken(0).load(Ordering::SeqCst)));
    let exits = parent.memory.exits()?;
    parent.memory.touch(pages, PAGE)?;
    rows.push(row(names.reads, parent.memory.exits()? - exits));
    if let Some(name) = names.writes {
        parent.set_writes(true);
        let ticks = parent.memory.touch(pages, PAGE)?;
        rows.push(row(name, ticks / pages));
    }
    child.ok_or("no child")?.kill();
    Ok(rows)
}

/// What fork(2) takes of a process with such memory, of which its guest has nothing.
fn alone(device: &Handle, advice: i32, size: usize) -> Result<u64, String> {
    let memory = used(device, advice, size)?;
    memory.forget()?;
    let mut child = None;
    let ticks = own_ticks(|| {
        child = Some(Child::start(|| idle())?);
        Ok(())
    })?;
    child.ok_or("no child")?.kill();
    Ok(ticks)
}

/// Many at once: what they take of the kernel's memory each, and all the work until the last one's
/// guest has run.
fn many(device: &Handle) -> Rows {
    let mut parent = Parent::new(device, SMALL, 2 * MIB)?;
    parent.set_writes(false);
    parent.memory.prepare(0, 0, 1, 0)?;
    let end = |children: Vec<Child>| children.into_iter().for_each(Child::kill);
    // What processes take by themselves. The first round fills the host's caches.
    let (mut alone, mut memory_alone) = (0, 0);
    for _ in 0..2 {
        let before = kernel_memory();
        let begin = ticks();
        let children: Result<Vec<_>, _> =
            (0..CHILDREN).map(|id| parent.child_without(id)).collect();
        let children = children?;
        parent.wait_for_all()?;
        alone = ticks() - begin;
        memory_alone = (kernel_memory() - before) * 1024 / CHILDREN as i64;
        end(children);
        parent.forget_all();
    }
    let before = kernel_memory();
    let plan = parent.plan()?;
    let begin = ticks();
    let mut state = parent.state(plan)?;
    let children: Result<Vec<_>, _> = (0..CHILDREN)
        .map(|id| parent.child(&mut state, id))
        .collect();
    let children = children?;
    parent.wait_for_all()?;
    let all = ticks() - begin;
    let each = (kernel_memory() - before) * 1024 / CHILDREN as i64;
    end(children);
    Ok(vec![
        row("fork_100", all),
        row("fork_100_alone", alone),
        row("fork_memory", each.max(0) as u64),
        row("fork_memory_alone", memory_alone.max(0) as u64),
    ])
}

pub(crate) fn forks(device: &Handle) -> Rows {
    // So that large pages are there where they are asked for.
    let _ = fs::write("/sys/kernel/mm/transparent_hugepage/defrag", "always");
    let small = Names {
        pause: "fork_pause",
        alone: "fork_alone",
        child: "fork_child",
        reads: "fork_reads",
        writes: Some("fork_writes"),
    };
    let large = Names {
        pause: "fork_pause_2m",
        alone: "fork_alone_2m",
        child: "fork_child_2m",
        reads: "fork_reads_2m",
        writes: Some("fork_writes_2m"),
    };
    // The host has no room for another GiB.
    let small_gib = Names {
        pause: "fork_pause_1g",
        alone: "fork_alone_1g",
        child: "fork_child_1g",
        reads: "fork_reads_1g",
        writes: None,
    };
    let large_gib = Names {
        pause: "fork_pause_1g_2m",
        alone: "fork_alone_1g_2m",
        child: "fork_child_1g_2m",
        reads: "fork_reads_1g_2m",
        writes: None,
    };
    let mut rows = Vec::new();
    for (advice, mib, names) in [
        (SMALL, 64, small),
        (LARGE, 64, large),
        (SMALL, 1024, small_gib),
        (LARGE, 1024, large_gib),
    ] {
        rows.extend(one(device, advice, mib * MIB, &names)?);
    }
    rows.extend(many(device)?);
    Ok(rows)
}
