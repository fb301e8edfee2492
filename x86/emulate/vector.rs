// SPDX-License-Identifier: GPL-2.0-only

//! The SSE and SSE2 instructions that only move data between memory and XMM registers
//! (APM vol. 4). Drivers copy to and from device memory with them.

use super::Flow;
use super::Run;
use crate::cpu::Access;
use crate::cpu::Cpu;
use crate::cpu::Stop;
use crate::decode::Map;
use crate::decode::Prefixes;
use crate::regs::vector;
use crate::regs::Cr0;
use crate::regs::Cr4;
use crate::regs::Exception;

type Result<T = Flow> = core::result::Result<T, Stop>;

/// The prefix that is part of an SSE opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mandatory {
    None,
    OperandSize,
    Rep,
    Repne,
}

/// What happens to the rest of the register when fewer than 16 bytes are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    Zeroed,
    Kept,
}

/// One move. `size` is in bytes; 4 and 8 are the low bytes of the register unless `high`.
#[derive(Clone, Copy, Debug)]
struct Move {
    size: u8,
    store: bool,
    aligned: bool,
    high: bool,
    rest: Rest,
    /// ModRM.rm can be a general-purpose register: MOVD.
    general: bool,
    /// ModRM.rm can be an XMM register.
    between_registers: bool,
}

const FULL: Move = Move {
    size: 16,
    store: false,
    aligned: false,
    high: false,
    rest: Rest::Zeroed,
    general: false,
    between_registers: true,
};

