// SPDX-License-Identifier: GPL-2.0-only

//! A machine goes back to an instant, round after round: by a snapshot, or where there is none, as
//! a VMM does it with what KVM has: the dirty log, a copy of memory, and the ioctls for the state.

use selftests::guest::Irqchip;
use selftests::kvm::{Errno, Handle};
use selftests::machine::map;
use selftests::memory::PAGE;
use selftests::snapshot::{Snapshot, CHECK_FEATURE, FEATURE};
use selftests::tap::equal;

use crate::guests::{Code, TOUCH_WRITES};
use crate::saved::{Plan, Saved};
use crate::touch::{read_log, ticks, Memory, LOG, SLOT};
use crate::{median, Row, Rows};

/// Guest memory that is watched.
pub(crate) const SIZE: usize = 64 << 20;
/// The most page tables of the guest that it uses for them.
const TABLES: u64 = 8;
/// Rounds, of which the first is a row of its own in one case.
const ROUNDS: usize = 21;

/// Whether the device has snapshots.
pub(crate) fn has_snapshots(device: &Handle) -> bool {
    device.call(CHECK_FEATURE, FEATURE).is_ok_and(|is| is > 0)
}

/// A machine that has used all of its memory and stands still, with nothing begun.
pub(crate) fn used(device: &Handle, advice: i32, size: usize) -> Result<Memory, String> {
    let memory = Memory::of_size(device, &[Code::Access], Irqchip::Kernel, advice, size)?;
    memory.populate();
    memory.machine.ram.write_words(TOUCH_WRITES, &[1]);
    memory.touch((size / PAGE) as u64, PAGE)?;
    settle(&memory)?;
    Ok(memory)
}

/// Ends the exit that its guest has made.
pub(crate) fn settle(memory: &Memory) -> Result<(), String> {
    let vcpu = &memory.machine.vcpus[0];
    vcpu.share(|run| run.immediate_exit = 1);
    let answer = vcpu.run();
    vcpu.share(|run| run.immediate_exit = 0);
    equal("KVM_RUN", answer.err(), Some(Errno(libc::EINTR)))
}

/// How a machine goes back.
enum Way<'a> {
    Snapshot(Snapshot),
    Log(Box<Log<'a>>),
}

/// What a VMM keeps that knows only KVM.
struct Log<'a> {
    memory: &'a Memory,
    state: Saved,
    slots: [LoggedSlot; 2],
}

/// A slot that has a log, and a copy of its memory.
struct LoggedSlot {
    id: u32,
    start: *mut u8,
    old: Vec<u8>,
    bitmap: Vec<u64>,
}

impl LoggedSlot {
    /// # Safety
    ///
    /// At `start` the guest has so many bytes, which nothing writes now, and which stay as long as
    /// this.
    unsafe fn new(id: u32, start: *mut u8, size: usize) -> Self {
        Self {
            id,
            start,
            // SAFETY: As promised by the caller.
            old: unsafe { std::slice::from_raw_parts(start, size) }.to_vec(),
            bitmap: vec![0; size / PAGE / 64],
        }
    }

    /// Puts back what was written; answers how many pages that was.
    fn reset(&mut self, vm: &Handle) -> Result<u64, String> {
        let mut count = 0;
        read_log(vm, self.id, &mut self.bitmap)?;
        for (index, word) in self.bitmap.iter().enumerate() {
            let mut left = *word;
            while left != 0 {
                let at = (index * 64 + left.trailing_zeros() as usize) * PAGE;
                left &= left - 1;
                count += 1;
                // SAFETY: Both have a page there, for the bitmap has a bit for each of theirs, and
                // the guest is not running.
                unsafe {
                    let from = self.old.as_ptr().add(at);
                    std::ptr::copy_nonoverlapping(from, self.start.add(at), PAGE);
                }
            }
        }
        Ok(count)
    }
}

