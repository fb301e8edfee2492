// SPDX-License-Identifier: GPL-2.0-only

//! The network device (virtio 1.2, 5.1). Frames come and go by a [`Link`]. There are no offloads:
//! each frame is whole, and has its checksums.

use std::os::fd::BorrowedFd;

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP};

use super::chain::{Chain, Failed, Served};
use super::link::{Link, FRAME_LIMIT};
use super::worker::QueueAccess;
use super::{Device, Kind};
use crate::memory::GuestMemory;

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// The header before each frame (5.1.6.1), and where in it the number of buffers stands.
const HEADER_SIZE: usize = 12;
/// The shortest frame: two addresses and the type.
const FRAME_LEAST: usize = 14;
const HEADER_BUFFERS: usize = 10;

// The queues.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// The device.
pub(crate) struct Net {
    mac: Mac,
    link: Box<dyn Link>,
    /// The guest has room for a frame.
    room: bool,
    frame: Box<[u8; FRAME_LIMIT]>,
}

impl Net {
    /// A device with this address.
    pub(crate) fn new(mac: Mac, link: Box<dyn Link>) -> Self {
        Self {
            mac,
            link,
            room: false,
            frame: Box::new([0; FRAME_LIMIT]),
        }
    }

    /// Sends the frame of a request.
    fn transmit(&mut self, memory: &GuestMemory, chain: &mut Chain) -> Served<()> {
        chain.read(memory, &mut [0; HEADER_SIZE])?;
        let length = chain.readable() as usize;
        let frame = self.frame.get_mut(..length).ok_or(Failed)?;
        // passt ends at what is shorter than the addresses and the type.
        if length < FRAME_LEAST {
            return Err(Failed);
        }
        chain.read(memory, frame)?;
        self.link.send(frame);
        Ok(())
    }

    /// Puts a frame into a request. One that does not fit is lost, as on a wire.
    fn receive(memory: &GuestMemory, chain: &mut Chain, frame: &[u8]) -> Served<()> {
        if chain.writable() < (HEADER_SIZE + frame.len()) as u64 {
            return Err(Failed);
        }
        let mut header = [0; HEADER_SIZE];
        header[HEADER_BUFFERS] = 1;
        chain.write(memory, &header)?;
        chain.write(memory, frame)
    }
}

impl Device for Net {
    fn kind(&self) -> Kind {
        Kind {
            number: VIRTIO_ID_NET as u16,
            name: "net",
            class: [0x00, 0x00, 0x02],
        }
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS
    }

    fn queues(&self) -> usize {
        2
    }

    /// The address, and that the link is up (5.1.4).
    fn config(&self) -> Vec<u8> {
        [&self.mac[..], &(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes()].concat()
    }

    fn start(&mut self, _features: u64) {
        self.room = false;
    }

    fn serve(&mut self, index: usize, queues: &mut [QueueAccess]) {
        match (index, queues.get_mut(index)) {
            (RECEIVE, _) => self.room = true,
            (TRANSMIT, Some(queue)) => queue.each(|memory, chain| {
                // What is no frame is not sent.
                let _ = self.transmit(memory, chain);
            }),
            _ => {}
        }
    }

    fn wants(&self, index: usize) -> bool {
        index != RECEIVE || !self.room
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        self.room.then(|| self.link.source()).flatten()
    }

    fn sink(&self) -> Option<BorrowedFd<'_>> {
        self.link.sink()
    }

    fn output(&mut self) {
        self.link.flush();
    }

    fn input(&mut self, queues: &mut [QueueAccess]) {
        let Some(queue) = queues.get_mut(RECEIVE) else {
            return;
        };
        for _ in 0..queue.size() {
            let Some(mut chain) = queue.pop() else {
                // The doorbell says when there is room again.
                self.room = false;
                break;
            };
            let Some(length) = self.link.receive(&mut self.frame[..]) else {
                queue.put_back();
                break;
            };
            let memory = queue.memory().clone();
            let _ = Self::receive(&memory, &mut chain, &self.frame[..length]);
            queue.done(&chain);
        }
        queue.announce();
    }
}
