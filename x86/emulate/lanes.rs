// SPDX-License-Identifier: GPL-2.0-only

//! Moves of a part of an XMM or YMM register that an immediate chooses: PEXTRB, PEXTRW, PEXTRD,
//! PEXTRQ, EXTRACTPS, PINSRB, PINSRW, PINSRD, PINSRQ, INSERTPS, VEXTRACTF128, VINSERTF128 and their
//! kin (APM vol. 4).

use super::operand::Place;
use super::vector::Mandatory;
use super::Flow;
use super::Run;
use crate::cpu::Access;
use crate::cpu::Cpu;
use crate::cpu::Stop;
use crate::decode::Map;
use crate::features::Feature;
use crate::regs::Exception;

type Result<T = Flow> = core::result::Result<T, Stop>;

impl<C: Cpu> Run<'_, C> {
    /// Such a move; other instructions of the third map are not known.
    pub(super) fn lane_move(&mut self) -> Result {
        let insn = self.insn;
        let quad = if insn.rex_w() { 8 } else { 4 };
        let (size, store) = match (insn.map, insn.opcode) {
            (Map::ThreeByte3a, 0x14) => (1, true),
            (Map::ThreeByte3a, 0x15) => (2, true),
            (Map::ThreeByte3a, 0x16) => (quad, true),
            (Map::ThreeByte3a, 0x17) => (4, true),
            (Map::ThreeByte3a, 0x20) => (1, false),
            (Map::ThreeByte3a, 0x21) => (4, false),
            (Map::ThreeByte3a, 0x22) => (quad, false),
            (Map::TwoByte, 0xc4) => (2, false),
            (Map::TwoByte, 0xc5) if insn.mem.is_none() => (2, true),
            (Map::ThreeByte3a, 0x18 | 0x19 | 0x38 | 0x39) => return self.half_move(),
            _ => return Err(Stop::Unhandled),
        };
        // Without the prefix the last two are MMX instructions.
        if self.mandatory_prefix() != Mandatory::OperandSize {
            return Err(Stop::Unhandled);
        }
        match insn.vex {
            Some(vex) if vex.wide || (store && vex.source != 0) => {
                return Err(Exception::UD.into());
            }
            Some(_) => self.check_avx(Feature::AVX)?,
            None => {
                let moves_words = insn.map == Map::TwoByte;
                self.require(if moves_words {
                    Feature::SSE2
                } else {
                    Feature::SSE41
                })?;
                self.check_sse()?;
            }
        }
        match (insn.opcode, store) {
            (0xc5, _) => {
                let value = lane(self.cpu.xmm(insn.rm), self.chosen(size), size);
                self.set_register(insn.reg, 4, value);
            }
            (_, true) => self.extract(size)?,
            (0x21, false) => self.insert_single()?,
            (_, false) => self.insert(size)?,
        }
        Ok(Flow::Next)
    }

    /// The bit at which the lane begins that the immediate chooses.
    fn chosen(&self, size: u8) -> u32 {
        let lanes = 16u32.checked_div(u32::from(size)).unwrap_or(1);
        let number = self.insn.immediate as u32 & lanes.wrapping_sub(1);
        number.wrapping_mul(u32::from(size)).wrapping_mul(8)
    }

    fn extract(&mut self, size: u8) -> Result<()> {
        let value = lane(self.cpu.xmm(self.insn.reg), self.chosen(size), size);
        match self.place(size, Access::Write)? {
            // A register gets zeros above it.
            Place::Register(index) => self.set_register(index, size.max(4), value),
            Place::Memory(linear) => self.write(linear, size, value)?,
        }
        Ok(())
    }

    /// Sets a register to the first source, with another value in one lane.
    fn set_with_lane(&mut self, value: u64, at: u32, size: u8) -> u128 {
        let source = self.insn.vex.map_or(self.insn.reg, |vex| vex.source);
        let kept = self.cpu.xmm(source) & !u128::from(ones(size)).wrapping_shl(at);
        kept | u128::from(value & ones(size)).wrapping_shl(at)
    }

    fn insert(&mut self, size: u8) -> Result<()> {
        let value = match self.insn.mem {
            Some(_) => self.load_rm(size)?,
            None => self.register(self.insn.rm, size.max(4)),
        };
        let value = self.set_with_lane(value, self.chosen(size), size);
        self.set_vector(self.insn.reg, [value, 0]);
        Ok(())
    }

    /// INSERTPS: the immediate has the lane of a source register, that of the destination, and
    /// which lanes become zero.
    fn insert_single(&mut self) -> Result<()> {
        const SINGLE: u8 = 4;
        let immediate = self.insn.immediate as u32;
        let value = match self.insn.mem {
            Some(_) => self.load_rm(SINGLE)?,
            None => lane(
                self.cpu.xmm(self.insn.rm),
                (immediate >> 6 & 3).wrapping_mul(32),
                SINGLE,
            ),
        };
        let mut value = self.set_with_lane(value, (immediate >> 4 & 3).wrapping_mul(32), SINGLE);
        for number in (0..4u32).filter(|number| immediate.wrapping_shr(*number) & 1 != 0) {
            value &= !u128::from(ones(SINGLE)).wrapping_shl(number.wrapping_mul(32));
        }
        self.set_vector(self.insn.reg, [value, 0]);
        Ok(())
    }

    /// VINSERTF128, VEXTRACTF128, VINSERTI128, VEXTRACTI128.
    fn half_move(&mut self) -> Result {
        let insn = self.insn;
        let store = insn.opcode & 1 != 0;
        let (upper, integer) = (insn.immediate & 1 != 0, insn.opcode & 0x20 != 0);
        let Some(vex) = insn.vex else {
            return Err(Exception::UD.into());
        };
        let undefined = self.mandatory_prefix() != Mandatory::OperandSize || insn.rex_w();
        if undefined || !vex.wide || (store && vex.source != 0) {
            return Err(Exception::UD.into());
        }
        self.check_avx(if integer { Feature::AVX2 } else { Feature::AVX })?;
        if store {
            let [low, high] = self.ymm(insn.reg);
            let value = if upper { high } else { low };
            match self.place(16, Access::Write)? {
                Place::Register(index) => self.set_vector(index, [value, 0]),
                Place::Memory(linear) => self.cpu.write(linear, &value.to_le_bytes())?,
            }
            return Ok(Flow::Next);
        }
        let value = match self.place(16, Access::Read)? {
            Place::Register(index) => self.cpu.xmm(index),
            Place::Memory(linear) => {
                let mut bytes = [0; 16];
                self.cpu.read(linear, &mut bytes, Access::Read)?;
                u128::from_le_bytes(bytes)
            }
        };
        let [low, high] = self.ymm(vex.source);
        let value = if upper { [low, value] } else { [value, high] };
        self.set_vector(insn.reg, value);
        Ok(Flow::Next)
    }
}

fn ones(size: u8) -> u64 {
    super::address::mask(size)
}

/// The `size` bytes of a register that begin at this bit.
fn lane(value: u128, at: u32, size: u8) -> u64 {
    value.wrapping_shr(at) as u64 & ones(size)
}
