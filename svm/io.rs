// SPDX-License-Identifier: GPL-2.0-only

//! Accesses to devices of the VMM: what waits for an answer, and how it gets into the guest.
//!
//! ```text
//!   IN, OUT     ──► Port ───────── answer ──► RAX and RIP, if RIP is still where it was
//!
//!   emulated    ──► a read without an answer: Read ── answer ──► the instruction runs again from
//!   instruction                                                  its beginning, and finds it
//!               ──► it completes with writes queued: Writes ── one by one ──► done
//! ```
//!
//! The VMM may change any register while an access is pending. A plain IN or OUT then counts as
//! done if RIP was moved. An emulated instruction is run with the registers as they are: an answer
//! that fits no access of it is dropped.

use x86::decode::Insn;

/// An access that the VMM has to make, as `struct kvm_run` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserIo {
    /// `KVM_EXIT_IO`.
    Port {
        /// The first port.
        port: u16,
        /// 1, 2 or 4.
        size: u8,
        /// How often: REP INS asks for what fits into a page at once, all others for one element.
        count: u16,
        /// OUT.
        write: bool,
        /// What is written, in the first `size` bytes.
        data: [u8; 8],
    },
    /// `KVM_EXIT_MMIO`.
    Mmio {
        /// Guest-physical address.
        gpa: u64,
        /// 1 to 8 bytes, never across a page.
        size: u8,
        /// A write.
        write: bool,
        /// What is written, in the first `size` bytes.
        data: [u8; 8],
    },
    /// `KVM_EXIT_X86_RDMSR` or `KVM_EXIT_X86_WRMSR`. The answer goes to
    /// [`crate::dispatch::finish_msr`].
    Msr {
        /// The number.
        index: u32,
        /// WRMSR.
        write: bool,
        /// What is written.
        value: u64,
        /// One of `KVM_MSR_EXIT_REASON_*`.
        reason: u32,
    },
}

/// Where a device register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Port(u16),
    Gpa(u64),
}

/// One access of at most eight bytes to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub(crate) place: Place,
    pub(crate) size: u8,
    pub(crate) data: [u8; 8],
}

impl Fragment {
    /// The longest.
    pub(crate) const MAX: usize = 8;

    /// A fragment for what is to be read, or with what is to be written.
    pub(crate) fn new(place: Place, bytes: &[u8]) -> Self {
        let mut data = [0; 8];
        for (to, from) in data.iter_mut().zip(bytes) {
            *to = *from;
        }
        Self {
            place,
            size: bytes.len().min(Self::MAX) as u8,
            data,
        }
    }

    fn to_user(self, write: bool) -> UserIo {
        let Self { size, data, .. } = self;
        match self.place {
            Place::Port(port) => UserIo::Port {
                port,
                size,
                count: 1,
                write,
                data,
            },
            Place::Gpa(gpa) => UserIo::Mmio {
                gpa,
                size,
                write,
                data,
            },
        }
    }
}

/// A short list without allocation, packed: with it a vCPU's state fits into 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct List {
    /// Ports and guest-physical addresses.
    places: [u64; Self::CAPACITY],
    data: [[u8; 8]; Self::CAPACITY],
    /// With [`Self::PORT`], if the place is one.
    sizes: [u8; Self::CAPACITY],
    length: u8,
}

impl List {
    /// FXSAVE writes, and FXRSTOR reads, 416 bytes, eight at once. No other instruction has so
    /// many: ENTER with 31 levels reads 30 times, writes 32 times, and once of it over a page
    /// boundary.
    const CAPACITY: usize = 52;
    const PORT: u8 = 1 << 7;

    const EMPTY: Self = Self {
        places: [0; Self::CAPACITY],
        data: [[0; 8]; Self::CAPACITY],
        sizes: [0; Self::CAPACITY],
        length: 0,
    };

    fn get(&self, index: u8) -> Option<Fragment> {
        if index >= self.length {
            return None;
        }
        let index = usize::from(index);
        let (place, size) = (*self.places.get(index)?, *self.sizes.get(index)?);
        Some(Fragment {
            place: match size & Self::PORT {
                0 => Place::Gpa(place),
                _ => Place::Port(place as u16),
            },
            size: size & !Self::PORT,
            data: *self.data.get(index)?,
        })
    }

    /// `false` if the list is full.
    fn push(&mut self, fragment: Fragment) -> bool {
        let index = usize::from(self.length);
        let (Some(place), Some(data), Some(size)) = (
            self.places.get_mut(index),
            self.data.get_mut(index),
            self.sizes.get_mut(index),
        ) else {
            return false;
        };
        (*place, *size) = match fragment.place {
            Place::Gpa(gpa) => (gpa, fragment.size),
            Place::Port(port) => (port.into(), fragment.size | Self::PORT),
        };
        *data = fragment.data;
        self.length = self.length.wrapping_add(1);
        true
    }
}

