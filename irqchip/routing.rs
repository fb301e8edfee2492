// SPDX-License-Identifier: GPL-2.0-only

//! GSI routing: from a global system interrupt to PIC and IOAPIC pins or to an MSI
//! (`KVM_SET_GSI_ROUTING`).

use crate::ioapic;
use crate::message::Message;
use core::cell::Cell;

/// One more than the highest GSI, and the highest number of routes in a table.
pub const MAX_GSIS: u32 = 4096;

/// An interrupt controller, in the numbering of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chip {
    /// The master 8259A.
    PicMaster,
    /// The slave 8259A.
    PicSlave,
    /// The IOAPIC.
    Ioapic,
}

impl Chip {
    /// The chip of a `KVM_IRQCHIP_*` number.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::PicMaster),
            1 => Some(Self::PicSlave),
            2 => Some(Self::Ioapic),
            _ => None,
        }
    }

    /// How many pins the chip has.
    pub const fn pins(self) -> u32 {
        match self {
            Self::PicMaster | Self::PicSlave => 8,
            Self::Ioapic => ioapic::PINS as u32,
        }
    }
}

/// Where a GSI leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A pin of an interrupt controller.
    Pin {
        /// The controller.
        chip: Chip,
        /// The pin: 0 to 7 of a PIC, 0 to 23 of the IOAPIC.
        pin: u8,
    },
    /// A message to the local APICs.
    Msi {
        /// The address, with `address_hi` above.
        address: u64,
        /// The data.
        data: u32,
    },
}

impl Target {
    /// The message, if the GSI is an MSI.
    pub const fn message(&self, extended_ids: bool) -> Option<Message> {
        match *self {
            Self::Msi { address, data } => Some(Message::from_msi(address, data, extended_ids)),
            Self::Pin { .. } => None,
        }
    }
}

/// One route. A GSI has up to one for each chip, or one MSI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The global system interrupt.
    pub gsi: u32,
    /// Where it leads.
    pub target: Target,
}

/// Why a table or an entry is refused. All of it is `EINVAL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteError {
    /// The GSI is [`MAX_GSIS`] or more.
    Gsi,
    /// Unknown type, chip or flag, or a chip that the VM has not got.
    Kind,
    /// The chip has no such pin.
    Pin,
    /// Bits 39:32 of an extended MSI address are not zero.
    Address,
    /// A GSI leads twice into one chip, or to an MSI and elsewhere.
    Conflict,
}

/// What the VM has, as far as routes depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// PIC and IOAPIC are in the kernel; with a split irqchip only MSIs may be routed.
    pub pins: bool,
    /// `KVM_X2APIC_API_USE_32BIT_IDS` is in force.
    pub extended_ids: bool,
}

/// The flags of an MSI: `KVM_MSI_VALID_DEVID`. Who sends it makes no difference here.
pub const MSI_FLAGS: u32 = 1;

/// `kvm_irq_routing_entry::type`.
const TYPE_IRQCHIP: u32 = 1;
const TYPE_MSI: u32 = 2;

impl Route {
    /// The route of an entry of the interface. `words` is the first half of its union: chip and
    /// pin, or address low, address high, data and device ID.
    pub fn from_entry(
        gsi: u32,
        kind: u32,
        flags: u32,
        words: [u32; 4],
        limits: Limits,
    ) -> Result<Self, RouteError> {
        if gsi >= MAX_GSIS {
            return Err(RouteError::Gsi);
        }
        let known = if kind == TYPE_MSI { MSI_FLAGS } else { 0 };
        if flags & !known != 0 {
            return Err(RouteError::Kind);
        }
        let [first, second, third, _] = words;
        let target = match kind {
            TYPE_IRQCHIP if limits.pins => {
                let chip = Chip::from_number(first).ok_or(RouteError::Kind)?;
                if second >= chip.pins() {
                    return Err(RouteError::Pin);
                }
                Target::Pin {
                    chip,
                    pin: second as u8,
                }
            }
            TYPE_MSI => {
                let address = u64::from(second) << 32 | u64::from(first);
                if limits.extended_ids && !Message::extended_address_is_legal(address) {
                    return Err(RouteError::Address);
                }
                Target::Msi {
                    address,
                    data: third,
                }
            }
            _ => return Err(RouteError::Kind),
        };
        Ok(Self { gsi, target })
    }

    /// Whether this route and `other` may belong to the same GSI.
    fn may_join(&self, other: &Self) -> bool {
        match (self.target, other.target) {
            (Target::Pin { chip: a, .. }, Target::Pin { chip: b, .. }) => a != b,
            _ => false,
        }
    }
}

