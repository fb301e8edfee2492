// SPDX-License-Identifier: GPL-2.0-only

//! Nested paging of the inner guest (APM vol. 2, 15.25).
//!
//! ```text
//!   inner guest's address ──outer guest's nested tables──► guest-physical ──ours──► host page
//!            └──────────────── a cache of both, which the CPU uses ───────────────────▲
//! ```
//!
//! The outer guest's tables are walked as the CPU would: in the outer guest's own paging mode, each
//! access as a user's, and the reads of the inner guest's page tables as writes (APM vol. 2,
//! 15.25.5, 15.25.6).

use crate::cpu::Guest;
use crate::dispatch::Platform;
use crate::exit::{ExitCode, NestedError};
use crate::nested::{InnerExit, Nested, Told};
use x86::cpu::{Access, GuestMemory, MemError, Stop};
use x86::features::{Feature, Features};
use x86::paging::{walk, PagingState, Translation, WalkError};
use x86::regs::{Cr0, Cr4, Efer};
use x86::sregs::linear_bits;

/// Where an address of the inner guest's leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerPage {
    /// The guest-physical address of the byte.
    pub gpa: u64,
    /// log2 of the size of the page in the outer guest's tables.
    pub page_bits: u8,
    /// It may be written.
    pub writable: bool,
    /// It may be executed.
    pub executable: bool,
}

impl Nested {
    /// How the outer guest's nested tables are walked, if the inner guest has them.
    pub(crate) fn outer_paging(&self, features: &Features) -> Option<PagingState> {
        /// What decides about the format of tables.
        const CR4: Cr4 = Cr4::PSE.union(Cr4::PAE).union(Cr4::LA57);
        self.has_paging().then(|| PagingState {
            cr0: Cr0::PE | Cr0::PG | Cr0::WP,
            cr3: self.control.ncr3,
            cr4: Cr4::from_bits_retain(self.outer.cr4) & CR4,
            efer: Efer::from_bits_retain(self.outer.efer),
            cpl: 3,
            rflags_ac: false,
            pkru: 0,
            max_phys_bits: features.max_phys_bits,
            gbpages: features.has(Feature::GBPAGES),
        })
    }

    /// The outer guest is to get a nested fault.
    fn set_fault(&mut self, error: NestedError, address: u64, told: Told) {
        self.pending = Some(InnerExit {
            told,
            code: ExitCode::NPF,
            info1: error.bits(),
            info2: address,
        });
    }
}

/// Why the outer guest's tables do not lead on.
enum Obstacle {
    /// They do not permit the access.
    Fault(NestedError),
    Mem(MemError),
}

/// Follows the outer guest's tables.
fn follow(
    memory: &mut impl GuestMemory,
    outer: &PagingState,
    address: u64,
    access: Access,
) -> Result<Translation, Obstacle> {
    /// Tables of legacy modes.
    const LEGACY_BITS: u32 = 32;
    let bits = match outer.efer.contains(Efer::LMA) {
        true => linear_bits(outer.cr4),
        false => LEGACY_BITS,
    };
    let mut absent = NestedError::USER;
    absent.set(NestedError::WRITE, access == Access::Write);
    absent.set(NestedError::FETCH, access == Access::Fetch);
    if address >> bits != 0 {
        return Err(Obstacle::Fault(absent));
    }
    walk(memory, outer, address, access).map_err(|error| match error {
        WalkError::Fault(fault) => {
            let code = u64::from(fault.error_code.unwrap_or(0));
            Obstacle::Fault(NestedError::from_bits_retain(code))
        }
        // Tables where there is no memory.
        WalkError::Mem(MemError::Unbacked | MemError::ReadOnly) => Obstacle::Fault(absent),
        WalkError::Mem(error) => Obstacle::Mem(error),
    })
}

