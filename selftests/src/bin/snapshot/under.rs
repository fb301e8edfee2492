// SPDX-License-Identifier: GPL-2.0-only

//! What the host does to memory below a snapshot and below forks: it swaps, merges equal pages,
//! makes large ones and small ones, moves them. Nothing of it changes what is there.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use selftests::kvm::Handle;
use selftests::memory::{Mapping, PAGE};
use selftests::process::Child;
use selftests::snapshot::{Snapshot, RESET_TIME};
use selftests::swap::{vmstat, Swap};
use selftests::tap::{equal, skipped};

use crate::family::Member;
use crate::writer::Writer;
use crate::LIMIT;

const MIB: usize = 1 << 20;
const MADV_COLLAPSE: i32 = 25;
/// How long a test waits for the host to swap.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long each of these tests takes: some seconds, or what `SNAPSHOT_SECONDS` says.
fn duration() -> Duration {
    let seconds = std::env::var("SNAPSHOT_SECONDS").ok();
    Duration::from_secs(seconds.and_then(|text| text.parse().ok()).unwrap_or(4))
}

/// A disk to swap to, and KSM at work, for as long as this lives.
struct Host(Option<Swap>);

impl Host {
    fn new() -> Self {
        for (name, value) in [
            ("sleep_millisecs", "0"),
            ("pages_to_scan", "4096"),
            ("run", "1"),
        ] {
            let _ = fs::write(format!("/sys/kernel/mm/ksm/{name}"), value);
        }
        Self(Swap::on())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::write("/sys/kernel/mm/ksm/run", "2");
    }
}

/// Where a mapping is, which stays there.
#[derive(Clone, Copy)]
struct Place {
    start: usize,
    bytes: usize,
}

impl Place {
    fn of(memory: &Mapping) -> Self {
        Self {
            start: memory.start() as usize,
            bytes: memory.len(),
        }
    }
}

/// One of the things that hosts do and processes ask for, to a part of the memory.
fn disturb(memory: Place, round: usize) {
    let all = memory.bytes;
    let size = (64 * PAGE).min(all);
    let at = round * 37 * PAGE % (all - size + PAGE) & !(PAGE - 1);
    let advise = |at: usize, size: usize, advice| {
        // SAFETY: The range is the mapping's own, and the advice changes nothing that is in it.
        unsafe { libc::madvise((memory.start + at) as *mut _, size, advice) }
    };
    match round % 7 {
        0 | 1 => drop(advise(at, size, libc::MADV_PAGEOUT)),
        2 => drop(advise(0, all, libc::MADV_MERGEABLE)),
        3 => drop(advise(0, all, MADV_COLLAPSE)),
        4 => drop(fs::write("/proc/sys/vm/compact_memory", "1")),
        5 => drop(advise(at, size, libc::MADV_COLD)),
        _ => drop(advise(at, size, libc::MADV_UNMERGEABLE)),
    }
}

/// Does `work` while a thread disturbs the memory.
fn disturbed<T>(memory: Place, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            for round in 0.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                disturb(memory, round);
            }
        });
        let result = work();
        stop.store(true, Ordering::SeqCst);
        result
    })
}

/// The state after each reset is that of the snapshot.
pub(crate) fn resets(device: &Handle) -> Result<(), String> {
    let host = Host::new();
    let writer = Writer::new(device, 3, 4 * MIB)?;
    writer.run(20, 1)?;
    writer.look(device)?;
    let snapshot = Snapshot::create(&writer.machine.vm, LIMIT)?;
    let state = writer.look(device)?;
    let (begin, before) = (Instant::now(), vmstat("pswpout"));
    // A busy host swaps late.
    let goes_on = || {
        let swapped = host.0.is_none() || vmstat("pswpout") > before;
        let most = if swapped { duration() } else { PATIENCE };
        begin.elapsed() < most
    };
    let rounds = disturbed(Place::of(&writer.target), || {
        let mut rounds = 0;
        while goes_on() {
            writer.run(1 + rounds % 20, rounds)?;
            snapshot.reset(if rounds % 2 == 0 { RESET_TIME } else { 0 })?;
            if rounds % 4 == 0 {
                writer.is_back(device, &state, rounds)?;
            }
            rounds += 1;
        }
        Ok(rounds)
    })?;
    let out = vmstat("pswpout") - before;
    println!("# {rounds} rounds, {out} pages swapped out");
    let can_swap = host.0.is_some();
    // What is still on the disk comes back, with the guest's rights as they were.
    drop(host);
    snapshot.reset(RESET_TIME)?;
    state.same(&writer.look(device)?)?;
    match can_swap {
        true => equal("pages were swapped out", out > 0, true),
        false => skipped("the rounds passed, but this host cannot swap"),
    }
}

