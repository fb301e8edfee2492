// SPDX-License-Identifier: GPL-2.0-only

//! Guest memory: slots, nested page tables, and the process' address space behind them.
//!
//! ```text
//!   guest-physical ──slots──► user address ──the process' tables──► host page
//!         └───────────────── nested tables ──────────────────────────▲
//!                            (a cache of the path above; the notifier keeps it true)
//! ```
//!
//! | file | subject |
//! |---|---|
//! | `slots.rs` | the snapshot of all slots, and the rules of changing them |
//! | `hva_tree.rs` | slots by user address |
//! | `memory/mod.rs` | the VM's memory: the lock, invalidations, changes of slots |
//! | `fault.rs` | a vCPU's nested page fault |
//! | `guest_access.rs` | guest memory for the emulator and the page walk |
//! | `mmu_notifier.rs` | the calls of the host when it takes pages back |
//! | `dirty_log.rs`, `dirty_ring.rs` | which pages were written |
//! | `kept_pages.rs`, `kept_layer.rs` | what pages held before they changed |
//! | `inner_tables.rs` | nested tables for a guest's own guest |
//! | `npt_pages.rs` | the pages that the nested tables are made of |
//!
//! # Locks, in the order in which they are taken
//!
//! 1. `change` (mutex): one change of slots, or one reading of a dirty log, at a time. Sleeps.
//! 2. `readers` (SRCU): users of a snapshot of the slots read under it; may sleep inside,
//!    where the process' page faults take `mmap_lock`. A change waits for those before it.
//! 3. `keeping` (mutex): what snapshots keep. Sleeps, and reads memory of the process.
//! 4. `mmu` (spinlock): the nested tables, the state of invalidations, and which snapshot is
//!    current. Nothing under it sleeps. It is taken with interrupts on, always: who waits for it
//!    with interrupts off would not see the IPI of a flush that its holder waits for.
//!
//! The host's locks around the notifier's calls come before `mmu`, and nothing that takes them is
//! called under it.
//!
//! # What always holds
//!
//! - A page is in the nested tables only if one of the `backings` maps its guest-physical address
//!   to a user address where the process has that very page. No reference to the page is held. They
//!   are those of the current snapshot, and of the slot that has left it, but not yet the tables.
//! - So a fault looks the page up, takes `mmu`, and maps it only if the snapshot is still the
//!   current one, and no invalidation of the page is under way or ended since before the lookup.
//! - What is taken out of the tables is flushed before `mmu` is released. So no other CPU can find
//!   an entry gone while a CPU still uses it. A right that a log withholds is flushed later, before
//!   the VMM hears that it is.
//! - A page that the guest may write to is dirty in the eyes of the host.

pub(crate) mod dirty_log;
pub(crate) mod dirty_ring;
pub(crate) mod fault;
pub(crate) mod guest_access;
pub(crate) mod hva_tree;
pub(crate) mod inner_tables;
pub(crate) mod kept_layer;
pub(crate) mod kept_pages;
pub(crate) mod mmu_notifier;
pub(crate) mod npt_pages;
pub(crate) mod slots;

use crate::linux;
use crate::linux::mm::{self, Srcu, SrcuGuard};
use crate::linux::Sleep;
use crate::memory::dirty_log::NewLog;
use crate::memory::dirty_ring::DirtyRing;
pub(crate) use crate::memory::fault::VcpuMemory;
use crate::memory::hva_tree::{HvaNode, HvaTree};
use crate::memory::kept_pages::Keeping;
use crate::memory::mmu_notifier::Notifier;
use crate::memory::npt_pages::{LockedTables, TableCache};
pub(crate) use crate::memory::slots::Region;
use crate::memory::slots::{Change, Place, Slot, SlotList};
use core::mem::offset_of;
use core::pin::Pin;
use core::sync::atomic::AtomicU32;
use kernel::bindings;
use kernel::mm::Mm;
use kernel::prelude::*;
use kernel::rbtree::{RBTree, RBTreeNodeReservation};
use kernel::sync::aref::ARef;
use kernel::sync::atomic::{Acquire, Atomic, Relaxed, Release};
use kernel::sync::{new_mutex, new_spinlock, Arc, Mutex, SpinLock};
use npt::{GpaRange, Npt, PageSize};

/// How much guest memory is worked on before the spinlock is released for a while.
const CHUNK: u64 = 128 << 20;

