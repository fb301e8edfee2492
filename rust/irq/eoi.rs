// SPDX-License-Identifier: GPL-2.0-only

//! What happens when the guest has ended an interrupt: devices of the VMM are asked whether they
//! still want one (KVM_IRQFD_FLAG_RESAMPLE), and a tick of the PIT that waited is sent.
//!
//! ```text
//!   EOI of a LAPIC, of the PIC ─► pins ─┬─► resamplers: line down, eventfd ─► VMM ─► line up again?
//!                                       └─► the PIT's next tick
//! ```

use crate::irq::irqchip::{Irqchip, IrqchipGuard, IrqchipState};
use crate::linux::{self, Eventfd};
use irqchip::lines::Source;
use irqchip::routing::{self, Chip, Pins, Target};
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Full, Relaxed};
use kernel::sync::Arc;

/// GSI of the PIT.
const PIT_GSI: u32 = 0;

/// An owner of a level-triggered line, who holds it until he hears that the interrupt has ended.
pub(crate) struct Resampler {
    gsi: u32,
    eventfd: Eventfd,
    /// Not zero between the end of an interrupt and the signal; under the lock of the list.
    ended: Atomic<u32>,
}

impl Resampler {
    /// `eventfd` hears of the ends of `gsi`.
    pub(crate) fn new(gsi: u32, eventfd: Eventfd) -> Self {
        Self {
            gsi,
            eventfd,
            ended: Atomic::new(0),
        }
    }
}

impl Irqchip {
    /// Adds a resampler. One thread at a time may add or remove.
    pub(crate) fn add_resampler(&self, resampler: &Arc<Resampler>) -> Result {
        self.resamplers.append(resampler)
    }

    /// Removes a resampler. The line falls if no other resampler could let it fall.
    pub(crate) fn remove_resampler(&self, resampler: &Arc<Resampler>) {
        let last = {
            let mut list = self.resamplers.lock();
            list.retain(|other| !Arc::ptr_eq(other, resampler));
            !list.iter().any(|other| other.gsi == resampler.gsi)
        };
        if last {
            self.set_gsi(resampler.gsi, Source::RESAMPLE, false);
        }
    }

    /// The eventfd of a resampler was written.
    pub(crate) fn raise_resampled(&self, gsi: u32) {
        let mut devices = self.devices();
        self.track_eoi(&devices, gsi);
        if self.telling.load(Relaxed) != 0 {
            raised_at_end(&mut devices, gsi);
        }
        self.set_gsi_locked(&mut devices, gsi, Source::RESAMPLE, true);
    }

    /// A LAPIC has ended an interrupt that the IOAPIC may have sent.
    pub(crate) fn end_of_interrupt(&self, vector: u8) {
        let mut devices = self.devices();
        let resamplers = self.resamplers.lock();
        let pins = Pins {
            ioapic: devices.ioapic.eoi_pins(vector),
            pic: 0,
        };
        self.release(&mut devices, &resamplers, pins);
        drop(resamplers);
        let (ioapic, mut send) = self.ioapic(&mut devices);
        ioapic.eoi(vector, &mut send);
        drop(send);
        self.begin_pause(&mut devices);
        self.tick_ended(&mut devices, pins);
    }

    /// Inputs of the PIC have ended.
    pub(crate) fn pic_ended(&self, inputs: u16) {
        if inputs == 0 {
            return;
        }
        let pins = Pins {
            ioapic: 0,
            pic: inputs,
        };
        let mut devices = self.devices();
        let resamplers = self.resamplers.lock();
        self.release(&mut devices, &resamplers, pins);
        drop(resamplers);
        self.begin_pause(&mut devices);
        self.tick_ended(&mut devices, pins);
    }

