// SPDX-License-Identifier: GPL-2.0-only

//! `pacifica fork`: one machine becomes two, and both go on.
//!
//! ```text
//!   client             the machine's control thread       its main thread        the child
//!   opens sockets, ──► processors and devices rest
//!   disks, networks    the state is read, disks copied ──► fork(2), twice ─────► closes what is
//!                      all go on ◄─────────────────────── goes on                the parent's, and
//!                                                                                makes a VM of
//!                                                                                memory and state
//! ```
//!
//! Memory is the same pages until one of the two writes. The state goes by the ioctls that a saved
//! machine uses, too, so that this works on KVM as well; the library's `PACIFICA_FORK` would spare
//! some of them. A machine that is confined opens nothing: all that the child has of its own comes
//! with the request.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::mpsc::{channel, Sender};
use std::sync::Mutex;

use kvm_ioctls::Kvm;
use nix::sys::wait::waitpid;
use nix::unistd::{fork, ForkResult};
use vm_memory::{GuestMemory as _, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::bus::lock;
use crate::error::{Error, Result};
use crate::eventfd;
use crate::machine::Machine;
use crate::memory::GuestMemory;
use crate::state::State;

/// What comes with the request, in this order; the files of disks and networks are behind it.
pub(crate) struct Files {
    /// The lock of the name, and the socket that listens.
    pub(crate) lock: OwnedFd,
    pub(crate) listener: OwnedFd,
    /// Where the console goes, and all that the program says.
    pub(crate) console: OwnedFd,
    /// The source of random numbers.
    pub(crate) random: OwnedFd,
    pub(crate) disks: Vec<File>,
    pub(crate) networks: Vec<OwnedFd>,
}

impl Files {
    /// Sorts what has come for this machine. Nothing if it is not all.
    fn new(files: Vec<OwnedFd>, machine: &Machine) -> Option<Self> {
        let count = machine.devices.disks.len();
        let all = 4 + count + machine.devices.networks.len();
        if files.len() != all {
            return None;
        }
        let mut files = files.into_iter();
        Some(Self {
            lock: files.next()?,
            listener: files.next()?,
            console: files.next()?,
            random: files.next()?,
            disks: files.by_ref().take(count).map(File::from).collect(),
            networks: files.collect(),
        })
    }

    fn all(&self) -> BTreeSet<RawFd> {
        [&self.lock, &self.listener, &self.console, &self.random]
            .into_iter()
            .chain(&self.networks)
            .map(AsRawFd::as_raw_fd)
            .chain(self.disks.iter().map(AsRawFd::as_raw_fd))
            .collect()
    }
}

/// What a child is made of.
pub(crate) struct Child {
    pub(crate) name: String,
    pub(crate) machine: Machine,
    pub(crate) state: Box<State>,
    pub(crate) memory: GuestMemory,
    pub(crate) kvm: Kvm,
    pub(crate) files: Files,
}

impl Child {
    /// A child of a machine with this state.
    pub(crate) fn new(
        (machine, name): (&str, String),
        files: Vec<OwnedFd>,
        state: State,
        memory: &GuestMemory,
        kvm: &Kvm,
    ) -> std::result::Result<Self, String> {
        let parent = Machine::from_toml(&state.machine)?;
        let machine = Machine::from_toml(machine)?;
        let shape = |machine: &Machine| {
            let devices = &machine.devices;
            let counts = (devices.disks.len(), devices.networks.len());
            (machine.memory, machine.cpus, machine.irqchip, counts)
        };
        if shape(&parent) != shape(&machine) {
            return Err("the fork has other memory, processors or devices".into());
        }
        // SAFETY: The descriptor is open, and the answer is a new one or an error.
        let number = unsafe { libc::fcntl(kvm.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
        if number < 0 {
            return Err(io::Error::last_os_error().to_string());
        }
        Ok(Self {
            name,
            files: Files::new(files, &machine)
                .ok_or("not all descriptors came with the request")?,
            machine,
            state: Box::new(state),
            memory: memory.clone(),
            // SAFETY: The descriptor is the device's, and nothing else owns it.
            kvm: unsafe { Kvm::from_raw_fd(number) },
        })
    }

    /// The descriptors that the child keeps.
    fn kept(&self) -> BTreeSet<RawFd> {
        let mut kept = self.files.all();
        kept.extend([0, 1, 2, self.kvm.as_raw_fd()]);
        // Memory of a file that was saved.
        let files = self
            .memory
            .iter()
            .filter_map(GuestMemoryRegion::file_offset);
        kept.extend(files.map(|offset| offset.file().as_raw_fd()));
        kept
    }
}

/// The place where one thread asks the main thread for a child.
pub(crate) struct Jobs {
    place: Mutex<Place>,
    event: EventFd,
}

/// What is there: nothing, a job, or the end.
enum Place {
    Empty,
    Job(Box<Job>),
    Closed,
}

/// A child that is asked for, and who waits for it.
pub(crate) struct Job {
    child: Child,
    answer: Sender<io::Result<()>>,
}

impl Jobs {
    /// Nothing is asked for.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            place: Mutex::new(Place::Empty),
            event: eventfd::new()?,
        })
    }

    /// Asks for a child, and waits until there is one.
    pub(crate) fn ask(&self, child: Child) -> io::Result<()> {
        let (answer, wait) = channel();
        let ended = || io::Error::other("the machine is about to end");
        let mut place = lock(&self.place);
        if matches!(*place, Place::Closed) {
            return Err(ended());
        }
        *place = Place::Job(Box::new(Job { child, answer }));
        drop(place);
        self.event.write(1)?;
        wait.recv().map_err(|_| ended())?
    }

    /// Nothing is done any more: who waits hears of that.
    pub(crate) fn close(&self) {
        *lock(&self.place) = Place::Closed;
    }

    /// Becomes readable when a child is asked for.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    /// The child that is asked for.
    pub(crate) fn take(&self) -> Option<Job> {
        // The event only says that there may be one.
        let _ = self.event.read();
        let mut place = lock(&self.place);
        match std::mem::replace(&mut *place, Place::Empty) {
            Place::Job(job) => Some(*job),
            other => {
                *place = other;
                None
            }
        }
    }
}

