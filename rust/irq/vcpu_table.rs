// SPDX-License-Identifier: GPL-2.0-only

//! All mailboxes of a VM: how a device or another CPU finds its vCPUs, without a lock.
//!
//! ```text
//!   number of a vCPU: │ word │ bit │        present[word]: a bit for each vCPU that exists
//!                        │      └─────────► boxes[word][bit]: its mailbox
//! ```
//!
//! Mailboxes are only ever added. That of a vCPU whose creation failed stays, and is used again. A
//! message whose destination says enough of its receiver goes straight there; others go along the
//! bits. What messages bring is left in the inboxes first; the vCPUs are kicked when the
//! [`PendingKicks`] are dropped, which the sender does after it has released its locks.

use crate::irq::mailbox::{Interrupt, Mailbox};
use crate::linux;
use crate::memory::Flush;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use irqchip::dest::{pick_lowest_priority, ApicModes, IdSet};
use irqchip::{DeliveryMode, Destination, Shorthand, Snapshot};
use kernel::prelude::*;
use kernel::sync::{Arc, SetOnce};
use svm::requests::Requests;

/// Most vCPUs that a VM can have.
pub(crate) const MAX_VCPUS: usize = 1024;
/// So many are reached at once where interrupts are off. To wake a thread costs a thousand
/// instructions and more.
const FEW: usize = 8;
/// So many are looked at there, to find those whom a message is for.
const SURVEY: usize = 64;
/// One more than the highest number of a vCPU.
pub(crate) const MAX_VCPU_ID: u32 = 64 * WORDS;
const WORDS: u32 = 64;

/// The word and the bit of a number.
fn place(id: u32) -> (usize, u64) {
    ((id / 64 % WORDS) as usize, 1 << (id % 64))
}

type Boxes = [SetOnce<Arc<Mailbox>>; 64];

/// All mailboxes of a VM.
pub(crate) struct VcpuTable {
    present: [AtomicU64; WORDS as usize],
    /// One more than the last word in use.
    words: AtomicU32,
    /// How many present APICs are in xAPIC mode.
    xapics: AtomicU32,
    /// How many present APICs have another ID than their vCPU's number.
    renumbered: AtomicU32,
    /// How many listen to the PIC, and a bit for each.
    listening: AtomicU32,
    listeners: [AtomicU64; WORDS as usize],
    /// The vCPU that was last given another's CPU.
    last_yield: AtomicU32,
    boxes: [SetOnce<KBox<Boxes>>; WORDS as usize],
}

impl VcpuTable {
    /// None. Not inlined: the frame of a caller that makes more of a VM would be large.
    #[inline(never)]
    pub(crate) fn new() -> Result<Arc<Self>> {
        let this = Self {
            present: [const { AtomicU64::new(0) }; WORDS as usize],
            words: AtomicU32::new(0),
            xapics: AtomicU32::new(0),
            renumbered: AtomicU32::new(0),
            listening: AtomicU32::new(0),
            listeners: [const { AtomicU64::new(0) }; WORDS as usize],
            last_yield: AtomicU32::new(0),
            boxes: [const { SetOnce::new() }; WORDS as usize],
        };
        Ok(Arc::new(this, GFP_KERNEL_ACCOUNT)?)
    }

    /// The mailbox for a vCPU to be; `EEXIST` if there is one with its number, `EINVAL` if there
    /// are enough. One thread at a time may create vCPUs.
    pub(crate) fn create(&self, id: u32) -> Result<Arc<Mailbox>> {
        if id >= MAX_VCPU_ID || self.count() >= MAX_VCPUS {
            return Err(EINVAL);
        }
        let (word, bit) = place(id);
        if self.present[word].load(Relaxed) & bit != 0 {
            return Err(EEXIST);
        }
        let boxes = &self.boxes[word];
        if boxes.as_ref().is_none() {
            boxes.populate(KBox::new(
                [const { SetOnce::new() }; 64],
                GFP_KERNEL_ACCOUNT,
            )?);
        }
        if let Some(left) = self.get(id) {
            left.clear();
            return Ok(left.clone());
        }
        let new = Arc::pin_init(Mailbox::new(id), GFP_KERNEL_ACCOUNT)?;
        let slot = boxes.as_ref().ok_or(ENOMEM)?;
        slot[(id % 64) as usize].populate(new.clone());
        Ok(new)
    }

