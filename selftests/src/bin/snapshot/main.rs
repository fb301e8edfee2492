// SPDX-License-Identifier: GPL-2.0-only

//! Snapshots: after a reset a VM is as it was, whatever it has done, and whatever its VMM does; and
//! a VM that is made from another one has all of it but nothing in common with it.
//!
//! `snapshot [WORD]...`: the tests whose names contain one of the words.

mod family;
mod faults;
mod fork;
mod fork_hostile;
mod hostile;
mod limits;
mod many;
mod slots;
mod small;
mod stack;
mod state;
mod under;
mod writer;

use std::process::ExitCode;

use selftests::kvm::Handle;
use selftests::machine::catch_interruptions;
use selftests::tap::Tap;

/// As many bytes as any guest here can change.
const LIMIT: u64 = 64 << 20;

type Test = fn(&Handle) -> Result<(), String>;

const TESTS: &[(&str, Test)] = &[
    ("the feature is there", hostile::feature),
    ("every small guest goes back, and on again", small::all),
    (
        "four CPUs write to random places for 30 rounds",
        many::rounds,
    ),
    (
        "pages that were kept make no faults in the next round",
        many::no_faults,
    ),
    ("writes of the VMM that it announces", many::announced),
    ("the same memory in two places of the guest", many::twice),
    ("time goes back, or not", many::time),
    ("a reset copies only what was written", stack::only_written),
    (
        "pages that the host takes before a reset",
        stack::taken_by_the_host,
    ),
    ("writes of the VMM, once or always", stack::once),
    ("a snapshot on a snapshot", stack::two),
    ("many snapshots on each other", stack::many),
    ("more snapshots than a stack may have: E2BIG", stack::deep),
    ("arguments that cannot be", hostile::arguments),
    ("a guest that runs: EBUSY", hostile::running),
    ("no new vCPUs beside a snapshot", hostile::nothing_else),
    ("a slot that goes and comes back", slots::away_and_back),
    ("a slot with other memory in its place", slots::replaced),
    ("a slot and its memory that are gone", slots::gone),
    (
        "a slot that is gone at a reset, and comes back",
        slots::forgotten,
    ),
    (
        "a slot with memory that the VMM has announced",
        slots::announced,
    ),
    ("a slot that comes", slots::new),
    ("a slot that goes under a stack of snapshots", slots::stack),
    ("dirty logs begin and end", slots::logs),
    ("slots come and go while the guest runs", slots::at_any_time),
    ("vCPUs and the VM go", hostile::gone),
    ("another process", hostile::another_process),
    ("memory that the process has no more", hostile::unmapped),
    ("many at once", hostile::many_threads),
    (
        "dirty rings and a VFIO device: EOPNOTSUPP",
        hostile::unsupported,
    ),
    (
        "a dirty log hears of what a reset writes",
        limits::dirty_log,
    ),
    (
        "the limit stops the guest, and loses nothing",
        limits::limit,
    ),
    ("a limit of zero", limits::zero),
    ("what the emulator writes is kept, too", limits::emulator),
    ("nothing is left behind", limits::left_behind),
    ("resets of memory that the host moves", under::resets),
    ("resets of memory that is brought", under::brought),
    ("a fork has the state of its parent", fork::same_state),
    ("forks of every small guest end as it does", small::forked),
    (
        "forks and their parent never see each other's writes",
        fork::apart,
    ),
    ("forks of memory that the host moves", under::forks),
    ("forks of forks, which end in any order", fork::tree),
    ("a hundred forks at once", fork::hundred),
    ("a fork leaves the parent its pages", fork::pages_stay),
    ("forks whose parent has gone", fork::orphan),
    (
        "forks after a reset, and resets of forks",
        fork::after_reset,
    ),
    ("time goes back for a fork, or not", fork::time),
    ("forks and parents that are killed", fork::killed),
    ("arguments of a fork", fork_hostile::arguments),
    (
        "a snapshot of the state restricts nothing",
        fork_hostile::free,
    ),
    ("the descriptors of a fork's vCPUs", fork_hostile::vcpus),
    (
        "a fork with other memory, or none",
        fork_hostile::other_memory,
    ),
    ("forks of one snapshot at once", fork_hostile::at_once),
    ("forks of a VM that has gone", fork_hostile::vm_gone),
];

fn main() -> ExitCode {
    let path = std::env::var("DEVICE").unwrap_or_else(|_| "/dev/pacifica".into());
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let device = match Handle::open(&path) {
        Ok(device) => device,
        Err(error) => {
            println!("Bail out! {path}: {error}");
            return ExitCode::FAILURE;
        }
    };
    catch_interruptions();
    let mut tap = Tap::start();
    for (name, test) in TESTS.iter().chain(faults::tests()) {
        let chosen = wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str()));
        if !chosen {
            continue;
        }
        if path.ends_with("/kvm") {
            tap.skip(name, "KVM has no snapshots");
        } else {
            tap.result(name, test(&device));
        }
    }
    tap.finish()
}
