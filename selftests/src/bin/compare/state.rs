// SPDX-License-Identifier: GPL-2.0-only

//! State that a VMM sets, valid or nearly so: whether it is taken, what is read then, and again after a guest
//! has run with it.

use std::collections::BTreeMap;
use std::time::Duration;

use kvm_bindings::*;
use selftests::kvm::{number, Handle, Sregs2, Xsave};

use crate::cases::Mode;
use crate::guest::{errno, fnv, general, regs, segments, words, Config, Machine};
use crate::probe::{Probe, Subject};
use crate::random::Random;

/// Sets something; whether a guest may run with it.
type Part = fn(&Machine, Mode, &mut Random, &mut Probe) -> Result<bool, String>;

/// The parts that each vCPU has, and those of the controllers in the kernel.
const PARTS: &[Part] = &[
    some_regs,
    some_sregs,
    some_sregs,
    some_sregs2,
    debugregs,
    xsave,
    xsave,
    xcrs,
    fpu,
    mp_state,
    guest_debug,
    clock,
    tsc_khz,
    nested_state,
    routing,
];
const CHIPS: &[Part] = &[mp_state, lapic, lapic, irqchip, irqchip, pit, msi, line];

/// The machines that are there, and the device.
pub(crate) struct States {
    device: Handle,
    machines: BTreeMap<Config, Machine>,
}

impl States {
    pub(crate) fn open(device: Handle) -> Box<dyn Subject> {
        Box::new(Self {
            device,
            machines: BTreeMap::new(),
        })
    }
}

impl Subject for States {
    fn ask(&mut self, random: &mut Random, limit: Duration) -> Result<Probe, String> {
        let config = Config {
            chips: random.one_in(3),
            ..Default::default()
        };
        let machine = match self.machines.remove(&config) {
            Some(machine) => machine,
            None => Machine::new(&self.device, config)?,
        };
        let mut probe = Probe::default();
        let mode = random.pick(&[Mode::Real, Mode::Protected, Mode::Long]);
        let part = random.pick(if config.chips { CHIPS } else { PARTS });
        probe.word(format!("mode={}", mode.name()));
        machine.fill(mode);
        machine.reset(mode, false)?;
        let runs = part(&machine, mode, random, &mut probe)?;
        let mut usable = !config.chips;
        if runs {
            usable &= machine.run(&mut probe, limit)?;
            let exit = probe.get("exit");
            if ["hlt", "halted"].contains(&exit) {
                machine.describe(&mut probe)?;
            }
        }
        if usable {
            self.machines.insert(config, machine);
        }
        Ok(probe)
    }
}

/// Changes some fields to values that may be wrong; their names go into the question.
fn change<'a>(random: &mut Random, probe: &mut Probe, fields: &mut [(&'a str, &'a mut dyn Field)]) {
    let count = random.pick(&[1, 1, 2, 3]);
    for _ in 0..count {
        let at = random.below(fields.len() as u64) as usize;
        let (name, field) = &mut fields[at];
        let value = match random.below(4) {
            0 => random.value(),
            _ => field.value() ^ random.bit(field.bits()),
        };
        field.put(value);
        probe.word(format!("{name}={:x}", field.value()));
        probe.word(*name);
    }
}

/// A number in a structure.
trait Field {
    fn value(&self) -> u64;
    fn put(&mut self, value: u64);
    fn bits(&self) -> u64;
}

macro_rules! fields {
    ($($kind:ty)*) => {$(
        impl Field for $kind {
            fn value(&self) -> u64 {
                u64::from(*self)
            }
            fn put(&mut self, value: u64) {
                *self = value as $kind;
            }
            fn bits(&self) -> u64 {
                u64::from(<$kind>::BITS)
            }
        }
    )*};
}
fields!(u8 u16 u32 u64);

