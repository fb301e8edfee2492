// SPDX-License-Identifier: GPL-2.0-only

//! Decimal numbers, which 64-bit mode has no more: DAA, DAS, AAA, AAS, AAM, AAD; and SALC, which no
//! manual has (APM vol. 3, chapter 3). What the manual calls undefined in RFLAGS stays as it was,
//! or becomes zero.

use super::alu;
use super::Flow;
use super::Run;
use crate::cpu::Cpu;
use crate::cpu::Stop;
use crate::regs::gpr;
use crate::regs::vector;
use crate::regs::Exception;
use crate::regs::Rflags;

type Result<T = Flow> = core::result::Result<T, Stop>;

impl<C: Cpu> Run<'_, C> {
    /// DAA and DAS: AL becomes two decimal digits.
    pub(super) fn adjust_packed(&mut self) -> Result {
        let subtract = self.insn.opcode & 8 != 0;
        let flags = self.flags();
        let old = self.register(gpr::RAX, 1);
        let mut correction = 0_u64;
        let low = old & 0xf > 9 || flags.contains(Rflags::AF);
        let high = old > 0x99 || flags.contains(Rflags::CF);
        correction = correction.wrapping_add(if low { 6 } else { 0 });
        correction = correction.wrapping_add(if high { 0x60 } else { 0 });
        let borrows = low && !high && subtract && old < 6;
        let new = match subtract {
            true => old.wrapping_sub(correction),
            false => old.wrapping_add(correction),
        } & 0xff;
        let (_, mut flags) = alu::logic(new, 1, flags);
        flags.set(Rflags::AF, low);
        flags.set(Rflags::CF, high || borrows);
        self.set_register(gpr::RAX, 1, new);
        self.cpu.set_rflags(flags);
        Ok(Flow::Next)
    }

    /// AAA and AAS: AL becomes one decimal digit, and AH gets the carry.
    pub(super) fn adjust_digit(&mut self) -> Result {
        let subtract = self.insn.opcode & 8 != 0;
        let mut flags = self.flags();
        let mut ax = self.register(gpr::RAX, 2);
        let carry = ax & 0xf > 9 || flags.contains(Rflags::AF);
        if carry {
            /// Six to AL, and one to AH.
            const CORRECTION: u64 = 0x106;
            ax = match subtract {
                true => ax.wrapping_sub(CORRECTION),
                false => ax.wrapping_add(CORRECTION),
            };
        }
        self.set_register(gpr::RAX, 2, ax & 0xff0f);
        flags.set(Rflags::AF, carry);
        flags.set(Rflags::CF, carry);
        self.cpu.set_rflags(flags);
        Ok(Flow::Next)
    }

    /// AAM, and AAD.
    pub(super) fn adjust_product(&mut self) -> Result {
        let base = self.insn.immediate & 0xff;
        let (al, ah) = (self.register(gpr::RAX, 1), self.register(gpr::RAX, 2) >> 8);
        let result = if self.insn.opcode & 1 == 0 {
            let quotient = al.checked_div(base).ok_or(Exception::new(vector::DE))?;
            quotient << 8 | al.checked_rem(base).unwrap_or(0)
        } else {
            al.wrapping_add(ah.wrapping_mul(base)) & 0xff
        };
        self.set_register(gpr::RAX, 2, result);
        let (_, flags) = alu::logic(result & 0xff, 1, self.flags());
        self.cpu.set_rflags(flags);
        Ok(Flow::Next)
    }

    /// SALC: AL becomes ones if CF is set, else zero.
    pub(super) fn set_al_on_carry(&mut self) -> Result {
        let carry = self.flags().contains(Rflags::CF);
        self.set_register(gpr::RAX, 1, if carry { 0xff } else { 0 });
        Ok(Flow::Next)
    }
}
