// SPDX-License-Identifier: GPL-2.0-only

//! The C half of the glue, and safe wrappers around it.
//!
//! `helpers.c` holds what Rust cannot reach: inline functions, macros, and functions that the
//! kernel's bindings lack. Every declaration here has its twin in `helpers.h`.

pub(crate) mod compat;
mod eventfd;
pub(crate) mod mm;
mod pages;
pub(crate) mod rcu_cell;
mod sync;

pub(crate) use eventfd::{Eventfd, EventfdTarget, EventfdWaiter};
pub(crate) use pages::Pages;
pub(crate) use sync::{IrqGuard, IrqLock, KillableGuard, KillableMutex, TimerCallback};
pub(crate) use sync::{RcuWait, Timer, Work, YieldTarget};

use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use kernel::bindings;
use kernel::error::to_result;
use kernel::ffi::{c_char, c_int, c_uint, c_ulong, c_void};
use kernel::prelude::*;
use kernel::types::Opaque;

/// Whether the caller may sleep: not with interrupts or preemption off, nor under a spinlock.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sleep {
    /// It may.
    Allowed,
    /// It may not: what would need it fails.
    Forbidden,
}

impl Sleep {
    /// Whether it may.
    #[inline]
    pub(crate) fn is_allowed(self) -> bool {
        self == Self::Allowed
    }
}

/// Proof that interrupts are off on this CPU, for what needs it. There is one at most on each CPU.
pub(crate) struct IrqsOff(PhantomData<*mut ()>);

impl IrqsOff {
    /// Turns interrupts off, until it is dropped.
    ///
    /// # Safety
    ///
    /// Interrupts are on.
    #[inline]
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: No preconditions. As interrupts were on, there is no other proof on this CPU.
        unsafe { pacifica_irq_disable() };
        Self(PhantomData)
    }

    /// The proof for code that the kernel calls with interrupts off, and that does not turn them
    /// on.
    ///
    /// # Safety
    ///
    /// Interrupts are off, but not by [`IrqsOff::new`], for as long as the proof is used.
    pub(crate) unsafe fn of_caller() -> ManuallyDrop<Self> {
        ManuallyDrop::new(Self(PhantomData))
    }
}

impl Drop for IrqsOff {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: `new` turned them off.
        unsafe { pacifica_irq_enable() };
    }
}

/// What each entry and exit switches: `struct pacifica_switch` (`helpers.h`).
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Switch {
    pub(crate) what: u32,
    pub(crate) guest_pkru: u32,
    pub(crate) host_pkru: u32,
    pub(crate) guest_xcr0: u64,
    pub(crate) host_xcr0: u64,
    pub(crate) host_xss: u64,
}

impl Switch {
    pub(crate) const PKRU: u32 = 1 << 0;
    pub(crate) const XCR0: u32 = 1 << 1;
    pub(crate) const XSS: u32 = 1 << 2;
}

