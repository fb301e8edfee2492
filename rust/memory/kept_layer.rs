// SPDX-License-Identifier: GPL-2.0-only

//! What one snapshot keeps: pages as they were, and which of them may be different now.
//!
//! ```text
//!   not kept ──first write──► active ──not written for some rounds──► at rest
//!                                ▲                                        │
//!                                └────────────── written ─────────────────┘
//! ```
//!
//! Only what is active is looked at by a reset. It is what the guest can write without a fault, and
//! what the VMM and the emulator have written since the last reset.

use crate::linux;
use crate::linux::mm::PageContent;
use kernel::prelude::*;
use kernel::rbtree::RBTree;
use npt::Written;

/// How much is done before others may have the CPU.
pub(crate) const BATCH: usize = 64;

/// After so many rounds without a write a page is at rest. To look at one costs a fiftieth of a
/// fault.
const PATIENCE: u8 = 16;

/// The page is in the list of active pages.
const ACTIVE: u8 = 1 << 0;
/// The page may have been written since the last reset.
const CHANGED: u8 = 1 << 1;
/// The VMM writes it when it likes: it counts as changed in each round.
const ALWAYS: u8 = 1 << 2;
/// The guest cannot write it without a fault any more.
const WITHHELD: u8 = 1 << 3;
/// Another page has come to its guest-physical address. It is not in the index, and a reset forgets
/// it, unless the VMM writes it when it likes, and it is back.
const DETACHED: u8 = 1 << 4;

/// Who is about to write a page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    /// The guest itself.
    Guest,
    /// The emulator, which would lose what it has begun: it may keep beyond the limit. `KVM_RUN`
    /// does not go on then.
    Emulator,
    /// The VMM, until the next reset.
    VmmOnce,
    /// The VMM, at any time from now on.
    Vmm,
}

/// What a layer has of a page.
pub(crate) enum Touch {
    /// It keeps it.
    Kept,
    /// It keeps another one at its guest-physical address.
    Elsewhere,
    /// Nothing.
    Unknown,
}

/// A page as it was.
pub(crate) struct Old {
    pub(crate) gpa: u64,
    pub(crate) hva: u64,
    pub(crate) content: PageContent,
    flags: u8,
    /// How many rounds it was not written for.
    idle: u8,
}

/// The pages that one snapshot keeps.
///
/// # Invariants
///
/// `index` has the place of each of `pages`, by its guest-physical address, but for those that are
/// detached. `active` has the places of those that are flagged so, and room for all of them.
pub(crate) struct Layer {
    /// Which snapshot it is.
    pub(crate) id: u64,
    /// Most pages.
    pub(crate) limit: u64,
    /// In the order in which they were kept.
    pages: KVVec<Old>,
    index: RBTree<u64, u32>,
    active: KVVec<u32>,
    /// The content of so many is known to be the snapshot's: see [`Layer::changed`].
    settled: usize,
    /// Some pages were forgotten: large pages may be split that `index` does not name.
    pub(crate) has_forgotten: bool,
    /// How often slots had left when all pages were last known to be at their places.
    pub(crate) moves: u64,
}

impl Layer {
    /// Creates a layer that keeps no page yet.
    pub(crate) fn new(id: u64, limit: u64, moves: u64) -> Self {
        Self {
            id,
            limit,
            pages: KVVec::new(),
            index: RBTree::new(),
            active: KVVec::new(),
            settled: 0,
            has_forgotten: false,
            moves,
        }
    }

    /// How many pages are kept.
    pub(crate) fn count(&self) -> u64 {
        self.pages.len() as u64
    }

    /// Whether no more may be.
    pub(crate) fn is_full(&self) -> bool {
        self.count() >= self.limit
    }

