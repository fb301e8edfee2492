// SPDX-License-Identifier: GPL-2.0-only

//! Reading, writing and modifying the operands of an instruction.

use super::address::checked_address;
use super::address::effective_address;
use super::address::mask;
use super::address::segment_address;
use super::alu::Outcome;
use super::Run;
use crate::cpu::Access;
use crate::cpu::Cpu;
use crate::cpu::Stop;
use crate::decode::Prefixes;
use crate::regs::Exception;
use crate::regs::Rflags;
use crate::regs::SegReg;

/// Where an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A general-purpose register.
    Register(u8),
    /// Memory at this linear address, which has been checked.
    Memory(u64),
}

/// How often a locked instruction tries to win memory before it lets the guest run again.
const LOCK_ATTEMPTS: usize = 16;

impl<C: Cpu> Run<'_, C> {
    /// `opcode & 1` chooses between a byte and the operand size in most instructions.
    pub(super) fn width(&self) -> u8 {
        if self.insn.opcode & 1 == 0 {
            1
        } else {
            self.insn.operand_size
        }
    }

    /// The low `size` bytes of a register; or AH, CH, DH, BH.
    pub(super) fn register(&self, index: u8, size: u8) -> u64 {
        if self.is_high_byte(index, size) {
            (self.cpu.gpr(index & 3) >> 8) & 0xff
        } else {
            self.cpu.gpr(index) & mask(size)
        }
    }

    /// Writes a register. Four bytes clear the upper half, fewer leave all else as it is.
    pub(super) fn set_register(&mut self, index: u8, size: u8, value: u64) {
        let value = value & mask(size);
        if self.is_high_byte(index, size) {
            let rest = self.cpu.gpr(index & 3) & !0xff00;
            self.cpu.set_gpr(index & 3, rest | (value << 8));
        } else if size < 4 {
            let rest = self.cpu.gpr(index) & !mask(size);
            self.cpu.set_gpr(index, rest | value);
        } else {
            self.cpu.set_gpr(index, value);
        }
    }

    fn is_high_byte(&self, index: u8, size: u8) -> bool {
        size == 1 && self.insn.rex == 0 && (4..8).contains(&index)
    }

    /// The operand of ModRM.rm, or of `A0` to `A3`.
    pub(super) fn place(&self, size: u8, access: Access) -> Result<Place, Stop> {
        if self.insn.mem.is_none() {
            return Ok(Place::Register(self.insn.rm));
        }
        checked_address(self.cpu, self.insn, size, access).map(Place::Memory)
    }

    /// The same, but #UD if it is a register.
    pub(super) fn memory(&self, size: u8, access: Access) -> Result<u64, Stop> {
        checked_address(self.cpu, self.insn, size, access)
    }

    /// The operand of ModRM.rm, with `distance` bytes added to its offset if it is memory.
    pub(super) fn place_beyond(
        &self,
        distance: u64,
        size: u8,
        access: Access,
    ) -> Result<Place, Stop> {
        let Some(mem) = self.insn.mem else {
            return Ok(Place::Register(self.insn.rm));
        };
        let offset = effective_address(self.cpu, self.insn, &mem, distance);
        let mode = self.insn.mode;
        segment_address(self.cpu, mode, mem.segment, offset, size, access).map(Place::Memory)
    }

    /// Reads up to 8 bytes.
    pub(super) fn read(&mut self, linear: u64, size: u8, access: Access) -> Result<u64, Stop> {
        let mut bytes = [0; 8];
        let part = bytes.get_mut(..usize::from(size)).ok_or(Stop::Unhandled)?;
        self.cpu.read(linear, part, access)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes up to 8 bytes.
    pub(super) fn write(&mut self, linear: u64, size: u8, value: u64) -> Result<(), Stop> {
        let bytes = value.to_le_bytes();
        let part = bytes.get(..usize::from(size)).ok_or(Stop::Unhandled)?;
        self.cpu.write(linear, part)
    }

    /// Reads an operand.
    pub(super) fn load(&mut self, place: Place, size: u8) -> Result<u64, Stop> {
        match place {
            Place::Register(index) => Ok(self.register(index, size)),
            Place::Memory(linear) => self.read(linear, size, Access::Read),
        }
    }

    /// Reads the operand of ModRM.rm.
    pub(super) fn load_rm(&mut self, size: u8) -> Result<u64, Stop> {
        let place = self.place(size, Access::Read)?;
        self.load(place, size)
    }

    /// Writes the operand of ModRM.rm.
    pub(super) fn store_rm(&mut self, size: u8, value: u64) -> Result<(), Stop> {
        match self.place(size, Access::Write)? {
            Place::Register(index) => self.set_register(index, size, value),
            Place::Memory(linear) => self.write(linear, size, value)?,
        }
        Ok(())
    }

    /// Replaces an operand by what `operation` makes of it, under a lock if there is the prefix,
    /// and sets the flags. Returns what the operand was, or `None` if nothing was done because
    /// the lock could not be won.
    pub(super) fn modify(
        &mut self,
        place: Place,
        size: u8,
        operation: impl Fn(u64) -> Outcome,
    ) -> Result<Option<u64>, Stop> {
        let lock = self.insn.has(Prefixes::LOCK);
        self.modify_with(lock, place, size, &operation)
    }

    /// The same, with the lock that `lock` says.
    pub(super) fn modify_with(
        &mut self,
        lock: bool,
        place: Place,
        size: u8,
        operation: &dyn Fn(u64) -> Outcome,
    ) -> Result<Option<u64>, Stop> {
        let linear = match place {
            Place::Register(index) => {
                let old = self.register(index, size);
                let (new, flags) = operation(old);
                self.set_register(index, size, new);
                self.cpu.set_rflags(flags);
                return Ok(Some(old));
            }
            Place::Memory(linear) => linear,
        };
        let mut old = self.read(linear, size, Access::Write)?;
        for _ in 0..LOCK_ATTEMPTS {
            let (new, flags) = operation(old);
            if lock {
                let attempt = self
                    .cpu
                    .compare_exchange(linear, usize::from(size), old, new)?;
                if let Err(current) = attempt {
                    old = current & mask(size);
                    continue;
                }
            } else {
                self.write(linear, size, new)?;
            }
            self.cpu.set_rflags(flags);
            return Ok(Some(old));
        }
        Ok(None)
    }

    /// One of the six segment registers that ModRM.reg can name; the other two are #UD.
    pub(super) fn segment_register(&self) -> Result<SegReg, Stop> {
        const REGISTERS: [SegReg; 6] = [
            SegReg::Es,
            SegReg::Cs,
            SegReg::Ss,
            SegReg::Ds,
            SegReg::Fs,
            SegReg::Gs,
        ];
        let register = REGISTERS.get(usize::from(self.insn.group())).copied();
        register.ok_or(Exception::UD.into())
    }

    /// RFLAGS now.
    pub(super) fn flags(&self) -> Rflags {
        self.cpu.rflags()
    }
}
