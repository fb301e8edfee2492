// SPDX-License-Identifier: GPL-2.0-only

//! What touches no memory but that of the instruction itself: near branches, flags, conversions in
//! the accumulator. It is emulated where the CPU cannot execute it: its page tables are in ROM.

use super::address::mask;
use super::alu;
use super::Flow;
use super::Run;
use crate::cpu::Cpu;
use crate::cpu::Stop;
use crate::regs::gpr;
use crate::regs::Cr4;
use crate::regs::Exception;
use crate::regs::Rflags;

type Result<T = Flow> = core::result::Result<T, Stop>;

impl<C: Cpu> Run<'_, C> {
    /// Near JMP, or Jcc, LOOP and JrCXZ if `taken`, by the immediate.
    pub(super) fn branch(&mut self, taken: bool) -> Result {
        if !taken {
            return Ok(Flow::Next);
        }
        // In 64-bit mode `operand_size` is 8 unless there is the prefix, which AMD's CPUs obey (APM
        // vol. 3, table B-5).
        let size = self.insn.operand_size;
        let next = self.insn.next_rip(self.cpu.rip());
        self.jump(next.wrapping_add(self.insn.immediate) & mask(size))
    }

    /// LOOP, LOOPE, LOOPNE and JrCXZ: the address size chooses the counter.
    pub(super) fn count_and_branch(&mut self) -> Result {
        let size = self.insn.address_size;
        let count = self.register(gpr::RCX, size);
        if self.insn.opcode == 0xe3 {
            return self.branch(count == 0);
        }
        let count = count.wrapping_sub(1) & mask(size);
        let zero = self.flags().contains(Rflags::ZF);
        let taken = count != 0
            && match self.insn.opcode {
                0xe0 => !zero,
                0xe1 => zero,
                _ => true,
            };
        let flow = self.branch(taken)?;
        self.set_register(gpr::RCX, size, count);
        Ok(flow)
    }

    /// CMC, CLC, STC, CLI, STI, CLD, STD.
    pub(super) fn set_flag(&mut self) -> Result {
        let flag = match self.insn.opcode {
            0xfa | 0xfb => Rflags::IF,
            0xfc | 0xfd => Rflags::DF,
            _ => Rflags::CF,
        };
        let mut flags = self.flags();
        if flag == Rflags::IF {
            self.may_change_interrupt_flag()?;
            // APM vol. 3, STI: interrupts wait for one more instruction.
            self.shadow = self.insn.opcode & 1 != 0 && !flags.contains(Rflags::IF);
        }
        if self.insn.opcode == 0xf5 {
            flags.toggle(flag);
        } else {
            flags.set(flag, self.insn.opcode & 1 != 0);
        }
        self.cpu.set_rflags(flags);
        Ok(Flow::Next)
    }

    /// #GP(0) for CLI and STI above IOPL. The virtual interrupt flag is not known here.
    fn may_change_interrupt_flag(&self) -> Result<()> {
        if self.is_real() || self.privilege() <= self.io_privilege() {
            return Ok(());
        }
        let virtual_8086 = self.flags().contains(Rflags::VM);
        let virtual_flag = match virtual_8086 {
            true => self.cpu.cr4().contains(Cr4::VME),
            false => self.cpu.cr4().contains(Cr4::PVI) && self.privilege() == 3,
        };
        Err(if virtual_flag {
            Stop::Unhandled
        } else {
            Exception::GP0.into()
        })
    }

    /// IOPL.
    pub(super) fn io_privilege(&self) -> u8 {
        let flags = self.flags().intersection(Rflags::IOPL);
        (flags.bits() >> Rflags::IOPL.bits().trailing_zeros()) as u8
    }

    /// CBW, CWDE, CDQE; CWD, CDQ, CQO.
    pub(super) fn extend_accumulator(&mut self) -> Result {
        let size = self.insn.operand_size;
        if self.insn.opcode & 1 == 0 {
            let half = size / 2;
            let value = alu::sign_extend(self.register(gpr::RAX, half), half);
            self.set_register(gpr::RAX, size, value);
        } else {
            let value = alu::sign_extend(self.register(gpr::RAX, size), size) as i64;
            self.set_register(gpr::RDX, size, (value >> 63) as u64);
        }
        Ok(Flow::Next)
    }

    /// SAHF and LAHF.
    pub(super) fn flags_and_ah(&mut self) -> Result {
        const STATUS: Rflags = alu::STATUS.difference(Rflags::OF);
        let flags = self.flags();
        let rax = self.cpu.gpr(gpr::RAX);
        if self.insn.opcode & 1 == 0 {
            let ah = Rflags::from_bits_retain(rax >> 8) & STATUS;
            self.cpu.set_rflags(flags.difference(STATUS) | ah);
        } else {
            let ah = (flags & STATUS | Rflags::RESERVED1).bits();
            self.cpu.set_gpr(gpr::RAX, rax & !0xff00 | ah << 8);
        }
        Ok(Flow::Next)
    }

    /// BSWAP. With 16 bits the result is undefined; it is zero.
    pub(super) fn swap_bytes(&mut self) -> Result {
        let size = self.insn.operand_size;
        let value = self.register(self.insn.rm, size);
        let value = match size {
            8 => value.swap_bytes(),
            4 => u64::from((value as u32).swap_bytes()),
            _ => 0,
        };
        self.set_register(self.insn.rm, size, value);
        Ok(Flow::Next)
    }

    /// Real mode.
    pub(super) fn is_real(&self) -> bool {
        !self.cpu.cr0().contains(crate::regs::Cr0::PE)
    }

    /// Real or virtual-8086 mode: segments have no descriptors.
    pub(super) fn has_no_descriptors(&self) -> bool {
        self.is_real() || self.flags().contains(Rflags::VM)
    }

    /// CPL.
    pub(super) fn privilege(&self) -> u8 {
        if self.is_real() {
            0
        } else {
            self.cpu.cpl()
        }
    }
}
