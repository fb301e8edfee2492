// SPDX-License-Identifier: GPL-2.0-only

//! Every exit, on a host that saves nRIP and on one that does not.

mod support;

use support::{bytes, poke, Machine, CODE, EXITINTINFO, KERNEL_PORT, NRIP, USER_MMIO};
use svm::dispatch::{finish_io, finish_msr, Action, InternalError, Policy, UserExit};
use svm::event::Event;
use svm::exit::{ExitCode, NestedError};
use svm::features::SvmFeatures;
use svm::intercept::{CrIntercepts, Word4, Word5};
use svm::io::UserIo;
use svm::requests::Requests;
use svm::state::{guest_cr0, guest_cr4, guest_efer};
use x86::cpu::{GuestMemory, MemError};
use x86::cpuid::show_mwait;
use x86::features::{Feature, Features};
use x86::msr::Origin;
use x86::regs::{gpr, vector, Cr0, Cr4, Efer, Exception, Rflags, SegAttr, SegReg};

/// A host that saves nRIP, and one that does not.
const HOSTS: [SvmFeatures; 2] = [SvmFeatures::empty(), SvmFeatures::NRIPS];

/// Runs `test` on both hosts, in real and in 64-bit mode, with `code` at RIP.
fn everywhere(code: &[u8], test: impl Fn(&mut Machine)) {
    for host in HOSTS {
        for machine in [Machine::real(host), Machine::long(host)] {
            let mut machine = machine.code(code);
            machine.vmcb.set_interrupt_shadow(true);
            if host.contains(SvmFeatures::NRIPS) {
                poke(&mut machine.vmcb, NRIP, CODE + code.len() as u64);
                machine.world.would_sleep = true;
            }
            test(&mut machine);
        }
    }
}

/// The instruction has completed.
fn completed(machine: &Machine, length: usize) {
    assert_eq!(machine.vmcb.rip(), CODE + length as u64);
    assert!(!machine.vmcb.interrupt_shadow());
    assert_eq!(machine.exception(), None);
}

/// The instruction has raised `exception`, and nothing else.
fn raised(machine: &Machine, exception: Exception) {
    assert_eq!(machine.vmcb.rip(), CODE);
    assert_eq!(machine.exception(), Some(exception));
}

fn set(machine: &mut Machine, reg: u8, value: u64) {
    machine.state.regs.set(reg, value);
}

#[test]
fn cpuid() {
    for code in [&[0x0f, 0xa2][..], &[0x66, 0xf2, 0x0f, 0xa2]] {
        everywhere(code, |machine| {
            set(machine, gpr::RAX, 0xffff_ffff_8000_0001);
            set(machine, gpr::RCX, 7);
            assert_eq!(machine.exit(ExitCode::CPUID, 0, 0), Action::Resume);
            completed(machine, code.len());
            let regs = &machine.state.regs;
            assert_eq!(regs.get(gpr::RAX), 0x8000_0001);
            assert_eq!(regs.get(gpr::RBX), 7);
            assert_eq!(regs.get(gpr::RCX), 0xcccc);
            assert_eq!(regs.get(gpr::RDX), 0xdddd);
        });
    }
}

#[test]
fn cpuid_follows_the_state() {
    let mut machine = Machine::long(SvmFeatures::empty()).code(&[0x0f, 0xa2]);
    machine.state.xcr0 = 7;
    for (leaf, subleaf, ebx) in [(0xd, 0, 832), (0xd, 1, 832)] {
        machine.vmcb.set_rip(CODE);
        set(&mut machine, gpr::RAX, leaf);
        set(&mut machine, gpr::RCX, subleaf);
        machine.exit(ExitCode::CPUID, 0, 0);
        assert_eq!(machine.state.regs.get(gpr::RBX), ebx);
    }
    machine.state.xcr0 = 0x207;
    machine.vmcb.set_rip(CODE);
    set(&mut machine, gpr::RAX, 0xd);
    set(&mut machine, gpr::RCX, 1);
    machine.exit(ExitCode::CPUID, 0, 0);
    assert_eq!(machine.state.regs.get(gpr::RBX), 832 + 8);
    machine.vmcb.set_rip(CODE);
    set(&mut machine, gpr::RAX, 1);
    machine.exit(ExitCode::CPUID, 0, 0);
    assert_eq!(machine.state.regs.get(gpr::RCX) >> 27 & 1, 1, "OSXSAVE");
    assert_eq!(machine.state.regs.get(gpr::RDX) >> 9 & 1, 1, "APIC");
}

/// A system may want to answer its programs itself; its own CPUID is answered as ever.
#[test]
fn cpuid_may_fault() {
    const MISC_FEATURES_ENABLES: u32 = 0x140;
    const HWCR: u32 = 0xc001_0015;
    for (index, value) in [(MISC_FEATURES_ENABLES, 1), (HWCR, 1 << 35)] {
        let mut machine = Machine::long(SvmFeatures::empty()).code(&[0x0f, 0xa2]);
        let features = machine.state.features;
        for (value, cpl, faults) in [(0, 3, false), (value, 0, false), (value, 3, true)] {
            let written = machine
                .state
                .msrs
                .write(index, value, Origin::Guest, &features);
            assert_eq!(written, Ok(()));
            machine.vmcb.set_rip(CODE);
            machine.vmcb.set_cpl(cpl);
            assert_eq!(machine.exit(ExitCode::CPUID, 0, 0), Action::Resume);
            match faults {
                true => raised(&machine, Exception::GP0),
                false => completed(&machine, 2),
            }
        }
    }
}

/// The second time the page tables are not walked.
#[test]
fn the_length_of_known_code_is_cheap() {
    let mut machine = Machine::long(SvmFeatures::empty()).code(&[0x0f, 0xa2, 0x0f, 0xa2]);
    machine.exit(ExitCode::CPUID, 0, 0);
    let walked = machine.world.reads;
    machine.exit(ExitCode::CPUID, 0, 0);
    assert_eq!(machine.world.reads, walked + 1);
    completed(&machine, 4);
}

