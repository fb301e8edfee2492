// SPDX-License-Identifier: GPL-2.0-only

//! A nested page fault: from the guest-physical address to a mapped page.

use crate::access::GuestAccess;
use crate::memory::VmMemory;
use crate::memory_ffi::{host_page_size, HostPages, MOST_PAGES};
use crate::slots::{Slot, SlotList};
use crate::tables::{LockedTables, TableCache};
use core::ops::Deref;
use kernel::prelude::*;
use kernel::sync::Arc;
use npt::{Hpa, MapError, Mapping, NptEntry, PageSize, Rights};

/// What became of a nested page fault.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    /// The page is mapped, or was taken away again meanwhile: run the guest again, after a look at
    /// signals.
    Mapped,
    /// No slot is there: emulate the access as one to a device.
    Mmio,
    /// The slot is read-only, and this was a write: likewise.
    ReadOnly,
    /// The host page is not present, and the caller may not sleep now. Ask again where it may.
    WouldSleep,
    /// The process has no usable memory there (`EFAULT`, `EHWPOISON`), there is no memory for
    /// tables (`ENOMEM`), or a signal came while waiting (`EINTR`).
    HostFault(Error),
}

/// A vCPU's own part of the memory: a stock of table pages, and where it found the last slot.
pub(crate) struct VcpuMemory {
    vm: Arc<VmMemory>,
    cache: TableCache,
    pub(crate) hint: usize,
}

impl VcpuMemory {
    /// For one more vCPU. May sleep.
    pub(crate) fn new(vm: Arc<VmMemory>) -> Result<Self> {
        let mut cache = TableCache::new();
        cache.fill()?;
        Ok(Self { vm, cache, hint: 0 })
    }

    /// The VM's memory.
    pub(crate) fn vm(&self) -> &VmMemory {
        &self.vm
    }

    /// Guest memory for the emulator and the page walk.
    pub(crate) fn access(&mut self, may_sleep: bool) -> GuestAccess<'_> {
        GuestAccess::new(self, may_sleep)
    }

    /// A nested page fault (#VMEXIT code NPF; APM vol. 2, 15.25.6) at `gpa`.
    ///
    /// Interrupts must be on. With `may_sleep` false it takes a spinlock at most, and preemption
    /// may be off.
    pub(crate) fn fault(&mut self, gpa: u64, write: bool, may_sleep: bool) -> Outcome {
        if !self.cache.is_full() {
            if !may_sleep {
                return Outcome::WouldSleep;
            }
            if let Err(error) = self.cache.fill() {
                return Outcome::HostFault(error);
            }
        }
        let slots = self.vm.slots();
        let Some(slot) = slots.find(gpa, &mut self.hint) else {
            return Outcome::Mmio;
        };
        if write && slot.read_only() {
            return Outcome::ReadOnly;
        }
        let sequence = self.vm.sequence();
        let page = gpa & !PageSize::Size4K.offset_mask();
        let found = match Found::look_up(slot, page, write, may_sleep) {
            Ok(Some(found)) => found,
            Ok(None) => return Outcome::WouldSleep,
            Err(error) => return Outcome::HostFault(error),
        };
        match map(
            &self.vm,
            &mut self.cache,
            &slots,
            slot,
            page,
            write,
            &found,
            sequence,
        ) {
            // Somebody is about to take the page away: come back when that is over.
            None if !may_sleep => Outcome::WouldSleep,
            Some(Err(_)) => Outcome::HostFault(ENOMEM),
            _ => Outcome::Mapped,
        }
    }
}

/// Host pages for a fault, and what the guest may do with them.
struct Found {
    pages: HostPages,
    writable: bool,
}

