// SPDX-License-Identifier: GPL-2.0-only

//! The buses: which device answers at which I/O port, and at which address of memory.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// What a read finds where nothing answers.
const NOTHING: u8 = 0xff;

/// A device on I/O ports. Offsets count from its first port; an access may reach beyond its last
/// one.
pub(crate) trait PortDevice: Send {
    /// Reads 1, 2 or 4 bytes. What the device leaves alone reads as ones.
    fn read(&mut self, offset: u16, data: &mut [u8]);
    /// Writes 1, 2 or 4 bytes.
    fn write(&mut self, offset: u16, data: &[u8]);
}

/// A device whose ports are one byte wide: wider accesses fall apart into bytes, as on the ISA bus.
pub(crate) trait ByteDevice: Send {
    /// Reads a port.
    fn read(&mut self, offset: u16) -> u8;
    /// Writes a port.
    fn write(&mut self, offset: u16, value: u8);
}

impl<T: ByteDevice> PortDevice for T {
    fn read(&mut self, offset: u16, data: &mut [u8]) {
        for (offset, byte) in (offset..=u16::MAX).zip(data) {
            *byte = ByteDevice::read(self, offset);
        }
    }

    fn write(&mut self, offset: u16, data: &[u8]) {
        for (offset, byte) in (offset..=u16::MAX).zip(data) {
            ByteDevice::write(self, offset, *byte);
        }
    }
}

/// A device in the memory of the machine. Offsets count from its first address; an access may reach
/// beyond its last one.
pub(crate) trait MemoryDevice: Send {
    /// Reads up to 8 bytes. What the device leaves alone reads as ones.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Writes up to 8 bytes.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device that several threads use.
pub(crate) type Shared<T> = Arc<Mutex<T>>;

/// Locks a shared device. A thread that panicked with the lock ends the program anyway.
pub(crate) fn lock<T: ?Sized>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device and its ports.
struct Slot {
    first: u16,
    count: u16,
    device: Shared<dyn PortDevice>,
}

/// All devices. It does not change while the guest runs.
#[derive(Default)]
pub(crate) struct Bus {
    slots: Vec<Slot>,
    memory: Vec<(Range<u64>, Shared<dyn MemoryDevice>)>,
}

impl Bus {
    /// Puts a device on `count` ports from `first` on. Where ports overlap, the earlier device
    /// answers.
    pub(crate) fn add(&mut self, first: u16, count: u16, device: Shared<dyn PortDevice>) {
        self.slots.push(Slot {
            first,
            count,
            device,
        });
    }

    /// Puts a device at these addresses. Where addresses overlap, the earlier device answers.
    pub(crate) fn add_memory(&mut self, addresses: Range<u64>, device: Shared<dyn MemoryDevice>) {
        self.memory.push((addresses, device));
    }

    /// The device at an address, and the address's offset within it.
    fn find_memory(&self, address: u64) -> Option<(u64, &Shared<dyn MemoryDevice>)> {
        self.memory.iter().find_map(|(range, device)| {
            range
                .contains(&address)
                .then(|| (address - range.start, device))
        })
    }

    /// Reads from memory that is a device's.
    pub(crate) fn read_memory(&self, address: u64, data: &mut [u8]) {
        data.fill(NOTHING);
        if let Some((offset, device)) = self.find_memory(address) {
            lock(device).read(offset, data);
        }
    }

    /// Writes to memory that is a device's.
    pub(crate) fn write_memory(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find_memory(address) {
            lock(device).write(offset, data);
        }
    }

    /// The device at a port, and the port's offset within it.
    fn find(&self, port: u16) -> Option<(u16, &Shared<dyn PortDevice>)> {
        self.slots.iter().find_map(|slot| {
            let offset = port.checked_sub(slot.first)?;
            (offset < slot.count).then_some((offset, &slot.device))
        })
    }

    /// Reads from a port; `data` may hold several accesses of `size` bytes to the same port.
    pub(crate) fn read(&self, port: u16, size: usize, data: &mut [u8]) {
        data.fill(NOTHING);
        if let Some((offset, device)) = self.find(port) {
            let mut device = lock(device);
            for access in data.chunks_mut(size.max(1)) {
                device.read(offset, access);
            }
        }
    }

    /// Writes to a port; `data` may hold several accesses of `size` bytes to the same port.
    pub(crate) fn write(&self, port: u16, size: usize, data: &[u8]) {
        if let Some((offset, device)) = self.find(port) {
            let mut device = lock(device);
            for access in data.chunks(size.max(1)) {
                device.write(offset, access);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Log(Vec<(u16, u8)>);

    impl ByteDevice for Log {
        fn read(&mut self, offset: u16) -> u8 {
            offset as u8
        }
        fn write(&mut self, offset: u16, value: u8) {
            self.0.push((offset, value));
        }
    }

    #[test]
    fn nothing_reads_as_ones() {
        let bus = Bus::default();
        let mut data = [0; 4];
        bus.read(0xcf8, 4, &mut data);
        assert_eq!(data, [0xff; 4]);
        bus.write(0xcf8, 4, &data);
    }

    #[test]
    fn wide_accesses_fall_apart_and_repeated_ones_do_not_move() {
        let log = Shared::new(Mutex::new(Log::default()));
        let mut bus = Bus::default();
        bus.add(0x3f8, 8, log.clone());
        bus.write(0x3f9, 2, &[1, 2, 3, 4]);
        assert_eq!(lock(&log).0, [(1, 1), (2, 2), (1, 3), (2, 4)]);
        let mut data = [0; 2];
        bus.read(0x3ff, 1, &mut data);
        assert_eq!(data, [7, 7]);
        bus.read(0x400, 1, &mut data);
        assert_eq!(data, [0xff, 0xff]);
    }

    #[test]
    fn the_last_port_does_not_wrap() {
        let mut bus = Bus::default();
        bus.add(0xffff, 1, Shared::new(Mutex::new(Log::default())));
        let mut data = [0; 4];
        bus.read(0xffff, 4, &mut data);
        assert_eq!(data, [0, 1, 2, 3]);
    }
}
