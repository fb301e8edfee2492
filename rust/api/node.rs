// SPDX-License-Identifier: GPL-2.0-only

//! `/dev/pacifica`.

use crate::linux::compat::this_module;
use crate::uapi::file::Table;
use crate::uapi::UserArg;
use kernel::bindings;
use kernel::error::to_result;
use kernel::ffi::{c_int, c_long, c_uint, c_ulong};
use kernel::prelude::*;

/// The node itself has no state: its files need no object.
static NODE_OPERATIONS: Table = Table(bindings::file_operations {
    owner: this_module(),
    unlocked_ioctl: Some(node_ioctl),
    // As in `uapi::file`.
    compat_ioctl: None,
    llseek: Some(bindings::noop_llseek),
    // SAFETY: All zeroes is a table without functions.
    ..unsafe { core::mem::zeroed() }
});

unsafe extern "C" fn node_ioctl(_: *mut bindings::file, cmd: c_uint, arg: c_ulong) -> c_long {
    match crate::api::system::ioctl(cmd, UserArg(arg)) {
        Ok(value) => value,
        Err(error) => error.to_errno() as c_long,
    }
}

/// The registered node.
pub(crate) struct Registration(Pin<KBox<kernel::types::Opaque<bindings::miscdevice>>>);

// SAFETY: Registration and deregistration may happen on different threads.
unsafe impl Send for Registration {}
// SAFETY: There is nothing to do with a shared reference.
unsafe impl Sync for Registration {}

impl Registration {
    /// Makes `/dev/pacifica` appear.
    pub(crate) fn own() -> Result<Self> {
        Self::new(c"pacifica", bindings::MISC_DYNAMIC_MINOR)
    }

    /// Makes `/dev/kvm` appear, with KVM's number: VMMs that know no other name find it, and so do
    /// those that make a node of their own.
    pub(crate) fn as_kvm() -> Result<Self> {
        Self::new(c"kvm", bindings::KVM_MINOR).inspect_err(|error| {
            if *error == EBUSY {
                pr_err!("/dev/kvm is KVM's: run `modprobe -r kvm_amd kvm`\n");
            }
        })
    }

    fn new(name: &'static CStr, minor: u32) -> Result<Self> {
        let device = bindings::miscdevice {
            minor: minor as c_int,
            name: name.as_char_ptr(),
            fops: &NODE_OPERATIONS.0,
            ..Default::default()
        };
        let device = KBox::pin(kernel::types::Opaque::new(device), GFP_KERNEL)?;
        // SAFETY: The structure is filled, pinned, and lives until `misc_deregister`.
        to_result(unsafe { bindings::misc_register(device.get()) })?;
        Ok(Self(device))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: `new` registered it.
        unsafe { bindings::misc_deregister(self.0.get()) };
    }
}