/// How the vCPUs' TLBs are reached. The VM gives one to [`VmMemory::new`].
pub(crate) trait Flush: Send + Sync {
    /// When this returns, no CPU uses a translation that it got before the call: every vCPU flushes
    /// its ASID before its next VMRUN, and those in guest mode have left it.
    ///
    /// Called with the memory's spinlock held and interrupts on: it may send IPIs and wait for
    /// them, but not sleep, and must not call back into [`VmMemory`].
    fn flush_all(&self);
}

/// What the host is about to take.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The page may become another one, or none.
    Page,
    /// The right to write alone.
    Write,
}

/// What is behind the spinlock.
pub(crate) struct Mmu {
    pub(crate) npt: Npt,
    /// How many invalidations are under way.
    invalidations: u32,
    /// The user addresses that they touch together.
    invalid: (u64, u64),
    backings: HvaTree,
    /// The process is gone.
    dead: bool,
}

/// The memory of a VM.
#[pin_data(PinnedDrop)]
pub(crate) struct VmMemory {
    mm: ARef<Mm>,
    flush: Arc<dyn Flush>,
    /// The first guest-physical address that no slot can have.
    limit: u64,
    ncr3: u64,
    /// The slots by their ids.
    #[pin]
    pub(crate) change: Mutex<RBTree<u32, Slot>>,
    #[pin]
    readers: Srcu,
    /// The current snapshot, owned; replaced under `mmu`.
    slots: Atomic<*mut SlotList>,
    /// How many invalidations have ended; written under `mmu`.
    sequence: Atomic<u64>,
    #[pin]
    pub(crate) mmu: SpinLock<Mmu>,
    #[pin]
    notifier: Notifier,
    registered: Atomic<bool>,
    /// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`: the flags.
    pub(crate) manual_log: AtomicU32,
    /// `KVM_CAP_DIRTY_LOG_RING`: see [`VmMemory::ring_size`].
    pub(crate) ring_bytes: AtomicU32,
    #[pin]
    pub(crate) rings: Mutex<KVec<Arc<DirtyRing>>>,
    /// Old contents, if there is a snapshot.
    #[pin]
    pub(crate) keeping: Keeping,
}

// SAFETY: All fields but the snapshot are made for many threads, and it is replaced and freed by
// the rules above.
unsafe impl Send for VmMemory {}
// SAFETY: Likewise.
unsafe impl Sync for VmMemory {}

impl VmMemory {
    /// Memory without slots on the address space of the current process. May sleep.
    pub(crate) fn new(flush: Arc<dyn Flush>) -> Result<Arc<Self>> {
        let mm = mm::current_mm();
        if mm.is_null() {
            return Err(EINVAL);
        }
        // SAFETY: The current process keeps its address space while we are in its system call.
        let mm: ARef<Mm> = unsafe { Mm::from_raw(mm) }.into();
        let mut cache = TableCache::new();
        cache.fill()?;
        let mut tables = LockedTables::new(Some(&mut cache));
        let npt = Npt::new(&mut tables, mm::host_levels()).ok_or(ENOMEM)?;
        let slots = KBox::into_raw(KBox::new(SlotList::new(), GFP_KERNEL_ACCOUNT)?);
        let init = try_pin_init!(Self {
            mm,
            flush,
            limit: npt.limit().min(mm::host_address_limit()),
            ncr3: npt.root().0,
            change <- new_mutex!(RBTree::new(), "pacifica::change"),
            readers <- Srcu::new(),
            slots: Atomic::new(slots),
            sequence: Atomic::new(0),
            mmu <- new_spinlock!(Mmu::new(npt), "pacifica::mmu"),
            notifier: Notifier::new(),
            registered: Atomic::new(false),
            manual_log: AtomicU32::new(0),
            ring_bytes: AtomicU32::new(0),
            rings <- new_mutex!(KVec::new(), "pacifica::rings"),
            keeping <- Keeping::new(),
        });
        let memory = Arc::pin_init(init, GFP_KERNEL_ACCOUNT).inspect_err(|_| {
            // SAFETY: The empty snapshot and the root have no other user.
            unsafe {
                drop(KBox::from_raw(slots));
                let mut tables = LockedTables::new(None);
                let _ = npt.destroy(&mut tables);
                tables.give_back();
            }
        })?;
        // SAFETY: The memory is complete and pinned by its `Arc`; `drop` unregisters.
        unsafe { Pin::new_unchecked(&memory.notifier).register(memory.mm.as_raw())? };
        memory.registered.store(true, Relaxed);
        Ok(memory)
    }

