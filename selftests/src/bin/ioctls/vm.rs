// SPDX-License-Identifier: GPL-2.0-only

//! The ioctls of a VM but for its memory and its interrupt controllers.

use std::os::fd::AsRawFd;

use kvm_bindings::*;
use selftests::kvm::{number, Handle};
use selftests::tap::equal;

use crate::bare::{vm, Bare, OUT};
use crate::{refused, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "KVM_CREATE_VCPU refuses ids that are taken or too large",
        create_vcpu,
    ),
    (
        "KVM_CREATE_VCPU that found no descriptor leaves its id free",
        create_vcpu_again,
    ),
    (
        "KVM_CREATE_VCPU makes as many as KVM_CAP_NR_VCPUS says, up to 64",
        many_vcpus,
    ),
    (
        "KVM_SET_TSS_ADDR and KVM_SET_IDENTITY_MAP_ADDR",
        fixed_addresses,
    ),
    ("KVM_ENABLE_CAP refuses what it does not know", enable_cap),
    ("KVM_GET_CLOCK runs, KVM_SET_CLOCK sets it", clock),
    ("KVM_IOEVENTFD refuses bad arguments", ioeventfd_bad),
    ("KVM_IOEVENTFD signals ports", ioeventfd_port),
    ("KVM_IOEVENTFD signals memory, any length", ioeventfd_mmio),
    (
        "a VM outlives its file descriptor while a virtual CPU is open",
        lifetime,
    ),
];

fn create_vcpu(path: &str) -> Result<(), String> {
    let (device, vm) = vm(path)?;
    let vcpu = vm.open_with(number::CREATE_VCPU, 1)?;
    refused("again", vm.call(number::CREATE_VCPU, 1), libc::EEXIST)?;
    drop(vcpu);
    refused(
        "closed and again",
        vm.call(number::CREATE_VCPU, 1),
        libc::EEXIST,
    )?;
    let most = device
        .extension(KVM_CAP_MAX_VCPU_ID)
        .max(device.extension(KVM_CAP_MAX_VCPUS));
    refused(
        "too large",
        vm.call(number::CREATE_VCPU, most as u64),
        libc::EINVAL,
    )?;
    refused(
        "negative",
        vm.call(number::CREATE_VCPU, 0xffff_ffff),
        libc::EINVAL,
    )?;
    vm.open_with(number::CREATE_VCPU, most as u64 - 1)?;
    Ok(())
}

/// The limit of descriptors.
fn descriptors() -> libc::rlimit {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: The structure is ours.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    limit
}

fn create_vcpu_again(path: &str) -> Result<(), String> {
    let (_device, vm) = vm(path)?;
    vm.call(number::CREATE_IRQCHIP, 0)?;
    let first = vm.open_with(number::CREATE_VCPU, 0)?;
    let usual = descriptors();
    let full = libc::rlimit {
        rlim_cur: first.fd() as u64 + 1,
        ..usual
    };
    // SAFETY: Descriptors that are open stay so.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &full) };
    let failed = vm.call(number::CREATE_VCPU, 70);
    // An NMI that goes nowhere.
    let msi = kvm_msi {
        address_lo: 0xfee0_0000 | 70 << 12,
        data: 0x400,
        ..Default::default()
    };
    let _ = vm.set(number::SIGNAL_MSI, &msi);
    // SAFETY: As above.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &usual) };
    refused("without a descriptor", failed, libc::EMFILE)?;
    let second = vm.open_with(number::CREATE_VCPU, 70)?;
    for pending in [0, 1] {
        let events: kvm_vcpu_events = second.get(number::GET_VCPU_EVENTS)?;
        equal("NMIs", events.nmi.pending, pending)?;
        second.call(number::NMI, 0)?;
    }
    refused("again", vm.call(number::CREATE_VCPU, 70), libc::EEXIST)
}

fn many_vcpus(path: &str) -> Result<(), String> {
    let (device, vm) = vm(path)?;
    let count = device.extension(KVM_CAP_MAX_VCPUS).min(64);
    equal(
        "NR_VCPUS is no more than MAX_VCPUS",
        device.extension(KVM_CAP_NR_VCPUS) <= device.extension(KVM_CAP_MAX_VCPUS),
        true,
    )?;
    let mut vcpus = Vec::new();
    for id in 0..count {
        vcpus.push(vm.open_with(number::CREATE_VCPU, id as u64)?);
    }
    Ok(())
}

