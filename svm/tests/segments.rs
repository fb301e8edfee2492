// SPDX-License-Identifier: GPL-2.0-only

//! Segment registers as a VMM reads them, whatever the CPU keeps of their attributes.

mod support;

use x86::regs::{SegAttr, SegReg, Segment};

const ALL: [SegReg; 8] = [
    SegReg::Es,
    SegReg::Cs,
    SegReg::Ss,
    SegReg::Ds,
    SegReg::Fs,
    SegReg::Gs,
    SegReg::Ldtr,
    SegReg::Tr,
];

fn shown(reg: SegReg, attributes: u16, limit: u32, cpl: u8) -> u16 {
    let mut vmcb = support::zeroed_vmcb();
    vmcb.set_cpl(cpl);
    vmcb.set_segment(
        reg,
        Segment {
            selector: 0x18,
            attributes: SegAttr::from_bits_retain(attributes),
            limit,
            base: 0x1000,
        },
    );
    let segment = vmcb.canonical_segment(reg);
    assert_eq!(
        (segment.selector, segment.limit, segment.base),
        (0x18, limit, 0x1000)
    );
    segment.attributes.bits()
}

/// AMD's CPUs do not keep G of CS, and others none.
#[test]
fn granularity_follows_the_limit() {
    for reg in ALL {
        for g in [0, 0x800] {
            let has_g = |limit| shown(reg, 0x93 | g, limit, 0) & 0x800 != 0;
            assert!(has_g(u32::MAX) && has_g(0x10_0fff) && has_g(0x10_0000));
            assert!(!has_g(0xf_ffff) && !has_g(0xffff) && !has_g(0));
        }
    }
}

#[test]
fn what_was_loaded_was_accessed() {
    for reg in [SegReg::Ds, SegReg::Es, SegReg::Fs, SegReg::Gs] {
        assert_eq!(shown(reg, 0x92, 0xffff, 0), 0x93);
        assert_eq!(shown(reg, 0x9a, 0xffff, 0), 0x9b);
        // A null selector.
        assert_eq!(shown(reg, 0, 0, 0), 0);
        assert_eq!(shown(reg, 0x12, 0, 0), 0x12);
    }
}

#[test]
fn a_task_state_segment_in_use_is_busy() {
    assert_eq!(shown(SegReg::Tr, 0x89, 0x67, 0), 0x8b);
    assert_eq!(shown(SegReg::Tr, 0x81, 0x2b, 0), 0x83);
    assert_eq!(shown(SegReg::Ldtr, 0x82, 0xffff, 0), 0x82);
}

#[test]
fn the_stack_has_the_privilege_of_the_code() {
    for cpl in 0..4 {
        let dpl = u16::from(cpl) << 5;
        assert_eq!(shown(SegReg::Ss, 0x493, 0xffff, cpl), 0x493 | dpl);
        assert_eq!(shown(SegReg::Ss, 0x4f3, 0xffff, cpl), 0x493 | dpl);
        // Null, and a bit that the CPU has left there.
        assert_eq!(shown(SegReg::Ss, 0x400, 0, cpl), dpl);
    }
    // Elsewhere DPL is what was loaded, and D/B of what is unusable stays.
    assert_eq!(shown(SegReg::Cs, 0x4fb, 0xffff, 0), 0x4fb);
    assert_eq!(shown(SegReg::Ds, 0x400, 0, 3), 0x400);
}
