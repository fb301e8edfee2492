// SPDX-License-Identifier: GPL-2.0-only

//! x87 and SSE registers, to and from the VMM.
//!
//! XSAVE is not offered to guests, so XSAVE images hold the legacy region only, and XCR0 is 1.

use crate::abi::{self, Arg};
use crate::host::host;
use crate::vcpu::Inner;
use kernel::prelude::*;
use x86::fxsave::{Fpu, Fxsave};

/// Where XSTATE_BV is in an XSAVE image (APM vol. 2, 11.5.3), in 32-bit words.
const XSTATE_BV: usize = 512 / 4;
/// The components of the legacy region (APM vol. 2, 11.5.2).
const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
const LEGACY: u64 = X87 | SSE;
/// Offsets in the legacy region (APM vol. 2, figure 11-8).
const MXCSR_OFFSET: usize = 24;
const ST_OFFSET: usize = 32;
const XMM_OFFSET: usize = 160;
const XMM_END: usize = 416;

/// GET/SET of FPU, XSAVE and XCRS.
pub(crate) fn ioctl(inner: &mut Inner, cmd: u32, arg: Arg) -> Result {
    let fpu = &mut inner.parts.fpu;
    let mxcsr_mask = host().ok_or(ENODEV)?.mxcsr_mask;
    match cmd {
        abi::PACIFICA_GET_FPU => arg.write(&to_abi(&fpu.to_fpu())),
        abi::PACIFICA_SET_FPU => {
            fpu.set_fpu(&from_abi(&arg.read()?), mxcsr_mask);
            Ok(())
        }
        abi::PACIFICA_GET_XSAVE => get_xsave(fpu, arg),
        abi::PACIFICA_SET_XSAVE => set_xsave(fpu, mxcsr_mask, arg),
        abi::PACIFICA_GET_XCRS => {
            let mut xcrs = abi::kvm_xcrs {
                nr_xcrs: 1,
                ..Default::default()
            };
            xcrs.xcrs[0].value = inner.state.xcr0;
            arg.write(&xcrs)
        }
        abi::PACIFICA_SET_XCRS => set_xcrs(arg),
        _ => Err(ENOTTY),
    }
}

fn get_xsave(fpu: &Fxsave, arg: Arg) -> Result {
    // Not on the kernel's stack.
    let mut words = KVec::from_elem(0u32, 1024, GFP_KERNEL)?;
    for (word, bytes) in words.iter_mut().zip(fpu.bytes.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    words[XSTATE_BV] = LEGACY as u32;
    arg.write_array(&words)
}

fn set_xsave(fpu: &mut Fxsave, mxcsr_mask: u32, arg: Arg) -> Result {
    let words = arg.read_array::<u32>(1024)?;
    let features = u64::from(words[XSTATE_BV]) | u64::from(words[XSTATE_BV + 1]) << 32;
    if features & !LEGACY != 0 {
        return Err(EINVAL);
    }
    let mut image = Fxsave::new();
    for (bytes, word) in image.bytes.chunks_exact_mut(4).zip(words.iter()) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let mxcsr = image.mxcsr();
    if !image.set_mxcsr(mxcsr, mxcsr_mask) {
        return Err(EINVAL);
    }
    // A component whose bit is clear is in its initial state, whatever the image says.
    let initial = Fxsave::new();
    if features & X87 == 0 {
        image.bytes[..MXCSR_OFFSET].copy_from_slice(&initial.bytes[..MXCSR_OFFSET]);
        image.bytes[ST_OFFSET..XMM_OFFSET].copy_from_slice(&initial.bytes[ST_OFFSET..XMM_OFFSET]);
    }
    if features & SSE == 0 {
        image.bytes[XMM_OFFSET..XMM_END].fill(0);
    }
    *fpu = image;
    Ok(())
}

fn set_xcrs(arg: Arg) -> Result {
    let xcrs: abi::kvm_xcrs = arg.read()?;
    if xcrs.nr_xcrs > abi::KVM_MAX_XCRS || xcrs.flags != 0 {
        return Err(EINVAL);
    }
    let count = xcrs.nr_xcrs as usize;
    let xcr0 = xcrs.xcrs.iter().take(count).find(|xcr| xcr.xcr == 0);
    match xcr0 {
        // x87 always; nothing else can be turned on.
        Some(xcr) if xcr.value != 1 => Err(EINVAL),
        _ => Ok(()),
    }
}

fn to_abi(fpu: &Fpu) -> abi::kvm_fpu {
    abi::kvm_fpu {
        fpr: fpu.fpr,
        fcw: fpu.fcw,
        fsw: fpu.fsw,
        ftwx: fpu.ftwx,
        pad1: 0,
        last_opcode: fpu.last_opcode,
        last_ip: fpu.last_ip,
        last_dp: fpu.last_dp,
        xmm: fpu.xmm,
        mxcsr: fpu.mxcsr,
        pad2: 0,
    }
}

fn from_abi(fpu: &abi::kvm_fpu) -> Fpu {
    Fpu {
        fpr: fpu.fpr,
        fcw: fpu.fcw,
        fsw: fpu.fsw,
        ftwx: fpu.ftwx,
        pad1: 0,
        last_opcode: fpu.last_opcode,
        last_ip: fpu.last_ip,
        last_dp: fpu.last_dp,
        xmm: fpu.xmm,
        mxcsr: fpu.mxcsr,
        pad2: 0,
    }
}
