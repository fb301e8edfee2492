// SPDX-License-Identifier: GPL-2.0-only

//! What a VMM should not do with a fork, and what it gets.

use kvm_bindings::*;
use selftests::kvm::{number, Errno, Handle};
use selftests::machine::{map, Vcpu};
use selftests::memory::{growth, kernel_memory, PAGE};
use selftests::snapshot::{
    Create, Fork, Keep, Reset, Snapshot, CREATE, FORK, KEEP, RESET, STATE_ONLY,
};
use selftests::tap::equal;

use crate::family::Member;
use crate::hostile::refused;
use crate::writer::TARGET;

const MIB: usize = 1 << 20;

/// Flags and reserved words; what a snapshot of the state alone cannot do.
pub(crate) fn arguments(device: &Handle) -> Result<(), String> {
    let parent = Member::new(device, 1, MIB)?;
    let vm = &parent.writer.machine.vm;
    let mut limit = Create {
        flags: STATE_ONLY,
        limit: 1,
        ..Default::default()
    };
    let created = vm.exchange(CREATE, &mut limit);
    refused("a limit", created, libc::EINVAL)?;
    let snapshot = Snapshot::of_state(vm)?;
    refused("flags", snapshot.fork(2), libc::EINVAL)?;
    for word in 0..3 {
        let mut fork = Fork::default();
        fork.reserved[word] = 1;
        let forked = snapshot.0.exchange(FORK, &mut fork);
        refused("reserved", forked, libc::EINVAL)?;
    }
    // SAFETY: There is nothing at this address.
    let nowhere = unsafe { snapshot.0.raw(FORK, 8) };
    refused("nowhere", nowhere, libc::EFAULT)?;
    let mut reset = Reset::default();
    refused(
        "a reset",
        snapshot.0.exchange(RESET, &mut reset),
        libc::EINVAL,
    )?;
    let mut keep = Keep {
        gpa: TARGET,
        size: PAGE as u64,
        flags: 0,
    };
    refused("pages", snapshot.0.exchange(KEEP, &mut keep), libc::EINVAL)?;
    refused("a limit", snapshot.set_limit(1), libc::EINVAL)?;
    refused("how much", snapshot.kept(), libc::EINVAL)?;
    refused(
        "a VM's",
        snapshot.0.call(number::CREATE_IRQCHIP, 0),
        libc::ENOTTY,
    )?;
    refused(
        "on a VM",
        vm.exchange(FORK, &mut Fork::default()),
        libc::ENOTTY,
    )
}

/// It restricts nothing, and there may be many.
pub(crate) fn free(device: &Handle) -> Result<(), String> {
    let mut parent = Member::new(device, 1, MIB)?;
    let page = crate::many::a_page()?;
    let mut snapshots = Vec::new();
    for _ in 0..20 {
        parent.rounds(1, 1)?;
        snapshots.push(Snapshot::of_state(&parent.writer.machine.vm)?);
    }
    let vm = &parent.writer.machine.vm;
    let full = Snapshot::create(vm, 1 << 20)?;
    snapshots.push(Snapshot::of_state(vm)?);
    drop(full);
    map(vm, 9, 0, 1 << 32, &page)?;
    vm.open_with(number::CREATE_VCPU, 1)?;
    // The last one has memory as it is, but neither slot 9 nor vCPU 1.
    let last = snapshots.pop().ok_or("none")?;
    let child = parent.child_of(&last, |child| {
        let vm = &child.writer.machine.vm;
        map(vm, 9, 0, 2 << 32, &page)?;
        vm.open_with(number::CREATE_VCPU, 1)?;
        child.rounds(3, 1)
    })?;
    child.join()
}

