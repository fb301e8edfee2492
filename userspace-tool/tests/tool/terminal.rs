// SPDX-License-Identifier: GPL-2.0-only

//! The program on a terminal: raw mode, the escape keys, and that the terminal is as before after
//! every way out.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::time::Instant;

use crate::common::{device, program, Guest};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::pty::openpty;
use nix::sys::signal::{kill, Signal};
use nix::sys::termios::{tcgetattr, LocalFlags, Termios};
use nix::unistd::Pid;
use selftests::patience;

/// A guest that writes `>`, and then whatever it reads, to the serial port.
pub(crate) const ECHO_GUEST: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov $0x3f8, %dx
    0xb0, b'>', //             mov $'>', %al
    0xee, //                   out %al, %dx
    0x66, 0xba, 0xfd, 0x03, // 1: mov $0x3fd, %dx
    0xec, //                   in %dx, %al
    0xa8, 0x01, //             test $1, %al
    0x74, 0xf7, //             jz 1b
    0x66, 0xba, 0xf8, 0x03, // mov $0x3f8, %dx
    0xec, //                   in %dx, %al
    0xee, //                   out %al, %dx
    0xeb, 0xef, //             jmp 1b
];

/// The program on a terminal of its own.
struct Session {
    master: File,
    slave: OwnedFd,
    before: Termios,
    child: Child,
    seen: String,
}

impl Session {
    fn start(arguments: &[&str]) -> Self {
        Self::spawn(program().args(arguments))
    }

    fn spawn(command: &mut Command) -> Self {
        let pty = openpty(None, None).unwrap();
        let before = tcgetattr(pty.slave.as_fd()).unwrap();
        let end = || pty.slave.try_clone().unwrap();
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: Both calls are safe between fork and exec.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                nix::errno::Errno::result(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        Self {
            master: pty.master.into(),
            slave: pty.slave,
            before,
            child,
            seen: String::new(),
        }
    }

    /// Starts a guest that echoes, and waits until it runs.
    fn with_guest() -> Self {
        let device = device();
        let guest = Guest::new(ECHO_GUEST);
        let mut session = Self::start(&[
            "run",
            "--device",
            &device,
            "--memory",
            "4M",
            "--kernel",
            guest.path(),
        ]);
        session.expect(">");
        assert!(session.is_raw());
        session
    }

    fn is_raw(&self) -> bool {
        let now = tcgetattr(self.slave.as_fd()).unwrap();
        !now.local_flags
            .intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }

    fn assert_as_before(&self) {
        assert_eq!(
            tcgetattr(self.slave.as_fd()).unwrap(),
            self.before,
            "after: {}",
            self.seen
        );
    }

    fn type_(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until the program has written this, and forgets everything up to there.
    fn expect(&mut self, text: &str) {
        let start = Instant::now();
        while !self.seen.contains(text) {
            assert!(
                start.elapsed() < patience::limit(),
                "not there: {text:?}; there: {:?}",
                self.seen
            );
            let mut descriptors = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            if poll(&mut descriptors, PollTimeout::from(100u16)).unwrap() > 0 {
                let mut buffer = [0; 4096];
                let count = self.master.read(&mut buffer).unwrap();
                self.seen
                    .push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        }
        let end = self.seen.find(text).unwrap() + text.len();
        self.seen.drain(..end);
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let outcome = patience::until(what, || condition(self));
        outcome.unwrap_or_else(|error| panic!("{error}: {}", self.seen));
    }

    /// The letter of the process's state: `T` is stopped.
    fn state(&self) -> char {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        stat.rsplit(") ").next().unwrap().chars().next().unwrap()
    }

    fn end(&mut self) -> ExitStatus {
        let child = &mut self.child;
        let ended = patience::wait("the end", || child.try_wait().map_err(|e| e.to_string()));
        ended.unwrap_or_else(|error| panic!("{error}: {}", self.seen))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Only for tests that failed: the others have waited for it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_error_leaves_the_terminal_alone_and_says_what_to_do() {
    let mut session = Session::start(&[
        "run",
        "--kernel",
        "/dev/null",
        "--device",
        "/dev/there-is-none",
    ]);
    session.expect("there is no /dev/there-is-none");
    session.expect("`pacifica check`");
    assert_eq!(session.end().code(), Some(1));
    session.assert_as_before();
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn keys_reach_the_guest_and_escapes_do_not() {
    let mut session = Session::with_guest();
    session.type_("abc\x03\x1a");
    session.expect("abc\x03\x1a");
    session.type_("\x01a!");
    session.expect("\x01!");
    session.type_("\x01h");
    session.expect("Ctrl-A x  quit");
    session.type_("\x01x");
    assert_eq!(session.end().code(), Some(0));
    session.assert_as_before();
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn more_input_than_the_port_holds_arrives_whole() {
    let mut session = Session::with_guest();
    let text = "x".repeat(3000);
    session.type_(&text);
    session.expect(&text);
    session.type_("\x01x");
    assert_eq!(session.end().code(), Some(0));
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn signals_end_the_program_and_restore_the_terminal() {
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        let mut session = Session::with_guest();
        session.signal(signal);
        assert_eq!(session.end().signal(), Some(signal as i32));
        session.assert_as_before();
    }
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn stopping_gives_the_terminal_back_until_it_goes_on() {
    let mut session = Session::with_guest();
    session.signal(Signal::SIGTSTP);
    session.wait_until("stopped", |session| session.state() == 'T');
    session.assert_as_before();
    session.signal(Signal::SIGCONT);
    session.wait_until("raw again", Session::is_raw);
    session.type_("on");
    session.expect("on");
    session.type_("\x01x");
    assert_eq!(session.end().code(), Some(0));
    session.assert_as_before();
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn in_the_background_it_leaves_the_terminal_alone() {
    let device = device();
    let guest = Guest::new(ECHO_GUEST);
    // The shell keeps the terminal until it is told to give it; with job control, the program gets
    // a process group of its own.
    let script = "set -m; \"$0\" \"$@\" & read line; fg >/dev/null";
    let program = program().get_program().to_owned();
    let arguments = [
        "run",
        "--device",
        &device,
        "--memory",
        "4M",
        "--kernel",
        guest.path(),
    ];
    let mut session = Session::spawn(
        Command::new("sh")
            .arg("-c")
            .arg(script)
            .arg(program)
            .args(arguments),
    );
    session.expect(">");
    session.assert_as_before();
    session.type_("\n");
    session.wait_until("in the foreground", Session::is_raw);
    session.type_("here");
    session.expect("here");
    session.type_("\x01x");
    assert_eq!(session.end().code(), Some(0));
    session.assert_as_before();
}
