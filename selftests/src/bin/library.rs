// SPDX-License-Identifier: GPL-2.0-only

//! The library for VMMs (`userspace-tool/lib`): what it writes into guest memory, in whatever way,
//! a reset puts back, and nothing is written that could not be. And the examples.

use std::process::{Command, ExitCode};
use std::sync::atomic::Ordering;

use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use pacifica_vm::kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use pacifica_vm::vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryRegion, VolatileMemory};
use pacifica_vm::{fork, is_limit, Error, Feature, Fork, Memory, Snapshot, Time};
use selftests::tap::{equal, Tap};

const PAGE: u64 = 4096;
const SIZE: u64 = 1 << 20;
const CODE: u64 = 0x1000;
/// What the guest reads, adds to the word at [`SUM`], and copies to [`COPY`].
const INPUT: GuestAddress = GuestAddress(0x2000);
const SUM: GuestAddress = GuestAddress(0x3000);
const COPY: GuestAddress = GuestAddress(0x4000);
/// Memory that the guest does not use.
const FREE: u64 = 0x8_0000;

/// In real mode: mov ax, [INPUT]; add [SUM], ax; mov [COPY], ax; hlt; and again.
const GUEST: [u8; 13] = [
    0xa1, 0x00, 0x20, 0x01, 0x06, 0x00, 0x30, 0xa3, 0x00, 0x40, 0xf4, 0xeb, 0xf3,
];

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// A VM; the memory goes last.
struct Machine {
    vcpu: VcpuFd,
    vm: VmFd,
    memory: Memory,
}

impl Machine {
    fn new(kvm: &Kvm) -> Outcome<Self> {
        let vm = kvm.create_vm()?;
        // In two slots, so that something can lie across.
        let half = SIZE / 2;
        let halves = [0, half].map(|start| (GuestAddress(start), half as usize));
        let memory = Memory::from_ranges(&halves)?;
        for (slot, region) in (0..).zip(memory.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.mapping().as_ptr() as u64,
            };
            // SAFETY: The mapping is the guest's alone, and this machine drops it last.
            unsafe { vm.set_user_memory_region(slot) }?;
        }
        memory.write_slice(&GUEST, GuestAddress(CODE))?;
        for page in 0..16 {
            memory.write_slice(
                &[page as u8 + 1; 4096],
                GuestAddress(FREE - 8 * PAGE + page * PAGE),
            )?;
        }
        let vcpu = vm.create_vcpu(0)?;
        let mut sregs = vcpu.get_sregs()?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs)?;
        let regs = kvm_regs {
            rip: CODE,
            rflags: 2,
            ..Default::default()
        };
        vcpu.set_regs(&regs)?;
        Ok(Self { vcpu, vm, memory })
    }

    fn snapshot(&self, pages: u64) -> pacifica_vm::Result<Snapshot> {
        Snapshot::take(&self.vm, &self.memory, pages * PAGE)
    }

    /// Runs until the guest halts.
    fn run(&mut self) -> Outcome {
        match self.vcpu.run()? {
            VcpuExit::Hlt => Ok(()),
            other => Err(format!("{other:?}").into()),
        }
    }

    /// All of its memory.
    fn contents(&self) -> Outcome<Vec<u8>> {
        let mut bytes = vec![0; SIZE as usize];
        self.memory.peek(&mut bytes, GuestAddress(0))?;
        Ok(bytes)
    }

    fn unchanged(&self, what: &str, before: &[u8]) -> Outcome {
        let now = self.contents()?;
        match now
            .iter()
            .zip(before)
            .position(|(now, before)| now != before)
        {
            None => Ok(()),
            Some(place) => Err(format!("{what}: another byte at {place:#x}").into()),
        }
    }
}

/// The guest's writes and registers, and the input that each round is given.
fn rounds(kvm: &Kvm) -> Outcome {
    let mut machine = Machine::new(kvm)?;
    machine.run()?;
    let snapshot = machine.snapshot(64)?;
    let (before, regs) = (machine.contents()?, machine.vcpu.get_regs()?);
    for round in 0..10_u16 {
        machine.memory.write_obj(round, INPUT)?;
        for _ in 0..2 {
            machine.run()?;
        }
        equal("the sum", machine.memory.read_obj::<u16>(SUM)?, 2 * round)?;
        equal("the copy", machine.memory.read_obj::<u16>(COPY)?, round)?;
        let pages = snapshot.reset(Time::GoesBack)?;
        equal("pages", pages, 3)?;
        machine.unchanged("after a reset", &before)?;
        equal("registers", machine.vcpu.get_regs()?, regs)?;
    }
    Ok(())
}

