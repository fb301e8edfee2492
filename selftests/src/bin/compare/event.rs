// SPDX-License-Identifier: GPL-2.0-only

//! Events: exceptions, interrupts and NMIs in any combination, and where they lead.

use std::collections::BTreeMap;
use std::time::Duration;

use kvm_bindings::*;
use selftests::kvm::{number, Handle};

use crate::cases::Mode;
use crate::guest::{errno, good_gate, regs, Config, Machine, CODE, HLT};
use crate::probe::{Probe, Subject};
use crate::random::Random;

/// What the guest would do.
const CODES: &[(&str, &[u8])] = &[
    ("hlt", &[0xf4]),
    ("nops", &[0x90, 0x90, 0xf4]),
    ("out", &[0xe6, 0x80, 0xf4]),
    ("sti", &[0xfb, 0xf4]),
    ("sti-nop", &[0xfb, 0x90, 0x90, 0xf4]),
    ("mov-ss", &[0x8e, 0xd0, 0x90, 0xf4]),
    ("int3", &[0xcc, 0xf4]),
    ("int-40", &[0xcd, 0x40, 0xf4]),
    ("ud2", &[0x0f, 0x0b, 0xf4]),
    ("iret", &[0xcf, 0xf4]),
    ("cpuid", &[0x0f, 0xa2, 0xf4]),
    ("icebp", &[0xf1, 0xf4]),
    ("into", &[0xce, 0xf4]),
];

/// A gate that is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Trap,
    NotPresent,
    BadType,
    NullSelector,
    DataSelector,
    FarSelector,
    Privileged,
    BeyondTable,
    NowhereOffset,
    Stack1,
    Stack2,
}

const GATES: &[Gate] = &[
    Gate::Trap,
    Gate::NotPresent,
    Gate::BadType,
    Gate::NullSelector,
    Gate::DataSelector,
    Gate::FarSelector,
    Gate::Privileged,
    Gate::BeyondTable,
    Gate::NowhereOffset,
    Gate::Stack1,
    Gate::Stack2,
];

/// The machines that are there, and the device.
pub(crate) struct Events {
    device: Handle,
    machines: BTreeMap<Config, Machine>,
}

impl Events {
    pub(crate) fn open(device: Handle) -> Box<dyn Subject> {
        Box::new(Self {
            device,
            machines: BTreeMap::new(),
        })
    }
}

impl Subject for Events {
    fn ask(&mut self, random: &mut Random, limit: Duration) -> Result<Probe, String> {
        let config = Config {
            chips: random.one_in(3),
            payload: random.one_in(2),
        };
        let machine = match self.machines.remove(&config) {
            Some(machine) => machine,
            None => Machine::new(&self.device, config)?,
        };
        let mut probe = Probe::default();
        probe.word(if config.chips { "chips" } else { "no-chips" });
        if config.payload {
            probe.word("payload-cap");
        }
        if one(&machine, config, random, &mut probe, limit)? {
            self.machines.insert(config, machine);
        }
        Ok(probe)
    }
}

