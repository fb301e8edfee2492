// SPDX-License-Identifier: GPL-2.0-only

//! What is to be done for a vCPU before its guest is entered again.

/// Work for the run loop, which has the whole vCPU at hand, and interrupts on: what other CPUs
/// ask of the vCPU, and what its own handlers have put off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests(u32);

bitflags::bitflags! {
    impl Requests: u32 {
        /// Flush the guest's TLB entries before the next VMRUN.
        const TLB_FLUSH = 1 << 0;
        /// Look into the inbox of interrupts.
        const INBOX = 1 << 1;
        /// The LAPIC's timer has expired.
        const TIMER_EXPIRED = 1 << 2;
        /// The PIC or the PIT may have something.
        const EXTINT = 1 << 3;
        /// An NMI.
        const NMI = 1 << 4;
        /// An INIT.
        const INIT = 1 << 5;
        /// A STARTUP IPI; its vector is in the inbox.
        const SIPI = 1 << 6;
        /// Write the paravirtual clock.
        const PV_CLOCK = 1 << 7;
        /// Do not stay halted.
        const UNHALT = 1 << 8;
        /// The VM's filter of MSRs has changed.
        const MSR_FILTER = 1 << 9;
        /// Set the LAPIC's timer anew.
        const SET_TIMER = 1 << 10;
        /// Write the paravirtual wall clock.
        const PV_WALL_CLOCK = 1 << 11;
        /// Tell the VMM's IOAPIC that an interrupt has ended.
        const EOI = 1 << 12;
        /// Tell the resamplers whose interrupts have ended.
        const RESAMPLE = 1 << 13;
        /// Tell the VMM that its debugger's single step is done: `KVM_EXIT_DEBUG`.
        const STEPPED = 1 << 14;
        /// Begin to count the time that is stolen from the guest, or end it.
        const STEAL_TIME = 1 << 15;
        /// The guest waits for another vCPU: let that one have this CPU.
        const YIELD = 1 << 16;
        /// Bring in the page of the guest's paravirtual EOI.
        const EOI_PAGE = 1 << 17;
        /// Send an IPI that was put off.
        const IPI = 1 << 18;
        /// Write the caches back, for a device that reaches memory past them.
        const WBINVD = 1 << 19;
        /// Another NMI, which came before the first was seen.
        const SECOND_NMI = 1 << 20;
    }
}

impl Requests {
    /// What the VMM does.
    pub const FOR_VMM: Self = Self::EOI.union(Self::STEPPED);
}
