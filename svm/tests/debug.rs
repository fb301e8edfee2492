// SPDX-License-Identifier: GPL-2.0-only

//! `KVM_SET_GUEST_DEBUG`: what the debugger gets, and what the guest keeps.

mod support;

use support::{peek, poke, Machine, CODE, EXITINTINFO, NRIP, USER_MMIO};
use svm::debug::DebugControl;
use svm::dispatch::{events_set, finish_io, Action, UserExit};
use svm::event::Event;
use svm::exit::{ExitCode, NestedError};
use svm::features::SvmFeatures;
use svm::intercept::{DrIntercepts, ExceptionIntercepts, Intercepts, Word3};
use svm::io::UserIo;
use svm::requests::Requests;
use svm::vmcb::{DR6_RESET, DR7_RESET};
use x86::regs::{gpr, vector, Exception, Rflags};

const STEP: DebugControl = DebugControl::ENABLE.union(DebugControl::SINGLESTEP);
const HARDWARE: DebugControl = DebugControl::ENABLE.union(DebugControl::USE_HW_BP);
const SOFTWARE: DebugControl = DebugControl::ENABLE.union(DebugControl::USE_SW_BP);
const DB: ExitCode = ExitCode(ExitCode::EXCP0.0 + vector::DB as u64);
const BP: ExitCode = ExitCode(ExitCode::EXCP0.0 + vector::BP as u64);
/// The debugger's registers.
const BREAKPOINTS: [u64; 4] = [0x10, 0x20, 0x30, 0x40];

fn set(machine: &mut Machine, control: DebugControl) {
    let host = machine.host;
    let debug = &mut machine.state.debug;
    debug.set(&mut machine.vmcb, host, control, BREAKPOINTS, 0x402);
}

fn machine(control: DebugControl, code: &[u8]) -> Machine {
    let mut machine = Machine::real(SvmFeatures::empty()).code(code);
    set(&mut machine, control);
    machine
}

#[test]
fn nothing_counts_without_enable() {
    let before = *machine(DebugControl::empty(), &[]).vmcb.intercepts();
    let machine = machine(DebugControl::all() - DebugControl::ENABLE, &[]);
    assert_eq!(*machine.vmcb.intercepts(), before);
    assert!(!machine.vmcb.rflags().contains(Rflags::TF));
    assert_eq!(machine.vmcb.dr7(), DR7_RESET);
}

#[test]
fn the_guest_keeps_its_registers() {
    let mut machine = machine(DebugControl::empty(), &[]);
    machine.vmcb.set_dr6(DR6_RESET | 1);
    machine.vmcb.set_dr7(0x401);
    for control in [HARDWARE, HARDWARE, STEP | HARDWARE, STEP] {
        set(&mut machine, control);
        let debug = machine.state.debug;
        assert_eq!(debug.dr6(&machine.vmcb), DR6_RESET | 1);
        assert_eq!(debug.dr7(&machine.vmcb), 0x401);
        assert_eq!(machine.vmcb.dr6(), DR6_RESET);
        assert_eq!(machine.vmcb.intercepts().dr, DrIntercepts::all());
        let (db, dr7) = match control.contains(DebugControl::USE_HW_BP) {
            true => (BREAKPOINTS, 0x402),
            false => ([0; 4], 0x401),
        };
        assert_eq!(machine.state.breakpoints(&machine.vmcb), Some(&db));
        assert_eq!(machine.vmcb.dr7(), dr7);
        assert!(!debug.rflags(&machine.vmcb).contains(Rflags::TF));
    }
    set(&mut machine, DebugControl::empty());
    assert_eq!(machine.vmcb.dr6(), DR6_RESET | 1);
    assert_eq!(machine.vmcb.dr7(), 0x401);
    assert_eq!(machine.vmcb.intercepts().dr, Intercepts::BASELINE.dr);
    assert_eq!(machine.vmcb.rflags(), Rflags::RESERVED1);
}