/// An answer with several elements. The instruction takes them one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Batch {
    place: Place,
    size: u8,
    count: u16,
    taken: u16,
}

/// What is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing.
    Idle,
    /// An IN or OUT waits for the VMM.
    Port { fragment: Fragment, write: bool },
    /// A RDMSR or WRMSR waits for the VMM.
    Msr {
        index: u32,
        write: bool,
        value: u64,
        reason: u32,
    },
    /// An emulated instruction waits for an answer, and is then run again.
    Read(Fragment),
    /// The answer is there; the instruction is to be run again.
    Answered,
    /// An emulated instruction has completed (or one iteration of it), and its writes go out.
    Writes,
}

/// Where a page of the instruction's operand is, and that no memory is there for the access. It
/// lasts as a TLB entry would: until the vCPU is entered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// CR3 with which it was found.
    pub(crate) cr3: u64,
    /// Linear address of the page.
    pub(crate) page: u64,
    /// Its guest-physical address.
    pub(crate) gpa: u64,
    /// Writing is allowed, too.
    pub(crate) write: bool,
    /// Reads go to the device, too: the page is not a read-only slot's.
    pub(crate) unbacked: bool,
}

/// What the CPU found out before a nested fault: the guest's page tables allow the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Where.
    pub(crate) gpa: u64,
    /// It was a write.
    pub(crate) write: bool,
    /// No slot is there, not even a read-only one.
    pub(crate) unbacked: bool,
}

/// What waits for the VMM, and what the instruction that waits has read so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoState {
    pub(crate) phase: Phase,
    /// There is something to forget at the next exit.
    active: bool,
    /// The instruction that is being emulated.
    pub(crate) insn: Option<Insn>,
    /// The fault that led to its emulation.
    pub(crate) fault: Option<Fault>,
    /// Its operand.
    pub(crate) known: Option<Known>,
    /// Where the instruction is.
    pub(crate) rip: u64,
    /// Where the one behind an IN or OUT is.
    pub(crate) next_rip: u64,
    /// The reads of the instruction, in order.
    answers: List,
    /// How many of them this run of the instruction has made.
    cursor: u8,
    /// More answers, which the VMM has given along with the last one.
    batch: Option<Batch>,
    /// Its writes.
    writes: List,
    /// How many of them the VMM has got.
    written: u8,
    /// How many iterations the instruction may make before the guest is entered again.
    left: u16,
}

/// After so many iterations of a REP instruction the guest is entered again, so that interrupts
/// get their chance.
const ITERATIONS: u16 = 64;

impl Default for IoState {
    fn default() -> Self {
        Self::new()
    }
}

impl IoState {
    /// Nothing is pending.
    pub const fn new() -> Self {
        Self {
            phase: Phase::Idle,
            active: false,
            insn: None,
            fault: None,
            known: None,
            rip: 0,
            next_rip: 0,
            answers: List::EMPTY,
            cursor: 0,
            batch: None,
            writes: List::EMPTY,
            written: 0,
            left: 0,
        }
    }

    /// The access that the VMM is to make now.
    #[inline]
    pub fn pending(&self) -> Option<UserIo> {
        match self.phase {
            Phase::Idle | Phase::Answered => None,
            Phase::Port { fragment, write } => Some(fragment.to_user(write)),
            Phase::Msr {
                index,
                write,
                value,
                reason,
            } => Some(UserIo::Msr {
                index,
                write,
                value,
                reason,
            }),
            Phase::Read(fragment) => Some(match (fragment.to_user(false), self.batch) {
                (
                    UserIo::Port {
                        port,
                        size,
                        write,
                        data,
                        ..
                    },
                    Some(Batch { count, .. }),
                ) => UserIo::Port {
                    port,
                    size,
                    count,
                    write,
                    data,
                },
                (one, _) => one,
            }),
            Phase::Writes => Some(self.writes.get(self.written)?.to_user(true)),
        }
    }

    /// How many bytes of port data matter: those of the pending access, or of the last answer, of
    /// which the instruction has not taken all yet.
    pub fn port_bytes(&self) -> usize {
        let bytes = |size: u8, count: u16| usize::from(size).wrapping_mul(usize::from(count));
        match (self.batch, self.pending()) {
            (Some(batch), _) if batch.taken < batch.count => bytes(batch.size, batch.count),
            (_, Some(UserIo::Port { size, count, .. })) => bytes(size, count),
            _ => 0,
        }
    }

    /// Forgets what is pending: for reset, and when the VMM replaces the vCPU's state.
    pub fn clear(&mut self) {
        self.phase = Phase::Idle;
        self.active = false;
        self.insn = None;
        self.fault = None;
        self.known = None;
        self.batch = None;
        self.commit();
        self.writes.length = 0;
        self.written = 0;
    }

