// SPDX-License-Identifier: GPL-2.0-only

//! Segment descriptors (APM vol. 2, 4.7 and 4.8), and what the CPU itself writes to them.

use crate::cpu::{Access, Cpu, Stop};
use crate::regs::{Efer, SegAttr, SegReg, Segment};

/// In the type of a TSS: busy.
pub const BUSY: SegAttr = SegAttr::WRITABLE;

/// How often a change is tried that other CPUs come between.
const ATTEMPTS: usize = 16;
/// Where the attributes are in the first eight bytes: type, S, DPL and P; then AVL, L, D/B and G.
const TYPE_SHIFT: u32 = 40;

/// A descriptor that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The segment that it describes.
    pub segment: Segment,
    /// Where it is, and its first eight bytes.
    place: Option<(u64, u64)>,
}

impl Descriptor {
    /// A segment that has no descriptor: of real or virtual-8086 mode.
    pub fn without(segment: Segment) -> Self {
        Self {
            segment,
            place: None,
        }
    }

    /// DPL.
    pub fn dpl(&self) -> u8 {
        self.segment.dpl()
    }

    /// Whether the attributes are there.
    pub fn has(&self, bits: SegAttr) -> bool {
        self.segment.attributes.contains(bits)
    }

    /// Type and S.
    pub fn kind(&self) -> SegAttr {
        self.segment.attributes & (SegAttr::TYPE | SegAttr::S)
    }

    /// Whether it is conforming code.
    pub fn is_conforming(&self) -> bool {
        self.segment.is_conforming()
    }

    /// The second doubleword.
    pub(crate) fn upper(&self) -> u32 {
        self.place.map_or(0, |(_, raw)| (raw >> 32) as u32)
    }
}

/// Reads the descriptor that the selector names; nothing if its table has no such. Those of system
/// segments have 16 bytes in long mode.
pub fn read<C: Cpu>(cpu: &mut C, selector: u16) -> Result<Option<Descriptor>, Stop> {
    let is_local = selector & 4 != 0;
    let table = if is_local {
        cpu.segment(SegReg::Ldtr)
    } else {
        cpu.gdtr()
    };
    let offset = u64::from(selector & !7);
    let has = |last: u64| offset.wrapping_add(last) <= u64::from(table.limit);
    if is_local && !table.attributes.contains(SegAttr::P) || !has(7) {
        return Ok(None);
    }
    let long = cpu.efer().contains(Efer::LMA);
    let mut entry = table.base.wrapping_add(offset);
    if !long {
        entry &= 0xffff_ffff;
    }
    let raw = read_system(cpu, entry, 8)?;
    let mut segment = decode(selector, raw);
    if long && !segment.attributes.contains(SegAttr::S) {
        if !has(15) {
            return Ok(None);
        }
        segment.base |= read_system(cpu, entry.wrapping_add(8), 4)? << 32;
    }
    Ok(Some(Descriptor {
        segment,
        place: Some((entry, raw)),
    }))
}

/// The segment that eight bytes describe.
fn decode(selector: u16, raw: u64) -> Segment {
    let attributes = (raw >> TYPE_SHIFT & 0xff | raw >> 44 & 0xf00) as u16;
    let attributes = SegAttr::from_bits_retain(attributes);
    let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
    Segment {
        selector,
        attributes,
        limit: match attributes.contains(SegAttr::G) {
            true => limit << 12 | 0xfff,
            false => limit,
        },
        base: raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000,
    }
}

/// Reads up to eight bytes as the CPU itself does.
fn read_system<C: Cpu>(cpu: &mut C, linear: u64, size: u8) -> Result<u64, Stop> {
    let rest = u64::from(size).saturating_sub(1);
    if linear.checked_add(rest).is_none() {
        return Err(Stop::Unhandled);
    }
    let mut bytes = [0; 8];
    let part = bytes.get_mut(..usize::from(size)).ok_or(Stop::Unhandled)?;
    cpu.read(linear, part, Access::SystemRead)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Marks a code or data segment as accessed, or a TSS as busy. [`Stop::Again`] if the descriptor is
/// no more what was read and checked.
pub fn mark<C: Cpu>(cpu: &mut C, descriptor: &mut Descriptor, bit: SegAttr) -> Result<(), Stop> {
    let Some((at, raw)) = descriptor.place.filter(|_| !descriptor.has(bit)) else {
        return Ok(());
    };
    let kind = (raw >> TYPE_SHIFT) as u8 | bit.bits() as u8;
    if !cpu.set_descriptor_type(at, raw, kind)? {
        return Err(Stop::Again);
    }
    descriptor.segment.attributes |= bit;
    Ok(())
}

/// Makes the TSS of the selector available. Nothing if its table has no such descriptor.
pub fn release<C: Cpu>(cpu: &mut C, selector: u16) -> Result<Option<()>, Stop> {
    for _ in 0..ATTEMPTS {
        let Some(Descriptor {
            place: Some((at, raw)),
            ..
        }) = read(cpu, selector)?
        else {
            return Ok(None);
        };
        let kind = (raw >> TYPE_SHIFT) as u8 & !BUSY.bits() as u8;
        if cpu.set_descriptor_type(at, raw, kind)? {
            return Ok(Some(()));
        }
    }
    Err(Stop::Again)
}

/// `descriptor` with another type, as [`Cpu::set_descriptor_type`] makes it.
pub fn with_type(descriptor: u64, kind: u8) -> u64 {
    descriptor & !(0xff << TYPE_SHIFT) | u64::from(kind) << TYPE_SHIFT
}

/// Where the byte with the type is.
pub const TYPE_BYTE: u64 = 5;
