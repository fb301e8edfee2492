// SPDX-License-Identifier: GPL-2.0-only

//! The MMX moves, and the x87 instructions that store or load no numbers: FNSTCW, FNSTSW, FLDCW,
//! FNINIT, FNCLEX (APM vol. 5). With them LDMXCSR and STMXCSR.

use super::vector::Mandatory;
use super::Flow;
use super::Run;
use crate::cpu::Access;
use crate::cpu::Cpu;
use crate::cpu::Stop;
use crate::cpu::X87;
use crate::features::Feature;
use crate::fxsave;
use crate::regs::gpr;
use crate::regs::vector;
use crate::regs::Cr0;
use crate::regs::Exception;

type Result<T = Flow> = core::result::Result<T, Stop>;

/// An exception of the x87 unit is pending (APM vol. 1, 6.2.2).
const STATUS_ES: u16 = 1 << 7;
/// What FNCLEX clears: the exceptions, stack fault, ES and B.
const STATUS_EXCEPTIONS: u16 = 0x80ff;
/// The exceptions themselves.
const EXCEPTIONS: u16 = 0x3f;
/// ES and B follow the unmasked exceptions.
const STATUS_SUMMARY: u16 = 0x8080;

impl<C: Cpu> Run<'_, C> {
    /// Whether a move that MMX and SSE have in common is that of MMX.
    pub(super) fn is_mmx(&self) -> bool {
        self.mandatory_prefix() == Mandatory::None
    }

    /// MOVD, MOVQ and MOVNTQ.
    pub(super) fn mmx_move(&mut self) -> Result {
        let opcode = self.insn.opcode;
        let size = match opcode {
            0x6e | 0x7e if !self.insn.rex_w() => 4,
            _ => 8,
        };
        let general = matches!(opcode, 0x6e | 0x7e);
        let store = matches!(opcode, 0x7e | 0x7f | 0xe7);
        self.check_mmx()?;
        // There are eight; REX.R and REX.B are ignored.
        let register = self.insn.reg & 7;
        if store {
            let value = self.cpu.mmx(register);
            if self.insn.mem.is_some() {
                let linear = self.memory(size, Access::Write)?;
                self.write(linear, size, value)?;
            } else if general {
                self.set_register(self.insn.rm, size, value);
            } else if opcode == 0xe7 {
                return Err(Exception::UD.into());
            } else {
                self.cpu.use_mmx(Some((self.insn.rm & 7, value)));
                return Ok(Flow::Next);
            }
            self.cpu.use_mmx(None);
            return Ok(Flow::Next);
        }
        let value = if general || self.insn.mem.is_some() {
            self.load_rm(size)?
        } else {
            self.cpu.mmx(self.insn.rm & 7)
        };
        self.cpu.use_mmx(Some((register, value)));
        Ok(Flow::Next)
    }

    /// APM vol. 2, table 8-9: #UD, #NM, and #MF for an x87 exception that is still pending.
    fn check_mmx(&mut self) -> Result<()> {
        if self.cpu.cr0().contains(Cr0::EM) {
            return Err(Exception::UD.into());
        }
        self.check_switched()?;
        if self.cpu.x87().status & STATUS_ES != 0 {
            return Err(Exception::new(vector::MF).into());
        }
        Ok(())
    }

    /// The x87 instructions; without numbers, that is.
    pub(super) fn x87(&mut self) -> Result {
        if self.cpu.cr0().intersects(Cr0::EM | Cr0::TS) {
            return Err(Exception::new(vector::NM).into());
        }
        let mut x87 = self.cpu.x87();
        let memory = self.insn.mem.is_some();
        match (self.insn.opcode, self.insn.group(), self.insn.modrm) {
            // FNSTCW, FNSTSW.
            (0xd9, 7, _) if memory => return self.store_value(2, u64::from(x87.control)),
            (0xdd, 7, _) if memory => return self.store_value(2, u64::from(x87.status)),
            (0xdf, _, 0xe0) => {
                self.set_register(gpr::RAX, 2, u64::from(x87.status));
                return Ok(Flow::Next);
            }
            // FLDCW waits for exceptions that are pending.
            (0xd9, 5, _) if memory => {
                if x87.status & STATUS_ES != 0 {
                    return Err(Exception::new(vector::MF).into());
                }
                /// Bit 6 reads as one, and bits 7, 13, 14 and 15 as zero.
                const RESERVED: u16 = 0xe080;
                x87.control = self.load_rm(2)? as u16 & !RESERVED | 1 << 6;
                let unmasked = x87.status & EXCEPTIONS & !x87.control != 0;
                x87.status &= !STATUS_SUMMARY;
                x87.status |= if unmasked { STATUS_SUMMARY } else { 0 };
            }
            // FNINIT, FNCLEX.
            (0xdb, _, 0xe3) => {
                x87 = X87 {
                    control: fxsave::FCW_INIT,
                    status: 0,
                    tags: 0,
                }
            }
            (0xdb, _, 0xe2) => x87.status &= !STATUS_EXCEPTIONS,
            // FNENI, FNDISI and FNSETPM of old do nothing.
            (0xdb, _, 0xe0 | 0xe1 | 0xe4) => return Ok(Flow::Next),
            _ => return Err(Stop::Unhandled),
        }
        self.cpu.set_x87(x87);
        Ok(Flow::Next)
    }

    /// FWAIT (APM vol. 2, table 8-9): only it looks at CR0.MP.
    pub(super) fn wait(&mut self) -> Result {
        if self.cpu.cr0().contains(Cr0::MP | Cr0::TS) {
            return Err(Exception::new(vector::NM).into());
        }
        if self.cpu.x87().status & STATUS_ES != 0 {
            return Err(Exception::new(vector::MF).into());
        }
        Ok(Flow::Next)
    }

    /// Whether an instruction of group 15 is LDMXCSR or STMXCSR.
    pub(super) fn is_mxcsr(&self) -> bool {
        matches!(self.insn.group(), 2 | 3) && self.insn.mem.is_some()
    }

    /// LDMXCSR and STMXCSR, and their VEX forms.
    pub(super) fn mxcsr(&mut self) -> Result {
        if self.mandatory_prefix() != Mandatory::None {
            return Err(Exception::UD.into());
        }
        match self.insn.vex {
            Some(vex) if vex.wide || vex.source != 0 => return Err(Exception::UD.into()),
            Some(_) => self.check_avx(Feature::AVX)?,
            None => self.check_sse()?,
        }
        if self.insn.group() == 3 {
            let value = self.cpu.mxcsr();
            return self.store_value(4, u64::from(value));
        }
        let value = self.load_rm(4)? as u32;
        if !self.cpu.set_mxcsr(value) {
            return Err(Exception::GP0.into());
        }
        Ok(Flow::Next)
    }
}