    /// The guest has run: nothing of before counts any more.
    #[inline]
    pub(crate) fn forget(&mut self) {
        if self.active {
            self.clear();
        }
    }

    /// Something begins that is not to outlast the next run of the guest.
    pub(crate) fn activate(&mut self) {
        self.active = true;
    }

    /// This instruction begins. Of another one, nothing is left.
    pub(crate) fn begin(&mut self, insn: Insn) {
        self.insn = Some(insn);
        self.batch = None;
        self.left = ITERATIONS;
    }

    /// Whether it may make one more iteration now.
    pub(crate) fn may_go_on(&self) -> bool {
        self.left != 0
    }

    /// An iteration begins, or begins again.
    pub(crate) fn restart(&mut self, rip: u64) {
        self.rip = rip;
        self.cursor = 0;
        self.writes.length = 0;
        self.written = 0;
    }

    /// An instruction, or one iteration of it, has completed: its answers are used up.
    pub(crate) fn commit(&mut self) {
        self.left = self.left.saturating_sub(1);
        self.answers.length = 0;
        self.cursor = 0;
    }

    /// The answer to the next read of the instruction, if it is known.
    pub(crate) fn answer(&mut self, place: Place, size: usize) -> Option<[u8; 8]> {
        let known = self.answers.get(self.cursor)?;
        if known.place == place && usize::from(known.size) == size {
            self.cursor = self.cursor.wrapping_add(1);
            return Some(known.data);
        }
        // The instruction has become another one: what comes from here on is asked anew.
        self.answers.length = self.cursor;
        None
    }

    /// Notes what a device answered to the next read; `false` if there is no room. Without its note
    /// the instruction would ask again for ever.
    #[must_use]
    pub(crate) fn record(&mut self, fragment: Fragment) -> bool {
        self.answers.length = self.cursor;
        let noted = self.answers.push(fragment);
        if noted {
            self.cursor = self.cursor.wrapping_add(1);
        }
        noted
    }

    /// The VMM must answer this read, of a port `count` times at once. The instruction may then
    /// make as many iterations, and no more: the VMM may change it meanwhile. `false` if there is
    /// no room for the answer.
    #[must_use]
    pub(crate) fn ask(&mut self, fragment: Fragment, count: u16) -> bool {
        if usize::from(self.cursor) >= List::CAPACITY {
            return false;
        }
        let Fragment { place, size, .. } = fragment;
        // What a port has answered is not lost because the memory behind it is a device, too.
        if matches!(place, Place::Port(_)) {
            self.left = self.left.max(count);
            self.batch = (count > 1).then_some(Batch {
                place,
                size,
                count,
                taken: count,
            });
        }
        self.phase = Phase::Read(fragment);
        true
    }

    /// What is left of the last answer for this read: from which byte on, and how many elements.
    pub(crate) fn elements(&mut self, place: Place, size: u8) -> Option<(usize, u16)> {
        let batch = self.batch.as_ref()?;
        let left = batch.count.saturating_sub(batch.taken);
        if batch.place != place || batch.size != size || left == 0 {
            self.batch = None;
            return None;
        }
        Some((
            usize::from(batch.taken).wrapping_mul(usize::from(size)),
            left,
        ))
    }

    /// They are used up.
    pub(crate) fn take(&mut self, number: u16) {
        if let Some(batch) = &mut self.batch {
            batch.taken = batch.taken.saturating_add(number);
        }
    }

    /// Whether answers are left that would be lost.
    pub(crate) fn has_elements(&self) -> bool {
        self.batch.is_some_and(|batch| batch.taken < batch.count)
    }

    /// The VMM gave this answer to [`Phase::Read`].
    pub(crate) fn answered(&mut self, mut fragment: Fragment, data: [u8; 8]) {
        self.phase = Phase::Answered;
        if let (Place::Port(_), Some(batch)) = (fragment.place, &mut self.batch) {
            batch.taken = 0;
            return;
        }
        fragment.data = data;
        // `ask` has seen that there is room.
        let _noted = self.record(fragment);
    }

    /// Queues a write; `false` if there is no room.
    pub(crate) fn queue(&mut self, fragment: Fragment) -> bool {
        self.writes.push(fragment)
    }

    /// Whether the instruction that completed left writes for the VMM; they are pending then.
    pub(crate) fn begin_writes(&mut self) -> bool {
        let any = self.writes.length != 0;
        self.phase = if any { Phase::Writes } else { Phase::Idle };
        any
    }

    /// The VMM made the pending write. Whether another one is pending now.
    pub(crate) fn next_write(&mut self) -> bool {
        self.written = self.written.saturating_add(1);
        self.written < self.writes.length
    }
}
