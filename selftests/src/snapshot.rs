// SPDX-License-Identifier: GPL-2.0-only

//! Snapshots, as `rust/uapi/pacifica.h` has them, called as a hostile program would: with any
//! argument, and with the error number as the result.

use pacifica_vm::uapi;
pub use pacifica_vm::uapi::{
    pacifica_create_snapshot as Create, pacifica_fork as Fork, pacifica_keep_pages as Keep,
    pacifica_reset as Reset,
};

use crate::kvm::{Answer, Handle, Number};

/// `PACIFICA_CHECK_FEATURE`.
pub const CHECK_FEATURE: Number = Number(uapi::PACIFICA_CHECK_FEATURE as u64);
/// `PACIFICA_FEATURE_SNAPSHOT`.
pub const FEATURE: u64 = uapi::PACIFICA_FEATURE_SNAPSHOT as u64;
/// `PACIFICA_FEATURE_FORK`.
pub const FEATURE_FORK: u64 = uapi::PACIFICA_FEATURE_FORK as u64;
/// `PACIFICA_CREATE_SNAPSHOT`.
pub const CREATE: Number = Number(uapi::PACIFICA_CREATE_SNAPSHOT as u64);
/// `PACIFICA_RESET`.
pub const RESET: Number = Number(uapi::PACIFICA_RESET as u64);
/// `PACIFICA_KEEP_PAGES`.
pub const KEEP: Number = Number(uapi::PACIFICA_KEEP_PAGES as u64);
/// `PACIFICA_SET_KEEP_LIMIT`.
pub const SET_LIMIT: Number = Number(uapi::PACIFICA_SET_KEEP_LIMIT as u64);
/// `PACIFICA_GET_KEPT`.
pub const GET_KEPT: Number = Number(uapi::PACIFICA_GET_KEPT as u64);
/// `PACIFICA_FORK`.
pub const FORK: Number = Number(uapi::PACIFICA_FORK as u64);
/// `PACIFICA_SNAPSHOT_STATE`.
pub const STATE_ONLY: u64 = uapi::PACIFICA_SNAPSHOT_STATE as u64;
/// `PACIFICA_FORK_TIME`.
pub const FORK_TIME: u64 = uapi::PACIFICA_FORK_TIME as u64;
/// `PACIFICA_KEEP_ONCE`.
pub const KEEP_ONCE: u64 = uapi::PACIFICA_KEEP_ONCE as u64;
/// `PACIFICA_RESET_TIME`.
pub const RESET_TIME: u64 = uapi::PACIFICA_RESET_TIME as u64;

/// A snapshot's descriptor.
pub struct Snapshot(pub Handle);

impl Snapshot {
    /// Takes one that may keep so many bytes.
    pub fn create(vm: &Handle, limit: u64) -> Answer<Self> {
        let mut create = Create {
            limit,
            ..Default::default()
        };
        vm.open_with_structure(CREATE, &mut create).map(Self)
    }

    /// Takes one of the state alone.
    pub fn of_state(vm: &Handle) -> Answer<Self> {
        let mut create = Create {
            flags: STATE_ONLY,
            ..Default::default()
        };
        vm.open_with_structure(CREATE, &mut create).map(Self)
    }

    /// Makes a VM of it, on the memory of this process.
    pub fn fork(&self, flags: u64) -> Answer<Handle> {
        let mut fork = Fork {
            flags,
            ..Default::default()
        };
        self.0.open_with_structure(FORK, &mut fork)
    }

    /// Goes back; answers how many pages were put back.
    pub fn reset(&self, flags: u64) -> Answer<u64> {
        let mut reset = Reset {
            flags,
            ..Default::default()
        };
        self.0.exchange(RESET, &mut reset)?;
        Ok(reset.pages)
    }

    /// Announces a write of this program; answers how many bytes are left to be announced.
    pub fn keep(&self, gpa: u64, size: u64) -> Answer<u64> {
        let mut keep = Keep {
            gpa,
            size,
            flags: 0,
        };
        self.0.exchange(KEEP, &mut keep)?;
        Ok(keep.size)
    }

    /// Announces one that only the next reset has to undo.
    pub fn keep_once(&self, gpa: u64, size: u64) -> Answer<u64> {
        let flags = KEEP_ONCE;
        let mut keep = Keep { gpa, size, flags };
        self.0.exchange(KEEP, &mut keep)?;
        Ok(keep.size)
    }

    /// Sets another limit.
    pub fn set_limit(&self, bytes: u64) -> Answer {
        self.0.set(SET_LIMIT, &bytes)
    }

    /// How many bytes are kept.
    pub fn kept(&self) -> Answer<u64> {
        self.0.get(GET_KEPT)
    }
}