fn some_regs(
    machine: &Machine,
    mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("regs");
    let mut r = regs(mode);
    change(
        random,
        probe,
        &mut [
            ("rflags", &mut r.rflags),
            ("rip", &mut r.rip),
            ("rax", &mut r.rax),
            ("rsp", &mut r.rsp),
            ("r15", &mut r.r15),
        ],
    );
    let vcpu = &machine.vcpu.handle;
    probe.put("set", errno(vcpu.set(number::SET_REGS, &r)));
    let after: kvm_regs = vcpu.get(number::GET_REGS)?;
    let all = [&general(&after)[..], &[after.rip, after.rflags]].concat();
    probe.put("got", words(&all));
    Ok(r.rip == regs(mode).rip && r.rflags & 0x2_0000 == 0)
}

fn segment_fields<'a>(
    s: &'a mut kvm_segment,
    names: [&'a str; 4],
    random: &mut Random,
    probe: &mut Probe,
) {
    let kvm_segment {
        base,
        limit,
        selector,
        type_,
        present,
        dpl,
        db,
        s,
        l,
        g,
        avl,
        unusable,
        ..
    } = s;
    match random.below(3) {
        0 => change(
            random,
            probe,
            &mut [(names[1], base), (names[2], limit), (names[3], selector)],
        ),
        // Single bits, as wide as they are.
        _ => {
            let (name, field, mask) = match random.below(9) {
                0 => ("type", type_, 15),
                1 => ("present", present, 1),
                2 => ("dpl", dpl, 3),
                3 => ("db", db, 1),
                4 => ("s", s, 1),
                5 => ("l", l, 1),
                6 => ("g", g, 1),
                7 => ("avl", avl, 1),
                _ => ("unusable", unusable, 1),
            };
            *field = (random.next() & mask) as u8;
            probe.word(format!("{}.{name}={field:x}", names[0]));
        }
    }
}

/// Changes the system registers.
fn change_sregs(s: &mut kvm_sregs, random: &mut Random, probe: &mut Probe) {
    if random.one_in(3) {
        let (which, names) = match random.below(6) {
            0 => (&mut s.cs, ["cs", "cs.base", "cs.limit", "cs.selector"]),
            1 => (&mut s.ss, ["ss", "ss.base", "ss.limit", "ss.selector"]),
            2 => (&mut s.ds, ["ds", "ds.base", "ds.limit", "ds.selector"]),
            3 => (&mut s.fs, ["fs", "fs.base", "fs.limit", "fs.selector"]),
            4 => (&mut s.ldt, ["ldt", "ldt.base", "ldt.limit", "ldt.selector"]),
            _ => (&mut s.tr, ["tr", "tr.base", "tr.limit", "tr.selector"]),
        };
        return segment_fields(which, names, random, probe);
    }
    let [bitmap, ..] = &mut s.interrupt_bitmap;
    change(
        random,
        probe,
        &mut [
            ("cr0", &mut s.cr0),
            ("cr2", &mut s.cr2),
            ("cr3", &mut s.cr3),
            ("cr4", &mut s.cr4),
            ("cr8", &mut s.cr8),
            ("efer", &mut s.efer),
            ("apic_base", &mut s.apic_base),
            ("idt.base", &mut s.idt.base),
            ("gdt.limit", &mut s.gdt.limit),
            ("bitmap", bitmap),
        ],
    );
}

/// Whether the guest can run: on QEMU one with LME and without paging takes the host along, and page
/// tables in the page of code make it stand still.
fn can_run(s: &kvm_sregs, base: &kvm_sregs) -> bool {
    s.cr3 == base.cr3
        && s.efer == base.efer
        && (s.cr0 ^ base.cr0) & 0x8000_0001 == 0
        && (s.cr4 ^ base.cr4) & 0x20 == 0
        && s.cs.base == base.cs.base
        && s.cs.limit == base.cs.limit
        && (s.cs.type_, s.cs.s, s.cs.l, s.cs.db)
            == (base.cs.type_, base.cs.s, base.cs.l, base.cs.db)
}

fn some_sregs(
    machine: &Machine,
    mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("sregs");
    let base = machine.sregs(mode, false)?;
    let mut s = base;
    change_sregs(&mut s, random, probe);
    let vcpu = &machine.vcpu.handle;
    let done = vcpu.set(number::SET_SREGS, &s);
    probe.put("set", errno(done));
    if done.is_err() {
        return Ok(false);
    }
    put_sregs(&vcpu.get(number::GET_SREGS)?, probe);
    Ok(can_run(&s, &base))
}