#[expect(improper_ctypes, reason = "kernel structures with empty lock classes")]
extern "C" {
    fn pacifica_save_host(page: u64);
    fn pacifica_enter_guest(vmcb: u64, host_save: u64, gpr: *mut u64) -> c_int;
    fn pacifica_enter_guest_switching(
        vmcb: u64,
        host_save: u64,
        gpr: *mut u64,
        switch: *mut Switch,
    ) -> c_int;
    fn pacifica_guest_timing_enter();
    fn pacifica_guest_timing_exit();
    fn pacifica_guest_was_here();
    fn pacifica_reduce_speculation(on: bool);
    fn pacifica_debugfs_dir(name: *const c_char) -> *mut c_void;
    fn pacifica_debugfs_file(
        dir: *mut c_void,
        name: *const c_char,
        stats: *mut c_void,
    ) -> *mut c_void;
    fn pacifica_debugfs_remove(entry: *mut c_void);
    fn pacifica_flush_predictors();
    fn pacifica_irq_disable();
    fn pacifica_irq_enable();
    fn pacifica_cpu() -> c_uint;
    fn pacifica_work_pending() -> bool;
    fn pacifica_handle_work() -> c_int;
    fn pacifica_signal_pending() -> bool;
    fn pacifica_yield();
    fn pacifica_run_delay() -> u64;
    fn pacifica_may_poll() -> bool;
    fn pacifica_current() -> *mut bindings::task_struct;
    fn pacifica_yield_to(runner: *const *mut bindings::task_struct) -> bool;
    fn pacifica_online_cpus() -> c_uint;
    fn pacifica_kick_cpu(cpu: c_uint);
    fn pacifica_masks_alloc() -> c_int;
    fn pacifica_masks_free();
    fn pacifica_mask_begin() -> *mut c_void;
    fn pacifica_mask_add(mask: *mut c_void, cpu: c_uint);
    fn pacifica_mask_interrupt(mask: *mut c_void);
    fn pacifica_wait(
        wait: *mut bindings::rcuwait,
        ready: unsafe extern "C" fn(*mut c_void) -> bool,
        arg: *mut c_void,
    ) -> c_int;
    fn pacifica_pid() -> c_int;
    fn pacifica_sigmask_set(set: *const bindings::sigset_t, old: *mut bindings::sigset_t) -> c_int;
    fn pacifica_signal_set(bits: u64, set: *mut bindings::sigset_t);
    fn pacifica_may_report() -> bool;
    fn pacifica_rdmsr(msr: u32, value: *mut u64) -> c_int;
    fn pacifica_wrmsr(msr: u32, value: u64) -> c_int;
    fn pacifica_rdtsc() -> u64;
    fn pacifica_real_at_tsc(tsc: *mut u64, real: *mut u64) -> bool;
    fn pacifica_tsc_khz() -> u32;
    fn pacifica_tsc_stable() -> bool;
    fn pacifica_host_is_amd() -> bool;
    fn pacifica_host_has_svm() -> bool;
    fn pacifica_host_has_snp() -> bool;
    fn pacifica_host_has_ibpb() -> bool;
    fn pacifica_host_mitigations() -> u32;
    fn pacifica_cpuid(leaf: u32, subleaf: u32, regs: *mut u32);
    fn pacifica_machine_check();
    fn pacifica_file_get(fd: c_int) -> *mut bindings::file;
    fn pacifica_file_put(file: *mut bindings::file);
    fn pacifica_is_vfio(file: *mut bindings::file) -> bool;
    fn pacifica_is_coherent(file: *mut bindings::file) -> bool;
    fn pacifica_wbinvd();
    fn pacifica_debug_enter(guest: *const u64, debugctl: u64, host: *mut u64);
    fn pacifica_debug_exit(host: *const u64, debugctl: u64, dr6: bool);
    fn pacifica_mxcsr_mask() -> u32;
    fn pacifica_host_xstate(xcr0: *mut u64, xss: *mut u64, has_pku: *mut bool) -> bool;
    fn pacifica_fpu_enter(area: *const c_void, components: u64);
    fn pacifica_fpu_exit(area: *mut c_void, components: u64);
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
        first: c_ulong,
        count: c_ulong,
    ) -> c_int;
    fn pacifica_timer_setup(
        timer: *mut bindings::hrtimer,
        call: unsafe extern "C" fn(*mut bindings::hrtimer) -> bindings::hrtimer_restart,
    );
    fn pacifica_timer_start(timer: *mut bindings::hrtimer, ns: u64);
    fn pacifica_timer_cancel(timer: *mut bindings::hrtimer);
    fn pacifica_work_setup(
        work: *mut bindings::work_struct,
        call: unsafe extern "C" fn(*mut bindings::work_struct),
    );
    fn pacifica_work_start(work: *mut bindings::work_struct);
    fn pacifica_work_cancel(work: *mut bindings::work_struct);
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
    fn pacifica_eventfd_take(ctx: *mut bindings::eventfd_ctx, key: *mut c_void) -> c_int;
    fn pacifica_eventfd_unwait(
        ctx: *mut bindings::eventfd_ctx,
        entry: *mut bindings::wait_queue_entry,
    );
    fn pacifica_eventfd_signal(ctx: *mut bindings::eventfd_ctx);
    fn pacifica_tracing() -> bool;
    fn pacifica_trace_exit(vcpu: u32, exit_code: u64, exit_info1: u64, exit_info2: u64, rip: u64);
    fn pacifica_trace_inject(vcpu: u32, event_inj: u64);
    fn pacifica_mutex_init(lock: *mut bindings::mutex);
    fn pacifica_mutex_lock(lock: *mut bindings::mutex) -> c_int;
    fn pacifica_mutex_trylock_inside(
        lock: *mut bindings::mutex,
        outer: *mut bindings::mutex,
    ) -> bool;
    fn pacifica_mutex_unlock(lock: *mut bindings::mutex);
    fn pacifica_spin_init(
        lock: *mut bindings::raw_spinlock_t,
        name: *const c_char,
        key: *mut bindings::lock_class_key,
    );
    fn pacifica_spin_lock(lock: *mut bindings::raw_spinlock_t) -> c_ulong;
    fn pacifica_spin_unlock(lock: *mut bindings::raw_spinlock_t, flags: c_ulong);
}

