// SPDX-License-Identifier: GPL-2.0-only

//! The 512 bytes of FXSAVE in 64-bit mode (APM vol. 2, 11.4.4), and what the KVM ABI makes of them.
//!
//! They are the beginning of an XSAVE image, too ([`crate::xsave`]). All functions take the image
//! as bytes; what lies beyond its end reads as zero and cannot be written.

use crate::cpu::X87;

/// The registers in the order of `struct kvm_fpu`.
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
pub(crate) mod offset {
    pub(crate) const FCW: usize = 0;
    pub(crate) const FSW: usize = 2;
    pub(crate) const FTW: usize = 4;
    pub(crate) const FOP: usize = 6;
    pub(crate) const RIP: usize = 8;
    pub(crate) const RDP: usize = 16;
    pub(crate) const MXCSR: usize = 24;
    pub(crate) const MXCSR_MASK: usize = 28;
    pub(crate) const ST0: usize = 32;
    pub(crate) const XMM0: usize = 160;
    pub(crate) const XMM_END: usize = 416;
}

/// Bytes from one ST or XMM register to the next.
const REGISTER: usize = 16;
/// Bytes of the image.
pub const SIZE: usize = 512;
/// FCW after FNINIT: all exceptions masked, 64-bit precision.
pub const FCW_INIT: u16 = 0x37f;
/// MXCSR after reset: all exceptions masked.
pub const MXCSR_INIT: u32 = 0x1f80;

/// The registers of a new vCPU: as after FNINIT, and all else zero.
pub fn reset(image: &mut [u8]) {
    if let Some(image) = image.get_mut(..SIZE) {
        image.fill(0);
    }
    put(image, offset::FCW, FCW_INIT.to_le_bytes());
    put(image, offset::MXCSR, MXCSR_INIT.to_le_bytes());
}

/// XMM register `index`; only the low four bits of `index` count.
pub fn xmm(image: &[u8], index: u8) -> u128 {
    u128::from_le_bytes(get(image, xmm_offset(index)))
}

/// Sets XMM register `index`; only the low four bits of `index` count.
pub fn set_xmm(image: &mut [u8], index: u8, value: u128) {
    put(image, xmm_offset(index), value.to_le_bytes());
}

/// MXCSR.
pub fn mxcsr(image: &[u8]) -> u32 {
    u32::from_le_bytes(get(image, offset::MXCSR))
}

/// Control, status and tags of the x87 unit.
pub fn x87(image: &[u8]) -> X87 {
    let [tags] = get(image, offset::FTW);
    X87 {
        control: u16::from_le_bytes(get(image, offset::FCW)),
        status: u16::from_le_bytes(get(image, offset::FSW)),
        tags,
    }
}

/// Sets them.
pub fn set_x87(image: &mut [u8], value: X87) {
    put(image, offset::FCW, value.control.to_le_bytes());
    put(image, offset::FSW, value.status.to_le_bytes());
    put(image, offset::FTW, [value.tags, 0]);
}

/// The top of the x87 stack, in the status word.
const TOP_SHIFT: u32 = 11;
const TOP: u16 = 7 << TOP_SHIFT;

/// Where MMX register `index` is now: the image has the x87 registers from the top of the stack on.
fn mmx_offset(image: &[u8], index: u8) -> usize {
    let top = (x87(image).status >> TOP_SHIFT) as u8;
    offset::ST0 + REGISTER * usize::from(index.wrapping_sub(top) & 7)
}

/// MMX register `index`; only the low three bits of `index` count.
pub fn mmx(image: &[u8], index: u8) -> u64 {
    u64::from_le_bytes(get(image, mmx_offset(image, index)))
}

/// What every MMX instruction does to the x87 unit (APM vol. 1, 5.14.2): the top of the stack
/// becomes 0, and no register is empty. Then writes an MMX register, if one is given; its sign and
/// exponent become ones.
pub fn use_mmx(image: &mut [u8], write: Option<(u8, u64)>) {
    let state = x87(image);
    if state.status & TOP != 0 {
        let mut registers = [[0; 10]; 8];
        for (index, register) in (0..).zip(&mut registers) {
            *register = get(image, mmx_offset(image, index));
        }
        for (index, register) in registers.into_iter().enumerate() {
            let at = REGISTER.wrapping_mul(index);
            put(image, offset::ST0.wrapping_add(at), register);
        }
    }
    set_x87(
        image,
        X87 {
            status: state.status & !TOP,
            tags: 0xff,
            ..state
        },
    );
    if let Some((index, value)) = write {
        let at = offset::ST0 + REGISTER * usize::from(index & 7);
        put(image, at, value.to_le_bytes());
        put(image, at.wrapping_add(8), [0xff; 2]);
    }
}

