// SPDX-License-Identifier: GPL-2.0-only

//! The host's CPUs. A test does not number them itself: the emulated host keeps its first for
//! itself (docs/testing.md).

use std::mem::{size_of, zeroed};
use std::sync::OnceLock;

use crate::kvm::Errno;

/// Those that this program could use when it asked for the first time, lowest first.
pub fn usable() -> &'static [usize] {
    static USABLE: OnceLock<Vec<usize>> = OnceLock::new();
    USABLE.get_or_init(|| {
        // SAFETY: The set is plain and this function's own.
        let set = unsafe {
            let mut set: libc::cpu_set_t = zeroed();
            libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set);
            set
        };
        (0..libc::CPU_SETSIZE as usize)
            // SAFETY: The number is one that a set has.
            .filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) })
            .collect()
    })
}

/// From now on the calling thread runs on these only.
pub fn pin(cpus: &[usize]) -> Result<(), Errno> {
    // SAFETY: As above; the numbers are those of CPUs.
    let status = unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        cpus.iter().for_each(|cpu| libc::CPU_SET(*cpu, &mut set));
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if status == 0 {
        Ok(())
    } else {
        Err(Errno::last())
    }
}