impl Found {
    /// Looks up the page, and those after it that are present anyway. `None` if that would have to
    /// sleep, and may not.
    fn look_up(slot: &Slot, page: u64, write: bool, may_sleep: bool) -> Result<Option<Self>> {
        let hva = slot.hva(page);
        let found = |writable| move |pages| Self { pages, writable };
        // Not beyond the table of the last level that the page is in.
        let to_table_end = PageSize::Size2M.bytes() - (page & PageSize::Size2M.offset_mask());
        let count = to_table_end.min(slot.bytes_from(page)) >> 12;
        let count = (count as usize).min(MOST_PAGES);
        // Writable is better, even for a read: it saves a second fault, and a page that is present
        // and writable for the process needs no copy.
        if !slot.read_only() {
            if let Some(pages) = HostPages::present(hva, count, true) {
                return Ok(Some(found(true)(pages)));
            }
        }
        if !write {
            if let Some(pages) = HostPages::present(hva, count, false) {
                return Ok(Some(found(false)(pages)));
            }
        }
        if !may_sleep {
            return Ok(None);
        }
        HostPages::fetch(hva, write).map(found(write)).map(Some)
    }
}

/// Maps what was found. `None` if it is not to be mapped: the page, or the slot, is going.
#[expect(
    clippy::too_many_arguments,
    reason = "one step of `fault`, for its size"
)]
fn map(
    vm: &VmMemory,
    cache: &mut TableCache,
    slots: &SlotList,
    slot: &Slot,
    page: u64,
    write: bool,
    found: &Found,
    sequence: u64,
) -> Option<Result<(), MapError>> {
    let hva = slot.hva(page);
    let end = hva.wrapping_add((found.pages.count() as u64) << 12);
    let mmu = vm.mmu.lock();
    if !vm.is_current_list(&mmu, slots) || mmu.forbids(vm, sequence, hva, end) {
        return None;
    }
    // SAFETY: The lock is held, and nothing was invalidated since the lookup.
    let first = unsafe { found.pages.first(found.writable) };
    let size = best_size(vm, slot, page, first);
    let mut rights = Rights::EXECUTE;
    rights.set(Rights::WRITE, found.writable);
    let mut history = NptEntry::ACCESSED;
    history.set(NptEntry::DIRTY, write);
    let mapping = Mapping {
        gpa: page & !size.offset_mask(),
        page: Hpa(first.0 & !size.offset_mask()),
        size,
        rights,
        history,
    };
    let mut tables = LockedTables::new(Some(cache), Some(slots));
    let result = match size {
        PageSize::Size4K => {
            let ahead = (1..found.pages.count()).map_while(|index| {
                // SAFETY: As above.
                unsafe { found.pages.ahead(index, found.writable) }
            });
            mmu.npt.map_run(&mut tables, mapping, ahead)
        }
        _ => mmu.npt.map(&mut tables, mapping),
    };
    let needed = result.unwrap_or(npt::Flush::All);
    tables.finish(needed, vm.flush());
    Some(result.map(|_| ()))
}

/// The largest page that the process has at the same place, and that fits into the slot. A log
/// needs small pages.
fn best_size(vm: &VmMemory, slot: &Slot, page: u64, host: Hpa) -> PageSize {
    if slot.log().is_some() || !slot.fits(page, PageSize::Size2M) {
        return PageSize::Size4K;
    }
    // SAFETY: Faults are handled in a thread of the process.
    let size = unsafe { host_page_size(vm.mm(), slot.hva(page)) };
    let fits = |size| slot.fits(page, size) && (host.0 ^ page) & size_mask(size) == 0;
    match size {
        PageSize::Size1G if fits(PageSize::Size1G) => PageSize::Size1G,
        PageSize::Size1G | PageSize::Size2M if fits(PageSize::Size2M) => PageSize::Size2M,
        _ => PageSize::Size4K,
    }
}

/// The bits of an address that must be the same in host and guest for a page of `size`.
fn size_mask(size: PageSize) -> u64 {
    size.offset_mask() & !PageSize::Size4K.offset_mask()
}

impl Deref for VcpuMemory {
    type Target = VmMemory;

    fn deref(&self) -> &VmMemory {
        &self.vm
    }
}
