// SPDX-License-Identifier: GPL-2.0-only

//! Devices of the virtio specification, version 1.2.
//!
//! ```text
//!   guest ── PCI registers ──► transport (pci)      on the vCPU's thread: set-up, and nothing else
//!     │                            │ starts, stops
//!     └── doorbell, an eventfd ──► worker ──────────► device      on a thread of the device's own
//!                                    │ queues: each descriptor is read once, by `chain`
//!                                    └── interrupt, an eventfd ──► the module
//! ```

pub(crate) mod block;
pub(crate) mod chain;
pub(crate) mod entropy;
pub(crate) mod link;
mod lock;
pub(crate) mod net;
pub(crate) mod pci;
pub(crate) mod undo;
pub(crate) mod worker;

#[cfg(test)]
pub(crate) mod random;

use std::os::fd::BorrowedFd;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use worker::QueueAccess;

/// How many entries a queue may have.
pub(crate) const QUEUE_SIZE: u16 = 256;

/// What all devices here can do.
pub(crate) const COMMON_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// A kind of device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    /// Its number (chapter 5 of the specification).
    pub(crate) number: u16,
    /// Its name, for threads and messages.
    pub(crate) name: &'static str,
    /// What it is on PCI: interface, subclass, class.
    pub(crate) class: [u8; 3],
}

/// A device behind its transport. All but the first four functions are called on its worker's
/// thread.
pub(crate) trait Device: Send {
    /// What it is.
    fn kind(&self) -> Kind;
    /// What it can do, without [`COMMON_FEATURES`].
    fn features(&self) -> u64;
    /// How many queues it has.
    fn queues(&self) -> usize;
    /// Its part of the configuration, which does not change.
    fn config(&self) -> Vec<u8>;
    /// The driver is ready, and wants to use these features.
    fn start(&mut self, features: u64);
    /// Serves a queue whose doorbell has been rung, as far as it can: it looks at each entry at
    /// most once, so that a guest cannot keep it here.
    fn serve(&mut self, index: usize, queues: &mut [QueueAccess]);
    /// Whether the device waits for this queue's doorbell: it has no use yet for what is in the
    /// queue, if it does not.
    fn wants(&self, _index: usize) -> bool {
        true
    }
    /// What has input for the device; nothing while it has no use for input.
    fn source(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// A snapshot is taken, or none is there any more: what is behind the device must be able to
    /// go back.
    fn keep(&mut self, _kept: bool) -> std::io::Result<()> {
        Ok(())
    }
    /// Whether what is behind the device can go back.
    fn is_kept(&self) -> bool {
        true
    }
    /// What is behind the device goes back to the snapshot.
    fn go_back(&mut self) -> std::io::Result<()> {
        Ok(())
    }
    /// What is behind the device is copied to a file, if it is one that a fork needs of its own.
    fn copy(&mut self, _file: &std::fs::File) -> std::io::Result<()> {
        Ok(())
    }
    /// The source has input.
    fn input(&mut self, _queues: &mut [QueueAccess]) {}
    /// What takes output of the device that waits for room; nothing while none waits.
    fn sink(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// The sink has room.
    fn output(&mut self) {}
}
