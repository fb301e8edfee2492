// SPDX-License-Identifier: GPL-2.0-only

//! A guest that is a hypervisor, too: VMRUN, exits, events, nested paging, hostile VMCBs.

mod support;

use proptest::prelude::*;
use support::outer::*;
use support::{bytes, poke, Machine, CODE, EXITINTINFO, NRIP, RAM, USER_MMIO};
use svm::clean::Clean;
use svm::dispatch::{read_msr, write_msr, Action, InternalError, UserExit};
use svm::event::{Event, QueuedException};
use svm::exit::{ExitCode, NestedError};
use svm::features::SvmFeatures;
use svm::inject::Entry;
use svm::intercept::{Intercepts, Word3, Word4};
use svm::nested::{self, Nested, StateFlags, Turn, STATE_PAGE};
use svm::vmcb::VirtualInterrupt;
use x86::msr::Origin;
use x86::regs::{gpr, vector, Efer, Exception, Rflags};

#[test]
fn vmrun_and_back() {
    let mut machine = outer();
    machine.state.events.gif_clear = true;
    assert_eq!(machine.vmrun(), Action::Resume);
    assert!(machine.is_inside());
    assert_eq!(machine.vmcb.rip(), INNER);
    assert_eq!(machine.state.regs.get(gpr::RAX), 0x1234);
    assert_eq!(machine.state.regs.get(gpr::RSP), 0x6000);
    assert!(!machine.state.events.gif_clear, "VMRUN sets GIF");
    assert_eq!(machine.turn(), Turn::Enter(Entry::Run));
    machine.run();

    machine.state.regs.set(gpr::RBP, 0x5555);
    machine.vmcb.set_rip(INNER + 7);
    assert_eq!(machine.instruction(ExitCode::VMMCALL), Action::Resume);
    assert!(!machine.is_inside());
    assert_eq!(machine.field(at::EXITCODE), ExitCode::VMMCALL.0);
    assert_eq!(machine.field(at::RIP), INNER + 7);
    assert_eq!(machine.field(NRIP), INNER + 10);
    assert_eq!(machine.vmcb.rip(), CODE + 3);
    assert_eq!(machine.state.regs.get(gpr::RAX), VMCB);
    assert_eq!(machine.state.regs.get(gpr::RSP), 0x7000);
    assert_eq!(machine.state.regs.get(gpr::RBP), 0x5555, "not switched");
    assert!(machine.state.events.gif_clear, "#VMEXIT clears GIF");
}

#[test]
fn the_vmcb_is_read_once() {
    let mut machine = outer();
    let before = machine.world.reads;
    assert_eq!(machine.vmrun(), Action::Resume);
    assert_eq!(machine.world.reads - before, 2, "one for each area");
    // Another CPU writes it.
    machine.set_low(at::WORD4, 0).set_low(at::EXCEPTIONS, !0);
    machine.set(at::TSC_OFFSET, 99).set_low(at::ASID, 0);
    machine.run();
    assert_eq!(machine.instruction(ExitCode::VMMCALL), Action::Resume);
    assert!(!machine.is_inside(), "intercepted when VMRUN looked");
}

#[test]
fn who_may_not() {
    let instructions = [
        ExitCode::VMRUN,
        ExitCode::VMLOAD,
        ExitCode::VMSAVE,
        ExitCode::STGI,
        ExitCode::CLGI,
        ExitCode::SKINIT,
        ExitCode::INVLPGA,
    ];
    for code in instructions {
        let raised = |machine: &mut Machine| {
            machine.state.regs.set(gpr::RAX, VMCB);
            machine.instruction(code);
            machine.exception()
        };
        let mut machine = outer();
        machine.nested = None;
        assert_eq!(
            raised(&mut machine),
            Some(Exception::UD),
            "{code:?}: no SVM"
        );
        let mut machine = outer();
        machine.state.svme = false;
        assert_eq!(
            raised(&mut machine),
            Some(Exception::UD),
            "{code:?}: no SVME"
        );
        let mut machine = outer();
        machine.vmcb.set_cpl(3);
        let expected = match code {
            ExitCode::SKINIT => Exception::UD,
            _ => Exception::GP0,
        };
        assert_eq!(raised(&mut machine), Some(expected), "{code:?}: a program");
        let mut machine = outer();
        let expected = (code == ExitCode::SKINIT).then_some(Exception::UD);
        assert_eq!(raised(&mut machine), expected, "{code:?}");
    }
}

#[test]
fn addresses_of_vmcbs() {
    for code in [ExitCode::VMRUN, ExitCode::VMLOAD, ExitCode::VMSAVE] {
        for address in [
            VMCB + 1,
            VMCB + 0x800,
            1 << 40,
            u64::MAX,
            0x8000_0000_0000_0000,
        ] {
            let mut machine = outer();
            machine.state.regs.set(gpr::RAX, address);
            assert_eq!(machine.instruction(code), Action::Resume);
            assert_eq!(
                machine.exception(),
                Some(Exception::GP0),
                "{code:?} {address:x}"
            );
        }
        // Behind the end of memory, on a device, and in the last page that there can be.
        for address in [RAM as u64, USER_MMIO, (1 << 40) - 0x1000] {
            let mut machine = outer();
            machine.state.regs.set(gpr::RAX, address);
            let action = machine.instruction(code);
            assert!(
                matches!(
                    action,
                    Action::User(UserExit::InternalError(InternalError::Emulation { .. }))
                ),
                "{code:?} {address:x}: {action:?}"
            );
            assert!(!machine.is_inside());
        }
        let mut machine = outer();
        machine.state.regs.set(gpr::RAX, RAM as u64 - 0x1000);
        machine.instruction(code);
        assert_eq!(
            machine.exception(),
            None,
            "{code:?}: the last page of memory"
        );
    }
}