    /// Makes room for so many more pages than there are.
    pub(crate) fn reserve(&mut self, more: usize) -> Result {
        self.pages.reserve(more, GFP_KERNEL_ACCOUNT)?;
        let all = self.pages.len().saturating_add(more);
        let more = all.saturating_sub(self.active.len());
        self.active.reserve(more, GFP_KERNEL_ACCOUNT)?;
        // The index has 32 bits.
        u32::try_from(all).map(|_| ()).map_err(|_| ENOMEM)
    }

    /// The page at `gpa`, which the process has at `hva`, is about to be written.
    pub(crate) fn touch(&mut self, gpa: u64, hva: u64, writer: Writer) -> Touch {
        let Some(&place) = self.index.get(&gpa) else {
            return Touch::Unknown;
        };
        let old = self.pages.get(place as usize);
        if old.is_none_or(|old| old.hva != hva) {
            return Touch::Elsewhere;
        }
        self.activate(place, flags_of(writer));
        Touch::Kept
    }

    /// The page that is kept at `gpa` is not there any more. As long as it was it may have been
    /// written.
    pub(crate) fn detach(&mut self, gpa: u64) {
        if let Some(node) = self.index.remove_node(&gpa) {
            let (_, place) = node.to_key_value();
            self.activate(place, CHANGED | DETACHED);
        }
    }

    fn activate(&mut self, place: u32, flags: u8) {
        let Some(old) = self.pages.get_mut(place as usize) else {
            return;
        };
        let was = old.flags;
        old.flags |= flags | ACTIVE;
        if was & ACTIVE == 0 {
            old.idle = 0;
            // By the invariant there is room.
            let _ = self.active.push_within_capacity(place);
        }
    }

    /// Keeps a page, which is not kept yet. There must be [room](Self::reserve).
    pub(crate) fn add(
        &mut self,
        gpa: u64,
        hva: u64,
        content: PageContent,
        writer: Writer,
    ) -> Result {
        let place = self.pages.len() as u32;
        self.index
            .try_create_and_insert(gpa, place, GFP_KERNEL_ACCOUNT)?;
        let old = Old {
            gpa,
            hva,
            content,
            flags: 0,
            idle: 0,
        };
        let _ = self.pages.push_within_capacity(old);
        self.activate(place, flags_of(writer));
        Ok(())
    }

    /// Whether the guest has written those that are active, batch by batch: `ask` calls its second
    /// argument with the answer for each page of its first, in order. What is at rest from now on
    /// is to be withheld: the third argument says of which pages.
    pub(crate) fn look(&mut self, ask: &mut dyn FnMut(&mut [Look])) {
        let mut looks = [const { Look::NOTHING }; BATCH];
        let Self { pages, active, .. } = self;
        for places in active.chunks(BATCH) {
            let looks = &mut looks[..places.len().min(BATCH)];
            for (look, &place) in looks.iter_mut().zip(places) {
                let old = pages.get(place as usize);
                let attached = old.filter(|old| old.flags & DETACHED == 0);
                *look = attached.map_or(Look::NOTHING, |old| Look {
                    gpa: old.gpa,
                    withhold: old.flags & ALWAYS == 0 && old.idle >= PATIENCE,
                    written: Written::Unknown,
                });
            }
            ask(looks);
            for (look, &place) in looks.iter().zip(places) {
                let old = pages.get_mut(place as usize);
                let Some(old) = old.filter(|old| old.flags & DETACHED == 0) else {
                    continue;
                };
                old.flags &= !WITHHELD;
                match look.written {
                    Written::Yes => old.flags |= CHANGED,
                    Written::No if look.withhold => old.flags |= WITHHELD,
                    Written::No => {}
                    // It may have been written before the host took it, or its right.
                    Written::Unknown => old.flags |= CHANGED | WITHHELD,
                }
            }
        }
    }

