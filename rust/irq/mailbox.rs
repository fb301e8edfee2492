// SPDX-License-Identifier: GPL-2.0-only

//! How other CPUs reach a vCPU: requests, its inbox of interrupts, and the kick.
//!
//! A vCPU's thread alone touches the vCPU. Everybody else leaves a request here and kicks:
//!
//! ```text
//!   sender                              vCPU thread
//!   1 put the data in the inbox         1 interrupts off
//!   2 set the request bit   (full)      2 mode := CPU it runs on   (full)
//!   3 read mode                         3 read the requests: any? mode := outside, start over
//!     outside: wake the sleeper         4 VMRUN
//!     on CPU n: interrupt CPU n           the interrupt ends the guest, and 3 comes again
//! ```
//!
//! Whatever the interleaving, either the sender sees the CPU or the vCPU sees the request.
//!
//! The atomics are `core`'s, which are instructions where the kernel's are calls. On x86 the
//! read-modify-write ones are full barriers in both.

use crate::linux;
use crate::linux::{IrqsOff, RcuWait, TimerCallback, YieldTarget};
use core::sync::atomic::{
    AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::Release, Ordering::SeqCst,
};
use irqchip::bits::Vectors;
use irqchip::{DeliveryMode, Snapshot};
use kernel::prelude::*;
use svm::requests::Requests;

/// `mode` of a vCPU that is not in its guest.
const OUTSIDE: u32 = 0;

/// The part of a vCPU that any CPU may touch at any time.
#[pin_data]
pub(crate) struct Mailbox {
    /// The number that the VMM gave the vCPU; its APIC ID.
    pub(crate) id: u32,
    requests: AtomicU32,
    /// [`OUTSIDE`], or one more than the number of the CPU that is about to enter the guest.
    mode: AtomicU32,
    /// Interrupts that arrived, a bit a vector.
    irr: [AtomicU64; 4],
    /// Which of them are level-triggered.
    tmr: [AtomicU64; 4],
    sipi_vector: AtomicU32,
    /// What decides whether all vCPUs have the same TSC: see [`Tsc`].
    tsc: [AtomicU64; 3],
    /// What senders need of the LAPIC to find out whom they address: a [`Snapshot`].
    apic: AtomicU64,
    #[pin]
    sleeper: RcuWait,
    /// The thread that is in KVM_RUN.
    pub(crate) runner: YieldTarget,
}

impl Mailbox {
    /// The mailbox of vCPU `id`.
    pub(crate) fn new(id: u32) -> impl PinInit<Self> {
        pin_init!(Self {
            id,
            requests: AtomicU32::new(0),
            mode: AtomicU32::new(OUTSIDE),
            irr: [const { AtomicU64::new(0) }; 4],
            tmr: [const { AtomicU64::new(0) }; 4],
            sipi_vector: AtomicU32::new(0),
            tsc: [const { AtomicU64::new(0) }; 3],
            apic: AtomicU64::new(0),
            sleeper <- RcuWait::new(),
            runner: YieldTarget::default(),
        })
    }

    /// Asks, and kicks. Any context.
    pub(crate) fn request(&self, request: Requests) {
        self.post(request);
        self.kick();
    }

    /// Asks; the caller kicks later. Any context.
    pub(crate) fn post(&self, request: Requests) {
        self.requests.fetch_or(request.bits(), SeqCst);
    }

    /// Wakes the vCPU's thread, or makes it leave the guest. Any context.
    pub(crate) fn kick(&self) {
        let mode = self.mode.load(Relaxed);
        if mode == OUTSIDE {
            self.sleeper.wake();
        } else if mode - 1 != linux::cpu() {
            linux::kick_cpu(mode - 1);
        }
        // On this very CPU, we are in an interrupt or in the vCPU's own thread: it has left the
        // guest, and will read the requests before it enters again.
    }

    /// Lets the vCPU's thread have this CPU, if it waits for one; whether it does. May sleep.
    pub(crate) fn yield_to(&self) -> bool {
        self.running_on().is_none() && self.runner.yield_to()
    }

    /// The CPU whose guest this vCPU may be in.
    pub(crate) fn running_on(&self) -> Option<u32> {
        self.mode.load(Relaxed).checked_sub(1)
    }

