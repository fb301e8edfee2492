// SPDX-License-Identifier: GPL-2.0-only

//! The VFIO device of a VM: the VMM says which devices of the host the guest has
//! (Documentation/virt/kvm/devices/vfio.rst).
//!
//! A guest with a device that reaches memory past the caches must be able to write its caches back:
//! its WBINVD is executed then. The memory types are the guest's in any case (APM vol. 2, 15.25.8).

use crate::linux::OpenFile;
use crate::uapi::file::{self, FileObject};
use crate::uapi::{self, UserArg};
use crate::vm::Vm;
use kernel::ffi::c_long;
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::{Arc, ArcBorrow, Mutex};

/// What a VM knows of its VFIO device.
pub(crate) struct VfioState {
    /// Not zero if there is one.
    exists: Atomic<u32>,
    /// Not zero if one of its devices is not coherent.
    noncoherent: Atomic<u32>,
}

impl VfioState {
    pub(crate) fn new() -> Self {
        Self {
            exists: Atomic::new(0),
            noncoherent: Atomic::new(0),
        }
    }

    /// Whether there is one.
    pub(crate) fn exists(&self) -> bool {
        self.exists.load(Relaxed) != 0
    }

    /// Whether a device reaches the guest's memory past the caches.
    #[inline]
    pub(crate) fn is_noncoherent(&self) -> bool {
        self.noncoherent.load(Relaxed) != 0
    }
}

/// The device. Its file has the only reference, and it has one to the VM.
#[pin_data]
pub(crate) struct Vfio {
    vm: Arc<Vm>,
    #[pin]
    files: Mutex<KVec<OpenFile>>,
}

/// KVM_CREATE_DEVICE: there is one type.
pub(crate) fn create(vm: ArcBorrow<'_, Vm>, arg: UserArg) -> Result<c_long> {
    let mut create: uapi::kvm_create_device = arg.read()?;
    if create.type_ != uapi::PACIFICA_DEVICE_VFIO {
        return Err(ENODEV);
    }
    if create.flags & uapi::KVM_CREATE_DEVICE_TEST != 0 {
        return Ok(0);
    }
    // One for each VM.
    vm.vfio.exists.cmpxchg(0, 1, Relaxed).map_err(|_| EBUSY)?;
    let vfio = Arc::pin_init(
        pin_init!(Vfio {
            vm: vm.into(),
            files <- kernel::new_mutex!(KVec::new()),
        }),
        GFP_KERNEL_ACCOUNT,
    );
    let fd = vfio.and_then(|vfio| file::new_fd(c"pacifica-vfio", vfio));
    create.fd = fd.inspect_err(|_| vm.vfio.exists.store(0, Relaxed))? as u32;
    arg.write(&create)?;
    Ok(0)
}

impl Vfio {
    fn add(&self, fd: i32) -> Result {
        let file = OpenFile::get(fd)?;
        if !file.is_vfio() {
            return Err(EINVAL);
        }
        let mut files = self.files.lock();
        if files.iter().any(|other| other.is(&file)) {
            return Err(EEXIST);
        }
        files.push(file, GFP_KERNEL_ACCOUNT)?;
        self.note(&files);
        Ok(())
    }

    fn remove(&self, fd: i32) -> Result {
        let file = OpenFile::get(fd)?;
        let mut files = self.files.lock();
        let before = files.len();
        files.retain(|other| !other.is(&file));
        self.note(&files);
        if files.len() == before {
            return Err(ENOENT);
        }
        Ok(())
    }

    /// One device past the caches is enough.
    fn note(&self, files: &[OpenFile]) {
        let noncoherent = files.iter().any(|file| !file.is_coherent());
        self.vm.vfio.noncoherent.store(noncoherent.into(), Relaxed);
    }
}

impl FileObject for Vfio {
    fn ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: UserArg) -> Result<c_long> {
        if !this.vm.memory.is_current() {
            return Err(EIO);
        }
        if cmd == uapi::KVM_GET_DEVICE_ATTR {
            return Err(EPERM);
        }
        if !matches!(cmd, uapi::KVM_SET_DEVICE_ATTR | uapi::KVM_HAS_DEVICE_ATTR) {
            return Err(ENOTTY);
        }
        let attr: uapi::kvm_device_attr = arg.read()?;
        let add = match u32::try_from(attr.attr) {
            _ if attr.group != uapi::KVM_DEV_VFIO_FILE => return Err(ENXIO),
            Ok(uapi::KVM_DEV_VFIO_FILE_ADD) => true,
            Ok(uapi::KVM_DEV_VFIO_FILE_DEL) => false,
            _ => return Err(ENXIO),
        };
        if cmd == uapi::KVM_SET_DEVICE_ATTR {
            let fd = UserArg(attr.addr as usize).read::<u32>()? as i32;
            match add {
                true => this.add(fd)?,
                false => this.remove(fd)?,
            }
        }
        Ok(0)
    }

    fn release(this: ArcBorrow<'_, Self>) {
        let vfio = &this.vm.vfio;
        vfio.noncoherent.store(0, Relaxed);
        vfio.exists.store(0, Relaxed);
    }
}
