// SPDX-License-Identifier: GPL-2.0-only

//! Messages for many vCPUs, from where interrupts are off: a worker brings them.
//!
//! ```text
//!   irqfd, PIT, IOAPIC ─┬─ for a few vCPUs ─────────────────► their inboxes, at once
//!   (interrupts off)    └─ for many ─► queue ─► worker ─────► their inboxes (interrupts on)
//!                                            └► finish(), before the VMM looks at a vCPU
//! ```
//!
//! To wake a thread costs a thousand instructions and more, so hundreds of them are not woken with
//! interrupts off.

use crate::irq::mailbox::Interrupt;
use crate::irq::vcpu_table::VcpuTable;
use crate::linux::{self, IrqLock, TimerCallback, Work};
use irqchip::Destination;
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Full, Relaxed};
use kernel::sync::{Arc, Mutex, SetOnce};
use svm::requests::Requests;

/// How many messages can wait. One that finds no room is brought at once, interrupts or not.
const ROOM: usize = 32;

type Message = (Destination, Interrupt);

/// Messages that wait, the oldest first.
struct Queue {
    messages: [Option<Message>; ROOM],
    first: usize,
    count: usize,
    /// The PIC's output has changed.
    pic: bool,
}

impl Queue {
    const EMPTY: Self = Self {
        messages: [None; ROOM],
        first: 0,
        count: 0,
        pic: false,
    };

    /// False if there is no room. One that is the same as the last is that one.
    fn put(&mut self, message: Message) -> bool {
        let place = |index: usize| (self.first + index) % ROOM;
        if self.count > 0 && self.messages[place(self.count - 1)] == Some(message) {
            return true;
        }
        if self.count == ROOM {
            return false;
        }
        self.messages[place(self.count)] = Some(message);
        self.count += 1;
        true
    }

    fn take(&mut self) -> Option<Message> {
        let message = self.messages[self.first].take()?;
        self.first = (self.first + 1) % ROOM;
        self.count -= 1;
        Some(message)
    }
}

/// What waits to be brought to many vCPUs of a VM.
#[pin_data]
pub(crate) struct Broadcasts {
    /// First, so that it ends before what it uses goes.
    worker: SetOnce<Pin<KBox<Work<Broadcasts>>>>,
    #[pin]
    queue: IrqLock<Queue>,
    /// Not zero while something is in the queue or on its way out of it.
    waiting: Atomic<u32>,
    /// Held by who brings messages.
    #[pin]
    bringing: Mutex<()>,
    vcpu_table: Arc<VcpuTable>,
}

impl Broadcasts {
    /// Nothing waits.
    pub(crate) fn new(vcpu_table: Arc<VcpuTable>) -> impl PinInit<Self> {
        pin_init!(Self {
            worker: SetOnce::new(),
            queue <- IrqLock::new(Queue::EMPTY, c"pacifica_broadcasts", kernel::static_lock_class!()),
            waiting: Atomic::new(0),
            bringing <- kernel::new_mutex!((), "pacifica::broadcasts"),
            vcpu_table,
        })
    }

    /// Makes the worker, once; before that nothing can be put off.
    pub(crate) fn start(&self) -> Result {
        let target: *const Self = self;
        // SAFETY: The worker is a field of its target, and the first to be dropped.
        let worker = KBox::pin_init(unsafe { Work::new(target) }, GFP_KERNEL_ACCOUNT)?;
        // False if a first call has made one: it serves as well.
        self.worker.populate(worker);
        Ok(())
    }

    /// Leaves a message to the worker; whether it could. Any context.
    pub(crate) fn put(&self, to: &Destination, interrupt: &Interrupt) -> bool {
        self.leave(|queue| queue.put((*to, *interrupt)))
    }

    /// The same of the PIC's output, which has changed.
    pub(crate) fn put_pic(&self) -> bool {
        self.leave(|queue| {
            queue.pic = true;
            true
        })
    }

    fn leave(&self, put: impl FnOnce(&mut Queue) -> bool) -> bool {
        let Some(worker) = self.worker.as_ref() else {
            return false;
        };
        let mut queue = self.queue.lock();
        if !put(&mut queue) {
            return false;
        }
        self.waiting.store(1, Relaxed);
        worker.start();
        true
    }

    /// Brings what waits, if anything does: afterwards all that was sent before the call is in the
    /// inboxes, because the queue held no more. May sleep.
    #[inline]
    pub(crate) fn finish(&self) {
        if self.waiting.load(Relaxed) != 0 {
            self.bring();
        }
    }

    /// Brings at most as much as the queue holds; whether nothing is left.
    #[cold]
    fn bring(&self) -> bool {
        let _bringing = self.bringing.lock();
        for _ in 0..ROOM {
            let (message, pic) = {
                let mut queue = self.queue.lock();
                let next = (queue.take(), core::mem::take(&mut queue.pic));
                if let (None, false) = next {
                    self.waiting.xchg(0, Full);
                    return true;
                }
                next
            };
            if let Some((to, interrupt)) = message {
                let mut kicks = self.vcpu_table.kicks();
                self.vcpu_table.deliver(&to, None, &interrupt, &mut kicks);
            }
            if pic {
                let listeners = self.vcpu_table.pic_listeners();
                listeners.for_each(|one| one.request(Requests::EXTINT));
            }
            linux::cond_resched();
        }
        false
    }
}

impl TimerCallback for Broadcasts {
    /// The worker's turn.
    fn expire(&self) {
        if let (false, Some(worker)) = (self.bring(), self.worker.as_ref()) {
            worker.start();
        }
    }
}
