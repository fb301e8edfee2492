// SPDX-License-Identifier: GPL-2.0-only

//! Interrupts as messages (MSI-X): the table of a function, and the routes of the machine (PCI
//! Local Bus Specification 3.0, 6.8.2).

use std::sync::{Arc, Mutex};

use kvm_bindings::{
    kvm_irq_routing_entry, KvmIrqRouting, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::bus::lock;
use crate::error::{Error, Result};
use crate::eventfd;
use crate::layout::IOAPIC_PINS;

/// How many pins each of the two PICs has.
const PIC_PINS: u32 = 8;

/// A message: the address that is written to, and what is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// The address.
    pub(crate) address: u64,
    /// The data.
    pub(crate) data: u32,
}

/// Where interrupts lead. A function takes numbers for its messages from here.
pub(crate) trait Routes: Send + Sync {
    /// A new interrupt number: what is written to the eventfd leads to its message.
    fn take(&self) -> Result<(u32, EventFd)>;
    /// Says what message the number stands for.
    fn set(&self, number: u32, message: Message) -> std::io::Result<()>;
}

/// The routes of a virtual machine.
pub(crate) struct VmRoutes {
    vm: Arc<VmFd>,
    messages: Mutex<Vec<Option<Message>>>,
}

impl VmRoutes {
    /// No messages yet.
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            messages: Mutex::default(),
        }
    }
}

impl Routes for VmRoutes {
    fn take(&self) -> Result<(u32, EventFd)> {
        let event = eventfd::new()?;
        let mut messages = lock(&self.messages);
        let number = IOAPIC_PINS + messages.len() as u32;
        self.vm
            .register_irqfd(&event, number)
            .map_err(|error| Error::kvm("KVM_IRQFD", error))?;
        messages.push(None);
        Ok((number, event))
    }

    fn set(&self, number: u32, message: Message) -> std::io::Result<()> {
        let mut messages = lock(&self.messages);
        let index = number.checked_sub(IOAPIC_PINS).map(|index| index as usize);
        let Some(slot) = index.and_then(|index| messages.get_mut(index)) else {
            return Ok(());
        };
        let before = slot.replace(message);
        if before == Some(message) {
            return Ok(());
        }
        let routes = KvmIrqRouting::from_entries(&entries(&messages))
            .map_err(|error| std::io::Error::other(format!("{error:?}")));
        let result = routes.and_then(|routes| Ok(self.vm.set_gsi_routing(&routes)?));
        if let (Err(_), Some(slot)) = (&result, index.and_then(|index| messages.get_mut(index))) {
            // A message that is refused must not be in the way of all others.
            *slot = before;
        }
        result
    }
}

/// The whole table: the pins as they are wired from the beginning, and the messages.
fn entries(messages: &[Option<Message>]) -> Vec<kvm_irq_routing_entry> {
    let pin = |gsi, chip, pin| {
        let mut entry = kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_IRQCHIP,
            ..Default::default()
        };
        entry.u.irqchip.irqchip = chip;
        entry.u.irqchip.pin = pin;
        entry
    };
    let pics = (0..2 * PIC_PINS).map(|gsi| match gsi.checked_sub(PIC_PINS) {
        None => pin(gsi, KVM_IRQCHIP_PIC_MASTER, gsi),
        Some(slave) => pin(gsi, KVM_IRQCHIP_PIC_SLAVE, slave),
    });
    let ioapic = (0..IOAPIC_PINS).map(|gsi| pin(gsi, KVM_IRQCHIP_IOAPIC, gsi));
    let messages = (IOAPIC_PINS..).zip(messages).filter_map(|(gsi, message)| {
        let message = (*message)?;
        let mut entry = kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_MSI,
            ..Default::default()
        };
        entry.u.msi.address_lo = message.address as u32;
        entry.u.msi.address_hi = (message.address >> 32) as u32;
        entry.u.msi.data = message.data;
        Some(entry)
    });
    pics.chain(ioapic).chain(messages).collect()
}

/// The number of the capability.
pub(crate) const CAPABILITY: u8 = 0x11;
/// The size of a table's entry.
const ENTRY_SIZE: u64 = 16;
/// Vector control: the entry is masked.
const MASKED: u32 = 1 << 0;
/// The upper byte of message control: messages instead of pins; all are masked.
const CONTROL_ENABLE: u8 = 1 << 7;
const CONTROL_MASK: u8 = 1 << 6;
/// The bits of that byte that can be written.
pub(crate) const CONTROL_WRITABLE: u8 = CONTROL_ENABLE | CONTROL_MASK;

