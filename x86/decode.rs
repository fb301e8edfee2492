// SPDX-License-Identifier: GPL-2.0-only

//! The instruction decoder: bytes in, one [`Insn`] out.
//!
//! ```text
//!   prefixes, REX ─► opcode ─► table::layout ─► ModRM, SIB, displacement ─► immediates
//! ```
//!
//! It knows the layout of every instruction of the four legacy opcode maps (APM vol. 3, appendix
//! A), because its commonest use is to find the *length* of an instruction that the CPU
//! intercepted. What the instruction does is the business of [`crate::emulate`].

use crate::regs::gpr;
use crate::regs::SegReg;
use bitflags::bitflags;

mod operand;
mod table;
mod vex;

pub use operand::CrAccess;
use table::Immediate;
use table::Traits;
pub use vex::Vex;

/// No instruction is longer (APM vol. 3, 1.1).
pub const MAX_LENGTH: usize = 15;

/// The kind of code that CS selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeSize {
    /// Real mode, virtual-8086 mode, and protected mode with CS.D = 0.
    Bits16,
    /// Protected or compatibility mode with CS.D = 1.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

/// Why bytes are no instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The instruction goes on behind the bytes given.
    NeedMoreBytes,
    /// The instruction has more than [`MAX_LENGTH`] bytes: #GP(0).
    TooLong,
    /// An undefined opcode, or one of the EVEX and XOP encodings.
    Unknown,
}

/// An opcode map (APM vol. 3, 1.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// The opcode is one byte.
    OneByte,
    /// The opcode follows `0F`.
    TwoByte,
    /// The opcode follows `0F 38`.
    ThreeByte38,
    /// The opcode follows `0F 3A`.
    ThreeByte3a,
}

/// The legacy prefixes that were there, without the segment overrides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefixes(u8);

bitflags! {
    impl Prefixes: u8 {
        /// `66`.
        const OPERAND_SIZE = 1 << 0;
        /// `67`.
        const ADDRESS_SIZE = 1 << 1;
        /// `F0`.
        const LOCK = 1 << 2;
        /// `F3`: REP, REPE. Excludes [`Prefixes::REPNE`]: of the two, the last one counts.
        const REP = 1 << 3;
        /// `F2`: REPNE.
        const REPNE = 1 << 4;
    }
}

/// A memory operand as it was encoded: `segment:[base + (index << shift) + displacement]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mem {
    /// The override, or else the default segment of the base register.
    pub segment: SegReg,
    /// Base register.
    pub base: Option<u8>,
    /// Index register.
    pub index: Option<u8>,
    /// Scale of the index, as the count of a left shift.
    pub shift: u8,
    /// The address of the next instruction is to be added, too.
    pub rip_relative: bool,
    /// Displacement, sign-extended; or a whole address (`A0` to `A3`).
    pub displacement: u64,
}

/// One decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    /// Length in bytes, 1 to [`MAX_LENGTH`].
    pub length: u8,
    /// The kind of code that it was decoded as.
    pub mode: CodeSize,
    /// Opcode map.
    pub map: Map,
    /// The opcode byte within its map.
    pub opcode: u8,
    /// Operand size in bytes, 2, 4 or 8, of an instruction whose opcode does not say otherwise.
    pub operand_size: u8,
    /// Address size in bytes: 2, 4 or 8.
    pub address_size: u8,
    /// Legacy prefixes.
    pub prefixes: Prefixes,
    /// The REX prefix, or what a VEX prefix has of it, or 0.
    pub rex: u8,
    /// The rest of a VEX prefix; its mandatory prefix is in `prefixes`.
    pub vex: Option<Vex>,
    /// The segment override that counts. In 64-bit mode only FS and GS do.
    pub segment_override: Option<SegReg>,
    /// The ModRM byte, or 0 for an instruction that has none.
    pub modrm: u8,
    /// ModRM.reg with REX.R.
    pub reg: u8,
    /// ModRM.rm with REX.B, if it names a register; the register in the opcode, too, with REX.B.
    pub rm: u8,
    /// The memory operand of ModRM or of `A0` to `A3`. `None` if ModRM.rm names a register.
    pub mem: Option<Mem>,
    /// The immediate, sign-extended from its size; of a far pointer the offset.
    pub immediate: u64,
    /// The second immediate of ENTER, EXTRQ and INSERTQ, or the selector of a far pointer.
    pub immediate2: u16,
}

