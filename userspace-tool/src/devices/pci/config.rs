// SPDX-License-Identifier: GPL-2.0-only

//! The configuration space of a PCI function (PCI Local Bus Specification 3.0, chapter 6).

use serde::{Deserialize, Serialize};

/// The size of a function's configuration space.
pub(crate) const SIZE: usize = 256;

// Registers of the header (6.1).
const VENDOR: usize = 0x00;
const DEVICE: usize = 0x02;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const BAR: usize = 0x10;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const SUBSYSTEM: usize = 0x2e;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;

/// Command: accesses to memory space are answered, and the function may be a bus master.
const COMMAND_WRITABLE: u8 = COMMAND_MEMORY | 1 << 2;
const COMMAND_MEMORY: u8 = 1 << 1;
/// Command, upper byte: no legacy interrupts.
const COMMAND_NO_INTX: u8 = 1 << 2;
/// Status: there is a list of capabilities.
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Where capabilities begin.
const FIRST_CAPABILITY: usize = 0x40;
/// The least size of a window: the low bits of its register say what kind of space it is in.
const BAR_GRAIN: u32 = 16;

/// What a function says it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    /// The vendor and its number of the device.
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    /// Of the subsystem, the same.
    pub(crate) subsystem: (u16, u16),
    pub(crate) revision: u8,
    /// Interface, subclass, class.
    pub(crate) class: [u8; 3],
}

/// The bytes, and which of their bits can be written.
#[derive(Debug, Clone)]
pub(crate) struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    /// Where the last capability has its link, and where the next one may begin.
    link: usize,
    free: usize,
    window: Option<Window>,
}

/// The state of a configuration space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    bytes: Vec<u8>,
    asked: bool,
}

/// A window of memory: it lies where the machine has put it. What is written to its register only
/// says whether the next read shows its size.
#[derive(Debug, Clone, Copy)]
struct Window {
    address: u32,
    size: u32,
    asked: bool,
}

