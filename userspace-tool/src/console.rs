// SPDX-License-Identifier: GPL-2.0-only

//! The user's terminal: raw mode that is undone on every way out, and the escape keys.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;

use nix::sys::termios::{self, OutputFlags, SetArg, Termios};

use crate::cli::ConsoleArg;
use crate::devices::bus::lock;
use crate::devices::serial::Output;
use crate::error::{Error, Result};

/// The terminal's settings from before raw mode, while it is in raw mode.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Puts the terminal into raw mode until it is dropped, or until [`restore`].
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Puts standard input into raw mode. Output keeps its newline translation, for our own
    /// messages.
    pub(crate) fn enter() -> Result<Self> {
        let failed = |error: nix::Error| Error::Console {
            what: "stdio".into(),
            error: error.into(),
        };
        let mut saved = lock(&SAVED);
        let before = termios::tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        raw.output_flags
            .insert(before.output_flags & OutputFlags::OPOST);
        // The settings are noted before they change: a signal or panic in between finds them.
        if saved.is_none() {
            *saved = Some(before);
        }
        termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw).map_err(failed)?;
        Ok(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Undoes raw mode, if the terminal is in it. Safe to call at any time, also from a panic.
pub(crate) fn restore() {
    // A lock that is held now belongs to a thread that is just entering or leaving raw mode.
    let Ok(mut saved) = SAVED.try_lock() else {
        return;
    };
    if let Some(settings) = saved.take() {
        // There is nobody left to tell.
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &settings);
    }
}

/// In a child of fork(2): the terminal is the parent's, and is not put back from here.
pub(crate) fn forget() {
    *lock(&SAVED) = None;
}

/// Whether this process may read from the terminal now: it runs in the foreground.
pub(crate) fn in_foreground() -> bool {
    nix::unistd::tcgetpgrp(io::stdin()).is_ok_and(|group| group == nix::unistd::getpgrp())
}

/// The console, as it stays over restarts of the guest.
#[derive(Debug)]
pub(crate) struct Console {
    output: ConsoleOutput,
    /// Whether standard input goes to the guest.
    pub(crate) input: bool,
    /// Whether standard input is a terminal, with escape keys.
    pub(crate) terminal: bool,
}

#[derive(Debug)]
enum ConsoleOutput {
    Stdout,
    None,
    File(File),
}

impl Console {
    /// Opens the console that the user asked for.
    pub(crate) fn open(argument: &ConsoleArg) -> Result<Self> {
        let output = match argument {
            ConsoleArg::Stdio => ConsoleOutput::Stdout,
            ConsoleArg::None => ConsoleOutput::None,
            ConsoleArg::File(path) => {
                // What is there stays: a machine that comes back goes on with its log.
                let file = File::options().append(true).create(true).open(path);
                ConsoleOutput::File(file.map_err(|error| Error::Console {
                    what: path.display().to_string(),
                    error,
                })?)
            }
        };
        let input = matches!(output, ConsoleOutput::Stdout);
        Ok(Self {
            output,
            input,
            terminal: input && io::stdin().is_terminal(),
        })
    }

    /// A console that was opened elsewhere, for output.
    pub(crate) fn given(file: File) -> Self {
        Self {
            output: ConsoleOutput::File(file),
            input: false,
            terminal: false,
        }
    }

    /// A new writer of the guest's output.
    pub(crate) fn writer(&self) -> Result<Output> {
        let failed = |error| Error::Console {
            what: "output".into(),
            error,
        };
        // Standard output without the buffer, which would hold back prompts.
        Ok(match &self.output {
            ConsoleOutput::Stdout => {
                use std::os::fd::AsFd;
                Box::new(File::from(
                    io::stdout().as_fd().try_clone_to_owned().map_err(failed)?,
                ))
            }
            ConsoleOutput::None => Box::new(io::sink()),
            ConsoleOutput::File(file) => Box::new(file.try_clone().map_err(failed)?),
        })
    }
}

/// What an escape asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// End the run.
    Quit,
    /// Show the keys.
    Help,
}

/// Control-A, with which escapes begin.
const CTRL_A: u8 = 0x01;

/// Finds escapes in what the user types.
#[derive(Debug, Default)]
pub(crate) struct Escapes {
    begun: bool,
}

impl Escapes {
    /// Takes typed bytes; passes on what is for the guest, and returns what the escapes ask for.
    /// Nothing behind a quit is looked at.
    pub(crate) fn feed(&mut self, typed: &[u8], guest: &mut Vec<u8>) -> Vec<Action> {
        let mut actions = Vec::new();
        for &byte in typed {
            if !std::mem::take(&mut self.begun) {
                match byte {
                    CTRL_A => self.begun = true,
                    _ => guest.push(byte),
                }
                continue;
            }
            match byte {
                b'x' => {
                    actions.push(Action::Quit);
                    break;
                }
                b'h' | b'?' => actions.push(Action::Help),
                b'a' | CTRL_A => guest.push(CTRL_A),
                // Not an escape: the guest gets what was typed.
                _ => guest.extend([CTRL_A, byte]),
            }
        }
        actions
    }
}

/// Shows the escape keys.
pub(crate) fn show_help() {
    let text =
        "\r\nCtrl-A h  this help\r\nCtrl-A x  quit\r\nCtrl-A a  send Ctrl-A to the guest\r\n";
    // A terminal that takes no help needs none.
    let _ = io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(pieces: &[&[u8]]) -> (Vec<u8>, Vec<Action>) {
        let mut escapes = Escapes::default();
        let mut guest = Vec::new();
        let actions = pieces
            .iter()
            .flat_map(|piece| escapes.feed(piece, &mut guest))
            .collect();
        (guest, actions)
    }

    #[test]
    fn what_is_in_a_log_stays() {
        let path = std::env::temp_dir().join(format!("pacifica-log-{}", std::process::id()));
        for word in ["one ", "two"] {
            let console = Console::open(&ConsoleArg::File(path.clone())).unwrap();
            console
                .writer()
                .unwrap()
                .write_all(word.as_bytes())
                .unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"one two");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn plain_text_passes() {
        assert_eq!(
            feed(&[b"ls\r\x03x\xff"]),
            (b"ls\r\x03x\xff".to_vec(), vec![])
        );
    }

    #[test]
    fn escapes_also_across_reads() {
        assert_eq!(
            feed(&[b"a\x01", b"xb"]),
            (b"a".to_vec(), vec![Action::Quit])
        );
        assert_eq!(
            feed(&[b"\x01h\x01?z"]),
            (b"z".to_vec(), vec![Action::Help, Action::Help])
        );
    }

    #[test]
    fn control_a_can_be_sent() {
        assert_eq!(
            feed(&[b"\x01ab\x01\x01x"]),
            (b"\x01b\x01x".to_vec(), vec![])
        );
        assert_eq!(feed(&[b"\x01q"]), (b"\x01q".to_vec(), vec![]));
    }
}
