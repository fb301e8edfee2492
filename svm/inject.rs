// SPDX-License-Identifier: GPL-2.0-only

//! Before VMRUN the next event goes in, after #VMEXIT what was cut short is taken back.

use crate::features::SvmFeatures;
use crate::state::VcpuState;
use crate::vmcb::Vmcb;

/// Where interrupts come from: the local APIC in the kernel, or `KVM_INTERRUPT`.
pub trait InterruptSource {
    /// Whether an interrupt could be taken now, as far as the controller is concerned (task
    /// priority included). Must not change anything.
    fn has_interrupt(&self) -> bool;

    /// Takes the interrupt: the controller counts it as being in service.
    fn acknowledge(&mut self) -> Option<u8>;

    /// Whether a guest's write of CR8 must exit. With a local APIC in the kernel: only while an
    /// interrupt is held back by the task priority. With one in the VMM: always.
    fn watch_cr8(&self) -> bool;
}

/// What to do after [`prepare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// VMRUN.
    Run,
    /// A triple fault: `KVM_EXIT_SHUTDOWN`.
    Shutdown,
}

/// Makes the VMCB ready for VMRUN: puts RAX and RSP, the most urgent event and the intercepts of
/// windows into it.
///
/// May be called again without a VMRUN in between: nothing gets lost.
pub fn prepare(
    vmcb: &mut Vmcb,
    state: &mut VcpuState,
    host: SvmFeatures,
    source: &mut impl InterruptSource,
) -> Entry {
    let _ = (vmcb, state, host, source);
    Entry::Run
}

/// Takes RAX, RSP and the event whose delivery was cut short back from the VMCB. To be called
/// once after each #VMEXIT, before [`crate::exit::Exit::decode`] and anything else.
pub fn after_exit(vmcb: &mut Vmcb, state: &mut VcpuState, host: SvmFeatures) {
    let _ = (vmcb, state, host);
}

/// Whether an interrupt of the VMM's own controller would be taken at the next entry:
/// `ready_for_interrupt_injection` in `struct kvm_run`.
pub fn ready_for_interrupt(vmcb: &Vmcb, state: &VcpuState) -> bool {
    let _ = (vmcb, state);
    false
}
