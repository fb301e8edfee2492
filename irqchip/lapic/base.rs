// SPDX-License-Identifier: GPL-2.0-only

//! The APIC base address register, MSR 1Bh, and the modes that it selects (APM vol. 2, 16.3.1 and
//! 16.9).

use super::{Effect, GeneralProtection, Lapic};

/// Where the registers are unless the guest moves them.
const DEFAULT_ADDRESS: u64 = 0xfee0_0000;
/// BSC: this is the boot strap processor.
const BSC: u64 = 1 << 8;
/// EXTD: x2APIC mode.
const EXTD: u64 = 1 << 10;
/// AE: the APIC is enabled.
const AE: u64 = 1 << 11;
const ADDRESS_SHIFT: u32 = 12;

/// The register. Never EXTD without AE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ApicBase(u64);

impl ApicBase {
    pub(super) const fn reset(is_bsp: bool) -> Self {
        Self(DEFAULT_ADDRESS | AE | if is_bsp { BSC } else { 0 })
    }

    /// Whether this is the boot strap processor.
    pub(super) const fn is_bsp(self) -> bool {
        self.0 & BSC != 0
    }

    #[inline]
    pub(super) const fn is_enabled(self) -> bool {
        self.0 & AE != 0
    }

    #[inline]
    pub(super) const fn is_x2apic(self) -> bool {
        self.0 & EXTD != 0
    }
}

/// Who writes the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseWriter {
    /// The guest, which can only make the transitions of APM vol. 2, 16.9, and cannot write BSC.
    Guest,
    /// The VMM, which can set every state.
    Vmm,
}

/// What the guest's CPUID says about the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseLimits {
    /// Width of a physical address; bits of the register above it are reserved.
    pub physical_bits: u8,
    /// Whether there is an x2APIC mode.
    pub x2apic: bool,
}

impl BaseLimits {
    const fn legal_bits(self) -> u64 {
        let width = if self.physical_bits > 52 {
            52
        } else {
            self.physical_bits
        };
        let address = ((1u64 << width) - 1) >> ADDRESS_SHIFT << ADDRESS_SHIFT;
        address | BSC | AE | if self.x2apic { EXTD } else { 0 }
    }

    /// What the register is after a write, also where the APIC itself is the VMM's.
    pub const fn written(
        self,
        old: u64,
        value: u64,
        writer: BaseWriter,
    ) -> Result<u64, GeneralProtection> {
        if value & !self.legal_bits() != 0 || value & (AE | EXTD) == EXTD {
            return Err(GeneralProtection);
        }
        match writer {
            BaseWriter::Vmm => Ok(value),
            BaseWriter::Guest => {
                let (old_base, new) = (ApicBase(old), ApicBase(value));
                let leaves_x2apic_for_xapic =
                    old_base.is_x2apic() && new.is_enabled() && !new.is_x2apic();
                let skips_xapic = !old_base.is_enabled() && new.is_x2apic();
                if leaves_x2apic_for_xapic || skips_xapic {
                    return Err(GeneralProtection);
                }
                Ok(value & !BSC | old & BSC)
            }
        }
    }
}

impl Lapic {
    /// The register.
    pub const fn base(&self) -> u64 {
        self.base.0
    }

    /// Whether the APIC is in x2APIC mode, so that its registers are MSRs.
    #[inline]
    pub const fn is_x2apic(&self) -> bool {
        self.base.is_x2apic()
    }

    /// The guest-physical address of the page that the registers have in xAPIC mode.
    #[inline]
    pub const fn page(&self) -> u64 {
        self.base.0 >> ADDRESS_SHIFT << ADDRESS_SHIFT
    }

    /// The same, if they are there.
    #[inline]
    pub const fn mmio_base(&self) -> Option<u64> {
        if self.base.0 & (AE | EXTD) == AE {
            Some(self.page())
        } else {
            None
        }
    }

    /// Writes the register. An APIC that is switched off forgets everything but its IDs.
    pub fn set_base(
        &mut self,
        value: u64,
        writer: BaseWriter,
        limits: BaseLimits,
    ) -> Result<Effect, GeneralProtection> {
        let old = self.base;
        let new = ApicBase(limits.written(old.0, value, writer)?);
        self.base = new;
        if old.is_enabled() && !new.is_enabled() {
            self.init();
        }
        if old.is_x2apic() != new.is_x2apic() || old.is_enabled() != new.is_enabled() {
            // Each mode begins with the ID that the processor was made with.
            self.xapic_id = self.id as u8;
            return Ok(Effect::Routing);
        }
        Ok(Effect::None)
    }
}
