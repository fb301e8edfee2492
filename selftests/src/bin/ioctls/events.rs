// SPDX-License-Identifier: GPL-2.0-only

//! `KVM_RUN` itself: how it ends, what it leaves in the shared page, and who can disturb it.

use std::time::Duration;

use kvm_bindings::*;
use selftests::kvm::{number, Answer, Handle};
use selftests::machine::with_signals;
use selftests::tap::{equal, skipped};

use crate::bare::{Bare, CODE, OUT};
use crate::irqchip::enable_split;
use crate::{refused, Test};

pub(crate) const TESTS: &[Test] = &[
    ("KVM_RUN takes no argument", argument),
    (
        "immediate_exit ends KVM_RUN before the guest runs",
        immediate_exit,
    ),
    (
        "immediate_exit completes the port access that is under way",
        immediate_exit_completes,
    ),
    ("a signal ends KVM_RUN", signal),
    (
        "KVM_SET_SIGNAL_MASK: a blocked signal ends KVM_RUN only if the mask lets it in",
        signal_mask,
    ),
    ("the shared page tells the guest's state", shared_page),
    ("a shared page full of rubbish does no harm", rubbish),
    (
        "rubbish in place of the answer of every exit does no harm",
        rubbish_answers,
    ),
    (
        "KVM_INTERRUPT refuses bad vectors and a second one",
        interrupt,
    ),
    (
        "KVM_EXIT_SHUTDOWN can be followed by another run",
        after_shutdown,
    ),
    (
        "an NMI behind an exception comes before the exception's handler goes on",
        nmi_behind_exception,
    ),
    (
        "an NMI comes before the window for interrupts",
        nmi_and_window,
    ),
    (
        "the end of an interrupt is told before a signal ends KVM_RUN",
        eoi_before_signal,
    ),
    ("a guest that does nothing can be run for ever", never_ends),
    ("another process cannot run the virtual CPU", other_process),
    ("random states do no harm", random_states),
];

/// 1: out %al, $0x10; jmp 1b
const LOOP: [u8; 4] = [OUT[0], OUT[1], 0xeb, 0xfc];
/// 1: jmp 1b
const SPIN: [u8; 2] = [0xeb, 0xfe];

/// The handler of the exception never exits. The NMI does not wait until the host needs the CPU.
fn nmi_behind_exception(path: &str) -> Result<(), String> {
    if std::env::var("LAB_MACHINE").as_deref() == Ok("bochs") {
        return skipped("not run: bochs-nmi-injection");
    }
    const NMI: usize = 2;
    const UD: u8 = 6;
    /// 1: inc %eax; jmp 1b
    const COUNT: [u8; 4] = [0x66, 0x40, 0xeb, 0xfc];
    let bare = Bare::new(path, &SPIN)?;
    let (handler, nmi) = (CODE as usize + 0x10, CODE as usize + 0x20);
    bare.ram.write(handler, &COUNT);
    bare.ram.write(nmi, &LOOP);
    bare.ram
        .write(4 * usize::from(UD), &(handler as u32).to_le_bytes());
    bare.ram.write(4 * NMI, &(nmi as u32).to_le_bytes());
    let vcpu = &bare.vcpu.handle;
    let mut sregs: kvm_sregs = vcpu.get(number::GET_SREGS)?;
    (sregs.idt.base, sregs.idt.limit) = (0, 0x3ff);
    vcpu.set(number::SET_SREGS, &sregs)?;
    for _ in 0..10 {
        bare.start()?;
        let mut events: kvm_vcpu_events = vcpu.get(number::GET_VCPU_EVENTS)?;
        (events.exception.injected, events.exception.nr) = (1, UD);
        (events.nmi.pending, events.nmi.masked) = (1, 0);
        events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING;
        vcpu.set(number::SET_VCPU_EVENTS, &events)?;
        bare.byte()?;
        let regs: kvm_regs = vcpu.get(number::GET_REGS)?;
        // KVM steps over one instruction.
        if regs.rax > 1 {
            return Err(format!("the handler counted to {}", regs.rax));
        }
    }
    Ok(())
}