impl ConfigSpace {
    /// A function with neither a window nor capabilities.
    pub(crate) fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            link: CAPABILITIES,
            free: FIRST_CAPABILITY,
            window: None,
        };
        space.put(VENDOR, &identity.vendor.to_le_bytes());
        space.put(DEVICE, &identity.device.to_le_bytes());
        space.put(REVISION, &[identity.revision]);
        space.put(CLASS, &identity.class);
        space.put(SUBSYSTEM_VENDOR, &identity.subsystem.0.to_le_bytes());
        space.put(SUBSYSTEM, &identity.subsystem.1.to_le_bytes());
        space.writable[COMMAND] = COMMAND_WRITABLE;
        space.writable[COMMAND + 1] = COMMAND_NO_INTX;
        space.writable[INTERRUPT_LINE] = 0xff;
        space
    }

    /// Gives it a window of memory of this size, a power of two, which the first register names.
    pub(crate) fn set_window(&mut self, address: u32, size: u32) {
        debug_assert!(size.is_power_of_two() && size >= BAR_GRAIN && address % size == 0);
        self.put(COMMAND, &[COMMAND_MEMORY]);
        self.window = Some(Window {
            address,
            size,
            asked: false,
        });
    }

    /// Whether the guest wants the window to answer.
    pub(crate) fn window_answers(&self) -> bool {
        self.bytes[COMMAND] & COMMAND_MEMORY != 0
    }

    /// Adds a capability, whose two first bytes, number and link, are not in `contents`; returns
    /// its offset.
    pub(crate) fn add_capability(&mut self, number: u8, contents: &[u8]) -> usize {
        let at = self.free;
        self.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.put(self.link, &[at as u8]);
        self.put(at, &[number, 0]);
        self.put(at + 2, contents);
        self.link = at + 1;
        self.free = (at + 2 + contents.len()).next_multiple_of(4);
        at
    }

    /// Lets the guest write these bits of a byte.
    pub(crate) fn make_writable(&mut self, offset: usize, bits: u8) {
        self.writable[offset] |= bits;
    }

    /// A byte as it is.
    pub(crate) fn byte(&self, offset: usize) -> u8 {
        self.bytes.get(offset).copied().unwrap_or(0xff)
    }

    /// What the guest has written: all bytes, and whether it has asked for the window's size.
    pub(crate) fn state(&self) -> State {
        State {
            bytes: self.bytes.to_vec(),
            asked: self.window.is_some_and(|window| window.asked),
        }
    }

    /// As if the guest had written all that: what it cannot write stays as it is.
    pub(crate) fn restore(&mut self, state: &State) {
        for (offset, byte) in state.bytes.iter().enumerate().take(SIZE) {
            self.write(offset, &[*byte]);
        }
        if let Some(window) = &mut self.window {
            window.asked = state.asked;
        }
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Reads up to four bytes.
    pub(crate) fn read(&self, offset: usize, data: &mut [u8]) {
        let window = self.window.map(|window| match window.asked {
            true => (!(window.size - 1)).to_le_bytes(),
            false => window.address.to_le_bytes(),
        });
        for (offset, byte) in (offset..SIZE).zip(data) {
            *byte = match (window, offset.checked_sub(BAR)) {
                (Some(register), Some(index)) if index < register.len() => register[index],
                _ => self.bytes[offset],
            };
        }
    }

    /// Writes up to four bytes.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) {
        if let (Some(window), BAR) = (&mut self.window, offset) {
            window.asked = data == [0xff; 4];
        }
        for (offset, value) in (offset..SIZE).zip(data) {
            let (byte, bits) = (&mut self.bytes[offset], self.writable[offset]);
            *byte = *byte & !bits | value & bits;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            subsystem: (0x1af4, 0x40),
            revision: 1,
            class: [0, 0x80, 1],
        })
    }

    fn dword(space: &ConfigSpace, offset: usize) -> u32 {
        let mut data = [0xff; 4];
        space.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn only_some_bits_can_be_written() {
        let mut space = space();
        for offset in (0..SIZE).step_by(4) {
            space.write(offset, &[0xff; 4]);
        }
        assert_eq!(dword(&space, 0), 0x1042_1af4);
        assert_eq!(dword(&space, 4), 0x0000_0406);
        assert_eq!(dword(&space, 8), 0x0180_0001);
        assert_eq!(dword(&space, 0x3c), 0xff);
        // Beyond the end nothing answers, and nothing panics.
        space.write(SIZE - 1, &[1, 2, 3, 4]);
        assert_eq!(dword(&space, SIZE - 1), 0xffff_ff00);
        space.write(usize::MAX, &[1]);
    }

    #[test]
    fn the_window_tells_its_size_and_stays() {
        let mut space = space();
        space.set_window(0xc000_8000, 0x8000);
        assert!(space.window_answers());
        assert_eq!(dword(&space, BAR), 0xc000_8000);
        space.write(BAR, &[0xff; 4]);
        assert_eq!(dword(&space, BAR), 0xffff_8000);
        space.write(BAR, &0x1000u32.to_le_bytes());
        assert_eq!(dword(&space, BAR), 0xc000_8000);
        assert_eq!(dword(&space, BAR + 4), 0);
        space.write(COMMAND, &[0, 0]);
        assert!(!space.window_answers());
    }

    #[test]
    fn capabilities_are_a_list() {
        let mut space = space();
        assert_eq!(dword(&space, CAPABILITIES), 0);
        let first = space.add_capability(9, &[5; 11]);
        let second = space.add_capability(0x11, &[6; 2]);
        assert_eq!(space.byte(CAPABILITIES), first as u8);
        assert_eq!(dword(&space, first), 0x0505_0009 | (second as u32) << 8);
        assert_eq!(dword(&space, second), 0x0606_0011);
        assert_eq!((first % 4, second % 4), (0, 0));
        assert_eq!(space.byte(STATUS), 0x10);
    }
}
