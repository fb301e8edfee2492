// SPDX-License-Identifier: GPL-2.0-only

//! The same probes on KVM and on the module, in one host, and what answers differently. Differences
//! that are known are in the files `known` and `known.msr`, each with its reason; a new one fails,
//! and so does a known one that is none any more.
//!
//! `compare [--seed N] [--seconds N] [WORD]...` has the kinds whose names contain a word; `compare
//! --seed N --probe N WORD` asks one random question again; --verbose shows which one is asked, and
//! its answers.

mod access;
#[allow(dead_code)] // The place of the operands and their flags are those of `single`.
#[path = "../single/cases.rs"]
mod cases;
mod cpuid;
mod event;
mod guest;
mod instruction;
mod known;
mod known_msr;
mod msr;
mod probe;
mod random;
mod state;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use selftests::kvm::Handle;
use selftests::modules::{can_load_kvm, load_kvm, unload_kvm};
use selftests::patience;
use selftests::tap::Tap;

use access::Outcomes;
use probe::{Open, Probe};
use random::Random;

const KVM: &str = "/dev/kvm";
/// A guest that has not come back after this is asked again, with patience.
const SHORT: Duration = Duration::from_millis(60);
/// As a part of the time that hangs: guests here execute a few instructions.
const PATIENCE: u32 = 100;
/// What is shown of differences.
const MOST: usize = 400;

/// What the accesses of one kind answer on the device of this path with this seed, for the MSRs
/// that one of the devices knows.
type Accesses = fn(&str, u64, &[u32]) -> Result<Outcomes, String>;

const MSRS: &[(&str, Accesses)] = &[
    ("KVM_GET_MSRS of all MSRs", msr::get),
    ("KVM_SET_MSRS of all MSRs", msr::set),
    ("RDMSR and WRMSR of all MSRs", msr::guest),
    ("values of the MSRs that are there", msr::values),
];

/// Random probes: the name, its word in `known`, how many for a seed, and how it begins.
const KINDS: &[(&str, &str, u64, Open)] = &[
    ("events in all modes", "event", 400, event::Events::open),
    ("state that is set", "state", 400, state::States::open),
    ("CPUID", "cpuid", 250, cpuid::Cpuids::open),
    (
        "instructions",
        "instruction",
        800,
        instruction::Instructions::open,
    ),
];

struct Arguments {
    seed: u64,
    seconds: u64,
    verbose: bool,
    probe: Option<u64>,
    wanted: Vec<String>,
}

impl Arguments {
    fn of_program() -> Self {
        let mut this = Self {
            seed: 1,
            seconds: 0,
            verbose: false,
            probe: None,
            wanted: Vec::new(),
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut number = || words.next().and_then(|text| text.parse().ok()).unwrap_or(0);
            match word.as_str() {
                "--seed" => this.seed = number(),
                "--seconds" => this.seconds = number(),
                "--verbose" => this.verbose = true,
                "--probe" => this.probe = Some(number()),
                _ => this.wanted.push(word),
            }
        }
        this
    }

    fn wants(&self, name: &str) -> bool {
        let mut words = self.wanted.iter();
        self.wanted.is_empty() || words.any(|word| name.contains(word.as_str()))
    }
}

/// The two tables.
struct Tables {
    msrs: known_msr::Known,
    probes: known::Known,
}

fn main() -> ExitCode {
    let arguments = Arguments::of_program();
    let device = std::env::var("DEVICE").unwrap_or_else(|_| "/dev/pacifica".into());
    let mut tap = Tap::start();
    let mut tables = Tables {
        msrs: known_msr::Known::load(),
        probes: known::Known::load(),
    };
    let ready = can_load_kvm().and_then(|()| load_kvm(&["enable_virt_at_load=0"]));
    println!("# seed {}", arguments.seed);
    match &ready {
        Ok(()) => all(&arguments, &device, &mut tables, &mut tap),
        Err(error) => tap.result("KVM beside the module", Err(error.clone())),
    }
    if let Err(error) = ready.and_then(|()| unload_kvm()) {
        println!("# {error}");
    }
    tap.finish()
}