fn nmi_and_window(path: &str) -> Result<(), String> {
    const NMI: usize = 2;
    const IRET: u8 = 0xcf;
    let bare = Bare::new(path, &SPIN)?;
    let handler = CODE as usize + 0x20;
    bare.ram.write(handler, &[OUT[0], OUT[1], IRET]);
    bare.ram.write(4 * NMI, &(handler as u32).to_le_bytes());
    let vcpu = &bare.vcpu.handle;
    let mut regs: kvm_regs = vcpu.get(number::GET_REGS)?;
    regs.rflags |= 0x200;
    vcpu.set(number::SET_REGS, &regs)?;
    vcpu.call(number::NMI, 0)?;
    bare.vcpu
        .share(|shared| shared.request_interrupt_window = 1);
    bare.byte()
        .map_err(|error| format!("the NMI's handler: {error}"))?;
    equal("the window", bare.exit()?, KVM_EXIT_IRQ_WINDOW_OPEN)
}

fn argument(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &LOOP)?;
    refused("1", bare.vcpu.handle.call(number::RUN, 1), libc::EINVAL)
}

fn immediate_exit(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &LOOP)?;
    bare.vcpu.share(|shared| shared.immediate_exit = 1);
    refused("run", bare.vcpu.run(), libc::EINTR)?;
    let regs: kvm_regs = bare.vcpu.handle.get(number::GET_REGS)?;
    equal("RIP", regs.rip, crate::bare::CODE)?;
    bare.vcpu.share(|shared| shared.immediate_exit = 0);
    bare.byte()?;
    Ok(())
}

fn immediate_exit_completes(path: &str) -> Result<(), String> {
    // in $0x10, %al; hlt
    let bare = Bare::new(path, &[0xe4, 0x10, 0xf4])?;
    equal("IN", bare.exit(), Ok(KVM_EXIT_IO))?;
    // SAFETY: The exit reason says which part of the union is meant.
    let io = unsafe { bare.vcpu.shared().__bindgen_anon_1.io };
    bare.vcpu.page().write(io.data_offset as usize, &[0x5a]);
    bare.vcpu.share(|shared| shared.immediate_exit = 1);
    refused("run", bare.vcpu.run(), libc::EINTR)?;
    let regs: kvm_regs = bare.vcpu.handle.get(number::GET_REGS)?;
    equal("AL", regs.rax & 0xff, 0x5a)?;
    equal("RIP is after IN", regs.rip, crate::bare::CODE + 2)
}

fn signal(path: &str) -> Result<(), String> {
    let bare = Bare::endless(path, &SPIN)?;
    let answer = with_signals(Duration::from_millis(100), || bare.vcpu.run());
    refused("run", answer, libc::EINTR)?;
    equal("reason", bare.vcpu.shared().exit_reason, KVM_EXIT_INTR)
}

/// Blocks SIGUSR1 for this thread, or lets it in.
fn change_mask(how: libc::c_int) {
    // SAFETY: `sigset_t` is plain, and the calls change this thread's mask only.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut set, libc::SIGUSR1);
        libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut());
    }
}

/// `KVM_SET_SIGNAL_MASK`: the signals that do not end KVM_RUN.
fn set_mask(bare: &Bare, length: u32, set: [u8; 8]) -> Answer {
    #[repr(C)]
    struct Mask {
        length: u32,
        set: [u8; 8],
    }
    let mask = Mask { length, set };
    let handle = &bare.vcpu.handle;
    // SAFETY: The structure is what this ioctl reads.
    unsafe { handle.raw(number::SET_SIGNAL_MASK, (&raw const mask) as usize) }
}

fn signal_mask(path: &str) -> Result<(), String> {
    let bare = Bare::endless(path, &SPIN)?;
    let set = |length, set| set_mask(&bare, length, set);
    refused("length", set(4, [0; 8]), libc::EINVAL)?;
    equal("mask that blocks nothing", set(8, [0; 8]), Ok(0))?;
    change_mask(libc::SIG_BLOCK);
    let answer = with_signals(Duration::from_millis(100), || bare.vcpu.run());
    change_mask(libc::SIG_UNBLOCK);
    refused("run", answer, libc::EINTR)
}

