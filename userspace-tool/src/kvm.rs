// SPDX-License-Identifier: GPL-2.0-only

//! Opening the hypervisor's node, and what this program needs of it.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};

use crate::error::{Error, Result};

/// The version of the API, fixed since 2007.
pub(crate) const API_VERSION: i32 = 12;

/// Opens the node and makes sure that it speaks the API.
pub(crate) fn open(node: &Path) -> Result<Kvm> {
    let path = CString::new(node.as_os_str().as_bytes()).map_err(|error| Error::NodeOpen {
        node: node.into(),
        error: error.into(),
    })?;
    let kvm = Kvm::new_with_path(path).map_err(|error| {
        let error = io::Error::from(error);
        match error.kind() {
            io::ErrorKind::NotFound => Error::NodeAbsent(node.into()),
            io::ErrorKind::PermissionDenied => Error::NodeDenied(node.into()),
            _ if error.raw_os_error() == Some(nix::errno::Errno::EBUSY as i32) => Error::SvmBusy,
            // The node is there, but no driver stands behind it.
            _ if error.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32) => {
                Error::NodeAbsent(node.into())
            }
            _ => Error::NodeOpen {
                node: node.into(),
                error,
            },
        }
    })?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        version => Err(Error::ApiVersion {
            node: node.into(),
            version,
        }),
    }
}

/// The capabilities that a run needs, with their names.
const NEEDED: [(Cap, &str); 3] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// The capabilities that a run with interrupt controllers needs besides.
const NEEDED_FOR_INTERRUPTS: [(Cap, &str); 5] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
];

/// Makes sure that the module has what a run needs.
pub(crate) fn require(kvm: &Kvm, node: &Path, interrupts: bool) -> Result<()> {
    let more = if interrupts {
        &NEEDED_FOR_INTERRUPTS[..]
    } else {
        &[]
    };
    for (capability, name) in NEEDED.iter().chain(more) {
        if !kvm.check_extension(*capability) {
            return Err(Error::Capability {
                node: node.into(),
                capability: name,
            });
        }
    }
    Ok(())
}
