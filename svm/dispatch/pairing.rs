// SPDX-License-Identifier: GPL-2.0-only

//! The host's real time with the TSC of the same instant: `KVM_HC_CLOCK_PAIRING`
//! (Documentation/virt/kvm/x86/hypercalls.rst). Guests find it by calling it (`ptp_kvm`).

use super::Platform;
use crate::cpu::Guest;
use x86::cpu::{MemError, Stop};

/// `KVM_CLOCK_PAIRING_WALLCLOCK`, the only clock.
const WALL_CLOCK: u64 = 0;
/// `-KVM_EOPNOTSUPP` and `-KVM_EFAULT`.
const NOT_SUPPORTED: u64 = -95_i64 as u64;
const FAULT: u64 = -14_i64 as u64;
/// The size of `struct kvm_clock_pairing`: seconds, nanoseconds, TSC, flags, and room.
const SIZE: usize = 64;
const NS_PER_SEC: u64 = 1_000_000_000;
const PAGE: u64 = 4096;

/// Writes the pair to `address`; the answer to the guest.
pub(super) fn clock_pairing<P: Platform>(
    guest: &mut Guest<'_, P>,
    address: u64,
    clock: u64,
) -> Result<u64, Stop> {
    let pair = match clock {
        WALL_CLOCK => guest.platform.real_time_at_tsc(),
        _ => None,
    };
    let Some((tsc, ns)) = pair else {
        return Ok(NOT_SUPPORTED);
    };
    let tsc = tsc.wrapping_add(guest.vmcb.tsc_offset());
    let mut bytes = [0; SIZE];
    let words = [ns / NS_PER_SEC, ns % NS_PER_SEC, tsc];
    for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    match write(guest.platform, address, &bytes) {
        Ok(()) => Ok(0),
        Err(MemError::WouldSleep) => Err(Stop::WouldSleep),
        Err(_) => Ok(FAULT),
    }
}

/// Writes guest-physical memory, page by page.
fn write<P: Platform>(platform: &mut P, address: u64, bytes: &[u8]) -> Result<(), MemError> {
    let first = bytes.len().min((PAGE - address % PAGE) as usize);
    let (head, tail) = bytes.split_at_checked(first).unwrap_or((bytes, &[]));
    platform.write_gpa(address, head)?;
    if tail.is_empty() {
        return Ok(());
    }
    platform.write_gpa(address.wrapping_add(first as u64), tail)
}