/// Forks and their parent write all the time, each to memory of its own.
pub(crate) fn forks(device: &Handle) -> Result<(), String> {
    let _host = Host::new();
    let mut parent = Member::new(device, 3, MIB)?;
    parent.rounds(10, 1)?;
    let begin = Instant::now();
    let mut count = 0;
    while begin.elapsed() < duration() || count == 0 {
        let mut children = Vec::new();
        for seed in 0..3 {
            count += 1;
            children.push(parent.child(|child| busy(child, seed + count))?);
        }
        busy(&mut parent, count)?;
        children.into_iter().try_for_each(Child::join)?;
    }
    println!("# {count} forks");
    parent.check()
}

/// Some rounds of a member whose memory is disturbed; it is checked after each.
fn busy(member: &mut Member<'_>, seed: u64) -> Result<(), String> {
    disturbed(Place::of(&member.writer.target), || {
        (0..4).try_for_each(|round| member.rounds(5, seed * 31 + round))
    })
}

/// Memory that is not there until another thread brings it, page by page, as after a migration.
pub(crate) fn brought(device: &Handle) -> Result<(), String> {
    const API: u64 = 0xc018_aa3f;
    const REGISTER: u64 = 0xc020_aa00;
    const COPY: u64 = 0xc028_aa03;
    let writer = Writer::new(device, 2, MIB)?;
    writer.run(20, 1)?;
    writer.look(device)?;
    let state = writer.look(device)?;
    let content = writer.target.read(0, MIB);
    // SAFETY: A plain system call.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_NONBLOCK) as i32 };
    let call = |number: u64, words: &mut [u64]| {
        // SAFETY: The structures have the sizes that their numbers say.
        unsafe { libc::ioctl(fd, number, words.as_mut_ptr()) }
    };
    equal("the interface", call(API, &mut [0xaa, 0, 0]), 0)?;
    let start = writer.target.start() as u64;
    equal(
        "missing pages",
        call(REGISTER, &mut [start, MIB as u64, 1, 0]),
        0,
    )?;
    // SAFETY: The mapping's own range, whose content was saved.
    unsafe { libc::madvise(writer.target.start().cast(), MIB, libc::MADV_DONTNEED) };
    let (stop, count) = (AtomicBool::new(false), AtomicU32::new(0));
    let brought = std::thread::scope(|scope| {
        let bringer = scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                let mut event = [0u64; 4];
                // SAFETY: The buffer is as large as it says.
                let got = unsafe { libc::read(fd, event.as_mut_ptr().cast(), 32) };
                if got != 32 {
                    std::thread::yield_now();
                    continue;
                }
                let at = event[2] & !(PAGE as u64 - 1);
                let from = content[(at - start) as usize..].as_ptr() as u64;
                let copied = call(COPY, &mut [at, from, PAGE as u64, 0, 0]) == 0;
                count.fetch_add(copied.into(), Ordering::SeqCst);
            }
        });
        let rounds = || -> Result<u32, String> {
            let snapshot = Snapshot::create(&writer.machine.vm, LIMIT)?;
            for round in 0..5 {
                writer.run(2 + round, round)?;
                snapshot.reset(RESET_TIME)?;
            }
            // The look brings all the rest.
            let count = count.load(Ordering::SeqCst);
            state.same(&writer.look(device)?)?;
            Ok(count)
        };
        let result = rounds();
        stop.store(true, Ordering::SeqCst);
        bringer.join().map_err(|_| "a panic".to_owned())?;
        result
    })?;
    // SAFETY: The descriptor is ours.
    unsafe { libc::close(fd) };
    println!("# {brought} pages were brought");
    equal("some pages were brought", brought > 20, true)
}
