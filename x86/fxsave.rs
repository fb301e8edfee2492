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

/// Where the fields are in the image.
mod offset {
    pub(super) const FCW: usize = 0;
    pub(super) const FSW: usize = 2;
    pub(super) const FTW: usize = 4;
    pub(super) const FOP: usize = 6;
    pub(super) const RIP: usize = 8;
    pub(super) const RDP: usize = 16;
    pub(super) const MXCSR: usize = 24;
    pub(super) const MXCSR_MASK: usize = 28;
    pub(super) const ST0: usize = 32;
    pub(super) const XMM0: usize = 160;
}

/// Bytes from one ST or XMM register to the next.
const REGISTER: usize = 16;

impl Fxsave {
    /// Bytes of the image.
    pub const SIZE: usize = 512;
    /// FCW after FNINIT: all exceptions masked, 64-bit precision.
    pub const FCW_INIT: u16 = 0x37f;
    /// MXCSR after reset: all exceptions masked.
    pub const MXCSR_INIT: u32 = 0x1f80;
    /// The MXCSR bits of a CPU whose FXSAVE leaves `MXCSR_MASK` zero (APM vol. 2, 11.4.4).
    pub const MXCSR_MASK_DEFAULT: u32 = 0xffbf;

    /// The registers of a new vCPU: as after FNINIT, and all else zero.
    pub const fn new() -> Self {
        let mut bytes = [0; Self::SIZE];
        let [low, high] = Self::FCW_INIT.to_le_bytes();
        bytes[offset::FCW] = low;
        bytes[offset::FCW + 1] = high;
        let mxcsr = Self::MXCSR_INIT.to_le_bytes();
        bytes[offset::MXCSR] = mxcsr[0];
        bytes[offset::MXCSR + 1] = mxcsr[1];
        bytes[offset::MXCSR + 2] = mxcsr[2];
        bytes[offset::MXCSR + 3] = mxcsr[3];
        Self { bytes }
    }

    /// XMM register `index`; only the low four bits of `index` count.
    pub fn xmm(&self, index: u8) -> u128 {
        u128::from_le_bytes(self.get(xmm_offset(index)))
    }

    /// Sets XMM register `index`; only the low four bits of `index` count.
    pub fn set_xmm(&mut self, index: u8, value: u128) {
        self.put(xmm_offset(index), value.to_le_bytes());
    }

    /// MXCSR.
    pub fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(self.get(offset::MXCSR))
    }

    /// Sets MXCSR, and answers false without doing so if it has a bit outside `mask`: loading it
    /// would be #GP.
    #[must_use]
    pub fn set_mxcsr(&mut self, value: u32, mask: u32) -> bool {
        let valid = value & !mask == 0;
        if valid {
            self.put(offset::MXCSR, value.to_le_bytes());
        }
        valid
    }

    /// The MXCSR bits that the CPU has which wrote this image.
    pub fn mxcsr_mask(&self) -> u32 {
        match u32::from_le_bytes(self.get(offset::MXCSR_MASK)) {
            0 => Self::MXCSR_MASK_DEFAULT,
            mask => mask,
        }
    }

    /// For `KVM_GET_FPU`.
    pub fn to_fpu(&self) -> Fpu {
        let mut fpu = Fpu {
            fcw: u16::from_le_bytes(self.get(offset::FCW)),
            fsw: u16::from_le_bytes(self.get(offset::FSW)),
            ftwx: self.bytes[offset::FTW],
            last_opcode: u16::from_le_bytes(self.get(offset::FOP)),
            last_ip: u64::from_le_bytes(self.get(offset::RIP)),
            last_dp: u64::from_le_bytes(self.get(offset::RDP)),
            mxcsr: self.mxcsr(),
            ..Fpu::default()
        };
        for (index, register) in fpu.fpr.iter_mut().enumerate() {
            *register = self.get(offset::ST0 + REGISTER * index);
        }
        for (index, register) in fpu.xmm.iter_mut().enumerate() {
            *register = self.get(offset::XMM0 + REGISTER * index);
        }
        fpu
    }

    /// For `KVM_SET_FPU`; MXCSR bits outside `mxcsr_mask` are dropped, so that the image can be
    /// loaded whatever the VMM gave.
    pub fn set_fpu(&mut self, fpu: &Fpu, mxcsr_mask: u32) {
        self.put(offset::FCW, fpu.fcw.to_le_bytes());
        self.put(offset::FSW, fpu.fsw.to_le_bytes());
        self.put(offset::FTW, [fpu.ftwx, 0]);
        self.put(offset::FOP, fpu.last_opcode.to_le_bytes());
        self.put(offset::RIP, fpu.last_ip.to_le_bytes());
        self.put(offset::RDP, fpu.last_dp.to_le_bytes());
        self.put(offset::MXCSR, (fpu.mxcsr & mxcsr_mask).to_le_bytes());
        for (index, register) in fpu.fpr.iter().enumerate() {
            self.put(offset::ST0 + REGISTER * index, *register);
        }
        for (index, register) in fpu.xmm.iter().enumerate() {
            self.put(offset::XMM0 + REGISTER * index, *register);
        }
    }

    /// Clears MXCSR bits outside `mask`, so that an image from outside can be loaded without #GP.
    pub fn sanitize(&mut self, mask: u32) {
        let mxcsr = self.mxcsr() & mask;
        self.put(offset::MXCSR, mxcsr.to_le_bytes());
    }

    /// The `N` bytes at `offset`; zeros beyond the end, where no offset of this file lies.
    fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        if let Some(source) = self.bytes.get(offset..offset + N) {
            bytes.copy_from_slice(source);
        }
        bytes
    }

    fn put<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) {
        if let Some(target) = self.bytes.get_mut(offset..offset + N) {
            target.copy_from_slice(&bytes);
        }
    }
}

fn xmm_offset(index: u8) -> usize {
    offset::XMM0 + REGISTER * usize::from(index & 15)
}

impl Default for Fxsave {
    fn default() -> Self {
        Self::new()
    }
}
