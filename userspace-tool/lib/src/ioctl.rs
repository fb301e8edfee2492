// SPDX-License-Identifier: GPL-2.0-only

//! Calling the ioctls of `pacifica.h`. Unsafe code is here alone, but for `fork(2)`.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

use kvm_ioctls::{Kvm, VmFd};
use libc::{c_int, c_ulong};

/// The bits of an ioctl's number that say how large its argument is.
const fn size(number: u32) -> usize {
    (number >> 16 & 0x3fff) as usize
}

fn answer(value: c_int) -> io::Result<c_int> {
    if value < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

/// Calls one whose argument is a number.
pub(crate) fn number(fd: &impl AsRawFd, number: u32, argument: u64) -> io::Result<c_int> {
    assert_eq!(size(number), 0, "takes a structure");
    // SAFETY: An ioctl without a size takes no pointer.
    answer(unsafe { libc::ioctl(fd.as_raw_fd(), c_ulong::from(number), argument) })
}

/// Calls one whose argument is a structure that is read, written, or both. `T` is one of
/// [`uapi`](crate::uapi), or an integer: any bits are valid in it.
pub(crate) fn structure<T: Copy>(
    fd: &impl AsRawFd,
    number: u32,
    value: &mut T,
) -> io::Result<c_int> {
    assert_eq!(size(number), size_of::<T>(), "takes another structure");
    // SAFETY: The kernel reads and writes as many bytes as the number says, and any bits are valid.
    answer(unsafe { libc::ioctl(fd.as_raw_fd(), c_ulong::from(number), value) })
}

/// The same of one that answers a descriptor.
pub(crate) fn descriptor<T: Copy>(
    fd: &impl AsRawFd,
    number: u32,
    value: &mut T,
) -> io::Result<OwnedFd> {
    let fd = structure(fd, number, value)?;
    // SAFETY: The kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A VM by its descriptor.
pub(crate) fn vm(kvm: &Kvm, fd: OwnedFd) -> io::Result<VmFd> {
    // SAFETY: The descriptor is a VM's, and given away. If there is an error it stays open.
    Ok(unsafe { kvm.create_vmfd_from_rawfd(fd.into_raw_fd()) }?)
}
