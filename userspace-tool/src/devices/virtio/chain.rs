// SPDX-License-Identifier: GPL-2.0-only

//! One request of a guest: a chain of descriptors, of which each is read once.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, ReadVolatile, WriteVolatile};

use crate::memory::GuestMemory;

/// Guest memory that belongs to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Buffer {
    address: GuestAddress,
    length: u32,
}

/// What is wrong with a request: it is too short for what is wanted, or its memory is not there, or
/// the host cannot do it.
#[derive(Debug)]
pub(crate) struct Failed;

/// What is answered where a request can fail.
pub(crate) type Served<T> = Result<T, Failed>;

impl<E: std::error::Error> From<E> for Failed {
    fn from(_: E) -> Self {
        Self
    }
}

/// A request: first what the device reads, then what it writes. Both are used up from the front.
#[derive(Debug)]
pub(crate) struct Chain {
    head: u16,
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
    written: u32,
}

impl Chain {
    /// Reads the descriptors.
    pub(crate) fn new(descriptors: DescriptorChain<&GuestMemory>) -> Self {
        let mut chain = Self {
            head: descriptors.head_index(),
            readable: Vec::new(),
            writable: Vec::new(),
            written: 0,
        };
        for descriptor in descriptors {
            let buffer = Buffer {
                address: descriptor.addr(),
                length: descriptor.len(),
            };
            match descriptor.is_write_only() {
                true => chain.writable.push(buffer),
                false => chain.readable.push(buffer),
            }
        }
        // They are used from the end.
        chain.readable.reverse();
        chain.writable.reverse();
        chain
    }

    /// The number by which the guest knows it, and how many bytes were written to it.
    pub(crate) fn result(&self) -> (u16, u32) {
        (self.head, self.written)
    }

    /// How many bytes there are to read.
    pub(crate) fn readable(&self) -> u64 {
        total(&self.readable)
    }

    /// How many bytes there are to write.
    pub(crate) fn writable(&self) -> u64 {
        total(&self.writable)
    }

    /// Reads bytes, all or none.
    pub(crate) fn read(&mut self, memory: &GuestMemory, bytes: &mut [u8]) -> Served<()> {
        let mut done = 0;
        take(&mut self.readable, bytes.len() as u64, |buffer| {
            let part = &mut bytes[done..][..buffer.length as usize];
            done += part.len();
            Ok(memory.read_slice(part, buffer.address)?)
        })
    }

    /// Writes bytes, all or none.
    pub(crate) fn write(&mut self, memory: &GuestMemory, bytes: &[u8]) -> Served<()> {
        let mut done = 0;
        take(&mut self.writable, bytes.len() as u64, |buffer| {
            let part = &bytes[done..][..buffer.length as usize];
            done += part.len();
            Ok(memory.write_slice(part, buffer.address)?)
        })?;
        self.written = self.written.saturating_add(bytes.len() as u32);
        Ok(())
    }

    /// Moves `count` bytes of the request to `sink`, without a copy in between.
    pub(crate) fn read_to<F: WriteVolatile>(
        &mut self,
        memory: &GuestMemory,
        sink: &mut F,
        count: u64,
    ) -> Served<()> {
        take(&mut self.readable, count, |buffer| {
            Ok(memory.write_all_volatile_to(buffer.address, sink, buffer.length as usize)?)
        })
    }

    /// Fills `count` bytes of the request from `source`, without a copy in between.
    pub(crate) fn write_from<F: ReadVolatile>(
        &mut self,
        memory: &GuestMemory,
        source: &mut F,
        count: u64,
    ) -> Served<()> {
        take(&mut self.writable, count, |buffer| {
            Ok(memory.read_exact_volatile_from(buffer.address, source, buffer.length as usize)?)
        })?;
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.written = self.written.saturating_add(count);
        Ok(())
    }

    /// Takes the last byte to write away: the place of a status.
    pub(crate) fn take_status(&mut self) -> Served<Status> {
        // The first of the list is the last of the request; empty ones are passed over.
        let buffer = self.writable.iter_mut().find(|buffer| buffer.length > 0);
        let buffer = buffer.ok_or(Failed)?;
        let address = buffer.address.0.checked_add(u64::from(buffer.length) - 1);
        buffer.length -= 1;
        Ok(Status(GuestAddress(address.ok_or(Failed)?)))
    }

