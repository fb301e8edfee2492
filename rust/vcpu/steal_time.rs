// SPDX-License-Identifier: GPL-2.0-only

//! Steal time: how long the vCPU's thread had to wait for a CPU, and whether it waits now
//! (Documentation/virt/kvm/x86/msr.rst).
//!
//! ```text
//!   before_pause   preempted := 1    another vCPU may set FLUSH_TLB there, instead of an IPI, or
//!                                    give its CPU to this one (KVM_HC_SCHED_YIELD)
//!   ... others run on this CPU
//!   after_pause    preempted := 0, flush if asked to; steal += the time since
//! ```
//!
//! The record is in the guest's memory and nowhere else, so it moves with the guest.

use crate::linux;
use crate::linux::Sleep;
use crate::vcpu::LockedVcpu;
use svm::requests::Requests;
use x86::cpu::{GuestMemory, MemError};

/// What is known of the vCPU's thread.
#[derive(Default)]
pub(crate) struct StealTime {
    /// How long it had waited when the record was last written.
    run_delay: u64,
    /// The record may say that the vCPU is preempted, or be new.
    pending: bool,
}

impl StealTime {
    /// The record is one of before.
    pub(crate) fn look_again(&mut self) {
        self.pending = true;
    }
}

/// Where the fields are, and the two bits of `preempted`.
const VERSION: u64 = 8;
const PREEMPTED: u64 = 16;
const VCPU_PREEMPTED: u8 = 1;
const VCPU_FLUSH_TLB: u64 = 2;

/// The guest has set the record's address.
pub(crate) fn start(vcpu: &mut LockedVcpu) {
    vcpu.steal = StealTime {
        run_delay: linux::run_delay(),
        pending: true,
    };
    after_pause(vcpu);
}

/// Sets the preempted flag, before another thread may get the CPU.
#[inline]
pub(crate) fn before_pause(vcpu: &mut LockedVcpu) {
    if let Some(record) = vcpu.state.msrs.pv_steal_gpa() {
        let mut memory = vcpu.platform.memory.access(Sleep::Allowed);
        let result = memory.write_gpa(record + PREEMPTED, &[VCPU_PREEMPTED]);
        vcpu.steal.pending |= result.is_ok();
    }
}

/// Clears the preempted flag, and accounts the time that was stolen.
#[inline]
pub(crate) fn after_pause(vcpu: &mut LockedVcpu) {
    if let Some(record) = vcpu.state.msrs.pv_steal_gpa() {
        let run_delay = linux::run_delay();
        if vcpu.steal.pending || run_delay != vcpu.steal.run_delay {
            if update(vcpu, record, run_delay).is_err() {
                // It may still say that the vCPU does not run: others may leave their flushes
                // there.
                vcpu.platform.requests |= Requests::TLB_FLUSH;
            }
        }
    }
}

fn update(vcpu: &mut LockedVcpu, record: u64, run_delay: u64) -> Result<(), MemError> {
    // Another thread than last time may have waited less.
    let stolen = run_delay.saturating_sub(vcpu.steal.run_delay);
    vcpu.steal.run_delay = run_delay;
    let mut memory = vcpu.platform.memory.access(Sleep::Allowed);
    let mut preempted = 0;
    while let Err(now) = memory.compare_exchange_gpa(record + PREEMPTED, 1, preempted, 0)? {
        preempted = now;
    }
    vcpu.steal.pending = false;
    if preempted & VCPU_FLUSH_TLB != 0 {
        vcpu.platform.requests |= Requests::TLB_FLUSH;
    }
    let mut steal = [0; 8];
    let mut version = [0; 4];
    memory.read_gpa(record, &mut steal)?;
    memory.read_gpa(record + VERSION, &mut version)?;
    let steal = u64::from_le_bytes(steal).wrapping_add(stolen);
    // Odd while the rest changes, then even.
    let version = u32::from_le_bytes(version) | 1;
    memory.write_gpa(record + VERSION, &version.to_le_bytes())?;
    memory.write_gpa(record, &steal.to_le_bytes())?;
    memory.write_gpa(record + VERSION, &version.wrapping_add(1).to_le_bytes())
}
