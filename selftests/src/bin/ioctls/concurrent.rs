// SPDX-License-Identifier: GPL-2.0-only

//! Several threads at once on the same descriptors.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};
use std::sync::Barrier;
use std::time::Duration;

use kvm_bindings::*;
use selftests::kvm::{number, Answer, Errno, Number};
use selftests::tap::equal;

use crate::bare::{vm, Bare, CODE, OUT};
use crate::{refused, Test};

pub(crate) const TESTS: &[Test] = &[
    ("two threads in KVM_RUN take turns", two_in_run),
    ("ioctls while the guest runs wait for it", wait_for_run),
    (
        "registers that two threads set and get are never a mixture",
        no_mixture,
    ),
    (
        "a virtual CPU and its VM are closed while it runs",
        closed_while_it_runs,
    ),
    (
        "descriptors are closed and made anew under ioctls",
        closed_under_ioctls,
    ),
    (
        "virtual CPUs are made on many threads at once",
        made_at_once,
    ),
];

/// 1: out %al, $0x10; jmp 1b
const LOOP: [u8; 4] = [OUT[0], OUT[1], 0xeb, 0xfc];
/// 1: incw 0x2000; jmp 1b
const COUNT: [u8; 6] = [0xff, 0x06, 0x00, 0x20, 0xeb, 0xfa];
const COUNTER: usize = 0x2000;

fn two_in_run(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &LOOP)?;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let _ = bare.vcpu.run();
                }
            });
        }
    });
    bare.byte()?;
    Ok(())
}

/// Waits until the guest has counted on.
fn counts(bare: &Bare) {
    let before = bare.ram.read(COUNTER, 2);
    while bare.ram.read(COUNTER, 2) == before {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A thread in `KVM_RUN`, until it is told to come out.
struct Runner {
    thread: AtomicI32,
    told: AtomicBool,
}

impl Runner {
    const fn new() -> Self {
        Self {
            thread: AtomicI32::new(0),
            told: AtomicBool::new(false),
        }
    }

    fn run(&self, run: impl FnOnce() -> Answer) -> Answer {
        // SAFETY: A plain system call.
        self.thread.store(unsafe { libc::gettid() }, SeqCst);
        let answer = run();
        self.thread.store(0, SeqCst);
        answer
    }

    /// Interrupts it until it has come out.
    fn end(&self) {
        self.told.store(true, SeqCst);
        loop {
            let thread = self.thread.load(SeqCst);
            if thread == 0 {
                break;
            }
            // SAFETY: A signal that a handler takes, to a thread of this process.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGUSR1) };
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn wait_for_run(path: &str) -> Result<(), String> {
    let bare = Bare::endless(path, &COUNT)?;
    let runner = Runner::new();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| runner.run(|| bare.vcpu.run()));
        counts(&bare);
        let get = scope.spawn(|| {
            let regs = bare.vcpu.handle.get::<kvm_regs>(number::GET_REGS);
            (regs, runner.told.load(SeqCst))
        });
        // The guest goes on meanwhile.
        counts(&bare);
        std::thread::sleep(Duration::from_millis(20));
        counts(&bare);
        runner.end();
        let answer = run.join().map_err(|_| "the thread died".to_owned())?;
        let (regs, told) = get.join().map_err(|_| "the thread died".to_owned())?;
        refused("run", answer, libc::EINTR)?;
        equal("it waited", told, true)?;
        let rip = regs?.rip;
        equal("RIP is in the loop", rip == CODE || rip == CODE + 4, true)
    })
}

fn no_mixture(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &LOOP)?;
    let same = |value: u64| kvm_regs {
        rax: value,
        rbx: value,
        rcx: value,
        rdx: value,
        rsi: value,
        rdi: value,
        r8: value,
        r15: value,
        rip: CODE,
        rflags: 2,
        ..Default::default()
    };
    let work = |value: u64| {
        for _ in 0..2000 {
            bare.vcpu.handle.set(number::SET_REGS, &same(value))?;
            let regs: kvm_regs = bare.vcpu.handle.get(number::GET_REGS)?;
            let others = [
                regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.r8, regs.r15,
            ];
            equal("the others", others, [regs.rax; 7])?;
        }
        Ok::<(), String>(())
    };
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = [0x1111_1111_1111, 0x2222_2222_2222]
            .map(|value| scope.spawn(move || work(value)))
            .into();
        // The guest changes none of them.
        for _ in 0..1000 {
            let _ = bare.vcpu.run();
        }
        for thread in threads {
            thread.join().map_err(|_| "the thread died".to_owned())??;
        }
        Ok(())
    })
}

