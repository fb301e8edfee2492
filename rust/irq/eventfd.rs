// SPDX-License-Identifier: GPL-2.0-only

//! Event descriptors: KVM_IRQFD makes one an interrupt line, KVM_IOEVENTFD makes one a doorbell.
//!
//! ```text
//!   a process writes the eventfd ─► irqfd ─► Irqchip::set_gsi ─► guest
//!   guest writes port or address ─► ioeventfd ─► the eventfd is signalled, without an exit to the VMM
//! ```

use crate::irq::eoi::Resampler;
use crate::irq::irqchip::Irqchip;
use crate::linux::rcu_cell::RcuCell;
use crate::linux::{Eventfd, EventfdTarget, EventfdWaiter, TimerCallback};
use crate::uapi::{self, UserArg};
use irqchip::routing::MAX_GSIS;
use kernel::ffi::c_long;
use kernel::prelude::*;
use kernel::sync::{Arc, Mutex, SetOnce};

/// An interrupt line that an eventfd drives.
struct Irqfd {
    irqchip: Arc<Irqchip>,
    gsi: u32,
    /// With it a write raises the line, and the end of the interrupt lets it fall.
    resampler: Option<Arc<Resampler>>,
}

impl TimerCallback for Irqfd {
    /// The eventfd was written.
    fn expire(&self) {
        if self.resampler.is_some() {
            self.irqchip.raise_resampled(self.gsi);
        } else {
            self.irqchip.pulse_gsi(self.gsi);
        }
    }
}

impl EventfdTarget for Irqfd {
    /// Its last writer is gone: the line falls, and ends are not told any more.
    fn closed(&self) {
        if let Some(resampler) = &self.resampler {
            self.irqchip.remove_resampler(resampler);
        }
    }
}

type Irqfds = KVec<Pin<KBox<EventfdWaiter<Irqfd>>>>;

/// Retires those that `which` picks.
fn retire_all(irqfds: &mut Irqfds, which: impl Fn(&EventfdWaiter<Irqfd>) -> bool) {
    while let Some(at) = irqfds.iter().position(|irqfd| which(irqfd)) {
        if let Ok(irqfd) = irqfds.remove(at) {
            retire(irqfd);
        }
    }
}

/// Takes an irqfd apart, once its eventfd calls it no more.
fn retire(irqfd: Pin<KBox<EventfdWaiter<Irqfd>>>) {
    let (irqchip, resampler) = {
        let target = irqfd.target();
        (target.irqchip.clone(), target.resampler.clone())
    };
    drop(irqfd);
    if let Some(resampler) = resampler {
        irqchip.remove_resampler(&resampler);
    }
}

/// A write that signals an eventfd.
struct Doorbell {
    eventfd: Eventfd,
    is_port: bool,
    address: u64,
    /// 0 for any length.
    length: u32,
    /// What must be written, if that matters.
    data: Option<u64>,
}

impl Doorbell {
    fn is_at(&self, is_port: bool, address: u64) -> bool {
        self.is_port == is_port && self.address == address
    }

    /// Whether a write to its place is one for it.
    fn takes(&self, data: &[u8]) -> bool {
        if self.length == 0 {
            return true;
        }
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        self.length as usize == data.len()
            && self
                .data
                .is_none_or(|wanted| wanted == u64::from_le_bytes(bytes))
    }

    /// Whether both are the same, eventfd included.
    fn is_same(&self, other: &Self) -> bool {
        self.eventfd.is_same(&other.eventfd)
            && self.is_port == other.is_port
            && self.address == other.address
            && self.length == other.length
            && self.data == other.data
    }

    /// Whether both would be hit by the same write.
    fn collides(&self, other: &Self) -> bool {
        self.is_port == other.is_port
            && self.address == other.address
            && (self.length == 0 || other.length == 0 || self.length == other.length)
            && (self.data.is_none() || other.data.is_none() || self.data == other.data)
    }
}

/// In ascending order of their places.
type Doorbells = KVec<Arc<Doorbell>>;

/// Where in the list those of a place begin.
fn first_at(list: &[Arc<Doorbell>], is_port: bool, address: u64) -> usize {
    list.partition_point(|doorbell| (doorbell.is_port, doorbell.address) < (is_port, address))
}

/// The event descriptors of a VM.
#[pin_data]
pub(crate) struct Eventfds {
    #[pin]
    irqfds: Mutex<Irqfds>,
    /// The doorbells.
    #[pin]
    list: Mutex<Doorbells>,
    /// A copy of the list, once there was one.
    doorbells: SetOnce<RcuCell<Doorbells>>,
}

/// Most interrupt lines that are eventfds: more than any VM has interrupts.
const MAX_IRQFDS: usize = 8192;
/// Most doorbells: a queue of a virtio device may have two, and QEMU dies if one is refused.
const MAX_DOORBELLS: usize = 8192;

