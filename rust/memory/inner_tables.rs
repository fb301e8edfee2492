// SPDX-License-Identifier: GPL-2.0-only

//! The tables for a guest's own guest, if that has nested paging.
//!
//! ```text
//!   inner guest's address ──outer guest's nested tables──► guest-physical ──ours──► host page
//!            └──────────── these tables, one tree for each vCPU ──────────────────────▲
//! ```
//!
//! They are to that vCPU what its TLB is: a cache of both, filled fault by fault, which only the
//! vCPU's own thread touches, outside of the guest. So what goes for TLBs goes for them, and they
//! need no lock: who takes a page, or a right to it, out of the VM's tables, or wants to hear of
//! the next write to it, asks all vCPUs to flush before the page may be used for anything else
//! ([`Flush::flush_all`](crate::memory::Flush::flush_all)), and the vCPU then drops the whole tree
//! before it enters the guest again. An entry that permits writing is made only while the VM's
//! tables have the page writable and dirty.

use crate::linux::mm;
use crate::memory::fault::VcpuMemory;
use crate::memory::npt_pages::{LockedTables, TableCache};
use kernel::prelude::*;
use npt::{Hpa, Mapping, Npt, NptEntry, PageSize, Rights};
use svm::nested::InnerPage;
use x86::cpu::MemError;

/// More tables than these are dropped: 8 MiB, which map 4 GiB in small pages that lie together. To
/// drop them takes a million entries, at once.
const MOST_TABLES: usize = 2048;

/// The tree of one vCPU, if it has any.
pub(crate) struct InnerTables {
    tree: Option<Npt>,
    tables: usize,
}

impl InnerTables {
    /// Creates the tables of a vCPU that has had no inner guest: none.
    pub(crate) const fn new() -> Self {
        Self {
            tree: None,
            tables: 0,
        }
    }

    /// Drops it. The CPU must not use it any more: the vCPU's ASID for the inner guest goes, too.
    pub(crate) fn clear(&mut self) {
        self.tables = 0;
        if let Some(tree) = self.tree.take() {
            let mut tables = LockedTables::new(None);
            let _ = tree.destroy(&mut tables);
            // SAFETY: Only this vCPU's CPU walks the tree, under an ASID that is not used again,
            // and it is not in the guest.
            unsafe { tables.give_back() };
        }
    }

    /// The root, for nCR3. A tree that has grown too large must have been cleared before.
    fn root(&mut self, cache: &mut TableCache) -> Result<Npt> {
        if let Some(tree) = self.tree {
            return Ok(tree);
        }
        cache.fill()?;
        let mut tables = LockedTables::new(Some(cache));
        let tree = Npt::new(&mut tables, mm::host_levels()).ok_or(ENOMEM)?;
        self.tree = Some(tree);
        Ok(tree)
    }
}

impl VcpuMemory {
    /// Whether the tree has so many tables that it should go.
    pub(crate) fn has_too_many_inner_tables(&self) -> bool {
        self.inner.tables > MOST_TABLES
    }

    /// The root of the tree, which is made if there is none. May sleep.
    pub(crate) fn inner_root(&mut self) -> Result<u64> {
        let (cache, inner) = self.inner_parts();
        Ok(inner.root(cache)?.root().0)
    }

    /// A nested fault of the inner guest at `address`, which the outer guest's tables lead to
    /// `page`: maps it, or does nothing, if it is going away. True if the vCPU must flush what its
    /// CPU has of the inner guest before it enters it again. May sleep.
    ///
    /// # Errors
    ///
    /// As [`VcpuMemory::fault`].
    pub(crate) fn inner_fault(
        &mut self,
        address: u64,
        page: &InnerPage,
        write: bool,
    ) -> core::result::Result<bool, MemError> {
        let found = match self.mapped(page.gpa, write) {
            Some(found) => found,
            None => {
                self.fault(page.gpa, write, false)?;
                match self.mapped(page.gpa, write) {
                    Some(found) => found,
                    None => return Ok(false),
                }
            }
        };
        self.map_inner(address, page, &found, write)
            .map_err(|error| {
                self.error = Some(error);
                MemError::Fault
            })
    }

    /// What the VM's tables have at `gpa`, if it will do.
    fn mapped(&self, gpa: u64, write: bool) -> Option<Mapping> {
        let mmu = self.vm().mmu.lock();
        let found = mmu.npt.look_up(&LockedTables::new(None), gpa)?;
        let dirty = found.history.contains(NptEntry::DIRTY);
        let writable = found.rights.contains(Rights::WRITE) && dirty;
        (writable || !write).then_some(found)
    }

    /// Maps the page, as large as it is in both trees.
    fn map_inner(
        &mut self,
        address: u64,
        page: &InnerPage,
        found: &Mapping,
        write: bool,
    ) -> Result<bool> {
        let size = match page.page_bits {
            21.. if found.size != PageSize::Size4K => PageSize::Size2M,
            _ => PageSize::Size4K,
        };
        let offset = size.offset_mask();
        let host = found.page.0 | (page.gpa & found.size.offset_mask());
        // The outer guest's dirty bit is set only by a fault that is a write.
        let mut rights = Rights::empty();
        rights.set(Rights::WRITE | Rights::MAY_WRITE, write && page.writable);
        rights.set(Rights::EXECUTE, page.executable);
        let mapping = Mapping {
            gpa: address & !offset,
            page: Hpa(host & !offset),
            size,
            rights,
            history: NptEntry::ACCESSED | NptEntry::DIRTY,
        };
        let (cache, inner) = self.inner_parts();
        let tree = inner.root(cache)?;
        cache.fill()?;
        let before = cache.count();
        let mut tables = LockedTables::new(Some(cache));
        let mapped = tree.map(&mut tables, mapping);
        // SAFETY: As in `clear`: no CPU walks what was freed, since the caller's flush comes
        // before the next VMRUN.
        unsafe { tables.give_back() };
        inner.tables = inner
            .tables
            .saturating_add(before.saturating_sub(cache.count()));
        // What was not mapped has changed tables all the same, and the guest faults again.
        Ok(mapped.map_or(true, npt::Flush::is_needed))
    }
}