#[test]
fn init_leaves_the_debugger() {
    let mut machine = machine(STEP | HARDWARE, &[]);
    machine.state.debug.set_dr7(&mut machine.vmcb, 0x777);
    machine.state.init(&mut machine.vmcb, 0);
    assert_eq!(machine.vmcb.dr7(), 0x402);
    assert_eq!(machine.state.debug.dr7(&machine.vmcb), DR7_RESET);
    assert!(machine.vmcb.rflags().contains(Rflags::TF));
}

#[test]
fn exceptions_are_the_debuggers() {
    for (control, code, number) in [
        (STEP, DB, vector::DB),
        (HARDWARE, DB, vector::DB),
        (SOFTWARE, BP, vector::BP),
    ] {
        let mut machine = machine(control, &[]);
        machine.vmcb.set_dr6(DR6_RESET | 4);
        let dr6 = if code == DB { DR6_RESET | 4 } else { 0 };
        let stop = Action::User(UserExit::Debug {
            vector: number,
            dr6,
        });
        assert_eq!(machine.exit(code, 0, 0), stop);
        assert_eq!(machine.exception(), None);
        if code == DB {
            assert_eq!(machine.vmcb.dr6(), DR6_RESET, "ready for the next one");
        }
    }
    let mut machine = machine(SOFTWARE, &[]);
    let intercepted = machine.vmcb.intercepts().exceptions;
    assert!(intercepted.contains(ExceptionIntercepts::BP));
    assert_eq!(machine.exit(DB, 0, 0), Action::Resume);
    assert_eq!(machine.exception(), Some(Exception::new(vector::DB)));
}

/// The #DB behind an emulated instruction is the debugger's, after what the VMM has to do for it.
#[test]
fn an_emulated_step() {
    // mov [bx], al
    let mut machine = machine(STEP, &[0x88, 0x07]);
    let mut ds = machine.vmcb.segment(x86::regs::SegReg::Ds);
    ds.base = USER_MMIO;
    machine.vmcb.set_segment(x86::regs::SegReg::Ds, ds);
    let fault = NestedError::WRITE | NestedError::FINAL;
    let action = machine.exit(ExitCode::NPF, fault.bits(), USER_MMIO);
    assert!(matches!(
        action,
        Action::User(UserExit::Io(UserIo::Mmio { write: true, .. }))
    ));
    assert_eq!(finish_io(&mut machine.guest(), [0; 8]), Action::Resume);
    assert!(machine.world.requests.contains(Requests::STEPPED));
    assert_eq!(machine.exception(), None);
    assert_eq!(machine.vmcb.rip(), CODE + 2);
}

/// The guest's own TF, without single steps of the debugger.
#[test]
fn the_guests_steps_are_its_own() {
    let mut machine = machine(HARDWARE, &[0x0f, 0xa2]);
    machine.vmcb.set_rflags(Rflags::RESERVED1 | Rflags::TF);
    machine.exit(ExitCode::CPUID, 0, 0);
    assert!(!machine.world.requests.contains(Requests::STEPPED));
    assert!(machine.exception().is_some());
    // Its DR6 gets the cause, and the debugger's stays clear.
    machine.prepare();
    assert_eq!(machine.state.debug.dr6(&machine.vmcb), DR6_RESET | 1 << 14);
    assert_eq!(machine.vmcb.dr6(), DR6_RESET);
}

/// A CPU without next-RIP saving may take INT3 for INT n.
#[test]
fn int3_as_int_n() {
    let mut machine = machine(SOFTWARE, &[0xcc]);
    assert!(machine.vmcb.intercepts().word3.contains(Word3::SWINT));
    let stop = Action::User(UserExit::Debug {
        vector: vector::BP,
        dr6: 0,
    });
    assert_eq!(machine.exit(ExitCode::SWINT, 0, 0), stop);
    assert_eq!(machine.vmcb.rip(), CODE);
    machine.host = SvmFeatures::NRIPS;
    set(&mut machine, SOFTWARE);
    assert!(!machine.vmcb.intercepts().word3.contains(Word3::SWINT));
}

