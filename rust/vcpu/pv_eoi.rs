// SPDX-License-Identifier: GPL-2.0-only

//! The paravirtual end of interrupt: a byte of the guest's memory spares it the write of the EOI
//! register, which exits (Documentation/virt/kvm/x86/msr.rst, MSR 4b56_4d04).
//!
//! ```text
//!   before VMRUN   byte := 1, if nothing else waits for the end of what is in service
//!   guest          found 1: byte := 0, and that is all; found 0: writes the EOI register
//!   after #VMEXIT  byte is 0: the interrupt has ended; else byte := 0
//! ```
//!
//! So the byte is 1 only while the guest is in the CPU: no other vCPU and no ioctl sees a local
//! APIC that lags behind.

use crate::linux::Sleep;
use crate::memory::guest_access::GuestAccess;
use crate::vcpu::platform::deferred;
use crate::vcpu::{Inner, Vcpu};
use x86::cpu::{GuestMemory, MemError};

/// After a page could not be written, even by waiting for it, so many entries go without a try.
const REST: u16 = 256;

/// Says to the guest that it need not write the EOI register. Interrupts are off.
#[inline]
pub(crate) fn offer(vcpu: &Vcpu, inner: &mut Inner) {
    if let Some(gpa) = inner.state.msrs.pv_eoi_gpa() {
        offer_at(vcpu, inner, gpa);
    }
}

/// Guest memory for the byte at `gpa`. A snapshot has to keep the page before it is written, which
/// can sleep: once in each round, as [`fetch_page`] does.
#[inline]
fn access(inner: &mut Inner, gpa: u64, sleep: Sleep) -> GuestAccess<'_> {
    let is_kept = inner.pv_eoi_kept == Some((gpa, inner.parts.memory.keeping.generation()));
    let access = inner.parts.memory.access(sleep);
    match is_kept {
        true => access.of_kept(),
        false => access,
    }
}

#[inline(never)]
fn offer_at(vcpu: &Vcpu, inner: &mut Inner, gpa: u64) {
    let lapic = inner.parts.lapic.as_ref();
    let Some(vector) = lapic.and_then(|lapic| lapic.quiet_service()) else {
        return;
    };
    if let Some(rest) = inner.pv_eoi_rest.checked_sub(1) {
        inner.pv_eoi_rest = rest;
        return;
    }
    if !vcpu.vm.irqchip.tracks_eoi(vector) {
        // Without a page the register remains; next time it may be there.
        match access(inner, gpa, Sleep::Forbidden).write_gpa(gpa, &[1]) {
            Ok(()) => inner.pv_eoi_offered = true,
            Err(MemError::WouldSleep) => inner.parts.deferred |= deferred::EOI_PAGE,
            Err(_) => {}
        }
    }
}

/// Brings the page in. One that can not be written at all is not asked for at each entry.
#[cold]
pub(crate) fn fetch_page(inner: &mut Inner) {
    if let Some(gpa) = inner.state.msrs.pv_eoi_gpa() {
        let generation = inner.parts.memory.keeping.generation();
        let mut memory = inner.parts.memory.access(Sleep::Allowed);
        match memory.write_gpa(gpa, &[0]) {
            Ok(()) => inner.pv_eoi_kept = Some((gpa, generation)),
            Err(_) => inner.pv_eoi_rest = REST,
        }
    }
}

/// Finds out whether the guest has ended the interrupt. False if that cannot be done without
/// sleeping.
#[inline]
pub(crate) fn take_back(inner: &mut Inner, sleep: Sleep) -> bool {
    !inner.pv_eoi_offered || take_byte(inner, sleep)
}

#[inline(never)]
fn take_byte(inner: &mut Inner, sleep: Sleep) -> bool {
    let kept = match inner.state.msrs.pv_eoi_gpa() {
        Some(gpa) => clear(inner, gpa, sleep),
        None => Ok(true),
    };
    if kept == Err(MemError::WouldSleep) {
        return false;
    }
    inner.pv_eoi_offered = false;
    // Without the memory the byte is lost. Then it counts as an EOI: an interrupt that never ends
    // would be worse.
    if kept != Ok(true) {
        if let Some(lapic) = &mut inner.parts.lapic {
            lapic.end_of_interrupt();
        }
    }
    true
}

/// Clears the byte; whether it was set.
fn clear(inner: &mut Inner, gpa: u64, sleep: Sleep) -> Result<bool, MemError> {
    let mut memory = access(inner, gpa, sleep);
    let mut byte = [0];
    memory.read_gpa(gpa, &mut byte)?;
    let set = byte[0] & 1 != 0;
    if set {
        memory.write_gpa(gpa, &[0])?;
    }
    Ok(set)
}
