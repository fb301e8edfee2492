// SPDX-License-Identifier: GPL-2.0-only

//! Guests that begin where a computer does, with its firmware.

use selftests::tap::equal;

use crate::qemu::Qemu;
use crate::shell;

/// What the guest of [`ovmf`] runs.
pub(crate) const EFI: &str = "echo efi: $(cat /sys/firmware/efi/fw_platform_size)";

/// SeaBIOS reads GRUB from a disk, and GRUB by the BIOS the guest's kernel, all in real mode.
pub(crate) fn grub() -> Result<(), String> {
    shell(
        "read -r kernel initrd </lab/disks/grub-sectors; cp /lab/disks/grub /tmp/grub
        dd if=/guest/vmlinuz of=/tmp/grub seek=$kernel
        dd if=/guest/initrd of=/tmp/grub seek=$initrd conv=sync",
    )?;
    let disk = ["-drive", "file=/tmp/grub,format=raw,if=virtio"];
    let mut qemu = Qemu::boot("grub", "", &disk)?;
    let lines = qemu.wait_for("ready: ", 1)?;
    qemu.expect("with 2 CPUs", lines[0].contains(" 2 CPU, "))?;
    qemu.finish()
}

/// memtest86+ brings its own drivers, starts the second CPU itself, and writes to the screen.
pub(crate) fn memtest() -> Result<(), String> {
    const LATER_TEST: &str = "Test #4";
    let disc = ["-cdrom", "/lab/disks/memtest.iso"];
    let machine = ["-M", "pc", "-m", "32M", "-vga", "std"];
    let mut qemu = Qemu::boot("memtest", "", &[&machine[..], &disc].concat())?;
    let shows = |lines: &[String], text| lines.iter().any(|line| line.contains(text));
    let screen = qemu.wait_for_screen(LATER_TEST, |lines| shows(lines, LATER_TEST))?;
    for text in ["2 Cores 2 Threads", "SMP: 2T", "Errors: 0"] {
        equal(text, shows(&screen, text), true)?;
    }
    Ok(())
}

/// OVMF runs from read-only memory, and writes its variables to a flash chip, which is a device
/// while it is written to.
pub(crate) fn ovmf() -> Result<(), String> {
    shell("cp /lab/disks/OVMF_VARS_4M.fd /tmp/variables; sha256sum </tmp/variables >/tmp/before")?;
    let flash = [
        "-drive",
        "if=pflash,format=raw,readonly=on,file=/lab/disks/OVMF_CODE_4M.fd",
        "-drive",
        "if=pflash,format=raw,file=/tmp/variables",
    ];
    let mut qemu = Qemu::start("ovmf", "", "/bin/efi", &flash)?;
    let lines = qemu.wait_for("efi: ", 1)?;
    qemu.expect("the kernel knows of UEFI", lines[0].contains("efi: 64"))?;
    qemu.finish()?;
    shell("sha256sum </tmp/variables >/tmp/after; ! cmp /tmp/before /tmp/after")?;
    Ok(())
}
