// SPDX-License-Identifier: GPL-2.0-only

//! Which values CR0, CR3, CR4 and EFER may take, and what changes with them (APM vol. 2, 3.1).

use crate::features::Features;
use crate::regs::{Cr0, Cr4, Efer, Exception};

/// The registers that depend on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlRegs {
    /// CR0.
    pub cr0: Cr0,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: Cr4,
    /// EFER as the guest sees it: without the SVME that AMD-V needs in the VMCB.
    pub efer: Efer,
    /// CS.L: the code segment is a 64-bit one.
    pub cs_l: bool,
}

/// A valid write of MOV CR0 or LMSW, or the #GP that it causes.
pub fn write_cr0(old: &ControlRegs, value: u64) -> Result<ControlRegs, Exception> {
    let _ = (old, value);
    todo!()
}

/// A valid MOV CR3, or the #GP that it causes. The flag says that the TLB may be kept (PCID bit 63).
pub fn write_cr3(
    old: &ControlRegs,
    value: u64,
    features: &Features,
) -> Result<(ControlRegs, bool), Exception> {
    let _ = (old, value, features);
    todo!()
}

/// A valid MOV CR4, or the #GP that it causes.
pub fn write_cr4(
    old: &ControlRegs,
    value: u64,
    features: &Features,
) -> Result<ControlRegs, Exception> {
    let _ = (old, value, features);
    todo!()
}

/// A valid WRMSR of EFER, or the #GP that it causes.
pub fn write_efer(
    old: &ControlRegs,
    value: u64,
    features: &Features,
) -> Result<ControlRegs, Exception> {
    let _ = (old, value, features);
    todo!()
}

/// True if the guest can be in this state: `KVM_SET_SREGS` answers `EINVAL` otherwise.
pub fn valid(regs: &ControlRegs, features: &Features) -> bool {
    let _ = (regs, features);
    todo!()
}

/// The four PAE page-directory-pointer entries are valid for a write of CR3.
pub fn pdptes_valid(pdptes: &[u64; 4], features: &Features) -> bool {
    let _ = (pdptes, features);
    todo!()
}

/// True if `address` is canonical: 48 bits, or 57 with CR4.LA57.
pub fn is_canonical(address: u64, cr4: Cr4) -> bool {
    let _ = (address, cr4);
    todo!()
}
