// SPDX-License-Identifier: GPL-2.0-only

//! Multiplication, division, and the bit scans (APM vol. 3: MUL, IMUL, DIV, IDIV, BSF, BSR).
//!
//! The 128-bit dividend of a 64-bit DIV is divided bit by bit: the kernel links no library that
//! could do it at once.

use super::address::mask;
use super::alu::sign_extend;
use super::Flow;
use super::Run;
use crate::cpu::Cpu;
use crate::cpu::Stop;
use crate::regs::gpr;
use crate::regs::vector;
use crate::regs::Exception;
use crate::regs::Rflags;

type Result<T = Flow> = core::result::Result<T, Stop>;

/// The upper and the lower half of a number of twice the operand size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wide {
    high: u64,
    low: u64,
}

fn bits(size: u8) -> u32 {
    u32::from(size.min(8)).wrapping_mul(8)
}

impl Wide {
    fn from_bits(value: u128, size: u8) -> Self {
        Self {
            high: value.wrapping_shr(bits(size)) as u64 & mask(size),
            low: value as u64 & mask(size),
        }
    }

    fn unsigned(self, size: u8) -> u128 {
        u128::from(self.high).wrapping_shl(bits(size)) | u128::from(self.low)
    }

    fn signed(self, size: u8) -> i128 {
        let high = i128::from(sign_extend(self.high, size) as i64);
        high.wrapping_shl(bits(size)) | i128::from(self.low)
    }
}

/// The product of two signed numbers, and whether its lower half has lost any of it.
fn multiply_signed(a: u64, b: u64, size: u8) -> (Wide, bool) {
    let extended = |value| i128::from(sign_extend(value, size) as i64);
    let product = extended(a).wrapping_mul(extended(b));
    let wide = Wide::from_bits(product as u128, size);
    (wide, extended(wide.low) != product)
}

fn multiply_unsigned(a: u64, b: u64, size: u8) -> (Wide, bool) {
    let product = u128::from(a).wrapping_mul(u128::from(b));
    let wide = Wide::from_bits(product, size);
    (wide, wide.high != 0)
}

/// Quotient and remainder, or `None` if the quotient is too big for `size` bytes.
fn divide_unsigned(dividend: Wide, divisor: u64, size: u8) -> Option<(u64, u64)> {
    if dividend.high >= divisor {
        return None;
    }
    if size < 8 {
        let dividend = dividend.unsigned(size) as u64;
        return Some((
            dividend.checked_div(divisor)?,
            dividend.checked_rem(divisor)?,
        ));
    }
    let (mut remainder, mut quotient) = (dividend.high, dividend.low);
    for _ in 0..u64::BITS {
        let carry = remainder >> 63 != 0;
        remainder = (remainder << 1) | (quotient >> 63);
        quotient <<= 1;
        if carry || remainder >= divisor {
            remainder = remainder.wrapping_sub(divisor);
            quotient |= 1;
        }
    }
    Some((quotient, remainder))
}

fn divide_signed(dividend: Wide, divisor: u64, size: u8) -> Option<(u64, u64)> {
    let dividend = dividend.signed(size);
    let divisor = sign_extend(divisor, size) as i64;
    let magnitude = Wide::from_bits(dividend.unsigned_abs(), size);
    let (quotient, remainder) = divide_unsigned(magnitude, divisor.unsigned_abs(), size)?;
    let negative = (dividend < 0) != (divisor < 0);
    let largest = (mask(size) >> 1).wrapping_add(u64::from(negative));
    if quotient > largest {
        return None;
    }
    let with_sign = |value: u64, negative| {
        if negative {
            value.wrapping_neg()
        } else {
            value
        }
    };
    Some((
        with_sign(quotient, negative),
        with_sign(remainder, dividend < 0),
    ))
}

impl<C: Cpu> Run<'_, C> {
    /// MUL, IMUL, DIV and IDIV with rDX:rAX, or with AX. `operation` is 4 to 7, as in group 3.
    pub(super) fn multiply_or_divide(&mut self, operation: u8, size: u8) -> Result {
        let operand = self.load_rm(size)?;
        let signed = operation & 1 != 0;
        if operation & 2 == 0 {
            let multiply = if signed {
                multiply_signed
            } else {
                multiply_unsigned
            };
            let (product, overflow) = multiply(self.register(gpr::RAX, size), operand, size);
            self.set_accumulators(product, size);
            self.set_overflow(overflow);
            return Ok(Flow::Next);
        }
        let divide = if signed {
            divide_signed
        } else {
            divide_unsigned
        };
        let (quotient, remainder) =
            divide(self.accumulators(size), operand, size).ok_or(Exception::new(vector::DE))?;
        let result = Wide {
            high: remainder & mask(size),
            low: quotient & mask(size),
        };
        self.set_accumulators(result, size);
        Ok(Flow::Next)
    }

    /// IMUL of a register with ModRM.rm, or of ModRM.rm with an immediate.
    pub(super) fn multiply_into(&mut self, factor: u64) -> Result {
        let size = self.insn.operand_size;
        let operand = self.load_rm(size)?;
        let (product, overflow) = multiply_signed(operand, factor, size);
        self.set_register(self.insn.reg, size, product.low);
        self.set_overflow(overflow);
        Ok(Flow::Next)
    }

    /// BSF and BSR. The destination keeps all of its bits if there is no bit to be found.
    pub(super) fn bit_scan(&mut self) -> Result {
        let size = self.insn.operand_size;
        let operand = self.load_rm(size)?;
        let mut flags = self.flags().difference(Rflags::ZF);
        if operand == 0 {
            flags |= Rflags::ZF;
        } else {
            let index = if self.insn.opcode & 1 == 0 {
                operand.trailing_zeros()
            } else {
                operand.leading_zeros() ^ 63
            };
            self.set_register(self.insn.reg, size, u64::from(index));
        }
        self.cpu.set_rflags(flags);
        Ok(Flow::Next)
    }

    fn accumulators(&self, size: u8) -> Wide {
        let low = self.register(gpr::RAX, size);
        let high = if size == 1 {
            self.register(gpr::RAX, 2) >> 8
        } else {
            self.register(gpr::RDX, size)
        };
        Wide { high, low }
    }

    fn set_accumulators(&mut self, value: Wide, size: u8) {
        if size == 1 {
            self.set_register(gpr::RAX, 2, (value.high << 8) | value.low);
        } else {
            self.set_register(gpr::RAX, size, value.low);
            self.set_register(gpr::RDX, size, value.high);
        }
    }

    /// CF and OF; the other flags are undefined.
    fn set_overflow(&mut self, overflow: bool) {
        let both = Rflags::CF.union(Rflags::OF);
        let flags = self.flags().difference(both);
        let new = if overflow { both } else { Rflags::empty() };
        self.cpu.set_rflags(flags | new);
    }
}