/// Sorts by GSI: a heap sort, in place, in bounded time whatever the order was. (That of `core`,
/// and its `Cell::swap`, contain panics.)
fn sort(table: &mut [Route]) {
    let cells = Cell::from_mut(table).as_slice_of_cells();
    for root in (0..cells.len() / 2).rev() {
        sift_down(cells, root);
    }
    for end in (1..cells.len()).rev() {
        if let Some([first, .., last]) = cells.get(..=end) {
            exchange(first, last);
        }
        sift_down(cells.get(..end).unwrap_or(&[]), 0);
    }
}

fn exchange(a: &Cell<Route>, b: &Cell<Route>) {
    let kept = a.get();
    a.set(b.get());
    b.set(kept);
}

/// Moves the entry at `node` down a heap that is in order but for it.
fn sift_down(heap: &[Cell<Route>], mut node: usize) {
    let gsi = |index: usize| heap.get(index).map(|cell| cell.get().gsi);
    loop {
        let left = node.wrapping_mul(2).wrapping_add(1);
        let right = left.wrapping_add(1);
        let larger = if gsi(right) > gsi(left) { right } else { left };
        let (Some(parent), Some(child)) = (heap.get(node), heap.get(larger)) else {
            return;
        };
        if child.get().gsi <= parent.get().gsi {
            return;
        }
        exchange(parent, child);
        node = larger;
    }
}

/// Sorts a table by GSI, and checks what the entries have to observe together.
pub fn sort_and_check(table: &mut [Route]) -> Result<(), RouteError> {
    sort(table);
    // There are three chips, so of any four routes of one GSI two are in conflict.
    let neighbours = table
        .windows(2)
        .chain(table.windows(3))
        .chain(table.windows(4));
    for group in neighbours {
        if let (Some(first), Some(last)) = (group.first(), group.last()) {
            if first.gsi == last.gsi && !first.may_join(last) {
                return Err(RouteError::Conflict);
            }
        }
    }
    Ok(())
}

/// The routes of `gsi` in a sorted table.
pub fn routes(table: &[Route], gsi: u32) -> &[Route] {
    let start = position(table, gsi);
    let end = gsi
        .checked_add(1)
        .map_or(table.len(), |next| position(table, next));
    table.get(start..end).unwrap_or(&[])
}

/// Where in a sorted table the first route of `gsi` is, or would be.
fn position(table: &[Route], gsi: u32) -> usize {
    let (mut low, mut high) = (0, table.len());
    while low < high {
        let middle = low.midpoint(high);
        match table.get(middle) {
            Some(route) if route.gsi < gsi => low = middle.wrapping_add(1),
            _ => high = middle,
        }
    }
    low
}

/// Pins of interrupt controllers, as sets: the ones whose interrupt has ended, say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    /// Pins of the IOAPIC, one bit each.
    pub ioapic: u32,
    /// Inputs of both 8259A, one bit each.
    pub pic: u16,
}

impl Pins {
    /// Whether `target` is one of them.
    pub const fn contains(&self, target: &Target) -> bool {
        match *target {
            Target::Pin {
                chip: Chip::Ioapic,
                pin,
            } => self.ioapic >> (pin & 31) & 1 != 0,
            Target::Pin {
                chip: Chip::PicMaster,
                pin,
            } => self.pic >> (pin & 7) & 1 != 0,
            Target::Pin {
                chip: Chip::PicSlave,
                pin,
            } => self.pic >> 8 >> (pin & 7) & 1 != 0,
            Target::Msi { .. } => false,
        }
    }

    /// Whether one of the routes of `gsi` in a sorted table leads to one of them.
    pub fn concern(&self, table: &[Route], gsi: u32) -> bool {
        routes(table, gsi)
            .iter()
            .any(|route| self.contains(&route.target))
    }
}

/// How many routes [`default_routes`] has.
pub const DEFAULT_ROUTES: usize = 16 * 2 + 8;

/// The table after `KVM_CREATE_IRQCHIP`, sorted: GSIs 0 to 15 lead to the PIC and to the IOAPIC
/// pin of the same number, 16 to 23 to the IOAPIC only.
pub fn default_routes() -> [Route; DEFAULT_ROUTES] {
    core::array::from_fn(|i| {
        let i = i as u8;
        let (gsi, to_pic) = if i < 32 {
            (i >> 1, i & 1 == 0)
        } else {
            (i - 16, false)
        };
        let (chip, pin) = match to_pic {
            true if gsi < 8 => (Chip::PicMaster, gsi),
            true => (Chip::PicSlave, gsi & 7),
            false => (Chip::Ioapic, gsi),
        };
        Route {
            gsi: u32::from(gsi),
            target: Target::Pin { chip, pin },
        }
    })
}
