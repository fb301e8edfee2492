// SPDX-License-Identifier: GPL-2.0-only

//! KVM_X86_SET_MSR_FILTER: the MSRs that the guest may not access by itself.
//!
//! A filter has an MSR permission map of its own. So what it says of MSRs that the guest otherwise
//! accesses without an exit costs nothing, and a VM without a filter pays for none.

use crate::linux::Pages;
use crate::uapi::{self, UserArg};
use core::mem::{offset_of, size_of};
use kernel::prelude::*;
use kernel::sync::Arc;
use svm::msrpm;
use x86::msr::index::{X2APIC_FIRST, X2APIC_LAST};
use x86::msr::DIRECT_MSRS;

/// A filter; immutable.
pub(crate) struct MsrFilter {
    default_deny: bool,
    ranges: KVec<Range>,
    /// The permission map for vCPUs under this filter.
    pub(crate) map: Pages<[u8; msrpm::SIZE]>,
}

struct Range {
    /// `KVM_MSR_FILTER_READ`, `KVM_MSR_FILTER_WRITE`.
    flags: u32,
    first: u32,
    /// One bit an MSR: it is allowed.
    allowed: KVec<u8>,
    count: u32,
}

impl MsrFilter {
    /// The filter at `arg`; none if it filters nothing.
    pub(crate) fn read(arg: UserArg) -> Result<Option<Arc<Self>>> {
        const FLAGS: usize = offset_of!(uapi::kvm_msr_filter, flags);
        let flags: u32 = arg.offset(FLAGS).read()?;
        if flags & !uapi::KVM_MSR_FILTER_DEFAULT_DENY != 0 {
            return Err(EINVAL);
        }
        let default_deny = flags & uapi::KVM_MSR_FILTER_DEFAULT_DENY != 0;
        let mut ranges = KVec::new();
        for i in 0..uapi::KVM_MSR_FILTER_MAX_RANGES as usize {
            let at = offset_of!(uapi::kvm_msr_filter, ranges)
                + i * size_of::<uapi::kvm_msr_filter_range>();
            if let Some(range) = Range::read(arg.offset(at))? {
                ranges.push(range, GFP_KERNEL_ACCOUNT)?;
            }
        }
        match (ranges.is_empty(), default_deny) {
            (true, false) => return Ok(None),
            // It would deny even what is never filtered.
            (true, true) => return Err(EINVAL),
            _ => {}
        }
        let mut map = Pages::new()?;
        msrpm::init(&mut map);
        let mut filter = Self {
            default_deny,
            ranges,
            map,
        };
        for &msr in DIRECT_MSRS {
            let (read, write) = (filter.denies(msr, false), filter.denies(msr, true));
            msrpm::set(&mut filter.map, msr, read, write);
        }
        Ok(Some(Arc::new(filter, GFP_KERNEL_ACCOUNT)?))
    }

    /// Whether the guest's access is the VMM's business. The first range that has the MSR decides.
    pub(crate) fn denies(&self, msr: u32, write: bool) -> bool {
        if matches!(msr, X2APIC_FIRST..=X2APIC_LAST) {
            return false;
        }
        let flag = match write {
            true => uapi::KVM_MSR_FILTER_WRITE,
            false => uapi::KVM_MSR_FILTER_READ,
        };
        let found = self.ranges.iter().find_map(|range| range.allows(msr, flag));
        found.map_or(self.default_deny, |allowed| !allowed)
    }
}

impl Range {
    /// The range at `arg`; `None` if it has no MSRs.
    fn read(arg: UserArg) -> Result<Option<Self>> {
        use uapi::kvm_msr_filter_range as Abi;
        let flags: u32 = arg.offset(offset_of!(Abi, flags)).read()?;
        if flags & !(uapi::KVM_MSR_FILTER_READ | uapi::KVM_MSR_FILTER_WRITE) != 0 {
            return Err(EINVAL);
        }
        let count: u32 = arg.offset(offset_of!(Abi, nmsrs)).read()?;
        if count == 0 {
            return Ok(None);
        }
        // Whole words, as user space has them.
        let bytes = count.div_ceil(u64::BITS) as usize * size_of::<u64>();
        if bytes > uapi::KVM_MSR_FILTER_MAX_BITMAP_SIZE as usize {
            return Err(EINVAL);
        }
        let bitmap: u64 = arg.offset(offset_of!(Abi, bitmap)).read()?;
        let mut allowed = KVec::with_capacity(bytes, GFP_KERNEL_ACCOUNT)?;
        allowed.resize(bytes, 0, GFP_KERNEL_ACCOUNT)?;
        UserArg(bitmap as usize).read_bytes(&mut allowed)?;
        Ok(Some(Self {
            flags,
            first: arg.offset(offset_of!(Abi, base)).read()?,
            allowed,
            count,
        }))
    }

    /// What the range says; `None` if it does not have the MSR.
    fn allows(&self, msr: u32, flag: u32) -> Option<bool> {
        let n = msr.checked_sub(self.first)?;
        if n >= self.count || self.flags & flag == 0 {
            return None;
        }
        let byte = self.allowed.get((n / 8) as usize)?;
        Some(byte >> (n % 8) & 1 != 0)
    }
}
