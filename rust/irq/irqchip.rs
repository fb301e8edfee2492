// SPDX-License-Identifier: GPL-2.0-only

//! The interrupt controllers and the timer of a VM: PIC, IOAPIC, PIT, and the routes to them.
//!
//! One spinlock guards them all, since an edge of one is an input of another. It is taken with
//! interrupts off. What they send is left in the vCPUs' inboxes while it is held, and the vCPUs are
//! kicked after that ([`IrqchipGuard`]).
//!
//! ```text
//!   KVM_IRQ_LINE, PIT ─► routes ─┬─► Pic ─ output ─► request CHIPS, vCPUs that listen to it
//!                                ├─► Ioapic ─ Message ─┐
//!                                └─► MSI ──────────────┴─► VcpuTable::deliver
//! ```
//!
//! With a split irqchip there are only the LAPICs and routes of MSIs; the rest is the VMM's. What
//! happens when an interrupt ends is in `eoi.rs`.

use crate::irq::broadcast::Broadcasts;
use crate::irq::eoi::Resampler;
use crate::irq::mailbox::Interrupt;
use crate::irq::vcpu_table::{PendingKicks, VcpuTable};
use crate::linux::{self, IrqLock, Timer, TimerCallback};
use crate::uapi;
use core::ops::{Deref, DerefMut};
use irqchip::lines::{Delivery, Source};
use irqchip::message::Message;
use irqchip::routing::{self, Chip, Route, Target};
use irqchip::{ioapic, storm, Destination, Ioapic, Pic, Pit};
use kernel::ffi::c_long;
use kernel::prelude::*;
use kernel::sync::atomic::{Acquire, Atomic, Relaxed, Release};
use kernel::sync::{Arc, SetOnce};
use svm::requests::Requests;

/// The devices.
pub(crate) struct IrqchipState {
    pub(crate) pic: Pic,
    pub(crate) ioapic: Ioapic,
    pub(crate) pit: Option<Pit>,
    /// Sorted by GSI.
    pub(crate) routes: KVec<Route>,
}

/// The devices, locked.
pub(crate) struct IrqchipGuard<'a> {
    /// First, so that the lock is released before the vCPUs are kicked.
    devices: linux::IrqGuard<'a, IrqchipState>,
    pub(crate) kicks: PendingKicks<'a>,
}

impl Deref for IrqchipGuard<'_> {
    type Target = IrqchipState;
    fn deref(&self) -> &IrqchipState {
        &self.devices
    }
}

impl DerefMut for IrqchipGuard<'_> {
    fn deref_mut(&mut self) -> &mut IrqchipState {
        &mut self.devices
    }
}

/// The interrupt controllers of a VM, if it has asked for them.
#[pin_data]
pub(crate) struct Irqchip {
    /// Runs until the PIT's next edge. First, so that it stops before anything else goes.
    pit_timer: SetOnce<Pin<KBox<Timer<Irqchip>>>>,
    /// Runs until the end of a pause in a storm of interrupts. Likewise.
    storm_timer: SetOnce<Pin<KBox<Timer<StormEnd>>>>,
    /// What is for many vCPUs. After the timers, which send.
    #[pin]
    pub(crate) broadcasts: Broadcasts,
    #[pin]
    devices: IrqLock<IrqchipState>,
    /// Who waits for the end of interrupts. Taken after `devices`.
    #[pin]
    pub(crate) resamplers: IrqLock<KVec<Arc<Resampler>>>,
    /// Which controllers exist; they never go.
    created: Atomic<u32>,
    /// The VMM's IOAPIC has that many pins, with a split irqchip.
    reserved_pins: Atomic<u32>,
    /// KVM_CAP_X2APIC_API.
    x2apic_api: Atomic<u32>,
    /// KVM_CAP_X86_APIC_BUS_CYCLES_NS.
    bus_cycle_ns: Atomic<u32>,
    /// The vectors, a bit each, whose ends matter even if they are edges: see `eoi.rs`.
    pub(crate) ends: [Atomic<u64>; 4],
    /// Not zero if there is a resampler to be told of an end.
    pub(crate) resample_pending: Atomic<u32>,
    /// Not zero while resamplers are told: a line that rises meanwhile does so because of the end.
    pub(crate) telling: Atomic<u32>,
    pub(crate) vcpu_table: Arc<VcpuTable>,
}

