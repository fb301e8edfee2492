// SPDX-License-Identifier: GPL-2.0-only

//! The ioctls of the device itself.

use kvm_bindings::*;
use selftests::kvm::{msrs, number, supported_cpuid, Handle, Number};
use selftests::tap::{equal, skipped};

use crate::{refused, Test};

pub(crate) const TESTS: &[Test] = &[
    ("KVM_GET_API_VERSION is 12", api_version),
    ("KVM_CREATE_VM takes type 0 only", create_vm),
    ("programs of 32 bits are refused", narrow),
    ("KVM_CAP_NR_VCPUS is how many CPUs there are", recommended),
    (
        "KVM_GET_VCPU_MMAP_SIZE has room for run, port data and ring",
        mmap_size,
    ),
    (
        "KVM_GET_MSR_INDEX_LIST counts before it writes",
        msr_index_list,
    ),
    (
        "KVM_GET_SUPPORTED_CPUID refuses too few entries",
        cpuid_count,
    ),
    (
        "KVM_GET_SUPPORTED_CPUID has the leaves that VMMs need",
        cpuid_leaves,
    ),
    (
        "KVM_GET_EMULATED_CPUID has leaves, and needs room for them",
        emulated,
    ),
    (
        "KVM_GET_MSRS of the node has what describes features",
        features,
    ),
    ("unknown ioctls are refused", unknown),
    ("the device opens many times", many),
];

fn open(path: &str) -> Result<Handle, String> {
    Handle::open(path).map_err(|e| format!("{path}: {e}"))
}

/// They have other structures. A system call by INT 80h is one of theirs, whoever makes it.
fn narrow(path: &str) -> Result<(), String> {
    const IOCTL: i64 = 54;
    let device = Handle::open(path).map_err(|e| e.to_string())?;
    let wide = device.call(number::GET_API_VERSION, 0);
    equal("64 bits", wide.map_err(|e| e.0), Ok(12))?;
    if path.ends_with("kvm") {
        return skipped("KVM takes them");
    }
    let vm = device.open_with(number::CREATE_VM, 0)?;
    for handle in [&device, &vm] {
        let result: i64;
        // SAFETY: The ioctl takes no pointer. The system call keeps all registers but RAX, and R8
        // to R11.
        unsafe {
            core::arch::asm!(
                "xchg rbx, {fd}",
                "int 0x80",
                "xchg rbx, {fd}",
                fd = inout(reg) i64::from(handle.fd()) => _,
                inlateout("rax") IOCTL => result,
                in("rcx") 0xae00_u64,
                in("rdx") 0_u64,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        if result as i32 == -libc::ENOSYS {
            return skipped("this kernel has no system calls of 32 bits");
        }
        equal("32 bits", result as i32, -libc::ENOTTY)?;
    }
    Ok(())
}

/// QEMU warns of more.
fn recommended(path: &str) -> Result<(), String> {
    let device = Handle::open(path).map_err(|e| e.to_string())?;
    // SAFETY: It only asks.
    let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) } as i32;
    let most = device.extension(KVM_CAP_MAX_VCPUS);
    equal(
        "vCPUs",
        device.extension(KVM_CAP_NR_VCPUS),
        online.min(most),
    )
}

fn api_version(path: &str) -> Result<(), String> {
    let device = open(path)?;
    equal("version", device.call(number::GET_API_VERSION, 0), Ok(12))?;
    refused(
        "with an argument",
        device.call(number::GET_API_VERSION, 1),
        libc::EINVAL,
    )
}

fn create_vm(path: &str) -> Result<(), String> {
    let device = open(path)?;
    refused(
        "type 0x7777",
        device.call(number::CREATE_VM, 0x7777),
        libc::EINVAL,
    )?;
    device.open_with(number::CREATE_VM, 0)?;
    Ok(())
}

fn mmap_size(path: &str) -> Result<(), String> {
    let device = open(path)?;
    let size = device.call(number::GET_VCPU_MMAP_SIZE, 0)?;
    equal("whole pages", size % 4096, 0)?;
    equal("at least run and port data", size >= 2 * 4096, true)?;
    let ring = device.extension(KVM_CAP_COALESCED_MMIO);
    equal("the ring's page is mapped", ring * 4096 < size, true)?;
    refused(
        "with an argument",
        device.call(number::GET_VCPU_MMAP_SIZE, 1),
        libc::EINVAL,
    )
}

