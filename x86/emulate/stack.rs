// SPDX-License-Identifier: GPL-2.0-only

//! The stack, and the near branches that use it (APM vol. 3: PUSH, POP, CALL, RET, ENTER, LEAVE).

use super::address::check_branch_target;
use super::address::mask;
use super::address::segment_address;
use super::operand::Place;
use super::Flow;
use super::Run;
use crate::cpu::Access;
use crate::cpu::Cpu;
use crate::cpu::Stop;
use crate::regs::gpr;
use crate::regs::SegAttr;
use crate::regs::SegReg;

type Result<T = Flow> = core::result::Result<T, Stop>;

impl<C: Cpu> Run<'_, C> {
    /// Bytes of the stack pointer that count (APM vol. 3, 1.2.3 and table 1-3).
    fn stack_address_size(&self) -> u8 {
        let stack = self.cpu.segment(SegReg::Ss);
        if self.insn.is_64_bit() {
            8
        } else if stack.attributes.contains(SegAttr::DB) {
            4
        } else {
            2
        }
    }

    fn stack_address(&self, pointer: u64, size: u8, access: Access) -> Result<u64> {
        segment_address(self.cpu, self.insn.mode, SegReg::Ss, pointer, size, access)
    }

    /// Pushes `size` bytes. Nothing may fail after it.
    pub(super) fn push(&mut self, value: u64, size: u8) -> Result<()> {
        let address_size = self.stack_address_size();
        let pointer = self.cpu.gpr(gpr::RSP).wrapping_sub(u64::from(size)) & mask(address_size);
        let linear = self.stack_address(pointer, size, Access::Write)?;
        self.write(linear, size, value)?;
        self.set_register(gpr::RSP, address_size, pointer);
        Ok(())
    }

    /// Reads what POP would take from the stack, and leaves it there.
    fn top_of_stack(&mut self, size: u8) -> Result<u64> {
        let pointer = self.cpu.gpr(gpr::RSP) & mask(self.stack_address_size());
        let linear = self.stack_address(pointer, size, Access::Read)?;
        self.read(linear, size, Access::Read)
    }

    /// Takes `size` bytes from the stack. Cannot fail.
    fn drop_from_stack(&mut self, size: u64) {
        let pointer = self.cpu.gpr(gpr::RSP).wrapping_add(size);
        self.set_register(gpr::RSP, self.stack_address_size(), pointer);
    }

    /// POP to a register or to memory.
    pub(super) fn pop(&mut self) -> Result {
        let size = self.insn.operand_size;
        let value = self.top_of_stack(size)?;
        let place = self.place(size, Access::Write)?;
        if let Place::Memory(linear) = place {
            self.write(linear, size, value)?;
        }
        self.drop_from_stack(u64::from(size));
        // POP RSP leaves the value, not the pointer behind it.
        if let Place::Register(index) = place {
            self.set_register(index, size, value);
        }
        Ok(Flow::Next)
    }

    /// Near JMP.
    pub(super) fn jump(&mut self, target: u64) -> Result {
        check_branch_target(self.cpu, self.insn.mode, target)?;
        Ok(Flow::Jump(target))
    }

    /// Near CALL.
    pub(super) fn call(&mut self, target: u64) -> Result {
        check_branch_target(self.cpu, self.insn.mode, target)?;
        let next = self.insn.next_rip(self.cpu.rip());
        self.push(next, self.insn.operand_size)?;
        Ok(Flow::Jump(target))
    }

    /// Near CALL of an address relative to the next instruction.
    pub(super) fn call_relative(&mut self) -> Result {
        let next = self.insn.next_rip(self.cpu.rip());
        let target = next.wrapping_add(self.insn.immediate);
        self.call(target & mask(self.insn.operand_size))
    }

    /// Near RET; the immediate of `C2` is what it drops besides.
    pub(super) fn return_near(&mut self) -> Result {
        let size = self.insn.operand_size;
        let target = self.top_of_stack(size)?;
        check_branch_target(self.cpu, self.insn.mode, target)?;
        self.drop_from_stack(u64::from(size).wrapping_add(self.insn.immediate));
        Ok(Flow::Jump(target))
    }

    /// ENTER without nested frames.
    pub(super) fn enter(&mut self) -> Result {
        let size = self.insn.operand_size;
        if self.insn.immediate2 & 31 != 0 {
            return Err(Stop::Unhandled);
        }
        self.push(self.register(gpr::RBP, size), size)?;
        self.set_register(gpr::RBP, size, self.cpu.gpr(gpr::RSP));
        self.drop_from_stack(self.insn.immediate.wrapping_neg());
        Ok(Flow::Next)
    }

    /// LEAVE.
    pub(super) fn leave(&mut self) -> Result {
        let size = self.insn.operand_size;
        let address_size = self.stack_address_size();
        let frame = self.register(gpr::RBP, address_size);
        let linear = self.stack_address(frame, size, Access::Read)?;
        let value = self.read(linear, size, Access::Read)?;
        let above = frame.wrapping_add(u64::from(size));
        self.set_register(gpr::RSP, address_size, above);
        self.set_register(gpr::RBP, size, value);
        Ok(Flow::Next)
    }
}