fn put_sregs(s: &kvm_sregs, probe: &mut Probe) {
    probe.put("got-segments", segments(s));
    probe.put(
        "got",
        words(&[
            s.cr0,
            s.cr2,
            s.cr3,
            s.cr4,
            s.cr8,
            s.efer,
            s.apic_base,
            s.gdt.base,
            s.gdt.limit.into(),
            s.idt.base,
            s.idt.limit.into(),
            s.interrupt_bitmap[0],
        ]),
    );
}

fn some_sregs2(
    machine: &Machine,
    mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("sregs2");
    let vcpu = &machine.vcpu.handle;
    let mut s: Sregs2 = vcpu.get(number::GET_SREGS2)?;
    if random.one_in(2) && mode == Mode::Protected {
        // Paging with PAE.
        probe.word("pae");
        s.cr0 |= 0x8000_0000;
        s.cr4 |= 0x20;
    }
    let [first, ..] = &mut s.pdptrs;
    change(
        random,
        probe,
        &mut [
            ("flags", &mut s.flags),
            ("pdptr", first),
            ("cr0", &mut s.cr0),
            ("cr3", &mut s.cr3),
            ("cr4", &mut s.cr4),
            ("efer", &mut s.efer),
        ],
    );
    let done = vcpu.set(number::SET_SREGS2, &s);
    probe.put("set", errno(done));
    if done.is_ok() {
        let after: Sregs2 = vcpu.get(number::GET_SREGS2)?;
        probe.put(
            "got",
            words(&[after.cr0, after.cr3, after.cr4, after.efer, after.flags]),
        );
        if after.flags & 1 != 0 {
            probe.put("pdptrs", words(&after.pdptrs));
        }
    }
    Ok(false)
}

fn debugregs(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("debugregs");
    let vcpu = &machine.vcpu.handle;
    let mut d: kvm_debugregs = vcpu.get(number::GET_DEBUGREGS)?;
    let [first, ..] = &mut d.db;
    change(
        random,
        probe,
        &mut [
            ("dr0", first),
            ("dr6", &mut d.dr6),
            ("dr7", &mut d.dr7),
            ("flags", &mut d.flags),
        ],
    );
    probe.put("set", errno(vcpu.set(number::SET_DEBUGREGS, &d)));
    let after: kvm_debugregs = vcpu.get(number::GET_DEBUGREGS)?;
    probe.put(
        "got",
        words(&[after.db[0], after.db[3], after.dr6, after.dr7, after.flags]),
    );
    Ok(after.dr7 & 0xff == 0)
}

fn xsave(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("xsave");
    let vcpu = &machine.vcpu.handle;
    let mut x: Xsave = vcpu.get(number::GET_XSAVE)?;
    x.0[128] &= !PKRU;
    for _ in 0..random.pick(&[1, 2, 4]) {
        let at = match random.below(4) {
            // The control words, the header, anything.
            0 => random.below(8),
            1 => random.below(16) + 128,
            2 => random.pick(&[6, 128, 130]),
            _ => random.below(220),
        };
        let word = &mut x.0[at as usize];
        *word = match random.below(3) {
            0 => random.value() as u32,
            _ => *word ^ random.bit(32) as u32,
        };
        probe.word(format!("word-{at}={word:x}"));
    }
    probe.put("set", errno(vcpu.set(number::SET_XSAVE, &x)));
    put_xsave("got", vcpu, probe)?;
    put_fpu("fpu", vcpu, probe)?;
    Ok(true)
}

/// The component's bit in XSTATE_BV.
const PKRU: u32 = 1 << 9;

fn put_xsave(name: &'static str, vcpu: &Handle, probe: &mut Probe) -> Result<(), String> {
    let x: Xsave = vcpu.get(number::GET_XSAVE)?;
    let bytes = |from: usize, to: usize| -> u32 {
        let bytes: Vec<u8> = x.0[from..to]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        fnv(&bytes)
    };
    // A PKRU of zero is as good as none.
    let pkru = if x.0[128] & PKRU != 0 { x.0[672] } else { 0 };
    probe.put(
        name,
        format!(
            "{:x?}:{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:{pkru:x}",
            &x.0[..8],
            bytes(8, 40),
            bytes(40, 104),
            x.0[128] & !PKRU,
            bytes(129, 132),
            bytes(132, 144),
            bytes(144, 208)
        ),
    );
    Ok(())
}

