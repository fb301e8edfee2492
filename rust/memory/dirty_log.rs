// SPDX-License-Identifier: GPL-2.0-only

//! The dirty log of a slot: one bit for each page that was written.
//!
//! ```text
//!   clean, not writable ──write: fault, sets the bit──► dirty, writable
//!            ▲                                              │
//!            └── KVM_CLEAR_DIRTY_LOG, or KVM_GET_DIRTY_LOG ─┘
//! ```
//!
//! So a log costs a fault for each page that is written, and its reading costs what is dirty, not
//! what the slot is large. A page's bit is set, and cleared, together with its right to write,
//! under the memory's lock. Writes of the emulator set it too, after the write.
//!
//! With a dirty ring ([`crate::memory::dirty_ring`]) there are no bitmaps.

use crate::linux;
use crate::linux::mm::{read_user, write_user_from};
use crate::linux::Sleep;
use crate::memory::dirty_ring::DirtyRing;
use crate::memory::npt_pages::{LockedTables, TableCache};
use crate::memory::slots::{Slot, SLOT_LIMIT};
use crate::memory::{chunks, Mmu, VmMemory};
use core::mem::size_of;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use kernel::prelude::*;
use kernel::sync::Arc;
use npt::{Flush, GpaRange, PageSize};

/// Pages that a word of the bitmap stands for.
const WORD_PAGES: u64 = 64;
/// Bytes of guest memory that it stands for.
const WORD_SPAN: u64 = WORD_PAGES * PageSize::Size4K.bytes();
/// How many words are worked on at once.
const BATCH: usize = 64;

/// `KVM_DIRTY_LOG_INITIALLY_SET`; it needs `KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE`.
const FLAG_INITIALLY_SET: u64 = 1 << 1;
/// Both of these flags.
pub(crate) const MANUAL_LOG_FLAGS: u64 = 3;

/// How a new log begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum NewLog {
    /// All pages are clean.
    Clean,
    /// All are dirty, and stay writable until the VMM clears them.
    Full,
    /// There is no bitmap: the log is in the rings.
    Ring,
}

/// A bitmap that any CPU may set bits in, at any time.
pub(crate) struct DirtyLog {
    /// The atomics are `core`'s, which are an instruction where the kernel's are a call.
    words: KVVec<AtomicU64>,
}

impl DirtyLog {
    /// A log of so many pages.
    pub(crate) fn new(pages: u64, kind: NewLog) -> Result<Arc<Self>> {
        let count = match kind {
            NewLog::Ring => 0,
            _ => usize::try_from(pages.div_ceil(WORD_PAGES))?,
        };
        let mut words = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
        for word in 0..count as u64 {
            let rest = pages.saturating_sub(word * WORD_PAGES);
            let bits = match kind {
                NewLog::Full if rest < WORD_PAGES => (1 << rest) - 1,
                NewLog::Full => u64::MAX,
                _ => 0,
            };
            words.push(AtomicU64::new(bits), GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Arc::new(Self { words }, GFP_KERNEL_ACCOUNT)?)
    }

    /// A page was written. A locked access even if the bit is set: who takes the bit after it sees
    /// what was written before it.
    #[inline]
    pub(crate) fn mark(&self, page: u64) {
        if let Some(word) = self.words.get((page / WORD_PAGES) as usize) {
            word.fetch_or(1 << (page % WORD_PAGES), SeqCst);
        }
    }

    /// Writes all words to a user address. May sleep.
    fn write_to(&self, bitmap: u64) -> Result {
        let words: &[AtomicU64] = &self.words;
        // SAFETY: The words may change while they are read; each is read as it is then.
        unsafe { write_user_from(bitmap, words.as_ptr().cast(), size_of_val(words)) }
    }

    /// Takes those of `bits` out that are set, and returns them.
    fn take(&self, word: usize, bits: u64) -> u64 {
        let word = self.words.get(word);
        word.map_or(0, |word| word.fetch_and(!bits, SeqCst) & bits)
    }
}

/// What `KVM_CLEAR_DIRTY_LOG` asks for.
pub(crate) struct Clear {
    /// `slot`: its id.
    pub(crate) slot: u32,
    /// `first_page`: what bit 0 of the bitmap stands for.
    pub(crate) first: u64,
    /// `num_pages`: how many bits there are.
    pub(crate) pages: u32,
    /// `dirty_bitmap`.
    pub(crate) bitmap: u64,
}

impl VmMemory {
    /// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`, with its flags: who clears logs, and how they begin.
    pub(crate) fn set_manual_log(&self, flags: u64) -> Result {
        let _change = self.change.lock();
        if flags & !MANUAL_LOG_FLAGS != 0 || flags == FLAG_INITIALLY_SET {
            return Err(EINVAL);
        }
        self.manual_log.store(flags as u32, Relaxed);
        Ok(())
    }

