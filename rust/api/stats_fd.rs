// SPDX-License-Identifier: GPL-2.0-only

//! KVM_GET_STATS_FD: the counters of [`crate::vm::stats`] as a file that describes itself.
//!
//! ```text
//!   struct kvm_stats_header ─ name ─ a descriptor with its name for each counter ─ the counters
//! ```

use crate::uapi::file::{self, FileObject};
use crate::uapi::{self, UserArg};
use crate::vcpu::Vcpu;
use crate::vm::stats::{Stats, VmStats, NAMES, PAGE_NAMES};
use core::mem::size_of;
use kernel::ffi::c_long;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::{Arc, ArcBorrow};

/// Room for a name, with its zero.
const NAME_SIZE: usize = uapi::KVM_STATS_NAME_SIZE as usize;
/// Bytes of a descriptor with its name.
const DESCRIPTOR: usize = size_of::<uapi::kvm_stats_desc>();
const DESCRIPTORS: usize = size_of::<uapi::kvm_stats_header>() + NAME_SIZE;

/// Whose counters they are.
enum Source {
    Vcpu(Arc<Stats>),
    /// The sums of all vCPUs.
    Vm(Arc<VmStats>),
}

/// An open file of counters. It holds these alone: the VM may go.
pub(crate) struct StatsFd {
    source: Source,
    name: CString,
}

impl StatsFd {
    /// The counters of a VM, and their descriptor.
    pub(crate) fn of_vm(stats: &Arc<VmStats>, pid: i32, serial: u64) -> Result<c_long> {
        let name = CString::try_from_fmt(fmt!("kvm-{pid}-{serial}"))?;
        Self::open(Source::Vm(stats.clone()), name)
    }

    /// The counters of a vCPU, and their descriptor.
    pub(crate) fn of_vcpu(vcpu: &Vcpu) -> Result<c_long> {
        let (vm, id) = (&vcpu.vm, vcpu.mailbox.id);
        let name = CString::try_from_fmt(fmt!("kvm-{}-{}/vcpu-{id}", vm.pid, vm.serial))?;
        Self::open(Source::Vcpu(vcpu.stats.clone()), name)
    }

    fn open(source: Source, name: CString) -> Result<c_long> {
        let file = Arc::new(Self { source, name }, GFP_KERNEL_ACCOUNT)?;
        file::new_fd(c"pacifica-stats", file)
    }

    fn value(&self, counter: usize) -> u64 {
        match &self.source {
            Source::Vcpu(stats) => stats.value(counter),
            Source::Vm(stats) => stats.sum(counter),
        }
    }

    /// What only a VM has.
    fn pages(&self) -> Option<[u64; 3]> {
        match &self.source {
            Source::Vcpu(_) => None,
            Source::Vm(stats) => Some(stats.pages()),
        }
    }

    /// The whole file, as it is now.
    fn image(&self) -> Result<KVec<u8>> {
        let pages = self.pages();
        let page_names: &[&str] = if pages.is_some() { &PAGE_NAMES } else { &[] };
        let count = NAMES.len() + page_names.len();
        let data = DESCRIPTORS + count * DESCRIPTOR;
        let size = data + count * size_of::<u64>();
        let mut image = KVec::with_capacity(size, GFP_KERNEL_ACCOUNT)?;
        let mut put = |bytes: &[u8]| image.extend_from_slice(bytes, GFP_KERNEL_ACCOUNT);
        // Flags, and the rest of `struct kvm_stats_header`.
        for word in [
            0,
            NAME_SIZE,
            count,
            size_of::<uapi::kvm_stats_header>(),
            DESCRIPTORS,
            data,
        ] {
            put(&(word as u32).to_ne_bytes())?;
        }
        put(&padded(self.name.to_bytes()))?;
        for (i, name) in Iterator::chain(NAMES.iter(), page_names).enumerate() {
            let kind = match i < NAMES.len() {
                true => uapi::KVM_STATS_TYPE_CUMULATIVE,
                false => uapi::KVM_STATS_TYPE_INSTANT,
            };
            let (unit, exponent) = match name.ends_with("_ns") {
                true => (uapi::KVM_STATS_UNIT_SECONDS, -9_i16),
                false => (uapi::KVM_STATS_UNIT_NONE, 0),
            };
            // Flags, exponent and one word, offset, no buckets.
            put(&(kind | unit | uapi::KVM_STATS_BASE_POW10).to_ne_bytes())?;
            put(&exponent.to_ne_bytes())?;
            put(&1_u16.to_ne_bytes())?;
            put(&((i * size_of::<u64>()) as u32).to_ne_bytes())?;
            put(&0_u32.to_ne_bytes())?;
            put(&padded(name.as_bytes()))?;
        }
        for i in 0..NAMES.len() {
            put(&self.value(i).to_ne_bytes())?;
        }
        for count in pages.into_iter().flatten() {
            put(&count.to_ne_bytes())?;
        }
        Ok(image)
    }
}

/// A name with zeros behind it.
fn padded(name: &[u8]) -> [u8; NAME_SIZE] {
    let mut padded = [0; NAME_SIZE];
    for (to, from) in padded.iter_mut().take(NAME_SIZE - 1).zip(name) {
        *to = *from;
    }
    padded
}

impl FileObject for StatsFd {
    fn ioctl(_this: ArcBorrow<'_, Self>, _cmd: u32, _arg: UserArg) -> Result<c_long> {
        Err(ENOTTY)
    }

    fn read(this: ArcBorrow<'_, Self>, to: UserArg, length: usize, offset: usize) -> Result<usize> {
        let image = this.image()?;
        let rest = image.get(offset..).unwrap_or(&[]);
        let part = rest.get(..length).unwrap_or(rest);
        to.write_bytes(part)?;
        Ok(part.len())
    }
}