/// Saves the host's state that an exit brings back. It holds as long as interrupts stay off.
///
/// # Safety
///
/// `page` is the physical address of a page that is used for nothing else on this CPU.
#[inline]
pub(crate) unsafe fn save_host(page: u64, _: &IrqsOff) {
    // SAFETY: As promised by the caller; VMSAVE writes to this page only.
    unsafe { pacifica_save_host(page) };
}

/// Runs the guest until its next #VMEXIT.
///
/// # Errors
///
/// `EIO` if SVM was taken from this CPU (the host is going down).
///
/// # Safety
///
/// `vmcb` is the physical address of a VMCB whose controls keep the guest away from the host
/// (`svm::intercept` and the permission maps), `host_save` that of a page with what [`save_host`]
/// has saved since interrupts were turned off, and `gpr` points to sixteen registers.
#[inline]
pub(crate) unsafe fn enter_guest(vmcb: u64, host_save: u64, gpr: *mut u64, _: &IrqsOff) -> Result {
    // SAFETY: As promised by the caller.
    match unsafe { pacifica_enter_guest(vmcb, host_save, gpr) } {
        0 => Ok(()),
        _ => Err(EIO),
    }
}

/// [`enter_guest`] with other extended state than the host's.
///
/// # Safety
///
/// As there; the CPU takes what `switch` holds.
pub(crate) unsafe fn enter_guest_switching(
    vmcb: u64,
    host_save: u64,
    gpr: *mut u64,
    switch: &mut Switch,
    _: &IrqsOff,
) -> Result {
    // SAFETY: As promised by the caller.
    match unsafe { pacifica_enter_guest_switching(vmcb, host_save, gpr, switch) } {
        0 => Ok(()),
        _ => Err(EIO),
    }
}

/// Makes a safe function of a C function that may be called at any time.
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
    /// Has the predictors flushed before the next return to user mode, where the CPU needs it.
    guest_was_here = pacifica_guest_was_here();
    /// Makes branch prediction careful on CPUs that need it while guests may run; for this CPU.
    reduce_speculation = pacifica_reduce_speculation(on: bool);
    /// Flushes the branch predictors: between two guests on one CPU.
    flush_predictors = pacifica_flush_predictors();
    /// The number of this CPU; stale at once unless preemption is off.
    cpu = pacifica_cpu() -> u32;
    /// Whether a signal, a reschedule or other work waits for this thread.
    work_pending = pacifica_work_pending() -> bool;
    /// Whether a signal waits for this thread.
    signal_pending = pacifica_signal_pending() -> bool;
    /// Lets others run; for loops that wait for another CPU.
    cond_resched = pacifica_yield();
    /// For how many nanoseconds this thread has been waiting for a CPU, in all its life.
    run_delay = pacifica_run_delay() -> u64;
    /// Whether this thread may go on looking for something: no other has work for this CPU.
    may_poll = pacifica_may_poll() -> bool;
    /// How many CPUs the host has now.
    online_cpus = pacifica_online_cpus() -> u32;
    /// Makes a CPU leave its guest.
    kick_cpu = pacifica_kick_cpu(cpu: u32);
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
    /// Whether the host may turn SEV-SNP on.
    host_has_snp = pacifica_host_has_snp() -> bool;
    /// Whether predictors can be flushed.
    host_has_ibpb = pacifica_host_has_ibpb() -> bool;
    /// What the kernel knows of its CPUs in the place of CPUID leaf 8000_0021, EAX.
    host_mitigations = pacifica_host_mitigations() -> u32;
    /// Hands a machine check that hit the guest to the kernel.
    machine_check = pacifica_machine_check();
    /// Hooks `pacifica_cpu_on` and `pacifica_cpu_off` into suspend, resume and shutdown.
    syscore_register = pacifica_syscore_register();
    /// Takes the hooks out.
    syscore_unregister = pacifica_syscore_unregister();
    /// Whether a tracepoint has listeners.
    tracing = pacifica_tracing() -> bool;
    /// The tracepoint `pacifica_exit`.
    trace_exit = pacifica_trace_exit(
        vcpu: u32, exit_code: u64, exit_info1: u64, exit_info2: u64, rip: u64
    );
    /// The tracepoint `pacifica_inject`.
    trace_inject = pacifica_trace_inject(vcpu: u32, event_inj: u64);
    /// MXCSR bits that this CPU has; loading any other faults. Not in interrupts.
    mxcsr_mask = pacifica_mxcsr_mask() -> u32;
    /// Monotonic time in nanoseconds.
    now = pacifica_now() -> u64;
    /// Nanoseconds since boot, suspended time included.
    boot_ns = pacifica_boot_ns() -> u64;
}