fn shared_page(path: &str) -> Result<(), String> {
    // sti; nop; out; cli; out
    let bare = Bare::new(path, &[0xfb, 0x90, OUT[0], OUT[1], 0xfa, OUT[0], OUT[1]])?;
    bare.byte()?;
    let shared = bare.vcpu.shared();
    equal("IF", shared.if_flag, 1)?;
    equal("CR8", shared.cr8, 0)?;
    equal("APIC base", shared.apic_base & 0xffff_f900, 0xfee0_0900)?;
    bare.byte()?;
    equal("IF", bare.vcpu.shared().if_flag, 0)?;
    equal(
        "not ready",
        bare.vcpu.shared().ready_for_interrupt_injection,
        0,
    )
}

fn rubbish(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &LOOP)?;
    let page = bare.vcpu.page();
    for pattern in [0xffu8, 0x01, 0x80, 0x55] {
        page.write(0, &vec![pattern; page.len()]);
        // immediate_exit, request_interrupt_window and cr8 are this program's to write; any answer
        // will do as long as the host lives.
        let _ = bare.vcpu.run();
        page.write(0, &vec![0; page.len()]);
        let _ = bare.vcpu.run();
    }
    bare.start()?;
    page.write(0, &vec![0; page.len()]);
    bare.byte()?;
    Ok(())
}

fn rubbish_answers(path: &str) -> Result<(), String> {
    // mov $0xf000, %ax; mov %ax, %ds; mov 0, %ax (MMIO); ins; in; mov %ax, 0; out
    let code = [
        0xb8, 0, 0xf0, 0x8e, 0xd8, 0xa1, 0, 0, 0xba, 0x20, 0, 0xb9, 4, 0, 0xf3, 0x6c, 0xe5, 0x10,
        0xa3, 0, 0, OUT[0], OUT[1], 0xeb, 0xe7,
    ];
    let bare = Bare::new(path, &code)?;
    bare.vm.set(
        number::SET_USER_MEMORY_REGION,
        &kvm_userspace_memory_region::default(),
    )?;
    let low = kvm_userspace_memory_region {
        memory_size: 0x8_0000,
        userspace_addr: bare.ram.start() as u64,
        ..Default::default()
    };
    bare.vm.set(number::SET_USER_MEMORY_REGION, &low)?;
    let mut seen = [0; 32];
    for round in 0..200u32 {
        let Ok(reason) = bare.exit() else { continue };
        seen[(reason as usize).min(31)] += 1;
        let rubbish: Vec<u8> = (0..bare.vcpu.page().len())
            .map(|i| (i as u32 * 37 + round * 101) as u8)
            .collect();
        bare.vcpu.page().write(0, &rubbish);
        bare.vcpu.share(|shared| {
            shared.immediate_exit = 0;
            shared.kvm_dirty_regs = 0;
            shared.kvm_valid_regs = 0;
        });
    }
    equal("ports", seen[KVM_EXIT_IO as usize] > 10, true)?;
    equal("memory", seen[KVM_EXIT_MMIO as usize] > 10, true)
}

fn interrupt(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &LOOP)?;
    let inject = |irq| {
        bare.vcpu
            .handle
            .set(number::INTERRUPT, &kvm_interrupt { irq })
    };
    refused("256", inject(256), libc::EINVAL)?;
    refused("-1", inject(u32::MAX), libc::EINVAL)?;
    equal("255", inject(255), Ok(0))
}

fn after_shutdown(path: &str) -> Result<(), String> {
    if path.ends_with("/kvm") {
        return skipped("excused: KVM clears the VMCB's nested CR3 and never sets it again");
    }
    // lidt nothing; int3
    let bare = Bare::new(path, &[0x0f, 0x01, 0x1e, 0, 0x20, 0xcc])?;
    equal("triple fault", bare.exit(), Ok(KVM_EXIT_SHUTDOWN))?;
    bare.ram.write(crate::bare::CODE as usize, &LOOP);
    bare.start()?;
    bare.byte()?;
    Ok(())
}

