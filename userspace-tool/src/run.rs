// SPDX-License-Identifier: GPL-2.0-only

//! `pacifica run`: starts the guest and serves its console until it ends.

use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;

use landlock::RulesetStatus;
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{self, SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vmm_sys_util::eventfd::EventFd;

use crate::cli::{Reboot, RestoreArgs, RunArgs};
use crate::confine::confine;
use crate::console::{self, Action, Console, Escapes, RawMode};
use crate::control;
use crate::control::server::{Handler, Server};
use crate::devices::bus::{lock, Shared};
use crate::devices::serial::Serial;
use crate::error::{Error, Result};
use crate::eventfd;
use crate::fork::{self, Child, Job};
use crate::machine::Machine;
use crate::memory;
use crate::outcome::{self, Outcome, Stop};
use crate::state::{self, State};
use crate::summary::Summary;
use crate::trust;
use crate::vm::{Forked, Origin, Vm};

/// The signals that end the program.
const ENDING: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];
/// The signals about stopping and going on.
const JOB_CONTROL: [Signal; 2] = [Signal::SIGTSTP, Signal::SIGCONT];
/// How much input may wait for the guest. From a pipe, more is not read; from a terminal, more is
/// thrown away, because the escape keys must go on working.
const INPUT_LIMIT: usize = 16 * 1024;

/// How often a program in the background looks whether it is in the foreground: twice a second.
const FOREGROUND_INTERVAL: u16 = 500;

/// Runs the guest as asked.
pub(crate) fn run(args: &RunArgs) -> Result<ExitCode> {
    let machine = Machine::new(args)?;
    if args.print_config {
        print!("{}", machine.to_toml()?);
        return Ok(ExitCode::SUCCESS);
    }
    start(&machine, Origin::Boot, args.name.as_deref(), args.summary)
}

/// In the child of a machine: runs it until it ends, and ends with it. Nothing of the parent's that
/// is on the stack is dropped.
fn begin(child: Child) -> ! {
    let status = forked(child).unwrap_or_else(|error| {
        eprintln!("pacifica: {error}");
        outcome::STATUS_HOST_ERROR
    });
    std::process::exit(status.into())
}

fn forked(child: Child) -> Result<u8> {
    console::forget();
    fork::settle(&child)?;
    let (machine, name, files) = (child.machine, child.name, child.files);
    let console = Console::given(files.console.into());
    let session = Session::new(&console)?;
    let server = control::socket(&name)
        .and_then(|socket| Server::given(&socket, files.lock.into(), files.listener.into()))
        .map_err(|error| Error::Control { name, error })?;
    let devices = &machine.devices;
    let devices = devices.given(files.disks, files.networks, files.random)?;
    let origin = Origin::Forked(Forked {
        state: child.state,
        memory: child.memory,
        kvm: child.kvm,
        devices,
    });
    live(&machine, origin, &console, session, Some(server), false)
}

/// Brings a machine back that was saved.
pub(crate) fn restore(args: &RestoreArgs) -> Result<ExitCode> {
    let wrong = |reason: String| Error::Saved {
        path: args.file.clone(),
        reason,
    };
    let file = memory::open("file", &args.file).map_err(|error| wrong(error.to_string()))?;
    let contents = state::file::read::<State>(&file).map_err(|error| wrong(error.to_string()))?;
    let mut machine = Machine::from_toml(&contents.state.machine).map_err(wrong)?;
    if machine.memory.0 != contents.memory {
        return Err(wrong(
            "it has memory of another size than its machine".into(),
        ));
    }
    trust::allow(&mut machine, args)?;
    let memory = contents.load(file, args.check);
    let memory = memory.map_err(|error| wrong(error.to_string()))?;
    let origin = Origin::Saved(Box::new(contents.state), memory);
    start(&machine, origin, args.name.as_deref(), args.summary)
}

/// Opens what is around a machine, and runs it until it ends.
fn start(machine: &Machine, origin: Origin, name: Option<&str>, says: bool) -> Result<ExitCode> {
    let console = Console::open(&machine.console)?;
    let session = Session::new(&console)?;
    let server = name.map(listen).transpose()?;
    live(machine, origin, &console, session, server, says).map(ExitCode::from)
}

