// SPDX-License-Identifier: GPL-2.0-only

//! DebugCtl: what a guest sets reaches the CPU, or reads as zero.

mod support;

use support::Machine;
use svm::debug::DebugControl;
use svm::debug_ctl::{by_hand, BTF, LBR};
use svm::dispatch::{read_msr, write_msr, Action};
use svm::exit::ExitCode;
use svm::features::SvmFeatures;
use x86::msr::Origin;
use x86::regs::{gpr, vector, Exception, Rflags};

const DEBUG_CTL: u32 = 0x1d9;

fn machine(host: SvmFeatures) -> Machine {
    Machine::long(host).code(&[0x0f, 0x30])
}

fn wrmsr(machine: &mut Machine, value: u64) {
    machine.vmcb.set_rip(support::CODE);
    machine.state.regs.set(gpr::RCX, DEBUG_CTL.into());
    machine.state.regs.set(gpr::RAX, value);
    machine.state.regs.set(gpr::RDX, 0);
    assert_eq!(machine.exit(ExitCode::MSR, 1, 0), Action::Resume);
    assert_eq!(machine.exception(), None);
}

fn read(machine: &mut Machine) -> u64 {
    read_msr(&mut machine.guest(), DEBUG_CTL, Origin::Host).expect("it is there")
}

fn loaded(machine: &Machine) -> u64 {
    by_hand(&machine.vmcb, &machine.state.debug)
}

#[test]
fn a_cpu_that_virtualizes_branches_switches_all() {
    let mut machine = machine(SvmFeatures::LBR_VIRT);
    assert!(!machine.vmcb.lbr_virtualization());
    for value in [LBR, BTF, LBR | BTF] {
        wrmsr(&mut machine, value);
        assert_eq!(read(&mut machine), value);
        assert!(machine.vmcb.lbr_virtualization());
        assert_eq!((machine.vmcb.dbgctl(), loaded(&machine)), (value, 0));
    }
    wrmsr(&mut machine, 0);
    assert!(!machine.vmcb.lbr_virtualization());
}

#[test]
fn another_cpu_gets_single_steps_of_branches_by_hand() {
    let mut machine = machine(SvmFeatures::empty());
    wrmsr(&mut machine, LBR | BTF);
    assert_eq!(read(&mut machine), BTF);
    assert!(!machine.vmcb.lbr_virtualization());
    assert_eq!(loaded(&machine), BTF);
    wrmsr(&mut machine, 0);
    assert_eq!(loaded(&machine), 0);
}

/// The pins of the performance counters are the host's, and bit 2 traps bus locks on new CPUs.
#[test]
fn other_bits_never_reach_the_cpu() {
    for host in [SvmFeatures::empty(), SvmFeatures::LBR_VIRT] {
        let mut machine = machine(host);
        wrmsr(&mut machine, 0x3c);
        assert_eq!(read(&mut machine), 0);
        assert_eq!((machine.vmcb.dbgctl(), loaded(&machine)), (0, 0));
        let refused = write_msr(&mut machine.guest(), DEBUG_CTL, 0x40, Origin::Guest);
        assert!(refused.is_err());
        // What was saved elsewhere can be restored.
        let restored = write_msr(&mut machine.guest(), DEBUG_CTL, 0x3f, Origin::Host);
        assert!(restored.is_ok());
        assert_eq!(read(&mut machine) & !(LBR | BTF), 0);
    }
}

/// Each #DB clears BTF, whoever made it.
#[test]
fn a_debug_exception_ends_steps_of_branches() {
    for host in [SvmFeatures::empty(), SvmFeatures::LBR_VIRT] {
        let mut machine = machine(host);
        wrmsr(&mut machine, BTF);
        machine.exit(ExitCode(0x41), 0, 0);
        assert_eq!(machine.exception(), Some(Exception::new(vector::DB)));
        machine.prepare();
        assert_eq!(read(&mut machine), 0);
        assert_eq!(loaded(&machine), 0);
    }
}

/// A step over the shadow that keeps an NMI away, and a debugger's, end at the next instruction.
#[test]
fn steps_of_ours_are_of_instructions() {
    for host in [SvmFeatures::empty(), SvmFeatures::LBR_VIRT] {
        let mut machine = machine(host);
        wrmsr(&mut machine, BTF);
        machine.vmcb.set_rflags(Rflags::RESERVED1);
        machine.vmcb.set_interrupt_shadow(true);
        machine.state.events.raise_nmi();
        machine.prepare();
        assert!(machine.vmcb.rflags().contains(Rflags::TF));
        assert_eq!((machine.vmcb.dbgctl(), loaded(&machine)), (0, 0));
        machine.leave(ExitCode::INTR, 0, 0);
        assert_eq!(read(&mut machine), BTF);

        let mut machine = self::machine(host);
        wrmsr(&mut machine, BTF);
        let control = DebugControl::ENABLE | DebugControl::SINGLESTEP;
        let state = &mut machine.state;
        state
            .debug
            .set(&mut machine.vmcb, host, control, [0; 4], 0x400);
        assert!(!machine.vmcb.lbr_virtualization());
        assert_eq!(loaded(&machine), 0);
        assert_eq!(read(&mut machine), BTF);
        let state = &mut machine.state;
        let off = DebugControl::empty();
        state.debug.set(&mut machine.vmcb, host, off, [0; 4], 0x400);
        assert_eq!(
            machine.vmcb.lbr_virtualization(),
            host.contains(SvmFeatures::LBR_VIRT)
        );
        assert_eq!(loaded(&machine) == BTF, host.is_empty());
    }
}