#[test]
fn what_vmrun_refuses() {
    let cases: &[(usize, u64, &str)] = &[
        (at::EFER, 0x0d00, "SVME clear"),
        (at::EFER, 0x1d00 | 1 << 9, "reserved in EFER"),
        (at::CR0, 0xa001_0031, "NW without CD"),
        (at::CR0, 1 << 32 | 0x8001_0031, "upper half of CR0"),
        (at::CR0, 0x8001_0030, "long mode without PE"),
        (at::CR3, 1 << 40, "CR3 over the end"),
        (at::CR3, u64::MAX, "CR3"),
        (at::CR4, 0, "long mode without PAE"),
        (at::CR4, 0x20 | 1 << 31, "reserved in CR4"),
        (at::CR4, 0x20 | 1 << 63, "upper half of CR4"),
        (at::DR6, 1 << 32 | 0xffff_0ff0, "DR6"),
        (at::DR7, 1 << 32 | 0x400, "DR7"),
        (at::CS, 0x69b << 16, "CS.L and CS.D"),
        (at::WORD4, 0b10, "VMRUN not intercepted"),
        (at::ASID, 0, "ASID 0"),
        (at::MSRPM, 1 << 40, "MSR map"),
        (at::MSRPM, (1 << 40) - 0x1000, "end of the MSR map"),
        (at::IOPM, (1 << 40) - 0x2000, "end of the I/O map"),
        (at::IOPM, u64::MAX, "I/O map"),
        (at::EVENTINJ, 1 << 31 | 1 << 8, "reserved type 1"),
        (at::EVENTINJ, 1 << 31 | 5 << 8, "reserved type 5"),
        (at::EVENTINJ, 1 << 31 | 7 << 8, "reserved type 7"),
        (at::EVENTINJ, 1 << 31 | 3 << 8 | 2, "NMI as an exception"),
        (at::EVENTINJ, 1 << 31 | 3 << 8 | 32, "exception 32"),
    ];
    for &(offset, value, what) in cases {
        let mut machine = outer();
        machine.set(offset, value);
        assert_eq!(machine.vmrun(), Action::Resume, "{what}");
        assert!(!machine.is_inside(), "{what}");
        assert_eq!(machine.field(at::EXITCODE), ExitCode::INVALID.0, "{what}");
        assert_eq!(machine.vmcb.rip(), CODE + 3, "{what}");
        assert!(machine.state.events.gif_clear, "{what}");
        assert_eq!(machine.vmcb.ncr3(), OWN_NCR3, "{what}");
    }
}

#[test]
fn what_vmrun_refuses_with_paging() {
    for (offset, value) in [
        (at::NCR3, 1 << 40),
        (at::NCR3, u64::MAX),
        (at::G_PAT, 0x0808),
    ] {
        let mut machine = outer();
        machine.set(at::NP, 1).set(offset, value);
        machine.vmrun();
        assert_eq!(
            machine.field(at::EXITCODE),
            ExitCode::INVALID.0,
            "{offset:x} {value:x}"
        );
        // Without, they are not looked at.
        let mut machine = outer();
        machine.set(offset, value);
        machine.vmrun();
        assert!(machine.is_inside(), "{offset:x} {value:x}");
    }
}

#[test]
fn memory_that_is_away() {
    let mut machine = outer();
    machine.world.would_sleep = true;
    assert_eq!(machine.vmrun(), Action::NeedSleep);
    assert_eq!((machine.is_inside(), machine.vmcb.rip()), (false, CODE));
    machine.world.would_sleep = false;
    assert_eq!(machine.handle(), Action::Resume);
    assert!(machine.is_inside());
    machine.run();

    machine.world.would_sleep = true;
    assert_eq!(machine.instruction(ExitCode::VMMCALL), Action::NeedSleep);
    assert!(machine.is_inside());
    machine.world.would_sleep = false;
    assert_eq!(machine.handle(), Action::Resume);
    assert!(!machine.is_inside());
}

#[test]
fn a_vmcb_that_cannot_be_written_any_more() {
    let mut machine = inner();
    machine.world.read_only = true;
    assert_eq!(machine.instruction(ExitCode::VMMCALL), Action::Resume);
    assert!(!machine.is_inside());
    assert_eq!(machine.turn(), Turn::Enter(Entry::Shutdown));
}

