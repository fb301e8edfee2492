// SPDX-License-Identifier: GPL-2.0-only

//! Which local APICs a message or an IPI is for (APM vol. 2, 16.6.1 and 16.14).

/// The destination shorthand of the interrupt command register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shorthand {
    /// The destination field counts.
    None,
    /// The sender.
    Myself,
    /// Everybody, the sender too.
    All,
    /// Everybody but the sender.
    Others,
}

impl Shorthand {
    /// The shorthand of a two-bit field.
    pub const fn from_bits(bits: u32) -> Self {
        match bits & 3 {
            0 => Self::None,
            1 => Self::Myself,
            2 => Self::All,
            _ => Self::Others,
        }
    }
}

/// Whom a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// An APIC ID, or a set of logical IDs.
    pub id: u32,
    /// Whether `id` is logical.
    pub logical: bool,
    /// The shorthand, which goes before `id`.
    pub shorthand: Shorthand,
    /// Whether a physical `id` of 0xff is a broadcast to x2APICs also.
    pub narrow_broadcast: bool,
}

/// Some of the numbers that processors are made with, which are their x2APIC IDs and, until
/// software changes them, their xAPIC IDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdSet {
    /// The number of bit 0.
    pub first: u32,
    /// The set: one bit for each number.
    pub bits: u128,
}

impl IdSet {
    /// One number.
    pub const fn one(id: u32) -> Self {
        Self { first: id, bits: 1 }
    }

    /// Whether `id` is in the set.
    pub const fn contains(self, id: u32) -> bool {
        match self.bits.checked_shr(id.wrapping_sub(self.first)) {
            Some(bits) => bits & 1 != 0,
            None => false,
        }
    }

    /// The numbers from `64 * index` on, one bit each.
    pub const fn word(self, index: u32) -> u64 {
        let (base, first) = (64 * index as u64, self.first as u64);
        if base >= first {
            let below = base - first;
            return if below < 128 {
                (self.bits >> below) as u64
            } else {
                0
            };
        }
        let above = first - base;
        if above < 64 {
            (self.bits << above) as u64
        } else {
            0
        }
    }

    /// The words that have bits, from the first to one after the last.
    pub const fn words(self) -> (u32, u32) {
        let last = self.first as u64 + 127 - (self.bits | 1).leading_zeros() as u64;
        (self.first / 64, (last / 64 + 1) as u32)
    }
}

/// What is known of all APICs of a machine together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicModes {
    /// None that is present is in xAPIC mode.
    pub all_x2apic: bool,
    /// None that is present has been given another ID ([`Snapshot::is_renumbered`]).
    pub own_ids: bool,
}

impl Destination {
    /// The processors among which are all that the message is for, or nothing if it can be any.
    pub const fn candidates(&self, census: ApicModes) -> Option<IdSet> {
        let is_narrow = matches!(self.shorthand, Shorthand::None) && self.id != X2APIC_BROADCAST;
        if !is_narrow {
            None
        } else if !self.logical {
            if self.id != BROADCAST && census.own_ids {
                Some(IdSet::one(self.id))
            } else {
                None
            }
        } else if self.id > BROADCAST || census.all_x2apic {
            // Only x2APICs, and their logical IDs follow from their IDs.
            Some(IdSet {
                first: self.id >> 16 << 4,
                bits: (self.id & 0xffff) as u128,
            })
        } else {
            None
        }
    }
}

/// How an xAPIC reads logical destinations (APM vol. 2, 16.6.1, DFR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogicalFormat {
    /// One bit for each of eight APICs.
    Flat,
    /// A cluster number and one bit for each of four APICs.
    Cluster,
    /// A reserved value of the DFR: nothing but a broadcast matches.
    Reserved,
}

impl LogicalFormat {
    /// The format of a destination format register.
    pub const fn from_dfr(dfr: u32) -> Self {
        match dfr >> 28 {
            0xf => Self::Flat,
            0 => Self::Cluster,
            _ => Self::Reserved,
        }
    }
}

/// Broadcast, in an xAPIC's eight bits.
const BROADCAST: u32 = 0xff;
/// Broadcast, in an x2APIC's 32 bits.
const X2APIC_BROADCAST: u32 = u32::MAX;

/// As much of a local APIC as the routing of messages needs. It fits into 64 bits, so other CPUs
/// can read it with one atomic load, and never see half of a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(u64);

impl Snapshot {
    const LOGICAL_SHIFT: u32 = 32;
    const CLUSTER: u64 = 1 << 40;
    const BAD_FORMAT: u64 = 1 << 41;
    const X2APIC: u64 = 1 << 42;
    const PRESENT: u64 = 1 << 43;
    const ENABLED: u64 = 1 << 44;
    const TAKES_PIC: u64 = 1 << 45;

    /// An APIC that hardware has disabled: it gets nothing.
    pub const ABSENT: Self = Self(0);

