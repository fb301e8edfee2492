// SPDX-License-Identifier: GPL-2.0-only

//! The `pacifica` program: runs guests on the Pacifica hypervisor, or on any other that speaks the
//! KVM API, and helps with what surrounds that.

mod boot;
mod check;
mod cli;
mod console;
mod devices;
mod error;
mod exec;
mod kvm;
mod layout;
mod memory;
mod outcome;
mod run;
mod vcpu;
mod vm;

use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use cli::{Cli, Command};
use error::{Error, Result};

fn main() -> ExitCode {
    restore_terminal_on_panic();
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Check(args) => Ok(check::check(&args.device)),
        Command::Exec(args) => exec::exec(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "pacifica", &mut io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Man => manual(),
    };
    console::restore();
    result.unwrap_or_else(|error| {
        eprintln!("pacifica: {error}");
        if let Some(hint) = error.hint() {
            eprintln!("  {hint}");
        }
        ExitCode::from(outcome::STATUS_HOST_ERROR)
    })
}

/// A panic must not leave the terminal in raw mode.
fn restore_terminal_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        console::restore();
        report(info);
    }));
}

/// Writes the manual page: the program's, then that of each command.
fn manual() -> Result<ExitCode> {
    let failed = |error| Error::system("write", error);
    let mut command = Cli::command();
    command.build();
    clap_mangen::Man::new(command.clone())
        .render(&mut io::stdout())
        .map_err(failed)?;
    for sub in command
        .get_subcommands()
        .filter(|sub| sub.get_name() != "help")
    {
        let page = clap_mangen::Man::new(sub.clone());
        page.render(&mut io::stdout()).map_err(failed)?;
    }
    Ok(ExitCode::SUCCESS)
}