#[test]
fn a_single_step_traps_behind_the_instruction() {
    everywhere(&[0x0f, 0xa2], |machine| {
        machine
            .vmcb
            .set_rflags(Rflags::RESERVED1 | Rflags::TF | Rflags::RF);
        machine.exit(ExitCode::CPUID, 0, 0);
        assert_eq!(machine.vmcb.rip(), CODE + 2);
        assert!(!machine.vmcb.rflags().contains(Rflags::RF));
        let exception = machine.exception().expect("#DB");
        assert_eq!(
            (exception.vector, exception.payload),
            (vector::DB, Some(1 << 14))
        );
    });
}

#[test]
fn hlt_and_pause() {
    everywhere(&[0xf4], |machine| {
        assert_eq!(machine.exit(ExitCode::HLT, 0, 0), Action::Halt);
        completed(machine, 1);
    });
    everywhere(&[0xf3, 0x90], |machine| {
        assert_eq!(machine.exit(ExitCode::PAUSE, 0, 0), Action::Resume);
        assert!(machine.world.requests.contains(Requests::YIELD));
        completed(machine, 2);
    });
}

#[test]
fn cache_instructions() {
    for (code, exit) in [(0x08, ExitCode::INVD), (0x09, ExitCode::WBINVD)] {
        everywhere(&[0x0f, code], |machine| {
            assert_eq!(machine.exit(exit, 0, 0), Action::Resume);
            assert_eq!(machine.world.wbinvds, 1);
            completed(machine, 2);
        });
    }
}

#[test]
fn what_a_guest_does_not_have_is_undefined() {
    let exits = [
        ExitCode::VMRUN,
        ExitCode::VMLOAD,
        ExitCode::VMSAVE,
        ExitCode::STGI,
        ExitCode::CLGI,
        ExitCode::SKINIT,
        ExitCode::INVLPGA,
        ExitCode::RSM,
        ExitCode::RDPRU,
        ExitCode::INVLPGB,
        ExitCode::TLBSYNC,
        ExitCode::MCOMMIT,
    ];
    for exit in exits {
        everywhere(&[0x0f, 0x01, 0xd8], |machine| {
            assert_eq!(machine.exit(exit, 0, 0), Action::Resume);
            raised(machine, Exception::UD);
        });
    }
    for (offered, may_fault) in [(false, false), (false, true), (true, true)] {
        everywhere(&[0x0f, 0x01, 0xc9], |machine| {
            show_mwait(&mut machine.cpuid, offered);
            machine.policy.set(Policy::MWAIT_MAY_FAULT, may_fault);
            assert_eq!(machine.exit(ExitCode::MWAIT, 0, 0), Action::Resume);
            if offered || !may_fault {
                completed(machine, 3);
            } else {
                raised(machine, Exception::UD);
            }
        });
    }
}

#[test]
fn the_vmm_answers_msrs() {
    const UNKNOWN: u64 = 0x1234_5678;
    let reasons = [
        (Policy::empty(), false, None),
        (Policy::MSR_UNKNOWN_EXITS, false, Some(2)),
        (Policy::MSR_EXITS, true, Some(4)),
        (Policy::MSR_UNKNOWN_EXITS, true, None),
    ];
    for (policy, denied, reason) in reasons {
        for write in [false, true] {
            everywhere(&[0x0f, if write { 0x30 } else { 0x32 }], |machine| {
                machine.state.regs.set(gpr::RCX, UNKNOWN);
                machine.state.regs.set_edx_eax(0x11_0000_0022);
                (machine.policy, machine.world.msr_denied) = (policy, denied);
                let action = machine.exit(ExitCode::MSR, u64::from(write), 0);
                let Some(reason) = reason else {
                    assert_eq!(action, Action::Resume);
                    raised(machine, Exception::GP0);
                    return;
                };
                let io = UserIo::Msr {
                    index: UNKNOWN as u32,
                    write,
                    value: if write { 0x11_0000_0022 } else { 0 },
                    reason,
                };
                assert_eq!(action, Action::User(UserExit::Io(io)));
                assert_eq!(machine.state.io.pending(), Some(io));
                finish_msr(&mut machine.guest(), Some(0x33_0000_0044));
                completed(machine, 2);
                let value = if write {
                    0x11_0000_0022
                } else {
                    0x33_0000_0044
                };
                assert_eq!(machine.state.regs.edx_eax(), value);
                assert_eq!(machine.state.io.pending(), None);
            });
        }
    }
}

#[test]
fn exits_of_the_host_change_nothing() {
    for exit in [
        ExitCode::INTR,
        ExitCode::NMI,
        ExitCode::SMI,
        ExitCode::INIT,
        ExitCode::VINTR,
    ] {
        everywhere(&[], |machine| {
            assert_eq!(machine.exit(exit, 0, 0), Action::Resume);
            assert_eq!(machine.exception(), None);
            assert_eq!(machine.vmcb.rip(), CODE);
        });
    }
}

#[test]
fn ends() {
    everywhere(&[], |machine| {
        assert_eq!(
            machine.exit(ExitCode::SHUTDOWN, 0, 0),
            Action::User(UserExit::Shutdown)
        );
        assert_eq!(
            machine.exit(ExitCode::INVALID, 0, 0),
            Action::User(UserExit::FailEntry { reason: u64::MAX })
        );
        let unknown = InternalError::UnexpectedExit { exit_code: 0x403 };
        assert_eq!(
            machine.exit(ExitCode(0x403), 0, 0),
            Action::User(UserExit::InternalError(unknown))
        );
    });
}

