// SPDX-License-Identifier: GPL-2.0-only

//! A load for a Linux guest with several CPUs (selftests/soak): on each CPU, page tables that
//! change and are flushed everywhere, forks, futexes, pipes, timers, signals and vector registers,
//! while CPUs go and come. It checks what it does, and that no clock ever goes backwards.
//!
//! usage: load SECONDS

mod hotplug;
mod kinds;
mod partner;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use kinds::KINDS;
use partner::Partner;

/// What all threads share.
pub(crate) struct Shared {
    stop: AtomicBool,
    failures: AtomicU64,
    /// The latest time that any thread has read, in nanoseconds.
    latest: AtomicU64,
}

impl Shared {
    pub(crate) fn fail(&self, text: &str) {
        if self.failures.fetch_add(1, Relaxed) < 10 {
            println!("load: FAILED: {text}");
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(SeqCst)
    }

    /// A time read after another, on whichever CPU, is not before it.
    fn check_clock(&self) {
        let before = self.latest.load(SeqCst);
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: The kernel writes to this function's own memory.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
        let now = time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
        if now < before {
            self.fail(&format!("the clock went back by {} ns", before - now));
        }
        self.latest.fetch_max(now, SeqCst);
    }
}

/// Binds this thread to a CPU, if that is there.
pub(crate) fn bind(cpu: usize) {
    // SAFETY: The set is plain and this function's own.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

/// One kind of load after the other until the end, each for some milliseconds; answers how many
/// rounds of each there were.
fn work(cpu: usize, cpus: usize, shared: &Shared) -> [u64; KINDS.len()] {
    let mut rounds = [0; KINDS.len()];
    let partner = Partner::start((cpu + 1) % cpus);
    while !shared.stopped() {
        for (kind, rounds) in KINDS.iter().zip(&mut rounds) {
            bind(cpu);
            let end = Instant::now() + Duration::from_millis(10);
            while Instant::now() < end {
                if let Err(error) = (kind.round)(cpu, &partner) {
                    shared.fail(&format!("CPU {cpu}, {}: {error}", kind.name));
                }
                shared.check_clock();
                *rounds += 1;
            }
        }
    }
    partner.end();
    rounds
}

fn main() -> ExitCode {
    let argument = std::env::args().nth(1).and_then(|word| word.parse().ok());
    let Some(seconds) = argument else {
        eprintln!("usage: load SECONDS");
        return ExitCode::from(2);
    };
    partner::take_signals();
    let cpus = hotplug::online();
    let shared = Shared {
        stop: AtomicBool::new(false),
        failures: AtomicU64::new(0),
        latest: AtomicU64::new(0),
    };
    println!("load: {seconds} s on {cpus} CPUs");
    let changes = std::thread::scope(|scope| {
        let shared = &shared;
        let workers: Vec<_> = (0..cpus)
            .map(|cpu| scope.spawn(move || work(cpu, cpus, shared)))
            .collect();
        let changes = hotplug::until(Instant::now() + Duration::from_secs(seconds), cpus, shared);
        shared.stop.store(true, SeqCst);
        for (cpu, worker) in workers.into_iter().enumerate() {
            let rounds = worker.join().expect("no worker panics");
            let text: Vec<_> = KINDS
                .iter()
                .zip(rounds)
                .map(|(kind, rounds)| format!("{} {rounds}", kind.name))
                .collect();
            println!("load: CPU {cpu}: {}", text.join(", "));
            if rounds.contains(&0) {
                shared.fail(&format!("CPU {cpu} did not do everything"));
            }
        }
        changes
    });
    println!("load: CPUs went and came {changes} times");
    if changes == 0 && cpus > 1 {
        shared.fail("no CPU went");
    }
    if hotplug::online() != cpus {
        shared.fail(&format!("{} CPUs at the end", hotplug::online()));
    }
    if shared.failures.load(SeqCst) != 0 {
        return ExitCode::FAILURE;
    }
    println!("load: done");
    ExitCode::SUCCESS
}
