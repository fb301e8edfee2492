// SPDX-License-Identifier: GPL-2.0-only

//! What the CPU itself reads and writes in read-only memory: page tables, descriptors.

mod support;

use support::{Machine, CODE, USER_MMIO};
use svm::dispatch::{Action, UserExit};
use svm::event::Event;
use svm::exit::{ExitCode, NestedError};
use svm::features::SvmFeatures;
use svm::io::UserIo;
use x86::cpu::MemError;
use x86::regs::{gpr, vector, Exception, Rflags, SegReg, Segment};

/// The exit of a CPU that would write into page tables in read-only memory: so it does nothing.
fn walk_exit(machine: &mut Machine) -> Action {
    let error = NestedError::TABLE_WALK | NestedError::WRITE | NestedError::PRESENT;
    machine.exit(ExitCode::NPF, error.bits(), 0x8000)
}

fn rom(code: &[u8]) -> Machine {
    let mut machine = Machine::long(SvmFeatures::NRIPS).code(code);
    machine.world.read_only = true;
    machine.world.fault = Err(MemError::ReadOnly);
    // Of another exit.
    machine.vmcb.set_next_rip(0x1234);
    machine
}

/// Every instruction is emulated then: branches, too.
#[test]
fn page_tables_in_read_only_memory() {
    // xor eax, eax; mov ecx, 2; inc eax; loop
    let mut machine = rom(&[0x31, 0xc0, 0xb9, 2, 0, 0, 0, 0xff, 0xc0, 0xe2, 0xfc]);
    for rip in [2, 7, 9, 7, 9, 11] {
        assert_eq!(walk_exit(&mut machine), Action::Resume);
        assert_eq!(machine.vmcb.rip(), CODE + rip);
    }
    assert_eq!(machine.state.regs.get(gpr::RAX), 2);
    // The tables are what they were: without accessed bits.
    assert_eq!(machine.world.ram[0x8000], 7);
}

/// What the CPU would intercept is handled as if it had.
#[test]
fn intercepted_instructions() {
    let mut machine = rom(&[0x0f, 0xa2]);
    machine.state.regs.set(gpr::RAX, 0x4000_1234);
    assert_eq!(walk_exit(&mut machine), Action::Resume);
    assert_eq!(machine.state.regs.get(gpr::RAX), 0x4000_1234);
    assert_eq!(machine.state.regs.get(gpr::RCX), 0xcccc);
    assert_eq!(machine.vmcb.rip(), CODE + 2);
    let mut machine = rom(&[0xf4]);
    assert_eq!(walk_exit(&mut machine), Action::Halt);
    assert_eq!(machine.vmcb.rip(), CODE + 1);
    // mov rax, cr3; clts; rdtsc; rdmsr (EFER).
    let mut machine = rom(&[0x0f, 0x20, 0xd8, 0x0f, 0x06, 0x0f, 0x31, 0x0f, 0x32]);
    machine.state.regs.set(gpr::RCX, 0xc000_0080);
    for rip in [3, 5, 7, 9] {
        assert_eq!(walk_exit(&mut machine), Action::Resume);
        assert_eq!(machine.vmcb.rip(), CODE + rip);
        assert_eq!(machine.exception(), None);
    }
    let mut machine = rom(&[0xf4]);
    machine.vmcb.set_cpl(3);
    assert_eq!(walk_exit(&mut machine), Action::Resume);
    assert_eq!(machine.exception(), Some(Exception::GP0));
}

/// VEX makes another instruction of the opcode, LOCK none at all; MONITOR is not there outside
/// level 0.
#[test]
fn what_only_looks_intercepted() {
    // The opcodes of RDTSC, CPUID and MOV CR with VEX.
    for code in [
        &[0xc5, 0xf8, 0x31][..],
        &[0xc5, 0xf8, 0xa2],
        &[0xc5, 0xf8, 0x20, 0xd8],
    ] {
        let mut machine = rom(code);
        let action = walk_exit(&mut machine);
        assert!(matches!(action, Action::User(_)), "{code:02x?} {action:?}");
        assert_eq!(machine.vmcb.rip(), CODE);
    }
    for code in [
        &[0xf0, 0x0f, 0xa2][..],
        &[0xf0, 0xf4],
        &[0xf0, 0x0f, 0x21, 0xc0],
    ] {
        let mut machine = rom(code);
        assert_eq!(walk_exit(&mut machine), Action::Resume);
        assert_eq!(machine.exception(), Some(Exception::UD), "{code:02x?}");
    }
    // lock mov rax, cr0 is mov rax, cr8.
    let mut machine = rom(&[0xf0, 0x0f, 0x20, 0xc0]);
    assert_eq!(walk_exit(&mut machine), Action::Resume);
    assert_eq!(machine.exception(), None);
    for (code, exception) in [
        (&[0x0f, 0x01, 0xc8][..], Exception::UD),
        (&[0x0f, 0x01, 0xc9], Exception::UD),
        (&[0x0f, 0x01, 0x3b], Exception::GP0),
    ] {
        let mut machine = rom(code);
        machine.vmcb.set_cpl(3);
        assert_eq!(walk_exit(&mut machine), Action::Resume);
        assert_eq!(machine.exception(), Some(exception), "{code:02x?}");
    }
}