#[test]
fn paravirtual_interrupts() {
    const KICK_CPU: u64 = 5;
    const SEND_IPI: u64 = 10;
    const SCHED_YIELD: u64 = 11;
    let call = |machine: &mut Machine, number, arguments: [u64; 4]| {
        set(machine, gpr::RAX, number);
        for (reg, value) in [gpr::RBX, gpr::RCX, gpr::RDX, gpr::RSI]
            .into_iter()
            .zip(arguments)
        {
            set(machine, reg, value);
        }
        machine.vmcb.set_rip(CODE);
        assert_eq!(machine.exit(ExitCode::VMMCALL, 0, 0), Action::Resume);
        machine.state.regs.get(gpr::RAX) as i32
    };
    let pv = Feature::PV_UNHALT | Feature::PV_SEND_IPI | Feature::PV_SCHED_YIELD;
    let mut machine = Machine::long(SvmFeatures::empty()).code(&[0x0f, 0x01, 0xd9]);
    machine.state.features.set -= pv;
    for number in [KICK_CPU, SEND_IPI, SCHED_YIELD] {
        assert_eq!(call(&mut machine, number, [0; 4]), -1000);
    }
    machine.state.features.set |= pv;
    assert_eq!(call(&mut machine, SCHED_YIELD, [9, 0, 0, 0]), 0);
    assert_eq!(machine.world.yielded, Some(9));
    assert_eq!(call(&mut machine, KICK_CPU, [0, 7, 0, 0]), 0);
    assert_eq!(machine.world.woken, Some(7));
    assert_eq!(call(&mut machine, SEND_IPI, [5, 1 << 63, 3, 0x441]), 3);
    let set = 5 | 1 << 127;
    assert_eq!(machine.world.ipis, Some((3, set, 0x441)));
    // Assert and level are the message's.
    assert_eq!(call(&mut machine, SEND_IPI, [5, 0, 3, 0xc041]), 2);
    assert_eq!(machine.world.ipis, Some((3, 5, 0xc041)));
    assert_eq!(call(&mut machine, SEND_IPI, [5, 0, 3, 0x8041]), 0);
    // A logical destination, shorthands.
    for message in [0x841, 0x4_0041, 0x8_0041] {
        assert_eq!(call(&mut machine, SEND_IPI, [5, 0, 3, message]), -22);
    }
    // Outside of 64-bit mode the words of the set have 32 bits.
    let mut machine = Machine::real(SvmFeatures::empty()).code(&[0x0f, 0x01, 0xd9]);
    machine.state.features.set |= Feature::PV_SEND_IPI;
    assert_eq!(call(&mut machine, SEND_IPI, [1, 1, 0, 0x41]), 2);
    assert_eq!(machine.world.ipis, Some((0, 1 | 1 << 32, 0x41)));
}

/// VMCALL where the guest may not write is a page fault, as on KVM.
#[test]
fn vmcall_in_a_page_that_is_not_writable() {
    /// A leaf of 1 GiB: accessed, dirty, without W.
    const READ_ONLY: u64 = 0xe5;
    const PRESENT_WRITE: u32 = 0b11;
    let ud = ExitCode(0x40 + u64::from(vector::UD));
    let entry = |machine: &mut Machine, value: u64| {
        machine.world.ram[0x9000..0x9008].copy_from_slice(&value.to_le_bytes());
    };
    for host in HOSTS {
        let mut machine = Machine::long(host).code(&[0x0f, 0x01, 0xc1]);
        entry(&mut machine, READ_ONLY);
        machine.exit(ud, 0, 0);
        raised(&machine, Exception::page_fault(CODE, PRESENT_WRITE));
        assert_eq!(machine.world.ram[CODE as usize + 2], 0xc1);
        // Without CR0.WP the kernel may write everywhere.
        let mut machine = Machine::long(host).code(&[0x0f, 0x01, 0xc1]);
        entry(&mut machine, READ_ONLY);
        machine.vmcb.set_cr0(machine.vmcb.cr0().difference(Cr0::WP));
        assert_eq!(machine.exit(ud, 0, 0), Action::Resume);
        assert_eq!(machine.world.ram[CODE as usize + 2], 0xd9);
        // Memory that is not there is no page fault.
        let mut machine = Machine::long(host).code(&[0x0f, 0x01, 0xc1]);
        machine.world.read_only = true;
        machine.exit(ud, 0, 0);
        raised(&machine, Exception::UD);
        // Nor is another instruction.
        let mut machine = Machine::long(host).code(&[0x0f, 0x0b]);
        entry(&mut machine, READ_ONLY);
        machine.exit(ud, 0, 0);
        raised(&machine, Exception::UD);
    }
}

/// VMCALL becomes VMMCALL, where the guest could write that and the VMM allows it.
#[test]
fn vmcall() {
    let ud = ExitCode(0x40 + u64::from(vector::UD));
    everywhere(&[0x0f, 0x01, 0xc1], |machine| {
        let at = CODE as usize;
        machine.world.would_sleep = true;
        assert_eq!(machine.exit(ud, 0, 0), Action::NeedSleep);
        machine.world.would_sleep = false;
        machine.policy = Policy::VMCALL_FAULTS;
        machine.exit(ud, 0, 0);
        raised(machine, Exception::UD);
        machine.state.events.exception = None;
        machine.policy = Policy::empty();
        assert_eq!(machine.exit(ud, 0, 0), Action::Resume);
        assert_eq!(machine.world.ram[at..at + 3], [0x0f, 0x01, 0xd9]);
        assert_eq!(machine.exception(), None);
        assert_eq!(machine.vmcb.rip(), CODE);
        // Now it is another instruction.
        machine.exit(ud, 0, 0);
        raised(machine, Exception::UD);
    });
}