impl Job {
    /// Makes the child: a process of a session of its own, for which no one waits. Answers what it
    /// is made of in the child, where this thread alone exists, and nothing in the parent.
    pub(crate) fn run(self) -> Option<Child> {
        // SAFETY: All other threads rest where they hold no lock that the child uses: processors at
        // the gate, the thread of the control socket where it waits for the answer; those of
        // devices have ended.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => {}
            Ok(ForkResult::Parent { child }) => {
                let result = waitpid(child, None).map(drop).map_err(io::Error::from);
                // Who asked waits.
                let _ = self.answer.send(result);
                return None;
            }
            Err(error) => {
                let _ = self.answer.send(Err(error.into()));
                return None;
            }
        }
        // A session of its own: signals of the parent's terminal do not come here.
        let _ = nix::unistd::setsid();
        // SAFETY: This process has one thread.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => Some(self.child),
            // SAFETY: Ends this process at once, and nothing of the parent's with it.
            _ => unsafe { libc::_exit(0) },
        }
    }
}

/// In the child: closes what is the parent's, above all its virtual machine. Values of the parent
/// that have descriptors must not be dropped any more.
pub(crate) fn settle(child: &Child) -> Result<()> {
    child.memory.leave_snapshots();
    let failed = |error: nix::Error| Error::system("dup2", error);
    let console = child.files.console.as_fd();
    nix::unistd::dup2_stdin(console).map_err(failed)?;
    nix::unistd::dup2_stdout(console).map_err(failed)?;
    nix::unistd::dup2_stderr(console).map_err(failed)?;
    let mut first = 0;
    for kept in child.kept() {
        close(first, kept - 1);
        first = kept + 1;
    }
    close(first, RawFd::MAX);
    Ok(())
}

/// Closes these descriptors, both ends included.
fn close(first: RawFd, last: RawFd) {
    if first <= last {
        // SAFETY: Those that own them are never dropped: see `settle`. Nothing can go wrong with a
        // range that is in order.
        unsafe { libc::close_range(first.unsigned_abs(), last.unsigned_abs(), 0) };
    }
}

/// Copies a disk to an empty file: where the file system can, it shares the blocks until one of the
/// two writes (reflink, ioctl_ficlone(2)), and else what is not a hole is copied.
pub(crate) fn copy_disk(from: &File, to: &File) -> io::Result<()> {
    nix::ioctl_write_int!(ficlone, 0x94, 9);
    // SAFETY: The argument is a descriptor, which is open.
    if unsafe { ficlone(to.as_raw_fd(), from.as_raw_fd() as u64) }.is_ok() {
        return Ok(());
    }
    let about = from.metadata()?;
    if !about.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let size = about.len() as i64;
    to.set_len(size.unsigned_abs())?;
    let mut at = 0;
    while at < size {
        use nix::unistd::{lseek, Whence};
        at = match lseek(from, at, Whence::SeekData) {
            // Only a hole is left.
            Err(nix::Error::ENXIO) => return Ok(()),
            result => result?,
        };
        let end = lseek(from, at, Whence::SeekHole)?;
        copy_range(from, to, at, end)?;
        at = end;
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, start: i64, end: i64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; 1 << 20];
    let mut at = start.unsigned_abs();
    while at < end.unsigned_abs() {
        let count = bytes.len().min((end.unsigned_abs() - at) as usize);
        from.read_exact_at(&mut bytes[..count], at)?;
        to.write_all_at(&bytes[..count], at)?;
        at += count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_is_no_file_is_not_copied() {
        let (from, to) = (File::open("/dev/zero").unwrap(), File::open("/dev/null"));
        assert!(copy_disk(&from, &to.unwrap()).is_err());
    }

    #[test]
    fn a_copy_has_the_same_bytes_and_holes() {
        let file = || {
            let number = nix::sys::memfd::memfd_create(c"disk", nix::sys::memfd::MFdFlags::empty());
            File::from(number.unwrap())
        };
        let (from, to) = (file(), file());
        from.set_len((8 << 20) + 512).unwrap();
        from.write_all_at(&[7; 5000], 3 << 20).unwrap();
        from.write_all_at(&[8; 512], 8 << 20).unwrap();
        copy_disk(&from, &to).unwrap();
        let (mut a, mut b) = (vec![0; (8 << 20) + 512], vec![1; (8 << 20) + 512]);
        from.read_exact_at(&mut a, 0).unwrap();
        to.read_exact_at(&mut b, 0).unwrap();
        assert!(a == b);
        use std::os::unix::fs::MetadataExt;
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
    }
}