/// Every way in which `vm-memory` writes.
fn ways(kvm: &Kvm) -> Outcome {
    type Way = fn(&Memory) -> Outcome;
    let ways: &[(&str, Way)] = &[
        ("write_slice, across pages and slots", |memory| {
            Ok(memory.write_slice(&[0xee; 3 * 4096], GuestAddress(FREE - PAGE - 5))?)
        }),
        ("write", |memory| {
            equal(
                "written",
                memory.write(&[0xee; 5], GuestAddress(FREE - 1))?,
                5,
            )?;
            Ok(())
        }),
        ("write_obj", |memory| {
            Ok(memory.write_obj(0xeeee_u16, GuestAddress(FREE + 3 * PAGE - 1))?)
        }),
        ("store", |memory| {
            let value = 0xeeee_u32;
            Ok(memory.store(value, GuestAddress(FREE + 64), Ordering::SeqCst)?)
        }),
        ("read_volatile_from", |memory| {
            let count =
                memory.read_volatile_from(GuestAddress(FREE), &mut &[0xee; 9000][..], 9000)?;
            equal("read", count, 9000)?;
            Ok(())
        }),
        ("a slice and its parts", |memory| {
            let slice = memory.get_slice(GuestAddress(FREE), 3 * 4096)?;
            slice.subslice(4000, 200)?.copy_from(&[0xee_u8; 200]);
            slice.get_ref::<u64>(8192)?.store(0xeeee);
            Ok(())
        }),
        ("a region", |memory| {
            let region = memory.to_region_addr(GuestAddress(FREE));
            let (region, offset) = region.ok_or("no region")?;
            region.write_slice(&[0xee; 5000], offset)?;
            region.read_exact_volatile_from(offset, &mut &[0xdd; 9000][..], 9000)?;
            Ok(region.store(7_u64, offset, Ordering::SeqCst)?)
        }),
    ];
    let machine = Machine::new(kvm)?;
    let snapshot = machine.snapshot(64)?;
    let before = machine.contents()?;
    // Twice: nothing is taken for announced that is not any more.
    for (name, way) in ways.iter().chain(ways) {
        way(&machine.memory).map_err(|error| format!("{name}: {error}"))?;
        equal("something was written", machine.contents()? != before, true)?;
        snapshot.reset(Time::GoesOn)?;
        machine.unchanged(name, &before)?;
    }
    Ok(())
}

/// At the limit nothing is written; a reset that forgets is told again what is written.
fn limit(kvm: &Kvm) -> Outcome {
    let machine = Machine::new(kvm)?;
    let snapshot = machine.snapshot(2)?;
    let before = machine.contents()?;
    for round in 0..5 {
        let at = |page| GuestAddress(FREE + page * PAGE);
        for page in 0..2 {
            machine.memory.write_obj(0xee_u8, at(page + round))?;
        }
        equal("kept", snapshot.kept()?, 2 * PAGE)?;
        let refused = machine.memory.write_slice(&[0xee; 4096], at(2 + round));
        equal("refused", refused.is_err(), true)?;
        equal(
            "announced by hand",
            matches!(snapshot.announce(at(7), 1), Err(Error::Limit)),
            true,
        )?;
        equal(
            "nothing written",
            machine.memory.find_region(at(0)).is_some(),
            true,
        )?;
        let mut byte = [0];
        machine.memory.peek(&mut byte, at(2 + round))?;
        equal("the byte", byte[0], before[at(2 + round).0 as usize])?;
        snapshot.reset(Time::GoesOn)?;
        machine.unchanged("after a reset", &before)?;
    }
    snapshot.set_limit(8 * PAGE)?;
    machine
        .memory
        .write_slice(&[0xee; 3 * 4096], GuestAddress(FREE))?;
    snapshot.reset(Time::GoesOn)?;
    machine.unchanged("after a reset with a higher limit", &before)
}

