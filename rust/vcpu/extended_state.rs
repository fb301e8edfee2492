// SPDX-License-Identifier: GPL-2.0-only

//! Extended registers of the guest, for emulated instructions.

use crate::host::host;
use crate::vcpu::platform::VcpuPlatform;
use x86::cpu::{ExtendedState, X87};
use x86::fxsave;
use x86::xsave;

/// The registers while they are out of the CPU, which they are when an instruction is emulated.
impl ExtendedState for VcpuPlatform {
    fn xmm(&mut self, index: u8) -> u128 {
        fxsave::xmm(self.fpu.area.bytes(), index)
    }

    fn set_xmm(&mut self, index: u8, value: u128) {
        let area = self.fpu.area.bytes_mut();
        fxsave::set_xmm(area, index, value);
        xsave::mark(area, xsave::SSE);
    }

    fn ymm_high(&mut self, index: u8) -> u128 {
        let Some(host) = host() else { return 0 };
        host.fpu.layout.ymm_high(self.fpu.area.bytes(), index)
    }

    fn set_ymm_high(&mut self, index: u8, value: u128) {
        if let Some(host) = host() {
            let area = self.fpu.area.bytes_mut();
            host.fpu.layout.set_ymm_high(area, index, value);
        }
    }

    fn mxcsr(&mut self) -> u32 {
        fxsave::mxcsr(self.fpu.area.bytes())
    }

    fn set_mxcsr(&mut self, value: u32) -> bool {
        let valid = host().is_some_and(|host| value & !host.fpu.mxcsr_mask == 0);
        if valid {
            let area = self.fpu.area.bytes_mut();
            fxsave::set_mxcsr(area, value);
            xsave::mark(area, xsave::SSE);
        }
        valid
    }

    fn fxsave(&mut self, image: &mut [u8; fxsave::SIZE]) {
        let mask = host().map_or(0, |host| host.fpu.mxcsr_mask);
        fxsave::save(self.fpu.area.bytes(), mask, image);
    }

    fn fxrstor(&mut self, image: &[u8; fxsave::SIZE]) -> bool {
        let mask = host().map_or(0, |host| host.fpu.mxcsr_mask);
        let area = self.fpu.area.bytes_mut();
        let valid = fxsave::restore(area, mask, image);
        if valid {
            xsave::mark(area, xsave::LEGACY);
        }
        valid
    }

    fn x87(&mut self) -> X87 {
        fxsave::x87(self.fpu.area.bytes())
    }

    fn set_x87(&mut self, value: X87) {
        let area = self.fpu.area.bytes_mut();
        fxsave::set_x87(area, value);
        xsave::mark(area, xsave::X87);
    }

    fn mmx(&mut self, index: u8) -> u64 {
        fxsave::mmx(self.fpu.area.bytes(), index)
    }

    fn use_mmx(&mut self, write: Option<(u8, u64)>) {
        let area = self.fpu.area.bytes_mut();
        fxsave::use_mmx(area, write);
        xsave::mark(area, xsave::X87);
    }
}
