// SPDX-License-Identifier: GPL-2.0-only

//! Memory slots: which guest-physical ranges there are, and what backs them.
//!
//! A [`SlotList`] never changes. A new one takes its place when user space changes a slot, see
//! `memory.rs`. It is sorted twice: by guest-physical address, where slots never overlap, for the
//! faults; and by host address, where they may, for the notifier.

use crate::dirty_log::DirtyLog;
use crate::memory_ffi::access_ok;
use core::ops::Deref;
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

    /// The first user address at or after `at` that backs it.
    pub(crate) fn next_hva(&self, at: u64) -> Option<u64> {
        let next = at.max(self.hva);
        (next < self.hva.wrapping_add(self.bytes)).then_some(next)
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

    /// Whether writes go to user space.
    pub(crate) fn read_only(&self) -> bool {
        self.read_only
    }

    /// The dirty log, if the slot keeps one.
    pub(crate) fn log(&self) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref()
    }

    /// Marks the pages from `gpa` on as dirty that are in the slot, if there is a log.
    #[inline]
    pub(crate) fn wrote(&self, gpa: u64, bytes: u64) {
        if let Some(log) = self.log.as_ref().filter(|_| self.contains(gpa)) {
            let first = gpa.wrapping_sub(self.place.gpa) >> 12;
            log.set(first, bytes.div_ceil(PageSize::Size4K.bytes()));
        }
    }
}

impl Deref for Slot {
    type Target = Place;

    #[inline]
    fn deref(&self) -> &Place {
        &self.place
    }
}

/// An entry of the order by host address.
struct ByHva {
    hva: u64,
    /// The highest end of this and all entries before.
    reach: u64,
    /// Where the slot is in the order by guest-physical address.
    slot: u32,
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

/// All slots of a VM at one time.
///
/// # Invariants
///
/// `by_gpa` is sorted and without overlaps; `by_hva` has one entry for each slot, and is sorted.
pub(crate) struct SlotList {
    by_gpa: KVVec<Slot>,
    by_hva: KVVec<ByHva>,
}

impl SlotList {
    /// No slots.
    pub(crate) fn new() -> Self {
        Self {
            by_gpa: KVVec::new(),
            by_hva: KVVec::new(),
        }
    }

    /// The slot that backs `gpa`. `hint` is where the last one was found, and is kept up to date.
    #[inline]
    pub(crate) fn find(&self, gpa: u64, hint: &mut usize) -> Option<&Slot> {
        if let Some(slot) = self.by_gpa.get(*hint).filter(|slot| slot.contains(gpa)) {
            return Some(slot);
        }
        let after = self.by_gpa.partition_point(|slot| slot.gpa <= gpa);
        let index = after.checked_sub(1)?;
        let slot = self.by_gpa.get(index).filter(|slot| slot.contains(gpa))?;
        *hint = index;
        Some(slot)
    }

    /// The slot with this id.
    pub(crate) fn by_id(&self, id: u32) -> Option<&Slot> {
        self.by_gpa.iter().find(|slot| slot.id == id)
    }

    /// All slots in order of guest-physical address.
    pub(crate) fn iter(&self) -> core::slice::Iter<'_, Slot> {
        self.by_gpa.iter()
    }

