// SPDX-License-Identifier: GPL-2.0-only

//! Which values CR0, CR3, CR4 and EFER may take, and what changes with them (APM vol. 2, 3.1).
//!
//! The `write_` functions take the registers as they are and the value that the guest writes, and
//! give the registers as they become, or the #GP. [`valid`] judges a state that a VMM sets.

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

/// The bits of CR0 that exist; the others read as zero, and writing those below bit 32 does
/// nothing.
const CR0_DEFINED: Cr0 = Cr0::PE
    .union(Cr0::MP)
    .union(Cr0::EM)
    .union(Cr0::TS)
    .union(Cr0::ET)
    .union(Cr0::NE)
    .union(Cr0::WP)
    .union(Cr0::AM)
    .union(Cr0::NW)
    .union(Cr0::CD)
    .union(Cr0::PG);

/// The process-context identifier in CR3, if CR4.PCIDE is set.
const CR3_PCID: u64 = 0xfff;
/// In a MOV CR3 with CR4.PCIDE set: keep the TLB. The register does not hold it.
const CR3_KEEP_TLB: u64 = 1 << 63;

impl ControlRegs {
    /// True in long mode, be it 64-bit or compatibility mode.
    fn is_long(&self) -> bool {
        self.efer.contains(Efer::LMA)
    }
}

fn require(condition: bool) -> Result<(), Exception> {
    if condition {
        Ok(())
    } else {
        Err(Exception::GP0)
    }
}

/// MOV CR0 or LMSW. Turns long mode on or off with paging (APM vol. 2, 14.6).
///
/// TLBs are to be flushed if PG, WP or what EFER.LMA says has changed.
pub fn write_cr0(old: &ControlRegs, value: u64) -> Result<ControlRegs, Exception> {
    require(value >> 32 == 0)?;
    let cr0 = (Cr0::from_bits_retain(value) & CR0_DEFINED) | Cr0::ET;
    require(is_valid_cr0(cr0))?;
    require(cr0.contains(Cr0::WP) || !old.cr4.contains(Cr4::CET))?;
    let mut new = ControlRegs { cr0, ..*old };
    match (old.cr0.contains(Cr0::PG), cr0.contains(Cr0::PG)) {
        (false, true) if old.efer.contains(Efer::LME) => {
            require(old.cr4.contains(Cr4::PAE) && !old.cs_l)?;
            new.efer.insert(Efer::LMA);
        }
        (true, false) => {
            let in_64_bit_mode = old.is_long() && old.cs_l;
            require(!in_64_bit_mode)?;
            require(!old.cr4.contains(Cr4::PCIDE))?;
            new.efer.remove(Efer::LMA);
        }
        _ => {}
    }
    Ok(new)
}

fn is_valid_cr0(cr0: Cr0) -> bool {
    (cr0.contains(Cr0::PE) || !cr0.contains(Cr0::PG))
        && (cr0.contains(Cr0::CD) || !cr0.contains(Cr0::NW))
}

/// MOV CR3. The flag says that the TLB may be kept.
///
/// The page-directory-pointer entries of PAE mode are not looked at: [`crate::paging`].
pub fn write_cr3(
    old: &ControlRegs,
    value: u64,
    features: &Features,
) -> Result<(ControlRegs, bool), Exception> {
    if !old.is_long() {
        let cr3 = value & u64::from(u32::MAX);
        return Ok((ControlRegs { cr3, ..*old }, false));
    }
    let pcide = old.cr4.contains(Cr4::PCIDE);
    let keep_tlb = pcide && value & CR3_KEEP_TLB != 0;
    let cr3 = if pcide { value & !CR3_KEEP_TLB } else { value };
    require(cr3 & features.reserved_phys() == 0)?;
    Ok((ControlRegs { cr3, ..*old }, keep_tlb))
}