#[test]
fn hypercalls() {
    let call = |machine: &mut Machine, number, cpl| {
        set(machine, gpr::RAX, number);
        set(machine, gpr::RBX, 1);
        set(machine, gpr::RCX, 2);
        set(machine, gpr::RDX, 3);
        set(machine, gpr::RSI, 4);
        machine.vmcb.set_cpl(cpl);
        machine.vmcb.set_rip(CODE);
        assert_eq!(machine.exit(ExitCode::VMMCALL, 0, 0), Action::Resume);
        completed(machine, 3);
        machine.state.regs.get(gpr::RAX) as i32
    };
    everywhere(&[0x0f, 0x01, 0xd9], |machine| {
        assert_eq!(call(machine, 1, 0), 0);
        assert_eq!(call(machine, 77, 0), -1000);
        assert_eq!(call(machine, 77, 3), -1);
    });
    let mut machine = Machine::long(SvmFeatures::empty()).code(&[0x0f, 0x01, 0xd9]);
    call(&mut machine, 77, 0);
    assert_eq!(machine.state.regs.get(gpr::RAX), -1000_i64 as u64);
    let mut machine = Machine::real(SvmFeatures::empty()).code(&[0x0f, 0x01, 0xd9]);
    call(&mut machine, 77, 0);
    assert_eq!(
        machine.state.regs.get(gpr::RAX),
        u64::from(-1000_i32 as u32)
    );
}

#[test]
fn counters_stand_still() {
    everywhere(&[0x0f, 0x33], |machine| {
        machine.state.features.set -= Feature::PERFCTR_CORE;
        set(machine, gpr::RAX, u64::MAX);
        set(machine, gpr::RCX, 3);
        assert_eq!(machine.exit(ExitCode::RDPMC, 0, 0), Action::Resume);
        completed(machine, 2);
        assert_eq!(machine.state.regs.edx_eax(), 0);
        machine.vmcb.set_rip(CODE);
        set(machine, gpr::RCX, 4);
        machine.exit(ExitCode::RDPMC, 0, 0);
        raised(machine, Exception::GP0);
    });
    // The guest's CPUID has six.
    everywhere(&[0x0f, 0x33], |machine| {
        machine.state.features.set |= Feature::PERFCTR_CORE;
        set(machine, gpr::RCX, 5);
        assert_eq!(machine.exit(ExitCode::RDPMC, 0, 0), Action::Resume);
        completed(machine, 2);
        machine.vmcb.set_rip(CODE);
        set(machine, gpr::RCX, 6);
        machine.exit(ExitCode::RDPMC, 0, 0);
        raised(machine, Exception::GP0);
    });
    everywhere(&[0x0f, 0x33], |machine| {
        machine.vmcb.set_cpl(3);
        machine.exit(ExitCode::RDPMC, 0, 0);
        raised(machine, Exception::GP0);
    });
}

#[test]
fn time() {
    everywhere(&[0x0f, 0x31], |machine| {
        machine.vmcb.set_tsc_offset(0x1_0000_0000);
        machine.exit(ExitCode::RDTSC, 0, 0);
        completed(machine, 2);
        assert_eq!(machine.state.regs.edx_eax(), 0x1_0000_0000 + 1000);
    });
    everywhere(&[0x0f, 0x01, 0xf9], |machine| {
        machine.state.msrs.tsc_aux = 5;
        machine.exit(ExitCode::RDTSCP, 0, 0);
        completed(machine, 3);
        assert_eq!(machine.state.regs.get(gpr::RCX), 5);
    });
    everywhere(&[0x0f, 0x01, 0xf9], |machine| {
        let exits = |machine: &Machine| machine.vmcb.intercepts().word4.contains(Word4::RDTSCP);
        let all = machine.state.features;
        machine
            .state
            .set_features(&mut machine.vmcb, SvmFeatures::empty(), all);
        assert!(!exits(machine));
        let none = Features::default();
        machine
            .state
            .set_features(&mut machine.vmcb, SvmFeatures::empty(), none);
        assert!(exits(machine));
        machine.exit(ExitCode::RDTSCP, 0, 0);
        raised(machine, Exception::UD);
        let host = machine.host;
        machine.state.reset(&mut machine.vmcb, host, 0);
        assert!(exits(machine));
    });
}

#[test]
fn xsetbv() {
    let code = [0x0f, 0x01, 0xd1];
    everywhere(&code, |machine| {
        machine.vmcb.set_cr4(Cr4::OSXSAVE | Cr4::PAE | Cr4::MCE);
        for (value, valid) in [
            (7, true),
            (1, true),
            (3, true),
            (0x207, true),
            (0, false),
            (5, false),
            (0xe7, false),
            (1 << 63 | 1, false),
        ] {
            machine.vmcb.set_rip(CODE);
            machine.state.events.exception = None;
            set(machine, gpr::RCX, 0);
            machine.state.regs.set_edx_eax(value);
            assert_eq!(machine.exit(ExitCode::XSETBV, 0, 0), Action::Resume);
            if valid {
                completed(machine, 3);
                assert_eq!(machine.state.xcr0, value);
            } else {
                raised(machine, Exception::GP0);
            }
        }
        machine.state.events.exception = None;
        machine.vmcb.set_rip(CODE);
        machine.vmcb.set_cr4(Cr4::PAE | Cr4::MCE);
        machine.exit(ExitCode::XSETBV, 0, 0);
        raised(machine, Exception::UD);
    });
}

fn msr(machine: &mut Machine, index: u64, write: Option<u64>) -> u64 {
    machine.vmcb.set_rip(CODE);
    set(machine, gpr::RCX, index);
    if let Some(value) = write {
        machine.state.regs.set_edx_eax(value);
    }
    let info1 = u64::from(write.is_some());
    assert_eq!(machine.exit(ExitCode::MSR, info1, 0), Action::Resume);
    machine.state.regs.edx_eax()
}