#[test]
fn the_cpu_gets_what_both_want() {
    let mut machine = outer();
    machine
        .set_low(at::CR, 1 << 3)
        .set_low(at::EXCEPTIONS, 1 << vector::PF)
        .set_low(
            at::WORD3,
            Word3::RDTSC.bits() | Word3::VINTR.bits() | Word3::PUSHF.bits(),
        )
        .set_low(at::WORD4, !0)
        .set(at::TSC_OFFSET, 1000)
        .set(at::NP, 1)
        .set(at::NCR3, NCR3);
    machine.vmrun();
    let own = *machine.vmcb.intercepts();
    let offset = machine.vmcb.tsc_offset();
    let nested = machine.nested.as_deref_mut().expect("it has SVM");
    nested.merge(&mut machine.vmcb);
    let merged = *machine.vmcb.intercepts();
    assert!(merged
        .word3
        .contains(own.word3 | Word3::RDTSC | Word3::PUSHF));
    assert!(!merged.word3.contains(Word3::VINTR), "the window is ours");
    assert!(!merged.word4.contains(Word4::EFER_WRITE_TRAP));
    assert_eq!(
        merged.exceptions.bits(),
        own.exceptions.bits() | 1 << vector::PF
    );
    assert_eq!(merged.cr.bits(), own.cr.bits() | 1 << 3);
    assert_eq!(machine.vmcb.tsc_offset(), offset + 1000);
    assert_eq!(machine.vmcb.ncr3(), ROOT, "never the guest's");
    assert_eq!(machine.vmcb.msrpm_base(), ALL_MSRS, "never the guest's");
    let nested = machine.nested.as_deref_mut().expect("it has SVM");
    nested.unmerge(&mut machine.vmcb);
    assert_eq!(*machine.vmcb.intercepts(), own);
    assert_eq!(machine.vmcb.tsc_offset(), offset);
    assert_eq!(machine.vmcb.ncr3(), OWN_NCR3);
    assert_eq!(machine.vmcb.msrpm_base(), OWN_MSRPM);
}

/// Whether an exit goes to the outer guest.
fn goes_out(machine: &mut Machine, code: ExitCode, info1: u64) -> bool {
    let next = machine.vmcb.rip() + 2;
    poke(&mut machine.vmcb, NRIP, next);
    machine.exit(code, info1, next);
    !machine.is_inside()
}

#[test]
fn exits_go_by_the_intercepts() {
    for (code, word, bit) in [
        (ExitCode::CPUID, at::WORD3, 18),
        (ExitCode::HLT, at::WORD3, 24),
        (ExitCode::INVD, at::WORD3, 22),
        (ExitCode::WBINVD, at::WORD4, 9),
        (ExitCode(0x10), at::CR, 16),
        (ExitCode(0x46), at::EXCEPTIONS, 6),
    ] {
        let mut machine = inner();
        assert!(!goes_out(&mut machine, code, 0), "{code:?}");
        let mut machine = outer();
        let old = machine.field(word) as u32;
        machine.set_low(word, old | 1 << bit);
        machine.vmrun();
        machine.run();
        assert!(goes_out(&mut machine, code, 0), "{code:?}");
        assert_eq!(machine.field(at::EXITCODE), code.0);
    }
}

#[test]
fn msrs_and_ports_go_by_the_maps() {
    let start = || {
        let mut machine = outer();
        machine.set_low(at::WORD3, Word3::MSR.bits() | Word3::IOIO.bits());
        machine
    };
    let lstar = 0xc000_0082_u64;
    let byte = MSRPM as usize + 0x800 + 0x82 / 4;
    for (mask, write, out) in [
        (0, 0, false),
        (1 << 4, 0, true),
        (1 << 4, 1, false),
        (1 << 5, 1, true),
    ] {
        let mut machine = start();
        machine.world.ram[byte] = mask;
        machine.vmrun();
        machine.run();
        machine.state.regs.set(gpr::RCX, lstar);
        assert_eq!(
            goes_out(&mut machine, ExitCode::MSR, write),
            out,
            "{mask:x} {write}"
        );
    }
    // Port 17h, a word: two bytes of the map.
    let word_in = 0x17 << 16 | 1 << 5 | 1;
    for (at, mask, out) in [(2, 0, false), (2, 0x80, true), (3, 1, true), (3, 2, false)] {
        let mut machine = start();
        machine.world.ram[IOPM as usize + at] = mask;
        machine.vmrun();
        machine.run();
        assert_eq!(
            goes_out(&mut machine, ExitCode::IOIO, word_in),
            out,
            "{at} {mask:x}"
        );
    }
    // MSRs that no map has, and maps in no memory.
    let mut machine = start();
    machine.vmrun();
    machine.run();
    machine.state.regs.set(gpr::RCX, 0x4b56_4d00);
    assert!(goes_out(&mut machine, ExitCode::MSR, 0));
    let mut machine = start();
    machine.set(at::MSRPM, USER_MMIO).set(at::IOPM, USER_MMIO);
    machine.vmrun();
    machine.run();
    assert!(goes_out(&mut machine, ExitCode::IOIO, word_in));
}

#[test]
fn interrupts_of_the_outer_guest() {
    let masking = VirtualInterrupt::V_INTR_MASKING.bits();
    for (intercept, control, outer_if, inner_if, leaves) in [
        (1, masking, true, false, true),
        (1, masking, false, true, false),
        (1, 0, false, true, true),
        (1, 0, true, false, false),
        (0, masking, true, true, false),
    ] {
        let mut machine = outer();
        machine
            .set_low(at::WORD3, intercept)
            .set_low(at::INT_CONTROL, control);
        machine.set(at::RFLAGS, if inner_if { 0x202 } else { 2 });
        let flags = machine.vmcb.rflags();
        machine
            .vmcb
            .set_rflags(if outer_if { flags | Rflags::IF } else { flags });
        machine.vmrun();
        machine.line.vector = Some(0x55);
        let case = (intercept, control, outer_if, inner_if);
        // VMRUN comes first.
        let entry = if leaves {
            Entry::RunBriefly
        } else {
            Entry::Run
        };
        assert_eq!(machine.turn(), Turn::Enter(entry), "{case:?}");
        machine.run();
        if !leaves {
            assert_ne!(machine.turn(), Turn::Leave, "{case:?}");
            continue;
        }
        assert_eq!(machine.turn(), Turn::Leave, "{case:?}");
        assert_eq!(
            machine.leave_if_due().map(|exit| exit.code),
            Some(ExitCode::INTR)
        );
        assert_eq!(machine.field(at::EXITCODE), ExitCode::INTR.0);
        assert_eq!(machine.line.vector, Some(0x55), "it still waits, ...");
        assert_eq!(machine.turn(), Turn::Enter(Entry::Run));
        assert_eq!(machine.vmcb.event_inj(), 0, "... for GIF");
        machine.instruction(ExitCode::STGI);
        machine.vmcb.set_rflags(machine.vmcb.rflags() | Rflags::IF);
        machine.turn();
        assert_eq!(machine.vmcb.event_inj(), Event::Interrupt(0x55).encode());
    }
}

