// SPDX-License-Identifier: GPL-2.0-only

//! The opcode maps: what follows each opcode (APM vol. 3, appendix A.1).
//!
//! One character per opcode, sixteen per line, so that a table looks like the manual's:
//!
//! | character | what follows the opcode |
//! |---|---|
//! | `.` | nothing |
//! | `M` | ModRM |
//! | `B`, `Z` | ModRM, then a byte; ModRM, then a word or doubleword by operand size |
//! | `b`, `w`, `z` | a byte; a word; a word or doubleword by operand size |
//! | `v` | a word, doubleword or quadword by operand size |
//! | `o` | an address by address size |
//! | `p` | a far pointer |
//! | `e` | a word and a byte |
//! | `x` | undefined, or a prefix |
//!
//! What else depends on the opcode alone is added when the tables are compiled.

use super::Insn;
use super::Map;
use super::Prefixes;
use bitflags::bitflags;

/// What comes last in an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Immediate {
    /// Nothing.
    None,
    /// One byte, sign-extended.
    Byte,
    /// Two bytes.
    Word,
    /// Two or four bytes, sign-extended.
    Z,
    /// Two, four or eight bytes.
    V,
    /// An address.
    Offset,
    /// An offset and a selector.
    FarPointer,
    /// The two operands of ENTER.
    WordByte,
    /// The two operands of EXTRQ and INSERTQ.
    ByteByte,
}

/// What else an opcode tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Traits(u8);

bitflags! {
    impl Traits: u8 {
        /// There is no such instruction.
        const UNDEFINED = 1 << 0;
        /// There is none in 64-bit mode.
        const UNDEFINED_IN_64_BIT_MODE = 1 << 1;
        /// A ModRM byte follows, with what it calls for.
        const MODRM = 1 << 2;
        /// Operands have 64 bits in 64-bit mode without any prefix.
        const DEFAULTS_TO_64_BITS = 1 << 3;
        /// ModRM or a prefix decides about one of the rest: see [`exception`].
        const DEPENDS = 1 << 4;
    }
}

/// What follows an opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// What comes last.
    pub(super) immediate: Immediate,
    /// What else there is to know.
    pub(super) traits: Traits,
}

#[rustfmt::skip]
const ONE_BYTE_MAP: &[u8; 256] = b"\
MMMMbz..MMMMbz.x\
MMMMbz..MMMMbz..\
MMMMbzx.MMMMbzx.\
MMMMbzx.MMMMbzx.\
................\
................\
..MMxxxxzZbB....\
bbbbbbbbbbbbbbbb\
BZBBMMMMMMMMMMMM\
..........p.....\
oooo....bz......\
bbbbbbbbvvvvvvvv\
BBw.MMBZe.w..b..\
MMMMbb..MMMMMMMM\
bbbbbbbbzzpb....\
x.xx..MM......MM";

#[rustfmt::skip]
const TWO_BYTE_MAP: &[u8; 256] = b"\
MMMMx.....x.xM.B\
MMMMMMMMMMMMMMMM\
MMMMxxxxMMMMMMMM\
......xxxxxxxxxx\
MMMMMMMMMMMMMMMM\
MMMMMMMMMMMMMMMM\
MMMMMMMMMMMMMMMM\
BBBBMMM.MMxxMMMM\
zzzzzzzzzzzzzzzz\
MMMMMMMMMMMMMMMM\
...MBMxx...MBMMM\
MMMMMMMMMMBMMMMM\
MMBMBBBM........\
MMMMMMMMMMMMMMMM\
MMMMMMMMMMMMMMMM\
MMMMMMMMMMMMMMM.";

static ONE_BYTE: [Layout; 256] = layouts(Map::OneByte, ONE_BYTE_MAP);
static TWO_BYTE: [Layout; 256] = layouts(Map::TwoByte, TWO_BYTE_MAP);

const fn layouts(map: Map, characters: &[u8; 256]) -> [Layout; 256] {
    let mut layouts = [layout_of(map, 0, b'x'); 256];
    let mut opcode = 0;
    while opcode < 256 {
        layouts[opcode] = layout_of(map, opcode as u8, characters[opcode]);
        opcode += 1;
    }
    layouts
}

