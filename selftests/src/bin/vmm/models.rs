// SPDX-License-Identifier: GPL-2.0-only

//! QEMU's CPU models, with `enforce`: it refuses to start if a feature of the model is not offered.

use std::collections::BTreeSet;

use selftests::modules::{can_load_kvm, load_kvm, unload_kvm};
use selftests::tap::equal;

use crate::shell;

const KVM: &str = "/dev/kvm";

/// Models that an emulated Milan can be, but for features that its emulator lacks.
const MODELS: &[&str] = &["qemu64", "EPYC", "EPYC-Rome", "EPYC-Milan", "host"];

pub(crate) fn enforced() -> Result<(), String> {
    let device = std::env::var("DEVICE").unwrap_or_else(|_| "/dev/pacifica".into());
    let ours: Vec<_> = MODELS
        .iter()
        .map(|model| missing(&device, model))
        .collect::<Result<_, _>>()?;
    equal("qemu64 misses", &ours[0], &BTreeSet::new())?;
    if device == KVM {
        return Ok(());
    }
    can_load_kvm()?;
    load_kvm(&["enable_virt_at_load=0"])?;
    let theirs: Result<Vec<_>, _> = MODELS.iter().map(|model| missing(KVM, model)).collect();
    unload_kvm()?;
    for ((model, ours), theirs) in MODELS.iter().zip(ours).zip(theirs?) {
        let more: Vec<_> = ours.difference(&theirs).collect();
        equal(model, more, Vec::new())?;
    }
    Ok(())
}

/// What QEMU misses for the model; nothing if it starts.
fn missing(device: &str, model: &str) -> Result<BTreeSet<String>, String> {
    let script = format!(
        "echo quit | qemu-system-x86_64 -accel kvm,device={device} -M q35 -m 64M -cpu {model},enforce \
            -S -nodefaults -display none -monitor stdio 2>&1 || echo refused"
    );
    let said = shell(&script)?;
    let missing: BTreeSet<String> = said
        .lines()
        .filter(|line| line.contains("doesn't support requested feature"))
        .map(str::to_owned)
        .collect();
    let refused = said.lines().any(|line| line == "refused");
    match refused == missing.is_empty() {
        true => Err(format!("{model}: {said}")),
        false => Ok(missing),
    }
}