    /// The value for the VMCB's nCR3. It never changes.
    pub(crate) fn ncr3(&self) -> u64 {
        self.ncr3
    }

    /// True if the current thread runs on the address space of the VM. A caller of
    /// [`set_region`](Self::set_region), or anything of a `VcpuMemory`, must have checked it
    /// (`EIO`).
    pub(crate) fn is_current(&self) -> bool {
        core::ptr::eq(mm::current_mm(), self.mm.as_raw())
    }

    /// `KVM_SET_USER_MEMORY_REGION`, with KVM's rules and errnos. May sleep.
    ///
    /// When it returns, what was there before has no user.
    pub(crate) fn set_region(&self, region: &Region) -> Result {
        let mut ids = self.change.lock();
        // SAFETY: Only changes free a snapshot, and they are behind the mutex.
        let slots = unsafe { &*self.slots.load(Relaxed) };
        let change = slots.plan(ids.get(&region.slot), region, self.limit, self.new_log())?;
        if let Change::Nothing = change {
            return Ok(());
        }
        let list = slots.changed(change.old_slot(), change.new_slot())?;
        let node = RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?;
        let (leaving, coming) = match &change {
            Change::Create(new) => (None, Some(new)),
            Change::Delete(old) => (Some(old), None),
            Change::Move(old, new) => (Some(old), Some(new)),
            Change::Nothing | Change::Log(..) => (None, None),
        };
        let coming = coming.map(|slot| HvaNode::new(slot.place())).transpose()?;
        self.replace(list, leaving, coming)?;
        match change.new_slot() {
            Some(new) => drop(ids.insert(node.into_node(region.slot, new.clone()))),
            None => drop(ids.remove(&region.slot)),
        }
        if let Change::Log(_, new) = &change {
            match new.log() {
                Some(_) if self.new_log() == NewLog::Full => {}
                Some(_) => self.begin_log(new),
                // What a snapshot watches stays in small pages.
                None if self.keeping.note_small_pages() => {}
                None => self.end_log(new),
            }
        }
        Ok(())
    }

    /// The same slots as another VM had, in memory that has none yet. Their logs are new. May
    /// sleep.
    pub(crate) fn adopt(&self, slots: &SlotList) -> Result {
        let mut ids = self.change.lock();
        let mut list = slots.changed(None, None)?;
        for slot in slots.iter() {
            let own = slot.with_own_log(self.new_log())?;
            if own.log().is_some() {
                list = list.changed(Some(slot), Some(&own))?;
            }
            let backing = HvaNode::new(own.place())?;
            self.mmu.lock().backings.insert(backing);
            ids.try_create_and_insert(own.id(), own, GFP_KERNEL_ACCOUNT)?;
            linux::cond_resched();
        }
        self.replace(list, None, None)
    }

    /// Makes `list`, to which `coming` may belong, the current snapshot, takes what `leaving` has
    /// mapped out of the tables, and waits for the readers of the old snapshot.
    fn replace(
        &self,
        list: SlotList,
        leaving: Option<&Slot>,
        coming: Option<KBox<HvaNode>>,
    ) -> Result {
        let new = KBox::into_raw(KBox::new(list, GFP_KERNEL_ACCOUNT)?);
        let old = {
            let mut mmu = self.mmu.lock();
            if let Some(backing) = coming {
                mmu.backings.insert(backing);
            }
            let old = self.slots.load(Relaxed);
            // Before that: who sees the new slots sees that no page of theirs need be kept yet.
            self.keeping.begin_generation();
            self.slots.store(new, Release);
            old
        };
        if let Some(slot) = leaving {
            self.keeping.note_move();
            for range in chunks(slot.gpas()) {
                self.unmap(&mut self.mmu.lock(), range);
                linux::cond_resched();
            }
            drop(self.mmu.lock().backings.remove(slot.place()));
        }
        self.readers.synchronize();
        // SAFETY: It was the current snapshot, which came from a box; all its readers are done.
        drop(unsafe { KBox::from_raw(old) });
        Ok(())
    }

