// SPDX-License-Identifier: GPL-2.0-only

//! Results and flags of the integer instructions, as pure functions (APM vol. 3, chapter 3).
//!
//! Operands are numbers of `size` bytes with nothing above them. What a function leaves alone in
//! `flags`, the instruction leaves alone. Flags that the manual calls undefined become zero in
//! additions and logic, and stay as they were in shifts and bit tests.

use super::address::mask;
use crate::regs::Rflags;

/// A result and the flags after it.
pub(super) type Outcome = (u64, Rflags);

/// The eight operations of opcodes `00` to `3D` and of group 1, in the order of their encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
    Cmp,
}

impl Arithmetic {
    /// The operation with this number, of which three bits count.
    pub(super) fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Self::Add,
            1 => Self::Or,
            2 => Self::Adc,
            3 => Self::Sbb,
            4 => Self::And,
            5 => Self::Sub,
            6 => Self::Xor,
            _ => Self::Cmp,
        }
    }

    /// `a` operated with `b`. The result of a comparison is `a`.
    pub(super) fn apply(self, a: u64, b: u64, size: u8, flags: Rflags) -> Outcome {
        let carry = u64::from(flags.contains(Rflags::CF));
        match self {
            Self::Add => add(a, b, 0, size, flags),
            Self::Adc => add(a, b, carry, size, flags),
            Self::Sub => subtract(a, b, 0, size, flags),
            Self::Sbb => subtract(a, b, carry, size, flags),
            Self::Cmp => (a, subtract(a, b, 0, size, flags).1),
            Self::And => logic(a & b, size, flags),
            Self::Or => logic(a | b, size, flags),
            Self::Xor => logic(a ^ b, size, flags),
        }
    }
}

/// The flags that additions and logic set.
pub(super) const STATUS: Rflags = Rflags::CF
    .union(Rflags::PF)
    .union(Rflags::AF)
    .union(Rflags::ZF)
    .union(Rflags::SF)
    .union(Rflags::OF);

/// `flag` if `value`.
fn flag_if(flag: Rflags, value: bool) -> Rflags {
    if value {
        flag
    } else {
        Rflags::empty()
    }
}

/// The number of bits in `size` bytes.
fn bits(size: u8) -> u32 {
    match size {
        1 => 8,
        2 => 16,
        4 => 32,
        _ => 64,
    }
}

/// The top bit of a number of `size` bytes.
fn sign(value: u64, size: u8) -> bool {
    value & (mask(size) ^ (mask(size) >> 1)) != 0
}

/// ZF, SF and PF.
fn of_result(result: u64, size: u8) -> Rflags {
    flag_if(Rflags::ZF, result == 0)
        | flag_if(Rflags::SF, sign(result, size))
        | flag_if(Rflags::PF, (result as u8).count_ones() & 1 == 0)
}

/// The flags of a result whose carries out of each bit, and overflow, are known.
fn with_carries(result: u64, carries: u64, overflow: u64, size: u8, flags: Rflags) -> Rflags {
    flags.difference(STATUS)
        | of_result(result, size)
        | flag_if(Rflags::CF, sign(carries, size))
        | flag_if(Rflags::AF, carries & 8 != 0)
        | flag_if(Rflags::OF, sign(overflow, size))
}

pub(super) fn add(a: u64, b: u64, carry: u64, size: u8, flags: Rflags) -> Outcome {
    let result = a.wrapping_add(b).wrapping_add(carry) & mask(size);
    let carries = (a & b) | ((a | b) & !result);
    let overflow = (a ^ result) & (b ^ result);
    (result, with_carries(result, carries, overflow, size, flags))
}

pub(super) fn subtract(a: u64, b: u64, borrow: u64, size: u8, flags: Rflags) -> Outcome {
    let result = a.wrapping_sub(b).wrapping_sub(borrow) & mask(size);
    let borrows = (!a & b) | ((!a | b) & result);
    let overflow = (a ^ b) & (a ^ result);
    (result, with_carries(result, borrows, overflow, size, flags))
}

/// The flags of AND, OR, XOR and TEST.
pub(super) fn logic(result: u64, size: u8, flags: Rflags) -> Outcome {
    (result, flags.difference(STATUS) | of_result(result, size))
}

/// INC, or DEC: all flags but CF.
pub(super) fn increment(a: u64, down: bool, size: u8, flags: Rflags) -> Outcome {
    let (result, new) = if down {
        subtract(a, 1, 0, size, flags)
    } else {
        add(a, 1, 0, size, flags)
    };
    let carry = flags.intersection(Rflags::CF);
    (result, new.difference(Rflags::CF) | carry)
}

/// Shift and rotation counts have five bits, or six with 64-bit operands.
fn masked_count(count: u8, size: u8) -> u32 {
    u32::from(count & if size == 8 { 63 } else { 31 })
}

/// `value << count` and `value >> count` for any count.
fn left(value: u64, count: u32) -> u64 {
    value.checked_shl(count).unwrap_or(0)
}

fn right(value: u64, count: u32) -> u64 {
    value.checked_shr(count).unwrap_or(0)
}