fn all(arguments: &Arguments, device: &str, tables: &mut Tables, tap: &mut Tap) {
    let start = Instant::now();
    let seed = arguments.seed;
    let wants_msrs = MSRS.iter().any(|(name, _)| arguments.wants(name));
    let there = if wants_msrs {
        both(device)
    } else {
        Ok(Vec::new())
    };
    let timed = |name: &str, tap: &mut Tap, outcome: &mut dyn FnMut() -> Result<(), String>| {
        let begin = Instant::now();
        let outcome = outcome();
        println!("# {} ms", begin.elapsed().as_millis());
        tap.result(name, outcome);
    };
    for (name, kind) in MSRS.iter().filter(|(name, _)| arguments.wants(name)) {
        timed(name, tap, &mut || {
            let there = there.clone()?;
            accesses(device, *kind, seed, &there, &mut tables.msrs)
        });
    }
    for kind in KINDS.iter().filter(|kind| arguments.wants(kind.0)) {
        timed(kind.0, tap, &mut || {
            let numbers = match arguments.probe {
                Some(number) => number..number + 1,
                None => 0..kind.2,
            };
            probes(
                device,
                kind,
                (seed, arguments.verbose),
                numbers,
                &mut tables.probes,
            )
        });
    }
    // Other seeds need not meet them.
    if arguments.wanted.is_empty() && arguments.probe.is_none() && seed == 1 {
        tap.result(
            "every known difference of MSRs is one",
            tables.msrs.all_met(),
        );
        tap.result("every known difference is one", tables.probes.all_met());
    }
    // Whatever is random goes on with other seeds.
    let (mut more, mut differ) = (seed, 0);
    while start.elapsed() < Duration::from_secs(arguments.seconds) {
        more = more.wrapping_add(1);
        let mut outcomes = Vec::new();
        if let (true, Ok(there)) = (wants_msrs, &there) {
            outcomes.push(accesses(device, msr::values, more, there, &mut tables.msrs));
        }
        for kind in KINDS.iter().filter(|kind| arguments.wants(kind.0)) {
            outcomes.push(probes(
                device,
                kind,
                (more, arguments.verbose),
                0..kind.2,
                &mut tables.probes,
            ));
        }
        let failures: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
        if !failures.is_empty() {
            differ += 1;
            tap.result(&format!("seed {more}"), Err(failures.join("\n")));
        }
    }
    println!(
        "# {differ} of {} further seeds differ, the last was {more}",
        more.wrapping_sub(seed)
    );
}

/// The MSRs that one of the two knows.
fn both(device: &str) -> Result<Vec<u32>, String> {
    let mut there = msr::there(KVM)?;
    there.extend(msr::there(device)?);
    there.sort_unstable();
    there.dedup();
    Ok(there)
}

/// SVM has one user at a time: first the one, then the other.
fn accesses(
    device: &str,
    kind: Accesses,
    seed: u64,
    there: &[u32],
    known: &mut known_msr::Known,
) -> Result<(), String> {
    let theirs = kind(KVM, seed, there).map_err(|error| format!("KVM: {error}"))?;
    let ours = kind(device, seed, there)?;
    if theirs.len() < 100 || theirs.len() != ours.len() {
        return Err(format!("{} and {} outcomes", theirs.len(), ours.len()));
    }
    let mut new = Vec::new();
    for (key, theirs) in &theirs {
        let ours = ours
            .get(key)
            .ok_or_else(|| format!("{key:x?} is missing"))?;
        if theirs != ours && !known.excuses(key) {
            new.push(format!("{key}: KVM {theirs}, here {ours}"));
        }
    }
    report(new)
}

/// These probes of a kind with this seed, on the one and then on the other.
fn probes(
    device: &str,
    kind: &(&str, &str, u64, Open),
    (seed, verbose): (u64, bool),
    numbers: std::ops::Range<u64>,
    known: &mut known::Known,
) -> Result<(), String> {
    let ask = |path: &str, numbers: &[u64], limit| -> Result<Vec<Probe>, String> {
        let device = Handle::open(path).map_err(|e| format!("{path}: {e}"))?;
        let mut subject = (kind.3)(device);
        let each = numbers.iter().map(|&number| {
            if verbose {
                println!("# {path}, probe {number}");
            }
            let answer = subject.ask(&mut Random::for_probe(seed, number), limit);
            if let (true, Ok(probe)) = (verbose, &answer) {
                println!("# {:?}", probe.answer);
            }
            answer.map_err(|error| format!("{path}, probe {number}: {error}"))
        });
        each.collect()
    };
    let numbers: Vec<u64> = numbers.collect();
    let mut theirs = ask(KVM, &numbers, SHORT)?;
    let mut ours = ask(device, &numbers, SHORT)?;
    // One that was late on a busy machine, on one of the two.
    for (at, number) in numbers.iter().enumerate() {
        if theirs[at].no_end() != ours[at].no_end() {
            let (path, late) = match theirs[at].no_end() {
                true => (KVM, &mut theirs[at]),
                false => (device, &mut ours[at]),
            };
            if let Some(again) = ask(path, &[*number], patience::limit() / PATIENCE)?.pop() {
                *late = again;
            }
        }
    }
    let mut new = Vec::new();
    for ((number, theirs), ours) in numbers.iter().zip(&theirs).zip(&ours) {
        // What one of them has refused is not asked further.
        if !theirs.question.starts_with(&ours.question)
            && !ours.question.starts_with(&theirs.question)
        {
            new.push(format!(
                "{number}: {} is {}",
                theirs.question, ours.question
            ));
            continue;
        }
        let fields = known.new_ones(kind.1, theirs, ours);
        if !fields.is_empty() {
            let each = fields.iter().map(|name| {
                format!(
                    "\n    {name}: KVM {}, here {}",
                    theirs.get(name),
                    ours.get(name)
                )
            });
            new.push(format!(
                "{} seed {seed} probe {number}: {}{}",
                kind.1,
                ours.question,
                each.collect::<String>()
            ));
        }
    }
    report(new)
}

fn report(mut new: Vec<String>) -> Result<(), String> {
    if new.is_empty() {
        return Ok(());
    }
    let count = new.len();
    new.truncate(MOST);
    Err(format!(
        "{}\n{count} differences that are not known",
        new.join("\n")
    ))
}
