// SPDX-License-Identifier: GPL-2.0-only

//! `pacifica exec`: runs a program in a mount namespace of its own, where `/dev/kvm` is our node.
//! Nothing of it is seen outside, and nothing is left when the program ends.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{symlink, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::mount::{mount, MsFlags};
use nix::sched::{unshare, CloneFlags};
use nix::unistd::{fchdir, getegid, geteuid};

use crate::cli::ExecArgs;
use crate::error::{Error, Result};

/// Where programs look for KVM.
const KVM_NODE: &str = "/dev/kvm";
/// The directory of device nodes.
const DEV: &str = "/dev";
/// The exit status if the program was not found, as of `env` and `nohup`.
const STATUS_NOT_FOUND: u8 = 127;
/// The exit status if the program cannot be run.
const STATUS_NOT_EXECUTABLE: u8 = 126;

/// Runs the program. Returns only if that is not possible.
pub(crate) fn exec(args: &ExecArgs) -> Result<ExitCode> {
    let node = args
        .device
        .canonicalize()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NodeAbsent(args.device.clone()),
            _ => Error::NodeOpen {
                node: args.device.clone(),
                error,
            },
        })?;
    enter_namespace()?;
    if !Path::new(KVM_NODE).exists() {
        make_private_dev()?;
    }
    bind(&node, KVM_NODE.as_ref())?;

    let mut words = args.program.iter();
    let program = words.next().cloned().unwrap_or_default();
    let error = Command::new(&program).args(words).exec();
    eprintln!(
        "pacifica: cannot run {}: {error}",
        Path::new(&program).display()
    );
    Ok(ExitCode::from(match error.kind() {
        io::ErrorKind::NotFound => STATUS_NOT_FOUND,
        _ => STATUS_NOT_EXECUTABLE,
    }))
}

/// Enters a new mount namespace, by way of a user namespace where that is needed.
fn enter_namespace() -> Result<()> {
    // Both numbers must be asked for before: afterwards they are unknown.
    let (user, group) = (geteuid(), getegid());
    match unshare(CloneFlags::CLONE_NEWNS) {
        Ok(()) => {}
        Err(Errno::EPERM) => {
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(|error| {
                Error::system("unshare (are user namespaces allowed here?)", error)
            })?;
            let put = |file, text: String| {
                fs::write(file, text)
                    .map_err(|error| Error::system("mapping the user into the namespace", error))
            };
            put("/proc/self/setgroups", "deny".into())?;
            put("/proc/self/uid_map", format!("{user} {user} 1"))?;
            put("/proc/self/gid_map", format!("{group} {group} 1"))?;
        }
        Err(error) => return Err(Error::system("unshare", error)),
    }
    // What is mounted here stays here; what the host mounts later still shows up.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_SLAVE | MsFlags::MS_REC,
        None::<&str>,
    )
    .map_err(|error| Error::system("making the mounts private", error))
}

/// Puts one file or directory, with all that is mounted below it, in the place of another.
fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(
        Some(from),
        to,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .map_err(|error| Error::system("mount --bind", error))
}

/// Covers `/dev` with a new directory that has the same entries, and `kvm` besides. The old one
/// keeps its contents: its entries are mounted into the new one, so all devices stay the same
/// devices.
fn make_private_dev() -> Result<()> {
    let failed = |error| Error::system("making a private /dev", error);
    let here = open_directory(".")?;
    let old = open_directory(DEV)?;
    let mut entries = Vec::new();
    for entry in fs::read_dir(DEV).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        let link = if kind.is_symlink() {
            Some(fs::read_link(entry.path()).map_err(failed)?)
        } else {
            None
        };
        entries.push((entry.file_name(), kind.is_dir(), link));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(
        Some("pacifica"),
        DEV,
        Some("tmpfs"),
        flags,
        Some("mode=0755,size=1m"),
    )
    .map_err(|error| Error::system("mounting a private /dev", error))?;
    // The old directory is covered now, and reachable only from within.
    fchdir(&old).map_err(|error| Error::system("fchdir", error))?;
    for (name, directory, link) in entries {
        let new = Path::new(DEV).join(&name);
        match link {
            Some(target) => symlink(target, new).map_err(failed)?,
            None if directory => {
                fs::create_dir(&new).map_err(failed)?;
                bind(name.as_ref(), &new)?;
            }
            None => {
                File::create(&new).map_err(failed)?;
                bind(name.as_ref(), &new)?;
            }
        }
    }
    File::create(KVM_NODE).map_err(failed)?;
    fchdir(&here).map_err(|error| Error::system("fchdir", error))
}

/// Opens a directory only to come back to it.
fn open_directory(path: &str) -> Result<File> {
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC)
        .open(path)
        .map_err(|error| Error::system("open", error))
}
