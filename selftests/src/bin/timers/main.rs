// SPDX-License-Identifier: GPL-2.0-only

//! A Linux guest's timers, many and short: loops on each CPU that sleep in the ways that a kernel
//! has timers for. None may end early, none may be lost, and no clock may go back, whatever the VMM
//! does to the guest meanwhile. It never ends by itself.
//!
//! usage: timers deadline|oneshot|periodic, the mode that the local APIC's timer is in

mod clocks;
mod kinds;

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use clocks::Clocks;
use kinds::{Kind, KINDS};

/// So often each loop must have gone round before the next line.
const ROUND: u64 = 50;

/// A loop that stands still while all loops of another CPU go round so often has lost its timer.
const LOST: u64 = 5_000;

/// A loop, on one CPU.
struct Loop {
    cpu: usize,
    kind: &'static Kind,
    count: AtomicU64,
}

/// What a program of the guest says that found a fault.
fn fail(text: &str) {
    static FAILURES: AtomicU64 = AtomicU64::new(0);
    if FAILURES.fetch_add(1, Relaxed) < 10 {
        println!("timers: FAILED: {text}");
    }
}

/// Goes round for ever.
fn run(this: &Loop, clocks: &Clocks) {
    if let Err(error) = selftests::cpus::pin(&[this.cpu]) {
        return fail(&format!("CPU {}: {error:?}", this.cpu));
    }
    let mut round = (this.kind.start)();
    loop {
        if let Err(error) = round() {
            fail(&format!("CPU {}, {}: {error}", this.cpu, this.kind.name));
        }
        clocks.check(fail);
        this.count.fetch_add(1, Relaxed);
    }
}

/// Whether the timer of each CPU is in this mode, by what the kernel says of it.
fn is_in_mode(mode: &str) -> Result<bool, String> {
    let (device, handler) = match mode {
        "deadline" => ("lapic-deadline", "hrtimer_interrupt"),
        "oneshot" => ("lapic", "hrtimer_interrupt"),
        "periodic" => ("lapic", "tick_handle_periodic"),
        _ => return Err("usage: timers deadline|oneshot|periodic".into()),
    };
    let list = std::fs::read_to_string("/proc/timer_list").map_err(|e| e.to_string())?;
    let count = |line: &str| list.lines().filter(|have| have.trim() == line).count();
    let handler = format!("event_handler:  {handler}");
    let cpus = selftests::cpus::usable().len();
    let devices = count(&format!("Clock Event Device: {device}"));
    Ok(devices == cpus && count(&handler) >= cpus)
}

/// Prints a line each time that all loops have gone round [`ROUND`] times more.
fn watch(loops: &[Loop]) -> ! {
    let counts = || -> Vec<u64> { loops.iter().map(|one| one.count.load(Relaxed)).collect() };
    let mut begin = counts();
    // Of each loop, all counts when its own was seen to change last.
    let mut moved = vec![begin.clone(); loops.len()];
    for round in 1u64.. {
        loop {
            std::thread::sleep(Duration::from_millis(10));
            let now = counts();
            for (i, moved) in moved.iter_mut().enumerate() {
                if now[i] != moved[i] {
                    moved.clone_from(&now);
                } else if others(loops, i).all(|other| now[other] - moved[other] > LOST) {
                    let Loop { cpu, kind, .. } = &loops[i];
                    fail(&format!("CPU {cpu}, {}: stands still", kind.name));
                    moved.clone_from(&now);
                }
            }
            if now
                .iter()
                .zip(&begin)
                .all(|(now, begin)| now - begin >= ROUND)
            {
                break;
            }
        }
        let end = counts();
        let rounds = end.iter().zip(&begin).map(|(end, begin)| end - begin);
        let least = rounds.clone().min().unwrap_or(0);
        let all: u64 = rounds.sum();
        println!("timers: round {round}: {all} timers, of each loop {least}");
        begin = end;
    }
    unreachable!("numbers do not end")
}

/// The loops of the CPUs that this one's is not.
fn others(loops: &[Loop], of: usize) -> impl Iterator<Item = usize> + '_ {
    (0..loops.len()).filter(move |other| loops[*other].cpu != loops[of].cpu)
}

fn main() -> ExitCode {
    let mode = std::env::args().nth(1).unwrap_or_default();
    match is_in_mode(&mode) {
        Ok(true) => println!("timers: {mode}"),
        Ok(false) => fail(&format!("the timers are not in the mode {mode}")),
        Err(error) => fail(&error),
    }
    // SAFETY: The calling process is what is asked about; sleeps end as soon as they may.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    let cpus = selftests::cpus::usable();
    let one = |cpu, kind| Loop {
        cpu,
        kind,
        count: AtomicU64::new(0),
    };
    let loops: Vec<_> = (cpus.iter())
        .flat_map(|cpu| KINDS.iter().map(move |kind| one(*cpu, kind)))
        .collect();
    let clocks = Clocks::default();
    std::thread::scope(|scope| {
        for this in &loops {
            let clocks = &clocks;
            scope.spawn(move || run(this, clocks));
        }
        watch(&loops)
    })
}
