// SPDX-License-Identifier: GPL-2.0-only

//! The FXSAVE image and the KVM ABI's view of it.

use proptest::prelude::*;
use x86::fxsave::{self, Fpu};

fn new() -> [u8; fxsave::SIZE] {
    let mut image = [0xcc; fxsave::SIZE];
    fxsave::reset(&mut image);
    image
}

#[test]
fn after_reset() {
    let image = new();
    let fpu = fxsave::to_fpu(&image);
    assert_eq!(
        (fpu.fcw, fpu.fsw, fpu.ftwx, fpu.mxcsr),
        (0x37f, 0, 0, 0x1f80)
    );
    assert_eq!(fpu.xmm, [[0; 16]; 16]);
    assert_eq!(size_of::<Fpu>(), 416, "struct kvm_fpu");
}

#[test]
fn offsets_in_the_image() {
    let mut image = new();
    for n in 0..16 {
        fxsave::set_xmm(&mut image, n, u128::from(n) << 120 | 1);
    }
    fxsave::set_xmm(&mut image, 16 + 3, 99);
    assert_eq!(
        fxsave::xmm(&image, 3),
        99,
        "only four bits of the index count"
    );
    for n in [0_usize, 1, 2, 4, 15] {
        assert_eq!(image[160 + 16 * n], 1);
        assert_eq!(image[160 + 16 * n + 15], n as u8);
    }
    let fpu = Fpu {
        fcw: 0x0102,
        fsw: 0x0304,
        ftwx: 5,
        last_opcode: 0x0607,
        last_ip: 0x08,
        last_dp: 0x09,
        mxcsr: 0x1fa0,
        ..Fpu::default()
    };
    fxsave::set_fpu(&mut image, &fpu, 0xffff);
    assert_eq!(image[..8], [2, 1, 4, 3, 5, 0, 7, 6]);
    assert_eq!((image[8], image[16]), (8, 9));
    assert_eq!(image[24..28], [0xa0, 0x1f, 0, 0]);
    assert_eq!(fxsave::xmm(&image, 15), 0);
}

#[test]
fn an_image_that_is_too_short() {
    for size in [0, 10, 200] {
        let mut image = vec![0; size];
        fxsave::reset(&mut image);
        fxsave::set_fpu(&mut image, &Fpu::default(), 0);
        fxsave::set_xmm(&mut image, 15, 1);
        assert_eq!(fxsave::xmm(&image, 15), 0);
        let _ = fxsave::to_fpu(&image);
    }
}

prop_compose! {
    fn any_fpu()(
        words in any::<[u16; 3]>(),
        longs in any::<[u64; 2]>(),
        ftwx: u8,
        mxcsr: u32,
        fpr in any::<[[u8; 16]; 8]>(),
        xmm in any::<[[u8; 16]; 16]>(),
    ) -> Fpu {
        let [fcw, fsw, last_opcode] = words;
        let [last_ip, last_dp] = longs;
        Fpu { fpr, fcw, fsw, ftwx, last_opcode, last_ip, last_dp, xmm, mxcsr, ..Fpu::default() }
    }
}

proptest! {
    #[test]
    fn round_trip(fpu in any_fpu(), mask: u32, index: u8, value: u128) {
        let mut image = new();
        fxsave::set_fpu(&mut image, &fpu, mask);
        prop_assert_eq!(fxsave::to_fpu(&image), Fpu { mxcsr: fpu.mxcsr & mask, ..fpu });
        let before = image;
        fxsave::set_xmm(&mut image, index, value);
        prop_assert_eq!(fxsave::xmm(&image, index), value);
        fxsave::set_xmm(&mut image, index, fxsave::xmm(&before, index));
        prop_assert!(image == before);
    }
}
