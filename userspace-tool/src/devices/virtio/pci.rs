// SPDX-License-Identifier: GPL-2.0-only

//! The transport: a virtio device as a PCI function (virtio 1.2, 4.1). There is no legacy
//! interface, and interrupts are messages (MSI-X).

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::worker::{Interrupt, Position, QueueAccess, Worker};
use super::{Device, COMMON_FEATURES, QUEUE_SIZE};
use crate::devices::bus::{lock, MemoryDevice, Shared};
use crate::devices::pci::config::{self, ConfigSpace, Identity};
use crate::devices::pci::msix::{self, EntryState, Msix, Routes};
use crate::devices::pci::Function;
use crate::error::Result;
use crate::eventfd;
use crate::memory::GuestMemory;

/// The vendor of all virtio devices, and what is added to a device's number (4.1.2.1).
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;
/// What the subsystem must be at least, without a legacy interface.
const SUBSYSTEM: u16 = 0x40;
/// The number of a capability of the vendor's own.
const VENDOR_CAPABILITY: u8 = 0x09;

// The kinds of registers that its capabilities name (4.1.4).
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;

// The window: one page for each kind of register.
const COMMON: u32 = 0x0000;
const ISR: u32 = 0x1000;
const CONFIG: u32 = 0x2000;
const NOTIFY: u32 = 0x3000;
const MSIX_TABLE: u32 = 0x4000;
const MSIX_PENDING: u32 = 0x5000;
const PAGE: u32 = 0x1000;
/// The size of the window.
pub(crate) const WINDOW_SIZE: u32 = 0x8000;
/// How far the doorbells of two queues are apart.
const DOORBELL_STRIDE: u32 = 4;
/// The size of the common registers.
const COMMON_SIZE: u32 = 0x38;

/// What the driver has said of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct QueueSetup {
    size: u16,
    enabled: bool,
    /// Descriptors, available ring, used ring.
    addresses: [u64; 3],
}

impl Default for QueueSetup {
    fn default() -> Self {
        Self {
            size: QUEUE_SIZE,
            enabled: false,
            addresses: [0; 3],
        }
    }
}

/// The common registers (4.1.4.3).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Common {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    status: u8,
    queue_select: u16,
    queues: Vec<QueueSetup>,
}

/// The function.
pub(crate) struct VirtioPci {
    config: ConfigSpace,
    msix_control: usize,
    msix: Arc<Mutex<Msix>>,
    device: Shared<dyn Device>,
    device_config: Vec<u8>,
    features: u64,
    memory: GuestMemory,
    common: Common,
    interrupts: Vec<Interrupt>,
    doorbells: Vec<EventFd>,
    worker: Option<Worker>,
    /// The queues while the worker rests.
    resting: Option<Vec<QueueAccess>>,
}

/// The state of the function and of its device, which has none besides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The number of the device's kind.
    kind: u16,
    config: config::State,
    msix: Vec<EntryState>,
    common: Common,
    /// The vector of each queue.
    vectors: Vec<u16>,
    /// Where each queue is, if the driver is ready.
    positions: Option<Vec<Position>>,
}

