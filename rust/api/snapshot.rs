// SPDX-License-Identifier: GPL-2.0-only

//! Snapshots: a VM goes back to an instant that was marked, at a cost that depends on what changed.
//!
//! ```text
//!   PACIFICA_CREATE_SNAPSHOT on a VM ──► descriptor
//!     all vCPUs out of KVM_RUN           the state is copied (snapshot_state.rs)
//!                                        memory is watched   (kept_pages.rs)
//!   PACIFICA_RESET on it                 changed pages are copied back, then the state
//!   PACIFICA_FORK on it                  another VM with that state (fork.rs)
//!   close                                nothing is watched any more
//! ```
//!
//! Snapshots of a VM are a stack: a reset to one drops those that were taken later. While there is
//! one, no vCPU and no device is made; slots may change. A snapshot of the state alone watches
//! nothing, and is in no stack.

use crate::api::fork;
use crate::linux::compat::unsupported;
use crate::memory::kept_layer::Writer;
use crate::uapi::file::{self, FileObject};
use crate::uapi::{self, UserArg};
use crate::vcpu::snapshot_state::{IrqchipSnapshot, VcpuSnapshot};
use crate::vcpu::stopped::Stopped;
use crate::vm::clock::{Instant, Passed};
use crate::vm::{Decisions, Setup, Vm};
use kernel::ffi::c_long;
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};
use npt::{GpaRange, PageSize};

/// The complete state of a VM but for its memory, as values: it outlives the VM.
pub(crate) struct State {
    pub(crate) taken: Instant,
    pub(crate) vcpus: KVec<VcpuSnapshot>,
    pub(crate) irqchip: IrqchipSnapshot,
    pub(crate) decisions: Decisions,
}

/// `PACIFICA_KEEP_ONCE`.
const ONCE: u64 = uapi::PACIFICA_KEEP_ONCE as u64;

/// A snapshot. Its file holds the only reference.
pub(crate) struct Snapshot {
    state: State,
    /// None if it is of the state alone.
    memory: Option<Memory>,
}

/// The memory of a VM, as it was.
struct Memory {
    vm: Arc<Vm>,
    /// Its number among those of the VM.
    id: u64,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.vm.memory.end_keeping(self.id);
    }
}

/// `PACIFICA_CHECK_FEATURE`.
pub(crate) fn check_feature(feature: usize) -> c_long {
    match u32::try_from(feature) {
        Ok(uapi::PACIFICA_FEATURE_SNAPSHOT) => 2,
        Ok(uapi::PACIFICA_FEATURE_FORK) => 1,
        _ => 0,
    }
}

/// `PACIFICA_CREATE_SNAPSHOT`. Nothing else decides about vCPUs and devices of the VM meanwhile.
pub(crate) fn create(vm: ArcBorrow<'_, Vm>, setup: &Setup, arg: UserArg) -> Result<c_long> {
    let config: uapi::pacifica_create_snapshot = arg.read()?;
    let state_only = u64::from(uapi::PACIFICA_SNAPSHOT_STATE);
    let keeps = config.flags & state_only == 0;
    let nonsense = config.flags & !state_only != 0 || (!keeps && config.limit != 0);
    if nonsense || config.reserved != [0; 6] {
        return Err(EINVAL);
    }
    if vm.vfio.exists() || vm.memory.ring_size() != 0 {
        return Err(unsupported());
    }
    let decisions = vm.decisions(setup)?;
    let snapshot = vm.vcpus.stopped(|stopped| {
        vm.irqchip.broadcasts.finish();
        let mut vcpus = KVec::with_capacity(stopped.len(), GFP_KERNEL_ACCOUNT)?;
        for one in stopped.iter_mut() {
            vcpus.push(VcpuSnapshot::take(one)?, GFP_KERNEL_ACCOUNT)?;
        }
        let state = State {
            taken: Instant::now(),
            vcpus,
            irqchip: IrqchipSnapshot::take(&vm),
            decisions,
        };
        let memory = match keeps {
            true => Some(Memory {
                id: vm.memory.begin_keeping(config.limit)?,
                vm: vm.into(),
            }),
            false => None,
        };
        Ok(Arc::new(Snapshot { state, memory }, GFP_KERNEL_ACCOUNT)?)
    })?;
    file::new_fd(c"pacifica-snapshot", snapshot)
}

