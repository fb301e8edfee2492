// SPDX-License-Identifier: GPL-2.0-only

//! Guest memory: the public face. (The bodies follow; the signatures stand.)

use kernel::error::Error;
use kernel::prelude::*;
use kernel::sync::Arc;
use x86::cpu::{GuestMemory, MemError};

/// How the vCPUs' TLBs are reached. The VM gives one to [`VmMemory::new`].
pub(crate) trait Flush: Send + Sync {
    /// When this returns, no CPU uses a translation that it got before the call: every vCPU flushes
    /// its ASID before its next VMRUN, and those in guest mode have left it.
    ///
    /// Called with the memory's spinlock held and interrupts on: it may send IPIs and wait for them,
    /// but not sleep, and must not call back into [`VmMemory`].
    fn flush_all(&self);
}

/// What `KVM_SET_USER_MEMORY_REGION` asks for.
#[derive(Clone, Copy)]
pub(crate) struct Region {
    /// `slot`: the id, with the address space in the upper 16 bits.
    pub(crate) slot: u32,
    /// `flags`: `KVM_MEM_*`.
    pub(crate) flags: u32,
    /// `guest_phys_addr`.
    pub(crate) gpa: u64,
    /// `memory_size`, in bytes; 0 deletes the slot.
    pub(crate) size: u64,
    /// `userspace_addr`.
    pub(crate) hva: u64,
}

/// What became of a nested page fault.
pub(crate) enum Outcome {
    /// The page is mapped, or was taken away again meanwhile: run the guest again.
    Mapped,
    /// No slot is there: emulate the access as one to a device.
    Mmio,
    /// The slot is read-only, and this was a write: likewise.
    ReadOnly,
    /// The host page is not present, and the caller may not sleep now. Ask again where it may.
    WouldSleep,
    /// The process has no usable memory there (`EFAULT`, `EHWPOISON`), there is no memory for
    /// tables (`ENOMEM`), or a signal came while waiting (`EINTR`).
    HostFault(Error),
}

/// The memory of a VM: slots, nested page tables, and the link to the process' address space.
pub(crate) struct VmMemory {}

impl VmMemory {
    /// Memory without slots on the address space of the current process. May sleep.
    pub(crate) fn new(flush: Arc<dyn Flush>) -> Result<Arc<Self>> {
        todo!()
    }

    /// The value for the VMCB's nCR3. It never changes.
    pub(crate) fn ncr3(&self) -> u64 {
        todo!()
    }

    /// True if the current thread runs on the address space of the VM. Whoever calls anything of
    /// [`VcpuMemory`], or [`set_region`](Self::set_region), must have checked it (`EIO`).
    pub(crate) fn is_current(&self) -> bool {
        todo!()
    }

    /// `KVM_SET_USER_MEMORY_REGION`, with KVM's rules and errnos. May sleep.
    pub(crate) fn set_region(&self, region: &Region) -> Result {
        todo!()
    }
}

/// A vCPU's own part: a cache of table pages and the slot used last.
pub(crate) struct VcpuMemory {}

impl VcpuMemory {
    pub(crate) fn new(vm: Arc<VmMemory>) -> Result<Self> {
        todo!()
    }

    /// A nested page fault (exit code NPF) at `gpa`. With `may_sleep` false it takes a spinlock at
    /// most, and may run with preemption off.
    pub(crate) fn fault(&mut self, gpa: u64, write: bool, may_sleep: bool) -> Outcome {
        todo!()
    }

    /// Guest memory for the emulator and the page walk: `GuestMemory` of the `x86` crate.
    pub(crate) fn access(&mut self, may_sleep: bool) -> GuestAccess<'_> {
        todo!()
    }
}

/// Implements `x86::cpu::GuestMemory`.
pub(crate) struct GuestAccess<'a> {
    memory: &'a mut VcpuMemory,
    may_sleep: bool,
}