impl<'a> Way<'a> {
    fn new(device: &Handle, memory: &'a Memory) -> Result<Self, String> {
        let machine = &memory.machine;
        if has_snapshots(device) {
            let limit = 2 * memory.size as u64;
            return Ok(Self::Snapshot(Snapshot::create(&machine.vm, limit)?));
        }
        let plan = Plan::new(device, machine)?;
        memory.flags(LOG)?;
        map(&machine.vm, 0, LOG, 0, &machine.ram)?;
        let mut log = Log {
            memory,
            state: Saved::take(&plan, machine)?,
            // SAFETY: Both are the machine's own mappings, which `memory` keeps, and it is stopped.
            slots: unsafe {
                [
                    LoggedSlot::new(0, machine.ram.start(), machine.ram.len()),
                    LoggedSlot::new(SLOT, memory.start(), memory.size),
                ]
            },
        };
        log.reset()?;
        Ok(Self::Log(Box::new(log)))
    }

    /// Answers how many pages were put back.
    fn reset(&mut self) -> Result<u64, String> {
        match self {
            Self::Snapshot(snapshot) => Ok(snapshot.reset(0)?),
            Self::Log(log) => log.reset(),
        }
    }
}

impl Log<'_> {
    fn reset(&mut self) -> Result<u64, String> {
        let machine = &self.memory.machine;
        let mut count = 0;
        for slot in &mut self.slots {
            count += slot.reset(&machine.vm)?;
        }
        self.state.put_back(&machine.vm, &machine.vcpus[0].handle)?;
        Ok(count)
    }
}

/// What rounds have taken: the guest in each, and its reset.
struct Taken {
    guest: Vec<u64>,
    reset: Vec<u64>,
}

/// Rounds in which the guest writes to so many pages, or, if there are none, does not run.
fn rounds(device: &Handle, count: u64) -> Result<Taken, String> {
    let memory = used(device, libc::MADV_NOHUGEPAGE, SIZE)?;
    let step = SIZE / count.max(1) as usize & !(PAGE - 1);
    memory.prepare(0, 0, count, step)?;
    let mut way = Way::new(device, &memory)?;
    let mut taken = Taken {
        guest: Vec::new(),
        reset: Vec::new(),
    };
    for _ in 0..ROUNDS {
        if count > 0 {
            taken.guest.push(memory.go(0)?);
        }
        let begin = ticks();
        let pages = way.reset()?;
        taken.reset.push(ticks() - begin);
        // The CPU writes to the guest's page tables, too (APM vol. 2, 15.25.5).
        let all = count..=count + if count > 0 { TABLES } else { 0 };
        equal("pages put back", all.contains(&pages), true)?;
    }
    Ok(taken)
}

/// What this program takes to copy a page.
fn copy() -> u64 {
    const COUNT: usize = 64;
    let from = vec![1u8; COUNT * PAGE];
    let mut to = vec![2u8; COUNT * PAGE];
    let mut taken = Vec::with_capacity(COUNT);
    for (from, to) in from.chunks(PAGE).zip(to.chunks_mut(PAGE)) {
        let begin = ticks();
        to.copy_from_slice(std::hint::black_box(from));
        taken.push(ticks() - begin);
    }
    median(&mut taken)
}

pub(crate) fn resets(device: &Handle) -> Rows {
    let row = |name, value| Row {
        name,
        value,
        times: 0,
    };
    let settled = |values: &[u64]| median(&mut values[1..].to_vec());
    let mut rows = Vec::new();
    let mut all = Vec::new();
    for (name, count) in [
        ("reset_0", 0),
        ("reset_1", 1),
        ("reset_50", 50),
        ("reset_1000", 1000),
    ] {
        let taken = rounds(device, count)?;
        rows.push(row(name, settled(&taken.reset)));
        all.push(taken);
    }
    let [_, one, .., many] = &all[..] else {
        return Err("no rounds".into());
    };
    let more = settled(&many.reset).saturating_sub(settled(&one.reset));
    rows.push(row("reset_page", more / 999));
    rows.push(row("copy", copy()));
    for (name, round) in [("round_first", 0), ("round_tenth", 9)] {
        let taken = &all[2];
        rows.push(row(name, taken.guest[round] + taken.reset[round]));
    }
    Ok(rows)
}