    /// Lets the lines of the resamplers at `pins` fall.
    fn release<'a>(
        &'a self,
        devices: &mut IrqchipGuard<'a>,
        resamplers: &[Arc<Resampler>],
        pins: Pins,
    ) {
        for resampler in resamplers {
            if pins.concern(&devices.routes, resampler.gsi) {
                resampler.ended.store(1, Relaxed);
                self.resample_pending.store(1, Relaxed);
                self.set_gsi_locked(devices, resampler.gsi, Source::RESAMPLE, false);
            }
        }
    }

    /// Sends the PIT's next tick, if one waits for the end of that at `pins`.
    fn tick_ended<'a>(&'a self, devices: &mut IrqchipGuard<'a>, pins: Pins) {
        if !pins.concern(&devices.routes, PIT_GSI) {
            return;
        }
        if devices.pit.as_mut().is_some_and(|pit| pit.ticks.ended()) {
            self.send_tick(devices);
        }
    }

    /// A tick of the PIT: an edge at its GSI.
    pub(crate) fn send_tick<'a>(&'a self, devices: &mut IrqchipGuard<'a>) {
        if devices.pit.as_ref().is_some_and(|pit| pit.ticks.reinject()) {
            self.track_eoi(devices, PIT_GSI);
        }
        let delivery = self.set_gsi_locked(devices, PIT_GSI, Source::PIT, true);
        self.set_gsi_locked(devices, PIT_GSI, Source::PIT, false);
        if let (Some(pit), Some(delivery)) = (&mut devices.pit, delivery) {
            pit.ticks.sent(delivery);
        }
    }

    /// The ends of what `gsi` sends by the IOAPIC matter: a LAPIC tells of the end of an edge only
    /// if asked to. A vector that was wanted once stays so.
    pub(crate) fn track_eoi(&self, devices: &IrqchipState, gsi: u32) {
        for route in routing::routes(&devices.routes, gsi) {
            let Target::Pin {
                chip: Chip::Ioapic,
                pin,
            } = route.target
            else {
                continue;
            };
            let vector = devices.ioapic.vector(pin);
            let word = &self.ends[usize::from(vector >> 6)];
            // It cannot change: the devices are locked.
            word.store(word.load(Relaxed) | 1 << (vector & 63), Relaxed);
        }
    }

    /// Whether the end of an edge with this vector matters.
    #[inline]
    pub(crate) fn tracks_eoi(&self, vector: u8) -> bool {
        self.ends[usize::from(vector >> 6)].load(Relaxed) >> (vector & 63) & 1 != 0
    }

    /// Whether there may be resamplers to be told.
    #[inline]
    pub(crate) fn has_resample_pending(&self) -> bool {
        self.resample_pending.load(Relaxed) != 0
    }

    /// Tells the resamplers whose interrupt has ended, with interrupts on and nothing locked: an
    /// eventfd wakes as many as wait for it, and can be an interrupt line itself.
    #[cold]
    pub(crate) fn signal_resamplers(&self) {
        self.resample_pending.xchg(0, Full);
        // Ends that come meanwhile have another caller who tells of them.
        let count = self.resamplers.lock().len();
        for _ in 0..count {
            let resampler = {
                let list = self.resamplers.lock();
                let ended = |one: &&Arc<Resampler>| one.ended.xchg(0, Relaxed) != 0;
                list.iter().find(ended).cloned()
            };
            let Some(resampler) = resampler else {
                return;
            };
            self.telling.store(1, Relaxed);
            resampler.eventfd.signal();
            self.telling.store(0, Relaxed);
            linux::cond_resched();
        }
    }
}

/// The pins of `gsi` hear that it rises again at the end of its own interrupt.
fn raised_at_end(devices: &mut IrqchipState, gsi: u32) {
    let IrqchipState {
        pic,
        ioapic,
        routes,
        ..
    } = devices;
    for route in routing::routes(routes, gsi) {
        match route.target {
            Target::Pin {
                chip: Chip::Ioapic,
                pin,
            } => ioapic.raised_at_end(pin),
            Target::Pin {
                chip: Chip::PicSlave,
                pin,
            } => pic.raised_at_end(pin + 8),
            Target::Pin { pin, .. } => pic.raised_at_end(pin),
            Target::Msi { .. } => {}
        }
    }
}