/// KVM knows no MXCSR here.
fn put_fpu(name: &'static str, vcpu: &Handle, probe: &mut Probe) -> Result<(), String> {
    let f: kvm_fpu = vcpu.get(number::GET_FPU)?;
    probe.put(
        name,
        format!(
            "{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:{:x}",
            f.fcw,
            f.fsw,
            f.ftwx,
            f.last_opcode,
            f.last_ip,
            f.last_dp,
            fnv(&f.fpr.concat()),
            fnv(&f.xmm.concat())
        ),
    );
    Ok(())
}

fn xcrs(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("xcrs");
    let vcpu = &machine.vcpu.handle;
    let mut x: kvm_xcrs = vcpu.get(number::GET_XCRS)?;
    let [first, second, ..] = &mut x.xcrs;
    change(
        random,
        probe,
        &mut [
            ("count", &mut x.nr_xcrs),
            ("flags", &mut x.flags),
            ("number", &mut first.xcr),
            ("value", &mut first.value),
            ("second", &mut second.value),
        ],
    );
    probe.put("set", errno(vcpu.set(number::SET_XCRS, &x)));
    let after: kvm_xcrs = vcpu.get(number::GET_XCRS)?;
    let first = after.xcrs[0];
    probe.put(
        "got",
        format!(
            "{}:{:x}:{:x}:{:x}",
            after.nr_xcrs, after.flags, first.xcr, first.value
        ),
    );
    Ok(true)
}

fn fpu(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("fpu");
    let vcpu = &machine.vcpu.handle;
    let mut f: kvm_fpu = vcpu.get(number::GET_FPU)?;
    f.mxcsr = 0x1f80;
    let [.., last] = &mut f.fpr[3];
    let [byte, ..] = &mut f.xmm[2];
    change(
        random,
        probe,
        &mut [
            ("fcw", &mut f.fcw),
            ("fsw", &mut f.fsw),
            ("ftwx", &mut f.ftwx),
            ("opcode", &mut f.last_opcode),
            ("ip", &mut f.last_ip),
            ("dp", &mut f.last_dp),
            ("st3", last),
            ("xmm2", byte),
        ],
    );
    probe.put("set", errno(vcpu.set(number::SET_FPU, &f)));
    put_fpu("got", vcpu, probe)?;
    Ok(true)
}

fn mp_state(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("mp-state");
    let vcpu = &machine.vcpu.handle;
    let mp_state = match random.below(4) {
        0 => random.value() as u32,
        _ => random.below(12) as u32,
    };
    probe.word(format!("state={mp_state:x}"));
    let done = vcpu.set(number::SET_MP_STATE, &kvm_mp_state { mp_state });
    probe.put("set", errno(done));
    let after: kvm_mp_state = vcpu.get(number::GET_MP_STATE)?;
    probe.put("got", after.mp_state);
    Ok(after.mp_state == KVM_MP_STATE_RUNNABLE)
}

fn guest_debug(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("guest-debug");
    let vcpu = &machine.vcpu.handle;
    let mut debug = kvm_guest_debug::default();
    let mut control = match random.below(2) {
        0 => random.bit(32),
        _ => random.next() & 0x7f_0003,
    } as u32;
    // The events have a kind of their own.
    control &= !(KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP);
    debug.control = control;
    debug.arch.debugreg[7] = match random.below(3) {
        0 => random.value(),
        _ => 0x400,
    };
    probe.word(format!("control={control:x}"));
    probe.word(format!("dr7={:x}", debug.arch.debugreg[7]));
    let done = vcpu.set(number::SET_GUEST_DEBUG, &debug);
    probe.put("set", errno(done));
    let breakpoints = control & KVM_GUESTDBG_USE_HW_BP != 0;
    Ok(done.is_ok() && !breakpoints)
}