/// What the VMM has decided about them.
pub(crate) struct IrqchipConfig {
    created: u32,
    has_pit: bool,
    reserved_pins: u32,
    x2apic_api: u32,
    bus_cycle_ns: u32,
    ends: [u64; 4],
    routes: KVec<Route>,
}

/// `created`: none yet.
const NONE: u32 = 0;
/// `created`: all of them.
const FULL: u32 = 1;
/// `created`: LAPICs only.
const SPLIT: u32 = 2;

impl Irqchip {
    /// A VM without controllers in the kernel.
    pub(crate) fn new(vcpu_table: Arc<VcpuTable>) -> Result<Arc<Self>> {
        let devices = IrqchipState {
            pic: Pic::new(),
            ioapic: Ioapic::new(),
            pit: None,
            routes: KVec::new(),
        };
        Arc::pin_init(
            pin_init!(Self {
                pit_timer: SetOnce::new(),
                storm_timer: SetOnce::new(),
                broadcasts <- Broadcasts::new(vcpu_table.clone()),
                devices <- IrqLock::new(devices, c"pacifica_devices", kernel::static_lock_class!()),
                resamplers <- IrqLock::new(KVec::new(), c"pacifica_resamplers", kernel::static_lock_class!()),
                created: Atomic::new(NONE),
                reserved_pins: Atomic::new(0),
                x2apic_api: Atomic::new(0),
                bus_cycle_ns: Atomic::new(1),
                ends: [const { Atomic::new(0) }; 4],
                resample_pending: Atomic::new(0),
                telling: Atomic::new(0),
                vcpu_table,
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// KVM_CREATE_IRQCHIP: PIC, IOAPIC, and a LAPIC in each vCPU to come.
    pub(crate) fn create(&self) -> Result<c_long> {
        let mut routes = KVec::new();
        routes.extend_from_slice(&routing::default_routes(), GFP_KERNEL_ACCOUNT)?;
        let target = core::ptr::from_ref(self).cast::<StormEnd>();
        let timer = KBox::pin_init(
            // SAFETY: The timer is a field of its target, and dropped before what it uses.
            unsafe { Timer::new(target) },
            GFP_KERNEL_ACCOUNT,
        )?;
        // False if a first call has made one: it serves as well.
        self.storm_timer.populate(timer);
        self.broadcasts.start()?;
        let mut devices = self.devices.lock();
        if self.has_lapics() {
            return Err(EEXIST);
        }
        devices.routes = routes;
        self.created.store(FULL, Release);
        Ok(0)
    }

    /// KVM_CAP_SPLIT_IRQCHIP: a LAPIC in each vCPU to come; the IOAPIC is the VMM's.
    pub(crate) fn create_split(&self, reserved_pins: u32) -> Result<c_long> {
        self.broadcasts.start()?;
        let _devices = self.devices.lock();
        if self.has_lapics() {
            return Err(EEXIST);
        }
        self.reserved_pins.store(reserved_pins, Relaxed);
        self.created.store(SPLIT, Release);
        Ok(0)
    }

    /// Copies what the VMM has decided, and which ends matter.
    pub(crate) fn decisions(&self) -> Result<IrqchipConfig> {
        let mut routes = KVec::new();
        let has_pit = loop {
            let count = self.devices.lock().routes.len();
            routes.reserve(count, GFP_KERNEL_ACCOUNT)?;
            let devices = self.devices.lock();
            // Not if there are more now.
            if devices.routes.len() <= routes.capacity() {
                for route in devices.routes.iter() {
                    let _ = routes.push_within_capacity(*route);
                }
                break devices.pit.is_some();
            }
        };
        Ok(IrqchipConfig {
            created: self.created.load(Acquire),
            has_pit,
            reserved_pins: self.reserved_pins.load(Relaxed),
            x2apic_api: self.x2apic_api.load(Relaxed),
            bus_cycle_ns: self.bus_cycle_ns(),
            ends: core::array::from_fn(|word| self.ends[word].load(Relaxed)),
            routes,
        })
    }

    /// Decides the same for a VM that is new.
    pub(crate) fn decide(&self, decisions: &IrqchipConfig) -> Result {
        match decisions.created {
            FULL => self.create()?,
            SPLIT => self.create_split(decisions.reserved_pins)?,
            _ => 0,
        };
        if decisions.has_pit {
            // What kind of one comes with its state.
            self.create_pit(true)?;
        }
        self.x2apic_api.store(decisions.x2apic_api, Relaxed);
        self.set_bus_cycle_ns(decisions.bus_cycle_ns);
        for (to, from) in self.ends.iter().zip(decisions.ends) {
            to.store(from, Relaxed);
        }
        let mut routes = KVec::new();
        routes.extend_from_slice(&decisions.routes, GFP_KERNEL_ACCOUNT)?;
        let old = core::mem::replace(&mut self.devices().routes, routes);
        drop(old);
        Ok(())
    }

    /// Whether the LAPICs are in the kernel.
    #[inline]
    pub(crate) fn has_lapics(&self) -> bool {
        self.created.load(Acquire) != NONE
    }

    /// Whether all controllers are in the kernel.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.created.load(Acquire) == FULL
    }

    /// Whether a vCPU tells the VMM which level-triggered interrupts end.
    pub(crate) fn tells_vmm_of_eoi(&self) -> bool {
        !self.is_full() && self.reserved_pins.load(Relaxed) != 0
    }

    /// Enables flags of KVM_CAP_X2APIC_API.
    pub(crate) fn enable_x2apic_api(&self, flags: u32) {
        self.x2apic_api
            .store(self.x2apic_api.load(Relaxed) | flags, Relaxed);
    }

    /// Whether the interface carries APIC IDs of 32 bits.
    pub(crate) fn has_wide_ids(&self) -> bool {
        self.x2apic_api.load(Relaxed) & uapi::KVM_X2APIC_API_USE_32BIT_IDS != 0
    }

    /// How long a cycle of the LAPICs' bus takes.
    pub(crate) fn bus_cycle_ns(&self) -> u32 {
        self.bus_cycle_ns.load(Relaxed)
    }

    /// Sets it, for vCPUs to come.
    pub(crate) fn set_bus_cycle_ns(&self, ns: u32) {
        self.bus_cycle_ns.store(ns, Relaxed);
    }

    /// The devices, for as long as the guard lives.
    pub(crate) fn devices(&self) -> IrqchipGuard<'_> {
        IrqchipGuard {
            devices: self.devices.lock(),
            kicks: self.vcpu_table.kicks(),
        }
    }

    /// KVM_CREATE_PIT2.
    pub(crate) fn create_pit(&self, speaker: bool) -> Result<c_long> {
        if !self.is_full() {
            return Err(ENOENT);
        }
        let target: *const Self = self;
        let timer = KBox::pin_init(
            // SAFETY: The timer is a field of its target, and the first to be dropped.
            unsafe { Timer::new(target) },
            GFP_KERNEL_ACCOUNT,
        )?;
        if !self.pit_timer.populate(timer) {
            return Err(EEXIST);
        }
        let mut pit = Pit::new();
        // Without the flag, port 61h is the VMM's.
        pit.set_speaker_port(speaker);
        self.devices.lock().pit = Some(pit);
        Ok(0)
    }

    /// Sets the timer to the PIT's next edge. A timer that runs for nothing does no harm.
    pub(crate) fn restart_pit(&self, devices: &IrqchipState) {
        let next = devices.pit.as_ref().and_then(Pit::next_event);
        if let (Some(timer), Some(ns)) = (self.pit_timer.as_ref(), next) {
            timer.start(ns);
        }
    }

    /// Starts the pause of a pin whose line stays high, if there is one.
    pub(crate) fn begin_pause(&self, devices: &mut IrqchipState) {
        let (ioapic, pic) = (devices.ioapic.take_pause(), devices.pic.take_pause());
        if ioapic || pic {
            self.start_pause();
        }
    }

    /// Nothing comes of itself, until [`Self::restart`]. May sleep.
    pub(crate) fn stop(&self) {
        if let Some(timer) = self.pit_timer.as_ref() {
            timer.cancel();
        }
        if let Some(timer) = self.storm_timer.as_ref() {
            timer.cancel();
        }
    }

    /// What the devices wait for begins.
    pub(crate) fn restart(&self) {
        let devices = self.devices();
        self.restart_pit(&devices);
        if devices.ioapic.is_paused() || devices.pic.is_paused() {
            self.start_pause();
        }
    }

    fn start_pause(&self) {
        if let Some(timer) = self.storm_timer.as_ref() {
            timer.start(linux::now().saturating_add(storm::PAUSE_NS));
        }
    }

    /// The IOAPIC, and what it sends with.
    pub(crate) fn ioapic<'a, 'h>(
        &'a self,
        held: &'h mut IrqchipGuard<'a>,
    ) -> (&'h mut Ioapic, impl FnMut(Message) -> bool + use<'a, 'h>) {
        let kicks = &mut held.kicks;
        let send = |message| self.bring(kicks, message);
        (&mut held.devices.ioapic, send)
    }

    /// Sends a message to the LAPICs; whether one of them takes it. Interrupts are on.
    pub(crate) fn send(&self, message: Message) -> bool {
        let (to, interrupt) = self.addressed(message);
        let mut kicks = self.vcpu_table.kicks();
        self.vcpu_table.deliver(&to, None, &interrupt, &mut kicks)
    }

    /// Sends a message while the devices are held, or leaves it to the worker; whether a vCPU
    /// takes it.
    fn bring<'a>(&'a self, kicks: &mut PendingKicks<'a>, message: Message) -> bool {
        let (to, interrupt) = self.addressed(message);
        let vcpu_table = &self.vcpu_table;
        if let Some(taken) = vcpu_table.deliver_to_few(&to, &interrupt, kicks) {
            return taken;
        }
        if !self.broadcasts.put(&to, &interrupt) {
            return vcpu_table.deliver(&to, None, &interrupt, kicks);
        }
        vcpu_table.may_be_taken(&to, &interrupt)
    }

    fn addressed(&self, message: Message) -> (Destination, Interrupt) {
        let interrupt = Interrupt {
            mode: message.delivery_mode,
            vector: message.vector,
            level: message.level,
        };
        let no_quirk = uapi::KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
        let wide_broadcast = self.x2apic_api.load(Relaxed) & no_quirk != 0;
        (message.destination(wide_broadcast), interrupt)
    }

    /// The PIC's output may have changed: the vCPUs that listen to it look at it.
    ///
    /// One that begins to listen says so before it looks, and the devices are held here: either it
    /// is seen here, or it sees the change.
    pub(crate) fn pic_changed<'a>(&'a self, kicks: &mut PendingKicks<'a>) {
        if !self.vcpu_table.has_few_pic_listeners() && self.broadcasts.put_pic() {
            return;
        }
        for mailbox in self.vcpu_table.pic_listeners() {
            mailbox.post(Requests::EXTINT);
            kicks.add(mailbox);
        }
    }

