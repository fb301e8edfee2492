// SPDX-License-Identifier: GPL-2.0-only

//! The VEX prefix (APM vol. 3, 1.2.8; vol. 4, 1.2.1): an escape to three opcode maps, with what REX
//! and the mandatory prefixes say, a second source register, and the vector length.
//!
//! ```text
//!   C5   R vvvv L pp                        map 0F
//!   C4   R X B mmmmm   W vvvv L pp          maps 0F, 0F 38, 0F 3A
//! ```

use super::Bytes;
use super::CodeSize;
use super::DecodeError;
use super::Insn;
use super::Map;
use super::Prefixes;
use super::{REX_B, REX_R, REX_W, REX_X};

/// What a VEX prefix says besides REX and mandatory prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vex {
    /// The register in vvvv; 0 where the instruction has no second source, too.
    pub source: u8,
    /// VEX.L: 256 bits.
    pub wide: bool,
}

const TWO_BYTES: u8 = 0xc5;
/// Bits 7 to 3 of the last byte.
const W_OR_R: u8 = 1 << 7;
const X: u8 = 1 << 6;
const B: u8 = 1 << 5;
const L: u8 = 1 << 2;

impl Insn {
    /// Takes what follows `C4` or `C5`; `None` if that is LES or LDS, as it can be outside of
    /// 64-bit mode.
    pub(super) fn take_vex(
        &mut self,
        bytes: &mut Bytes<'_>,
        first: u8,
    ) -> Result<Option<(Map, u8)>, DecodeError> {
        let long = self.mode == CodeSize::Bits64;
        // Two registers are no operands of LES and LDS.
        if !long && bytes.peek()? >> 6 != 3 {
            return Ok(None);
        }
        let byte = bytes.next()?;
        let mut rex = if byte & W_OR_R == 0 { REX_R } else { 0 };
        let (map, last) = if first == TWO_BYTES {
            (Map::TwoByte, byte)
        } else {
            rex |= if byte & X == 0 { REX_X } else { 0 };
            rex |= if byte & B == 0 { REX_B } else { 0 };
            let map = match byte & 0x1f {
                1 => Map::TwoByte,
                2 => Map::ThreeByte38,
                3 => Map::ThreeByte3a,
                _ => return Err(DecodeError::Unknown),
            };
            let last = bytes.next()?;
            rex |= if last & W_OR_R != 0 { REX_W } else { 0 };
            (map, last)
        };
        let forbidden = Prefixes::OPERAND_SIZE | Prefixes::LOCK;
        if self.repeats() || self.rex != 0 || self.prefixes.intersects(forbidden) {
            return Err(DecodeError::Unknown);
        }
        let mut source = !last >> 3 & 0xf;
        if long {
            self.rex = rex;
        } else {
            // Eight registers, and none of them has 64 bits.
            source &= 7;
        }
        self.prefixes |= match last & 3 {
            0 => Prefixes::empty(),
            1 => Prefixes::OPERAND_SIZE,
            2 => Prefixes::REP,
            _ => Prefixes::REPNE,
        };
        self.vex = Some(Vex {
            source,
            wide: last & L != 0,
        });
        Ok(Some((map, bytes.next()?)))
    }
}
