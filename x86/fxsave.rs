// SPDX-License-Identifier: GPL-2.0-only

//! The 512 bytes of FXSAVE in 64-bit mode (APM vol. 2, 11.4.4), and what the KVM ABI makes of them.

/// The image of the x87, MMX and SSE registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct Fxsave {
    /// The image as FXSAVE64 writes it.
    pub bytes: [u8; Self::SIZE],
}

/// The same registers in the order of `struct kvm_fpu`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fpu {
    /// ST(0) to ST(7), ten bytes each.
    pub fpr: [[u8; 16]; 8],
    /// Control word.
    pub fcw: u16,
    /// Status word.
    pub fsw: u16,
    /// Tag word in its abridged form: one bit per register.
    pub ftwx: u8,
    /// Unused.
    pub pad1: u8,
    /// Opcode of the last x87 instruction.
    pub last_opcode: u16,
    /// Its address.
    pub last_ip: u64,
    /// Its operand's address.
    pub last_dp: u64,
    /// XMM0 to XMM15.
    pub xmm: [[u8; 16]; 16],
    /// MXCSR.
    pub mxcsr: u32,
    /// Unused.
    pub pad2: u32,
}

impl Fxsave {
    /// Bytes of the image.
    pub const SIZE: usize = 512;

    /// The registers after reset, with the values that `KVM_CREATE_VCPU` promises.
    pub const fn new() -> Self {
        Self {
            bytes: [0; Self::SIZE],
        }
    }

    /// XMM register `index` (0 to 15; only the low four bits count).
    pub fn xmm(&self, index: u8) -> u128 {
        let _ = index;
        todo!()
    }

    /// Sets XMM register `index`.
    pub fn set_xmm(&mut self, index: u8, value: u128) {
        let _ = (index, value);
        todo!()
    }

    /// MXCSR.
    pub fn mxcsr(&self) -> u32 {
        todo!()
    }

    /// Sets MXCSR, and answers false without doing so if it has a bit outside `mask`: loading it
    /// would be #GP.
    pub fn set_mxcsr(&mut self, value: u32, mask: u32) -> bool {
        let _ = (value, mask);
        todo!()
    }

    /// For `KVM_GET_FPU`.
    pub fn to_fpu(&self) -> Fpu {
        todo!()
    }

    /// For `KVM_SET_FPU`; MXCSR bits outside `mxcsr_mask` are dropped.
    pub fn set_fpu(&mut self, fpu: &Fpu, mxcsr_mask: u32) {
        let _ = (fpu, mxcsr_mask);
        todo!()
    }
}

impl Default for Fxsave {
    fn default() -> Self {
        Self::new()
    }
}