#[test]
fn nmis_of_the_outer_guest() {
    let mut machine = outer();
    machine.set_low(at::WORD3, Word3::NMI.bits());
    machine.vmrun();
    machine.run();
    machine.state.events.raise_nmi();
    assert_eq!(
        machine.leave_if_due().map(|exit| exit.code),
        Some(ExitCode::NMI)
    );
    assert_eq!(machine.state.events.nmi_pending, 1);
    assert_eq!(machine.turn(), Turn::Enter(Entry::Run));
    assert_eq!(machine.vmcb.event_inj(), 0, "GIF is clear");
    machine.instruction(ExitCode::STGI);
    machine.turn();
    assert_eq!(machine.vmcb.event_inj(), Event::Nmi.encode());
}

#[test]
fn virtual_interrupts() {
    let control = |priority: u32, tpr: u32| {
        (VirtualInterrupt::V_INTR_MASKING | VirtualInterrupt::V_IRQ).bits() | priority << 16 | tpr
    };
    for (priority, tpr, flags, delivered) in [
        (5, 4, 0x202, true),
        (5, 5, 0x202, false),
        (5, 4, 0x2, false),
        (1 << 4, 15, 0x202, true),
    ] {
        let mut machine = outer();
        machine.set_low(at::INT_CONTROL, control(priority, tpr));
        machine.set_low(at::INT_VECTOR, 0x77).set(at::RFLAGS, flags);
        machine.vmrun();
        machine.turn();
        let given = machine.vmcb.event_inj() == Event::Interrupt(0x77).encode();
        assert_eq!(given, delivered, "{priority} {tpr} {flags:x}");
        machine.run();
        machine.leave(ExitCode::VMMCALL, 0, 0);
        machine.handle();
        let left = machine.field(at::INT_CONTROL) as u32 & VirtualInterrupt::V_IRQ.bits() != 0;
        assert_eq!(left, !delivered);
    }
    // Intercepted.
    let mut machine = outer();
    machine.set_low(at::WORD3, Word3::VINTR.bits());
    machine
        .set_low(at::INT_CONTROL, control(5, 0))
        .set(at::RFLAGS, 2);
    machine.vmrun();
    assert_eq!(machine.turn(), Turn::Enter(Entry::Run));
    assert!(
        machine.vmcb.intercepts().word3.contains(Word3::VINTR),
        "our window"
    );
    machine.run();
    machine.vmcb.set_rflags(Rflags::RESERVED1 | Rflags::IF);
    machine.leave(ExitCode::VINTR, 0, 0);
    assert_eq!(machine.handle(), Action::Resume);
    assert_eq!(machine.turn(), Turn::Leave);
    assert_eq!(
        machine.leave_if_due().map(|exit| exit.code),
        Some(ExitCode::VINTR)
    );
}

#[test]
fn events_go_in_and_come_out() {
    for event in [
        Event::Interrupt(0x33),
        Event::Nmi,
        Event::Exception(vector::GP, Some(0x18)),
        Event::Exception(vector::PF, Some(2)),
    ] {
        let mut machine = outer();
        machine.set_low(at::WORD3, Word3::CPUID.bits());
        machine.set(at::EVENTINJ, event.encode());
        machine.vmrun();
        assert_eq!(machine.turn(), Turn::Enter(Entry::Run));
        assert_eq!(machine.vmcb.event_inj(), event.encode());
        machine.run();
        // Its delivery meets an exit of the outer guest's.
        poke(&mut machine.vmcb, EXITINTINFO, event.encode());
        machine.leave(ExitCode::CPUID, 0, 0);
        machine.handle();
        assert!(!machine.is_inside());
        assert_eq!(machine.field(at::EXITINTINFO), event.encode());
        assert_eq!(machine.field(at::EVENTINJ) & Event::VALID, 0);
        assert!(!machine.state.events.busy(), "nothing of it stays here");
        assert!(!machine.state.events.nmi_masked);
    }
}

#[test]
fn exceptions_of_ours_go_by_the_intercepts() {
    for intercepted in [false, true] {
        let mut machine = outer();
        machine.set_low(at::EXCEPTIONS, u32::from(intercepted) << vector::GP);
        machine.vmrun();
        machine.run();
        // An MSR that there is not.
        machine.state.regs.set(gpr::RCX, 0x1234_5678);
        machine.instruction(ExitCode::MSR);
        assert_eq!(machine.exception(), Some(Exception::GP0));
        let code = ExitCode(ExitCode::EXCP0.0 + u64::from(vector::GP));
        let left = machine.leave_if_due().map(|exit| exit.code);
        assert_eq!(left, intercepted.then_some(code));
        assert_eq!(machine.state.events.exception.is_some(), !intercepted);
    }
    let mut machine = outer();
    machine.set_low(at::EXCEPTIONS, 1 << vector::PF);
    machine.vmrun();
    machine.run();
    machine.vmcb.set_cr2(1);
    machine.state.events.exception = Some(QueuedException {
        exception: Exception::page_fault(0xbad, 6),
        injected: false,
    });
    machine.leave_if_due();
    assert_eq!(
        (machine.field(at::EXITINFO1), machine.field(at::EXITINFO2)),
        (6, 0xbad)
    );
    assert_eq!(machine.vmcb.cr2(), 1);
}

