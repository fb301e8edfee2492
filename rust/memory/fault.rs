// SPDX-License-Identifier: GPL-2.0-only

//! A nested page fault: from the guest-physical address to a mapped page.

use crate::linux::compat::{is_poison, poison};
use crate::linux::mm::{host_page_size, is_poisoned, HostPages, MOST_PAGES};
use crate::linux::Sleep;
use crate::memory::dirty_ring::DirtyRing;
use crate::memory::guest_access::GuestAccess;
use crate::memory::inner_tables::InnerTables;
use crate::memory::kept_layer::Writer;
use crate::memory::npt_pages::{LockedTables, TableCache};
use crate::memory::slots::{Slot, SlotList};
use crate::memory::{Mmu, VmMemory};
use core::cell::Cell;
use core::ops::Deref;
use kernel::prelude::*;
use kernel::sync::Arc;
use npt::{GpaRange, Hpa, Mapping, NptEntry, PageSize, Permit, Rights};
use x86::cpu::MemError;

/// A vCPU's own part of the memory: a stock of table pages, where it found the last slot, and the
/// pages that it is just mapping.
pub(crate) struct VcpuMemory {
    vm: Arc<VmMemory>,
    pub(crate) hint: usize,
    /// Why the last nested fault was [`MemError::Fault`]: the process has no usable memory there
    /// (`EFAULT`, `EHWPOISON`), or there is none for tables (`ENOMEM`).
    pub(crate) error: Option<Error>,
    /// Where the last access failed, if that was because the host's memory is poisoned.
    pub(crate) poisoned: Cell<Option<u64>>,
    ring: Option<Arc<DirtyRing>>,
    /// The tables for the guest's own guest.
    pub(crate) inner: InnerTables,
    stock: KBox<FaultBuffers>,
}

/// What is too large to be moved about with a vCPU.
struct FaultBuffers {
    cache: TableCache,
    pages: HostPages,
}

/// What a fault is about.
struct Fault<'a> {
    vm: &'a VmMemory,
    slots: &'a SlotList,
    slot: &'a Slot,
    ring: Option<&'a DirtyRing>,
    /// The guest's page.
    gpa: u64,
    /// Where the process has it.
    hva: u64,
    write: bool,
    /// A snapshot wants to hear of the first write to each page.
    keeping: bool,
    /// It has heard of this one's, or there is none.
    kept: bool,
    /// The sequence before the lookup.
    sequence: u64,
}

impl VcpuMemory {
    /// For one more vCPU. May sleep.
    pub(crate) fn new(vm: Arc<VmMemory>) -> Result<Self> {
        let stock = FaultBuffers {
            cache: TableCache::new(),
            pages: HostPages::new(),
        };
        let mut stock = KBox::new(stock, GFP_KERNEL_ACCOUNT)?;
        stock.cache.fill()?;
        let ring = vm.new_ring()?;
        Ok(Self {
            vm,
            hint: 0,
            error: None,
            poisoned: Cell::new(None),
            ring,
            inner: InnerTables::new(),
            stock,
        })
    }

    /// The VM's memory.
    pub(crate) fn vm(&self) -> &VmMemory {
        &self.vm
    }

    /// The stock of table pages, and the tables for the guest's own guest.
    pub(crate) fn inner_parts(&mut self) -> (&mut TableCache, &mut InnerTables) {
        (&mut self.stock.cache, &mut self.inner)
    }

    /// The dirty ring, if the VM has them.
    #[inline]
    pub(crate) fn ring(&self) -> Option<&DirtyRing> {
        self.ring.as_deref()
    }

    /// [`VcpuMemory::ring`], to be kept.
    pub(crate) fn shared_ring(&self) -> Option<Arc<DirtyRing>> {
        self.ring.clone()
    }

    /// Where the page ends that is mapped at `gpa`.
    pub(crate) fn page_end(&self, gpa: u64) -> Option<u64> {
        let mmu = self.vm.mmu.lock();
        let mapping = mmu.npt.look_up(&LockedTables::new(None), gpa)?;
        Some(GpaRange::page(gpa, mapping.size).end)
    }