    /// The vCPU of this mailbox exists.
    pub(crate) fn publish(&self, mailbox: &Mailbox) {
        let (word, bit) = place(mailbox.id);
        self.words.fetch_max(word as u32 + 1, SeqCst);
        self.present[word].fetch_or(bit, SeqCst);
    }

    /// It does not, after all.
    pub(crate) fn withdraw(&self, mailbox: &Mailbox) {
        let (word, bit) = place(mailbox.id);
        self.present[word].fetch_and(!bit, SeqCst);
        self.publish_apic(mailbox, Snapshot::ABSENT);
    }

    /// Publishes how a LAPIC is addressed. For the vCPU's own thread.
    pub(crate) fn publish_apic(&self, mailbox: &Mailbox, apic: Snapshot) {
        let (was, is) = (mailbox.apic(), apic);
        let (word, bit) = place(mailbox.id);
        // It is counted for longer than others can see it.
        self.xapics.fetch_add(is.is_xapic().into(), SeqCst);
        let renumbered = |apic: Snapshot| u32::from(apic.is_renumbered(mailbox.id));
        self.renumbered.fetch_add(renumbered(is), SeqCst);
        self.listening.fetch_add(is.takes_pic().into(), SeqCst);
        if is.takes_pic() {
            self.listeners[word].fetch_or(bit, SeqCst);
        }
        mailbox.set_apic(apic);
        if !is.takes_pic() {
            self.listeners[word].fetch_and(!bit, SeqCst);
        }
        self.listening.fetch_sub(was.takes_pic().into(), SeqCst);
        self.xapics.fetch_sub(was.is_xapic().into(), SeqCst);
        self.renumbered.fetch_sub(renumbered(was), SeqCst);
    }

    fn census(&self) -> ApicModes {
        ApicModes {
            all_x2apic: self.xapics.load(Relaxed) == 0,
            own_ids: self.renumbered.load(Relaxed) == 0,
        }
    }

    /// Lets another vCPU have this CPU that waits for one, while `spinner` waits for who knows
    /// whom. They take turns. May sleep.
    pub(crate) fn yield_from(&self, spinner: &Mailbox) -> bool {
        let last = self.last_yield.load(Relaxed);
        let takes = |one: &&Mailbox| one.id != spinner.id && one.yield_to();
        let after = self.all().filter(|one| one.id > last).find(takes);
        let found = after.or_else(|| self.all().filter(|one| one.id <= last).find(takes));
        found
            .map(|one| self.last_yield.store(one.id, Relaxed))
            .is_some()
    }

    /// How many vCPUs there are.
    pub(crate) fn count(&self) -> usize {
        let each = self.present.iter().take(self.words.load(Relaxed) as usize);
        each.fold(0, |sum, word| {
            sum + word.load(Relaxed).count_ones() as usize
        })
    }

    fn get(&self, id: u32) -> Option<&Arc<Mailbox>> {
        let boxes = self.boxes.get((id / 64) as usize)?.as_ref()?;
        boxes[(id % 64) as usize].as_ref()
    }

