// SPDX-License-Identifier: GPL-2.0-only

//! Ports and device registers that the VMM answers for.

mod support;

use support::{Machine, CODE, KERNEL_MMIO, KERNEL_PORT, USER_MMIO};
use svm::dispatch::{finish_io, resume_io, Action, UserExit};
use svm::exit::{ExitCode, NestedError};
use svm::features::SvmFeatures;
use svm::io::UserIo;
use x86::cpu::MemError;
use x86::regs::{gpr, vector, Exception, Rflags, SegAttr, SegReg, Segment};

/// A port that the VMM has.
const PORT: u16 = 0x3f8;

fn port_exit(machine: &mut Machine, port: u16, size: u64, flags: u64, length: u64) -> Action {
    let info1 = u64::from(port) << 16 | size << 4 | flags;
    let next = machine.vmcb.rip() + length;
    machine.exit(ExitCode::IOIO, info1, next)
}

const INPUT: u64 = 1;
const STRING: u64 = 1 << 2;
const REP: u64 = 1 << 3;

fn port(size: u8, write: bool, data: u64) -> Action {
    Action::User(UserExit::Io(UserIo::Port {
        port: PORT,
        size,
        count: 1,
        write,
        data: data.to_le_bytes(),
    }))
}

fn ports(size: u8, count: u16) -> Action {
    Action::User(UserExit::Io(UserIo::Port {
        port: PORT,
        size,
        count,
        write: false,
        data: [0; 8],
    }))
}

fn mmio(gpa: u64, size: u8, write: bool, data: u64) -> Action {
    Action::User(UserExit::Io(UserIo::Mmio {
        gpa,
        size,
        write,
        data: data.to_le_bytes(),
    }))
}

fn finish(machine: &mut Machine, data: u64) -> Action {
    assert!(machine.state.io.pending().is_some());
    finish_io(&mut machine.guest(), data.to_le_bytes())
}

fn done(machine: &Machine, length: u64) {
    assert_eq!(machine.vmcb.rip(), CODE + length);
    assert_eq!(machine.state.io.pending(), None);
    assert_eq!(machine.exception(), None);
}

fn fault(machine: &mut Machine, gpa: u64) -> Action {
    machine.exit(ExitCode::NPF, 4, gpa)
}

/// A machine in 64-bit mode with RSI or RDI at the VMM's device, which the page tables map.
fn long(code: &[u8]) -> Machine {
    let mut machine = Machine::long(SvmFeatures::empty()).code(code);
    machine.state.regs.set(gpr::RAX, 0x1122_3344_5566_7788);
    machine.state.regs.set(gpr::RBX, USER_MMIO);
    machine
}

#[test]
fn in_and_out() {
    let mut machine = Machine::real(SvmFeatures::empty());
    machine.state.regs.set(gpr::RAX, 0xffff_ffff_ffff_ffff);
    assert_eq!(
        port_exit(&mut machine, PORT, 2, INPUT, 1),
        port(2, false, 0)
    );
    assert_eq!(machine.vmcb.rip(), CODE);
    assert_eq!(finish(&mut machine, 0xaaaa_bbbb_cccc_1234), Action::Resume);
    assert_eq!(machine.state.regs.get(gpr::RAX), 0xffff_ffff_ffff_1234);
    done(&machine, 1);

    let mut machine = Machine::real(SvmFeatures::empty());
    machine.state.regs.set(gpr::RAX, 0x5566_7788);
    assert_eq!(port_exit(&mut machine, PORT, 1, 0, 2), port(1, true, 0x88));
    assert_eq!(machine.vmcb.rip(), CODE);
    assert_eq!(finish(&mut machine, 0), Action::Resume);
    assert_eq!(machine.state.regs.get(gpr::RAX), 0x5566_7788);
    done(&machine, 2);
}

