// SPDX-License-Identifier: GPL-2.0-only

//! Single instructions on memory that is not there, in real, virtual-8086, 32-bit and 64-bit mode:
//! what they access, and the registers after it, beside the kernel's own KVM.
//!
//! `single DEVICE` prints a line for each instruction. `single --compare KVM OURS KNOWN` compares
//! two such outputs; `KNOWN` has lines with a mode (or `*`), the first bytes, and the reason of a
//! difference.

mod cases;
mod machine;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::process::ExitCode;

use cases::Mode;
use machine::Machine;
use selftests::kvm::Handle;
use selftests::tap::Tap;

fn run(device: &str) -> Result<(), String> {
    let device = Handle::open(device).map_err(|e| format!("{device}: {e}"))?;
    let mut machine = None;
    for case in cases::all() {
        let fresh = match machine.take() {
            Some(machine) => machine,
            None => {
                // KVM drops the XMM registers that a new vCPU is given before it has run once.
                let machine = Machine::new(&device)?;
                let (_, usable) = machine.run(&case)?;
                if usable {
                    machine
                } else {
                    Machine::new(&device)?
                }
            }
        };
        let (trace, usable) = fresh.run(&case)?;
        let mut bytes = String::new();
        for byte in &case.bytes {
            let _ = write!(bytes, "{byte:02x}");
        }
        println!("{} {bytes}{trace}", case.mode.name());
        machine = usable.then_some(fresh);
    }
    Ok(())
}

/// A difference that is known: mode, beginning of the instruction.
struct Known {
    mode: String,
    bytes: String,
}

fn known(text: &str) -> Vec<Known> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let words = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?, words.next()?))
    });
    words
        .map(|(mode, bytes)| Known {
            mode: mode.into(),
            bytes: bytes.into(),
        })
        .collect()
}

fn compare(kvm: &str, ours: &str, table: &str) -> Result<ExitCode, String> {
    let read = |path: &str| fs::read_to_string(path).map_err(|e| format!("{path}: {e}"));
    let (kvm, ours, table) = (read(kvm)?, read(ours)?, known(&read(table)?));
    let mut used = BTreeSet::new();
    let mut tap = Tap::start();
    for mode in Mode::ALL {
        let prefix = format!("{} ", mode.name());
        let of = |text: &'_ str| -> Vec<String> {
            let lines = text.lines().filter(|line| line.starts_with(&prefix));
            lines.map(str::to_owned).collect()
        };
        let (kvm, ours) = (of(&kvm), of(&ours));
        let mut details = String::new();
        if kvm.len() != ours.len() || kvm.is_empty() {
            details = format!("{} on kvm_amd, {} on ours\n", kvm.len(), ours.len());
        }
        for (theirs, own) in kvm.iter().zip(&ours).filter(|(a, b)| a != b) {
            let bytes = own.split_whitespace().nth(1).unwrap_or_default();
            let found = table.iter().position(|known| {
                (known.mode == "*" || known.mode == mode.name()) && bytes.starts_with(&known.bytes)
            });
            match found {
                Some(index) => {
                    used.insert(index);
                }
                None => details += &format!("kvm  {theirs}\nours {own}\n"),
            }
        }
        let name = format!("{} single instructions, {} mode", ours.len(), mode.name());
        let outcome = if details.is_empty() {
            Ok(())
        } else {
            Err(details)
        };
        tap.result(&name, outcome);
    }
    let unused = table
        .iter()
        .enumerate()
        .filter(|(index, _)| !used.contains(index));
    let unused: Vec<_> = unused
        .map(|(_, known)| format!("{} {}", known.mode, known.bytes))
        .collect();
    let outcome = if unused.is_empty() {
        Ok(())
    } else {
        Err(unused.join("\n"))
    };
    tap.result("every known difference is one", outcome);
    Ok(tap.finish())
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["--compare", kvm, ours, table] => compare(kvm, ours, table),
        [device] => run(device).map(|()| ExitCode::SUCCESS),
        _ => Err("usage: single DEVICE | single --compare KVM OURS KNOWN".into()),
    };
    result.unwrap_or_else(|error| {
        println!("Bail out! {error}");
        ExitCode::FAILURE
    })
}
