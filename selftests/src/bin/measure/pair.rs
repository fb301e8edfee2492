// SPDX-License-Identifier: GPL-2.0-only

//! Guest memory on a host with two CPUs: two vCPUs that map it at once, and one that runs while the
//! process gives it up. The emulator runs the CPUs in turns, and its clock counts the instructions
//! of both.

use std::sync::Barrier;
use std::thread::{available_parallelism, scope};

use selftests::kvm::Handle;
use selftests::memory::PAGE;

use crate::guests::{Code, SPIN_TURN, SPUN};
use crate::machine::beside;
use crate::touch::{ticks, Memory, PAGES};
use crate::{Row, Rows};

const HALF: u64 = PAGES / 2;

/// Each vCPU writes to a half of the pages; how long both take together.
fn touch_at_once(memory: &Memory) -> Result<u64, String> {
    let start = Barrier::new(2);
    let half = |cpu: usize| {
        start.wait();
        memory.touch_from(cpu, cpu as u64 * HALF, HALF, PAGE)
    };
    let begin = ticks();
    scope(|scope| {
        let second = scope.spawn(|| half(1));
        half(0)?;
        second.join().map_err(|_| "the second CPU's thread")?
    })?;
    Ok(ticks() - begin)
}

/// The same, one after the other.
fn touch_in_turns(memory: &Memory) -> Result<u64, String> {
    let first = memory.touch_from(0, 0, HALF, PAGE)?;
    Ok(first + memory.touch_from(1, HALF, HALF, PAGE)?)
}

/// The process gives memory up that the first vCPU has mapped, while the second runs: the work of
/// both CPUs, but for what the guest does.
fn give_up(memory: &Memory) -> Result<u64, String> {
    memory.touch_from(0, 0, PAGES, PAGE)?;
    let spun = || {
        let bytes = memory.machine.ram.read(SPUN, 8);
        u64::from_ne_bytes(bytes.try_into().unwrap_or_default())
    };
    let work = || {
        let (begin, before) = (ticks(), spun());
        memory.advise(libc::MADV_DONTNEED);
        let (turns, time) = (spun() - before, ticks() - begin);
        (turns > 0).then(|| time.saturating_sub(turns * SPIN_TURN))
    };
    let time = beside(&memory.machine.vcpus[1], work)?;
    time.ok_or("the guest did not run meanwhile".into())
}

pub(crate) fn pair(device: &Handle) -> Rows {
    if available_parallelism().map_or(1, usize::from) < 2 {
        return Ok(Vec::new());
    }
    let row = |name, value| Row {
        name,
        value,
        times: 0,
    };
    let memory = Memory::new(device, &[Code::Touch, Code::Touch], libc::MADV_NOHUGEPAGE)?;
    memory.populate();
    // Once in vain: the host's pages become dirty only the first time.
    touch_in_turns(&memory)?;
    memory.forget()?;
    let turns = touch_in_turns(&memory)?;
    memory.forget()?;
    let once = touch_at_once(&memory)?;
    drop(memory);
    let memory = Memory::new(device, &[Code::Touch, Code::Spin], libc::MADV_NOHUGEPAGE)?;
    memory.populate();
    Ok(vec![
        row("populate_turns", turns / PAGES),
        row("populate_pair", once / PAGES),
        row("unmap_running", give_up(&memory)?),
    ])
}