/// The VMM sets RIP in between: the instruction counts as done.
#[test]
fn a_moved_rip_wins() {
    let mut machine = Machine::real(SvmFeatures::empty());
    port_exit(&mut machine, PORT, 1, INPUT, 1);
    machine.vmcb.set_rip(0x2000);
    machine.state.regs.set(gpr::RAX, 7);
    assert_eq!(finish(&mut machine, 0x55), Action::Resume);
    assert_eq!(
        (machine.vmcb.rip(), machine.state.regs.get(gpr::RAX)),
        (0x2000, 7)
    );

    let mut machine = long(&[0x8b, 0x03]);
    fault(&mut machine, USER_MMIO);
    machine.vmcb.set_rip(0x2000);
    assert_eq!(finish(&mut machine, 0x55), Action::Resume);
    assert_eq!(machine.vmcb.rip(), 0x2000);
    assert_eq!(machine.state.io.pending(), None);
}

#[test]
fn a_single_step_over_out_traps() {
    let mut machine = Machine::real(SvmFeatures::empty());
    machine.vmcb.set_rflags(Rflags::RESERVED1 | Rflags::TF);
    port_exit(&mut machine, PORT, 1, 0, 1);
    assert_eq!(machine.exception(), None);
    finish(&mut machine, 0);
    assert_eq!(machine.exception().map(|e| e.vector), Some(vector::DB));
}

#[test]
fn mmio_read() {
    // mov eax, [rbx]
    let mut machine = long(&[0x8b, 0x03]);
    assert_eq!(fault(&mut machine, USER_MMIO), mmio(USER_MMIO, 4, false, 0));
    assert_eq!(machine.vmcb.rip(), CODE);
    assert_eq!(finish(&mut machine, 0x9999_9999_dead_beef), Action::Resume);
    assert_eq!(machine.state.regs.get(gpr::RAX), 0xdead_beef);
    done(&machine, 2);
}

#[test]
fn mmio_write() {
    // mov [rbx], rax
    let mut machine = long(&[0x48, 0x89, 0x03]);
    let data = 0x1122_3344_5566_7788;
    assert_eq!(
        fault(&mut machine, USER_MMIO),
        mmio(USER_MMIO, 8, true, data)
    );
    assert_eq!(machine.vmcb.rip(), CODE + 3);
    assert_eq!(finish(&mut machine, 0), Action::Resume);
    done(&machine, 3);
}

#[test]
fn read_modify_write() {
    // add [rbx], eax
    let mut machine = long(&[0x01, 0x03]);
    assert_eq!(fault(&mut machine, USER_MMIO), mmio(USER_MMIO, 4, false, 0));
    let sum = 0x5566_7788 + 1;
    assert_eq!(finish(&mut machine, 1), mmio(USER_MMIO, 4, true, sum));
    assert_eq!(finish(&mut machine, 0), Action::Resume);
    done(&machine, 2);
}

/// A 16-byte read is two fragments, in order; a page boundary makes more.
#[test]
fn fragments() {
    // movups xmm1, [rbx]
    let mut machine = long(&[0x0f, 0x10, 0x0b]);
    assert_eq!(fault(&mut machine, USER_MMIO), mmio(USER_MMIO, 8, false, 0));
    assert_eq!(finish(&mut machine, 1), mmio(USER_MMIO + 8, 8, false, 0));
    assert_eq!(finish(&mut machine, 2), Action::Resume);
    assert_eq!(machine.world.xmm[1], 2 << 64 | 1);
    done(&machine, 3);

    let mut machine = long(&[0x0f, 0x11, 0x0b]);
    machine.state.regs.set(gpr::RBX, USER_MMIO + 0xffd);
    machine.world.xmm[1] = 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100;
    let first = fault(&mut machine, USER_MMIO + 0xffd);
    assert_eq!(first, mmio(USER_MMIO + 0xffd, 3, true, 0x02_0100));
    let second = finish(&mut machine, 0);
    assert_eq!(
        second,
        mmio(USER_MMIO + 0x1000, 8, true, 0x0a09_0807_0605_0403)
    );
    let third = finish(&mut machine, 0);
    assert_eq!(third, mmio(USER_MMIO + 0x1008, 5, true, 0x0f_0e0d_0c0b));
    assert_eq!(finish(&mut machine, 0), Action::Resume);
    done(&machine, 3);
}