    /// Takes a range out of the tables and flushes.
    fn unmap(&self, mmu: &mut Mmu, range: GpaRange) {
        let mut tables = LockedTables::new(None);
        let needed = mmu.npt.unmap(&mut tables, range);
        tables.finish(needed, &*self.flush);
    }

    /// How many pages of 4 KiB, 2 MiB and 1 GiB the guest has. May sleep.
    pub(crate) fn count_pages(&self) -> [u64; 3] {
        let mut sum = [0u64; 3];
        for slot in self.slots().iter() {
            for range in chunks(slot.gpas()) {
                let mmu = self.mmu.lock();
                let counts = mmu.npt.count(&mut LockedTables::new(None), range);
                for (sum, count) in sum.iter_mut().zip(counts) {
                    *sum = sum.wrapping_add(count);
                }
                drop(mmu);
                linux::cond_resched();
            }
        }
        sum
    }

    /// Begins to read the slots.
    #[inline]
    pub(crate) fn slots(&self) -> Slots<'_> {
        let guard = self.readers.read();
        Slots {
            // SAFETY: A snapshot is freed only after those who read it have ended.
            list: unsafe { &*self.slots.load(Acquire) },
            _guard: guard,
        }
    }

    /// Whether `list` is the current snapshot. Stays so while the lock is held.
    pub(crate) fn is_current_list(&self, _mmu: &Mmu, list: &SlotList) -> bool {
        core::ptr::eq(self.slots.load(Relaxed), list)
    }

    /// How many invalidations have ended; to be read before a page is looked up.
    #[inline]
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence.load(Acquire)
    }

    /// The process' address space.
    pub(crate) fn mm(&self) -> *mut bindings::mm_struct {
        self.mm.as_raw()
    }

    /// The vCPUs' TLBs.
    pub(crate) fn flush(&self) -> &dyn Flush {
        &*self.flush
    }
}

/// What the notifier calls.
impl VmMemory {
    /// The memory that a notifier is a part of.
    ///
    /// # Safety
    ///
    /// `notifier` must point to the field of a memory.
    pub(crate) unsafe fn of_notifier(notifier: *const Notifier) -> *const Self {
        // SAFETY: As promised by the caller.
        unsafe { notifier.byte_sub(offset_of!(Self, notifier)).cast() }
    }

    /// The host is going to change what the user addresses from `start` to `end` map to.
    ///
    /// fork(2) takes the right to write from all memory. Its pages stay, so that the guest need not
    /// fault them in again: it asks for the right, page by page, where it writes.
    pub(crate) fn begin_invalidation(&self, start: u64, end: u64, loss: Loss, sleep: Sleep) {
        self.mmu.lock().begin(start, end);
        self.for_each_backed(start, end, sleep, |mmu, tables, range| match loss {
            Loss::Page => mmu.npt.unmap(tables, range),
            Loss::Write => mmu.npt.withdraw(tables, range),
        });
    }

    /// It has done so.
    pub(crate) fn end_invalidation(&self) {
        let mut mmu = self.mmu.lock();
        // First the sequence: who sees no invalidation under way must see that one has ended.
        self.sequence
            .store(self.sequence.load(Relaxed).wrapping_add(1), Release);
        mmu.invalidations = mmu.invalidations.saturating_sub(1);
    }

    /// Whether the guest has used memory behind these user addresses since this was last forgotten.
    pub(crate) fn was_accessed(&self, start: u64, end: u64, forget: bool) -> bool {
        let mut accessed = false;
        self.for_each_backed(start, end, Sleep::Forbidden, |mmu, tables, range| {
            accessed |= match forget {
                true => mmu.npt.clear_accessed(tables, range),
                false => mmu.npt.is_accessed(tables, range),
            };
            npt::Flush::None
        });
        accessed
    }

    /// The process is gone, or the VM: nothing is mapped any more, and nothing will be. May sleep.
    pub(crate) fn release(&self) {
        self.mmu.lock().dead = true;
        self.for_each_backed(0, u64::MAX, Sleep::Allowed, |mmu, tables, range| {
            mmu.npt.unmap(tables, range)
        });
    }