const fn layout_of(map: Map, opcode: u8, character: u8) -> Layout {
    let mut traits = Traits::empty();
    let immediate = match character {
        b'.' | b'M' => Immediate::None,
        b'b' | b'B' => Immediate::Byte,
        b'w' => Immediate::Word,
        b'z' | b'Z' => Immediate::Z,
        b'v' => Immediate::V,
        b'o' => Immediate::Offset,
        b'p' => Immediate::FarPointer,
        b'e' => Immediate::WordByte,
        _ => {
            traits = Traits::UNDEFINED;
            Immediate::None
        }
    };
    if character.is_ascii_uppercase() {
        traits = traits.union(Traits::MODRM);
    }
    if is_undefined_in_64_bit_mode(map, opcode) {
        traits = traits.union(Traits::UNDEFINED_IN_64_BIT_MODE);
    }
    if defaults_to_64_bits(map, opcode) {
        traits = traits.union(Traits::DEFAULTS_TO_64_BITS);
    }
    if depends(map, opcode) {
        traits = traits.union(Traits::DEPENDS);
    }
    Layout { immediate, traits }
}

/// What follows an opcode.
pub(super) fn layout(map: Map, opcode: u8) -> Layout {
    match map {
        Map::OneByte => ONE_BYTE[usize::from(opcode)],
        Map::TwoByte => TWO_BYTE[usize::from(opcode)],
        // All instructions of these two maps look alike.
        Map::ThreeByte38 => const { layout_of(Map::ThreeByte38, 0, b'M') },
        Map::ThreeByte3a => const { layout_of(Map::ThreeByte3a, 0, b'B') },
    }
}

/// APM vol. 3, table B-2. `62` begins an EVEX instruction there.
const fn is_undefined_in_64_bit_mode(map: Map, opcode: u8) -> bool {
    matches!(map, Map::OneByte)
        && matches!(
            opcode,
            0x06 | 0x07
                | 0x0e
                | 0x16
                | 0x17
                | 0x1e
                | 0x1f
                | 0x27
                | 0x2f
                | 0x37
                | 0x3f
                | 0x60..=0x62
                | 0x82
                | 0x9a
                | 0xc4
                | 0xc5
                | 0xce
                | 0xd4..=0xd6
                | 0xea
        )
}

/// Near branches and what uses the stack (APM vol. 3, table B-5).
const fn defaults_to_64_bits(map: Map, opcode: u8) -> bool {
    match map {
        Map::OneByte => matches!(
            opcode,
            0x50..=0x5f
                | 0x68
                | 0x6a
                | 0x70..=0x7f
                | 0x8f
                | 0x9c
                | 0x9d
                | 0xc2
                | 0xc3
                | 0xc8
                | 0xc9
                | 0xe0..=0xe3
                | 0xe8
                | 0xe9
                | 0xeb
        ),
        Map::TwoByte => matches!(opcode, 0x80..=0x8f | 0xa0 | 0xa1 | 0xa8 | 0xa9),
        _ => false,
    }
}

/// The opcodes that [`exception`] knows.
const fn depends(map: Map, opcode: u8) -> bool {
    match map {
        Map::OneByte => matches!(opcode, 0x62 | 0x8f | 0xf6 | 0xf7 | 0xff),
        Map::TwoByte => matches!(opcode, 0x78),
        _ => false,
    }
}

/// Corrects the layout of the opcodes that [`Traits::DEPENDS`] marks, once ModRM is known.
pub(super) fn exception(insn: &Insn, layout: &mut Layout) {
    match (insn.map, insn.opcode) {
        // With two registers this begins an EVEX instruction, and the next one an XOP one.
        (Map::OneByte, 0x62) if insn.mem.is_none() => layout.traits |= Traits::UNDEFINED,
        (Map::OneByte, 0x8f) if insn.group() != 0 => layout.traits |= Traits::UNDEFINED,
        (Map::OneByte, 0xf6) if insn.group() < 2 => layout.immediate = Immediate::Byte,
        (Map::OneByte, 0xf7) if insn.group() < 2 => layout.immediate = Immediate::Z,
        // Near CALL, near JMP, and PUSH.
        (Map::OneByte, 0xff) if matches!(insn.group(), 2 | 4 | 6) => {
            layout.traits |= Traits::DEFAULTS_TO_64_BITS;
        }
        // EXTRQ and INSERTQ.
        (Map::TwoByte, 0x78)
            if insn
                .prefixes
                .intersects(Prefixes::OPERAND_SIZE.union(Prefixes::REPNE)) =>
        {
            layout.immediate = Immediate::ByteByte;
        }
        _ => {}
    }
}
