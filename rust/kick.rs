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

use crate::ffi;
use crate::ffi::{Expire, IrqLock, WaitQueue};
use crate::memory::Flush;
use irqchip::bits::Vectors;
use irqchip::dest::pick_lowest_priority;
use irqchip::{DeliveryMode, Destination, Snapshot};
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Full, Relaxed};
use kernel::sync::Arc;

/// What a vCPU is asked to do before it enters its guest again. One bit each.
pub(crate) mod request {
    /// Flush the guest's TLB entries.
    pub(crate) const TLB_FLUSH: u32 = 1 << 0;
    /// Look into the inbox.
    pub(crate) const INBOX: u32 = 1 << 1;
    /// The LAPIC's timer has expired.
    pub(crate) const TIMER: u32 = 1 << 2;
    /// The PIC or the PIT may have something.
    pub(crate) const CHIPS: u32 = 1 << 3;
    /// An NMI.
    pub(crate) const NMI: u32 = 1 << 4;
    /// An INIT.
    pub(crate) const INIT: u32 = 1 << 5;
    /// A STARTUP IPI; its vector is in the inbox.
    pub(crate) const SIPI: u32 = 1 << 6;
    /// Write the paravirtual clock again.
    pub(crate) const CLOCK: u32 = 1 << 7;
    /// Do not stay halted.
    pub(crate) const UNHALT: u32 = 1 << 31;
    /// The VM's filter of MSRs has changed.
    pub(crate) const MSR_FILTER: u32 = 1 << 16;
}

/// `mode` of a vCPU that is not in its guest.
const OUTSIDE: u32 = 0;

/// The part of a vCPU that any CPU may touch at any time.
#[pin_data]
pub(crate) struct Mailbox {
    /// The number that the VMM gave the vCPU; its APIC ID.
    pub(crate) id: u32,
    requests: Atomic<u32>,
    /// [`OUTSIDE`], or one more than the number of the CPU that is about to enter the guest.
    mode: Atomic<u32>,
    /// Interrupts that arrived, a bit a vector.
    irr: [Atomic<u64>; 4],
    /// Which of them are level-triggered.
    tmr: [Atomic<u64>; 4],
    sipi_vector: Atomic<u32>,
    /// What senders need of the LAPIC to find out whom they address: a [`Snapshot`].
    apic: Atomic<u64>,
    #[pin]
    sleepers: WaitQueue,
}

impl Mailbox {
    /// The mailbox of vCPU `id`.
    pub(crate) fn new(id: u32) -> impl PinInit<Self> {
        pin_init!(Self {
            id,
            requests: Atomic::new(0),
            mode: Atomic::new(OUTSIDE),
            irr: [const { Atomic::new(0) }; 4],
            tmr: [const { Atomic::new(0) }; 4],
            sipi_vector: Atomic::new(0),
            apic: Atomic::new(0),
            sleepers <- WaitQueue::new(),
        })
    }

    /// Asks, and kicks. Any context.
    pub(crate) fn ask(&self, request: u32) {
        set_bits(&self.requests, request);
        self.kick();
    }

    /// Wakes the vCPU's thread, or makes it leave the guest.
    fn kick(&self) {
        let mode = self.mode.load(Relaxed);
        if mode == OUTSIDE {
            self.sleepers.wake();
        } else if mode - 1 != ffi::cpu() {
            ffi::kick_cpu(mode - 1);
        }
        // On this very CPU, we are in an interrupt or in the vCPU's own thread: it has left the
        // guest, and will read the requests before it enters again.
    }

    /// The CPU whose guest this vCPU may be in.
    pub(crate) fn running_on(&self) -> Option<u32> {
        self.mode.load(Relaxed).checked_sub(1)
    }

    /// Leaves a TLB flush as a request without a kick; the caller interrupts the CPUs itself.
    pub(crate) fn ask_for_flush(&self) {
        set_bits(&self.requests, request::TLB_FLUSH);
    }

