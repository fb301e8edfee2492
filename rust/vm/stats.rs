// SPDX-License-Identifier: GPL-2.0-only

//! Counters of a vCPU and of a VM, and their files in debugfs: `pacifica/PID-N`.

use crate::linux::DebugfsEntry;
use crate::memory::VmMemory;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use kernel::bindings;
use kernel::ffi::{c_int, c_void};
use kernel::prelude::*;
use kernel::seq_file::SeqFile;
use kernel::seq_print;
use kernel::sync::{Arc, Mutex};
use svm::exit::Exit;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What is counted.
        #[derive(Clone, Copy)]
        #[repr(usize)]
        pub(crate) enum Count { $($(#[$doc])* $name,)* }

        /// The names in the file, in the same order.
        pub(crate) const NAMES: &[&str] = &[$($text,)*];
    };
}

counters! {
    /// All exits.
    Exits = "exits",
    Cr = "exit_cr",
    Dr = "exit_dr",
    Exception = "exit_exception",
    HostInterrupt = "exit_host_interrupt",
    InterruptWindow = "exit_interrupt_window",
    NmiWindow = "exit_nmi_window",
    Cpuid = "exit_cpuid",
    Msr = "exit_msr",
    Io = "exit_io",
    Halt = "halt_exits",
    Pause = "exit_pause",
    NestedFault = "exit_nested_fault",
    Hypercall = "exit_hypercall",
    /// Every other exit.
    Other = "exit_other",
    /// Returns to the VMM with a reason.
    ToUser = "to_user",
    /// Times that the thread slept in HLT or waited for SIPI.
    Blocked = "blocked",
    /// Interrupts of the LAPIC's timer.
    Timer = "timer",
    /// Times that the thread looked for work in HLT before it slept.
    HaltPolls = "halt_attempted_poll",
    /// Of these, those that met some.
    HaltPollsMet = "halt_successful_poll",
    /// Times that it was woken out of HLT.
    HaltWakeups = "halt_wakeup",
    HaltPollMetNs = "halt_poll_success_ns",
    HaltPollMissedNs = "halt_poll_fail_ns",
    HaltWaitNs = "halt_wait_ns",
    /// Times that a vCPU that had to wait wanted another to have its CPU.
    Yields = "directed_yield_attempted",
    /// Of these, those that found one.
    YieldsDone = "directed_yield_successful",
}

/// What is counted of a VM's memory, as it is now.
pub(crate) const PAGE_NAMES: [&str; 3] = ["pages_4k", "pages_2m", "pages_1g"];

/// Counters of one vCPU. Only its own thread writes them, and they order nothing: so they can be
/// `core`'s atomics, which are an instruction where the kernel's are a call.
pub(crate) struct Stats([AtomicU64; NAMES.len()]);

impl Default for Stats {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; NAMES.len()])
    }
}

impl Stats {
    /// Adds one.
    #[inline]
    pub(crate) fn count(&self, what: Count) {
        self.add(what, 1);
    }

    /// Adds something.
    #[inline]
    pub(crate) fn add(&self, what: Count, more: u64) {
        if let Some(counter) = self.0.get(what as usize) {
            counter.store(counter.load(Relaxed).wrapping_add(more), Relaxed);
        }
    }

    /// Counts an exit.
    #[inline]
    pub(crate) fn exit(&self, exit: &Exit) {
        self.count(Count::Exits);
        self.count(match exit {
            Exit::Cr(_) | Exit::Cr0SelWrite(_) => Count::Cr,
            Exit::Dr(_) => Count::Dr,
            Exit::Exception { .. } => Count::Exception,
            Exit::Intr | Exit::Nmi | Exit::Smi => Count::HostInterrupt,
            Exit::Vintr => Count::InterruptWindow,
            Exit::Iret => Count::NmiWindow,
            Exit::Cpuid => Count::Cpuid,
            Exit::Msr { .. } => Count::Msr,
            Exit::Io(_) => Count::Io,
            Exit::Hlt => Count::Halt,
            Exit::Pause => Count::Pause,
            Exit::NestedFault { .. } => Count::NestedFault,
            Exit::Vmmcall => Count::Hypercall,
            _ => Count::Other,
        });
    }

    /// The counter of this number.
    pub(crate) fn value(&self, counter: usize) -> u64 {
        self.0
            .get(counter)
            .map_or(0, |counter| counter.load(Relaxed))
    }

    fn show(&self, id: u32, file: &SeqFile) {
        for (name, counter) in NAMES.iter().zip(&self.0) {
            seq_print!(file, "vcpu{id} {name} {}\n", counter.load(Relaxed));
        }
    }
}

/// The counters of a VM's vCPUs, and its memory.
#[pin_data]
pub(crate) struct VmStats {
    memory: Arc<VmMemory>,
    #[pin]
    vcpus: Mutex<KVec<(u32, Arc<Stats>)>>,
}

impl VmStats {
    /// No counters yet.
    pub(crate) fn new(memory: Arc<VmMemory>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self { memory, vcpus <- kernel::new_mutex!(KVec::new()) }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Adds the counters of a vCPU; without memory they are not shown.
    pub(crate) fn add(&self, id: u32, stats: Arc<Stats>) {
        let _ = self.vcpus.lock().push((id, stats), GFP_KERNEL_ACCOUNT);
    }
}

impl VmStats {
    /// See [`PAGE_NAMES`].
    pub(crate) fn pages(&self) -> [u64; 3] {
        self.memory.count_pages()
    }

    /// The sum of one counter over all vCPUs.
    pub(crate) fn sum(&self, counter: usize) -> u64 {
        let vcpus = self.vcpus.lock();
        vcpus
            .iter()
            .fold(0, |sum, (_, stats)| sum.wrapping_add(stats.value(counter)))
    }
}

/// The file `pacifica/NAME` in debugfs, for as long as this lives.
pub(crate) struct StatsFile {
    /// First, so that the counters have no reader when they go.
    _entry: DebugfsEntry,
    _stats: Arc<VmStats>,
}

impl StatsFile {
    /// Shows the counters of a VM.
    pub(crate) fn new(root: &DebugfsEntry, name: &CStr, stats: Arc<VmStats>) -> Self {
        let shown: *const VmStats = &*stats;
        // SAFETY: `pacifica_stats_show` expects a `VmStats`, and this one outlives the entry.
        let entry = unsafe { root.stats_file(name, shown.cast_mut().cast()) };
        Self {
            _entry: entry,
            _stats: stats,
        }
    }
}

/// Called by debugfs when the file is read.
#[no_mangle]
unsafe extern "C" fn pacifica_stats_show(file: *mut bindings::seq_file, _: *mut c_void) -> c_int {
    // SAFETY: The file is open, and was opened with a `VmStats` that outlives its entry.
    let stats = unsafe { &*(*file).private.cast::<VmStats>() };
    // SAFETY: The caller's file, which is its own during the call.
    let file = unsafe { SeqFile::from_raw(file) };
    for (id, stats) in stats.vcpus.lock().iter() {
        stats.show(*id, file);
    }
    for (name, count) in PAGE_NAMES.iter().zip(stats.pages()) {
        seq_print!(file, "vm {name} {count}\n");
    }
    0
}