/// Runs a machine until it ends; says how, as the program's exit status.
fn live(
    machine: &Machine,
    origin: Origin,
    console: &Console,
    mut session: Session,
    mut server: Option<Server>,
    says: bool,
) -> Result<u8> {
    // A child is confined by its parent.
    let confined = matches!(origin, Origin::Forked(_));
    let mut origin = Some(origin);
    let mut summary = Summary::begin();
    loop {
        let stop = Arc::new(Stop::new()?);
        // One that may start again must be able to open its files again.
        let confine = || match machine.reboot {
            Reboot::Exit if confined => Ok(()),
            Reboot::Exit => {
                let status = confine(server.as_ref().and_then(Server::directory))?;
                if status != RulesetStatus::FullyEnforced {
                    eprintln!("pacifica: this kernel confines the machine in part or not at all (Landlock)");
                }
                Ok(())
            }
            Reboot::Restart => Ok(()),
        };
        // A guest that resets itself begins where its kernel does.
        let origin = origin.take().unwrap_or(Origin::Boot);
        let vm = Vm::start(machine, origin, console, &stop, confine)?;
        answer(&mut server, Some(vm.handler(&machine.device)))?;
        while let Some(job) = session.serve(&vm, &stop)? {
            if let Some(child) = job.run() {
                begin(child);
            }
        }
        vm.jobs.close();
        answer(&mut server, None)?;
        let counted = summary.add(&vm.end());
        counted.map_err(|error| Error::system("reading the counters", error))?;
        match stop.outcome() {
            Some(Outcome::Reset) if machine.reboot == Reboot::Restart => continue,
            Some(outcome) => {
                session.give_terminal_back();
                drop(server);
                if says {
                    eprint!("{}", summary.text(outcome));
                }
                return Ok(session.end(outcome));
            }
            None => unreachable!("serving ends with an outcome"),
        }
    }
}

/// Lets the machine's socket, if it has one, be answered so.
fn answer(server: &mut Option<Server>, handler: Option<Handler>) -> Result<()> {
    let set = server.as_mut().map(|server| server.set(handler));
    set.transpose()
        .map(drop)
        .map_err(|error| Error::system("clone", error))
}

/// Opens the socket of the machine of this name.
fn listen(name: &str) -> Result<Server> {
    let server = control::socket(name).and_then(|socket| Server::bind(&socket));
    server.map_err(|error| Error::Control {
        name: name.into(),
        error,
    })
}

/// The user's side of a run. It stays over restarts of the guest.
struct Session {
    signals: SignalFd,
    raw: Option<RawMode>,
    terminal: bool,
    /// Whether there may be more input.
    input: bool,
    escapes: Escapes,
}

/// What a look at the descriptors showed.
#[derive(Default)]
struct Ready {
    signal: bool,
    input: bool,
    drained: bool,
    job: bool,
}

impl Session {
    /// Takes the signals and the terminal. The threads that are started later inherit the mask.
    fn new(console: &Console) -> Result<Self> {
        let mut mask = SigSet::empty();
        for signal in ENDING.into_iter().chain(JOB_CONTROL) {
            mask.add(signal);
        }
        mask.thread_block()
            .map_err(|error| Error::system("sigprocmask", error))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(|error| Error::system("signalfd", error))?;
        let mut session = Self {
            signals,
            raw: None,
            terminal: console.terminal,
            input: console.input,
            escapes: Escapes::default(),
        };
        session.take_terminal()?;
        Ok(session)
    }

    /// Puts the terminal into raw mode, if there is one and it is ours now.
    fn take_terminal(&mut self) -> Result<()> {
        if self.terminal && self.raw.is_none() && console::in_foreground() {
            self.raw = Some(RawMode::enter()?);
        }
        Ok(())
    }