/// MOV CR4.
///
/// TLBs are to be flushed if [`Cr4`] bits PSE, PAE, PGE, PCIDE, SMEP, SMAP, LA57 or PKE have
/// changed.
pub fn write_cr4(
    old: &ControlRegs,
    value: u64,
    features: &Features,
) -> Result<ControlRegs, Exception> {
    let cr4 = Cr4::from_bits_retain(value);
    let changed = cr4 ^ old.cr4;
    require(features.cr4().contains(cr4))?;
    if old.is_long() {
        require(cr4.contains(Cr4::PAE) && !changed.contains(Cr4::LA57))?;
    }
    if cr4.contains(Cr4::PCIDE) && changed.contains(Cr4::PCIDE) {
        require(old.is_long() && old.cr3 & CR3_PCID == 0)?;
    }
    require(!cr4.contains(Cr4::CET) || old.cr0.contains(Cr0::WP))?;
    Ok(ControlRegs { cr4, ..*old })
}

/// WRMSR of EFER. LMA follows LME and paging; what is written to it is ignored.
pub fn write_efer(
    old: &ControlRegs,
    value: u64,
    features: &Features,
) -> Result<ControlRegs, Exception> {
    let mut efer = Efer::from_bits_retain(value);
    require(features.efer().contains(efer))?;
    let lme_changed = (efer ^ old.efer).contains(Efer::LME);
    require(!(lme_changed && old.cr0.contains(Cr0::PG)))?;
    efer.set(Efer::LMA, old.is_long());
    Ok(ControlRegs { efer, ..*old })
}

/// True if the guest can be in this state: `KVM_SET_SREGS` answers `EINVAL` otherwise.
///
/// CR4 and EFER obey the CPUID list, so a VMM sets that first; without one there is no long mode.
pub fn valid(regs: &ControlRegs, features: &Features) -> bool {
    let long = regs.efer.contains(Efer::LME) && regs.cr0.contains(Cr0::PG);
    let long_is_consistent = if long {
        regs.cr4.contains(Cr4::PAE)
    } else {
        !regs.cs_l
    };
    regs.cr0.bits() >> 32 == 0
        && is_valid_cr0(regs.cr0)
        && regs.is_long() == long
        && long_is_consistent
        && features.cr4().contains(regs.cr4)
        && features.efer().union(Efer::SCE).contains(regs.efer)
        && regs.cr3 & features.reserved_phys() == 0
}

/// True if a VMM may set this EFER with `KVM_SET_MSRS`: other than `KVM_SET_SREGS`, that may come
/// before the CPUID list.
pub fn valid_efer(efer: Efer, features: &Features) -> bool {
    /// What every CPU with AMD-V has.
    const BASE: Efer = Efer::SCE.union(Efer::LME).union(Efer::LMA).union(Efer::NXE);
    features.efer().union(BASE).contains(efer)
}

/// True if CR8 can have this value (APM vol. 2, 16.6.4: bits 63 to 4 are reserved).
#[inline]
pub fn is_valid_cr8(cr8: u64) -> bool {
    const TPR: u64 = 0xf;
    cr8 & !TPR == 0
}

/// Puts CR0 into the form in which the guest reads it: undefined bits zero, ET one.
pub fn normalize_cr0(cr0: Cr0) -> Cr0 {
    (cr0 & CR0_DEFINED) | Cr0::ET
}

/// True if `address` is canonical for linear addresses of `bits` (48 or 57) bits: all bits above
/// the highest one are equal to it (APM vol. 2, 5.3.1).
#[inline]
pub fn is_canonical(address: u64, bits: u32) -> bool {
    let unused = 64_u32.saturating_sub(bits).min(63);
    ((address << unused) as i64 >> unused) as u64 == address
}

/// Width of linear addresses in the current mode: 57 bits with CR4.LA57.
#[inline]
pub fn linear_bits(cr4: Cr4) -> u32 {
    if cr4.contains(Cr4::LA57) {
        57
    } else {
        48
    }
}
