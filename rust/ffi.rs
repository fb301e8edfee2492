// SPDX-License-Identifier: GPL-2.0-only

//! The C half of the glue, and safe wrappers around it.
//!
//! `helpers.c` holds what Rust cannot reach: inline functions, macros, and functions that the
//! kernel's bindings lack. Every declaration here has its twin in `helpers.h`.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use kernel::bindings;
use kernel::error::to_result;
use kernel::ffi::{c_char, c_int, c_uint, c_ulong, c_void};
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::types::Opaque;
use x86::fxsave::Fxsave;

#[expect(improper_ctypes, reason = "kernel structures with empty lock classes")]
extern "C" {
    fn pacifica_enter_guest(vmcb: u64, host_save: u64, gpr: *mut u64) -> c_int;
    fn pacifica_guest_timing_enter();
    fn pacifica_guest_timing_exit();
    fn pacifica_guest_was_here();
    fn pacifica_flush_predictors();
    fn pacifica_irq_disable();
    fn pacifica_irq_enable();
    fn pacifica_cpu() -> c_uint;
    fn pacifica_work_pending() -> bool;
    fn pacifica_handle_work() -> c_int;
    fn pacifica_signal_pending() -> bool;
    fn pacifica_yield();
    fn pacifica_kick_cpu(cpu: c_uint);
    fn pacifica_interrupt_and_wait(cpu: c_uint);
    fn pacifica_waitqueue_init(queue: *mut bindings::wait_queue_head);
    fn pacifica_wait(
        queue: *mut bindings::wait_queue_head,
        ready: unsafe extern "C" fn(*mut c_void) -> bool,
        arg: *mut c_void,
    ) -> c_int;
    fn pacifica_wake(queue: *mut bindings::wait_queue_head);
    fn pacifica_pid() -> c_int;
    fn pacifica_sigmask_set(set: *const bindings::sigset_t, old: *mut bindings::sigset_t) -> c_int;
    fn pacifica_signal_set(bits: u64, set: *mut bindings::sigset_t);
    fn pacifica_may_report() -> bool;
    fn pacifica_rdmsr(msr: u32, value: *mut u64) -> c_int;
    fn pacifica_wrmsr(msr: u32, value: u64) -> c_int;
    fn pacifica_rdtsc() -> u64;
    fn pacifica_tsc_khz() -> u32;
    fn pacifica_tsc_stable() -> bool;
    fn pacifica_host_is_amd() -> bool;
    fn pacifica_host_has_svm() -> bool;
    fn pacifica_cpuid(leaf: u32, subleaf: u32, regs: *mut u32);
    fn pacifica_machine_check();
    fn pacifica_debug_enter(guest: *const u64, host: *mut u64);
    fn pacifica_debug_exit(host: *const u64);
    fn pacifica_fpu_enter(image: *const c_void);
    fn pacifica_fpu_exit(image: *mut c_void);
    fn pacifica_alloc_pages(order: c_uint) -> *mut c_void;
    fn pacifica_free_pages(pages: *mut c_void, order: c_uint);
    fn pacifica_phys(address: *const c_void) -> u64;
    fn pacifica_syscore_register();
    fn pacifica_syscore_unregister();
    fn pacifica_anon_file(
        name: *const c_char,
        fops: *const bindings::file_operations,
        private: *mut c_void,
    ) -> *mut bindings::file;
    fn pacifica_is_err(p: *const c_void) -> bool;
    fn pacifica_map_pages(
        vma: *mut bindings::vm_area_struct,
        pages: *const *mut c_void,
        count: c_ulong,
    ) -> c_int;
    fn pacifica_timer_setup(
        timer: *mut bindings::hrtimer,
        call: unsafe extern "C" fn(*mut bindings::hrtimer) -> bindings::hrtimer_restart,
    );
    fn pacifica_timer_start(timer: *mut bindings::hrtimer, ns: u64);
    fn pacifica_timer_cancel(timer: *mut bindings::hrtimer);
    fn pacifica_now() -> u64;
    fn pacifica_boot_ns() -> u64;
    fn pacifica_real_time(sec: *mut u64, nsec: *mut u32);
    fn pacifica_eventfd_wait(
        fd: c_int,
        ctx: *mut bindings::eventfd_ctx,
        entry: *mut bindings::wait_queue_entry,
        call: unsafe extern "C" fn(
            *mut bindings::wait_queue_entry,
            c_uint,
            c_int,
            *mut c_void,
        ) -> c_int,
    ) -> c_int;
    fn pacifica_eventfd_take(ctx: *mut bindings::eventfd_ctx, key: *mut c_void) -> bool;
    fn pacifica_eventfd_unwait(
        ctx: *mut bindings::eventfd_ctx,
        entry: *mut bindings::wait_queue_entry,
    );
    fn pacifica_eventfd_signal(ctx: *mut bindings::eventfd_ctx);
    fn pacifica_tracing() -> bool;
    fn pacifica_trace_exit(vcpu: u32, exit_code: u64, exit_info1: u64, exit_info2: u64, rip: u64);
    fn pacifica_trace_inject(vcpu: u32, event_inj: u64);
    fn pacifica_spin_init(lock: *mut bindings::raw_spinlock_t);
    fn pacifica_spin_lock(lock: *mut bindings::raw_spinlock_t) -> c_ulong;
    fn pacifica_spin_unlock(lock: *mut bindings::raw_spinlock_t, flags: c_ulong);
}

