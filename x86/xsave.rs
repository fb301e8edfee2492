// SPDX-License-Identifier: GPL-2.0-only

//! Extended state: XCR0, and the XSAVE image in its standard form (APM vol. 2, 11.5).
//!
//! ```text
//!   0         512      576
//!   ├─ FXSAVE ─┼ header ┼─ AVX ─┼─ AVX-512 ... ─┤      where CPUID leaf D says; zeros: initial state
//!              XSTATE_BV
//! ```
//!
//! The *area* holds a guest's registers while it is not in the CPU. It is the VMM's image without
//! PKRU, which has another owner in the host: the kernel switches it with each thread.
//!
//! Invariant of an area: XRSTOR takes it. MXCSR has no reserved bit, XSTATE_BV names switched
//! components only, the rest of the header is zero. A component whose bit is clear is zero.

use crate::fxsave::{self, get, offset, put};

/// Components, by their bits in XCR0 and XSTATE_BV (APM vol. 2, 11.5.2).
pub const X87: u64 = 1 << 0;
/// XMM registers and MXCSR.
pub const SSE: u64 = 1 << 1;
/// Upper halves of the YMM registers.
pub const AVX: u64 = 1 << 2;
/// Mask registers, upper halves of ZMM0 to 15, and ZMM16 to 31.
pub const AVX512: u64 = 0b111 << 5;
/// Protection-key rights.
pub const PKRU: u64 = 1 << 9;
/// What the legacy region of the image holds.
pub const LEGACY: u64 = X87 | SSE;
/// All that are known here: their initial state is zero, but for FCW and MXCSR.
const KNOWN: u64 = LEGACY | AVX | AVX512 | PKRU;

/// Bytes of `struct kvm_xsave`, which holds everything that is known here.
pub const IMAGE_SIZE: usize = 4096;
/// XSTATE_BV; XCOMP_BV and reserved bytes follow it.
const XSTATE_BV: usize = fxsave::SIZE;
const XCOMP_BV: usize = XSTATE_BV + 8;
/// Where the header ends.
const HEADER_END: usize = XSTATE_BV + 64;
/// Component 9, PKRU, is the last.
const COMPONENTS: usize = 10;

/// True if XCR0 may be `value` on a CPU with the components `supported`: no CPU has other
/// combinations (APM vol. 4, XSETBV).
pub fn is_valid_xcr0(value: u64, supported: u64) -> bool {
    let all_or_none = |bits: u64| value & bits == 0 || value & bits == bits;
    let needs = |bits: u64, base: u64| value & bits == 0 || value & base == base;
    value & X87 != 0
        && value & !(supported | X87) == 0
        && needs(AVX, SSE)
        && all_or_none(AVX512)
        && needs(AVX512, AVX)
}

/// Which components are switched, and where each is in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The components: XCR0 bits.
    pub components: u64,
    /// Offset and size of each; of the first two zero.
    places: [(usize, usize); COMPONENTS],
}

impl Layout {
    /// The components of the host's XCR0 that are known here, placed as CPUID leaf D says. An XCR0
    /// of 0 is a host without XSAVE.
    pub fn new(host_xcr0: u64, cpuid: &mut impl FnMut(u32, u32) -> [u32; 4]) -> Self {
        let mut places = [(0, 0); COMPONENTS];
        let mut components = host_xcr0 & KNOWN;
        for (index, place) in places.iter_mut().enumerate().skip(2) {
            if components >> index & 1 == 0 {
                continue;
            }
            let [size, offset, ..] = cpuid(crate::cpuid::function::XSTATE, index as u32);
            let (offset, size) = (offset as usize, size as usize);
            if offset >= HEADER_END && offset.saturating_add(size) <= IMAGE_SIZE {
                *place = (offset, size);
            } else {
                components &= !(1 << index);
            }
        }
        if !is_valid_xcr0(components, components) {
            components &= LEGACY;
        }
        Self { components, places }
    }

    /// The components of the area.
    pub fn in_area(&self) -> u64 {
        self.components & !PKRU
    }

    /// Bytes of an area.
    pub fn area_size(&self) -> usize {
        self.places_of(self.in_area())
            .map(|(_, offset, size)| offset.wrapping_add(size))
            .fold(HEADER_END, usize::max)
    }