/// Sets MXCSR, to bits that the CPU has.
pub fn set_mxcsr(image: &mut [u8], value: u32) {
    put(image, offset::MXCSR, value.to_le_bytes());
}

/// Makes `saved` what FXSAVE saves of the image.
pub fn save(image: &[u8], mxcsr_mask: u32, saved: &mut [u8; SIZE]) {
    saved.fill(0);
    for (to, from) in saved.iter_mut().zip(image).take(offset::XMM_END) {
        *to = *from;
    }
    put(saved, offset::MXCSR_MASK, mxcsr_mask.to_le_bytes());
}

/// Makes the image what FXRSTOR restores from `saved`; `false`, and nothing is done, for an MXCSR
/// with a bit outside of the mask.
pub fn restore(image: &mut [u8], mxcsr_mask: u32, saved: &[u8; SIZE]) -> bool {
    let valid = mxcsr(saved) & !mxcsr_mask == 0;
    if valid {
        let mut fpu = to_fpu(saved);
        for register in &mut fpu.fpr {
            // Ten bytes count.
            let [.., r10, r11, r12, r13, r14, r15] = register;
            [r10, r11, r12, r13, r14, r15].map(|reserved| *reserved = 0);
        }
        set_fpu(image, &fpu, mxcsr_mask);
    }
    valid
}

/// For `KVM_GET_FPU`.
pub fn to_fpu(image: &[u8]) -> Fpu {
    let [ftwx] = get(image, offset::FTW);
    let mut fpu = Fpu {
        fcw: u16::from_le_bytes(get(image, offset::FCW)),
        fsw: u16::from_le_bytes(get(image, offset::FSW)),
        ftwx,
        last_opcode: u16::from_le_bytes(get(image, offset::FOP)),
        last_ip: u64::from_le_bytes(get(image, offset::RIP)),
        last_dp: u64::from_le_bytes(get(image, offset::RDP)),
        mxcsr: mxcsr(image),
        ..Fpu::default()
    };
    for (index, register) in fpu.fpr.iter_mut().enumerate() {
        *register = get(image, offset::ST0 + REGISTER * index);
    }
    for (index, register) in fpu.xmm.iter_mut().enumerate() {
        *register = get(image, offset::XMM0 + REGISTER * index);
    }
    fpu
}

/// For `KVM_SET_FPU`; MXCSR bits outside `mxcsr_mask` are dropped, so that the image can be loaded
/// whatever the VMM gave.
pub fn set_fpu(image: &mut [u8], fpu: &Fpu, mxcsr_mask: u32) {
    put(image, offset::FCW, fpu.fcw.to_le_bytes());
    put(image, offset::FSW, fpu.fsw.to_le_bytes());
    put(image, offset::FTW, [fpu.ftwx, 0]);
    put(image, offset::FOP, fpu.last_opcode.to_le_bytes());
    put(image, offset::RIP, fpu.last_ip.to_le_bytes());
    put(image, offset::RDP, fpu.last_dp.to_le_bytes());
    put(image, offset::MXCSR, (fpu.mxcsr & mxcsr_mask).to_le_bytes());
    for (index, register) in fpu.fpr.iter().enumerate() {
        put(image, offset::ST0 + REGISTER * index, *register);
    }
    for (index, register) in fpu.xmm.iter().enumerate() {
        put(image, offset::XMM0 + REGISTER * index, *register);
    }
}

/// The `N` bytes at `offset`.
pub(crate) fn get<const N: usize>(image: &[u8], offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    if let Some(source) = image.get(offset..offset.wrapping_add(N)) {
        bytes.copy_from_slice(source);
    }
    bytes
}

pub(crate) fn put<const N: usize>(image: &mut [u8], offset: usize, bytes: [u8; N]) {
    if let Some(target) = image.get_mut(offset..offset.wrapping_add(N)) {
        target.copy_from_slice(&bytes);
    }
}

fn xmm_offset(index: u8) -> usize {
    offset::XMM0 + REGISTER * usize::from(index & 15)
}