/// One entry of the table, as four double words.
#[derive(Debug)]
struct Entry {
    words: [u32; 4],
    pending: bool,
    number: u32,
    event: EventFd,
}

impl Entry {
    fn message(&self) -> Message {
        let [low, high, data, _] = self.words;
        Message {
            address: u64::from(high) << 32 | u64::from(low),
            data,
        }
    }

    fn masked(&self) -> bool {
        self.words[3] & MASKED != 0
    }

    fn send(&mut self) {
        self.pending = false;
        // A counter that is full has been written to, which is all that matters.
        let _ = self.event.write(1);
    }
}

/// The state of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EntryState {
    words: [u32; 4],
    pending: bool,
}

/// The table of a function.
pub(crate) struct Msix {
    entries: Vec<Entry>,
    control: u8,
    routes: Arc<dyn Routes>,
}

impl Msix {
    /// A table of `count` vectors, all masked, as after reset.
    pub(crate) fn new(count: usize, routes: Arc<dyn Routes>) -> Result<Self> {
        let entry = |_| {
            let (number, event) = routes.take()?;
            Ok(Entry {
                words: [0, 0, 0, MASKED],
                pending: false,
                number,
                event,
            })
        };
        Ok(Self {
            entries: (0..count).map(entry).collect::<Result<_>>()?,
            control: 0,
            routes,
        })
    }

    /// The capability: `count` vectors, and where table and pending bits lie in the first window.
    pub(crate) fn capability(count: usize, table: u32, pending: u32) -> Vec<u8> {
        let size = (count as u16).saturating_sub(1).to_le_bytes();
        [&size[..], &table.to_le_bytes(), &pending.to_le_bytes()].concat()
    }

    /// Whether there is such a vector.
    pub(crate) fn has(&self, vector: u16) -> bool {
        usize::from(vector) < self.entries.len()
    }

    /// An interrupt: at once, or when it is not masked any more. Without such a vector, none.
    pub(crate) fn trigger(&mut self, vector: u16) {
        let open = self.open();
        if let Some(entry) = self.entries.get_mut(usize::from(vector)) {
            match open && !entry.masked() {
                true => entry.send(),
                false => entry.pending = true,
            }
        }
    }

    /// Whether messages are in use, and not masked together.
    fn open(&self) -> bool {
        self.control & CONTROL_WRITABLE == CONTROL_ENABLE
    }

    /// The table as it is.
    pub(crate) fn state(&self) -> Vec<EntryState> {
        let entries = self.entries.iter();
        entries
            .map(|entry| EntryState {
                words: entry.words,
                pending: entry.pending,
            })
            .collect()
    }

    /// Puts the table back; its control byte comes behind it, and then messages that wait go.
    pub(crate) fn restore(&mut self, state: &[EntryState]) {
        self.control = 0;
        for (entry, state) in self.entries.iter_mut().zip(state) {
            entry.words = state.words;
            entry.pending = state.pending;
        }
    }

    /// The guest has written the upper byte of message control.
    pub(crate) fn set_control(&mut self, control: u8) {
        self.control = control;
        (0..self.entries.len()).for_each(|index| self.settle(index));
    }

    /// What an entry says counts from now on, if it is not masked.
    fn settle(&mut self, index: usize) {
        let open = self.open();
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        if !open || entry.masked() {
            return;
        }
        // What the module refuses is no message that could arrive anywhere.
        let _ = self.routes.set(entry.number, entry.message());
        if entry.pending {
            entry.send();
        }
    }

    /// Reads from the table: aligned double words, or two of them.
    pub(crate) fn read_table(&self, offset: u64, data: &mut [u8]) {
        for (nth, word) in (0..).zip(data.chunks_exact_mut(4)) {
            let offset = offset.wrapping_add(4 * nth);
            let (index, field) = place(offset);
            if let Some(entry) = self.entries.get(index).filter(|_| offset % 4 == 0) {
                word.copy_from_slice(&entry.words[field].to_le_bytes());
            }
        }
    }

    /// Writes to the table.
    pub(crate) fn write_table(&mut self, offset: u64, data: &[u8]) {
        for (nth, word) in (0..).zip(data.chunks_exact(4)) {
            let offset = offset.wrapping_add(4 * nth);
            let (index, field) = place(offset);
            if let Some(entry) = self.entries.get_mut(index).filter(|_| offset % 4 == 0) {
                entry.words[field] = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                self.settle(index);
            }
        }
    }

