// SPDX-License-Identifier: GPL-2.0-only

//! Runs tiny guests and compares what they do with what is written beside them.
//!
//! `run-guests [--device PATH] [--machine NAME] [--directory PATH] [--print] [NAME]...`

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use selftests::guest::{compare, Guest};
use selftests::kvm::Handle;
use selftests::machine::{catch_interruptions, missing, register, Machine};
use selftests::state::describe;
use selftests::tap::Tap;

struct Options {
    device: String,
    machine: String,
    directory: PathBuf,
    print: bool,
    names: Vec<String>,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        device: std::env::var("DEVICE").unwrap_or_else(|_| "/dev/pacifica".into()),
        machine: std::env::var("LAB_MACHINE").unwrap_or_else(|_| "hardware".into()),
        directory: "/selftests/guests".into(),
        print: false,
        names: Vec::new(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--device" => options.device = value()?,
            "--machine" => options.machine = value()?,
            "--directory" => options.directory = value()?.into(),
            "--print" => options.print = true,
            word if word.starts_with('-') => return Err(format!("unknown option {word}")),
            _ => options.names.push(word),
        }
    }
    if options.device.ends_with("/kvm") {
        options.machine.push_str(",kvm");
    }
    if options.names.is_empty() {
        options.names = all_names(&options.directory)?;
    }
    Ok(options)
}

fn all_names(directory: &Path) -> Result<Vec<String>, String> {
    let entries = fs::read_dir(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".bin")?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// A bug of this machine.
struct Excuse {
    text: String,
    deadly: bool,
}

/// The text of the file `excuses` for a bug, if that bug is one of this machine (KVM's bugs are
/// added when it is the one that runs). Each line is a bug's name, the machines that have it with
/// commas between them, and what it is; a `!` before a machine says that the bug kills it, so that
/// the guest must not run there.
fn excuse(directory: &Path, machine: &str, guest: &Guest) -> Result<Option<Excuse>, String> {
    if guest.bugs.is_empty() {
        return Ok(None);
    }
    let text =
        fs::read_to_string(directory.join("excuses")).map_err(|e| format!("excuses: {e}"))?;
    let mut found = None;
    for bug in &guest.bugs {
        let (machines, what) = text
            .lines()
            .filter_map(|line| line.split_once(' '))
            .find_map(|(name, rest)| (name == bug).then(|| rest.split_once(' '))?)
            .ok_or(format!("the file `excuses` has no bug {bug}"))?;
        let here = |name: &str| machine.split(',').any(|own| own == name);
        for name in machines
            .split(',')
            .filter(|name| here(name.trim_start_matches('!')))
        {
            let text = format!("{bug}: {}", what.trim());
            found = Some(Excuse {
                text,
                deadly: name.starts_with('!'),
            });
        }
    }
    Ok(found)
}

/// Runs the guest; answers what it did. A `regs` line of the expectation is answered in kind, and
/// what was not expected is followed by what the CPUs are doing.
fn run(device: &Handle, guest: &Guest) -> Result<(Vec<String>, Result<(), String>), String> {
    let machine =
        Machine::new(device, guest).map_err(|e| format!("could not make the machine: {e}"))?;
    let mut lines = machine.run(guest);
    for line in guest
        .expected
        .iter()
        .filter_map(|line| line.strip_prefix("regs "))
    {
        let mut values = String::from("regs");
        for name in line
            .split_whitespace()
            .filter_map(|word| Some(word.split_once('=')?.0))
        {
            let value =
                register(&machine.vcpus[0].handle, name).ok_or(format!("no register {name}"))?;
            values.push_str(&format!(" {name}={value:#x}"));
        }
        lines.push(values);
    }
    let outcome = compare(&guest.expected, &lines).map_err(|mut text| {
        for (id, vcpu) in machine.vcpus.iter().enumerate() {
            text.push_str(&format!("\nCPU {id}:\n  "));
            text.push_str(&describe(&vcpu.handle).join("\n  "));
        }
        text
    });
    Ok((lines, outcome))
}

fn main() -> ExitCode {
    let start = || -> Result<_, String> {
        let options = options()?;
        let device =
            Handle::open(&options.device).map_err(|e| format!("{}: {e}", options.device))?;
        Ok((options, device))
    };
    let (options, device) = match start() {
        Ok(start) => start,
        Err(error) => {
            println!("Bail out! {error}");
            return ExitCode::FAILURE;
        }
    };
    catch_interruptions();
    let mut tap = Tap::start();
    for name in &options.names {
        let guest = match Guest::load(&options.directory, name) {
            Ok(guest) => guest,
            Err(error) => {
                tap.result(name, Err(error));
                continue;
            }
        };
        if let Some(reason) = missing(&device, &guest) {
            tap.skip(name, reason);
            continue;
        }
        let excuse = match excuse(&options.directory, &options.machine, &guest) {
            Ok(excuse) => excuse,
            Err(error) => {
                tap.result(name, Err(error));
                continue;
            }
        };
        if let Some(Excuse { text, deadly: true }) = excuse {
            tap.skip(name, &format!("not run: {text}"));
            continue;
        }
        let outcome = run(&device, &guest);
        if options.print {
            println!("== {name}");
            match outcome {
                Ok((lines, _)) => lines.iter().for_each(|line| println!("{line}")),
                Err(error) => println!("# {error}"),
            }
            continue;
        }
        match (outcome.and_then(|(_, outcome)| outcome), excuse) {
            (Err(_), Some(bug)) => tap.skip(name, &format!("excused by {}", bug.text)),
            (outcome, _) => tap.result(name, outcome),
        }
    }
    if options.print {
        return ExitCode::SUCCESS;
    }
    tap.finish()
}
