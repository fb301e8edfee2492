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
use crate::regs::Cr4;
use crate::regs::Exception;
use crate::regs::Rflags;
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
        self.push_part(value, size, size)
    }

    /// Pushes `written` bytes, and moves the stack pointer by `size`.
    pub(super) fn push_part(&mut self, value: u64, written: u8, size: u8) -> Result<()> {
        let (linear, pointer) = self.place_below(1, written, size)?;
        self.write(linear, written, value)?;
        self.set_register(gpr::RSP, self.stack_address_size(), pointer);
        Ok(())
    }

    /// Where the push number `number`, counted from 1, of `size` bytes writes, and the stack
    /// pointer then.
    fn place_below(&self, number: u64, written: u8, size: u8) -> Result<(u64, u64)> {
        let below = number.wrapping_mul(u64::from(size));
        let pointer = self.cpu.gpr(gpr::RSP).wrapping_sub(below) & mask(self.stack_address_size());
        let linear = self.stack_address(pointer, written, Access::Write)?;
        Ok((linear, pointer))
    }

    /// Faults as so many pushes would.
    pub(super) fn probe_pushes(&mut self, count: usize, size: u8) -> Result<()> {
        for number in 0..count as u64 {
            let (linear, _) = self.place_below(number.wrapping_add(1), size, size)?;
            self.cpu.probe_write(linear, usize::from(size))?;
        }
        Ok(())
    }

    /// Pushes one value after the other. Of all places it is known before that they can be written,
    /// so that nothing is left half done.
    pub(super) fn push_all(&mut self, values: &[u64], size: u8) -> Result<()> {
        self.probe_pushes(values.len(), size)?;
        self.push_probed(values, size)
    }

    /// The same, after [`Self::probe_pushes`].
    pub(super) fn push_probed(&mut self, values: &[u64], size: u8) -> Result<()> {
        let mut last = None;
        for (number, value) in (1..).zip(values) {
            let (linear, pointer) = self.place_below(number, size, size)?;
            self.write(linear, size, *value)?;
            last = Some(pointer);
        }
        if let Some(pointer) = last {
            self.set_register(gpr::RSP, self.stack_address_size(), pointer);
        }
        Ok(())
    }

    /// Reads what POP would take from the stack, and leaves it there.
    pub(super) fn top_of_stack(&mut self, size: u8) -> Result<u64> {
        self.stack_value(0, size)
    }

    /// The value number `index` of `size` bytes on the stack.
    pub(super) fn stack_value(&mut self, index: u64, size: u8) -> Result<u64> {
        self.stack_value_at(index.wrapping_mul(u64::from(size)), size)
    }

    /// The value so many bytes above the stack pointer.
    pub(super) fn stack_value_at(&mut self, above: u64, size: u8) -> Result<u64> {
        let pointer = self.cpu.gpr(gpr::RSP).wrapping_add(above);
        let pointer = pointer & mask(self.stack_address_size());
        let linear = self.stack_address(pointer, size, Access::Read)?;
        self.read(linear, size, Access::Read)
    }

    /// Takes `size` bytes from the stack. Cannot fail.
    pub(super) fn drop_from_stack(&mut self, size: u64) {
        let pointer = self.cpu.gpr(gpr::RSP).wrapping_add(size);
        self.set_register(gpr::RSP, self.stack_address_size(), pointer);
    }

    /// PUSHA: the stack pointer is pushed as it was.
    pub(super) fn push_registers(&mut self) -> Result {
        let size = self.insn.operand_size;
        let values: [u64; 8] = core::array::from_fn(|index| self.register(index as u8, size));
        self.push_all(&values, size)?;
        Ok(Flow::Next)
    }

    /// POPA: the stack pointer's place is not read.
    pub(super) fn pop_registers(&mut self) -> Result {
        /// How many registers are popped before RSP's place: the order is that of PUSHA, backwards.
        const ABOVE_RSP: u64 = 3;
        let size = self.insn.operand_size;
        let mut values = [0; 8];
        for (place, value) in (0..).zip(&mut values) {
            if place != ABOVE_RSP {
                *value = self.stack_value(place, size)?;
            }
        }
        self.drop_from_stack(u64::from(size).wrapping_mul(8));
        for (index, value) in (0..8).zip(values.into_iter().rev()) {
            if index != gpr::RSP {
                self.set_register(index, size, value);
            }
        }
        Ok(Flow::Next)
    }

    /// What PUSHF, POPF and IRET do in virtual-8086 mode with an IOPL below 3: #GP(0), but for
    /// CR4.VME, which is left out.
    pub(super) fn without_virtual_flag(&self) -> Stop {
        let allowed = self.cpu.cr4().contains(Cr4::VME) && self.insn.operand_size == 2;
        if allowed {
            Stop::Unhandled
        } else {
            Exception::GP0.into()
        }
    }

    fn is_virtual_without_privilege(&self) -> bool {
        self.flags().contains(Rflags::VM) && self.io_privilege() < 3
    }

    /// PUSHF: RF and VM are pushed as zero.
    pub(super) fn push_flags(&mut self) -> Result {
        if self.is_virtual_without_privilege() {
            return Err(self.without_virtual_flag());
        }
        let hidden = Rflags::RF.union(Rflags::VM);
        let flags = self.cpu.pushed_flags().difference(hidden);
        self.push(flags.bits(), self.insn.operand_size)?;
        Ok(Flow::Next)
    }

    /// POPF.
    pub(super) fn pop_flags(&mut self) -> Result {
        if self.is_virtual_without_privilege() {
            return Err(self.without_virtual_flag());
        }
        let size = self.insn.operand_size;
        let value = Rflags::from_bits_retain(self.top_of_stack(size)?);
        let flags = self.loaded_flags(value, size, false);
        self.drop_from_stack(u64::from(size));
        self.cpu.set_pushed_flags(flags);
        Ok(Flow::Next)
    }

    /// The flags after `size` bytes of `value` were loaded by POPF, or by IRET: what the privilege
    /// level may not change stays (APM vol. 3, POPF and IRET).
    pub(super) fn loaded_flags(&self, value: Rflags, size: u8, by_iret: bool) -> Rflags {
        const ALWAYS: Rflags = Rflags::CF
            .union(Rflags::PF)
            .union(Rflags::AF)
            .union(Rflags::ZF)
            .union(Rflags::SF)
            .union(Rflags::TF)
            .union(Rflags::DF)
            .union(Rflags::OF)
            .union(Rflags::NT);
        let old = self.cpu.pushed_flags();
        let cpl = self.privilege();
        let mut changed = ALWAYS;
        if size > 2 {
            changed |= Rflags::AC | Rflags::ID;
        }
        if by_iret && size > 2 {
            changed |= Rflags::RF;
            if cpl == 0 && !self.is_real() {
                changed |= Rflags::VIF | Rflags::VIP;
            }
        }
        if cpl == 0 {
            changed |= Rflags::IOPL;
        }
        if cpl <= self.io_privilege() || self.is_real() {
            changed |= Rflags::IF;
        }
        let kept = old.difference(changed).difference(Rflags::RF);
        kept | value & changed | Rflags::RESERVED1
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

    /// ENTER; with nested frames it copies their pointers (APM vol. 3, ENTER).
    pub(super) fn enter(&mut self) -> Result {
        /// The old frame pointer, those of 30 frames, and the new one.
        const MOST: usize = 32;
        let size = self.insn.operand_size;
        let address_size = self.stack_address_size();
        let level = usize::from(self.insn.immediate2 & 31);
        let frame = self.cpu.gpr(gpr::RSP).wrapping_sub(u64::from(size)) & mask(address_size);
        if self.pushes_over_display(level as u64) {
            return Err(Stop::Unhandled);
        }
        let mut values = [0; MOST];
        let mut count = 0;
        for (number, value) in values.iter_mut().take(level.wrapping_add(1)).enumerate() {
            *value = match number {
                0 => self.register(gpr::RBP, size),
                _ if number == level => frame,
                _ => self.outer_frame(number as u64, size)?,
            };
            count = number.wrapping_add(1);
        }
        let values = values.get(..count).unwrap_or_default();
        self.push_all(values, size)?;
        self.set_register(gpr::RBP, size, frame);
        self.drop_from_stack(self.insn.immediate.wrapping_neg());
        Ok(Flow::Next)
    }

    /// Whether ENTER reads what it has written itself, so that it could not be run again: no
    /// compiler's code does.
    fn pushes_over_display(&self, level: u64) -> bool {
        let size = u64::from(self.insn.operand_size);
        let read = level.saturating_sub(1).wrapping_mul(size);
        let written = level.wrapping_add(1).wrapping_mul(size);
        let display = self.cpu.gpr(gpr::RBP).wrapping_sub(read);
        let pushes = self.cpu.gpr(gpr::RSP).wrapping_sub(written);
        let mask = mask(self.stack_address_size());
        let (above, below) = (display.wrapping_sub(pushes), pushes.wrapping_sub(display));
        read != 0 && (above & mask < written || below & mask < read)
    }

    /// The pointer of an outer frame, from the display of the current one.
    fn outer_frame(&mut self, number: u64, size: u8) -> Result<u64> {
        let below = number.wrapping_mul(u64::from(size));
        let at = self.cpu.gpr(gpr::RBP).wrapping_sub(below) & mask(self.stack_address_size());
        let linear = self.stack_address(at, size, Access::Read)?;
        self.read(linear, size, Access::Read)
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
