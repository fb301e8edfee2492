// SPDX-License-Identifier: GPL-2.0-only

//! All vCPUs of a VM, and how callers make them stand still.
//!
//! ```text
//!   KVM_CREATE_VCPU ──► all ──────────────────────────► last descriptor closed
//!   PACIFICA_FORK ────► all, waiting ─KVM_CREATE_VCPU─► all ─► likewise
//! ```
//!
//! A vCPU holds a reference to its VM, so none may stay here after its last descriptor.

use crate::linux::{KillableGuard, KillableMutex};
use crate::vcpu::{LockedVcpu, Vcpu};
use kernel::prelude::*;
use kernel::sync::{Arc, Mutex};

/// The vCPUs of a VM that have a descriptor, or will have, in the order in which they were made.
#[pin_data]
pub(crate) struct Vcpus {
    #[pin]
    list: Mutex<List>,
    /// Held by callers that stop all vCPUs, and by those that use a snapshot.
    #[pin]
    pub(crate) stopping: KillableMutex<()>,
}

struct List {
    all: KVec<Arc<Vcpu>>,
    /// Those of a forked VM that have no descriptor yet.
    waiting: KVec<Arc<Vcpu>>,
}

impl Vcpus {
    /// Creates an empty list.
    pub(crate) fn new() -> impl PinInit<Self> {
        let list = List {
            all: KVec::new(),
            waiting: KVec::new(),
        };
        pin_init!(Self {
            list <- kernel::new_mutex!(list, "pacifica::vcpus"),
            stopping <- KillableMutex::new(()),
        })
    }

    /// Adds a vCPU. It holds a reference to the VM, so it must be [removed](Self::remove) when its
    /// last descriptor goes.
    pub(crate) fn add(&self, vcpu: &Arc<Vcpu>) -> Result {
        Ok(self
            .list
            .lock()
            .all
            .push(vcpu.clone(), GFP_KERNEL_ACCOUNT)?)
    }

    /// Removes a vCPU.
    pub(crate) fn remove(&self, vcpu: &Vcpu) {
        let mut list = self.list.lock();
        // It is not the last reference: the caller has one.
        list.all.retain(|other| !core::ptr::eq(&**other, vcpu));
    }

    /// Notes that an [added](Self::add) vCPU has no descriptor yet.
    pub(crate) fn wait(&self, vcpu: Arc<Vcpu>) -> Result {
        Ok(self.list.lock().waiting.push(vcpu, GFP_KERNEL_ACCOUNT)?)
    }

    /// Takes the one of this number out of those that wait for a descriptor.
    pub(crate) fn take_waiting(&self, id: u32) -> Option<Arc<Vcpu>> {
        let waiting = &mut self.list.lock().waiting;
        let index = waiting.iter().position(|vcpu| vcpu.mailbox.id == id)?;
        waiting.remove(index).ok()
    }

    /// Puts a vCPU back that got no descriptor.
    pub(crate) fn put_waiting(&self, vcpu: Arc<Vcpu>) {
        // There is room, for it was taken out.
        let left = self.list.lock().waiting.push_within_capacity(vcpu);
        drop(left);
    }

    /// Removes all vCPUs that have no descriptor.
    pub(crate) fn forget_waiting(&self) {
        let waiting = core::mem::take(&mut self.list.lock().waiting);
        for vcpu in waiting.iter() {
            self.remove(vcpu);
        }
    }

    fn all(&self) -> Result<KVec<Arc<Vcpu>>> {
        let list = self.list.lock();
        let mut all = KVec::with_capacity(list.all.len(), GFP_KERNEL)?;
        for vcpu in list.all.iter() {
            all.push(vcpu.clone(), GFP_KERNEL)?;
        }
        Ok(all)
    }

    /// Calls `f` with all vCPUs, while none of them is in an ioctl; `EBUSY` if one is. May sleep.
    pub(crate) fn stopped<R>(&self, f: impl FnOnce(&mut [Stopped<'_>]) -> Result<R>) -> Result<R> {
        let outer = self.stopping.lock()?;
        let all = self.all()?;
        let mut stopped = KVec::with_capacity(all.len(), GFP_KERNEL)?;
        for vcpu in all.iter() {
            let locked = vcpu.locked.try_lock_inside(&outer).ok_or(EBUSY)?;
            stopped.push(locked, GFP_KERNEL)?;
        }
        f(&mut stopped)
    }
}

/// A vCPU that is in no ioctl.
pub(crate) type Stopped<'a> = KillableGuard<'a, LockedVcpu>;
