// SPDX-License-Identifier: GPL-2.0-only

//! A VM from the state of another one, in the process that `fork(2)` has made.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use kvm_ioctls::{Kvm, VmFd};

use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::snapshot::{unused, Time};
use crate::{ioctl, uapi};

/// The state of a VM at an instant, without its memory: that is what `fork(2)` is for.
///
/// With [`fork`] a VMM needs none of this. One with several threads stops them, takes the state,
/// calls `fork(2)` itself, and calls [`State::vm`] in the child.
#[derive(Debug)]
pub struct State {
    fd: OwnedFd,
}

impl State {
    /// Takes the state of a VM. All vCPUs must be out of `KVM_RUN`.
    ///
    /// Guest memory must stay as it is until `fork(2)` has been called.
    pub fn take(vm: &impl AsRawFd) -> Result<Self> {
        let mut create = uapi::pacifica_create_snapshot {
            flags: uapi::PACIFICA_SNAPSHOT_STATE.into(),
            ..Default::default()
        };
        ioctl::descriptor(vm, uapi::PACIFICA_CREATE_SNAPSHOT, &mut create)
            .map(|fd| Self { fd })
            .map_err(|error| Error::new("PACIFICA_CREATE_SNAPSHOT", error))
    }

    /// Makes a VM with this state, of the memory that this process has where the slots were.
    ///
    /// Its vCPUs exist: [`VmFd::create_vcpu`] with the number of one answers it with its state,
    /// which must not be set again. irqfds and ioeventfds must be made anew.
    pub fn vm(&self, kvm: &Kvm, time: Time) -> Result<VmFd> {
        let mut fork = uapi::pacifica_fork {
            flags: match time {
                Time::GoesOn => 0,
                Time::GoesBack => uapi::PACIFICA_FORK_TIME.into(),
            },
            ..Default::default()
        };
        let fd = ioctl::descriptor(&self.fd, uapi::PACIFICA_FORK, &mut fork)
            .map_err(|error| Error::new("PACIFICA_FORK", error))?;
        ioctl::vm(kvm, fd).map_err(|error| Error::new("KVM_GET_VCPU_MMAP_SIZE", error))
    }
}

/// Where the caller is after [`fork`].
#[derive(Debug)]
pub enum Fork {
    /// In the process that called it. The child has this number, and is to be waited for.
    Parent(u32),
    /// In the child, which has a VM of its own, or could not make it.
    Child(Result<VmFd>),
}

/// Forks this process and its VM: both go on from the same instant, and neither sees what the other
/// writes.
///
/// All vCPUs must be out of `KVM_RUN`, and devices must not write. The process must have one thread
/// ([`Error::Threads`]): others do not exist in the child, and what they were doing would stay
/// undone. Guest memory must be private ([`Error::SharedMemory`]). In the child the parent's VM,
/// vCPUs and snapshots can only be dropped, which is to be done, for they hold the parent's VM.
///
/// ```no_run
/// use pacifica_vm::kvm_ioctls::{Kvm, VmFd};
/// use pacifica_vm::{fork, Fork, Memory, Time};
///
/// /// Serves a request in a machine of its own.
/// fn serve(kvm: &Kvm, vm: &VmFd, memory: &Memory) -> Result<(), Box<dyn std::error::Error>> {
///     match fork(kvm, vm, memory, Time::GoesOn)? {
///         Fork::Parent(child) => println!("process {child} serves it"),
///         Fork::Child(vm) => {
///             let mut vcpu = vm?.create_vcpu(0)?;
///             // Another MAC address, another VM generation ID; then:
///             vcpu.run()?;
///             std::process::exit(0);
///         }
///     }
///     Ok(())
/// }
/// ```
pub fn fork(kvm: &Kvm, vm: &VmFd, memory: &Memory, time: Time) -> Result<Fork> {
    let mut snapshots = memory.exclusive();
    unused(memory)?;
    if memory.is_shared() {
        return Err(Error::SharedMemory);
    }
    let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count);
    match threads.map_err(|error| Error::new("/proc/self/task", error))? {
        1 => {}
        count => return Err(Error::Threads(count)),
    }
    let state = State::take(vm)?;
    // SAFETY: There is no other thread that would be missed in the child.
    match unsafe { libc::fork() } {
        -1 => Err(Error::new("fork", io::Error::last_os_error())),
        0 => {
            // They are the parent's.
            snapshots.clear();
            memory.clear();
            Ok(Fork::Child(state.vm(kvm, time)))
        }
        child => Ok(Fork::Parent(child.unsigned_abs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};

    #[test]
    fn shared_memory_is_known() {
        let private = Memory::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        assert!(!private.is_shared());
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let mapping = MmapRegion::build(None, 4096, libc::PROT_READ, flags).unwrap();
        let region = GuestRegionMmap::new(mapping, GuestAddress(0)).unwrap();
        assert!(Memory::from_regions(vec![region]).unwrap().is_shared());
    }

    #[test]
    fn a_file_that_is_no_vm_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(State::take(&file), Err(Error::Missing)));
    }
}
