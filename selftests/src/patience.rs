// SPDX-License-Identifier: GPL-2.0-only

//! How long a test waits.
//!
//! A test waits for a condition, never for a time that should be enough: the machine may be busy.
//! Only what hangs is given up, and that late. `LAB_PATIENCE`, a whole number, multiplies the time.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// After so long what should take milliseconds, or a guest's start, hangs.
const USUAL: Duration = Duration::from_secs(300);

/// How often a wait for what goes on is given the same time again.
const RENEWALS: u32 = 4;

/// By how much this program multiplies it.
static FACTOR: AtomicU32 = AtomicU32::new(1);

/// From now on any wait may take so many times as long: what is waited for is slow.
pub fn multiply(factor: u32) {
    FACTOR.store(factor, Relaxed);
}

/// How long any one wait may take.
pub fn limit() -> Duration {
    let factor = std::env::var("LAB_PATIENCE").ok();
    USUAL
        * FACTOR.load(Relaxed)
        * factor
            .and_then(|text| text.parse().ok())
            .unwrap_or(1)
            .max(1)
}

/// Asks again and again until there is an answer, or an error.
pub fn wait<T>(what: &str, ask: impl FnMut() -> Result<Option<T>, String>) -> Result<T, String> {
    wait_beside(what, || 0, ask)
}

/// The same for what shows that it goes on: if more is `seen` of it when the time is over, it gets
/// the same time again, [`RENEWALS`] times at most.
pub fn wait_beside<T>(
    what: &str,
    seen: impl Fn() -> usize,
    mut ask: impl FnMut() -> Result<Option<T>, String>,
) -> Result<T, String> {
    let (mut start, limit) = (Instant::now(), limit());
    let (mut before, mut renewals) = (seen(), RENEWALS);
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if start.elapsed() > limit {
            let now = seen();
            if now <= before || renewals == 0 {
                return Err(format!("{what}: not within {:?}", start.elapsed()));
            }
            (start, before, renewals) = (Instant::now(), now, renewals - 1);
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Waits until this holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<(), String> {
    wait(what, || Ok(holds().then_some(())))
}
