// SPDX-License-Identifier: GPL-2.0-only

//! What a VMM should not do, and the error that it gets.

use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::*;
use selftests::kvm::{number, Answer, Errno, Handle};
use selftests::memory::PAGE;
use selftests::patience;
use selftests::snapshot::{
    Create, Keep, Reset, Snapshot, CHECK_FEATURE, CREATE, FEATURE, FEATURE_FORK, KEEP, RESET,
    SET_LIMIT,
};
use selftests::tap::equal;

use crate::writer::{Writer, TARGET};
use crate::LIMIT;

const MIB: usize = 1 << 20;

/// Fails unless the call was refused with this error number.
pub(crate) fn refused<T>(what: &str, answer: Answer<T>, errno: i32) -> Result<(), String> {
    equal(what, answer.err(), Some(Errno(errno)))
}

fn create(vm: &Handle, create: Create) -> Answer<Handle> {
    vm.open_with_structure(CREATE, &mut { create })
}

/// `PACIFICA_CHECK_FEATURE`.
pub(crate) fn feature(device: &Handle) -> Result<(), String> {
    let vm = device.open_with(number::CREATE_VM, 0)?;
    for handle in [device, &vm] {
        equal("snapshots", handle.call(CHECK_FEATURE, FEATURE), Ok(2))?;
        equal("forks", handle.call(CHECK_FEATURE, FEATURE_FORK), Ok(1))?;
        for other in [0, 3, 1 << 32 | FEATURE] {
            equal("another feature", handle.call(CHECK_FEATURE, other), Ok(0))?;
        }
    }
    Ok(())
}

/// Flags, reserved words, addresses; other ioctls on a snapshot, and its ioctls elsewhere.
pub(crate) fn arguments(device: &Handle) -> Result<(), String> {
    let writer = Writer::new(device, 1, MIB)?;
    let vm = &writer.machine.vm;
    let flags = Create {
        flags: 2,
        ..Default::default()
    };
    refused("flags", create(vm, flags), libc::EINVAL)?;
    for word in 0..6 {
        let mut reserved = Create::default();
        reserved.reserved[word] = 1;
        refused("reserved", create(vm, reserved), libc::EINVAL)?;
    }
    // SAFETY: There is nothing at this address.
    let nowhere = unsafe { vm.raw(CREATE, 8) };
    refused("nowhere", nowhere, libc::EFAULT)?;
    let snapshot = Snapshot::create(vm, LIMIT)?;
    refused("reset with flags", snapshot.reset(2), libc::EINVAL)?;
    let mut reset = Reset {
        reserved: [0, 1],
        ..Default::default()
    };
    refused(
        "reset",
        snapshot.0.exchange(RESET, &mut reset),
        libc::EINVAL,
    )?;
    let page = PAGE as u64;
    for (gpa, size) in [(0, 0), (1, page), (0, 1), (u64::MAX - page + 1, page)] {
        refused("keep", snapshot.keep(gpa, size), libc::EINVAL)?;
    }
    let mut keep = Keep {
        gpa: 0,
        size: page,
        flags: 2,
    };
    refused("keep", snapshot.0.exchange(KEEP, &mut keep), libc::EINVAL)?;
    refused("no slot", snapshot.keep(1 << 40, page), libc::ENOENT)?;
    // SAFETY: There is nothing at this address.
    let nowhere = unsafe { snapshot.0.raw(SET_LIMIT, 8) };
    refused("nowhere", nowhere, libc::EFAULT)?;
    // Ioctls of one kind of file on another.
    refused(
        "a VM's",
        snapshot.0.call(number::CREATE_IRQCHIP, 0),
        libc::ENOTTY,
    )?;
    let mut reset = Reset::default();
    refused("on a VM", vm.exchange(RESET, &mut reset), libc::ENOTTY)?;
    let vcpu = &writer.machine.vcpus[0].handle;
    refused("on a vCPU", vcpu.exchange(RESET, &mut reset), libc::ENOTTY)?;
    refused(
        "on the node",
        create(device, Create::default()),
        libc::ENOTTY,
    )?;
    equal("still good", snapshot.reset(0).map(|_| ()), Ok(()))
}