impl<C: Cpu> Run<'_, C> {
    fn mandatory_prefix(&self) -> Mandatory {
        if self.insn.has(Prefixes::REP) {
            Mandatory::Rep
        } else if self.insn.has(Prefixes::REPNE) {
            Mandatory::Repne
        } else if self.insn.has(Prefixes::OPERAND_SIZE) {
            Mandatory::OperandSize
        } else {
            Mandatory::None
        }
    }

    /// What the opcode moves, if it is one of the moves. MMX ones are not among them.
    fn vector_operation(&self) -> Option<Move> {
        use Mandatory::{None as Plain, OperandSize, Rep, Repne};
        let opcode = self.insn.opcode;
        let integer_size = if self.insn.rex_w() { 8 } else { 4 };
        let memory_only = Move {
            between_registers: false,
            ..FULL
        };
        let prefix = self.mandatory_prefix();
        if self.insn.map == Map::ThreeByte38 {
            let aligned = true;
            let is_movntdqa = opcode == 0x2a && prefix == OperandSize;
            return is_movntdqa.then_some(Move {
                aligned,
                ..memory_only
            });
        }
        let operation = match (opcode, prefix) {
            (0x10 | 0x11, Plain | OperandSize) => FULL,
            // MOVSS and MOVSD: between registers they merge.
            (0x10 | 0x11, Rep) => Move { size: 4, ..FULL },
            (0x10 | 0x11, Repne) => Move { size: 8, ..FULL },
            // MOVLPS, MOVLPD, MOVHPS, MOVHPD.
            (0x12 | 0x13 | 0x16 | 0x17, Plain | OperandSize) => Move {
                size: 8,
                high: opcode & 4 != 0,
                rest: Rest::Kept,
                ..memory_only
            },
            (0x28 | 0x29, Plain | OperandSize) => Move {
                aligned: true,
                ..FULL
            },
            (0x2b, Plain | OperandSize) | (0xe7, OperandSize) => Move {
                aligned: true,
                ..memory_only
            },
            (0x6e | 0x7e, OperandSize) => Move {
                size: integer_size,
                general: true,
                ..FULL
            },
            (0x6f | 0x7f, OperandSize) => Move {
                aligned: true,
                ..FULL
            },
            (0x6f | 0x7f, Rep) => FULL,
            // MOVQ zeroes the rest between registers, too.
            (0x7e, Rep) | (0xd6, OperandSize) => Move { size: 8, ..FULL },
            (0xf0, Repne) => memory_only,
            _ => return None,
        };
        let store = match opcode {
            0x7e => prefix == OperandSize,
            0x10 | 0x12 | 0x16 | 0x28 | 0x6e | 0x6f | 0xf0 => false,
            _ => true,
        };
        Some(Move { store, ..operation })
    }

    /// A move to or from an XMM register.
    pub(super) fn vector_move(&mut self) -> Result {
        let operation = self.vector_operation().ok_or(Stop::Unhandled)?;
        self.check_sse()?;
        if operation.general && self.insn.mem.is_none() {
            return self.vector_to_general(operation);
        }
        if self.insn.mem.is_none() {
            return self.vector_to_vector(operation);
        }
        let access = if operation.store {
            Access::Write
        } else {
            Access::Read
        };
        let linear = self.memory(operation.size, access)?;
        if operation.aligned && linear & 15 != 0 {
            return Err(Exception::GP0.into());
        }
        if operation.store {
            self.vector_store(operation, linear)
        } else {
            self.vector_load(operation, linear)
        }
    }

    fn vector_store(&mut self, operation: Move, linear: u64) -> Result {
        let shift = if operation.high { 64 } else { 0 };
        let bytes = (self.cpu.xmm(self.insn.reg)? >> shift).to_le_bytes();
        let part = bytes.get(..usize::from(operation.size));
        self.cpu.write(linear, part.ok_or(Stop::Unhandled)?)?;
        Ok(Flow::Next)
    }

    fn vector_load(&mut self, operation: Move, linear: u64) -> Result {
        let mut bytes = [0; 16];
        let part = bytes.get_mut(..usize::from(operation.size));
        self.cpu
            .read(linear, part.ok_or(Stop::Unhandled)?, Access::Read)?;
        let mut value = u128::from_le_bytes(bytes);
        if operation.rest == Rest::Kept {
            let shift = if operation.high { 64 } else { 0 };
            let low = u128::from(u64::MAX);
            value = (self.cpu.xmm(self.insn.reg)? & !(low << shift)) | (value << shift);
        }
        self.cpu.set_xmm(self.insn.reg, value)?;
        Ok(Flow::Next)
    }

    /// MOVD and MOVQ with a general-purpose register.
    fn vector_to_general(&mut self, operation: Move) -> Result {
        if operation.store {
            let value = self.cpu.xmm(self.insn.reg)? as u64;
            self.set_register(self.insn.rm, operation.size, value);
        } else {
            let value = self.register(self.insn.rm, operation.size);
            self.cpu.set_xmm(self.insn.reg, u128::from(value))?;
        }
        Ok(Flow::Next)
    }

    fn vector_to_vector(&mut self, operation: Move) -> Result {
        if !operation.between_registers {
            return Err(Stop::Unhandled);
        }
        let (from, to) = if operation.store {
            (self.insn.reg, self.insn.rm)
        } else {
            (self.insn.rm, self.insn.reg)
        };
        let mut value = self.cpu.xmm(from)?;
        if operation.size < 16 {
            let low = (1u128 << (u32::from(operation.size & 15) * 8)).wrapping_sub(1);
            value &= low;
            // MOVSS and MOVSD keep what is above.
            if matches!(self.insn.opcode, 0x10 | 0x11) {
                value |= self.cpu.xmm(to)? & !low;
            }
        }
        self.cpu.set_xmm(to, value)?;
        Ok(Flow::Next)
    }

    /// Whether SSE instructions may be used now (APM vol. 2, 11.3 and table 8-9).
    fn check_sse(&self) -> Result<()> {
        if self.cpu.cr0().contains(Cr0::EM) || !self.cpu.cr4().contains(Cr4::OSFXSR) {
            return Err(Exception::UD.into());
        }
        if self.cpu.cr0().contains(Cr0::TS) {
            return Err(Exception::new(vector::NM).into());
        }
        Ok(())
    }
}