impl VirtioPci {
    /// The device, with its window at `address`.
    pub(crate) fn new(
        device: Shared<dyn Device>,
        address: u32,
        memory: GuestMemory,
        routes: Arc<dyn Routes>,
    ) -> Result<Self> {
        let (kind, offered, queues, device_config) = {
            let device = lock(&device);
            let features = device.features() | COMMON_FEATURES;
            (device.kind(), features, device.queues(), device.config())
        };
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: FIRST_DEVICE + kind.number,
            subsystem: (VENDOR, SUBSYSTEM),
            revision: 1,
            class: kind.class,
        });
        config.set_window(address, WINDOW_SIZE);
        let size = device_config.len() as u32;
        let registers = [
            (CAP_COMMON, COMMON, COMMON_SIZE),
            (CAP_ISR, ISR, 1),
            (CAP_DEVICE, CONFIG, size),
        ];
        // A capability of nothing would be a mistake.
        for (kind, offset, length) in registers.into_iter().filter(|register| register.2 > 0) {
            config.add_capability(VENDOR_CAPABILITY, &capability(kind, offset, length, &[]));
        }
        let doorbells = DOORBELL_STRIDE * queues as u32;
        let stride = DOORBELL_STRIDE.to_le_bytes();
        let notify = capability(CAP_NOTIFY, NOTIFY, doorbells, &stride);
        config.add_capability(VENDOR_CAPABILITY, &notify);
        // One vector for each queue, and one for changes of the configuration.
        let vectors = queues + 1;
        let table = Msix::capability(vectors, MSIX_TABLE, MSIX_PENDING);
        // The number, the link, and the lower byte of message control come first.
        let msix_control = config.add_capability(msix::CAPABILITY, &table) + 3;
        config.make_writable(msix_control, msix::CONTROL_WRITABLE);

        let msix = Arc::new(Mutex::new(Msix::new(vectors, routes)?));
        Ok(Self {
            config,
            msix_control,
            device,
            device_config,
            features: offered,
            memory,
            common: Common {
                queues: vec![QueueSetup::default(); queues],
                config_vector: super::worker::NO_VECTOR,
                ..Common::default()
            },
            interrupts: (0..queues).map(|_| Interrupt::new(msix.clone())).collect(),
            doorbells: (0..queues).map(|_| eventfd::new()).collect::<Result<_>>()?,
            msix,
            worker: None,
            resting: None,
        })
    }

    /// The worker finishes its request and rests, until [`Self::go_on`].
    pub(crate) fn rest(&mut self) {
        if let Some(worker) = self.worker.take() {
            self.resting = Some(worker.stop());
        }
    }

    /// The worker goes on.
    pub(crate) fn go_on(&mut self) {
        if let Some(queues) = self.resting.take() {
            if !self.work(queues) {
                self.common.status |= VIRTIO_CONFIG_S_NEEDS_RESET as u8;
            }
        }
    }

    /// What is behind the device: see [`Device::keep`] and [`Device::go_back`].
    pub(crate) fn behind<T>(&self, action: impl FnOnce(&mut dyn Device) -> T) -> T {
        action(&mut *lock(&self.device))
    }

    /// The state, while the worker rests.
    pub(crate) fn state(&self) -> State {
        let positions = |queues: &Vec<_>| queues.iter().map(QueueAccess::position).collect();
        State {
            kind: lock(&self.device).kind().number,
            config: self.config.state(),
            msix: lock(&self.msix).state(),
            common: self.common.clone(),
            vectors: self.interrupts.iter().map(Interrupt::vector).collect(),
            positions: self.resting.as_ref().map(positions),
        }
    }

    /// Puts a state in the place of its own. The worker rests then. The guest is interrupted for
    /// all queues, for what was on its way may be lost.
    pub(crate) fn restore(&mut self, state: &State) -> std::result::Result<(), &'static str> {
        self.rest();
        let (common, queues) = (&state.common, self.common.queues.len());
        if state.kind != lock(&self.device).kind().number {
            return Err("it is of another kind");
        }
        if common.queues.len() != queues || state.vectors.len() != queues {
            return Err("it has another number of queues");
        }
        if common.driver_features & !self.features != 0 {
            return Err("its driver uses features that are not there");
        }
        self.resting = None;
        lock(&self.msix).restore(&state.msix);
        self.config.restore(&state.config);
        lock(&self.msix).set_control(self.config.byte(self.msix_control));
        self.common = common.clone();
        for (interrupt, vector) in self.interrupts.iter().zip(&state.vectors) {
            interrupt.set_vector(*vector);
        }
        if let Some(positions) = &state.positions {
            let mut accesses = self.accesses().ok_or("its queues cannot be")?;
            for (access, position) in accesses.iter_mut().zip(positions) {
                access.resume(*position);
                access.interrupt();
            }
            lock(&self.device).start(self.common.driver_features);
            self.resting = Some(accesses);
        }
        Ok(())
    }

    /// The doorbells, each with its offset in the window.
    pub(crate) fn doorbells(&self) -> impl Iterator<Item = (u32, &EventFd)> {
        (NOTIFY..)
            .step_by(DOORBELL_STRIDE as usize)
            .zip(&self.doorbells)
    }

    /// Reads one of the common registers; none is where no width fits.
    fn read_common(&self, offset: u32) -> u64 {
        let common = &self.common;
        let selected = usize::from(common.queue_select);
        let queue = common.queues.get(selected).copied();
        // A queue that is not there has size 0.
        let queue = queue.unwrap_or(QueueSetup {
            size: 0,
            ..QueueSetup::default()
        });
        let vector = self.interrupts.get(selected).map(Interrupt::vector);
        let [descriptors, available, used] = queue.addresses;
        match offset {
            0x00 => common.device_feature_select.into(),
            0x04 => half(self.features, common.device_feature_select).into(),
            0x08 => common.driver_feature_select.into(),
            0x0c => half(common.driver_features, common.driver_feature_select).into(),
            0x10 => common.config_vector.into(),
            0x12 => common.queues.len() as u64,
            0x14 => common.status.into(),
            0x15 => 0, // the configuration does not change
            0x16 => common.queue_select.into(),
            0x18 => queue.size.into(),
            0x1a => vector.unwrap_or(super::worker::NO_VECTOR).into(),
            0x1c => queue.enabled.into(),
            0x1e => common.queue_select.into(),
            0x20 => descriptors,
            0x24 => descriptors >> 32,
            0x28 => available,
            0x2c => available >> 32,
            0x30 => used,
            0x34 => used >> 32,
            _ => 0,
        }
    }

    /// Writes one of the common registers.
    fn write_common(&mut self, offset: u32, value: u64, size: usize) {
        let selected = usize::from(self.common.queue_select);
        match (offset, size) {
            (0x00, 4) => self.common.device_feature_select = value as u32,
            (0x08, 4) => self.common.driver_feature_select = value as u32,
            (0x0c, 4) => self.set_driver_features(value as u32),
            (0x10, 2) => {
                let there = lock(&self.msix).has(value as u16);
                self.common.config_vector = if there {
                    value as u16
                } else {
                    super::worker::NO_VECTOR
                };
            }
            (0x14, 1) => self.set_status(value as u8),
            (0x16, 2) => self.common.queue_select = value as u16,
            (0x1a, 2) => {
                if let Some(interrupt) = self.interrupts.get(selected) {
                    interrupt.set_vector(value as u16);
                }
            }
            _ => self.set_up_queue(selected, offset, value, size),
        }
    }

    /// Writes a register of the selected queue. A queue in use does not change.
    fn set_up_queue(&mut self, selected: usize, offset: u32, value: u64, size: usize) {
        let in_use = self.worker.is_some();
        let queue = self.common.queues.get_mut(selected);
        let Some(queue) = queue.filter(|queue| !queue.enabled && !in_use) else {
            return;
        };
        let low = |old: u64| old & !u64::from(u32::MAX) | value & u64::from(u32::MAX);
        let high = |old: u64| old & u64::from(u32::MAX) | value << 32;
        let index = (offset.wrapping_sub(0x20) / 8) as usize;
        match (offset, size) {
            (0x18, 2) => queue.size = value as u16,
            (0x1c, 2) => queue.enabled = value == 1,
            (0x20 | 0x28 | 0x30, 8) => queue.addresses[index] = value,
            (0x20 | 0x28 | 0x30, 4) => queue.addresses[index] = low(queue.addresses[index]),
            (0x24 | 0x2c | 0x34, 4) => queue.addresses[index] = high(queue.addresses[index]),
            _ => {}
        }
    }

    /// The driver says which features it knows; those not offered do not count.
    fn set_driver_features(&mut self, value: u32) {
        let old = self.common.driver_features;
        let value = u64::from(value);
        let features = match self.common.driver_feature_select {
            0 => old & !u64::from(u32::MAX) | value,
            1 => old & u64::from(u32::MAX) | value << 32,
            _ => return,
        };
        if self.common.status & VIRTIO_CONFIG_S_FEATURES_OK as u8 == 0 {
            self.common.driver_features = features & self.features;
        }
    }

    /// The driver goes a step on, or resets the device.
    fn set_status(&mut self, status: u8) {
        if status == 0 {
            self.reset();
            return;
        }
        let mut status = status;
        // Without the features of version 1 there is no agreement (6.1).
        if self.common.driver_features & 1 << VIRTIO_F_VERSION_1 == 0 {
            status &= !(VIRTIO_CONFIG_S_FEATURES_OK as u8);
        }
        self.common.status |= status;
        let ready = (VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK) as u8;
        if self.common.status & ready == ready && self.worker.is_none() && !self.start() {
            self.common.status |= VIRTIO_CONFIG_S_NEEDS_RESET as u8;
        }
    }

    /// Starts the worker with the queues as they have been set up.
    fn start(&mut self) -> bool {
        let Some(queues) = self.accesses() else {
            return false;
        };
        lock(&self.device).start(self.common.driver_features);
        self.work(queues)
    }

    /// The queues as the driver has set them up.
    fn accesses(&self) -> Option<Vec<QueueAccess>> {
        (self.common.queues.iter().zip(&self.interrupts))
            .map(|(setup, interrupt)| {
                let queue = queue(setup, self.common.driver_features)?;
                let memory = self.memory.clone();
                Some(QueueAccess::new(queue, memory, interrupt.clone()))
            })
            .collect()
    }

    /// Starts a worker with these queues.
    fn work(&mut self, queues: Vec<QueueAccess>) -> bool {
        let doorbells: std::io::Result<Vec<_>> =
            self.doorbells.iter().map(EventFd::try_clone).collect();
        let worker = doorbells.map(|bells| Worker::start(self.device.clone(), queues, bells));
        self.worker = worker.ok().and_then(Result::ok);
        self.worker.is_some()
    }

    /// Everything is as in the beginning.
    fn reset(&mut self) {
        // The thread ends first.
        self.worker = None;
        self.resting = None;
        for interrupt in &self.interrupts {
            interrupt.set_vector(super::worker::NO_VECTOR);
        }
        self.common = Common {
            queues: vec![QueueSetup::default(); self.common.queues.len()],
            config_vector: super::worker::NO_VECTOR,
            ..Common::default()
        };
    }
}

