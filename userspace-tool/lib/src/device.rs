// SPDX-License-Identifier: GPL-2.0-only

//! The device, and what it has.

use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kvm_ioctls::Kvm;

use crate::{ioctl, uapi};

/// The module's node.
pub const NODE: &str = "/dev/pacifica";

/// What a device may have besides the interface of KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Feature {
    /// Snapshots, and resets to them.
    Snapshot,
    /// VMs from the state of another one.
    Fork,
}

/// Opens a device by the path of its node, for example [`NODE`].
pub fn open(node: impl AsRef<Path>) -> std::result::Result<Kvm, kvm_ioctls::Error> {
    let path = CString::new(node.as_ref().as_os_str().as_bytes())
        .map_err(|_| kvm_ioctls::Error::new(libc::EINVAL))?;
    Kvm::new_with_path(path)
}

/// The version of a feature, 0 if it is not there. Asks a device ([`Kvm`]) or a VM
/// ([`VmFd`](kvm_ioctls::VmFd)); those of KVM itself have nothing of this.
///
/// ```no_run
/// let kvm = pacifica_vm::open(pacifica_vm::NODE)?;
/// if pacifica_vm::version(&kvm, pacifica_vm::Feature::Snapshot) == 0 {
///     println!("resets are slow here: copy the memory");
/// }
/// # Ok::<(), kvm_ioctls::Error>(())
/// ```
pub fn version(device: &impl AsRawFd, feature: Feature) -> u32 {
    let feature = match feature {
        Feature::Snapshot => uapi::PACIFICA_FEATURE_SNAPSHOT,
        Feature::Fork => uapi::PACIFICA_FEATURE_FORK,
    };
    ioctl::number(device, uapi::PACIFICA_CHECK_FEATURE, feature.into())
        .ok()
        .and_then(|version| u32::try_from(version).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_have_no_features() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(version(&file, Feature::Snapshot), 0);
    }

    #[test]
    fn a_path_with_a_zero_is_refused() {
        assert!(open("/dev/\0").is_err());
    }
}
