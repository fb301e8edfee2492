// SPDX-License-Identifier: GPL-2.0-only

//! The SSE and AVX instructions that only move data between memory and XMM or YMM registers
//! (APM vol. 4). Drivers copy to and from device memory with them.

use super::Flow;
use super::Run;
use crate::cpu::Access;
use crate::cpu::Cpu;
use crate::cpu::Stop;
use crate::decode::Map;
use crate::decode::Prefixes;
use crate::features::Feature;
use crate::regs::vector;
use crate::regs::Cr0;
use crate::regs::Cr4;
use crate::regs::Exception;
use crate::xsave;

type Result<T = Flow> = core::result::Result<T, Stop>;

/// The prefix that is part of an SSE opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mandatory {
    None,
    OperandSize,
    Rep,
    Repne,
}

/// What a register gets from memory or from another register, and what a store takes from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// All of it: 16 bytes, or 32 with VEX.L.
    Whole,
    /// The low bytes; between registers the others are those of the first source.
    Scalar,
    /// The low bytes; the others become zero.
    Low,
    /// The lower, or the upper, 8 bytes of 16; the others are those of the first source.
    Half { high: bool },
    /// The low bytes, from or to a general-purpose register: MOVD and MOVQ.
    General,
    /// Every second doubleword, the odd ones or the even ones, twice.
    Doublewords { odd: bool },
    /// Every second quadword twice.
    Quadwords,
    /// The same bytes again and again.
    Broadcast,
}

/// One move. `size` is what it moves to or from memory, in bytes.
#[derive(Clone, Copy, Debug)]
struct Move {
    kind: Kind,
    size: u8,
    store: bool,
    /// Memory must be aligned to `size`.
    aligned: bool,
    /// ModRM.rm can be an XMM register.
    registers: bool,
    /// What its legacy form needs beyond what every CPU with SSE2 has.
    sse: Feature,
    /// What its VEX form needs.
    avx: Feature,
    /// There is no other form.
    vex_only: bool,
}

const FULL: Move = Move {
    kind: Kind::Whole,
    size: 16,
    store: false,
    aligned: false,
    registers: true,
    sse: Feature::empty(),
    avx: Feature::AVX,
    vex_only: false,
};
const ALIGNED: Move = Move {
    aligned: true,
    ..FULL
};
const STREAMING: Move = Move {
    registers: false,
    ..ALIGNED
};
const SCALAR: Move = Move {
    kind: Kind::Scalar,
    ..FULL
};
const HALF: Move = Move {
    kind: Kind::Half { high: false },
    size: 8,
    registers: false,
    ..FULL
};
const BROADCAST: Move = Move {
    kind: Kind::Broadcast,
    vex_only: true,
    registers: false,
    ..FULL
};

/// The registers' 32 bytes: XMM, and the upper half that AVX adds.
pub(super) type Ymm = [u128; 2];

fn low_bytes(value: u128, size: u8) -> u128 {
    let unused = 128u32.wrapping_sub(u32::from(size).wrapping_mul(8));
    value.wrapping_shl(unused).wrapping_shr(unused)
}

/// A value of `size` bytes, below 16, as often as it fits.
fn broadcast(value: u128, size: u8) -> u128 {
    let (mut value, mut size) = (value, size);
    while size < 16 {
        value |= value.wrapping_shl(u32::from(size).wrapping_mul(8));
        size = size.wrapping_mul(2).max(1);
    }
    value
}

/// Every second element of `bits` bits, twice; the odd ones or the even ones.
fn duplicate(value: u128, bits: u32, odd: bool) -> u128 {
    let even = match bits {
        32 => 0x0000_0000_ffff_ffff_0000_0000_ffff_ffff,
        _ => u128::from(u64::MAX),
    };
    let chosen = if odd { value.wrapping_shr(bits) } else { value } & even;
    chosen | chosen.wrapping_shl(bits)
}