/// `KVM_RUN` ends at the limit, and goes on after a higher one.
fn guest_limit(kvm: &Kvm) -> Outcome {
    let mut machine = Machine::new(kvm)?;
    machine.memory.write_obj(7_u16, INPUT)?;
    let snapshot = machine.snapshot(1)?;
    let before = machine.contents()?;
    for _ in 0..3 {
        match machine.vcpu.run() {
            Err(error) if is_limit(&error) => {}
            other => return Err(format!("not the limit: {other:?}").into()),
        }
        snapshot.set_limit(2 * PAGE)?;
        machine.run()?;
        equal(
            "the sum",
            machine.memory.read_obj::<u16>(GuestAddress(SUM.0))?,
            7,
        )?;
        snapshot.reset(Time::GoesBack)?;
        snapshot.set_limit(PAGE)?;
        machine.unchanged("after a reset", &before)?;
        snapshot.reset(Time::GoesBack)?;
    }
    Ok(())
}

/// Nothing is reset under somebody who could still write.
fn slices(kvm: &Kvm) -> Outcome {
    let machine = Machine::new(kvm)?;
    let slice = machine.memory.get_slice(GuestAddress(FREE), 1)?;
    equal(
        "taken",
        matches!(machine.snapshot(8), Err(Error::SlicesInUse(1))),
        true,
    )?;
    drop(slice);
    let snapshot = machine.snapshot(8)?;
    let slice = machine.memory.get_slice(GuestAddress(FREE), 1)?;
    let refused = snapshot.reset(Time::GoesOn);
    equal("reset", matches!(refused, Err(Error::SlicesInUse(1))), true)?;
    drop(slice);
    snapshot.reset(Time::GoesOn)?;
    drop(snapshot);
    // Without a snapshot all is as in `GuestMemoryMmap`, and another one can be taken.
    machine.memory.write_slice(&[1; 100], GuestAddress(FREE))?;
    machine.snapshot(8)?.reset(Time::GoesOn)?;
    Ok(())
}

/// What is written by way of a pointer is announced by hand.
fn pointer(kvm: &Kvm) -> Outcome {
    let machine = Machine::new(kvm)?;
    let snapshot = machine.snapshot(8)?;
    let before = machine.contents()?;
    for _ in 0..3 {
        let start = GuestAddress(FREE + 100);
        snapshot.announce(start, 2 * PAGE)?;
        let pointer = machine.memory.get_host_address(start)?;
        // SAFETY: These bytes are of the mapping, and nobody else uses it.
        unsafe { pointer.write_bytes(0xee, 2 * PAGE as usize) };
        snapshot.reset(Time::GoesOn)?;
        machine.unchanged("after a reset", &before)?;
    }
    let far = snapshot.announce(GuestAddress(SIZE), 1);
    equal(
        "where no memory is",
        matches!(far, Err(Error::Ioctl { .. })),
        true,
    )?;
    equal(
        "around",
        snapshot.announce(GuestAddress(u64::MAX), 1).is_err(),
        true,
    )?;
    Ok(())
}

/// A child is where its parent was, and neither sees what the other does.
fn children(kvm: &Kvm) -> Outcome {
    let mut machine = Machine::new(kvm)?;
    machine.memory.write_obj(5_u16, INPUT)?;
    machine.run()?;
    // A snapshot of the parent's is none of the child's.
    let snapshot = machine.snapshot(64)?;
    let before = machine.contents()?;
    let mut children = Vec::new();
    for number in 1..=4_u16 {
        match fork(kvm, &machine.vm, &machine.memory, Time::GoesOn)? {
            Fork::Parent(child) => children.push(child),
            Fork::Child(vm) => {
                let outcome = vm
                    .map_err(Into::into)
                    .and_then(|vm| child(machine, vm, number));
                if let Err(error) = &outcome {
                    println!("# child {number}: {error}");
                }
                std::process::exit(i32::from(outcome.is_err()));
            }
        }
        // The parent goes on at once.
        machine.memory.write_obj(100 * number, INPUT)?;
        machine.run()?;
        equal(
            "the sum",
            machine.memory.read_obj::<u16>(SUM)?,
            5 + 100 * number,
        )?;
        snapshot.reset(Time::GoesOn)?;
        machine.unchanged("after a reset", &before)?;
    }
    for child in children {
        let mut status = 0;
        // SAFETY: The status is written to a variable.
        let waited = unsafe { libc::waitpid(child as i32, &mut status, 0) };
        equal("the child", (waited, status), (child as i32, 0))?;
    }
    machine.unchanged("after the children", &before)
}

