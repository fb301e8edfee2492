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

use super::CodeSize;
use super::Insn;
use super::Map;
use super::Prefixes;

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

/// What follows an opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// A ModRM byte, with what it calls for.
    pub(super) modrm: bool,
    /// An immediate.
    pub(super) immediate: Immediate,
}

#[rustfmt::skip]
const ONE_BYTE: &[u8; 256] = b"\
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
const TWO_BYTE: &[u8; 256] = b"\
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

/// What follows the opcode of `insn`; `None` if it is undefined in its mode.
pub(super) fn layout(insn: &Insn) -> Option<Layout> {
    let kind = match insn.map {
        Map::OneByte if insn.mode == CodeSize::Bits64 && is_undefined_in_64_bit_mode(insn) => b'x',
        Map::OneByte => ONE_BYTE[usize::from(insn.opcode)],
        Map::TwoByte => TWO_BYTE[usize::from(insn.opcode)],
        // All instructions of these two maps look alike.
        Map::ThreeByte38 => b'M',
        Map::ThreeByte3a => b'B',
    };
    let immediate = match kind {
        b'.' | b'M' => Immediate::None,
        b'b' | b'B' => Immediate::Byte,
        b'w' => Immediate::Word,
        b'z' | b'Z' => Immediate::Z,
        b'v' => Immediate::V,
        b'o' => Immediate::Offset,
        b'p' => Immediate::FarPointer,
        b'e' => Immediate::WordByte,
        _ => return None,
    };
    Some(Layout {
        modrm: kind.is_ascii_uppercase(),
        immediate,
    })
}

/// APM vol. 3, table B-2. `C4`, `C5` and `62` begin a VEX or EVEX instruction there.
fn is_undefined_in_64_bit_mode(insn: &Insn) -> bool {
    matches!(
        insn.opcode,
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

/// False where ModRM shows that the opcode byte begins a VEX, EVEX or XOP instruction.
pub(super) fn modrm_is_legal(insn: &Insn) -> bool {
    match (insn.map, insn.opcode) {
        (Map::OneByte, 0x62 | 0xc4 | 0xc5) => insn.mem.is_some(),
        (Map::OneByte, 0x8f) => insn.group() == 0,
        _ => true,
    }
}

/// The immediate, for the opcodes where it depends on more than the opcode.
pub(super) fn immediate(insn: &Insn, from_opcode: Immediate) -> Immediate {
    match (insn.map, insn.opcode) {
        (Map::OneByte, 0xf6) if insn.group() < 2 => Immediate::Byte,
        (Map::OneByte, 0xf7) if insn.group() < 2 => Immediate::Z,
        (Map::TwoByte, 0x78)
            if insn
                .prefixes
                .intersects(Prefixes::OPERAND_SIZE | Prefixes::REPNE) =>
        {
            Immediate::ByteByte
        }
        _ => from_opcode,
    }
}

/// MOV to or from CRn and DRn: ModRM.mod is ignored and the operand size is fixed.
pub(super) fn is_control_register_move(insn: &Insn) -> bool {
    insn.map == Map::TwoByte && matches!(insn.opcode, 0x20..=0x23)
}

/// Near branches and what uses the stack (APM vol. 3, table B-5).
pub(super) fn defaults_to_64_bits(insn: &Insn) -> bool {
    match insn.map {
        Map::OneByte => match insn.opcode {
            0xff => matches!(insn.group(), 2 | 4 | 6),
            opcode => matches!(
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
        },
        Map::TwoByte => matches!(insn.opcode, 0x80..=0x8f | 0xa0 | 0xa1 | 0xa8 | 0xa9),
        _ => false,
    }
}