/// Group 2: rotation and shift number `operation` of its eight.
pub(super) fn shift(operation: u8, a: u64, count: u8, size: u8, flags: Rflags) -> Outcome {
    let count = masked_count(count, size);
    if count == 0 {
        return (a, flags);
    }
    match operation & 7 {
        0 => rotate_left(a, count, size, flags),
        1 => rotate_right(a, count, size, flags),
        2 => rotate_carry_left(a, count, size, flags),
        3 => rotate_carry_right(a, count, size, flags),
        5 => {
            let carry = right(a, count - 1) & 1 != 0;
            shifted(right(a, count), carry, sign(a, size), size, flags)
        }
        7 => {
            let extended = sign_extend(a, size) as i64;
            let carry = (extended >> (count - 1).min(63)) & 1 != 0;
            let result = (extended >> count.min(63)) as u64 & mask(size);
            shifted(result, carry, false, size, flags)
        }
        _ => {
            let carry = sign(left(a, count - 1), size);
            let result = left(a, count) & mask(size);
            shifted(result, carry, carry != sign(result, size), size, flags)
        }
    }
}

/// A number of `size` bytes with its sign in all bits above.
pub(super) fn sign_extend(value: u64, size: u8) -> u64 {
    match size {
        1 => value as i8 as u64,
        2 => value as i16 as u64,
        4 => value as i32 as u64,
        _ => value,
    }
}

/// The flags of a shift; AF is undefined.
fn shifted(result: u64, carry: bool, overflow: bool, size: u8, flags: Rflags) -> Outcome {
    let kept = flags.difference(STATUS.difference(Rflags::AF));
    let new = flag_if(Rflags::CF, carry) | flag_if(Rflags::OF, overflow);
    (result, kept | new | of_result(result, size))
}

/// The flags of a rotation.
fn rotated(flags: Rflags, carry: bool, overflow: bool) -> Rflags {
    flags.difference(Rflags::CF.union(Rflags::OF))
        | flag_if(Rflags::CF, carry)
        | flag_if(Rflags::OF, overflow)
}

fn rotate_left(a: u64, count: u32, size: u8, flags: Rflags) -> Outcome {
    let width = bits(size);
    let count = count & (width - 1);
    let result = (left(a, count) | right(a, width.wrapping_sub(count))) & mask(size);
    let carry = result & 1 != 0;
    (result, rotated(flags, carry, carry != sign(result, size)))
}

fn rotate_right(a: u64, count: u32, size: u8, flags: Rflags) -> Outcome {
    let count = bits(size).wrapping_sub(count);
    let (result, _) = rotate_left(a, count, size, flags);
    let overflow = sign(result ^ (result << 1), size);
    (result, rotated(flags, sign(result, size), overflow))
}

/// A rotation through the carry has one bit more. Whole turns change nothing.
fn carry_count(count: u32, size: u8) -> u32 {
    let around = bits(size) + 1;
    if count >= around {
        count.checked_rem(around).unwrap_or(0)
    } else {
        count
    }
}

fn rotate_carry_left(a: u64, count: u32, size: u8, flags: Rflags) -> Outcome {
    let count = carry_count(count, size);
    if count == 0 {
        return (a, flags);
    }
    let rest = bits(size).wrapping_sub(count);
    let carry = u64::from(flags.contains(Rflags::CF));
    let inserted = left(carry, count - 1) | right(a, rest.wrapping_add(1));
    let result = (left(a, count) | inserted) & mask(size);
    let carry = right(a, rest) & 1 != 0;
    (result, rotated(flags, carry, carry != sign(result, size)))
}

fn rotate_carry_right(a: u64, count: u32, size: u8, flags: Rflags) -> Outcome {
    let count = carry_count(count, size);
    if count == 0 {
        return (a, flags);
    }
    let rest = bits(size).wrapping_sub(count);
    let (result, new) = rotate_carry_left(a, rest.wrapping_add(1), size, flags);
    let overflow = sign(result ^ (result << 1), size);
    let carry = new.contains(Rflags::CF);
    (result, rotated(flags, carry, overflow))
}

/// SHLD and SHRD: `a` shifted, with bits of `b` coming in.
pub(super) fn double_shift(
    to_right: bool,
    a: u64,
    b: u64,
    count: u8,
    size: u8,
    flags: Rflags,
) -> Outcome {
    let count = masked_count(count, size);
    let width = bits(size);
    // A 16-bit count above 16 is undefined.
    if count == 0 || count > width {
        return (a, flags);
    }
    let rest = width.wrapping_sub(count);
    let (result, carry) = if to_right {
        let result = right(a, count) | left(b, rest);
        (result & mask(size), right(a, count - 1) & 1 != 0)
    } else {
        let result = left(a, count) | right(b, rest);
        (result & mask(size), right(a, rest) & 1 != 0)
    };
    let overflow = sign(a ^ result, size);
    shifted(result, carry, overflow, size, flags)
}

/// BT, BTS, BTR and BTC are operations 0 to 3 on one bit.
pub(super) fn bit_test(operation: u8, a: u64, bit: u64, size: u8, flags: Rflags) -> Outcome {
    let selected = 1 << (bit & u64::from(bits(size) - 1));
    let result = match operation & 3 {
        0 => a,
        1 => a | selected,
        2 => a & !selected,
        _ => a ^ selected,
    };
    let carry = flag_if(Rflags::CF, a & selected != 0);
    (result, flags.difference(Rflags::CF) | carry)
}

/// The condition of Jcc, SETcc and CMOVcc with this number (APM vol. 3, table A-5).
pub(super) fn condition(number: u8, flags: Rflags) -> bool {
    let is = |flag| flags.contains(flag);
    let less = is(Rflags::SF) != is(Rflags::OF);
    let holds = match (number >> 1) & 7 {
        0 => is(Rflags::OF),
        1 => is(Rflags::CF),
        2 => is(Rflags::ZF),
        3 => is(Rflags::CF) || is(Rflags::ZF),
        4 => is(Rflags::SF),
        5 => is(Rflags::PF),
        6 => less,
        _ => less || is(Rflags::ZF),
    };
    holds != (number & 1 != 0)
}
