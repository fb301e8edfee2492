// SPDX-License-Identifier: GPL-2.0-only

//! Everything of a virtual CPU that is neither in the VMCB nor in the local APIC nor in the FPU.

use crate::event::Events;
use crate::io::IoState;
use x86::features::Features;
use x86::msr::MsrFile;
use x86::regs::{Cr0, GuestRegs};

/// `struct kvm_mp_state`, with the numbers of the API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum MpState {
    /// Runs.
    #[default]
    Runnable = 0,
    /// An application processor before its INIT.
    Uninitialized = 1,
    /// Got INIT, waits for SIPI.
    InitReceived = 2,
    /// Executed HLT.
    Halted = 3,
}

/// The plain values of one vCPU. Copying it, the VMCB, the local APIC and the FPU image copies the
/// vCPU: that is what fork and reset do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuState {
    /// The general-purpose registers, all sixteen. RAX and RSP are in the VMCB only from
    /// [`crate::inject::prepare`] to [`crate::inject::after_exit`].
    pub regs: GuestRegs,
    /// Events on their way.
    pub events: Events,
    /// DR0 to DR3. DR6 and DR7 are in the VMCB.
    pub db: [u64; 4],
    /// CR0.CD and CR0.NW as the guest wrote them: the CPU never gets them.
    pub cr0_hidden: Cr0,
    /// CR4.MCE as the guest wrote it: for the CPU it is always set.
    pub cr4_mce: bool,
    /// XCR0.
    pub xcr0: u64,
    /// IA32_XSS.
    pub xss: u64,
    /// The MSRs that are not in the VMCB.
    pub msrs: MsrFile,
    /// What the guest's CPUID offers.
    pub features: Features,
    /// A port or MMIO access that the VMM must answer.
    pub io: IoState,
    /// Whether the vCPU runs.
    pub mp_state: MpState,
}