/// One probe; whether the machine can be used again.
fn one(
    machine: &Machine,
    config: Config,
    random: &mut Random,
    probe: &mut Probe,
    limit: Duration,
) -> Result<bool, String> {
    let mode = random.pick(&[Mode::Real, Mode::Protected, Mode::Long, Mode::Virtual8086]);
    let user = !mode.is_16_bit() && random.one_in(4);
    probe.word(format!("mode={}", mode.name()));
    probe.word(if user { "cpl=3" } else { "cpl=0" });
    machine.fill(mode);
    machine.reset(mode, user)?;
    let (mut name, code) = random.pick(CODES);
    let mut code = code.to_vec();
    let mut events = some_events(random, probe, config, mode);
    // What is soft is the instruction's that is there.
    let (x, i) = (events.exception, events.interrupt);
    let quiet = (x.injected | x.pending | i.injected | events.nmi.injected) == 0;
    let debug = debug_control(random, quiet);
    if i.injected & i.soft != 0 {
        (name, code) = ("int", vec![0xcd, i.nr, HLT]);
    } else if (x.injected | x.pending) != 0 && x.nr == 4 && mode != Mode::Long {
        (name, code) = ("into", vec![0xce, HLT]);
    } else if debug & KVM_GUESTDBG_INJECT_BP != 0 || matches!(x.nr, 3 | 4) {
        (name, code) = ("int3", vec![0xcc, HLT]);
    }
    // KVM executes such an instruction again, after what comes meanwhile.
    let soft = matches!(name, "int" | "into" | "int3");
    if soft {
        events.nmi.pending = 0;
    }
    probe.word(format!("code={name}"));
    machine.ram.write(CODE as usize, &code);
    if name == "iret" {
        frame(machine, mode, user);
    }
    spoil(machine, (mode, user), &events, random, probe)?;
    let mut regs = regs(mode);
    for (flag, name, times) in [(0x200, "if", 2), (0x100, "tf", 12), (0x1_0000, "rf", 8)] {
        if random.one_in(times) {
            regs.rflags |= flag;
            probe.word(name);
        }
    }
    let vcpu = &machine.vcpu.handle;
    vcpu.set(number::SET_REGS, &regs)?;
    let done = vcpu.set(number::SET_VCPU_EVENTS, &events);
    probe.put("set", errno(done));
    // The guests here have no handler of SMIs.
    let smi = probe.question.contains(" smi=");
    if done.is_err() || smi {
        return Ok(!smi);
    }
    more(machine, config, (debug, soft), random, probe);
    probe.put("before", machine.events()?);
    let usable = machine.run(probe, limit)?;
    // What a VMCB has after a shutdown is undefined (APM vol. 2, 15.14.3), and QEMU's is after a
    // VMRUN that was refused.
    let exit = probe.get("exit");
    if !["shutdown", "fail-entry", crate::probe::NO_END].contains(&exit) {
        machine.describe(probe)?;
        let rsp = vcpu.get::<kvm_regs>(number::GET_REGS)?.rsp;
        probe.put("top", machine.top(rsp));
        let shared = machine.vcpu.shared();
        probe.put(
            "shared",
            format!(
                "{}{}:{:x}",
                shared.ready_for_interrupt_injection, shared.if_flag, shared.flags
            ),
        );
    }
    // KVM's step to the end of the shadow may still be on its way.
    let step = events.interrupt.shadow != 0 && machine.nmis_wait()?;
    Ok(usable && !step)
}