impl Eventfds {
    /// Creates a VM's event descriptors: none.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            irqfds <- kernel::new_mutex!(KVec::new()),
            list <- kernel::new_mutex!(KVec::new()),
            doorbells: SetOnce::new(),
        })
    }

    /// KVM_IRQFD.
    pub(crate) fn irqfd(&self, irqchip: &Arc<Irqchip>, arg: UserArg) -> Result<c_long> {
        let args: uapi::kvm_irqfd = arg.read()?;
        let known = uapi::KVM_IRQFD_FLAG_DEASSIGN | uapi::KVM_IRQFD_FLAG_RESAMPLE;
        let resamples = args.flags & uapi::KVM_IRQFD_FLAG_RESAMPLE != 0;
        if args.flags & !known != 0
            || args.gsi >= MAX_GSIS
            || !irqchip.has_lapics()
            // Only controllers in the kernel tell of the end of an interrupt here.
            || (resamples && !irqchip.is_full())
        {
            return Err(EINVAL);
        }
        let eventfd = Eventfd::get(args.fd)?;
        let mut irqfds = self.irqfds.lock();
        if args.flags & uapi::KVM_IRQFD_FLAG_DEASSIGN != 0 {
            retire_all(&mut irqfds, |irqfd| {
                irqfd.is_for(&eventfd) && irqfd.target().gsi == args.gsi
            });
            // No interrupt of it comes any more.
            irqchip.broadcasts.finish();
            return Ok(0);
        }
        // Those whose eventfd is gone make room.
        retire_all(&mut irqfds, EventfdWaiter::is_closed);
        if irqfds.len() >= MAX_IRQFDS {
            return Err(ENOSPC);
        }
        irqfds.reserve(1, GFP_KERNEL_ACCOUNT)?;
        let resampler = if resamples {
            let heard_by = Eventfd::get(args.resamplefd)?;
            let resampler = Arc::new(Resampler::new(args.gsi, heard_by), GFP_KERNEL_ACCOUNT)?;
            irqchip.add_resampler(&resampler)?;
            Some(resampler)
        } else {
            None
        };
        let irqfd = Irqfd {
            irqchip: irqchip.clone(),
            gsi: args.gsi,
            resampler: resampler.clone(),
        };
        let waiter = EventfdWaiter::new(args.fd, eventfd, irqfd).inspect_err(|_| {
            if let Some(resampler) = &resampler {
                irqchip.remove_resampler(resampler);
            }
        })?;
        irqfds.push(waiter, GFP_KERNEL_ACCOUNT)?;
        Ok(0)
    }

    /// KVM_IOEVENTFD.
    pub(crate) fn ioeventfd(&self, arg: UserArg) -> Result<c_long> {
        let args: uapi::kvm_ioeventfd = arg.read()?;
        let known = uapi::KVM_IOEVENTFD_FLAG_DATAMATCH
            | uapi::KVM_IOEVENTFD_FLAG_PIO
            | uapi::KVM_IOEVENTFD_FLAG_DEASSIGN;
        let matches_data = args.flags & uapi::KVM_IOEVENTFD_FLAG_DATAMATCH != 0;
        if args.flags & !known != 0
            || !matches!(args.len, 0 | 1 | 2 | 4 | 8)
            || args.addr.checked_add(u64::from(args.len)).is_none()
            || (args.len == 0 && matches_data)
        {
            return Err(EINVAL);
        }
        let doorbell = Doorbell {
            eventfd: Eventfd::get(args.fd as u32)?,
            is_port: args.flags & uapi::KVM_IOEVENTFD_FLAG_PIO != 0,
            address: args.addr,
            length: args.len,
            data: matches_data.then_some(args.datamatch),
        };
        if args.flags & uapi::KVM_IOEVENTFD_FLAG_DEASSIGN != 0 {
            self.remove(&doorbell)
        } else {
            self.add(doorbell)
        }
    }

    fn add(&self, doorbell: Doorbell) -> Result<c_long> {
        let doorbell = Arc::new(doorbell, GFP_KERNEL_ACCOUNT)?;
        self.change_doorbells(|old, new| {
            if old.iter().any(|other| other.collides(&doorbell)) {
                return Err(EEXIST);
            }
            if old.len() >= MAX_DOORBELLS {
                return Err(ENOSPC);
            }
            let at = first_at(old, doorbell.is_port, doorbell.address);
            let (before, after) = old.split_at(at);
            new.extend_from_slice(before, GFP_KERNEL_ACCOUNT)?;
            new.push(doorbell, GFP_KERNEL_ACCOUNT)?;
            Ok(new.extend_from_slice(after, GFP_KERNEL_ACCOUNT)?)
        })
    }

    fn remove(&self, doorbell: &Doorbell) -> Result<c_long> {
        self.change_doorbells(|old, new| {
            for other in old.iter().filter(|other| !other.is_same(doorbell)) {
                new.push(other.clone(), GFP_KERNEL_ACCOUNT)?;
            }
            if new.len() == old.len() {
                Err(ENOENT)
            } else {
                Ok(())
            }
        })
    }

    /// Replaces the list by one that `make` fills. When it returns, one that left is not rung.
    fn change_doorbells(
        &self,
        make: impl FnOnce(&Doorbells, &mut Doorbells) -> Result,
    ) -> Result<c_long> {
        let mut list = self.list.lock();
        let mut new = KVec::new();
        make(&list, &mut new)?;
        let mut copy = KBox::new(KVec::new(), GFP_KERNEL_ACCOUNT)?;
        copy.extend_from_slice(&new, GFP_KERNEL_ACCOUNT)?;
        match self.doorbells.as_ref() {
            Some(doorbells) => doorbells.replace(copy),
            None => drop(self.doorbells.populate(RcuCell::new(copy))),
        }
        *list = new;
        Ok(0)
    }

    /// A write of the guest: whether it was for a doorbell.
    pub(crate) fn ring(&self, is_port: bool, address: u64, data: &[u8]) -> bool {
        let Some(list) = self.doorbells.as_ref() else {
            return false;
        };
        let list = list.read();
        let mut here = list
            .iter()
            .skip(first_at(&list, is_port, address))
            .take_while(|doorbell| doorbell.is_at(is_port, address));
        let hit = here.find(|doorbell| doorbell.takes(data));
        hit.inspect(|doorbell| doorbell.eventfd.signal()).is_some()
    }
}
