// SPDX-License-Identifier: GPL-2.0-only

//! The life of VMs, of the module and of the host: death at any moment, CPUs that come and go,
//! loading and unloading, and no memory left behind. It wants to be root on a host that nobody else
//! uses.

mod beside;
mod module;
mod process;
mod victim;

use std::fs;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use kvm_bindings::kvm_clock_data;
use selftests::cpus::{pin, usable};
use selftests::faults;
use selftests::kvm::{msrs, number, Errno};
use selftests::memory::{growth, kernel_memory, unreferenced};
use selftests::tap::{equal, skipped, Tap};

use module::Module;
use process::Child;
use victim::{Kind, Victim};

type Test = (&'static str, fn(&Module) -> Result<(), String>);

const TESTS: &[Test] = &[
    ("a VMM can be killed at any moment, 200 times", killed),
    (
        "the host stays responsive while a guest spins with interrupts off",
        responsive,
    ),
    ("two guests share a CPU", share),
    ("a guest goes on when its CPU goes offline", hotplug),
    (
        "a VM made while a CPU is offline runs on it later",
        late_cpu,
    ),
    (
        "SVM is on while there is a VM, on all CPUs, and off after it",
        on_and_off,
    ),
    ("VMs come and go on four threads at once", race),
    ("1,000 VMs leave no memory behind", leak),
    ("the module cannot go while a file is open", in_use),
    ("the module can go and come 50 times", reload),
    (
        "the module is loaded, each allocation failing",
        load_without_memory,
    ),
    (
        "beside KVM: with kvm_node=1 the module is /dev/kvm, too",
        beside::as_kvm,
    ),
    (
        "beside KVM: loaded before the module, VMs are refused with advice",
        beside::kvm_first,
    ),
    (
        "beside KVM: loaded while a VM runs, it does not take SVM away",
        beside::kvm_second,
    ),
    (
        "beside KVM: with enable_virt_at_load=0, both take turns",
        beside::take_turns,
    ),
    ("the host powers off while a guest runs", power_off),
];

/// Only when asked for, in a boot of their own: after a suspend QEMU's q35 cannot power off.
const ALONE: &[Test] = &[("guests outlive the host's suspend to memory", suspend)];

fn main() -> ExitCode {
    let device = std::env::var("DEVICE").unwrap_or_else(|_| "/dev/pacifica".into());
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    selftests::machine::catch_interruptions();
    let module = Module::of(&device);
    let named = |(name, _): &&Test| wanted.iter().any(|word| name.contains(word.as_str()));
    let mut tap = Tap::start();
    let usual = TESTS.iter().filter(|test| wanted.is_empty() || named(test));
    for (name, test) in usual.chain(ALONE.iter().filter(named)) {
        tap.result(name, test(&module));
    }
    tap.finish()
}

fn works(module: &Module) -> Result<(), String> {
    Victim::new(&module.device, Kind::Ports)?.steps(10)
}

fn killed(module: &Module) -> Result<(), String> {
    for round in 0..200u64 {
        let kind = Kind::ALL[round as usize % Kind::ALL.len()];
        if kind == Kind::Timer && !module.has_irqchip() {
            continue;
        }
        let device = module.device.clone();
        let child = Child::start(move |_| {
            if let Ok(victim) = Victim::new(&device, kind) {
                victim.run_on_threads(if round % 3 == 0 { 2 } else { 1 });
            }
        });
        sleep(Duration::from_micros(round * 7919 % 30_000));
        child
            .kill()
            .map_err(|error| format!("round {round}, {kind:?}: {error}"))?;
    }
    equal("files of the module that are open", module.users(), Some(0))?;
    works(module)
}

fn responsive(module: &Module) -> Result<(), String> {
    let device = module.device.clone();
    let first = &usable()[..1];
    let guest = Child::start(move |counter| {
        if let (Ok(victim), Ok(())) = (Victim::new(&device, Kind::Spin), pin(first)) {
            counter.add();
            victim.run_on_threads(1);
        }
    });
    guest.wait_for(1)?;
    // It shares the guest's CPU, and gets it only by the host's interrupts.
    let other = Child::start(move |counter| {
        while pin(first).is_ok() {
            counter.add();
            sleep(Duration::from_millis(10));
        }
    });
    let outcome = other.wait_for(50);
    other.kill()?;
    guest.kill()?;
    outcome
}

/// A child that counts the guest's exits. It begins on CPU `first` of the host, and may use `cpus`.
fn counting(module: &Module, first: usize, cpus: &'static [usize]) -> Child {
    let device = module.device.clone();
    Child::start(move |counter| {
        let start = || -> Result<_, String> {
            pin(&[first])?;
            let victim = Victim::new(&device, Kind::Ports)?;
            pin(cpus)?;
            Ok(victim)
        };
        if let Ok(victim) = start() {
            while victim.steps(1).is_ok() {
                counter.add();
            }
        }
    })
}

fn counting_on_one(module: &Module) -> Child {
    counting(module, usable()[0], &usable()[..1])
}

fn share(module: &Module) -> Result<(), String> {
    let children = [(); 3].map(|()| counting_on_one(module));
    for child in &children {
        child.wait_for(200)?;
    }
    children.into_iter().try_for_each(Child::kill)
}

fn online(cpu: usize, on: bool) -> Result<(), String> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/online");
    fs::write(path, if on { "1" } else { "0" }).map_err(|e| format!("CPU {cpu} {on}: {e}"))
}

