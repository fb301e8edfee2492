// SPDX-License-Identifier: GPL-2.0-only

//! The instructions on bits that came later: POPCNT, TZCNT, LZCNT, CRC32, ADCX, ADOX, BMI1 and BMI2
//! (APM vol. 3). What the manual calls undefined in RFLAGS stays as it was.

use super::address::mask;
use super::alu;
use super::vector::Mandatory;
use super::Flow;
use super::Run;
use crate::cpu::Cpu;
use crate::cpu::Stop;
use crate::decode::Map;
use crate::features::Feature;
use crate::regs::gpr;
use crate::regs::Exception;
use crate::regs::Rflags;

type Result<T = Flow> = core::result::Result<T, Stop>;

fn bits(size: u8) -> u32 {
    u32::from(size.min(8)).wrapping_mul(8)
}

/// The low `count` bits.
fn low(count: u32) -> u64 {
    1u64.checked_shl(count).unwrap_or(0).wrapping_sub(1)
}

/// The bits of `value` that `mask` selects, side by side.
fn extract(value: u64, mask: u64) -> u64 {
    let (mut result, mut mask, mut place) = (0, mask, 1u64);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        if value & lowest != 0 {
            result |= place;
        }
        place = place.wrapping_shl(1);
        mask ^= lowest;
    }
    result
}

/// The low bits of `value`, spread to where `mask` has bits.
fn deposit(value: u64, mask: u64) -> u64 {
    let (mut result, mut mask, mut value) = (0, mask, value);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        if value & 1 != 0 {
            result |= lowest;
        }
        value >>= 1;
        mask ^= lowest;
    }
    result
}

/// One step of CRC-32C: the polynomial 11EDC6F41h, lowest bit first.
fn crc32(crc: u32, data: u64, size: u8) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut crc = crc;
    for byte in data.to_le_bytes().iter().take(usize::from(size)) {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let carry = crc & 1 != 0;
            crc = crc >> 1 ^ if carry { POLYNOMIAL } else { 0 };
        }
    }
    crc
}

