// SPDX-License-Identifier: GPL-2.0-only

//! Memory slots and what the host does to the memory behind them, seen by a guest.
//!
//! The guest is a handful of instructions in flat 32-bit mode that read and write where this
//! program tells them to. `guest-memory [--device PATH] [--seconds N] [--only TEXT]`: with the last
//! only the tests whose names contain the text, and none of these may be skipped.

use std::process::ExitCode;
use std::time::Duration;

use selftests::kvm::Handle;
use selftests::tap::{Tap, SKIP};

use guest::Outcome;

mod clear;
mod fire;
mod guest;
mod host;
mod huge;
mod log;
mod pressure;
mod slots;
mod survive;
mod vast;

/// What KVM does differently.
const KVM: [(&str, &str); 5] = [
    (
        "tables go with their pages",
        "KVM keeps a table until its slot goes",
    ),
    (
        "the dirty log is exact",
        "KVM takes a page for written when it maps it",
    ),
    (
        "the dirty log survives the host",
        "KVM takes a page for written when it maps it",
    ),
    (
        "a cgroup takes pages and tables back",
        "KVM keeps a table until its slot goes",
    ),
    (
        "nothing of a dirty log is lost",
        "KVM clears before it writes the bitmap",
    ),
];

fn main() -> ExitCode {
    let mut device = std::env::var("DEVICE").unwrap_or_else(|_| "/dev/pacifica".into());
    let mut seconds = 3;
    let mut only = None;
    let mut words = std::env::args().skip(1);
    while let (Some(word), Some(value)) = (words.next(), words.next()) {
        match word.as_str() {
            "--device" => device = value,
            "--only" => only = Some(value),
            _ => seconds = value.parse().unwrap_or(seconds),
        }
    }
    let is_kvm = device.ends_with("/kvm");
    let mut tap = Tap::start();
    let device = match Handle::open(&device) {
        Ok(device) => device,
        Err(error) => {
            tap.result("open the device", Err(error.to_string()));
            return tap.finish();
        }
    };
    type Test = fn(&Handle) -> Outcome;
    let tests: [(&str, Test); 34] = [
        ("the rules of slots", slots::rules),
        ("reads and writes", slots::reads_and_writes),
        ("slots come and go", slots::come_and_go),
        ("a read-only slot", slots::read_only),
        ("many slots", slots::many),
        ("random changes of slots", slots::random_changes),
        ("the host unmaps", host::unmaps),
        ("the host protects", host::protects),
        ("tables go with their pages", host::tables),
        ("a page that is awaited", host::awaited_page),
        ("a fork copies", host::fork_copies),
        ("the owner dies before the VM", host::owner_dies),
        ("memory of a file", host::file),
        ("large pages", host::large_pages),
        ("small pages become a large one", host::collapse),
        ("equal pages are merged", host::merges_equal_pages),
        ("memory without pages of the host", host::frames),
        ("the rules of the dirty log", log::rules),
        ("the dirty log is exact", log::exact),
        ("the dirty log survives the host", log::survives),
        ("the dirty log moves along", log::moves),
        ("the dirty log outlives large pages", log::large_pages),
        ("nothing of a dirty log is lost", clear::nothing_is_lost),
        ("the rules of clearing a dirty log", clear::rules),
        ("the VMM clears the dirty log", clear::by_hand),
        ("a dirty log that begins full", clear::initially_set),
        ("a dirty ring", clear::ring),
        ("a page of 1 GiB", huge::whole),
        ("a page of 1 GiB, logged", huge::logged),
        ("a page of 1 GiB, in part", huge::in_part),
        ("a page of 1 GiB, ahead of its use", huge::pre_faulted),
        ("a cgroup is charged for tables", pressure::charged),
        (
            "a cgroup takes pages and tables back",
            pressure::pages_and_tables_go,
        ),
        ("a cgroup kills a guest", pressure::killed),
    ];
    let mut run = |name: &str, test: &dyn Fn() -> Outcome| {
        if only.as_ref().is_some_and(|text| !name.contains(text)) {
            return;
        }
        if let Some((_, why)) = KVM.iter().find(|(test, _)| is_kvm && *test == name) {
            return tap.skip(name, why);
        }
        let outcome = test();
        // Who names a test wants it to run.
        let must = |text: String| text.replacen(SKIP, "", 1);
        tap.result(
            name,
            match only {
                None => outcome,
                Some(_) => outcome.map_err(must),
            },
        );
    };
    for (name, test) in tests {
        run(name, &|| test(&device));
    }
    // What takes long, and wants 3 GiB of the host's memory, is to be asked for.
    if only.is_some() {
        run("1 GiB of 64 GiB, small pages", &|| {
            vast::small_pages(&device)
        });
        run("1 GiB of 64 GiB, large pages", &|| {
            vast::large_pages(&device)
        });
        run("1 GiB of 64 GiB, sparse", &|| vast::sparse(&device));
    }
    let time = Duration::from_secs(seconds);
    run("a page of 1 GiB, under fire", &|| {
        huge::under_fire(&device, time)
    });
    run("a cgroup reclaims under a guest", &|| {
        pressure::reclaimed(&device, time)
    });
    run("slots change under a running vCPU", &|| {
        fire::slots_change(&device, time)
    });
    run("under fire", &|| fire::under_fire(&device, time));
    run("contents survive", &|| survive::contents(&device, 2 * time));
    run("copied while it runs", &|| {
        log::copy_while_it_runs(&device, time)
    });
    tap.finish()
}
