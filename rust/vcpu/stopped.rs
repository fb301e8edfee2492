// SPDX-License-Identifier: GPL-2.0-only

//! All vCPUs of a VM, and how to have them to oneself.

use crate::linux::{KillableGuard, KillableMutex};
use crate::vcpu::{Inner, Vcpu};
use kernel::prelude::*;
use kernel::sync::{Arc, Mutex};

/// The vCPUs of a VM that have a descriptor, in the order in which they were made.
#[pin_data]
pub(crate) struct Vcpus {
    #[pin]
    list: Mutex<KVec<Arc<Vcpu>>>,
    /// Held by who stops all of them, and by who uses a snapshot.
    #[pin]
    pub(crate) stopping: KillableMutex<()>,
}

impl Vcpus {
    /// Creates an empty list.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            list <- kernel::new_mutex!(KVec::new(), "pacifica::vcpus"),
            stopping <- KillableMutex::new(()),
        })
    }

    /// Another one. It holds a reference to the VM, so it must be [removed](Self::remove) when its
    /// last descriptor goes.
    pub(crate) fn add(&self, vcpu: &Arc<Vcpu>) -> Result {
        Ok(self.list.lock().push(vcpu.clone(), GFP_KERNEL_ACCOUNT)?)
    }

    /// It goes.
    pub(crate) fn remove(&self, vcpu: &Vcpu) {
        let mut list = self.list.lock();
        // It is not the last reference: the caller has one.
        list.retain(|other| !core::ptr::eq(&**other, vcpu));
    }

    fn all(&self) -> Result<KVec<Arc<Vcpu>>> {
        let list = self.list.lock();
        let mut all = KVec::with_capacity(list.len(), GFP_KERNEL)?;
        for vcpu in list.iter() {
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
            let inner = vcpu.inner.try_lock_inside(&outer).ok_or(EBUSY)?;
            stopped.push(Stopped { vcpu, inner }, GFP_KERNEL)?;
        }
        f(&mut stopped)
    }
}

/// A vCPU that is in no ioctl.
pub(crate) struct Stopped<'a> {
    pub(crate) vcpu: &'a Vcpu,
    pub(crate) inner: KillableGuard<'a, Inner>,
}
