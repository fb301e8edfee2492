// SPDX-License-Identifier: GPL-2.0-only

//! The FXSAVE image and the KVM ABI's view of it.

use proptest::prelude::*;
use x86::fxsave::{Fpu, Fxsave};

#[test]
fn after_reset() {
    let image = Fxsave::new();
    let fpu = image.to_fpu();
    assert_eq!(
        (fpu.fcw, fpu.fsw, fpu.ftwx, fpu.mxcsr),
        (0x37f, 0, 0, 0x1f80)
    );
    assert_eq!(fpu.xmm, [[0; 16]; 16]);
    assert_eq!(image.mxcsr_mask(), 0xffbf);
    assert_eq!((size_of::<Fxsave>(), align_of::<Fxsave>()), (512, 16));
    assert_eq!(size_of::<Fpu>(), 416, "struct kvm_fpu");
}

#[test]
fn offsets_in_the_image() {
    let mut image = Fxsave::new();
    for n in 0..16 {
        image.set_xmm(n, u128::from(n) << 120 | 1);
    }
    image.set_xmm(16 + 3, 99);
    assert_eq!(image.xmm(3), 99, "only four bits of the index count");
    for n in [0_usize, 1, 2, 4, 15] {
        assert_eq!(image.bytes[160 + 16 * n], 1);
        assert_eq!(image.bytes[160 + 16 * n + 15], n as u8);
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
    image.set_fpu(&fpu, 0xffff);
    assert_eq!(image.bytes[..8], [2, 1, 4, 3, 5, 0, 7, 6]);
    assert_eq!((image.bytes[8], image.bytes[16]), (8, 9));
    assert_eq!(image.bytes[24..28], [0xa0, 0x1f, 0, 0]);
    assert_eq!(image.xmm(15), 0);
}

#[test]
fn mxcsr_is_checked() {
    let mut image = Fxsave::new();
    assert!(image.set_mxcsr(0x1fc0, 0xffff));
    assert!(!image.set_mxcsr(0x1_0000, 0xffff));
    assert_eq!(image.mxcsr(), 0x1fc0);
    image.sanitize(0xffbf);
    assert_eq!(image.mxcsr(), 0x1f80);
    image.bytes[28..32].copy_from_slice(&0x2_ffff_u32.to_le_bytes());
    assert_eq!(image.mxcsr_mask(), 0x2_ffff);
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
        let mut image = Fxsave::new();
        image.set_fpu(&fpu, mask);
        prop_assert_eq!(image.to_fpu(), Fpu { mxcsr: fpu.mxcsr & mask, ..fpu });
        let before = image;
        image.set_xmm(index, value);
        prop_assert_eq!(image.xmm(index), value);
        image.set_xmm(index, before.xmm(index));
        prop_assert!(image == before);
    }
}
