// SPDX-License-Identifier: GPL-2.0-only

//! The entropy device: random numbers of the host's kernel (virtio 1.2, 5.4).

use std::fs::File;
use std::io::Read;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::worker::QueueAccess;
use super::{Device, Kind};
use crate::error::{Error, Result};

/// Where random numbers come from.
const SOURCE: &str = "/dev/urandom";

/// How much one request gets at most. It may get less than it has room for.
const LIMIT: u64 = 4096;

/// The device, with the host's random numbers.
pub(crate) struct Entropy(File);

impl Entropy {
    /// Opens the source, which is there from then on, whatever this program may open later.
    pub(crate) fn open() -> Result<Self> {
        let source = File::open(SOURCE).map_err(|error| Error::system("open", error))?;
        Ok(Self(source))
    }

    /// A source that is open.
    pub(crate) fn given(source: File) -> Self {
        Self(source)
    }
}

impl Device for Entropy {
    fn kind(&self) -> Kind {
        Kind {
            number: VIRTIO_ID_RNG as u16,
            name: "entropy",
            class: [0x00, 0x00, 0xff],
        }
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> usize {
        1
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn start(&mut self, _features: u64) {}

    fn serve(&mut self, index: usize, queues: &mut [QueueAccess]) {
        let Some(queue) = queues.get_mut(index) else {
            return;
        };
        queue.each(|memory, chain| {
            let count = chain.writable().min(LIMIT) as usize;
            let mut bytes = [0; LIMIT as usize];
            // What is not written is not counted: the guest sees that it got nothing.
            if self.0.read_exact(&mut bytes[..count]).is_ok() {
                let _ = chain.write(memory, &bytes[..count]);
            }
        });
    }
}