    /// These flags.
    pub(crate) fn log_flags(&self) -> u64 {
        self.manual_log.load(Relaxed).into()
    }

    /// Whether the VMM clears the dirty logs itself.
    pub(crate) fn log_is_manual(&self) -> bool {
        self.log_flags() != 0
    }

    /// How logs begin.
    pub(crate) fn new_log(&self) -> NewLog {
        match self.ring_size() {
            0 if self.log_flags() & FLAG_INITIALLY_SET != 0 => NewLog::Full,
            0 => NewLog::Clean,
            _ => NewLog::Ring,
        }
    }

    /// `KVM_GET_DIRTY_LOG`: writes the log of slot `id` to the user address `bitmap`. `EINVAL` if
    /// there can be no such slot, `ENOENT` if it keeps no log, `ENXIO` if the log is in rings. May
    /// sleep.
    ///
    /// What was written out is cleared then, unless the VMM does that itself. So nothing is lost if
    /// the bitmap has no room.
    pub(crate) fn dirty_log(&self, id: u32, bitmap: u64) -> Result {
        let ids = self.change.lock();
        let (slot, log) = self.logged(ids.get(&id), id)?;
        let is_dirty = |word: &AtomicU64| word.load(Relaxed) != 0;
        let first = log.words.iter().position(is_dirty);
        let last = log.words.iter().rposition(is_dirty);
        // A bit that is set only now, and is written out, stays set: then it comes twice.
        log.write_to(bitmap)?;
        let dirty = match (first, last) {
            (Some(first), Some(last)) => first..last + 1,
            _ => 0..0,
        };
        if self.log_is_manual() || dirty.is_empty() {
            return Ok(());
        }
        let bitmap = after(bitmap, dirty.start);
        self.clear(slot, log, dirty, bitmap)
    }

    /// `KVM_CLEAR_DIRTY_LOG`: the pages that the bitmap names are clean, and their next writes are
    /// logged. Errors as above; `EINVAL` for pages that the slot does not have, or that do not
    /// begin or end with a word of the log. May sleep.
    pub(crate) fn clear_dirty_log(&self, what: &Clear) -> Result {
        let ids = self.change.lock();
        if what.first % WORD_PAGES != 0 && self.ring_size() == 0 {
            return Err(EINVAL);
        }
        let (slot, log) = self.logged(ids.get(&what.slot), what.slot)?;
        let pages = u64::from(what.pages);
        let rest = slot.pages().checked_sub(what.first).ok_or(EINVAL)?;
        if pages > rest || (pages < rest && pages % WORD_PAGES != 0) {
            return Err(EINVAL);
        }
        let first = (what.first / WORD_PAGES) as usize;
        let words = first..first + pages.div_ceil(WORD_PAGES) as usize;
        self.clear(slot, log, words, what.bitmap)
    }

    /// A slot that keeps a bitmap.
    fn logged<'a>(&self, slot: Option<&'a Slot>, id: u32) -> Result<(&'a Slot, &'a DirtyLog)> {
        if self.ring_size() != 0 {
            return Err(ENXIO);
        }
        if id >= SLOT_LIMIT {
            return Err(EINVAL);
        }
        let slot = slot.ok_or(ENOENT)?;
        Ok((slot, slot.log().ok_or(ENOENT)?))
    }

