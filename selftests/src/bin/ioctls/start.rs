// SPDX-License-Identifier: GPL-2.0-only

//! How virtual CPUs start, as VMMs have them do it: a list of CPUID in its old form, a start-up
//! IPI, the registers after RESET, and a shutdown.

use kvm_bindings::*;
use selftests::guest::Mode;
use selftests::kvm::{number, set_cpuid, supported_cpuid, Answer, Errno, Handle};
use selftests::machine::{map, set_up, Vcpu};
use selftests::memory::Mapping;
use selftests::tap::equal;

use crate::bare::{vm, Bare, CODE, OUT};
use crate::{refused, Test};

pub(crate) const TESTS: &[Test] = &[
    ("KVM_SET_CPUID takes leaves without subleaves", old_cpuid),
    ("long mode needs a list of CPUID", no_cpuid),
    (
        "KVM_MP_STATE_SIPI_RECEIVED waits for the vector, and for KVM_RUN",
        sipi,
    ),
    (
        "KVM_SET_SREGS with the state after RESET lets the first vCPU run",
        reset,
    ),
    (
        "after KVM_EXIT_SHUTDOWN the local APIC is as after INIT",
        apic_after_shutdown,
    ),
];

/// 1: out %al, $0x10; jmp 1b
const LOOP: [u8; 4] = [OUT[0], OUT[1], 0xeb, 0xfc];

fn irqchip(vm: &Handle) -> Result<(), String> {
    vm.call(number::CREATE_IRQCHIP, 0)?;
    Ok(())
}

/// `KVM_SET_CPUID`.
fn set_old_cpuid(vcpu: &Handle, entries: &[kvm_cpuid_entry]) -> Answer {
    const ENTRY: usize = size_of::<kvm_cpuid_entry>();
    let mut words = vec![0u64; 1 + entries.len() * ENTRY / 8];
    words[0] = entries.len() as u64;
    // SAFETY: The destination has room for all entries after the header.
    unsafe {
        std::ptr::copy_nonoverlapping(
            entries.as_ptr(),
            words[1..].as_mut_ptr().cast(),
            entries.len(),
        );
    }
    let room = words.len() * 8;
    vcpu.array(number::SET_CPUID, &mut words, room)
}

fn old_cpuid(path: &str) -> Result<(), String> {
    // mov $0x80000000, %eax; cpuid; mov %bl, %al; out %al, $0x10
    const ASK: [u8; 12] = [
        0x66, 0xb8, 0, 0, 0, 0x80, 0x0f, 0xa2, 0x88, 0xd8, OUT[0], OUT[1],
    ];
    let bare = Bare::new(path, &ASK)?;
    let vcpu = &bare.vcpu.handle;
    let mut list = Vec::new();
    for entry in supported_cpuid(&bare.device)? {
        if entry.flags == 0 {
            list.push(kvm_cpuid_entry {
                function: entry.function,
                eax: entry.eax,
                ebx: entry.ebx,
                ecx: entry.ecx,
                edx: entry.edx,
                padding: 7,
            });
        }
    }
    for entry in &mut list {
        if entry.function == 0x8000_0000 {
            entry.ebx = 0x5a;
        }
    }
    let many = vec![list[0]; 257];
    refused("257 leaves", set_old_cpuid(vcpu, &many), libc::E2BIG)?;
    equal("set", set_old_cpuid(vcpu, &list), Ok(0))?;
    let mut words = [0u64; 1 + 256 * 5];
    words[0] = 256;
    let room = words.len() * 8;
    vcpu.array(number::GET_CPUID2, &mut words, room)?;
    equal("leaves", words[0] as usize, list.len())?;
    equal("EBX of 8000_0000", bare.byte()?, 0x5a)?;
    equal("the same again", set_old_cpuid(vcpu, &list), Ok(0))?;
    list[0].eax -= 1;
    refused("another list", set_old_cpuid(vcpu, &list), libc::EINVAL)
}

/// As KVM since Linux 7.3.
fn no_cpuid(path: &str) -> Result<(), String> {
    const SIZE: usize = 0x10_0000;
    let (device, vm) = vm(path)?;
    let ram = Mapping::anonymous(SIZE).map_err(|e| e.to_string())?;
    map(&vm, 0, 0, 0, &ram)?;
    let vcpu = Vcpu::create(&device, &vm, 0)?;
    let before: kvm_sregs = vcpu.handle.get(number::GET_SREGS)?;
    let set = set_up(&vcpu.handle, &ram, Mode::Long64);
    equal("without a list", set.map(|_| ()), Err(Errno(libc::EINVAL)))?;
    let after: kvm_sregs = vcpu.handle.get(number::GET_SREGS)?;
    equal("nothing is changed", after.efer, before.efer)?;
    set_cpuid(&vcpu.handle, &supported_cpuid(&device)?)?;
    set_up(&vcpu.handle, &ram, Mode::Long64)?;
    Ok(())
}