    /// Calls `f` for each range of guest memory that the user addresses from `start` to `end`
    /// back, a chunk at a time. After each chunk what `f` has asked for is flushed, once, and the
    /// lock is released.
    fn for_each_backed<F>(&self, start: u64, end: u64, sleep: Sleep, mut f: F)
    where
        F: FnMut(&Mmu, &mut LockedTables<'_>, GpaRange) -> npt::Flush,
    {
        let mut at = start;
        while at < end {
            let mmu = self.mmu.lock();
            let mut places = mmu.backings.between(at, end).peekable();
            let Some(first) = places.peek() else {
                return;
            };
            let from = at.max(first.hvas().start);
            at = step(&mmu.backings, from, end);
            let mut tables = LockedTables::new(None);
            let mut needed = npt::Flush::None;
            for place in places.take_while(|place| place.hvas().start < at) {
                needed |= f(&mmu, &mut tables, place.gpas_of(from, at));
            }
            tables.finish(needed, &*self.flush);
            drop(mmu);
            if sleep.is_allowed() && at < end {
                linux::cond_resched();
            }
        }
    }
}

/// How far from user address `from` on one hold of the lock goes: a chunk of guest memory, or 2 MiB
/// of the host, which many slots may share. Each step looks at all of these slots, so it is not
/// less, and the host asks for the age of as much at once, under a lock of its own.
fn step(backings: &HvaTree, from: u64, end: u64) -> u64 {
    let to = from.saturating_add(CHUNK).min(end);
    let least = PageSize::Size2M.bytes();
    if to - from <= least {
        return to;
    }
    let bytes = |place: Place| {
        let gpas = place.gpas_of(from, to);
        gpas.end.saturating_sub(gpas.start)
    };
    let all: u64 = backings.between(from, to).map(bytes).sum();
    let length = (to - from) / all.div_ceil(CHUNK).max(1);
    from + (length & !(least - 1)).max(least)
}

#[pinned_drop]
impl PinnedDrop for VmMemory {
    fn drop(self: Pin<&mut Self>) {
        if self.registered.load(Relaxed) {
            // SAFETY: `new` registered it, and `mm` is still referenced.
            unsafe { self.notifier.unregister(self.mm.as_raw()) };
        }
        // SAFETY: The snapshot came from a box, and has no readers any more.
        let slots = unsafe { KBox::from_raw(self.slots.load(Relaxed)) };
        let ranges = slots.iter().flat_map(|slot| chunks(slot.gpas()));
        let npt = self.mmu.lock().npt;
        let mut tables = LockedTables::new(None);
        for range in ranges {
            // No vCPU is left that could hold a translation: it would hold a reference to us.
            let _ = npt.unmap(&mut tables, range);
            linux::cond_resched();
        }
        let _ = npt.destroy(&mut tables);
        // SAFETY: Likewise, and an ASID is flushed before another VM gets it.
        unsafe { tables.give_back() };
    }
}

impl Mmu {
    fn new(npt: Npt) -> Self {
        Self {
            npt,
            invalidations: 0,
            invalid: (0, 0),
            backings: HvaTree::new(),
            dead: false,
        }
    }

    /// An invalidation of these user addresses begins.
    fn begin(&mut self, start: u64, end: u64) {
        self.invalid = match self.invalidations {
            0 => (start, end),
            // One range for all is enough: two at a time are rare, and a fault only waits.
            _ => (self.invalid.0.min(start), self.invalid.1.max(end)),
        };
        self.invalidations = self.invalidations.saturating_add(1);
    }

    /// Whether pages at user addresses from `start` to `end`, looked up after `sequence` was read,
    /// may not be mapped.
    pub(crate) fn forbids(&self, memory: &VmMemory, sequence: u64, start: u64, end: u64) -> bool {
        let under_way = self.invalidations > 0 && start < self.invalid.1 && self.invalid.0 < end;
        self.dead || under_way || memory.sequence.load(Relaxed) != sequence
    }
}

/// A snapshot of the slots, for as long as it is read.
pub(crate) struct Slots<'a> {
    list: &'a SlotList,
    _guard: SrcuGuard<'a>,
}

impl core::ops::Deref for Slots<'_> {
    type Target = SlotList;

    fn deref(&self) -> &SlotList {
        self.list
    }
}

/// Cuts a range into pieces, at multiples of their size.
pub(crate) fn chunks(range: GpaRange) -> impl Iterator<Item = GpaRange> {
    let starts = (range.start & !(CHUNK - 1)..range.end).step_by(CHUNK as usize);
    starts.map(move |start| GpaRange {
        start: start.max(range.start),
        end: start.saturating_add(CHUNK).min(range.end),
    })
}