    /// Cleans the pages that the user's bitmap names, which begins with the first of `words`.
    fn clear(
        &self,
        slot: &Slot,
        log: &DirtyLog,
        words: core::ops::Range<usize>,
        bitmap: u64,
    ) -> Result {
        let mut cache = TableCache::new();
        let mut flush = Flush::None;
        let mut result = Ok(());
        for first in words.clone().step_by(BATCH) {
            let mut named = [0; BATCH];
            let named = &mut named[..(words.end - first).min(BATCH)];
            let from = after(bitmap, first - words.start);
            result = read_user(bytes_mut(named), from, Sleep::Allowed);
            if result.is_err() {
                break;
            }
            if named.iter().all(|&word| word == 0) {
                continue;
            }
            let at = slot.gpas().start + first as u64 * WORD_SPAN;
            let end = (at + BATCH as u64 * WORD_SPAN).min(slot.gpas().end);
            flush |= self.split(&mut cache, GpaRange { start: at, end });
            let mmu = self.mmu.lock();
            let mut tables = LockedTables::new(None);
            let named = named.iter().enumerate();
            for (offset, &bits) in named.filter(|(_, &bits)| bits != 0) {
                let bits = log.take(first + offset, bits);
                let at = at + offset as u64 * WORD_SPAN;
                flush |= mmu.npt.protect_pages(&mut tables, at, bits);
            }
            drop(mmu);
            linux::cond_resched();
        }
        self.flush_if(flush);
        result
    }

    /// The log of a slot begins: the next write to each page is to be heard of.
    pub(crate) fn begin_log(&self, slot: &Slot) {
        let mut cache = TableCache::new();
        let mut flush = Flush::None;
        for range in chunks(slot.gpas()) {
            let mmu = self.mmu.lock();
            flush |= mmu.npt.protect(&mut LockedTables::new(None), range);
            drop(mmu);
            flush |= self.split(&mut cache, range);
        }
        self.flush_if(flush);
    }

    /// The log of a slot has ended: small pages may become large ones again.
    pub(crate) fn end_log(&self, slot: &Slot) {
        let gpas = slot.gpas();
        for range in chunks(gpas) {
            self.merge(&|mmu, tables| mmu.npt.merge_range(tables, range));
        }
        let size = PageSize::Size1G;
        let first = gpas.start.next_multiple_of(size.bytes());
        for gpa in (first..gpas.end).step_by(size.bytes() as usize) {
            if gpas.end - gpa >= size.bytes() {
                self.merge_page(gpa, size);
            }
        }
    }

    /// Merges the small pages at `gpa` to one of `size`, if that can be.
    pub(crate) fn merge_page(&self, gpa: u64, size: PageSize) {
        self.merge(&|mmu, tables| mmu.npt.merge(tables, gpa, size));
    }

    fn merge(&self, merge: &dyn Fn(&Mmu, &mut LockedTables<'_>) -> Flush) {
        let mmu = self.mmu.lock();
        let mut tables = LockedTables::new(None);
        let flush = merge(&mmu, &mut tables);
        tables.finish(flush, self.flush());
        drop(mmu);
        linux::cond_resched();
    }

    /// Splits all large pages in a range, so that a guest that writes them need not wait for it.
    /// What cannot be had now is split when it is written.
    fn split(&self, cache: &mut TableCache, range: GpaRange) -> Flush {
        let mut flush = Flush::None;
        loop {
            let mmu = self.mmu.lock();
            let mut tables = LockedTables::new(Some(&mut *cache));
            let result = mmu.npt.split_range(&mut tables, range, &mut flush);
            drop(mmu);
            linux::cond_resched();
            if result.is_ok() || cache.fill().is_err() {
                return flush;
            }
        }
    }

    /// Flushes what operations on the tables left to be flushed, if it only withholds rights.
    pub(crate) fn flush_if(&self, flush: Flush) {
        if flush.is_needed() {
            self.flush().flush_all();
        }
    }
}

impl Slot {
    /// A page was written for the guest, by a vCPU with this ring, if there are rings.
    #[inline]
    pub(crate) fn wrote(&self, gpa: u64, ring: Option<&DirtyRing>) {
        if let Some(log) = self.log() {
            let page = gpa.wrapping_sub(self.gpas().start) >> 12;
            match ring {
                Some(ring) => ring.push(self.id(), page),
                None => log.mark(page),
            }
        }
    }
}

/// The user address so many words after `address`.
fn after(address: u64, words: usize) -> u64 {
    address.wrapping_add((words * size_of::<u64>()) as u64)
}

/// Words as the VMM sees them.
fn bytes_mut(words: &mut [u64]) -> &mut [u8] {
    // SAFETY: Integers are bytes, and any bytes are integers.
    unsafe { core::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}
