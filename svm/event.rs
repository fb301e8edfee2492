// SPDX-License-Identifier: GPL-2.0-only

//! Events on their way into the guest: exceptions, NMIs, interrupts (APM vol. 2, 15.20).

use x86::regs::Exception;

/// An exception on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuedException {
    /// Vector, error code, payload. The payload is due while [`Self::injected`] is false.
    pub exception: Exception,
    /// Its delivery had begun: the payload is in CR2 or DR6 already.
    pub injected: bool,
}

/// An interrupt whose delivery has begun: the interrupt controller has let go of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuedInterrupt {
    /// The vector.
    pub vector: u8,
    /// From INT n (and INT3, INTO on old CPUs): delivery uses the privilege of the guest.
    pub soft: bool,
}

/// All events of one vCPU that the VMCB does not hold, as plain values: the meaning is that of
/// `struct kvm_vcpu_events`, with which it converts field by field. The interrupt shadow is in
/// the VMCB ([`crate::vmcb::Vmcb::interrupt_shadow`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// `exception.*`: pending or injected.
    pub exception: Option<QueuedException>,
    /// `interrupt.injected`, `.nr`, `.soft`.
    pub interrupt: Option<QueuedInterrupt>,
    /// `nmi.pending`: how many wait, at most [`Self::MAX_NMIS`].
    pub nmi_pending: u8,
    /// `nmi.injected`: the delivery of one has begun.
    pub nmi_injected: bool,
    /// `nmi.masked`: from the delivery of an NMI to the end of the next IRET.
    pub nmi_masked: bool,
    /// `triple_fault.pending`.
    pub triple_fault: bool,
}

impl Events {
    /// One NMI may wait while another is being handled, and one more for good measure when none is.
    pub const MAX_NMIS: u8 = 2;

    /// Queues an exception. What is on its way already decides: the two may merge to #DF, or shut
    /// the guest down (APM vol. 2, 8.2.9).
    pub fn raise(&mut self, exception: Exception) {
        self.exception = Some(QueuedException {
            exception,
            injected: false,
        });
    }

    /// Queues an NMI.
    pub fn raise_nmi(&mut self) {
        self.nmi_pending = self.nmi_pending.wrapping_add(1).min(Self::MAX_NMIS);
    }
}
