// SPDX-License-Identifier: GPL-2.0-only

//! Every ioctl, with each of the allocations and copies that the kernel does for it failing once:
//! on kernels with fault injection only.

use std::os::fd::AsRawFd;

use kvm_bindings::*;
use selftests::faults::{self, each, some};
use selftests::kvm::{msrs, number, set_cpuid, supported_cpuid, Errno, Handle, Number, Xsave};
use selftests::machine::map;
use selftests::memory::{growth, kernel_memory, unreferenced, Mapping, PAGE};
use selftests::tap::equal;

use crate::bare::{vm, Bare, CODE};
use crate::irqchip::{enable_split, msi_route, route};
use crate::vm::eventfd;
use crate::Test;

/// The tests, if this kernel can inject faults.
pub(crate) fn tests() -> &'static [Test] {
    if faults::available() {
        TESTS
    } else {
        &[]
    }
}

const TESTS: &[Test] = &[
    ("faults are injected at all", planted),
    ("KVM_CREATE_VM, each allocation failing", create_vm),
    ("KVM_CREATE_VCPU, each allocation failing", create_vcpu),
    (
        "KVM_CREATE_IRQCHIP, each allocation failing",
        create_irqchip,
    ),
    ("KVM_CAP_SPLIT_IRQCHIP, each allocation failing", split),
    ("KVM_CREATE_PIT2, each allocation failing", create_pit),
    ("memory slots, each allocation failing", slots),
    ("KVM_SET_CPUID2, each allocation failing", cpuid),
    ("KVM_RUN, each allocation failing", run),
    ("KVM_GET_DIRTY_LOG, each allocation failing", dirty_log),
    ("KVM_PRE_FAULT_MEMORY, each allocation failing", prefault),
    ("routes and messages, each allocation failing", routes),
    (
        "KVM_IRQFD and KVM_IOEVENTFD, each allocation failing",
        events,
    ),
    ("coalesced zones, each allocation failing", zones),
    (
        "MSRs and their filter, each allocation failing",
        model_specific,
    ),
    ("state of a vCPU, each allocation failing", state),
    ("KVM_GET_STATS_FD, each allocation failing", stats),
    ("what failed left no memory behind", nothing_left),
];

/// Nothing to prepare.
fn nothing() -> Result<(), String> {
    Ok(())
}

fn planted(path: &str) -> Result<(), String> {
    faults::prepare()?;
    let device = Handle::open(path).map_err(|e| e.to_string())?;
    some("KVM_CREATE_VM", nothing, |()| {
        device.open_with(number::CREATE_VM, 0)
    })
}

fn create_vm(path: &str) -> Result<(), String> {
    let device = Handle::open(path).map_err(|e| e.to_string())?;
    some("KVM_CREATE_VM", nothing, |()| {
        device.open_with(number::CREATE_VM, 0)
    })
}

/// A VM with the interrupt controllers.
fn with_irqchip(path: &str) -> Result<Handle, String> {
    let (_device, vm) = vm(path)?;
    vm.call(number::CREATE_IRQCHIP, 0)?;
    Ok(vm)
}

fn create_vcpu(path: &str) -> Result<(), String> {
    some(
        "without LAPIC",
        || vm(path),
        |(_, vm)| vm.open_with(number::CREATE_VCPU, 0),
    )?;
    some(
        "with LAPIC",
        || with_irqchip(path),
        |vm| vm.open_with(number::CREATE_VCPU, 0),
    )
}

fn create_irqchip(path: &str) -> Result<(), String> {
    some(
        "KVM_CREATE_IRQCHIP",
        || vm(path),
        |(_, vm)| vm.call(number::CREATE_IRQCHIP, 0),
    )
}

fn split(path: &str) -> Result<(), String> {
    some(
        "KVM_CAP_SPLIT_IRQCHIP",
        || vm(path),
        |(_, vm)| enable_split(vm, 24),
    )
}

fn create_pit(path: &str) -> Result<(), String> {
    let config = kvm_pit_config::default();
    some(
        "KVM_CREATE_PIT2",
        || with_irqchip(path),
        |vm| vm.set(number::CREATE_PIT2, &config),
    )
}

fn slots(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &[0xb0, 7, 0xe6, 0x10])?;
    let memory = Mapping::anonymous(64 * PAGE).map_err(|e| e.to_string())?;
    let (base, log) = (0x100_0000, KVM_MEM_LOG_DIRTY_PAGES);
    let delete = || {
        let none = kvm_userspace_memory_region {
            slot: 1,
            ..Default::default()
        };
        bare.vm.set(number::SET_USER_MEMORY_REGION, &none)
    };
    let slot = |flags: u32, address: u64| map(&bare.vm, 1, flags, address, &memory);
    let remade = |flags: u32| -> Result<(), String> {
        let _ = delete();
        Ok(slot(flags, base).map(|_| ())?)
    };
    some(
        "a slot is made",
        || {
            let _ = delete();
            Ok(())
        },
        |()| slot(log, base),
    )?;
    some("its log begins", || remade(0), |()| slot(log, base))?;
    each("its log ends", || remade(log), |()| slot(0, base))?;
    some("it moves", || remade(log), |()| slot(log, base * 2))?;
    each("it goes", || remade(log), |()| delete())?;
    let before = bare.byte();
    equal("the guest runs", before, Ok(7))
}

