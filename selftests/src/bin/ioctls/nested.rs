// SPDX-License-Identifier: GPL-2.0-only

//! `KVM_GET_NESTED_STATE` and `KVM_SET_NESTED_STATE`: a guest with an inner guest moves to other
//! VMs, and states that there cannot be are refused.

use std::path::Path;

use kvm_bindings::*;
use selftests::guest::{compare, Guest};
use selftests::kvm::{msrs, named_msrs, number, Answer, Errno, Handle, Xsave};
use selftests::machine::{missing, Machine, Step, Vcpu, RAM};
use selftests::tap::{equal, skipped};
use selftests::trace::Trace;

use crate::{refused, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "a guest with an inner guest moves at each of its exits",
        moves,
    ),
    (
        "KVM_SET_NESTED_STATE refuses impossible states, and changes nothing",
        impossible,
    ),
    ("KVM_SET_NESTED_STATE without SVM", without),
    ("KVM_GET_NESTED_STATE with too little room: E2BIG", room),
];

const GUESTS: &str = "/selftests/guests";
/// The header, and the page of an inner guest.
const HEADER: usize = 128;
const SIZE: usize = HEADER + 4096;
/// Where things are in the page: it is a VMCB.
mod at {
    pub(super) const WORD4: usize = 0x10;
    pub(super) const ASID: usize = 0x58;
    pub(super) const EVENTINJ: usize = 0xa8;
    pub(super) const EFER: usize = 0x4d0;
    pub(super) const CR4: usize = 0x548;
    pub(super) const CR0: usize = 0x558;
    pub(super) const CR3: usize = 0x550;
    pub(super) const DR7: usize = 0x560;
}

/// What the two ioctls exchange.
#[derive(Clone, PartialEq, Eq)]
struct Nested(Vec<u64>);

impl Nested {
    fn of(vcpu: &Handle) -> Result<Self, String> {
        let mut state = Self(vec![0; SIZE / 8]);
        state.set_size(SIZE as u32);
        vcpu.array(number::GET_NESTED_STATE, &mut state.0, SIZE)?;
        Ok(state)
    }

    fn put(&self, vcpu: &Handle) -> Answer {
        vcpu.array(number::SET_NESTED_STATE, &mut self.0.clone(), SIZE)
    }

    fn flags(&self) -> u16 {
        self.0[0] as u16
    }

    fn set_flags(&mut self, flags: u32) {
        self.0[0] = self.0[0] & !0xffff | u64::from(flags);
    }

    fn set_format(&mut self, format: u32) {
        self.0[0] = self.0[0] & !0xffff_0000 | u64::from(format) << 16;
    }

    fn set_size(&mut self, size: u32) {
        self.0[0] = self.0[0] & 0xffff_ffff | u64::from(size) << 32;
    }

    fn set_address(&mut self, address: u64) {
        self.0[1] = address;
    }

    /// What QEMU's migration carries of it: of the header the address alone.
    fn carried(&self) -> Self {
        let mut state = self.clone();
        state.0[2..HEADER / 8].fill(0);
        state
    }

    fn is_inside(&self) -> bool {
        u32::from(self.flags()) & KVM_STATE_NESTED_GUEST_MODE != 0
    }

    /// A field of the page, eight bytes.
    fn field(&mut self, offset: usize) -> &mut u64 {
        &mut self.0[(HEADER + offset) / 8]
    }
}

/// All of a virtual CPU, as QEMU has it.
struct Cpu {
    regs: kvm_regs,
    sregs: kvm_sregs,
    nested: Nested,
    xsave: Xsave,
    xcrs: kvm_xcrs,
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
    debug: kvm_debugregs,
}

impl Cpu {
    fn save(device: &Handle, vcpu: &Handle) -> Result<Self, String> {
        let mut pairs: Vec<_> = named_msrs(device)?.iter().map(|&msr| (msr, 0)).collect();
        let mut done = 0;
        while done < pairs.len() {
            done += msrs(vcpu, number::GET_MSRS, &mut pairs[done..])? as usize;
            if done < pairs.len() {
                pairs.remove(done);
            }
        }
        Ok(Self {
            events: vcpu.get(number::GET_VCPU_EVENTS)?,
            regs: vcpu.get(number::GET_REGS)?,
            sregs: vcpu.get(number::GET_SREGS)?,
            nested: Nested::of(vcpu)?,
            xsave: vcpu.get(number::GET_XSAVE)?,
            xcrs: vcpu.get(number::GET_XCRS)?,
            msrs: pairs,
            mp_state: vcpu.get(number::GET_MP_STATE)?,
            debug: vcpu.get(number::GET_DEBUGREGS)?,
        })
    }

