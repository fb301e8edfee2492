// SPDX-License-Identifier: GPL-2.0-only

//! The host takes a page back that running vCPUs use: what it costs the caller, by how many of them run. The emulator's
//! plugin counts, between the marks; `selftests/shootdown` reads it.

use std::thread::available_parallelism;

use selftests::guest::Irqchip;
use selftests::kvm::Handle;
use selftests::machine::Vcpu;
use selftests::memory::PAGE;
use selftests::patience;

use crate::guests::{Code, SPUN};
use crate::machine::{begin, beside, end, machine};
use crate::{Row, Rows};

/// The vCPUs, and the caller.
const CPUS: usize = 17;
/// How often the page is taken.
const ROUNDS: usize = 32;

/// Does something while all of these run their guests.
fn beside_all<'a, T: 'a>(
    others: &'a [Vcpu],
    work: Box<dyn FnOnce() -> T + 'a>,
) -> Result<T, String> {
    match others {
        [] => Ok(work()),
        [other, rest @ ..] => beside(other, || beside_all(rest, work))?,
    }
}

fn with(device: &Handle, name: &'static str, vcpus: usize) -> Result<Row, String> {
    let machine = machine(device, &vec![Code::Spin; vcpus], Irqchip::None)?;
    let page = SPUN / PAGE * PAGE;
    let spun = || {
        let bytes = machine.ram.read(SPUN, 8);
        u64::from_ne_bytes(bytes.try_into().unwrap_or_default())
    };
    let rounds = || {
        for _ in 0..ROUNDS {
            // They have counted since the page came back.
            let counted = || Ok((spun() > 1000 * vcpus as u64).then_some(()));
            patience::wait("the guests count", counted)?;
            // SAFETY: The page is the machine's own, and no reference covers it.
            let address = unsafe { machine.ram.start().add(page) };
            begin();
            // SAFETY: As above; the guests begin to count anew.
            unsafe { libc::madvise(address.cast(), PAGE, libc::MADV_DONTNEED) };
            end();
        }
        Ok::<(), String>(())
    };
    beside_all(&machine.vcpus, Box::new(rounds))??;
    Ok(Row {
        name,
        value: 0,
        times: ROUNDS as u64,
    })
}

/// Nothing on a host with fewer CPUs.
pub(crate) fn invalidate(device: &Handle) -> Rows {
    if available_parallelism().map_or(1, usize::from) < CPUS {
        return Ok(Vec::new());
    }
    [
        ("invalidate_1", 1),
        ("invalidate_4", 4),
        ("invalidate_16", 16),
    ]
    .into_iter()
    .map(|(name, vcpus)| with(device, name, vcpus))
    .collect()
}
