// SPDX-License-Identifier: GPL-2.0-only

//! The string instructions, INS and OUTS among them, and XLAT (APM vol. 3, MOVSx and so on).

use super::address::mask;
use super::address::segment_address;
use super::address::PAGE_SIZE;
use super::alu;
use super::port::io_allowed;
use super::Flow;
use super::Run;
use crate::cpu::Access;
use crate::cpu::Cpu;
use crate::cpu::Stop;
use crate::decode::Prefixes;
use crate::regs::gpr;
use crate::regs::Rflags;
use crate::regs::SegReg;

type Result<T = Flow> = core::result::Result<T, Stop>;

/// Which of the two pointers one iteration moves on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pointers {
    Source,
    Destination,
    Both,
}

impl<C: Cpu> Run<'_, C> {
    /// One iteration of a string instruction, or none if the count is zero.
    pub(super) fn string(&mut self) -> Result {
        let repeats = self.insn.repeats();
        if repeats && self.count() == 0 {
            return Ok(Flow::Next);
        }
        let pointers = match self.insn.opcode {
            0x6c | 0x6d => self.input_string()?,
            0x6e | 0x6f => self.output_string()?,
            0xa4 | 0xa5 => self.move_string()?,
            0xa6 | 0xa7 => self.compare_string()?,
            0xaa | 0xab => self.store_string()?,
            0xac | 0xad => self.load_string()?,
            _ => self.scan_string()?,
        };
        self.advance(pointers);
        if repeats && self.one_less() {
            Ok(Flow::Stay)
        } else {
            Ok(Flow::Next)
        }
    }

    fn count(&self) -> u64 {
        self.register(gpr::RCX, self.insn.address_size)
    }

    /// Counts an iteration, and says whether another one follows.
    fn one_less(&mut self) -> bool {
        let count = self.count().wrapping_sub(1);
        self.set_register(gpr::RCX, self.insn.address_size, count);
        let compares = matches!(self.insn.opcode, 0xa6 | 0xa7 | 0xae | 0xaf);
        let equal = self.flags().contains(Rflags::ZF);
        let found = compares && equal != self.insn.has(Prefixes::REP);
        count != 0 && !found
    }

    /// Moves RSI and RDI on, or back if DF is set.
    fn advance(&mut self, pointers: Pointers) {
        let width = u64::from(self.string_width());
        let step = if self.flags().contains(Rflags::DF) {
            width.wrapping_neg()
        } else {
            width
        };
        let size = self.insn.address_size;
        if pointers != Pointers::Destination {
            let value = self.cpu.gpr(gpr::RSI).wrapping_add(step);
            self.set_register(gpr::RSI, size, value);
        }
        if pointers != Pointers::Source {
            let value = self.cpu.gpr(gpr::RDI).wrapping_add(step);
            self.set_register(gpr::RDI, size, value);
        }
    }

    /// Ports have at most four bytes.
    fn string_width(&self) -> u8 {
        if self.insn.is_string_io() {
            self.width().min(4)
        } else {
            self.width()
        }
    }

    /// DS:rSI, or the segment of the override.
    fn source(&self) -> Result<u64> {
        let segment = self.insn.segment_override.unwrap_or(SegReg::Ds);
        self.string_address(segment, gpr::RSI, Access::Read)
    }

    /// ES:rDI, always.
    fn destination(&self, access: Access) -> Result<u64> {
        self.string_address(SegReg::Es, gpr::RDI, access)
    }

    fn string_address(&self, segment: SegReg, pointer: u8, access: Access) -> Result<u64> {
        let offset = self.register(pointer, self.insn.address_size);
        let width = self.string_width();
        segment_address(self.cpu, self.insn.mode, segment, offset, width, access)
    }

    /// XLAT: the byte at rBX plus AL, in DS or the segment of the override.
    pub(super) fn translate(&mut self) -> Result {
        let index = self.register(gpr::RAX, 1);
        let offset = self.cpu.gpr(gpr::RBX).wrapping_add(index) & mask(self.insn.address_size);
        let segment = self.insn.segment_override.unwrap_or(SegReg::Ds);
        let linear = segment_address(self.cpu, self.insn.mode, segment, offset, 1, Access::Read)?;
        let value = self.read(linear, 1, Access::Read)?;
        self.set_register(gpr::RAX, 1, value);
        Ok(Flow::Next)
    }

    fn move_string(&mut self) -> Result<Pointers> {
        let width = self.width();
        let source = self.source()?;
        let destination = self.destination(Access::Write)?;
        let value = self.read(source, width, Access::Read)?;
        self.write(destination, width, value)?;
        Ok(Pointers::Both)
    }

    fn compare_string(&mut self) -> Result<Pointers> {
        let width = self.width();
        let source = self.source()?;
        let destination = self.destination(Access::Read)?;
        let a = self.read(source, width, Access::Read)?;
        let b = self.read(destination, width, Access::Read)?;
        let (_, flags) = alu::subtract(a, b, 0, width, self.flags());
        self.cpu.set_rflags(flags);
        Ok(Pointers::Both)
    }

    fn store_string(&mut self) -> Result<Pointers> {
        let width = self.width();
        let destination = self.destination(Access::Write)?;
        self.write(destination, width, self.register(gpr::RAX, width))?;
        Ok(Pointers::Destination)
    }

    fn load_string(&mut self) -> Result<Pointers> {
        let width = self.width();
        let source = self.source()?;
        let value = self.read(source, width, Access::Read)?;
        self.set_register(gpr::RAX, width, value);
        Ok(Pointers::Source)
    }

    fn scan_string(&mut self) -> Result<Pointers> {
        let width = self.width();
        let destination = self.destination(Access::Read)?;
        let b = self.read(destination, width, Access::Read)?;
        let a = self.register(gpr::RAX, width);
        let (_, flags) = alu::subtract(a, b, 0, width, self.flags());
        self.cpu.set_rflags(flags);
        Ok(Pointers::Destination)
    }

    fn input_string(&mut self) -> Result<Pointers> {
        let width = self.string_width();
        let port = self.port();
        io_allowed(self.cpu, port, width)?;
        let destination = self.destination(Access::Write)?;
        let count = self.elements(destination);
        let stored = self.cpu.ports_in(port, width, destination, count)?;
        if stored != 0 {
            // All but the last, which goes the way of all iterations.
            self.skip(u64::from(stored).wrapping_sub(1));
            return Ok(Pointers::Destination);
        }
        // A page fault must come before the device has given its data away.
        self.cpu.probe_write(destination, usize::from(width))?;
        let value = self.cpu.port_in(port, width, count)?;
        self.write(destination, width, u64::from(value) & mask(width))?;
        Ok(Pointers::Destination)
    }

    /// So many iterations of REP INS have been made.
    fn skip(&mut self, number: u64) {
        let size = self.insn.address_size;
        let bytes = number.wrapping_mul(u64::from(self.string_width()));
        let pointer = self.register(gpr::RDI, size).wrapping_add(bytes);
        self.set_register(gpr::RDI, size, pointer);
        let count = self.count().wrapping_sub(number);
        self.set_register(gpr::RCX, size, count);
    }

    /// How many elements REP INS is certain to store from here on: to the end of the page at most.
    fn elements(&self, destination: u64) -> u16 {
        let stops = Rflags::DF.union(Rflags::TF);
        if !self.insn.repeats() || self.flags().intersects(stops) {
            return 1;
        }
        let (size, width) = (self.insn.address_size, self.string_width());
        let in_page = (PAGE_SIZE - destination % PAGE_SIZE)
            .checked_div(u64::from(width))
            .unwrap_or(1);
        let count = in_page.min(self.register(gpr::RCX, size)).max(1);
        let rest = count.wrapping_sub(1).wrapping_mul(u64::from(width));
        let last = self.register(gpr::RDI, size).wrapping_add(rest);
        let there = segment_address(
            self.cpu,
            self.insn.mode,
            SegReg::Es,
            last,
            width,
            Access::Write,
        );
        // The offset may go around, and the segment may end.
        if last <= mask(size) && there == Ok(destination.wrapping_add(rest)) {
            count as u16
        } else {
            1
        }
    }

    fn output_string(&mut self) -> Result<Pointers> {
        let width = self.string_width();
        let port = self.port();
        io_allowed(self.cpu, port, width)?;
        let source = self.source()?;
        let value = self.read(source, width, Access::Read)?;
        self.cpu.port_out(port, width, value as u32)?;
        Ok(Pointers::Source)
    }
}
