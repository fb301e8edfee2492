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
use svm::pause::PauseFilter;

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
        nrips: u8 {
            default: 1,
            description: "0: next-RIP saving is not used",
        },
        decode_assists: u8 {
            default: 1,
            description: "0: decode assists are not used",
        },
        vmcb_clean: u8 {
            default: 1,
            description: "0: VMCB clean bits are not used",
        },
        flush_by_asid: u8 {
            default: 1,
            description: "0: flush by ASID is not used",
        },
        tsc_scaling: u8 {
            default: 1,
            description: "0: a guest's TSC runs at the host's rate only",
        },
        lbrv: u8 {
            default: 1,
            description: "0: LBR virtualization is not used",
        },
        vnmi: u8 {
            default: 1,
            description: "0: virtual NMIs are not used",
        },
        pause_filter_count: u16 {
            default: 3000,
            description: "so many PAUSEs in a row make an exit, at first; 0: none do",
        },
        pause_filter_thresh: u16 {
            default: 128,
            description: "so many cycles apart they are in a row still; 0: however far",
        },
        pause_filter_count_grow: u16 {
            default: 2,
            description: "what an exit multiplies the count by; 0: it stays",
        },
        pause_filter_count_shrink: u16 {
            default: 0,
            description: "what a wait for a CPU divides the count by; 0: it is the first one again",
        },
        pause_filter_count_max: u16 {
            default: 65535,
            description: "the most",
        },
    },
}

struct Pacifica {
    devices: [Option<node::Registration>; 2],
}

impl kernel::Module for Pacifica {
    fn init(_: &'static ThisModule) -> Result<Self> {
        host::init(unwanted(), pause_filter())?;
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
    use module_parameters::*;
    let filter = pause_filter();
    let wanted = [
        (compat::is_set(nrips.value()), SvmFeatures::NRIPS),
        (
            compat::is_set(decode_assists.value()),
            SvmFeatures::DECODE_ASSISTS,
        ),
        (compat::is_set(vmcb_clean.value()), SvmFeatures::VMCB_CLEAN),
        (
            compat::is_set(flush_by_asid.value()),
            SvmFeatures::FLUSH_BY_ASID,
        ),
        (
            compat::is_set(tsc_scaling.value()),
            SvmFeatures::TSC_RATE_MSR,
        ),
        (compat::is_set(lbrv.value()), SvmFeatures::LBR_VIRT),
        (compat::is_set(vnmi.value()), SvmFeatures::VNMI),
        (filter.count != 0, SvmFeatures::PAUSE_FILTER),
        (filter.threshold != 0, SvmFeatures::PAUSE_FILTER_THRESHOLD),
    ];
    let unwanted = wanted.into_iter().filter(|(wanted, _)| !wanted);
    unwanted.fold(SvmFeatures::empty(), |all, (_, feature)| all | feature)
}

/// How PAUSEs are counted.
fn pause_filter() -> PauseFilter {
    use module_parameters::*;
    PauseFilter {
        count: compat::number(pause_filter_count.value()),
        threshold: compat::number(pause_filter_thresh.value()),
        grow: compat::number(pause_filter_count_grow.value()),
        shrink: compat::number(pause_filter_count_shrink.value()),
        max: compat::number(pause_filter_count_max.value()),
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