fn hotplug(module: &Module) -> Result<(), String> {
    let [first, second, ..] = usable() else {
        return skipped("the host has one CPU");
    };
    let on_second = counting(module, *second, usable());
    let on_first = counting(module, *first, usable());
    for _ in 0..5 {
        for on in [false, true] {
            online(*second, on)?;
            for child in [&on_first, &on_second] {
                child.wait_for(child.count() + 50)?;
            }
        }
    }
    on_first.kill()?;
    on_second.kill()
}

fn late_cpu(module: &Module) -> Result<(), String> {
    let [first, second, ..] = usable() else {
        return skipped("the host has one CPU");
    };
    online(*second, false)?;
    let on_first = counting(module, *first, &usable()[..1]);
    let outcome = on_first.wait_for(10);
    online(*second, true)?;
    outcome?;
    let on_second = counting(module, *second, &usable()[1..]);
    on_second.wait_for(10)?;
    on_first.kill()?;
    on_second.wait_for(on_second.count() + 10)?;
    on_second.kill()
}

/// Every CPU that is online has SVM on, and a page for VMRUN; or none has.
fn svm_is(on: bool, when: &str) -> Result<(), String> {
    let cpus = module::svm()?;
    let other = cpus.iter().position(|&cpu| cpu != (on, on));
    equal(&format!("SVM {when}, a CPU that differs"), other, None)
}

fn on_and_off(module: &Module) -> Result<(), String> {
    if module.is_kvm() {
        return skipped("kvm_amd keeps it from its loading on");
    }
    svm_is(false, "without a VM")?;
    let victim = Victim::new(&module.device, Kind::Ports)?;
    svm_is(true, "with a VM")?;
    if let [_, second, ..] = usable() {
        online(*second, false)?;
        online(*second, true)?;
        svm_is(true, "on a CPU that came back")?;
    }
    let other = Victim::new(&module.device, Kind::Ports)?;
    drop(victim);
    svm_is(true, "with a VM left")?;
    drop(other);
    svm_is(false, "after the last VM")
}

/// APM vol. 2, 13.2.1.
const MSR_TSC: u32 = 0x10;