impl Insn {
    /// Whether the instruction is this opcode of this map.
    pub fn is(&self, map: Map, opcode: u8) -> bool {
        self.map == map && self.opcode == opcode
    }

    /// The three bits of ModRM.reg that extend the opcode of a group, without REX.R.
    pub fn group(&self) -> u8 {
        (self.modrm >> 3) & 7
    }

    /// Whether the prefix is there.
    pub fn has(&self, prefix: Prefixes) -> bool {
        self.prefixes.contains(prefix)
    }

    /// Whether REX.W is there.
    pub fn rex_w(&self) -> bool {
        self.rex & REX_W != 0
    }

    /// Whether REP, REPE or REPNE is there.
    pub fn repeats(&self) -> bool {
        self.prefixes.intersects(Prefixes::REP | Prefixes::REPNE)
    }

    /// RIP of the instruction that follows this one at `rip`. EIP wraps.
    ///
    /// 16-bit code does not wrap at 64 KiB of itself: behind offset `FFFF` the limit of CS is
    /// checked like anywhere else, and only a branch with a 16-bit operand cuts EIP to IP.
    pub fn next_rip(&self, rip: u64) -> u64 {
        let next = rip.wrapping_add(u64::from(self.length));
        match self.mode {
            CodeSize::Bits64 => next,
            _ => next & 0xffff_ffff,
        }
    }
}

const REX_W: u8 = 1 << 3;
const REX_R: u8 = 1 << 2;
const REX_X: u8 = 1 << 1;
const REX_B: u8 = 1 << 0;

/// Decodes the instruction at the start of `bytes`. Bytes behind it do no harm.
pub fn decode(bytes: &[u8], mode: CodeSize) -> Result<Insn, DecodeError> {
    let mut bytes = Bytes { bytes, position: 0 };
    let mut insn = Insn {
        length: 0,
        mode,
        map: Map::OneByte,
        opcode: 0,
        operand_size: 0,
        address_size: 0,
        prefixes: Prefixes::empty(),
        rex: 0,
        vex: None,
        segment_override: None,
        modrm: 0,
        reg: 0,
        rm: 0,
        mem: None,
        immediate: 0,
        immediate2: 0,
    };
    insn.opcode = insn.take_prefixes(&mut bytes)?;
    if insn.opcode == 0x0f {
        (insn.map, insn.opcode) = match bytes.next()? {
            0x38 => (Map::ThreeByte38, bytes.next()?),
            0x3a => (Map::ThreeByte3a, bytes.next()?),
            opcode => (Map::TwoByte, opcode),
        };
    } else if matches!(insn.opcode, 0xc4 | 0xc5) {
        if let Some((map, opcode)) = insn.take_vex(&mut bytes, insn.opcode)? {
            (insn.map, insn.opcode) = (map, opcode);
        }
    }
    let mut layout = table::layout(insn.map, insn.opcode);
    insn.address_size = address_size(mode, insn.prefixes);
    insn.rm = (insn.opcode & 7) | extend(insn.rex, REX_B);
    if layout.traits.contains(Traits::MODRM) {
        insn.take_modrm(&mut bytes)?;
    }
    if layout.traits.contains(Traits::DEPENDS) {
        table::exception(&insn, &mut layout);
    }
    if is_undefined(mode, layout.traits) {
        return Err(DecodeError::Unknown);
    }
    insn.operand_size = operand_size(&insn, layout.traits);
    if layout.immediate != Immediate::None {
        insn.take_immediates(&mut bytes, layout.immediate)?;
    }
    insn.length = bytes.position;
    Ok(insn)
}

fn is_undefined(mode: CodeSize, traits: Traits) -> bool {
    traits.contains(Traits::UNDEFINED)
        || (mode == CodeSize::Bits64 && traits.contains(Traits::UNDEFINED_IN_64_BIT_MODE))
}

/// Bit 3 of a register number, from one bit of REX.
fn extend(rex: u8, bit: u8) -> u8 {
    if rex & bit != 0 {
        8
    } else {
        0
    }
}

fn address_size(mode: CodeSize, prefixes: Prefixes) -> u8 {
    match (mode, prefixes.contains(Prefixes::ADDRESS_SIZE)) {
        (CodeSize::Bits16, false) | (CodeSize::Bits32, true) => 2,
        (CodeSize::Bits64, false) => 8,
        _ => 4,
    }
}

