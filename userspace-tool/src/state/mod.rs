// SPDX-License-Identifier: GPL-2.0-only

//! What a machine is at an instant, but for its memory: plain values, which can be kept in a file.
//! All of it goes by ioctls that KVM and the module have alike, so that each takes what the other
//! has given.

pub(crate) mod chips;
pub(crate) mod file;
pub(crate) mod vcpu;

#[cfg(test)]
mod random;

use serde::{Deserialize, Serialize};

use crate::devices;

/// The state of a machine.
#[derive(Serialize, Deserialize)]
pub(crate) struct State {
    /// What the machine is, as its machine.toml has it.
    pub(crate) machine: String,
    /// Its processors.
    pub(crate) vcpus: Vec<vcpu::State>,
    /// Its interrupt controllers and clocks, if it has them.
    pub(crate) chips: Option<chips::State>,
    /// Its devices.
    pub(crate) devices: Devices,
}

/// The states of all devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Devices {
    pub(crate) serial: devices::serial::State,
    /// The register of the clock that is selected.
    pub(crate) rtc: u8,
    pub(crate) power: devices::power::State,
    pub(crate) pci: devices::pci::State,
    /// The virtio devices, in the order of their numbers on the bus.
    pub(crate) functions: Vec<devices::virtio::pci::State>,
}