/// REP INSB: each byte is asked for, and an old answer is not taken for a new one.
#[test]
fn string_input() {
    let mut machine = long(&[0xf3, 0x6c]);
    machine.state.regs.set(gpr::RDX, u64::from(PORT));
    machine.state.regs.set(gpr::RCX, 3);
    machine.state.regs.set(gpr::RDI, 0x3000);
    let action = port_exit(&mut machine, PORT, 1, INPUT | STRING | REP, 2);
    assert_eq!(action, ports(1, 3));
    assert_eq!(finish(&mut machine, 0), Action::Resume);
    assert_eq!(machine.world.ram[0x3000..0x3004], [0x40, 0x41, 0x42, 0]);
    assert_eq!(machine.state.regs.get(gpr::RCX), 0);
    done(&machine, 2);
}

/// At once comes what fits into the page.
#[test]
fn string_input_over_pages() {
    let mut machine = long(&[0xf3, 0x66, 0x6d]);
    machine.state.regs.set(gpr::RDX, u64::from(PORT));
    machine.state.regs.set(gpr::RCX, 600);
    machine.state.regs.set(gpr::RDI, 0x3bff);
    let action = port_exit(&mut machine, PORT, 2, INPUT | STRING | REP, 3);
    assert_eq!(action, ports(2, 512));
    // The one over the boundary is asked for alone.
    assert_eq!(finish(&mut machine, 0), ports(2, 1));
    assert_eq!(machine.state.regs.get(gpr::RCX), 88);
    assert_eq!(machine.state.regs.get(gpr::RDI), 0x3fff);
    assert_eq!(finish(&mut machine, 0xbbbb), ports(2, 87));
    assert_eq!(finish(&mut machine, 0), Action::Resume);
    assert_eq!(machine.world.ram[0x3bff..0x3c03], [0x40, 0x41, 0x42, 0x43]);
    assert_eq!(
        machine.world.ram[0x3ffd..0x4005],
        [0x3e, 0x3f, 0xbb, 0xbb, 0x40, 0x41, 0x42, 0x43]
    );
    done(&machine, 3);
}

/// From a port to a device, which is written only: all that the port gave arrives.
#[test]
fn string_input_to_a_device() {
    let mut machine = long(&[0xf3, 0x6c]);
    machine.state.regs.set(gpr::RDX, u64::from(PORT));
    machine.state.regs.set(gpr::RCX, 3);
    machine.state.regs.set(gpr::RDI, USER_MMIO);
    let mut action = port_exit(&mut machine, PORT, 1, INPUT | STRING | REP, 2);
    for (n, byte) in [0x40, 0x41, 0x42].into_iter().enumerate() {
        let at = USER_MMIO + n as u64;
        if n == 0 {
            assert_eq!(action, ports(1, 3));
            assert_eq!(machine.state.io.port_bytes(), 3);
            action = finish(&mut machine, 0);
        }
        assert_eq!(action, mmio(at, 1, true, byte));
        // A copy of the state needs what the port gave for the rest.
        assert_eq!(machine.state.io.port_bytes(), if n < 2 { 3 } else { 0 });
        action = finish(&mut machine, 0);
    }
    assert_eq!(action, Action::Resume);
    done(&machine, 2);
}

/// While it asks, the VMM makes another instruction of it, which goes on for ever.
#[test]
fn string_input_that_becomes_another_instruction() {
    let mut machine = long(&[0xf3, 0x6c]);
    machine.state.regs.set(gpr::RDX, u64::from(PORT));
    machine.state.regs.set(gpr::RCX, 0x100);
    machine.state.regs.set(gpr::RDI, 0x3000);
    let action = port_exit(&mut machine, PORT, 1, INPUT | STRING | REP, 2);
    assert_eq!(action, ports(1, 0x100));
    // rep lodsb, in a code segment of another size
    machine.world.ram[CODE as usize + 1] = 0xac;
    let mut cs = machine.vmcb.segment(SegReg::Cs);
    cs.attributes.remove(SegAttr::L);
    machine.vmcb.set_segment(SegReg::Cs, cs);
    machine.state.regs.set(gpr::RCX, u64::MAX);
    assert_eq!(finish(&mut machine, 0x10), Action::Resume);
    let made = u64::from(u32::MAX) - (machine.state.regs.get(gpr::RCX) & u64::from(u32::MAX));
    assert!((1..=0x100).contains(&made), "{made:#x} iterations");
    assert_eq!(machine.state.io.pending(), None);
}

