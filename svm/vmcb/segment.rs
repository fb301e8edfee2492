// SPDX-License-Identifier: GPL-2.0-only

//! What a segment register in the VMCB looks like in a state that is saved or compared.
//!
//! The CPU keeps in the attributes what it needs, and not all of what was loaded (APM vol. 2,
//! 15.5.1, 4.8). A reader gets the one form that is legal everywhere, VM entries of other vendors'
//! CPUs included:
//!
//! | bit                     | what it is                                                            |
//! |-------------------------|-----------------------------------------------------------------------|
//! | G                       | what the limit needs: CPUs need not keep it, that of CS not at all     |
//! | accessed, of DS to GS   | set: a segment that was loaded was accessed, whatever its descriptor says |
//! | busy, of TR             | set: a TSS in use is busy                                             |
//! | DPL of SS               | CPL, for which the VMCB has a field of its own                        |
//! | D/B of a null SS        | clear: it may be what was there before                                |

use super::Vmcb;
use x86::regs::{SegAttr, SegReg, Segment};

/// The largest limit of a segment that is counted in bytes (APM vol. 2, 4.7.1).
const LIMIT_IN_BYTES: u32 = 0xf_ffff;
/// In the type of a TSS descriptor: busy (APM vol. 2, 4.8.3).
const TSS_BUSY: SegAttr = SegAttr::WRITABLE;
/// Where DPL begins in the attributes.
const DPL_SHIFT: u32 = 5;

impl Vmcb {
    /// A segment register in its canonical form. One whose `P` is clear is unusable.
    pub fn canonical_segment(&self, reg: SegReg) -> Segment {
        let mut segment = self.segment(reg);
        let attributes = &mut segment.attributes;
        let present = attributes.contains(SegAttr::P);
        attributes.set(SegAttr::G, segment.limit > LIMIT_IN_BYTES);
        match reg {
            SegReg::Tr => attributes.insert(TSS_BUSY),
            SegReg::Ds | SegReg::Es | SegReg::Fs | SegReg::Gs if present => {
                attributes.insert(SegAttr::ACCESSED);
            }
            SegReg::Ss => {
                let dpl = u16::from(self.cpl()) << DPL_SHIFT;
                attributes.remove(SegAttr::DPL);
                attributes.insert(SegAttr::from_bits_retain(dpl) & SegAttr::DPL);
                if !present {
                    attributes.remove(SegAttr::DB);
                }
            }
            _ => {}
        }
        segment
    }
}