fn sipi(path: &str) -> Result<(), String> {
    const VECTOR: u32 = (CODE >> 12) as u32;
    let bare = Bare::with_id(path, &LOOP, 1, irqchip)?;
    let vcpu = &bare.vcpu.handle;
    let set_vector = |vector| {
        let events = kvm_vcpu_events {
            flags: KVM_VCPUEVENT_VALID_SIPI_VECTOR,
            sipi_vector: vector,
            ..Default::default()
        };
        vcpu.set(number::SET_VCPU_EVENTS, &events)
    };
    let mp_state = KVM_MP_STATE_SIPI_RECEIVED;
    for run in [false, true] {
        set_vector(0x77)?;
        vcpu.set(number::SET_MP_STATE, &kvm_mp_state { mp_state })?;
        let mut regs: kvm_regs = vcpu.get(number::GET_REGS)?;
        regs.rip = 0x5555;
        vcpu.set(number::SET_REGS, &regs)?;
        let regs: kvm_regs = vcpu.get(number::GET_REGS)?;
        equal("RIP before it begins", regs.rip, 0x5555)?;
        set_vector(VECTOR)?;
        if run {
            bare.byte()?;
        }
        let state: kvm_mp_state = vcpu.get(number::GET_MP_STATE)?;
        equal("afterwards", state.mp_state, KVM_MP_STATE_RUNNABLE)?;
        let regs: kvm_regs = vcpu.get(number::GET_REGS)?;
        // An OUT that the VMM has to finish is not behind it yet.
        equal("RIP", regs.rip, 0)?;
        let cs = vcpu.get::<kvm_sregs>(number::GET_SREGS)?.cs;
        equal("CS", (cs.selector, cs.base), (0x100, CODE))?;
    }
    Ok(())
}

fn reset(path: &str) -> Result<(), String> {
    for (id, rip, protected, wanted) in [
        (0, 0xfff0, false, KVM_MP_STATE_RUNNABLE),
        (0, 0xfff1, false, KVM_MP_STATE_HALTED),
        (0, 0xfff0, true, KVM_MP_STATE_HALTED),
        (1, 0xfff0, false, KVM_MP_STATE_HALTED),
    ] {
        let (_device, vm) = vm(path)?;
        irqchip(&vm)?;
        let vcpu = vm.open_with(number::CREATE_VCPU, id)?;
        let mp_state = KVM_MP_STATE_HALTED;
        vcpu.set(number::SET_MP_STATE, &kvm_mp_state { mp_state })?;
        let regs = kvm_regs {
            rip,
            rflags: 2,
            ..Default::default()
        };
        vcpu.set(number::SET_REGS, &regs)?;
        let mut sregs: kvm_sregs = vcpu.get(number::GET_SREGS)?;
        (sregs.cs.selector, sregs.cs.base) = (0xf000, 0xffff_0000);
        sregs.cr0 = 0x10 | u64::from(protected);
        vcpu.set(number::SET_SREGS, &sregs)?;
        let state: kvm_mp_state = vcpu.get(number::GET_MP_STATE)?;
        let what = format!("vCPU {id}, RIP {rip:#x}, protected mode {protected}");
        equal(&what, state.mp_state, wanted)?;
    }
    Ok(())
}

fn apic_after_shutdown(path: &str) -> Result<(), String> {
    const ID: usize = 0x20;
    const SPURIOUS: usize = 0xf0;
    const TIMER: usize = 0x320;
    // lidt nothing; int3
    let bare = Bare::with_id(path, &[0x0f, 0x01, 0x1e, 0, 0x20, 0xcc], 3, irqchip)?;
    let vcpu = &bare.vcpu.handle;
    let word = |state: &kvm_lapic_state, at: usize| {
        u32::from_le_bytes([0, 1, 2, 3].map(|byte| state.regs[at + byte] as u8))
    };
    let mut state: kvm_lapic_state = vcpu.get(number::GET_LAPIC)?;
    for (at, value) in [(SPURIOUS, 0x1ff_u32), (TIMER, 0x31)] {
        for (byte, to) in value.to_le_bytes().into_iter().zip(&mut state.regs[at..]) {
            *to = byte as _;
        }
    }
    vcpu.set(number::SET_LAPIC, &state)?;
    equal("triple fault", bare.exit(), Ok(KVM_EXIT_SHUTDOWN))?;
    let state: kvm_lapic_state = vcpu.get(number::GET_LAPIC)?;
    equal("spurious vector", word(&state, SPURIOUS), 0xff)?;
    equal("timer", word(&state, TIMER), 1 << 16)?;
    equal("ID", word(&state, ID), 3 << 24)
}