/// APM vol. 3, 1.2.2.
fn operand_size(insn: &Insn, traits: Traits) -> u8 {
    let prefix = insn.has(Prefixes::OPERAND_SIZE);
    if insn.vex.is_some() {
        return if insn.rex_w() { 8 } else { 4 };
    }
    match insn.mode {
        CodeSize::Bits64 => {
            let wide = traits.contains(Traits::DEFAULTS_TO_64_BITS) && !prefix;
            if wide || insn.rex_w() || insn.is_special_move() {
                8
            } else if prefix {
                2
            } else {
                4
            }
        }
        _ if insn.is_special_move() => 4,
        CodeSize::Bits16 if !prefix => 2,
        CodeSize::Bits32 if prefix => 2,
        _ => 4,
    }
}

impl Insn {
    /// Takes the prefixes and returns the byte that follows them.
    fn take_prefixes(&mut self, bytes: &mut Bytes<'_>) -> Result<u8, DecodeError> {
        let long = self.mode == CodeSize::Bits64;
        loop {
            let byte = bytes.next()?;
            match byte {
                0x66 => self.prefixes |= Prefixes::OPERAND_SIZE,
                0x67 => self.prefixes |= Prefixes::ADDRESS_SIZE,
                0xf0 => self.prefixes |= Prefixes::LOCK,
                0xf2 => {
                    self.prefixes = self.prefixes.difference(Prefixes::REP) | Prefixes::REPNE;
                }
                0xf3 => {
                    self.prefixes = self.prefixes.difference(Prefixes::REPNE) | Prefixes::REP;
                }
                0x26 | 0x2e | 0x36 | 0x3e if long => {}
                0x26 => self.segment_override = Some(SegReg::Es),
                0x2e => self.segment_override = Some(SegReg::Cs),
                0x36 => self.segment_override = Some(SegReg::Ss),
                0x3e => self.segment_override = Some(SegReg::Ds),
                0x64 => self.segment_override = Some(SegReg::Fs),
                0x65 => self.segment_override = Some(SegReg::Gs),
                0x40..=0x4f if long => {
                    self.rex = byte;
                    continue;
                }
                _ => return Ok(byte),
            }
            // A REX prefix that does not stand right before the opcode is ignored.
            self.rex = 0;
        }
    }

    fn take_modrm(&mut self, bytes: &mut Bytes<'_>) -> Result<(), DecodeError> {
        self.modrm = bytes.next()?;
        self.reg = self.group() | extend(self.rex, REX_R);
        self.rm = (self.modrm & 7) | extend(self.rex, REX_B);
        if self.modrm >> 6 == 3 || self.is_special_move() {
            return Ok(());
        }
        let mut mem = if self.address_size == 2 {
            self.take_mem16(bytes)?
        } else {
            self.take_mem32(bytes)?
        };
        if let Some(segment) = self.segment_override {
            mem.segment = segment;
        }
        self.mem = Some(mem);
        Ok(())
    }

    /// 16-bit addressing (APM vol. 3, table A-33).
    fn take_mem16(&self, bytes: &mut Bytes<'_>) -> Result<Mem, DecodeError> {
        use gpr::{RBP, RBX, RDI, RSI};
        let mode = self.modrm >> 6;
        let (base, index) = match self.modrm & 7 {
            0 => (Some(RBX), Some(RSI)),
            1 => (Some(RBX), Some(RDI)),
            2 => (Some(RBP), Some(RSI)),
            3 => (Some(RBP), Some(RDI)),
            4 => (Some(RSI), None),
            5 => (Some(RDI), None),
            6 if mode == 0 => (None, None),
            6 => (Some(RBP), None),
            _ => (Some(RBX), None),
        };
        let displacement = match mode {
            1 => bytes.signed(1)?,
            0 if base.is_some() => 0,
            _ => bytes.signed(2)?,
        };
        Ok(Mem {
            segment: default_segment(base),
            base,
            index,
            shift: 0,
            rip_relative: false,
            displacement,
        })
    }

