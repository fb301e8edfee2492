// SPDX-License-Identifier: GPL-2.0-only

//! `KVM_SET_GUEST_DEBUG`: a debugger in the VMM, which steps through a guest and stops it.

use kvm_bindings::*;
use selftests::kvm::number;
use selftests::tap::{equal, skipped};

use crate::bare::{Bare, CODE};
use crate::{refused, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "KVM_SET_GUEST_DEBUG steps, over emulated instructions, too",
        steps,
    ),
    (
        "KVM_SET_GUEST_DEBUG stops at breakpoint registers",
        breakpoints,
    ),
    ("KVM_SET_GUEST_DEBUG stops behind a write", watchpoint),
    (
        "KVM_SET_GUEST_DEBUG leaves the guest its debug registers",
        own_registers,
    ),
    (
        "KVM_SET_GUEST_DEBUG sees the guest touch debug registers",
        general_detect,
    ),
    ("KVM_SET_GUEST_DEBUG stops at INT3", software_breakpoints),
    ("KVM_SET_GUEST_DEBUG injects #DB", inject_db),
    ("KVM_SET_GUEST_DEBUG injects #BP", inject_bp),
    ("KVM_SET_GUEST_DEBUG keeps NMIs away", block_irq),
    ("KVM_SET_GUEST_DEBUG refuses what cannot be", impossible),
];

const STEP: u32 = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
const SOFTWARE: u32 = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;
const HARDWARE: u32 = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
/// DR6 and DR7 with nothing set.
const DR6: u64 = 0xffff_0ff0;
const DR7: u64 = 0x400;
/// Single step, in DR6; trap flag, in RFLAGS.
const BS: u64 = 1 << 14;
const TF: u64 = 1 << 8;
const DB: u32 = 1;
const BP: u32 = 3;

/// Where the debugger's stop was: the exception, the address, DR6.
type Stop = (u32, u64, u64);

fn control(bare: &Bare, control: u32, db: [u64; 4], dr7: u64) -> Result<(), String> {
    if std::env::var("LAB_MACHINE").as_deref() == Ok("bochs") {
        return skipped("not run: bochs-debug-trap");
    }
    let mut debug = kvm_guest_debug {
        control,
        ..Default::default()
    };
    debug.arch.debugreg[..4].copy_from_slice(&db);
    debug.arch.debugreg[7] = dr7;
    bare.vcpu.handle.set(number::SET_GUEST_DEBUG, &debug)?;
    Ok(())
}

/// Runs to the debugger's next stop.
fn stop(bare: &Bare) -> Result<Stop, String> {
    equal("exit", bare.exit()?, KVM_EXIT_DEBUG)?;
    // SAFETY: The exit reason says which part of the union is meant.
    let debug = unsafe { bare.vcpu.shared().__bindgen_anon_1.debug.arch };
    let dr6 = if debug.exception == DB { debug.dr6 } else { 0 };
    Ok((debug.exception, debug.pc, dr6))
}

/// One step, which must end there. As debuggers do, it then asks for the next one; KVM forgets it
/// after some instructions.
fn step_to(bare: &Bare, offset: u64) -> Result<(), String> {
    equal("step", stop(bare)?, (DB, CODE + offset, DR6 | BS))?;
    let regs: kvm_regs = bare.vcpu.handle.get(number::GET_REGS)?;
    equal("RIP", regs.rip, CODE + offset)?;
    equal("TF is hidden", regs.rflags & TF, 0)?;
    control(bare, STEP, [0; 4], 0)
}

/// Makes the guest's handler of a vector, in real mode.
fn handler(bare: &Bare, vector: usize, at: u16, code: &[u8]) {
    bare.ram.write(vector * 4, &at.to_le_bytes());
    bare.ram.write(vector * 4 + 2, &[0, 0]);
    bare.ram.write(at.into(), code);
}

fn steps(path: &str) -> Result<(), String> {
    // 0: nop  1: mov $0x41, %al  3: cpuid  5: out %al, $0x10  7: mov (0), %al  a: in $0x10, %al
    // c: jmp 0
    let code = [
        0x90, 0xb0, 0x41, 0x0f, 0xa2, 0xe6, 0x10, 0xa0, 0, 0, 0xe4, 0x10, 0xeb, 0xf2,
    ];
    let bare = Bare::new(path, &code)?;
    let mut sregs: kvm_sregs = bare.vcpu.handle.get(number::GET_SREGS)?;
    sregs.ds.base = 0x20_0000;
    bare.vcpu.handle.set(number::SET_SREGS, &sregs)?;
    control(&bare, STEP, [0; 4], 0)?;
    for _ in 0..2 {
        step_to(&bare, 1)?;
        step_to(&bare, 3)?;
        step_to(&bare, 5)?;
        equal("OUT", bare.exit()?, KVM_EXIT_IO)?;
        step_to(&bare, 7)?;
        equal("MOV", bare.exit()?, KVM_EXIT_MMIO)?;
        step_to(&bare, 10)?;
        equal("IN", bare.exit()?, KVM_EXIT_IO)?;
        step_to(&bare, 12)?;
        step_to(&bare, 0)?;
    }
    control(&bare, 0, [0; 4], 0)?;
    equal("runs on", bare.exit()?, KVM_EXIT_IO)
}

