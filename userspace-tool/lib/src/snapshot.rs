// SPDX-License-Identifier: GPL-2.0-only

//! Snapshots.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use vm_memory::{Address, GuestAddress};

use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::tracking::PAGE;
use crate::{ioctl, uapi};

/// What a reset does to the guest's time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Time {
    /// It goes on, as for a guest whose host was slow: timers that would have expired do so.
    #[default]
    GoesOn,
    /// It goes back: TSC, clock and timers are where they were. Then every run is the same.
    GoesBack,
}

/// An instant of a VM, to which it can go back. It ends when this is dropped.
///
/// ```no_run
/// use pacifica_vm::kvm_ioctls::{VcpuFd, VmFd};
/// use pacifica_vm::{is_limit, Memory, Snapshot, Time};
///
/// /// Runs from the same instant again and again.
/// fn fuzz(
///     vm: &VmFd,
///     vcpu: &mut VcpuFd,
///     memory: &Memory,
/// ) -> Result<(), Box<dyn std::error::Error>> {
///     let snapshot = Snapshot::take(vm, memory, 64 << 20)?;
///     loop {
///         match vcpu.run() {
///             Ok(exit) => println!("{exit:?}"),
///             // The guest has written to more than 64 MiB, and nothing is lost.
///             Err(error) if is_limit(&error) => println!("too much"),
///             Err(error) => return Err(error.into()),
///         }
///         let pages = snapshot.reset(Time::GoesBack)?;
///         println!("{pages} pages put back");
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Snapshot {
    fd: Arc<OwnedFd>,
    memory: Memory,
}

impl Snapshot {
    /// Takes a snapshot of a VM whose guest memory is `memory`. The kernel keeps as many bytes of
    /// old memory contents as `limit` says at most.
    ///
    /// All vCPUs must be out of `KVM_RUN`. Devices must not write: [`Error::SlicesInUse`] if one
    /// still could.
    pub fn take(vm: &impl AsRawFd, memory: &Memory, limit: u64) -> Result<Self> {
        let mut snapshots = memory.exclusive();
        unused(memory)?;
        let mut create = uapi::pacifica_create_snapshot {
            limit,
            ..Default::default()
        };
        let fd = ioctl::descriptor(vm, uapi::PACIFICA_CREATE_SNAPSHOT, &mut create)
            .map_err(|error| Error::new("PACIFICA_CREATE_SNAPSHOT", error))?;
        let fd = Arc::new(fd);
        // What an outer one keeps must be kept for this one again.
        memory.clear();
        snapshots.push(fd.clone());
        Ok(Self {
            fd,
            memory: memory.clone(),
        })
    }

    /// Goes back; answers how many pages of 4 KiB were put back.
    ///
    /// All vCPUs must be out of `KVM_RUN`. Devices must not write, and their own state is the
    /// VMM's to put back.
    pub fn reset(&self, time: Time) -> Result<u64> {
        let mut snapshots = self.memory.exclusive();
        unused(&self.memory)?;
        // The kernel may forget what was kept, and then it must be announced again.
        self.memory.clear();
        let mut reset = uapi::pacifica_reset {
            flags: match time {
                Time::GoesOn => 0,
                Time::GoesBack => uapi::PACIFICA_RESET_TIME.into(),
            },
            ..Default::default()
        };
        ioctl::structure(self, uapi::PACIFICA_RESET, &mut reset)
            .map_err(|error| Error::new("PACIFICA_RESET", error))?;
        if let Some(index) = snapshots.iter().position(|fd| Arc::ptr_eq(fd, &self.fd)) {
            snapshots.truncate(index + 1);
        }
        Ok(reset.pages)
    }

    /// Announces that guest memory will be written by somebody who does not use [`Memory`]: vhost,
    /// another process, a pointer. To be called before that happens, after each reset again.
    pub fn announce(&self, address: GuestAddress, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let start = address.raw_value() & !(PAGE - 1);
        let end = address
            .raw_value()
            .checked_add(bytes)
            .and_then(|end| end.checked_next_multiple_of(PAGE));
        end.ok_or(io::ErrorKind::InvalidInput.into())
            .and_then(|end| keep(self, start, end - start))
            .map_err(|error| Error::new("PACIFICA_KEEP_PAGES", error))
    }

    /// Sets another limit, in bytes.
    pub fn set_limit(&self, bytes: u64) -> Result<()> {
        let mut bytes = bytes;
        ioctl::structure(self, uapi::PACIFICA_SET_KEEP_LIMIT, &mut bytes)
            .map_err(|error| Error::new("PACIFICA_SET_KEEP_LIMIT", error))?;
        Ok(())
    }

    /// How many bytes of old memory contents are kept.
    pub fn kept(&self) -> Result<u64> {
        let mut bytes = 0u64;
        ioctl::structure(self, uapi::PACIFICA_GET_KEPT, &mut bytes)
            .map_err(|error| Error::new("PACIFICA_GET_KEPT", error))?;
        Ok(bytes)
    }
}

impl AsRawFd for Snapshot {
    fn as_raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

impl AsFd for Snapshot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // Nobody announces anything to it any more; the descriptor is closed after that.
        let mut snapshots = self.memory.exclusive();
        snapshots.retain(|fd| !Arc::ptr_eq(fd, &self.fd));
        self.memory.clear();
    }
}

/// Makes sure that no slice of the memory lives.
pub(crate) fn unused(memory: &Memory) -> Result<()> {
    match memory.slices() {
        0 => Ok(()),
        count => Err(Error::SlicesInUse(count)),
    }
}

/// Announces whole pages, until the next reset.
pub(crate) fn keep(snapshot: &impl AsRawFd, gpa: u64, size: u64) -> io::Result<()> {
    let mut pages = uapi::pacifica_keep_pages {
        gpa,
        size,
        flags: uapi::PACIFICA_KEEP_ONCE.into(),
    };
    while pages.size != 0 {
        match ioctl::structure(snapshot, uapi::PACIFICA_KEEP_PAGES, &mut pages) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemory;

    #[test]
    fn a_file_that_is_no_vm_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let memory = Memory::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let refused = Snapshot::take(&file, &memory, 0);
        assert!(matches!(refused, Err(Error::Missing)), "{refused:?}");
        let slice = memory.get_slice(GuestAddress(0), 1).unwrap();
        let refused = Snapshot::take(&file, &memory, 0);
        assert!(matches!(refused, Err(Error::SlicesInUse(1))), "{refused:?}");
        drop(slice);
    }
}