/// Sleeps to RAM until the clock's alarm. QEMU wakes at once; on a busy machine the way there takes
/// seconds.
fn sleep_to_ram() -> Result<(), String> {
    let say = |file: &str, what: &str| fs::write(file, what).map_err(|e| format!("{file}: {e}"));
    say("/sys/power/mem_sleep", "deep")?;
    say("/sys/class/rtc/rtc0/wakealarm", "0")?;
    say("/sys/class/rtc/rtc0/wakealarm", "+20")?;
    say("/sys/power/state", "mem")
}

/// The boot CPU loses SVM in between, the others go offline and come back.
fn suspend(module: &Module) -> Result<(), String> {
    let running = counting_on_one(module);
    let resting = Victim::new(&module.device, Kind::Ports)?;
    let times = || -> Result<(u64, u64), String> {
        let clock: kvm_clock_data = resting.vm.get(number::GET_CLOCK)?;
        let mut tsc = [(MSR_TSC, 0)];
        msrs(&resting.vcpus[0].handle, number::GET_MSRS, &mut tsc)?;
        Ok((clock.clock, tsc[0].1))
    };
    resting.steps(10)?;
    for round in 0..3 {
        let (clock, tsc) = times()?;
        running.wait_for(running.count() + 50)?;
        sleep_to_ram()?;
        svm_is(true, "after the suspend")?;
        running.wait_for(running.count() + 50)?;
        resting.steps(10)?;
        let after = times()?;
        equal(
            &format!("round {round}, clock {clock} and TSC {tsc}, then {after:?}: they go on"),
            after.0 > clock && after.1 > tsc,
            true,
        )?;
        works(module)?;
    }
    running.kill()
}

fn race(module: &Module) -> Result<(), String> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..50).try_for_each(|_| works(module))))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| "panic".to_owned())?)
    })?;
    equal("open files", module.users(), Some(0))
}

fn leak(module: &Module) -> Result<(), String> {
    let some = |count: u32| (0..count).try_for_each(|_| works(module));
    some(100)?;
    let before = kernel_memory();
    some(1000)?;
    // One page for each VM would be 4,000 KiB.
    growth(before, 1500)?;
    let leaks = unreferenced().map_err(|e| e.to_string())?;
    equal("leaks", leaks.as_str(), "")
}

fn in_use(module: &Module) -> Result<(), String> {
    let Victim {
        device,
        vm,
        vcpus,
        ram: _ram,
    } = Victim::new(&module.device, Kind::Ports)?;
    let refused = |what: &str| match module.unload() {
        Err(Errno(libc::EWOULDBLOCK)) => Ok(()),
        other => Err(format!("unloading with {what} open: {other:?}")),
    };
    refused("all")?;
    drop(device);
    refused("VM and vCPU")?;
    drop(vm);
    refused("vCPU")?;
    vcpus[0].run()?;
    drop(vcpus);
    equal("open files", module.users(), Some(0))
}

fn reload(module: &Module) -> Result<(), String> {
    for round in 0..50 {
        module
            .unload()
            .map_err(|error| format!("round {round}: unloading: {error:?}"))?;
        equal(
            "the device is gone",
            fs::exists(&module.device).unwrap_or(true),
            false,
        )?;
        module
            .load()
            .map_err(|error| format!("round {round}: {error}"))?;
        if round % 5 == 0 {
            works(module)?;
        }
    }
    works(module)
}

fn load_without_memory(module: &Module) -> Result<(), String> {
    if !faults::available() {
        return skipped("a matter of kernels with fault injection");
    }
    faults::prepare()?;
    // What calls the module's own initialisation.
    faults::within("do_one_initcall")?;
    let unload = || module.unload().map_err(|error| format!("{error:?}"));
    faults::some("loading", unload, |()| module.try_load())?;
    let leaks = unreferenced().map_err(|e| e.to_string())?;
    equal("leaks", leaks.as_str(), "")?;
    works(module)
}

/// The guest that is left running here must not keep the host from ending.
fn power_off(module: &Module) -> Result<(), String> {
    let child = counting_on_one(module);
    child.wait_for(10)?;
    child.leave();
    Ok(())
}