/// Any state of events, mostly a possible one.
fn some_events(
    random: &mut Random,
    probe: &mut Probe,
    config: Config,
    mode: Mode,
) -> kvm_vcpu_events {
    let mut events = crate::guest::all_events();
    if random.one_in(2) {
        let x = &mut events.exception;
        (x.injected, x.pending) = random.pick(&[(1, 0), (1, 0), (1, 0), (0, 1), (1, 1)]);
        x.nr = match random.below(8) {
            0 => random.below(256) as u8,
            _ => random.pick(&[0, 1, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19]),
        };
        // There is no INTO there.
        if mode == Mode::Long && x.nr == 4 {
            x.nr = 3;
        }
        let usual = matches!(x.nr, 8 | 10..=14 | 17);
        x.has_error_code = u8::from(usual != random.one_in(8));
        // QEMU pushes one by the vector, not by the bit that says that there is one.
        if x.has_error_code != 0 {
            x.error_code = random.pick(&[0, 0, 2, 0x18, 0x7b, 0x8000_0001]);
        }
        if config.payload && random.one_in(2) || random.one_in(16) {
            events.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
            events.exception_has_payload = u8::from(random.one_in(2));
            events.exception_payload = random.pick(&[0, 1, 0x4000, 0x1234_5000, 0x1_0000]);
            probe.word("payload");
        }
        probe.word(format!(
            "x={}:{}{}:{}:{:x}:{:x}",
            x.nr, x.injected, x.pending, x.has_error_code, x.error_code, events.exception_payload
        ));
        probe.word(format!("nr={}", x.nr));
    }
    if random.one_in(3) {
        let i = &mut events.interrupt;
        let x = events.exception;
        i.injected = u8::from((x.injected | x.pending) == 0);
        i.soft = u8::from(random.one_in(3));
        i.nr = random.pick(&[0, 1, 2, 3, 4, 8, 13, 14, 31, 32, 0x40, 255]);
        probe.word(format!("irq={}", i.nr));
        if i.injected & i.soft != 0 {
            probe.word("soft");
        }
    }
    if random.one_in(4) {
        events.interrupt.shadow = random.pick(&[1, 2, 3, 1, 2, 0x80]);
        probe.word(format!("shadow={:x}", events.interrupt.shadow));
    }
    if random.one_in(4) {
        let x = events.exception;
        let one = x.injected | x.pending | events.interrupt.injected != 0;
        events.nmi.injected = u8::from(!one && random.one_in(2));
        events.nmi.pending = u8::from(random.one_in(2));
        events.nmi.masked = u8::from(random.one_in(2));
        probe.word(format!(
            "nmi={}{}{}",
            events.nmi.injected, events.nmi.pending, events.nmi.masked
        ));
    }
    if random.one_in(24) {
        events.flags |= KVM_VCPUEVENT_VALID_SMM;
        events.smi.pending = u8::from(random.one_in(2));
        events.smi.smm_inside_nmi = u8::from(random.one_in(4));
        events.smi.latched_init = u8::from(random.one_in(4));
        let smi = events.smi;
        probe.word(format!(
            "smi={}{}{}",
            smi.pending, smi.smm_inside_nmi, smi.latched_init
        ));
    }
    if random.one_in(24) {
        events.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
        events.triple_fault.pending = 1;
        probe.word("triple-fault");
    }
    if random.one_in(24) {
        let bit = random.bit(32) as u32;
        events.flags ^= bit;
        probe.word(format!("flags^{bit:x}"));
    }
    events
}

