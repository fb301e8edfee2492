// SPDX-License-Identifier: GPL-2.0-only

//! Debian's installer, in its text form and in its graphical form.

use std::cell::RefCell;

use serde_json::json;

use crate::picture::Picture;
use crate::qemu::{watchdogs, Qemu};

/// Its kernel, with this initial RAM disk, these words for the kernel, and more of QEMU's.
fn start(name: &str, initrd: &str, words: &str, more: &[&str]) -> Result<Qemu, String> {
    let append = format!("{words} {}", watchdogs());
    let kernel = ["-m", "1G", "-kernel", "/lab/installer/linux"];
    let rest = ["-initrd", initrd, "-append", &append];
    Qemu::boot(name, "", &[&kernel[..], &rest, more].concat())
}

/// To the first line of its own.
pub(crate) fn text() -> Result<(), String> {
    let initrd = "/lab/installer/text.gz";
    let words = "console=ttyS0 DEBIAN_FRONTEND=text";
    let mut qemu = start("installer", initrd, words, &[])?;
    qemu.wait_for("Starting system log daemon", 1)?;
    qemu.ask("quit", json!({}))?;
    qemu.finish()
}

/// The installer's ground.
const GROUND: [u8; 3] = [0xed, 0xe9, 0xe3];
const WHITE: [u8; 3] = [0xff; 3];

/// To its first question: a white list of languages under a banner, on a plain ground. The kernel
/// has set a mode of the screen by the VGA's BIOS at first, and its own driver another.
pub(crate) fn graphic() -> Result<(), String> {
    let initrd = "/lab/installer/gtk.gz";
    let mut qemu = start("graphic", initrd, "vga=788", &["-vga", "std"])?;
    // One after the other: each has its own patience.
    qemu.wait_for_picture("a mode of the VGA's BIOS", |now| now.size() == (800, 600))?;
    qemu.wait_for_picture("the kernel's messages", |now| now.colours() > 1)?;
    qemu.wait_for_picture("a mode of the driver", |now| now.size() == (1280, 800))?;
    let ground = |now: &Picture| now.share(GROUND) > 50;
    qemu.wait_for_picture("the ground", ground)?;
    qemu.wait_for_picture("the banner", |now| ground(now) && now.colours() > 200)?;
    let asks = |now: &Picture| {
        let (white, ground) = (now.share(WHITE), now.share(GROUND));
        now.size() == (1280, 800) && white > 40 && ground > 10 && now.colours() > 500
    };
    // Until nothing changes any more by itself.
    let last = RefCell::new(None);
    let settled = |now: &Picture| {
        let before = last.replace(Some(now.clone()));
        asks(now) && before.is_some_and(|before| before == *now)
    };
    let first = qemu.wait_for_picture("the list of languages", settled)?;
    let key = json!({ "keys": [{ "type": "qcode", "data": "down" }] });
    qemu.ask("send-key", key)?;
    qemu.wait_for_picture("another language", |now| asks(now) && *now != first)?;
    qemu.ask("quit", json!({}))?;
    qemu.finish()
}
