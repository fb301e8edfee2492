// SPDX-License-Identifier: GPL-2.0-only

//! Groups 6 and 7 as far as they have an operand in memory: SLDT, STR, LLDT, LTR, SGDT, SIDT, LGDT,
//! LIDT, LMSW, SMSW (APM vol. 3, chapter 4).

use super::address::is_canonical;
use super::segment::{fault, is_null};
use super::Flow;
use super::Run;
use crate::cpu::Access;
use crate::cpu::Cpu;
use crate::cpu::Stop;
use crate::descriptor::BUSY;
use crate::regs::vector;
use crate::regs::Cr4;
use crate::regs::Exception;
use crate::regs::SegAttr;
use crate::regs::SegReg;
use crate::regs::Segment;

type Result<T = Flow> = core::result::Result<T, Stop>;

/// The types of an LDT and of an available TSS, 32 or 64 bits, and 16 bits (APM vol. 2, table 4-5).
const LDT: SegAttr = SegAttr::WRITABLE;
const TSS: SegAttr = SegAttr::CODE.union(SegAttr::ACCESSED);
const TSS_16: SegAttr = SegAttr::ACCESSED;

impl<C: Cpu> Run<'_, C> {
    /// What user mode may not see with CR4.UMIP.
    pub(super) fn check_umip(&self) -> Result<()> {
        if self.cpu.cr4().contains(Cr4::UMIP) && self.privilege() > 0 {
            return Err(Exception::GP0.into());
        }
        Ok(())
    }

    fn check_privileged(&self) -> Result<()> {
        if self.privilege() > 0 {
            return Err(Exception::GP0.into());
        }
        Ok(())
    }

    /// SLDT, STR, LLDT, LTR, VERR and VERW.
    pub(super) fn group6(&mut self) -> Result {
        if self.has_no_descriptors() {
            return Err(Exception::UD.into());
        }
        let register = if self.insn.group() & 1 == 0 {
            SegReg::Ldtr
        } else {
            SegReg::Tr
        };
        match self.insn.group() {
            0 | 1 => {
                self.check_umip()?;
                let selector = self.cpu.segment(register).selector;
                self.store_system_word(u64::from(selector))
            }
            2 | 3 => {
                self.check_privileged()?;
                let selector = self.load_rm(2)? as u16;
                self.load_system_segment(register, selector)
            }
            4 | 5 => self.verify(),
            _ => Err(Stop::Unhandled),
        }
    }

    fn load_system_segment(&mut self, register: SegReg, selector: u16) -> Result {
        let task = register == SegReg::Tr;
        if is_null(selector) {
            if task {
                return Err(Exception::GP0.into());
            }
            let ldt = Segment {
                selector,
                ..Segment::default()
            };
            self.cpu.set_segment(register, ldt);
            return Ok(Flow::Next);
        }
        let bad = fault(vector::GP, selector);
        if selector & 4 != 0 {
            return Err(bad);
        }
        let mut descriptor = self.descriptor(selector)?;
        let kind = descriptor.kind();
        let long = self.is_long();
        let legal = match task {
            true => kind == TSS || (kind == TSS_16 && !long),
            false => kind == LDT,
        };
        if !legal || !is_canonical(self.cpu, descriptor.segment.base) {
            return Err(bad);
        }
        if !descriptor.has(SegAttr::P) {
            return Err(fault(vector::NP, selector));
        }
        if task {
            self.mark(&mut descriptor, BUSY)?;
        }
        self.cpu.set_segment(register, descriptor.segment);
        Ok(Flow::Next)
    }

    /// SGDT, SIDT, LGDT, LIDT, SMSW, LMSW; INVLPG is for its own handler.
    pub(super) fn group7(&mut self) -> Result {
        let memory = self.insn.mem.is_some();
        match self.insn.group() {
            0 | 1 if memory => self.store_table(),
            2 | 3 if memory => self.load_table(),
            4 => self.store_machine_status_word(),
            6 => {
                self.check_privileged()?;
                let value = self.load_rm(2)?;
                self.cpu.load_machine_status_word(value as u16)?;
                Ok(Flow::Next)
            }
            _ => Err(Stop::Unhandled),
        }
    }

    /// The base has eight bytes in 64-bit mode, whatever the operand size, and else four.
    fn table_size(&self) -> u8 {
        if self.insn.is_64_bit() {
            10
        } else {
            6
        }
    }

    fn store_table(&mut self) -> Result {
        self.check_umip()?;
        let table = match self.insn.group() {
            0 => self.cpu.gdtr(),
            _ => self.cpu.idtr(),
        };
        let size = self.table_size();
        let linear = self.memory(size, Access::Write)?;
        let mut bytes = [0; 10];
        let (limit, base) = bytes.split_at_mut(2);
        limit.copy_from_slice(&(table.limit as u16).to_le_bytes());
        base.copy_from_slice(&table.base.to_le_bytes());
        let part = bytes.get(..usize::from(size)).ok_or(Stop::Unhandled)?;
        self.cpu.write(linear, part)?;
        Ok(Flow::Next)
    }

    fn load_table(&mut self) -> Result {
        self.check_privileged()?;
        let size = self.table_size();
        let linear = self.memory(size, Access::Read)?;
        let mut bytes = [0; 10];
        let part = bytes.get_mut(..usize::from(size)).ok_or(Stop::Unhandled)?;
        self.cpu.read(linear, part, Access::Read)?;
        let [l0, l1, base @ ..] = bytes;
        let mut base = u64::from_le_bytes(base);
        if self.insn.operand_size == 2 && !self.insn.is_64_bit() {
            base &= 0xff_ffff;
        }
        if !is_canonical(self.cpu, base) {
            return Err(Exception::GP0.into());
        }
        let table = Segment {
            limit: u32::from(u16::from_le_bytes([l0, l1])),
            base,
            ..Segment::default()
        };
        match self.insn.group() {
            2 => self.cpu.set_gdtr(table),
            _ => self.cpu.set_idtr(table),
        }
        Ok(Flow::Next)
    }
}
