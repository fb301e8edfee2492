// SPDX-License-Identifier: GPL-2.0-only

//! Memory slots: which guest-physical ranges there are, and what backs them.
//!
//! A [`SlotList`] never changes. A new one takes its place when user space changes a slot, see
//! `memory/mod.rs`. It is sorted by guest-physical address, where slots never overlap, for the
//! faults. The notifier comes with user addresses, see `hva_tree.rs`.

use crate::linux::mm::access_ok;
use crate::memory::dirty_log::{DirtyLog, NewLog};
use core::ops::{Deref, Range};
use core::slice::from_ref;
use kernel::prelude::*;
use kernel::sync::Arc;
use npt::{GpaRange, PageSize};

/// Slot ids are below this: what `KVM_CAP_NR_MEMSLOTS` answers.
pub(crate) const SLOT_LIMIT: u32 = 32764;

/// The most pages in a slot.
const MOST_PAGES: u64 = (1 << 31) - 1;
/// `KVM_MEM_LOG_DIRTY_PAGES`.
const FLAG_LOG_DIRTY: u32 = 1 << 0;
/// `KVM_MEM_READONLY`.
const FLAG_READ_ONLY: u32 = 1 << 1;

/// What `KVM_SET_USER_MEMORY_REGION` asks for.
#[derive(Clone, Copy)]
pub(crate) struct Region {
    /// `slot`: the id, with the address space in the upper 16 bits.
    pub(crate) slot: u32,
    /// `flags`: `KVM_MEM_*`.
    pub(crate) flags: u32,
    /// `guest_phys_addr`.
    pub(crate) gpa: u64,
    /// `memory_size`, in bytes; 0 deletes the slot.
    pub(crate) size: u64,
    /// `userspace_addr`.
    pub(crate) hva: u64,
}

/// A range of guest-physical memory and the range of user memory that backs it.
///
/// # Invariants
///
/// All three numbers are multiples of 4 KiB, `bytes` is not 0, and neither range wraps around.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    gpa: u64,
    bytes: u64,
    hva: u64,
}

/// A slot: where it is, and its flags.
#[derive(Clone)]
pub(crate) struct Slot {
    place: Place,
    id: u32,
    read_only: bool,
    log: Option<Arc<DirtyLog>>,
}

impl Place {
    /// The guest-physical range.
    pub(crate) fn gpas(&self) -> GpaRange {
        GpaRange {
            start: self.gpa,
            end: self.gpa.wrapping_add(self.bytes),
        }
    }

    /// Whether it backs `gpa`.
    #[inline]
    pub(crate) fn contains(&self, gpa: u64) -> bool {
        gpa.wrapping_sub(self.gpa) < self.bytes
    }

    /// The user address that backs `gpa`, which is in it.
    #[inline]
    pub(crate) fn hva(&self, gpa: u64) -> u64 {
        gpa.wrapping_sub(self.gpa).wrapping_add(self.hva)
    }

    /// How many pages it has.
    #[inline]
    pub(crate) fn pages(&self) -> u64 {
        self.bytes >> 12
    }

    /// Bytes from `gpa`, which is in it, to its end.
    #[inline]
    pub(crate) fn bytes_from(&self, gpa: u64) -> u64 {
        self.bytes.saturating_sub(gpa.wrapping_sub(self.gpa))
    }

    /// Whether a page of `size` around `gpa` lies in it, at an address of the process that is
    /// aligned to its size, too.
    #[inline]
    pub(crate) fn fits(&self, gpa: u64, size: PageSize) -> bool {
        let start = gpa & !size.offset_mask();
        self.contains(start)
            && self.bytes_from(start) >= size.bytes()
            && self.hva(start) & size.offset_mask() == 0
    }

    /// The guest-physical range that the user addresses from `start` to `end` back.
    pub(crate) fn gpas_of(&self, start: u64, end: u64) -> GpaRange {
        let from = start.saturating_sub(self.hva).min(self.bytes);
        let to = end.saturating_sub(self.hva).min(self.bytes);
        GpaRange {
            start: self.gpa.wrapping_add(from),
            end: self.gpa.wrapping_add(to),
        }
    }

    /// The user addresses that back it.
    pub(crate) fn hvas(&self) -> Range<u64> {
        self.hva..self.hva.wrapping_add(self.bytes)
    }

    fn overlaps(&self, other: &Place) -> bool {
        self.contains(other.gpa) || other.contains(self.gpa)
    }
}

impl Slot {
    /// Where it is.
    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// Its number.
    #[inline]
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Whether writes go to user space.
    pub(crate) fn read_only(&self) -> bool {
        self.read_only
    }

    /// The same for another VM: with a log of its own, if it keeps one.
    pub(crate) fn with_own_log(&self, kind: NewLog) -> Result<Self> {
        let mut slot = self.clone();
        if slot.log.is_some() {
            slot.log = Some(DirtyLog::new(slot.pages(), kind)?);
        }
        Ok(slot)
    }