    /// Guest memory for the emulator and the page walk.
    pub(crate) fn access(&mut self, sleep: Sleep) -> GuestAccess<'_> {
        GuestAccess::new(self, sleep)
    }

    /// A nested page fault (#VMEXIT code NPF; APM vol. 2, 15.25.6) at `gpa`. The guest is then run
    /// again, after a look at signals: it faults again if the page was taken away meanwhile.
    ///
    /// `present` says that there was a page, which does not permit the access. May sleep.
    ///
    /// # Errors
    ///
    /// [`MemError::Unbacked`] if no slot is there, [`MemError::ReadOnly`] for a write to one that
    /// is read-only: a device. [`MemError::Fault`] if the process has no memory: [`Self::error`].
    pub(crate) fn fault(
        &mut self,
        gpa: u64,
        write: bool,
        present: bool,
    ) -> core::result::Result<(), MemError> {
        let slots = self.vm.slots();
        let Some(slot) = slots.find(gpa, &mut self.hint) else {
            return Err(MemError::Unbacked);
        };
        if write && slot.read_only() {
            return Err(MemError::ReadOnly);
        }
        let FaultBuffers { cache, pages } = &mut *self.stock;
        let gpa = gpa & !PageSize::Size4K.offset_mask();
        let hva = slot.hva(gpa);
        let keeping = self.vm.keeping.is_on();
        let fault = Fault {
            vm: &self.vm,
            slots: &slots,
            slot,
            ring: self.ring.as_deref(),
            gpa,
            hva,
            write,
            keeping,
            kept: write || !keeping,
            sequence: self.vm.sequence(),
        };
        let result = fault.resolve(cache, pages, present);
        pages.put();
        match result {
            Ok(()) => Ok(()),
            // The page is going away, or the signal will be seen before the guest faults again.
            Err(error) if error == EAGAIN || error == EINTR => Ok(()),
            Err(error) => {
                self.poisoned.set(is_poison(error).then_some(hva));
                self.error = Some(error);
                Err(MemError::Fault)
            }
        }
    }
}

