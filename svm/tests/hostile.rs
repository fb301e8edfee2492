// SPDX-License-Identifier: GPL-2.0-only

//! Whatever is in the VMCB, the registers and the memory of a guest, and whatever the VMM answers:
//! there is an action, and no panic.

mod support;

use proptest::prelude::*;
use support::{bytes, Machine};
use svm::dispatch::{finish_io, read_msr, resume_io, set_xcr0, write_msr, Action, UserExit};
use svm::features::SvmFeatures;
use svm::inject::{cancel, ready_for_interrupt};
use x86::cpu::MemError;
use x86::msr::Origin;

fn outcome() -> impl Strategy<Value = Result<(), MemError>> {
    prop_oneof![
        Just(Ok(())),
        Just(Err(MemError::Unbacked)),
        Just(Err(MemError::ReadOnly)),
        Just(Err(MemError::WouldSleep)),
        Just(Err(MemError::Fault)),
    ]
}

fn exit_code() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0_u64..0xb0,
        4 => Just(0x400_u64),
        2 => Just(0x7b_u64),
        1 => any::<u64>(),
    ]
}

/// Registers that are likely to lead somewhere.
fn register() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0_u64..0x2_0000,
        Just(support::USER_MMIO),
        Just(u64::MAX)
    ]
}

/// PRED_CMD, the microcode's update of two makers, FLUSH_CMD and IGNNE.
const WRITE_ONLY: [u32; 5] = [0x49, 0x79, 0x10b, 0xc001_0020, 0xc001_0115];

/// Runs turns of the loop with all that can happen in between.
fn turns(machine: &mut Machine, codes: &[(u64, u64, u64, u64)], answers: u64) {
    for &(code, info1, info2, int_info) in codes {
        machine.prepare();
        support::poke(&mut machine.vmcb, support::EXITINTINFO, int_info);
        let mut action = machine.exit(svm::exit::ExitCode(code), info1, info2);
        let mut answered = false;
        for round in 0..20 {
            match action {
                Action::User(UserExit::Io(io)) => {
                    assert_eq!(machine.state.io.pending(), Some(io));
                    answered = true;
                    let answer = answers.wrapping_mul(round).to_le_bytes();
                    action = finish_io(&mut machine.guest(), answer);
                }
                Action::NeedSleep => {
                    machine.world.would_sleep = false;
                    machine.world.fault = Err(MemError::Unbacked);
                    action = if answered {
                        resume_io(&mut machine.guest())
                    } else {
                        machine.handle()
                    };
                }
                _ => break,
            }
        }
        ready_for_interrupt(&machine.vmcb, &machine.state);
        cancel(&mut machine.vmcb, &mut machine.state);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn arbitrary_vmcb(
        image in proptest::collection::vec(any::<u8>(), 4096),
        gpr in proptest::array::uniform16(register()),
        codes in proptest::collection::vec((exit_code(), any::<u64>(), any::<u64>(), any::<u64>()), 1..8),
        code in proptest::array::uniform16(any::<u8>()),
        fault in outcome(),
        features: u32,
        interrupt: Option<u8>,
        nmis in 0_u8..4,
        answers: u64,
    ) {
        let host = SvmFeatures::from_bits_retain(features);
        let mut machine = Machine::real(host).code(&code);
        bytes(&mut machine.vmcb).copy_from_slice(&image);
        machine.state.regs.gpr = gpr;
        machine.world.fault = fault;
        machine.line.vector = interrupt;
        for _ in 0..nmis {
            machine.state.events.raise_nmi();
        }
        turns(&mut machine, &codes, answers);
    }

    #[test]
    fn arbitrary_code(
        long: bool,
        gpr in proptest::array::uniform16(register()),
        codes in proptest::collection::vec((exit_code(), any::<u64>(), any::<u64>(), prop_oneof![3 => Just(0_u64), 1 => any::<u64>()]), 1..8),
        code in proptest::array::uniform16(any::<u8>()),
        flags: u64,
        fault in outcome(),
        would_sleep: bool,
        read_only: bool,
        answers: u64,
    ) {
        let host = SvmFeatures::empty();
        let machine = if long { Machine::long(host) } else { Machine::real(host) };
        let mut machine = machine.code(&code);
        machine.vmcb.set_rflags(x86::regs::Rflags::from_bits_retain(flags));
        machine.state.regs.gpr = gpr;
        machine.world.fault = fault;
        machine.world.would_sleep = would_sleep;
        machine.world.read_only = read_only;
        turns(&mut machine, &codes, answers);
    }

    /// Instructions that reach a device: the commonest opcodes with any operands.
    #[test]
    fn arbitrary_device_access(
        gpr in proptest::array::uniform16(register()),
        prefix in prop_oneof![Just(0x90_u8), Just(0xf3), Just(0xf0), Just(0x66), Just(0x48), Just(0x67)],
        opcode in prop_oneof![any::<[u8; 1]>().prop_map(|[a]| vec![a]), any::<u8>().prop_map(|b| vec![0x0f, b])],
        operands in proptest::array::uniform12(any::<u8>()),
        answers: u64,
        count in 0_u64..5,
    ) {
        let mut code = vec![prefix];
        code.extend(&opcode);
        code.extend(operands);
        let mut machine = Machine::long(SvmFeatures::empty()).code(&code);
        machine.state.regs.gpr = gpr;
        machine.state.regs.gpr[1] = count;
        turns(&mut machine, &[(0x400, 6, support::USER_MMIO, 0)], answers);
    }

    #[test]
    fn arbitrary_msrs(
        index in prop_oneof![any::<u32>(), 0_u32..0x2000, 0xc000_0000..0xc000_0200_u32, 0xc001_0000..0xc001_2000_u32, Just(0x4b56_4d00)],
        value: u64,
        features: u64,
    ) {
        let mut machine = Machine::long(SvmFeatures::empty());
        machine.state.features.set = x86::features::Feature::from_bits_retain(features);
        for origin in [Origin::Guest, Origin::Host] {
            let before = read_msr(&mut machine.guest(), index, origin);
            let written = write_msr(&mut machine.guest(), index, value, origin);
            if before.is_err() && origin == Origin::Guest {
                let known = written.is_err() || WRITE_ONLY.contains(&index);
                prop_assert!(known, "write-only {index:x}");
            }
        }
        let _ = set_xcr0(&mut machine.state, value);
    }
}