#[test]
fn shutdown_of_the_inner_guest() {
    let mut machine = outer();
    machine.set_low(at::WORD3, Word3::SHUTDOWN.bits());
    machine.vmrun();
    machine.run();
    let pat = machine.vmcb.g_pat();
    // What the CPU saves is anything.
    for offset in [
        at::DR6,
        at::G_PAT,
        0x640,
        0x670,
        0x5e0,
        0x5e8,
        0x5f0,
        0x6e0,
        at::CR0,
        at::EFER,
    ] {
        poke(&mut machine.vmcb, offset, 0x1357_9bdf_0246_8ace);
    }
    poke(&mut machine.vmcb, EXITINTINFO, 0x8000_0030);
    assert!(goes_out(&mut machine, ExitCode::SHUTDOWN, 77));
    assert_eq!(machine.vmcb.rip(), CODE + 3);
    assert_eq!(machine.vmcb.g_pat(), pat);
    for offset in [0x670, 0x5e0, 0x5e8, 0x5f0, 0x6e0] {
        assert_eq!(support::peek(&mut machine.vmcb, offset), 0, "{offset:x}");
    }
    assert_eq!(machine.vmcb.dr6(), 0xffff_0ff0);
    assert_eq!(
        (machine.field(at::EXITINFO1), machine.field(at::EXITINTINFO)),
        (0, 0)
    );
    let mut machine = inner();
    let action = machine.exit(ExitCode::SHUTDOWN, 0, 0);
    assert_eq!(action, Action::User(UserExit::Shutdown));
    assert!(!machine.is_inside(), "nothing of it is left");
}

#[test]
fn svme_cleared_inside() {
    let mut machine = inner();
    machine.state.regs.set(gpr::RCX, 0xc000_0080);
    machine.state.regs.set_edx_eax(0xd00);
    poke(&mut machine.vmcb, NRIP, INNER + 2);
    machine.exit(ExitCode::MSR, 1, 0);
    assert!(!machine.is_inside());
    assert_eq!(machine.turn(), Turn::Enter(Entry::Shutdown));
}

/// After #VMEXIT all of EVENTINJ is clear (APM vol. 2, 15.20): kvm_amd looks at the whole field to
/// see whether its NMI is still to come.
#[test]
fn an_event_that_was_injected_is_gone() {
    let mut machine = outer();
    machine.set(at::EVENTINJ, 1 << 31 | 2 << 8 | 2);
    assert_eq!(machine.vmrun(), Action::Resume);
    assert_eq!(machine.turn(), Turn::Enter(Entry::Run));
    machine.run();
    assert_eq!(machine.instruction(ExitCode::VMMCALL), Action::Resume);
    assert!(!machine.is_inside());
    assert_eq!(machine.field(at::EVENTINJ), 0);
}

#[test]
fn a_vmm_that_turns_svm_off() {
    const OUTER_PAT: u64 = 0x0007_0406_0007_0406;
    let mut machine = outer();
    machine.vmcb.set_g_pat(OUTER_PAT);
    machine.set(at::NP, 1).set(at::NCR3, NCR3);
    machine.set(at::G_PAT, 0x0606_0606_0606_0606);
    assert_eq!(machine.vmrun(), Action::Resume);
    assert_ne!(machine.vmcb.g_pat(), OUTER_PAT);
    let nested = machine.nested.as_deref_mut().expect("it has SVM");
    nested.init = true;
    machine.state.events.gif_clear = true;
    let nested = Some(nested);
    nested::turned_off(&mut machine.vmcb, &mut machine.state, nested, Origin::Host);
    assert!(!machine.is_inside());
    assert!(!machine.nested().init, "no INIT of before comes");
    assert!(!machine.state.events.gif_clear);
    assert!(!machine.state.events.triple_fault);
    assert_eq!(machine.vmcb.g_pat(), OUTER_PAT);
}

#[test]
fn an_init_that_waits_for_gif_is_looked_at() {
    for waits in [false, true] {
        let mut machine = outer();
        machine.state.events.gif_clear = true;
        machine.nested.as_deref_mut().expect("it has SVM").init = waits;
        assert_eq!(machine.instruction(ExitCode::STGI), Action::Resume);
        let nested = machine.nested.as_deref_mut().expect("it has SVM");
        assert_eq!(nested.take_switched(), waits);
    }
}

/// What the VMM saves and restores is the outer guest's, as `KVM_SET_MSRS` takes it.
#[test]
fn the_vmm_reads_the_outer_guests_tsc() {
    const TSC: u32 = 0x10;
    const AHEAD: u64 = 1 << 40;
    let mut machine = outer();
    machine.set(at::TSC_OFFSET, AHEAD);
    assert_eq!(machine.vmrun(), Action::Resume);
    machine.run();
    let inner = read_msr(&mut machine.guest(), TSC, Origin::Guest).expect("the TSC");
    let outer = read_msr(&mut machine.guest(), TSC, Origin::Host).expect("the TSC");
    assert_eq!(inner.wrapping_sub(outer), AHEAD);
    let before = machine.vmcb.tsc_offset();
    write_msr(&mut machine.guest(), TSC, outer, Origin::Host).expect("the TSC");
    assert_eq!(machine.vmcb.tsc_offset(), before);
}

