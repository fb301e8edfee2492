// SPDX-License-Identifier: GPL-2.0-only

//! XCR0, and XSAVE images of every kind.

use proptest::prelude::*;
use x86::fxsave;
use x86::xsave::{self, Layout, IMAGE_SIZE};

const MXCSR_MASK: u32 = 0xffff;

/// CPUID leaf D of a Zen 4: size, offset.
fn zen4(leaf: u32, subleaf: u32) -> [u32; 4] {
    assert_eq!(leaf, 0xd);
    match subleaf {
        2 => [256, 576, 0, 0],
        5 => [64, 832, 0, 0],
        6 => [512, 896, 0, 0],
        7 => [1024, 1408, 0, 0],
        9 => [8, 2432, 0, 0],
        _ => [0; 4],
    }
}

fn layout(xcr0: u64) -> Layout {
    Layout::new(xcr0, &mut zen4)
}

fn area(layout: &Layout) -> Vec<u8> {
    let mut area = vec![0xcc; layout.area_size()];
    xsave::reset(&mut area);
    area
}

fn bv(image: &[u8]) -> u64 {
    u64::from_le_bytes(image[512..520].try_into().unwrap())
}

#[test]
fn valid_values_of_xcr0() {
    for (value, supported, valid) in [
        (1, 0, true),
        (0, 0x2e7, false),
        (3, 3, true),
        (2, 3, false),
        (7, 3, false),
        (7, 7, true),
        (5, 7, false),
        (0xe7, 0xe7, true),
        (0xe3, 0xe7, false),
        (0x67, 0xe7, false),
        (0x203, 0x207, true),
        (0x201, 0x207, true),
        (0x207, 7, false),
        (1 << 63 | 1, 0x207, false),
    ] {
        assert_eq!(
            xsave::is_valid_xcr0(value, supported),
            valid,
            "{value:#x} of {supported:#x}"
        );
    }
}

#[test]
fn layouts() {
    for (xcr0, components, size) in [
        (0, 0, 576),
        (3, 3, 576),
        (7, 7, 832),
        (0x207, 0x207, 832),
        (0x2e7, 0x2e7, 2432),
        // Bounds registers, AMX and LWP are not known.
        (1 << 62 | 0x6001f, 7, 832),
    ] {
        let layout = layout(xcr0);
        assert_eq!(
            (layout.components, layout.area_size()),
            (components, size),
            "{xcr0:#x}"
        );
        assert_eq!(layout.in_area(), components & !0x200);
    }
    // A CPUID that cannot be leaves what can.
    for strange in [
        [u32::MAX; 4],
        [256, 0, 0, 0],
        [256, 3900, 0, 0],
        [4096, 576, 0, 0],
    ] {
        let layout = Layout::new(0x2e7, &mut |_, _| strange);
        assert_eq!((layout.components, layout.area_size()), (3, 576));
    }
}

#[test]
fn registers_of_a_new_vcpu() {
    let layout = layout(0x2e7);
    let mut image = vec![0; IMAGE_SIZE];
    layout.export(&area(&layout), 0, 0x2e7, &mut image);
    assert_eq!(fxsave::to_fpu(&image).fcw, fxsave::FCW_INIT);
    assert_eq!(fxsave::mxcsr(&image), fxsave::MXCSR_INIT);
    assert!(image[576..].iter().all(|byte| *byte == 0));
}

#[test]
fn mxcsr_of_an_absent_component_is_ignored() {
    let layout = layout(0x207);
    let mut area = area(&layout);
    let mut image = vec![0; IMAGE_SIZE];
    image[24..28].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(
        layout.import(&mut area, PKRU, &image, MXCSR_MASK),
        Some(PKRU)
    );
    assert_eq!(fxsave::mxcsr(&area), fxsave::MXCSR_INIT);
}

#[test]
fn bad_images_change_nothing() {
    let layout = layout(0x207);
    let mut area = area(&layout);
    let before = area.clone();
    let mut good = vec![0; IMAGE_SIZE];
    layout.export(&area, 0, 0x207, &mut good);
    for (at, bytes) in [
        (512, 1_u64 << 3),
        (512, 1 << 5),
        (512, 1 << 62),
        (520, 1),
        (520, 1 << 63),
        (528, 1),
        (568, 1 << 63),
        (24, 1 << 16),
    ] {
        let mut bad = good.clone();
        bad[at..at + 8].copy_from_slice(&bytes.to_le_bytes());
        assert_eq!(
            layout.import(&mut area, PKRU, &bad, MXCSR_MASK),
            None,
            "{at}"
        );
        assert_eq!(area, before);
    }
    assert_eq!(
        layout.import(&mut area, PKRU, &good[..540], MXCSR_MASK),
        None
    );
    assert_eq!(
        layout.import(&mut area, PKRU, &good, MXCSR_MASK),
        Some(0),
        "given"
    );
}