impl Fault<'_> {
    /// Maps the page; `EAGAIN` if it is going away.
    #[inline]
    fn resolve(&self, cache: &mut TableCache, pages: &mut HostPages, present: bool) -> Result {
        if !cache.is_full() {
            cache.fill()?;
        }
        if self.keeping && self.write {
            let kept = self.vm.keep(self.gpa, self.hva, Writer::Guest);
            kept.map_err(|error| self.unreadable(error))?;
        }
        if present && self.permit() {
            return Ok(());
        }
        let writable = self.look_up(pages)?;
        self.map(cache, pages, writable)
    }

    /// Why the page could not be kept. One that is poisoned cannot be read, either.
    #[cold]
    fn unreadable(&self, error: Error) -> Error {
        match error == EFAULT && is_poisoned(self.hva) {
            true => poison(),
            false => error,
        }
    }

    /// Gives the right to write that only a log or a snapshot has withheld. True if there is
    /// nothing more to do.
    fn permit(&self) -> bool {
        let mmu = self.vm.mmu.lock();
        if !self.vm.is_current_list(&mmu, self.slots) {
            return false;
        }
        let (mut wanted, mut most) = (Rights::EXECUTE, PageSize::Size1G);
        wanted.set(Rights::WRITE, self.write);
        if self.slot.log().is_some() || self.keeping {
            most = PageSize::Size4K;
        }
        let mut tables = LockedTables::new(None);
        match mmu.npt.permit(&mut tables, self.gpa, wanted, most) {
            Permit::Held => true,
            Permit::Given => {
                self.slot.wrote(self.gpa, self.ring);
                true
            }
            Permit::Refused => false,
        }
    }

    /// Looks up the page, and those after it that are present anyway. True if the guest may write
    /// to them.
    #[inline]
    fn look_up(&self, pages: &mut HostPages) -> Result<bool> {
        // Not beyond the table of the last level that the page is in.
        let in_table = PageSize::Size2M.offset_mask() & !PageSize::Size4K.offset_mask();
        let to_table_end = (!self.gpa & in_table) >> 12;
        let to_slot_end = self.slot.bytes_from(self.gpa) >> 12;
        let count = (to_table_end.wrapping_add(1).min(to_slot_end) as usize).min(MOST_PAGES);
        // Writable is better, even for a read: it saves a second fault, and a page that is present
        // and writable for the process needs no copy.
        if !self.slot.read_only() && pages.look_up(self.hva, count, true) {
            return Ok(true);
        }
        if !self.write && pages.look_up(self.hva, count, false) {
            return Ok(false);
        }
        match pages.fetch(self.hva, self.write) {
            Ok(()) => Ok(self.write),
            // SAFETY: Faults are handled in a thread of the process.
            Err(error) if error == EFAULT => unsafe {
                pages
                    .fetch_frame(self.vm.mm(), self.hva, self.write)
                    .map(|writable| writable && !self.slot.read_only())
            },
            Err(error) => Err(error),
        }
    }

    /// Maps what was found, unless the page, or the slot, is going away.
    #[inline]
    fn map(&self, cache: &mut TableCache, pages: &HostPages, writable: bool) -> Result {
        let end = self.hva.wrapping_add((pages.count() as u64) << 12);
        let mmu = self.vm.mmu.lock();
        let stale = !self.vm.is_current_list(&mmu, self.slots)
            || mmu.forbids(self.vm, self.sequence, self.hva, end);
        if stale {
            return Err(EAGAIN);
        }
        // SAFETY: The lock is held, and nothing was invalidated since the lookup, which found a
        // page.
        let host = unsafe { pages.first(writable) };
        let size = self.best_size(&mmu, host);
        // What is logged, or kept, is given when it is used.
        let logged = self.slot.log().is_some();
        let mut ahead_rights = Rights::EXECUTE;
        ahead_rights.set(Rights::MAY_WRITE, writable);
        ahead_rights.set(Rights::WRITE, writable && !logged && !self.keeping);
        let mut rights = ahead_rights;
        let given = self.kept && (self.write || !logged);
        rights.set(Rights::WRITE, writable && given);
        let mut history = NptEntry::ACCESSED;
        history.set(NptEntry::DIRTY, self.write);
        let mapping = Mapping {
            gpa: self.gpa & !size.offset_mask(),
            page: Hpa(host.0 & !size.offset_mask()),
            size,
            rights,
            history,
        };
        let ahead = (1..pages.count()).map_while(|index| {
            // SAFETY: As above.
            unsafe { pages.ahead(index, writable) }
        });
        let mut tables = LockedTables::new(Some(cache));
        let result = mmu.npt.map_run(&mut tables, mapping, ahead, ahead_rights);
        tables.finish(result.unwrap_or(npt::Flush::All), self.vm.flush());
        if result.is_err() {
            return Err(ENOMEM);
        }
        if self.write {
            self.slot.wrote(self.gpa, self.ring);
        }
        Ok(())
    }

    /// The largest page that the process has at the same place as the page at `host`, and that fits
    /// into the slot. A log needs small pages, and so does what a snapshot keeps.
    fn best_size(&self, mmu: &Mmu, host: Hpa) -> PageSize {
        let fits = |size: PageSize| {
            let same = size.offset_mask() & !PageSize::Size4K.offset_mask();
            self.slot.fits(self.gpa, size) && (host.0 ^ self.gpa) & same == 0
        };
        // All of a large page must be there to stay.
        let stays = |size: PageSize| {
            let start = self.hva & !size.offset_mask();
            !mmu.forbids(
                self.vm,
                self.sequence,
                start,
                start.wrapping_add(size.bytes()),
            )
        };
        let small = self.slot.log().is_some() || (self.keeping && self.kept);
        if small || !fits(PageSize::Size2M) {
            return PageSize::Size4K;
        }
        // SAFETY: Faults are handled in a thread of the process.
        match unsafe { host_page_size(self.vm.mm(), self.hva) } {
            PageSize::Size1G if fits(PageSize::Size1G) && stays(PageSize::Size1G) => {
                PageSize::Size1G
            }
            PageSize::Size1G | PageSize::Size2M if stays(PageSize::Size2M) => PageSize::Size2M,
            _ => PageSize::Size4K,
        }
    }
}

impl Drop for VcpuMemory {
    fn drop(&mut self) {
        self.inner.clear();
        if let Some(ring) = &self.ring {
            self.vm.remove_ring(ring);
        }
    }
}

impl Deref for VcpuMemory {
    type Target = VmMemory;

    fn deref(&self) -> &VmMemory {
        &self.vm
    }
}