/// However often the VMM is asked in between, interrupts get their chance.
#[test]
fn long_string_output() {
    let mut machine = long(&[0xf3, 0x6e]);
    machine.state.regs.set(gpr::RDX, u64::from(PORT));
    machine.state.regs.set(gpr::RCX, 1000);
    machine.state.regs.set(gpr::RSI, 0x3000);
    let mut action = port_exit(&mut machine, PORT, 1, STRING | REP, 2);
    let mut exits = 0;
    while action != Action::Resume {
        assert_eq!(action, port(1, true, 0));
        exits += 1;
        action = finish(&mut machine, 0);
    }
    assert_eq!(exits, 64);
    assert_eq!(machine.state.regs.get(gpr::RCX), 1000 - 64);
    assert_eq!(machine.vmcb.rip(), CODE);
}

/// A debugger comes in between: it stops when all that was answered is there.
#[test]
fn string_input_that_is_stepped() {
    let mut machine = long(&[0xf3, 0x6c]);
    machine.state.regs.set(gpr::RDX, u64::from(PORT));
    machine.state.regs.set(gpr::RCX, 3);
    machine.state.regs.set(gpr::RDI, 0x3000);
    port_exit(&mut machine, PORT, 1, INPUT | STRING | REP, 2);
    let flags = machine.vmcb.rflags();
    machine.vmcb.set_rflags(flags | Rflags::TF);
    assert_eq!(finish(&mut machine, 0), Action::Resume);
    assert_eq!(machine.world.ram[0x3000..0x3003], [0x40, 0x41, 0x42]);
    let exception = machine.exception().map(|exception| exception.vector);
    assert_eq!(exception, Some(vector::DB));
    assert_eq!(machine.vmcb.rip(), CODE + 2);
}

/// One by one: a guest that goes backwards or single-steps, and one whose segment ends before.
#[test]
fn string_input_one_by_one() {
    for flags in [Rflags::DF, Rflags::TF] {
        let mut machine = long(&[0xf3, 0x6c]);
        machine.state.regs.set(gpr::RDX, u64::from(PORT));
        machine.state.regs.set(gpr::RCX, 3);
        machine.state.regs.set(gpr::RDI, 0x3000);
        let old = machine.vmcb.rflags();
        machine.vmcb.set_rflags(old | flags);
        let action = port_exit(&mut machine, PORT, 1, INPUT | STRING | REP, 2);
        assert_eq!(action, ports(1, 1));
    }
    let mut machine = Machine::real(SvmFeatures::empty()).code(&[0xf3, 0x6d]);
    machine.state.regs.set(gpr::RDX, u64::from(PORT));
    machine.state.regs.set(gpr::RCX, 7);
    machine.state.regs.set(gpr::RDI, 0x3000);
    let mut es = machine.vmcb.segment(SegReg::Es);
    es.limit = 0x300c;
    machine.vmcb.set_segment(SegReg::Es, es);
    let action = port_exit(&mut machine, PORT, 2, INPUT | STRING | REP, 2);
    assert_eq!(action, ports(2, 1));
}

