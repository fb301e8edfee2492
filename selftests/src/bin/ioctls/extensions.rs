// SPDX-License-Identifier: GPL-2.0-only

//! `KVM_CHECK_EXTENSION` is honest: what it reports works, and what it does not report is refused.

use kvm_bindings::*;
use selftests::kvm::{number, Handle};
use selftests::tap::equal;

use crate::{bare, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "KVM_CHECK_EXTENSION reports what every VMM requires",
        required,
    ),
    (
        "KVM_CHECK_EXTENSION answers 0 for what does not exist",
        absent,
    ),
    (
        "KVM_CHECK_EXTENSION answers 1 for what is or is not",
        booleans,
    ),
    (
        "KVM_CHECK_EXTENSION answers the same on the device and on a VM",
        same,
    ),
    ("KVM_CHECK_EXTENSION and the ioctls agree", agree),
];

/// A capability and an ioctl that works if and only if it is reported.
type Probe = (&'static str, u32, fn(&Handle) -> bool);

const REQUIRED: &[(&str, u32)] = &[
    ("USER_MEMORY", KVM_CAP_USER_MEMORY),
    (
        "DESTROY_MEMORY_REGION_WORKS",
        KVM_CAP_DESTROY_MEMORY_REGION_WORKS,
    ),
    (
        "JOIN_MEMORY_REGIONS_WORKS",
        KVM_CAP_JOIN_MEMORY_REGIONS_WORKS,
    ),
    ("INTERNAL_ERROR_DATA", KVM_CAP_INTERNAL_ERROR_DATA),
    ("IOEVENTFD", KVM_CAP_IOEVENTFD),
    ("IOEVENTFD_ANY_LENGTH", KVM_CAP_IOEVENTFD_ANY_LENGTH),
    ("SET_TSS_ADDR", KVM_CAP_SET_TSS_ADDR),
    ("SET_IDENTITY_MAP_ADDR", KVM_CAP_SET_IDENTITY_MAP_ADDR),
    ("EXT_CPUID", KVM_CAP_EXT_CPUID),
    ("MP_STATE", KVM_CAP_MP_STATE),
    ("SIGNAL_MSI", KVM_CAP_SIGNAL_MSI),
    ("IRQ_ROUTING", KVM_CAP_IRQ_ROUTING),
    ("DEBUGREGS", KVM_CAP_DEBUGREGS),
    ("XSAVE", KVM_CAP_XSAVE),
    ("VCPU_EVENTS", KVM_CAP_VCPU_EVENTS),
    ("X86_ROBUST_SINGLESTEP", KVM_CAP_X86_ROBUST_SINGLESTEP),
    ("MCE", KVM_CAP_MCE),
    ("ADJUST_CLOCK", KVM_CAP_ADJUST_CLOCK),
    ("IMMEDIATE_EXIT", KVM_CAP_IMMEDIATE_EXIT),
    ("NR_MEMSLOTS", KVM_CAP_NR_MEMSLOTS),
    ("NR_VCPUS", KVM_CAP_NR_VCPUS),
    ("MAX_VCPUS", KVM_CAP_MAX_VCPUS),
    ("SYNC_MMU", KVM_CAP_SYNC_MMU),
    ("HLT", KVM_CAP_HLT),
];

fn required(path: &str) -> Result<(), String> {
    let device = Handle::open(path).map_err(|e| e.to_string())?;
    let missing: Vec<_> = REQUIRED
        .iter()
        .filter(|(_, cap)| device.extension(*cap) <= 0)
        .collect();
    equal("missing", missing.as_slice(), &[])
}

fn absent(path: &str) -> Result<(), String> {
    let device = Handle::open(path).map_err(|e| e.to_string())?;
    for capability in [
        0xffff,
        0x7fff_ffff,
        KVM_CAP_S390_PSW,
        KVM_CAP_PPC_PAIRED_SINGLES,
    ] {
        equal(
            &format!("capability {capability}"),
            device.extension(capability),
            0,
        )?;
    }
    equal(
        "a 64-bit number",
        device.call(number::CHECK_EXTENSION, 1 << 32),
        Ok(0),
    )
}

/// crosvm compares with 1.
fn booleans(path: &str) -> Result<(), String> {
    let device = Handle::open(path).map_err(|e| e.to_string())?;
    let counts = [
        KVM_CAP_NR_MEMSLOTS,
        KVM_CAP_NR_VCPUS,
        KVM_CAP_MAX_VCPUS,
        KVM_CAP_MCE,
        KVM_CAP_ADJUST_CLOCK,
        KVM_CAP_IRQ_ROUTING,
        KVM_CAP_SYNC_MMU,
    ];
    for (name, capability) in REQUIRED {
        let value = device.extension(*capability);
        equal(name, value == 1 || counts.contains(capability), true)?;
    }
    Ok(())
}

fn same(path: &str) -> Result<(), String> {
    let (device, vm) = bare::vm(path)?;
    for capability in 0..260 {
        let (on_device, on_vm) = (device.extension(capability), vm.extension(capability));
        let present = (on_device > 0, on_vm > 0);
        // KVM answers for a VM what its irqchip allows.
        if present.0 != present.1 && capability != KVM_CAP_READONLY_MEM {
            return Err(format!(
                "capability {capability}: device {on_device}, VM {on_vm}"
            ));
        }
    }
    Ok(())
}

fn agree(path: &str) -> Result<(), String> {
    let probes: [Probe; 5] = [
        ("IRQCHIP", KVM_CAP_IRQCHIP, |vm| {
            vm.call(number::CREATE_IRQCHIP, 0).is_ok()
        }),
        ("PIT2", KVM_CAP_PIT2, |vm| {
            let _ = vm.call(number::CREATE_IRQCHIP, 0);
            vm.set(number::CREATE_PIT2, &kvm_pit_config::default())
                .is_ok()
        }),
        ("SPLIT_IRQCHIP", KVM_CAP_SPLIT_IRQCHIP, |vm| {
            let mut cap = kvm_enable_cap {
                cap: KVM_CAP_SPLIT_IRQCHIP,
                ..Default::default()
            };
            cap.args[0] = 24;
            vm.set(number::ENABLE_CAP, &cap).is_ok()
        }),
        ("ADJUST_CLOCK", KVM_CAP_ADJUST_CLOCK, |vm| {
            vm.get::<kvm_clock_data>(number::GET_CLOCK).is_ok()
        }),
        (
            "SET_IDENTITY_MAP_ADDR",
            KVM_CAP_SET_IDENTITY_MAP_ADDR,
            |vm| {
                vm.set(number::SET_IDENTITY_MAP_ADDR, &0xfeff_c000u64)
                    .is_ok()
            },
        ),
    ];
    for (name, capability, works) in probes {
        let (device, vm) = bare::vm(path)?;
        equal(name, works(&vm), device.extension(capability) > 0)?;
    }
    let probes: [Probe; 6] = [
        ("MP_STATE", KVM_CAP_MP_STATE, |vcpu| {
            vcpu.get::<kvm_mp_state>(number::GET_MP_STATE).is_ok()
        }),
        ("DEBUGREGS", KVM_CAP_DEBUGREGS, |vcpu| {
            vcpu.get::<kvm_debugregs>(number::GET_DEBUGREGS).is_ok()
        }),
        ("XCRS", KVM_CAP_XCRS, |vcpu| {
            vcpu.get::<kvm_xcrs>(number::GET_XCRS).is_ok()
        }),
        ("VCPU_EVENTS", KVM_CAP_VCPU_EVENTS, |vcpu| {
            vcpu.get::<kvm_vcpu_events>(number::GET_VCPU_EVENTS).is_ok()
        }),
        ("USER_NMI", KVM_CAP_USER_NMI, |vcpu| {
            vcpu.call(number::NMI, 0).is_ok()
        }),
        ("GET_TSC_KHZ", KVM_CAP_GET_TSC_KHZ, |vcpu| {
            vcpu.call(number::GET_TSC_KHZ, 0).is_ok()
        }),
    ];
    for (name, capability, works) in probes {
        let (device, vm) = bare::vm(path)?;
        let vcpu = vm.open_with(number::CREATE_VCPU, 0)?;
        equal(name, works(&vcpu), device.extension(capability) > 0)?;
    }
    Ok(())
}
