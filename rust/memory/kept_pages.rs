// SPDX-License-Identifier: GPL-2.0-only

//! The memory of a snapshot: what pages held before they changed.
//!
//! ```text
//!   snapshot: no page is writable for the guest
//!     first write of the guest: fault ─┐
//!     write of the emulator ───────────┼─► the old content is kept ─► the page may be written
//!     the VMM announces a write ───────┘
//!   reset: the old contents are copied back, the last that was kept first; the pages stay writable
//! ```
//!
//! A page that was kept once is put back by every reset, so it makes no fault in later rounds. When
//! the limit is reached the guest stops; a reset then begins anew: it puts back, forgets, and takes
//! the right to write away again. So a reset costs no more than the limit, whatever came before.
//!
//! The bytes are those of the process, read and written at its addresses, as everything that is not
//! the guest does. If the same memory is in two places of the guest, it is kept twice: the second
//! time perhaps with what the first one has written. Putting back goes the other way round, and so
//! ends with what was there first.
//!
//! # What always holds
//!
//! While a snapshot exists, a page is writable in the nested tables only if it is kept. Both are so
//! since all vCPUs were stopped: no fault and no write was under way when it began.

use crate::linux::mm::{read_user, write_user};
use crate::linux::Sleep;
use crate::linux::{self, Pages};
use crate::memory::npt_pages::LockedTables;
use crate::memory::slots::Slot;
use crate::memory::{chunks, VmMemory};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use kernel::prelude::*;
use kernel::rbtree::RBTree;
use kernel::sync::Mutex;
use npt::{Flush, GpaRange, PageSize};

/// How much is done before others may have the CPU.
const BATCH: usize = 64;

/// What a page held when it was kept.
struct Old {
    gpa: u64,
    hva: u64,
    content: Pages<[u8; 4096]>,
}

/// The pages that are kept.
struct Kept {
    /// In the order in which they were.
    pages: KVVec<Old>,
    /// Their guest-physical addresses.
    index: RBTree<u64, ()>,
}

/// The old contents of a VM's memory, if there is a snapshot.
#[pin_data]
pub(crate) struct Keeping {
    /// There is one. Set while all vCPUs are stopped; cleared under the lock.
    on: AtomicBool,
    /// Most pages.
    limit: AtomicU64,
    /// How many there are; written under the lock.
    count: AtomicU64,
    #[pin]
    kept: Mutex<Kept>,
}

/// Who wants to write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    /// The guest itself, or the VMM: not beyond the limit.
    Strict,
    /// The emulator, which would lose what it has begun. `KVM_RUN` does not go on then.
    Lenient,
}

impl Keeping {
    /// There is no snapshot.
    pub(crate) fn new() -> impl PinInit<Self> {
        let kept = Kept {
            pages: KVVec::new(),
            index: RBTree::new(),
        };
        pin_init!(Self {
            on: AtomicBool::new(false),
            limit: AtomicU64::new(0),
            count: AtomicU64::new(0),
            kept <- kernel::new_mutex!(kept, "pacifica::kept"),
        })
    }

    /// Whether there is a snapshot.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Relaxed)
    }

    /// Whether more is kept than may be.
    #[inline]
    pub(crate) fn is_exceeded(&self) -> bool {
        self.is_on() && self.count.load(Relaxed) > self.limit.load(Relaxed)
    }

    /// How many bytes are kept.
    pub(crate) fn bytes(&self) -> u64 {
        self.count.load(Relaxed) << 12
    }

    /// Sets how many bytes may be.
    pub(crate) fn set_limit(&self, bytes: u64) {
        self.limit.store(bytes >> 12, Relaxed);
    }

    fn is_full(&self) -> bool {
        self.count.load(Relaxed) >= self.limit.load(Relaxed)
    }

    /// Whether the page at `gpa` is kept.
    pub(crate) fn has(&self, gpa: u64) -> bool {
        self.kept.lock().index.get(&gpa).is_some()
    }

    /// Keeps the page at `gpa`, which the process has at `hva`, unless it is kept. `ENOSPC` at the
    /// limit, `EFAULT` if the process has no memory there. May sleep.
    ///
    /// The content is read without the lock. Whoever comes second drops what he has read: the page
    /// may have been written since.
    pub(crate) fn keep(&self, gpa: u64, hva: u64, writer: Writer) -> Result {
        if self.has(gpa) {
            return Ok(());
        }
        if writer == Writer::Strict && self.is_full() {
            return Err(ENOSPC);
        }
        let mut content = Pages::<[u8; 4096]>::new()?;
        read_user(&mut content[..], hva, Sleep::Allowed)?;
        let mut kept = self.kept.lock();
        if !self.is_on() || kept.index.get(&gpa).is_some() {
            return Ok(());
        }
        if writer == Writer::Strict && self.is_full() {
            return Err(ENOSPC);
        }
        kept.pages.reserve(1, GFP_KERNEL_ACCOUNT)?;
        kept.index
            .try_create_and_insert(gpa, (), GFP_KERNEL_ACCOUNT)?;
        kept.pages
            .push_within_capacity(Old { gpa, hva, content })
            .map_err(|_| ENOMEM)?;
        self.count.store(kept.pages.len() as u64, Relaxed);
        Ok(())
    }

    /// Takes all that is kept out.
    fn take(&self, end: bool) -> Kept {
        let mut kept = self.kept.lock();
        if end {
            self.on.store(false, Relaxed);
        }
        self.count.store(0, Relaxed);
        Kept {
            pages: core::mem::replace(&mut kept.pages, KVVec::new()),
            index: core::mem::replace(&mut kept.index, RBTree::new()),
        }
    }
}