    /// An xAPIC. `enabled` is the software enable bit of the SVR.
    pub const fn xapic(id: u32, ldr: u32, dfr: u32, enabled: bool) -> Self {
        let format = match LogicalFormat::from_dfr(dfr) {
            LogicalFormat::Flat => 0,
            LogicalFormat::Cluster => Self::CLUSTER,
            LogicalFormat::Reserved => Self::BAD_FORMAT,
        };
        let logical = ((ldr >> 24) as u64) << Self::LOGICAL_SHIFT;
        Self(id as u64 | logical | format | Self::PRESENT | Self::enabled_bit(enabled))
    }

    /// An x2APIC, whose logical ID follows from its ID.
    pub const fn x2apic(id: u32, enabled: bool) -> Self {
        Self(id as u64 | Self::X2APIC | Self::PRESENT | Self::enabled_bit(enabled))
    }

    /// The same, with whether the processor listens to the 8259A.
    pub const fn with_pic(self, takes: bool) -> Self {
        Self(if takes {
            self.0 | Self::TAKES_PIC
        } else {
            self.0 & !Self::TAKES_PIC
        })
    }

    /// Whether the processor listens to the 8259A.
    pub const fn takes_pic(self) -> bool {
        self.0 & Self::TAKES_PIC != 0
    }

    const fn enabled_bit(enabled: bool) -> u64 {
        if enabled {
            Self::ENABLED
        } else {
            0
        }
    }

    /// The snapshot as a word, to be kept in an atomic.
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The snapshot of a word that [`Self::to_bits`] made.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The APIC ID of the present mode.
    pub const fn id(self) -> u32 {
        self.0 as u32
    }

    /// Whether it is in x2APIC mode.
    pub const fn is_x2apic(self) -> bool {
        self.0 & Self::X2APIC != 0
    }

    /// Whether it is present and in xAPIC mode.
    pub const fn is_xapic(self) -> bool {
        self.is_present() && !self.is_x2apic()
    }

    /// Whether it is found by another ID than its processor's number `own`, because software has
    /// changed it.
    pub const fn is_renumbered(self, own: u32) -> bool {
        self.is_present() && self.id() != own
    }

    /// Whether the APIC base register enables it.
    pub const fn is_present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }

    /// Whether software has enabled it also, so that it takes interrupts with a vector.
    pub const fn is_enabled(self) -> bool {
        self.0 & Self::ENABLED != 0
    }

    /// The logical ID.
    pub const fn logical_id(self) -> u32 {
        if self.is_x2apic() {
            x2apic_logical_id(self.id())
        } else {
            (self.0 >> Self::LOGICAL_SHIFT) as u32 & 0xff
        }
    }

    /// Whether a message to `dest` is for this APIC. `is_source`: it is this APIC that sends.
    pub const fn matches(self, dest: &Destination, is_source: bool) -> bool {
        if !self.is_present() {
            return false;
        }
        match dest.shorthand {
            Shorthand::Myself => is_source,
            Shorthand::All => true,
            Shorthand::Others => !is_source,
            Shorthand::None if dest.logical => self.matches_logical(dest.id),
            Shorthand::None => self.matches_physical(dest),
        }
    }

    const fn matches_physical(self, dest: &Destination) -> bool {
        dest.id == self.id()
            || dest.id == X2APIC_BROADCAST
            || dest.id == BROADCAST && (!self.is_x2apic() || dest.narrow_broadcast)
    }

    const fn matches_logical(self, dest: u32) -> bool {
        if dest == X2APIC_BROADCAST {
            return true;
        }
        let own = self.logical_id();
        if self.is_x2apic() {
            return dest >> 16 == own >> 16 && dest & own & 0xffff != 0;
        }
        if dest > BROADCAST {
            return false;
        }
        if dest == BROADCAST {
            return true;
        }
        if self.0 & Self::BAD_FORMAT != 0 {
            return false;
        }
        if self.0 & Self::CLUSTER != 0 {
            return dest >> 4 == own >> 4 && dest & own & 0xf != 0;
        }
        dest & own != 0
    }
}

/// The logical ID of an x2APIC: cluster in the high half, one bit in the low half (APM vol. 2,
/// 16.14).
pub const fn x2apic_logical_id(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 0xf)
}

/// Arbitration for [`DeliveryMode::LowestPriority`](crate::DeliveryMode::LowestPriority): one of
/// `candidates`, chosen by `seed`. The processors' priorities are not compared; a seed that counts
/// up spreads the load, a seed that is the vector keeps an interrupt where its cache lines are.
/// Candidates should be enabled ([`Snapshot::is_enabled`]). If they become fewer meanwhile, it is
/// the first.
pub fn pick_lowest_priority<I>(mut candidates: I, seed: u32) -> Option<I::Item>
where
    I: Iterator + Clone,
{
    let count = candidates.clone().count();
    let chosen = (seed as usize).checked_rem(count)?;
    let mut again = candidates.clone();
    candidates.nth(chosen).or_else(|| again.next())
}
