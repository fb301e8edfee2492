// SPDX-License-Identifier: GPL-2.0-only

//! x87, SSE and extended registers, to and from the VMM.

use crate::host::host;
use crate::uapi::{self, UserArg};
use crate::vcpu::LockedVcpu;
use kernel::prelude::*;
use svm::dispatch::set_xcr0;
use x86::fxsave;
use x86::xsave::{self, IMAGE_SIZE};

/// GET/SET of FPU, XSAVE and XCRS.
pub(crate) fn ioctl(vcpu: &mut LockedVcpu, cmd: u32, arg: UserArg) -> Result {
    let host = &host().ok_or(ENODEV)?.fpu;
    let area = &mut vcpu.platform.fpu.area;
    match cmd {
        uapi::KVM_GET_FPU => arg.write(&fxsave::to_fpu(area.bytes())),
        uapi::KVM_SET_FPU => {
            let area = area.bytes_mut();
            fxsave::set_fpu(area, &arg.read()?, host.mxcsr_mask);
            xsave::mark(area, xsave::LEGACY);
            Ok(())
        }
        // All that there is fits into the old size of the image.
        uapi::KVM_GET_XSAVE | uapi::KVM_GET_XSAVE2 => {
            // Not on the kernel's stack.
            let mut image = KVec::from_elem(0, IMAGE_SIZE, GFP_KERNEL)?;
            let shown = vcpu.state.features.xcr0;
            host.layout
                .export(area.bytes(), vcpu.state.pkru, shown, &mut image);
            arg.write_bytes(&image)
        }
        uapi::KVM_SET_XSAVE => {
            let mut image = KVec::from_elem(0, IMAGE_SIZE, GFP_KERNEL)?;
            arg.read_bytes(&mut image)?;
            vcpu.state.pkru = host
                .layout
                .import(area.bytes_mut(), vcpu.state.pkru, &image, host.mxcsr_mask)
                .ok_or(EINVAL)?;
            Ok(())
        }
        uapi::KVM_GET_XCRS => {
            let mut xcrs = uapi::kvm_xcrs {
                nr_xcrs: 1,
                ..Default::default()
            };
            xcrs.xcrs[0].value = vcpu.state.xcr0;
            arg.write(&xcrs)
        }
        uapi::KVM_SET_XCRS => set_xcrs(vcpu, &arg.read()?),
        _ => Err(ENOTTY),
    }
}

fn set_xcrs(vcpu: &mut LockedVcpu, xcrs: &uapi::kvm_xcrs) -> Result {
    if xcrs.nr_xcrs > uapi::KVM_MAX_XCRS || xcrs.flags != 0 {
        return Err(EINVAL);
    }
    let count = xcrs.nr_xcrs as usize;
    match xcrs.xcrs.iter().take(count).find(|xcr| xcr.xcr == 0) {
        Some(xcr) => set_xcr0(&mut vcpu.state, xcr.value).map_err(|_| EINVAL),
        None => Ok(()),
    }
}