    /// An interrupt message for this vCPU. Any context.
    pub(crate) fn post(&self, vector: u8, level: bool) {
        let (word, bit) = (usize::from(vector >> 6), 1u64 << (vector & 63));
        if level {
            set_bits64(&self.tmr[word], bit);
        }
        set_bits64(&self.irr[word], bit);
        self.ask(request::INBOX);
    }

    /// A message for this vCPU, but for one that is arbitrated. Any context.
    fn receive(&self, ipi: &Interrupt) {
        match ipi.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => self.post(ipi.vector, ipi.level),
            DeliveryMode::Nmi => self.ask(request::NMI),
            DeliveryMode::Init => self.ask(request::INIT),
            DeliveryMode::StartUp => self.post_sipi(ipi.vector),
            DeliveryMode::ExtInt => self.ask(request::CHIPS),
            // There is no system management mode, and the reserved mode does nothing.
            DeliveryMode::Smi | DeliveryMode::Reserved => {}
        }
    }

    /// A STARTUP IPI. Any context.
    pub(crate) fn post_sipi(&self, vector: u8) {
        self.sipi_vector.store(u32::from(vector), Relaxed);
        self.ask(request::SIPI);
    }

    // ---- the vCPU's own thread --------------------------------------------------------------

    /// Declares the guest as about to run on this CPU; interrupts are off.
    #[inline]
    pub(crate) fn enter(&self) {
        self.mode.xchg(ffi::cpu() + 1, Full);
    }

    /// The guest does not run any more.
    #[inline]
    pub(crate) fn leave(&self) {
        self.mode.store(OUTSIDE, kernel::sync::atomic::Release);
    }

    /// Whether anything is asked.
    #[inline]
    pub(crate) fn is_asked(&self) -> bool {
        self.requests.load(Relaxed) != 0
    }

    /// Takes all requests.
    pub(crate) fn take(&self) -> u32 {
        self.requests.xchg(0, Full)
    }

    /// Takes the interrupts out of the inbox: which arrived, and which of them are level-triggered.
    pub(crate) fn take_interrupts(&self) -> (Vectors, Vectors) {
        let (mut requests, mut levels) = (Vectors::EMPTY, Vectors::EMPTY);
        for (i, irr) in self.irr.iter().enumerate() {
            if irr.load(Relaxed) == 0 {
                continue;
            }
            let bits = irr.xchg(0, Full);
            if bits != 0 {
                requests.set_word(i, bits);
                // A vector's level bit is set before its IRR bit, so those of `bits` are all there.
                levels.set_word(i, clear_bits64(&self.tmr[i], bits));
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

    /// Sleeps until something is asked; `ERESTARTSYS` if a signal came first.
    pub(crate) fn sleep(&self) -> Result {
        self.sleepers.wait(&|| self.is_asked())
    }

    /// Publishes how the LAPIC is addressed.
    pub(crate) fn publish_apic(&self, apic: Snapshot) {
        self.apic.store(apic.to_bits(), Relaxed);
    }

    /// How the LAPIC is addressed, as last published.
    pub(crate) fn apic(&self) -> Snapshot {
        Snapshot::from_bits(self.apic.load(Relaxed))
    }
}

impl Expire for Mailbox {
    /// The LAPIC's timer.
    fn expire(&self) {
        self.ask(request::TIMER);
    }
}

fn set_bits(word: &Atomic<u32>, bits: u32) {
    let mut old = word.load(Relaxed);
    while let Err(now) = word.cmpxchg(old, old | bits, Full) {
        old = now;
    }
}

fn set_bits64(word: &Atomic<u64>, bits: u64) {
    let mut old = word.load(Relaxed);
    while let Err(now) = word.cmpxchg(old, old | bits, Full) {
        old = now;
    }
}

/// Clears `bits` and returns which of them were set.
fn clear_bits64(word: &Atomic<u64>, bits: u64) -> u64 {
    let mut old = word.load(Relaxed);
    while let Err(now) = word.cmpxchg(old, old & !bits, Full) {
        old = now;
    }
    old & bits
}

/// All mailboxes of a VM: how a device or another CPU finds its vCPUs.
#[pin_data]
pub(crate) struct Mailboxes {
    #[pin]
    list: IrqLock<KVec<Arc<Mailbox>>>,
}

/// Most vCPUs that a VM can have.
pub(crate) const MAX_VCPUS: usize = 1024;
/// One more than the highest number of a vCPU.
pub(crate) const MAX_VCPU_ID: u32 = 4096;

impl Mailboxes {
    /// An empty list.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self { list <- IrqLock::new(KVec::new()) }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Adds a vCPU; `EEXIST` if there is one with its number, `EINVAL` if there are enough. One
    /// thread at a time may add.
    pub(crate) fn add(&self, mailbox: Arc<Mailbox>) -> Result {
        if self.count() >= MAX_VCPUS {
            return Err(EINVAL);
        }
        if self.list.lock().iter().any(|other| other.id == mailbox.id) {
            return Err(EEXIST);
        }
        self.list.append(&mailbox)
    }

    /// Takes a vCPU out again whose creation failed.
    pub(crate) fn remove(&self, id: u32) {
        let mut list = self.list.lock();
        list.retain(|mailbox| mailbox.id != id);
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.list.lock().len()
    }

    /// Calls `f` for each, with interrupts off.
    pub(crate) fn each(&self, mut f: impl FnMut(&Mailbox)) {
        for mailbox in self.list.lock().iter() {
            f(mailbox);
        }
    }

    /// Sends a message to those it is for; whether anybody took it. Any context.
    pub(crate) fn deliver(&self, to: &Destination, source: Option<u32>, ipi: &Interrupt) -> bool {
        let list = self.list.lock();
        let matching = list.iter().filter(|mailbox| {
            let apic = mailbox.apic();
            // An APIC that software has not enabled refuses vectors, and takes the rest.
            apic.matches(to, source == Some(mailbox.id))
                && (apic.is_enabled() || !ipi.mode.has_vector())
        });
        if ipi.mode == DeliveryMode::LowestPriority {
            let one = pick_lowest_priority(matching, u32::from(ipi.vector));
            return one.inspect(|one| one.post(ipi.vector, ipi.level)).is_some();
        }
        let mut any = false;
        for mailbox in matching {
            any = true;
            mailbox.receive(ipi);
        }
        any
    }

    /// Sends a message to those whose APIC ID is `lowest` plus the number of a bit in `set`; how
    /// many took it.
    pub(crate) fn deliver_set(&self, lowest: u32, set: u128, ipi: &Interrupt) -> u32 {
        let mut count = 0;
        self.each(|mailbox| {
            let apic = mailbox.apic();
            let bit = apic.id().wrapping_sub(lowest);
            let is_meant =
                apic.is_present() && set.checked_shr(bit).is_some_and(|set| set & 1 != 0);
            if is_meant && (apic.is_enabled() || !ipi.mode.has_vector()) {
                count += 1;
                mailbox.receive(ipi);
            }
        });
        count
    }
}

impl Flush for Mailboxes {
    fn flush_all(&self) {
        self.each(Mailbox::ask_for_flush);
        for i in 0..MAX_VCPUS {
            let Some(cpu) = self.list.lock().get(i).map(|mailbox| mailbox.running_on()) else {
                break;
            };
            // An interrupt that has been handled there: the guest was left after our request.
            if let Some(cpu) = cpu {
                ffi::interrupt_and_wait(cpu);
            }
        }
    }
}

/// What a message brings to the processors that it is for.
pub(crate) struct Interrupt {
    pub(crate) mode: DeliveryMode,
    pub(crate) vector: u8,
    pub(crate) level: bool,
}