impl<C: Cpu> Run<'_, C> {
    /// #UD without the feature.
    pub(super) fn require(&self, feature: Feature) -> Result<()> {
        if self.cpu.has(feature) {
            Ok(())
        } else {
            Err(Exception::UD.into())
        }
    }

    /// POPCNT.
    pub(super) fn count_bits(&mut self) -> Result {
        if self.mandatory_prefix() != Mandatory::Rep {
            return Err(Stop::Unhandled);
        }
        self.require(Feature::POPCNT)?;
        let size = self.insn.operand_size;
        let value = self.load_rm(size)?;
        let mut flags = self.flags().difference(alu::STATUS);
        flags.set(Rflags::ZF, value == 0);
        self.cpu.set_rflags(flags);
        self.set_register(self.insn.reg, size, u64::from(value.count_ones()));
        Ok(Flow::Next)
    }

    /// Whether BSF and BSR are TZCNT and LZCNT on this CPU.
    pub(super) fn counts_zeros(&self) -> bool {
        let feature = if self.insn.opcode & 1 == 0 {
            Feature::BMI1
        } else {
            Feature::ABM
        };
        self.mandatory_prefix() == Mandatory::Rep && self.cpu.has(feature)
    }

    /// TZCNT and LZCNT.
    pub(super) fn count_zeros(&mut self) -> Result {
        let size = self.insn.operand_size;
        let value = self.load_rm(size)?;
        let count = if value == 0 {
            bits(size)
        } else if self.insn.opcode & 1 == 0 {
            value.trailing_zeros()
        } else {
            value
                .leading_zeros()
                .wrapping_sub(64u32.wrapping_sub(bits(size)))
        };
        let mut flags = self.flags();
        flags.set(Rflags::CF, value == 0);
        flags.set(Rflags::ZF, count == 0);
        self.cpu.set_rflags(flags);
        self.set_register(self.insn.reg, size, u64::from(count));
        Ok(Flow::Next)
    }

    /// CRC32.
    pub(super) fn checksum(&mut self) -> Result {
        self.require(Feature::SSE42)?;
        let size = self.width();
        let data = self.load_rm(size)?;
        let crc = crc32(self.register(self.insn.reg, 4) as u32, data, size);
        self.set_register(self.insn.reg, 4, u64::from(crc));
        Ok(Flow::Next)
    }

    /// ADCX and ADOX: an addition with its own carry flag.
    pub(super) fn add_with_flag(&mut self) -> Result {
        let flag = match self.mandatory_prefix() {
            Mandatory::OperandSize => Rflags::CF,
            Mandatory::Rep => Rflags::OF,
            _ => return Err(Stop::Unhandled),
        };
        self.require(Feature::ADX)?;
        let size = if self.insn.rex_w() { 8 } else { 4 };
        let source = self.load_rm(size)?;
        let carry = u64::from(self.flags().contains(flag));
        let old = self.register(self.insn.reg, size);
        let (sum, new) = alu::add(old, source, carry, size, self.flags());
        let mut flags = self.flags();
        flags.set(flag, new.contains(Rflags::CF));
        self.cpu.set_rflags(flags);
        self.set_register(self.insn.reg, size, sum);
        Ok(Flow::Next)
    }

    /// BMI1 and BMI2, which have VEX prefixes.
    #[rustfmt::skip]
    pub(super) fn vex_bits(&mut self) -> Result {
        use Mandatory::{None as Plain, OperandSize, Rep, Repne};
        let vex = self.insn.vex.ok_or(Stop::Unhandled)?;
        let key = (self.insn.map, self.insn.opcode, self.mandatory_prefix());
        let feature = match key {
            (Map::ThreeByte38, 0xf2 | 0xf3 | 0xf7, Plain) => Feature::BMI1,
            (Map::ThreeByte38, 0xf5, Plain | Rep | Repne) => Feature::BMI2,
            (Map::ThreeByte38, 0xf6, Repne) => Feature::BMI2,
            (Map::ThreeByte38, 0xf7, OperandSize | Rep | Repne) => Feature::BMI2,
            (Map::ThreeByte3a, 0xf0, Repne) => Feature::BMI2,
            _ => return Err(Stop::Unhandled),
        };
        let no_group = self.insn.opcode == 0xf3 && !matches!(self.insn.group(), 1..=3);
        let unused = self.insn.opcode == 0xf0 && vex.source != 0;
        if vex.wide || unused || no_group || self.has_no_descriptors() {
            return Err(Exception::UD.into());
        }
        self.require(feature)?;
        let size = self.insn.operand_size;
        let operand = self.load_rm(size)?;
        let other = self.register(vex.source, size);
        let count = other as u32 & bits(size).wrapping_sub(1);
        let signed = alu::sign_extend(operand, size) as i64;
        let (result, flags) = match key {
            (Map::ThreeByte3a, ..) => (self.rotated(operand, self.insn.immediate as u32, size), None),
            (_, 0xf2, _) => (!other & operand, Some(Rflags::empty())),
            (_, 0xf3, _) => return self.lowest_bit(vex.source, operand, size),
            (_, 0xf5, Plain) => {
                let count = other as u32 & 0xff;
                let beyond = count >= bits(size);
                (operand & low(count), Some(if beyond { Rflags::CF } else { Rflags::empty() }))
            }
            (_, 0xf5, Rep) => (extract(other, operand), None),
            (_, 0xf5, _) => (deposit(other, operand), None),
            (_, 0xf6, _) => return self.multiply_without_flags(vex.source, operand, size),
            (_, _, Plain) => {
                let (start, length) = (other as u32 & 0xff, other as u32 >> 8 & 0xff);
                (operand.checked_shr(start).unwrap_or(0) & low(length), Some(Rflags::empty()))
            }
            (_, _, OperandSize) => (operand.wrapping_shl(count), None),
            (_, _, Rep) => (signed.wrapping_shr(count) as u64, None),
            (_, _, Repne) => (operand.wrapping_shr(count), None),
        };
        self.set_register(self.insn.reg, size, result);
        if let Some(carry) = flags {
            self.set_bit_flags(result & mask(size), carry, size);
        }
        Ok(Flow::Next)
    }

    fn rotated(&self, value: u64, count: u32, size: u8) -> u64 {
        match size {
            8 => value.rotate_right(count & 63),
            _ => u64::from((value as u32).rotate_right(count & 31)),
        }
    }

    /// ZF and SF of the result, this carry, and no overflow. BEXTR defines no SF.
    fn set_bit_flags(&mut self, result: u64, carry: Rflags, size: u8) {
        let (_, new) = alu::logic(result, size, self.flags());
        let kept = Rflags::AF | Rflags::PF;
        let flags = new.difference(kept) | self.flags() & kept;
        self.cpu.set_rflags(flags | carry);
    }

    /// BLSR, BLSMSK, BLSI; vvvv is the destination.
    fn lowest_bit(&mut self, to: u8, operand: u64, size: u8) -> Result {
        let below = operand.wrapping_sub(1);
        let (result, carry) = match self.insn.group() {
            1 => (operand & below, operand == 0),
            2 => (operand ^ below, operand == 0),
            _ => (operand & operand.wrapping_neg(), operand != 0),
        };
        let result = result & mask(size);
        self.set_register(to, size, result);
        let carry = if carry { Rflags::CF } else { Rflags::empty() };
        self.set_bit_flags(result, carry, size);
        Ok(Flow::Next)
    }

    /// MULX: the upper half goes to ModRM.reg, which counts if both are the same.
    fn multiply_without_flags(&mut self, low: u8, operand: u64, size: u8) -> Result {
        let factor = self.register(gpr::RDX, size);
        let product = u128::from(operand).wrapping_mul(u128::from(factor));
        self.set_register(low, size, product as u64);
        self.set_register(self.insn.reg, size, product.wrapping_shr(bits(size)) as u64);
        Ok(Flow::Next)
    }
}
