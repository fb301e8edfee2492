// SPDX-License-Identifier: GPL-2.0-only

//! The local APIC of a vCPU, and the PIC that it is wired to: the kernel's, or the VMM's.

use irqchip::lapic::{BaseLimits, BaseWriter, Effect};
use irqchip::Lapic;
use kernel::prelude::*;
use x86::regs::Exception;

/// `IA32_APIC_BASE` after reset: enabled, the boot processor (APM vol. 2, 16.3.1).
const APIC_BASE_RESET: u64 = 0xfee0_0900;

/// The local APIC.
pub(crate) enum Apic {
    /// It is in the kernel.
    Kernel(KBox<Lapic>),
    /// It is the VMM's, but for what instructions of the guest reach without an exit to it.
    User(UserApic),
}

/// What is known here of a local APIC of the VMM's.
#[derive(Clone, Copy)]
pub(crate) struct UserApic {
    pub(crate) cr8: u8,
    pub(crate) base: u64,
}

/// Who has the PIC, and with it the IOAPIC.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum PicOwner {
    /// It is in the kernel.
    Kernel,
    /// It is the VMM's. Its interrupt, if one waits for the local APIC in the kernel
    /// (KVM_INTERRUPT).
    User(Option<u8>),
}

impl UserApic {
    /// The state after power-up.
    pub(crate) const RESET: Self = Self {
        cr8: 0,
        base: APIC_BASE_RESET,
    };
}

impl Apic {
    /// The local APIC in the kernel, if there is one.
    #[inline]
    pub(crate) fn kernel(&self) -> Option<&Lapic> {
        match self {
            Self::Kernel(lapic) => Some(lapic),
            Self::User(_) => None,
        }
    }

    /// [`Apic::kernel`], to be changed.
    #[inline]
    pub(crate) fn kernel_mut(&mut self) -> Option<&mut Lapic> {
        match self {
            Self::Kernel(lapic) => Some(lapic),
            Self::User(_) => None,
        }
    }

    /// Whether it is in the kernel.
    #[inline]
    pub(crate) fn is_kernel(&self) -> bool {
        matches!(self, Self::Kernel(_))
    }

    /// `IA32_APIC_BASE`.
    #[inline]
    pub(crate) fn base(&self) -> u64 {
        match self {
            Self::Kernel(lapic) => lapic.base(),
            Self::User(user) => user.base,
        }
    }

    /// Sets `IA32_APIC_BASE`; #GP for what it cannot be.
    pub(crate) fn set_base(
        &mut self,
        value: u64,
        writer: BaseWriter,
        limits: BaseLimits,
    ) -> core::result::Result<Effect, Exception> {
        let effect = match self {
            Self::Kernel(lapic) => lapic.set_base(value, writer, limits),
            Self::User(user) => limits.written(user.base, value, writer).map(|base| {
                user.base = base;
                Effect::None
            }),
        };
        effect.map_err(|_| Exception::GP0)
    }

    /// CR8.
    #[inline]
    pub(crate) fn cr8(&self) -> u8 {
        match self {
            Self::Kernel(lapic) => lapic.cr8() as u8,
            Self::User(user) => user.cr8,
        }
    }

    /// Sets CR8, to a valid value.
    #[inline]
    pub(crate) fn set_cr8(&mut self, value: u8) {
        match self {
            Self::Kernel(lapic) => lapic.set_cr8(value.into()),
            Self::User(user) => user.cr8 = value,
        }
    }

    /// A copy.
    pub(crate) fn try_clone(&self) -> Result<Self> {
        Ok(match self {
            Self::Kernel(lapic) => Self::Kernel(KBox::new(**lapic, GFP_KERNEL_ACCOUNT)?),
            Self::User(user) => Self::User(*user),
        })
    }

    /// It is as `old` was, so many nanoseconds later; both are of the same kind.
    pub(crate) fn put_back(&mut self, old: &Self, passed_ns: u64) {
        match (self, old) {
            (Self::Kernel(lapic), Self::Kernel(old)) => {
                **lapic = **old;
                lapic.move_time(passed_ns);
            }
            (Self::User(user), Self::User(old)) => *user = *old,
            _ => {}
        }
    }
}