fn cpuid(path: &str) -> Result<(), String> {
    let (device, vm) = vm(path)?;
    let vcpu = vm.open_with(number::CREATE_VCPU, 0)?;
    let entries = supported_cpuid(&device)?;
    some("KVM_SET_CPUID2", nothing, |()| set_cpuid(&vcpu, &entries))?;
    some("KVM_GET_SUPPORTED_CPUID", nothing, |()| {
        supported_cpuid(&device)
    })
}

/// mov $0xN000, %ax; mov %ax, %ds; incb 0; mov 0, %al, for four segments; out %al, $0x10
fn toucher() -> Vec<u8> {
    let mut code = Vec::new();
    for segment in [0x20, 0x40, 0x60, 0x80] {
        code.extend([0xb8, 0, segment, 0x8e, 0xd8, 0xfe, 0x06, 0, 0, 0xa0, 0, 0]);
    }
    code.extend([0xe6, 0x10]);
    code
}

fn run(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &toucher())?;
    // Tables and pages go, so that the guest asks for all of them again.
    let fresh = || -> Result<(), String> {
        let none = kvm_userspace_memory_region::default();
        bare.vm.set(number::SET_USER_MEMORY_REGION, &none)?;
        // SAFETY: The mapping is ours; nothing points into it.
        unsafe { libc::madvise(bare.ram.start().cast(), bare.ram.len(), libc::MADV_DONTNEED) };
        bare.ram.write(CODE as usize, &toucher());
        map(&bare.vm, 0, 0, 0, &bare.ram)?;
        bare.start()
    };
    some("KVM_RUN", fresh, |()| {
        bare.vcpu.run()?;
        let counts =
            [0x2_0000, 0x4_0000, 0x6_0000, 0x8_0000].map(|place| bare.ram.read(place, 1)[0]);
        if bare.vcpu.shared().exit_reason == KVM_EXIT_IO && counts == [1; 4] {
            Ok(0)
        } else {
            Err(Errno(libc::EIO))
        }
    })
}

fn logged(path: &str) -> Result<Bare, String> {
    let bare = Bare::new(path, &toucher())?;
    map(&bare.vm, 0, KVM_MEM_LOG_DIRTY_PAGES, 0, &bare.ram)?;
    equal("it runs", bare.byte(), Ok(1))?;
    Ok(bare)
}

/// A log that was refused has lost nothing.
fn dirty_log(path: &str) -> Result<(), String> {
    let mut bitmap = vec![0u64; crate::bare::RAM / PAGE / 64];
    some(
        "KVM_GET_DIRTY_LOG",
        || logged(path),
        |bare| {
            bitmap.fill(0);
            let mut log = kvm_dirty_log::default();
            log.__bindgen_anon_1.dirty_bitmap = bitmap.as_mut_ptr().cast();
            let answer = bare.vm.set(number::GET_DIRTY_LOG, &log)?;
            let dirty = |page: usize| bitmap[page / 64] >> (page % 64) & 1;
            if [0x20, 0x40, 0x60, 0x80]
                .into_iter()
                .all(|page| dirty(page) == 1)
            {
                Ok(answer)
            } else {
                Err(Errno(libc::EIO))
            }
        },
    )
}

fn prefault(path: &str) -> Result<(), String> {
    let range = kvm_pre_fault_memory {
        gpa: 0x2_0000,
        size: 0x1_0000,
        ..Default::default()
    };
    some(
        "KVM_PRE_FAULT_MEMORY",
        || Bare::new(path, &[0xb0, 7, 0xe6, 0x10]),
        |bare| {
            bare.vcpu
                .handle
                .exchange(number::PRE_FAULT_MEMORY, &mut range.clone())
        },
    )
}

fn routes(path: &str) -> Result<(), String> {
    let vm = with_irqchip(path)?;
    let _vcpu = vm.open_with(number::CREATE_VCPU, 0)?;
    let table = [msi_route(0, 0x41), msi_route(30, 0x42)];
    some("KVM_SET_GSI_ROUTING", nothing, |()| route(&vm, 0, &table))?;
    let msi = kvm_msi {
        address_lo: 0xfee0_0000,
        data: 0x41,
        ..Default::default()
    };
    some("KVM_SIGNAL_MSI", nothing, |()| {
        vm.set(number::SIGNAL_MSI, &msi)
    })
}