    /// The dirty log, if the slot keeps one.
    pub(crate) fn log(&self) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref()
    }
}

impl Deref for Slot {
    type Target = Place;

    #[inline]
    fn deref(&self) -> &Place {
        &self.place
    }
}

/// What a request comes to.
pub(crate) enum Change {
    /// Everything is so already.
    Nothing,
    /// A new slot.
    Create(Slot),
    /// The slot goes.
    Delete(Slot),
    /// The slot (first) goes elsewhere in guest-physical memory (second).
    Move(Slot, Slot),
    /// Only the log begins or ends.
    Log(Slot, Slot),
}

/// Some slots that follow each other.
///
/// # Invariants
///
/// There is at least one and at most [`Chunk::ROOM`], sorted by guest-physical address, and they do
/// not overlap.
struct Chunk {
    slots: KVec<Slot>,
}

/// A chunk, and what a search needs to know of it.
#[derive(Clone)]
struct Entry {
    /// Where its first slot begins.
    gpa: u64,
    chunk: Arc<Chunk>,
}

/// All slots of a VM at one time.
///
/// Lists share the chunks in which they do not differ, so that a change costs little even if there
/// are tens of thousands of slots.
///
/// # Invariants
///
/// The chunks are sorted by guest-physical address and do not overlap.
pub(crate) struct SlotList {
    chunks: KVVec<Entry>,
}

impl Chunk {
    /// Most slots in a chunk.
    const ROOM: usize = 128;
}

impl Entry {
    /// An entry for these slots, one after the other, of which there is one at least.
    fn new(parts: &[&[Slot]]) -> Result<Self> {
        let counts = parts.iter().map(|part| part.len());
        let count = counts.fold(0usize, usize::wrapping_add);
        let mut slots = KVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
        for part in parts {
            slots.extend_from_slice(part, GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Self {
            gpa: slots.first().ok_or(EINVAL)?.gpa,
            // INVARIANT: The callers keep order and size.
            chunk: Arc::new(Chunk { slots }, GFP_KERNEL_ACCOUNT)?,
        })
    }

    fn slots(&self) -> &[Slot] {
        &self.chunk.slots
    }
}

/// How many items at the start of a sorted slice fulfil a condition, by bisection. That of `core`
/// could panic, as far as the compiler can tell, and this is on the path of every exit.
#[inline]
fn count_while<T>(items: &[T], condition: impl Fn(&T) -> bool) -> usize {
    let (mut low, mut high) = (0, items.len());
    while low < high {
        let middle = low.wrapping_add(high) / 2;
        match items.get(middle) {
            Some(item) if condition(item) => low = middle.wrapping_add(1),
            _ => high = middle,
        }
    }
    low
}

impl SlotList {
    /// No slots.
    pub(crate) fn new() -> Self {
        Self {
            chunks: KVVec::new(),
        }
    }

    /// The slot that backs `gpa`. `hint` is where the last one was found, and is kept up to date.
    #[inline]
    pub(crate) fn find(&self, gpa: u64, hint: &mut usize) -> Option<&Slot> {
        let entry = self.chunks.get(*hint / Chunk::ROOM);
        let last = entry.and_then(|entry| entry.slots().get(*hint % Chunk::ROOM));
        if let Some(slot) = last.filter(|slot| slot.contains(gpa)) {
            return Some(slot);
        }
        let chunk = self.chunk_of(gpa);
        let slots = self.chunks.get(chunk)?.slots();
        let after = count_while(slots, |slot| slot.gpa <= gpa);
        let index = after.checked_sub(1)?;
        let slot = slots.get(index).filter(|slot| slot.contains(gpa))?;
        *hint = chunk.wrapping_mul(Chunk::ROOM).wrapping_add(index);
        Some(slot)
    }

    /// Which chunk a slot at `gpa` is in, or would be.
    fn chunk_of(&self, gpa: u64) -> usize {
        let after = count_while(&self.chunks, |entry| entry.gpa <= gpa);
        after.saturating_sub(1)
    }

    /// All slots in order of guest-physical address.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.chunks.iter().flat_map(Entry::slots)
    }

