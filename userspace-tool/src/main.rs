// SPDX-License-Identifier: GPL-2.0-only

//! The `pacifica` program: runs guests on the Pacifica hypervisor, or on any other that speaks the
//! KVM API, and helps with what surrounds that.

mod boot;
mod check;
mod cli;
mod confine;
mod console;
mod control;
mod devices;
mod error;
mod eventfd;
mod exec;
mod fork;
mod gate;
mod generation;
mod image;
mod kvm;
mod layout;
mod machine;
mod memory;
mod outcome;
mod parts;
mod run;
mod state;
mod summary;
mod trust;
mod vcpu;
mod vm;

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};

use cli::{Cli, Command, ImageCommand};
use control::{client, Request};
use error::{Error, Result};

fn main() -> ExitCode {
    restore_terminal_on_panic();
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => Ok(check::check(&args.device)),
        Command::Exec(args) => exec::exec(&args),
        Command::Image(ImageCommand::Debian(args)) => image::debian(&args),
        Command::Ps => client::list(),
        Command::Stop { name, patience } => client::stop(&name, Duration::from_secs(patience)),
        Command::Pause { name } => client::request(&name, Request::Pause),
        Command::Resume { name } => client::request(&name, Request::Resume),
        Command::Snapshot { name } => client::request(&name, Request::Snapshot),
        Command::Reset { name } => client::reset(&name),
        Command::Fork(args) => client::fork(&args),
        Command::Save { name, file, mapped } => client::save(&name, &file, mapped),
        Command::Restore(args) => run::restore(&args),
        Command::Stat { name, json } => client::counters(&name, json),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "pacifica", &mut io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { directory } => manual(directory.as_deref()),
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

/// Writes the program's manual page to standard output, or all pages to a directory.
fn manual(directory: Option<&Path>) -> Result<ExitCode> {
    let command = Cli::command();
    match directory {
        Some(directory) => clap_mangen::generate_to(command, directory),
        None => clap_mangen::Man::new(command).render(&mut io::stdout()),
    }
    .map_err(|error| Error::system("writing the manual", error))?;
    Ok(ExitCode::SUCCESS)
}
