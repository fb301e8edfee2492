// SPDX-License-Identifier: GPL-2.0-only

//! Pacifica: an AMD-V hypervisor.
//!
//! The modules in the order in which things happen, from `insmod` to a handled exit:
//!
//! | module | subject |
//! |---|---|
//! | [`ffi`] | the C half of the glue |
//! | [`host`] | the host's CPUs: is SVM there, may we have it |
//! | [`abi`] | the structures of the KVM interface, to and from user space |
//! | [`device`], [`system`] | `/dev/pacifica`, and its own ioctls |
//! | [`vm`] | a virtual machine |
//! | [`memory`], [`slots`], [`fault`], [`access`], [`tables`], [`notifier`], [`dirty_log`] | its memory |
//! | [`chips`], [`chips_ioctl`] | its interrupt controllers |
//! | [`ended`] | what the end of an interrupt brings about |
//! | [`eventfd`] | its interrupt lines and doorbells that are event descriptors |
//! | [`coalesced`] | writes to devices that the VMM looks at later |
//! | [`clock`] | its clock |
//! | [`vcpu`], `vcpu_*` | a virtual CPU, and the ioctls that read or set it |
//! | [`kick`] | how others reach it |
//! | [`run`] | KVM_RUN: the loop around VMRUN |
//! | [`requests`], [`load`], [`user_exit`], [`run_page`] | its parts |
//! | [`world`] | what surrounds a guest CPU |
//! | [`snapshot`], `snapshot_*` | going back to an instant |
//! | [`stats`] | counters |

use kernel::prelude::*;

mod abi;
mod access;
mod backing;
mod broadcast;
mod chips;
mod chips_ioctl;
mod choices;
mod clock;
mod coalesced;
mod compat;
mod device;
mod dirty_log;
mod dirty_ring;
mod ended;
mod eventfd;
mod fault;
mod ffi;
mod fpu;
mod halt;
mod host;
mod kick;
mod load;
mod mailboxes;
mod memory;
mod memory_ffi;
mod msr_filter;
mod notifier;
mod prefault;
mod published;
mod pv_eoi;
mod requests;
mod run;
mod run_page;
mod slots;
mod snapshot;
mod snapshot_memory;
mod snapshot_state;
mod stats;
mod stats_fd;
mod steal;
mod sync_regs;
mod system;
mod tables;
mod user_exit;
mod vcpu;
mod vcpu_cpuid;
mod vcpu_events;
mod vcpu_fpu;
mod vcpu_sregs;
mod vcpu_state;
mod vfio;
mod vm;
mod world;

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
    },
}

struct Pacifica {
    devices: [Option<device::Registration>; 2],
}

impl kernel::Module for Pacifica {
    fn init(_: &'static ThisModule) -> Result<Self> {
        host::init()?;
        devices()
            .map(|devices| Self { devices })
            .inspect_err(|_| host::exit())
    }
}

/// The nodes that are asked for.
fn devices() -> Result<[Option<device::Registration>; 2]> {
    let own = device::Registration::own()?;
    let kvm = match compat::is_set(module_parameters::kvm_node.value()) {
        false => None,
        true => Some(device::Registration::as_kvm()?),
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