/// What a child does with the parent's machine and a VM of its own.
fn child(mut machine: Machine, vm: VmFd, number: u16) -> Outcome {
    machine.vcpu = vm.create_vcpu(0)?;
    machine.vm = vm;
    machine.memory.write_obj(number, INPUT)?;
    machine.run()?;
    equal("the sum", machine.memory.read_obj::<u16>(SUM)?, 5 + number)?;
    // It takes snapshots, too.
    let snapshot = machine.snapshot(64)?;
    let before = machine.contents()?;
    machine.memory.write_obj(7_u16, INPUT)?;
    machine.run()?;
    equal("the sum", machine.memory.read_obj::<u16>(SUM)?, 12 + number)?;
    snapshot.reset(Time::GoesBack)?;
    machine.unchanged("in the child, after a reset", &before)
}

/// What a child would lose, and what it would share.
fn no_children(kvm: &Kvm) -> Outcome {
    let machine = Machine::new(kvm)?;
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || receiver.recv().is_ok());
    let refused = fork(kvm, &machine.vm, &machine.memory, Time::GoesOn);
    sender.send(())?;
    thread.join().map_err(|_| "a panic")?;
    equal("threads", matches!(refused, Err(Error::Threads(2))), true)?;
    let slice = machine.memory.get_slice(GuestAddress(FREE), 1)?;
    let refused = fork(kvm, &machine.vm, &machine.memory, Time::GoesOn);
    equal(
        "slices",
        matches!(refused, Err(Error::SlicesInUse(1))),
        true,
    )?;
    drop(slice);
    Ok(())
}

/// A program that stands beside this one; answers what it printed.
fn program(name: &str, words: &[&str]) -> Outcome<String> {
    let path = std::env::current_exe()?.with_file_name(name);
    let output = Command::new(path).args(words).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}\n{text}{errors}", output.status).into())
}

/// `rust/uapi/example.c`.
fn in_c(_: &Kvm) -> Outcome {
    let text = program("c-example", &[])?;
    let last = "the parent has come to 2, and its children to other sums";
    Ok(equal("the last line", text.lines().last(), Some(last))?)
}

/// The fuzzer finds its five bugs, by the same way each time.
fn fuzzer(_: &Kvm) -> Outcome {
    let text = program("fuzz-demo", &["--seed", "2", "--runs", "10000", "--lines"])?;
    let found = text
        .lines()
        .filter(|line| line.starts_with("bug after "))
        .count();
    text.lines().for_each(|line| println!("# {line}"));
    Ok(equal("bugs", found, 5)?)
}

type Test = fn(&Kvm) -> Outcome;

const TESTS: &[(&str, Test)] = &[
    ("ten rounds with other inputs", rounds),
    ("every way to write is put back", ways),
    ("at the limit nothing is written", limit),
    ("the limit ends KVM_RUN, and it goes on", guest_limit),
    ("slices that live", slices),
    ("writes by a pointer", pointer),
    ("four children", children),
    ("what cannot have children", no_children),
    ("the example in C", in_c),
    ("the fuzzer finds five bugs", fuzzer),
];

fn main() -> ExitCode {
    let path = std::env::var("DEVICE").unwrap_or_else(|_| pacifica_vm::NODE.into());
    let kvm = match pacifica_vm::open(&path) {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("Bail out! {path}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let version = pacifica_vm::version(&kvm, Feature::Snapshot);
    let mut tap = Tap::start();
    for (name, test) in TESTS {
        if version == 0 && path.ends_with("/kvm") {
            tap.skip(name, "KVM has no snapshots");
        } else {
            tap.result(name, test(&kvm).map_err(|error| error.to_string()));
        }
    }
    tap.finish()
}
