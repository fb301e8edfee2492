// SPDX-License-Identifier: GPL-2.0-only

//! Snapshots: a VM goes back to an instant that was marked, at a cost that depends on what changed.
//!
//! ```text
//!   PACIFICA_CREATE_SNAPSHOT on a VM ──► descriptor
//!     all vCPUs out of KVM_RUN           the state is copied (snapshot_state.rs)
//!                                        memory is watched   (kept_pages.rs)
//!   PACIFICA_RESET on it                 changed pages are copied back, then the state
//!   close                                nothing is watched any more
//! ```
//!
//! A VM has one snapshot at a time. While there is one, no slot and no vCPU comes or goes.

use crate::linux::compat::unsupported;
use crate::uapi::file::{self, FileObject};
use crate::uapi::{self, Arg};
use crate::vcpu::snapshot_state::{ChipsState, VcpuSnapshot};
use crate::vcpu::stopped::Stopped;
use crate::vm::clock::Instant;
use crate::vm::Vm;
use kernel::ffi::c_long;
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};
use npt::{GpaRange, PageSize};

/// A snapshot. Its file holds the only reference.
pub(crate) struct Snapshot {
    taken: Instant,
    vcpus: KVec<VcpuSnapshot>,
    chips: ChipsState,
    vm: Arc<Vm>,
}

/// `PACIFICA_CHECK_FEATURE`.
pub(crate) fn check_feature(feature: usize) -> c_long {
    match u32::try_from(feature) {
        Ok(uapi::PACIFICA_FEATURE_SNAPSHOT) => 1,
        _ => 0,
    }
}

/// `PACIFICA_CREATE_SNAPSHOT`. Nothing else decides about vCPUs and devices of the VM meanwhile.
pub(crate) fn create(vm: ArcBorrow<'_, Vm>, arg: Arg) -> Result<c_long> {
    let config: uapi::pacifica_create_snapshot = arg.read()?;
    if config.flags != 0 || config.reserved != [0; 6] {
        return Err(EINVAL);
    }
    if vm.vfio.exists() {
        return Err(unsupported());
    }
    let snapshot = vm.vcpus.stopped(|stopped| {
        vm.chips.broadcasts.finish();
        let mut vcpus = KVec::with_capacity(stopped.len(), GFP_KERNEL_ACCOUNT)?;
        for one in stopped.iter_mut() {
            vcpus.push(VcpuSnapshot::take(one)?, GFP_KERNEL_ACCOUNT)?;
        }
        let snapshot = Snapshot {
            taken: Instant::now(),
            vcpus,
            chips: ChipsState::take(&vm),
            vm: vm.into(),
        };
        let snapshot = Arc::new(snapshot, GFP_KERNEL_ACCOUNT)?;
        vm.memory.begin_keeping(config.limit)?;
        Ok(snapshot)
    })?;
    file::new_fd(c"pacifica-snapshot", snapshot).inspect_err(|_| vm.memory.end_keeping())
}

impl Snapshot {
    /// `PACIFICA_RESET`. Memory comes first: it can fail.
    fn reset(&self, arg: Arg) -> Result {
        let mut reset: uapi::pacifica_reset = arg.read()?;
        let time = u64::from(uapi::PACIFICA_RESET_FLAG_TIME);
        if reset.flags & !time != 0 || reset.reserved != [0; 2] {
            return Err(EINVAL);
        }
        reset.pages = self.vm.vcpus.stopped(|stopped| {
            let same = |(old, one): (&VcpuSnapshot, &Stopped<'_>)| old.is_of(one.vcpu);
            if stopped.len() != self.vcpus.len() || !self.vcpus.iter().zip(&*stopped).all(same) {
                return Err(ENXIO);
            }
            for (old, one) in self.vcpus.iter().zip(&mut *stopped) {
                old.prepare(one)?;
            }
            let pages = self.vm.memory.put_back()?;
            self.vm.chips.broadcasts.finish();
            let passed = (reset.flags & time != 0).then(|| self.taken.passed());
            self.chips.put_back(&self.vm, passed);
            for (old, one) in self.vcpus.iter().zip(&mut *stopped) {
                old.put_back(one, passed);
            }
            // Not before: what it sends is to stay.
            self.vm.chips.restart();
            Ok(pages)
        })?;
        arg.write(&reset)
    }

    /// `PACIFICA_KEEP_PAGES`: what is left goes back to the caller; an error is one only if nothing
    /// was done.
    fn keep(&self, arg: Arg) -> Result {
        let mut pages: uapi::pacifica_keep_pages = arg.read()?;
        let end = pages.gpa.checked_add(pages.size).ok_or(EINVAL)?;
        let aligned = (pages.gpa | pages.size) & PageSize::Size4K.offset_mask() == 0;
        if pages.flags != 0 || pages.size == 0 || !aligned {
            return Err(EINVAL);
        }
        let mut range = GpaRange {
            start: pages.gpa,
            end,
        };
        let result = self.vm.memory.keep_for_vmm(&mut range);
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
    fn ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: Arg) -> Result<c_long> {
        let memory = &this.vm.memory;
        if !memory.is_current() {
            return Err(EIO);
        }
        match cmd {
            uapi::PACIFICA_NR_RESET => this.reset(arg)?,
            uapi::PACIFICA_NR_KEEP_PAGES => {
                // Not while a reset goes on.
                let _stopping = this.vm.vcpus.stopping.lock()?;
                this.keep(arg)?;
            }
            uapi::PACIFICA_NR_SET_KEEP_LIMIT => memory.keeping.set_limit(arg.read()?),
            uapi::PACIFICA_NR_GET_KEPT => arg.write(&memory.keeping.bytes())?,
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }

    fn release(this: ArcBorrow<'_, Self>) {
        this.vm.memory.end_keeping();
    }
}
