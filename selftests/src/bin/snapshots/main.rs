// SPDX-License-Identifier: GPL-2.0-only

//! Snapshots of a guest at work whose timers are armed, as Firecracker and cloud-hypervisor take
//! and restore them. The guest has a TSC deadline, a periodic and a one-shot timer of local APICs
//! and, with Firecracker's controllers, a PIT. A snapshot of each copy is made; the copy and the
//! guest that it was taken of both go on, beside each other.

mod away;
mod guest;
mod run;
mod state;

use std::process::ExitCode;

use kvm_bindings::*;
use selftests::guest::{Guest, Irqchip, Mode};
use selftests::kvm::{named_msrs, number, Handle};
use selftests::machine::{catch_interruptions, Machine, LOAD};
use selftests::tap::{skipped, Tap};

use guest::{Field, CPUS, DEADLINE, IDT, IDT_SIZE, ONE_SHOT, PERIODIC, RECORD, RECORDS, STACKS};
use run::go_on;
use state::{State, Vmm, Way};

/// So many generations of copies.
const COPIES: usize = 20;

/// A test of the device of this path.
type Test = fn(&str, Way) -> Result<(), String>;

const TESTS: &[(&str, Way, Test)] = &[
    (
        "a guest goes on from 20 snapshots of Firecracker",
        Way {
            vmm: Vmm::Firecracker,
            msrs_first: false,
        },
        generations,
    ),
    (
        "a guest goes on from 20 snapshots of cloud-hypervisor",
        Way {
            vmm: Vmm::CloudHypervisor,
            msrs_first: false,
        },
        generations,
    ),
    (
        "the same with Firecracker's ioctls, MSRs before local APICs",
        Way {
            vmm: Vmm::Firecracker,
            msrs_first: true,
        },
        generations,
    ),
    (
        "the same with cloud-hypervisor's ioctls, MSRs before local APICs",
        Way {
            vmm: Vmm::CloudHypervisor,
            msrs_first: true,
        },
        generations,
    ),
    (
        "a guest that cloud-hypervisor restores after a while is told that it was stopped",
        Way {
            vmm: Vmm::CloudHypervisor,
            msrs_first: false,
        },
        away::clocks_of_a_guest_that_was_away,
    ),
];

fn main() -> ExitCode {
    let device = std::env::var("DEVICE").unwrap_or_else(|_| "/dev/pacifica".into());
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    catch_interruptions();
    let mut tap = Tap::start();
    for (name, way, test) in TESTS {
        if wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str())) {
            tap.result(name, test(&device, *way));
        }
    }
    tap.finish()
}

fn generations(path: &str, way: Way) -> Result<(), String> {
    if way.msrs_first && path.ends_with("/kvm") {
        return skipped("KVM drops a deadline that comes before its mode");
    }
    let device = Handle::open(path).map_err(|e| format!("{path}: {e}"))?;
    let named = named_msrs(&device)?;
    let mut old = new(&device, way)?;
    // Firecracker lets a deadline that has passed come again, and KVM a one-shot timer that has
    // expired.
    let strict = way.vmm != Vmm::Firecracker && !path.ends_with("/kvm");
    start(&old, way, strict)?;
    go_on(&[&old])?;
    for number in 1..=COPIES {
        let state = State::save(&old, way, &named)?;
        let copy = new(&device, way)?;
        state.restore(&copy, way)?;
        go_on(&[&old, &copy]).map_err(|error| format!("copy {number}: {error}"))?;
        old = copy;
    }
    Ok(())
}

/// A VM with the interrupt controllers that the VMM would make.
fn new(device: &Handle, way: Way) -> Result<Machine, String> {
    let pit = way.vmm == Vmm::Firecracker;
    let guest = Guest {
        name: "snapshots".into(),
        code: guest::code(),
        mode: Mode::Long64,
        irqchip: if pit { Irqchip::Kernel } else { Irqchip::Split },
        pit,
        cpus: CPUS as u32,
        limit: None,
        after_hlt: false,
        feature: None,
        rom: false,
        bugs: Vec::new(),
        expected: Vec::new(),
    };
    Machine::new(device, &guest)
}

/// All CPUs at the beginning of the code, with the first one's segments and tables.
fn start(machine: &Machine, way: Way, strict: bool) -> Result<(), String> {
    const X2APIC_ENABLED: u64 = 0xc00;
    const BOOT_CPU: u64 = 0x100;
    /// A millisecond in nanoseconds, the ticks of local APICs.
    const MILLISECOND: u64 = 1_000_000;
    guest::write_idt(&machine.ram, LOAD as u64);
    let mut sregs: kvm_sregs = machine.vcpus[0].handle.get(number::GET_SREGS)?;
    sregs.idt = kvm_dtable {
        base: IDT,
        limit: IDT_SIZE - 1,
        ..Default::default()
    };
    for (id, vcpu) in machine.vcpus.iter().enumerate() {
        let vcpu = &vcpu.handle;
        let khz = vcpu.call(number::GET_TSC_KHZ, 0)? as u64;
        let distance = match id {
            DEADLINE => khz,
            PERIODIC => 3 * MILLISECOND,
            ONE_SHOT => MILLISECOND,
            _ => return Err("a CPU without a timer".into()),
        };
        let record = RECORDS + id as u64 * RECORD;
        let put = |field: Field, value| {
            let at = record + field as u64 * 8;
            machine.ram.write_words(at as usize, &[value]);
        };
        put(Field::Mode, id as u64);
        put(Field::Strict, strict.into());
        put(Field::Distance, distance);
        let pit = id == 0 && way.vmm == Vmm::Firecracker;
        put(Field::HasPit, pit.into());
        let boot = if id == 0 { BOOT_CPU } else { 0 };
        sregs.apic_base = sregs.apic_base & !BOOT_CPU | X2APIC_ENABLED | boot;
        vcpu.set(number::SET_SREGS, &sregs)?;
        let regs = kvm_regs {
            rip: LOAD as u64,
            rsp: STACKS + id as u64 * RECORD,
            r15: record,
            rflags: 2,
            ..Default::default()
        };
        vcpu.set(number::SET_REGS, &regs)?;
        let mp_state = KVM_MP_STATE_RUNNABLE;
        vcpu.set(number::SET_MP_STATE, &kvm_mp_state { mp_state })?;
    }
    Ok(())
}
