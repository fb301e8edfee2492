// SPDX-License-Identifier: GPL-2.0-only

//! Locks, sleepers and timers that interrupt handlers use, too.

use super::*;
use crate::linux::compat::timer_ends;
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed, Ordering::Release};
use kernel::sync::LockClassKey;

/// A value behind a mutex that may be held for long: its waiters can be killed.
#[pin_data]
pub(crate) struct KillableMutex<T> {
    #[pin]
    lock: Opaque<bindings::mutex>,
    value: UnsafeCell<T>,
}

// SAFETY: The lock gives access to one thread at a time.
unsafe impl<T: Send> Sync for KillableMutex<T> {}
// SAFETY: The lock holds no reference to the thread that made it.
unsafe impl<T: Send> Send for KillableMutex<T> {}

impl<T> KillableMutex<T> {
    /// A mutex around `value`.
    pub(crate) fn new(value: T) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: The C function initialises the lock.
            lock <- Opaque::ffi_init(|p| unsafe { pacifica_mutex_init(p) }),
            value: UnsafeCell::new(value),
        })
    }

    /// Waits for the mutex; `EINTR` if the thread is killed meanwhile.
    pub(crate) fn lock(&self) -> Result<KillableGuard<'_, T>> {
        // SAFETY: The lock was initialised.
        to_result(unsafe { pacifica_mutex_lock(self.lock.get()) })?;
        Ok(KillableGuard { lock: self })
    }

    /// Takes the mutex if it is free. While `outer` is held, one thread may hold any number of
    /// those that it takes by this.
    pub(crate) fn try_lock_inside<O>(
        &self,
        outer: &KillableGuard<'_, O>,
    ) -> Option<KillableGuard<'_, T>> {
        // SAFETY: Both locks were initialised, and the second is held.
        let taken =
            unsafe { pacifica_mutex_trylock_inside(self.lock.get(), outer.lock.lock.get()) };
        // Not `then_some`: a guard that was made for nothing would release another thread's mutex.
        taken.then(|| KillableGuard { lock: self })
    }
}

/// Proof that a [`KillableMutex`] is held.
pub(crate) struct KillableGuard<'a, T> {
    lock: &'a KillableMutex<T>,
}

impl<T> Deref for KillableGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: The lock is held.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for KillableGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: The lock is held.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for KillableGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: `lock` took it, in this thread.
        unsafe { pacifica_mutex_unlock(self.lock.lock.get()) };
    }
}

/// A value behind a spinlock that interrupt handlers take, too.
#[pin_data]
pub(crate) struct IrqLock<T> {
    #[pin]
    lock: Opaque<bindings::raw_spinlock_t>,
    value: UnsafeCell<T>,
}

// SAFETY: The lock gives access to one thread at a time.
unsafe impl<T: Send> Sync for IrqLock<T> {}
// SAFETY: The lock holds no reference to the thread that made it.
unsafe impl<T: Send> Send for IrqLock<T> {}

impl<T> IrqLock<T> {
    /// A lock around `value`. All locks of one kind have the same `key`, by which the kernel checks
    /// in what order locks are taken, if it is built so.
    pub(crate) fn new(
        value: T,
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: The C function initialises the lock; name and key are static.
            lock <- Opaque::ffi_init(|p| unsafe {
                pacifica_spin_init(p, name.as_char_ptr(), key.as_ptr())
            }),
            value: UnsafeCell::new(value),
        })
    }

    /// Turns interrupts off and takes the lock.
    pub(crate) fn lock(&self) -> IrqGuard<'_, T> {
        // SAFETY: The lock was initialised.
        let flags = unsafe { pacifica_spin_lock(self.lock.get()) };
        IrqGuard { lock: self, flags }
    }
}

impl<T: Clone> IrqLock<KVec<T>> {
    /// Appends to the list; memory is asked for, and the old list given back, outside of the lock.
    /// One thread at a time may do so.
    pub(crate) fn append(&self, item: &T) -> Result {
        let count = self.lock().len();
        let mut new = KVec::with_capacity(count + 1, GFP_KERNEL_ACCOUNT)?;
        let mut list = self.lock();
        for other in list.iter() {
            new.push_within_capacity(other.clone())
                .map_err(|_| EAGAIN)?;
        }
        new.push_within_capacity(item.clone()).map_err(|_| EAGAIN)?;
        core::mem::swap(&mut *list, &mut new);
        drop(list);
        Ok(())
    }
}

/// Proof that an [`IrqLock`] is held. Of two, the one that was taken last goes first: each turns
/// interrupts to what it found.
pub(crate) struct IrqGuard<'a, T> {
    lock: &'a IrqLock<T>,
    flags: c_ulong,
}

impl<T> Deref for IrqGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: The lock is held.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for IrqGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: The lock is held.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for IrqGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: `lock` took it and gave us the flags.
        unsafe { pacifica_spin_unlock(self.lock.lock.get(), self.flags) };
    }
}

/// Where one thread sleeps until another CPU, or an interrupt handler, has something for it.
#[pin_data]
pub(crate) struct RcuWait {
    #[pin]
    task: Opaque<bindings::rcuwait>,
}

// SAFETY: RCU keeps the task that is woken.
unsafe impl Sync for RcuWait {}
// SAFETY: Likewise.
unsafe impl Send for RcuWait {}

