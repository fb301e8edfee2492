// SPDX-License-Identifier: GPL-2.0-only

//! Snapshots on top of each other, and what a reset looks at.

use std::fmt::Debug;

use kvm_bindings::kvm_regs;
use selftests::kvm::{number, Handle};
use selftests::memory::PAGE;
use selftests::process::Child;
use selftests::snapshot::{Snapshot, RESET_TIME};
use selftests::tap::equal;

use crate::hostile::refused;
use crate::state::State;
use crate::writer::{Writer, TARGET};
use crate::LIMIT;

const MIB: usize = 1 << 20;

/// A machine that is looked at, and taken snapshots of.
struct Seen<'a> {
    device: &'a Handle,
    writer: Writer,
}

impl<'a> Seen<'a> {
    fn new(device: &'a Handle, cpus: u32) -> Result<Self, String> {
        let writer = Writer::new(device, cpus, MIB)?;
        writer.run(3, 1)?;
        Ok(Self { device, writer })
    }

    fn look(&self) -> Result<State, String> {
        self.writer.look(self.device)
    }

    /// A snapshot, and what is to be seen after a reset to it.
    fn take(&self) -> Result<(Snapshot, State), String> {
        // What is pending is brought into its form for the VMM by being shown.
        self.look()?;
        let snapshot = Snapshot::create(&self.writer.machine.vm, LIMIT)?;
        Ok((snapshot, self.look()?))
    }

    fn reset(&self, (snapshot, state): &(Snapshot, State), flags: u64) -> Result<u64, String> {
        let pages = snapshot.reset(flags)?;
        state.same(&self.look()?)?;
        Ok(pages)
    }
}

fn gone(snapshot: &Snapshot) -> Result<(), String> {
    fn enxio<T: PartialEq + Debug>(
        what: &str,
        answer: selftests::kvm::Answer<T>,
    ) -> Result<(), String> {
        refused(what, answer, libc::ENXIO)
    }
    enxio("reset", snapshot.reset(0))?;
    enxio("keep", snapshot.keep(TARGET, PAGE as u64))?;
    enxio("a limit", snapshot.set_limit(LIMIT))?;
    enxio("how much", snapshot.kept())?;
    snapshot.fork(0).map(drop)?;
    Ok(())
}

/// Back to the inner one, and to the outer one, in each order.
pub(crate) fn two(device: &Handle) -> Result<(), String> {
    let seen = Seen::new(device, 2)?;
    for round in 0..6 {
        let outer = seen.take()?;
        seen.writer.run(2 + round, round)?;
        let inner = seen.take()?;
        for turn in 0..3 {
            seen.writer.run(3, turn)?;
            seen.reset(&inner, turn & RESET_TIME)?;
        }
        seen.writer.run(round, 4)?;
        match round % 3 {
            0 => {
                seen.reset(&outer, 0)?;
                gone(&inner.0)?;
                seen.writer.run(2, 5)?;
                seen.reset(&outer, 0)?;
            }
            1 => {
                drop(inner);
                seen.writer.run(1, 6)?;
                seen.reset(&outer, 0)?;
            }
            _ => {
                drop(outer);
                seen.reset(&inner, 0)?;
            }
        }
    }
    Ok(())
}

/// Many, taken, used and closed at random.
pub(crate) fn many(device: &Handle) -> Result<(), String> {
    const MOST: usize = 6;
    let seen = Seen::new(device, 1)?;
    let mut stack: Vec<(Snapshot, State)> = Vec::new();
    let mut random = 0x1234_5678_9abc_def1u64;
    for round in 0..80 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let place = (random >> 8) as usize % stack.len().max(1);
        match random % 8 {
            0..=2 if stack.len() < MOST => stack.push(seen.take()?),
            3 | 4 if place < stack.len() => {
                let result = seen.reset(&stack[place], random >> 4 & RESET_TIME);
                result.map_err(|error| {
                    format!("round {round}, {place} of {}: {error}", stack.len())
                })?;
                let left = stack.split_off(place + 1);
                left.iter().try_for_each(|(snapshot, _)| gone(snapshot))?;
            }
            5 if place < stack.len() => drop(stack.remove(place)),
            _ => {}
        }
        seen.writer.run(random >> 40 & 3, round)?;
    }
    Ok(())
}

