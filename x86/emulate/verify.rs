// SPDX-License-Identifier: GPL-2.0-only

//! What only looks at selectors and bounds: VERR, VERW, LAR, LSL, ARPL, BOUND (APM vol. 3, chapters
//! 3 and 4).

use super::alu;
use super::operand::Place;
use super::segment::{is_null, rpl};
use super::Flow;
use super::Run;
use crate::cpu::Access;
use crate::cpu::Cpu;
use crate::cpu::Stop;
use crate::descriptor::{self, Descriptor};
use crate::regs::vector;
use crate::regs::Exception;
use crate::regs::Rflags;
use crate::regs::SegAttr;

type Result<T = Flow> = core::result::Result<T, Stop>;

/// Types of system segments, as sets (APM vol. 2, tables 4-5 and 4-6).
const LDT: u16 = 1 << 2;
const TSS: u16 = 1 << 9 | 1 << 11;
const TSS_16: u16 = 1 << 1 | 1 << 3;
const CALL_GATE: u16 = 1 << 12;
/// The 16-bit call gate, and the task gate.
const GATES_16: u16 = 1 << 4 | 1 << 5;

impl<C: Cpu> Run<'_, C> {
    /// The descriptor of the selector in ModRM.rm, if the program may know of it.
    fn visible_descriptor(&mut self) -> Result<Option<Descriptor>> {
        let selector = self.load_rm(2)? as u16;
        if is_null(selector) {
            return Ok(None);
        }
        let level = self.privilege().max(rpl(selector));
        let found = descriptor::read(self.cpu, selector)?;
        Ok(found.filter(|descriptor| {
            let conforming = descriptor.has(SegAttr::S) && descriptor.is_conforming();
            conforming || descriptor.dpl() >= level
        }))
    }

    fn set_zero_flag(&mut self, value: bool) {
        let mut flags = self.flags();
        flags.set(Rflags::ZF, value);
        self.cpu.set_rflags(flags);
    }

    /// VERR and VERW.
    pub(super) fn verify(&mut self) -> Result {
        let write = self.insn.group() & 1 != 0;
        let descriptor = self.visible_descriptor()?;
        let allowed = descriptor.is_some_and(|descriptor| {
            let code = descriptor.has(SegAttr::CODE);
            // Bit 1 is "writable" of data and "readable" of code.
            let bit = descriptor.has(SegAttr::WRITABLE);
            let allowed = if write { !code && bit } else { !code || bit };
            allowed && descriptor.has(SegAttr::S)
        });
        self.set_zero_flag(allowed);
        Ok(Flow::Next)
    }

    /// LAR and LSL.
    pub(super) fn load_rights_or_limit(&mut self) -> Result {
        /// Type, S, DPL and P; AVL, L, D/B and G.
        const RIGHTS: u32 = 0x00f0_ff00;
        if self.has_no_descriptors() {
            return Err(Exception::UD.into());
        }
        let rights = self.insn.opcode & 1 == 0;
        let known = match (rights, self.is_long()) {
            (true, true) => LDT | TSS | CALL_GATE,
            (true, false) => LDT | TSS | TSS_16 | CALL_GATE | GATES_16,
            (false, true) => LDT | TSS,
            (false, false) => LDT | TSS | TSS_16,
        };
        let descriptor = self.visible_descriptor()?.filter(|descriptor| {
            let kind = descriptor.kind().intersection(SegAttr::TYPE).bits();
            descriptor.has(SegAttr::S) || known >> kind & 1 != 0
        });
        if let Some(descriptor) = descriptor {
            let value = match rights {
                true => descriptor.upper() & RIGHTS,
                false => descriptor.segment.limit,
            };
            self.set_register(self.insn.reg, self.insn.operand_size, u64::from(value));
        }
        self.set_zero_flag(descriptor.is_some());
        Ok(Flow::Next)
    }

    /// ARPL: the selector in ModRM.rm gets the RPL of the other one, if its own is lower.
    pub(super) fn adjust_rpl(&mut self) -> Result {
        if self.has_no_descriptors() {
            return Err(Exception::UD.into());
        }
        let place = self.place(2, Access::Write)?;
        let old = match place {
            Place::Register(_) => self.load(place, 2)?,
            Place::Memory(linear) => self.read(linear, 2, Access::Write)?,
        };
        let least = self.register(self.insn.reg, 2) & 3;
        let lower = old & 3 < least;
        if lower {
            self.store_rm(2, old & !3 | least)?;
        }
        self.set_zero_flag(lower);
        Ok(Flow::Next)
    }

    /// BOUND: #BR if the register is not within two signed numbers in memory.
    pub(super) fn check_bounds(&mut self) -> Result {
        let size = self.insn.operand_size.min(4);
        let both = size.wrapping_mul(2);
        let linear = self.memory(both, Access::Read)?;
        let bounds = self.read(linear, both, Access::Read)?;
        let signed = |value: u64| alu::sign_extend(value, size) as i64;
        let (lower, upper) = (signed(bounds), signed(bounds >> (8 * u32::from(size))));
        let index = signed(self.register(self.insn.reg, size));
        if index < lower || index > upper {
            return Err(Exception::new(vector::BR).into());
        }
        Ok(Flow::Next)
    }
}
