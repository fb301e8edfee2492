// SPDX-License-Identifier: GPL-2.0-only

//! Memory slots: which are accepted. What they do to a guest is tested by `guest-memory`.

use kvm_bindings::*;
use selftests::kvm::{number, Answer, Handle};
use selftests::memory::{Mapping, PAGE};
use selftests::tap::equal;

use crate::bare::vm;
use crate::{refused, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "slots must be aligned, within limits and with known flags",
        bad_slots,
    ),
    ("slots must not overlap", overlap),
    ("slots can be moved, not resized", change),
    (
        "KVM_GET_DIRTY_LOG refuses slots without a log",
        dirty_log_bad,
    ),
    (
        "KVM_PRE_FAULT_MEMORY maps what there is and says what is left",
        pre_fault,
    ),
];

struct Slots {
    vm: Handle,
    memory: Mapping,
    count: u32,
}

impl Slots {
    fn new(path: &str) -> Result<Self, String> {
        let (device, vm) = vm(path)?;
        let memory = Mapping::anonymous(16 * PAGE).map_err(|e| e.to_string())?;
        let count = device.extension(KVM_CAP_NR_MEMSLOTS) as u32;
        Ok(Self { vm, memory, count })
    }

    fn set(&self, slot: u32, flags: u32, gpa: u64, size: u64, offset: u64) -> Answer {
        let userspace_addr = self.memory.start() as u64 + offset;
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr,
        };
        self.vm.set(number::SET_USER_MEMORY_REGION, &region)
    }
}

fn bad_slots(path: &str) -> Result<(), String> {
    let slots = Slots::new(path)?;
    refused("address", slots.set(0, 0, 1, 0x1000, 0), libc::EINVAL)?;
    refused("size", slots.set(0, 0, 0, 0x1001, 0), libc::EINVAL)?;
    refused("host address", slots.set(0, 0, 0, 0x1000, 1), libc::EINVAL)?;
    refused("flags", slots.set(0, 0x100, 0, 0x1000, 0), libc::EINVAL)?;
    refused(
        "slot",
        slots.set(slots.count, 0, 0, 0x1000, 0),
        libc::EINVAL,
    )?;
    refused(
        "slot of another space",
        slots.set(0x7fff_0000, 0, 0, 0x1000, 0),
        libc::EINVAL,
    )?;
    refused("wraps", slots.set(0, 0, !0xfff, 0x2000, 0), libc::EINVAL)?;
    refused(
        "delete what is not there",
        slots.set(0, 0, 0, 0, 0),
        libc::EINVAL,
    )?;
    let region = |userspace_addr, memory_size| kvm_userspace_memory_region {
        userspace_addr,
        memory_size,
        ..Default::default()
    };
    for (what, region) in [
        ("kernel address", region(0xffff_8880_0000_0000, 0x1000)),
        ("host range wraps", region(!0xfff, 0x2000)),
        ("huge", region(0, 1 << 63)),
    ] {
        refused(
            what,
            slots.vm.set(number::SET_USER_MEMORY_REGION, &region),
            libc::EINVAL,
        )?;
    }
    Ok(())
}

fn overlap(path: &str) -> Result<(), String> {
    let slots = Slots::new(path)?;
    slots.set(0, 0, 0x10000, 0x4000, 0)?;
    refused("same", slots.set(1, 0, 0x10000, 0x4000, 0), libc::EEXIST)?;
    refused("end", slots.set(1, 0, 0x13000, 0x4000, 0), libc::EEXIST)?;
    refused("begin", slots.set(1, 0, 0xf000, 0x2000, 0), libc::EEXIST)?;
    refused("within", slots.set(1, 0, 0x11000, 0x1000, 0), libc::EEXIST)?;
    equal("after", slots.set(1, 0, 0x14000, 0x1000, 0), Ok(0))?;
    equal("before", slots.set(2, 0, 0xf000, 0x1000, 0), Ok(0))?;
    refused(
        "moved onto another",
        slots.set(2, 0, 0x12000, 0x1000, 0),
        libc::EEXIST,
    )?;
    equal("deleted", slots.set(0, 0, 0, 0, 0), Ok(0))?;
    equal(
        "moved there now",
        slots.set(2, 0, 0x12000, 0x1000, 0),
        Ok(0),
    )
}

