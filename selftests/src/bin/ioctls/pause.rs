// SPDX-License-Identifier: GPL-2.0-only

//! A guest that spins: how often its PAUSEs make an exit.

use selftests::kvm::{number, Handle};
use selftests::patience::wait;
use selftests::stats::counter;
use selftests::tap::skipped;

use crate::bare::{Bare, OUT};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[(
    "PAUSE: an exit that gives no CPU away makes the next one later",
    window,
)];

/// 1: mov $100000, %ecx; 2: pause; dec %ecx; jnz 2b; out; jmp 1b
const SPINNER: &[u8] = &[
    0x66, 0xb9, 0xa0, 0x86, 1, 0, 0xf3, 0x90, 0x66, 0x49, 0x75, 0xfa, OUT[0], OUT[1], 0xeb, 0xf0,
];

fn window(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, SPINNER)?;
    let file = bare.vcpu.handle.open_with(number::GET_STATS_FD, 0)?;
    let exits =
        |file: &Handle| counter(file, "directed_yield_attempted").map(Option::unwrap_or_default);
    bare.byte()?;
    if exits(&file)? == 0 {
        return skipped("PAUSE does not exit here");
    }
    // A fixed count of 3,000 makes 33 exits; one that doubles, 6. It begins again when the thread
    // has waited for a CPU, so a busy host may need another try.
    wait("few exits", || {
        let before = exits(&file)?;
        bare.byte()?;
        let count = exits(&file)? - before;
        Ok((1..=10).contains(&count).then_some(()))
    })
}
