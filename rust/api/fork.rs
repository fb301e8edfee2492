// SPDX-License-Identifier: GPL-2.0-only

//! A running VM becomes two: one is made from a snapshot, in another process.
//!
//! ```text
//!   parent: snapshot of the state ─► fork(2) ─┬─► KVM_RUN goes on
//!                                             └─► child: PACIFICA_FORK ─► KVM_CREATE_VCPU ... ─► KVM_RUN
//! ```
//!
//! Nothing here is about memory: the child has the parent's at the same addresses since fork(2),
//! and Linux copies a page before one of them writes it. The notifier tells both VMs
//! (`mmu_notifier.rs`). The state is made of values, so neither VM needs the other.

use crate::api::snapshot::State;
use crate::api::vm;
use crate::uapi::{self, UserArg};
use crate::vcpu::Vcpu;
use crate::vm::Vm;
use kernel::ffi::c_long;
use kernel::prelude::*;
use kernel::sync::Arc;

/// `PACIFICA_FORK`: a VM of this state on the caller's address space, and its descriptor.
pub(crate) fn fork(state: &State, arg: UserArg) -> Result<c_long> {
    let fork: uapi::pacifica_fork = arg.read()?;
    let time = u64::from(uapi::PACIFICA_FORK_TIME);
    if fork.flags & !time != 0 || fork.reserved != [0; 3] {
        return Err(EINVAL);
    }
    let vm = Vm::create()?;
    let made = vm.decide(&state.decisions);
    let made = made.and_then(|()| make_vcpus(&vm, state, fork.flags & time != 0));
    made.and_then(|()| vm::open(vm.clone()))
        .inspect_err(|_| vm.vcpus.forget_waiting())
}

/// All vCPUs, before anything can be sent to them. They wait for `KVM_CREATE_VCPU`.
fn make_vcpus(vm: &Arc<Vm>, state: &State, time_back: bool) -> Result {
    for old in state.vcpus.iter() {
        let vcpu = Vcpu::create(vm.as_arc_borrow(), old.id)?;
        vm.vcpus
            .wait(vcpu.clone())
            .inspect_err(|_| vm.vcpus.remove(&vcpu))?;
    }
    vm.vcpus.stopped(|stopped| {
        for (old, one) in state.vcpus.iter().zip(&mut *stopped) {
            old.prepare(one)?;
        }
        let passed = time_back.then(|| state.taken.passed());
        state.put_back(vm, stopped, passed);
        Ok(())
    })
}
