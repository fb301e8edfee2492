// SPDX-License-Identifier: GPL-2.0-only

//! The guest CPU that handlers and the emulator work on.

use crate::dispatch::Platform;
use crate::features::SvmFeatures;
use crate::state::VcpuState;
use crate::vmcb::Vmcb;

/// One virtual CPU outside of VMRUN: its VMCB, the rest of its state, and the world around it.
pub struct Guest<'a, P: Platform> {
    /// The VMCB.
    pub vmcb: &'a mut Vmcb,
    /// What the VMCB does not hold.
    pub state: &'a mut VcpuState,
    /// Memory, devices, time.
    pub platform: &'a mut P,
    /// What the host's AMD-V can do.
    pub host: SvmFeatures,
}
