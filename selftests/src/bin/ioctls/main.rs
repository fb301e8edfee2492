// SPDX-License-Identifier: GPL-2.0-only

//! Every ioctl of the device, with arguments that it must take and arguments that it must refuse,
//! and with the error numbers that the KVM API's documentation gives.

mod bare;
mod coalesced;
mod concurrent;
mod deadline;
mod debug;
mod events;
mod extensions;
mod faults;
mod interrupts;
mod irqchip;
mod msr;
mod nested;
mod paravirtual;
mod pause;
mod pointers;
mod poison;
mod slots;
mod start;
mod state;
mod storm;
mod sync;
mod system;
mod time;
mod tsc_rate;
mod vfio;
mod vm;
mod vmms;
mod xstate;

use std::process::ExitCode;

use selftests::kvm::{Answer, Errno};
use selftests::tap::Tap;

/// One test: its name and what it does with the device of this path.
pub(crate) type Test = (&'static str, fn(&str) -> Result<(), String>);

/// Fails unless the call was refused with this error number.
pub(crate) fn refused<T: std::fmt::Debug>(
    what: &str,
    answer: Answer<T>,
    errno: i32,
) -> Result<(), String> {
    match answer {
        Err(Errno(got)) if got == errno => Ok(()),
        other => Err(format!(
            "{what}: got {other:?}, expected {:?}",
            Errno(errno)
        )),
    }
}

fn main() -> ExitCode {
    let device = std::env::var("DEVICE").unwrap_or_else(|_| "/dev/pacifica".into());
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    selftests::machine::catch_interruptions();
    let groups: &[&[Test]] = &[
        system::TESTS,
        extensions::TESTS,
        vm::TESTS,
        vfio::TESTS,
        vmms::TESTS,
        nested::TESTS,
        slots::TESTS,
        state::TESTS,
        start::TESTS,
        xstate::TESTS,
        events::TESTS,
        debug::TESTS,
        sync::TESTS,
        concurrent::TESTS,
        irqchip::TESTS,
        interrupts::TESTS,
        storm::TESTS,
        coalesced::TESTS,
        msr::TESTS,
        paravirtual::TESTS,
        time::TESTS,
        tsc_rate::TESTS,
        pause::TESTS,
        deadline::TESTS,
        pointers::TESTS,
        poison::TESTS,
        faults::tests(),
    ];
    let mut tap = Tap::start();
    for (name, test) in groups.iter().copied().flatten() {
        if wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str())) {
            tap.result(name, test(&device));
        }
    }
    tap.finish()
}