/// Whether this is an ioctl of a snapshot that keeps memory.
fn is_own(cmd: u32) -> bool {
    matches!(
        cmd,
        uapi::PACIFICA_RESET
            | uapi::PACIFICA_KEEP_PAGES
            | uapi::PACIFICA_SET_KEEP_LIMIT
            | uapi::PACIFICA_GET_KEPT
    )
}

impl State {
    /// The VM is as it was, but for its memory, and for its time, unless so much of that is taken
    /// back. Its vCPUs, which are those of this state in the same order, are
    /// [prepared](VcpuSnapshot::prepare).
    pub(crate) fn put_back(&self, vm: &Vm, stopped: &mut [Stopped<'_>], passed: Option<Passed>) {
        self.irqchip.put_back(vm, passed);
        for (old, one) in self.vcpus.iter().zip(&mut *stopped) {
            old.put_back(one, passed);
        }
        // Not before: what it sends is to stay.
        vm.irqchip.restart();
    }
}

impl Snapshot {
    /// `PACIFICA_RESET`. Memory comes first: it can fail.
    fn reset(&self, memory: &Memory, arg: UserArg) -> Result {
        let vm = &memory.vm;
        let mut reset: uapi::pacifica_reset = arg.read()?;
        let time = u64::from(uapi::PACIFICA_RESET_TIME);
        if reset.flags & !time != 0 || reset.reserved != [0; 2] {
            return Err(EINVAL);
        }
        let state = &self.state;
        reset.pages = vm.vcpus.stopped(|stopped| {
            let same = |(old, one): (&VcpuSnapshot, &Stopped<'_>)| old.is_of(one);
            if stopped.len() != state.vcpus.len() || !state.vcpus.iter().zip(&*stopped).all(same) {
                return Err(ENXIO);
            }
            for (old, one) in state.vcpus.iter().zip(&mut *stopped) {
                old.prepare(one)?;
            }
            let pages = vm.memory.put_back(memory.id)?;
            vm.irqchip.broadcasts.finish();
            let passed = (reset.flags & time != 0).then(|| state.taken.passed());
            state.put_back(vm, stopped, passed);
            Ok(pages)
        })?;
        arg.write(&reset)
    }

    /// `PACIFICA_KEEP_PAGES`: what is left goes back to the caller; an error is one only if nothing
    /// was done.
    fn keep(memory: &Memory, arg: UserArg) -> Result {
        let memory = &memory.vm.memory;
        let mut pages: uapi::pacifica_keep_pages = arg.read()?;
        let end = pages.gpa.checked_add(pages.size).ok_or(EINVAL)?;
        let aligned = (pages.gpa | pages.size) & PageSize::Size4K.offset_mask() == 0;
        let writer = match pages.flags {
            0 => Writer::Vmm,
            ONCE => Writer::VmmOnce,
            _ => return Err(EINVAL),
        };
        if pages.size == 0 || !aligned {
            return Err(EINVAL);
        }
        let mut range = GpaRange {
            start: pages.gpa,
            end,
        };
        let result = memory.keep_for_vmm(&mut range, writer);
        let nothing = range.start == pages.gpa;
        (pages.gpa, pages.size) = (range.start, end.wrapping_sub(range.start));
        arg.write(&pages)?;
        match nothing {
            true => result,
            false => Ok(()),
        }
    }
}

impl FileObject for Snapshot {
    fn ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: UserArg) -> Result<c_long> {
        if cmd == uapi::PACIFICA_FORK {
            return fork::fork(&this.state, arg);
        }
        let Some(memory) = &this.memory else {
            return Err(if is_own(cmd) { EINVAL } else { ENOTTY });
        };
        let (vm, id) = (&memory.vm, memory.id);
        if !vm.memory.is_current() {
            return Err(EIO);
        }
        let keeping = &vm.memory.keeping;
        match cmd {
            uapi::PACIFICA_RESET => this.reset(memory, arg)?,
            uapi::PACIFICA_KEEP_PAGES => {
                // Not while a reset goes on.
                let _stopping = vm.vcpus.stopping.lock()?;
                // It is one that is left, but the uppermost keeps.
                keeping.bytes(id)?;
                Self::keep(memory, arg)?;
            }
            uapi::PACIFICA_SET_KEEP_LIMIT => keeping.set_limit(id, arg.read()?)?,
            uapi::PACIFICA_GET_KEPT => arg.write(&keeping.bytes(id)?)?,
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }
}
