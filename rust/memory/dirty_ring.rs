// SPDX-License-Identifier: GPL-2.0-only

//! The dirty ring of a vCPU: which pages it has written, in the order of their first writes.
//!
//! ```text
//!        reset                fetch (the VMM's)        dirty
//!   ───────┼───────────────────────┼─────────────────────┼───────
//!    free  │ harvested: flags 1x   │ dirty: flags 01     │ free: flags 00
//! ```
//!
//! The vCPU's own thread adds entries. The VMM, which maps the ring, reads them in their order and
//! marks them; KVM_RESET_DIRTY_RINGS frees the marked ones, and has the next writes to their pages
//! logged again. The VMM can write anything to the ring: what is read of it is checked.

use crate::linux::{self, Pages};
use crate::memory::npt_pages::LockedTables;
use crate::memory::slots::{Slot, SLOT_LIMIT};
use crate::memory::VmMemory;
use crate::uapi::run_page::Page;
use crate::uapi::{self, kvm_dirty_gfn};
use core::mem::size_of;
use core::ptr::{addr_of, addr_of_mut};
use core::sync::atomic::{AtomicU32, AtomicU64};
use core::sync::atomic::{
    Ordering::Acquire, Ordering::Relaxed, Ordering::Release, Ordering::SeqCst,
};
use kernel::bindings;
use kernel::ffi::c_void;
use kernel::prelude::*;
use kernel::sync::Arc;
use npt::Flush;

/// Entries in a page.
const PER_PAGE: u32 = (4096 / size_of::<kvm_dirty_gfn>()) as u32;
/// Entries that are kept for what the handler of one exit, or of one ioctl, may write.
const RESERVED: u32 = 64;
/// The most bytes of a ring: what `KVM_CAP_DIRTY_LOG_RING` answers.
pub(crate) const MOST_BYTES: u32 = 65536 * size_of::<kvm_dirty_gfn>() as u32;

/// The ring of a vCPU.
pub(crate) struct DirtyRing {
    pages: KVec<Page>,
    /// How many entries there are, a power of two.
    entries: u32,
    /// How many were ever added.
    dirty: AtomicU32,
    /// How many were ever freed.
    reset: AtomicU32,
    /// The newest entry: slot and page.
    newest: (AtomicU32, AtomicU64),
}

impl DirtyRing {
    /// An empty ring of so many bytes.
    pub(crate) fn new(bytes: u32) -> Result<Arc<Self>> {
        let entries = bytes / size_of::<kvm_dirty_gfn>() as u32;
        let mut pages = KVec::new();
        for _ in 0..entries / PER_PAGE {
            pages.push(Pages::new()?, GFP_KERNEL_ACCOUNT)?;
        }
        let ring = Self {
            pages,
            entries,
            dirty: AtomicU32::new(0),
            reset: AtomicU32::new(0),
            newest: (AtomicU32::new(0), AtomicU64::new(0)),
        };
        Ok(Arc::new(ring, GFP_KERNEL_ACCOUNT)?)
    }

    fn used(&self) -> u32 {
        let dirty = self.dirty.load(Relaxed);
        dirty.wrapping_sub(self.reset.load(Acquire))
    }

    /// Whether the VMM must harvest before the guest goes on.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.used() >= self.entries.wrapping_sub(RESERVED)
    }

    fn entry(&self, index: u32) -> Option<*mut kvm_dirty_gfn> {
        let index = index & self.entries.wrapping_sub(1);
        let page: *mut kvm_dirty_gfn = self.pages.get((index / PER_PAGE) as usize)?.as_ptr().cast();
        Some(page.wrapping_add((index % PER_PAGE) as usize))
    }

    /// Adds a page of a slot. Only the vCPU's own thread does.
    pub(crate) fn push(&self, slot: u32, page: u64) {
        let dirty = self.dirty.load(Relaxed);
        if self.is_newest(dirty, slot, page) {
            return;
        }
        // The reserve is larger than what can come between two looks at `is_full`.
        let Some(entry) = self.entry(dirty).filter(|_| self.used() < self.entries) else {
            return;
        };
        // SAFETY: An entry of the ring; it is accessed by single accesses, as the VMM does.
        unsafe {
            addr_of_mut!((*entry).slot).write_volatile(slot);
            addr_of_mut!((*entry).offset).write_volatile(page);
            AtomicU32::from_ptr(addr_of_mut!((*entry).flags))
                .store(uapi::KVM_DIRTY_GFN_F_DIRTY, Release);
        }
        self.newest.0.store(slot, Relaxed);
        self.newest.1.store(page, Relaxed);
        self.dirty.store(dirty.wrapping_add(1), Relaxed);
    }

    /// Whether the page is in the newest entry, which the VMM has not harvested. So what is written
    /// whenever the vCPU is run, to the same page, does not fill the ring.
    fn is_newest(&self, dirty: u32, slot: u32, page: u64) -> bool {
        let newest = (self.newest.0.load(Relaxed), self.newest.1.load(Relaxed));
        if newest != (slot, page) || dirty == self.reset.load(Acquire) {
            return false;
        }
        self.entry(dirty.wrapping_sub(1)).is_some_and(|entry| {
            // SAFETY: An entry of the ring.
            let flags = unsafe { AtomicU32::from_ptr(addr_of_mut!((*entry).flags)) };
            // A locked access: who harvests the entry after it sees what was written before it.
            let is = uapi::KVM_DIRTY_GFN_F_DIRTY;
            flags.compare_exchange(is, is, SeqCst, SeqCst).is_ok()
        })
    }

    /// Frees the oldest entry if the VMM has marked it: slot and page.
    fn take(&self) -> Option<(u32, u64)> {
        let reset = self.reset.load(Relaxed);
        if reset == self.dirty.load(Relaxed) {
            return None;
        }
        let entry = self.entry(reset)?;
        // SAFETY: An entry of the ring; it is accessed by single accesses, as the VMM does.
        let taken = unsafe {
            let flags = AtomicU32::from_ptr(addr_of_mut!((*entry).flags));
            if flags.load(Acquire) & uapi::KVM_DIRTY_GFN_F_RESET == 0 {
                return None;
            }
            let slot = addr_of!((*entry).slot).read_volatile();
            let page = addr_of!((*entry).offset).read_volatile();
            flags.store(0, Release);
            (slot, page)
        };
        self.reset.store(reset.wrapping_add(1), Release);
        Some(taken)
    }

    /// Maps the ring into user space.
    ///
    /// # Safety
    ///
    /// `vma` comes from an `mmap` call that is under way.
    pub(crate) unsafe fn map(&self, vma: *mut bindings::vm_area_struct) -> Result {
        let mut pages = KVec::with_capacity(self.pages.len(), GFP_KERNEL)?;
        for page in &self.pages {
            pages.push(page.as_ptr().cast::<c_void>(), GFP_KERNEL)?;
        }
        // SAFETY: As promised by the caller; the pages are there to be shown.
        unsafe { linux::map_pages(vma, &pages, uapi::KVM_DIRTY_LOG_PAGE_OFFSET as usize) }
    }
}