/// Goes on behind a breakpoint register's instruction.
fn step_past(bare: &Bare, then: impl Fn() -> Result<(), String>) -> Result<(), String> {
    control(bare, STEP, [0; 4], 0)?;
    equal("step", stop(bare)?.2, DR6 | BS)?;
    then()
}

fn breakpoints(path: &str) -> Result<(), String> {
    // mov $3, %cx; 3: nop; loop 3b; out %al, $0x10
    let bare = Bare::new(path, &[0xb9, 3, 0, 0x90, 0xe2, 0xfd, 0xe6, 0x10])?;
    for index in 0..4 {
        bare.start()?;
        let mut db = [0; 4];
        db[index] = CODE + 3;
        let on = || control(&bare, HARDWARE, db, DR7 | 2 << (2 * index));
        on()?;
        for _ in 0..3 {
            equal("stop", stop(&bare)?, (DB, CODE + 3, DR6 | 1 << index))?;
            step_past(&bare, on)?;
        }
        equal("the end", bare.exit()?, KVM_EXIT_IO)?;
    }
    Ok(())
}

fn watchpoint(path: &str) -> Result<(), String> {
    // nop; mov %al, (0x2000); out %al, $0x10
    let bare = Bare::new(path, &[0x90, 0xa2, 0, 0x20, 0xe6, 0x10])?;
    const WRITE_OF_DR2: u64 = 1 << 24;
    control(
        &bare,
        HARDWARE,
        [0, 0, 0x2000, 0],
        DR7 | 1 << 5 | WRITE_OF_DR2,
    )?;
    equal("stop", stop(&bare)?, (DB, CODE + 4, DR6 | 4))?;
    equal("runs on", bare.exit()?, KVM_EXIT_IO)
}

fn own_registers(path: &str) -> Result<(), String> {
    #[rustfmt::skip]
    let code = [
        0x66, 0xb8, 0x15, 0x10, 0, 0,   // mov $0x1015, %eax, the nop
        0x0f, 0x23, 0xc0,               // mov %eax, %dr0
        0xb8, 0x02, 0x04,               // mov $0x402, %ax
        0x0f, 0x23, 0xf8,               // mov %eax, %dr7
        0x0f, 0x21, 0xfb,               // mov %dr7, %ebx
        0x0f, 0x21, 0xf1,               // mov %dr6, %ecx
        0x90,                           // 15: nop
        0xe6, 0x10,                     // out %al, $0x10
        0xeb, 0xfb,                     // jmp 15
    ];
    let bare = Bare::new(path, &code)?;
    // mov $0xdb, %al; out %al, $0x10
    handler(&bare, 1, 0x900, &[0xb0, 0xdb, 0xe6, 0x10]);
    control(&bare, HARDWARE, [0x7000, 0, 0, 0x6000], DR7 | 0x82)?;
    equal("the debugger's count", bare.byte()?, 0x02)?;
    let regs: kvm_regs = bare.vcpu.handle.get(number::GET_REGS)?;
    equal("DR7 as the guest wrote it", regs.rbx & 0xffff_ffff, 0x402)?;
    equal("DR6", regs.rcx & 0xffff_ffff, DR6)?;
    let own: kvm_debugregs = bare.vcpu.handle.get(number::GET_DEBUGREGS)?;
    equal("DR0", own.db[0], CODE + 0x15)?;
    equal("DR3", own.db[3], 0)?;
    equal("DR7", own.dr7, 0x402)?;
    control(&bare, 0, [0; 4], 0)?;
    equal("the guest's count again", bare.byte()?, 0xdb)?;
    let own: kvm_debugregs = bare.vcpu.handle.get(number::GET_DEBUGREGS)?;
    equal("DR6 of the guest", own.dr6, DR6 | 1)
}

fn general_detect(path: &str) -> Result<(), String> {
    // nop; mov %dr0, %eax; out %al, $0x10
    let bare = Bare::new(path, &[0x90, 0x0f, 0x21, 0xc0, 0xe6, 0x10])?;
    const GD: u64 = 1 << 13;
    control(&bare, HARDWARE, [0; 4], DR7 | GD)?;
    equal("stop", stop(&bare)?, (DB, CODE + 1, DR6 | GD))?;
    control(&bare, 0, [0; 4], 0)?;
    equal("runs on", bare.exit()?, KVM_EXIT_IO)
}

