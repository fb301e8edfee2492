// SPDX-License-Identifier: GPL-2.0-only

//! The registers of KVM_SET_REGS, KVM_SET_SREGS and its successor, and the debug registers.

use kvm_bindings::*;
use selftests::kvm::{number, Sregs2};

use super::change;
use crate::cases::Mode;
use crate::guest::{cr0_bits, errno, general, regs, segments, words, Machine};
use crate::probe::Probe;
use crate::random::Random;

pub(crate) fn some_regs(
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

/// Whether the guest can run: on QEMU one with LME and without paging takes the host along, and
/// page tables in the page of code make it stand still. KVM cannot skip an instruction in a segment
/// that is not there.
fn can_run(s: &kvm_sregs, base: &kvm_sregs) -> bool {
    s.cr3 == base.cr3
        && s.efer == base.efer
        && (s.cr0 ^ base.cr0) & 0x8000_0001 == 0
        && (s.cr4 ^ base.cr4) & 0x20 == 0
        && s.cs.base == base.cs.base
        && s.cs.limit == base.cs.limit
        && (s.cs.type_, s.cs.s, s.cs.l, s.cs.db)
            == (base.cs.type_, base.cs.s, base.cs.l, base.cs.db)
        && (s.cs.present, s.cs.unusable) == (1, 0)
}

pub(crate) fn some_sregs(
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
            cr0_bits(s.cr0),
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

pub(crate) fn some_sregs2(
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
            words(&[cr0_bits(after.cr0), after.cr3, after.cr4, after.efer]),
        );
        probe.put("flags", after.flags);
        if after.flags & 1 != 0 {
            probe.put("pdptrs", words(&after.pdptrs));
        }
    }
    Ok(false)
}

pub(crate) fn debugregs(
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