/// One vCPU is in `KVM_RUN`.
pub(crate) fn running(device: &Handle) -> Result<(), String> {
    let writer = Writer::new(device, 2, MIB)?;
    let vm = &writer.machine.vm;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                writer.run_one(0, 1, 1)?;
            }
            Ok::<_, String>(())
        });
        let result = patience::wait("a vCPU that runs", || match Snapshot::create(vm, LIMIT) {
            Err(Errno(libc::EBUSY)) => Ok(Some(())),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(None),
        })
        .and_then(|()| patience::wait("one that does not", || Ok(Snapshot::create(vm, LIMIT).ok())))
        .and_then(|snapshot| {
            patience::wait("a reset while it runs", || match snapshot.reset(0) {
                Err(Errno(libc::EBUSY)) => Ok(Some(())),
                Err(error) => Err(error.into()),
                Ok(_) => Ok(None),
            })
        });
        stop.store(true, Ordering::SeqCst);
        let ran = runner.join().map_err(|_| "a panic".to_owned())?;
        result.and(ran)
    })
}

/// What there cannot be beside a snapshot, and can again after it.
pub(crate) fn nothing_else(device: &Handle) -> Result<(), String> {
    let writer = Writer::new(device, 1, MIB)?;
    let vm = &writer.machine.vm;
    for _ in 0..2 {
        let snapshot = Snapshot::create(vm, LIMIT)?;
        let vcpu = vm.call(number::CREATE_VCPU, 1);
        refused("a new vCPU", vcpu, libc::EBUSY)?;
        snapshot.reset(0)?;
    }
    vm.open_with(number::CREATE_VCPU, 1)?;
    Ok(())
}

/// The VM's descriptor is closed before a reset, a vCPU's, and both.
pub(crate) fn gone(device: &Handle) -> Result<(), String> {
    let Writer {
        mut machine,
        target,
    } = Writer::new(device, 2, MIB)?;
    let snapshot = Snapshot::create(&machine.vm, LIMIT)?;
    let other = device.open_with(number::CREATE_VM, 0)?;
    drop(std::mem::replace(&mut machine.vm, other));
    machine.vcpus[1].run()?;
    equal("without the VM's", snapshot.reset(0)? > 0, true)?;
    drop(machine.vcpus.pop());
    refused("a vCPU less", snapshot.reset(0), libc::ENXIO)?;
    machine.vcpus.clear();
    refused("none", snapshot.reset(0), libc::ENXIO)?;
    drop(target);
    refused("still none", snapshot.reset(0), libc::ENXIO)?;
    // A VM without vCPUs and memory has a state, too.
    let empty = device.open_with(number::CREATE_VM, 0)?;
    equal("empty", Snapshot::create(&empty, 0)?.reset(0), Ok(0))
}

/// A child has the descriptor, but another address space.
pub(crate) fn another_process(device: &Handle) -> Result<(), String> {
    let writer = Writer::new(device, 1, MIB)?;
    let snapshot = Snapshot::create(&writer.machine.vm, LIMIT)?;
    writer.run_one(0, 2, 1)?;
    // SAFETY: The child calls nothing that needs another thread of this process.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let errors = [
            snapshot.reset(0).err(),
            snapshot.keep(0, PAGE as u64).err(),
            snapshot.set_limit(0).err(),
            snapshot.kept().err(),
            Snapshot::create(&writer.machine.vm, LIMIT).err(),
        ];
        let all = errors.iter().all(|error| *error == Some(Errno(libc::EIO)));
        // SAFETY: Ends the child at once.
        unsafe { libc::_exit(i32::from(!all)) };
    }
    let mut status = 0;
    // SAFETY: The variable is valid for the write.
    unsafe { libc::waitpid(child, &mut status, 0) };
    equal("the child saw EIO", status, 0)?;
    equal("the parent resets", snapshot.reset(0)? > 0, true)
}

