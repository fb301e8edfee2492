// SPDX-License-Identifier: GPL-2.0-only

//! The walk of the guest's own page tables (APM vol. 2, chapter 5).

use crate::cpu::{Access, GuestMemory, MemError, Stop};
use crate::regs::{Cr0, Cr4, Efer, Exception};

/// The registers that decide how a linear address is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagingState {
    /// CR0.
    pub cr0: Cr0,
    /// CR3 with the PCID and cache bits, as the register holds it.
    pub cr3: u64,
    /// CR4.
    pub cr4: Cr4,
    /// EFER.
    pub efer: Efer,
    /// Current privilege level.
    pub cpl: u8,
    /// RFLAGS.AC, which lifts SMAP for explicit accesses.
    pub rflags_ac: bool,
    /// Width of physical addresses in the guest's CPUID (leaf `8000_0008`).
    pub max_phys_bits: u8,
    /// The guest's CPUID offers 1 GiB pages.
    pub gbpages: bool,
}

/// A translated address, and what the page allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address of the byte asked for.
    pub gpa: u64,
    /// log2 of the page size: 12, 21, 22 or 30; without paging 12.
    pub page_bits: u8,
    /// Every level has U/S set.
    pub user: bool,
    /// Every level has R/W set.
    pub writable: bool,
    /// No level has NX set.
    pub executable: bool,
}

/// Why a linear address could not be translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// The guest gets this #PF.
    Fault(Exception),
    /// A page table could not be accessed.
    Mem(MemError),
}

impl From<WalkError> for Stop {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::Fault(exception) => Stop::Exception(exception),
            WalkError::Mem(MemError::WouldSleep) => Stop::WouldSleep,
            WalkError::Mem(MemError::Fault) => Stop::Fault,
            WalkError::Mem(MemError::Unbacked | MemError::ReadOnly) => Stop::Unhandled,
        }
    }
}

/// Translates `linear` for `access`, and sets the accessed and dirty bits on the way.
pub fn walk<M: GuestMemory>(
    mem: &mut M,
    state: &PagingState,
    linear: u64,
    access: Access,
) -> Result<Translation, WalkError> {
    let _ = (mem, state, linear, access);
    todo!()
}

/// Translates as [`walk`] does, with the same faults, but changes nothing in the guest.
pub fn probe<M: GuestMemory>(
    mem: &mut M,
    state: &PagingState,
    linear: u64,
    access: Access,
) -> Result<Translation, WalkError> {
    let _ = (mem, state, linear, access);
    todo!()
}

/// Translates without regard to permissions, and changes nothing: for `KVM_TRANSLATE` and debuggers.
pub fn inspect<M: GuestMemory>(
    mem: &mut M,
    state: &PagingState,
    linear: u64,
) -> Result<Translation, WalkError> {
    let _ = (mem, state, linear);
    todo!()
}