/// Accounts time to the guest from here on.
#[inline]
pub(crate) fn guest_timing_enter(_: &IrqsOff) {
    // SAFETY: Interrupts are off.
    unsafe { pacifica_guest_timing_enter() };
}

/// Accounts time to the host again.
#[inline]
pub(crate) fn guest_timing_exit(_: &IrqsOff) {
    // SAFETY: Interrupts are off.
    unsafe { pacifica_guest_timing_exit() };
}

/// What [`CpusToInterrupt`] needs of memory, for as long as the module is loaded.
pub(crate) struct CpuMasks(());

impl CpuMasks {
    /// Once, before any [`CpusToInterrupt`].
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: No `CpusToInterrupt` exists yet.
        to_result(unsafe { pacifica_masks_alloc() })?;
        Ok(Self(()))
    }
}

impl Drop for CpuMasks {
    fn drop(&mut self) {
        // SAFETY: The module goes, and with it all that makes a `CpusToInterrupt`.
        unsafe { pacifica_masks_free() };
    }
}

/// CPUs that are to be interrupted, all at once. Until they are, preemption is off, and there is no
/// other one on this CPU.
#[must_use]
pub(crate) struct CpusToInterrupt(NonNull<c_void>);

impl CpusToInterrupt {
    /// None yet. Interrupts are on, and preemption may be off.
    pub(crate) fn new() -> Self {
        // SAFETY: The masks are there as long as the module is loaded. INVARIANT: It is this CPU's,
        // which no other code uses until it is dropped.
        Self(unsafe { NonNull::new_unchecked(pacifica_mask_begin()) })
    }

    /// One more.
    pub(crate) fn add(&mut self, cpu: u32) {
        // SAFETY: By the invariant.
        unsafe { pacifica_mask_add(self.0.as_ptr(), cpu) };
    }

    /// Interrupts them, and returns when all their handlers have run.
    pub(crate) fn interrupt_and_wait(self) {
        // SAFETY: By the invariant; it ends here.
        unsafe { pacifica_mask_interrupt(self.0.as_ptr()) };
    }
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

/// DR0 to DR3 and DEBUGCTL of the host, while a guest is in the CPU.
pub(crate) type HostDebug = [u64; 5];

/// Puts the host's breakpoints and DEBUGCTL aside, and the guest's DR0 to DR3 in the CPU if it
/// needs them. Interrupts stay off until [`debug_exit`].
#[inline]
pub(crate) fn debug_enter(
    guest: Option<&[u64; 4]>,
    debugctl: u64,
    host: &mut HostDebug,
    _: &IrqsOff,
) {
    let guest = guest.map_or(core::ptr::null(), |dr| dr.as_ptr());
    // SAFETY: There is room for four registers, and for the host's five. Until `debug_exit` no
    // breakpoint of the host is enabled, so what is in DR0 to DR3 has no effect on it.
    unsafe { pacifica_debug_enter(guest, debugctl, host.as_mut_ptr()) };
}

/// Brings the host's breakpoints and DEBUGCTL back, and DR6 if the guest may have left something
/// there.
#[inline]
pub(crate) fn debug_exit(host: &HostDebug, debugctl: u64, dr6: bool, _: &IrqsOff) {
    // SAFETY: The registers that `debug_enter` put aside.
    unsafe { pacifica_debug_exit(host.as_ptr(), debugctl, dr6) };
}

/// The TSC, and the real time in nanoseconds since 1970 when it had this value; `None` if the host
/// does not keep its time by the TSC.
pub(crate) fn real_at_tsc() -> Option<(u64, u64)> {
    let (mut tsc, mut real) = (0, 0);
    // SAFETY: Both are valid for the write.
    unsafe { pacifica_real_at_tsc(&mut tsc, &mut real) }.then_some((tsc, real))
}

/// Real time as seconds and nanoseconds since 1970.
pub(crate) fn real_time() -> (u64, u32) {
    let (mut sec, mut nsec) = (0, 0);
    // SAFETY: Both are valid for the write.
    unsafe { pacifica_real_time(&mut sec, &mut nsec) };
    (sec, nsec)
}

/// XCR0 (0 without XSAVE), XSS if there is one, and whether the kernel uses protection keys.
pub(crate) fn host_xstate() -> (u64, Option<u64>, bool) {
    let (mut xcr0, mut xss, mut has_pku) = (0, 0, false);
    // SAFETY: All three are valid for the write.
    let has_xss = unsafe { pacifica_host_xstate(&mut xcr0, &mut xss, &mut has_pku) };
    (xcr0, has_xss.then_some(xss), has_pku)
}

/// Puts the guest's extended registers in place of the thread's. Interrupts stay off until
/// [`fpu_exit`].
///
/// # Safety
///
/// `area` is an XSAVE image that XRSTOR takes for `components`, which are in the host's XCR0; if
/// there are none, an FXSAVE image.
#[inline]
pub(crate) unsafe fn fpu_enter(area: *const c_void, components: u64, _: &IrqsOff) {
    // SAFETY: As promised by the caller.
    unsafe { pacifica_fpu_enter(area, components) };
}

/// Takes the guest's extended registers out of the CPU.
///
/// # Safety
///
/// `area` has room for `components`, and the alignment of XSAVE.
#[inline]
pub(crate) unsafe fn fpu_exit(area: *mut c_void, components: u64, _: &IrqsOff) {
    // SAFETY: As promised by the caller.
    unsafe { pacifica_fpu_exit(area, components) };
}

/// PKRU. Only where the kernel uses protection keys.
#[inline]
pub(crate) fn rdpkru() -> u32 {
    let value: u32;
    // SAFETY: CR4.PKE is set, and ECX is 0: it reads a register and nothing else.
    unsafe {
        core::arch::asm!("rdpkru", in("ecx") 0, out("eax") value, out("edx") _,
            options(nomem, nostack, preserves_flags))
    };
    value
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
    first: usize,
) -> Result {
    // SAFETY: As promised by the caller.
    to_result(unsafe { pacifica_map_pages(vma, pages.as_ptr(), first, pages.len()) })
}

/// A directory or a file in debugfs, for as long as this lives. If debugfs has failed, it is an
/// error pointer, which debugfs takes without complaint.
pub(crate) struct DebugfsEntry(*mut c_void);

// SAFETY: debugfs has its own locks.
unsafe impl Send for DebugfsEntry {}
// SAFETY: Likewise.
unsafe impl Sync for DebugfsEntry {}

impl DebugfsEntry {
    /// A directory at the top.
    pub(crate) fn dir(name: &CStr) -> Self {
        // SAFETY: The name is copied.
        Self(unsafe { pacifica_debugfs_dir(name.as_char_ptr()) })
    }