/// An ioctl without a structure, on a descriptor that may be another's by now.
fn call(fd: i32, number: Number, argument: usize) -> Answer {
    // SAFETY: What the callers name takes a number, or points to memory that stays.
    match unsafe { libc::ioctl(fd, number.0, argument) } {
        answer if answer < 0 => Err(Errno::last()),
        answer => Ok(answer),
    }
}

fn closed_while_it_runs(path: &str) -> Result<(), String> {
    for round in 0..50 {
        let bare = Bare::endless(path, &COUNT)?;
        let runner = Runner::new();
        let fd = bare.vcpu.handle.fd();
        let answer = std::thread::scope(|scope| {
            let run = scope.spawn(|| runner.run(|| call(fd, number::RUN, 0)));
            counts(&bare);
            // The mapping of the shared pages is another reference; the file goes with the last.
            let Bare {
                device,
                vm,
                ram,
                vcpu,
            } = bare;
            drop(vcpu);
            if round % 2 == 0 {
                drop(vm);
            }
            refused("closed", call(fd, number::GET_MP_STATE, 0), libc::EBADF)?;
            let before = ram.read(COUNTER, 2);
            while ram.read(COUNTER, 2) == before {
                std::thread::yield_now();
            }
            runner.end();
            drop(device);
            run.join().map_err(|_| "the thread died".to_owned())
        })?;
        refused("run", answer, libc::EINTR)?;
    }
    Ok(())
}

/// What may come of an ioctl whose descriptor another thread closes.
fn tolerable(answer: Answer) -> Result<(), String> {
    match answer {
        Ok(_) => Ok(()),
        Err(Errno(libc::EBADF | libc::ENOTTY | libc::EEXIST | libc::EINVAL | libc::EINTR)) => {
            Ok(())
        }
        Err(error) => Err(format!("{error:?}")),
    }
}

fn closed_under_ioctls(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &LOOP)?;
    let (device, _) = (&bare.device, &bare.vm);
    // The number that all threads use, below which VM after VM is put.
    // SAFETY: Plain system calls on descriptors of this function's own.
    let fd = unsafe { libc::dup(bare.vm.fd()) };
    let stop = AtomicBool::new(false);
    let region = kvm_userspace_memory_region {
        memory_size: bare.ram.len() as u64,
        userspace_addr: bare.ram.start() as u64,
        ..Default::default()
    };
    let region = std::ptr::from_ref(&region) as usize;
    let outcome = std::thread::scope(|scope| {
        let stop = &stop;
        let attack = |number: Number, argument: usize| {
            scope.spawn(move || {
                while !stop.load(SeqCst) {
                    match call(fd, number, argument) {
                        Ok(new) if number == number::CREATE_VCPU => {
                            let _ = call(new, number::RUN, 1);
                            // SAFETY: The descriptor is new.
                            unsafe { libc::close(new) };
                        }
                        answer => tolerable(answer)?,
                    }
                }
                Ok::<(), String>(())
            })
        };
        let threads = [
            attack(number::SET_USER_MEMORY_REGION, region),
            attack(number::CREATE_VCPU, 0),
            attack(number::CHECK_EXTENSION, 0),
            attack(number::CREATE_IRQCHIP, 0),
        ];
        for round in 0..300 {
            let new = device.open_with(number::CREATE_VM, 0)?;
            // SAFETY: As above; `dup2` closes what was there and puts the other in its place.
            unsafe {
                if round % 3 == 0 {
                    libc::close(fd);
                    libc::dup2(new.fd(), fd);
                } else {
                    libc::dup2(new.fd(), fd);
                }
            }
        }
        stop.store(true, SeqCst);
        for thread in threads {
            thread.join().map_err(|_| "the thread died".to_owned())??;
        }
        Ok::<(), String>(())
    });
    stop.store(true, SeqCst);
    // SAFETY: The last VM's.
    unsafe { libc::close(fd) };
    outcome?;
    bare.byte()?;
    Ok(())
}

fn made_at_once(path: &str) -> Result<(), String> {
    const THREADS: u64 = 4;
    const EACH: u64 = 8;
    let (_device, vm) = vm(path)?;
    let start = Barrier::new(THREADS as usize);
    // Every id twice: one of both is made.
    let made: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (vm, start) = (&vm, &start);
                scope.spawn(move || {
                    start.wait();
                    let ids = (0..EACH).map(|n| thread / 2 * EACH + n);
                    let made: Vec<_> = ids
                        .map(|id| vm.open_with(number::CREATE_VCPU, id))
                        .collect();
                    made.iter()
                        .filter(|answer| match answer {
                            Ok(_) => true,
                            Err(errno) => *errno != Errno(libc::EEXIST),
                        })
                        .count()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or(usize::MAX / 8))
            .sum()
    });
    equal("made", made, (THREADS / 2 * EACH) as usize)
}
