// SPDX-License-Identifier: GPL-2.0-only

//! A fuzzer of the device's interface. Rounds of half a second, each in a process of its own, make
//! a few VMs and then do everything at once: every ioctl with usual and hostile arguments, guests
//! in any state with hostile code, memory, descriptors and mappings that change meanwhile. What it
//! demands: errors that docs/abi.md has, an end of every round, no memory left behind; and that the
//! host's log stays clean, which lab/check-log looks after.
//!
//! usage: fuzz [--seed N] [--seconds N] [--round N]

mod arguments;
mod attack;
mod guest;
mod report;
mod rng;
mod table;
mod world;

use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use selftests::memory::{growth, kernel_memory};
use selftests::patience;
use selftests::tap::{equal, Tap};

use report::{Report, SHOWN};
use rng::Rng;
use table::{implemented, IOCTLS};

/// Rounds before memory is measured first: caches fill up.
const WARM_UP: u64 = 20;
/// Rounds that a run of half a minute has at least, and until each ioctl has had its chance,
/// however slow the machine is.
const LEAST: u64 = 100;
/// After so many ioctls each has had its chance.
const ENOUGH: u32 = 60_000;
/// Of a hundred rounds, three pages that each leaves behind would show.
const GROWTH: i64 = 1000;

struct Options {
    device: String,
    seed: u64,
    seconds: u64,
    /// Only this round, again and again.
    round: Option<u64>,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        device: std::env::var("DEVICE").unwrap_or_else(|_| "/dev/pacifica".into()),
        seed: 1,
        seconds: 60,
        round: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().and_then(|value| value.parse().ok());
        let value: u64 = value.ok_or_else(|| format!("{word} needs a number"))?;
        match word.as_str() {
            "--seed" => options.seed = value,
            "--seconds" => options.seconds = value,
            "--round" => options.round = Some(value),
            _ => return Err(format!("unknown option {word}")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("fuzz: {error}\nusage: fuzz [--seed N] [--seconds N] [--round N]");
            return ExitCode::from(2);
        }
    };
    selftests::machine::catch_interruptions();
    let mut tap = Tap::start();
    let known = implemented();
    let strange: Vec<_> = known
        .iter()
        .filter(|name| !IOCTLS.iter().any(|ioctl| ioctl.name == **name))
        .collect();
    tap.result(
        "every ioctl of rust/uapi/kvm.h is in the fuzzer's table",
        equal("missing", strange.as_slice(), &[]),
    );
    println!("# seed {}, {} seconds", options.seed, options.seconds);
    let report = Report::new();
    let memory = fuzz(&options, &report);
    let ended = memory.as_ref().map(drop).map_err(Clone::clone);
    tap.result("every round ends", ended);
    tap.result(
        "every error is documented",
        equal("violations", report.failures(), 0),
    );
    let never = report.summary(&known);
    if report.calls() > ENOUGH {
        tap.result(
            "every ioctl succeeds now and then",
            equal("never", never.as_slice(), &[]),
        );
    }
    if let Ok(Some(before)) = memory {
        let kept = growth(before, GROWTH).map(drop);
        tap.result("no memory is left behind", kept);
    }
    tap.finish()
}

/// Rounds until the time is over; answers the kernel's memory after the first of many, in KiB.
fn fuzz(options: &Options, report: &Report) -> Result<Option<i64>, String> {
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let many = options.seconds >= 30 && options.round.is_none();
    let mut before = None;
    let mut count = 0;
    while Instant::now() < end || many && (count < LEAST || report.calls() <= ENOUGH) {
        if many && count == WARM_UP {
            before = Some(kernel_memory());
        }
        let number = options.round.unwrap_or(count);
        let failures = report.failures();
        child(options, number, report)
            .map_err(|error| format!("seed {}, round {number}: {error}", options.seed))?;
        if report.failures() != failures && failures < SHOWN {
            println!("# that was --seed {} --round {number}", options.seed);
        }
        count += 1;
    }
    println!("# {count} rounds");
    Ok(before)
}

/// One round in a process of its own, which is killed in the middle now and then.
fn child(options: &Options, number: u64, report: &Report) -> Result<(), String> {
    // SAFETY: This program has no other thread.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let outcome = attack::round(&options.device, options.seed, number, report);
        if let Err(error) = outcome {
            report.fail(&error);
        }
        // SAFETY: Ends this process at once.
        unsafe { libc::_exit(0) }
    }
    if pid < 0 {
        return Err("fork".into());
    }
    let mut rng = Rng::new(options.seed, !number);
    let kill_after = rng
        .once_in(4)
        .then(|| Duration::from_millis(50 + rng.below(400) as u64));
    let (start, limit) = (Instant::now(), patience::limit());
    let mut status = 0;
    let mut killed = false;
    loop {
        // SAFETY: The child is this function's own.
        if unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } == pid {
            break;
        }
        let late = start.elapsed() > limit;
        if late {
            show_threads(pid);
        }
        if late || !killed && kill_after.is_some_and(|time| start.elapsed() > time) {
            killed = true;
            // SAFETY: As above.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        if late {
            return Err(format!("no end after {limit:?}"));
        }
        sleep(Duration::from_millis(5));
    }
    match status {
        0 => Ok(()),
        libc::SIGKILL if killed => Ok(()),
        _ => Err(format!("status {status:#x}")),
    }
}

/// Where the threads of a process that hangs are in the kernel.
fn show_threads(pid: i32) {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return;
    };
    for task in tasks.flatten() {
        let text = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        println!("# thread {}: {}", task.path().display(), text("wchan"));
        text("syscall")
            .lines()
            .chain(text("stack").lines())
            .for_each(|line| println!("#   {line}"));
    }
}