/// The VMM has unmapped what is to be put back. When it maps it again, it works.
pub(crate) fn unmapped(device: &Handle) -> Result<(), String> {
    let writer = Writer::new(device, 1, MIB)?;
    writer.run_one(0, 3, 1)?;
    writer.look(device)?;
    let snapshot = Snapshot::create(&writer.machine.vm, LIMIT)?;
    let state = writer.look(device)?;
    snapshot.keep(TARGET, MIB as u64)?;
    let start = writer.target.start().cast();
    let again = |protection| {
        // SAFETY: The mapping's own addresses; zeros are there then.
        unsafe {
            libc::mmap(
                start,
                MIB,
                protection,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        }
    };
    again(libc::PROT_NONE);
    refused("no memory", snapshot.reset(0), libc::EFAULT)?;
    again(libc::PROT_READ);
    refused("not to be written", snapshot.reset(0), libc::EFAULT)?;
    again(libc::PROT_READ | libc::PROT_WRITE);
    snapshot.reset(0)?;
    state.same(&writer.look(device)?)
}

/// Threads that take snapshots, reset, announce and close all at once, while vCPUs run.
pub(crate) fn many_threads(device: &Handle) -> Result<(), String> {
    let writer = Writer::new(device, 2, MIB)?;
    let vm = &writer.machine.vm;
    let stop = AtomicBool::new(false);
    // Without it a vCPU would be in KVM_RUN whenever somebody looks.
    let pause = std::time::Duration::from_millis(1);
    let start = std::time::Instant::now();
    let allowed = [libc::EBUSY, libc::ENXIO, libc::ENOSPC];
    let check = |answer: Answer<u64>| match answer {
        Err(Errno(errno)) if !allowed.contains(&errno) => Err(format!("{:?}", Errno(errno))),
        other => Ok(other.is_ok()),
    };
    std::thread::scope(|scope| {
        let runners: Vec<_> = (0..2)
            .map(|id| {
                let (stop, writer) = (&stop, &writer);
                scope.spawn(move || {
                    while !stop.load(Ordering::SeqCst) {
                        match writer.machine.vcpus[id].run() {
                            Ok(_) | Err(Errno(libc::ENOSPC)) => std::thread::sleep(pause),
                            Err(error) => return Err(format!("KVM_RUN: {error:?}")),
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        let users: Vec<_> = (0..3u64)
            .map(|user| {
                scope.spawn(move || {
                    let (mut taken, mut resets) = (0, 0);
                    for round in 0u64.. {
                        if taken == 15 {
                            break;
                        }
                        if start.elapsed() > patience::limit() {
                            return Err(format!("only {taken} snapshots in time"));
                        }
                        let limit = round * 7 % 64 * PAGE as u64;
                        match Snapshot::create(vm, limit) {
                            Ok(snapshot) => {
                                taken += 1;
                                for turn in 0..round % 5 {
                                    let gpa = TARGET + (user + turn) * PAGE as u64;
                                    check(snapshot.keep(gpa, 2 * PAGE as u64))?;
                                    resets += u64::from(check(snapshot.reset(turn & 1))?);
                                }
                            }
                            Err(error) => drop(check(Err(error))?),
                        }
                    }
                    Ok::<_, String>((taken, resets))
                })
            })
            .collect();
        let mut sum = (0, 0);
        let mut result = Ok(());
        for user in users {
            match user.join() {
                Ok(Ok((taken, resets))) => sum = (sum.0 + taken, sum.1 + resets),
                Ok(Err(error)) => result = Err(error),
                Err(_) => result = Err("a panic".into()),
            }
        }
        stop.store(true, Ordering::SeqCst);
        for runner in runners {
            let ran = runner.join().map_err(|_| "a panic".to_owned())?;
            result = result.and(ran);
        }
        println!("# {} snapshots, {} resets", sum.0, sum.1);
        result.and(equal("some of each", sum.0 > 0 && sum.1 > 0, true))
    })
}

/// What cannot be watched.
pub(crate) fn unsupported(device: &Handle) -> Result<(), String> {
    let vm = device.open_with(number::CREATE_VM, 0)?;
    let mut cap = kvm_enable_cap {
        cap: KVM_CAP_DIRTY_LOG_RING,
        ..Default::default()
    };
    cap.args[0] = 4096;
    vm.set(number::ENABLE_CAP, &cap)?;
    refused(
        "rings",
        create(&vm, Create::default()).map(|_| ()),
        libc::EOPNOTSUPP,
    )?;
    let vm = device.open_with(number::CREATE_VM, 0)?;
    let mut device = kvm_create_device {
        type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
        ..Default::default()
    };
    let snapshot = Snapshot::create(&vm, 0)?;
    let made = vm.exchange(number::CREATE_DEVICE, &mut device);
    refused("a device later", made, libc::EBUSY)?;
    drop(snapshot);
    vm.exchange(number::CREATE_DEVICE, &mut device)?;
    refused(
        "a device",
        create(&vm, Create::default()).map(|_| ()),
        libc::EOPNOTSUPP,
    )
}
