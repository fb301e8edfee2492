// SPDX-License-Identifier: GPL-2.0-only

//! The first serial port: a 16550A.

use std::collections::VecDeque;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use vm_superio::serial::{SerialEvents, SerialState};
use vm_superio::Trigger;
use vmm_sys_util::eventfd::EventFd;

use super::bus::ByteDevice;
use crate::error::{Error, Result};
use crate::eventfd;

/// How many bytes the port holds.
const FIFO_SIZE: usize = 64;

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

/// The state of the port: the registers by their offsets, what is in the FIFO, and what waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    fifo: Vec<u8>,
    waiting: Vec<u8>,
    /// How much input had come. A file has it not: there, none has come since.
    #[serde(skip)]
    taken: u64,
}

/// The port, with input that waits for room in its FIFO.
pub(crate) struct Serial {
    port: vm_superio::Serial<InterruptLine, Drained, Output>,
    waiting: VecDeque<u8>,
    /// How much input has come in all.
    taken: u64,
}

impl Serial {
    /// A port that writes to `output`.
    pub(crate) fn new(output: Output) -> Result<Self> {
        let (line, drained) = (InterruptLine(eventfd::new()?), Drained(eventfd::new()?));
        let port = vm_superio::Serial::with_events(line, drained, output);
        Ok(Self {
            port,
            waiting: VecDeque::new(),
            taken: 0,
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

    /// The state of the port.
    pub(crate) fn state(&self) -> State {
        let state = self.port.state();
        State {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            fifo: state.in_buffer,
            waiting: self.waiting.iter().copied().collect(),
            taken: self.taken,
        }
    }

    /// Puts a state in the place of its own. Behind what waits in it comes input that has come
    /// since and waits still.
    pub(crate) fn restore(&mut self, state: &State) -> Result<()> {
        let failed = |what| move |error| Error::system(what, error);
        let line = InterruptLine(self.interrupt().try_clone().map_err(failed("dup"))?);
        let drained = Drained(self.drained()?);
        let mut port = SerialState {
            baud_divisor_low: state.divisor[0],
            baud_divisor_high: state.divisor[1],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.fifo.clone(),
        };
        port.in_buffer.truncate(FIFO_SIZE);
        // The output stays: it is the new port's when there is one.
        let output = std::mem::replace(self.port.writer_mut(), Box::new(io::sink()));
        self.port = vm_superio::Serial::from_state(&port, line, drained, output)
            .map_err(|error| Error::system("eventfd", io::Error::other(format!("{error:?}"))))?;
        let since = self.taken.saturating_sub(state.taken) as usize;
        let before = self.waiting.len().saturating_sub(since);
        let since = self.waiting.split_off(before);
        self.waiting = state.waiting.iter().copied().chain(since).collect();
        self.refill();
        // There may be room for input again, and no read of the guest's says so.
        self.port.events().in_buffer_empty();
        Ok(())
    }

    /// How many bytes wait for the guest to read.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Takes input for the guest.
    pub(crate) fn input(&mut self, bytes: &[u8]) {
        self.waiting.extend(bytes);
        self.taken += bytes.len() as u64;
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
    fn no_input_comes_twice_when_the_port_goes_back() {
        let mut serial = Serial::new(Box::new(io::sink())).unwrap();
        serial.input(&[1; 100]);
        let state = serial.state();
        for _ in 0..3 {
            serial.restore(&state).unwrap();
            assert_eq!(serial.waiting(), 100 - 64);
        }
        serial.input(&[2; 10]);
        for _ in 0..3 {
            serial.restore(&state).unwrap();
            assert_eq!(serial.waiting(), 100 - 64 + 10);
        }
        // All is read but the end of what has come since.
        for _ in 0..100 - 64 + 5 {
            serial.waiting.pop_front();
        }
        serial.drained().unwrap().read().unwrap();
        serial.restore(&state).unwrap();
        assert_eq!(serial.waiting(), 100 - 64 + 5);
        assert_eq!(serial.waiting.back(), Some(&2));
        // It asks for more input.
        serial.drained().unwrap().read().unwrap();
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
