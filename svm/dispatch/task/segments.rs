// SPDX-License-Identifier: GPL-2.0-only

//! The segments of the incoming task (APM vol. 2, 12.3.3).

use super::{Platform, Selector, Switch, SEGMENTS};
use x86::cpu::{Cpu, Stop};
use x86::descriptor::{self, Descriptor};
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
        ldt = self.descriptor(selector)?.segment;
        let kind = ldt.attributes & (SegAttr::TYPE | SegAttr::S | SegAttr::P);
        if kind != LDT | SegAttr::P {
            return Err(self.fault(vector::TS, selector));
        }
        self.guest.vmcb.set_segment(SegReg::Ldtr, ldt);
        Ok(())
    }

    /// Loads a code, stack or data segment. The switch cannot be begun anew if another CPU changes
    /// the descriptor meanwhile; the segment can be.
    fn load_segment(&mut self, reg: SegReg, selector: Selector, cpl: u8) -> Result<(), Stop> {
        const ATTEMPTS: usize = 16;
        for _ in 0..ATTEMPTS {
            match self.try_segment(reg, selector, cpl) {
                Err(Stop::Again) => {}
                result => return result,
            }
        }
        Err(self.fault(vector::TS, selector))
    }

    /// The same, with the checks of APM vol. 2, 4.11 and 12.3.3.
    fn try_segment(&mut self, reg: SegReg, selector: Selector, cpl: u8) -> Result<(), Stop> {
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
        let mut descriptor = self.descriptor(selector)?;
        let has = |bits| descriptor.has(bits);
        let (dpl, rpl) = (descriptor.dpl(), selector.rpl());
        let conforming = descriptor.is_conforming();
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
        descriptor::mark(self.guest, &mut descriptor, SegAttr::ACCESSED)?;
        self.guest.vmcb.set_segment(reg, descriptor.segment);
        Ok(())
    }

    /// The descriptor of a selector.
    pub(super) fn descriptor(&mut self, selector: Selector) -> Result<Descriptor, Stop> {
        let found = descriptor::read(self.guest, selector.0)?;
        found.ok_or_else(|| self.fault(vector::TS, selector))
    }
}
