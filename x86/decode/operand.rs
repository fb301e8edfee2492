// SPDX-License-Identifier: GPL-2.0-only

//! The operands that the exit handlers of a CPU without decode assists ask for.

use super::CodeSize;
use super::Insn;
use super::Map;
use super::Prefixes;

/// A MOV between a general-purpose register and a control or debug register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrAccess {
    /// Number of the control or debug register, 0 to 15.
    pub register: u8,
    /// Index of the general-purpose register.
    pub gpr: u8,
    /// The control or debug register is written.
    pub write: bool,
}

impl Insn {
    /// The operands of MOV CRn. `LOCK MOV CR0` means CR8 (APM vol. 3, MOV CRn).
    pub fn mov_cr_operand(&self) -> Option<CrAccess> {
        let lock = if self.has(Prefixes::LOCK) { 8 } else { 0 };
        self.special_move(0x20, 0x22).map(|access| CrAccess {
            register: access.register | lock,
            ..access
        })
    }

    /// The operands of MOV DRn.
    pub fn mov_dr_operand(&self) -> Option<CrAccess> {
        self.special_move(0x21, 0x23)
    }

    fn special_move(&self, read: u8, write: u8) -> Option<CrAccess> {
        if !self.is_special_move() || (self.opcode != read && self.opcode != write) {
            return None;
        }
        Some(CrAccess {
            register: self.reg,
            gpr: self.rm,
            write: self.opcode == write,
        })
    }

    /// MOV to or from CRn and DRn: ModRM.mod is ignored, and the operand size is fixed.
    pub(super) fn is_special_move(&self) -> bool {
        self.vex.is_none() && self.map == Map::TwoByte && matches!(self.opcode, 0x20..=0x23)
    }

    /// Whether this is CLTS.
    pub fn is_clts(&self) -> bool {
        self.is(Map::TwoByte, 0x06)
    }

    /// Whether this is LMSW. [`crate::emulate::emulate`] executes it.
    pub fn is_lmsw(&self) -> bool {
        self.is(Map::TwoByte, 0x01) && self.group() == 6
    }

    /// Whether this is SMSW. [`crate::emulate::emulate`] executes it.
    pub fn is_smsw(&self) -> bool {
        self.is(Map::TwoByte, 0x01) && self.group() == 4
    }

    /// Whether this is INVLPG. Its operand is what [`crate::emulate::linear_address`] computes.
    pub fn is_invlpg(&self) -> bool {
        self.is(Map::TwoByte, 0x01) && self.group() == 7 && self.mem.is_some()
    }

    /// Whether this is INS or OUTS.
    pub fn is_string_io(&self) -> bool {
        self.map == Map::OneByte && matches!(self.opcode, 0x6c..=0x6f)
    }

    /// The interrupt vector of INT n, INT3 and INTO. ICEBP (`F1`) is none of them.
    pub fn software_interrupt(&self) -> Option<u8> {
        match (self.map, self.opcode) {
            (Map::OneByte, 0xcc) => Some(crate::regs::vector::BP),
            (Map::OneByte, 0xcd) => Some(self.immediate as u8),
            (Map::OneByte, 0xce) => Some(crate::regs::vector::OF),
            _ => None,
        }
    }

    /// Whether the instruction is 64-bit code.
    pub(crate) fn is_64_bit(&self) -> bool {
        self.mode == CodeSize::Bits64
    }
}
