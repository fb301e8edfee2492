// SPDX-License-Identifier: GPL-2.0-only

//! Ioctls of the node itself, and what KVM_CHECK_EXTENSION answers.

use crate::api::cpuid;
use crate::api::irqchip;
use crate::api::nested_state;
use crate::api::regs;
use crate::api::snapshot;
use crate::api::sync_regs;
use crate::api::vm;
use crate::host::{host, Host};
use crate::irq::vcpu_table::{MAX_VCPUS, MAX_VCPU_ID};
use crate::linux;
use crate::memory::dirty_log;
use crate::memory::dirty_ring;
use crate::memory::slots;
use crate::uapi::run_page;
use crate::uapi::{self, UserArg};
use crate::vm::clock;
use crate::vm::config;
use kernel::ffi::c_long;
use kernel::prelude::*;
use svm::features::SvmFeatures;
use x86::msr::index::PATCH_LEVEL;
use x86::msr::{feature, FEATURE_MSRS, SAVED_MSRS};

/// Dispatches on the number. Any process that may open the node.
pub(crate) fn ioctl(cmd: u32, arg: UserArg) -> Result<c_long> {
    match cmd {
        uapi::KVM_GET_API_VERSION if arg.0 == 0 => Ok(uapi::KVM_API_VERSION as c_long),
        // There is one type of machine.
        uapi::KVM_CREATE_VM if arg.0 == 0 => vm::create(),
        uapi::KVM_GET_API_VERSION | uapi::KVM_CREATE_VM => Err(EINVAL),
        uapi::KVM_CHECK_EXTENSION => Ok(check_extension(arg.0)),
        uapi::PACIFICA_CHECK_FEATURE => Ok(snapshot::check_feature(arg.0)),
        uapi::KVM_GET_VCPU_MMAP_SIZE => {
            if arg.0 == 0 {
                Ok((run_page::PAGES * 4096) as c_long)
            } else {
                Err(EINVAL)
            }
        }
        uapi::KVM_GET_SUPPORTED_CPUID => cpuid::get_supported(arg),
        uapi::KVM_GET_EMULATED_CPUID => cpuid::get_emulated(arg),
        uapi::KVM_GET_MSR_INDEX_LIST => msr_list(arg, SAVED_MSRS),
        uapi::KVM_GET_MSR_FEATURE_INDEX_LIST => msr_list(arg, FEATURE_MSRS),
        uapi::KVM_GET_MSRS => get_feature_msrs(arg),
        uapi::KVM_HAS_DEVICE_ATTR | uapi::KVM_GET_DEVICE_ATTR => attribute(cmd, arg),
        uapi::KVM_X86_GET_MCE_CAP_SUPPORTED => arg.write(&x86::msr::Mce::CAP_SUPPORTED).map(|()| 0),
        _ => Err(ENOTTY),
    }
}

