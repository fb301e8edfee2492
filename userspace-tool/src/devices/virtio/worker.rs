// SPDX-License-Identifier: GPL-2.0-only

//! The thread that serves a device's queues while its driver is there.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::chain::Chain;
use super::Device;
use crate::devices::bus::{lock, Shared};
use crate::devices::pci::msix::Msix;
use crate::error::{Error, Result};
use crate::eventfd;
use crate::memory::GuestMemory;

/// No vector: the driver wants no interrupt.
pub(crate) const NO_VECTOR: u16 = 0xffff;

/// The interrupt of one queue: the vector that the driver has chosen for it.
#[derive(Clone)]
pub(crate) struct Interrupt {
    msix: Arc<Mutex<Msix>>,
    vector: Arc<AtomicU16>,
}

impl Interrupt {
    /// None is chosen yet.
    pub(crate) fn new(msix: Arc<Mutex<Msix>>) -> Self {
        Self {
            msix,
            vector: Arc::new(AtomicU16::new(NO_VECTOR)),
        }
    }

    /// The vector.
    pub(crate) fn vector(&self) -> u16 {
        self.vector.load(Ordering::Relaxed)
    }

    /// Chooses a vector; one that is not there is none.
    pub(crate) fn set_vector(&self, vector: u16) {
        let there = lock(&self.msix).has(vector);
        let vector = if there { vector } else { NO_VECTOR };
        self.vector.store(vector, Ordering::Relaxed);
    }

    fn send(&self) {
        lock(&self.msix).trigger(self.vector());
    }
}

/// A queue, with the memory that it is in.
pub(crate) struct QueueAccess {
    queue: Queue,
    memory: GuestMemory,
    interrupt: Interrupt,
    /// The guest has broken its rings: they are not looked at any more until the next reset.
    broken: bool,
    /// The worker is to end: no further request is begun.
    ended: Arc<AtomicBool>,
}

impl QueueAccess {
    /// A queue that the driver has set up.
    pub(crate) fn new(queue: Queue, memory: GuestMemory, interrupt: Interrupt) -> Self {
        let broken = !queue.is_valid(&memory);
        Self {
            queue,
            memory,
            interrupt,
            broken,
            ended: Arc::default(),
        }
    }

    /// A queue that goes on where another one was: how many requests it had taken and answered.
    pub(crate) fn resume(&mut self, position: Position) {
        self.queue.set_next_avail(position.taken);
        self.queue.set_next_used(position.answered);
        self.broken |= position.broken;
    }

    /// Where the queue is, between two requests.
    pub(crate) fn position(&self) -> Position {
        Position {
            taken: self.queue.next_avail(),
            answered: self.queue.next_used(),
            broken: self.broken,
        }
    }

    /// Interrupts the guest, which finds out itself whether there is something.
    pub(crate) fn interrupt(&self) {
        self.interrupt.send();
    }

    /// Guest memory.
    pub(crate) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// How many entries the queue has.
    pub(crate) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The next request, if there is one.
    pub(crate) fn pop(&mut self) -> Option<Chain> {
        if self.broken || self.ended.load(Ordering::Relaxed) {
            return None;
        }
        // An index that cannot be right is an error here.
        match self.queue.iter(&self.memory) {
            Ok(mut available) => available.next().map(Chain::new),
            Err(_) => {
                self.broken = true;
                None
            }
        }
    }

    /// The request was not served: it will come again.
    pub(crate) fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// The request has been served.
    pub(crate) fn done(&mut self, chain: &Chain) {
        let (head, written) = chain.result();
        self.broken |= self.queue.add_used(&self.memory, head, written).is_err();
    }

    /// Interrupts the guest, if it wants to hear of what is done.
    pub(crate) fn announce(&mut self) {
        if !self.broken && self.queue.needs_notification(&self.memory).unwrap_or(true) {
            self.interrupt.send();
        }
    }

    /// Asks for the doorbell; says whether something has come meanwhile.
    fn enable_doorbell(&mut self) -> bool {
        !self.broken
            && self
                .queue
                .enable_notification(&self.memory)
                .unwrap_or(false)
    }

    /// Serves one request after the other, as many as the queue has entries, and announces them.
    pub(crate) fn each(&mut self, mut action: impl FnMut(&GuestMemory, &mut Chain)) {
        for _ in 0..self.size() {
            let Some(mut chain) = self.pop() else {
                break;
            };
            action(&self.memory, &mut chain);
            self.done(&chain);
            self.announce();
        }
    }
}

/// Where a queue is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// How many requests were taken, and how many were answered, modulo 65,536.
    taken: u16,
    answered: u16,
    /// The guest has broken its rings.
    broken: bool,
}

/// The thread. It ends when this is dropped.
pub(crate) struct Worker {
    end: EventFd,
    ended: Arc<AtomicBool>,
    handle: Option<JoinHandle<Vec<QueueAccess>>>,
}

