// SPDX-License-Identifier: GPL-2.0-only

//! The segments of the incoming task (APM vol. 2, 12.3.3).

use super::{Platform, Selector, Switch, LOW, SEGMENTS};
use x86::cpu::{Cpu, Stop};
use x86::regs::{vector, SegAttr, SegReg, Segment};

/// A segment of virtual-8086 mode: present, DPL 3, writable data, accessed.
const VIRTUAL_8086: SegAttr = SegAttr::P
    .union(SegAttr::DPL)
    .union(SegAttr::S)
    .union(SegAttr::WRITABLE)
    .union(SegAttr::ACCESSED);

impl<P: Platform> Switch<'_, '_, P> {
    /// Loads LDTR first, then CS, which sets the privilege level, then the others.
    pub(super) fn load_segments(
        &mut self,
        selectors: [u16; SEGMENTS.len()],
        ldt: Selector,
        virtual_8086: bool,
    ) -> Result<(), Stop> {
        // Until its descriptor is checked, a segment is its selector and nothing else.
        for (reg, selector) in SEGMENTS.into_iter().zip(selectors) {
            let segment = if virtual_8086 {
                Segment {
                    selector,
                    attributes: VIRTUAL_8086,
                    limit: 0xffff,
                    base: u64::from(selector) << 4,
                }
            } else {
                Segment {
                    selector,
                    ..self.guest.segment(reg)
                }
            };
            self.guest.vmcb.set_segment(reg, segment);
        }
        let [_, cs, ..] = selectors;
        let cpl = if virtual_8086 { 3 } else { Selector(cs).rpl() };
        self.guest.vmcb.set_cpl(cpl);
        self.load_ldtr(ldt)?;
        if virtual_8086 {
            return Ok(());
        }
        for reg in [
            SegReg::Cs,
            SegReg::Ss,
            SegReg::Ds,
            SegReg::Es,
            SegReg::Fs,
            SegReg::Gs,
        ] {
            let selector = Selector(self.guest.segment(reg).selector);
            self.load_segment(reg, selector, cpl)?;
        }
        Ok(())
    }

    fn load_ldtr(&mut self, selector: Selector) -> Result<(), Stop> {
        /// An LDT's descriptor.
        const LDT: SegAttr = SegAttr::WRITABLE;
        let mut ldt = Segment {
            selector: selector.0,
            ..Segment::default()
        };
        self.guest.vmcb.set_segment(SegReg::Ldtr, ldt);
        if selector.is_null() {
            return Ok(());
        }
        if selector.local() {
            return Err(self.fault(vector::TS, selector));
        }
        (ldt, _) = self.descriptor(selector)?;
        let kind = ldt.attributes & (SegAttr::TYPE | SegAttr::S | SegAttr::P);
        if kind != LDT | SegAttr::P {
            return Err(self.fault(vector::TS, selector));
        }
        self.guest.vmcb.set_segment(SegReg::Ldtr, ldt);
        Ok(())
    }

    /// Loads a code, stack or data segment, with the checks of APM vol. 2, 4.11 and 12.3.3.
    fn load_segment(&mut self, reg: SegReg, selector: Selector, cpl: u8) -> Result<(), Stop> {
        let bad = self.fault(vector::TS, selector);
        if selector.is_null() {
            if matches!(reg, SegReg::Cs | SegReg::Ss) {
                return Err(bad);
            }
            let null = Segment {
                selector: selector.0,
                ..Segment::default()
            };
            self.guest.vmcb.set_segment(reg, null);
            return Ok(());
        }
        let (mut segment, entry) = self.descriptor(selector)?;
        let has = |bits| segment.attributes.contains(bits);
        let dpl = (segment.attributes.intersection(SegAttr::DPL).bits() >> 5) as u8;
        let rpl = selector.rpl();
        // For code this bit says "conforming", and the one below "readable".
        let conforming = has(SegAttr::CODE | SegAttr::EXPAND_DOWN);
        let legal = has(SegAttr::S)
            && match reg {
                SegReg::Cs if conforming => has(SegAttr::CODE) && dpl <= rpl,
                SegReg::Cs => has(SegAttr::CODE) && dpl == rpl,
                SegReg::Ss => {
                    !has(SegAttr::CODE) && has(SegAttr::WRITABLE) && dpl == cpl && rpl == cpl
                }
                _ if has(SegAttr::CODE) && !has(SegAttr::WRITABLE) => false,
                _ => conforming || dpl >= rpl.max(cpl),
            };
        if !legal {
            return Err(bad);
        }
        if !has(SegAttr::P) {
            let number = if reg == SegReg::Ss {
                vector::SS
            } else {
                vector::NP
            };
            return Err(self.fault(number, selector));
        }
        if !has(SegAttr::ACCESSED) {
            segment.attributes |= SegAttr::ACCESSED;
            self.change_type(entry, |kind| kind | SegAttr::ACCESSED.bits() as u8)?;
        }
        self.guest.vmcb.set_segment(reg, segment);
        Ok(())
    }

    /// Reads a descriptor (APM vol. 2, 4.7): the segment that it describes, and where it is.
    pub(super) fn descriptor(&mut self, selector: Selector) -> Result<(Segment, u64), Stop> {
        let table = if selector.local() {
            self.guest.segment(SegReg::Ldtr)
        } else {
            self.guest.vmcb.gdtr()
        };
        let offset = u64::from(selector.0 & !7);
        if offset.wrapping_add(7) > u64::from(table.limit) {
            return Err(self.fault(vector::TS, selector));
        }
        let entry = table.base.wrapping_add(offset) & LOW;
        let raw = self.read(entry, 0, 8)?;
        let attributes = SegAttr::from_bits_retain((raw >> 40 & 0xff | raw >> 44 & 0xf00) as u16);
        let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
        let segment = Segment {
            selector: selector.0,
            attributes,
            limit: if attributes.contains(SegAttr::G) {
                limit << 12 | 0xfff
            } else {
                limit
            },
            base: raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000,
        };
        Ok((segment, entry))
    }
}
