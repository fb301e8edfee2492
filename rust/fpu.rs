// SPDX-License-Identifier: GPL-2.0-only

//! Extended state: x87, SSE, AVX and what else the host has, into the CPU and out of it.
//!
//! ```text
//!   window: kernel_fpu_begin ─ XRSTOR ─ XCR0, XSS ─┬─ PKRU ─ VMRUN ─ PKRU ─┬─ XCR0, XSS ─ XSAVE ─ kernel_fpu_end
//!                                                  └───── each turn ───────┘
//! ```
//!
//! The guest reaches extended state only by what XCR0, XSS and CR4 allow, and XCR0 never has a
//! component that is not switched here. XSS is 0 for every guest that can execute XSAVES. PKRU is the
//! host's again whenever host code runs: it would bind the handlers' accesses to user memory.

use crate::ffi;
use crate::vcpu::Inner;
use kernel::bindings;
use kernel::prelude::*;
use x86::regs::Cr4;
use x86::xsave::{self, Layout};

/// IA32_XSS (APM vol. 2, 11.5.2).
const MSR_XSS: u32 = bindings::MSR_IA32_XSS;

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
        let (xcr0, xss, has_pku) = ffi::host_xstate();
        let offered = if has_pku { xcr0 } else { xcr0 & !xsave::PKRU };
        Self {
            layout: Layout::new(offered, &mut ffi::cpuid),
            xcr0,
            xss,
            mxcsr_mask: ffi::mxcsr_mask(),
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
    unsafe { ffi::fpu_enter(inner.parts.fpu.0.as_ptr().cast(), host.layout.in_area()) };
    let reach = Reach::of(inner, host);
    if reach.xcr0 != host.xcr0 {
        // SAFETY: `set_xcr0` has checked that the CPU takes it; the host uses nothing of it here.
        unsafe { ffi::xsetbv(reach.xcr0) };
    }
    if reach.xss {
        // SAFETY: Without supervisor components; the host executes no XSAVES here.
        let _ = unsafe { ffi::wrmsr(MSR_XSS, 0) };
    }
    if reach.pkru {
        inner.host_pkru = ffi::rdpkru();
    }
    inner.reach = reach;
}

/// Brings the host's own state back.
pub(crate) fn exit(inner: &mut Inner, host: &HostState) {
    if let (true, Some(xss)) = (inner.reach.xss, host.xss) {
        // SAFETY: The host's own value.
        let _ = unsafe { ffi::wrmsr(MSR_XSS, xss) };
    }
    if inner.reach.xcr0 != host.xcr0 {
        // SAFETY: The host's own value.
        unsafe { ffi::xsetbv(host.xcr0) };
    }
    // SAFETY: The area has the size of these components.
    unsafe { ffi::fpu_exit(inner.parts.fpu.0.as_mut_ptr().cast(), host.layout.in_area()) };
}

/// The last thing before VMRUN.
#[inline]
pub(crate) fn pkru_enter(inner: &Inner) {
    if inner.reach.pkru && inner.state.pkru != inner.host_pkru {
        // SAFETY: Nothing of the user's is accessed before `pkru_exit`.
        unsafe { ffi::wrpkru(inner.state.pkru) };
    }
}

/// The first thing after it.
#[inline]
pub(crate) fn pkru_exit(inner: &mut Inner) {
    if inner.reach.pkru {
        inner.state.pkru = ffi::rdpkru();
        if inner.state.pkru != inner.host_pkru {
            // SAFETY: The thread's own value.
            unsafe { ffi::wrpkru(inner.host_pkru) };
        }
    }
}
