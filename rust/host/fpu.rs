// SPDX-License-Identifier: GPL-2.0-only

//! Extended state: x87, SSE, AVX and what else the host has, into the CPU and out of it.
//!
//! ```text
//!   window: kernel_fpu_begin ─ XRSTOR ─┬─ XCR0, XSS, PKRU ─ VMRUN ─ XCR0, XSS, PKRU ─┬─ XSAVE ─ kernel_fpu_end
//!                                      └─── each turn, no NMI can come (vmrun.S) ────┘
//! ```
//!
//! The guest reaches extended state only by what XCR0, XSS and CR4 allow, and XCR0 never has a
//! component that is not switched here. XSS is 0 for every guest that can execute XSAVES. XCR0, XSS and PKRU are the
//! host's again whenever host code runs, the handlers of NMIs and machine checks included: PKRU would bind accesses to
//! user memory. What is the same for both is not switched.

use crate::host::host;
use crate::linux;
use crate::vcpu::platform::World;
use crate::vcpu::Inner;
use kernel::prelude::*;
use x86::cpu::{ExtendedState, X87};
use x86::fxsave;
use x86::regs::Cr4;
use x86::xsave::{self, Layout};

/// The host's own extended state. It is the same on all CPUs, for ever.
pub(crate) struct HostState {
    /// What guests can have.
    pub(crate) layout: Layout,
    /// XCR0; 0 if the kernel does not use XSAVE.
    xcr0: u64,
    /// IA32_XSS, if there is one.
    xss: Option<u64>,
    /// MXCSR bits that the CPUs have.
    pub(crate) mxcsr_mask: u32,
}

impl HostState {
    /// Asks the host.
    pub(crate) fn new() -> Self {
        let (xcr0, xss, has_pku) = linux::host_xstate();
        let offered = if has_pku { xcr0 } else { xcr0 & !xsave::PKRU };
        Self {
            layout: Layout::new(offered, &mut linux::cpuid),
            xcr0,
            xss,
            mxcsr_mask: linux::mxcsr_mask(),
        }
    }

    /// XSAVES can be offered.
    pub(crate) fn has_xsaves(&self) -> bool {
        self.xss.is_some()
    }
}

/// The alignment of XSAVE.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Where a guest's registers are while it is not in the CPU: see [`x86::xsave`], whose invariant it
/// has at any time.
pub(crate) struct Area(KVec<Line>);

impl Area {
    /// The registers of a new vCPU.
    pub(crate) fn new(layout: &Layout) -> Result<Self> {
        let lines = layout.area_size().div_ceil(size_of::<Line>());
        let mut area = Self(KVec::from_elem(Line([0; 64]), lines, GFP_KERNEL_ACCOUNT)?);
        xsave::reset(area.bytes_mut());
        Ok(area)
    }

    /// Another one with the same registers.
    pub(crate) fn try_clone(&self) -> Result<Self> {
        let mut lines = KVec::new();
        lines.extend_from_slice(&self.0, GFP_KERNEL_ACCOUNT)?;
        Ok(Self(lines))
    }

    /// Takes the registers of another one of this host.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        for (to, from) in self.0.iter_mut().zip(other.0.iter()) {
            *to = *from;
        }
    }

    /// The image.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: The lines are bytes without padding, and borrowed for as long as the result.
        unsafe { core::slice::from_raw_parts(self.0.as_ptr().cast(), size_of_val(&self.0[..])) }
    }

    /// The image, to be changed by the functions of [`x86::xsave`], which keep its invariant.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let size = size_of_val(&self.0[..]);
        // SAFETY: As above.
        unsafe { core::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), size) }
    }
}

/// What the guest can reach besides the registers in its [`Area`].
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    /// XCR0 that the CPU must have.
    xcr0: u64,
    /// The host's XSS must go.
    xss: bool,
    /// PKRU.
    pkru: bool,
}

/// What each entry and exit switches: `struct pacifica_switch` (`helpers.h`).
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Switch {
    what: u32,
    guest_pkru: u32,
    host_pkru: u32,
    guest_xcr0: u64,
    host_xcr0: u64,
    host_xss: u64,
}

impl Switch {
    const PKRU: u32 = 1 << 0;
    const XCR0: u32 = 1 << 1;
    const XSS: u32 = 1 << 2;

    #[cold]
    fn fill(&mut self, reach: &Reach, host: &HostState) {
        if reach.pkru {
            self.what |= Self::PKRU;
            self.host_pkru = linux::rdpkru();
        }
        if reach.xcr0 != host.xcr0 {
            self.what |= Self::XCR0;
            (self.guest_xcr0, self.host_xcr0) = (reach.xcr0, host.xcr0);
        }
        if let (true, Some(xss)) = (reach.xss, host.xss) {
            self.what |= Self::XSS;
            self.host_xss = xss;
        }
    }
}