    /// The same, if the PIC's output was another before.
    fn compare_pic<'a>(&'a self, held: &mut IrqchipGuard<'a>, before: bool) {
        if held.pic.output() != before {
            self.pic_changed(&mut held.kicks);
        }
    }

    /// A GSI's level changes. What became of it; `None` if there is no such GSI.
    pub(crate) fn set_gsi(&self, gsi: u32, source: Source, level: bool) -> Option<Delivery> {
        self.set_gsi_locked(&mut self.devices(), gsi, source, level)
    }

    /// The same for a VMM that sends ticks again which were lost (`KVM_IRQ_LINE_STATUS`): those of
    /// the real-time clock are, until the guest has ended the last.
    pub(crate) fn set_gsi_counted(&self, gsi: u32, level: bool) -> Option<Delivery> {
        let mut held = self.devices();
        let tick = level && gsi == u32::from(ioapic::RTC_PIN);
        if tick {
            self.track_eoi(&held, gsi);
            if held.ioapic.rtc_loses() {
                return Some(Delivery::Coalesced);
            }
        }
        let delivery = self.set_gsi_locked(&mut held, gsi, Source::USER, level);
        if tick && delivery == Some(Delivery::Delivered) {
            held.ioapic.rtc_sent();
        }
        delivery
    }

    /// A LAPIC was reset, or set: what it had in service may never end.
    pub(crate) fn lapic_was_set(&self) {
        if self.is_full() {
            self.devices().ioapic.forget_rtc();
        }
    }

    /// An irqfd was written: an edge.
    pub(crate) fn pulse_gsi(&self, gsi: u32) {
        let mut held = self.devices();
        self.set_gsi_locked(&mut held, gsi, Source::EVENTFD, true);
        self.set_gsi_locked(&mut held, gsi, Source::EVENTFD, false);
    }

    /// [`Self::set_gsi`], for a caller that has the devices.
    pub(crate) fn set_gsi_locked<'a>(
        &'a self,
        held: &mut IrqchipGuard<'a>,
        gsi: u32,
        source: Source,
        level: bool,
    ) -> Option<Delivery> {
        let mut result = None;
        let IrqchipGuard { devices, kicks } = held;
        let IrqchipState {
            pic,
            ioapic,
            routes,
            ..
        } = &mut **devices;
        for route in routing::routes(routes, gsi) {
            let delivered = match route.target {
                Target::Pin {
                    chip: Chip::Ioapic,
                    pin,
                } => ioapic.set_pin(pin, source, level, &mut |message| {
                    self.bring(kicks, message)
                }),
                Target::Pin { chip, pin } => {
                    let irq = if chip == Chip::PicSlave { pin + 8 } else { pin };
                    let before = pic.output();
                    let delivered = pic.set_irq(irq, source, level);
                    if pic.output() != before {
                        self.pic_changed(kicks);
                    }
                    delivered
                }
                Target::Msi { .. } => {
                    let sent = level
                        && route
                            .target
                            .message(self.has_wide_ids())
                            .is_some_and(|message| self.bring(kicks, message));
                    if sent {
                        Delivery::Delivered
                    } else {
                        Delivery::Ignored
                    }
                }
            };
            result = result.max(Some(delivered));
        }
        result
    }

    /// Whether the PIC wants the processor.
    pub(crate) fn pic_output(&self) -> bool {
        self.is_full() && self.devices.lock().pic.output()
    }

    /// The processor takes the PIC's interrupt.
    pub(crate) fn acknowledge_pic(&self) -> Option<u8> {
        let mut devices = self.devices.lock();
        let vector = devices.pic.output().then(|| devices.pic.acknowledge());
        let ended = devices.pic.take_ended();
        drop(devices);
        self.pic_ended(ended);
        vector
    }

    /// Reads a port of PIC or PIT.
    pub(crate) fn port_in(&self, port: u16, size: u8) -> Option<u32> {
        if !is_device_port(port) || !self.is_full() {
            return None;
        }
        let mut held = self.devices();
        let before = held.pic.output();
        let IrqchipState { pic, pit, .. } = &mut *held;
        let mut value = 0;
        for i in 0..u16::from(size.min(4)) {
            let at = port.wrapping_add(i);
            let byte = pic
                .port_read(at)
                .or_else(|| pit.as_mut().and_then(|pit| pit.port_read(at, linux::now())));
            match byte {
                Some(byte) => value |= u32::from(byte) << (8 * i),
                // Not a device in the kernel: the VMM's, as a whole.
                None if i == 0 => return None,
                None => value |= 0xff << (8 * i),
            }
        }
        // A poll acknowledges.
        let ended = pic.take_ended();
        self.compare_pic(&mut held, before);
        drop(held);
        self.pic_ended(ended);
        Some(value)
    }

    /// Writes a port of PIC or PIT; `false` if neither has it.
    pub(crate) fn port_out(&self, port: u16, size: u8, value: u32) -> bool {
        if !is_device_port(port) || !self.is_full() {
            return false;
        }
        let mut taken = false;
        let mut pit_changed = false;
        let ended = {
            let mut devices = self.devices();
            let before = devices.pic.output();
            for (i, byte) in value
                .to_le_bytes()
                .into_iter()
                .take(usize::from(size))
                .enumerate()
            {
                let at = port.wrapping_add(i as u16);
                if devices.pic.port_write(at, byte) {
                    taken = true;
                } else if let Some(pit) = &mut devices.pit {
                    let written = pit.port_write(at, byte, linux::now());
                    taken |= written;
                    pit_changed |= written;
                }
            }
            self.compare_pic(&mut devices, before);
            if pit_changed {
                self.restart_pit(&devices);
            }
            devices.pic.take_ended()
        };
        self.pic_ended(ended);
        taken
    }

    /// Reads the IOAPIC's registers; `false` if `gpa` is not one of them.
    pub(crate) fn mmio_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        let Some(offset) = self.ioapic_offset(gpa) else {
            return false;
        };
        self.devices.lock().ioapic.mmio_read(offset, data);
        true
    }

    /// Writes the IOAPIC's registers; `false` if `gpa` is not one of them.
    pub(crate) fn mmio_write(&self, gpa: u64, data: &[u8]) -> bool {
        let Some(offset) = self.ioapic_offset(gpa) else {
            return false;
        };
        let mut held = self.devices();
        let (ioapic, mut send) = self.ioapic(&mut held);
        ioapic.mmio_write(offset, data, &mut send);
        true
    }

    fn ioapic_offset(&self, gpa: u64) -> Option<u32> {
        let offset = gpa.wrapping_sub(ioapic::DEFAULT_ADDRESS);
        (offset < ioapic::MMIO_SIZE && self.is_full()).then_some(offset as u32)
    }
}

/// Whether PIC or PIT could have the port; cheap, for all the others.
fn is_device_port(port: u16) -> bool {
    matches!(
        port,
        0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 | 0x40..=0x43 | 0x61
    )
}

/// [`Irqchip`], as the target of the timer that ends pauses.
#[repr(transparent)]
struct StormEnd(Irqchip);

impl TimerCallback for StormEnd {
    /// The pins that paused may send again.
    fn expire(&self) {
        let irqchip = &self.0;
        let mut held = irqchip.devices();
        let before = held.pic.output();
        let (ioapic, mut send) = irqchip.ioapic(&mut held);
        ioapic.resume(&mut send);
        drop(send);
        held.pic.resume();
        irqchip.compare_pic(&mut held, before);
    }
}

impl TimerCallback for Irqchip {
    /// The PIT's output rises.
    fn expire(&self) {
        let mut held = self.devices();
        let devices = &mut *held;
        let Some(pit) = devices.pit.as_mut() else {
            return;
        };
        let rises = pit.advance(linux::now());
        if pit.ticks.tick(rises) {
            self.send_tick(&mut held);
        }
        self.restart_pit(&held);
    }
}