fn msr_index_list(path: &str) -> Result<(), String> {
    let device = open(path)?;
    let mut words = [0u64; 1024];
    refused(
        "no room",
        device.array(number::GET_MSR_INDEX_LIST, &mut words, 8),
        libc::E2BIG,
    )?;
    let count = words[0] & 0xffff_ffff;
    equal("some MSRs", count > 10 && count < 1000, true)?;
    equal("nothing was written but the count", words[1], 0)?;
    device.array(number::GET_MSR_INDEX_LIST, &mut words, 8 * 1024)?;
    equal("the same count", words[0] & 0xffff_ffff, count)
}

fn cpuid_count(path: &str) -> Result<(), String> {
    let device = open(path)?;
    let entries = supported_cpuid(&device)?;
    equal("some leaves", entries.len() > 5, true)?;
    let mut words = vec![0u64; 1 + 256 * 5];
    for count in [0, 1, entries.len() - 1] {
        words[0] = count as u64;
        let answer = device.array(number::GET_SUPPORTED_CPUID, &mut words, 8 + 256 * 40);
        refused(&format!("{count} entries"), answer, libc::E2BIG)?;
    }
    words[0] = entries.len() as u64;
    device.array(number::GET_SUPPORTED_CPUID, &mut words, 8 + 256 * 40)?;
    equal("count", words[0] & 0xffff_ffff, entries.len() as u64)
}

fn cpuid_leaves(path: &str) -> Result<(), String> {
    let entries = supported_cpuid(&open(path)?)?;
    for leaf in [
        0,
        1,
        7,
        0x8000_0000,
        0x8000_0001,
        0x8000_0005,
        0x8000_0006,
        0x8000_0008,
    ] {
        let there = entries
            .iter()
            .any(|entry| entry.function == leaf && entry.index == 0);
        equal(&format!("leaf {leaf:#x}"), there, true)?;
    }
    let vendor = entries
        .iter()
        .find(|entry| entry.function == 0)
        .ok_or("no leaf 0")?;
    equal("vendor", vendor.ebx, u32::from_le_bytes(*b"Auth"))
}

fn unknown(path: &str) -> Result<(), String> {
    let device = open(path)?;
    let vm = device.open_with(number::CREATE_VM, 0)?;
    let vcpu = vm.open_with(number::CREATE_VCPU, 0)?;
    for handle in [&device, &vm, &vcpu] {
        for number in [0xaefe, 0x5401, 0xc0ff_ae00, 0x4008_aefd, 0] {
            // SAFETY: No ioctl of this number reads or writes anything.
            let answer = unsafe { handle.raw(Number(number), 0) };
            let errno = answer.err().map(|errno| errno.0);
            let fine = errno == Some(libc::ENOTTY) || errno == Some(libc::EINVAL);
            equal(&format!("{number:#x} is refused, {errno:?}"), fine, true)?;
        }
    }
    Ok(())
}

fn many(path: &str) -> Result<(), String> {
    let mut devices = Vec::new();
    for _ in 0..200 {
        devices.push(open(path)?);
    }
    let vm = devices[199].open_with(number::CREATE_VM, 0)?;
    drop(devices);
    vm.open_with(number::CREATE_VCPU, 0)?;
    Ok(())
}

fn emulated(path: &str) -> Result<(), String> {
    let device = open(path)?;
    let extension = device.extension(KVM_CAP_EXT_EMUL_CPUID);
    equal("KVM_CAP_EXT_EMUL_CPUID", extension, 1)?;
    let mut words = vec![0u64; 1 + 256 * 5];
    let answer = device.array(number::GET_EMULATED_CPUID, &mut words, 8 + 256 * 40);
    refused("no entries", answer, libc::E2BIG)?;
    words[0] = 256;
    device.array(number::GET_EMULATED_CPUID, &mut words, 8 + 256 * 40)?;
    equal("some leaves", words[0] & 0xffff_ffff > 0, true)
}

fn features(path: &str) -> Result<(), String> {
    let device = open(path)?;
    let mut words = [256u64; 258];
    device.array(number::GET_MSR_FEATURE_INDEX_LIST, &mut words, 8 * 258)?;
    let count = (words[0] & 0xffff_ffff) as usize;
    let index = |n: usize| (words[n / 2] >> (32 * (n % 2))) as u32;
    let listed: Vec<u32> = (1..=count).map(index).collect();
    for index in [0x8b, 0xce, 0x10a, 0x345, 0xc001_1029] {
        let mut pair = [(index, 0)];
        let answer = msrs(&device, number::GET_MSRS, &mut pair);
        equal(&format!("{index:#x}"), answer, Ok(1))?;
        equal(
            &format!("{index:#x} is listed"),
            listed.contains(&index),
            true,
        )?;
    }
    Ok(())
}
