// SPDX-License-Identifier: GPL-2.0-only

//! Pointers that lead nowhere: `EFAULT`, and nothing else happens.

use selftests::kvm::{number, Handle, Number};
use selftests::tap::equal;

use crate::bare::vm;
use crate::Test;

pub(crate) const TESTS: &[Test] = &[("pointers that lead nowhere are refused", pointers)];

const DEVICE: &[(&str, Number)] = &[
    ("GET_MSR_INDEX_LIST", number::GET_MSR_INDEX_LIST),
    ("GET_SUPPORTED_CPUID", number::GET_SUPPORTED_CPUID),
    (
        "X86_GET_MCE_CAP_SUPPORTED",
        number::X86_GET_MCE_CAP_SUPPORTED,
    ),
];

const VM: &[(&str, Number)] = &[
    ("SET_USER_MEMORY_REGION", number::SET_USER_MEMORY_REGION),
    ("GET_DIRTY_LOG", number::GET_DIRTY_LOG),
    ("SET_IDENTITY_MAP_ADDR", number::SET_IDENTITY_MAP_ADDR),
    ("IOEVENTFD", number::IOEVENTFD),
    ("IRQFD", number::IRQFD),
    ("SET_GSI_ROUTING", number::SET_GSI_ROUTING),
    ("SIGNAL_MSI", number::SIGNAL_MSI),
    ("ENABLE_CAP", number::ENABLE_CAP),
    ("GET_CLOCK", number::GET_CLOCK),
    ("SET_CLOCK", number::SET_CLOCK),
];

const VCPU: &[(&str, Number)] = &[
    ("GET_REGS", number::GET_REGS),
    ("SET_REGS", number::SET_REGS),
    ("GET_SREGS", number::GET_SREGS),
    ("SET_SREGS", number::SET_SREGS),
    ("GET_FPU", number::GET_FPU),
    ("SET_FPU", number::SET_FPU),
    ("GET_XSAVE", number::GET_XSAVE),
    ("SET_XSAVE", number::SET_XSAVE),
    ("GET_MSRS", number::GET_MSRS),
    ("SET_MSRS", number::SET_MSRS),
    ("SET_CPUID2", number::SET_CPUID2),
    ("GET_VCPU_EVENTS", number::GET_VCPU_EVENTS),
    ("SET_VCPU_EVENTS", number::SET_VCPU_EVENTS),
    ("GET_DEBUGREGS", number::GET_DEBUGREGS),
    ("SET_DEBUGREGS", number::SET_DEBUGREGS),
    ("GET_MP_STATE", number::GET_MP_STATE),
    ("SET_MP_STATE", number::SET_MP_STATE),
    ("INTERRUPT", number::INTERRUPT),
    ("SET_SIGNAL_MASK", number::SET_SIGNAL_MASK),
    ("X86_SETUP_MCE", number::X86_SETUP_MCE),
    ("X86_SET_MCE", number::X86_SET_MCE),
];

fn all(handle: &Handle, numbers: &[(&str, Number)]) -> Result<(), String> {
    for (name, number) in numbers {
        // An unmapped page, the end of user memory, an address of the kernel's, and one that is
        // not canonical. SET_SIGNAL_MASK takes 0 for "none", so 0 is not among them.
        for address in [
            0x1000usize,
            0x7fff_ffff_f000,
            0xffff_8880_0000_0000,
            0x8000_0000_0000_0000,
        ] {
            // SAFETY: Nothing of this program's is at these addresses.
            let answer = unsafe { handle.raw(*number, address) };
            let errno = answer.err().map(|errno| errno.0);
            equal(
                &format!("{name} at {address:#x}"),
                errno,
                Some(libc::EFAULT),
            )?;
        }
    }
    Ok(())
}

fn pointers(path: &str) -> Result<(), String> {
    let (device, vm) = vm(path)?;
    // Some look for their subject first, so it is there.
    let _ = vm.call(number::CREATE_IRQCHIP, 0);
    all(&device, DEVICE)?;
    all(&vm, VM)?;
    let vcpu = vm.open_with(number::CREATE_VCPU, 0)?;
    all(&vcpu, VCPU)
}
