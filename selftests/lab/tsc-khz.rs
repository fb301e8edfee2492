// SPDX-License-Identifier: GPL-2.0-only

//! Prints how fast this machine's time-stamp counter counts, in kHz.
//!
//! The emulated host's counter is this machine's own. A kernel finds its rate by counting while
//! another timer runs, and an emulated CPU that stands still meanwhile, because this machine is
//! busy, miscounts: its clock was seen to run six times too fast. So the lab tells it
//! (`tsc_early_khz=`).

use std::arch::x86_64::_rdtsc;
use std::time::{Duration, Instant};

/// A moment by both clocks. Of some tries the one counts that was cut short the least.
fn moment() -> (Instant, u64) {
    let tries = (0..1000).map(|_| {
        let before = Instant::now();
        // SAFETY: RDTSC only reads the counter.
        let count = unsafe { _rdtsc() };
        (before.elapsed(), before, count)
    });
    let best = tries.min_by_key(|(took, ..)| *took);
    best.map_or_else(|| (Instant::now(), 0), |(_, at, count)| (at, count))
}

fn main() {
    let (start, first) = moment();
    std::thread::sleep(Duration::from_millis(100));
    let (end, last) = moment();
    let khz = u128::from(last.wrapping_sub(first)) * 1_000_000 / (end - start).as_nanos();
    println!("{khz}");
}
