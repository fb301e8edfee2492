// SPDX-License-Identifier: GPL-2.0-only

//! Every ioctl of the KVM interface on x86: how its argument is made, and which errors
//! docs/abi.md gives for it.

use kvm_bindings::*;
use libc::{
    E2BIG, EAGAIN, EBADF, EBUSY, EEXIST, EFAULT, EINTR, EINVAL, EIO, ENOENT, ENOSPC, ENXIO,
};
use selftests::kvm::{number as n, Number, Xsave};

use crate::arguments::{self as make, Make};

/// The kinds of files that have ioctls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Device,
    Vm,
    Vcpu,
}

/// How an argument is made.
#[derive(Clone, Copy)]
pub(crate) enum Argument {
    /// It is a number; these are the usual ones.
    Value(&'static [u64]),
    /// It points to what this makes.
    Made(Make),
    /// It points to what another ioctl tells, with changes.
    State(Number),
}

/// One ioctl.
pub(crate) struct Ioctl {
    pub(crate) kind: Kind,
    /// The name without `KVM_`.
    pub(crate) name: &'static str,
    pub(crate) number: Number,
    pub(crate) argument: Argument,
    /// The errors of its own; `EFAULT` if what it points to points on.
    pub(crate) errors: &'static [i32],
}

use Argument::{Made, State, Value};

const fn device(
    name: &'static str,
    number: Number,
    argument: Argument,
    errors: &'static [i32],
) -> Ioctl {
    Ioctl {
        kind: Kind::Device,
        name,
        number,
        argument,
        errors,
    }
}

const fn vm(
    name: &'static str,
    number: Number,
    argument: Argument,
    errors: &'static [i32],
) -> Ioctl {
    Ioctl {
        kind: Kind::Vm,
        name,
        number,
        argument,
        errors,
    }
}

const fn vcpu(
    name: &'static str,
    number: Number,
    argument: Argument,
    errors: &'static [i32],
) -> Ioctl {
    Ioctl {
        kind: Kind::Vcpu,
        name,
        number,
        argument,
        errors,
    }
}

/// What neither the bindings nor the other tests name.
mod more {
    use super::*;

    #[repr(C)]
    pub(super) struct Filter([u64; 1 + 16 * 3]);

