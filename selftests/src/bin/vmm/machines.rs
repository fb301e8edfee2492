// SPDX-License-Identifier: GPL-2.0-only

//! Other machines than the usual one, and one that changes while it runs.

use serde_json::{json, Value};

use crate::qemu::Qemu;
use crate::shell;

/// What the guest of [`grown`] runs: brings what is new into use, and fills more memory than it
/// began with.
pub(crate) const GROW: &str = "\
    until [ $(nproc) = 3 ] && [ $(awk '/^MemTotal/ {print $2}' /proc/meminfo) -gt 1000000 ]; do
        for file in /sys/devices/system/cpu/cpu*/online; do echo 1 >$file; done 2>/dev/null
        for file in /sys/devices/system/memory/memory*/state; do echo online >$file; done 2>/dev/null
        sleep 1
    done
    mount -t tmpfs -o size=800M none /run && dd if=/dev/zero of=/run/fill bs=1M count=500 &&
        grep -q System.RAM /proc/iomem && echo \"grown: $(nproc) CPU, $(du -m /run/fill | cut -f 1) MiB\"
    load 2";

/// What the guest of [`vhost`] runs.
pub(crate) const NET: &str = "\
    while read -r module; do insmod /lib/net/$module; done </lib/net/order
    ip link set eth0 up && ip addr add 10.0.0.2/24 dev eth0
    until ping -c 1 -W 5 10.0.0.1; do sleep 1; done
    ping -c 20 -i 0.1 -s 1400 10.0.0.1 | grep 'packets transmitted'";

/// QEMU's smallest machine: no PCI, no PIC but the module's, timers by KVM alone.
pub(crate) fn micro() -> Result<(), String> {
    let machine = ["-M", "microvm,rtc=off,pit=off,pic=off"];
    let mut qemu = Qemu::start("micro", "", "/bin/true", &machine)?;
    let lines = qemu.wait_for("ready: ", 1)?;
    qemu.expect("with 2 CPUs", lines[0].contains(" 2 CPU, "))?;
    qemu.finish()
}

/// Memory that is added lies above 4 GiB.
pub(crate) fn grown() -> Result<(), String> {
    const MORE: u64 = 1 << 30;
    let room = ["-smp", "2,maxcpus=3", "-m", "384M,slots=1,maxmem=8G"];
    let mut qemu = Qemu::start("grown", "", "/bin/grow", &room)?;
    qemu.wait_for("ready: ", 1)?;
    let cpus = qemu.ask("query-hotpluggable-cpus", json!({}))?;
    let free = |cpu: &&Value| cpu.get("qom-path").is_none();
    let cpu = cpus.as_array().and_then(|all| all.iter().find(free));
    let cpu = cpu.ok_or_else(|| format!("no CPU to add: {cpus}"))?;
    let mut device = cpu["props"].clone();
    device["driver"] = cpu["type"].clone();
    device["id"] = "cpu-more".into();
    qemu.ask("device_add", device)?;
    let memory = json!({ "qom-type": "memory-backend-ram", "id": "more", "size": MORE });
    qemu.ask("object-add", memory)?;
    let dimm = json!({ "driver": "pc-dimm", "id": "dimm", "memdev": "more" });
    qemu.ask("device_add", dimm)?;
    let lines = qemu.wait_for("grown: ", 1)?;
    qemu.expect("all is used", lines[0].contains("grown: 3 CPU, 500 MiB"))?;
    let dimms = qemu.ask("query-memory-devices", json!({}))?;
    let address = dimms[0]["data"]["addr"].as_u64();
    qemu.expect("above 4 GiB", address >= Some(4 << 30))?;
    qemu.finish()
}

/// Packets go between the guest's queues and the host's network in the host's kernel: doorbells are
/// ioeventfds, and interrupts irqfds, whose other ends are vhost's.
pub(crate) fn vhost() -> Result<(), String> {
    shell("while read -r module; do insmod /lab/vhost/$module; done </lab/vhost/order")?;
    let net = [
        "-netdev",
        "tap,id=net,ifname=tap0,script=no,downscript=no,vhost=on",
        "-device",
        "virtio-net-pci,netdev=net,romfile=",
    ];
    let mut qemu = Qemu::start("vhost", "", "/bin/net", &net)?;
    shell("ip addr add 10.0.0.1/24 dev tap0; ip link set tap0 up")?;
    let lines = qemu.wait_for("packets transmitted", 2)?;
    let all = lines
        .last()
        .is_some_and(|line| line.contains("20 packets received"));
    qemu.expect("every packet comes back", all)?;
    qemu.finish()
}