    /// Reads the pending bits.
    pub(crate) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (byte, offset) in data.iter_mut().zip(offset..=u64::MAX) {
            let first = usize::try_from(offset).map_or(usize::MAX, |at| at.saturating_mul(8));
            *byte = (0..8).fold(0, |bits, bit| {
                let entry = self.entries.get(first.saturating_add(bit));
                bits | u8::from(entry.is_some_and(|entry| entry.pending)) << bit
            });
        }
    }
}

/// Which entry, and which of its double words.
fn place(offset: u64) -> (usize, usize) {
    let index = usize::try_from(offset / ENTRY_SIZE).unwrap_or(usize::MAX);
    (index, (offset % ENTRY_SIZE / 4) as usize)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Routes that only note what they are told.
    #[derive(Default)]
    pub(crate) struct Noted {
        pub(crate) messages: Mutex<Vec<(u32, Message)>>,
        pub(crate) events: Mutex<Vec<EventFd>>,
    }

    impl Routes for Noted {
        fn take(&self) -> Result<(u32, EventFd)> {
            let event = eventfd::new().unwrap();
            let mut events = lock(&self.events);
            events.push(event.try_clone().unwrap());
            Ok((events.len() as u32 - 1, event))
        }

        fn set(&self, number: u32, message: Message) -> std::io::Result<()> {
            lock(&self.messages).push((number, message));
            Ok(())
        }
    }

    fn table() -> (Msix, Arc<Noted>) {
        let routes = Arc::new(Noted::default());
        (Msix::new(2, routes.clone()).unwrap(), routes)
    }

    fn arrived(routes: &Noted, index: usize) -> bool {
        lock(&routes.events)[index].read().is_ok()
    }

    #[test]
    fn a_masked_vector_waits() {
        let (mut msix, routes) = table();
        msix.set_control(CONTROL_ENABLE);
        msix.write_table(16, &0xfee0_1000u64.to_le_bytes());
        msix.write_table(24, &0x41u32.to_le_bytes());
        msix.trigger(1);
        let mut bits = [0; 8];
        msix.read_pending(0, &mut bits);
        assert_eq!((arrived(&routes, 1), bits[0]), (false, 2));
        msix.write_table(28, &0u32.to_le_bytes());
        assert!(arrived(&routes, 1));
        let message = Message {
            address: 0xfee0_1000,
            data: 0x41,
        };
        assert_eq!(*lock(&routes.messages), [(1, message)]);
        msix.trigger(1);
        assert!(arrived(&routes, 1) && !arrived(&routes, 0));
        msix.set_control(CONTROL_ENABLE | CONTROL_MASK);
        msix.trigger(1);
        assert!(!arrived(&routes, 1));
        msix.set_control(CONTROL_ENABLE);
        assert!(arrived(&routes, 1));
    }

    #[test]
    fn vectors_that_are_not_there_do_nothing() {
        let (mut msix, routes) = table();
        msix.set_control(CONTROL_ENABLE);
        for vector in [2, u16::MAX] {
            assert!(!msix.has(vector));
            msix.trigger(vector);
        }
        msix.write_table(32, &[0; 8]);
        msix.write_table(u64::MAX - 3, &[0; 8]);
        msix.write_table(13, &[0; 4]);
        msix.write_table(0, &[0; 3]);
        assert!(lock(&routes.messages).is_empty());
        let mut word = [0xff; 8];
        msix.read_table(32, &mut word);
        msix.read_pending(u64::MAX, &mut [0; 1]);
        assert_eq!(word, [0xff; 8]);
        msix.read_table(8, &mut word);
        assert_eq!(word, [0, 0, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn pins_keep_their_routes() {
        let message = Some(Message {
            address: 1 << 32 | 0xfee0_0000,
            data: 7,
        });
        let entries = entries(&[None, message]);
        assert_eq!(entries.len(), 16 + 24 + 1);
        let last = entries.last().unwrap();
        assert_eq!((last.gsi, last.type_), (25, KVM_IRQ_ROUTING_MSI));
        // SAFETY: The entry is a message, and has been filled as one.
        let msi = unsafe { last.u.msi };
        assert_eq!((msi.address_hi, msi.data), (1, 7));
    }
}