#[test]
fn the_cpu_refuses() {
    let mut machine = inner();
    machine.set(at::RAX, 0x4711);
    assert!(goes_out(&mut machine, ExitCode::INVALID, 0));
    assert_eq!(machine.field(at::EXITCODE), ExitCode::INVALID.0);
    assert_eq!(machine.field(at::RAX), 0x4711, "no registers were saved");
    assert_eq!(machine.vmcb.rip(), CODE + 3);
    assert_eq!(machine.vmcb.cr3(), 0x8000);
}

#[test]
fn vmload_and_vmsave() {
    let mut machine = outer();
    machine
        .set(at::FS_BASE, 0x1234_8000_0000_0000)
        .set(at::LSTAR, 0xffff_8000_0000_1234);
    machine.state.regs.set(gpr::RAX, VMCB);
    machine
        .state
        .features
        .set
        .remove(x86::features::Feature::LA57);
    assert_eq!(machine.instruction(ExitCode::VMLOAD), Action::Resume);
    assert_eq!(
        machine.vmcb.fs_base(),
        0xffff_8000_0000_0000,
        "made canonical"
    );
    assert_eq!(machine.vmcb.lstar(), 0xffff_8000_0000_1234);
    machine.vmcb.set_lstar(0x77);
    let cs = machine.field(at::CS);
    assert_eq!(machine.instruction(ExitCode::VMSAVE), Action::Resume);
    assert_eq!(machine.field(at::LSTAR), 0x77);
    assert_eq!(machine.field(at::CS), cs, "no byte more");
    assert_eq!(machine.vmcb.rip(), CODE + 6);
}

/// An inner guest with nested paging whose first GiB is the outer guest's; the next one may only be
/// read, and there is no other.
fn paged() -> Machine {
    let mut machine = outer();
    machine.set(at::NP, 1).set(at::NCR3, NCR3);
    let mut table = |at: u64, value: u64| {
        let at = at as usize;
        machine.world.ram[at..at + 8].copy_from_slice(&value.to_le_bytes());
    };
    table(NCR3, 0xe007);
    table(0xe000, 0x87);
    table(0xe008, 1 << 30 | 0x85);
    machine.vmrun();
    machine.run();
    machine
}

#[test]
fn nested_faults_go_to_their_level() {
    let read = NestedError::USER | NestedError::FINAL;
    let write = read | NestedError::WRITE;
    let mut machine = paged();
    let page = nested::resolve(&mut machine.guest(), 0x1234, write);
    let page = page.expect("memory").expect("mapped");
    assert_eq!(
        (page.gpa, page.page_bits, page.writable),
        (0x1234, 30, true)
    );
    assert!(machine.leave_if_due().is_none());

    let present = NestedError::PRESENT;
    for (address, error, expected) in [
        (2 << 30 | 0x10, read, read),
        (1 << 30 | 0x20, write, write | present),
        (1 << 45, write, write),
        (1 << 50, read, read),
    ] {
        let mut machine = paged();
        let page = nested::resolve(&mut machine.guest(), address, error);
        assert_eq!(page, Ok(None), "{address:x}");
        assert_eq!(machine.turn(), Turn::Leave);
        machine.leave_if_due();
        assert_eq!(machine.field(at::EXITCODE), ExitCode::NPF.0);
        assert_eq!(machine.field(at::EXITINFO1), expected.bits(), "{address:x}");
        assert_eq!(machine.field(at::EXITINFO2), address);
        assert_eq!(machine.vmcb.cr3(), 0x8000);
    }
}

#[test]
fn the_emulator_walks_both_tables() {
    // The inner guest executes CPUID, and the CPU does not tell where the next instruction is.
    let mut machine = paged();
    machine.host = SvmFeatures::empty();
    machine.world.ram[INNER as usize..INNER as usize + 2].copy_from_slice(&[0x0f, 0xa2]);
    assert_eq!(machine.exit(ExitCode::CPUID, 0, 0), Action::Resume);
    assert_eq!(machine.vmcb.rip(), INNER + 2);
    // Its page tables are where the outer guest has mapped nothing.
    let mut machine = paged();
    machine.host = SvmFeatures::empty();
    machine.vmcb.set_cr3(3 << 30);
    assert_eq!(machine.exit(ExitCode::CPUID, 0, 0), Action::Resume);
    assert_eq!(
        machine.leave_if_due().map(|exit| exit.code),
        Some(ExitCode::NPF)
    );
    let error = NestedError::USER | NestedError::WRITE | NestedError::TABLE_WALK;
    assert_eq!(machine.field(at::EXITINFO1), error.bits());
    assert_eq!(machine.field(at::EXITINFO2), 3 << 30);
}