/// What works, and how much of it. Everything else is 0.
pub(crate) fn check_extension(cap: usize) -> c_long {
    let Ok(cap) = u32::try_from(cap) else {
        return 0;
    };
    match cap {
        uapi::KVM_CAP_IRQCHIP
        | uapi::KVM_CAP_HLT
        | uapi::KVM_CAP_HALT_POLL
        | uapi::KVM_CAP_USER_MEMORY
        | uapi::KVM_CAP_USER_MEMORY2
        | uapi::KVM_CAP_SET_TSS_ADDR
        | uapi::KVM_CAP_EXT_CPUID
        | uapi::KVM_CAP_NOP_IO_DELAY
        | uapi::KVM_CAP_PIT2
        | uapi::KVM_CAP_PIT_STATE2
        | uapi::KVM_CAP_MP_STATE
        | uapi::KVM_CAP_SYNC_MMU
        | uapi::KVM_CAP_USER_NMI
        | uapi::KVM_CAP_IRQ_INJECT_STATUS
        | uapi::KVM_CAP_SET_IDENTITY_MAP_ADDR
        | uapi::KVM_CAP_SET_BOOT_CPU_ID
        | uapi::KVM_CAP_INTERNAL_ERROR_DATA
        | uapi::KVM_CAP_VCPU_EVENTS
        | uapi::KVM_CAP_STEAL_TIME
        | uapi::KVM_CAP_DISABLE_QUIRKS
        | uapi::KVM_CAP_DEBUGREGS
        | uapi::KVM_CAP_SET_GUEST_DEBUG
        | uapi::KVM_CAP_X86_ROBUST_SINGLESTEP
        | uapi::KVM_CAP_DESTROY_MEMORY_REGION_WORKS
        | uapi::KVM_CAP_JOIN_MEMORY_REGIONS_WORKS
        | uapi::KVM_CAP_SIGNAL_MSI
        | uapi::KVM_CAP_IRQFD
        | uapi::KVM_CAP_IOEVENTFD
        | uapi::KVM_CAP_IOEVENTFD_ANY_LENGTH
        | uapi::KVM_CAP_READONLY_MEM
        | uapi::KVM_CAP_KVMCLOCK_CTRL
        | uapi::KVM_CAP_TSC_DEADLINE_TIMER
        | uapi::KVM_CAP_GET_TSC_KHZ
        | uapi::KVM_CAP_XSAVE
        | uapi::KVM_CAP_XCRS
        | uapi::KVM_CAP_SREGS2
        | uapi::KVM_CAP_EXCEPTION_PAYLOAD
        | uapi::KVM_CAP_X86_TRIPLE_FAULT_EVENT
        | uapi::KVM_CAP_CHECK_EXTENSION_VM
        | uapi::KVM_CAP_ENABLE_CAP_VM
        | uapi::KVM_CAP_GET_MSR_FEATURES
        | uapi::KVM_CAP_X86_USER_SPACE_MSR
        | uapi::KVM_CAP_X86_MSR_FILTER
        | uapi::KVM_CAP_EXIT_ON_EMULATION_FAILURE
        | uapi::KVM_CAP_MSR_PLATFORM_INFO
        | uapi::KVM_CAP_BINARY_STATS_FD
        | uapi::KVM_CAP_VCPU_ATTRIBUTES
        | uapi::KVM_CAP_SYS_ATTRIBUTES
        | uapi::KVM_CAP_IMMEDIATE_EXIT
        | uapi::KVM_CAP_ENFORCE_PV_FEATURE_CPUID
        | uapi::KVM_CAP_ENABLE_CAP
        | uapi::KVM_CAP_SPLIT_IRQCHIP
        | uapi::KVM_CAP_PRE_FAULT_MEMORY
        | uapi::KVM_CAP_IRQFD_RESAMPLE
        | uapi::KVM_CAP_REINJECT_CONTROL
        | uapi::KVM_CAP_COALESCED_PIO
        | uapi::KVM_CAP_EXT_EMUL_CPUID
        | uapi::KVM_CAP_DEVICE_CTRL
        | uapi::KVM_CAP_X86_APIC_BUS_CYCLES_NS => 1,
        uapi::KVM_CAP_TSC_CONTROL | uapi::KVM_CAP_VM_TSC_CONTROL => {
            let has_ratio = |host: &Host| host.features.contains(SvmFeatures::TSC_RATE_MSR);
            c_long::from(host().is_some_and(has_ratio))
        }
        uapi::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 => dirty_log::MANUAL_LOG_FLAGS as c_long,
        uapi::KVM_CAP_DIRTY_LOG_RING | uapi::KVM_CAP_DIRTY_LOG_RING_ACQ_REL => {
            dirty_ring::MOST_BYTES as c_long
        }
        uapi::KVM_CAP_COALESCED_MMIO => run_page::RING_PAGE as c_long,
        uapi::KVM_CAP_X2APIC_API => irqchip::X2APIC_API as c_long,
        uapi::KVM_CAP_DISABLE_QUIRKS2 => config::QUIRKS as c_long,
        uapi::KVM_CAP_X86_DISABLE_EXITS => config::disabled_exits() as c_long,
        uapi::KVM_CAP_SET_GUEST_DEBUG2 => svm::debug::DebugControl::all().bits() as c_long,
        uapi::KVM_CAP_ADJUST_CLOCK => clock::FLAGS as c_long,
        uapi::KVM_CAP_IRQ_ROUTING => ::irqchip::routing::MAX_GSIS as c_long,
        // What is recommended, and what is possible.
        uapi::KVM_CAP_NR_VCPUS => (linux::online_cpus() as c_long).min(MAX_VCPUS as c_long),
        uapi::KVM_CAP_MAX_VCPUS => MAX_VCPUS as c_long,
        uapi::KVM_CAP_MAX_VCPU_ID => MAX_VCPU_ID as c_long,
        uapi::KVM_CAP_NR_MEMSLOTS => slots::SLOT_LIMIT as c_long,
        uapi::KVM_CAP_SYNC_REGS => sync_regs::FIELDS as c_long,
        uapi::KVM_CAP_XSAVE2 => x86::xsave::IMAGE_SIZE as c_long,
        uapi::KVM_CAP_NESTED_STATE if crate::has_nested() => nested_state::SIZE as c_long,
        uapi::KVM_CAP_MCE => x86::msr::MAX_BANKS as c_long,
        _ => 0,
    }
}

/// The one attribute: the components of extended state that a guest can have.
fn attribute(cmd: u32, arg: UserArg) -> Result<c_long> {
    let attr: uapi::kvm_device_attr = arg.read()?;
    if attr.group != 0 || attr.attr != u64::from(uapi::KVM_X86_XCOMP_GUEST_SUPP) {
        return Err(ENXIO);
    }
    if cmd == uapi::KVM_GET_DEVICE_ATTR {
        let host = host().ok_or(ENODEV)?;
        UserArg(attr.addr as usize).write(&host.fpu.layout.components)?;
    }
    Ok(0)
}

/// KVM_GET_MSRS on the node: what can be had of the feature MSRs. Answers how many are known.
fn get_feature_msrs(arg: UserArg) -> Result<c_long> {
    let mut entries = regs::read_msrs(arg)?;
    let mut done = 0;
    for entry in entries.iter_mut() {
        // Where there is none, a hypervisor keeps the microcode to itself.
        let patch_level = linux::rdmsr(PATCH_LEVEL).unwrap_or(0);
        let Some(value) = feature(entry.index, patch_level) else {
            break;
        };
        entry.data = value;
        done += 1;
    }
    arg.after::<uapi::kvm_msrs>().write_array(&entries)?;
    Ok(done)
}

/// Gives a list of MSR numbers: `E2BIG`, and how many there are, if there is too little room.
fn msr_list(arg: UserArg, list: &[u32]) -> Result<c_long> {
    let header: uapi::kvm_msr_list = arg.read()?;
    arg.write(&(list.len() as u32))?;
    if (header.nmsrs as usize) < list.len() {
        return Err(E2BIG);
    }
    arg.after::<uapi::kvm_msr_list>().write_array(list)?;
    Ok(0)
}