    fn restore(&self, vcpu: &Handle) -> Result<(), String> {
        vcpu.set(number::SET_SREGS, &self.sregs)?;
        self.nested.carried().put(vcpu)?;
        vcpu.set(number::SET_REGS, &self.regs)?;
        vcpu.set(number::SET_XSAVE, &self.xsave)?;
        vcpu.set(number::SET_XCRS, &self.xcrs)?;
        let mut pairs = self.msrs.clone();
        let done = msrs(vcpu, number::SET_MSRS, &mut pairs)? as usize;
        if let Some((msr, value)) = pairs.get(done) {
            return Err(format!("MSR {msr:#x} cannot be {value:#x}"));
        }
        vcpu.set(number::SET_VCPU_EVENTS, &self.events)?;
        vcpu.set(number::SET_MP_STATE, &self.mp_state)?;
        vcpu.set(number::SET_DEBUGREGS, &self.debug)?;
        Ok(())
    }
}

/// Ends the access to a device that the guest is in.
fn finish(vcpu: &Vcpu) -> Result<(), String> {
    vcpu.share(|shared| shared.immediate_exit = 1);
    let finished = vcpu.run();
    vcpu.share(|shared| shared.immediate_exit = 0);
    match finished {
        Err(Errno(libc::EINTR)) => Ok(()),
        other => Err(format!("KVM_RUN with immediate_exit: {other:?}")),
    }
}

/// The device, and a guest that is a hypervisor; nothing where guests have no SVM.
fn hypervisor(path: &str, name: &str) -> Result<(Handle, Guest), String> {
    let device = Handle::open(path).map_err(|e| e.to_string())?;
    let guest = Guest::load(Path::new(GUESTS), name)?;
    match missing(&device, &guest) {
        Some(_) => skipped("guests have no SVM here"),
        None => Ok((device, guest)),
    }
}

/// At each exit all is put into a new VM, which goes on.
fn moves(path: &str) -> Result<(), String> {
    if path == "/dev/kvm" {
        return skipped("excused: KVM names an MSR that it does not let be set");
    }
    for name in ["nested", "nested-paging", "nested-moves"] {
        let (device, guest) = hypervisor(path, name)?;
        let mut machine = Machine::new(&device, &guest)?;
        let mut trace = Trace::default();
        let (mut inside, mut exits) = (0, 0);
        while let Step::Go = machine.step(&guest, 0, &mut trace) {
            exits += 1;
            finish(&machine.vcpus[0])?;
            let cpu = Cpu::save(&device, &machine.vcpus[0].handle)?;
            inside += usize::from(cpu.nested.is_inside());
            let next = Machine::new(&device, &guest)?;
            next.ram.write(0, &machine.ram.read(0, RAM));
            cpu.restore(&next.vcpus[0].handle)
                .map_err(|error| format!("{name}, exit {exits}: {error}"))?;
            let again = Nested::of(&next.vcpus[0].handle)?;
            if again != cpu.nested {
                return Err(format!(
                    "{name}, exit {exits}: not the nested state that was set"
                ));
            }
            machine = next;
        }
        println!("# {name}: {exits} exits, {inside} in inner guests");
        let lines = guest.expected.iter();
        let expected: Vec<_> = lines.filter(|l| !l.starts_with("regs ")).cloned().collect();
        compare(&expected, &trace.lines).map_err(|error| format!("{name}: {error}"))?;
        if inside == 0 {
            return Err(format!("{name} was never in its inner guest"));
        }
    }
    Ok(())
}

/// A machine whose inner guest has the CPU.
fn inside(path: &str) -> Result<(Handle, Machine), String> {
    let (device, guest) = hypervisor(path, "nested-moves")?;
    let machine = Machine::new(&device, &guest)?;
    let mut trace = Trace::default();
    while let Step::Go = machine.step(&guest, 0, &mut trace) {
        finish(&machine.vcpus[0])?;
        if Nested::of(&machine.vcpus[0].handle)?.is_inside() {
            return Ok((device, machine));
        }
    }
    Err("the guest was never in its inner guest".into())
}

