// SPDX-License-Identifier: GPL-2.0-only

//! Files: descriptors that answer ioctls.

use crate::linux;
use crate::linux::compat::this_module;
use crate::uapi::UserArg;
use core::marker::PhantomData;
use kernel::bindings;
use kernel::ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void};
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};
use kernel::types::ForeignOwnable;

/// What a descriptor stands for: a VM, a vCPU, a snapshot. The file holds one reference to its
/// object.
pub(crate) trait FileObject: Sized + Send + Sync + 'static {
    /// Any process that has the descriptor.
    fn ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: UserArg) -> Result<c_long>;

    /// Maps the object's shared pages.
    ///
    /// # Safety
    ///
    /// `vma` comes from an `mmap` call that is under way.
    unsafe fn mmap(_this: ArcBorrow<'_, Self>, _vma: *mut bindings::vm_area_struct) -> Result {
        Err(ENODEV)
    }

    /// Reads what the object has at `offset`; answers how much it is.
    fn read(
        _this: ArcBorrow<'_, Self>,
        _to: UserArg,
        _length: usize,
        _offset: usize,
    ) -> Result<usize> {
        Err(EINVAL)
    }

    /// The last descriptor is gone.
    fn release(_this: ArcBorrow<'_, Self>) {}
}

/// The file operations of a [`FileObject`].
struct Operations<T>(PhantomData<T>);

/// Lets a constant table be a static.
#[repr(transparent)]
pub(crate) struct Table(pub(crate) bindings::file_operations);
// SAFETY: The table is never written.
unsafe impl Sync for Table {}

impl<T: FileObject> Operations<T> {
    const TABLE: &'static Table = &Table(bindings::file_operations {
        // Without it the module could be unloaded under an open file.
        owner: this_module(),
        unlocked_ioctl: Some(Self::ioctl),
        // Programs of 32 bits get ENOTTY: some of their structures are laid out otherwise.
        compat_ioctl: None,
        mmap: Some(Self::mmap),
        read: Some(Self::read),
        release: Some(Self::release),
        llseek: Some(bindings::noop_llseek),
        // SAFETY: All zeroes is a table without functions.
        ..unsafe { core::mem::zeroed() }
    });

    unsafe extern "C" fn ioctl(file: *mut bindings::file, cmd: c_uint, arg: c_ulong) -> c_long {
        // SAFETY: Files with this table hold an `Arc<T>`, until `release`.
        let this = unsafe { <Arc<T> as ForeignOwnable>::borrow((*file).private_data) };
        match T::ioctl(this, cmd, UserArg(arg)) {
            Ok(value) => value,
            Err(error) => error.to_errno() as c_long,
        }
    }

    unsafe extern "C" fn mmap(
        file: *mut bindings::file,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: Files with this table hold an `Arc<T>`, until `release`.
        let this = unsafe { <Arc<T> as ForeignOwnable>::borrow((*file).private_data) };
        // SAFETY: The kernel calls us in an `mmap` call.
        match unsafe { T::mmap(this, vma) } {
            Ok(()) => 0,
            Err(error) => error.to_errno(),
        }
    }

    unsafe extern "C" fn read(
        file: *mut bindings::file,
        to: *mut c_char,
        length: usize,
        at: *mut bindings::loff_t,
    ) -> isize {
        // SAFETY: Files with this table hold an `Arc<T>`, until `release`.
        let this = unsafe { <Arc<T> as ForeignOwnable>::borrow((*file).private_data) };
        // SAFETY: The kernel's own variable.
        let offset = unsafe { *at };
        let result = usize::try_from(offset)
            .map_err(|_| EINVAL)
            .and_then(|offset| T::read(this, UserArg(to as usize), length, offset));
        match result {
            Ok(count) => {
                // SAFETY: As above.
                unsafe { *at = offset.saturating_add(count as bindings::loff_t) };
                count as isize
            }
            Err(error) => error.to_errno() as isize,
        }
    }

    unsafe extern "C" fn release(_: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: The file's reference to its object, given back once.
        let this = unsafe { <Arc<T> as ForeignOwnable>::from_foreign((*file).private_data) };
        T::release(this.as_arc_borrow());
        0
    }
}

/// Makes a new descriptor for an object.
pub(crate) fn new_fd<T: FileObject>(name: &CStr, object: Arc<T>) -> Result<c_long> {
    let private: *mut c_void = object.into_foreign();
    // SAFETY: The table takes an `Arc<T>` over as private data, and `release` gives it back.
    match unsafe { linux::new_fd(name, &Operations::<T>::TABLE.0, private) } {
        Ok(fd) => Ok(fd as c_long),
        Err(error) => {
            // SAFETY: The file was not made; the reference is still ours.
            drop(unsafe { <Arc<T> as ForeignOwnable>::from_foreign(private) });
            Err(error)
        }
    }
}