/// The VMM shortens the count in between, as a kernel selftest does.
#[test]
fn string_input_with_a_changed_count() {
    let mut machine = long(&[0xf3, 0x6c]);
    machine.state.regs.set(gpr::RDX, u64::from(PORT));
    machine.state.regs.set(gpr::RCX, 1000);
    machine.state.regs.set(gpr::RDI, 0x3000);
    port_exit(&mut machine, PORT, 1, INPUT | STRING | REP, 2);
    machine.state.regs.set(gpr::RCX, 1);
    assert_eq!(finish(&mut machine, 0x77), Action::Resume);
    assert_eq!(machine.world.ram[0x3000..0x3002], [0x40, 0]);
    done(&machine, 2);

    machine.vmcb.set_rip(CODE);
    machine.state.regs.set(gpr::RCX, 1);
    port_exit(&mut machine, PORT, 1, INPUT | STRING | REP, 2);
    machine.state.regs.set(gpr::RCX, 0);
    assert_eq!(finish(&mut machine, 0x88), Action::Resume);
    assert_eq!(machine.world.ram[0x3001..0x3003], [0, 0]);
    done(&machine, 2);
}

#[test]
fn string_output() {
    let mut machine = long(&[0xf3, 0x6e]);
    machine.world.ram[0x3000..0x3003].copy_from_slice(&[1, 2, 3]);
    machine.state.regs.set(gpr::RDX, u64::from(PORT));
    machine.state.regs.set(gpr::RCX, 3);
    machine.state.regs.set(gpr::RSI, 0x3000);
    let mut action = port_exit(&mut machine, PORT, 1, STRING | REP, 2);
    for byte in 1..=3 {
        assert_eq!(action, port(1, true, byte));
        action = finish(&mut machine, 0);
    }
    assert_eq!(action, Action::Resume);
    done(&machine, 2);

    machine.vmcb.set_rip(CODE);
    machine.state.regs.set(gpr::RDX, u64::from(KERNEL_PORT));
    machine.state.regs.set(gpr::RCX, 3);
    machine.state.regs.set(gpr::RSI, 0x3000);
    assert_eq!(
        port_exit(&mut machine, KERNEL_PORT, 1, STRING | REP, 2),
        Action::Resume
    );
    assert_eq!(
        (machine.world.kernel_port, machine.world.kernel_accesses),
        (3, 3)
    );
    done(&machine, 2);
}

/// REP MOVSD from a device to a device: reads and writes alternate.
#[test]
fn device_to_device() {
    let mut machine = long(&[0xf3, 0xa5]);
    machine.state.regs.set(gpr::RCX, 2);
    machine.state.regs.set(gpr::RSI, USER_MMIO);
    machine.state.regs.set(gpr::RDI, USER_MMIO + 0x100);
    assert_eq!(fault(&mut machine, USER_MMIO), mmio(USER_MMIO, 4, false, 0));
    assert_eq!(
        finish(&mut machine, 0xa),
        mmio(USER_MMIO + 0x100, 4, true, 0xa)
    );
    assert_eq!(finish(&mut machine, 0), mmio(USER_MMIO + 4, 4, false, 0));
    assert_eq!(
        finish(&mut machine, 0xb),
        mmio(USER_MMIO + 0x104, 4, true, 0xb)
    );
    assert_eq!(finish(&mut machine, 0), Action::Resume);
    done(&machine, 2);
}

#[test]
fn devices_of_the_kernel() {
    let mut machine = long(&[0x89, 0x03]);
    machine.state.regs.set(gpr::RBX, KERNEL_MMIO);
    assert_eq!(fault(&mut machine, KERNEL_MMIO), Action::Resume);
    assert_eq!(machine.world.kernel_mmio, 0x5566_7788);
    done(&machine, 2);

    let mut machine = long(&[0x48, 0x03, 0x03]);
    machine.state.regs.set(gpr::RBX, KERNEL_MMIO);
    machine.world.kernel_mmio = 1;
    assert_eq!(fault(&mut machine, KERNEL_MMIO), Action::Resume);
    assert_eq!(machine.state.regs.get(gpr::RAX), 0x1122_3344_5566_7789);
    done(&machine, 3);
}