    /// The places of the slots that user addresses from `start` to `end` back.
    pub(crate) fn backed_by(&self, start: u64, end: u64) -> impl Iterator<Item = Place> + '_ {
        let count = self.by_hva.partition_point(|entry| entry.hva < end);
        let candidates = self.by_hva.get(..count).unwrap_or(&[]).iter().rev();
        candidates
            .take_while(move |entry| entry.reach > start)
            .filter_map(|entry| Some(self.by_gpa.get(entry.slot as usize)?.place))
            .filter(move |place| place.next_hva(start).is_some())
    }

    /// The first user address at or after `at` that backs any slot.
    pub(crate) fn next_hva(&self, at: u64) -> Option<u64> {
        let count = self.by_hva.partition_point(|entry| entry.hva <= at);
        match self.by_hva.get(count.wrapping_sub(1)) {
            Some(entry) if entry.reach > at => Some(at),
            _ => self.by_hva.get(count).map(|entry| entry.hva),
        }
    }

    /// What `region` asks for, with KVM's rules: `EINVAL` for what can never be, `EEXIST` for an
    /// overlap. Guest-physical addresses are below `limit`.
    pub(crate) fn plan(&self, region: &Region, limit: u64) -> Result<Change> {
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
        let old = self.by_id(region.slot);
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
            new.log = Some(DirtyLog::new(new.bytes >> 12)?);
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
        if new.gpas().end > limit {
            return Err(EINVAL);
        }
        if self
            .iter()
            .any(|slot| slot.id != new.id && slot.overlaps(new))
        {
            return Err(EEXIST);
        }
        Ok(())
    }

    /// A list without the slot `without` and with `with` in addition.
    pub(crate) fn changed(&self, without: Option<u32>, with: Option<&Slot>) -> Result<Self> {
        let stays = |slot: &&Slot| Some(slot.id) != without;
        let room = self.by_gpa.len().saturating_add(1);
        let mut list = Self {
            by_gpa: KVVec::with_capacity(room, GFP_KERNEL_ACCOUNT)?,
            by_hva: KVVec::with_capacity(room, GFP_KERNEL_ACCOUNT)?,
        };
        let gone = self.by_gpa.iter().position(|slot| !stays(&slot));
        let come = with.map(|new| {
            let before = self
                .iter()
                .filter(stays)
                .take_while(|slot| slot.gpa < new.gpa);
            before.count()
        });
        // Where a slot is now that was at `index`; `None` if it is gone.
        let moved = |index: usize| {
            let left = index.wrapping_sub(usize::from(gone < Some(index) && gone.is_some()));
            let right = usize::from(come.is_some_and(|come| come <= left));
            (gone != Some(index)).then_some(left.wrapping_add(right))
        };

        let mut with_gpa = with;
        for slot in self.iter().filter(stays) {
            if let Some(new) = with_gpa.take_if(|new| new.gpa < slot.gpa) {
                list.push_slot(new)?;
            }
            list.push_slot(slot)?;
        }
        if let Some(new) = with_gpa {
            list.push_slot(new)?;
        }

        let mut with_hva = with.zip(come);
        for entry in &self.by_hva {
            if let Some((new, index)) = with_hva.take_if(|(new, _)| new.hva < entry.hva) {
                list.push_hva(new, index)?;
            }
            let old = self.by_gpa.get(entry.slot as usize);
            if let (Some(slot), Some(index)) = (old, moved(entry.slot as usize)) {
                list.push_hva(slot, index)?;
            }
        }
        if let Some((new, index)) = with_hva {
            list.push_hva(new, index)?;
        }
        // INVARIANT: The old list was sorted, and `check_place` saw no overlap.
        Ok(list)
    }

    fn push_slot(&mut self, slot: &Slot) -> Result {
        Ok(self.by_gpa.push(slot.clone(), GFP_KERNEL_ACCOUNT)?)
    }

    /// Adds the next entry of the order by host address.
    fn push_hva(&mut self, slot: &Slot, index: usize) -> Result {
        let end = slot.hva.wrapping_add(slot.bytes);
        let entry = ByHva {
            hva: slot.hva,
            reach: self.by_hva.last().map_or(end, |last| last.reach.max(end)),
            slot: u32::try_from(index)?,
        };
        Ok(self.by_hva.push(entry, GFP_KERNEL_ACCOUNT)?)
    }
}

impl Change {
    /// The id of the slot that changes.
    pub(crate) fn id(&self) -> Option<u32> {
        match self {
            Change::Nothing => None,
            Change::Create(slot) | Change::Delete(slot) => Some(slot.id),
            Change::Move(old, _) | Change::Log(old, _) => Some(old.id),
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
