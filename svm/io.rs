// SPDX-License-Identifier: GPL-2.0-only

//! Accesses to devices of the VMM: what waits for an answer, and how it gets into the guest.

/// An access that the VMM has to make, as `struct kvm_run` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserIo {
    /// `KVM_EXIT_IO` with `count` 1.
    Port {
        /// The first port.
        port: u16,
        /// 1, 2 or 4.
        size: u8,
        /// OUT.
        write: bool,
        /// What is written, in the first `size` bytes.
        data: [u8; 8],
    },
    /// `KVM_EXIT_MMIO`.
    Mmio {
        /// Guest-physical address.
        gpa: u64,
        /// 1 to 8 bytes, never across a page.
        size: u8,
        /// A write.
        write: bool,
        /// What is written, in the first `size` bytes.
        data: [u8; 8],
    },
}

/// What waits for the VMM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoState {}

impl IoState {
    /// The access that the VMM is to make now.
    pub fn pending(&self) -> Option<UserIo> {
        None
    }
}
