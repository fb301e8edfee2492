// SPDX-License-Identifier: GPL-2.0-only

//! Xen, whose first domain is paravirtual: a kernel in ring 3 that has its page tables, its
//! interrupts and its clock from Xen.

use serde_json::json;

use crate::qemu::{watchdogs, Qemu};

/// All of Xen's own start, up to a domain 0 that is no kernel.
pub(crate) fn alone() -> Result<(), String> {
    let mut qemu = xen("xen", "/guest/initrd")?;
    qemu.wait_for("Brought up 2 CPUs", 1)?;
    qemu.wait_for("*** Building a PV Dom0 ***", 1)?;
    qemu.wait_for("Could not construct domain 0", 1)?;
    qemu.ask("quit", json!({}))?;
    qemu.finish()
}

/// Domain 0 is the guest of the other tests, with another kernel, and ends by the power-off of Xen.
pub(crate) fn dom0() -> Result<(), String> {
    let words = format!("console=hvc0 {}", watchdogs());
    let mut qemu = xen("dom0", &format!("/lab/disks/dom0 {words},/guest/initrd"))?;
    qemu.wait_for("Scrubbing Free RAM", 1)?;
    let lines = qemu.wait_for("ready: ", 1)?;
    qemu.expect("with 2 CPUs", lines[0].contains(" 2 CPU, "))?;
    qemu.finish()
}

/// Xen with these modules.
fn xen(name: &str, modules: &str) -> Result<Qemu, String> {
    let words = "console=com1 com1=115200,8n1 noreboot=true";
    let kernel = ["-kernel", "/lab/disks/xen", "-append", words];
    Qemu::boot(name, "", &[&kernel[..], &["-initrd", modules]].concat())
}
