// SPDX-License-Identifier: GPL-2.0-only

//! The setters write where the manual has the fields, and clear the right clean bits.

mod support;

use memoffset::span_of;
use support::{bytes, peek};
use svm::clean::Clean;
use svm::features::SvmFeatures;
use svm::intercept::Intercepts;
use svm::vmcb::{TlbControl, VirtualInterrupt, Vmcb, PAT_RESET};
use x86::regs::{Cr0, Cr4, Efer, Rflags, SegAttr, SegReg, Segment};

/// Writes a field by its setter, and finds it at its offset and its clean bits gone.
fn check(offset: usize, size: usize, clean: Clean, set: impl FnOnce(&mut Vmcb, u64)) {
    const VALUE: u64 = 0xf1e2_d3c4_b5a6_9788;
    let mut vmcb = support::zeroed_vmcb();
    vmcb.set_clean();
    let all = vmcb.clean();
    set(&mut vmcb, VALUE);
    assert_eq!(vmcb.clean(), all & !clean, "clean bits of {offset:x}");
    let mut copy = support::zeroed_vmcb();
    copy.copy_from(&vmcb);
    let image = bytes(&mut vmcb);
    assert!(image == bytes(&mut copy), "the copy of field {offset:x}");
    assert_eq!(
        image[offset..offset + size],
        VALUE.to_le_bytes()[..size],
        "field {offset:x}"
    );
    for (at, byte) in image.iter().enumerate() {
        let ours = (offset..offset + size).contains(&at) || (0xc0..0xc4).contains(&at);
        assert!(ours || *byte == 0, "setter of {offset:x} wrote {at:x}");
    }
}

#[test]
fn fields_are_where_the_manual_says() {
    use Clean as C;
    let none = C::empty();
    check(0x03c, 2, C::INTERCEPTS, |v, x| {
        v.set_pause_filter_threshold(x as u16)
    });
    check(0x03e, 2, C::INTERCEPTS, |v, x| {
        v.set_pause_filter_count(x as u16)
    });
    check(0x040, 8, C::PERMISSIONS, Vmcb::set_iopm_base);
    check(0x048, 8, C::PERMISSIONS, Vmcb::set_msrpm_base);
    check(0x050, 8, C::INTERCEPTS, Vmcb::set_tsc_offset);
    check(0x058, 4, C::ASID, |v, x| v.set_asid(x as u32));
    check(0x0a8, 8, none, Vmcb::set_event_inj);
    check(0x0b0, 8, C::NESTED_PAGING, Vmcb::set_ncr3);
    check(0x0c8, 8, none, Vmcb::set_next_rip);
    check(0x4cb, 1, C::SEGMENTS, |v, x| v.set_cpl(x as u8));
    check(0x4d0, 8, C::CR, |v, x| {
        v.set_efer(Efer::from_bits_retain(x))
    });
    check(0x548, 8, C::CR, |v, x| v.set_cr4(Cr4::from_bits_retain(x)));
    check(0x550, 8, C::CR, Vmcb::set_cr3);
    check(0x558, 8, C::CR, |v, x| v.set_cr0(Cr0::from_bits_retain(x)));
    check(0x560, 8, C::DR, Vmcb::set_dr7);
    check(0x568, 8, C::DR, Vmcb::set_dr6);
    check(0x570, 8, none, |v, x| {
        v.set_rflags(Rflags::from_bits_retain(x))
    });
    check(0x578, 8, none, Vmcb::set_rip);
    check(0x5d8, 8, none, Vmcb::set_rsp);
    check(0x5f8, 8, none, Vmcb::set_rax);
    check(0x600, 8, none, Vmcb::set_star);
    check(0x608, 8, none, Vmcb::set_lstar);
    check(0x610, 8, none, Vmcb::set_cstar);
    check(0x618, 8, none, Vmcb::set_sfmask);
    check(0x620, 8, none, Vmcb::set_kernel_gs_base);
    check(0x628, 8, none, Vmcb::set_sysenter_cs);
    check(0x630, 8, none, Vmcb::set_sysenter_esp);
    check(0x638, 8, none, Vmcb::set_sysenter_eip);
    check(0x640, 8, C::CR2, Vmcb::set_cr2);
    check(0x668, 8, C::NESTED_PAGING, Vmcb::set_g_pat);
    check(0x670, 8, C::LBR, Vmcb::set_dbgctl);
    check(0x678, 8, C::LBR, Vmcb::set_br_from);
    check(0x680, 8, C::LBR, Vmcb::set_br_to);
    check(0x688, 8, C::LBR, Vmcb::set_last_excp_from);
    check(0x690, 8, C::LBR, Vmcb::set_last_excp_to);
    check(0x448, 8, none, Vmcb::set_fs_base);
    check(0x458, 8, none, Vmcb::set_gs_base);
    check(0x060, 4, C::INTERRUPT, |v, x| {
        v.set_virtual_interrupt(VirtualInterrupt::from_bits_retain(x as u32));
    });
}