/// A nested fault at an address of the inner guest: where the outer guest's tables lead. `None` if
/// they do not permit the access: the fault is the outer guest's, at the next entry.
pub fn resolve<P: Platform>(
    guest: &mut Guest<'_, P>,
    address: u64,
    error: NestedError,
) -> Result<Option<InnerPage>, Stop> {
    let features = guest.state.features;
    let Some(nested) = guest.nested.as_deref_mut() else {
        return Err(Stop::Unhandled);
    };
    let Some(outer) = nested.outer_paging(&features) else {
        return Err(Stop::Unhandled);
    };
    let access = if error.contains(NestedError::FETCH) {
        Access::Fetch
    } else if error.contains(NestedError::WRITE) {
        Access::Write
    } else {
        Access::Read
    };
    match follow(guest.platform, &outer, address, access) {
        Ok(page) => Ok(Some(InnerPage {
            gpa: page.gpa,
            page_bits: page.page_bits,
            writable: page.writable,
            executable: page.executable,
        })),
        Err(Obstacle::Fault(code)) => {
            let stage = error & (NestedError::FINAL | NestedError::TABLE_WALK);
            nested.set_fault(code | stage, address, Told::ByCpu);
            Ok(None)
        }
        Err(Obstacle::Mem(error)) => Err(WalkError::Mem(error).into()),
    }
}

/// The inner guest's memory, as the walk of its own page tables sees it. What the outer guest's
/// tables do not permit is noted, and a [`MemError::Fault`].
struct Inner<'a, P> {
    platform: &'a mut P,
    nested: &'a mut Nested,
    outer: PagingState,
}

impl<P: GuestMemory> Inner<'_, P> {
    fn translate(
        &mut self,
        address: u64,
        access: Access,
        stage: NestedError,
    ) -> Result<u64, MemError> {
        match follow(self.platform, &self.outer, address, access) {
            Ok(page) => Ok(page.gpa),
            Err(Obstacle::Fault(code)) => {
                self.nested.set_fault(code | stage, address, Told::Nothing);
                Err(MemError::Fault)
            }
            Err(Obstacle::Mem(error)) => Err(error),
        }
    }

    fn table(&mut self, address: u64) -> Result<u64, MemError> {
        self.translate(address, Access::Write, NestedError::TABLE_WALK)
    }
}

impl<P: GuestMemory> GuestMemory for Inner<'_, P> {
    fn read_gpa(&mut self, gpa: u64, buf: &mut [u8]) -> Result<(), MemError> {
        let gpa = self.table(gpa)?;
        self.platform.read_gpa(gpa, buf)
    }

    fn write_gpa(&mut self, gpa: u64, data: &[u8]) -> Result<(), MemError> {
        let gpa = self.table(gpa)?;
        self.platform.write_gpa(gpa, data)
    }

    fn compare_exchange_gpa(
        &mut self,
        gpa: u64,
        size: usize,
        old: u64,
        new: u64,
    ) -> Result<Result<(), u64>, MemError> {
        let gpa = self.table(gpa)?;
        self.platform.compare_exchange_gpa(gpa, size, old, new)
    }
}

impl<P: Platform> Guest<'_, P> {
    /// Translates a linear address to a guest-physical one, and sets accessed and dirty bits.
    pub(crate) fn walk(&mut self, linear: u64, access: Access) -> Result<u64, Stop> {
        let paging = self.paging();
        let features = self.state.features;
        let nested = self.nested.as_deref_mut();
        match nested.and_then(|nested| Some((nested.outer_paging(&features)?, nested))) {
            None => Ok(walk(self.platform, &paging, linear, access)?.gpa),
            Some((outer, nested)) => {
                let mut inner = Inner {
                    platform: self.platform,
                    nested,
                    outer,
                };
                let address = walk(&mut inner, &paging, linear, access)?.gpa;
                let stage = NestedError::FINAL;
                let access = match access {
                    Access::SystemRead => Access::Read,
                    Access::SystemWrite => Access::Write,
                    access => access,
                };
                let found = inner.translate(address, access, stage);
                found.map_err(|error| WalkError::Mem(error).into())
            }
        }
    }
}
