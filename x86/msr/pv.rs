// SPDX-License-Identifier: GPL-2.0-only

//! The paravirtual registers that are neither clocks nor steal time
//! (Documentation/virt/kvm/x86/msr.rst).

use super::index;
use crate::features::{Feature, Features};
use crate::regs::Exception;

/// In most of them: on.
pub(super) const ENABLED: u64 = 1 << 0;
/// The word of the end of interrupts is aligned to 4 bytes.
const EOI_RESERVED: u64 = 0x2;
/// The record of asynchronous page faults has 64 bytes and is aligned to them; two bits of its
/// address have no meaning.
const ASYNC_PF_RESERVED: u64 = 0x30;
/// Delivery to a hypervisor in the guest.
const ASYNC_PF_VMEXIT: u64 = 1 << 2;
/// Delivery by an interrupt.
const ASYNC_PF_BY_INTERRUPT: u64 = 1 << 3;
/// The vector of that interrupt.
const ASYNC_PF_VECTOR: u64 = 0xff;

/// The registers. Asynchronous page faults are never sent: a page that the host has to fetch is
/// waited for, as the interface allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pv {
    /// Where the guest looks whether it need not write the EOI register, and bit 0 for "on".
    eoi: u64,
    /// Where it wants to hear of asynchronous page faults, and how.
    async_pf: u64,
    /// The vector that tells of their end.
    async_pf_vector: u64,
    /// Bit 0: the host may poll while the guest is halted.
    poll: u64,
}

impl Pv {
    pub(super) const RESET: Self = Self {
        eoi: 0,
        async_pf: 0,
        async_pf_vector: 0,
        poll: ENABLED,
    };

    /// INIT ends what is written into the guest's memory.
    pub(super) fn init(&mut self) {
        *self = Self {
            poll: self.poll,
            ..Self::RESET
        };
    }

    pub(super) fn holds(index: u32) -> bool {
        feature(index).is_some()
    }

    /// Whether a guest with these features has the register.
    pub(super) fn is_present(index: u32, features: &Features) -> bool {
        feature(index).is_none_or(|feature| features.has(feature))
    }

    pub(super) fn read(&self, index: u32) -> Result<u64, Exception> {
        match index {
            index::PV_EOI => Ok(self.eoi),
            index::PV_ASYNC_PF => Ok(self.async_pf),
            index::PV_ASYNC_PF_INT => Ok(self.async_pf_vector),
            index::PV_ASYNC_PF_ACK => Ok(0),
            index::PV_POLL_CONTROL => Ok(self.poll),
            _ => Err(Exception::GP0),
        }
    }

    pub(super) fn write(
        &mut self,
        index: u32,
        value: u64,
        host: bool,
        features: &Features,
    ) -> Result<(), Exception> {
        let lacks = |bit, feature| value & bit != 0 && !host && !features.has(feature);
        let (register, reserved) = match index {
            index::PV_EOI => (&mut self.eoi, EOI_RESERVED),
            index::PV_ASYNC_PF
                if lacks(ASYNC_PF_VMEXIT, Feature::PV_ASYNC_PF_VMEXIT)
                    || lacks(ASYNC_PF_BY_INTERRUPT, Feature::PV_ASYNC_PF_INT) =>
            {
                return Err(Exception::GP0)
            }
            index::PV_ASYNC_PF => (&mut self.async_pf, ASYNC_PF_RESERVED),
            index::PV_ASYNC_PF_INT => (&mut self.async_pf_vector, !ASYNC_PF_VECTOR),
            // Nothing was sent.
            index::PV_ASYNC_PF_ACK => return Ok(()),
            index::PV_POLL_CONTROL => (&mut self.poll, !ENABLED),
            _ => return Err(Exception::GP0),
        };
        if value & reserved != 0 {
            return Err(Exception::GP0);
        }
        *register = value;
        Ok(())
    }

    /// The guest-physical address of the byte that stands for an EOI, if the guest wants that.
    #[inline]
    pub(super) fn eoi_gpa(&self) -> Option<u64> {
        (self.eoi & ENABLED != 0).then_some(self.eoi & !ENABLED)
    }

    /// Whether the host may poll while the guest is halted.
    pub(super) fn may_poll(&self) -> bool {
        self.poll & ENABLED != 0
    }
}

/// The feature that brings the register.
fn feature(index: u32) -> Option<Feature> {
    Some(match index {
        index::PV_EOI => Feature::PV_EOI,
        index::PV_ASYNC_PF => Feature::PV_ASYNC_PF,
        index::PV_ASYNC_PF_INT | index::PV_ASYNC_PF_ACK => Feature::PV_ASYNC_PF_INT,
        index::PV_POLL_CONTROL => Feature::PV_POLL_CONTROL,
        _ => return None,
    })
}
