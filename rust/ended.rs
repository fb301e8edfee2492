// SPDX-License-Identifier: GPL-2.0-only

//! What happens when the guest has ended an interrupt: devices of the VMM are asked whether they
//! still want one (KVM_IRQFD_FLAG_RESAMPLE), and a tick of the PIT that waited is sent.
//!
//! ```text
//!   EOI of a LAPIC, of the PIC ─► pins ─┬─► resamplers: line down, eventfd ─► VMM ─► line up again?
//!                                       └─► the PIT's next tick
//! ```

use crate::chips::{Chips, Devices};
use crate::ffi::{Eventfd, IrqGuard};
use irqchip::lines::Source;
use irqchip::routing::{self, Chip, Pins, Target};
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::Arc;

/// GSI of the PIT.
const PIT_GSI: u32 = 0;

/// Somebody who holds a level-triggered line until he hears that the interrupt has ended.
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

impl Chips {
    /// Adds a resampler. One thread at a time may add or remove.
    pub(crate) fn add_resampler(&self, resampler: &Arc<Resampler>) -> Result {
        self.resamplers.append(resampler)
    }

    /// Removes a resampler. The line falls if nobody else could let it fall.
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

    /// A LAPIC has ended an interrupt that the IOAPIC may have sent.
    pub(crate) fn end_of_interrupt(&self, vector: u8) {
        let resamplers = self.resamplers.lock();
        let mut devices = self.devices();
        let pins = Pins {
            ioapic: devices.ioapic.eoi_pins(vector),
            pic: 0,
        };
        self.release(&mut devices, &resamplers, pins);
        devices
            .ioapic
            .eoi(vector, &mut |message| self.send(message));
        self.tick_ended(devices, pins);
        notify(&resamplers);
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
        let resamplers = self.resamplers.lock();
        let mut devices = self.devices();
        self.release(&mut devices, &resamplers, pins);
        self.tick_ended(devices, pins);
        notify(&resamplers);
    }

    /// Lets the lines of the resamplers at `pins` fall.
    fn release(&self, devices: &mut Devices, resamplers: &[Arc<Resampler>], pins: Pins) {
        for resampler in resamplers {
            if pins.concern(&devices.routes, resampler.gsi) {
                resampler.ended.store(1, Relaxed);
                self.set_gsi_locked(devices, resampler.gsi, Source::RESAMPLE, false);
            }
        }
    }

    /// Sends the PIT's next tick, if one waits for the end of that at `pins`.
    fn tick_ended(&self, mut devices: IrqGuard<'_, Devices>, pins: Pins) {
        if !pins.concern(&devices.routes, PIT_GSI) {
            return;
        }
        if devices.pit.as_mut().is_some_and(|pit| pit.ticks.ended()) {
            self.send_tick(&mut devices);
        }
    }

    /// A tick of the PIT: an edge at its GSI.
    pub(crate) fn send_tick(&self, devices: &mut Devices) {
        let delivery = self.set_gsi_locked(devices, PIT_GSI, Source::PIT, true);
        self.set_gsi_locked(devices, PIT_GSI, Source::PIT, false);
        let (Some(pit), Some(delivery)) = (&mut devices.pit, delivery) else {
            return;
        };
        pit.ticks.sent(delivery);
        // A LAPIC tells of the end of an edge only if asked to.
        let vector = routing::routes(&devices.routes, PIT_GSI)
            .iter()
            .find_map(|route| match route.target {
                Target::Pin {
                    chip: Chip::Ioapic,
                    pin,
                } if pit.ticks.reinject() => Some(devices.ioapic.vector(pin)),
                _ => None,
            });
        self.tick_vector
            .store(u32::from(vector.unwrap_or(0)), Relaxed);
    }

    /// Whether the PIT's ticks come with this vector, so that their end matters.
    #[inline]
    pub(crate) fn is_tick(&self, vector: u8) -> bool {
        self.tick_vector.load(Relaxed) == u32::from(vector)
    }
}

/// Tells the resamplers whose interrupt has ended. The devices are not locked here: an eventfd can
/// be an interrupt line itself.
fn notify(resamplers: &[Arc<Resampler>]) {
    for resampler in resamplers {
        if resampler.ended.xchg(0, Relaxed) != 0 {
            resampler.eventfd.signal();
        }
    }
}
