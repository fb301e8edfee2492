// SPDX-License-Identifier: GPL-2.0-only

//! How a run ends, and which exit status says so.

use std::fmt;
use std::sync::OnceLock;

use nix::sys::signal::Signal;
use vmm_sys_util::eventfd::EventFd;

use crate::error::Result;
use crate::eventfd;

/// The guest powered off, or the user quit.
pub(crate) const STATUS_OK: u8 = 0;
/// This program or the host failed.
pub(crate) const STATUS_HOST_ERROR: u8 = 1;
/// The guest reset itself, and was not to be restarted.
pub(crate) const STATUS_RESET: u8 = 3;
/// The guest crashed.
pub(crate) const STATUS_CRASH: u8 = 4;
/// The guest wrote a value other than 0 to the debug-exit port: this, plus its low six bits.
pub(crate) const STATUS_DEBUG_EXIT: u8 = 64;

/// Why a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest wrote this value to the debug-exit port.
    DebugExit(u32),
    /// The guest cannot go on; the text is a report of several lines.
    Crash(String),
    /// The module or the host failed.
    Host(String),
    /// The user quit with the escape.
    Quit,
    /// `pacifica stop` ended it.
    Stopped,
    /// A signal asked the program to end.
    Signal(Signal),
}

/// What the guest did, as the end of a sentence that begins with it.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::PowerOff => f.write_str("powered off"),
            Outcome::Reset => f.write_str("reset itself"),
            Outcome::DebugExit(value) => write!(f, "wrote {value:#x} to the debug-exit port"),
            Outcome::Crash(_) => f.write_str("crashed"),
            Outcome::Host(_) => f.write_str("was ended by a failure of the host"),
            Outcome::Quit => f.write_str("was ended with Ctrl-A x"),
            Outcome::Stopped => f.write_str("was ended by `pacifica stop`"),
            Outcome::Signal(signal) => write!(f, "was ended by {signal}"),
        }
    }
}

impl Outcome {
    /// The exit status of the program.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Outcome::PowerOff | Outcome::Quit | Outcome::Stopped | Outcome::DebugExit(0) => {
                STATUS_OK
            }
            Outcome::DebugExit(value) => {
                STATUS_DEBUG_EXIT | (value.to_le_bytes()[0] & (STATUS_DEBUG_EXIT - 1))
            }
            Outcome::Reset => STATUS_RESET,
            Outcome::Crash(_) => STATUS_CRASH,
            Outcome::Host(_) => STATUS_HOST_ERROR,
            // The program ends itself by the signal; a shell would report this status then.
            Outcome::Signal(signal) => 128 | (*signal as i32).to_le_bytes()[0],
        }
    }
}

/// The place where the first outcome is noted and announced. Devices, processors and the console
/// share it.
#[derive(Debug)]
pub(crate) struct Stop {
    outcome: OnceLock<Outcome>,
    event: EventFd,
}

impl Stop {
    /// Nothing has happened yet.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            outcome: OnceLock::new(),
            event: eventfd::new()?,
        })
    }

    /// Ends the run with this outcome, unless it has one already.
    pub(crate) fn request(&self, outcome: Outcome) {
        if self.outcome.set(outcome).is_ok() {
            // The counter of a fresh eventfd cannot overflow, so this write cannot fail.
            let _ = self.event.write(1);
        }
    }

    /// The outcome, once there is one.
    pub(crate) fn outcome(&self) -> Option<&Outcome> {
        self.outcome.get()
    }

    /// Becomes readable when there is an outcome.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        assert_eq!(Outcome::PowerOff.status(), 0);
        assert_eq!(Outcome::Quit.status(), 0);
        assert_eq!(Outcome::Host(String::new()).status(), 1);
        assert_eq!(Outcome::Reset.status(), 3);
        assert_eq!(Outcome::Crash(String::new()).status(), 4);
        assert_eq!(Outcome::Signal(Signal::SIGTERM).status(), 143);
    }

    #[test]
    fn debug_exit_never_looks_like_success_or_another_outcome() {
        assert_eq!(Outcome::DebugExit(0).status(), 0);
        assert_eq!(Outcome::DebugExit(1).status(), 65);
        assert_eq!(Outcome::DebugExit(64).status(), 64);
        assert_eq!(Outcome::DebugExit(u32::MAX).status(), 127);
    }

    #[test]
    fn the_first_outcome_stays() {
        let stop = Stop::new().unwrap();
        assert_eq!(stop.outcome(), None);
        stop.request(Outcome::Reset);
        stop.request(Outcome::PowerOff);
        assert_eq!(stop.outcome(), Some(&Outcome::Reset));
        assert_eq!(stop.event().read().unwrap(), 1);
    }
}
