// SPDX-License-Identifier: GPL-2.0-only

//! Hardware task switches.

mod support;

use support::{poke, Machine, CODE, EXITINTINFO};
use svm::dispatch::Action;
use svm::event::Event;
use svm::exit::ExitCode;
use svm::features::SvmFeatures;
use x86::regs::{gpr, vector, Cr0, Exception, Rflags, SegAttr, SegReg, Segment};

const GDT: usize = 0x3000;
const OLD: usize = 0x5000;
const NEW: usize = 0x6000;
/// Selectors: code and data of ring 0, both tasks, and code and data of ring 3.
const CODE0: u16 = 0x08;
const DATA0: u16 = 0x10;
const OLD_TSS: u16 = 0x18;
const NEW_TSS: u16 = 0x20;
const CODE3: u16 = 0x2b;
const DATA3: u16 = 0x33;

const JUMP: u64 = 1 << 38;
const IRET: u64 = 1 << 36;
const HAS_CODE: u64 = 1 << 44;
const RF: u64 = 1 << 48;

fn descriptor(base: usize, limit: u64, kind: u64, flags: u64) -> u64 {
    let base = base as u64;
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | kind << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

fn put(machine: &mut Machine, at: usize, width: usize, value: u64) {
    machine.world.ram[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
}

fn get(machine: &Machine, at: usize, width: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[..width].copy_from_slice(&machine.world.ram[at..at + width]);
    u64::from_le_bytes(bytes)
}

fn set_descriptor(machine: &mut Machine, selector: u16, value: u64) {
    put(machine, GDT + usize::from(selector & !7), 8, value);
}

fn busy(machine: &Machine, selector: u16) -> bool {
    machine.world.ram[GDT + usize::from(selector & !7) + 5] & 2 != 0
}

/// A task of ring 0 in 32-bit protected mode without paging, and another one to switch to.
fn machine() -> Machine {
    // lcall and the like: seven bytes
    let mut machine = Machine::real(SvmFeatures::empty()).code(&[0x9a, 0, 0, 0, 0, 0x20, 0]);
    set_descriptor(&mut machine, CODE0, descriptor(0, 0xf_ffff, 0x9b, 0xc));
    set_descriptor(&mut machine, DATA0, descriptor(0, 0xf_ffff, 0x93, 0xc));
    set_descriptor(&mut machine, OLD_TSS, descriptor(OLD, 0x67, 0x8b, 0));
    set_descriptor(&mut machine, NEW_TSS, descriptor(NEW, 0x67, 0x89, 0));
    set_descriptor(&mut machine, CODE3, descriptor(0, 0xf_ffff, 0xfb, 0xc));
    set_descriptor(&mut machine, DATA3, descriptor(0, 0xf_ffff, 0xf2, 0xc));
    let vmcb = &mut machine.vmcb;
    vmcb.set_cr0(Cr0::PE | Cr0::ET);
    vmcb.set_gdtr(Segment {
        base: GDT as u64,
        limit: 0x37,
        ..Segment::default()
    });
    let flat = |selector, attributes| Segment {
        selector,
        attributes: SegAttr::from_bits_retain(attributes),
        limit: u32::MAX,
        base: 0,
    };
    vmcb.set_segment(SegReg::Cs, flat(CODE0, 0xc9b));
    for reg in [SegReg::Ss, SegReg::Ds, SegReg::Es, SegReg::Fs, SegReg::Gs] {
        vmcb.set_segment(reg, flat(DATA0, 0xc93));
    }
    vmcb.set_segment(
        SegReg::Tr,
        Segment {
            selector: OLD_TSS,
            attributes: SegAttr::from_bits_retain(0x8b),
            limit: 0x67,
            base: OLD as u64,
        },
    );
    vmcb.set_rflags(Rflags::RESERVED1 | Rflags::CF);
    vmcb.set_dr7(0x4ff);
    machine.state.regs.gpr[..8].copy_from_slice(&[10, 11, 12, 13, 0x7f00, 15, 16, 17]);

    // The new task, in ring 3.
    put(&mut machine, NEW + 0x20, 4, 0x1234);
    put(
        &mut machine,
        NEW + 0x24,
        4,
        (Rflags::RESERVED1 | Rflags::ZF).bits(),
    );
    for reg in 0..8 {
        put(&mut machine, NEW + 0x28 + 4 * reg, 4, 100 + reg as u64);
    }
    put(&mut machine, NEW + 0x38, 4, 0x7800);
    for reg in 0..6 {
        put(&mut machine, NEW + 0x48 + 4 * reg, 4, u64::from(DATA3));
    }
    put(&mut machine, NEW + 0x4c, 4, u64::from(CODE3));
    machine
}

fn switch(machine: &mut Machine, selector: u16, info2: u64) {
    let action = machine.exit(ExitCode::TASK_SWITCH, u64::from(selector), info2);
    // The first time it asks for sleep.
    assert_eq!(action, Action::NeedSleep);
    assert_eq!(machine.handle(), Action::Resume);
}

fn is_new(machine: &Machine) {
    assert_eq!(machine.exception(), None);
    let vmcb = &machine.vmcb;
    assert_eq!(vmcb.rip(), 0x1234);
    assert_eq!(vmcb.cpl(), 3);
    assert!(vmcb.rflags().contains(Rflags::ZF) && !vmcb.rflags().contains(Rflags::CF));
    assert!(vmcb.cr0().contains(Cr0::TS));
    assert_eq!(vmcb.dr7(), 0x4aa);
    assert_eq!(vmcb.segment(SegReg::Cs).attributes.bits(), 0xcfb);
    for reg in [SegReg::Ss, SegReg::Ds, SegReg::Es, SegReg::Fs, SegReg::Gs] {
        let segment = vmcb.segment(reg);
        assert_eq!((segment.selector, segment.limit), (DATA3, u32::MAX));
        assert_eq!(segment.attributes.bits(), 0xcf3, "accessed");
    }
    let tr = vmcb.segment(SegReg::Tr);
    assert_eq!(
        (tr.selector, tr.base, tr.limit),
        (NEW_TSS, NEW as u64, 0x67)
    );
    assert_eq!(tr.attributes.bits(), 0x8b);
    assert_eq!(machine.state.regs.get(gpr::RDI), 107);
    assert!(busy(machine, NEW_TSS));
    assert_eq!(machine.world.ram[GDT + 0x30 + 5], 0xf3, "accessed");
}

fn saved(machine: &Machine, rip: u64, flags: Rflags) {
    assert_eq!(get(machine, OLD + 0x20, 4), rip);
    assert_eq!(get(machine, OLD + 0x24, 4), flags.bits());
    assert_eq!(get(machine, OLD + 0x28, 4), 10);
    assert_eq!(get(machine, OLD + 0x38, 4), 0x7f00);
    assert_eq!(get(machine, OLD + 0x44, 4), 17);
    assert_eq!(get(machine, OLD + 0x48, 2), u64::from(DATA0));
    assert_eq!(get(machine, OLD + 0x4c, 2), u64::from(CODE0));
}

#[test]
fn jump() {
    let mut machine = machine();
    switch(&mut machine, NEW_TSS, JUMP);
    is_new(&machine);
    saved(&machine, CODE + 7, Rflags::RESERVED1 | Rflags::CF);
    assert!(!busy(&machine, OLD_TSS));
    assert!(!machine.vmcb.rflags().contains(Rflags::NT));
}

#[test]
fn call_and_return() {
    let mut machine = machine();
    switch(&mut machine, NEW_TSS, 0);
    is_new(&machine);
    assert!(busy(&machine, OLD_TSS));
    assert!(machine.vmcb.rflags().contains(Rflags::NT));
    assert_eq!(get(&machine, NEW, 2), u64::from(OLD_TSS));

    // iret, at another place
    machine.vmcb.set_rip(0x2000);
    machine.world.ram[0x2000] = 0xcf;
    switch(&mut machine, OLD_TSS, IRET);
    assert_eq!(machine.exception(), None);
    assert_eq!(machine.vmcb.rip(), CODE + 7);
    assert_eq!(machine.vmcb.cpl(), 0);
    assert_eq!(machine.state.regs.get(gpr::RSP), 0x7f00);
    assert_eq!(machine.vmcb.rflags(), Rflags::RESERVED1 | Rflags::CF);
    assert!(!busy(&machine, NEW_TSS) && busy(&machine, OLD_TSS));
    assert_eq!(get(&machine, NEW + 0x20, 4), 0x2001);
    assert_eq!(get(&machine, NEW + 0x24, 4) & Rflags::NT.bits(), 0);
}

/// IRET ends the masking of NMIs, also if it leads to another task: the NMI that waits comes there
/// at once.
#[test]
fn an_nmi_behind_a_return() {
    let mut machine = machine().code(&[0xcf]);
    set_descriptor(&mut machine, NEW_TSS, descriptor(NEW, 0x67, 0x8b, 0));
    machine.state.events.set_nmi_masked(true);
    machine.state.events.raise_nmi();
    machine.prepare();
    assert_eq!(machine.exit(ExitCode::IRET, 0, 0), Action::Resume);
    // The step over it.
    machine.prepare();
    switch(&mut machine, NEW_TSS, IRET);
    is_new(&machine);
    machine.prepare();
    assert_eq!(Event::decode(machine.vmcb.event_inj()), Some(Event::Nmi));
    assert!(!machine.vmcb.rflags().contains(Rflags::TF));
}

/// A double fault through a task gate.
#[test]
fn exception_through_a_gate() {
    let mut machine = machine();
    let event = Event::Exception(vector::DF, Some(0)).encode();
    poke(&mut machine.vmcb, EXITINTINFO, event);
    switch(&mut machine, NEW_TSS, HAS_CODE | RF | 0x55);
    is_new(&machine);
    saved(&machine, CODE, Rflags::RESERVED1 | Rflags::CF | Rflags::RF);
    assert_eq!(machine.state.regs.get(gpr::RSP), 0x7800 - 4);
    assert_eq!(get(&machine, 0x7800 - 4, 4), 0x55);
    machine.prepare();
    assert_eq!(machine.vmcb.event_inj(), 0, "it was delivered");
}

#[test]
fn interrupts_through_a_gate() {
    for (event, rip) in [
        (Event::Interrupt(0x30), CODE),
        (Event::Nmi, CODE),
        (Event::Software(0x30), CODE + 7),
    ] {
        let mut machine = machine();
        poke(&mut machine.vmcb, EXITINTINFO, event.encode());
        switch(&mut machine, NEW_TSS, 0);
        is_new(&machine);
        saved(&machine, rip, Rflags::RESERVED1 | Rflags::CF);
        machine.prepare();
        assert_eq!(machine.vmcb.event_inj(), 0);
    }
}

#[test]
fn a_16_bit_task() {
    let mut machine = machine();
    set_descriptor(&mut machine, NEW_TSS, descriptor(NEW, 0x2b, 0x81, 0));
    for (at, value) in [(0x0e, 0x4321), (0x10, 2), (0x1a, 0x7800), (0x2a, 0)] {
        put(&mut machine, NEW + at, 2, value);
    }
    for (at, value) in [(0x22, DATA0), (0x24, CODE0), (0x26, DATA0), (0x28, 0)] {
        put(&mut machine, NEW + at, 2, u64::from(value));
    }
    switch(&mut machine, NEW_TSS, JUMP);
    assert_eq!(machine.exception(), None);
    assert_eq!(machine.vmcb.rip(), 0x4321);
    assert_eq!(machine.state.regs.get(gpr::RSP), 0x7800);
    assert!(!machine
        .vmcb
        .segment(SegReg::Ds)
        .attributes
        .contains(SegAttr::P));
    assert!(!machine
        .vmcb
        .segment(SegReg::Fs)
        .attributes
        .contains(SegAttr::P));
    assert_eq!(machine.vmcb.segment(SegReg::Tr).attributes.bits(), 0x83);
}

#[test]
fn a_virtual_8086_task() {
    let mut machine = machine();
    let flags = Rflags::RESERVED1 | Rflags::VM;
    put(&mut machine, NEW + 0x24, 4, flags.bits());
    put(&mut machine, NEW + 0x4c, 4, 0x1234);
    switch(&mut machine, NEW_TSS, JUMP);
    assert_eq!(machine.exception(), None);
    let cs = machine.vmcb.segment(SegReg::Cs);
    assert_eq!((cs.selector, cs.base, cs.limit), (0x1234, 0x12340, 0xffff));
    assert_eq!(cs.attributes.bits(), 0xf3);
    assert_eq!(machine.vmcb.cpl(), 3);
}

/// Before the switch: the old task gets the exception.
#[test]
fn what_is_wrong_with_the_tss() {
    let cases = [
        (
            descriptor(NEW, 0x67, 0x09, 0),
            Exception::with_code(vector::NP, 0x20),
        ),
        (
            descriptor(NEW, 0x66, 0x89, 0),
            Exception::with_code(vector::TS, 0x20),
        ),
        (
            descriptor(NEW, 0x67, 0x8b, 0),
            Exception::with_code(vector::TS, 0x20),
        ),
        (
            descriptor(NEW, 0x67, 0x93, 0),
            Exception::with_code(vector::TS, 0x20),
        ),
    ];
    for (descriptor, exception) in cases {
        let mut machine = machine();
        set_descriptor(&mut machine, NEW_TSS, descriptor);
        switch(&mut machine, NEW_TSS, JUMP);
        assert_eq!(machine.exception(), Some(exception));
        assert_eq!(machine.vmcb.rip(), CODE);
        assert!(busy(&machine, OLD_TSS));
    }
    for selector in [0, 0x24, 0x38] {
        let mut machine = machine();
        switch(&mut machine, selector, JUMP);
        let expected = Exception::with_code(vector::TS, u32::from(selector));
        assert_eq!(machine.exception(), Some(expected));
    }
}

/// After the switch: the new task gets it.
#[test]
fn what_is_wrong_with_a_segment() {
    let cases = [
        (
            0x4c,
            u64::from(DATA3),
            Exception::with_code(vector::TS, 0x30),
        ),
        (0x4c, 0, Exception::with_code(vector::TS, 0)),
        (
            0x50,
            u64::from(DATA0),
            Exception::with_code(vector::TS, 0x10),
        ),
        (0x54, 0x4b, Exception::with_code(vector::TS, 0x48)),
        (
            0x60,
            u64::from(DATA0),
            Exception::with_code(vector::TS, 0x10),
        ),
    ];
    for (at, selector, exception) in cases {
        let mut machine = machine();
        put(&mut machine, NEW + at, 2, selector);
        switch(&mut machine, NEW_TSS, JUMP);
        assert_eq!(machine.exception(), Some(exception), "{at:x}");
        assert_eq!(machine.vmcb.rip(), 0x1234);
    }
    let mut machine = machine();
    set_descriptor(&mut machine, DATA3, descriptor(0, 0xf_ffff, 0x72, 0xc));
    switch(&mut machine, NEW_TSS, JUMP);
    assert_eq!(
        machine.exception(),
        Some(Exception::with_code(vector::SS, 0x30))
    );
}

#[test]
fn the_trap_bit() {
    let mut machine = machine();
    put(&mut machine, NEW + 0x64, 2, 1);
    switch(&mut machine, NEW_TSS, JUMP);
    let exception = machine.exception().expect("#DB");
    assert_eq!(
        (exception.vector, exception.payload),
        (vector::DB, Some(1 << 15))
    );
}

/// An interrupt or an NMI through a task gate whose task cannot be entered: its end is the
/// exception.
#[test]
fn an_event_that_meets_a_bad_task_is_gone() {
    for event in [Event::Interrupt(0x30), Event::Nmi] {
        for broken in [
            descriptor(NEW, 0x67, 0x8b, 0),
            descriptor(NEW, 0x67, 0x09, 0),
        ] {
            let mut machine = machine();
            set_descriptor(&mut machine, NEW_TSS, broken);
            machine.vmcb.set_rflags(Rflags::RESERVED1 | Rflags::IF);
            match event {
                Event::Nmi => machine.state.events.raise_nmi(),
                _ => machine.line.vector = Some(0x30),
            }
            machine.prepare();
            assert_eq!(machine.vmcb.event_inj(), event.encode());
            poke(&mut machine.vmcb, EXITINTINFO, event.encode());
            switch(&mut machine, NEW_TSS, 0);
            let exception = machine.exception().expect("an exception");
            assert_eq!(exception.error_code, Some(u32::from(NEW_TSS) | 1));
            machine.prepare();
            machine.vmcb.set_rflags(Rflags::RESERVED1);
            poke(&mut machine.vmcb, EXITINTINFO, 0);
            machine.leave(ExitCode::INTR, 0, 0);
            machine.prepare();
            assert_eq!(machine.vmcb.event_inj(), 0);
        }
    }
}

/// Another CPU makes the TSS one that is not there before it is marked as busy: the switch begins
/// anew. The accessed bit of the new task's segment likewise.
#[test]
fn a_descriptor_that_another_cpu_changes() {
    let mut machine = machine();
    let kind = GDT + usize::from(NEW_TSS) + 5;
    machine.leave(ExitCode::TASK_SWITCH, u64::from(NEW_TSS), JUMP);
    assert_eq!(machine.handle(), Action::NeedSleep);
    // The first descriptor to be written is that of the old task, which is released.
    let old = GDT + usize::from(OLD_TSS) + 6;
    machine.world.race = Some((old, 0x10));
    assert_eq!(machine.handle(), Action::Resume);
    is_new(&machine);
    assert!(!busy(&machine, OLD_TSS));
    assert_eq!(machine.world.ram[old], 0x10, "what the other CPU wrote");
    assert_eq!(machine.world.ram[kind], 0x8b);
}

/// Descriptors and both TSSs in read-only memory: what the CPU itself writes is dropped, and the
/// new task runs.
#[test]
fn a_switch_in_read_only_memory() {
    for info2 in [JUMP, 0] {
        let mut machine = machine();
        machine.world.read_only = true;
        let before = machine.world.ram.clone();
        switch(&mut machine, NEW_TSS, info2);
        assert_eq!(machine.exception(), None);
        assert_eq!((machine.vmcb.rip(), machine.vmcb.cpl()), (0x1234, 3));
        let tr = machine.vmcb.segment(SegReg::Tr);
        assert_eq!((tr.selector, tr.attributes.bits()), (NEW_TSS, 0x8b));
        let ss = machine.vmcb.segment(SegReg::Ss);
        assert_eq!(ss.attributes.bits(), 0xcf3, "accessed");
        assert!(machine.world.ram == before);
    }
}
