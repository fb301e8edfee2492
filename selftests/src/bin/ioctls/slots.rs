// SPDX-License-Identifier: GPL-2.0-only

//! Memory slots: which are accepted, and what they do to a running guest.

use kvm_bindings::*;
use selftests::kvm::{number, Answer, Handle};
use selftests::memory::{Mapping, PAGE};
use selftests::tap::{equal, skipped};

use crate::bare::{vm, Bare, OUT};
use crate::{refused, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "slots must be aligned, within limits and with known flags",
        bad_slots,
    ),
    ("slots must not overlap", overlap),
    ("slots can be moved, not resized", change),
    ("slots come and go while the guest runs", while_running),
    ("as many slots as KVM_CAP_NR_MEMSLOTS says, up to 64", many),
    ("a moved slot is seen at its new place only", moved),
    (
        "KVM_GET_DIRTY_LOG names the pages that were written",
        dirty_log,
    ),
    (
        "KVM_GET_DIRTY_LOG refuses slots without a log",
        dirty_log_bad,
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

fn while_running(path: &str) -> Result<(), String> {
    // mov $0x8000, %ax; mov %ax, %ds; 1: mov 0, %al; out %al, $0x10; jmp 1b
    let code = [
        0xb8, 0, 0x80, 0x8e, 0xd8, 0xa0, 0, 0, OUT[0], OUT[1], 0xeb, 0xf9,
    ];
    let bare = Bare::new(path, &code)?;
    let halves = |upper: u64| -> Result<(), String> {
        let set = |slot, size, gpa| {
            let region = kvm_userspace_memory_region {
                slot,
                guest_phys_addr: gpa,
                memory_size: size,
                userspace_addr: bare.ram.start() as u64 + gpa,
                ..Default::default()
            };
            bare.vm.set(number::SET_USER_MEMORY_REGION, &region)
        };
        if upper == 0 {
            set(1, 0, 0x8_0000)?;
        } else {
            set(1, upper, 0x8_0000)?;
        }
        Ok(())
    };
    let none = kvm_userspace_memory_region::default();
    bare.vm.set(number::SET_USER_MEMORY_REGION, &none)?;
    let low = kvm_userspace_memory_region {
        memory_size: 0x8_0000,
        userspace_addr: bare.ram.start() as u64,
        ..none
    };
    bare.vm.set(number::SET_USER_MEMORY_REGION, &low)?;
    halves(0x1000)?;
    bare.ram.write(0x8_0000, &[0x55]);
    equal("there", bare.byte(), Ok(0x55))?;
    equal("there", bare.byte(), Ok(0x55))?;
    halves(0)?;
    equal("gone: MMIO", bare.exit(), Ok(KVM_EXIT_MMIO))?;
    bare.vcpu.share(|shared| {
        let answer = [0x99, 0, 0, 0, 0, 0, 0, 0];
        shared.__bindgen_anon_1.mmio.data = answer;
    });
    equal("what this program answers", bare.byte(), Ok(0x99))?;
    halves(0x1000)?;
    equal("back", bare.byte(), Ok(0x55))
}

fn many(path: &str) -> Result<(), String> {
    let slots = Slots::new(path)?;
    for slot in 0..slots.count.min(64) {
        slots.set(slot, 0, u64::from(slot) * 0x2000, 0x1000, 0)?;
    }
    for slot in 0..slots.count.min(64) {
        slots.set(slot, 0, 0, 0, 0)?;
    }
    Ok(())
}

fn moved(path: &str) -> Result<(), String> {
    // mov $0x8000, %ax; mov %ax, %ds; 1: mov 0, %al; out %al, $0x10; mov 0x1000, %al; out; jmp 1b
    let code = [
        0xb8, 0, 0x80, 0x8e, 0xd8, 0xa0, 0, 0, OUT[0], OUT[1], 0xa0, 0, 0x10, OUT[0], OUT[1], 0xeb,
        0xf4,
    ];
    let bare = Bare::new(path, &code)?;
    let page = Mapping::anonymous(PAGE).map_err(|e| e.to_string())?;
    page.write(0, &[0x33]);
    bare.vm.set(
        number::SET_USER_MEMORY_REGION,
        &kvm_userspace_memory_region::default(),
    )?;
    let region = |slot, gpa, memory: &Mapping, size: u64| kvm_userspace_memory_region {
        slot,
        guest_phys_addr: gpa,
        memory_size: size,
        userspace_addr: memory.start() as u64,
        ..Default::default()
    };
    bare.vm.set(
        number::SET_USER_MEMORY_REGION,
        &region(0, 0, &bare.ram, 0x8_0000),
    )?;
    bare.vm.set(
        number::SET_USER_MEMORY_REGION,
        &region(1, 0x8_0000, &page, 0x1000),
    )?;
    equal("first place", bare.byte(), Ok(0x33))?;
    equal("nothing after it", bare.exit(), Ok(KVM_EXIT_MMIO))?;
    equal("what was answered", bare.byte().is_ok(), true)?;
    bare.vm.set(
        number::SET_USER_MEMORY_REGION,
        &region(1, 0x8_1000, &page, 0x1000),
    )?;
    equal("nothing before it", bare.exit(), Ok(KVM_EXIT_MMIO))?;
    equal("what was answered", bare.byte().is_ok(), true)?;
    equal("second place", bare.byte(), Ok(0x33))
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

fn dirty_log(path: &str) -> Result<(), String> {
    // mov $0x8000, %ax; mov %ax, %ds; 1: mov %al, 0; out; mov %al, 0x3000; out; mov 0x1000, %al; out; jmp 1b
    let code = [
        0xb8, 0, 0x80, 0x8e, 0xd8, 0xa2, 0, 0, OUT[0], OUT[1], 0xa2, 0, 0x30, OUT[0], OUT[1], 0xa0,
        0, 0x10, OUT[0], OUT[1], 0xeb, 0xef,
    ];
    let bare = Bare::new(path, &code)?;
    bare.vm.set(
        number::SET_USER_MEMORY_REGION,
        &kvm_userspace_memory_region::default(),
    )?;
    let half = kvm_userspace_memory_region {
        memory_size: 0x8_0000,
        userspace_addr: bare.ram.start() as u64,
        ..Default::default()
    };
    bare.vm.set(number::SET_USER_MEMORY_REGION, &half)?;
    let mut logged = kvm_userspace_memory_region {
        slot: 1,
        flags: KVM_MEM_LOG_DIRTY_PAGES,
        guest_phys_addr: 0x8_0000,
        memory_size: 0x8000,
        userspace_addr: bare.ram.start() as u64 + 0x8_0000,
    };
    if bare
        .vm
        .set(number::SET_USER_MEMORY_REGION, &logged)
        .is_err()
    {
        return skipped("the device has no dirty log");
    }
    equal("clean", log(&bare.vm, 1), Ok(0))?;
    bare.byte()?;
    equal("page 0", log(&bare.vm, 1), Ok(1))?;
    equal("clean again", log(&bare.vm, 1), Ok(0))?;
    bare.byte()?;
    bare.byte()?;
    equal(
        "page 3, and reading page 1 is nothing",
        log(&bare.vm, 1),
        Ok(8),
    )?;
    bare.byte()?;
    equal("page 0 a second time", log(&bare.vm, 1), Ok(1))?;
    logged.flags = 0;
    bare.vm.set(number::SET_USER_MEMORY_REGION, &logged)?;
    refused("switched off", log(&bare.vm, 1), libc::ENOENT)
}

fn dirty_log_bad(path: &str) -> Result<(), String> {
    let slots = Slots::new(path)?;
    slots.set(0, 0, 0, 0x1000, 0)?;
    refused("no log", log(&slots.vm, 0), libc::ENOENT)?;
    refused("no slot", log(&slots.vm, 1), libc::ENOENT)?;
    refused("no such slot", log(&slots.vm, slots.count), libc::EINVAL)
}
