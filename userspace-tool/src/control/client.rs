// SPDX-License-Identifier: GPL-2.0-only

//! The commands that speak to machines that run.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::draft::Draft;
use super::server::Server;
use super::{directory, message, socket, Answer, Request, State, Status, ENDING};
use crate::cli::{ConsoleArg, ForkArgs};
use crate::devices::{random_mac, DiskFile, Network, Plug};
use crate::error::{Error, Result};
use crate::layout::MIB;
use crate::machine::Machine;
use crate::state::file::Form;

/// Asks a machine, and waits for its answer: without a limit, as long as it takes.
pub(crate) fn ask(
    socket: &Path,
    request: Request,
    descriptors: &[BorrowedFd<'_>],
    limit: Option<Duration>,
) -> io::Result<Answer> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(limit)?;
    let text = serde_json::to_string(&request).map_err(io::Error::other)?;
    message::send(&stream, format!("{text}\n").as_bytes(), descriptors)?;
    let mut line = String::new();
    if BufReader::new(stream).read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_str(&line).map_err(io::Error::other)
}

/// Asks the machine of this name.
fn ask_name(name: &str, request: Request) -> Result<Answer> {
    ask_with(name, request, &[])
}

/// Asks the machine of this name, and gives it descriptors.
fn ask_with(name: &str, request: Request, descriptors: &[BorrowedFd<'_>]) -> Result<Answer> {
    let failed = |error| Error::Control {
        name: name.into(),
        error,
    };
    match socket(name)
        .and_then(|socket| ask(&socket, request, descriptors, None))
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

/// Lets a machine become two. All that the other one has of its own is opened here, for a machine
/// opens nothing: its socket, its console, its disks, its networks.
pub(crate) fn fork(args: &ForkArgs) -> Result<ExitCode> {
    let failed = |error| Error::Control {
        name: args.new.clone(),
        error,
    };
    let Answer::Machine { machine } = ask_name(&args.name, Request::Describe)? else {
        return Ok(ExitCode::FAILURE);
    };
    let path = PathBuf::from(&args.name);
    let mut machine = Machine::from_toml(&machine).map_err(|reason| Error::Machine {
        path: path.clone(),
        reason,
    })?;
    replace_networks(&mut machine, &args.networks)
        .map_err(|reason| Error::Machine { path, reason })?;
    let socket = socket(&args.new).map_err(failed)?;
    let server = Server::bind(&socket).map_err(failed)?;
    let console = match &args.console {
        Some(path) => path.clone(),
        None => PathBuf::from("/dev/null"),
    };
    machine.console = ConsoleArg::File(console.clone());
    let console = File::create(&console).map_err(|error| Error::Write {
        path: console.clone(),
        error,
    })?;
    let random = File::open("/dev/urandom").map_err(|error| Error::system("open", error))?;
    let networks = machine.devices.networks.iter();
    let networks: Vec<_> =
        (networks.map(|network| network.plug.open_to_give())).collect::<Result<_>>()?;
    let mut copies = Copies(Vec::new());
    let mut disks = Vec::new();
    for disk in &mut machine.devices.disks {
        disks.push(copies.open(disk, &args.new)?);
    }
    let mut files: Vec<BorrowedFd<'_>> = server.descriptors().into_iter().flatten().collect();
    files.extend([console.as_fd(), random.as_fd()]);
    files.extend(disks.iter().map(AsFd::as_fd));
    files.extend(networks.iter().map(AsFd::as_fd));
    let request = Request::Fork {
        machine: machine.to_toml()?,
        name: args.new.clone(),
    };
    let answer = ask_with(&args.name, request, &files)?;
    // All of it is the other one's from now on.
    server.give();
    drop((console, random, networks, disks));
    match ask(&socket, Request::Status, &[], None) {
        Ok(Answer::Status(status)) => {
            copies.0.clear();
            let pause = match answer {
                Answer::Forked { pause } => pause,
                _ => 0,
            };
            println!(
                "{} is forked: {} is process {}; the pause was {:.1} ms",
                args.name,
                args.new,
                status.process,
                pause as f64 / 1000.0
            );
            Ok(ExitCode::SUCCESS)
        }
        other => {
            let _ = fs::remove_file(&socket);
            let reason = "it has ended at once; where its console goes is the reason (--console)";
            Err(failed(
                other.err().unwrap_or_else(|| io::Error::other(reason)),
            ))
        }
    }
}

/// The networks of a fork: none may be the parent's, and each has an address of its own.
fn replace_networks(
    machine: &mut Machine,
    networks: &[Network],
) -> std::result::Result<(), String> {
    let own = &mut machine.devices.networks;
    if !networks.is_empty() && networks.len() != own.len() {
        return Err(format!(
            "it has {} networks: name as many with --net",
            own.len()
        ));
    }
    for (nth, network) in own.iter_mut().enumerate() {
        match (networks.get(nth), &network.plug) {
            (Some(new), _) => *network = new.clone(),
            (None, Plug::Tap(name)) => {
                return Err(format!(
                    "{name} is the machine's: name another one with --net tap=NAME"
                ));
            }
            (None, _) => network.mac = random_mac().map_err(|error| error.to_string())?,
        }
    }
    Ok(())
}

/// The files of a fork's disks, which go again if there is no fork.
struct Copies(Vec<PathBuf>);

impl Copies {
    /// Opens a disk that is only read, or an empty file for a copy of one that is written to.
    fn open(&mut self, disk: &mut DiskFile, name: &str) -> Result<File> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| Error::Write { path, error }
        };
        if disk.read_only {
            return File::open(&disk.path).map_err(failed(&disk.path));
        }
        let about = fs::metadata(&disk.path).map_err(failed(&disk.path))?;
        if !about.is_file() {
            let reason = "a disk of the host is not copied, and has one machine that writes to it";
            let path = disk.path.clone();
            return Err(Error::NoCopy { path, reason });
        }
        let mut path = disk.path.clone().into_os_string();
        path.push(format!(".{name}"));
        disk.path = path.into();
        let mut options = File::options();
        let options = options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&disk.path).map_err(failed(&disk.path))?;
        self.0.push(disk.path.clone());
        Ok(file)
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// Lets a machine go back to its snapshot.
pub(crate) fn reset(name: &str) -> Result<ExitCode> {
    if let Answer::Reset { pages } = ask_name(name, Request::Reset)? {
        println!("{name} is back at its snapshot: {pages} pages of memory were put back");
    }
    Ok(ExitCode::SUCCESS)
}

/// Lets a machine write itself to a file. The file that is there stays until the new one is whole:
/// the machine, which cannot open files, is given one beside it.
pub(crate) fn save(name: &str, path: &Path, mapped: bool) -> Result<ExitCode> {
    let failed = |error| Error::Write {
        path: path.into(),
        error,
    };
    let form = match mapped {
        true => Form::Mapped,
        false => Form::Compressed,
    };
    let draft = Draft::new(path).map_err(failed)?;
    let answer = ask_with(name, Request::Save { form }, &[draft.file.as_fd()])?;
    let Answer::Saved { bytes } = answer else {
        return Err(failed(io::Error::other("the machine gives another answer")));
    };
    draft.publish().map_err(failed)?;
    println!("{name} is saved: {} has {bytes} bytes", path.display());
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
            match ask(&path, Request::Status, &[], Some(LIST_LIMIT)) {
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