fn fixed_addresses(path: &str) -> Result<(), String> {
    let (_device, vm) = vm(path)?;
    equal("TSS", vm.call(number::SET_TSS_ADDR, 0xfffb_d000), Ok(0))?;
    equal(
        "the last",
        vm.call(number::SET_TSS_ADDR, 0xffff_d000),
        Ok(0),
    )?;
    for high in [0xffff_d001, 1 << 32] {
        refused("high", vm.call(number::SET_TSS_ADDR, high), libc::EINVAL)?;
    }
    equal(
        "identity map",
        vm.set(number::SET_IDENTITY_MAP_ADDR, &0xfeff_c000u64),
        Ok(0),
    )?;
    let _vcpu = vm.open_with(number::CREATE_VCPU, 0)?;
    refused(
        "identity map, late",
        vm.set(number::SET_IDENTITY_MAP_ADDR, &0xfeff_c000u64),
        libc::EINVAL,
    )
}

fn enable_cap(path: &str) -> Result<(), String> {
    let (_device, vm) = vm(path)?;
    for cap in [0, KVM_CAP_USER_MEMORY, 0xffff] {
        let cap = kvm_enable_cap {
            cap,
            ..Default::default()
        };
        refused(
            &format!("{}", cap.cap),
            vm.set(number::ENABLE_CAP, &cap),
            libc::EINVAL,
        )?;
    }
    let cap = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        flags: 1,
        ..Default::default()
    };
    refused("flags", vm.set(number::ENABLE_CAP, &cap), libc::EINVAL)
}

fn clock(path: &str) -> Result<(), String> {
    let (_device, vm) = vm(path)?;
    let read = || vm.get::<kvm_clock_data>(number::GET_CLOCK);
    let (first, second) = (read()?, read()?);
    equal("time runs", second.clock >= first.clock, true)?;
    equal("from about zero", first.clock < 1_000_000_000, true)?;
    let hour = 3_600_000_000_000;
    vm.set(
        number::SET_CLOCK,
        &kvm_clock_data {
            clock: hour,
            ..Default::default()
        },
    )?;
    let now = read()?.clock;
    equal("set", now >= hour && now < hour + 1_000_000_000, true)?;
    let bad = kvm_clock_data {
        flags: 0x8000,
        ..Default::default()
    };
    refused("flags", vm.set(number::SET_CLOCK, &bad), libc::EINVAL)
}

/// A non-blocking eventfd.
pub(crate) fn eventfd() -> Result<std::fs::File, String> {
    use std::os::fd::FromRawFd;
    // SAFETY: Takes no pointer.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err("eventfd".into());
    }
    // SAFETY: The kernel has just given this descriptor to us alone.
    Ok(unsafe { std::fs::File::from_raw_fd(fd) })
}

/// How often an eventfd was signalled since it was last read.
pub(crate) fn signalled(event: &std::fs::File) -> u64 {
    use std::io::Read;
    let mut bytes = [0; 8];
    match (&mut &*event).read(&mut bytes) {
        Ok(8) => u64::from_ne_bytes(bytes),
        _ => 0,
    }
}

pub(crate) const PORT: u32 = 1 << kvm_ioeventfd_flag_nr_pio;
const DATAMATCH: u32 = 1 << kvm_ioeventfd_flag_nr_datamatch;
const DEASSIGN: u32 = 1 << kvm_ioeventfd_flag_nr_deassign;

pub(crate) fn assign(
    vm: &Handle,
    event: &std::fs::File,
    addr: u64,
    len: u32,
    flags: u32,
    datamatch: u64,
) -> selftests::kvm::Answer {
    let fd = event.as_raw_fd();
    vm.set(
        number::IOEVENTFD,
        &kvm_ioeventfd {
            addr,
            len,
            fd,
            flags,
            datamatch,
            ..Default::default()
        },
    )
}

