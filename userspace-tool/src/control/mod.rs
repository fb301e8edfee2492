// SPDX-License-Identifier: GPL-2.0-only

//! Machines that run, from the outside: each has a socket, at which it takes requests, one JSON
//! object a line, and gives one answer a line to each (docs/machines.md).

pub(crate) mod client;
pub(crate) mod draft;
pub(crate) mod message;
pub(crate) mod server;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::state::file::Form;

/// What can be asked of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub(crate) enum Request {
    /// How it is.
    Status,
    /// Its processors rest. The answer comes when they do.
    Pause,
    /// They go on.
    Resume,
    /// Its power button is pressed. What the guest does then is the guest's affair.
    PowerButton,
    /// It ends at once.
    Quit,
    /// What its processors have counted.
    Counters,
    /// It takes a snapshot, in the place of an earlier one.
    Snapshot,
    /// It goes back to its snapshot.
    Reset,
    /// What it is, as its machine.toml has it.
    Describe,
    /// It becomes two. The other one's descriptors come with the request.
    Fork {
        /// The other one, as its machine.toml has it.
        machine: String,
        /// Its name.
        name: String,
    },
    /// It writes itself to a file, whose descriptor comes with the request.
    Save {
        /// How its memory is written.
        form: Form,
    },
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// It is done.
    Done,
    /// How it is.
    Status(Status),
    /// What its processors have counted together, by the module's names.
    Counters {
        /// The counters.
        counters: BTreeMap<String, u64>,
    },
    /// What it is.
    Machine {
        /// The text of its machine.toml.
        machine: String,
    },
    /// It is two.
    Forked {
        /// How long it rested for that, in microseconds.
        pause: u64,
    },
    /// It has gone back.
    Reset {
        /// How many pages of 4 KiB of its memory were put back.
        pages: u64,
    },
    /// It is in the file.
    Saved {
        /// How long the file has become.
        bytes: u64,
    },
    /// It is not done.
    Error {
        /// Why not.
        reason: String,
    },
}

/// How a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Status {
    /// The process.
    pub(crate) process: u32,
    /// Running or paused.
    pub(crate) state: State,
    /// How many processors it has.
    pub(crate) cpus: u32,
    /// Its memory in bytes.
    pub(crate) memory: u64,
    /// How long it has run, in seconds.
    pub(crate) seconds: u64,
    /// The hypervisor's node.
    pub(crate) device: PathBuf,
}

/// What its processors do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// They run.
    Running,
    /// They rest.
    Paused,
}

/// What the name of a socket ends with.
const ENDING: &str = "socket";

/// The mode bits that let others write.
const OTHERS_WRITE: u32 = 0o022;

/// Where the sockets of this user's machines are; the directory is made if it is not there.
pub(crate) fn directory() -> io::Result<PathBuf> {
    let place = match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(place) if !place.is_empty() => PathBuf::from(place).join("pacifica"),
        _ if nix::unistd::geteuid().is_root() => PathBuf::from("/run/pacifica"),
        _ => std::env::temp_dir().join(format!("pacifica-{}", nix::unistd::geteuid())),
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&place)?;
    // Where another user can write the sockets may be another user's.
    let about = fs::symlink_metadata(&place)?;
    let own = about.is_dir() && about.uid() == nix::unistd::geteuid().as_raw();
    match own && about.mode() & OTHERS_WRITE == 0 {
        true => Ok(place),
        false => Err(io::Error::other(format!(
            "{} is not this user's alone",
            place.display()
        ))),
    }
}

/// The socket of a machine. A name is letters, digits and some signs, so that it is one of a file.
pub(crate) fn socket(name: &str) -> io::Result<PathBuf> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.starts_with('.') || name.len() > 64 || !name.chars().all(good) {
        let reason = format!("{name:?} is no name: letters, digits, '-', '_' and '.'");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    Ok(directory()?.join(format!("{name}.{ENDING}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_are_json() {
        let text = serde_json::to_string(&Request::PowerButton).unwrap();
        assert_eq!(text, r#"{"request":"power-button"}"#);
        assert!(serde_json::from_str::<Request>(r#"{"request":"fly"}"#).is_err());
        let status = Answer::Status(Status {
            process: 7,
            state: State::Paused,
            cpus: 2,
            memory: 1 << 29,
            seconds: 3,
            device: "/dev/kvm".into(),
        });
        let text = serde_json::to_string(&status).unwrap();
        let expected = r#"{"answer":"status","process":7,"state":"paused","cpus":2,"memory":536870912,"seconds":3,"device":"/dev/kvm"}"#;
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<Answer>(&text).unwrap(), status);
    }

    #[test]
    fn names_are_names_of_files() {
        for wrong in ["", ".", "..", "a/b", "a b", ".a", &"x".repeat(65), "ä"] {
            assert!(socket(wrong).is_err(), "{wrong}");
        }
        assert!(socket("web-1.2_x").unwrap().ends_with("web-1.2_x.socket"));
    }
}
