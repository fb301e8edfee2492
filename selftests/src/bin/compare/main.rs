// SPDX-License-Identifier: GPL-2.0-only

//! The same probes on KVM and on the module, in one host, and what answers differently. Differences that
//! are known are in the file `known`, each with its reason; a new one fails, and so does a known one
//! that is none any more.

mod known;
mod msr;
mod probe;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use selftests::modules::{can_load_kvm, load_kvm, unload_kvm};
use selftests::tap::Tap;

use probe::Outcomes;

const KVM: &str = "/dev/kvm";

/// One kind of probes: its name, and what they answer on the device of this path with this seed, for the
/// MSRs that one of the devices knows.
type Kind = (
    &'static str,
    fn(&str, u64, &[u32]) -> Result<Outcomes, String>,
);

const KINDS: &[Kind] = &[
    ("KVM_GET_MSRS of all MSRs", msr::get),
    ("KVM_SET_MSRS of all MSRs", msr::set),
    ("RDMSR and WRMSR of all MSRs", msr::guest),
    ("values of the MSRs that are there", msr::values),
];

fn main() -> ExitCode {
    let (seed, seconds, wanted) = arguments();
    let device = std::env::var("DEVICE").unwrap_or_else(|_| "/dev/pacifica".into());
    let mut tap = Tap::start();
    let ready = can_load_kvm().and_then(|()| load_kvm(&["enable_virt_at_load=0"]));
    let mut known = known::Known::load();
    let there = ready.clone().and_then(|()| both(&device));
    let start = Instant::now();
    println!("# seed {seed}");
    for (name, kind) in KINDS {
        if wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str())) {
            let outcome = there
                .clone()
                .and_then(|there| compare(&device, *kind, seed, &there, &mut known));
            tap.result(name, outcome);
        }
    }
    // Whatever is random goes on with other seeds.
    let mut more = seed;
    while let (Ok(there), true) = (&there, start.elapsed() < Duration::from_secs(seconds)) {
        more = more.wrapping_add(1);
        let outcome = compare(&device, msr::values, more, there, &mut known);
        if let Err(error) = outcome {
            tap.result(&format!("values, seed {more}"), Err(error));
            break;
        }
    }
    if wanted.is_empty() {
        tap.result("every known difference is one", known.all_met());
    }
    if let Err(error) = ready.and_then(|()| unload_kvm()) {
        println!("# {error}");
    }
    tap.finish()
}

/// `[--seed N] [--seconds N] [WORD]...`
fn arguments() -> (u64, u64, Vec<String>) {
    let (mut seed, mut seconds, mut wanted) = (1, 0, Vec::new());
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|text| text.parse().ok()).unwrap_or(0);
        match word.as_str() {
            "--seed" => seed = number(),
            "--seconds" => seconds = number(),
            _ => wanted.push(word),
        }
    }
    (seed, seconds, wanted)
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
fn compare(
    device: &str,
    kind: fn(&str, u64, &[u32]) -> Result<Outcomes, String>,
    seed: u64,
    there: &[u32],
    known: &mut known::Known,
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
    if new.is_empty() {
        return Ok(());
    }
    let count = new.len();
    new.truncate(400);
    Err(format!(
        "{}\n{count} differences that are not known",
        new.join("\n")
    ))
}
