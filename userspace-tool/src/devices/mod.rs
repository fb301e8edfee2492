// SPDX-License-Identifier: GPL-2.0-only

//! The devices that this program emulates: those of an old PC on I/O ports, and virtio's on PCI.

pub(crate) mod bus;
pub(crate) mod pci;
pub(crate) mod power;
pub(crate) mod rtc;
pub(crate) mod serial;
pub(crate) mod virtio;

mod plugged;

pub(crate) use plugged::{random_mac, Devices, Network, Plug};
pub(crate) use virtio::block::DiskFile;
