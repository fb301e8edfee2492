// SPDX-License-Identifier: GPL-2.0-only

//! What a guest does, as lines of text; and the devices that it finds, which are as simple as
//! possible: ports and MMIO behave like memory.

use std::fmt::Write;

/// Ports by which guests report; the macros in `guests/report.inc` write them.
mod port {
    /// A 32-bit value.
    pub(super) const REPORT: u16 = 0xe0;
    /// The number of an interrupt that the guest took.
    pub(super) const INTERRUPT: u16 = 0xe3;
    /// An exception: vector, error code, CR2, and where its RIP is relative to what was tried.
    pub(super) const VECTOR: u16 = 0xe4;
    pub(super) const ERROR: u16 = 0xe5;
    pub(super) const CR2: u16 = 0xe6;
    pub(super) const OFFSET: u16 = 0xe7;
    /// Text.
    pub(super) const TEXT: u16 = 0xe9;
    /// The guest is done.
    pub(super) const DONE: u16 = 0xf0;
    /// The guest asks this program to do something to it.
    pub(super) const ASK: u16 = 0xf4;
}

/// What this program has to do after it wrote down an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Run on.
    Run,
    /// The guest is done.
    Done,
    /// The guest asks for a [`crate::machine::ask`] action.
    Ask(u32),
}

/// The lines and the devices of one virtual CPU.
#[derive(Clone)]
pub struct Trace {
    /// What was written down.
    pub lines: Vec<String>,
    exception: String,
    text: String,
    ports: Vec<u8>,
    mmio: Vec<u8>,
}

impl Default for Trace {
    fn default() -> Self {
        let pattern: Vec<u8> = (0..=0xffffu32)
            .map(|address| address.to_le_bytes()[0])
            .collect();
        Self {
            lines: Vec::new(),
            exception: String::new(),
            text: String::new(),
            ports: pattern.clone(),
            mmio: pattern,
        }
    }
}

fn value(data: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes[..data.len()].copy_from_slice(data);
    u64::from_le_bytes(bytes)
}

impl Trace {
    /// Writes a line down.
    pub fn line(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }

    /// One OUT of 1, 2 or 4 bytes.
    pub fn out(&mut self, port: u16, data: &[u8]) -> Next {
        let number = value(data);
        match port {
            port::REPORT => self.line(format!("report {number:#x}")),
            port::INTERRUPT => self.line(format!("interrupt {number:#x}")),
            port::VECTOR => self.exception = format!("exception {number}"),
            port::ERROR => self.about_exception("error", number),
            port::CR2 => self.about_exception("cr2", number),
            port::OFFSET => {
                let line = std::mem::take(&mut self.exception);
                self.line(format!("{line} at {:+}", number as u32 as i32));
            }
            port::TEXT if number == u64::from(b'\n') => {
                let text = std::mem::take(&mut self.text);
                self.line(format!("-- {text}"));
            }
            port::TEXT => self.text.push(char::from(data[0])),
            port::DONE => {
                self.line("done");
                return Next::Done;
            }
            port::ASK => return Next::Ask(number as u32),
            _ => {
                self.line(format!("out {port:#x} {} {number:#x}", data.len()));
                let start = usize::from(port);
                if let Some(bytes) = self.ports.get_mut(start..start + data.len()) {
                    bytes.copy_from_slice(data);
                }
            }
        }
        Next::Run
    }

    fn about_exception(&mut self, what: &str, number: u64) {
        // Writing to a string cannot fail.
        let _ = write!(self.exception, " {what} {number:#x}");
    }

    /// One IN of 1, 2 or 4 bytes. Each makes the next one differ.
    pub fn input(&mut self, port: u16, data: &mut [u8]) {
        let start = usize::from(port);
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.ports.get(start + index).copied().unwrap_or(0xff);
        }
        self.line(format!("in {port:#x} {} -> {:#x}", data.len(), value(data)));
        self.ports[start] = self.ports[start].wrapping_add(1);
    }

    /// One read of memory that is not there.
    pub fn mmio_read(&mut self, address: u64, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.mmio[(address as usize + index) & 0xffff];
        }
        self.line(format!(
            "mmio-read {address:#x} {} -> {:#x}",
            data.len(),
            value(data)
        ));
    }

    /// One write to memory that is not there.
    pub fn mmio_write(&mut self, address: u64, data: &[u8]) {
        self.line(format!(
            "mmio-write {address:#x} {} {:#x}",
            data.len(),
            value(data)
        ));
        for (index, byte) in data.iter().enumerate() {
            self.mmio[(address as usize + index) & 0xffff] = *byte;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_memory_remember() {
        let mut trace = Trace::default();
        assert_eq!(trace.out(0x80, &[0x41]), Next::Run);
        let mut byte = [0];
        trace.input(0x80, &mut byte);
        trace.input(0x80, &mut byte);
        trace.mmio_write(0xd000_0ffe, &[1, 2]);
        let mut word = [0; 4];
        trace.mmio_read(0xd000_0ffe, &mut word);
        assert_eq!(
            trace.lines,
            [
                "out 0x80 1 0x41",
                "in 0x80 1 -> 0x41",
                "in 0x80 1 -> 0x42",
                "mmio-write 0xd0000ffe 2 0x201",
                "mmio-read 0xd0000ffe 4 -> 0x1000201"
            ]
        );
    }

    #[test]
    fn an_exception_is_one_line() {
        let mut trace = Trace::default();
        for (port, data) in [(0xe4, 14u32), (0xe5, 2), (0xe6, 0x1000), (0xe7, u32::MAX)] {
            assert_eq!(trace.out(port, &data.to_le_bytes()), Next::Run);
        }
        assert_eq!(trace.lines, ["exception 14 error 0x2 cr2 0x1000 at -1"]);
        assert_eq!(trace.out(0xf0, &[0]), Next::Done);
    }
}
