// SPDX-License-Identifier: GPL-2.0-only

//! The PCI bus: the configuration ports, and one function at each device number (PCI Local Bus
//! Specification 3.0, 3.2.2.3.2).

pub(crate) mod config;
pub(crate) mod msix;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::bus::{lock, PortDevice, Shared};
use crate::layout::{PCI_CONFIG, PCI_CONFIG_PORTS, RESET_CONTROL};
use crate::outcome::{Outcome, Stop};
use config::{ConfigSpace, Identity};

/// A function with its configuration space.
pub(crate) trait Function: Send {
    /// Reads up to four bytes. What the function leaves alone reads as ones.
    fn read_config(&mut self, offset: usize, data: &mut [u8]);
    /// Writes up to four bytes.
    fn write_config(&mut self, offset: usize, data: &[u8]);
}

/// The host bridge says itself that it is one, and nothing else.
struct HostBridge(ConfigSpace);

/// Numbers for it that QEMU's vendor has set aside for a host bridge (PCI ID repository:
/// 1b36:0008).
const HOST_BRIDGE: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    subsystem: (0x1af4, 0x1100),
    revision: 0,
    class: [0, 0, 6],
};

impl Function for HostBridge {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.0.write(offset, data);
    }
}

/// The address: this bit says that the data ports are configuration space.
const ENABLE: u32 = 1 << 31;
/// How many devices a bus has room for, the host bridge among them.
pub(crate) const DEVICES: usize = 32;
/// The first data port, from the first configuration port.
const DATA: u16 = 4;
/// The reset control register is a byte in the middle of the address.
const RESET_OFFSET: u16 = RESET_CONTROL - PCI_CONFIG;
/// Reset control: this bit does it.
const RESET_CPU: u8 = 1 << 2;

/// The configuration ports, with the reset control register among them.
pub(crate) struct PciPorts {
    stop: Arc<Stop>,
    reset_control: u8,
    address: u32,
    functions: Vec<Shared<dyn Function>>,
}

/// The state of the ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    address: u32,
    reset_control: u8,
}

impl PciPorts {
    /// The ports after reset, of a bus with nothing but its host bridge.
    pub(crate) fn new(stop: Arc<Stop>) -> Self {
        let bridge = HostBridge(ConfigSpace::new(HOST_BRIDGE));
        Self {
            stop,
            reset_control: 0,
            address: 0,
            functions: vec![Shared::new(std::sync::Mutex::new(bridge))],
        }
    }

    /// Gives a function the next device number. There must be fewer than [`DEVICES`].
    pub(crate) fn add(&mut self, function: Shared<dyn Function>) {
        self.functions.push(function);
    }

    /// The registers.
    pub(crate) fn state(&self) -> State {
        State {
            address: self.address,
            reset_control: self.reset_control,
        }
    }

    /// Puts them back.
    pub(crate) fn restore(&mut self, state: &State) {
        self.address = state.address;
        self.reset_control = state.reset_control & !RESET_CPU;
    }

    /// The function that is addressed, and the offset in its configuration space.
    fn addressed(&self) -> Option<(&Shared<dyn Function>, usize)> {
        let [register, function, bus, _] = self.address.to_le_bytes();
        if self.address & ENABLE == 0 || bus != 0 || function & 7 != 0 {
            return None;
        }
        let device = self.functions.get(usize::from(function >> 3))?;
        Some((device, usize::from(register & !3)))
    }
}

impl PortDevice for PciPorts {
    fn read(&mut self, offset: u16, data: &mut [u8]) {
        match (offset, data.len()) {
            (RESET_OFFSET, 1) => data[0] = self.reset_control,
            (0, 4) => data.copy_from_slice(&self.address.to_le_bytes()),
            (DATA..PCI_CONFIG_PORTS, length) if usize::from(offset - DATA) + length <= 4 => {
                if let Some((function, register)) = self.addressed() {
                    lock(function).read_config(register + usize::from(offset - DATA), data);
                }
            }
            _ => {}
        }
    }

    fn write(&mut self, offset: u16, data: &[u8]) {
        match (offset, data) {
            (RESET_OFFSET, [value]) => {
                self.reset_control = *value & !RESET_CPU;
                if value & RESET_CPU != 0 {
                    self.stop.request(Outcome::Reset);
                }
            }
            (0, &[a, b, c, d]) => self.address = u32::from_le_bytes([a, b, c, d]),
            (DATA..PCI_CONFIG_PORTS, _) if usize::from(offset - DATA) + data.len() <= 4 => {
                if let Some((function, register)) = self.addressed() {
                    lock(function).write_config(register + usize::from(offset - DATA), data);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::power::RESET_SYSTEM;

    fn ports() -> (PciPorts, Arc<Stop>) {
        let stop = Arc::new(Stop::new().unwrap());
        (PciPorts::new(stop.clone()), stop)
    }

    fn read(ports: &mut PciPorts, address: u32, offset: u16, size: usize) -> Vec<u8> {
        ports.write(0, &address.to_le_bytes());
        let mut data = vec![0xff; size];
        ports.read(DATA + offset, &mut data);
        data
    }

    #[test]
    fn the_host_bridge_is_the_first_device() {
        let (mut ports, _) = ports();
        assert_eq!(read(&mut ports, ENABLE, 0, 4), [0x36, 0x1b, 0x08, 0x00]);
        assert_eq!(read(&mut ports, ENABLE, 2, 2), [0x08, 0x00]);
        assert_eq!(read(&mut ports, ENABLE | 8, 3, 1), [6]);
        let mut address = [0; 4];
        ports.read(0, &mut address);
        assert_eq!(u32::from_le_bytes(address), ENABLE | 8);
    }

    #[test]
    fn nothing_else_answers() {
        let (mut ports, _) = ports();
        for address in [0, ENABLE | 1 << 8, ENABLE | 1 << 11, ENABLE | 1 << 16] {
            assert_eq!(read(&mut ports, address, 0, 4), [0xff; 4], "{address:x}");
        }
        assert_eq!(read(&mut ports, ENABLE, 1, 4), [0xff; 4]);
        ports.write(DATA + 3, &[0; 2]);
    }

    #[test]
    fn the_reset_register_is_in_the_middle_of_the_address() {
        let (mut ports, stop) = ports();
        ports.write(0, &[0x00, 0x06, 0x00, 0x80]);
        assert_eq!(stop.outcome(), None);
        ports.write(RESET_OFFSET, &[0x02]);
        let mut value = [0];
        ports.read(RESET_OFFSET, &mut value);
        assert_eq!((value, stop.outcome()), ([2], None));
        ports.write(RESET_OFFSET, &[RESET_SYSTEM]);
        assert_eq!(stop.outcome(), Some(&Outcome::Reset));
    }
}