    /// Those of the components `of` that have a place of their own: bit, offset, size.
    fn places_of(&self, of: u64) -> impl Iterator<Item = (u64, usize, usize)> + '_ {
        let present = self.components & of;
        (0..COMPONENTS as u32)
            .zip(&self.places)
            .map(|(index, (offset, size))| (1_u64.wrapping_shl(index), *offset, *size))
            .filter(move |(bit, _, size)| present & bit != 0 && *size != 0)
    }

    /// `KVM_GET_XSAVE`: the components `shown` of an area, and PKRU, as an image of zeros.
    pub fn export(&self, area: &[u8], pkru: u32, shown: u64, image: &mut [u8]) {
        copy(image, area, 0, offset::XMM_END);
        let present = (xstate_bv(area) | LEGACY) & (shown | LEGACY) & self.in_area();
        let mut found = present | LEGACY;
        for (_, offset, size) in self.places_of(present) {
            copy(image, area, offset, size);
        }
        for (bit, offset, _) in self.places_of(PKRU & shown) {
            put(image, offset, pkru.to_le_bytes());
            found |= bit;
        }
        put(image, XSTATE_BV, found.to_le_bytes());
    }

    /// `KVM_SET_XSAVE`: fills an area from the VMM's image, and answers PKRU. `None`, with nothing
    /// changed, for an image that XRSTOR would not take on this CPU.
    ///
    /// A component whose bit in XSTATE_BV is clear gets its initial state, whatever the image says;
    /// only PKRU stays what it was, `pkru`, as with KVM.
    pub fn import(&self, area: &mut [u8], pkru: u32, image: &[u8], mxcsr_mask: u32) -> Option<u32> {
        let given = xstate_bv(image);
        let reserved = image.get(XCOMP_BV..HEADER_END)?;
        let mxcsr = fxsave::mxcsr(image);
        let has_mxcsr = given & (SSE | AVX) != 0;
        if given & !(self.components | LEGACY) != 0
            || reserved.iter().any(|byte| *byte != 0)
            || (has_mxcsr && mxcsr & !mxcsr_mask != 0)
        {
            return None;
        }
        reset(area);
        if given & X87 != 0 {
            copy(area, image, 0, offset::MXCSR);
            copy(area, image, offset::ST0, offset::XMM0 - offset::ST0);
        }
        if given & SSE != 0 {
            copy(area, image, offset::XMM0, offset::XMM_END - offset::XMM0);
        }
        if has_mxcsr {
            put(area, offset::MXCSR, mxcsr.to_le_bytes());
        }
        for (_, offset, size) in self.places_of(given & !PKRU) {
            copy(area, image, offset, size);
        }
        mark(area, given & !PKRU);
        let given = self.places_of(given & PKRU).next();
        Some(given.map_or(pkru, |(_, offset, _)| {
            u32::from_le_bytes(get(image, offset))
        }))
    }

    /// Where the part of vector register `index` is that this component has, if it is switched.
    fn register(&self, component: u64, index: u8, size: usize) -> Option<usize> {
        let (_, offset, whole) = self.places_of(component).next()?;
        let at = size.wrapping_mul(usize::from(index & 15));
        (at.wrapping_add(size) <= whole).then(|| offset.wrapping_add(at))
    }

    /// The upper half of YMM register `index`, of which the low four bits count.
    pub fn ymm_high(&self, area: &[u8], index: u8) -> u128 {
        match self.register(AVX, index, 16) {
            Some(at) => u128::from_le_bytes(get(area, at)),
            None => 0,
        }
    }

    /// Sets it. What AVX-512 has above it becomes zero, as it does with every AVX instruction.
    pub fn set_ymm_high(&self, area: &mut [u8], index: u8, value: u128) {
        /// The upper halves of ZMM0 to 15.
        const ZMM_HIGH: u64 = 1 << 6;
        if let Some(at) = self.register(AVX, index, 16) {
            put(area, at, value.to_le_bytes());
            mark(area, AVX);
        }
        if let Some(at) = self.register(ZMM_HIGH, index, 32) {
            put(area, at, [0; 32]);
        }
    }
}

/// The registers of a new vCPU.
pub fn reset(area: &mut [u8]) {
    area.fill(0);
    fxsave::reset(area);
    mark(area, LEGACY);
}

/// To be called when something was written into components `bits` of an area.
pub fn mark(area: &mut [u8], bits: u64) {
    let marked = xstate_bv(area) | bits;
    put(area, XSTATE_BV, marked.to_le_bytes());
}

fn xstate_bv(image: &[u8]) -> u64 {
    u64::from_le_bytes(get(image, XSTATE_BV))
}

/// Copies `size` bytes at `offset`, if both have them.
fn copy(to: &mut [u8], from: &[u8], offset: usize, size: usize) {
    let range = offset..offset.wrapping_add(size);
    if let (Some(to), Some(from)) = (to.get_mut(range.clone()), from.get(range)) {
        to.copy_from_slice(from);
    }
}