fn clock(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("clock");
    let mut clock: kvm_clock_data = machine.vm.get(number::GET_CLOCK)?;
    probe.put("flags", format!("{:x}", clock.flags));
    change(
        random,
        probe,
        &mut [("flags", &mut clock.flags), ("pad", &mut clock.pad0)],
    );
    probe.put("set", errno(machine.vm.set(number::SET_CLOCK, &clock)));
    Ok(true)
}

fn tsc_khz(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("tsc-khz");
    let vcpu = &machine.vcpu.handle;
    let khz = random.value();
    probe.word(format!("khz={khz:x}"));
    let before = vcpu.call(number::GET_TSC_KHZ, 0)?;
    probe.put("set", errno(vcpu.call(number::SET_TSC_KHZ, khz)));
    vcpu.call(number::SET_TSC_KHZ, before as u64)?;
    Ok(false)
}

fn nested_state(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("nested-state");
    let vcpu = &machine.vcpu.handle;
    let mut state = kvm_nested_state {
        format: 1,
        flags: 0x100,
        size: 128,
        ..Default::default()
    };
    change(
        random,
        probe,
        &mut [
            ("flags", &mut state.flags),
            ("format", &mut state.format),
            ("size", &mut state.size),
        ],
    );
    probe.put("set", errno(vcpu.set(number::SET_NESTED_STATE, &state)));
    Ok(false)
}

/// The routing table is empty again at the end.
fn routing(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("routing");
    let mut entry = kvm_irq_routing_entry {
        gsi: random.pick(&[0, 23, 24, 4095, 4096, u32::MAX]),
        type_: random.below(7) as u32,
        flags: random.pick(&[0, 0, 0, 1, 8]),
        pad: random.pick(&[0, 0, 1]),
        ..Default::default()
    };
    entry.u.pad = [
        random.below(26) as u32,
        random.below(26) as u32,
        0x30,
        0,
        0,
        0,
        0,
        0,
    ];
    probe.word(
        format!(
            "gsi={:x} type={} eflags={} pad={} u={:?}",
            entry.gsi,
            entry.type_,
            entry.flags,
            entry.pad,
            // SAFETY: Plain numbers, just written.
            unsafe { &entry.u.pad[..2] }
        )
        .replace(", ", ","),
    );
    let flags = random.pick(&[0, 0, 0, 1]);
    let mut table = vec![1 | flags << 32];
    probe.word(format!("flags={flags}"));
    // SAFETY: The structure has no padding between its numbers.
    let words: [u64; 6] = unsafe { std::mem::transmute(entry) };
    table.extend(words);
    let set = |table: &mut Vec<u64>| {
        let room = table.len() * 8;
        machine.vm.array(number::SET_GSI_ROUTING, table, room)
    };
    probe.put("set", errno(set(&mut table)));
    Ok(false)
}

/// Registers of the local APIC. Its timer does not tick.
fn lapic(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("lapic");
    let vcpu = &machine.vcpu.handle;
    let mut page: kvm_lapic_state = vcpu.get(number::GET_LAPIC)?;
    for _ in 0..random.pick(&[1, 1, 2, 4]) {
        let register = random.below(0x40) * 16;
        let value = match register {
            0x320 => random.value() as u32 | 0x1_0000,
            0x380 | 0x390 => 0,
            _ => random.value() as u32,
        };
        let at = register as usize;
        for (to, byte) in page.regs[at..at + 4].iter_mut().zip(value.to_le_bytes()) {
            *to = byte as i8;
        }
        probe.word(format!("{register:x}={value:x}"));
        probe.word(format!("{register:x}"));
    }
    probe.put("set", errno(vcpu.set(number::SET_LAPIC, &page)));
    let after: kvm_lapic_state = vcpu.get(number::GET_LAPIC)?;
    let words = after.regs.chunks(16).enumerate().map(|(number, bytes)| {
        let word = bytes[..4].iter().rev();
        let value = word.fold(0u32, |word, byte| word << 8 | u32::from(*byte as u8));
        (number * 16, value)
    });
    let there: Vec<_> = words
        .map(|(at, value)| (at, value & lapic_bits(at)))
        .filter(|(_, value)| *value != 0)
        .map(|(at, value)| format!("{at:x}={value:x}"))
        .collect();
    probe.put("got", there.join(","));
    let sregs: kvm_sregs = vcpu.get(number::GET_SREGS)?;
    probe.put("cr8", sregs.cr8);
    Ok(false)
}