/// Runs the guest until its next #VMEXIT. Interrupts must be off.
///
/// # Errors
///
/// `EIO` if SVM was taken from this CPU (the host is going down).
///
/// # Safety
///
/// `vmcb` is the physical address of a VMCB whose controls keep the guest away from the host
/// (`svm::intercept` and the permission maps), `host_save` that of a page which nobody else uses
/// on this CPU, and `gpr` points to sixteen registers.
#[inline]
pub(crate) unsafe fn enter_guest(vmcb: u64, host_save: u64, gpr: *mut u64) -> Result {
    // SAFETY: As promised by the caller.
    to_result(unsafe { pacifica_enter_guest(vmcb, host_save, gpr) })
}

/// Makes a safe function of a C function that anybody may call at any time.
macro_rules! safe {
    ($($(#[$doc:meta])* $name:ident = $c:ident($($arg:ident: $t:ty),*) $(-> $ret:ty)?;)*) => {
        $($(#[$doc])*
        #[inline]
        pub(crate) fn $name($($arg: $t),*) $(-> $ret)? {
            // SAFETY: The function has no preconditions that its arguments could break.
            unsafe { $c($($arg),*) }
        })*
    };
}

safe! {
    /// Accounts time to the guest from here on; interrupts are off.
    guest_timing_enter = pacifica_guest_timing_enter();
    /// Accounts time to the host again; interrupts are off.
    guest_timing_exit = pacifica_guest_timing_exit();
    /// Has the predictors flushed before the next return to user mode, where the CPU needs it.
    guest_was_here = pacifica_guest_was_here();
    /// Flushes the branch predictors: between two guests on one CPU.
    flush_predictors = pacifica_flush_predictors();
    /// Turns interrupts off on this CPU.
    irq_disable = pacifica_irq_disable();
    /// Turns interrupts on again.
    irq_enable = pacifica_irq_enable();
    /// The number of this CPU; stale at once unless preemption is off.
    cpu = pacifica_cpu() -> u32;
    /// Whether a signal, a reschedule or other work waits for this thread.
    work_pending = pacifica_work_pending() -> bool;
    /// Whether a signal waits for this thread.
    signal_pending = pacifica_signal_pending() -> bool;
    /// Lets others run; for loops that wait for another CPU.
    yield_now = pacifica_yield();
    /// Makes a CPU leave its guest.
    kick_cpu = pacifica_kick_cpu(cpu: u32);
    /// Interrupts a CPU, and returns when its handler has run. Interrupts must be on.
    interrupt_and_wait = pacifica_interrupt_and_wait(cpu: u32);
    /// Process ID of the caller.
    pid = pacifica_pid() -> i32;
    /// Whether one more line in the log is in order.
    may_report = pacifica_may_report() -> bool;
    /// The time stamp counter.
    rdtsc = pacifica_rdtsc() -> u64;
    /// Its frequency in kHz.
    tsc_khz = pacifica_tsc_khz() -> u32;
    /// Whether all CPUs' counters agree and never stop.
    tsc_stable = pacifica_tsc_stable() -> bool;
    /// Whether the CPU is AMD's, or Hygon's.
    host_is_amd = pacifica_host_is_amd() -> bool;
    /// Whether the kernel found SVM (APM vol. 2, 15.4) and did not turn it off.
    host_has_svm = pacifica_host_has_svm() -> bool;
    /// Hands a machine check that hit the guest to the kernel.
    machine_check = pacifica_machine_check();
    /// Hooks `pacifica_cpu_on` and `pacifica_cpu_off` into suspend, resume and shutdown.
    syscore_register = pacifica_syscore_register();
    /// Takes the hooks out.
    syscore_unregister = pacifica_syscore_unregister();
    /// Whether somebody listens to a tracepoint.
    tracing = pacifica_tracing() -> bool;
    /// The tracepoint `pacifica_exit`.
    trace_exit = pacifica_trace_exit(
        vcpu: u32, exit_code: u64, exit_info1: u64, exit_info2: u64, rip: u64
    );
    /// The tracepoint `pacifica_inject`.
    trace_inject = pacifica_trace_inject(vcpu: u32, event_inj: u64);
    /// Monotonic time in nanoseconds.
    now = pacifica_now() -> u64;
    /// Nanoseconds since boot, suspended time included.
    boot_ns = pacifica_boot_ns() -> u64;
}

/// Does the pending work of [`work_pending`]; `EINTR` if a signal must be delivered.
pub(crate) fn handle_work() -> Result {
    // SAFETY: Called from the thread's own system call, with interrupts on.
    to_result(unsafe { pacifica_handle_work() })
}

/// Reads an MSR; `EIO` if the CPU has none of that number.
pub(crate) fn rdmsr(msr: u32) -> Result<u64> {
    let mut value = 0;
    // SAFETY: `value` is valid for the write; a #GP is caught.
    to_result(unsafe { pacifica_rdmsr(msr, &mut value) })?;
    Ok(value)
}

/// Writes an MSR; `EIO` if the CPU refuses.
///
/// # Safety
///
/// The value must not endanger the kernel.
pub(crate) unsafe fn wrmsr(msr: u32, value: u64) -> Result {
    // SAFETY: As promised by the caller; a #GP is caught.
    to_result(unsafe { pacifica_wrmsr(msr, value) })
}

/// EAX, EBX, ECX and EDX of a CPUID leaf of the host.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let mut regs = [0; 4];
    // SAFETY: The array has room for the four registers.
    unsafe { pacifica_cpuid(leaf, subleaf, regs.as_mut_ptr()) };
    regs
}

/// Puts the host's breakpoints aside, and the guest's DR0 to DR3 in the CPU if it needs them.
/// Interrupts are off until [`debug_exit`].
#[inline]
pub(crate) fn debug_enter(guest: Option<&[u64; 4]>, host: &mut [u64; 4]) {
    let guest = guest.map_or(core::ptr::null(), |dr| dr.as_ptr());
    // SAFETY: Both have room for four registers. Until `debug_exit` no breakpoint of the host is
    // enabled, so what is in DR0 to DR3 has no effect on it.
    unsafe { pacifica_debug_enter(guest, host.as_mut_ptr()) };
}

/// Brings the host's breakpoints back.
#[inline]
pub(crate) fn debug_exit(host: &[u64; 4]) {
    // SAFETY: The registers that `debug_enter` put aside.
    unsafe { pacifica_debug_exit(host.as_ptr()) };
}

/// Real time as seconds and nanoseconds since 1970.
pub(crate) fn real_time() -> (u64, u32) {
    let (mut sec, mut nsec) = (0, 0);
    // SAFETY: Both are valid for the write.
    unsafe { pacifica_real_time(&mut sec, &mut nsec) };
    (sec, nsec)
}

/// Puts the guest's x87 and SSE state in place of the thread's. Interrupts are off until
/// [`fpu_exit`].
///
/// # Safety
///
/// `image` is an FXSAVE image whose MXCSR has no reserved bit set.
#[inline]
pub(crate) unsafe fn fpu_enter(image: &Fxsave) {
    // SAFETY: As promised by the caller; the image has the size and alignment of FXRSTOR.
    unsafe { pacifica_fpu_enter(core::ptr::from_ref(image).cast()) };
}

/// Takes the guest's x87 and SSE state out of the CPU.
#[inline]
pub(crate) fn fpu_exit(image: &mut Fxsave) {
    // SAFETY: The image has the size and alignment of FXSAVE.
    unsafe { pacifica_fpu_exit(core::ptr::from_mut(image).cast()) };
}

/// The signals of a word as user space has it.
pub(crate) fn signal_set(bits: u64) -> bindings::sigset_t {
    let mut set = bindings::sigset_t::default();
    // SAFETY: `set` is valid for the write.
    unsafe { pacifica_signal_set(bits, &mut set) };
    set
}

/// Replaces the thread's signal mask and returns the old one.
pub(crate) fn set_signal_mask(set: &bindings::sigset_t) -> bindings::sigset_t {
    let mut old = bindings::sigset_t::default();
    // SAFETY: Both point to signal sets.
    unsafe { pacifica_sigmask_set(set, &mut old) };
    old
}

/// Zeroed, physically contiguous pages of the kernel, seen as a `T`.
///
/// # Invariants
///
/// `0` points to `2^order` pages, at least `size_of::<T>()` bytes, owned by this value.
pub(crate) struct Pages<T>(NonNull<T>);

// SAFETY: The pages are owned like a box.
unsafe impl<T: Send> Send for Pages<T> {}
// SAFETY: Likewise.
unsafe impl<T: Sync> Sync for Pages<T> {}

/// Types for which all zeroes is a value, and which any page can hold.
///
/// # Safety
///
/// All zeroes must be a valid value, and the alignment at most 4096.
pub(crate) unsafe trait PageData {}
// SAFETY: Plain bytes.
unsafe impl<const N: usize> PageData for [u8; N] {}
// SAFETY: Every bit pattern is a VMCB, and its alignment is a page's.
unsafe impl PageData for svm::vmcb::Vmcb {}

impl<T: PageData> Pages<T> {
    const ORDER: c_uint = {
        let pages = core::mem::size_of::<T>().div_ceil(4096);
        pages.next_power_of_two().trailing_zeros()
    };

    /// Allocates; `ENOMEM` if there is no memory.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: No preconditions.
        let p = unsafe { pacifica_alloc_pages(Self::ORDER) };
        // INVARIANT: 2^ORDER pages are enough for a `T`, and zero is a value of it.
        Ok(Self(NonNull::new(p.cast()).ok_or(ENOMEM)?))
    }
}

impl<T> Pages<T> {
    /// The physical address, as the CPU wants it (with the encryption bit, where there is one).
    pub(crate) fn phys(&self) -> u64 {
        // SAFETY: The address is in the kernel's linear mapping.
        unsafe { pacifica_phys(self.0.as_ptr().cast()) }
    }

    /// The address.
    pub(crate) fn as_ptr(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T> Deref for Pages<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: By the invariant the pages hold a `T`.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: By the invariant the pages hold a `T`, and they are ours alone.
        unsafe { self.0.as_mut() }
    }
}

impl<T> Drop for Pages<T> {
    fn drop(&mut self) {
        let pages = core::mem::size_of::<T>().div_ceil(4096);
        let order = pages.next_power_of_two().trailing_zeros();
        // SAFETY: `new` allocated them with the same order, and nobody uses them any more.
        unsafe { pacifica_free_pages(self.0.as_ptr().cast(), order) };
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
    /// A lock around `value`.
    pub(crate) fn new(value: T) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: The C function initialises the lock.
            lock <- Opaque::ffi_init(|p| unsafe { pacifica_spin_init(p) }),
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

/// Proof that an [`IrqLock`] is held.
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

/// A place to sleep until another CPU, or an interrupt handler, has something for us.
#[pin_data]
pub(crate) struct WaitQueue {
    #[pin]
    queue: Opaque<bindings::wait_queue_head>,
}

// SAFETY: The queue has its own lock.
unsafe impl Sync for WaitQueue {}
// SAFETY: Likewise.
unsafe impl Send for WaitQueue {}

impl WaitQueue {
    /// An empty queue.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: The C function initialises the queue.
            queue <- Opaque::ffi_init(|p| unsafe { pacifica_waitqueue_init(p) }),
        })
    }

    /// Sleeps until `ready()` is true; `ERESTARTSYS` if a signal came first.
    ///
    /// Whoever makes `ready` true calls [`WaitQueue::wake`] afterwards.
    pub(crate) fn wait<F: Fn() -> bool>(&self, ready: &F) -> Result {
        unsafe extern "C" fn call<F: Fn() -> bool>(arg: *mut c_void) -> bool {
            // SAFETY: `arg` is the closure below, which lives until `pacifica_wait` returns.
            (unsafe { &*arg.cast::<F>() })()
        }
        let arg = core::ptr::from_ref(ready).cast_mut().cast();
        // SAFETY: The queue was initialised; `call` fits `arg`.
        to_result(unsafe { pacifica_wait(self.queue.get(), call::<F>, arg) })
    }

    /// Lets the sleepers look again. Any context.
    pub(crate) fn wake(&self) {
        // SAFETY: The queue was initialised.
        unsafe { pacifica_wake(self.queue.get()) };
    }
}