    /// Serves console and signals until there is an outcome, or a fork is asked for.
    fn serve(&mut self, vm: &Vm, stop: &Stop) -> Result<Option<Job>> {
        let serial = &vm.serial;
        let drained = lock(serial).drained()?;
        while stop.outcome().is_none() {
            let ready = self.wait(serial, [stop.event(), &drained, vm.jobs.event()])?;
            if let Some(job) = ready.job.then(|| vm.jobs.take()).flatten() {
                return Ok(Some(job));
            }
            if ready.signal {
                self.handle_signals(stop)?;
            }
            self.take_terminal()?;
            if ready.drained {
                // The event says only that there is room now.
                let _ = drained.read();
                lock(serial).refill();
            }
            if ready.input {
                self.read_input(serial, stop)?;
            }
        }
        Ok(None)
    }

    /// Waits until something happens.
    fn wait(&self, serial: &Shared<Serial>, events: [&EventFd; 3]) -> Result<Ready> {
        // In the background, a terminal is not ours to read.
        let ours = !self.terminal || self.raw.is_some();
        let room = self.terminal || lock(serial).waiting() < INPUT_LIMIT;
        let stdin = io::stdin();
        let mut descriptors = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        for event in events.map(eventfd::borrow) {
            descriptors.push(PollFd::new(event, PollFlags::POLLIN));
        }
        if self.input && ours && room {
            descriptors.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        // Nothing announces that a shell has put this program into the foreground.
        let timeout = if ours {
            PollTimeout::NONE
        } else {
            FOREGROUND_INTERVAL.into()
        };
        match poll(&mut descriptors, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Ready::default()),
            Err(error) => return Err(Error::system("poll", error)),
        }
        let ready = |index: usize| {
            let descriptor = descriptors.get(index);
            descriptor
                .and_then(PollFd::revents)
                .is_some_and(|events| !events.is_empty())
        };
        Ok(Ready {
            signal: ready(0),
            drained: ready(2),
            job: ready(3),
            input: ready(4),
        })
    }

    /// Handles the signals that have arrived.
    fn handle_signals(&mut self, stop: &Stop) -> Result<()> {
        while let Some(info) = self
            .signals
            .read_signal()
            .map_err(|error| Error::system("read", error))?
        {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            match Signal::try_from(number) {
                // `serve` takes the terminal back when the program goes on.
                Ok(Signal::SIGTSTP) => {
                    self.raw = None;
                    // Only the uncatchable signal is sure to stop us; the shell sees no difference.
                    signal::raise(Signal::SIGSTOP)
                        .map_err(|error| Error::system("raise", error))?;
                }
                Ok(Signal::SIGCONT) => {}
                Ok(signal) => stop.request(Outcome::Signal(signal)),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Reads what was typed.
    fn read_input(&mut self, serial: &Shared<Serial>, stop: &Stop) -> Result<()> {
        let mut buffer = [0; 1024];
        // Not through `Stdin`, whose own buffer would hide input from `poll`.
        let count = match nix::unistd::read(io::stdin(), &mut buffer) {
            Ok(count) => count,
            Err(Errno::EINTR | Errno::EAGAIN) => return Ok(()),
            // The terminal is gone; the guest goes on without it.
            Err(_) => 0,
        };
        if count == 0 {
            self.input = false;
        }
        let typed = &buffer[..count];
        let mut guest = Vec::new();
        if self.terminal {
            for action in self.escapes.feed(typed, &mut guest) {
                match action {
                    Action::Quit => stop.request(Outcome::Quit),
                    Action::Help => console::show_help(),
                }
            }
        } else {
            guest.extend(typed);
        }
        let mut serial = lock(serial);
        let room = INPUT_LIMIT.saturating_sub(serial.waiting());
        if !self.terminal || guest.len() <= room {
            serial.input(&guest);
        }
        Ok(())
    }

    /// The terminal is as it was before, for good.
    fn give_terminal_back(&mut self) {
        self.raw = None;
    }

    /// Says how the run ended.
    fn end(mut self, outcome: &Outcome) -> u8 {
        self.give_terminal_back();
        match outcome {
            Outcome::Crash(report) => eprint!("pacifica: the guest crashed: {report}"),
            Outcome::Host(reason) => eprintln!("pacifica: {reason}"),
            Outcome::Signal(signal) => {
                // End as if the signal had not been caught, so that the parent sees it.
                let mut mask = SigSet::empty();
                mask.add(*signal);
                let _ = signal::raise(*signal).and_then(|()| mask.thread_unblock());
            }
            _ => {}
        }
        outcome.status()
    }
}
