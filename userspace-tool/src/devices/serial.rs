// SPDX-License-Identifier: GPL-2.0-only

//! The first serial port: a 16550A.

use std::collections::VecDeque;
use std::io::{self, Write};

use vm_superio::serial::SerialEvents;
use vm_superio::Trigger;
use vmm_sys_util::eventfd::EventFd;

use super::bus::ByteDevice;
use crate::error::{Error, Result};
use crate::eventfd;

/// An interrupt line: an eventfd that the module watches.
struct InterruptLine(EventFd);

impl Trigger for InterruptLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Announces that the guest has read all input.
struct Drained(EventFd);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        // A full counter is still readable, which is all that matters.
        let _ = self.0.write(1);
    }
}

/// Where output goes.
pub(crate) type Output = Box<dyn Write + Send>;

/// The port, with input that waits for room in its FIFO.
pub(crate) struct Serial {
    port: vm_superio::Serial<InterruptLine, Drained, Output>,
    waiting: VecDeque<u8>,
}

impl Serial {
    /// A port that writes to `output`.
    pub(crate) fn new(output: Output) -> Result<Self> {
        let (line, drained) = (InterruptLine(eventfd::new()?), Drained(eventfd::new()?));
        let port = vm_superio::Serial::with_events(line, drained, output);
        Ok(Self {
            port,
            waiting: VecDeque::new(),
        })
    }

    /// The interrupt line.
    pub(crate) fn interrupt(&self) -> &EventFd {
        &self.port.interrupt_evt().0
    }

    /// A copy of the event that says that the guest has read all that was in the FIFO.
    pub(crate) fn drained(&self) -> Result<EventFd> {
        self.port
            .events()
            .0
            .try_clone()
            .map_err(|error| Error::system("dup", error))
    }

    /// How many bytes wait for the guest to read.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Takes input for the guest.
    pub(crate) fn input(&mut self, bytes: &[u8]) {
        self.waiting.extend(bytes);
        self.refill();
    }

    /// Moves waiting input to the FIFO.
    pub(crate) fn refill(&mut self) {
        let count = self.port.fifo_capacity().min(self.waiting.len());
        if count > 0 {
            let bytes: Vec<u8> = self.waiting.drain(..count).collect();
            // There is room, so only the interrupt can fail, and its counter cannot overflow in
            // practice. In loopback mode the port takes nothing, as a real one.
            let _ = self.port.enqueue_raw_bytes(&bytes);
        }
    }
}

impl ByteDevice for Serial {
    fn read(&mut self, offset: u16) -> u8 {
        u8::try_from(offset).map_or(0xff, |offset| self.port.read(offset))
    }

    fn write(&mut self, offset: u16, value: u8) {
        if let Ok(offset) = u8::try_from(offset) {
            // Output that the host does not take is lost, as on a cable that is not plugged in.
            let _ = self.port.write(offset, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_waits_for_room() {
        let mut serial = Serial::new(Box::new(io::sink())).unwrap();
        let text: Vec<u8> = (0..200).collect();
        serial.input(&text);
        assert_eq!(serial.waiting(), 200 - 64);
        let mut got = Vec::new();
        while ByteDevice::read(&mut serial, 5) & 1 != 0 {
            got.push(ByteDevice::read(&mut serial, 0));
            if serial.drained().unwrap().read().is_ok() {
                serial.refill();
            }
        }
        assert_eq!(got, text);
    }

    #[test]
    fn ports_beyond_the_last_do_nothing() {
        let mut serial = Serial::new(Box::new(io::sink())).unwrap();
        ByteDevice::write(&mut serial, 8, 1);
        ByteDevice::write(&mut serial, 0xffff, 1);
        ByteDevice::read(&mut serial, 8);
        assert_eq!(ByteDevice::read(&mut serial, 0xffff), 0xff);
    }
}
