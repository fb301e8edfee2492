// SPDX-License-Identifier: GPL-2.0-only

//! Far JMP, CALL and RET, INT n and IRET (APM vol. 2, 4.7 and 8.7; vol. 3).
//!
//! Gates, task switches and the way into virtual-8086 mode are left out.

use super::address::is_canonical;
use super::address::mask;
use super::segment::{fault, is_null, rpl};
use super::Flow;
use super::Run;
use crate::cpu::Access;
use crate::cpu::Cpu;
use crate::cpu::Stop;
use crate::descriptor::Descriptor;
use crate::regs::gpr;
use crate::regs::vector;
use crate::regs::Exception;
use crate::regs::Rflags;
use crate::regs::SegAttr;
use crate::regs::SegReg;
use crate::regs::Segment;

type Result<T = Flow> = core::result::Result<T, Stop>;

/// Who loads CS.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Transfer {
    /// JMP and CALL: the privilege level stays.
    Call,
    /// RET and IRET: to the privilege level of the selector, which is not a lower number.
    Return,
}

impl<C: Cpu> Run<'_, C> {
    /// Checks what CS is to become, and the offset in it. Nothing is written yet.
    fn code_segment(&mut self, selector: u16, offset: u64, how: Transfer) -> Result<Descriptor> {
        if self.has_no_descriptors() {
            let segment = self.real_segment(SegReg::Cs, selector);
            if offset > u64::from(segment.limit) {
                return Err(Exception::GP0.into());
            }
            return Ok(Descriptor::without(segment));
        }
        if is_null(selector) {
            return Err(Exception::GP0.into());
        }
        let cpl = self.privilege();
        let mut descriptor = self.descriptor(selector)?;
        let (dpl, rpl) = (descriptor.dpl(), rpl(selector));
        if !descriptor.has(SegAttr::S) && how == Transfer::Call {
            // A gate or a TSS.
            return Err(Stop::Unhandled);
        }
        let level = if how == Transfer::Return { rpl } else { cpl };
        let legal = match (how, descriptor.is_conforming()) {
            (_, true) => dpl <= level,
            (Transfer::Call, false) => rpl <= cpl && dpl == cpl,
            (Transfer::Return, false) => dpl == rpl,
        };
        let long = self.is_long();
        let both_sizes = long && descriptor.has(SegAttr::L | SegAttr::DB);
        let is_code = descriptor.has(SegAttr::S | SegAttr::CODE);
        if !is_code || !legal || level < cpl || both_sizes {
            return Err(fault(vector::GP, selector));
        }
        if !descriptor.has(SegAttr::P) {
            return Err(fault(vector::NP, selector));
        }
        let wide = long && descriptor.has(SegAttr::L);
        let inside = match wide {
            true => is_canonical(self.cpu, offset),
            false => offset <= u64::from(descriptor.segment.limit),
        };
        if !inside {
            return Err(Exception::GP0.into());
        }
        descriptor.segment.selector = selector & !3 | u16::from(level);
        Ok(descriptor)
    }

    /// Far JMP.
    pub(super) fn jump_far(&mut self, offset: u64, selector: u16) -> Result {
        let mut cs = self.code_segment(selector, offset, Transfer::Call)?;
        self.mark(&mut cs, SegAttr::ACCESSED)?;
        self.cpu.set_segment(SegReg::Cs, cs.segment);
        Ok(Flow::Jump(offset))
    }

    /// Far CALL.
    pub(super) fn call_far(&mut self, offset: u64, selector: u16) -> Result {
        let size = self.insn.operand_size;
        let mut cs = self.code_segment(selector, offset, Transfer::Call)?;
        let old = self.cpu.segment(SegReg::Cs).selector;
        let next = self.insn.next_rip(self.cpu.rip());
        let values = [u64::from(old), next];
        self.probe_pushes(values.len(), size)?;
        self.mark(&mut cs, SegAttr::ACCESSED)?;
        self.push_probed(&values, size)?;
        self.cpu.set_segment(SegReg::Cs, cs.segment);
        Ok(Flow::Jump(offset))
    }

    /// Far RET; the immediate of `CA` is what it drops besides.
    pub(super) fn return_far(&mut self) -> Result {
        let size = self.insn.operand_size;
        let offset = self.stack_value(0, size)?;
        let selector = self.stack_value(1, size)? as u16;
        let mut cs = self.code_segment(selector, offset, Transfer::Return)?;
        let dropped = self.insn.immediate;
        let taken = u64::from(size).wrapping_mul(2).wrapping_add(dropped);
        if self.has_no_descriptors() || rpl(selector) == self.privilege() {
            self.mark(&mut cs, SegAttr::ACCESSED)?;
            self.cpu.set_segment(SegReg::Cs, cs.segment);
            self.drop_from_stack(taken);
            return Ok(Flow::Jump(offset));
        }
        let pointer = self.stack_value_at(taken, size)?;
        let stack = self.stack_value_at(taken.wrapping_add(u64::from(size)), size)? as u16;
        self.return_outward(cs, pointer.wrapping_add(dropped), stack)?;
        Ok(Flow::Jump(offset))
    }

    /// Goes to another stack, and to a privilege level with the same or a higher number.
    fn return_outward(&mut self, cs: Descriptor, pointer: u64, stack: u16) -> Result<()> {
        let mut cs = cs;
        let cpl = rpl(cs.segment.selector);
        let outward = cpl != self.privilege();
        let ss = self.data_segment(SegReg::Ss, stack, cpl)?;
        self.mark(&mut cs, SegAttr::ACCESSED)?;
        self.cpu.set_segment(SegReg::Cs, cs.segment);
        self.cpu.set_segment(SegReg::Ss, ss);
        self.cpu.set_cpl(cpl);
        let wide = cs.segment.attributes.contains(SegAttr::L);
        // The width of the stack, not that of the operands.
        let width = match ss.attributes.contains(SegAttr::DB) {
            _ if wide => 8,
            true => 4,
            false => 2,
        };
        self.set_register(gpr::RSP, width, pointer);
        if outward {
            self.drop_privileged_segments(cpl);
        }
        Ok(())
    }

    /// What the new privilege level may not use is gone (APM vol. 2, 4.8.4).
    fn drop_privileged_segments(&mut self, cpl: u8) {
        for register in [SegReg::Es, SegReg::Ds, SegReg::Fs, SegReg::Gs] {
            let segment = self.cpu.segment(register);
            let dpl = (segment.attributes.intersection(SegAttr::DPL).bits() >> 5) as u8;
            let conforming = segment
                .attributes
                .contains(SegAttr::CODE | SegAttr::EXPAND_DOWN);
            if dpl < cpl && !conforming {
                let base = segment.base;
                self.cpu.set_segment(
                    register,
                    Segment {
                        base,
                        ..Segment::default()
                    },
                );
            }
        }
    }

    /// IRET.
    pub(super) fn interrupt_return(&mut self) -> Result {
        let size = self.insn.operand_size;
        let virtual_8086 = self.flags().contains(Rflags::VM);
        if virtual_8086 && self.io_privilege() < 3 {
            return Err(self.without_virtual_flag());
        }
        let protected = !self.has_no_descriptors();
        if protected && self.flags().contains(Rflags::NT) {
            // To another task, or, in long mode, nowhere.
            return Err(match self.is_long() {
                true => Exception::GP0.into(),
                false => Stop::Unhandled,
            });
        }
        let offset = self.stack_value(0, size)?;
        let selector = self.stack_value(1, size)? as u16;
        let flags = Rflags::from_bits_retain(self.stack_value(2, size)?);
        if protected
            && size > 2
            && flags.contains(Rflags::VM)
            && self.privilege() == 0
            && !self.insn.is_64_bit()
        {
            return Err(Stop::Unhandled);
        }
        let mut cs = self.code_segment(selector, offset, Transfer::Return)?;
        let new = self.loaded_flags(flags, size, true);
        let same = !protected || rpl(selector) == self.privilege();
        if same && !self.insn.is_64_bit() {
            self.mark(&mut cs, SegAttr::ACCESSED)?;
            self.cpu.set_segment(SegReg::Cs, cs.segment);
            self.drop_from_stack(u64::from(size).wrapping_mul(3));
        } else {
            let pointer = self.stack_value(3, size)?;
            let stack = self.stack_value(4, size)? as u16;
            self.return_outward(cs, pointer, stack)?;
        }
        self.cpu.set_pushed_flags(new);
        Ok(Flow::Jump(offset & mask(size)))
    }

    /// INT n, INT3 and INTO in real mode (APM vol. 2, 8.6). Through the gates of protected mode the
    /// CPU itself must go.
    pub(super) fn software_interrupt(&mut self) -> Result {
        let vector = self.insn.software_interrupt().ok_or(Stop::Unhandled)?;
        if vector == vector::OF && self.insn.opcode == 0xce && !self.flags().contains(Rflags::OF) {
            return Ok(Flow::Next);
        }
        if !self.is_real() {
            return Err(Stop::Unhandled);
        }
        let table = self.cpu.idtr();
        let entry = u64::from(vector).wrapping_mul(4);
        if entry.wrapping_add(3) > u64::from(table.limit) {
            return Err(Exception::GP0.into());
        }
        let entry = table.base.wrapping_add(entry) & mask(4);
        let target = self.read(entry, 4, Access::SystemRead)?;
        let (offset, selector) = (target & mask(2), (target >> 16) as u16);
        let cs = self.code_segment(selector, offset, Transfer::Call)?;
        let old = u64::from(self.cpu.segment(SegReg::Cs).selector);
        let next = self.insn.next_rip(self.cpu.rip());
        let flags = self.cpu.pushed_flags();
        self.push_all(&[flags.bits(), old, next], 2)?;
        self.cpu.set_segment(SegReg::Cs, cs.segment);
        let cleared = Rflags::IF | Rflags::TF | Rflags::RF | Rflags::AC;
        self.cpu.set_pushed_flags(flags.difference(cleared));
        Ok(Flow::Jump(offset))
    }
}
