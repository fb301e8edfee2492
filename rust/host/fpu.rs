// SPDX-License-Identifier: GPL-2.0-only

//! Extended state: x87, SSE, AVX and what else the host has, into the CPU and out of it.
//!
//! ```text
//!   window: kernel_fpu_begin ─ XRSTOR ─┬─ XCR0, XSS, PKRU ─ VMRUN ─ XCR0, XSS, PKRU ─┬─ XSAVE ─ kernel_fpu_end
//!                                      └─── each turn, no NMI can come (vmrun.S) ────┘
//! ```
//!
//! The guest reaches extended state only by what XCR0, XSS and CR4 allow, and XCR0 never has a
//! component that is not switched here. XSS is 0 for every guest that can execute XSAVES. XCR0, XSS
//! and PKRU are the host's again whenever host code runs, the handlers of NMIs and machine checks
//! included: PKRU would bind accesses to user memory. What is the same for both is not switched.

use crate::linux::{self, IrqsOff, Switch};
use kernel::prelude::*;
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
pub(crate) struct XstateControl {
    /// XCR0 that the CPU must have.
    xcr0: u64,
    /// The host's XSS must go.
    xss: bool,
    /// PKRU.
    pkru: bool,
}

impl XstateControl {
    /// What a guest with this CR4 and XCR0 reaches.
    fn of(cr4: Cr4, xcr0: u64, host: &HostState) -> Self {
        let has_xsave = cr4.contains(Cr4::OSXSAVE);
        // Without OSXSAVE nothing of the guest looks at XCR0.
        let xcr0 = if has_xsave { xcr0 } else { host.xcr0 };
        let has_key = cr4.contains(Cr4::PKE) || (has_xsave && xcr0 & xsave::PKRU != 0);
        Self {
            xcr0,
            xss: has_xsave && host.xss.is_some_and(|xss| xss != 0),
            pkru: has_key && host.layout.components & xsave::PKRU != 0,
        }
    }
}

#[cold]
fn fill(switch: &mut Switch, reach: &XstateControl, host: &HostState) {
    if reach.pkru {
        switch.what |= Switch::PKRU;
        switch.host_pkru = linux::rdpkru();
    }
    if reach.xcr0 != host.xcr0 {
        switch.what |= Switch::XCR0;
        (switch.guest_xcr0, switch.host_xcr0) = (reach.xcr0, host.xcr0);
    }
    if let (true, Some(xss)) = (reach.xss, host.xss) {
        switch.what |= Switch::XSS;
        switch.host_xss = xss;
    }
}

/// The extended state of a guest.
pub(crate) struct GuestFpu {
    /// Its registers, while they are not in the CPU.
    pub(crate) area: Area,
    /// What it reaches, since [`enter`](Self::enter).
    reach: XstateControl,
    /// What of it each entry and exit switches.
    switch: Switch,
}

impl GuestFpu {
    /// The state of a new vCPU.
    pub(crate) fn new(layout: &Layout) -> Result<Self> {
        Ok(Self {
            area: Area::new(layout)?,
            reach: XstateControl::default(),
            switch: Switch::default(),
        })
    }

    /// Whether the guest's reach has changed since [`enter`](Self::enter).
    pub(crate) fn is_stale(&self, cr4: Cr4, xcr0: u64, host: &HostState) -> bool {
        self.reach != XstateControl::of(cr4, xcr0, host)
    }

    /// Puts the guest's extended state into the CPU, until [`exit`](Self::exit).
    pub(crate) fn enter(&mut self, cr4: Cr4, xcr0: u64, host: &HostState, irqs: &IrqsOff) {
        // SAFETY: The area has the size of these components, and XRSTOR takes it.
        unsafe { linux::fpu_enter(self.area.0.as_ptr().cast(), host.layout.in_area(), irqs) };
        self.reach = XstateControl::of(cr4, xcr0, host);
        self.switch.what = 0;
        if self.reach.pkru || self.reach.xss || self.reach.xcr0 != host.xcr0 {
            fill(&mut self.switch, &self.reach, host);
        }
    }

    /// Takes the guest's registers back.
    pub(crate) fn exit(&mut self, host: &HostState, irqs: &IrqsOff) {
        // SAFETY: The area has the size of these components.
        unsafe { linux::fpu_exit(self.area.0.as_mut_ptr().cast(), host.layout.in_area(), irqs) };
    }

    /// Whether entries of this window switch anything.
    #[inline]
    pub(crate) fn switches(&self) -> bool {
        self.switch.what != 0
    }

    /// Enters the guest where [`switches`](Self::switches) says that something is switched.
    ///
    /// # Safety
    ///
    /// As for [`linux::enter_guest`], with the general registers `gpr`.
    pub(crate) unsafe fn enter_guest(
        &mut self,
        vmcb: u64,
        save: u64,
        gpr: *mut u64,
        pkru: &mut u32,
        irqs: &IrqsOff,
    ) -> Result {
        let switch = &mut self.switch;
        switch.guest_pkru = *pkru;
        // SAFETY: `set_xcr0` has checked XCR0; the rest is the host's, 0, or PKRU, which takes
        // anything. The others are as promised by the caller.
        unsafe { linux::enter_guest_switching(vmcb, save, gpr, switch, irqs) }?;
        if switch.what & Switch::PKRU != 0 {
            *pkru = switch.guest_pkru;
        }
        Ok(())
    }
}