#[test]
fn msrs() {
    everywhere(&[0x0f, 0x32], |machine| {
        assert_eq!(msr(machine, 0x277, None), 0x0007_0406_0007_0406);
        completed(machine, 2);
        assert_eq!(msr(machine, 0x10, None), 1000);
        assert_eq!(msr(machine, 0x1b, None), 0xfee0_0900);
        assert_eq!(msr(machine, 0x808, None), 8);
        assert_eq!(msr(machine, 0x6e0, None), 77);
        assert_eq!(msr(machine, 0xc000_0080, None) & Efer::SVME.bits(), 0);
        completed(machine, 2);
        msr(machine, 0x0bad_cafe, None);
        raised(machine, Exception::GP0);
    });
    everywhere(&[0x0f, 0x30], |machine| {
        msr(machine, 0x277, Some(0x0606_0606_0606_0606));
        completed(machine, 2);
        assert_eq!(machine.vmcb.g_pat(), 0x0606_0606_0606_0606);
        msr(machine, 0xc000_0082, Some(0xffff_8000_0000_1000));
        assert_eq!(machine.vmcb.lstar(), 0xffff_8000_0000_1000);
        msr(machine, 0x10, Some(5000));
        assert_eq!(machine.vmcb.tsc_offset(), 4000);
        assert_eq!(machine.state.msrs.tsc_adjust, 4000);
        msr(machine, 0x3b, Some(1000));
        assert_eq!(machine.vmcb.tsc_offset(), 1000);
        completed(machine, 2);
        msr(machine, 0x277, Some(2));
        raised(machine, Exception::GP0);
        assert_eq!(machine.vmcb.g_pat(), 0x0606_0606_0606_0606);
    });
}

#[test]
fn efer_keeps_svme() {
    everywhere(&[0x0f, 0x30], |machine| {
        let old = machine.vmcb.efer();
        msr(
            machine,
            0xc000_0080,
            Some((old | Efer::SCE).difference(Efer::SVME).bits()),
        );
        completed(machine, 2);
        assert_eq!(machine.vmcb.efer(), old | Efer::SCE);
    });
}

#[test]
fn lme_waits_for_paging() {
    const LONG: Efer = Efer::LME.union(Efer::LMA);
    for host in HOSTS {
        // wrmsr; mov cr0, rbx; the same
        let code = [0x0f, 0x30, 0x0f, 0x22, 0xc3, 0x0f, 0x22, 0xc3];
        // Everything is ready for long mode.
        let mut machine = Machine::long(host).code(&code);
        let mut cs = machine.vmcb.segment(SegReg::Cs);
        cs.attributes.remove(SegAttr::L);
        machine.vmcb.set_segment(SegReg::Cs, cs);
        machine.vmcb.set_cr0(Cr0::PE | Cr0::ET);
        machine.vmcb.set_efer(Efer::SVME);
        let mut step = |exit, length, value: u64| {
            let next = machine.vmcb.rip() + length;
            poke(&mut machine.vmcb, NRIP, next);
            set(&mut machine, gpr::RBX, value);
            set(&mut machine, gpr::RCX, 0xc000_0080);
            machine.state.regs.set_edx_eax(value);
            assert_eq!(machine.exit(exit, 1, 0), Action::Resume);
            assert_eq!((machine.vmcb.rip(), machine.exception()), (next, None));
            let shown = guest_efer(&machine.vmcb, &machine.state);
            (shown & LONG, machine.vmcb.efer() & LONG)
        };
        let off = (Efer::LME, Efer::empty());
        assert_eq!(step(ExitCode::MSR, 2, Efer::LME.bits()), off);
        let mut cr0 = |value: Cr0| step(ExitCode::CR0_SEL_WRITE, 3, value.bits());
        assert_eq!(cr0(Cr0::PE | Cr0::PG | Cr0::ET), (LONG, LONG));
        assert_eq!(cr0(Cr0::PE | Cr0::ET), off);
    }
}

#[test]
fn mov_cr() {
    // mov cr4, rbx
    everywhere(&[0x0f, 0x22, 0xe3], |machine| {
        machine.world.would_sleep = false;
        let cr4 = Cr4::PAE | Cr4::PGE | Cr4::OSFXSR;
        set(machine, gpr::RBX, cr4.bits());
        assert_eq!(machine.exit(ExitCode(0x14), 0, 0), Action::Resume);
        completed(machine, 3);
        assert_eq!(machine.vmcb.cr4(), cr4 | Cr4::MCE);
        assert_eq!(guest_cr4(&machine.vmcb, &machine.state), cr4);
        assert!(machine
            .vmcb
            .intercepts()
            .cr
            .contains(CrIntercepts::CR4_READ));
        assert!(machine.world.requests.contains(Requests::TLB_FLUSH));

        machine.vmcb.set_rip(CODE);
        set(machine, gpr::RBX, 1 << 30);
        machine.exit(ExitCode(0x14), 0, 0);
        raised(machine, Exception::GP0);
    });
    // The same with decode assists: no look at the code.
    let host = SvmFeatures::NRIPS | SvmFeatures::DECODE_ASSISTS;
    let mut machine = Machine::long(host);
    poke(&mut machine.vmcb, NRIP, CODE + 3);
    machine.world.would_sleep = true;
    set(&mut machine, gpr::RBX, (Cr4::PAE | Cr4::MCE).bits());
    machine.exit(ExitCode(0x14), 1 << 63 | 3, 0);
    completed(&machine, 3);
    assert!(!machine
        .vmcb
        .intercepts()
        .cr
        .contains(CrIntercepts::CR4_READ));
}

