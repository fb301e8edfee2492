// SPDX-License-Identifier: GPL-2.0-only

//! The memory of snapshots: what pages held before they changed.
//!
//! ```text
//!   snapshot: no page is writable for the guest
//!     first write of the guest: fault ─┐
//!     write of the emulator ───────────┼─► the old content is kept ─► the page may be written
//!     the VMM announces a write ───────┘
//!   reset: the old contents of what was written are copied back; the pages stay writable
//! ```
//!
//! A page that the guest writes round after round makes no fault: its dirty bit tells of the
//! writes. What is not written for some rounds is withheld again, and costs nothing then; its
//! content stays. So a reset costs what was written lately, whatever came before. When the limit is
//! reached the guest stops; a reset then begins anew: it puts back, forgets, and takes the right to
//! write away.
//!
//! Snapshots are a stack. The uppermost one keeps; each of the others has what was kept until the
//! next was taken. Before a reset to one of them, and when one is closed, the one below it takes
//! over what it has kept.
//!
//! The bytes are those of the process, read and written at its addresses, as everything that is not
//! the guest does.
//!
//! Slots may come and go meanwhile. What is kept is kept for a place: a guest-physical address and
//! the user address behind it. A reset leaves alone what is not at its place then: that memory is
//! the VMM's.
//!
//! # What always holds
//!
//! While a snapshot exists, a page is writable in the nested tables only if the uppermost snapshot
//! keeps it, and has it among those that are active. Both are so since all vCPUs were stopped: no
//! fault and no write was under way when it began.

use crate::linux;
use crate::linux::mm::PageContent;
use crate::memory::kept_layer::{Layer, Look, Touch, Writer, BATCH};
use crate::memory::npt_pages::LockedTables;
use crate::memory::slots::{Slot, SlotList};
use crate::memory::{chunks, VmMemory};
use core::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use kernel::prelude::*;
use kernel::sync::Mutex;
use npt::{Flush, GpaRange, Near, PageSize};

/// Most snapshots on top of each other. Each page that is kept makes room in all of them.
const DEEPEST: usize = 64;

/// The snapshots, from the outermost to the uppermost.
struct Kept {
    layers: KVec<Layer>,
    /// How many there ever were.
    last_id: u64,
}

/// The old contents of a VM's memory, if there are snapshots.
#[pin_data]
pub(crate) struct Keeping {
    /// Whether there is a snapshot. Set while all vCPUs are stopped; cleared under the lock.
    on: AtomicBool,
    /// Most pages of the uppermost one; written under the lock.
    limit: AtomicU64,
    /// How many it has; written under the lock.
    count: AtomicU64,
    /// See [`Keeping::generation`].
    generation: AtomicU64,
    /// How often a slot has left.
    moves: AtomicU64,
    #[pin]
    kept: Mutex<Kept>,
}

impl Kept {
    fn place(&self, id: u64) -> Result<usize> {
        let place = self.layers.iter().position(|layer| layer.id == id);
        place.ok_or(ENXIO)
    }

    /// Makes room for one more page: in the uppermost snapshot, and in all below it for what those
    /// above them keep.
    fn reserve(&mut self) -> Result {
        let mut above = 1;
        for layer in self.layers.iter_mut().rev() {
            layer.reserve(above)?;
            above = above.saturating_add(layer.count() as usize);
        }
        Ok(())
    }

    /// Takes a snapshot out. What it keeps goes to the one below it; it is the answer if there is
    /// none. The large pages that it has split remain so as long as there is another.
    fn remove(&mut self, place: usize) -> Option<Layer> {
        let layer = self.layers.remove(place).ok()?;
        match place
            .checked_sub(1)
            .and_then(|below| self.layers.get_mut(below))
        {
            Some(below) => {
                below.absorb(layer);
                None
            }
            None => {
                if let Some(next) = self.layers.first_mut() {
                    next.has_forgotten = true;
                }
                Some(layer)
            }
        }
    }
}