    /// Those that may be different now, in an order in which their contents can be put back.
    ///
    /// If the guest has the same memory in two places, the one that was kept later may have been
    /// written by way of the other. So what was kept since the last reset comes first, the last of
    /// it first. All others are settled: after a reset memory is the snapshot's, and the contents
    /// of what was kept before it were read again.
    pub(crate) fn changed(&self) -> impl Iterator<Item = &Old> {
        let new = self.pages.get(self.settled..).unwrap_or(&[]).iter().rev();
        let settled = self.active.iter().filter_map(|&place| {
            let place = place as usize;
            self.pages.get(place).filter(|_| place < self.settled)
        });
        Iterator::chain(new, settled).filter(|old| old.flags & CHANGED != 0)
    }

    /// All that can be put back was. Contents that are not known to be the snapshot's are read
    /// again by `read`.
    pub(crate) fn settle(&mut self, read: &mut dyn FnMut(&mut Old) -> Result) -> Result {
        let new = self.pages.get_mut(self.settled..).unwrap_or(&mut []);
        for (count, old) in new.iter_mut().enumerate() {
            read(old)?;
            if count % BATCH == 0 {
                linux::cond_resched();
            }
        }
        self.settled = self.pages.len();
        Ok(())
    }

    /// Slots have left since this was last done: forgets the pages that are not at their places, of
    /// which `is_at` tells by the two addresses. All others hold what they held at the snapshot.
    ///
    /// # Errors
    ///
    /// `ENOMEM`. It can be done again.
    pub(crate) fn forget_moved(&mut self, is_at: &mut dyn FnMut(u64, u64) -> bool) -> Result {
        for place in 0..self.pages.len() {
            if let Some(old) = self.pages.get_mut(place) {
                let (gpa, was) = (old.gpa, old.flags);
                if !is_at(gpa, old.hva) {
                    old.flags = DETACHED;
                    if was & DETACHED == 0 {
                        drop(self.index.remove_node(&gpa));
                    }
                }
            }
            if place % BATCH == 0 {
                linux::cond_resched();
            }
        }
        // Those of the VMM, which it announces but once, are to be in the index again.
        for place in 0..self.pages.len() {
            match self.pages.get(place).map(|old| (old.gpa, old.flags)) {
                Some((gpa, flags)) if flags & (DETACHED | ALWAYS) == DETACHED | ALWAYS => {
                    self.attach(gpa, place as u32)?;
                }
                _ => {}
            }
        }
        self.compact();
        Ok(())
    }

    /// The detached page `place` is back at `gpa`. If it was kept again meanwhile that one counts.
    fn attach(&mut self, gpa: u64, place: u32) -> Result {
        if let Some(&again) = self.index.get(&gpa) {
            self.activate(again, CHANGED | ALWAYS);
            return Ok(());
        }
        self.index
            .try_create_and_insert(gpa, place, GFP_KERNEL_ACCOUNT)?;
        if let Some(old) = self.pages.get_mut(place as usize) {
            old.flags &= !DETACHED;
        }
        self.activate(place, CHANGED);
        Ok(())
    }

    /// Drops all that is detached. What remains gets other places.
    fn compact(&mut self) {
        let before = self.pages.len();
        let mut count = 0usize;
        self.pages.retain(|old| {
            count = count.wrapping_add(1);
            if count % BATCH == 0 {
                linux::cond_resched();
            }
            old.flags & DETACHED == 0
        });
        self.has_forgotten |= self.pages.len() != before;
        self.active.clear();
        for (place, old) in self.pages.iter().enumerate() {
            if let Some(of) = self.index.get_mut(&old.gpa) {
                *of = place as u32;
            }
            if old.flags & ACTIVE != 0 {
                // By the invariant there is room.
                let _ = self.active.push_within_capacity(place as u32);
            }
            if place % BATCH == 0 {
                linux::cond_resched();
            }
        }
        self.settled = self.pages.len();
    }

    /// A new round begins: nothing is changed yet.
    pub(crate) fn begin_round(&mut self) {
        let pages = &mut self.pages;
        self.active.retain(|place| {
            let Some(old) = pages.get_mut(*place as usize) else {
                return false;
            };
            if old.flags & DETACHED != 0 {
                old.flags &= DETACHED | ALWAYS;
                return false;
            }
            if old.flags & ALWAYS != 0 {
                old.flags |= CHANGED;
                return true;
            }
            old.idle = match old.flags & CHANGED {
                0 => old.idle.saturating_add(1),
                _ => 0,
            };
            let stays = old.flags & WITHHELD == 0;
            old.flags = if stays { ACTIVE } else { 0 };
            stays
        });
    }

