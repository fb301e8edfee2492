// SPDX-License-Identifier: GPL-2.0-only

//! A VMM that nobody here wrote: QEMU, unchanged, with stock Debian kernels as guests. It boots
//! them, resets them, gives them a disk and a network whose doorbells and interrupts are eventfds,
//! moves them under load to another QEMU, keeps them in files, and adds a CPU and memory while they
//! run. Some guests begin with their firmware, and some are other systems.
//!
//! usage: vmm [--long] [WORD]..., the tests whose names contain a word

mod console;
mod installer;
mod machines;
mod models;
mod moves;
mod picture;
mod qemu;
mod systems;
mod xen;

use std::fs;
use std::process::{Command, ExitCode};

use selftests::patience;
use selftests::tap::{equal, Tap};
use serde_json::json;

use qemu::Qemu;

type Test = (&'static str, fn() -> Result<(), String>);

const TESTS: &[Test] = &[
    (
        "a guest boots on a split irqchip, and again after a reset",
        reset,
    ),
    ("a virtio disk is read and written", disk),
    (
        "a guest under load moves, its log by write protection",
        moves::by_log,
    ),
    (
        "a guest under load moves, its log in dirty rings",
        moves::by_ring,
    ),
    ("a guest is kept in a file, and goes on twice", moves::file),
    (
        "a guest full of timers moves and moves: TSC deadlines",
        moves::deadline,
    ),
    (
        "a guest full of timers moves and moves: one-shot timers",
        moves::oneshot,
    ),
    (
        "a guest full of timers moves and moves: periodic timers",
        moves::periodic,
    ),
    (
        "`-cpu MODEL,enforce` misses nothing that it has on KVM",
        models::enforced,
    ),
    ("a microVM boots", machines::micro),
    (
        "a guest grows by a CPU and by memory above 4 GiB",
        machines::grown,
    ),
    (
        "a guest's network is served by the host's vhost",
        machines::vhost,
    ),
    ("SeaBIOS and GRUB start a kernel from a disk", systems::grub),
    ("SeaBIOS starts memtest86+ from a CD", systems::memtest),
    ("OVMF starts a kernel by UEFI", systems::ovmf),
    ("Xen starts, up to its first domain", xen::alone),
    (
        "Debian's installer starts, in its text form",
        installer::text,
    ),
];

/// So many times as long as others may a test of [`LONG`] wait for anything.
const LONGER: u32 = 4;

/// Those that take minutes, for `vmm --long`.
const LONG: &[Test] = &[
    ("guests full of timers move ten times each", moves::often),
    ("Xen's domain 0 boots and powers off", xen::dom0),
    (
        "Debian's installer asks in a graphical screen",
        installer::graphic,
    ),
];

/// What the guest runs, besides `load`, the load of the soak, and `timers`.
const PROGRAMS: &[(&str, &str)] = &[
    ("rest", "while :; do sleep 1; done"),
    // For ever: how long it takes to move a guest depends on the machine.
    ("work", "while load 2; do :; done"),
    ("timers-deadline", "timers deadline"),
    ("timers-oneshot", "timers oneshot"),
    ("timers-periodic", "timers periodic"),
    (
        "disk",
        "insmod /lib/virtio_blk.ko; sha256sum </dev/vda; dd if=/dev/vda of=/dev/vda bs=1M count=4 seek=4; sync",
    ),
    ("grow", machines::GROW),
    ("net", machines::NET),
    ("efi", systems::EFI),
];

fn main() -> ExitCode {
    let mut wanted: Vec<String> = std::env::args().skip(1).collect();
    let long = wanted.first().is_some_and(|word| word == "--long");
    let tests = if long { LONG } else { TESTS };
    wanted.drain(..usize::from(long));
    if long {
        patience::multiply(LONGER);
    }
    let mut tap = Tap::start();
    let prepared = prepare();
    for (name, test) in tests {
        if wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str())) {
            tap.result(name, prepared.clone().and_then(|()| test()));
        }
    }
    tap.finish()
}

/// Runs a script of the host, and answers what it says.
fn shell(script: &str) -> Result<String, String> {
    let output = Command::new("sh").args(["-ec", script]).output();
    let output = output.map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The initial RAM disk of the lab's guest with these programs, and a host in which QEMU has no
/// io_uring: its main loop can
/// sleep for ever with it (docs/testing.md, "Known bugs of the emulator").
fn prepare() -> Result<(), String> {
    shell("echo 2 >/proc/sys/kernel/io_uring_disabled")?;
    shell("mkdir -p /tmp/more/bin /tmp/more/lib; cp /selftests/bin/load /selftests/bin/timers /tmp/more/bin/; cp /lab/virtio_blk.ko /tmp/more/lib/; cp -r /lab/net /tmp/more/lib/net")?;
    for (name, script) in PROGRAMS {
        let text = format!("#!/bin/sh\n{script}\n");
        fs::write(format!("/tmp/more/bin/{name}"), text).map_err(|e| e.to_string())?;
    }
    shell("chmod 755 /tmp/more/bin/*; cd /tmp/more; { cat /guest/initrd; find . | cpio -o -H newc; } >/tmp/initrd")?;
    Ok(())
}

fn reset() -> Result<(), String> {
    let mut qemu = Qemu::start("reset", ",kernel-irqchip=split", "/bin/rest", &[])?;
    qemu.wait_for("ready: ", 1)?;
    qemu.ask("system_reset", json!({}))?;
    let lines = qemu.wait_for("ready: ", 2)?;
    qemu.expect(
        "both with 2 CPUs",
        lines.iter().all(|line| line.contains(" 2 CPU, ")),
    )?;
    qemu.ask("quit", json!({}))?;
    qemu.finish()
}

/// The guest reads its disk, and copies the first half of it onto the second.
fn disk() -> Result<(), String> {
    shell("dd if=/dev/urandom of=/tmp/disk bs=1M count=8")?;
    let sum = shell("sha256sum </tmp/disk")?;
    let drive = [
        "-blockdev",
        "driver=file,node-name=disk,filename=/tmp/disk",
        "-device",
        "virtio-blk-pci,drive=disk",
    ];
    let mut qemu = Qemu::start("disk", "", "/bin/disk", &drive)?;
    qemu.finish()?;
    let there = qemu.lines().iter().any(|line| line == sum.trim());
    qemu.expect("the guest reads what is there", there)?;
    let halves =
        shell("for skip in 0 4; do dd if=/tmp/disk bs=1M count=4 skip=$skip | sha256sum; done")?;
    let halves: Vec<_> = halves.lines().collect();
    equal("what the guest wrote", halves[1], halves[0])
}