#[test]
fn time_and_priority_of_the_inner_guest() {
    let mut machine = outer();
    machine.set(at::TSC_OFFSET, 5000);
    machine.set_low(at::INT_CONTROL, VirtualInterrupt::V_INTR_MASKING.bits() | 3);
    machine.vmcb.set_v_tpr(9);
    let before = machine.guest().tsc();
    machine.vmrun();
    assert_eq!(machine.guest().tsc(), before + 5000);
    let nested = machine.nested.as_deref_mut().expect("it has SVM");
    nested.merge(&mut machine.vmcb);
    assert_eq!(machine.vmcb.v_tpr(), 3);
    machine.vmcb.set_v_tpr(6);
    nested.unmerge(&mut machine.vmcb);
    assert_eq!(machine.vmcb.v_tpr(), 9);
    machine.leave(ExitCode::VMMCALL, 0, 0);
    machine.handle();
    assert_eq!(machine.field(at::INT_CONTROL) & 0xf, 6);
    assert_eq!(machine.guest().tsc(), before);
}

#[test]
fn flushes() {
    let mut machine = outer();
    machine.vmrun();
    let take = |machine: &mut Machine| {
        machine
            .nested
            .as_deref_mut()
            .expect("it has SVM")
            .take_flush()
    };
    assert!(take(&mut machine), "an ASID of which nothing is known");
    let again = |machine: &mut Machine| {
        machine.run();
        machine.leave(ExitCode::VMMCALL, 0, 0);
        machine.handle();
        machine.vmrun();
    };
    again(&mut machine);
    assert!(!take(&mut machine));
    machine.set_low(at::ASID, 2);
    again(&mut machine);
    assert!(take(&mut machine));
    machine.world.ram[VMCB as usize + 0x5c] = 3;
    again(&mut machine);
    assert!(take(&mut machine), "TLB_CONTROL");
}

#[test]
fn a_state_that_is_saved_and_restored() {
    let machine = paged();
    let (flags, address, pat) = machine.nested().header(&machine.vmcb, &machine.state);
    assert_eq!(flags, StateFlags::GUEST_MODE | StateFlags::GIF_SET);
    let mut page = vec![0; STATE_PAGE];
    machine.nested().write_page(&machine.vmcb, &mut page);

    let mut other = outer();
    other.world.ram.copy_from_slice(&machine.world.ram);
    other.vmcb.copy_from(&machine.vmcb);
    other.state = machine.state;
    let mut nested = Nested::new(ALL_MSRS);
    nested.root = ROOT;
    // QEMU carries the address and the page.
    let places = (address, 0);
    let (vmcb, state) = (&mut other.vmcb, &mut other.state);
    assert!(nested.restore(vmcb, state, flags, places, &page));
    assert_eq!(nested.header(vmcb, state), (flags, address, pat));
    assert_ne!(pat, 0);
    other.nested = Some(Box::new(nested));
    assert!(other.is_inside());
    assert!(goes_out(&mut other, ExitCode::VMMCALL, 0));
    assert_eq!(other.vmcb.rip(), CODE + 3);
    assert_eq!(other.state.regs.get(gpr::RAX), VMCB);

    let mut nested = Nested::new(ALL_MSRS);
    let (vmcb, state) = (&mut other.vmcb, &mut other.state);
    assert!(!nested.restore(vmcb, state, flags, (address | 8, pat), &page));
    assert!(!nested.restore(vmcb, state, flags, places, &page[..100]));
    assert!(!nested.restore(vmcb, state, StateFlags::RUN_PENDING, places, &page));
    assert!(!nested.restore(vmcb, state, StateFlags::from_bits_retain(4), places, &page));
    page[0x558 + 4] = 1;
    assert!(!nested.restore(vmcb, state, flags, places, &page), "CR0");
    state.svme = false;
    assert!(!nested.restore(vmcb, state, flags, places, &page));
}

/// What the CPU keeps of the VMCB is right, and is not loaded anew at each entry of the inner
/// guest.
#[test]
fn clean_bits_over_an_exit() {
    const MERGED: Clean = Clean::INTERCEPTS
        .union(Clean::PERMISSIONS)
        .union(Clean::INTERRUPT)
        .union(Clean::NESTED_PAGING);
    let mut machine = outer();
    machine.host = NRIPS | SvmFeatures::VMCB_CLEAN;
    machine.set(at::TSC_OFFSET, 99);
    machine.set_low(at::WORD3, Word3::RDTSC.bits());
    machine.vmrun();
    let round = |machine: &mut Machine| {
        let nested = machine.nested.as_deref_mut().expect("it has SVM");
        nested.merge(&mut machine.vmcb);
        let clean = machine.vmcb.clean();
        machine.vmcb.set_clean();
        let nested = machine.nested.as_deref_mut().expect("it has SVM");
        nested.unmerge(&mut machine.vmcb);
        clean
    };
    assert_eq!(round(&mut machine), Clean::default(), "the first entry");
    assert!(round(&mut machine).contains(MERGED), "nothing has changed");
    machine.vmcb.set_tsc_offset(5);
    assert!(!round(&mut machine).contains(Clean::INTERCEPTS));
    assert!(round(&mut machine).contains(MERGED));
    machine
        .vmcb
        .update_intercepts(|own| own.word3 |= Word3::VINTR);
    assert!(!round(&mut machine).contains(Clean::INTERCEPTS));
    assert_eq!(machine.instruction(ExitCode::VMMCALL), Action::Resume);
    assert_eq!(machine.vmcb.clean(), Clean::default(), "the outer guest");
}