impl VmMemory {
    /// A snapshot begins, which may keep so many bytes: no page is writable for the guest. All vCPUs
    /// are stopped, and there are no dirty rings. `EEXIST` if there is one. May sleep.
    pub(crate) fn begin_keeping(&self, limit: u64) -> Result {
        let _change = self.change.lock();
        if self.keeping.is_on() {
            return Err(EEXIST);
        }
        self.keeping.set_limit(limit);
        self.keeping.on.store(true, Relaxed);
        let mut flush = Flush::None;
        for slot in self.slots().iter() {
            for range in chunks(slot.gpas()) {
                flush |= self.protect(range);
                linux::yield_now();
            }
        }
        self.flush_if(flush);
        Ok(())
    }

    /// The snapshot ends. vCPUs may run. May sleep.
    pub(crate) fn end_keeping(&self) {
        forget(self.keeping.take(true));
        let _change = self.change.lock();
        for slot in self.slots().iter().filter(|slot| slot.log().is_none()) {
            self.end_log(slot);
        }
    }

    /// Puts back what is kept, and answers how many pages that is. All vCPUs are stopped. `EFAULT` if
    /// the process has no memory at one of the addresses any more: then it can be done again. May
    /// sleep.
    pub(crate) fn put_back(&self) -> Result<u64> {
        let count = self.copy_back()?;
        if self.keeping.is_full() {
            self.begin_anew();
        }
        Ok(count)
    }

    fn copy_back(&self) -> Result<u64> {
        let slots = self.slots();
        let mut hint = 0;
        let kept = self.keeping.kept.lock();
        for (index, old) in kept.pages.iter().rev().enumerate() {
            write_user(old.hva, &old.content[..], Sleep::Allowed)?;
            if let Some(slot) = slots.find(old.gpa, &mut hint) {
                slot.wrote(old.gpa, None);
            }
            if index % BATCH == BATCH - 1 {
                linux::yield_now();
            }
        }
        Ok(kept.pages.len() as u64)
    }

    /// Forgets what is kept; the next writes to these pages are to be heard of.
    fn begin_anew(&self) {
        let kept = self.keeping.take(false);
        let mut flush = Flush::None;
        for batch in kept.pages.chunks(BATCH) {
            for old in batch {
                flush |= self.protect(GpaRange::page(old.gpa, PageSize::Size4K));
            }
            linux::yield_now();
        }
        self.flush_if(flush);
        forget(kept);
    }

    /// Takes the right to write away.
    fn protect(&self, range: GpaRange) -> Flush {
        let mmu = self.mmu.lock();
        mmu.npt.protect(&mut LockedTables::new(None), range)
    }

    /// Keeps what is about to be written by the emulator: bytes that begin at `gpa`, in `slot`.
    pub(crate) fn keep_for_emulator(&self, slot: &Slot, gpa: u64, bytes: usize) -> Result {
        let last = gpa.saturating_add((bytes as u64).saturating_sub(1));
        for gpa in [gpa, last] {
            let page = gpa & !PageSize::Size4K.offset_mask();
            self.keeping.keep(page, slot.hva(page), Writer::Lenient)?;
        }
        Ok(())
    }

    /// The VMM is about to write `range`, whole pages: keeps them, and takes them off the range as
    /// it goes. `ENOENT` where there is no slot, `EINTR` if a signal came.
    pub(crate) fn keep_for_vmm(&self, range: &mut GpaRange) -> Result {
        let slots = self.slots();
        let mut hint = 0;
        while range.start < range.end {
            if linux::work_pending() {
                if linux::signal_pending() {
                    return Err(EINTR);
                }
                linux::handle_work()?;
            }
            let slot = slots.find(range.start, &mut hint).ok_or(ENOENT)?;
            let hva = slot.hva(range.start);
            self.keeping.keep(range.start, hva, Writer::Strict)?;
            range.start = range.start.saturating_add(PageSize::Size4K.bytes());
        }
        Ok(())
    }
}

/// Gives the memory back, which may be much.
fn forget(mut kept: Kept) {
    while let Some(old) = kept.pages.pop() {
        drop(old);
        if kept.pages.len() % BATCH == 0 {
            linux::yield_now();
        }
    }
}