impl RcuWait {
    /// A place without a sleeper.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            task: Opaque::new(bindings::rcuwait::default()),
        })
    }

    /// Sleeps until `ready()` is true; `EINTR` if a signal came first. One thread at a time.
    ///
    /// The code that makes `ready` true calls [`RcuWait::wake`] afterwards.
    pub(crate) fn wait<F: Fn() -> bool>(&self, ready: &F) -> Result {
        unsafe extern "C" fn call<F: Fn() -> bool>(arg: *mut c_void) -> bool {
            // SAFETY: `arg` is the closure below, which lives until `pacifica_wait` returns.
            (unsafe { &*arg.cast::<F>() })()
        }
        let arg = core::ptr::from_ref(ready).cast_mut().cast();
        // SAFETY: The structure was initialised; `call` fits `arg`.
        to_result(unsafe { pacifica_wait(self.task.get(), call::<F>, arg) })
    }

    /// Lets the sleeper look again. Any context, and under any lock.
    pub(crate) fn wake(&self) {
        // SAFETY: The structure was initialised.
        unsafe { bindings::rcuwait_wake_up(self.task.get()) };
    }
}

/// A thread that others may give their CPU to.
#[derive(Default)]
pub(crate) struct YieldTarget(AtomicPtr<bindings::task_struct>);

impl YieldTarget {
    /// It is the calling thread.
    #[inline]
    pub(crate) fn set(&self) {
        // SAFETY: No preconditions.
        self.0.store(unsafe { pacifica_current() }, Relaxed);
    }

    /// It is none any more. The thread that has called `set` calls this before it ends.
    #[inline]
    pub(crate) fn clear(&self) {
        self.0.store(core::ptr::null_mut(), Release);
    }

    /// Lets it have this CPU, if it waits for one; whether it does. May sleep.
    pub(crate) fn yield_to(&self) -> bool {
        // SAFETY: The thread is alive while it is named here, and its structure a grace period
        // longer.
        unsafe { pacifica_yield_to(self.0.as_ptr()) }
    }
}

/// What a [`Timer`] calls, in interrupt context, or a [`Work`], where it may sleep.
pub(crate) trait TimerCallback: Sync {
    /// The time has come.
    fn expire(&self);
}

/// A one-shot timer on the monotonic clock.
///
/// # Invariants
///
/// `target` is null or points to a `T` that outlives the timer.
#[pin_data(PinnedDrop)]
pub(crate) struct Timer<T: TimerCallback> {
    #[pin]
    timer: Opaque<bindings::hrtimer>,
    target: *const T,
}

// SAFETY: hrtimers have their own locks, and `T` is `Sync`.
unsafe impl<T: TimerCallback> Sync for Timer<T> {}
// SAFETY: Likewise.
unsafe impl<T: TimerCallback> Send for Timer<T> {}

impl<T: TimerCallback> Timer<T> {
    /// A timer that calls `target`.
    ///
    /// # Safety
    ///
    /// `target` must outlive the timer.
    pub(crate) unsafe fn new(target: *const T) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: The C function initialises the timer.
            timer <- Opaque::ffi_init(|p| unsafe { pacifica_timer_setup(p, Self::call) }),
            // INVARIANT: As promised by the caller.
            target: target,
        })
    }

    unsafe extern "C" fn call(timer: *mut bindings::hrtimer) -> bindings::hrtimer_restart {
        // SAFETY: Only timers inside a `Timer<T>` have this function, at that field.
        let this = unsafe { &*kernel::container_of!(Opaque::cast_from(timer), Self, timer) };
        // SAFETY: By the invariant the target is alive.
        unsafe { &*this.target }.expire();
        timer_ends()
    }

    /// Expires at `ns`; replaces an earlier date. The kernel's times end with 2^63 ns.
    pub(crate) fn start(&self, ns: u64) {
        let ns = ns.min(i64::MAX as u64);
        // SAFETY: The timer was initialised.
        unsafe { pacifica_timer_start(self.timer.get(), ns) };
    }

    /// Stops the timer and waits for a running call.
    pub(crate) fn cancel(&self) {
        // SAFETY: The timer was initialised.
        unsafe { pacifica_timer_cancel(self.timer.get()) };
    }
}

#[pinned_drop]
impl<T: TimerCallback> PinnedDrop for Timer<T> {
    fn drop(self: Pin<&mut Self>) {
        self.cancel();
    }
}

/// Something that a thread of the kernel does soon.
///
/// # Invariants
///
/// `target` points to a `T` that outlives the work.
#[pin_data(PinnedDrop)]
pub(crate) struct Work<T: TimerCallback> {
    #[pin]
    work: Opaque<bindings::work_struct>,
    target: *const T,
}

// SAFETY: The kernel's work items may be used by all threads, and `T` is `Sync`.
unsafe impl<T: TimerCallback> Sync for Work<T> {}
// SAFETY: Likewise.
unsafe impl<T: TimerCallback> Send for Work<T> {}

impl<T: TimerCallback> Work<T> {
    /// Work that calls `target`.
    ///
    /// # Safety
    ///
    /// `target` must outlive the work.
    pub(crate) unsafe fn new(target: *const T) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: The C function initialises the work.
            work <- Opaque::ffi_init(|p| unsafe { pacifica_work_setup(p, Self::call) }),
            // INVARIANT: As promised by the caller.
            target: target,
        })
    }

    unsafe extern "C" fn call(work: *mut bindings::work_struct) {
        // SAFETY: Only work inside a `Work<T>` has this function, at that field.
        let this = unsafe { &*kernel::container_of!(Opaque::cast_from(work), Self, work) };
        // SAFETY: By the invariant the target is alive.
        unsafe { &*this.target }.expire();
    }

    /// Asks for a call. Any context; a call that has not begun serves for this one, too.
    pub(crate) fn start(&self) {
        // SAFETY: The work was initialised.
        unsafe { pacifica_work_start(self.work.get()) };
    }
}

#[pinned_drop]
impl<T: TimerCallback> PinnedDrop for Work<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: The work was initialised. Waits for a running call.
        unsafe { pacifica_work_cancel(self.work.get()) };
    }
}