/// KVM learns of INT3 by the intercept of #BP, which QEMU's CPUs, without next-RIP saving, lack.
/// Where KVM is the hypervisor of such a host, guests of its guest lose software events that are
/// injected: what was seen is that their handlers do not answer; that KVM moves RIP by the
/// instruction at it is inferred from its source.
fn software_events(path: &str) -> Result<(), String> {
    const NRIPS: u32 = 1 << 3;
    // SAFETY: Every CPU with AMD-V has this leaf.
    let svm = unsafe { core::arch::x86_64::__cpuid(0x8000_000a) };
    if svm.edx & NRIPS != 0 {
        return Ok(());
    }
    if path == "/dev/kvm" {
        return skipped("no intercept of #BP");
    }
    if std::env::var("LAB_MACHINE").as_deref() == Ok("nested") {
        return skipped("kvm_amd below, without next-RIP saving, loses software events");
    }
    Ok(())
}

fn software_breakpoints(path: &str) -> Result<(), String> {
    software_events(path)?;
    // mov $3, %cx; 3: inc %ax; loop 3; int $0x21; mov %bl, %al; out %al, $0x10
    let code = [
        0xb9, 3, 0, 0x40, 0xe2, 0xfd, 0xcd, 0x21, 0x88, 0xd8, 0xe6, 0x10,
    ];
    const AT: usize = CODE as usize + 3;
    let bare = Bare::new(path, &code)?;
    // mov $0x21, %bl; iret
    handler(&bare, 0x21, 0x900, &[0xb3, 0x21, 0xcf]);
    let insert = || {
        bare.ram.write(AT, &[0xcc]);
        control(&bare, SOFTWARE, [0; 4], 0)
    };
    insert()?;
    for _ in 0..3 {
        equal("stop", stop(&bare)?, (BP, AT as u64, 0))?;
        bare.ram.write(AT, &code[3..4]);
        step_past(&bare, insert)?;
    }
    equal("INT n meanwhile", bare.byte()?, 0x21)?;
    let regs: kvm_regs = bare.vcpu.handle.get(number::GET_REGS)?;
    equal("the loop's count", regs.rax >> 8, 0)
}

fn inject_db(path: &str) -> Result<(), String> {
    // nop; jmp -1
    let bare = Bare::new(path, &[0x90, 0xeb, 0xfd])?;
    handler(&bare, 1, 0x900, &[0xb0, 0xdb, 0xe6, 0x10]);
    control(
        &bare,
        KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB,
        [0; 4],
        0,
    )?;
    let again = kvm_guest_debug {
        control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_BP,
        ..Default::default()
    };
    let answer = bare.vcpu.handle.set(number::SET_GUEST_DEBUG, &again);
    refused("a second one", answer, libc::EBUSY)?;
    equal("#DB", bare.byte()?, 0xdb)
}

fn inject_bp(path: &str) -> Result<(), String> {
    software_events(path)?;
    // nop; int3; mov $0x55, %al; out %al, $0x10
    let bare = Bare::new(path, &[0x90, 0xcc, 0xb0, 0x55, 0xe6, 0x10])?;
    // mov $0xbb, %al; out %al, $0x10; iret
    handler(&bare, 3, 0x900, &[0xb0, 0xbb, 0xe6, 0x10, 0xcf]);
    control(&bare, SOFTWARE, [0; 4], 0)?;
    equal("stop", stop(&bare)?, (BP, CODE + 1, 0))?;
    control(&bare, SOFTWARE | KVM_GUESTDBG_INJECT_BP, [0; 4], 0)?;
    equal("the guest's handler", bare.byte()?, 0xbb)?;
    equal("which returns behind INT3", bare.byte()?, 0x55)
}

fn block_irq(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &[0x90, 0x90, 0xeb, 0xfc])?;
    handler(&bare, 2, 0x900, &[0xb0, 0x02, 0xe6, 0x10]);
    bare.vcpu.handle.call(number::NMI, 0)?;
    control(&bare, STEP | KVM_GUESTDBG_BLOCKIRQ, [0; 4], 0)?;
    equal("step", stop(&bare)?, (DB, CODE + 1, DR6 | BS))?;
    equal("step", stop(&bare)?, (DB, CODE + 2, DR6 | BS))?;
    control(&bare, 0, [0; 4], 0)?;
    equal("the NMI", bare.byte()?, 0x02)
}

fn impossible(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &[])?;
    if path == "/dev/kvm" {
        return skipped("KVM takes everything, and VMRUN refuses it");
    }
    let set = |control: u32, dr7| {
        let mut debug = kvm_guest_debug {
            control,
            ..Default::default()
        };
        debug.arch.debugreg[7] = dr7;
        bare.vcpu.handle.set(number::SET_GUEST_DEBUG, &debug)
    };
    refused("an unknown flag", set(1 << 9, 0), libc::EINVAL)?;
    refused("upper half of DR7", set(HARDWARE, 1 << 32), libc::EINVAL)
}