/// What a register of the local APIC holds (APM vol. 2, 16.3.2 and further): no reserved bits, which KVM keeps,
/// and nothing that follows from others, as the PPR does, or from the time.
fn lapic_bits(register: usize) -> u32 {
    match register {
        0x20 | 0xd0 | 0x310 => 0xff00_0000,
        0x80 => 0xff,
        0xe0 => 0xf000_0000,
        0xf0 => 0x3ff,
        0x100..=0x27f => u32::MAX,
        0x300 => 0xc_cfff,
        0x320 => 0x7_00ff,
        0x330 | 0x340 => 0x1_07ff,
        0x370 => 0x1_00ff,
        0x350 | 0x360 => 0x1_a7ff,
        0x380 => u32::MAX,
        0x3e0 => 0xb,
        _ => 0,
    }
}

/// The PICs and the IOAPIC.
fn irqchip(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("irqchip");
    let mut chip = kvm_irqchip {
        chip_id: random.pick(&[0, 1, 2, 2, 3, u32::MAX]),
        ..Default::default()
    };
    let id = chip.chip_id;
    probe.word(format!("chip={id:x}"));
    let got = machine.vm.exchange(number::GET_IRQCHIP, &mut chip);
    probe.put("get", errno(got));
    // SAFETY: Bytes, of which all are valid.
    let bytes = unsafe { &mut chip.chip.dummy };
    let length = if id < 2 { 16 } else { 24 + 24 * 8 };
    for _ in 0..random.pick(&[1, 1, 2, 4]) {
        let at = random.below(length) as usize;
        bytes[at] = random.value() as i8;
        probe.word(format!("{at:x}={:x}", bytes[at]));
    }
    probe.put("set", errno(machine.vm.set(number::SET_IRQCHIP, &chip)));
    let mut after = kvm_irqchip {
        chip_id: id,
        ..Default::default()
    };
    let done = machine.vm.exchange(number::GET_IRQCHIP, &mut after);
    if done.is_ok() {
        // SAFETY: As above.
        let bytes = unsafe { &mut after.chip.dummy[..length as usize] };
        plain(id, bytes);
        let each: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        probe.put("got", each.concat());
    }
    Ok(false)
}

/// Without what means nothing: reserved and read-only bits of the IOAPIC, and how much a true byte is.
fn plain(id: u32, bytes: &mut [i8]) {
    if id == 2 {
        for entry in bytes[24..].chunks_mut(8) {
            entry[1] &= 0xef_u8 as i8;
            entry[2] &= 1;
            entry[3..7].fill(0);
        }
        bytes[12..16].fill(0);
    } else {
        bytes[4] &= 7;
        let truths = [6, 7, 8, 10, 11, 12, 13];
        truths
            .iter()
            .for_each(|at| bytes[*at] = i8::from(bytes[*at] != 0));
    }
}