    /// What `region` asks for, with KVM's rules: `EINVAL` for what can never be, `EEXIST` for an
    /// overlap. `old` is the slot that has the id now; guest-physical addresses are below `limit`.
    /// A log that begins is a `new_log`.
    pub(crate) fn plan(
        &self,
        old: Option<&Slot>,
        region: &Region,
        limit: u64,
        new_log: NewLog,
    ) -> Result<Change> {
        let aligned = (region.gpa | region.size | region.hva) & PageSize::Size4K.offset_mask() == 0;
        if region.flags & !(FLAG_LOG_DIRTY | FLAG_READ_ONLY) != 0
            || region.slot >= SLOT_LIMIT
            || !aligned
            || !access_ok(region.hva, region.size)
            || region.gpa.checked_add(region.size).is_none()
            || region.size >> 12 > MOST_PAGES
        {
            return Err(EINVAL);
        }
        if region.size == 0 {
            return Ok(Change::Delete(old.ok_or(EINVAL)?.clone()));
        }
        // INVARIANT: Checked above.
        let place = Place {
            gpa: region.gpa,
            bytes: region.size,
            hva: region.hva,
        };
        let mut new = Slot {
            place,
            id: region.slot,
            read_only: region.flags & FLAG_READ_ONLY != 0,
            log: None,
        };
        let logs = region.flags & FLAG_LOG_DIRTY != 0;
        if let Some(old) = old {
            if old.hva != new.hva || old.bytes != new.bytes || old.read_only != new.read_only {
                return Err(EINVAL);
            }
            if logs {
                new.log = old.log.clone();
            }
        }
        if logs && new.log.is_none() {
            new.log = Some(DirtyLog::new(new.pages(), new_log)?);
        }
        match old {
            Some(old) if old.gpa == new.gpa && old.log.is_some() == logs => Ok(Change::Nothing),
            Some(old) if old.gpa == new.gpa => Ok(Change::Log(old.clone(), new)),
            _ => {
                self.check_place(&new, limit)?;
                Ok(match old {
                    Some(old) => Change::Move(old.clone(), new),
                    None => Change::Create(new),
                })
            }
        }
    }

    /// Whether a slot may be where `new` wants to be.
    fn check_place(&self, new: &Slot, limit: u64) -> Result {
        let end = new.gpas().end;
        if end > limit {
            return Err(EINVAL);
        }
        let chunks = self.chunks.get(self.chunk_of(new.gpa)..).unwrap_or(&[]);
        let mut slots = chunks
            .iter()
            .flat_map(Entry::slots)
            .take_while(|slot| slot.gpa < end);
        if slots.any(|slot| slot.id != new.id && slot.overlaps(new)) {
            return Err(EEXIST);
        }
        Ok(())
    }

    /// A list without the slot `without`, which is in this one, and with `with` in addition.
    pub(crate) fn changed(&self, without: Option<&Slot>, with: Option<&Slot>) -> Result<Self> {
        let room = self.chunks.len().saturating_add(2);
        let mut chunks = KVVec::with_capacity(room, GFP_KERNEL_ACCOUNT)?;
        chunks.extend_from_slice(&self.chunks, GFP_KERNEL_ACCOUNT)?;
        let mut list = Self { chunks };
        if let Some(old) = without {
            list.remove(old)?;
        }
        if let Some(new) = with {
            list.insert(new)?;
        }
        Ok(list)
    }

    fn remove(&mut self, old: &Slot) -> Result {
        let index = self.chunk_of(old.gpa);
        let entry = self.chunks.get_mut(index).ok_or(EINVAL)?;
        let place = count_while(entry.slots(), |slot| slot.gpa < old.gpa);
        let (before, rest) = entry.slots().split_at_checked(place).ok_or(EINVAL)?;
        let after = rest.get(1..).ok_or(EINVAL)?;
        if before.is_empty() && after.is_empty() {
            self.chunks.remove(index).map_err(|_| EINVAL)?;
        } else {
            *entry = Entry::new(&[before, after])?;
        }
        Ok(())
    }

    fn insert(&mut self, new: &Slot) -> Result {
        let (gpa, new) = (new.gpa, from_ref(new));
        let index = self.chunk_of(gpa);
        let Some(entry) = self.chunks.get_mut(index) else {
            return Ok(self.chunks.push(Entry::new(&[new])?, GFP_KERNEL_ACCOUNT)?);
        };
        let slots = entry.slots();
        let place = count_while(slots, |slot| slot.gpa < gpa);
        let (before, after) = slots.split_at_checked(place).ok_or(EINVAL)?;
        if slots.len() < Chunk::ROOM {
            *entry = Entry::new(&[before, new, after])?;
            return Ok(());
        }
        // A full chunk is cut where the new slot comes, so that slots which are added in order
        // fill theirs.
        let next = match after.is_empty() {
            true => Entry::new(&[new])?,
            false => {
                let next = Entry::new(&[after])?;
                *entry = Entry::new(&[before, new])?;
                next
            }
        };
        self.chunks.reserve(1, GFP_KERNEL_ACCOUNT)?;
        let after = index.saturating_add(1);
        self.chunks
            .insert_within_capacity(after, next)
            .map_err(|_| ENOMEM)
    }
}

impl Change {
    /// What the slot was before.
    pub(crate) fn old_slot(&self) -> Option<&Slot> {
        match self {
            Change::Nothing | Change::Create(_) => None,
            Change::Delete(old) | Change::Move(old, _) | Change::Log(old, _) => Some(old),
        }
    }

    /// What the slot is afterwards.
    pub(crate) fn new_slot(&self) -> Option<&Slot> {
        match self {
            Change::Nothing | Change::Delete(_) => None,
            Change::Create(new) | Change::Move(_, new) | Change::Log(_, new) => Some(new),
        }
    }
}
