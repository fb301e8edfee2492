// SPDX-License-Identifier: GPL-2.0-only

//! `pacifica check`: is this host ready, and if not, what is to be done?
//!
//! | lines | module | what they look at |
//! |---|---|---|
//! | processor | [`processor`] | AMD-V and nested paging |
//! | kernel | [`kernel`] | its series, Rust, PREEMPT_RT, signatures of modules |
//! | modules | [`modules`] | KVM beside us, and the module itself |
//! | device | [`device`] | the node, up to a virtual machine |

mod device;
mod kernel;
mod modules;
mod processor;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use crate::outcome::STATUS_HOST_ERROR;

use kernel::Kernel;
use modules::Modules;

/// What a line says about the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Right.
    Ok,
    /// It may be right: there is more to know, and the host is not refused for it.
    Unsure,
    /// Wrong: the host is not ready.
    No,
}

/// One line of the report: what was looked at, what was found, and the next step if there is one.
#[derive(Debug)]
struct Line {
    what: &'static str,
    found: String,
    verdict: Verdict,
    next: String,
}

impl Line {
    fn new(
        what: &'static str,
        verdict: Verdict,
        found: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        let (found, next) = (found.into(), next.into());
        Self {
            what,
            found,
            verdict,
            next,
        }
    }

    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self::new(what, Verdict::Ok, found, "")
    }

    fn unsure(what: &'static str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(what, Verdict::Unsure, found, next)
    }

    fn no(what: &'static str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(what, Verdict::No, found, next)
    }

    /// A line for what could not be tried yet.
    fn untried(what: &'static str) -> Self {
        Self::no(what, "not tried", "Fix what is above first.")
    }

    /// Prints the line, and the next step below it.
    fn print(&self) {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Unsure => "??",
            Verdict::No => "NO",
        };
        println!("{verdict}  {:<22} {}", self.what, self.found);
        if !self.next.is_empty() {
            println!("    -> {}", self.next);
        }
    }
}

/// Looks at everything, prints a line for each, and succeeds unless something is wrong.
pub(crate) fn check(node: &Path) -> ExitCode {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let kernel = Kernel::running();
    let modules = Modules::found(&kernel.release);
    let mut lines = processor::lines(&read("/proc/cpuinfo"));
    if modules.is_pacifica(node) {
        lines.extend(kernel.lines(modules.pacifica));
    }
    lines.extend(modules.lines(node));
    lines.extend(device::lines(node));
    lines.iter().for_each(Line::print);
    if lines.iter().any(|line| line.verdict == Verdict::No) {
        println!("This host is not ready.");
        ExitCode::from(STATUS_HOST_ERROR)
    } else {
        println!("This host is ready.");
        ExitCode::SUCCESS
    }
}

/// The verdicts of some lines, for tests; what is not right must have a next step.
#[cfg(test)]
fn verdicts(lines: &[Line]) -> Vec<Verdict> {
    let verdict = |line: &Line| {
        assert_eq!(
            line.verdict == Verdict::Ok,
            line.next.is_empty(),
            "{line:?}"
        );
        line.verdict
    };
    lines.iter().map(verdict).collect()
}
