// SPDX-License-Identifier: GPL-2.0-only

//! Events: their encoding, how they merge, and their way into the guest and back.

mod support;

use proptest::prelude::*;
use support::{poke, Machine, CODE, EXITINTINFO};
use svm::dispatch::events_set;
use svm::event::{merge, Event, Events, Merged, QueuedInterrupt};
use svm::exit::ExitCode;
use svm::features::SvmFeatures;
use svm::inject::{cancel, expose_exception, ready_for_interrupt, Entry};
use svm::intercept::{CrIntercepts, Word3};
use svm::vmcb::VirtualInterrupt;
use x86::features::Feature;
use x86::regs::{vector, Cr0, Exception, Rflags};

fn machine() -> Machine {
    let mut machine = Machine::real(SvmFeatures::empty());
    machine.vmcb.set_rflags(Rflags::RESERVED1 | Rflags::IF);
    machine.vmcb.set_cr0(machine.vmcb.cr0() | Cr0::PE);
    machine
}

fn injected(machine: &Machine) -> Option<Event> {
    Event::decode(machine.vmcb.event_inj())
}

fn intercepts(machine: &Machine) -> Word3 {
    machine.vmcb.intercepts().word3
}

/// An exit, for which EXITINTINFO says that `event` was being delivered.
fn exit_during(machine: &mut Machine, event: Option<Event>) {
    poke(
        &mut machine.vmcb,
        EXITINTINFO,
        event.map_or(0, Event::encode),
    );
    machine.leave(ExitCode::INTR, 0, 0);
}

#[test]
fn encoding() {
    assert_eq!(Event::Interrupt(0x30).encode(), 0x8000_0030);
    assert_eq!(Event::Nmi.encode(), 0x8000_0202);
    assert_eq!(Event::Exception(13, Some(0x18)).encode(), 0x18_8000_0b0d);
    assert_eq!(Event::Exception(6, None).encode(), 0x8000_0306);
    assert_eq!(Event::Software(0x80).encode(), 0x8000_0480);
    // QEMU's report of an interrupt that came by V_IRQ.
    assert_eq!(Event::decode(0x8000_0330), Some(Event::Interrupt(0x30)));
}

proptest! {
    #[test]
    fn encoding_is_total(info: u64) {
        if let Some(event) = Event::decode(info) {
            prop_assert_eq!(Event::decode(event.encode()), Some(event));
        }
    }
}