impl Keeping {
    /// Creates the state of a VM without a snapshot.
    pub(crate) fn new() -> impl PinInit<Self> {
        let kept = Kept {
            layers: KVec::new(),
            last_id: 0,
        };
        pin_init!(Self {
            on: AtomicBool::new(false),
            limit: AtomicU64::new(0),
            count: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            moves: AtomicU64::new(0),
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

    /// A number that changes with each snapshot and each reset, while all vCPUs are stopped, and
    /// with each change of slots, before they are the current ones. What was written in one
    /// generation is kept, and counts as changed, until the next.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// From now on it is another one.
    pub(crate) fn begin_generation(&self) {
        self.generation.fetch_add(1, Relaxed);
    }

    /// A slot has left: no reader that begins now finds it.
    pub(crate) fn note_move(&self) {
        self.moves.fetch_add(1, Release);
    }

    /// There are small pages that could be large ones without a snapshot. False if there is none.
    pub(crate) fn note_small_pages(&self) -> bool {
        match self.kept.lock().layers.last_mut() {
            Some(layer) => {
                layer.has_forgotten = true;
                true
            }
            None => false,
        }
    }

    /// How many bytes a snapshot keeps; `ENXIO` if it is none any more.
    pub(crate) fn bytes(&self, id: u64) -> Result<u64> {
        let kept = self.kept.lock();
        let layer = kept.layers.get(kept.place(id)?).ok_or(ENXIO)?;
        Ok(layer.count() << 12)
    }

    /// Sets how many bytes it may; errors likewise.
    pub(crate) fn set_limit(&self, id: u64, bytes: u64) -> Result {
        let mut kept = self.kept.lock();
        let place = kept.place(id)?;
        kept.layers.get_mut(place).ok_or(ENXIO)?.limit = bytes >> 12;
        self.show(&kept);
        Ok(())
    }

    /// Lets others see how much the uppermost one has.
    fn show(&self, kept: &Kept) {
        if let Some(layer) = kept.layers.last() {
            self.count.store(layer.count(), Relaxed);
            self.limit.store(layer.limit, Relaxed);
        }
    }
}

impl VmMemory {
    /// Keeps the page at `gpa`, which the process has at `hva`, unless it is kept. `ENOSPC` at the
    /// limit, `EFAULT` if the process has no memory there, `EAGAIN` if it is not at this place any
    /// more. May sleep. The slots are being read.
    ///
    /// The content is read without the lock. The second of two callers drops what it has read: the
    /// page may have been written since.
    pub(crate) fn keep(&self, gpa: u64, hva: u64, writer: Writer) -> Result {
        let keeping = &self.keeping;
        if self.touch(&mut keeping.kept.lock(), gpa, hva, writer)? {
            return Ok(());
        }
        let content = PageContent::new(hva)?;
        let kept = &mut *keeping.kept.lock();
        if self.touch(kept, gpa, hva, writer)? {
            return Ok(());
        }
        kept.reserve()?;
        if let Some(layer) = kept.layers.last_mut() {
            layer.add(gpa, hva, content, writer)?;
        }
        keeping.show(kept);
        Ok(())
    }

    /// False if the page is to be kept, which may then be. If another one is kept at `gpa`, one of
    /// both is of slots that are not current any more: the caller may have read them before.
    fn touch(&self, kept: &mut Kept, gpa: u64, hva: u64, writer: Writer) -> Result<bool> {
        let Some(layer) = kept.layers.last_mut() else {
            return Ok(true);
        };
        match layer.touch(gpa, hva, writer) {
            Touch::Kept => return Ok(true),
            Touch::Elsewhere if slot_at(&self.slots(), &mut 0, gpa, hva).is_none() => {
                return Err(EAGAIN);
            }
            Touch::Elsewhere => layer.detach(gpa),
            Touch::Unknown => {}
        }
        match layer.is_full() && writer != Writer::Emulator {
            true => Err(ENOSPC),
            false => Ok(false),
        }
    }

    /// A snapshot begins, which may keep so many bytes: no page is writable for the guest. All
    /// vCPUs are stopped, and there are no dirty rings. Answers its number; `E2BIG` if it would be
    /// one more than 64. May sleep.
    pub(crate) fn begin_keeping(&self, limit: u64) -> Result<u64> {
        let _change = self.change.lock();
        let moves = self.keeping.moves.load(Relaxed);
        let slots = self.slots();
        let kept = &mut *self.keeping.kept.lock();
        if kept.layers.len() >= DEEPEST {
            return Err(E2BIG);
        }
        kept.layers.reserve(1, GFP_KERNEL_ACCOUNT)?;
        let mut flush = Flush::None;
        if let Some(below) = kept.layers.last_mut() {
            // Nothing else is writable.
            flush |= self.look(below, true);
            below.pause();
        } else {
            self.keeping.on.store(true, Relaxed);
            for range in slots.iter().flat_map(|slot| chunks(slot.gpas())) {
                flush |= self.protect(range);
                linux::cond_resched();
            }
        }
        self.flush_if(flush);
        let id = kept.last_id.wrapping_add(1);
        kept.last_id = id;
        let _ = kept
            .layers
            .push_within_capacity(Layer::new(id, limit >> 12, moves));
        self.keeping.show(kept);
        self.keeping.begin_generation();
        Ok(id)
    }

    /// A snapshot ends, unless it has. vCPUs may run. May sleep.
    pub(crate) fn end_keeping(&self, id: u64) {
        let (left, is_last) = {
            let kept = &mut *self.keeping.kept.lock();
            let Ok(place) = kept.place(id) else {
                return;
            };
            let left = kept.remove(place);
            let is_last = kept.layers.is_empty();
            if is_last {
                self.keeping.on.store(false, Relaxed);
            }
            self.keeping.show(kept);
            (left, is_last)
        };
        let Some(left) = left else {
            return;
        };
        if is_last {
            self.merge_kept(&left);
        }
        left.forget();
    }

    /// Puts back what has changed since a snapshot was taken, or since the last reset to it, and
    /// answers how many pages that is. Those on top of it are none any more. All vCPUs are stopped.
    /// `ENXIO` if it is none itself; `EFAULT` if the process has no memory at one of the addresses
    /// any more: then it can be done again. May sleep.
    pub(crate) fn put_back(&self, id: u64) -> Result<u64> {
        // First the number: of what leaves between the two the next reset hears.
        let moves = self.keeping.moves.load(Acquire);
        let slots = self.slots();
        let mut kept = self.keeping.kept.lock();
        let place = kept.place(id)?;
        while kept.layers.len() > place + 1 {
            let last = kept.layers.len() - 1;
            // There is one below it.
            let _ = kept.remove(last);
        }
        self.keeping.show(&kept);
        let layer = kept.layers.last_mut().ok_or(ENXIO)?;
        self.keeping.begin_generation();
        let flush = self.look(layer, false);
        self.flush_if(flush);
        let (mut hint, mut count) = (0, 0);
        for old in layer.changed() {
            let Some(slot) = slot_at(&slots, &mut hint, old.gpa, old.hva) else {
                continue;
            };
            old.content.write(old.hva)?;
            slot.wrote(old.gpa, None);
            count += 1;
            if count % BATCH as u64 == 0 {
                linux::cond_resched();
            }
        }
        layer.settle(
            &mut |old| match slot_at(&slots, &mut hint, old.gpa, old.hva) {
                Some(_) => old.content.read(old.hva),
                None => Ok(()),
            },
        )?;
        if layer.moves != moves {
            layer.forget_moved(&mut |gpa, hva| slot_at(&slots, &mut hint, gpa, hva).is_some())?;
            layer.moves = moves;
        }
        layer.begin_round();
        let full = layer.is_full().then(|| self.begin_anew(layer));
        self.keeping.show(&kept);
        drop(kept);
        if let Some(old) = full {
            old.forget();
        }
        Ok(count)
    }

    /// Asks the nested tables which of the active pages the guest has written. With `withhold` it
    /// cannot write any of them afterwards.
    fn look(&self, layer: &mut Layer, withhold: bool) -> Flush {
        let mut flush = Flush::None;
        layer.look(&mut |looks: &mut [Look]| {
            let mmu = self.mmu.lock();
            let mut tables = LockedTables::new(None);
            let mut near = Near::NOTHING;
            for look in looks.iter_mut().filter(|look| look.is_asked()) {
                let take = look.withhold || withhold;
                let (written, needed) =
                    mmu.npt.take_written(&mut tables, look.gpa, take, &mut near);
                (look.written, look.withhold) = (written, take);
                flush |= needed;
            }
            drop(mmu);
            linux::cond_resched();
        });
        if withhold {
            for gpa in layer.writable() {
                flush |= self.protect(GpaRange::page(gpa, PageSize::Size4K));
            }
        }
        flush
    }

    /// Takes out what is kept; the next writes to these pages are to be heard of.
    fn begin_anew(&self, layer: &mut Layer) -> Layer {
        let mut flush = Flush::None;
        for (index, gpa) in layer.writable().enumerate() {
            flush |= self.protect(GpaRange::page(gpa, PageSize::Size4K));
            if index % BATCH == BATCH - 1 {
                linux::cond_resched();
            }
        }
        self.flush_if(flush);
        layer.take()
    }

    /// Takes the right to write away.
    fn protect(&self, range: GpaRange) -> Flush {
        let mmu = self.mmu.lock();
        mmu.npt.protect(&mut LockedTables::new(None), range)
    }

    /// No snapshot wants small pages any more: what was kept may be in large ones again.
    fn merge_kept(&self, layer: &Layer) {
        let _change = self.change.lock();
        let slots = self.slots();
        if layer.has_forgotten {
            for slot in slots.iter().filter(|slot| slot.log().is_none()) {
                self.end_log(slot);
            }
            return;
        }
        for size in [PageSize::Size2M, PageSize::Size1G] {
            let (mut hint, mut last) = (0, None);
            for gpa in layer.addresses() {
                let start = gpa & !size.offset_mask();
                if last.replace(start) == Some(start) {
                    continue;
                }
                let slot = slots.find(start, &mut hint);
                let whole =
                    |slot: &&Slot| slot.log().is_none() && slot.bytes_from(start) >= size.bytes();
                if slot.filter(whole).is_some() {
                    self.merge_page(start, size);
                }
            }
        }
    }

    /// Keeps what is about to be written by the emulator: bytes that begin at `gpa`, in `slot`.
    pub(crate) fn keep_for_emulator(&self, slot: &Slot, gpa: u64, bytes: usize) -> Result {
        let last = gpa.saturating_add((bytes as u64).saturating_sub(1));
        for gpa in [gpa, last] {
            let page = gpa & !PageSize::Size4K.offset_mask();
            match self.keep(page, slot.hva(page), Writer::Emulator) {
                // The slot goes: this is its last write.
                Err(error) if error == EAGAIN => {}
                kept => kept?,
            }
        }
        Ok(())
    }

    /// The VMM is about to write `range`, whole pages: keeps them, and takes them off the range as
    /// it goes. `ENOENT` where there is no slot, `EINTR` if a signal came.
    pub(crate) fn keep_for_vmm(&self, range: &mut GpaRange, writer: Writer) -> Result {
        let mut hint = 0;
        while range.start < range.end {
            if linux::work_pending() {
                if linux::signal_pending() {
                    return Err(EINTR);
                }
                linux::handle_work()?;
            }
            let slots = self.slots();
            let slot = slots.find(range.start, &mut hint).ok_or(ENOENT)?;
            match self.keep(range.start, slot.hva(range.start), writer) {
                // Slots have changed meanwhile.
                Err(error) if error == EAGAIN => continue,
                kept => kept?,
            }
            range.start = range.start.saturating_add(PageSize::Size4K.bytes());
        }
        Ok(())
    }
}

/// The slot of `gpa`, if the page there is the one that the process has at `hva`.
fn slot_at<'a>(slots: &'a SlotList, hint: &mut usize, gpa: u64, hva: u64) -> Option<&'a Slot> {
    let slot = slots.find(gpa, hint);
    slot.filter(|slot| slot.hva(gpa) == hva)
}