    /// 32-bit and 64-bit addressing (APM vol. 3, 1.4.2 to 1.4.3 and 1.7).
    fn take_mem32(&self, bytes: &mut Bytes<'_>) -> Result<Mem, DecodeError> {
        let mode = self.modrm >> 6;
        let (mut base, mut index, mut shift) = (Some(self.rm), None, 0);
        let mut rip_relative = false;
        if self.modrm & 7 == gpr::RSP {
            let sib = bytes.next()?;
            base = Some((sib & 7) | extend(self.rex, REX_B));
            // Index 4 means none; R12 can be an index.
            let number = ((sib >> 3) & 7) | extend(self.rex, REX_X);
            if number != gpr::RSP {
                index = Some(number);
                shift = sib >> 6;
            }
            if mode == 0 && sib & 7 == gpr::RBP {
                base = None;
            }
        } else if mode == 0 && self.modrm & 7 == gpr::RBP {
            base = None;
            rip_relative = self.mode == CodeSize::Bits64;
        }
        let displacement = match mode {
            1 => bytes.signed(1)?,
            0 if base.is_some() => 0,
            _ => bytes.signed(4)?,
        };
        Ok(Mem {
            segment: default_segment(base),
            base,
            index,
            shift,
            rip_relative,
            displacement,
        })
    }

    fn take_immediates(
        &mut self,
        bytes: &mut Bytes<'_>,
        immediate: Immediate,
    ) -> Result<(), DecodeError> {
        let size_z = self.operand_size.min(4);
        match immediate {
            Immediate::None => {}
            Immediate::Byte => self.immediate = bytes.signed(1)?,
            Immediate::Word => self.immediate = bytes.unsigned(2)?,
            Immediate::Z => self.immediate = bytes.signed(size_z)?,
            Immediate::V => self.immediate = bytes.signed(self.operand_size)?,
            Immediate::Offset => {
                self.mem = Some(Mem {
                    segment: self.segment_override.unwrap_or(SegReg::Ds),
                    base: None,
                    index: None,
                    shift: 0,
                    rip_relative: false,
                    displacement: bytes.unsigned(self.address_size)?,
                });
            }
            Immediate::FarPointer => {
                self.immediate = bytes.unsigned(size_z)?;
                self.immediate2 = bytes.unsigned(2)? as u16;
            }
            Immediate::WordByte => {
                self.immediate = bytes.unsigned(2)?;
                self.immediate2 = bytes.unsigned(1)? as u16;
            }
            Immediate::ByteByte => {
                self.immediate = bytes.signed(1)?;
                self.immediate2 = bytes.unsigned(1)? as u16;
            }
        }
        Ok(())
    }
}

/// The stack segment for what is based on RSP or RBP, the data segment for the rest.
fn default_segment(base: Option<u8>) -> SegReg {
    match base {
        Some(gpr::RSP | gpr::RBP) => SegReg::Ss,
        _ => SegReg::Ds,
    }
}

/// The bytes of the instruction, of which `position` are taken.
struct Bytes<'a> {
    bytes: &'a [u8],
    position: u8,
}

impl Bytes<'_> {
    fn peek(&self) -> Result<u8, DecodeError> {
        let mut rest = Self { ..*self };
        rest.next()
    }

    fn next(&mut self) -> Result<u8, DecodeError> {
        let position = usize::from(self.position);
        if position >= MAX_LENGTH {
            return Err(DecodeError::TooLong);
        }
        let byte = *self.bytes.get(position).ok_or(DecodeError::NeedMoreBytes)?;
        self.position = self.position.wrapping_add(1);
        Ok(byte)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let position = usize::from(self.position);
        if position.wrapping_add(N) > MAX_LENGTH {
            return Err(DecodeError::TooLong);
        }
        let rest = self.bytes.get(position..).unwrap_or_default();
        let taken = *rest.first_chunk().ok_or(DecodeError::NeedMoreBytes)?;
        self.position = self.position.wrapping_add(N as u8);
        Ok(taken)
    }

    /// A little-endian number of `size` bytes: 1, 2, 4 or 8.
    fn unsigned(&mut self, size: u8) -> Result<u64, DecodeError> {
        Ok(match size {
            1 => u64::from(self.next()?),
            2 => u64::from(u16::from_le_bytes(self.take()?)),
            4 => u64::from(u32::from_le_bytes(self.take()?)),
            _ => u64::from_le_bytes(self.take()?),
        })
    }

    /// The same, sign-extended.
    fn signed(&mut self, size: u8) -> Result<u64, DecodeError> {
        let value = self.unsigned(size)?;
        Ok(match size {
            1 => value as i8 as u64,
            2 => value as i16 as u64,
            4 => value as i32 as u64,
            _ => value,
        })
    }
}