/// A stack has a limit, at which nothing is lost; what is closed makes room.
pub(crate) fn deep(device: &Handle) -> Result<(), String> {
    const DEEPEST: usize = 64;
    let seen = Seen::new(device, 1)?;
    let outer = seen.take()?;
    let vm = &seen.writer.machine.vm;
    let mut inner = Vec::new();
    for _ in 1..DEEPEST {
        seen.writer.run(1, 2)?;
        inner.push(Snapshot::create(vm, LIMIT)?);
    }
    for _ in 0..3 {
        refused("one more", Snapshot::create(vm, LIMIT), libc::E2BIG)?;
        drop(inner.remove(DEEPEST / 2));
        inner.push(Snapshot::create(vm, LIMIT)?);
    }
    seen.reset(&outer, 0).map(drop)
}

/// The guest writes to so much of its memory only.
fn narrow(writer: &Writer, bytes: usize) -> Result<(), String> {
    let vcpu = &writer.machine.vcpus[0].handle;
    let mut regs: kvm_regs = vcpu.get(number::GET_REGS)?;
    regs.r10 = bytes as u64 / 8 - 1;
    vcpu.set(number::SET_REGS, &regs)?;
    Ok(())
}

/// A reset copies what the round has written, not what any round has.
pub(crate) fn only_written(device: &Handle) -> Result<(), String> {
    let seen = Seen::new(device, 1)?;
    let taken = seen.take()?;
    seen.writer.run(60, 1)?;
    let first = seen.reset(&taken, 0)?;
    for round in 0..45u64 {
        narrow(&seen.writer, 2 * PAGE)?;
        seen.writer.run(5, round)?;
        let pages = seen.reset(&taken, 0)?;
        // Two pages, the stack, and what the guest's tables and records may be in.
        equal("pages of a small round", pages <= 6, true)?;
    }
    // What was at rest is written again.
    for round in 0..3 {
        seen.writer.run(60, round)?;
        let pages = seen.reset(&taken, 0)?;
        equal("pages of a large round", pages > first / 2, true)?;
    }
    println!("# {first} pages in the first round");
    equal("nothing written", seen.reset(&taken, 0)? <= 1, true)
}

/// The host takes pages, or the right to write to them, between the writes and the reset.
pub(crate) fn taken_by_the_host(device: &Handle) -> Result<(), String> {
    let seen = Seen::new(device, 2)?;
    let taken = seen.take()?;
    let protect = |protection| {
        let target = &seen.writer.target;
        // SAFETY: The mapping's own memory, to which nobody has references.
        unsafe { libc::mprotect(target.start().cast(), target.len(), protection) }
    };
    for round in 0..12 {
        seen.writer.run(8, round)?;
        match round % 3 {
            0 => {}
            1 => Child::start(|| Ok(()))?.join()?,
            _ => {
                protect(libc::PROT_READ);
                protect(libc::PROT_READ | libc::PROT_WRITE);
            }
        }
        if round % 2 == 0 {
            seen.writer.run(2, round)?;
        }
        seen.reset(&taken, 0)
            .map_err(|error| format!("round {round}: {error}"))?;
    }
    Ok(())
}

/// Pages that the VMM writes once, and pages that it writes when it likes.
pub(crate) fn once(device: &Handle) -> Result<(), String> {
    let seen = Seen::new(device, 1)?;
    let taken = seen.take()?;
    let page = PAGE as u64;
    seen.reset(&taken, 0)?;
    equal("left", taken.0.keep_once(TARGET, 3 * page)?, 0)?;
    seen.writer.target.write(0, &[0x5a; 3 * PAGE]);
    equal("put back", seen.reset(&taken, 0)?, 3)?;
    equal("nothing", seen.reset(&taken, 0)?, 0)?;
    equal("left", taken.0.keep_once(TARGET + page, page)?, 0)?;
    seen.writer.target.write(PAGE, &[0xa5; PAGE]);
    equal("again", seen.reset(&taken, 0)?, 1)?;
    equal("left", taken.0.keep(TARGET, page)?, 0)?;
    for _ in 0..20 {
        seen.writer.target.write(0, &[0x3c; PAGE]);
        equal("always", seen.reset(&taken, 0)?, 1)?;
    }
    // What the outer one was told counts for it again when the inner one has gone.
    let inner = seen.take()?;
    equal("left", inner.0.keep(TARGET + 5 * page, page)?, 0)?;
    seen.writer.target.write(5 * PAGE, &[1; PAGE]);
    equal("left", inner.0.keep_once(TARGET, page)?, 0)?;
    seen.writer.target.write(0, &[2; PAGE]);
    drop(inner);
    for _ in 0..3 {
        seen.reset(&taken, 0)?;
        seen.writer.target.write(5 * PAGE, &[1; PAGE]);
        seen.writer.target.write(0, &[2; PAGE]);
    }
    Ok(())
}