/// Makes a gate another one, mostly one that is needed.
fn spoil(
    machine: &Machine,
    (mode, user): (Mode, bool),
    events: &kvm_vcpu_events,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<(), String> {
    let mut wanted = vec![3, 6, 0x40];
    if events.exception.injected | events.exception.pending != 0 {
        wanted.extend([events.exception.nr; 3]);
    }
    if events.interrupt.injected != 0 {
        wanted.extend([events.interrupt.nr; 3]);
    }
    if events.nmi.injected | events.nmi.pending != 0 {
        wanted.push(2);
    }
    let mut vectors = Vec::new();
    if random.one_in(2) {
        vectors.push(random.pick(&wanted));
    }
    if random.one_in(6) {
        vectors.push(random.pick(&[8, 11, 13]));
    }
    for vector in vectors {
        let gate = random.pick(GATES);
        if mode == Mode::Real && gate != Gate::BeyondTable {
            continue;
        }
        probe.word(format!("gate={gate:?}:{vector}"));
        if gate == Gate::BeyondTable {
            let mut sregs = machine.sregs(mode, user)?;
            let entry = match mode {
                Mode::Real => 4,
                Mode::Long => 16,
                _ => 8,
            };
            sregs.idt.limit = (u16::from(vector) * entry + entry - 2).min(sregs.idt.limit);
            machine.vcpu.handle.set(number::SET_SREGS, &sregs)?;
        } else {
            machine.gate(mode, vector, changed(mode, vector, gate));
        }
    }
    Ok(())
}

/// A gate in the format of protected and of long mode (APM vol. 2, 4.7.4 and 4.8.4).
fn changed(mode: Mode, vector: u8, gate: Gate) -> [u64; 2] {
    const SELECTOR: u64 = 0xffff << 16;
    const PRESENT: u64 = 1 << 47;
    const DPL: u64 = 3 << 45;
    const TYPE: u64 = 0x1f << 40;
    let [mut low, mut high] = good_gate(mode, vector);
    match gate {
        Gate::BeyondTable => {}
        Gate::Trap => low |= 1 << 40,
        Gate::NotPresent => low &= !PRESENT,
        Gate::BadType => low = low & !TYPE | 2 << 40,
        Gate::NullSelector => low &= !SELECTOR,
        Gate::DataSelector => low = low & !SELECTOR | 0x10 << 16,
        Gate::FarSelector => low = low & !SELECTOR | 0x100 << 16,
        Gate::Privileged => low &= !DPL,
        Gate::NowhereOffset if mode == Mode::Long => high = 0x1_0000,
        Gate::NowhereOffset => low |= 0xffff << 48,
        Gate::Stack1 if mode == Mode::Long => low |= 1 << 32,
        Gate::Stack2 if mode == Mode::Long => low |= 2 << 32,
        // Of 16 bits.
        Gate::Stack1 | Gate::Stack2 => low &= !(8 << 40),
    }
    [low, high]
}

/// The other ways in which events come.
fn more(
    machine: &Machine,
    config: Config,
    (debug, soft): (u32, bool),
    random: &mut Random,
    probe: &mut Probe,
) {
    let vcpu = &machine.vcpu.handle;
    if random.one_in(8) && !soft {
        let irq = random.pick(&[0x20, 0x40, 0xff, 3, 256]);
        probe.word(format!("KVM_INTERRUPT={irq}"));
        let done = vcpu.set(number::INTERRUPT, &kvm_interrupt { irq });
        probe.put("interrupt", errno(done));
    }
    if random.one_in(12) && !soft {
        probe.word("KVM_NMI");
        probe.put("nmi", errno(vcpu.call(number::NMI, 0)));
    }
    if random.one_in(16) && !config.chips {
        probe.word("window");
        machine
            .vcpu
            .share(|shared| shared.request_interrupt_window = 1);
    }
    if debug != 0 {
        probe.word(format!("debug={debug:x}"));
        let debug = kvm_guest_debug {
            control: debug,
            ..Default::default()
        };
        probe.put("debug", errno(vcpu.set(number::SET_GUEST_DEBUG, &debug)));
    }
}

/// An exception that the debugger injects is the only event: KVM_SET_GUEST_DEBUG has no order for
/// two.
fn debug_control(random: &mut Random, quiet: bool) -> u32 {
    if !random.one_in(8) {
        return 0;
    }
    let control = random.pick(&[
        KVM_GUESTDBG_INJECT_DB,
        KVM_GUESTDBG_INJECT_BP,
        KVM_GUESTDBG_SINGLESTEP,
        KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ,
        KVM_GUESTDBG_USE_SW_BP,
    ]);
    match control {
        KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP if !quiet => 0,
        control => KVM_GUESTDBG_ENABLE | control,
    }
}

/// A frame for IRET, which leads to a HLT.
fn frame(machine: &Machine, mode: Mode, user: bool) {
    let Ok(sregs) = machine.sregs(mode, user) else {
        return;
    };
    let regs = regs(mode);
    let flags = regs.rflags;
    let at = (sregs.ss.base + regs.rsp) as usize;
    let words = [
        regs.rip + 0x20,
        sregs.cs.selector.into(),
        flags,
        regs.rsp,
        sregs.ss.selector.into(),
    ];
    let size = match mode {
        Mode::Long | Mode::Protected => 4,
        _ => 2,
    };
    for (index, word) in words.iter().enumerate() {
        machine
            .ram
            .write(at + index * size, &word.to_le_bytes()[..size]);
    }
}
