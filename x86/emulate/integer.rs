// SPDX-License-Identifier: GPL-2.0-only

//! The general-purpose instructions (APM vol. 3, chapter 3), without strings and ports.

use super::address::effective_address;
use super::address::mask;
use super::alu;
use super::alu::Arithmetic;
use super::operand::Place;
use super::Flow;
use super::Run;
use crate::cpu::Access;
use crate::cpu::Cpu;
use crate::cpu::Stop;
use crate::decode::Prefixes;
use crate::features::Feature;
use crate::regs::gpr;
use crate::regs::Exception;
use crate::regs::Rflags;

type Result<T = Flow> = core::result::Result<T, Stop>;

/// What a read-modify-write instruction does next: go on, or be run again if it lost its lock.
fn after(modified: Option<u64>) -> Flow {
    match modified {
        Some(_) => Flow::Next,
        None => Flow::Stay,
    }
}

impl<C: Cpu> Run<'_, C> {
    /// Opcodes `00` to `3D`.
    pub(super) fn arithmetic(&mut self) -> Result {
        let size = self.width();
        let operation = Arithmetic::from_bits(self.insn.opcode >> 3);
        match self.insn.opcode & 7 {
            0 | 1 => {
                let source = self.register(self.insn.reg, size);
                let place = self.arithmetic_place(operation, size)?;
                self.arithmetic_on(operation, place, source, size)
            }
            2 | 3 => {
                let source = self.load_rm(size)?;
                let place = Place::Register(self.insn.reg);
                self.arithmetic_on(operation, place, source, size)
            }
            _ => {
                let place = Place::Register(gpr::RAX);
                self.arithmetic_on(operation, place, self.insn.immediate & mask(size), size)
            }
        }
    }

    /// Group 1, opcodes `80` to `83`.
    pub(super) fn arithmetic_immediate(&mut self) -> Result {
        let size = self.width();
        let operation = Arithmetic::from_bits(self.insn.group());
        let place = self.arithmetic_place(operation, size)?;
        self.arithmetic_on(operation, place, self.insn.immediate & mask(size), size)
    }

    fn arithmetic_place(&self, operation: Arithmetic, size: u8) -> Result<Place> {
        if operation == Arithmetic::Cmp {
            self.place(size, Access::Read)
        } else {
            self.place(size, Access::Write)
        }
    }

    fn arithmetic_on(
        &mut self,
        operation: Arithmetic,
        place: Place,
        source: u64,
        size: u8,
    ) -> Result {
        let flags = self.flags();
        if operation == Arithmetic::Cmp {
            let value = self.load(place, size)?;
            let (_, flags) = operation.apply(value, source, size, flags);
            self.cpu.set_rflags(flags);
            return Ok(Flow::Next);
        }
        let old = self.modify(place, size, |a| operation.apply(a, source, size, flags))?;
        Ok(after(old))
    }

    /// TEST with `source`.
    pub(super) fn test(&mut self, place: Place, source: u64, size: u8) -> Result {
        let value = self.load(place, size)?;
        let (_, flags) = alu::logic(value & source & mask(size), size, self.flags());
        self.cpu.set_rflags(flags);
        Ok(Flow::Next)
    }

    /// `84` and `85`.
    pub(super) fn test_register(&mut self) -> Result {
        let size = self.width();
        let place = self.place(size, Access::Read)?;
        self.test(place, self.register(self.insn.reg, size), size)
    }

    /// Group 3: TEST, NOT, NEG, MUL, IMUL, DIV, IDIV.
    pub(super) fn group3(&mut self) -> Result {
        let size = self.width();
        let flags = self.flags();
        let old = match self.insn.group() {
            0 | 1 => {
                let place = self.place(size, Access::Read)?;
                return self.test(place, self.insn.immediate, size);
            }
            2 => {
                let place = self.place(size, Access::Write)?;
                self.modify(place, size, |a| (!a & mask(size), flags))?
            }
            3 => {
                let place = self.place(size, Access::Write)?;
                self.modify(place, size, |a| alu::subtract(0, a, 0, size, flags))?
            }
            operation => return self.multiply_or_divide(operation, size),
        };
        Ok(after(old))
    }

    /// Groups 4 and 5: INC, DEC, CALL, JMP, PUSH.
    pub(super) fn group5(&mut self) -> Result {
        let size = self.width();
        match (self.insn.group(), self.insn.opcode) {
            (group @ (0 | 1), _) => {
                let place = self.place(size, Access::Write)?;
                self.increment(place, group == 1, size)
            }
            (2, 0xff) => {
                let target = self.load_rm(size)?;
                self.call(target)
            }
            (4, 0xff) => {
                let target = self.load_rm(size)?;
                self.jump(target)
            }
            (3 | 5, 0xff) => {
                let (offset, selector) = self.far_pointer(size)?;
                if self.insn.group() == 3 {
                    self.call_far(offset, selector)
                } else {
                    self.jump_far(offset, selector)
                }
            }
            (6, 0xff) => {
                let value = self.load_rm(size)?;
                self.push(value, size)?;
                Ok(Flow::Next)
            }
            (7, _) | (_, 0xfe) => Err(Exception::UD.into()),
            _ => Err(Stop::Unhandled),
        }
    }

    /// INC and DEC.
    pub(super) fn increment(&mut self, place: Place, down: bool, size: u8) -> Result {
        let flags = self.flags();
        let old = self.modify(place, size, |a| alu::increment(a, down, size, flags))?;
        Ok(after(old))
    }

    /// Group 2: rotations and shifts.
    pub(super) fn shift(&mut self) -> Result {
        let size = self.width();
        let flags = self.flags();
        let operation = self.insn.group();
        let count = match self.insn.opcode {
            0xc0 | 0xc1 => self.insn.immediate as u8,
            0xd0 | 0xd1 => 1,
            _ => self.register(gpr::RCX, 1) as u8,
        };
        let place = self.place(size, Access::Write)?;
        let old = self.modify(place, size, |a| {
            alu::shift(operation, a, count, size, flags)
        })?;
        Ok(after(old))
    }

    /// SHLD and SHRD.
    pub(super) fn double_shift(&mut self) -> Result {
        let size = self.insn.operand_size;
        let flags = self.flags();
        let to_right = self.insn.opcode & 8 != 0;
        let source = self.register(self.insn.reg, size);
        let count = if self.insn.opcode & 1 == 0 {
            self.insn.immediate as u8
        } else {
            self.register(gpr::RCX, 1) as u8
        };
        let place = self.place(size, Access::Write)?;
        let old = self.modify(place, size, |a| {
            alu::double_shift(to_right, a, source, count, size, flags)
        })?;
        Ok(after(old))
    }

    /// BT, BTS, BTR, BTC with the bit number in a register: it can lie far off in memory.
    pub(super) fn bit_test_register(&mut self) -> Result {
        let size = self.insn.operand_size;
        let bit = alu::sign_extend(self.register(self.insn.reg, size), size);
        let units = (bit as i64).wrapping_shr(size.trailing_zeros().wrapping_add(3));
        let distance = (units as u64).wrapping_mul(u64::from(size));
        self.bit_test((self.insn.opcode >> 3) & 3, bit, distance)
    }

    /// Group 8: the same with the bit number in an immediate.
    pub(super) fn bit_test_immediate(&mut self) -> Result {
        match self.insn.group() {
            group @ 4..=7 => self.bit_test(group & 3, self.insn.immediate, 0),
            _ => Err(Exception::UD.into()),
        }
    }

    fn bit_test(&mut self, operation: u8, bit: u64, distance: u64) -> Result {
        let size = self.insn.operand_size;
        let flags = self.flags();
        if operation == 0 {
            let place = self.place_beyond(distance, size, Access::Read)?;
            let value = self.load(place, size)?;
            let (_, flags) = alu::bit_test(0, value, bit, size, flags);
            self.cpu.set_rflags(flags);
            return Ok(Flow::Next);
        }
        let place = self.place_beyond(distance, size, Access::Write)?;
        let old = self.modify(place, size, |a| {
            alu::bit_test(operation, a, bit, size, flags)
        })?;
        Ok(after(old))
    }

    /// XCHG of ModRM operands. With memory it is locked, prefix or not.
    pub(super) fn exchange(&mut self) -> Result {
        let size = self.width();
        let flags = self.flags();
        let source = self.register(self.insn.reg, size);
        let place = self.place(size, Access::Write)?;
        let Some(old) = self.modify_with(true, place, size, &|_| (source, flags))? else {
            return Ok(Flow::Stay);
        };
        self.set_register(self.insn.reg, size, old);
        Ok(Flow::Next)
    }

    /// XCHG with rAX, opcodes `90` to `97`. `90` is NOP, or PAUSE, and clears no upper half.
    pub(super) fn exchange_accumulator(&mut self) -> Result {
        let size = self.insn.operand_size;
        if self.insn.rm != gpr::RAX {
            let value = self.register(self.insn.rm, size);
            let accumulator = self.register(gpr::RAX, size);
            self.set_register(gpr::RAX, size, value);
            self.set_register(self.insn.rm, size, accumulator);
        }
        Ok(Flow::Next)
    }

    /// XADD.
    pub(super) fn exchange_add(&mut self) -> Result {
        let size = self.width();
        let flags = self.flags();
        let source = self.register(self.insn.reg, size);
        let place = self.place(size, Access::Write)?;
        let Some(old) = self.modify(place, size, |a| alu::add(a, source, 0, size, flags))? else {
            return Ok(Flow::Stay);
        };
        // The sum stays if both operands are the same register.
        if place != Place::Register(self.insn.reg) {
            self.set_register(self.insn.reg, size, old);
        }
        Ok(Flow::Next)
    }

    /// CMPXCHG. When the comparison fails, memory is written back, but a register is left alone:
    /// a 32-bit one keeps its upper half.
    pub(super) fn compare_exchange(&mut self) -> Result {
        let size = self.width();
        let flags = self.flags();
        let source = self.register(self.insn.reg, size);
        let accumulator = self.register(gpr::RAX, size);
        let place = self.place(size, Access::Write)?;
        let before = self.cpu.gpr(self.insn.rm);
        let old = self.modify(place, size, |a| {
            let (_, flags) = alu::subtract(accumulator, a, 0, size, flags);
            (if a == accumulator { source } else { a }, flags)
        })?;
        let Some(old) = old else {
            return Ok(Flow::Stay);
        };
        if old != accumulator {
            if let Place::Register(index) = place {
                self.cpu.set_gpr(index, before);
            }
            self.set_register(gpr::RAX, size, old);
        }
        Ok(Flow::Next)
    }

    /// CMPXCHG8B and CMPXCHG16B (group 9).
    pub(super) fn compare_exchange_pair(&mut self) -> Result {
        if self.insn.group() != 1 || self.insn.mem.is_none() {
            return Err(Stop::Unhandled);
        }
        if self.insn.rex_w() {
            return self.compare_exchange_16_bytes();
        }
        let flags = self.flags();
        let expected = self.pair(gpr::RDX, gpr::RAX);
        let source = self.pair(gpr::RCX, gpr::RBX);
        let place = Place::Memory(self.memory(8, Access::Write)?);
        let old = self.modify(place, 8, |a| {
            let flags = flags.difference(Rflags::ZF);
            if a == expected {
                (source, flags | Rflags::ZF)
            } else {
                (a, flags)
            }
        })?;
        let Some(old) = old else {
            return Ok(Flow::Stay);
        };
        if old != expected {
            self.set_register(gpr::RAX, 4, old);
            self.set_register(gpr::RDX, 4, old >> 32);
        }
        Ok(Flow::Next)
    }

    fn pair(&self, high: u8, low: u8) -> u64 {
        (self.register(high, 4) << 32) | self.register(low, 4)
    }

    /// Not atomic: this width is for devices, which have no other CPU's locks to respect.
    fn compare_exchange_16_bytes(&mut self) -> Result {
        let linear = self.memory(16, Access::Write)?;
        if linear & 15 != 0 {
            return Err(Exception::GP0.into());
        }
        let join = |high: u64, low: u64| (u128::from(high) << 64) | u128::from(low);
        let expected = join(self.cpu.gpr(gpr::RDX), self.cpu.gpr(gpr::RAX));
        let source = join(self.cpu.gpr(gpr::RCX), self.cpu.gpr(gpr::RBX));
        let mut bytes = [0; 16];
        self.cpu.read(linear, &mut bytes, Access::Write)?;
        let old = u128::from_le_bytes(bytes);
        let flags = self.flags().difference(Rflags::ZF);
        if old == expected {
            self.cpu.write(linear, &source.to_le_bytes())?;
            self.cpu.set_rflags(flags | Rflags::ZF);
        } else {
            self.cpu.write(linear, &bytes)?;
            self.cpu.set_gpr(gpr::RAX, old as u64);
            self.cpu.set_gpr(gpr::RDX, (old >> 64) as u64);
            self.cpu.set_rflags(flags);
        }
        Ok(Flow::Next)
    }

    /// Loads ModRM.rm into ModRM.reg, extended from `from` bytes: MOV, MOVZX, MOVSX, MOVSXD.
    pub(super) fn load_extended(&mut self, from: u8, to: u8, signed: bool) -> Result {
        let value = self.load_rm(from)?;
        let value = if signed {
            alu::sign_extend(value, from)
        } else {
            value
        };
        self.set_register(self.insn.reg, to, value);
        Ok(Flow::Next)
    }

    /// MOV to ModRM.rm.
    pub(super) fn store_value(&mut self, size: u8, value: u64) -> Result {
        self.store_rm(size, value)?;
        Ok(Flow::Next)
    }

    /// MOV from a segment register. Memory gets two bytes, whatever the operand size.
    pub(super) fn store_selector(&mut self) -> Result {
        let selector = self.cpu.segment(self.segment_register()?).selector;
        self.store_system_word(u64::from(selector))
    }

    /// SMSW.
    pub(super) fn store_machine_status_word(&mut self) -> Result {
        self.check_umip()?;
        let cr0 = self.cpu.cr0().bits();
        self.store_system_word(cr0)
    }

    pub(super) fn store_system_word(&mut self, value: u64) -> Result {
        let size = if self.insn.mem.is_some() {
            2
        } else {
            self.insn.operand_size
        };
        self.store_value(size, value)
    }

    /// LEA.
    pub(super) fn load_effective_address(&mut self) -> Result {
        let mem = self.insn.mem.ok_or(Exception::UD)?;
        let address = effective_address(self.cpu, self.insn, &mem, 0);
        self.set_register(self.insn.reg, self.insn.operand_size, address);
        Ok(Flow::Next)
    }

    /// MOVBE.
    pub(super) fn move_big_endian(&mut self) -> Result {
        self.require(Feature::MOVBE)?;
        let size = self.insn.operand_size;
        let unused = 64u32.wrapping_sub(u32::from(size) * 8);
        let swap = |value: u64| value.swap_bytes().wrapping_shr(unused);
        if self.insn.opcode & 1 == 0 {
            let linear = self.memory(size, Access::Read)?;
            let value = self.read(linear, size, Access::Read)?;
            self.set_register(self.insn.reg, size, swap(value));
        } else {
            let linear = self.memory(size, Access::Write)?;
            let value = self.register(self.insn.reg, size);
            self.write(linear, size, swap(value))?;
        }
        Ok(Flow::Next)
    }

    /// MOVNTI and MOVDIRI: plain stores, to memory only.
    pub(super) fn store_direct(&mut self) -> Result {
        // With one of these prefixes the opcode is another instruction, or none.
        if self.insn.repeats() || self.insn.has(Prefixes::OPERAND_SIZE) {
            return Err(Stop::Unhandled);
        }
        let size = if self.insn.rex_w() { 8 } else { 4 };
        let linear = self.memory(size, Access::Write)?;
        let value = self.register(self.insn.reg, size);
        self.write(linear, size, value)?;
        Ok(Flow::Next)
    }

    /// SETcc.
    pub(super) fn set_on_condition(&mut self) -> Result {
        let holds = alu::condition(self.insn.opcode, self.flags());
        self.store_value(1, u64::from(holds))
    }

    /// CMOVcc: reads its operand, and clears the upper half of a 32-bit register, in any case.
    pub(super) fn move_on_condition(&mut self) -> Result {
        let size = self.insn.operand_size;
        let loaded = self.load_rm(size)?;
        let value = if alu::condition(self.insn.opcode, self.flags()) {
            loaded
        } else {
            self.register(self.insn.reg, size)
        };
        self.set_register(self.insn.reg, size, value);
        Ok(Flow::Next)
    }

    /// CLFLUSH, CLFLUSHOPT, CLWB and the fences: nothing but a translation of the address.
    pub(super) fn flush_cache_line(&mut self) -> Result {
        let prefix = self.insn.has(Prefixes::OPERAND_SIZE);
        if self.insn.repeats() {
            return Err(Stop::Unhandled);
        }
        match (self.insn.group(), self.insn.mem.is_some(), prefix) {
            (5..=7, false, false) => Ok(Flow::Next),
            (7, true, _) | (6, true, true) => {
                self.memory(1, Access::Read)?;
                Ok(Flow::Next)
            }
            _ => Err(Stop::Unhandled),
        }
    }
}