/// `KVM_CREATE_VCPU` answers each descriptor once; nobody need ask for them.
pub(crate) fn vcpus(device: &Handle) -> Result<(), String> {
    // A page for each fork.
    const MOST: i64 = 50 * 5 * 4;
    let parent = Member::new(device, 4, MIB / 4)?;
    let snapshot = Snapshot::of_state(&parent.writer.machine.vm)?;
    let vm = snapshot.fork(0)?;
    let second = vm.open_with(number::CREATE_VCPU, 2)?;
    refused("again", vm.call(number::CREATE_VCPU, 2), libc::EEXIST)?;
    refused(
        "too many",
        vm.call(number::CREATE_VCPU, 1 << 20),
        libc::EINVAL,
    )?;
    drop(vm);
    let regs: kvm_regs = second.get(number::GET_REGS)?;
    equal("its state", regs.r9, TARGET + 2 * (MIB / 4) as u64)?;
    drop(second);
    let rounds = || -> Result<(), String> {
        for _ in 0..50 {
            // The descriptors of none, one, and all.
            let vm = snapshot.fork(0)?;
            drop(vm);
            let vm = snapshot.fork(0)?;
            let one = vm.open_with(number::CREATE_VCPU, 1)?;
            drop(vm);
            drop(one);
            let vm = snapshot.fork(0)?;
            for id in 0..4 {
                Vcpu::create(device, &vm, id)?;
            }
            // A snapshot of such a VM has all of them.
            let next = Snapshot::of_state(&snapshot.fork(0)?)?;
            next.fork(0)?.open_with(number::CREATE_VCPU, 3)?;
        }
        Ok(())
    };
    // What the kernel's own caches take for so many objects, they have taken then.
    rounds()?;
    let before = kernel_memory();
    rounds()?;
    let more = growth(before, MOST)?;
    println!("# {more} KiB more");
    Ok(())
}

/// Another process has nothing there, or something else: its guest sees that, and nobody else's
/// memory.
pub(crate) fn other_memory(device: &Handle) -> Result<(), String> {
    let mut parent = Member::new(device, 1, MIB)?;
    parent.rounds(2, 1)?;
    let snapshot = Snapshot::of_state(&parent.writer.machine.vm)?;
    let child = parent.child_of(&snapshot, |child| {
        let target = &child.writer.target;
        // SAFETY: The mapping's own memory; nothing is read there.
        unsafe { libc::munmap(target.start().cast(), target.len()) };
        let run = child.writer.machine.vcpus[0].run();
        refused("nothing is there", run, libc::EFAULT)?;
        // SAFETY: A new mapping where there is none.
        let again = unsafe {
            libc::mmap(
                target.start().cast(),
                target.len(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        equal("mapped", again == target.start().cast(), true)?;
        child.writer.run_one(0, 20, 1)?;
        equal(
            "zeros",
            target.read(0, MIB).iter().any(|&byte| byte != 0),
            true,
        )
    })?;
    child.join()?;
    parent.rounds(2, 1)
}

/// Threads make VMs of one snapshot at once, on the same memory, and close them.
pub(crate) fn at_once(device: &Handle) -> Result<(), String> {
    let mut parent = Member::new(device, 2, MIB / 4)?;
    parent.rounds(2, 1)?;
    let snapshot = Snapshot::of_state(&parent.writer.machine.vm)?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..25 {
                        let vm = snapshot.fork(0)?;
                        let vcpu = Vcpu::create(device, &vm, 0)?;
                        drop(vm);
                        match vcpu.run() {
                            Ok(_) | Err(Errno(libc::EINTR)) => {}
                            Err(error) => return Err(error.into()),
                        }
                    }
                    Ok::<_, String>(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| "a panic".to_owned())?)
    })
}

/// The parent's VM has gone, and the snapshot has not.
pub(crate) fn vm_gone(device: &Handle) -> Result<(), String> {
    let mut parent = Member::new(device, 2, MIB / 4)?;
    parent.rounds(3, 1)?;
    let snapshot = Snapshot::of_state(&parent.writer.machine.vm)?;
    parent.writer.machine.vcpus.clear();
    parent.writer.machine.vm = device.open_with(number::CREATE_VM, 0)?;
    for _ in 0..2 {
        // Both vCPUs of the one that has none.
        let vm = snapshot.fork(0)?;
        for id in 0..2 {
            let vcpu = Vcpu::create(device, &vm, id)?;
            parent.writer.machine.vcpus.push(vcpu);
        }
        parent.writer.machine.vm = vm;
        let child = parent.child_of(&snapshot, |child| child.rounds(3, 2))?;
        child.join()?;
        parent.writer.machine.vcpus.clear();
    }
    Ok(())
}