#[test]
fn cache_disable_is_hidden() {
    // mov cr0, rax
    everywhere(&[0x0f, 0x22, 0xc0], |machine| {
        machine.world.would_sleep = false;
        let cr0 = guest_cr0(&machine.vmcb, &machine.state);
        let with = cr0 | Cr0::CD;
        set(machine, gpr::RAX, with.difference(Cr0::NW).bits());
        assert_eq!(machine.exit(ExitCode::CR0_SEL_WRITE, 0, 0), Action::Resume);
        completed(machine, 3);
        assert!(!machine.vmcb.cr0().intersects(Cr0::CD | Cr0::NW));
        assert!(guest_cr0(&machine.vmcb, &machine.state).contains(Cr0::CD));
        // Also a write of what the CPU has already, which is no selected one.
        let both = CrIntercepts::CR0_READ | CrIntercepts::CR0_WRITE;
        assert!(machine.vmcb.intercepts().cr.contains(both));
        machine.vmcb.set_rip(CODE);
        set(machine, gpr::RAX, with.difference(Cr0::CD | Cr0::NW).bits());
        machine.exit(ExitCode::CR0_WRITE, 0, 0);
        assert!(!machine.vmcb.intercepts().cr.intersects(both));
        assert!(!guest_cr0(&machine.vmcb, &machine.state).contains(Cr0::CD));
    });
}

/// QEMU reports reads of all control registers as reads of CR0.
#[test]
fn reads_of_other_control_registers_as_cr0() {
    // mov rax, cr2
    everywhere(&[0x0f, 0x20, 0xd0], |machine| {
        machine.world.would_sleep = false;
        machine.vmcb.set_cr2(0x1234);
        assert_eq!(machine.exit(ExitCode::CR0_READ, 0, 0), Action::Resume);
        completed(machine, 3);
        assert_eq!(machine.state.regs.get(gpr::RAX), 0x1234);
    });
    // smsw eax
    everywhere(&[0x0f, 0x01, 0xe0], |machine| {
        machine.world.would_sleep = false;
        machine.exit(ExitCode::CR0_READ, 0, 0);
        completed(machine, 3);
        let cr0 = guest_cr0(&machine.vmcb, &machine.state).bits();
        assert_eq!(machine.state.regs.get(gpr::RAX) & 0xffff, cr0 & 0xffff);
    });
}

#[test]
fn clts_and_lmsw() {
    everywhere(&[0x0f, 0x06], |machine| {
        machine.world.would_sleep = false;
        let cr0 = machine.vmcb.cr0();
        machine.vmcb.set_cr0(cr0 | Cr0::TS);
        machine.exit(ExitCode::CR0_WRITE, 0, 0);
        completed(machine, 2);
        assert_eq!(machine.vmcb.cr0(), cr0);
    });
    // lmsw ax; PE cannot be cleared.
    everywhere(&[0x0f, 0x01, 0xf0], |machine| {
        machine.world.would_sleep = false;
        let pe = machine.vmcb.cr0() & Cr0::PE;
        set(machine, gpr::RAX, 0xfffe);
        machine.exit(ExitCode::CR0_SEL_WRITE, 0, 0);
        completed(machine, 3);
        let low = Cr0::PE | Cr0::MP | Cr0::EM | Cr0::TS;
        assert_eq!(machine.vmcb.cr0() & low, pe | Cr0::MP | Cr0::EM | Cr0::TS);
    });
}

/// SMSW and LMSW on a device, and with TF: as any instruction that is emulated.
#[test]
fn smsw_and_lmsw_are_emulated() {
    let device = |write, data: u64| {
        Action::User(UserExit::Io(UserIo::Mmio {
            gpa: USER_MMIO,
            size: 2,
            write,
            data: data.to_le_bytes(),
        }))
    };
    // smsw [rbx]; lmsw [rbx]
    for (code, exit) in [
        ([0x0f, 0x01, 0x23], ExitCode::CR0_READ),
        ([0x0f, 0x01, 0x33], ExitCode::CR0_SEL_WRITE),
    ] {
        let write = exit == ExitCode::CR0_READ;
        let mut machine = Machine::long(SvmFeatures::empty()).code(&code);
        set(&mut machine, gpr::RBX, USER_MMIO);
        let flags = machine.vmcb.rflags();
        machine.vmcb.set_rflags(flags | Rflags::TF);
        let cr0 = guest_cr0(&machine.vmcb, &machine.state).bits() & 0xffff;
        let data = if write { cr0 } else { 0 };
        assert_eq!(machine.exit(exit, 0, 0), device(write, data));
        let answer = Cr0::TS.bits().to_le_bytes();
        assert_eq!(finish_io(&mut machine.guest(), answer), Action::Resume);
        assert_eq!(machine.vmcb.rip(), CODE + 3);
        let trap = machine.exception().map(|exception| exception.vector);
        assert_eq!(trap, Some(vector::DB));
        assert_eq!(machine.vmcb.cr0().contains(Cr0::TS), !write);
    }
}

#[test]
fn cr8() {
    // mov cr8, rcx
    let code = [0x44, 0x0f, 0x22, 0xc1];
    for tell in [false, true] {
        let mut machine = Machine::long(SvmFeatures::empty()).code(&code);
        machine.world.set_tpr = tell;
        machine.vmcb.set_v_tpr(9);
        set(&mut machine, gpr::RCX, 4);
        let action = machine.exit(ExitCode(0x18), 0, 0);
        assert_eq!(action == Action::User(UserExit::SetTpr), tell);
        completed(&machine, 4);
        assert_eq!(machine.world.cr8, Some((9, 4)));
        assert_eq!(machine.vmcb.v_tpr(), 4);
        machine.vmcb.set_rip(CODE);
        set(&mut machine, gpr::RCX, 16);
        machine.exit(ExitCode(0x18), 0, 0);
        raised(&machine, Exception::GP0);
    }
}