/// A machine at an IRETQ that loads these flags, with NMIs masked; it goes on at `CODE + 0x40`.
fn at_iret(flags: Rflags) -> Machine {
    let mut machine = rom(&[0x48, 0xcf]);
    let gdt: [u64; 4] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0];
    for (index, descriptor) in gdt.iter().enumerate() {
        let at = 0x5000 + 8 * index;
        machine.world.ram[at..at + 8].copy_from_slice(&descriptor.to_le_bytes());
    }
    machine.vmcb.set_gdtr(Segment {
        base: 0x5000,
        limit: 0x1f,
        ..Segment::default()
    });
    let frame = [CODE + 0x40, 8, flags.bits(), 0x3800, 16];
    for (index, value) in frame.iter().enumerate() {
        let at = 0x3000 + 8 * index;
        machine.world.ram[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    machine.state.regs.set(gpr::RSP, 0x3000);
    machine.state.events.set_nmi_masked(true);
    machine
}

/// IRET that is emulated ends the masking of NMIs, and keeps the RF that it has loaded.
#[test]
fn an_emulated_iret() {
    let flags = Rflags::RESERVED1 | Rflags::RF;
    let mut machine = at_iret(flags);
    assert_eq!(walk_exit(&mut machine), Action::Resume);
    assert_eq!(machine.exception(), None);
    assert_eq!(machine.vmcb.rip(), CODE + 0x40);
    assert_eq!(machine.vmcb.rflags(), flags);
    assert!(!machine.state.events.nmi_masked);
}

/// An NMI that has waited for it comes at once: no other instruction is stepped over, nor the
/// guest's flags changed.
#[test]
fn an_nmi_behind_an_emulated_iret() {
    for intercepted in [false, true] {
        let mut machine = at_iret(Rflags::RESERVED1);
        machine.state.events.raise_nmi();
        machine.prepare();
        if intercepted {
            assert_eq!(machine.exit(ExitCode::IRET, 0, 0), Action::Resume);
            machine.prepare();
        }
        assert_eq!(walk_exit(&mut machine), Action::Resume);
        assert_eq!(machine.vmcb.rip(), CODE + 0x40);
        machine.prepare();
        assert_eq!(Event::decode(machine.vmcb.event_inj()), Some(Event::Nmi));
        assert_eq!(machine.vmcb.rflags(), Rflags::RESERVED1);
        assert!(machine.state.events.nmi_masked);
    }
}

/// The accessed bit of a descriptor, and the busy bit of a TSS, are lost, and nobody hears of them.
#[test]
fn descriptors_in_read_only_memory() {
    // mov ds, eax; ltr cx
    let mut machine = rom(&[0x8e, 0xd8, 0x0f, 0x00, 0xd9]);
    let gdt: [u64; 4] = [0, 0x00cf_9200_0000_ffff, 0x0000_8900_7100_0067, 0];
    for (index, descriptor) in gdt.iter().enumerate() {
        let at = 0x5000 + 8 * index;
        machine.world.ram[at..at + 8].copy_from_slice(&descriptor.to_le_bytes());
    }
    machine.vmcb.set_gdtr(Segment {
        base: 0x5000,
        limit: 0x1f,
        ..Segment::default()
    });
    machine.state.regs.set(gpr::RAX, 8);
    machine.state.regs.set(gpr::RCX, 16);
    let error = NestedError::FINAL | NestedError::WRITE | NestedError::PRESENT;
    for rip in [2, 5] {
        let action = machine.exit(ExitCode::NPF, error.bits(), 0x500d);
        assert_eq!(action, Action::Resume);
        assert_eq!(machine.vmcb.rip(), CODE + rip);
        assert_eq!(machine.exception(), None);
    }
    assert_eq!(machine.vmcb.segment(SegReg::Ds).selector, 8);
    assert_eq!(machine.vmcb.segment(SegReg::Tr).base, 0x7100);
    assert_eq!(machine.world.ram[0x500d], 0x92);
    assert_eq!(machine.world.ram[0x5015], 0x89);
    assert!(!machine.vmcb.rflags().contains(Rflags::RF));
}

/// Another CPU takes a descriptor away between its being read and its being marked: it is not
/// written over, and what it has become counts.
#[test]
fn a_descriptor_that_another_cpu_changes() {
    const GDT: usize = 0x5000;
    // mov ds, eax; ltr cx
    for (code, at, kind) in [
        (&[0x8e, 0xd8][..], GDT + 8, 0x12),
        (&[0x0f, 0x00, 0xd9], GDT + 16, 0x09),
    ] {
        for entry in [0, 1] {
            let mut machine = Machine::long(SvmFeatures::NRIPS).code(code);
            let gdt: [u64; 4] = [0, 0x00cf_9200_0000_ffff, 0x0000_8900_7100_0067, 0];
            for (index, descriptor) in gdt.iter().enumerate() {
                let at = GDT + entry + 8 * index;
                machine.world.ram[at..at + 8].copy_from_slice(&descriptor.to_le_bytes());
            }
            machine.vmcb.set_gdtr(Segment {
                base: (GDT + entry) as u64,
                limit: 0x1f,
                ..Segment::default()
            });
            machine.state.regs.set(gpr::RAX, 8);
            machine.state.regs.set(gpr::RCX, 16);
            // It is absent from now on.
            let byte = at + entry + 5;
            machine.world.race = Some((byte, kind));
            let error = NestedError::TABLE_WALK | NestedError::WRITE | NestedError::PRESENT;
            let action = machine.exit(ExitCode::NPF, error.bits(), 0x8000);
            assert_eq!(action, Action::Resume);
            assert_eq!(machine.world.ram[byte], kind, "{code:02x?}");
            let absent = Exception::with_code(vector::NP, (at - GDT) as u32);
            assert_eq!(machine.exception(), Some(absent));
        }
    }
}

/// A descriptor that is not aligned gets its byte marked, and its neighbours stay.
#[test]
fn descriptors_that_are_not_aligned() {
    const GDT: usize = 0x5001;
    // mov ds, eax; ltr cx
    let mut machine = Machine::long(SvmFeatures::NRIPS).code(&[0x8e, 0xd8, 0x0f, 0x00, 0xd9]);
    let gdt: [u64; 4] = [0, 0x00cf_9200_0000_ffff, 0x0012_8900_7100_0067, 0];
    for (index, descriptor) in gdt.iter().enumerate() {
        let at = GDT + 8 * index;
        machine.world.ram[at..at + 8].copy_from_slice(&descriptor.to_le_bytes());
    }
    machine.vmcb.set_gdtr(Segment {
        base: GDT as u64,
        limit: 0x1f,
        ..Segment::default()
    });
    machine.state.regs.set(gpr::RAX, 8);
    machine.state.regs.set(gpr::RCX, 16);
    for rip in [2, 5] {
        assert_eq!(walk_exit(&mut machine), Action::Resume);
        assert_eq!(machine.vmcb.rip(), CODE + rip);
        assert_eq!(machine.exception(), None);
    }
    for (index, marked) in [(1, 0x00cf_9300_0000_ffff_u64), (2, 0x0012_8b00_7100_0067)] {
        let at = GDT + 8 * index;
        assert_eq!(machine.world.ram[at..at + 8], marked.to_le_bytes());
    }
}

/// The fault tells where the descriptor is, not where the operand is, though both lie alike in
/// their pages.
#[test]
fn the_fault_of_a_descriptor_is_not_the_operands() {
    // mov ds, [rbx]; lret
    for (code, register) in [(&[0x8e, 0x1b][..], gpr::RBX), (&[0x48, 0xcb], gpr::RSP)] {
        let mut machine = rom(code);
        let gdt: [u64; 2] = [0, 0x00af_9a00_0000_ffff];
        for (index, descriptor) in gdt.iter().enumerate() {
            let at = 0x5000 + 8 * index;
            machine.world.ram[at..at + 8].copy_from_slice(&descriptor.to_le_bytes());
        }
        machine.vmcb.set_gdtr(Segment {
            base: 0x5000,
            limit: 0xf,
            ..Segment::default()
        });
        machine.state.regs.set(register, 0x3008);
        machine.world.ram[0x3008] = 8;
        machine.world.ram[0x3010] = 8;
        let error = NestedError::FINAL | NestedError::WRITE | NestedError::PRESENT;
        let action = machine.exit(ExitCode::NPF, error.bits(), 0x5008);
        assert_eq!(action, Action::Resume);
        assert_eq!(machine.exception(), None, "{code:02x?}");
    }
}

/// The same of what only reads a descriptor, which a device has.
#[test]
fn the_read_of_a_descriptor_is_not_the_operands() {
    // lar ecx, [rbx]; lsl ecx, [rbx]; verr [rbx]; verw [rbx]; mov ds, [rbx]
    for code in [
        &[0x0f, 0x02, 0x0b][..],
        &[0x0f, 0x03, 0x0b],
        &[0x0f, 0x00, 0x23],
        &[0x0f, 0x00, 0x2b],
        &[0x8e, 0x1b],
    ] {
        let mut machine = Machine::long(SvmFeatures::NRIPS).code(code);
        machine.vmcb.set_gdtr(Segment {
            base: USER_MMIO,
            limit: 0xf,
            ..Segment::default()
        });
        machine.state.regs.set(gpr::RBX, 0x3008);
        machine.world.ram[0x3008] = 8;
        let action = machine.exit(ExitCode::NPF, NestedError::FINAL.bits(), USER_MMIO + 8);
        let Action::User(UserExit::Io(UserIo::Mmio { size, .. })) = action else {
            panic!("{code:02x?} {action:?}");
        };
        assert_eq!(size, 8, "{code:02x?}");
    }
}