/// The inner guest's task priority becomes what ours is: the CPU has another one, and is told.
#[test]
fn a_priority_that_becomes_ours_is_no_clean_one() {
    let mut machine = outer();
    machine.host = NRIPS | SvmFeatures::VMCB_CLEAN;
    machine.set_low(
        at::INT_CONTROL,
        VirtualInterrupt::V_INTR_MASKING.bits() | 13,
    );
    machine.vmrun();
    machine.run();
    machine.vmcb.set_clean();
    assert_eq!(machine.vmcb.v_tpr(), 0);
    // The module executes the MOV to CR8.
    machine.state.regs.set(gpr::RBX, 0);
    machine.host |= SvmFeatures::DECODE_ASSISTS;
    poke(&mut machine.vmcb, NRIP, INNER + 4);
    let mov = 1 << 63 | 3;
    assert_eq!(machine.exit(ExitCode(0x18), mov, 0), Action::Resume);
    assert_eq!(machine.vmcb.rip(), INNER + 4);
    let nested = machine.nested.as_deref_mut().expect("it has SVM");
    nested.merge(&mut machine.vmcb);
    assert_eq!(machine.vmcb.v_tpr(), 0);
    assert!(!machine.vmcb.clean().contains(Clean::INTERRUPT));
}

/// NMIs that were masked when VMRUN came stay so for the outer guest, and are no exit.
#[test]
fn masked_nmis_of_the_outer_guest_are_saved() {
    for masked in [false, true] {
        let mut machine = outer();
        machine.set_low(at::WORD3, Word3::NMI.bits());
        machine.state.events.set_nmi_masked(masked);
        machine.vmrun();
        machine.run();
        let (flags, address, pat) = machine.nested().header(&machine.vmcb, &machine.state);
        let mut page = vec![0; STATE_PAGE];
        machine.nested().write_page(&machine.vmcb, &mut page);
        let mut nested = Nested::new(ALL_MSRS);
        let (vmcb, state) = (&mut machine.vmcb, &mut machine.state);
        assert!(nested.restore(vmcb, state, flags, (address, pat), &page));
        machine.nested = Some(Box::new(nested));
        machine.state.events.raise_nmi();
        let expected = (!masked).then_some(ExitCode::NMI);
        assert_eq!(machine.leave_if_due().map(|exit| exit.code), expected);
    }
}

#[test]
fn efer_shows_svme_to_who_has_it() {
    let mut machine = outer();
    machine.state.regs.set(gpr::RCX, 0xc000_0080);
    let next = CODE + 2;
    poke(&mut machine.vmcb, NRIP, next);
    machine.exit(ExitCode::MSR, 0, 0);
    let efer = Efer::from_bits_retain(machine.state.regs.edx_eax());
    assert!(efer.contains(Efer::SVME));
}

/// Codes of exits that the inner guest can make: all intercepts, nested faults, and a VMCB that the
/// CPU refuses.
fn exit_code() -> impl Strategy<Value = u64> {
    prop_oneof![
        20 => 0..=ExitCode::TLBSYNC.0,
        2 => Just(ExitCode::NPF.0),
        1 => Just(ExitCode::INVALID.0),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is in the VMCB, and however the inner guest exits: nothing panics, and the CPU gets
    /// all of the module's intercepts, and no address of the guest's.
    #[test]
    fn hostile_vmcbs(
        fields in proptest::collection::vec((0..0x400_usize, any::<u64>()), 0..12),
        saved in proptest::collection::vec((0x400..0x6f8_usize, any::<u64>()), 0..6),
        exits in proptest::collection::vec((exit_code(), any::<[u64; 3]>()), 1..12),
        paging in any::<bool>(),
        valid in any::<bool>(),
    ) {
        let mut machine = outer();
        machine.set(at::NP, u64::from(paging)).set(at::NCR3, NCR3);
        for (offset, value) in fields {
            machine.set(offset & !3, value);
        }
        if !valid {
            for (offset, value) in saved {
                machine.set(offset & !3, value);
            }
        }
        machine.vmrun();
        for (code, [info1, info2, event]) in exits {
            match machine.turn() {
                Turn::Leave => {
                    machine.leave_if_due();
                }
                Turn::Enter(_) => {
                    let nested = machine.nested.as_deref_mut().expect("it has SVM");
                    let inside = nested.is_inside();
                    nested.merge(&mut machine.vmcb);
                    let merged = *machine.vmcb.intercepts();
                    let base = Intercepts::BASELINE;
                    prop_assert!(merged.word3.contains(base.word3));
                    prop_assert!(merged.word4.contains(base.word4));
                    prop_assert!(merged.exceptions.contains(base.exceptions));
                    let expected = if nested.has_paging() { ROOT } else { OWN_NCR3 };
                    prop_assert_eq!(machine.vmcb.ncr3(), expected);
                    let map = if inside { ALL_MSRS } else { OWN_MSRPM };
                    prop_assert_eq!(machine.vmcb.msrpm_base(), map);
                    let bytes = bytes(&mut machine.vmcb);
                    prop_assert_eq!(bytes[0x90], 1, "nested paging, and nothing else");
                    prop_assert_eq!(bytes[0x63] & !1, 0, "no virtual GIF, no AVIC");
                    prop_assert_eq!(bytes[0xb8], 0);
                    let nested = machine.nested.as_deref_mut().expect("it has SVM");
                    nested.unmerge(&mut machine.vmcb);
                }
            }
            poke(&mut machine.vmcb, EXITINTINFO, event & event.wrapping_shl(3));
            machine.leave(ExitCode(code), info1, info2);
            machine.world.requests = svm::requests::Requests::empty();
            machine.handle();
            if machine.is_inside() && paging {
                let error = NestedError::from_bits_retain(info1);
                let _ = nested::resolve(&mut machine.guest(), info2, error);
            }
        }
    }
}
