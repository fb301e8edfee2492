// SPDX-License-Identifier: GPL-2.0-only

//! KVM beside the module: AMD-V has one user at a time.
//!
//! | `enable_virt_at_load` of kvm.ko | KVM has SVM | what is tried |
//! |---|---|---|
//! | 1 (the default) | from its loading on | who came first has it, the other gets EBUSY and a way out |
//! | 0 | from its first VM to its last, as the module | both orders, and the other's turn after the last VM |

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use selftests::kvm::{number, Errno, Handle};
use selftests::tap::{equal, skipped};

use crate::module::{self, Module};
use crate::victim::{Kind, Victim};
use crate::{counting_on_one, svm_is, works};

const KVM: &str = "/dev/kvm";

/// What the advice names first.
const OPTION: &str = "options kvm enable_virt_at_load=0";

pub(crate) fn as_kvm(module: &Module) -> Result<(), String> {
    if module.is_kvm() {
        return skipped("this is about the other module");
    }
    let there = || fs::exists(KVM).unwrap_or(false);
    let unload = || {
        module
            .unload()
            .map_err(|error| format!("unloading: {error:?}"))
    };
    equal("without the parameter", there(), false)?;
    unload()?;
    module.load_with("kvm_node=1")?;
    let runs = Victim::new(KVM, Kind::Ports).and_then(|victim| victim.steps(10));
    runs.and_then(|()| works(module))?;
    unload()?;
    equal("when the module is gone", there(), false)?;
    let with_kvm = module::can_load_kvm().and_then(|()| {
        module::load_kvm(&[])?;
        let refused = module.load_with("kvm_node=1").is_err();
        let advised = module::kernel_log().contains("/dev/kvm is KVM's: run");
        module::unload_kvm()?;
        equal(
            "with KVM loaded: refused, with advice",
            (refused, advised),
            (true, true),
        )
    });
    module.load()?;
    works(module)?;
    with_kvm
}

/// Makes a VM without vCPUs, for a moment.
fn create_vm(device: &str) -> Result<(), Errno> {
    let device = Handle::open(device).map_err(|_| Errno(libc::ENODEV))?;
    device.open_with(number::CREATE_VM, 0).map(drop)
}

fn refused(device: &str) -> Result<(), String> {
    let answer = create_vm(device);
    equal(
        &format!("KVM_CREATE_VM of {device}"),
        answer,
        Err(Errno(libc::EBUSY)),
    )
}

/// The module refuses a VM, and the kernel's log names the way out: the option first.
fn refused_with_advice(module: &Module) -> Result<(), String> {
    module::clear_kernel_log()?;
    let start = Instant::now();
    let log = loop {
        refused(&module.device)?;
        let log = module::kernel_log();
        // The module limits its lines: earlier tests may have used them up for some seconds.
        if log.contains("SVM is held by KVM") || start.elapsed() > Duration::from_secs(60) {
            break log;
        }
        sleep(Duration::from_millis(500));
    };
    match (log.find(OPTION), log.find("modprobe -r kvm_amd")) {
        (Some(option), Some(remove)) if option < remove => Ok(()),
        _ => Err(format!("{OPTION}, then modprobe, in the log:\n{log}")),
    }
}

/// `pacifica check` says whether a VM can be made, and the option if not.
fn program_agrees(module: &Module, ready: bool) -> Result<(), String> {
    let output = Command::new("pacifica")
        .args(["check", "--device", &module.device])
        .output()
        .map_err(|e| format!("pacifica check: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = (
        output.status.success(),
        text.contains("enable_virt_at_load=0"),
    );
    equal(&format!("ready and advice; {text}"), said, (ready, !ready))
}

/// With KVM's parameters: runs the test, and takes KVM out in any case.
fn with_kvm(parameters: &[&str], test: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let outcome = module::load_kvm(parameters).and_then(|()| test());
    module::unload_kvm()?;
    outcome
}

pub(crate) fn kvm_first(module: &Module) -> Result<(), String> {
    if module.is_kvm() {
        return skipped("this is about the other module");
    }
    module::can_load_kvm()?;
    module
        .unload()
        .map_err(|error| format!("unloading: {error:?}"))?;
    with_kvm(&[], || {
        module.load()?;
        refused_with_advice(module)?;
        program_agrees(module, false)
    })?;
    works(module)
}

pub(crate) fn kvm_second(module: &Module) -> Result<(), String> {
    if module.is_kvm() {
        return skipped("this is about the other module");
    }
    module::can_load_kvm()?;
    let child = counting_on_one(module);
    child.wait_for(10)?;
    let loaded = module::load_kvm(&[]);
    let outcome = child.wait_for(child.count() + 100);
    module::unload_kvm()?;
    outcome?;
    child.wait_for(child.count() + 100)?;
    child.kill()?;
    equal("kvm_amd is refused", loaded.is_err(), true)?;
    // And without a VM it is welcome.
    module::load_kvm(&[])?;
    module::unload_kvm()?;
    works(module)
}

/// Both modules are loaded all the time, and neither is touched between the turns.
pub(crate) fn take_turns(module: &Module) -> Result<(), String> {
    if module.is_kvm() {
        return skipped("this is about both modules");
    }
    module::can_load_kvm()?;
    with_kvm(&["enable_virt_at_load=0"], || {
        for _ in 0..3 {
            svm_is(false, "without a VM")?;
            program_agrees(module, true)?;
            let ours = Victim::new(&module.device, Kind::Ports)?;
            ours.steps(10)?;
            refused(KVM)?;
            ours.steps(10)?;
            drop(ours);
            svm_is(false, "after our last VM")?;
            let theirs = Victim::new(KVM, Kind::Ports)?;
            theirs.steps(10)?;
            refused_with_advice(module)?;
            theirs.steps(10)?;
        }
        Ok(())
    })?;
    works(module)
}