    /// A file in this directory that `pacifica_stats_show` fills from `stats`.
    ///
    /// # Safety
    ///
    /// `stats` is what that function expects, and outlives the entry.
    pub(crate) unsafe fn stats_file(&self, name: &CStr, stats: *mut c_void) -> Self {
        // SAFETY: As promised by the caller; the name is copied.
        Self(unsafe { pacifica_debugfs_file(self.0, name.as_char_ptr(), stats) })
    }
}

impl Drop for DebugfsEntry {
    fn drop(&mut self) {
        // SAFETY: The entry is ours.
        unsafe { pacifica_debugfs_remove(self.0) };
    }
}

/// Writes back and empties the caches of all CPUs. Interrupts are on.
pub(crate) fn wbinvd() {
    // SAFETY: It changes nothing that software could see. The caller has interrupts on.
    unsafe { pacifica_wbinvd() };
}

/// An open file of the process, which stays open for it.
pub(crate) struct OpenFile(NonNull<bindings::file>);

// SAFETY: Files may be used and put by any thread.
unsafe impl Send for OpenFile {}
// SAFETY: Likewise.
unsafe impl Sync for OpenFile {}

impl OpenFile {
    /// The file behind a descriptor.
    pub(crate) fn get(fd: i32) -> Result<Self> {
        // SAFETY: Any number may be asked for; the reference that comes with the file is kept.
        NonNull::new(unsafe { pacifica_file_get(fd) })
            .map(Self)
            .ok_or(EBADF)
    }

    /// Whether both are the same file.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.0 == other.0
    }

    /// Whether it is one of VFIO's: a group or a device.
    pub(crate) fn is_vfio(&self) -> bool {
        // SAFETY: The file is alive.
        unsafe { pacifica_is_vfio(self.0.as_ptr()) }
    }

    /// Whether its devices always see what the CPUs have in their caches.
    pub(crate) fn is_coherent(&self) -> bool {
        // SAFETY: The file is alive.
        unsafe { pacifica_is_coherent(self.0.as_ptr()) }
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        // SAFETY: The reference that `get` took.
        unsafe { pacifica_file_put(self.0.as_ptr()) };
    }
}
