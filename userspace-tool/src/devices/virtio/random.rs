// SPDX-License-Identifier: GPL-2.0-only

//! Guests at random: queues full of nonsense for each device, and registers written without sense.
//! What a device may not touch stays as it is, and nothing panics or hangs.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::block::{Block, DiskFile};
use super::entropy::Entropy;
use super::link::Stream;
use super::net::Net;
use super::pci::{VirtioPci, WINDOW_SIZE};
use super::worker::{Interrupt, QueueAccess};
use super::Device;
use crate::devices::bus::MemoryDevice;
use crate::devices::pci::msix::tests::Noted;
use crate::devices::pci::msix::Msix;
use crate::devices::pci::Function;
use crate::layout::MIB;
use crate::memory::{allocate, GuestMemory};

/// How many queues each device is given.
const ROUNDS: u64 = 100_000;

/// Numbers that look random (xorshift64*, G. Marsaglia and S. Vigna).
pub(crate) struct Random(u64);

impl Random {
    /// The numbers of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// One time in `times`.
    fn seldom(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

// Where things lie: the rings, an indirect table, buffers, and a page that no request may write to.
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const INDIRECT: u64 = 0x4000;
const BUFFERS: u64 = 0x1_0000;
const BUFFERS_SIZE: u64 = 0x1_0000;
const KEPT: u64 = 0x10_0000;
const KEPT_SIZE: usize = 4096;
const MEMORY: u64 = 2 * MIB;
const ENTRIES: u16 = 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT_FLAG: u16 = 4;

/// A descriptor, mostly of the right shape.
fn descriptor(random: &mut Random) -> [u8; 16] {
    let mut flags = [NEXT, NEXT | WRITE, WRITE, 0, INDIRECT_FLAG][random.below(5) as usize];
    let (mut address, mut length) = match random.below(8) {
        0 => (MEMORY - random.below(64), random.below(128)),
        1 => (u64::MAX - random.below(64), random.below(128)),
        2 => (random.next(), random.next()),
        3 => (KEPT + random.below(64), random.below(4000)),
        _ => (BUFFERS + random.below(BUFFERS_SIZE), random.below(600)),
    };
    if random.seldom(2) {
        length = [0, 1, 12, 16, 512, 528, 1024][random.below(7) as usize];
    }
    if flags & INDIRECT_FLAG != 0 {
        (address, length) = (INDIRECT, 16 * random.below(20));
    }
    let end = address.saturating_add(length & 0xffff_ffff);
    let meets = address < KEPT + KEPT_SIZE as u64 && end > KEPT;
    let rings = address < INDIRECT && end > DESCRIPTORS;
    if meets || rings {
        flags &= !WRITE;
    }
    if random.seldom(50) {
        flags |= (random.next() as u16) & !WRITE;
    }
    let next = match random.seldom(10) {
        true => random.next() as u16,
        false => random.below(ENTRIES.into()) as u16,
    };
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&(length as u32).to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

/// Fills rings and some buffers.
fn fill(random: &mut Random, memory: &GuestMemory) {
    let put = |address, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(address)).unwrap();
    for index in 0..u64::from(ENTRIES) {
        put(DESCRIPTORS + 16 * index, &descriptor(random));
        put(INDIRECT + 16 * index, &descriptor(random));
        put(
            AVAILABLE + 4 + 2 * index,
            &(random.below(20) as u16).to_le_bytes(),
        );
    }
    let index = match random.seldom(20) {
        true => random.next() as u16,
        false => random.below(u64::from(ENTRIES) + 1) as u16,
    };
    put(AVAILABLE, &[0, 0]);
    put(AVAILABLE + 2, &index.to_le_bytes());
    // Headers of requests where buffers often begin.
    for _ in 0..8 {
        let kind = [0, 1, 4, 8, 11, 13, 2, 99][random.below(8) as usize];
        let sector = [0, 1, 7, 31, 32, 33, u64::MAX, 1 << 55][random.below(8) as usize];
        let header = [kind, sector, random.next()].map(u64::to_le_bytes).concat();
        put(BUFFERS + random.below(BUFFERS_SIZE - 64), &header);
    }
}

fn queue(random: &mut Random) -> Queue {
    let mut queue = Queue::new(ENTRIES).unwrap();
    let mut place = |address: u64, align: u64| match random.seldom(100) {
        true => GuestAddress(random.next() / align * align),
        false => GuestAddress(address),
    };
    let (descriptors, available, used) =
        (place(DESCRIPTORS, 16), place(AVAILABLE, 2), place(USED, 4));
    queue.try_set_desc_table_address(descriptors).unwrap();
    queue.try_set_avail_ring_address(available).unwrap();
    // Rings elsewhere may lie where something else is, on purpose of the guest.
    queue
        .try_set_used_ring_address(match used.0 {
            address if address < MEMORY => GuestAddress(USED),
            _ => used,
        })
        .unwrap();
    queue.set_event_idx(random.seldom(2));
    queue.set_ready(!random.seldom(50));
    queue
}

/// Serves queues at random; before each, `prepare` may do something to the other end.
fn serve(seed: u64, device: &mut dyn Device, mut prepare: impl FnMut(&mut Random)) {
    let random = &mut Random::new(seed);
    let memory = allocate(MEMORY).unwrap();
    let kept = [0x5a; KEPT_SIZE];
    memory.write_slice(&kept, GuestAddress(KEPT)).unwrap();
    let routes = Arc::new(Noted::default());
    let msix = Arc::new(Mutex::new(Msix::new(3, routes).unwrap()));
    let interrupt = Interrupt::new(msix);
    for round in 0..ROUNDS {
        fill(random, &memory);
        let access = |_| QueueAccess::new(queue(random), memory.clone(), interrupt.clone());
        let mut queues: Vec<_> = (0..device.queues()).map(access).collect();
        device.start(random.next());
        prepare(random);
        for index in 0..queues.len() {
            device.serve(index, &mut queues);
        }
        if device.source().is_some() {
            device.input(&mut queues);
        }
        if round % 1000 == 0 {
            let mut now = [0; KEPT_SIZE];
            memory.read_slice(&mut now, GuestAddress(KEPT)).unwrap();
            assert_eq!(now, kept, "round {round} of seed {seed}");
        }
    }
}

#[test]
fn a_disk_takes_any_request() {
    const SIZE: u64 = 32 * 512;
    let path = std::env::temp_dir().join(format!("pacifica-random-{}", std::process::id()));
    std::fs::write(&path, vec![0; SIZE as usize + 100]).unwrap();
    for read_only in [true, false] {
        let path = path.clone();
        let file = DiskFile { path, read_only };
        // A flush takes as long as the file system likes.
        serve(1, &mut Block::open(&file).unwrap(), |_| {});
        let bytes = std::fs::read(&file.path).unwrap();
        assert_eq!(bytes.len() as u64, SIZE + 100);
        assert_eq!(bytes[SIZE as usize..], [0; 100]);
        assert_eq!(read_only, bytes.iter().all(|byte| *byte == 0));
    }
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn entropy_takes_any_request() {
    serve(2, &mut Entropy::open().unwrap(), |_| {});
}

#[test]
fn a_network_takes_any_request() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut net = Net::new([2, 0, 0, 0, 0, 1], Box::new(Stream::new(ours).unwrap()));
    serve(3, &mut net, |random| {
        use std::io::Read;
        let length = random.below(1600) as usize;
        let frame = [&(length as u32).to_be_bytes()[..], &vec![7; length]].concat();
        // When it is full, frames wait there.
        if random.seldom(4) {
            let _ = (&theirs).write(&frame[..0]);
            let mut all = Vec::new();
            let _ = (&theirs).read_to_end(&mut all);
            let _ = (&theirs).write_all(&frame);
        }
    });
}

#[test]
fn registers_take_any_access() {
    let random = &mut Random::new(4);
    let memory = allocate(MEMORY).unwrap();
    let routes = Arc::new(Noted::default());
    let device = Arc::new(Mutex::new(Entropy::open().unwrap()));
    let mut function = VirtioPci::new(device, 0xc000_0000, memory.clone(), routes).unwrap();
    let mut started = 0;
    for round in 0..ROUNDS {
        let mut data = [0; 8];
        data.copy_from_slice(
            &match random.below(4) {
                0 => random.next(),
                1 => u64::MAX,
                2 => [DESCRIPTORS, AVAILABLE, USED][random.below(3) as usize],
                _ => random.below(17),
            }
            .to_le_bytes(),
        );
        let size = [1, 2, 4, 8][random.below(4) as usize];
        let offset = match random.seldom(3) {
            true => random.below(WINDOW_SIZE.into()),
            false => random.below(0x40) & !(size as u64 - 1),
        };
        match random.below(8) {
            0 => function.read_config(random.below(260) as usize, &mut data[..4]),
            1 => function.write_config(random.below(260) as usize, &data[..4]),
            2 | 3 => MemoryDevice::read(&mut function, offset, &mut data[..size]),
            _ => MemoryDevice::write(&mut function, offset, &data[..size]),
        }
        // Now and then a driver that knows what it does, up to a point.
        if round % 200 == 0 {
            fill(random, &memory);
            function.write_config(4, &[6, 0]);
            for (offset, value, size) in [
                (0x14, 0, 1),
                (0x08, 1, 4),
                (0x0c, 1, 4),
                (0x14, 0xb, 1),
                (0x16, 0, 2),
                (0x18, u64::from(ENTRIES), 2),
                (0x20, DESCRIPTORS, 8),
                (0x28, AVAILABLE, 8),
                (0x30, USED, 8),
                (0x1a, 0, 2),
                (0x1c, 1, 2),
                (0x14, 0xf, 1),
            ] {
                let value = u64::to_le_bytes(value);
                MemoryDevice::write(&mut function, offset, &value[..size]);
            }
            let mut status = [0];
            MemoryDevice::read(&mut function, 0x14, &mut status);
            assert_eq!(status[0], 0xf, "round {round}");
            started += 1;
        }
    }
    assert_eq!(started, ROUNDS / 200);
}