    /// Another snapshot is taken on top of this one: of all that is active, only what has changed
    /// since the last reset matters. The guest cannot write any of it.
    pub(crate) fn pause(&mut self) {
        let pages = &mut self.pages;
        self.active.retain(|place| {
            let Some(old) = pages.get_mut(*place as usize) else {
                return false;
            };
            let stays = old.flags & (CHANGED | ALWAYS) != 0;
            if !stays {
                old.flags &= DETACHED;
            }
            stays
        });
    }

    /// The guest-physical addresses of what the guest may be able to write.
    pub(crate) fn writable(&self) -> impl Iterator<Item = u64> + '_ {
        let pages = self.active.iter();
        pages.filter_map(|&place| self.pages.get(place as usize).map(|old| old.gpa))
    }

    /// Those of all pages, in their order.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = u64> + '_ {
        self.index.keys().copied()
    }

    /// Takes over what a snapshot on top of this one has kept, and gives it up: what this one has
    /// not, was as it is there. There is [room](Self::reserve) for it.
    pub(crate) fn absorb(&mut self, mut above: Layer) {
        self.has_forgotten |= above.has_forgotten;
        above.pages.as_mut_slice().reverse();
        while let Some(mut old) = above.pages.pop() {
            let gpa = old.gpa;
            let is_detached = old.flags & DETACHED != 0;
            let flags = old.flags & (ALWAYS | DETACHED) | CHANGED;
            let node = match is_detached {
                true => None,
                false => above.index.remove_node(&gpa),
            };
            let mine = self.index.get(&gpa).copied();
            let same = mine.filter(|place| {
                let mine = self.pages.get(*place as usize);
                mine.is_some_and(|mine| mine.hva == old.hva)
            });
            if let Some(place) = same {
                self.activate(place, flags & !DETACHED);
            } else {
                let place = self.pages.len() as u32;
                if let Some(node) = node {
                    self.detach(gpa);
                    self.index
                        .insert(node.into_reservation().into_node(gpa, place));
                }
                (old.flags, old.idle) = (0, 0);
                // By what was reserved there is room.
                let _ = self.pages.push_within_capacity(old);
                self.activate(place, flags);
            }
            if above.pages.len() % BATCH == 0 {
                linux::cond_resched();
            }
        }
    }

    /// Takes all that is kept out.
    pub(crate) fn take(&mut self) -> Layer {
        let mut new = Layer::new(self.id, self.limit, self.moves);
        new.has_forgotten = self.has_forgotten || !self.pages.is_empty();
        core::mem::replace(self, new)
    }

    /// Gives the memory back, which may be much.
    pub(crate) fn forget(mut self) {
        while let Some(old) = self.pages.pop() {
            if old.flags & DETACHED == 0 {
                drop(self.index.remove_node(&old.gpa));
            }
            if self.pages.len() % BATCH == 0 {
                linux::cond_resched();
            }
        }
    }
}

/// A question about a page, and its answer.
pub(crate) struct Look {
    pub(crate) gpa: u64,
    /// If it was not written, the guest is not to write it without a fault.
    pub(crate) withhold: bool,
    pub(crate) written: Written,
}

impl Look {
    /// No question.
    const NOTHING: Self = Self {
        gpa: u64::MAX,
        withhold: false,
        written: Written::Unknown,
    };

    /// Whether there is a question.
    pub(crate) fn is_asked(&self) -> bool {
        self.gpa != Self::NOTHING.gpa
    }
}

fn flags_of(writer: Writer) -> u8 {
    match writer {
        Writer::Vmm => CHANGED | ALWAYS,
        _ => CHANGED,
    }
}
