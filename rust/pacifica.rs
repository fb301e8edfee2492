// SPDX-License-Identifier: GPL-2.0-only

//! Pacifica: an AMD-V hypervisor.
//!
//! The rooms, from the top down. Each imports only from itself and from those below it
//! (`make lint` holds that); each has a README.
//!
//! | room | subject |
//! |---|---|
//! | [`api`] | what a file descriptor answers: one match for each kind of file |
//! | [`vcpu`] | a virtual CPU: the loop around VMRUN, and what surrounds the guest |
//! | [`vm`] | what all vCPUs of a VM share: configuration, clock, filters, counters |
//! | [`irq`] | from an interrupt line to the vCPU that takes the interrupt |
//! | [`memory`] | slots, nested page tables, dirty logs |
//! | [`uapi`] | the structures of the KVM interface, to and from user space |
//! | [`host`] | the host's CPUs: who has SVM, extended state, VMRUN |
//! | [`linux`] | the kernel's C, in safe wrappers that know nothing of virtual machines |

#![allow(
    clippy::redundant_closure,
    reason = "a function that is generic over the platform is not general enough without one"
)]

use kernel::prelude::*;

use api::node;
use linux::compat;
use svm::features::SvmFeatures;

mod api;
mod host;
mod irq;
mod linux;
mod memory;
mod uapi;
mod vcpu;
mod vm;

module! {
    type: Pacifica,
    name: "pacifica",
    authors: ["The Pacifica developers"],
    description: "AMD-V hypervisor",
    license: "GPL",
    params: {
        kvm_node: u8 {
            default: 0,
            description: "1: be /dev/kvm, too, while KVM is not loaded",
        },
        nested: u8 {
            default: 0,
            description: "1: guests can be hypervisors, if their CPUID has SVM",
        },
        tsc_scaling: u8 {
            default: 1,
            description: "0: a guest's TSC runs at the host's rate only",
        },
    },
}

struct Pacifica {
    devices: [Option<node::Registration>; 2],
}

impl kernel::Module for Pacifica {
    fn init(_: &'static ThisModule) -> Result<Self> {
        host::init(unwanted())?;
        devices()
            .map(|devices| Self { devices })
            .inspect_err(|_| host::exit())
    }
}

/// Whether guests may have SVM.
fn has_nested() -> bool {
    compat::is_set(module_parameters::nested.value())
}

/// What the CPU has, perhaps, and is not to be used.
fn unwanted() -> SvmFeatures {
    match compat::is_set(module_parameters::tsc_scaling.value()) {
        true => SvmFeatures::empty(),
        false => SvmFeatures::TSC_RATE_MSR,
    }
}

/// The nodes that are asked for.
fn devices() -> Result<[Option<node::Registration>; 2]> {
    let own = node::Registration::own()?;
    let kvm = match compat::is_set(module_parameters::kvm_node.value()) {
        false => None,
        true => Some(node::Registration::as_kvm()?),
    };
    Ok([Some(own), kvm])
}

impl Drop for Pacifica {
    fn drop(&mut self) {
        // The nodes go first. No file is open, or the module could not be unloaded.
        self.devices = [None, None];
        host::exit();
    }
}