/// Benign, contributory, #PF, #DF: rows the first, columns the second (APM vol. 2, table 8-5).
#[test]
fn merging() {
    use Merged::{DoubleFault as D, Second as S, Shutdown as X};
    let classes: [&[u8]; 4] = [
        &[1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19],
        &[0, 10, 11, 12, 13],
        &[14],
        &[8],
    ];
    let table = [[S, S, S], [S, D, S], [S, D, D], [S, X, X]];
    for (row, firsts) in classes.iter().enumerate() {
        for (column, seconds) in classes.iter().take(3).enumerate() {
            for first in *firsts {
                for second in *seconds {
                    assert_eq!(
                        merge(*first, *second),
                        table[row][column],
                        "{first} {second}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_third_fault_shuts_down() {
    let mut machine = machine();
    machine.state.events.raise(Exception::page_fault(0x1000, 2));
    machine.state.events.raise(Exception::GP0);
    assert_eq!(
        machine.exception(),
        Some(Exception::with_code(vector::DF, 0))
    );
    machine.state.events.raise(Exception::GP0);
    assert_eq!(machine.prepare(), Entry::Shutdown);
    assert_eq!(machine.prepare(), Entry::Run);
}

#[test]
fn registers_travel() {
    let mut machine = machine();
    machine.state.regs.gpr[0] = 0x1111;
    machine.state.regs.gpr[4] = 0x4444;
    machine.prepare();
    assert_eq!((machine.vmcb.rax(), machine.vmcb.rsp()), (0x1111, 0x4444));
    machine.leave(ExitCode::INTR, 0, 0);
    assert_eq!(machine.state.regs.gpr[0], 0x1111);
}

#[test]
fn exception_first_then_nmi_then_interrupt() {
    let mut machine = machine();
    machine.line.vector = Some(0x31);
    machine.state.events.raise_nmi();
    machine.state.events.raise(Exception::UD);
    assert_eq!(machine.prepare(), Entry::RunBriefly);
    assert_eq!(injected(&machine), Some(Event::Exception(6, None)));
    assert!(intercepts(&machine).contains(Word3::IRET));
    assert!(machine.vmcb.rflags().contains(Rflags::RF));
    assert!(intercepts(&machine).contains(Word3::VINTR));

    exit_during(&mut machine, None);
    assert_eq!(machine.prepare(), Entry::Run);
    assert_eq!(injected(&machine), Some(Event::Nmi));
    assert!(machine.state.events.nmi_masked);
    assert!(intercepts(&machine).contains(Word3::IRET | Word3::VINTR));

    exit_during(&mut machine, None);
    assert_eq!(machine.prepare(), Entry::Run);
    assert_eq!(injected(&machine), Some(Event::Interrupt(0x31)));
    assert!(!intercepts(&machine).contains(Word3::VINTR));

    exit_during(&mut machine, None);
    assert_eq!(machine.prepare(), Entry::Run);
    assert_eq!(injected(&machine), None);
}

#[test]
fn preparing_twice_changes_nothing() {
    let mut machine = machine();
    machine.line.vector = Some(0x31);
    machine.prepare();
    machine.prepare();
    assert_eq!(injected(&machine), Some(Event::Interrupt(0x31)));
    machine.state.events.raise(Exception::GP0);
    machine.prepare();
    assert_eq!(injected(&machine), Some(Event::Exception(13, Some(0))));
    // The interrupt is not lost behind the exception.
    exit_during(&mut machine, None);
    machine.prepare();
    assert_eq!(injected(&machine), Some(Event::Interrupt(0x31)));
}

#[test]
fn what_was_cut_short_comes_again() {
    for event in [
        Event::Interrupt(0x55),
        Event::Nmi,
        Event::Exception(14, Some(2)),
    ] {
        let mut machine = machine();
        exit_during(&mut machine, Some(event));
        assert!(!ready_for_interrupt(&machine.vmcb, &machine.state));
        machine.vmcb.set_cr2(0x77);
        machine.prepare();
        assert_eq!(injected(&machine), Some(event));
        assert_eq!(machine.vmcb.cr2(), 0x77);
        exit_during(&mut machine, None);
        machine.prepare();
        assert_eq!(injected(&machine), None);
        assert_eq!(machine.state.events.nmi_masked, event == Event::Nmi);
    }
}

/// The exception's handler is told by EXT, or not at all; the event that it came of is gone (APM
/// vol. 2, 8.4.2, 15.20).
#[test]
fn an_event_whose_delivery_ends_in_an_exception_is_gone() {
    for event in [Event::Interrupt(0x31), Event::Nmi] {
        for again in [false, true] {
            let mut machine = machine();
            match event {
                Event::Nmi => machine.state.events.raise_nmi(),
                _ => machine.line.vector = Some(0x31),
            }
            machine.prepare();
            assert_eq!(injected(&machine), Some(event));
            if again {
                // The host's interrupt cuts it short first.
                exit_during(&mut machine, Some(event));
                machine.handle();
                machine.prepare();
                assert_eq!(injected(&machine), Some(event));
            }
            poke(&mut machine.vmcb, EXITINTINFO, event.encode());
            machine.exit(ExitCode(0x40 + u64::from(vector::AC)), 0, 0);
            // Until the exception is delivered, the VMM sees both, as with KVM.
            assert!(machine.state.events.busy());
            machine.prepare();
            assert_eq!(injected(&machine), Some(Event::Exception(17, Some(0))));
            machine.vmcb.set_rflags(Rflags::RESERVED1);
            // The exception may be cut short, too.
            exit_during(&mut machine, Some(Event::Exception(17, Some(0))));
            machine.prepare();
            assert_eq!(injected(&machine), Some(Event::Exception(17, Some(0))));
            exit_during(&mut machine, None);
            assert_eq!(machine.state.events.interrupt, None);
            assert!(!machine.state.events.nmi_injected);
            machine.prepare();
            assert_eq!(injected(&machine), None);
            // An NMI is masked until the IRET of the exception's handler.
            assert_eq!(machine.state.events.nmi_masked, event == Event::Nmi);

            // The next one is not.
            machine.vmcb.set_rflags(Rflags::RESERVED1 | Rflags::IF);
            machine.line.vector = Some(0x32);
            machine.prepare();
            assert_eq!(injected(&machine), Some(Event::Interrupt(0x32)));
            machine.state.events.raise(Exception::GP0);
            machine.prepare();
            exit_during(&mut machine, None);
            machine.prepare();
            assert_eq!(injected(&machine), Some(Event::Interrupt(0x32)));
        }
    }
}

/// What the VMM sets is what it read: an exception on top of an event whose delivery had begun.
#[test]
fn an_exception_takes_the_place_of_restored_events() {
    let mut machine = machine();
    let events = &mut machine.state.events;
    events.interrupt = Some(QueuedInterrupt {
        vector: 0x31,
        soft: false,
    });
    events.nmi_injected = true;
    events.raise(Exception::GP0);
    events.deliveries_began();
    machine.prepare();
    assert_eq!(injected(&machine), Some(Event::Exception(13, Some(0))));
    exit_during(&mut machine, None);
    machine.prepare();
    assert_eq!(injected(&machine), None);
}

/// INT n whose delivery ends in a fault: the fault's handler returns to the INT n.
#[test]
fn an_injected_instruction_that_faults_is_executed_again() {
    for event in [Event::Software(0x80), Event::Exception(3, None)] {
        let mut machine = machine();
        let code: &[u8] = match event {
            Event::Software(_) => &[0xcd, 0x80],
            _ => &[0xcc],
        };
        machine = machine.code(code);
        match event {
            Event::Software(_) => {
                machine.exit(ExitCode::SWINT, 0, 0);
            }
            _ => {
                machine.state.events.raise(Exception::new(vector::BP));
                events_set(&mut machine.guest());
            }
        }
        machine.prepare();
        assert_eq!(injected(&machine), Some(event));
        assert_eq!(machine.vmcb.rip(), CODE + code.len() as u64);
        poke(&mut machine.vmcb, EXITINTINFO, event.encode());
        machine.exit(ExitCode(0x40 + u64::from(vector::AC)), 0, 0);
        machine.prepare();
        assert_eq!(injected(&machine), Some(Event::Exception(17, Some(0))));
        assert_eq!(machine.vmcb.rip(), CODE);
        machine.vmcb.set_rip(0x2000);
        exit_during(&mut machine, None);
        assert_eq!(machine.state.events, Events::default());
        machine.prepare();
        assert_eq!(injected(&machine), None);
        assert_eq!(machine.vmcb.rip(), 0x2000);
    }
}

/// What was in EVENTINJ is delivered, not what waits behind it.
#[test]
fn an_injected_int3_leaves_the_interrupt_behind_it() {
    let mut machine = machine().code(&[0xcc]);
    machine.state.events.raise(Exception::new(vector::BP));
    events_set(&mut machine.guest());
    machine.state.events.interrupt = Some(QueuedInterrupt {
        vector: 0x31,
        soft: false,
    });
    machine.prepare();
    assert_eq!(injected(&machine), Some(Event::Exception(3, None)));
    exit_during(&mut machine, None);
    machine.prepare();
    assert_eq!(injected(&machine), Some(Event::Interrupt(0x31)));
}

/// The VMM's exception did not come of what is being delivered. That goes first: an interrupt would
/// come with IF clear in the exception's handler, an NMI in that of a machine check.
#[test]
fn an_exception_of_the_vmm_waits_for_what_is_being_delivered() {
    let machine_check = Some(Event::Exception(vector::MC, None));
    for event in [
        Event::Interrupt(0x31),
        Event::Nmi,
        Event::Exception(vector::DB, None),
    ] {
        for again in [false, true] {
            let mut machine = machine();
            exit_during(&mut machine, Some(event));
            machine
                .state
                .events
                .raise_for_vmm(Exception::new(vector::MC));
            assert_eq!(machine.prepare(), Entry::RunBriefly);
            assert_eq!(injected(&machine), Some(event));
            if again {
                exit_during(&mut machine, Some(event));
                assert_eq!(machine.prepare(), Entry::RunBriefly);
                assert_eq!(injected(&machine), Some(event));
            }
            exit_during(&mut machine, None);
            assert_eq!(machine.prepare(), Entry::Run);
            assert_eq!(injected(&machine), machine_check);
            assert_eq!(machine.state.events.nmi_masked, event == Event::Nmi);
            exit_during(&mut machine, None);
            assert!(!machine.state.events.busy());
            machine.prepare();
            assert_eq!(injected(&machine), None);
        }
    }
}

/// The controller has let go of the interrupt, and the VMM's exception comes before VMRUN.
#[test]
fn an_exception_of_the_vmm_waits_for_an_acknowledged_interrupt() {
    let mut machine = machine();
    machine.line.vector = Some(0x31);
    machine.prepare();
    cancel(&mut machine.vmcb, &mut machine.state);
    machine
        .state
        .events
        .raise_for_vmm(Exception::new(vector::DB));
    assert_eq!(machine.prepare(), Entry::RunBriefly);
    assert_eq!(injected(&machine), Some(Event::Interrupt(0x31)));
    exit_during(&mut machine, None);
    assert_eq!(machine.prepare(), Entry::Run);
    assert_eq!(injected(&machine), Some(Event::Exception(vector::DB, None)));
}

/// A VMM that saves the vCPU meanwhile, and restores it, loses neither: a fault comes again by
/// itself.
#[test]
fn an_exception_of_the_vmm_that_waits_is_shown() {
    for (vector, shown) in [(vector::PF, vector::MC), (vector::DF, vector::DF)] {
        let mut machine = machine();
        exit_during(&mut machine, Some(Event::Exception(vector, Some(0))));
        let events = &mut machine.state.events;
        assert!(events.shown().unwrap().injected);
        events.raise_for_vmm(Exception::new(vector::MC));
        let after = events.shown().unwrap();
        assert_eq!(after.exception.vector, shown);
        assert_eq!(after.injected, shown == vector);
    }
}

/// The same of an INT n that RIP is behind already.
#[test]
fn an_exception_of_the_vmm_waits_for_an_injected_instruction() {
    let mut machine = machine().code(&[0xcd, 0x80]);
    machine.exit(ExitCode::SWINT, 0, 0);
    machine
        .state
        .events
        .raise_for_vmm(Exception::new(vector::MC));
    assert_eq!(machine.prepare(), Entry::RunBriefly);
    assert_eq!(injected(&machine), Some(Event::Software(0x80)));
    machine.vmcb.set_rip(0x2000);
    exit_during(&mut machine, None);
    assert_eq!(machine.prepare(), Entry::Run);
    assert_eq!(injected(&machine), Some(Event::Exception(vector::MC, None)));
    assert_eq!(machine.vmcb.rip(), 0x2000);
}

/// What the delivery ends in is its own end: the VMM's exception waits for that, too.
#[test]
fn an_exception_of_the_vmm_waits_for_the_end_of_a_delivery() {
    for cut_short in [false, true] {
        let mut machine = machine();
        exit_during(&mut machine, Some(Event::Interrupt(0x31)));
        machine
            .state
            .events
            .raise_for_vmm(Exception::new(vector::MC));
        machine.prepare();
        if cut_short {
            exit_during(&mut machine, Some(Event::Exception(vector::AC, Some(0))));
        } else {
            let info = Event::Interrupt(0x31).encode();
            poke(&mut machine.vmcb, EXITINTINFO, info);
            machine.exit(ExitCode(0x40 + u64::from(vector::AC)), 0, 0);
        }
        for exception in [
            Event::Exception(vector::AC, Some(0)),
            Event::Exception(vector::MC, None),
        ] {
            machine.prepare();
            assert_eq!(injected(&machine), Some(exception));
            exit_during(&mut machine, None);
        }
        machine.prepare();
        assert_eq!(injected(&machine), None);
    }
}

/// No delivery ends in a machine check: a VMM that sets one with the rest has raised it itself.
#[test]
fn a_set_machine_check_waits() {
    let mut machine = machine();
    let events = &mut machine.state.events;
    events.interrupt = Some(QueuedInterrupt {
        vector: 0x31,
        soft: false,
    });
    events.raise(Exception::new(vector::MC));
    events.deliveries_began();
    assert_eq!(machine.prepare(), Entry::RunBriefly);
    assert_eq!(injected(&machine), Some(Event::Interrupt(0x31)));
    exit_during(&mut machine, None);
    machine.prepare();
    assert_eq!(injected(&machine), Some(Event::Exception(vector::MC, None)));
}

#[test]
fn software_events_are_executed_again() {
    for event in [Event::Software(0x80), Event::Exception(3, None)] {
        let mut machine = machine();
        exit_during(&mut machine, Some(event));
        machine.prepare();
        assert_eq!(injected(&machine), None);
    }
    let mut machine = machine();
    machine.state.events.interrupt = Some(QueuedInterrupt {
        vector: 0x80,
        soft: true,
    });
    machine.prepare();
    assert_eq!(injected(&machine), None);
    exit_during(&mut machine, None);
    assert_eq!(machine.state.events, Events::default());
}

#[test]
fn real_mode_has_no_error_codes() {
    let mut machine = Machine::real(SvmFeatures::empty());
    machine.state.events.raise(Exception::GP0);
    machine.prepare();
    assert_eq!(injected(&machine), Some(Event::Exception(13, None)));
}

/// CPUs that save the next RIP return there from the handlers of these two.
#[test]
fn bp_and_of_return_to_rip() {
    for vector in [vector::BP, vector::OF] {
        let mut machine = machine();
        machine.vmcb.set_rip(0x1234);
        machine.vmcb.set_next_rip(0);
        machine.state.events.raise(Exception::new(vector));
        machine.prepare();
        assert_eq!(injected(&machine), Some(Event::Exception(vector, None)));
        assert_eq!(machine.vmcb.next_rip(), 0x1234);
    }
}

#[test]
fn payloads_are_delivered_once() {
    let mut machine = machine();
    machine.vmcb.set_dr7(0x2400);
    machine.vmcb.set_dr6(0xffff_0ff1);
    machine.state.events.raise(Exception {
        payload: Some(1 << 14),
        ..Exception::new(vector::DB)
    });
    machine.prepare();
    assert_eq!(machine.vmcb.dr6(), 0xffff_4ff0);
    assert_eq!(machine.vmcb.dr7(), 0x400);
    assert!(!machine.vmcb.rflags().contains(Rflags::RF));

    machine.state.events = Events::default();
    machine.state.events.raise(Exception::page_fault(0xabc, 4));
    machine.prepare();
    assert_eq!(machine.vmcb.cr2(), 0xabc);
    machine.vmcb.set_cr2(0);
    machine.prepare();
    assert_eq!(machine.vmcb.cr2(), 0);
}

/// A VMM that does not know payloads sees their effect, and may still drop the exception by other
/// registers.
#[test]
fn other_registers_drop_what_is_pending_only() {
    let mut machine = machine();
    machine.state.events.raise(Exception::page_fault(0xabc, 4));
    expose_exception(&mut machine.vmcb, &mut machine.state);
    assert_eq!(machine.vmcb.cr2(), 0xabc);
    machine.vmcb.set_cr2(0x123);
    let shown = machine.state.events;
    machine.state.events.forget_pending();
    machine.prepare();
    assert_eq!(injected(&machine), None);

    machine.state.events = shown;
    machine.prepare();
    assert_eq!(injected(&machine), Some(Event::Exception(14, Some(4))));
    assert_eq!(machine.vmcb.cr2(), 0x123, "delivered once");

    for trap in [vector::DB, vector::MC] {
        exit_during(&mut machine, Some(Event::Exception(trap, None)));
        machine.state.events.forget_pending();
        machine.prepare();
        assert_eq!(injected(&machine), Some(Event::Exception(trap, None)));
    }
}

#[test]
fn an_nmi_comes_before_the_window() {
    let mut machine = machine();
    assert!(!machine.state.events.nmi_is_next());
    machine.state.events.raise_nmi();
    assert!(machine.state.events.nmi_is_next());
    machine.prepare();
    assert_eq!(injected(&machine), Some(Event::Nmi));
    exit_during(&mut machine, None);
    machine.state.events.raise_nmi();
    assert!(!machine.state.events.nmi_is_next(), "masked");
}

#[test]
fn a_triple_fault_comes_before_the_window() {
    let mut machine = machine();
    assert!(ready_for_interrupt(&machine.vmcb, &machine.state));
    machine.state.events.triple_fault = true;
    assert!(!ready_for_interrupt(&machine.vmcb, &machine.state));
    assert_eq!(machine.prepare(), Entry::Shutdown);
    assert!(ready_for_interrupt(&machine.vmcb, &machine.state));
}

#[test]
fn interrupts_wait_for_their_window() {
    let window = VirtualInterrupt::V_IRQ | VirtualInterrupt::V_IGN_TPR;
    for shadow in [false, true] {
        let mut machine = machine();
        machine.line.vector = Some(0x31);
        machine.vmcb.set_interrupt_shadow(shadow);
        if !shadow {
            machine.vmcb.set_rflags(Rflags::RESERVED1);
        }
        assert!(!ready_for_interrupt(&machine.vmcb, &machine.state));
        machine.prepare();
        assert_eq!(injected(&machine), None);
        assert!(machine.vmcb.virtual_interrupt().contains(window));
        assert!(intercepts(&machine).contains(Word3::VINTR));

        machine.vmcb.set_interrupt_shadow(false);
        machine.vmcb.set_rflags(Rflags::RESERVED1 | Rflags::IF);
        machine.leave(ExitCode::VINTR, 0, 0);
        machine.handle();
        machine.prepare();
        assert_eq!(injected(&machine), Some(Event::Interrupt(0x31)));
        assert!(!machine.vmcb.virtual_interrupt().intersects(window));
        assert!(!intercepts(&machine).contains(Word3::VINTR));
    }
}

#[test]
fn cr8_is_watched_on_demand() {
    let mut machine = machine();
    machine.prepare();
    let watched = |machine: &Machine| {
        machine
            .vmcb
            .intercepts()
            .cr
            .contains(CrIntercepts::CR8_WRITE)
    };
    assert!(!watched(&machine));
    machine.line.watch_cr8 = true;
    machine.prepare();
    assert!(watched(&machine));
}

/// NMI, another one pending, IRET, single step, #DB, second NMI.
#[test]
fn a_second_nmi_waits_for_iret() {
    let mut machine = machine();
    machine.state.events.raise_nmi();
    machine.state.events.raise_nmi();
    assert_eq!(machine.state.events.nmi_pending, 2);
    machine.prepare();
    assert_eq!(injected(&machine), Some(Event::Nmi));
    exit_during(&mut machine, None);
    machine.prepare();
    assert_eq!(injected(&machine), None);
    assert!(intercepts(&machine).contains(Word3::IRET));

    machine.leave(ExitCode::IRET, 0, 0);
    machine.handle();
    assert_eq!(machine.prepare(), Entry::Run);
    assert!(!intercepts(&machine).contains(Word3::IRET));
    assert!(machine.vmcb.rflags().contains(Rflags::TF | Rflags::RF));

    // A host interrupt comes before the IRET is executed.
    exit_during(&mut machine, None);
    assert!(!machine.vmcb.rflags().intersects(Rflags::TF | Rflags::RF));
    assert!(machine.state.events.nmi_masked);
    machine.prepare();

    // The IRET loads RFLAGS and jumps; the step traps, at an address that is in DR0 by chance.
    machine.vmcb.set_rip(0x2000);
    machine.vmcb.set_rflags(Rflags::RESERVED1 | Rflags::CF);
    machine.vmcb.set_dr6(0xffff_4ff1);
    machine.leave(ExitCode(0x41), 0, 0);
    machine.handle();
    assert_eq!(machine.exception(), None);
    assert_eq!(machine.vmcb.dr6(), 0xffff_0ff0);
    assert!(!machine.state.events.nmi_masked);
    assert_eq!(machine.vmcb.rflags(), Rflags::RESERVED1 | Rflags::CF);
    machine.prepare();
    assert_eq!(injected(&machine), Some(Event::Nmi));
}

/// The step over an IRET ends at a breakpoint of the guest.
#[test]
fn a_breakpoint_that_our_step_meets_is_the_guests() {
    for dr7 in [0x401, 0x402, 0x480] {
        let mut machine = machine();
        machine.state.events.raise_nmi();
        machine.state.events.raise_nmi();
        machine.prepare();
        exit_during(&mut machine, None);
        machine.prepare();
        machine.leave(ExitCode::IRET, 0, 0);
        machine.handle();
        machine.prepare();
        machine.vmcb.set_rip(0x2000);
        machine.vmcb.set_dr7(dr7);
        let met = if dr7 == 0x480 { 8 } else { 1 };
        machine.vmcb.set_dr6(0xffff_4ff0 | met | 2);
        machine.leave(ExitCode(0x41), 0, 0);
        machine.handle();
        assert_eq!(machine.exception(), Some(Exception::new(vector::DB)));
        assert_eq!(machine.vmcb.dr6(), 0xffff_0ff0 | met);
    }
}

/// An NMI that waited behind an exception comes before the IRET of its handler at the latest.
#[test]
fn an_nmi_behind_an_exception() {
    let mut machine = machine();
    machine.vmcb.set_rflags(Rflags::RESERVED1);
    machine.state.events.raise_nmi();
    machine.state.events.raise(Exception::UD);
    assert_eq!(machine.prepare(), Entry::RunBriefly);
    machine.leave(ExitCode::IRET, 0, 0);
    machine.handle();
    assert_eq!(machine.prepare(), Entry::Run);
    assert_eq!(injected(&machine), Some(Event::Nmi));
    assert!(machine.state.events.nmi_masked);
    assert!(intercepts(&machine).contains(Word3::IRET));
}

#[test]
fn an_nmi_steps_over_a_shadow_with_interrupts_off() {
    let mut machine = machine();
    machine.vmcb.set_rflags(Rflags::RESERVED1);
    machine.vmcb.set_interrupt_shadow(true);
    machine.state.events.raise_nmi();
    machine.prepare();
    assert_eq!(injected(&machine), None);
    assert!(machine.vmcb.rflags().contains(Rflags::TF));
    // Back to the VMM without a VMRUN: it must not see the flag.
    cancel(&mut machine.vmcb, &mut machine.state);
    assert_eq!(machine.vmcb.rflags(), Rflags::RESERVED1);
    machine.prepare();
    assert!(machine.vmcb.rflags().contains(Rflags::TF));
    // The instruction completes.
    let rip = machine.vmcb.rip();
    machine.vmcb.set_rip(rip + 1);
    machine.vmcb.set_interrupt_shadow(false);
    machine.vmcb.set_dr6(0xffff_4ff0);
    machine.leave(ExitCode(0x41), 0, 0);
    machine.handle();
    assert_eq!(machine.exception(), None);
    assert_eq!(machine.vmcb.rflags(), Rflags::RESERVED1);
    machine.prepare();
    assert_eq!(injected(&machine), Some(Event::Nmi));
}

#[test]
fn a_guests_own_single_step_stays_its_own() {
    let mut machine = machine();
    machine.vmcb.set_rflags(Rflags::RESERVED1 | Rflags::TF);
    machine.vmcb.set_interrupt_shadow(true);
    machine.state.events.raise_nmi();
    machine.prepare();
    let rip = machine.vmcb.rip();
    machine.vmcb.set_rip(rip + 1);
    machine.vmcb.set_interrupt_shadow(false);
    machine.vmcb.set_dr6(0xffff_4ff0);
    machine.leave(ExitCode(0x41), 0, 0);
    machine.handle();
    assert_eq!(machine.exception(), Some(Exception::new(vector::DB)));
    assert!(machine.vmcb.rflags().contains(Rflags::TF));
}

#[test]
fn a_refused_vmrun_loses_no_event_and_no_register() {
    let mut machine = machine();
    machine.line.vector = Some(0x31);
    machine.state.regs.gpr[0] = 0x1234;
    machine.prepare();
    // The host's registers, as QEMU leaves them.
    machine.vmcb.set_cr3(0xbad_0000);
    machine.vmcb.set_rip(0xffff_ffff_8100_0000);
    machine.leave(ExitCode::INVALID, 0, 0);
    assert_eq!((machine.vmcb.cr3(), machine.vmcb.rip()), (0, 0xfff0));
    assert_eq!(machine.state.regs.gpr[0], 0x1234);
    machine.prepare();
    assert_eq!(injected(&machine), Some(Event::Interrupt(0x31)));
}

#[test]
fn nmis_collapse() {
    let mut events = Events::default();
    for _ in 0..5 {
        events.raise_nmi();
    }
    assert_eq!(events.nmi_pending, 2);
    events.nmi_pending = 0;
    events.set_nmi_masked(true);
    events.raise_nmi();
    events.raise_nmi();
    assert_eq!(events.nmi_pending, 1);
}

/// What a VMM sets may lack the mask; the delivery of an NMI masks NMIs all the same (APM vol. 2,
/// 8.2.3).
#[test]
fn an_injected_nmi_masks_nmis() {
    let mut machine = machine();
    let events = &mut machine.state.events;
    events.nmi_injected = true;
    events.nmi_pending = 1;
    events.deliveries_began();
    machine.prepare();
    assert_eq!(injected(&machine), Some(Event::Nmi));
    exit_during(&mut machine, None);
    machine.prepare();
    assert!(machine.state.events.nmi_masked);
    assert_eq!(injected(&machine), None);
}

/// The handlers of INT3 and INTO return behind them, with RF clear, if that is what is at RIP.
/// A CPU that has the mask of NMIs, and the one that waits.
fn with_virtual_nmis() -> Machine {
    let mut machine = Machine::real(SvmFeatures::VNMI);
    machine.vmcb.set_rflags(Rflags::RESERVED1 | Rflags::IF);
    let mut features = machine.state.features;
    features.set.remove(Feature::SVM);
    machine
        .state
        .set_features(&mut machine.vmcb, SvmFeatures::VNMI, features);
    machine
}

/// What the CPU has of NMIs: one that waits, the mask.
fn virtual_nmi(machine: &Machine) -> (bool, bool) {
    let control = machine.vmcb.virtual_interrupt();
    assert!(control.contains(VirtualInterrupt::V_NMI_ENABLE));
    (
        control.contains(VirtualInterrupt::V_NMI_PENDING),
        control.contains(VirtualInterrupt::V_NMI_BLOCKING),
    )
}

/// The CPU leaves it so.
fn leave_virtual_nmi(machine: &mut Machine, pending: bool, masked: bool) {
    let mut control = machine.vmcb.virtual_interrupt();
    control.set(VirtualInterrupt::V_NMI_PENDING, pending);
    control.set(VirtualInterrupt::V_NMI_BLOCKING, masked);
    machine.vmcb.set_virtual_interrupt(control);
}

#[test]
fn virtual_nmis_need_no_window() {
    let mut machine = with_virtual_nmis();
    machine.state.events.raise_nmi();
    machine.state.events.raise_nmi();
    assert_eq!(machine.prepare(), Entry::Run);
    assert_eq!(injected(&machine), Some(Event::Nmi));
    // The second one is the CPU's.
    assert_eq!(virtual_nmi(&machine), (true, true));
    assert!(!intercepts(&machine).contains(Word3::IRET));
    exit_during(&mut machine, None);
    assert_eq!(machine.state.events.nmi_pending, 1);
    assert!(machine.state.events.nmi_masked);
    // It has been delivered behind the first one's IRET.
    machine.prepare();
    assert_eq!(virtual_nmi(&machine), (true, true));
    leave_virtual_nmi(&mut machine, false, true);
    exit_during(&mut machine, None);
    assert_eq!(machine.state.events.nmi_pending, 0);
    assert!(machine.state.events.nmi_masked);
    // The mask ends with its IRET, which does not exit.
    machine.prepare();
    assert_eq!(virtual_nmi(&machine), (false, true));
    leave_virtual_nmi(&mut machine, false, false);
    exit_during(&mut machine, None);
    assert!(!machine.state.events.nmi_masked);
}

/// An IRET exits for another reason than the mask, which the CPU has.
#[test]
fn an_iret_that_exits_ends_no_virtual_mask() {
    let mut machine = with_virtual_nmis();
    machine.state.events.set_nmi_masked(true);
    machine.prepare();
    machine.exit(ExitCode::IRET, 0, 0);
    machine.prepare();
    // An exception before the IRET is done, say: RIP is elsewhere.
    machine.vmcb.set_rip(CODE + 0x100);
    exit_during(&mut machine, None);
    assert!(machine.state.events.nmi_masked);
    machine.prepare();
    assert_eq!(virtual_nmi(&machine), (false, true));
}

#[test]
fn a_virtual_nmi_that_is_cut_short_comes_again() {
    let mut machine = with_virtual_nmis();
    machine.vmcb.set_interrupt_shadow(true);
    machine.state.events.raise_nmi();
    assert_eq!(machine.prepare(), Entry::Run);
    // Behind the shadow, which the CPU sees.
    assert_eq!(
        (injected(&machine), virtual_nmi(&machine)),
        (None, (true, false))
    );
    assert!(!intercepts(&machine).contains(Word3::VINTR));
    machine.vmcb.set_interrupt_shadow(false);
    leave_virtual_nmi(&mut machine, false, true);
    exit_during(&mut machine, Some(Event::Nmi));
    let events = &machine.state.events;
    assert_eq!((events.nmi_pending, events.nmi_injected), (0, true));
    machine.prepare();
    assert_eq!(injected(&machine), Some(Event::Nmi));
    assert_eq!(virtual_nmi(&machine), (false, true));
}

#[test]
fn a_virtual_nmi_that_was_not_delivered_waits_still() {
    let mut machine = with_virtual_nmis();
    machine.state.events.set_nmi_masked(true);
    machine.state.events.raise_nmi();
    // Prepared twice, and called off.
    machine.prepare();
    machine.prepare();
    cancel(&mut machine.vmcb, &mut machine.state);
    assert_eq!(machine.state.events.nmi_pending, 1);
    // The VMM takes the mask away.
    machine.state.events.set_nmi_masked(false);
    machine.prepare();
    assert_eq!(injected(&machine), Some(Event::Nmi));
    assert_eq!(virtual_nmi(&machine), (false, true));
}

#[test]
fn a_guest_that_is_a_hypervisor_has_no_virtual_nmis() {
    let mut machine = with_virtual_nmis();
    let mut features = machine.state.features;
    features.set.insert(Feature::SVM);
    machine
        .state
        .set_features(&mut machine.vmcb, SvmFeatures::VNMI, features);
    assert!(!machine.vmcb.has_virtual_nmis());
    machine.state.events.set_nmi_masked(true);
    machine.state.events.raise_nmi();
    machine.prepare();
    assert!(intercepts(&machine).contains(Word3::IRET));
}

#[test]
fn a_set_trap_is_that_of_the_instruction() {
    for (code, number) in [(0xcc, vector::BP), (0xce, vector::OF)] {
        for at_rip in [code, 0x90] {
            let mut machine = machine().code(&[at_rip]);
            let flags = machine.vmcb.rflags();
            machine.vmcb.set_rflags(flags | Rflags::RF);
            let events = &mut machine.state.events;
            events.raise(Exception::new(number));
            events.deliveries_began();
            events_set(&mut machine.guest());
            machine.prepare();
            assert_eq!(injected(&machine), Some(Event::Exception(number, None)));
            let behind = at_rip == code;
            assert_eq!(machine.vmcb.rip(), CODE + u64::from(behind));
            assert_eq!(machine.vmcb.rflags().contains(Rflags::RF), !behind);
        }
    }
}