/// The guest's INS writes the VMM's answer into the EOI register; a signal waits by then.
fn eoi_before_signal(path: &str) -> Result<(), String> {
    if path.ends_with("/kvm") {
        return skipped("KVM tells of the end when it is run again");
    }
    const VECTOR: usize = 0x51;
    // insl (%dx), %es:(%di); out %al, $0x10
    let split = |vm: &Handle| Ok(enable_split(vm, 24).map(drop)?);
    let bare = Bare::with(path, &[0x66, 0x6d, OUT[0], OUT[1]], split)?;
    let vcpu = &bare.vcpu.handle;
    let mut sregs: kvm_sregs = vcpu.get(number::GET_SREGS)?;
    sregs.es.base = 0xfee0_0000;
    vcpu.set(number::SET_SREGS, &sregs)?;
    let mut regs: kvm_regs = vcpu.get(number::GET_REGS)?;
    (regs.rdi, regs.rdx) = (0xb0, 0x10);
    vcpu.set(number::SET_REGS, &regs)?;
    let mut state: kvm_lapic_state = vcpu.get(number::GET_LAPIC)?;
    state.regs[0xf1] = 1; // spurious-interrupt register: enabled
    for first in [0x100, 0x180] {
        // In service, and level-triggered.
        state.regs[first + VECTOR / 32 * 16 + VECTOR % 32 / 8] = 1 << (VECTOR % 8);
    }
    vcpu.set(number::SET_LAPIC, &state)?;
    equal("INS", bare.exit(), Ok(KVM_EXIT_IO))?;
    equal("no signal is blocked", set_mask(&bare, 8, [0; 8]), Ok(0))?;
    change_mask(libc::SIG_BLOCK);
    // SAFETY: The signal has a handler.
    unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR1) };
    let end = bare.exit();
    // SAFETY: If the exit reason is another one, this is some other integer.
    let vector = unsafe { bare.vcpu.shared().__bindgen_anon_1.eoi.vector };
    let signal = bare.vcpu.run();
    change_mask(libc::SIG_UNBLOCK);
    equal(
        "the end",
        (end, vector),
        (Ok(KVM_EXIT_IOAPIC_EOI), VECTOR as u8),
    )?;
    refused("the signal", signal, libc::EINTR)?;
    bare.byte()?;
    Ok(())
}

fn never_ends(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &LOOP)?;
    for _ in 0..20_000 {
        bare.byte()?;
    }
    Ok(())
}

/// A guest whose registers are whatever the ioctls accept: the run may end in any way.
fn random_states(path: &str) -> Result<(), String> {
    if matches!(
        std::env::var("LAB_MACHINE").as_deref(),
        Ok("milan" | "genoa" | "nested" | "recursive" | "bochs")
    ) {
        return skipped("not run: some of these states stop a CPU of the emulator for ever");
    }
    let bare = Bare::new(path, &LOOP)?;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut accepted = 0;
    for _ in 0..200 {
        let mut sregs: kvm_sregs = bare.vcpu.handle.get(number::GET_SREGS)?;
        match random() % 6 {
            0 => sregs.cr0 = random() & 0xe005_003f,
            1 => sregs.cr4 = random() & 0x7ff,
            2 => sregs.efer = random() & 0xd01,
            3 => sregs.cs.limit = random() as u32,
            4 => sregs.ss.type_ = random() as u8 & 0xf,
            _ => sregs.cr3 = random() & 0xf_f000,
        }
        accepted += u32::from(bare.vcpu.handle.set(number::SET_SREGS, &sregs).is_ok());
        let regs = kvm_regs {
            rip: random() & 0xf_ffff,
            rsp: random(),
            rflags: random() & 0x3f_7fd7 | 2,
            ..Default::default()
        };
        bare.vcpu.handle.set(number::SET_REGS, &regs)?;
        let _ = with_signals(Duration::from_millis(2), || bare.vcpu.run());
    }
    equal("some states were accepted", accepted > 10, true)
}

/// Runs `child` in a child process; answers its status.
fn fork(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: The child only makes system calls and ends itself.
    match unsafe { libc::fork() } {
        0 => {
            let status = child();
            // SAFETY: Ends this process at once.
            unsafe { libc::_exit(status) }
        }
        child => {
            let mut status = 0;
            // SAFETY: The status is this function's own.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            libc::WEXITSTATUS(status)
        }
    }
}

fn other_process(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &LOOP)?;
    let errno = fork(|| bare.vcpu.run().err().map_or(0, |errno| errno.0));
    equal("the child's KVM_RUN", errno, libc::EIO)?;
    bare.byte()?;
    Ok(())
}
