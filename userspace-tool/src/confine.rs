// SPDX-License-Identifier: GPL-2.0-only

//! What a machine gives up before its guest runs (Landlock, landlock(7)): its threads open no file
//! and no device, make no connection by TCP, start no program, and get no rights that they have
//! not. A guest that has taken one over has what is open: its memory, disks and network; and what
//! Landlock is not asked for: UNIX sockets, UDP, signals (docs/machines.md).

use std::path::Path;

use landlock::{
    Access, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, ABI,
};

use crate::error::{Error, Result};

/// What is given up, as far as the kernel knows it: Linux 6.10 knows all of it.
const ABI_WANTED: ABI = ABI::V5;

/// Confines this thread, and all that it starts from now on. Sockets in this directory can still be
/// removed. Says how much of it the kernel could do.
pub(crate) fn confine(sockets: Option<&Path>) -> Result<RulesetStatus> {
    let failed = |error: landlock::RulesetError| {
        Error::system("landlock", std::io::Error::other(error.to_string()))
    };
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI_WANTED))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(ABI_WANTED)))
        .and_then(Ruleset::create);
    let mut ruleset = ruleset.map_err(failed)?;
    if let Some(directory) = sockets {
        let directory = PathFd::new(directory)
            .map_err(|error| Error::system("open", std::io::Error::other(error.to_string())))?;
        let rule = PathBeneath::new(directory, AccessFs::RemoveFile);
        ruleset = ruleset.add_rule(rule).map_err(failed)?;
    }
    let status = ruleset.restrict_self().map_err(failed)?;
    Ok(status.ruleset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{ErrorKind, Write};
    use std::net::TcpStream;

    #[test]
    fn what_is_open_stays_and_nothing_else_is_opened() {
        let place = std::env::temp_dir().join(format!("pacifica-confine-{}", std::process::id()));
        std::fs::create_dir_all(&place).unwrap();
        let path = place.join("file");
        let mut file = File::create(&path).unwrap();
        // Only this thread is confined, not the other tests.
        let status = std::thread::scope(|scope| {
            let confined = scope.spawn(|| {
                let status = confine(Some(&place)).unwrap();
                file.write_all(b"open").unwrap();
                if status == RulesetStatus::FullyEnforced {
                    let denied = |kind| kind == ErrorKind::PermissionDenied;
                    assert!(denied(File::open("/etc/passwd").unwrap_err().kind()));
                    assert!(denied(File::open(&path).unwrap_err().kind()));
                    assert!(denied(
                        TcpStream::connect("127.0.0.1:1").unwrap_err().kind()
                    ));
                    let program = std::process::Command::new("/bin/true").status();
                    assert!(denied(program.unwrap_err().kind()));
                }
                std::fs::remove_file(&path).unwrap();
                status
            });
            confined.join().unwrap()
        });
        if status != RulesetStatus::FullyEnforced {
            eprintln!("skipped in part: this kernel's Landlock does not know all of it");
        }
        std::fs::remove_dir(&place).unwrap();
    }
}
