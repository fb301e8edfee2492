// SPDX-License-Identifier: GPL-2.0-only

//! The memory of the nested page tables: where `npt::Tables` meets the kernel.
//!
//! A table page goes round like this:
//!
//! ```text
//!   kernel ──► TableCache of a vCPU ──► the tables ──► freed list ──► kernel
//!        fill, may sleep       alloc, under lock    free        finish: after the flush
//! ```

use crate::linux::mm::account_table;
use crate::memory::Flush;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use kernel::bindings;
use kernel::ffi::c_ulong;
use kernel::prelude::*;
use npt::{Hpa, Tables};

/// How many pages a cache can hold: enough for a fault that adds a table at each level and splits
/// a page on the way.
const ROOM: usize = 6;

/// A zeroed page for a table, owned.
///
/// # Invariants
///
/// It is a page of the kernel's linear mapping that has no other user.
struct TablePage(NonNull<u64>);

impl TablePage {
    fn new() -> Result<Self> {
        // SAFETY: No preconditions, but that the caller may sleep.
        let page = unsafe { bindings::get_zeroed_page_noprof(bindings::GFP_KERNEL_ACCOUNT) };
        // INVARIANT: The kernel gave it to us.
        let page = NonNull::new(page as *mut u64).ok_or(ENOMEM)?;
        account_table(page, 1);
        Ok(Self(page))
    }

    /// Gives up ownership.
    fn into_hpa(self) -> Hpa {
        let page = self.0.as_ptr() as u64;
        core::mem::forget(self);
        let (base, encryption) = direct_map();
        Hpa(page.wrapping_sub(base) | encryption)
    }

    /// Takes ownership back.
    ///
    /// # Safety
    ///
    /// `table` must come from [`into_hpa`](Self::into_hpa), and must not be in use.
    unsafe fn from_hpa(table: Hpa) -> Self {
        // SAFETY: A page of the linear mapping is not at address 0.
        Self(unsafe { NonNull::new_unchecked(entry_pointer(table, 0)) })
    }
}

impl Drop for TablePage {
    fn drop(&mut self) {
        account_table(self.0, -1);
        // SAFETY: By the invariant the page is ours.
        unsafe { bindings::free_pages(self.0.as_ptr() as c_ulong, 0) };
    }
}

/// Where the kernel sees all memory, and the bit that encrypts what the tables name (APM vol. 2,
/// 7.10).
#[inline]
#[allow(clippy::unnecessary_cast)] // A kernel that cannot encrypt has the second as a macro, an int.
fn direct_map() -> (u64, u64) {
    // SAFETY: Both are set once, when the kernel boots.
    unsafe {
        (
            bindings::page_offset_base as u64,
            bindings::sme_me_mask as u64,
        )
    }
}

/// Where the kernel sees an entry of a table.
#[inline]
fn entry_pointer(table: Hpa, index: usize) -> *mut u64 {
    let (base, encryption) = direct_map();
    let page = (table.0 & !encryption).wrapping_add(base);
    (page as *mut u64).wrapping_add(index & 511)
}

/// A vCPU's stock of table pages, filled where it may sleep.
pub(crate) struct TableCache {
    pages: [Option<TablePage>; ROOM],
    count: usize,
}

// SAFETY: The pages belong to no thread.
unsafe impl Send for TableCache {}
// SAFETY: Nothing can be done with a shared reference.
unsafe impl Sync for TableCache {}

impl TableCache {
    /// An empty one.
    pub(crate) const fn new() -> Self {
        Self {
            pages: [const { None }; ROOM],
            count: 0,
        }
    }

    /// Whether it holds all that one fault can need.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.count == ROOM
    }

    /// How many it holds.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Fills it. May sleep.
    pub(crate) fn fill(&mut self) -> Result {
        while let Some(place) = self.pages.get_mut(self.count) {
            *place = Some(TablePage::new()?);
            self.count = self.count.wrapping_add(1);
        }
        Ok(())
    }

    fn take(&mut self) -> Option<TablePage> {
        let last = self.count.checked_sub(1)?;
        self.count = last;
        self.pages.get_mut(last)?.take()
    }
}

/// The tables of a VM while its memory is locked: with pages to add, and with those that were
/// freed and wait for the flush.
///
/// The freed pages form a list through their first entries; an address of a page has the P bit
/// clear, so a CPU that still walks such a table finds nothing in it.
pub(crate) struct LockedTables<'a> {
    cache: Option<&'a mut TableCache>,
    freed: Option<Hpa>,
}

impl<'a> LockedTables<'a> {
    /// For changes that add tables from `cache`, or none.
    pub(crate) fn new(cache: Option<&'a mut TableCache>) -> Self {
        Self { cache, freed: None }
    }

    /// Does the flush that the changes need, and then gives the freed tables to the kernel.
    pub(crate) fn finish(self, needed: npt::Flush, flush: &dyn Flush) {
        if needed.is_needed() {
            flush.flush_all();
        }
        // SAFETY: The flush was done, or no CPU could hold anything.
        unsafe { self.give_back() };
    }

    /// Gives the freed tables to the kernel.
    ///
    /// # Safety
    ///
    /// No CPU may be able to walk them any more.
    pub(crate) unsafe fn give_back(mut self) {
        while let Some(table) = self.freed {
            // SAFETY: `free` put the table on the list, and wrote the link into it.
            let next = unsafe { entry_pointer(table, 0).read_volatile() };
            self.freed = (next != 0).then_some(Hpa(next));
            // SAFETY: It came from `alloc`; as promised by the caller it is not in use.
            drop(unsafe { TablePage::from_hpa(table) });
        }
    }
}

impl Tables for LockedTables<'_> {
    #[inline]
    fn read(&self, table: Hpa, index: usize) -> u64 {
        // SAFETY: `npt` names only tables that `alloc` gave it, and no freed ones.
        unsafe { entry_pointer(table, index).read_volatile() }
    }

    #[inline]
    fn compare_exchange(&self, table: Hpa, index: usize, old: u64, new: u64) -> Result<(), u64> {
        // SAFETY: As in `read`; all accesses to entries are atomic ones. `core`'s are an
        // instruction where the kernel's are a call.
        let entry = unsafe { AtomicU64::from_ptr(entry_pointer(table, index)) };
        entry.compare_exchange(old, new, SeqCst, SeqCst).map(|_| ())
    }

    fn alloc(&mut self) -> Option<Hpa> {
        Some(self.cache.as_mut()?.take()?.into_hpa())
    }

    fn free(&mut self, table: Hpa) {
        let next = self.freed.map_or(0, |next| next.0);
        // SAFETY: As in `read`.
        unsafe { entry_pointer(table, 0).write_volatile(next) };
        self.freed = Some(table);
    }
}