    /// Writes the status.
    pub(crate) fn finish(&mut self, memory: &GuestMemory, status: &Status, value: u8) {
        // Without memory there, the guest has no use for it either.
        if memory.write_slice(&[value], status.0).is_ok() {
            self.written = self.written.saturating_add(1);
        }
    }
}

/// Where the status of a request goes.
#[derive(Debug)]
pub(crate) struct Status(GuestAddress);

fn total(buffers: &[Buffer]) -> u64 {
    buffers
        .iter()
        .fold(0, |sum, buffer| sum + u64::from(buffer.length))
}

/// Calls `action` with the next `count` bytes, piece by piece. None if there are not so many.
fn take(
    buffers: &mut Vec<Buffer>,
    count: u64,
    mut action: impl FnMut(Buffer) -> Served<()>,
) -> Served<()> {
    if count > total(buffers) {
        return Err(Failed);
    }
    let mut rest = count;
    while rest > 0 {
        let mut piece = buffers.pop().ok_or(Failed)?;
        let used = u64::from(piece.length).min(rest);
        if used < u64::from(piece.length) {
            let next = piece.address.0.checked_add(used).ok_or(Failed)?;
            buffers.push(Buffer {
                address: GuestAddress(next),
                length: piece.length - used as u32,
            });
            piece.length = used as u32;
        }
        if used > 0 {
            action(piece)?;
        }
        rest -= used;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::MIB;
    use crate::memory::allocate;

    fn buffers(list: &[(u64, u32)]) -> Vec<Buffer> {
        let buffer = |&(address, length)| Buffer {
            address: GuestAddress(address),
            length,
        };
        list.iter().rev().map(buffer).collect()
    }

    fn chain(readable: &[(u64, u32)], writable: &[(u64, u32)]) -> Chain {
        Chain {
            head: 3,
            readable: buffers(readable),
            writable: buffers(writable),
            written: 0,
        }
    }

    #[test]
    fn bytes_come_in_order_over_the_edges_of_buffers() {
        let memory = allocate(2 * MIB).unwrap();
        memory.write_slice(b"abcdef", GuestAddress(0x100)).unwrap();
        let mut chain = chain(
            &[(0x103, 3), (0x1000, 0), (0x100, 2)],
            &[(0x200, 2), (0x300, 4)],
        );
        let mut bytes = [0; 4];
        chain.read(&memory, &mut bytes).unwrap();
        assert_eq!(bytes, *b"defa");
        assert_eq!(chain.readable(), 1);
        assert!(chain.read(&memory, &mut [0; 2]).is_err());
        chain.read(&memory, &mut bytes[..1]).unwrap();
        assert_eq!(bytes[0], b'b');

        let status = chain.take_status().unwrap();
        assert_eq!(chain.writable(), 5);
        chain.write(&memory, b"12345").unwrap();
        assert!(chain.write(&memory, b"6").is_err());
        chain.finish(&memory, &status, 9);
        let mut bytes = [0; 4];
        memory.read_slice(&mut bytes, GuestAddress(0x300)).unwrap();
        assert_eq!(bytes, [b'3', b'4', b'5', 9]);
        assert_eq!(chain.result(), (3, 6));
    }

    #[test]
    fn memory_that_is_not_there_fails() {
        let memory = allocate(2 * MIB).unwrap();
        let mut bytes = [0; 8];
        for address in [2 * MIB - 4, 2 * MIB, u64::MAX - 2, u64::MAX] {
            let mut chain = chain(&[(address, 8)], &[(address, 8)]);
            assert!(chain.read(&memory, &mut bytes).is_err(), "{address:x}");
            assert!(chain.write(&memory, &bytes).is_err(), "{address:x}");
            assert_eq!(chain.result(), (3, 0));
        }
        assert!(chain(&[], &[(7, 0)]).take_status().is_err());
        assert!(chain(&[], &[(u64::MAX, 2)]).take_status().is_err());
    }
}
