// SPDX-License-Identifier: GPL-2.0-only

//! References to event descriptors.

use super::*;
use kernel::sync::atomic::{Atomic, Relaxed};

/// A reference to an eventfd.
///
/// # Invariants
///
/// `0` is a reference to an eventfd context, owned by this value.
pub(crate) struct Eventfd(NonNull<bindings::eventfd_ctx>);

// SAFETY: Eventfd contexts are reference-counted and have their own locks.
unsafe impl Send for Eventfd {}
// SAFETY: Likewise.
unsafe impl Sync for Eventfd {}

impl Eventfd {
    /// The eventfd behind a descriptor of the calling process; `EBADF`, `EINVAL` if it is none.
    pub(crate) fn get(fd: u32) -> Result<Self> {
        // SAFETY: Any number may be asked for.
        let ctx = unsafe { bindings::eventfd_ctx_fdget(fd as c_int) };
        // SAFETY: Any pointer may be asked about.
        if unsafe { pacifica_is_err(ctx.cast()) } {
            return Err(Error::from_errno(ctx as isize as c_int));
        }
        // INVARIANT: The function gives a reference.
        Ok(Self(NonNull::new(ctx).ok_or(EINVAL)?))
    }

    /// Adds one to its counter. Any context.
    pub(crate) fn signal(&self) {
        // SAFETY: By the invariant.
        unsafe { pacifica_eventfd_signal(self.0.as_ptr()) };
    }

    /// Whether both are the same eventfd.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Drop for Eventfd {
    fn drop(&mut self) {
        // SAFETY: By the invariant the reference is ours.
        unsafe { bindings::eventfd_ctx_put(self.0.as_ptr()) };
    }
}

/// What `pacifica_eventfd_take` answers.
const EVENTFD_WRITTEN: c_int = 1;
const EVENTFD_CLOSED: c_int = 2;

/// What an [`EventfdWaiter`] calls, with interrupts off.
pub(crate) trait EventfdTarget: TimerCallback {
    /// The last descriptor of the eventfd was closed.
    fn closed(&self);
}

/// Calls `target` whenever an eventfd is written, for as long as this lives.
#[pin_data(PinnedDrop)]
pub(crate) struct EventfdWaiter<T: EventfdTarget> {
    #[pin]
    entry: Opaque<bindings::wait_queue_entry>,
    eventfd: Eventfd,
    /// Not zero once `entry` is in the eventfd's queue.
    queued: Atomic<u32>,
    /// Not zero once the last descriptor of the eventfd was closed.
    closed: Atomic<u32>,
    target: T,
}

// SAFETY: The wait queue has its own lock, and `T` is `Sync`.
unsafe impl<T: EventfdTarget + Send> Send for EventfdWaiter<T> {}
// SAFETY: Likewise.
unsafe impl<T: EventfdTarget> Sync for EventfdWaiter<T> {}

impl<T: EventfdTarget> EventfdWaiter<T> {
    /// Waits for `eventfd`, which the descriptor `fd` of the caller must still lead to.
    pub(crate) fn new(fd: u32, eventfd: Eventfd, target: T) -> Result<Pin<KBox<Self>>> {
        let this = KBox::pin_init(
            pin_init!(Self {
                entry <- Opaque::uninit(),
                eventfd,
                queued: Atomic::new(0),
                closed: Atomic::new(0),
                target,
            }),
            GFP_KERNEL_ACCOUNT,
        );
        let this = this?;
        // SAFETY: The entry is pinned, and taken out of the queue before it is dropped.
        let pending = unsafe {
            pacifica_eventfd_wait(
                fd as c_int,
                this.eventfd.0.as_ptr(),
                this.entry.get(),
                Self::call,
            )
        };
        if pending < 0 {
            return Err(Error::from_errno(pending));
        }
        this.queued.store(1, Relaxed);
        if pending > 0 {
            this.target.expire();
        }
        Ok(this)
    }

    unsafe extern "C" fn call(
        entry: *mut bindings::wait_queue_entry,
        _mode: c_uint,
        _sync: c_int,
        key: *mut c_void,
    ) -> c_int {
        // SAFETY: Only entries inside an `EventfdWaiter<T>` have this function, at that field.
        let this = unsafe { &*kernel::container_of!(Opaque::cast_from(entry), Self, entry) };
        // SAFETY: The waker holds the queue's lock.
        match unsafe { pacifica_eventfd_take(this.eventfd.0.as_ptr(), key) } {
            EVENTFD_WRITTEN => {
                this.target.expire();
                // What was written is read: no other waiter need wake for it.
                return 1;
            }
            EVENTFD_CLOSED => {
                this.closed.store(1, Relaxed);
                this.target.closed();
            }
            _ => {}
        }
        0
    }

    /// Whether it waits for this eventfd.
    pub(crate) fn is_for(&self, eventfd: &Eventfd) -> bool {
        self.eventfd.is_same(eventfd)
    }

    /// Whether the eventfd has no writers any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed) != 0
    }

    /// What is called.
    pub(crate) fn target(&self) -> &T {
        &self.target
    }
}

#[pinned_drop]
impl<T: EventfdTarget> PinnedDrop for EventfdWaiter<T> {
    fn drop(self: Pin<&mut Self>) {
        if self.queued.load(Relaxed) == 0 {
            return;
        }
        // SAFETY: The entry is in the queue since `new`.
        unsafe { pacifica_eventfd_unwait(self.eventfd.0.as_ptr(), self.entry.get()) };
    }
}
