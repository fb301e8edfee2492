// SPDX-License-Identifier: GPL-2.0-only

//! Guests that go from one QEMU to another while they work, and into files.

use std::fs;

use serde_json::json;

use crate::qemu::Qemu;

pub(crate) fn by_log() -> Result<(), String> {
    moved("log", "")
}

pub(crate) fn by_ring() -> Result<(), String> {
    moved("ring", ",dirty-ring-size=4096")
}

fn moved(name: &str, accel: &str) -> Result<(), String> {
    let uri = format!("unix:/tmp/{name}.migration");
    let mut from = Qemu::start(&format!("{name}-from"), accel, "/bin/work", &[])?;
    from.wait_for("load: 2 s", 1)?;
    let mut to = Qemu::start(
        &format!("{name}-to"),
        accel,
        "/bin/work",
        &["-S", "-incoming", &uri],
    )?;
    let how = from.move_to(&mut to, &uri)?;
    let (sent, again) = (&how["ram"]["normal"], &how["ram"]["dirty-sync-count"]);
    println!(
        "# {sent} pages in {again} rounds, {} ms at rest",
        how["downtime"]
    );
    drop(from);
    done(to)
}

/// What it was doing it ends well, and what it does next, too.
fn done(mut qemu: Qemu) -> Result<(), String> {
    qemu.wait_for("load: done", 2)?;
    qemu.ask("quit", json!({}))?;
    qemu.finish()
}

pub(crate) fn file() -> Result<(), String> {
    let mut from = Qemu::start("file-from", "", "/bin/work", &[])?;
    from.wait_for("load: 2 s", 1)?;
    from.migrate("file:/tmp/state")?;
    drop(from);
    for name in ["file-first", "file-second"] {
        let to = Qemu::start(name, "", "/bin/work", &["-incoming", "file:/tmp/state"])?;
        done(to)?;
    }
    fs::remove_file("/tmp/state").map_err(|e| e.to_string())
}

pub(crate) fn deadline() -> Result<(), String> {
    timers("deadline", 2)
}

pub(crate) fn oneshot() -> Result<(), String> {
    timers("oneshot", 2)
}

pub(crate) fn periodic() -> Result<(), String> {
    timers("periodic", 2)
}

pub(crate) fn often() -> Result<(), String> {
    const OFTEN: usize = 10;
    let modes = ["deadline", "oneshot", "periodic"];
    modes.into_iter().try_for_each(|mode| timers(mode, OFTEN))
}

/// All timers of the guest are those of its local APICs. It moves while they are armed, expire, and
/// wait to be delivered; the guest itself finds what is lost, early, or goes back.
fn timers(mode: &str, moves: usize) -> Result<(), String> {
    /// Each is some dozens of timers of each kind on each CPU.
    const ROUNDS: usize = 3;
    let words = match mode {
        "periodic" => "lapic=notscdeadline highres=off nohz=off",
        "oneshot" => "lapic=notscdeadline",
        _ => "",
    };
    let program = format!("/bin/timers-{mode} {words}");
    let alone = ["-M", "q35,hpet=off,pit=off"];
    let mut qemu = Qemu::start(&format!("{mode}-0"), "", &program, &alone)?;
    qemu.wait_for(&format!("timers: {mode}"), 1)?;
    for number in 1..=moves {
        qemu.wait_for("timers: round", ROUNDS)?;
        let uri = format!("unix:/tmp/{mode}-{number}.migration");
        let more = [&alone[..], &["-S", "-incoming", &uri]].concat();
        let mut to = Qemu::start(&format!("{mode}-{number}"), "", &program, &more)?;
        let how = qemu.move_to(&mut to, &uri)?;
        println!("# {mode} {number}: {} ms at rest", how["downtime"]);
        qemu.healthy()?;
        qemu = to;
    }
    qemu.wait_for("timers: round", ROUNDS)?;
    qemu.ask("quit", json!({}))?;
    qemu.finish()
}
