// SPDX-License-Identifier: GPL-2.0-only

//! Snapshots, as `rust/uapi/pacifica.h` has them.

use std::mem::size_of;

use crate::kvm::{Answer, Handle, Number};

/// `PACIFICA_IOCTL`.
const TYPE: u64 = 0xbe;
const READ: u64 = 1;
const WRITE: u64 = 2;

const fn number<T>(direction: u64, number: u64) -> Number {
    Number(direction << 30 | (size_of::<T>() as u64) << 16 | TYPE << 8 | number)
}

/// `PACIFICA_CHECK_FEATURE`.
pub const CHECK_FEATURE: Number = Number(TYPE << 8);
/// `PACIFICA_FEATURE_SNAPSHOT`.
pub const FEATURE: u64 = 1;
/// `PACIFICA_CREATE_SNAPSHOT`.
pub const CREATE: Number = number::<Create>(READ, 1);
/// `PACIFICA_RESET`.
pub const RESET: Number = number::<Reset>(READ | WRITE, 2);
/// `PACIFICA_KEEP_PAGES`.
pub const KEEP: Number = number::<Keep>(READ | WRITE, 3);
/// `PACIFICA_SET_KEEP_LIMIT`.
pub const SET_LIMIT: Number = number::<u64>(READ, 4);
/// `PACIFICA_GET_KEPT`.
pub const GET_KEPT: Number = number::<u64>(WRITE, 5);

/// `PACIFICA_FORK`.
pub const FORK: Number = number::<Fork>(READ, 6);
/// `PACIFICA_FEATURE_FORK`.
pub const FEATURE_FORK: u64 = 2;
/// `PACIFICA_SNAPSHOT_STATE`.
pub const STATE_ONLY: u64 = 1;
/// `PACIFICA_FORK_TIME`.
pub const FORK_TIME: u64 = 1;
/// `PACIFICA_KEEP_ONCE`.
pub const KEEP_ONCE: u64 = 1;
/// `PACIFICA_RESET_TIME`.
pub const RESET_TIME: u64 = 1;

/// `struct pacifica_create_snapshot`.
#[allow(missing_docs)] // The names are those of the header.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Create {
    pub flags: u64,
    pub limit: u64,
    pub reserved: [u64; 6],
}

/// `struct pacifica_reset`.
#[allow(missing_docs)]
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Reset {
    pub flags: u64,
    pub pages: u64,
    pub reserved: [u64; 2],
}

/// `struct pacifica_keep_pages`.
#[allow(missing_docs)]
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Keep {
    pub gpa: u64,
    pub size: u64,
    pub flags: u64,
}

/// `struct pacifica_fork`.
#[allow(missing_docs)]
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Fork {
    pub flags: u64,
    pub reserved: [u64; 3],
}

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