/// The queue that a driver has set up. One that it has left alone is never served; nothing if what
/// it said is not allowed.
fn queue(setup: &QueueSetup, features: u64) -> Option<Queue> {
    let mut queue = Queue::new(QUEUE_SIZE).ok()?;
    if setup.enabled {
        let [descriptors, available, used] = setup.addresses.map(vm_memory::GuestAddress);
        queue.try_set_size(setup.size).ok()?;
        queue.try_set_desc_table_address(descriptors).ok()?;
        queue.try_set_avail_ring_address(available).ok()?;
        queue.try_set_used_ring_address(used).ok()?;
        queue.set_event_idx(features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
        queue.set_ready(true);
    }
    Some(queue)
}

/// The half of features that is selected; others have none.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

/// A capability of virtio (4.1.4): what lies where in the first window.
fn capability(kind: u8, offset: u32, length: u32, more: &[u8]) -> Vec<u8> {
    const HEADER: usize = 16;
    let size = (HEADER + more.len()) as u8;
    let mut bytes = vec![size, kind, 0, 0, 0, 0];
    bytes.extend(offset.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(more);
    bytes
}

impl Function for VirtioPci {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        let before = self.config.byte(self.msix_control);
        self.config.write(offset, data);
        let control = self.config.byte(self.msix_control);
        if control != before {
            lock(&self.msix).set_control(control);
        }
    }
}

impl MemoryDevice for VirtioPci {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if !self.config.window_answers() {
            return;
        }
        let (page, inside) = split(offset);
        match page {
            COMMON => {
                let value = self.read_common(inside).to_le_bytes();
                data.copy_from_slice(&value[..data.len()]);
            }
            // With messages, no reason stands here.
            ISR => data.fill(0),
            CONFIG => {
                let bytes = self.device_config.iter().skip(inside as usize);
                data.fill(0);
                data.iter_mut()
                    .zip(bytes)
                    .for_each(|(to, from)| *to = *from);
            }
            MSIX_TABLE => lock(&self.msix).read_table(inside.into(), data),
            MSIX_PENDING => lock(&self.msix).read_pending(inside.into(), data),
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if !self.config.window_answers() {
            return;
        }
        let (page, inside) = split(offset);
        match page {
            COMMON => {
                let mut value = [0; 8];
                value[..data.len()].copy_from_slice(data);
                self.write_common(inside, u64::from_le_bytes(value), data.len());
            }
            // Where the module watches the doorbells, this is not reached.
            NOTIFY => {
                let bell = self.doorbells.get((inside / DOORBELL_STRIDE) as usize);
                let _ = bell.map(|bell| bell.write(1));
            }
            MSIX_TABLE => lock(&self.msix).write_table(inside.into(), data),
            _ => {}
        }
    }
}

/// The page of the window, and the offset in it.
fn split(offset: u64) -> (u32, u32) {
    // Offsets are less than the window's size.
    let offset = offset as u32 % WINDOW_SIZE;
    (offset / PAGE * PAGE, offset % PAGE)
}