/// A register of a device in the kernel is read once, though the instruction runs twice.
#[test]
fn side_effects_happen_once() {
    // movsd: from the kernel's device to the memory that is absent at first
    let mut machine = long(&[0xa5]);
    machine.world.kernel_mmio = 0x1234;
    machine.state.regs.set(gpr::RSI, KERNEL_MMIO);
    machine.state.regs.set(gpr::RDI, USER_MMIO);
    assert_eq!(
        fault(&mut machine, KERNEL_MMIO),
        mmio(USER_MMIO, 4, true, 0x1234)
    );
    assert_eq!(machine.world.kernel_accesses, 1);

    // cmpsd: the kernel's device first, then the VMM's
    let mut machine = long(&[0xa7]);
    machine.world.kernel_mmio = 5;
    machine.state.regs.set(gpr::RSI, KERNEL_MMIO);
    machine.state.regs.set(gpr::RDI, USER_MMIO);
    assert_eq!(
        fault(&mut machine, KERNEL_MMIO),
        mmio(USER_MMIO, 4, false, 0)
    );
    assert_eq!(finish(&mut machine, 5), Action::Resume);
    assert_eq!(machine.world.kernel_accesses, 1);
    assert!(machine.vmcb.rflags().contains(Rflags::ZF));
    done(&machine, 1);
}

/// A write to a read-only slot is the VMM's.
#[test]
fn read_only_memory() {
    let mut machine = long(&[0x88, 0x03]);
    machine.state.regs.set(gpr::RBX, 0x3000);
    machine.world.read_only = true;
    assert_eq!(fault(&mut machine, 0x3000), mmio(0x3000, 1, true, 0x88));
    finish(&mut machine, 0);
    done(&machine, 2);
}

/// The read half of a read-modify-write of a read-only slot is memory's.
#[test]
fn read_modify_write_of_read_only_memory() {
    // add [rbx], eax; lock add [rbx], eax
    for (code, length) in [(&[0x01, 0x03][..], 2), (&[0xf0, 0x01, 0x03], 3)] {
        let mut machine = long(code);
        machine.world.ram[0x3010] = 1;
        machine.state.regs.set(gpr::RBX, 0x3010);
        machine.world.read_only = true;
        machine.world.fault = Err(MemError::ReadOnly);
        let info1 = (NestedError::FINAL | NestedError::WRITE | NestedError::PRESENT).bits();
        let action = machine.exit(ExitCode::NPF, info1, 0x3010);
        assert_eq!(action, mmio(0x3010, 4, true, 0x5566_7789));
        assert_eq!(machine.world.ram[0x3010], 1);
        finish(&mut machine, 0);
        done(&machine, length);
    }
}

/// The same exit as the CPU tells it, and as it would be without its help.
#[test]
fn told_by_the_cpu() {
    for info1 in [
        NestedError::FINAL | NestedError::WRITE,
        NestedError::empty(),
    ] {
        let mut machine = long(&[0x01, 0x03]);
        let action = machine.exit(ExitCode::NPF, info1.bits(), USER_MMIO);
        assert_eq!(action, mmio(USER_MMIO, 4, false, 0));
        assert_eq!(
            finish(&mut machine, 1),
            mmio(USER_MMIO, 4, true, 0x5566_7789)
        );
        assert_eq!(finish(&mut machine, 0), Action::Resume);
        done(&machine, 2);
    }
    // The VMM moves the operand before it answers.
    let mut machine = long(&[0x01, 0x03]);
    let info1 = (NestedError::FINAL | NestedError::WRITE).bits();
    machine.exit(ExitCode::NPF, info1, USER_MMIO);
    machine.state.regs.set(gpr::RBX, 0x3000);
    assert_eq!(finish(&mut machine, 1), Action::Resume);
    assert_eq!(
        machine.world.ram[0x3000..0x3004],
        0x5566_7788_u32.to_le_bytes()
    );
    done(&machine, 2);
}

#[test]
fn sleep_in_the_middle() {
    let mut machine = long(&[0x8b, 0x03]);
    fault(&mut machine, USER_MMIO);
    machine.world.would_sleep = true;
    assert_eq!(finish(&mut machine, 0x42), Action::NeedSleep);
    assert_eq!(resume_io(&mut machine.guest()), Action::NeedSleep);
    machine.world.would_sleep = false;
    assert_eq!(resume_io(&mut machine.guest()), Action::Resume);
    assert_eq!(machine.state.regs.get(gpr::RAX), 0x42);
    done(&machine, 2);
    assert_eq!(resume_io(&mut machine.guest()), Action::Resume);
    done(&machine, 2);
}