/// A delivery that is cut short begins again, and returns behind its instruction.
#[test]
fn software_interrupts() {
    let mut machine = machine(SOFTWARE, &[0xcd, 0x80]);
    assert_eq!(machine.exit(ExitCode::SWINT, 0, 0), Action::Resume);
    for _ in 0..3 {
        machine.prepare();
        let given = machine.vmcb.event_inj();
        assert_eq!(given, Event::Software(0x80).encode());
        assert_eq!(machine.vmcb.rip(), CODE + 2);
        assert_eq!(peek(&mut machine.vmcb, NRIP), CODE + 2);
        poke(&mut machine.vmcb, NRIP, 0);
        poke(&mut machine.vmcb, EXITINTINFO, given);
        machine.leave(ExitCode::INTR, 0, 0);
    }
    machine.prepare();
    poke(&mut machine.vmcb, EXITINTINFO, 0);
    machine.leave(ExitCode::INTR, 0, 0);
    machine.prepare();
    assert_eq!(machine.vmcb.event_inj(), 0);
    assert!(!machine.state.events.behind_instruction());
}

/// Another event's delivery is cut short in the same turn, after that of the software interrupt.
#[test]
fn a_software_interrupt_and_then_another_event() {
    let mut machine = machine(SOFTWARE, &[0xcd, 0x80]);
    assert_eq!(machine.exit(ExitCode::SWINT, 0, 0), Action::Resume);
    machine.prepare();
    machine.vmcb.set_rip(CODE + 0x100);
    poke(
        &mut machine.vmcb,
        EXITINTINFO,
        Event::Interrupt(0x31).encode(),
    );
    machine.leave(ExitCode::INTR, 0, 0);
    assert!(!machine.state.events.behind_instruction());
    machine.prepare();
    assert_eq!(machine.vmcb.event_inj(), Event::Interrupt(0x31).encode());
}

#[test]
fn an_injected_breakpoint_returns_behind_its_instruction() {
    for (code, length) in [(0xcc, 1), (0x90, 0)] {
        let mut machine = machine(SOFTWARE, &[code]);
        machine.state.events.raise(Exception::new(vector::BP));
        for _ in 0..2 {
            events_set(&mut machine.guest());
            assert_eq!(machine.vmcb.rip(), CODE + length);
        }
        machine.prepare();
        let event = Event::Exception(vector::BP, None);
        assert_eq!(machine.vmcb.event_inj(), event.encode());
    }
}

#[test]
fn interrupts_are_kept_away() {
    let mut machine = machine(STEP | DebugControl::BLOCKIRQ, &[]);
    machine.vmcb.set_rflags(Rflags::RESERVED1 | Rflags::IF);
    machine.line.vector = Some(0x30);
    machine.state.events.raise_nmi();
    machine.prepare();
    assert_eq!(machine.vmcb.event_inj(), 0);
    assert!(!machine.vmcb.intercepts().word3.contains(Word3::VINTR));
    set(&mut machine, DebugControl::empty());
    machine.prepare();
    assert_eq!(machine.vmcb.event_inj(), Event::Nmi.encode());
    machine.leave(ExitCode::INTR, 0, 0);
    machine.prepare();
    assert_eq!(machine.vmcb.event_inj(), Event::Interrupt(0x30).encode());
}

/// The debugger's general detect stops the guest before it reads or writes a debug register.
#[test]
fn general_detect() {
    // mov ecx, dr1
    let mut machine = machine(HARDWARE, &[0x0f, 0x21, 0xc9]);
    let host = machine.host;
    let debug = &mut machine.state.debug;
    debug.set(&mut machine.vmcb, host, HARDWARE, BREAKPOINTS, 1 << 13);
    let stop = Action::User(UserExit::Debug {
        vector: vector::DB,
        dr6: DR6_RESET | 1 << 13,
    });
    machine.state.regs.set(gpr::RCX, 7);
    assert_eq!(machine.exit(ExitCode(0x21), 0, 0), stop);
    assert_eq!(machine.state.regs.get(gpr::RCX), 7);
    assert_eq!(machine.vmcb.rip(), CODE);
}