fn events(path: &str) -> Result<(), String> {
    let (event, resample) = (eventfd()?, eventfd()?);
    let irqfd = |flags: u32| kvm_irqfd {
        fd: event.as_raw_fd() as u32,
        gsi: 5,
        flags,
        resamplefd: resample.as_raw_fd() as u32,
        ..Default::default()
    };
    let (plain, end) = (
        irqfd(KVM_IRQFD_FLAG_RESAMPLE),
        irqfd(KVM_IRQFD_FLAG_DEASSIGN),
    );
    some(
        "KVM_IRQFD",
        || with_irqchip(path),
        |vm| vm.set(number::IRQFD, &plain),
    )?;
    let assigned = || {
        let vm = with_irqchip(path)?;
        vm.set(number::IRQFD, &plain)?;
        Ok(vm)
    };
    some("KVM_IRQFD ends", assigned, |vm| vm.set(number::IRQFD, &end))?;
    let doorbell = kvm_ioeventfd {
        addr: 0x1000,
        len: 4,
        fd: event.as_raw_fd(),
        ..Default::default()
    };
    some(
        "KVM_IOEVENTFD",
        || vm(path),
        |(_, vm)| vm.set(number::IOEVENTFD, &doorbell),
    )
}

fn zones(path: &str) -> Result<(), String> {
    let zone = kvm_coalesced_mmio_zone {
        addr: 0xf000_0000,
        size: 0x1000,
        ..Default::default()
    };
    some(
        "KVM_REGISTER_COALESCED_MMIO",
        || vm(path),
        |(_, vm)| vm.set(number::REGISTER_COALESCED_MMIO, &zone),
    )
}

fn model_specific(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &[0xb0, 7, 0xe6, 0x10])?;
    let mut pairs = [(0x174, 1), (0x175, 2), (0x176, 3)];
    some("KVM_SET_MSRS", nothing, |()| {
        msrs(&bare.vcpu.handle, number::SET_MSRS, &mut pairs)
    })?;
    some("KVM_GET_MSRS", nothing, |()| {
        msrs(&bare.vcpu.handle, number::GET_MSRS, &mut pairs)
    })?;
    let mut bitmap = [0xffu8; 8];
    let mut filter = kvm_msr_filter {
        flags: KVM_MSR_FILTER_DEFAULT_ALLOW,
        ..Default::default()
    };
    filter.ranges[0] = kvm_msr_filter_range {
        flags: KVM_MSR_FILTER_READ,
        nmsrs: 64,
        base: 0x174,
        bitmap: bitmap.as_mut_ptr(),
    };
    some("KVM_X86_SET_MSR_FILTER", nothing, |()| {
        bare.vm.set(number::X86_SET_MSR_FILTER, &filter)
    })?;
    equal("the guest runs", bare.byte(), Ok(7))
}

/// Gets a part of the state and sets it again.
fn both<T: Default>(vcpu: &Handle, get: Number, set: Number) -> Result<(), String> {
    some(&format!("{get:?}"), nothing, |()| vcpu.get::<T>(get))?;
    let value: T = vcpu.get(get)?;
    some(&format!("{set:?}"), nothing, |()| vcpu.set(set, &value))
}

fn state(path: &str) -> Result<(), String> {
    let bare = Bare::with(path, &[0xb0, 7, 0xe6, 0x10], |vm| {
        Ok(vm.call(number::CREATE_IRQCHIP, 0).map(|_| ())?)
    })?;
    let vcpu = &bare.vcpu.handle;
    both::<Xsave>(vcpu, number::GET_XSAVE, number::SET_XSAVE)?;
    both::<kvm_lapic_state>(vcpu, number::GET_LAPIC, number::SET_LAPIC)?;
    both::<kvm_regs>(vcpu, number::GET_REGS, number::SET_REGS)?;
    both::<kvm_sregs>(vcpu, number::GET_SREGS, number::SET_SREGS)?;
    both::<kvm_vcpu_events>(vcpu, number::GET_VCPU_EVENTS, number::SET_VCPU_EVENTS)?;
    both::<kvm_debugregs>(vcpu, number::GET_DEBUGREGS, number::SET_DEBUGREGS)?;
    both::<kvm_fpu>(vcpu, number::GET_FPU, number::SET_FPU)?;
    both::<kvm_xcrs>(vcpu, number::GET_XCRS, number::SET_XCRS)?;
    both::<kvm_mp_state>(vcpu, number::GET_MP_STATE, number::SET_MP_STATE)?;
    equal("the guest runs", bare.byte(), Ok(7))
}

fn stats(path: &str) -> Result<(), String> {
    let (_device, vm) = vm(path)?;
    let vcpu = vm.open_with(number::CREATE_VCPU, 0)?;
    for handle in [&vm, &vcpu] {
        some("KVM_GET_STATS_FD", nothing, |()| {
            handle.open_with(number::GET_STATS_FD, 0)
        })?;
    }
    Ok(())
}

/// All of it once more takes no more pages, and leaves nothing that nobody points to.
fn nothing_left(path: &str) -> Result<(), String> {
    let again = &TESTS[1..TESTS.len() - 1];
    let before = kernel_memory();
    for (_, test) in again {
        test(path)?;
    }
    growth(before, 1000)?;
    let leaks = unreferenced().map_err(|e| e.to_string())?;
    equal("leaks", leaks.as_str(), "")
}