#[test]
fn debug_registers() {
    // mov dr3, rcx
    everywhere(&[0x0f, 0x23, 0xd9], |machine| {
        machine.world.would_sleep = false;
        set(machine, gpr::RCX, 0x5555);
        machine.exit(ExitCode(0x33), 0, 0);
        completed(machine, 3);
        assert_eq!(machine.state.db[3], 0x5555);
        assert_eq!(machine.state.breakpoints(&machine.vmcb), None);
    });
    // mov dr7, rcx
    everywhere(&[0x0f, 0x23, 0xf9], |machine| {
        machine.world.would_sleep = false;
        set(machine, gpr::RCX, 0xc002);
        machine.exit(ExitCode(0x37), 0, 0);
        completed(machine, 3);
        assert_eq!(machine.vmcb.dr7(), 0x402);
        assert_eq!(
            machine.state.breakpoints(&machine.vmcb),
            Some(&machine.state.db)
        );
    });
    // mov rcx, dr5, an alias of DR7 or undefined
    everywhere(&[0x0f, 0x21, 0xe9], |machine| {
        machine.world.would_sleep = false;
        machine.exit(ExitCode(0x25), 0, 0);
        completed(machine, 3);
        assert_eq!(machine.state.regs.get(gpr::RCX), 0x400);
        machine.vmcb.set_rip(CODE);
        let cr4 = machine.vmcb.cr4();
        machine.vmcb.set_cr4(cr4 | Cr4::DE);
        machine.exit(ExitCode(0x25), 0, 0);
        raised(machine, Exception::UD);
    });
    // General detect.
    everywhere(&[0x0f, 0x21, 0xc1], |machine| {
        machine.world.would_sleep = false;
        machine.vmcb.set_dr7(0x2400);
        machine.exit(ExitCode(0x20), 0, 0);
        let exception = machine.exception().expect("#DB");
        assert_eq!(
            (exception.vector, exception.payload),
            (vector::DB, Some(1 << 13))
        );
    });
}

#[test]
fn exceptions_are_passed_on() {
    everywhere(&[], |machine| {
        machine.exit(ExitCode(0x40 + 17), 0, 0);
        raised(machine, Exception::with_code(vector::AC, 0));
    });
    everywhere(&[], |machine| {
        machine.exit(ExitCode(0x41), 0, 0);
        raised(machine, Exception::new(vector::DB));
    });
    everywhere(&[], |machine| {
        machine.exit(ExitCode(0x40 + 18), 0, 0);
        assert_eq!(machine.exception(), None);
    });
}

/// An endless chain of #AC in the delivery of #AC ends in exits, not in a hung CPU.
#[test]
fn alignment_check_in_a_delivery() {
    let mut machine = Machine::real(SvmFeatures::empty());
    for _ in 0..3 {
        let event = Event::Exception(vector::AC, Some(0)).encode();
        poke(&mut machine.vmcb, EXITINTINFO, event);
        machine.exit(ExitCode(0x40 + 17), 0, 0);
        machine.prepare();
    }
}

#[test]
fn ports_of_the_kernel() {
    everywhere(&[0xec], |machine| {
        let next = CODE + 1;
        let port = u64::from(KERNEL_PORT) << 16;
        for (size, rax) in [
            (1, 0x1111_1111_1111_1178),
            (2, 0x1111_1111_1111_5678),
            (4, 0x1234_5678),
        ] {
            machine.vmcb.set_rip(CODE);
            set(machine, gpr::RAX, 0x1111_1111_1111_1111);
            let action = machine.exit(ExitCode::IOIO, port | size << 4 | 1, next);
            assert_eq!(action, Action::Resume);
            completed(machine, 1);
            assert_eq!(machine.state.regs.get(gpr::RAX), rax);
        }
        machine.vmcb.set_rip(CODE);
        set(machine, gpr::RAX, 0xaabb_ccdd);
        machine.exit(ExitCode::IOIO, port | 2 << 4, next);
        completed(machine, 1);
        assert_eq!(machine.world.kernel_port, 0xccdd);
    });
}

#[test]
fn nested_faults_that_are_memory() {
    let fault = |machine: &mut Machine, outcome| {
        machine.world.fault = outcome;
        machine.exit(ExitCode::NPF, NestedError::FINAL.bits(), 0x5000)
    };
    let mut machine = Machine::real(SvmFeatures::empty());
    assert_eq!(fault(&mut machine, Ok(())), Action::Resume);
    assert_eq!(
        fault(&mut machine, Err(MemError::WouldSleep)),
        Action::NeedSleep
    );
    assert_eq!(
        fault(&mut machine, Err(MemError::Fault)),
        Action::User(UserExit::Fault)
    );
}

#[test]
fn a_device_in_the_delivery_of_an_event() {
    let mut machine = Machine::real(SvmFeatures::empty());
    poke(
        &mut machine.vmcb,
        EXITINTINFO,
        Event::Interrupt(0x20).encode(),
    );
    let action = machine.exit(ExitCode::NPF, 2, 0xd000_0000);
    let Action::User(UserExit::InternalError(InternalError::Delivery { event, gpa, .. })) = action
    else {
        panic!("{action:?}");
    };
    assert_eq!((event, gpa), (0x8000_0020, 0xd000_0000));
}

/// XSAVE to a device, in the guest's kernel and in a program.
#[test]
fn unknown_instructions() {
    let code = [0x0f, 0xae, 0x20];
    let mut machine = Machine::real(SvmFeatures::empty()).code(&code);
    let action = machine.exit(ExitCode::NPF, 6, 0xd000_0000);
    let Action::User(UserExit::InternalError(InternalError::Emulation { length, bytes })) = action
    else {
        panic!("{action:?}");
    };
    assert_eq!(length, 15);
    assert_eq!(bytes[..3], code);
    machine.vmcb.set_cpl(3);
    assert_eq!(machine.exit(ExitCode::NPF, 6, 0xd000_0000), Action::Resume);
    raised(&machine, Exception::UD);
}

#[test]
fn a_page_of_code_that_is_absent_in_the_host() {
    let mut machine = Machine::long(SvmFeatures::empty()).code(&[0x0f, 0xa2]);
    machine.world.would_sleep = true;
    let before = machine.state;
    assert_eq!(machine.exit(ExitCode::CPUID, 0, 0), Action::NeedSleep);
    assert_eq!(machine.vmcb.rip(), CODE);
    assert_eq!(machine.state, before);
    machine.world.would_sleep = false;
    assert_eq!(machine.handle(), Action::Resume);
    completed(&machine, 2);
}

