// SPDX-License-Identifier: GPL-2.0-only

//! CPUs that go and come, by /sys/devices/system/cpu.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Shared;

fn path(cpu: usize) -> String {
    format!("/sys/devices/system/cpu/cpu{cpu}/online")
}

/// How many CPUs are online. The first cannot go, so it has no such file.
pub(crate) fn online() -> usize {
    let there = |cpu| std::fs::read_to_string(path(cpu)).is_ok_and(|text| text.trim() == "1");
    1 + (1..1024)
        .take_while(|cpu| std::path::Path::new(&path(*cpu)).exists())
        .filter(|cpu| there(*cpu))
        .count()
}

/// Takes the CPUs away one by one and all but the first, and brings them back; answers how often.
pub(crate) fn until(end: Instant, cpus: usize, shared: &Shared) -> u64 {
    let mut changes = 0;
    let mut change = |cpu: usize, online: bool| match std::fs::write(
        path(cpu),
        if online { "1" } else { "0" },
    ) {
        Ok(()) => changes += 1,
        Err(error) => shared.fail(&format!("CPU {cpu}, online {online}: {error}")),
    };
    let pause = || sleep(Duration::from_millis(150));
    while Instant::now() < end {
        for cpu in 1..cpus {
            change(cpu, false);
            pause();
            change(cpu, true);
            pause();
        }
        (1..cpus).for_each(|cpu| change(cpu, false));
        pause();
        (1..cpus).for_each(|cpu| change(cpu, true));
        // All of them at work together for longer than one is away.
        sleep(Duration::from_millis(500));
    }
    changes
}
