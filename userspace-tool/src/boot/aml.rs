// SPDX-License-Identifier: GPL-2.0-only

//! The few words of the ACPI machine language that the definition block needs (ACPI specification
//! 6.5, chapter 20). Each function gives the bytes of one term.

const BYTE_PREFIX: u8 = 0x0a;
const DWORD_PREFIX: u8 = 0x0c;
const STRING_PREFIX: u8 = 0x0d;
const NAME_OP: u8 = 0x08;
const SCOPE_OP: u8 = 0x10;
const BUFFER_OP: u8 = 0x11;
const PACKAGE_OP: u8 = 0x12;
const METHOD_OP: u8 = 0x14;
const NOTIFY_OP: u8 = 0x86;
/// A path from the root, of two names.
const ROOT: u8 = b'\\';
const DUAL_NAME: u8 = 0x2e;
const EXT_PREFIX: u8 = 0x5b;
const DEVICE_OP: u8 = 0x82;

// Resource descriptors (6.4).
const IRQ_DESCRIPTOR: u8 = 0x22;
const IO_DESCRIPTOR: u8 = 0x47;
const IO_DECODES_16_BITS: u8 = 1;
const DWORD_DESCRIPTOR: u8 = 0x87;
const WORD_DESCRIPTOR: u8 = 0x88;
/// Address spaces: memory, and bus numbers.
const SPACE_MEMORY: u8 = 0;
const SPACE_BUS: u8 = 2;
/// Both ends of a range are fixed.
const FIXED_RANGE: u8 = 0b11 << 2;
/// Memory can be written, and is not cached.
const MEMORY_WRITABLE: u8 = 1;
const END_TAG: [u8; 2] = [0x79, 0];

/// A name of four characters.
pub(super) type Segment = [u8; 4];

/// The length of a package, which counts its own bytes (20.2.4).
fn package_length(contents: usize) -> Vec<u8> {
    // One byte holds lengths up to 63. With more bytes, the first one holds the low four bits and
    // the number of those that follow.
    if contents < 0x3f {
        return vec![(contents + 1) as u8];
    }
    let following = if contents + 2 < 1 << 12 { 1 } else { 2 };
    let length = contents + 1 + following;
    let mut bytes = vec![(following << 6 | length & 0xf) as u8];
    bytes.extend(&(length >> 4).to_le_bytes()[..following]);
    bytes
}

/// An operator, and a package with the contents.
fn packaged(operator: &[u8], contents: &[u8]) -> Vec<u8> {
    [operator, &package_length(contents.len()), contents].concat()
}

/// A number below 256.
pub(super) fn byte(value: u8) -> Vec<u8> {
    vec![BYTE_PREFIX, value]
}

/// A number of 32 bits.
pub(super) fn dword(value: u32) -> Vec<u8> {
    [&[DWORD_PREFIX][..], &value.to_le_bytes()].concat()
}

/// A text.
pub(super) fn string(text: &str) -> Vec<u8> {
    [&[STRING_PREFIX][..], text.as_bytes(), &[0]].concat()
}

/// A method without arguments.
pub(super) fn method(segment: &Segment, terms: &[u8]) -> Vec<u8> {
    packaged(&[METHOD_OP], &[segment, &[0][..], terms].concat())
}

/// Tells the driver of a device in a scope of the root what has happened to it.
pub(super) fn notify(scope: &Segment, device: &Segment, value: u8) -> Vec<u8> {
    let path = [&[ROOT, DUAL_NAME][..], scope, device].concat();
    [&[NOTIFY_OP][..], &path, &byte(value)].concat()
}

/// Gives an object a name.
pub(super) fn name(segment: &Segment, object: &[u8]) -> Vec<u8> {
    [&[NAME_OP][..], segment, object].concat()
}

/// An array of objects; there must be fewer than 256.
pub(super) fn package(objects: &[Vec<u8>]) -> Vec<u8> {
    let contents = [&[objects.len() as u8][..], &objects.concat()].concat();
    packaged(&[PACKAGE_OP], &contents)
}

/// Terms within the name space of an existing object.
pub(super) fn scope(segment: &Segment, terms: &[u8]) -> Vec<u8> {
    packaged(&[SCOPE_OP], &[segment, terms].concat())
}

