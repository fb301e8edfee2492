// SPDX-License-Identifier: GPL-2.0-only

//! Segment registers: descriptors (APM vol. 2, 4.7 and 4.8), and the instructions that load or
//! store selectors.

use super::Flow;
use super::Run;
use crate::cpu::Access;
use crate::cpu::Cpu;
use crate::cpu::Stop;
use crate::descriptor::{self, Descriptor};
use crate::regs::vector;
use crate::regs::Efer;
use crate::regs::Exception;
use crate::regs::SegAttr;
use crate::regs::SegReg;
use crate::regs::Segment;

type Result<T = Flow> = core::result::Result<T, Stop>;

/// A segment of virtual-8086 mode: present, DPL 3, writable data, accessed.
const VIRTUAL_8086: SegAttr = SegAttr::P
    .union(SegAttr::DPL)
    .union(SegAttr::S)
    .union(SegAttr::WRITABLE)
    .union(SegAttr::ACCESSED);

pub(super) fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

pub(super) fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// An exception whose error code is a selector.
pub(super) fn fault(number: u8, selector: u16) -> Stop {
    Exception::with_code(number, u32::from(selector & !3)).into()
}

impl<C: Cpu> Run<'_, C> {
    /// Long mode is active.
    pub(super) fn is_long(&self) -> bool {
        self.cpu.efer().contains(Efer::LMA)
    }

    /// The descriptor that the selector names.
    pub(super) fn descriptor(&mut self, selector: u16) -> Result<Descriptor> {
        let found = descriptor::read(self.cpu, selector)?;
        found.ok_or_else(|| fault(vector::GP, selector))
    }

    /// Marks a code or data segment as accessed, or a TSS as busy. The last thing that can fail.
    pub(super) fn mark(&mut self, descriptor: &mut Descriptor, bit: SegAttr) -> Result<()> {
        descriptor::mark(self.cpu, descriptor, bit)
    }

    /// A segment of real or virtual-8086 mode. Real mode leaves limit and attributes as they are.
    pub(super) fn real_segment(&self, register: SegReg, selector: u16) -> Segment {
        let base = u64::from(selector) << 4;
        if self.is_real() {
            return Segment {
                selector,
                base,
                ..self.cpu.segment(register)
            };
        }
        Segment {
            selector,
            attributes: VIRTUAL_8086,
            limit: 0xffff,
            base,
        }
    }

    /// What SS, DS, ES, FS or GS becomes with this selector, at this privilege level; its
    /// descriptor is marked as accessed.
    pub(super) fn data_segment(
        &mut self,
        register: SegReg,
        selector: u16,
        cpl: u8,
    ) -> Result<Segment> {
        if self.has_no_descriptors() {
            return Ok(self.real_segment(register, selector));
        }
        let stack = register == SegReg::Ss;
        if is_null(selector) {
            let allowed = self.insn.is_64_bit() && cpl < 3 && rpl(selector) == cpl;
            if stack && !allowed {
                return Err(Exception::GP0.into());
            }
            let dpl = if stack { u16::from(cpl) << 5 } else { 0 };
            return Ok(Segment {
                selector,
                attributes: SegAttr::from_bits_retain(dpl),
                ..Segment::default()
            });
        }
        let mut descriptor = self.descriptor(selector)?;
        let (dpl, rpl) = (descriptor.dpl(), rpl(selector));
        let code = descriptor.has(SegAttr::CODE);
        // Of code this bit says "readable".
        let readable = !code || descriptor.has(SegAttr::WRITABLE);
        let legal = if stack {
            !code && descriptor.has(SegAttr::WRITABLE) && dpl == cpl && rpl == cpl
        } else {
            readable && (descriptor.is_conforming() || dpl >= rpl.max(cpl))
        };
        if !legal || !descriptor.has(SegAttr::S) {
            return Err(fault(vector::GP, selector));
        }
        if !descriptor.has(SegAttr::P) {
            let number = if stack { vector::SS } else { vector::NP };
            return Err(fault(number, selector));
        }
        self.mark(&mut descriptor, SegAttr::ACCESSED)?;
        Ok(descriptor.segment)
    }

    fn load_data_segment(&mut self, register: SegReg, selector: u16) -> Result<()> {
        let cpl = self.privilege();
        let segment = self.data_segment(register, selector, cpl)?;
        self.cpu.set_segment(register, segment);
        Ok(())
    }

    /// MOV to a segment register.
    pub(super) fn load_selector(&mut self) -> Result {
        let register = self.segment_register()?;
        if register == SegReg::Cs {
            return Err(Exception::UD.into());
        }
        let selector = self.load_rm(2)? as u16;
        self.load_data_segment(register, selector)?;
        self.shadow = register == SegReg::Ss;
        Ok(Flow::Next)
    }

    /// LES, LDS, LSS, LFS, LGS.
    pub(super) fn load_far_pointer(&mut self, register: SegReg) -> Result {
        let size = self.insn.operand_size;
        let (offset, selector) = self.far_pointer(size)?;
        self.load_data_segment(register, selector)?;
        self.set_register(self.insn.reg, size, offset);
        Ok(Flow::Next)
    }

    /// The offset of `size` bytes and the selector in memory. With REX.W that of a far JMP or CALL
    /// has 64 bits, which the manual has not, but KVM and QEMU have.
    pub(super) fn far_pointer(&mut self, size: u8) -> Result<(u64, u16)> {
        let length = size.wrapping_add(2);
        let linear = self.memory(length, Access::Read)?;
        let mut bytes = [0; 10];
        let part = bytes.get_mut(..usize::from(length));
        self.cpu
            .read(linear, part.ok_or(Stop::Unhandled)?, Access::Read)?;
        let number = |from: usize, size: usize| {
            let bytes = bytes.iter().skip(from).take(size).rev();
            bytes.fold(0, |value, byte| value << 8 | u64::from(*byte))
        };
        let size = usize::from(size);
        Ok((number(0, size), number(size, 2) as u16))
    }

    /// The segment register of a PUSH or POP, by its opcode; `None` for POP CS, which is none.
    fn pushed_segment(&self) -> SegReg {
        match self.insn.opcode & !1 {
            0x06 => SegReg::Es,
            0x0e => SegReg::Cs,
            0x16 => SegReg::Ss,
            0x1e => SegReg::Ds,
            0xa0 => SegReg::Fs,
            _ => SegReg::Gs,
        }
    }

    /// PUSH of a segment register. As newer CPUs do, it writes two bytes of a doubleword.
    pub(super) fn push_segment(&mut self) -> Result {
        let size = self.insn.operand_size;
        let selector = self.cpu.segment(self.pushed_segment()).selector;
        let written = if size == 4 { 2 } else { size };
        self.push_part(u64::from(selector), written, size)?;
        Ok(Flow::Next)
    }

    /// POP of a segment register: two bytes count.
    pub(super) fn pop_segment(&mut self) -> Result {
        let register = self.pushed_segment();
        let selector = self.top_of_stack(2)? as u16;
        let segment = self.data_segment(register, selector, self.privilege())?;
        // By the width of the old stack.
        self.drop_from_stack(u64::from(self.insn.operand_size));
        self.cpu.set_segment(register, segment);
        self.shadow = register == SegReg::Ss;
        Ok(Flow::Next)
    }
}