#[test]
fn without_features_there_is_no_rdtscp() {
    everywhere(&[0x0f, 0x01, 0xf9], |machine| {
        machine.state.features.set.remove(Feature::RDTSCP);
        machine.exit(ExitCode::RDTSCP, 0, 0);
        raised(machine, Exception::UD);
    });
}

/// The CPU has them whatever the guest's list says.
#[test]
fn without_features_there_is_no_invpcid() {
    let mut machine = Machine::long(SvmFeatures::empty());
    let intercepted = |machine: &Machine| {
        let word5 = machine.vmcb.intercepts().word5;
        word5.contains(Word5::INVPCID)
    };
    assert!(!intercepted(&machine));
    let mut features = machine.state.features;
    features.set.remove(Feature::INVPCID);
    machine
        .state
        .set_features(&mut machine.vmcb, SvmFeatures::empty(), features);
    assert!(intercepted(&machine));
    // INIT and RESET change nothing about that.
    machine.state.init(&mut machine.vmcb, 0);
    assert!(intercepted(&machine));
    machine
        .state
        .reset(&mut machine.vmcb, SvmFeatures::empty(), 0);
    assert!(intercepted(&machine));
    machine.exit(ExitCode::INVPCID, 0, 0);
    assert_eq!(machine.exception(), Some(Exception::UD));
    features.set.insert(Feature::INVPCID);
    machine
        .state
        .set_features(&mut machine.vmcb, SvmFeatures::empty(), features);
    assert!(!intercepted(&machine));
}

/// What the CPU saves at a SHUTDOWN is undefined; the guest is as after INIT.
#[test]
fn nothing_of_a_shutdown_is_kept() {
    for garbage in [0x00, 0xa5, 0xff] {
        let mut expected = Machine::long(SvmFeatures::all());
        expected.state.init(&mut expected.vmcb, 0x00a2_0f10);
        expected.vmcb.set_v_tpr(0);

        let mut machine = Machine::long(SvmFeatures::all());
        machine.state.regs.gpr = [0x1234; 16];
        machine.state.events.raise_nmi();
        machine.prepare();
        // What VMSAVE writes is what it was: FS, GS, LDTR, TR, and the MSRs of system calls.
        const SAVED: [std::ops::Range<usize>; 13] = [
            0x400..0x440, // ES, CS, SS, DS
            0x460..0x470, // GDTR
            0x480..0x490, // IDTR
            0x4cb..0x4cc, // CPL
            0x4d0..0x4d8, // EFER
            0x548..0x580, // control and debug registers, RFLAGS, RIP
            0x5d8..0x5e0, // RSP
            0x5e0..0x5f8, // shadow stacks
            0x5f8..0x600, // RAX
            0x640..0x648, // CR2
            0x668..0x670, // PAT
            0x670..0x698, // DebugCtl and last branches
            0x6e0..0x6e8, // SPEC_CTRL
        ];
        for fields in SAVED {
            bytes(&mut machine.vmcb)[fields].fill(garbage);
        }
        poke(
            &mut machine.vmcb,
            EXITINTINFO,
            u64::from_le_bytes([garbage; 8]),
        );
        machine.vmcb.set_v_tpr(garbage);
        machine.vmcb.set_interrupt_shadow(garbage != 0);
        let action = machine.exit(ExitCode::SHUTDOWN, 0, 0);
        assert_eq!(action, Action::User(UserExit::Shutdown));
        assert!(machine.vmcb.clean().is_empty());
        assert_eq!(machine.world.apic_inits, 1);
        assert_eq!(machine.state.regs, expected.state.regs);
        assert_eq!(machine.state.events, expected.state.events);
        assert_eq!(machine.vmcb.v_tpr(), 0);
        assert!(!machine.vmcb.interrupt_shadow());
        // It can be entered.
        machine.prepare();
        expected.prepare();
        for fields in SAVED {
            assert_eq!(
                bytes(&mut machine.vmcb)[fields.clone()],
                bytes(&mut expected.vmcb)[fields.clone()],
                "{fields:x?}"
            );
        }
        assert_eq!(machine.vmcb.event_inj(), 0);
        assert_eq!(machine.vmcb.intercepts(), expected.vmcb.intercepts());
    }
}

/// KVM_HC_CLOCK_PAIRING, in 64-bit mode.
#[test]
fn clock_pairing() {
    let call = |address: u64, clock: u64, now: Option<(u64, u64)>| {
        let mut machine = Machine::long(SvmFeatures::empty()).code(&[0x0f, 0x01, 0xd9]);
        machine.vmcb.set_tsc_offset(5);
        machine.world.now = now;
        set(&mut machine, gpr::RAX, 9);
        set(&mut machine, gpr::RBX, address);
        set(&mut machine, gpr::RCX, clock);
        assert_eq!(machine.exit(ExitCode::VMMCALL, 0, 0), Action::Resume);
        completed(&machine, 3);
        let answer = machine.state.regs.get(gpr::RAX) as i64;
        let mut bytes = [0; 64];
        let _ = machine.world.read_gpa(address, &mut bytes);
        (answer, bytes)
    };
    let now = Some((1000, 7_000_000_009));
    let (answer, bytes) = call(0xb000, 0, now);
    assert_eq!(answer, 0);
    let words: Vec<_> = bytes
        .chunks(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
        .collect();
    assert_eq!(words, [7, 9, 1005, 0, 0, 0, 0, 0]);
    assert_eq!(call(0xb000, 1, now).0, -95, "another clock");
    assert_eq!(call(0xb000, 0, None).0, -95, "another clock source");
    assert_eq!(call(0xd000_0000, 0, now).0, -14, "no memory");
}