/// A new device with its objects.
pub(super) fn device(segment: &Segment, objects: &[Vec<u8>]) -> Vec<u8> {
    packaged(
        &[EXT_PREFIX, DEVICE_OP],
        &[segment, &objects.concat()[..]].concat(),
    )
}

/// A hardware number such as PNP0501: three letters and four hexadecimal digits (19.3.4).
pub(super) fn eisa_id(letters: [u8; 3], digits: u16) -> Vec<u8> {
    let letters = letters
        .iter()
        .fold(0, |bits, letter| bits << 5 | u32::from(letter & 0x1f));
    dword((letters << 16 | u32::from(digits)).swap_bytes())
}

/// Resources in a buffer.
pub(super) fn resources(descriptors: &[Vec<u8>]) -> Vec<u8> {
    let bytes = [&descriptors.concat()[..], &END_TAG].concat();
    let contents = [byte(bytes.len() as u8), bytes].concat();
    packaged(&[BUFFER_OP], &contents)
}

/// The resource of `count` I/O ports from a fixed one on.
pub(super) fn ports(first: u16, count: u8) -> Vec<u8> {
    let [low, high] = first.to_le_bytes();
    vec![
        IO_DESCRIPTOR,
        IO_DECODES_16_BITS,
        low,
        high,
        low,
        high,
        1,
        count,
    ]
}

/// The resource of a bridge: bus 0 alone.
pub(super) fn first_bus() -> Vec<u8> {
    let mut bytes = vec![WORD_DESCRIPTOR, 13, 0, SPACE_BUS, FIXED_RANGE, 0];
    // Granularity, first, last, translation, count.
    bytes.extend([0u16, 0, 0, 0, 1].map(u16::to_le_bytes).concat());
    bytes
}

/// The resource of a bridge: what is behind it answers at these addresses.
pub(super) fn memory(first: u32, size: u32) -> Vec<u8> {
    let mut bytes = vec![
        DWORD_DESCRIPTOR,
        23,
        0,
        SPACE_MEMORY,
        FIXED_RANGE,
        MEMORY_WRITABLE,
    ];
    let last = first + (size - 1);
    bytes.extend([0, first, last, 0, size].map(u32::to_le_bytes).concat());
    bytes
}

/// The resource of an edge-triggered ISA interrupt.
pub(super) fn interrupt(number: u8) -> Vec<u8> {
    let [low, high] = 1u16.checked_shl(number.into()).unwrap_or(0).to_le_bytes();
    vec![IRQ_DESCRIPTOR, low, high]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_lengths_count_themselves() {
        assert_eq!(package_length(0), [1]);
        assert_eq!(package_length(62), [63]);
        assert_eq!(package_length(63), [0x41, 0x04]);
        assert_eq!(package_length(0xffd), [0x4f, 0xff]);
        assert_eq!(package_length(0xffe), [0x81, 0x00, 0x01]);
    }

    #[test]
    fn terms() {
        assert_eq!(eisa_id(*b"PNP", 0x0501), [0x0c, 0x41, 0xd0, 0x05, 0x01]);
        assert_eq!(name(b"_UID", &byte(0)), *b"\x08_UID\x0a\x00");
        assert_eq!(package(&[byte(5), byte(0)]), [0x12, 6, 2, 0x0a, 5, 0x0a, 0]);
        assert_eq!(device(b"COM1", &[]), *b"\x5b\x82\x05COM1");
        assert_eq!(scope(b"_SB_", &[1]), *b"\x10\x06_SB_\x01");
        assert_eq!(string("ab"), *b"\x0dab\0");
        assert_eq!(method(b"_E00", &[0xa3]), *b"\x14\x07_E00\0\xa3");
        assert_eq!(
            notify(b"_SB_", b"VGEN", 0x80),
            *b"\x86\\\x2e_SB_VGEN\x0a\x80"
        );
        assert_eq!(interrupt(4), [0x22, 0x10, 0]);
        assert_eq!(
            resources(&[interrupt(4)]),
            [0x11, 8, 0x0a, 5, 0x22, 0x10, 0, 0x79, 0]
        );
        assert_eq!(first_bus().len(), 16);
        let memory = memory(0xc000_0000, 0x1000);
        assert_eq!(
            (memory.len(), memory[14..18].to_vec()),
            (26, vec![0xff, 0x0f, 0, 0xc0])
        );
        assert_eq!(ports(0x3f8, 8), [0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8]);
    }
}