impl<C: Cpu> Run<'_, C> {
    pub(super) fn mandatory_prefix(&self) -> Mandatory {
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

    /// What the opcode moves, if it is one of the moves.
    #[rustfmt::skip]
    fn vector_operation(&self) -> Option<Move> {
        use Mandatory::{None as Plain, OperandSize, Rep, Repne};
        let opcode = self.insn.opcode;
        let general = if self.insn.rex_w() { 8 } else { 4 };
        let wide = self.insn.vex.is_some_and(|vex| vex.wide);
        let duplicated = if wide { 32 } else { 8 };
        let repeated = Move { sse: Feature::SSE3, ..FULL };
        let aligned = self.insn.vex.is_none();
        let doublewords = |odd| Move { kind: Kind::Doublewords { odd }, aligned, ..repeated };
        let quadwords = Move { kind: Kind::Quadwords, ..repeated };
        let streamed = Move { registers: false, sse: Feature::SSE4A, ..SCALAR };
        let operation = match (self.insn.map, opcode, self.mandatory_prefix()) {
            // MOVUPS, MOVUPD, MOVSS, MOVSD.
            (Map::TwoByte, 0x10 | 0x11, Plain | OperandSize) => FULL,
            (Map::TwoByte, 0x10 | 0x11, Rep) => Move { size: 4, ..SCALAR },
            (Map::TwoByte, 0x10 | 0x11, Repne) => Move { size: 8, ..SCALAR },
            // MOVLPS, MOVLPD, MOVHPS, MOVHPD.
            (Map::TwoByte, 0x12 | 0x13, Plain | OperandSize) => HALF,
            (Map::TwoByte, 0x16 | 0x17, Plain | OperandSize) => Move { kind: Kind::Half { high: true }, ..HALF },
            // MOVSLDUP, MOVSHDUP, MOVDDUP.
            (Map::TwoByte, 0x12, Rep) => doublewords(false),
            (Map::TwoByte, 0x16, Rep) => doublewords(true),
            (Map::TwoByte, 0x12, Repne) => Move { size: duplicated, ..quadwords },
            // MOVAPS, MOVAPD, MOVNTPS, MOVNTPD, MOVNTSS, MOVNTSD.
            (Map::TwoByte, 0x28 | 0x29, Plain | OperandSize) => ALIGNED,
            (Map::TwoByte, 0x2b, Plain | OperandSize) => STREAMING,
            (Map::TwoByte, 0x2b, Rep) if self.insn.vex.is_none() => Move { size: 4, ..streamed },
            (Map::TwoByte, 0x2b, Repne) if self.insn.vex.is_none() => Move { size: 8, ..streamed },
            // MOVD, MOVQ.
            (Map::TwoByte, 0x6e | 0x7e, OperandSize) => Move { kind: Kind::General, size: general, ..FULL },
            (Map::TwoByte, 0x7e, Rep) | (Map::TwoByte, 0xd6, OperandSize) => Move { kind: Kind::Low, size: 8, ..FULL },
            // MOVDQA, MOVDQU, MOVNTDQ, LDDQU, MOVNTDQA.
            (Map::TwoByte, 0x6f | 0x7f, OperandSize) => ALIGNED,
            (Map::TwoByte, 0x6f | 0x7f, Rep) => FULL,
            (Map::TwoByte, 0xe7, OperandSize) => STREAMING,
            (Map::TwoByte, 0xf0, Repne) => Move { registers: false, sse: Feature::SSE3, ..FULL },
            (Map::ThreeByte38, 0x2a, OperandSize) if wide => Move { avx: Feature::AVX2, ..STREAMING },
            (Map::ThreeByte38, 0x2a, OperandSize) => Move { sse: Feature::SSE41, ..STREAMING },
            // VBROADCASTSS, VBROADCASTSD, VBROADCASTF128, VPBROADCASTD, Q, I128, B, W.
            (Map::ThreeByte38, 0x18, OperandSize) => Move { size: 4, ..BROADCAST },
            (Map::ThreeByte38, 0x19, OperandSize) if wide => Move { size: 8, ..BROADCAST },
            (Map::ThreeByte38, 0x1a, OperandSize) if wide => BROADCAST,
            (Map::ThreeByte38, 0x58, OperandSize) => Move { size: 4, avx: Feature::AVX2, ..BROADCAST },
            (Map::ThreeByte38, 0x59, OperandSize) => Move { size: 8, avx: Feature::AVX2, ..BROADCAST },
            (Map::ThreeByte38, 0x5a, OperandSize) if wide => Move { avx: Feature::AVX2, ..BROADCAST },
            (Map::ThreeByte38, 0x78, OperandSize) => Move { size: 1, avx: Feature::AVX2, ..BROADCAST },
            (Map::ThreeByte38, 0x79, OperandSize) => Move { size: 2, avx: Feature::AVX2, ..BROADCAST },
            _ => return None,
        };
        let store = match (self.insn.map, opcode) {
            (Map::TwoByte, 0x7e) => operation.kind == Kind::General,
            (Map::TwoByte, opcode) => matches!(opcode, 0x11 | 0x13 | 0x17 | 0x29 | 0x2b | 0x7f | 0xd6 | 0xe7),
            _ => false,
        };
        let whole = matches!(operation.kind, Kind::Whole | Kind::Doublewords { .. });
        let size = if whole && wide { 32 } else { operation.size };
        Some(Move { store, size, ..operation })
    }

    /// A move to or from an XMM or YMM register.
    pub(super) fn vector_move(&mut self) -> Result {
        let operation = self.vector_operation().ok_or(Stop::Unhandled)?;
        self.check_vector(&operation)?;
        if self.insn.mem.is_none() {
            return self.move_between_registers(operation);
        }
        let access = if operation.store {
            Access::Write
        } else {
            Access::Read
        };
        let linear = self.memory(operation.size, access)?;
        let misaligned = linear & u64::from(operation.size).wrapping_sub(1);
        if operation.aligned && misaligned != 0 {
            return Err(Exception::GP0.into());
        }
        if operation.store {
            self.vector_store(operation, linear)
        } else {
            self.vector_load(operation, linear)
        }
    }

    fn vector_store(&mut self, operation: Move, linear: u64) -> Result {
        let [low, high] = self.ymm(self.insn.reg);
        let low = match operation.kind {
            Kind::Half { high: true } => low >> 64,
            _ => low,
        };
        let mut bytes = [0; 32];
        let halves = bytes.chunks_exact_mut(16).zip([low, high]);
        halves.for_each(|(to, from)| to.copy_from_slice(&from.to_le_bytes()));
        let part = bytes.get(..usize::from(operation.size));
        self.cpu.write(linear, part.ok_or(Stop::Unhandled)?)?;
        Ok(Flow::Next)
    }

    fn vector_load(&mut self, operation: Move, linear: u64) -> Result {
        let mut bytes = [0; 32];
        let part = bytes.get_mut(..usize::from(operation.size));
        self.cpu
            .read(linear, part.ok_or(Stop::Unhandled)?, Access::Read)?;
        let mut loaded = [0; 2];
        for (value, bytes) in loaded.iter_mut().zip(bytes.chunks_exact(16)) {
            *value = u128::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
        let value = self.expand(operation, loaded);
        self.set_vector(self.insn.reg, value);
        Ok(Flow::Next)
    }

    /// What the register gets of bytes from memory.
    fn expand(&mut self, operation: Move, loaded: Ymm) -> Ymm {
        let [low, high] = loaded;
        match operation.kind {
            Kind::Whole | Kind::Scalar | Kind::Low | Kind::General => loaded,
            Kind::Half { high: false } => [self.first_source() >> 64 << 64 | low, 0],
            Kind::Half { high: true } => [low_bytes(self.first_source(), 8) | low << 64, 0],
            Kind::Doublewords { odd } => [duplicate(low, 32, odd), duplicate(high, 32, odd)],
            Kind::Quadwords => [duplicate(low, 64, false), duplicate(high, 64, false)],
            Kind::Broadcast => {
                let value = broadcast(low, operation.size);
                let wide = self.insn.vex.is_some_and(|vex| vex.wide);
                [value, if wide { value } else { 0 }]
            }
        }
    }

    /// The register that a merging move keeps a part of: the destination, unless VEX names another
    /// one.
    fn first_source(&mut self) -> u128 {
        let index = self.insn.vex.map_or(self.insn.reg, |vex| vex.source);
        self.cpu.xmm(index)
    }

    fn move_between_registers(&mut self, operation: Move) -> Result {
        if operation.kind == Kind::General {
            return self.move_general(operation);
        }
        if !operation.registers {
            return Err(Stop::Unhandled);
        }
        let (from, to) = if operation.store {
            (self.insn.reg, self.insn.rm)
        } else {
            (self.insn.rm, self.insn.reg)
        };
        let [low, high] = self.ymm(from);
        let value = match operation.kind {
            Kind::Scalar => {
                let kept = self.cpu.xmm(self.insn.vex.map_or(to, |vex| vex.source));
                let kept = kept ^ low_bytes(kept, operation.size);
                [low_bytes(low, operation.size) | kept, 0]
            }
            Kind::Low => [low_bytes(low, operation.size), 0],
            _ if operation.size < 32 => self.expand(operation, [low, 0]),
            _ => self.expand(operation, [low, high]),
        };
        self.set_vector(to, value);
        Ok(Flow::Next)
    }

    /// MOVD and MOVQ with a general-purpose register.
    fn move_general(&mut self, operation: Move) -> Result {
        if operation.store {
            let value = self.cpu.xmm(self.insn.reg) as u64;
            self.set_register(self.insn.rm, operation.size, value);
        } else {
            let value = self.register(self.insn.rm, operation.size);
            self.set_vector(self.insn.reg, [u128::from(value), 0]);
        }
        Ok(Flow::Next)
    }

    pub(super) fn ymm(&mut self, index: u8) -> Ymm {
        let high = match self.insn.vex {
            Some(vex) if vex.wide => self.cpu.ymm_high(index),
            _ => 0,
        };
        [self.cpu.xmm(index), high]
    }

    /// Writes a register. A VEX instruction leaves nothing of what was in it before.
    pub(super) fn set_vector(&mut self, index: u8, value: Ymm) {
        let [low, high] = value;
        self.cpu.set_xmm(index, low);
        if self.insn.vex.is_some() {
            self.cpu.set_ymm_high(index, high);
        }
    }

    fn check_vector(&self, operation: &Move) -> Result<()> {
        let Some(vex) = self.insn.vex else {
            if operation.vex_only {
                return Err(Exception::UD.into());
            }
            self.require(operation.sse)?;
            return self.check_sse();
        };
        let merges = match operation.kind {
            Kind::Scalar => self.insn.mem.is_none(),
            Kind::Half { .. } => !operation.store,
            _ => false,
        };
        let narrow = matches!(
            operation.kind,
            Kind::Half { .. } | Kind::Low | Kind::General
        );
        // The moves without a legacy form exist with VEX.W clear only.
        let undefined = operation.vex_only && self.insn.rex_w();
        if undefined || (!merges && vex.source != 0) || (narrow && vex.wide) {
            return Err(Exception::UD.into());
        }
        self.check_avx(operation.avx)
    }

    /// Whether SSE instructions may be used now (APM vol. 2, 11.3 and table 8-9).
    pub(super) fn check_sse(&self) -> Result<()> {
        if self.cpu.cr0().contains(Cr0::EM) || !self.cpu.cr4().contains(Cr4::OSFXSR) {
            return Err(Exception::UD.into());
        }
        self.check_switched()
    }

    /// Whether AVX instructions may be used now (APM vol. 2, 11.3.2; vol. 4, table 2-2).
    pub(super) fn check_avx(&self, feature: Feature) -> Result<()> {
        const NEEDED: u64 = xsave::SSE | xsave::AVX;
        // VEX is for protected mode; elsewhere its bytes are LES and LDS of a register.
        let enabled = self.cpu.cr4().contains(Cr4::OSXSAVE) && self.cpu.xcr0() & NEEDED == NEEDED;
        if !enabled || self.has_no_descriptors() || !self.cpu.has(feature) {
            return Err(Exception::UD.into());
        }
        self.check_switched()
    }

    /// #NM while another task's registers may be in the CPU.
    pub(super) fn check_switched(&self) -> Result<()> {
        if self.cpu.cr0().contains(Cr0::TS) {
            return Err(Exception::new(vector::NM).into());
        }
        Ok(())
    }
}
