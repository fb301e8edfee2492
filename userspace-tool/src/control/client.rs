// SPDX-License-Identifier: GPL-2.0-only

//! The commands that speak to machines that run.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{directory, socket, Answer, Request, State, Status, ENDING};
use crate::error::{Error, Result};
use crate::layout::MIB;

/// Asks a machine, and waits for its answer: without a limit, as long as it takes.
pub(crate) fn ask(socket: &Path, request: Request, limit: Option<Duration>) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(limit)?;
    let text = serde_json::to_string(&request).map_err(io::Error::other)?;
    stream.write_all(text.as_bytes())?;
    stream.write_all(b"\n")?;
    let mut line = String::new();
    if BufReader::new(stream).read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_str(&line).map_err(io::Error::other)
}

/// Asks the machine of this name.
fn ask_name(name: &str, request: Request) -> Result<Answer> {
    let failed = |error| Error::Control {
        name: name.into(),
        error,
    };
    match socket(name)
        .and_then(|socket| ask(&socket, request, None))
        .map_err(failed)?
    {
        Answer::Error { reason } => Err(failed(io::Error::other(reason))),
        answer => Ok(answer),
    }
}

/// A request that only has to be done.
pub(crate) fn request(name: &str, request: Request) -> Result<ExitCode> {
    ask_name(name, request)?;
    Ok(ExitCode::SUCCESS)
}

/// How often a machine that is to stop is looked at.
const INTERVAL: Duration = Duration::from_millis(100);
/// How long one that is to be listed may think about it.
const LIST_LIMIT: Duration = Duration::from_secs(2);

/// Whether no machine has the socket any more: all that it had open is closed then.
fn is_gone(socket: &Path) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    let connected = UnixStream::connect(socket).map(drop);
    connected.is_err_and(|error| matches!(error.kind(), NotFound | ConnectionRefused))
}

/// Presses the power button, and ends the machine if it has not powered off after `patience`.
pub(crate) fn stop(name: &str, patience: Duration) -> Result<ExitCode> {
    let socket = socket(name).map_err(|error| Error::Control {
        name: name.into(),
        error,
    })?;
    if !patience.is_zero() {
        ask_name(name, Request::PowerButton)?;
        // A machine that rests hears of no button; one that ends already need not go on.
        let _ = ask_name(name, Request::Resume);
        let start = Instant::now();
        while start.elapsed() < patience {
            if is_gone(&socket) {
                return Ok(ExitCode::SUCCESS);
            }
            sleep(INTERVAL);
        }
        eprintln!("pacifica: {name} has not powered off: it is ended");
    }
    match ask_name(name, Request::Quit) {
        // It may have gone by itself just now.
        Err(error) if !is_gone(&socket) => return Err(error),
        _ => {}
    }
    while !is_gone(&socket) {
        sleep(INTERVAL);
    }
    Ok(ExitCode::SUCCESS)
}

/// All machines of this user that answer, by name.
fn machines() -> io::Result<Vec<(String, Status)>> {
    let mut machines = Vec::new();
    for entry in fs::read_dir(directory()?)? {
        let path: PathBuf = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        if let (Some(name), true) = (name, path.extension().is_some_and(|end| end == ENDING)) {
            match ask(&path, Request::Status, Some(LIST_LIMIT)) {
                Ok(Answer::Status(status)) => machines.push((name.to_owned(), status)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    eprintln!("pacifica: {name} does not answer");
                }
                _ => {}
            }
        }
    }
    machines.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(machines)
}

/// Lists them.
pub(crate) fn list() -> Result<ExitCode> {
    let machines = machines().map_err(|error| Error::system("looking for machines", error))?;
    let width = machines.iter().map(|(name, _)| name.len()).max();
    let width = width.unwrap_or(0).max("NAME".len());
    println!(
        "{:width$} {:>8} {:8} {:>4} {:>8} {:>8}  DEVICE",
        "NAME", "PROCESS", "STATE", "CPUS", "MEMORY", "SECONDS"
    );
    for (name, status) in machines {
        let state = match status.state {
            State::Running => "running",
            State::Paused => "paused",
        };
        let memory = format!("{}M", status.memory / MIB);
        println!(
            "{name:width$} {:>8} {state:8} {:>4} {memory:>8} {:>8}  {}",
            status.process,
            status.cpus,
            status.seconds,
            status.device.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows what a machine's processors have counted, all that is not 0.
pub(crate) fn counters(name: &str, json: bool) -> Result<ExitCode> {
    let Answer::Counters { counters } = ask_name(name, Request::Counters)? else {
        return Ok(ExitCode::FAILURE);
    };
    if json {
        let text = serde_json::to_string(&counters);
        println!("{}", text.unwrap_or_default());
        return Ok(ExitCode::SUCCESS);
    }
    let mut counters: Vec<_> = counters
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .collect();
    counters.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (name, count) in counters {
        println!("{count:>16} {name}");
    }
    Ok(ExitCode::SUCCESS)
}