fn change(path: &str) -> Result<(), String> {
    let slots = Slots::new(path)?;
    slots.set(3, 0, 0x10000, 0x4000, 0)?;
    refused("larger", slots.set(3, 0, 0x10000, 0x5000, 0), libc::EINVAL)?;
    refused("smaller", slots.set(3, 0, 0x10000, 0x3000, 0), libc::EINVAL)?;
    refused(
        "other memory",
        slots.set(3, 0, 0x10000, 0x4000, 0x1000),
        libc::EINVAL,
    )?;
    refused(
        "read-only",
        slots.set(3, KVM_MEM_READONLY, 0x10000, 0x4000, 0),
        libc::EINVAL,
    )?;
    equal("the same", slots.set(3, 0, 0x10000, 0x4000, 0), Ok(0))?;
    equal("moved", slots.set(3, 0, 0x20000, 0x4000, 0), Ok(0))?;
    equal("deleted", slots.set(3, 0, 0x20000, 0, 0), Ok(0))?;
    equal("larger, new", slots.set(3, 0, 0x10000, 0x8000, 0), Ok(0))
}

/// One `KVM_GET_DIRTY_LOG` of a slot with up to 64 pages.
fn log(vm: &Handle, slot: u32) -> Answer<u64> {
    let mut bitmap = 0u64;
    let request = kvm_dirty_log {
        slot,
        __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 {
            dirty_bitmap: (&raw mut bitmap).cast(),
        },
        ..Default::default()
    };
    vm.set(number::GET_DIRTY_LOG, &request)?;
    // SAFETY: The kernel may have written it through the pointer.
    Ok(unsafe { (&raw const bitmap).read_volatile() })
}

fn dirty_log_bad(path: &str) -> Result<(), String> {
    let slots = Slots::new(path)?;
    slots.set(0, 0, 0, 0x1000, 0)?;
    refused("no log", log(&slots.vm, 0), libc::ENOENT)?;
    refused("no slot", log(&slots.vm, 1), libc::ENOENT)?;
    refused("no such slot", log(&slots.vm, slots.count), libc::EINVAL)
}

fn pre_fault(path: &str) -> Result<(), String> {
    const BYTES: u64 = 16 * PAGE as u64;
    let slots = Slots::new(path)?;
    slots.set(0, 0, 0, BYTES, 0)?;
    let vcpu = slots.vm.open_with(number::CREATE_VCPU, 0)?;
    let map = |gpa, size, flags| {
        let mut range = kvm_pre_fault_memory {
            gpa,
            size,
            flags,
            ..Default::default()
        };
        let answer = vcpu.exchange(number::PRE_FAULT_MEMORY, &mut range);
        (answer, range.gpa, range.size)
    };
    for (what, gpa, size, flags) in [
        ("no size", 0, 0, 0),
        ("address", 1, 0x1000, 0),
        ("size", 0, 0x1001, 0),
        ("flags", 0, 0x1000, 1),
        ("wraps", !0xfff, 0x2000, 0),
    ] {
        refused(what, map(gpa, size, flags).0, libc::EINVAL)?;
    }
    refused("no slot", map(BYTES, 0x1000, 0).0, libc::ENOENT)?;
    let mut touched = [0; 16];
    let (all, gpa, left) = map(0, BYTES, 0);
    all?;
    equal("where it ended", gpa, BYTES)?;
    equal("what is left", left, 0)?;
    // SAFETY: The mapping has so many pages, and a byte is written for each.
    let seen = unsafe {
        libc::mincore(
            slots.memory.start().cast(),
            BYTES as usize,
            touched.as_mut_ptr(),
        )
    };
    equal("mincore", seen, 0)?;
    equal(
        "pages in memory",
        touched.iter().filter(|t| **t & 1 != 0).count(),
        16,
    )?;
    let (part, gpa, left) = map(BYTES - 0x1000, 0x3000, 0);
    part?;
    equal("where memory ended", gpa, BYTES)?;
    equal("what had no memory", left, 0x2000)
}