impl Reach {
    fn of(inner: &Inner, host: &HostState) -> Self {
        let cr4 = inner.vmcb.cr4();
        let has_xsave = cr4.contains(Cr4::OSXSAVE);
        // Without OSXSAVE nothing of the guest looks at XCR0.
        let xcr0 = if has_xsave {
            inner.state.xcr0
        } else {
            host.xcr0
        };
        let has_key = cr4.contains(Cr4::PKE) || (has_xsave && xcr0 & xsave::PKRU != 0);
        Self {
            xcr0,
            xss: has_xsave && host.xss.is_some_and(|xss| xss != 0),
            pkru: has_key && host.layout.components & xsave::PKRU != 0,
        }
    }
}

/// Whether the guest's reach has changed since [`enter`].
pub(crate) fn is_stale(inner: &Inner, host: &HostState) -> bool {
    inner.reach != Reach::of(inner, host)
}

/// Puts the guest's extended state into the CPU. Interrupts are off until [`exit`].
pub(crate) fn enter(inner: &mut Inner, host: &HostState) {
    // SAFETY: The area has the size of these components, and XRSTOR takes it.
    unsafe { linux::fpu_enter(inner.parts.fpu.0.as_ptr().cast(), host.layout.in_area()) };
    inner.reach = Reach::of(inner, host);
    inner.switch.what = 0;
    if inner.reach.pkru || inner.reach.xss || inner.reach.xcr0 != host.xcr0 {
        inner.switch.fill(&inner.reach, host);
    }
}

/// Takes the guest's registers back.
pub(crate) fn exit(inner: &mut Inner, host: &HostState) {
    // SAFETY: The area has the size of these components.
    unsafe { linux::fpu_exit(inner.parts.fpu.0.as_mut_ptr().cast(), host.layout.in_area()) };
}

/// Whether entries of this window switch anything.
#[inline]
pub(crate) fn switches(inner: &Inner) -> bool {
    inner.switch.what != 0
}

/// Enters the guest where [`switches`] says that something is switched.
///
/// # Safety
///
/// As for [`linux::enter_guest`].
pub(crate) unsafe fn enter_guest(inner: &mut Inner, vmcb: u64, save: u64) -> Result {
    let Inner { state, switch, .. } = inner;
    switch.guest_pkru = state.pkru;
    // SAFETY: `set_xcr0` has checked XCR0; the rest is the host's, 0, or PKRU, which takes anything. The others are as
    // promised by the caller.
    unsafe { linux::enter_guest_switching(vmcb, save, state.regs.gpr.as_mut_ptr(), switch) }?;
    if switch.what & Switch::PKRU != 0 {
        state.pkru = switch.guest_pkru;
    }
    Ok(())
}

/// The registers while they are out of the CPU, which they are when an instruction is emulated.
impl ExtendedState for World<'_> {
    fn xmm(&mut self, index: u8) -> u128 {
        fxsave::xmm(self.parts.fpu.bytes(), index)
    }

    fn set_xmm(&mut self, index: u8, value: u128) {
        let area = self.parts.fpu.bytes_mut();
        fxsave::set_xmm(area, index, value);
        xsave::mark(area, xsave::SSE);
    }

    fn ymm_high(&mut self, index: u8) -> u128 {
        let Some(host) = host() else { return 0 };
        host.fpu.layout.ymm_high(self.parts.fpu.bytes(), index)
    }

    fn set_ymm_high(&mut self, index: u8, value: u128) {
        if let Some(host) = host() {
            let area = self.parts.fpu.bytes_mut();
            host.fpu.layout.set_ymm_high(area, index, value);
        }
    }

    fn mxcsr(&mut self) -> u32 {
        fxsave::mxcsr(self.parts.fpu.bytes())
    }

    fn set_mxcsr(&mut self, value: u32) -> bool {
        let valid = host().is_some_and(|host| value & !host.fpu.mxcsr_mask == 0);
        if valid {
            let area = self.parts.fpu.bytes_mut();
            fxsave::set_mxcsr(area, value);
            xsave::mark(area, xsave::SSE);
        }
        valid
    }

    fn fxsave(&mut self, image: &mut [u8; fxsave::SIZE]) {
        let mask = host().map_or(0, |host| host.fpu.mxcsr_mask);
        fxsave::save(self.parts.fpu.bytes(), mask, image);
    }

    fn fxrstor(&mut self, image: &[u8; fxsave::SIZE]) -> bool {
        let mask = host().map_or(0, |host| host.fpu.mxcsr_mask);
        let area = self.parts.fpu.bytes_mut();
        let valid = fxsave::restore(area, mask, image);
        if valid {
            xsave::mark(area, xsave::LEGACY);
        }
        valid
    }

    fn x87(&mut self) -> X87 {
        fxsave::x87(self.parts.fpu.bytes())
    }

    fn set_x87(&mut self, value: X87) {
        let area = self.parts.fpu.bytes_mut();
        fxsave::set_x87(area, value);
        xsave::mark(area, xsave::X87);
    }

    fn mmx(&mut self, index: u8) -> u64 {
        fxsave::mmx(self.parts.fpu.bytes(), index)
    }

    fn use_mmx(&mut self, write: Option<(u8, u64)>) {
        let area = self.parts.fpu.bytes_mut();
        fxsave::use_mmx(area, write);
        xsave::mark(area, xsave::X87);
    }
}