/// Pages of one slot and one word of a bitmap, to be protected at once.
struct Batch {
    slot: u32,
    word: u64,
    bits: u64,
}

impl VmMemory {
    /// `KVM_CAP_DIRTY_LOG_RING`: vCPUs that are made from now on have rings of so many bytes. Once.
    /// `EINVAL` if it is no power of two or too little, `E2BIG` if it is too much.
    pub(crate) fn set_ring_size(&self, bytes: u64) -> Result {
        let _change = self.change.lock();
        let bytes = bytes as u32;
        let least = RESERVED * size_of::<kvm_dirty_gfn>() as u32;
        if !bytes.is_power_of_two() || bytes < least.max(4096) {
            return Err(EINVAL);
        }
        if bytes > MOST_BYTES {
            return Err(E2BIG);
        }
        if self.ring_size() != 0 {
            return Err(EINVAL);
        }
        self.ring_bytes.store(bytes, Relaxed);
        Ok(())
    }

    /// How large the rings are, in bytes; 0 if there are none.
    pub(crate) fn ring_size(&self) -> u32 {
        self.ring_bytes.load(Relaxed)
    }

    /// A ring for one more vCPU.
    pub(crate) fn new_ring(&self) -> Result<Option<Arc<DirtyRing>>> {
        if self.ring_size() == 0 {
            return Ok(None);
        }
        let ring = DirtyRing::new(self.ring_size())?;
        self.rings.lock().push(ring.clone(), GFP_KERNEL_ACCOUNT)?;
        Ok(Some(ring))
    }

    /// Its vCPU goes.
    pub(crate) fn remove_ring(&self, ring: &Arc<DirtyRing>) {
        self.rings.lock().retain(|other| !Arc::ptr_eq(other, ring));
    }

    /// `KVM_RESET_DIRTY_RINGS`: frees what the VMM has harvested, and answers how much it was. The
    /// next writes to those pages are logged. `EINVAL` if there are no rings. May sleep.
    pub(crate) fn reset_rings(&self) -> Result<u32> {
        if self.ring_size() == 0 {
            return Err(EINVAL);
        }
        let ids = self.change.lock();
        let mut count = 0u32;
        let mut flush = Flush::None;
        let mut batch = Batch {
            slot: 0,
            word: 0,
            bits: 0,
        };
        'all: for ring in self.rings.lock().iter() {
            while let Some((slot, page)) = ring.take() {
                let (word, bit) = (page / 64, 1 << (page % 64));
                if (slot, word) != (batch.slot, batch.word) {
                    flush |= self.protect_batch(ids.get(&batch.slot), &batch);
                    batch = Batch {
                        slot,
                        word,
                        bits: 0,
                    };
                }
                batch.bits |= bit;
                count = count.saturating_add(1);
                if linux::signal_pending() || count > i32::MAX as u32 / 2 {
                    break 'all;
                }
            }
        }
        flush |= self.protect_batch(ids.get(&batch.slot), &batch);
        self.flush_if(flush);
        Ok(count)
    }

    fn protect_batch(&self, slot: Option<&Slot>, batch: &Batch) -> Flush {
        let Some(slot) = slot.filter(|slot| slot.id() < SLOT_LIMIT) else {
            return Flush::None;
        };
        // Nothing beyond the end of the slot.
        let Some(rest) = batch
            .word
            .checked_mul(64)
            .and_then(|first| slot.pages().checked_sub(first))
        else {
            return Flush::None;
        };
        let inside = match rest {
            0..64 => (1 << rest) - 1,
            _ => u64::MAX,
        };
        let gpa = slot.gpas().start + (batch.word << 18);
        linux::cond_resched();
        let mmu = self.mmu.lock();
        let mut tables = LockedTables::new(None);
        mmu.npt.protect_pages(&mut tables, gpa, batch.bits & inside)
    }
}