fn ioeventfd_bad(path: &str) -> Result<(), String> {
    let (_device, vm) = vm(path)?;
    let event = eventfd()?;
    refused(
        "length 3",
        assign(&vm, &event, 0x10, 3, PORT, 0),
        libc::EINVAL,
    )?;
    refused(
        "length 16",
        assign(&vm, &event, 0x10, 16, PORT, 0),
        libc::EINVAL,
    )?;
    refused(
        "wraps",
        assign(&vm, &event, u64::MAX, 4, 0, 0),
        libc::EINVAL,
    )?;
    refused(
        "flags",
        assign(&vm, &event, 0x10, 1, 0x8000, 0),
        libc::EINVAL,
    )?;
    refused(
        "match without length",
        assign(&vm, &event, 0x10, 0, DATAMATCH, 0),
        libc::EINVAL,
    )?;
    let bad = kvm_ioeventfd {
        addr: 0x10,
        len: 1,
        fd: -1,
        ..Default::default()
    };
    refused("no file", vm.set(number::IOEVENTFD, &bad), libc::EBADF)?;
    let file = std::fs::File::open("/proc/self/stat").map_err(|e| e.to_string())?;
    refused(
        "no eventfd",
        assign(&vm, &file, 0x10, 1, 0, 0),
        libc::EINVAL,
    )?;
    refused(
        "not assigned",
        assign(&vm, &event, 0x10, 1, PORT | DEASSIGN, 0),
        libc::ENOENT,
    )?;
    assign(&vm, &event, 0x10, 1, PORT, 0)?;
    refused("twice", assign(&vm, &event, 0x10, 1, PORT, 0), libc::EEXIST)?;
    assign(&vm, &event, 0x10, 1, PORT | DEASSIGN, 0)?;
    refused(
        "gone",
        assign(&vm, &event, 0x10, 1, PORT | DEASSIGN, 0),
        libc::ENOENT,
    )
}

fn ioeventfd_port(path: &str) -> Result<(), String> {
    // mov $1, %al; out %al, $0x20; mov $2, %al; out %al, $0x20; out %al, $0x10; and the last two
    // again
    let code = [
        0xb0, 1, 0xe6, 0x20, 0xb0, 2, 0xe6, 0x20, 0xe6, 0x10, 0xe6, 0x20, 0xe6, 0x10,
    ];
    let bare = Bare::new(path, &code)?;
    let (one, two) = (eventfd()?, eventfd()?);
    assign(&bare.vm, &one, 0x20, 1, PORT | DATAMATCH, 1)?;
    assign(&bare.vm, &two, 0x20, 1, PORT | DATAMATCH, 2)?;
    equal("neither write came here", bare.byte(), Ok(2))?;
    equal("value 1", signalled(&one), 1)?;
    equal("value 2", signalled(&two), 1)?;
    assign(&bare.vm, &two, 0x20, 1, PORT | DATAMATCH | DEASSIGN, 2)?;
    equal("now it comes", bare.byte(), Ok(2))?;
    equal("no event", signalled(&two), 0)
}

fn ioeventfd_mmio(path: &str) -> Result<(), String> {
    // mov $0xf000, %ax; mov %ax, %ds; mov %al, 0; mov %ax, 0; mov %al, 1; out %al, $0x10
    let code = [
        0xb8, 0, 0xf0, 0x8e, 0xd8, 0xa2, 0, 0, 0xa3, 0, 0, OUT[0], OUT[1], 0xa2, 1, 0, OUT[0],
        OUT[1],
    ];
    let bare = Bare::new(path, &code)?;
    let hole = kvm_userspace_memory_region {
        slot: 0,
        ..Default::default()
    };
    bare.vm.set(number::SET_USER_MEMORY_REGION, &hole)?;
    let low = kvm_userspace_memory_region {
        memory_size: 0x8_0000,
        userspace_addr: bare.ram.start() as u64,
        ..Default::default()
    };
    bare.vm.set(number::SET_USER_MEMORY_REGION, &low)?;
    let event = eventfd()?;
    assign(&bare.vm, &event, 0xf_0000, 0, 0, 0)?;
    equal("no exit for the two writes", bare.byte(), Ok(0))?;
    equal("both lengths", signalled(&event), 2)?;
    equal("the next address exits", bare.exit(), Ok(KVM_EXIT_MMIO))
}

fn lifetime(path: &str) -> Result<(), String> {
    let Bare {
        device,
        vm,
        ram,
        vcpu,
    } = Bare::new(path, &[0xb0, 7, 0xe6, 0x10])?;
    drop(device);
    drop(vm);
    vcpu.run()?;
    equal("it runs", vcpu.shared().exit_reason, KVM_EXIT_IO)?;
    drop(ram);
    Ok(())
}