    /// All of them.
    pub(crate) fn all(&self) -> VcpuIter<'_> {
        VcpuIter {
            table: self,
            among: &self.present,
            set: None,
            next: 0,
            end: self.words.load(Relaxed),
            bits: 0,
        }
    }

    /// Whether one vCPU's clock is good on all others: their TSCs are the same.
    pub(crate) fn clocks_match(&self) -> bool {
        let mut all = self.all().map(Mailbox::tsc);
        let first = all.next();
        let same = |one| Some(one) == first;
        first.is_none_or(|one| !one.old_clock) && all.all(same)
    }

    /// Each vCPU writes its clock anew.
    pub(crate) fn update_clocks(&self) {
        self.all().for_each(|vcpu| vcpu.request(Requests::PV_CLOCK));
    }

    /// Those that listen to the PIC.
    pub(crate) fn pic_listeners(&self) -> VcpuIter<'_> {
        VcpuIter {
            among: &self.listeners,
            ..self.all()
        }
    }

    /// Whether they are few enough for a place with interrupts off.
    pub(crate) fn has_few_pic_listeners(&self) -> bool {
        self.listening.load(Relaxed) as usize <= FEW
    }

    /// Those of `set`, if there is one, else all.
    fn find(&self, set: Option<IdSet>) -> VcpuIter<'_> {
        let all = self.all();
        match set {
            None => all,
            Some(ids) => {
                let (next, end) = ids.words();
                VcpuIter {
                    set,
                    next,
                    end: end.min(all.end),
                    ..all
                }
            }
        }
    }

    /// Those that are present and whose APIC ID is in `ids`.
    pub(crate) fn by_apic_id(&self, ids: IdSet) -> impl Iterator<Item = &Mailbox> {
        let found = self.find(self.census().own_ids.then_some(ids));
        found.filter(move |one| one.apic().is_present() && ids.contains(one.apic().id()))
    }

    /// Who can be meant by a message from vCPU `source`, by their numbers, or nothing if it can be
    /// any.
    fn candidates(&self, to: &Destination, source: Option<u32>) -> Option<IdSet> {
        match to.shorthand {
            Shorthand::Myself => source.map(IdSet::one),
            _ => to.candidates(self.census()),
        }
    }

    /// Whether a message is for one vCPU at most, and it is known which.
    pub(crate) fn is_for_one(&self, to: &Destination, source: Option<u32>) -> bool {
        let candidates = self.candidates(to, source);
        candidates.is_some_and(|ids| ids.bits.count_ones() <= 1)
    }

    /// Sends a message if it wakes few, and if few must be looked at to find them; whether a vCPU
    /// takes it. `None` if it is for many. Any context.
    pub(crate) fn deliver_to_few<'a>(
        &'a self,
        to: &Destination,
        ipi: &Interrupt,
        kicks: &mut PendingKicks<'a>,
    ) -> Option<bool> {
        let candidates = self.candidates(to, None);
        let known = candidates.is_some_and(|ids| ids.bits.count_ones() as usize <= FEW);
        if !known && !self.are_few(candidates, to, ipi) {
            return None;
        }
        Some(self.deliver_among(candidates, to, None, ipi, kicks))
    }

    fn are_few(&self, candidates: Option<IdSet>, to: &Destination, ipi: &Interrupt) -> bool {
        let count = self.count();
        let takers = || {
            let found = self.find(candidates);
            let takers = found.filter(|one| takes(one, to, None, ipi));
            takers.take(FEW + 1).count()
        };
        count <= FEW
            || (count <= SURVEY && (ipi.mode == DeliveryMode::LowestPriority || takers() <= FEW))
    }

    /// Whether a vCPU takes a message, as far as the first can tell that are looked at: if none
    /// of these does, and there are more, one may.
    pub(crate) fn may_be_taken(&self, to: &Destination, ipi: &Interrupt) -> bool {
        let mut found = self.find(self.candidates(to, None));
        let mut first = found.by_ref().take(SURVEY);
        first.any(|one| takes(one, to, None, ipi)) || found.next().is_some()
    }

    /// Sends a message to those it is for; whether a vCPU takes it. Interrupts are on.
    pub(crate) fn deliver<'a>(
        &'a self,
        to: &Destination,
        source: Option<u32>,
        ipi: &Interrupt,
        kicks: &mut PendingKicks<'a>,
    ) -> bool {
        self.deliver_among(self.candidates(to, source), to, source, ipi, kicks)
    }

    fn deliver_among<'a>(
        &'a self,
        candidates: Option<IdSet>,
        to: &Destination,
        source: Option<u32>,
        ipi: &Interrupt,
        kicks: &mut PendingKicks<'a>,
    ) -> bool {
        let mut taken = false;
        let mut bring = |one: &'a Mailbox| {
            one.receive(ipi);
            kicks.add(one);
            taken = true;
        };
        let found = self.find(candidates);
        let takers = found.filter(|one| takes(one, to, source, ipi));
        if ipi.mode == DeliveryMode::LowestPriority {
            let chosen = pick_lowest_priority(takers, u32::from(ipi.vector));
            chosen.into_iter().for_each(bring);
        } else {
            takers.for_each(&mut bring);
        }
        taken
    }

    /// Those with an APIC ID in `ids` that take a message.
    fn takers(&self, ids: IdSet, ipi: Interrupt) -> impl Iterator<Item = &Mailbox> {
        let present = self.by_apic_id(ids);
        present.filter(move |one| one.apic().is_enabled() || !ipi.mode.has_vector())
    }

    /// How many will take a message to those whose APIC ID is in `ids`.
    pub(crate) fn count_set(&self, ids: IdSet, ipi: &Interrupt) -> u32 {
        self.takers(ids, *ipi).count() as u32
    }

    /// Sends a message to those whose APIC ID is in `ids`. With interrupts off only to one.
    pub(crate) fn deliver_set(&self, ids: IdSet, ipi: &Interrupt) {
        for mailbox in self.takers(ids, *ipi) {
            mailbox.receive(ipi);
            mailbox.kick();
        }
    }

    /// An empty list of kicks.
    pub(crate) fn kicks(&self) -> PendingKicks<'_> {
        PendingKicks {
            table: self,
            few: [None; FEW],
            count: 0,
        }
    }
}