type Change = (&'static str, fn(&mut Nested));

fn impossible(path: &str) -> Result<(), String> {
    let (_device, machine) = inside(path)?;
    let vcpu = &machine.vcpus[0].handle;
    let good = Nested::of(vcpu)?;
    const GIF: u32 = KVM_STATE_NESTED_GIF_SET;
    const INSIDE: u32 = KVM_STATE_NESTED_GUEST_MODE;
    let mut changes: Vec<Change> = vec![
        ("format VMX", |state| state.set_format(0)),
        ("a format that is none", |state| state.set_format(2)),
        ("no room for a header", |state| state.set_size(127)),
        ("no room for the page", |state| state.set_size(128 + 4095)),
        ("a flag of VMX", |state| state.set_flags(GIF | INSIDE | 4)),
        ("an unknown flag", |state| {
            state.set_flags(GIF | INSIDE | 1 << 15)
        }),
        ("VMRUN pending and no inner guest", |state| {
            state.set_flags(GIF | KVM_STATE_NESTED_RUN_PENDING);
        }),
        ("an address within a page", |state| {
            state.set_address(0x60800)
        }),
        ("an address over the end", |state| {
            state.set_address(1 << 52)
        }),
        ("VMRUN is not intercepted", |state| {
            *state.field(at::WORD4) &= !1
        }),
        ("ASID 0", |state| *state.field(at::ASID) &= !0xffff_ffff),
        ("SVME clear", |state| *state.field(at::EFER) &= !(1 << 12)),
        ("no protected mode", |state| *state.field(at::CR0) &= !1),
        ("no PAE in long mode", |state| {
            *state.field(at::CR4) &= !0x20
        }),
        ("CR3 over the end", |state| *state.field(at::CR3) |= 1 << 62),
        ("the upper half of CR0", |state| {
            *state.field(at::CR0) |= 1 << 32
        }),
    ];
    if path != "/dev/kvm" {
        changes.extend::<[Change; 2]>([
            ("an event that is none", |state| {
                *state.field(at::EVENTINJ) = 1 << 31 | 1 << 8;
            }),
            ("the upper half of DR7", |state| {
                *state.field(at::DR7) |= 1 << 32
            }),
        ]);
    }
    for (what, change) in changes {
        let mut state = good.clone();
        change(&mut state);
        refused(what, state.put(vcpu), libc::EINVAL)?;
        if Nested::of(vcpu)? != good {
            return Err(format!("{what}: refused, and the state has changed"));
        }
    }
    equal("the good one", good.put(vcpu), Ok(0))?;
    // Out of the inner guest, with GIF clear, and back.
    let mut outside = good.clone();
    outside.set_flags(0);
    equal("no inner guest", outside.put(vcpu), Ok(0))?;
    equal("flags", Nested::of(vcpu)?.flags(), 0)?;
    let mut sregs: kvm_sregs = vcpu.get(number::GET_SREGS)?;
    sregs.efer &= !(1 << 12);
    vcpu.set(number::SET_SREGS, &sregs)?;
    refused("EFER.SVME is clear", good.put(vcpu), libc::EINVAL)?;
    // SAFETY: There is nothing at this address, which is all that the kernel may find.
    let nowhere = unsafe { vcpu.raw(number::SET_NESTED_STATE, 8) };
    refused("an argument nowhere", nowhere, libc::EFAULT)
}

fn without(path: &str) -> Result<(), String> {
    let (device, mut guest) = hypervisor(path, "nested-moves")?;
    guest.feature = None;
    let machine = Machine::new(&device, &guest)?;
    let vcpu = &machine.vcpus[0].handle;
    let mut state = Nested::of(vcpu)?;
    equal("flags", u32::from(state.flags()), KVM_STATE_NESTED_GIF_SET)?;
    equal("what there is", state.put(vcpu), Ok(0))?;
    for flags in [0, KVM_STATE_NESTED_GUEST_MODE, KVM_STATE_NESTED_GIF_SET | 1] {
        if flags == 0 && path == "/dev/kvm" {
            continue; // It takes a GIF that is clear.
        }
        state.set_flags(flags);
        refused("without SVM", state.put(vcpu), libc::EINVAL)?;
    }
    Ok(())
}

fn room(path: &str) -> Result<(), String> {
    let (_device, machine) = inside(path)?;
    let vcpu = &machine.vcpus[0].handle;
    for size in [0, 127, 128, SIZE as u32 - 1] {
        let mut state = Nested(vec![0; SIZE / 8]);
        state.set_size(size);
        refused(
            "too little",
            vcpu.array(number::GET_NESTED_STATE, &mut state.0, SIZE),
            libc::E2BIG,
        )?;
        if path != "/dev/kvm" {
            equal("the size that it takes", state.0[0] >> 32, SIZE as u64)?;
        }
    }
    Ok(())
}
