// SPDX-License-Identifier: GPL-2.0-only

//! Coalesced I/O: writes to registers that need no answer are put into a ring, which the VMM reads
//! before it handles the next exit (KVM_REGISTER_COALESCED_MMIO).
//!
//! ```text
//!   first (VMM's) ──► oldest entry        last (ours) ──► where the next one goes
//!   equal: empty                          one before first: full, and the VMM gets the exit
//! ```
//!
//! The VMM can write all of the page at any time: both indices are read once, and checked.

use crate::linux::IrqLock;
use crate::uapi::run_page::Page;
use crate::uapi::{self, kvm_coalesced_mmio, kvm_coalesced_mmio_ring, UserArg};
use core::mem::size_of;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed, Ordering::Release};
use kernel::ffi::c_long;
use kernel::prelude::*;
use kernel::sync::{Arc, Mutex};

/// How many entries the page has room for.
const ENTRIES: usize =
    (4096 - size_of::<kvm_coalesced_mmio_ring>()) / size_of::<kvm_coalesced_mmio>();
/// Most zones, as KVM has it for one bus.
const MAX_ZONES: usize = 1000;

/// Addresses whose writes go into the ring.
#[derive(Clone, Copy)]
struct Zone {
    is_port: bool,
    address: u64,
    size: u32,
}

impl Zone {
    /// Whether all of an access is in the zone.
    fn contains(&self, is_port: bool, address: u64, length: u64) -> bool {
        let start = address.wrapping_sub(self.address);
        self.is_port == is_port
            && start
                .checked_add(length)
                .is_some_and(|end| end <= u64::from(self.size))
    }
}

/// The ring of a VM, and what goes into it.
#[pin_data]
pub(crate) struct Coalesced {
    ring: Arc<Page>,
    /// Held while the zones change.
    #[pin]
    changes: Mutex<()>,
    /// The lock is also that of the ring's end.
    #[pin]
    zones: IrqLock<KVec<Zone>>,
    /// There is one: spares the lock to guests without.
    has_zones: AtomicBool,
}

impl Coalesced {
    /// An empty ring.
    pub(crate) fn new() -> Result<impl PinInit<Self>> {
        let ring = Arc::new(Page::new()?, GFP_KERNEL_ACCOUNT)?;
        Ok(pin_init!(Self {
            ring,
            changes <- kernel::new_mutex!(()),
            zones <- IrqLock::new(KVec::new(), c"pacifica_zones", kernel::static_lock_class!()),
            has_zones: AtomicBool::new(false),
        }))
    }

    /// The page, for the vCPUs to show.
    pub(crate) fn ring(&self) -> Arc<Page> {
        self.ring.clone()
    }

    /// KVM_REGISTER_COALESCED_MMIO, KVM_UNREGISTER_COALESCED_MMIO.
    pub(crate) fn change(&self, arg: UserArg, add: bool) -> Result<c_long> {
        let args: uapi::kvm_coalesced_mmio_zone = arg.read()?;
        // SAFETY: Both variants of the union are the same integer.
        let is_port = match unsafe { args.__bindgen_anon_1.pio } {
            0 => false,
            1 => true,
            _ => return Err(EINVAL),
        };
        let zone = Zone {
            is_port,
            address: args.addr,
            size: args.size,
        };
        let _one_at_a_time = self.changes.lock();
        if !add {
            let size = u64::from(zone.size);
            self.zones
                .lock()
                .retain(|other| !other.contains(is_port, zone.address, size));
            return Ok(0);
        }
        if self.zones.lock().len() >= MAX_ZONES {
            return Err(ENOSPC);
        }
        self.zones.append(&zone)?;
        self.has_zones.store(true, Relaxed);
        Ok(0)
    }

    /// A write of the guest: whether it is in the ring now. Otherwise it is for the VMM.
    pub(crate) fn put(&self, is_port: bool, address: u64, data: &[u8]) -> bool {
        if !self.has_zones.load(Relaxed) {
            return false;
        }
        let zones = self.zones.lock();
        let length = data.len() as u64;
        length <= 8
            && zones
                .iter()
                .any(|zone| zone.contains(is_port, address, length))
            && self.append(is_port, address, data)
    }

    /// Appends an entry; `false` if there is no room. The caller has the lock.
    fn append(&self, is_port: bool, address: u64, data: &[u8]) -> bool {
        let ring: *mut kvm_coalesced_mmio_ring = self.ring.as_ptr().cast();
        // SAFETY: The page is ours and holds a ring; volatile, since user space writes it, too.
        let (first, last) = unsafe {
            (
                core::ptr::addr_of!((*ring).first).read_volatile() as usize,
                core::ptr::addr_of!((*ring).last).read_volatile() as usize,
            )
        };
        let next = (last.wrapping_add(1)) % ENTRIES;
        if last >= ENTRIES || next == first % ENTRIES {
            return false;
        }
        let mut entry = kvm_coalesced_mmio {
            phys_addr: address,
            len: data.len() as u32,
            ..Default::default()
        };
        entry.__bindgen_anon_1.pio = u32::from(is_port);
        for (to, from) in entry.data.iter_mut().zip(data) {
            *to = *from;
        }
        // SAFETY: `last` is less than ENTRIES, so the entry is within the page.
        unsafe {
            ring.add(1)
                .cast::<kvm_coalesced_mmio>()
                .add(last)
                .write_volatile(entry);
        }
        // The VMM must not see the end before the entry. SAFETY: The field is aligned and in the
        // page that `self` holds. The kernel writes it under the lock alone; what user space does
        // to it at the same time is outside of the language.
        unsafe { AtomicU32::from_ptr(&raw mut (*ring).last) }.store(next as u32, Release);
        true
    }
}