/// What a [`Timer`] calls, in interrupt context.
pub(crate) trait Expire: Sync {
    /// The time has come.
    fn expire(&self);
}

/// A one-shot timer on the monotonic clock.
///
/// # Invariants
///
/// `target` is null or points to a `T` that outlives the timer.
#[pin_data(PinnedDrop)]
pub(crate) struct Timer<T: Expire> {
    #[pin]
    timer: Opaque<bindings::hrtimer>,
    target: *const T,
}

// SAFETY: hrtimers have their own locks, and `T` is `Sync`.
unsafe impl<T: Expire> Sync for Timer<T> {}
// SAFETY: Likewise.
unsafe impl<T: Expire> Send for Timer<T> {}

impl<T: Expire> Timer<T> {
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
        bindings::hrtimer_restart_HRTIMER_NORESTART
    }

    /// Expires at `ns`; replaces an earlier date.
    pub(crate) fn start(&self, ns: u64) {
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
impl<T: Expire> PinnedDrop for Timer<T> {
    fn drop(self: Pin<&mut Self>) {
        self.cancel();
    }
}

/// Makes a new file of `fops` and a descriptor for it, close-on-exec.
///
/// # Safety
///
/// `fops` takes `private` over as its `private_data` and gives it back in `release`; if this
/// function fails, `private` stays with the caller.
pub(crate) unsafe fn new_fd(
    name: &CStr,
    fops: &'static bindings::file_operations,
    private: *mut c_void,
) -> Result<c_int> {
    let fd = kernel::fs::file::FileDescriptorReservation::get_unused_fd_flags(bindings::O_CLOEXEC)?;
    // SAFETY: As promised by the caller.
    let file = unsafe { pacifica_anon_file(name.as_char_ptr(), fops, private) };
    // SAFETY: Any pointer may be asked about.
    if unsafe { pacifica_is_err(file.cast()) } {
        return Err(Error::from_errno(file as isize as c_int));
    }
    let number = fd.reserved_fd() as c_int;
    // SAFETY: `file` is a new file with one reference, which is ours.
    let file = unsafe {
        kernel::sync::aref::ARef::<kernel::fs::File>::from_raw(NonNull::new_unchecked(file.cast()))
    };
    fd.fd_install(file);
    Ok(number)
}

/// Maps pages at the start of a new user mapping.
///
/// # Safety
///
/// `vma` comes from an `mmap` call that is under way; the pages are whole pages of the kernel's
/// that may be shown to user space.
pub(crate) unsafe fn map_pages(
    vma: *mut bindings::vm_area_struct,
    pages: &[*mut c_void],
) -> Result {
    // SAFETY: As promised by the caller.
    to_result(unsafe { pacifica_map_pages(vma, pages.as_ptr(), pages.len()) })
}

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

/// Calls `target` whenever an eventfd is written, for as long as this lives.
#[pin_data(PinnedDrop)]
pub(crate) struct EventfdWaiter<T: Expire> {
    #[pin]
    entry: Opaque<bindings::wait_queue_entry>,
    eventfd: Eventfd,
    /// Not zero once `entry` is in the eventfd's queue.
    queued: Atomic<u32>,
    target: T,
}

// SAFETY: The wait queue has its own lock, and `T` is `Sync`.
unsafe impl<T: Expire + Send> Send for EventfdWaiter<T> {}
// SAFETY: Likewise.
unsafe impl<T: Expire> Sync for EventfdWaiter<T> {}

impl<T: Expire> EventfdWaiter<T> {
    /// Waits for `eventfd`, which the descriptor `fd` of the caller must still lead to.
    pub(crate) fn new(fd: u32, eventfd: Eventfd, target: T) -> Result<Pin<KBox<Self>>> {
        let this = KBox::pin_init(
            pin_init!(Self {
                entry <- Opaque::uninit(),
                eventfd,
                queued: Atomic::new(0),
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
        // SAFETY: The queue's lock is held by whoever wakes us.
        if unsafe { pacifica_eventfd_take(this.eventfd.0.as_ptr(), key) } {
            this.target.expire();
        }
        0
    }

    /// Whether it waits for this eventfd.
    pub(crate) fn is_for(&self, eventfd: &Eventfd) -> bool {
        self.eventfd.is_same(eventfd)
    }

    /// What is called.
    pub(crate) fn target(&self) -> &T {
        &self.target
    }
}

#[pinned_drop]
impl<T: Expire> PinnedDrop for EventfdWaiter<T> {
    fn drop(self: Pin<&mut Self>) {
        if self.queued.load(Relaxed) == 0 {
            return;
        }
        // SAFETY: The entry is in the queue since `new`.
        unsafe { pacifica_eventfd_unwait(self.eventfd.0.as_ptr(), self.entry.get()) };
    }
}