/// Whether a vCPU takes a message. An APIC that software has not enabled refuses vectors, and takes
/// the rest.
fn takes(one: &Mailbox, to: &Destination, source: Option<u32>, ipi: &Interrupt) -> bool {
    let apic = one.apic();
    apic.matches(to, source == Some(one.id)) && (apic.is_enabled() || !ipi.mode.has_vector())
}

/// The vCPUs that exist, or some of them, in the order of their numbers.
#[derive(Clone)]
pub(crate) struct VcpuIter<'a> {
    table: &'a VcpuTable,
    among: &'a [AtomicU64; WORDS as usize],
    set: Option<IdSet>,
    next: u32,
    end: u32,
    /// Those of the word before `next` that are still to come.
    bits: u64,
}

impl<'a> Iterator for VcpuIter<'a> {
    type Item = &'a Mailbox;

    fn next(&mut self) -> Option<&'a Mailbox> {
        while self.bits == 0 {
            if self.next >= self.end {
                return None;
            }
            let among = self.among.get(self.next as usize)?.load(SeqCst);
            self.bits = among & self.set.map_or(u64::MAX, |set| set.word(self.next));
            self.next += 1;
        }
        let bit = self.bits.trailing_zeros();
        self.bits &= self.bits - 1;
        // What is present has a mailbox.
        self.table.get((self.next - 1) * 64 + bit).map(|one| &**one)
    }
}

/// Whom a message was brought to: they are kicked when this is dropped.
#[must_use]
pub(crate) struct PendingKicks<'a> {
    table: &'a VcpuTable,
    few: [Option<&'a Mailbox>; FEW],
    /// How many there are; if they are more than few, all who are asked for something are meant. A
    /// kick too many does no harm.
    count: usize,
}

impl<'a> PendingKicks<'a> {
    /// Adds a vCPU that is to be kicked.
    pub(crate) fn add(&mut self, mailbox: &'a Mailbox) {
        if self.few().any(|one| core::ptr::eq(one, mailbox)) {
            return;
        }
        if let Some(place) = self.few.get_mut(self.count) {
            *place = Some(mailbox);
        }
        self.count += 1;
    }

    fn few(&self) -> impl Iterator<Item = &'a Mailbox> + use<'a, '_> {
        self.few.iter().take(self.count).flatten().copied()
    }
}

impl Drop for PendingKicks<'_> {
    fn drop(&mut self) {
        if self.count <= FEW {
            self.few().for_each(Mailbox::kick);
        } else {
            let asked = self.table.all().filter(|one| one.has_requests());
            asked.for_each(Mailbox::kick);
        }
    }
}

impl Flush for VcpuTable {
    fn flush_all(&self) {
        // Interrupts that have been handled there: the guests were left after our requests. They
        // are sent to all at once, and all are waited for together.
        let mut cpus = linux::CpusToInterrupt::new();
        for mailbox in self.all() {
            mailbox.post(Requests::TLB_FLUSH);
            if let Some(cpu) = mailbox.running_on() {
                cpus.add(cpu);
            }
        }
        cpus.interrupt_and_wait();
    }
}
