// SPDX-License-Identifier: GPL-2.0-only

//! The guest's clocks, read on all of its CPUs.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

const CLOCKS: [(&str, libc::clockid_t); 4] = [
    ("CLOCK_MONOTONIC", libc::CLOCK_MONOTONIC),
    ("CLOCK_MONOTONIC_RAW", libc::CLOCK_MONOTONIC_RAW),
    ("CLOCK_BOOTTIME", libc::CLOCK_BOOTTIME),
    ("CLOCK_REALTIME", libc::CLOCK_REALTIME),
];

/// The latest time that any thread has read of each clock, in nanoseconds.
#[derive(Default)]
pub(crate) struct Clocks([AtomicU64; CLOCKS.len()]);

impl Clocks {
    /// A time read after another, on whichever CPU, is not before it.
    pub(crate) fn check(&self, fail: fn(&str)) {
        for ((name, clock), latest) in CLOCKS.iter().zip(&self.0) {
            let before = latest.load(SeqCst);
            let now = read(*clock);
            if now < before {
                fail(&format!("{name} went back by {} ns", before - now));
            }
            latest.fetch_max(now, SeqCst);
        }
    }
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: The kernel writes to this function's own memory.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The clock that timers go by here.
pub(crate) fn now() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}
