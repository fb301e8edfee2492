// SPDX-License-Identifier: GPL-2.0-only

//! Results as KTAP lines.

use std::process::ExitCode;

/// Counts results while it prints them.
#[derive(Default)]
pub struct Tap {
    number: usize,
    failed: usize,
}

impl Tap {
    /// Prints the version line and starts counting.
    pub fn start() -> Self {
        println!("KTAP version 1");
        Self::default()
    }

    /// One result; the details are shown, line by line, if it is a failure. Details that begin
    /// with [`SKIP`] are the reason why the test cannot run here.
    pub fn result(&mut self, name: &str, outcome: Result<(), String>) {
        if let Some(reason) = outcome
            .as_ref()
            .err()
            .and_then(|text| text.strip_prefix(SKIP))
        {
            return self.skip(name, reason);
        }
        self.number += 1;
        match outcome {
            Ok(()) => println!("ok {} {name}", self.number),
            Err(details) => {
                self.failed += 1;
                for line in details.lines() {
                    println!("# {line}");
                }
                println!("not ok {} {name}", self.number);
            }
        }
    }

    /// A test that cannot run here, and why.
    pub fn skip(&mut self, name: &str, reason: &str) {
        self.number += 1;
        println!("ok {} {name} # SKIP {reason}", self.number);
    }

    /// Prints the plan; success if at least one test ran and none failed.
    pub fn finish(self) -> ExitCode {
        println!("1..{}", self.number);
        if self.failed == 0 && self.number > 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// What the details of a test begin with that cannot run.
pub const SKIP: &str = "SKIP ";

/// The result of a test that cannot run here.
pub fn skipped<T>(reason: &str) -> Result<T, String> {
    Err(format!("{SKIP}{reason}"))
}

/// Fails with the two values unless they are equal.
pub fn equal<T: PartialEq + std::fmt::Debug>(
    what: &str,
    got: T,
    expected: T,
) -> Result<(), String> {
    if got == expected {
        Ok(())
    } else {
        Err(format!("{what}: got {got:?}, expected {expected:?}"))
    }
}