/// The PIT, in a machine that nobody uses again. When its counters were loaded is not compared.
fn pit(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("pit");
    let config = kvm_pit_config {
        flags: random.pick(&[0, 1, 1, 2, 0x8000_0000]),
        ..Default::default()
    };
    probe.word(format!("config={:x}", config.flags));
    let made = machine.vm.set(number::CREATE_PIT2, &config);
    probe.put("create", errno(made));
    if made.is_err() {
        return Ok(false);
    }
    let mut state: kvm_pit_state2 = machine.vm.get(number::GET_PIT2)?;
    for channel in &mut state.channels {
        (channel.rw_mode, channel.read_state, channel.write_state) = (3, 3, 3);
        channel.mode = 2;
    }
    let at = random.below(3) as usize;
    let channel = &mut state.channels[at];
    probe.word(format!("channel={at}"));
    let (name, field, most): (_, &mut u8, _) = match random.below(9) {
        0 => ("count_latched", &mut channel.count_latched, 3),
        1 => ("status_latched", &mut channel.status_latched, 1),
        2 => {
            channel.status_latched = 1;
            ("status", &mut channel.status, 0xff)
        }
        3 => ("read_state", &mut channel.read_state, 4),
        4 => ("write_state", &mut channel.write_state, 4),
        5 => ("rw_mode", &mut channel.rw_mode, 3),
        6 => ("mode", &mut channel.mode, 5),
        7 => ("bcd", &mut channel.bcd, 1),
        _ => ("gate", &mut channel.gate, 1),
    };
    // There are three ways to access a counter.
    let least = u64::from(name == "rw_mode");
    *field = (least + random.below(most + 1 - least)) as u8;
    let value = *field;
    if name == "rw_mode" {
        // What is to be read and written next is in keeping with it.
        (channel.read_state, channel.write_state) = (value, value);
    }
    probe.word(format!("{name}={value:x}"));
    if random.one_in(2) {
        channel.count = random.below(0x1_0000) as u32 + 1;
        channel.latched_count = random.value() as u16;
        probe.word(format!(
            "count={:x},{:x}",
            channel.count, channel.latched_count
        ));
    }
    if random.one_in(4) {
        state.flags = random.below(2) as u32;
        probe.word(format!("flags={:x}", state.flags));
    }
    probe.put("set", errno(machine.vm.set(number::SET_PIT2, &state)));
    let after: kvm_pit_state2 = machine.vm.get(number::GET_PIT2)?;
    probe.put("flags", format!("{:x}", after.flags));
    let channels: Vec<_> = after
        .channels
        .iter()
        .map(|c| {
            format!(
                "{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:{:x}",
                c.count,
                c.latched_count,
                c.count_latched,
                c.status_latched,
                c.status,
                c.read_state,
                c.write_state,
                c.write_latch,
                c.rw_mode,
                c.mode,
                c.bcd,
                c.gate
            )
        })
        .collect();
    probe.put("got", channels.join(","));
    Ok(false)
}

fn msi(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("msi");
    let mut msi = kvm_msi {
        address_lo: 0xfee0_0000,
        data: 0x40,
        ..Default::default()
    };
    change(
        random,
        probe,
        &mut [
            ("address", &mut msi.address_lo),
            ("high", &mut msi.address_hi),
            ("data", &mut msi.data),
            ("flags", &mut msi.flags),
            ("devid", &mut msi.devid),
        ],
    );
    // An INIT would reset what the rest of the probe looks at.
    let init = (msi.data >> 8) & 7 >= 5;
    if !init {
        let done = machine.vm.set(number::SIGNAL_MSI, &msi);
        let text = done.map(|count| count.to_string());
        probe.put("set", text.unwrap_or_else(|error| errno::<()>(Err(error))));
    }
    put_irr(machine, probe)?;
    Ok(false)
}

/// Which interrupts the local APIC has.
fn put_irr(machine: &Machine, probe: &mut Probe) -> Result<(), String> {
    let page: kvm_lapic_state = machine.vcpu.handle.get(number::GET_LAPIC)?;
    let bytes: Vec<u8> = page.regs[0x180..0x280]
        .iter()
        .map(|byte| *byte as u8)
        .collect();
    probe.put("irr", format!("{:x}", fnv(&bytes)));
    Ok(())
}

fn line(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("line");
    let irq = match random.below(3) {
        0 => random.value() as u32,
        _ => random.below(30) as u32,
    };
    let level = kvm_irq_level {
        __bindgen_anon_1: kvm_irq_level__bindgen_ty_1 { irq },
        level: random.pick(&[0, 1, 1, 2, u32::MAX]),
    };
    probe.word(format!("irq={irq:x} level={:x}", level.level));
    let mut status = level;
    let number = number::IRQ_LINE_STATUS;
    let done = match random.one_in(2) {
        true => machine.vm.set(number::IRQ_LINE, &level),
        false => machine.vm.exchange(number, &mut status),
    };
    probe.put("set", errno(done));
    // SAFETY: A number, whichever of its names is used.
    probe.put("status", unsafe { status.__bindgen_anon_1.status });
    put_irr(machine, probe)?;
    Ok(false)
}