impl Worker {
    /// Starts the thread; each queue has a doorbell.
    pub(crate) fn start(
        device: Shared<dyn Device>,
        mut queues: Vec<QueueAccess>,
        doorbells: Vec<EventFd>,
    ) -> Result<Self> {
        let end = eventfd::new()?;
        let flag = Arc::new(AtomicBool::new(false));
        for queue in &mut queues {
            queue.ended = flag.clone();
        }
        let ended = end
            .try_clone()
            .map_err(|error| Error::system("dup", error))?;
        let name = lock(&device).kind().name;
        let handle = thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                serve(&device, &mut queues, &doorbells, &ended);
                queues
            })
            .map_err(|error: io::Error| Error::system("clone", error))?;
        Ok(Self {
            end,
            ended: flag,
            handle: Some(handle),
        })
    }

    /// Ends the thread when it has finished its request, and gives its queues back.
    pub(crate) fn stop(mut self) -> Vec<QueueAccess> {
        self.end()
    }

    fn end(&mut self) -> Vec<QueueAccess> {
        self.ended.store(true, Ordering::Relaxed);
        // The counter of a fresh eventfd cannot overflow.
        let _ = self.end.write(1);
        let handle = self.handle.take();
        // A device that panics is one that stands still.
        handle.map_or_else(Vec::new, |handle| handle.join().unwrap_or_default())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

/// Serves the queues until the end.
fn serve(
    shared: &Shared<dyn Device>,
    queues: &mut [QueueAccess],
    doorbells: &[EventFd],
    end: &EventFd,
) {
    // What the driver has put there before the thread was: as if all doorbells had been rung.
    let mut rung: Vec<usize> = (0..queues.len()).collect();
    loop {
        let mut device = lock(shared);
        for index in std::mem::take(&mut rung) {
            device.serve(index, queues);
        }
        for (index, queue) in queues.iter_mut().enumerate() {
            if device.wants(index) && queue.enable_doorbell() {
                rung.push(index);
            }
        }
        let timeout = match rung.is_empty() {
            true => PollTimeout::NONE,
            false => PollTimeout::ZERO,
        };
        let streams = Streams::of(&*device);
        // Others may look at the device meanwhile.
        drop(device);
        let ready = wait(streams, doorbells, end, timeout);
        if ready.end {
            return;
        }
        for index in ready.doorbells {
            // The counter only says that it was rung.
            let _ = doorbells.get(index).map(EventFd::read);
            if !rung.contains(&index) {
                rung.push(index);
            }
        }
        let mut device = lock(shared);
        if ready.output {
            device.output();
        }
        if ready.input {
            device.input(queues);
        }
    }
}

/// What has happened.
#[derive(Default)]
struct Ready {
    end: bool,
    input: bool,
    output: bool,
    doorbells: Vec<usize>,
}

/// What a device waits for besides doorbells: its source and its sink, by their numbers.
struct Streams {
    source: Option<RawFd>,
    sink: Option<RawFd>,
}

impl Streams {
    fn of(device: &dyn Device) -> Self {
        let number = |stream: Option<BorrowedFd<'_>>| stream.map(|stream| stream.as_raw_fd());
        Self {
            source: number(device.source()),
            sink: number(device.sink()),
        }
    }
}

/// Waits until something happens.
fn wait(streams: Streams, doorbells: &[EventFd], end: &EventFd, timeout: PollTimeout) -> Ready {
    let events = [end].into_iter().chain(doorbells).map(eventfd::borrow);
    let mut descriptors: Vec<_> = events
        .map(|event| PollFd::new(event, PollFlags::POLLIN))
        .collect();
    let first = descriptors.len();
    let both = [
        (streams.source, PollFlags::POLLIN),
        (streams.sink, PollFlags::POLLOUT),
    ];
    descriptors.extend(both.into_iter().filter_map(|(number, events)| {
        // SAFETY: A device opens and closes its streams on this thread only, which does not now.
        let stream = unsafe { BorrowedFd::borrow_raw(number?) };
        Some(PollFd::new(stream, events))
    }));
    match poll(&mut descriptors, timeout) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ready::default(),
        // There is nothing that could be waited for any more.
        Err(_) => {
            return Ready {
                end: true,
                ..Ready::default()
            }
        }
    }
    let ready = |index: usize| {
        let events = descriptors.get(index).and_then(PollFd::revents);
        events.is_some_and(|events| !events.is_empty())
    };
    Ready {
        end: ready(0),
        input: streams.source.is_some() && ready(first),
        output: streams.sink.is_some() && ready(first + usize::from(streams.source.is_some())),
        doorbells: (0..doorbells.len())
            .filter(|index| ready(1 + index))
            .collect(),
    }
}