#[test]
fn segments_are_where_the_manual_says() {
    let segment = Segment {
        selector: 0x1122,
        attributes: SegAttr::from_bits_retain(0x3344),
        limit: 0x5566_7788,
        base: 0x99aa_bbcc_ddee_ff00,
    };
    let mut image = [0; 16];
    image[0..2].copy_from_slice(&0x1122_u16.to_le_bytes());
    image[2..4].copy_from_slice(&0x3344_u16.to_le_bytes());
    image[4..8].copy_from_slice(&0x5566_7788_u32.to_le_bytes());
    image[8..16].copy_from_slice(&0x99aa_bbcc_ddee_ff00_u64.to_le_bytes());
    let places = [
        (SegReg::Es, 0x400, Clean::SEGMENTS),
        (SegReg::Cs, 0x410, Clean::SEGMENTS),
        (SegReg::Ss, 0x420, Clean::SEGMENTS),
        (SegReg::Ds, 0x430, Clean::SEGMENTS),
        (SegReg::Fs, 0x440, Clean::empty()),
        (SegReg::Gs, 0x450, Clean::empty()),
        (SegReg::Ldtr, 0x470, Clean::empty()),
        (SegReg::Tr, 0x490, Clean::empty()),
    ];
    for (reg, offset, clean) in places {
        let mut vmcb = support::zeroed_vmcb();
        vmcb.set_clean();
        let all = vmcb.clean();
        vmcb.set_segment(reg, segment);
        assert_eq!(vmcb.segment(reg), segment);
        assert_eq!(vmcb.clean(), all & !clean);
        assert_eq!(bytes(&mut vmcb)[offset..offset + 16], image, "{reg:?}");
    }
    let mut vmcb = support::zeroed_vmcb();
    vmcb.set_gdtr(segment);
    vmcb.set_idtr(segment);
    assert_eq!(bytes(&mut vmcb)[0x460..0x470], image);
    assert_eq!(bytes(&mut vmcb)[0x480..0x490], image);
}

#[test]
fn intercept_words_are_in_order() {
    assert_eq!(span_of!(Intercepts, cr), 0x00..0x04);
    assert_eq!(span_of!(Intercepts, dr), 0x04..0x08);
    assert_eq!(span_of!(Intercepts, exceptions), 0x08..0x0c);
    assert_eq!(span_of!(Intercepts, word3), 0x0c..0x10);
    assert_eq!(span_of!(Intercepts, word4), 0x10..0x14);
    assert_eq!(span_of!(Intercepts, word5), 0x14..0x18);
}

#[test]
fn reset_is_what_the_manual_says() {
    let mut vmcb = support::zeroed_vmcb();
    bytes(&mut vmcb)[0x400..].fill(0xa5);
    vmcb.set_clean();
    vmcb.reset(SvmFeatures::PAUSE_FILTER);
    assert!(vmcb.clean().is_empty());
    assert_eq!(vmcb.rip(), 0xfff0);
    let cs = vmcb.segment(SegReg::Cs);
    assert_eq!(
        (cs.selector, cs.base, cs.limit),
        (0xf000, 0xffff_0000, 0xffff)
    );
    assert_eq!(cs.attributes.bits(), 0x9b);
    assert_eq!(vmcb.segment(SegReg::Ss).attributes.bits(), 0x93);
    assert_eq!(vmcb.segment(SegReg::Ldtr).attributes.bits(), 0x82);
    assert_eq!(vmcb.segment(SegReg::Tr).attributes.bits(), 0x83);
    assert_eq!(vmcb.rflags().bits(), 2);
    assert_eq!(vmcb.efer(), Efer::SVME);
    assert_eq!(vmcb.g_pat(), PAT_RESET);
    assert_eq!((vmcb.dr6(), vmcb.dr7()), (0xffff_0ff0, 0x400));
    assert_eq!(peek(&mut vmcb, 0x90) & 1, 1, "nested paging");
    assert_eq!(peek(&mut vmcb, 0x10) & 1, 1, "VMRUN intercept");
    assert_eq!(peek(&mut vmcb, 0x60), 1 << 24, "only V_INTR_MASKING");
    assert_eq!(vmcb.pause_filter_count(), 3000);
}

#[test]
fn small_accessors() {
    let mut vmcb = support::zeroed_vmcb();
    vmcb.set_v_tpr(0x1f);
    assert_eq!(vmcb.v_tpr(), 0xf);
    assert_eq!(peek(&mut vmcb, 0x60), 0xf);
    vmcb.set_interrupt_shadow(true);
    assert!(vmcb.interrupt_shadow());
    assert_eq!(peek(&mut vmcb, 0x68), 1);
    vmcb.set_interrupt_shadow(false);
    assert!(!vmcb.interrupt_shadow());
    vmcb.set_tlb_control(TlbControl::Asid);
    assert_eq!(bytes(&mut vmcb)[0x5c], 3);
    bytes(&mut vmcb)[0xd0] = 0xff;
    bytes(&mut vmcb)[0xd1..0xe0].fill(7);
    assert_eq!(vmcb.instruction_bytes(), [7; 15]);
}