#[test]
fn absent_components_are_initial() {
    let layout = layout(0x207);
    let mut area = area(&layout);
    let mut image = vec![0xaa; IMAGE_SIZE];
    image[24..28].copy_from_slice(&0x1fc0_u32.to_le_bytes());
    image[512..576].fill(0);
    image[512] = 2;
    assert_eq!(
        layout.import(&mut area, PKRU, &image, MXCSR_MASK),
        Some(PKRU),
        "not given"
    );
    let fpu = fxsave::to_fpu(&area);
    assert_eq!(
        (fpu.fcw, fpu.ftwx, fpu.mxcsr),
        (fxsave::FCW_INIT, 0, 0x1fc0)
    );
    assert_eq!(fpu.xmm, [[0xaa; 16]; 16]);
    assert!(area[576..].iter().all(|byte| *byte == 0));
    image[513] = 2;
    assert_eq!(
        layout.import(&mut area, PKRU, &image, MXCSR_MASK),
        Some(0xaaaa_aaaa)
    );
}

#[test]
fn a_guest_without_a_component_does_not_show_it() {
    let layout = layout(0x207);
    let mut area = area(&layout);
    let mut image = vec![0; IMAGE_SIZE];
    image[..832].fill(0x11);
    image[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    image[512..576].fill(0);
    image[512] = 7;
    layout.import(&mut area, PKRU, &image, MXCSR_MASK).unwrap();
    let mut shown = vec![0; IMAGE_SIZE];
    layout.export(&area, 5, 3, &mut shown);
    assert_eq!(bv(&shown), 3);
    assert!(shown[576..].iter().all(|byte| *byte == 0));
    let mut shown = vec![0; IMAGE_SIZE];
    layout.export(&area, 5, 0x207, &mut shown);
    assert_eq!(bv(&shown), 0x207);
    assert_eq!(shown[576..832], [0x11; 256]);
    assert_eq!(shown[2432..2440], [5, 0, 0, 0, 0, 0, 0, 0]);
}

/// What the guest had before.
const PKRU: u32 = 0x5555_5554;

proptest! {
    /// What was taken is given back, and XRSTOR can load the area.
    #[test]
    fn round_trip(
        xcr0 in prop::sample::select(vec![0_u64, 3, 7, 0x207, 0x2e7]),
        noise in prop::collection::vec(any::<u8>(), IMAGE_SIZE),
        given: u64,
        header in prop::option::of((520_usize..576, any::<u8>())),
        mxcsr: u32,
        size in 0_usize..=IMAGE_SIZE,
    ) {
        let layout = layout(xcr0);
        let mut area = area(&layout);
        let mut image = noise;
        image[512..576].fill(0);
        let given = given & (0x2e7 | 1 << (mxcsr % 63));
        image[512..520].copy_from_slice(&given.to_le_bytes());
        image[24..28].copy_from_slice(&mxcsr.to_le_bytes());
        if let Some((at, byte)) = header {
            image[at] = byte;
        }
        let _ = layout.import(&mut area, PKRU, &image[..size], MXCSR_MASK);
        let pkru = layout.import(&mut area, PKRU, &image, MXCSR_MASK);
        let bad_header = header.is_some_and(|(_, byte)| byte != 0);
        // Without SSE and AVX it is not looked at.
        let good_mxcsr = given & 0b110 == 0 || mxcsr & !MXCSR_MASK == 0;
        let valid = given & !(layout.components | 3) == 0 && good_mxcsr && !bad_header;
        prop_assert_eq!(pkru.is_some(), valid);
        prop_assert_eq!(bv(&area) & !(layout.in_area() | 3), 0);
        prop_assert!(area[520..576].iter().all(|byte| *byte == 0));
        prop_assert_eq!(fxsave::mxcsr(&area) & !MXCSR_MASK, 0);
        if let Some(pkru) = pkru {
            let mut out = vec![0; IMAGE_SIZE];
            layout.export(&area, pkru, u64::MAX, &mut out);
            let mut again = area.clone();
            prop_assert_eq!(layout.import(&mut again, PKRU, &out, MXCSR_MASK), Some(pkru));
            prop_assert_eq!(&again, &area);
            if given & 4 != 0 {
                prop_assert_eq!(&out[576..832], &image[576..832]);
            }
        }
    }
}
