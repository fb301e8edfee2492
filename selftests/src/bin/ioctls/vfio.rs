// SPDX-License-Identifier: GPL-2.0-only

//! The VFIO device, as far as there is no device to give to it.

use std::os::fd::AsRawFd;

use kvm_bindings::*;
use selftests::kvm::{number, Answer, Handle, Number};
use selftests::tap::equal;

use crate::bare::vm;
use crate::vm::eventfd;
use crate::{refused, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "KVM_CREATE_DEVICE makes one VFIO device, and no other",
        create,
    ),
    (
        "KVM_SET_DEVICE_ATTR of a VFIO device takes files of VFIO",
        files,
    ),
];

fn make(vm: &Handle, type_: u32, flags: u32) -> Answer<u32> {
    let mut create = kvm_create_device {
        type_,
        flags,
        ..Default::default()
    };
    vm.exchange(number::CREATE_DEVICE, &mut create)?;
    Ok(create.fd)
}

fn create(path: &str) -> Result<(), String> {
    let (_device, vm) = vm(path)?;
    let vfio = kvm_device_type_KVM_DEV_TYPE_VFIO;
    let capability = vm.extension(KVM_CAP_DEVICE_CTRL);
    equal("KVM_CAP_DEVICE_CTRL", capability, 1)?;
    for kind in [
        kvm_device_type_KVM_DEV_TYPE_FSL_MPIC_20,
        kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
        1000,
    ] {
        refused("another type", make(&vm, kind, 0), libc::ENODEV)?;
    }
    equal(
        "a test",
        make(&vm, vfio, KVM_CREATE_DEVICE_TEST).is_ok(),
        true,
    )?;
    let fd = make(&vm, vfio, 0)?;
    refused("a second one", make(&vm, vfio, 0), libc::EBUSY)?;
    // SAFETY: The descriptor is ours.
    unsafe { libc::close(fd as i32) };
    equal("after the first", make(&vm, vfio, 0).is_ok(), true)
}

fn files(path: &str) -> Result<(), String> {
    let (_device, vm) = vm(path)?;
    let device = make(&vm, kvm_device_type_KVM_DEV_TYPE_VFIO, 0)?;
    let call = |number: Number, group: u32, attr: u32, fd: i32| -> Answer {
        let attr = kvm_device_attr {
            flags: 0,
            group,
            attr: attr.into(),
            addr: (&raw const fd) as u64,
        };
        // SAFETY: The structure and the descriptor that it points to live until the call is over.
        let answer = unsafe { libc::ioctl(device as i32, number.0, &raw const attr) };
        match answer {
            0.. => Ok(answer),
            _ => Err(selftests::kvm::Errno::last()),
        }
    };
    let (has, set) = (number::HAS_DEVICE_ATTR, number::SET_DEVICE_ATTR);
    let (add, del) = (KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL);
    for attr in [add, del] {
        equal("has", call(has, KVM_DEV_VFIO_FILE, attr, 0), Ok(0))?;
    }
    refused("attribute", call(has, KVM_DEV_VFIO_FILE, 9, 0), libc::ENXIO)?;
    refused("group", call(set, 9, add, 0), libc::ENXIO)?;
    let get = number::GET_DEVICE_ATTR;
    refused("get", call(get, KVM_DEV_VFIO_FILE, add, 0), libc::EPERM)?;
    let event = eventfd()?;
    let fd = event.as_raw_fd();
    refused(
        "no file",
        call(set, KVM_DEV_VFIO_FILE, add, -1),
        libc::EBADF,
    )?;
    refused(
        "another file",
        call(set, KVM_DEV_VFIO_FILE, add, fd),
        libc::EINVAL,
    )?;
    refused(
        "not added",
        call(set, KVM_DEV_VFIO_FILE, del, fd),
        libc::ENOENT,
    )?;
    refused(
        "no file",
        call(set, KVM_DEV_VFIO_FILE, del, -1),
        libc::EBADF,
    )
}