    pub(super) const SMI: Number = Number::plain(0xb7);
    pub(super) const GET_SREGS2: Number = Number::get::<kvm_sregs2>(0xcc);
    pub(super) const SET_SREGS2: Number = Number::set::<kvm_sregs2>(0xcd);
    pub(super) const GET_XSAVE2: Number = Number::get::<Xsave>(0xcf);
    pub(super) const MSR_FILTER: Number = Number::set::<Filter>(0xc6);
    pub(super) const DEVICE_ATTR_SET: Number = Number::set::<kvm_device_attr>(0xe1);
    pub(super) const DEVICE_ATTR_GET: Number = Number::set::<kvm_device_attr>(0xe2);
    pub(super) const DEVICE_ATTR_HAS: Number = Number::set::<kvm_device_attr>(0xe3);
    pub(super) const GET_MSRS: Number = n::GET_MSRS;
    pub(super) const CLEAR_DIRTY_LOG: Number = Number::exchange::<kvm_clear_dirty_log>(0xc0);
    pub(super) const UNREGISTER_COALESCED_MMIO: Number =
        Number::set::<kvm_coalesced_mmio_zone>(0x68);
    pub(super) const SET_USER_MEMORY_REGION2: Number =
        Number::set::<kvm_userspace_memory_region2>(0x49);
    pub(super) const SET_NR_MMU_PAGES: Number = Number::plain(0x44);
    pub(super) const SET_BOOT_CPU_ID: Number = Number::plain(0x78);
    pub(super) const GET_STATS_FD: Number = Number::plain(0xce);
    pub(super) const GET_EMULATED_CPUID: Number = Number::exchange::<kvm_cpuid2>(0x09);
    pub(super) const SET_VAPIC_ADDR: Number = Number::set::<u64>(0x93);
    pub(super) const TPR_ACCESS_REPORTING: Number = Number::exchange::<kvm_tpr_access_ctl>(0x92);
    pub(super) const KVMCLOCK_CTRL: Number = Number::plain(0xad);
    pub(super) const GET_PIT: Number = Number::exchange::<kvm_pit_state>(0x65);
    pub(super) const SET_PIT: Number = Number::get::<kvm_pit_state>(0x66);
    pub(super) const CREATE_DEVICE: Number = Number::exchange::<kvm_create_device>(0xe0);
    pub(super) const GET_ONE_REG: Number = Number::set::<kvm_one_reg>(0xab);
    pub(super) const SET_ONE_REG: Number = Number::set::<kvm_one_reg>(0xac);
    pub(super) const MEMORY_ATTRIBUTES: Number = Number::set::<kvm_memory_attributes>(0xd2);
    pub(super) const GUEST_MEMFD: Number = Number::exchange::<kvm_create_guest_memfd>(0xd4);
    pub(super) const PRE_FAULT_MEMORY: Number = Number::exchange::<kvm_pre_fault_memory>(0xd5);
    pub(super) const RESET_DIRTY_RINGS: Number = Number::plain(0xc7);
}

const LINES: Make = make::words;

/// All of them, with those that are not there (`ENOTTY`).
pub(crate) const IOCTLS: &[Ioctl] = &[
    device(
        "GET_API_VERSION",
        n::GET_API_VERSION,
        Value(&[0]),
        &[EINVAL],
    ),
    device("CREATE_VM", n::CREATE_VM, Value(&[0]), &[EINVAL, EINTR]),
    device(
        "CHECK_EXTENSION",
        n::CHECK_EXTENSION,
        Value(&[0, 9, 10, 66, 100, 200]),
        &[],
    ),
    device(
        "GET_VCPU_MMAP_SIZE",
        n::GET_VCPU_MMAP_SIZE,
        Value(&[0]),
        &[EINVAL],
    ),
    device(
        "GET_SUPPORTED_CPUID",
        n::GET_SUPPORTED_CPUID,
        Made(make::room),
        &[E2BIG],
    ),
    device(
        "GET_EMULATED_CPUID",
        more::GET_EMULATED_CPUID,
        Made(make::room),
        &[E2BIG],
    ),
    device(
        "GET_MSR_INDEX_LIST",
        n::GET_MSR_INDEX_LIST,
        Made(make::room),
        &[E2BIG],
    ),
    device(
        "GET_MSR_FEATURE_INDEX_LIST",
        n::GET_MSR_FEATURE_INDEX_LIST,
        Made(make::room),
        &[E2BIG],
    ),
    device("GET_MSRS", more::GET_MSRS, Made(make::msrs), &[E2BIG]),
    device(
        "HAS_DEVICE_ATTR",
        more::DEVICE_ATTR_HAS,
        Made(make::attribute),
        &[ENXIO],
    ),
    device(
        "GET_DEVICE_ATTR",
        more::DEVICE_ATTR_GET,
        Made(make::attribute),
        &[ENXIO, EINVAL, EFAULT],
    ),
    device(
        "X86_GET_MCE_CAP_SUPPORTED",
        n::X86_GET_MCE_CAP_SUPPORTED,
        Made(LINES),
        &[],
    ),
    vm(
        "CHECK_EXTENSION",
        n::CHECK_EXTENSION,
        Value(&[0, 9, 10, 66, 100, 200]),
        &[],
    ),
    vm(
        "CREATE_VCPU",
        n::CREATE_VCPU,
        Value(&[0, 1, 2, 3, 63, 64]),
        &[EINVAL, EEXIST],
    ),
    vm(
        "SET_USER_MEMORY_REGION",
        n::SET_USER_MEMORY_REGION,
        Made(make::region),
        &[EINVAL, EEXIST],
    ),
    vm(
        "SET_USER_MEMORY_REGION2",
        more::SET_USER_MEMORY_REGION2,
        Made(make::region),
        &[EINVAL, EEXIST],
    ),
    vm(
        "GET_DIRTY_LOG",
        n::GET_DIRTY_LOG,
        Made(make::dirty_log),
        &[EINVAL, ENOENT, ENXIO, EFAULT],
    ),
    vm(
        "CLEAR_DIRTY_LOG",
        more::CLEAR_DIRTY_LOG,
        Made(make::dirty_log),
        &[EINVAL, ENOENT, ENXIO, EFAULT],
    ),
    vm(
        "RESET_DIRTY_RINGS",
        more::RESET_DIRTY_RINGS,
        Value(&[0]),
        &[EINVAL],
    ),
    vm(
        "SET_NR_MMU_PAGES",
        more::SET_NR_MMU_PAGES,
        Value(&[64, 1000]),
        &[EINVAL],
    ),
    vm(
        "SET_TSS_ADDR",
        n::SET_TSS_ADDR,
        Value(&[0xfffb_d000]),
        &[EINVAL],
    ),
    vm(
        "SET_IDENTITY_MAP_ADDR",
        n::SET_IDENTITY_MAP_ADDR,
        Made(LINES),
        &[EINVAL],
    ),
    vm(
        "SET_BOOT_CPU_ID",
        more::SET_BOOT_CPU_ID,
        Value(&[0, 1]),
        &[EBUSY, EINVAL],
    ),
    vm(
        "ENABLE_CAP",
        n::ENABLE_CAP,
        Made(make::capability),
        &[EINVAL, EEXIST, ENXIO],
    ),
    vm(
        "CREATE_IRQCHIP",
        n::CREATE_IRQCHIP,
        Value(&[0]),
        &[EINVAL, EEXIST],
    ),
    vm(
        "GET_IRQCHIP",
        n::GET_IRQCHIP,
        Made(make::chip),
        &[ENXIO, EINVAL],
    ),
    vm(
        "SET_IRQCHIP",
        n::SET_IRQCHIP,
        State(n::GET_IRQCHIP),
        &[ENXIO, EINVAL],
    ),
    vm("IRQ_LINE", n::IRQ_LINE, Made(make::line), &[ENXIO, EINVAL]),
    vm(
        "IRQ_LINE_STATUS",
        n::IRQ_LINE_STATUS,
        Made(make::line),
        &[ENXIO, EINVAL],
    ),
    vm(
        "CREATE_PIT2",
        n::CREATE_PIT2,
        Made(make::one_bit),
        &[EINVAL, ENOENT, EEXIST],
    ),
    vm("GET_PIT", more::GET_PIT, Made(LINES), &[ENXIO]),
    vm(
        "SET_PIT",
        more::SET_PIT,
        State(more::GET_PIT),
        &[ENXIO, EINVAL],
    ),
    vm("GET_PIT2", n::GET_PIT2, Made(LINES), &[ENXIO]),
    vm(
        "SET_PIT2",
        n::SET_PIT2,
        State(n::GET_PIT2),
        &[ENXIO, EINVAL],
    ),
    vm(
        "REINJECT_CONTROL",
        n::REINJECT_CONTROL,
        Made(make::one_bit),
        &[ENXIO, EINVAL],
    ),
    vm(
        "SET_GSI_ROUTING",
        n::SET_GSI_ROUTING,
        Made(make::routing),
        &[EINVAL],
    ),
    vm("SIGNAL_MSI", n::SIGNAL_MSI, Made(make::msi), &[EINVAL]),
    vm(
        "IRQFD",
        n::IRQFD,
        Made(make::irqfd),
        &[EINVAL, EBADF, EBUSY, ENOSPC],
    ),
    vm(
        "IOEVENTFD",
        n::IOEVENTFD,
        Made(make::ioeventfd),
        &[EINVAL, EBADF, EEXIST, ENOSPC, ENOENT],
    ),
    vm(
        "REGISTER_COALESCED_MMIO",
        n::REGISTER_COALESCED_MMIO,
        Made(make::zone),
        &[EINVAL, ENOSPC],
    ),
    vm(
        "UNREGISTER_COALESCED_MMIO",
        more::UNREGISTER_COALESCED_MMIO,
        Made(make::zone),
        &[EINVAL],
    ),
    vm("GET_CLOCK", n::GET_CLOCK, Made(LINES), &[]),
    vm("SET_CLOCK", n::SET_CLOCK, State(n::GET_CLOCK), &[EINVAL]),
    vm("GET_TSC_KHZ", n::GET_TSC_KHZ, Value(&[0]), &[EIO]),
    vm(
        "SET_TSC_KHZ",
        n::SET_TSC_KHZ,
        Value(&[0, 1_000_000]),
        &[EINVAL],
    ),
    vm(
        "X86_SET_MSR_FILTER",
        more::MSR_FILTER,
        Made(make::filter),
        &[EINVAL, EFAULT],
    ),
    vm(
        "HAS_DEVICE_ATTR",
        more::DEVICE_ATTR_HAS,
        Made(make::attribute),
        &[ENXIO],
    ),
    vm(
        "GET_DEVICE_ATTR",
        more::DEVICE_ATTR_GET,
        Made(make::attribute),
        &[ENXIO, EINVAL, EFAULT],
    ),
    vm(
        "SET_DEVICE_ATTR",
        more::DEVICE_ATTR_SET,
        Made(make::attribute),
        &[ENXIO, EINVAL, EFAULT],
    ),
    vm("GET_STATS_FD", more::GET_STATS_FD, Value(&[0]), &[EINVAL]),
    vm(
        "CREATE_DEVICE",
        more::CREATE_DEVICE,
        Made(make::few_bits),
        &[libc::ENODEV, EINVAL],
    ),
    vm(
        "SET_MEMORY_ATTRIBUTES",
        more::MEMORY_ATTRIBUTES,
        Made(LINES),
        &[EINVAL],
    ),
    vm(
        "CREATE_GUEST_MEMFD",
        more::GUEST_MEMFD,
        Made(LINES),
        &[EINVAL],
    ),
    vcpu("RUN", n::RUN, Value(&[0]), &[EINVAL, EINTR, EAGAIN, EFAULT]),
    vcpu("GET_REGS", n::GET_REGS, Made(LINES), &[]),
    vcpu("SET_REGS", n::SET_REGS, State(n::GET_REGS), &[]),
    vcpu("GET_SREGS", n::GET_SREGS, Made(LINES), &[]),
    vcpu("SET_SREGS", n::SET_SREGS, State(n::GET_SREGS), &[EINVAL]),
    vcpu("GET_SREGS2", more::GET_SREGS2, Made(LINES), &[]),
    vcpu(
        "SET_SREGS2",
        more::SET_SREGS2,
        State(more::GET_SREGS2),
        &[EINVAL],
    ),
    vcpu("TRANSLATE", n::TRANSLATE, Made(LINES), &[]),
    vcpu(
        "INTERRUPT",
        n::INTERRUPT,
        Made(make::few_bits),
        &[EINVAL, ENXIO, EEXIST],
    ),
    vcpu("NMI", n::NMI, Value(&[0]), &[]),
    vcpu("SMI", more::SMI, Value(&[0]), &[]),
    vcpu("GET_MSRS", n::GET_MSRS, Made(make::msrs), &[E2BIG]),
    vcpu("SET_MSRS", n::SET_MSRS, Made(make::msrs), &[E2BIG]),
    vcpu(
        "SET_SIGNAL_MASK",
        n::SET_SIGNAL_MASK,
        Made(make::signals),
        &[EINVAL],
    ),
    vcpu("GET_FPU", n::GET_FPU, Made(LINES), &[]),
    vcpu("SET_FPU", n::SET_FPU, State(n::GET_FPU), &[EINVAL]),
    vcpu("GET_XSAVE", n::GET_XSAVE, Made(LINES), &[EINVAL]),
    vcpu("GET_XSAVE2", more::GET_XSAVE2, Made(LINES), &[EINVAL]),
    vcpu("SET_XSAVE", n::SET_XSAVE, State(n::GET_XSAVE), &[EINVAL]),
    vcpu("GET_XCRS", n::GET_XCRS, Made(LINES), &[EINVAL]),
    vcpu("SET_XCRS", n::SET_XCRS, State(n::GET_XCRS), &[EINVAL]),
    vcpu("GET_LAPIC", n::GET_LAPIC, Made(LINES), &[EINVAL]),
    vcpu("SET_LAPIC", n::SET_LAPIC, State(n::GET_LAPIC), &[EINVAL]),
    vcpu(
        "SET_VAPIC_ADDR",
        more::SET_VAPIC_ADDR,
        Made(LINES),
        &[EINVAL],
    ),
    vcpu(
        "TPR_ACCESS_REPORTING",
        more::TPR_ACCESS_REPORTING,
        Made(make::few_bits),
        &[EINVAL],
    ),
    vcpu(
        "SET_CPUID2",
        n::SET_CPUID2,
        Made(make::cpuid),
        &[E2BIG, EINVAL],
    ),
    vcpu("GET_CPUID2", n::GET_CPUID2, Made(make::room), &[E2BIG]),
    vcpu("GET_MP_STATE", n::GET_MP_STATE, Made(LINES), &[]),
    vcpu(
        "SET_MP_STATE",
        n::SET_MP_STATE,
        Made(make::few_bits),
        &[EINVAL],
    ),
    vcpu("GET_VCPU_EVENTS", n::GET_VCPU_EVENTS, Made(LINES), &[]),
    vcpu(
        "SET_VCPU_EVENTS",
        n::SET_VCPU_EVENTS,
        State(n::GET_VCPU_EVENTS),
        &[EINVAL],
    ),
    vcpu("GET_DEBUGREGS", n::GET_DEBUGREGS, Made(LINES), &[]),
    vcpu(
        "SET_DEBUGREGS",
        n::SET_DEBUGREGS,
        Made(make::debug_registers),
        &[EINVAL],
    ),
    vcpu(
        "SET_GUEST_DEBUG",
        n::SET_GUEST_DEBUG,
        Made(make::guest_debug),
        &[EINVAL, EBUSY],
    ),
    vcpu("X86_SETUP_MCE", n::X86_SETUP_MCE, Made(LINES), &[EINVAL]),
    vcpu("X86_SET_MCE", n::X86_SET_MCE, Made(LINES), &[EINVAL]),
    vcpu("GET_TSC_KHZ", n::GET_TSC_KHZ, Value(&[0]), &[EIO]),
    vcpu(
        "SET_TSC_KHZ",
        n::SET_TSC_KHZ,
        Value(&[0, 1_000_000]),
        &[EINVAL],
    ),
    vcpu("KVMCLOCK_CTRL", more::KVMCLOCK_CTRL, Value(&[0]), &[EINVAL]),
    vcpu(
        "ENABLE_CAP",
        n::ENABLE_CAP,
        Made(make::capability),
        &[EINVAL],
    ),
    vcpu(
        "HAS_DEVICE_ATTR",
        more::DEVICE_ATTR_HAS,
        Made(make::attribute),
        &[ENXIO],
    ),
    vcpu(
        "GET_DEVICE_ATTR",
        more::DEVICE_ATTR_GET,
        Made(make::attribute),
        &[ENXIO, EINVAL, EFAULT],
    ),
    vcpu(
        "SET_DEVICE_ATTR",
        more::DEVICE_ATTR_SET,
        Made(make::attribute),
        &[ENXIO, EINVAL, EFAULT],
    ),
    vcpu("GET_STATS_FD", more::GET_STATS_FD, Value(&[0]), &[EINVAL]),
    vcpu(
        "GET_ONE_REG",
        more::GET_ONE_REG,
        Made(LINES),
        &[EINVAL, ENOENT],
    ),
    vcpu(
        "SET_ONE_REG",
        more::SET_ONE_REG,
        Made(LINES),
        &[EINVAL, ENOENT],
    ),
    vcpu(
        "PRE_FAULT_MEMORY",
        more::PRE_FAULT_MEMORY,
        Made(make::pre_fault),
        &[EINVAL, ENOENT, EINTR, EAGAIN, EFAULT],
    ),
    vcpu(
        "GET_NESTED_STATE",
        n::GET_NESTED_STATE,
        Made(make::nested_state),
        &[EINVAL, E2BIG],
    ),
    vcpu(
        "SET_NESTED_STATE",
        n::SET_NESTED_STATE,
        Made(make::nested_state),
        &[EINVAL],
    ),
];

/// The names in `rust/uapi/kvm.h`: what the module has.
pub(crate) fn implemented() -> Vec<&'static str> {
    include_str!("../../../../rust/uapi/kvm.h")
        .lines()
        .filter_map(|line| line.trim().strip_prefix("NR(")?.split(')').next())
        .collect()
}