    /// A message for this vCPU, but for one that is arbitrated; the sender kicks later. Any
    /// context.
    pub(crate) fn receive(&self, ipi: &Interrupt) {
        self.post(match ipi.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                self.put(ipi.vector, ipi.level);
                Requests::INBOX
            }
            DeliveryMode::Nmi => return self.post_nmi(),
            DeliveryMode::Init => Requests::INIT,
            DeliveryMode::StartUp => {
                self.set_sipi_vector(ipi.vector);
                Requests::SIPI
            }
            DeliveryMode::ExtInt => Requests::EXTINT,
            // There is no system management mode, and the reserved mode does nothing.
            DeliveryMode::Smi | DeliveryMode::Reserved => return,
        });
    }

    /// An NMI. The CPU keeps two of them, so both must arrive.
    fn post_nmi(&self) {
        let before = self.requests.fetch_or(Requests::NMI.bits(), SeqCst);
        if before & Requests::NMI.bits() != 0 {
            self.post(Requests::SECOND_NMI);
        }
    }

    fn put(&self, vector: u8, level: bool) {
        let (word, bit) = (usize::from(vector >> 6), 1u64 << (vector & 63));
        if level {
            self.tmr[word].fetch_or(bit, SeqCst);
        }
        self.irr[word].fetch_or(bit, SeqCst);
    }

    // ---- the vCPU's own thread --------------------------------------------------------------

    /// Declares the guest as about to run on this CPU.
    #[inline]
    pub(crate) fn enter(&self, _: &IrqsOff) {
        self.mode.swap(linux::cpu() + 1, SeqCst);
    }

    /// The guest does not run any more.
    #[inline]
    pub(crate) fn leave(&self) {
        self.mode.store(OUTSIDE, Release);
    }

    /// Whether anything is asked.
    #[inline]
    pub(crate) fn has_requests(&self) -> bool {
        self.requests.load(Relaxed) != 0
    }

    /// Forgets what was left for a vCPU that never came to be.
    pub(crate) fn clear(&self) {
        self.take_requests();
        self.take_interrupts();
    }

    /// Takes all requests.
    pub(crate) fn take_requests(&self) -> Requests {
        Requests::from_bits_retain(self.requests.swap(0, SeqCst))
    }

    /// Takes all requests but these.
    pub(crate) fn take_requests_but(&self, kept: Requests) -> Requests {
        Requests::from_bits_retain(self.requests.fetch_and(kept.bits(), SeqCst)) - kept
    }

    /// Takes the interrupts out of the inbox: which arrived, and which of them are level-triggered.
    pub(crate) fn take_interrupts(&self) -> (Vectors, Vectors) {
        let (mut requests, mut levels) = (Vectors::EMPTY, Vectors::EMPTY);
        for (i, irr) in self.irr.iter().enumerate() {
            if irr.load(Relaxed) == 0 {
                continue;
            }
            let bits = irr.swap(0, SeqCst);
            if bits != 0 {
                requests.set_word(i, bits);
                // A vector's level bit is set before its IRR bit, so those of `bits` are all there.
                levels.set_word(i, self.tmr[i].fetch_and(!bits, SeqCst) & bits);
            }
        }
        (requests, levels)
    }

    /// Sets the vector of the last STARTUP IPI, for the VMM.
    pub(crate) fn set_sipi_vector(&self, vector: u8) {
        self.sipi_vector.store(u32::from(vector), Relaxed);
    }

    /// Vector of the last STARTUP IPI.
    pub(crate) fn sipi_vector(&self) -> u8 {
        self.sipi_vector.load(Relaxed) as u8
    }

    /// Sleeps until something is asked; `EINTR` if a signal came first.
    pub(crate) fn sleep(&self) -> Result {
        self.sleeper.wait(&|| self.has_requests())
    }

    /// Publishes how the LAPIC is addressed; for [`crate::irq::vcpu_table::VcpuTable`] only, which
    /// counts.
    pub(crate) fn set_apic(&self, apic: Snapshot) {
        self.apic.store(apic.to_bits(), SeqCst);
    }

    /// The TSC, as last published.
    pub(crate) fn tsc(&self) -> Tsc {
        let [offset, ratio, old_clock] = [0, 1, 2].map(|i: usize| self.tsc[i].load(SeqCst));
        Tsc {
            offset,
            ratio,
            old_clock: old_clock != 0,
        }
    }

    /// Publishes the TSC. For the vCPU's own thread.
    pub(crate) fn set_tsc(&self, tsc: Tsc) {
        let words = [tsc.offset, tsc.ratio, tsc.old_clock.into()];
        for (to, word) in self.tsc.iter().zip(words) {
            to.store(word, SeqCst);
        }
    }

    /// How the LAPIC is addressed, as last published.
    pub(crate) fn apic(&self) -> Snapshot {
        Snapshot::from_bits(self.apic.load(Relaxed))
    }
}

impl TimerCallback for Mailbox {
    /// The LAPIC's timer.
    fn expire(&self) {
        self.request(Requests::TIMER_EXPIRED);
    }
}

/// A vCPU's TSC, as far as others' clocks depend on it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tsc {
    /// What it is ahead of the host's.
    pub(crate) offset: u64,
    /// How much faster it runs.
    pub(crate) ratio: u64,
    /// The first vCPU's guest has placed its clock by the MSR of old, as a kernel that knows
    /// nothing of the flag of stable clocks.
    pub(crate) old_clock: bool,
}

/// What a message brings to the processors that it is for.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Interrupt {
    pub(crate) mode: DeliveryMode,
    pub(crate) vector: u8,
    pub(crate) level: bool,
}