/// A locked exchange with a device, and one across two pages of memory.
#[test]
fn locked_accesses() {
    // lock xadd [rbx], eax
    let code = [0xf0, 0x0f, 0xc1, 0x03];
    let mut machine = long(&code);
    assert_eq!(fault(&mut machine, USER_MMIO), mmio(USER_MMIO, 4, false, 0));
    let action = finish(&mut machine, 1);
    // The read, the comparison's read, and then the write.
    let action = if action == mmio(USER_MMIO, 4, false, 0) {
        finish(&mut machine, 1)
    } else {
        action
    };
    assert_eq!(action, mmio(USER_MMIO, 4, true, 0x5566_7789));
    assert_eq!(finish(&mut machine, 0), Action::Resume);
    assert_eq!(machine.state.regs.get(gpr::RAX), 1);
    done(&machine, 4);

    let mut machine = long(&code);
    machine.state.regs.set(gpr::RBX, 0x3ffe);
    machine.world.ram[0x3ffe..0x4002].copy_from_slice(&7_u32.to_le_bytes());
    assert_eq!(fault(&mut machine, 0x3ffe), Action::Resume);
    assert_eq!(
        machine.world.ram[0x3ffe..0x4002],
        0x5566_778f_u32.to_le_bytes()
    );
    done(&machine, 4);
}

/// A page boundary between memory and a device.
#[test]
fn half_memory_half_device() {
    // mov [rbx], rax
    let mut machine = long(&[0x48, 0x89, 0x03]);
    machine.state.regs.set(gpr::RBX, 0xfffc);
    assert_eq!(
        fault(&mut machine, 0x1_0000),
        mmio(0x1_0000, 4, true, 0x1122_3344)
    );
    assert_eq!(machine.world.ram[0xfffc..], 0x5566_7788_u32.to_le_bytes());
    finish(&mut machine, 0);
    done(&machine, 3);
}

/// Real mode, where VMMs meet the option ROMs: MOV AX, [BX] with DS at the device.
#[test]
fn real_mode() {
    let mut machine = Machine::real(SvmFeatures::empty()).code(&[0x8b, 0x07]);
    let mut ds = machine.vmcb.segment(SegReg::Ds);
    ds.base = 0xb_8000;
    machine.vmcb.set_segment(SegReg::Ds, ds);
    machine.state.regs.set(gpr::RBX, 0x10);
    assert_eq!(fault(&mut machine, 0xb_8010), mmio(0xb_8010, 2, false, 0));
    finish(&mut machine, 0x0741);
    assert_eq!(machine.state.regs.get(gpr::RAX), 0x0741);
    done(&machine, 2);
}

/// Not every emulator looks at the limit of CS when it fetches.
#[test]
fn code_beyond_the_limit_is_refused() {
    // mov %al, (%bx)
    const STORE: [u8; 2] = [0x88, 0x07];
    let at_limit = |limit: u64| {
        let mut machine = Machine::real(SvmFeatures::empty()).code(&STORE);
        let ds = Segment {
            base: USER_MMIO,
            ..machine.vmcb.segment(SegReg::Ds)
        };
        machine.vmcb.set_segment(SegReg::Ds, ds);
        let mut cs = machine.vmcb.segment(SegReg::Cs);
        cs.limit = limit as u32;
        machine.vmcb.set_segment(SegReg::Cs, cs);
        let action = fault(&mut machine, USER_MMIO);
        (action, machine)
    };
    let (action, _) = at_limit(CODE + 1);
    assert_eq!(action, mmio(USER_MMIO, 1, true, 0));
    for limit in [CODE, CODE - 1] {
        let (action, machine) = at_limit(limit);
        assert_eq!(action, Action::Resume);
        assert_eq!(machine.exception(), Some(Exception::GP0));
        assert_eq!(machine.vmcb.rip(), CODE);
    }
}
