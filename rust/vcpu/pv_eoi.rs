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
use crate::vcpu::LockedVcpu;
use svm::requests::Requests;
use x86::cpu::{GuestMemory, MemError};

/// After a page could not be written, even by waiting for it, so many entries go without a try.
const REST: u16 = 256;

/// Says to the guest that it need not write the EOI register, right before it is entered.
#[inline]
pub(crate) fn offer(vcpu: &mut LockedVcpu) {
    if let Some(gpa) = vcpu.state.msrs.pv_eoi_gpa() {
        offer_at(vcpu, gpa);
    }
}

/// Guest memory for the byte at `gpa`. A snapshot has to keep the page before it is written, which
/// can sleep: once in each round, as [`fetch_page`] does.
#[inline]
fn access(vcpu: &mut LockedVcpu, gpa: u64, sleep: Sleep) -> GuestAccess<'_> {
    let kept = vcpu.pv_eoi_kept;
    let access = vcpu.platform.memory.access(sleep);
    match kept {
        Some((page, generation)) if page == gpa => access.kept_in(generation),
        _ => access,
    }
}

#[inline(never)]
fn offer_at(vcpu: &mut LockedVcpu, gpa: u64) {
    let lapic = vcpu.platform.apic.kernel();
    let Some(vector) = lapic.and_then(|lapic| lapic.quiet_service()) else {
        return;
    };
    if let Some(rest) = vcpu.pv_eoi_rest.checked_sub(1) {
        vcpu.pv_eoi_rest = rest;
        return;
    }
    if !vcpu.platform.vm.irqchip.tracks_eoi(vector) {
        // Without a page the register remains; next time it may be there.
        match access(vcpu, gpa, Sleep::Forbidden).write_gpa(gpa, &[1]) {
            Ok(()) => vcpu.pv_eoi_offered = true,
            Err(MemError::WouldSleep) => vcpu.platform.requests |= Requests::EOI_PAGE,
            Err(_) => {}
        }
    }
}

/// Brings the page in. One that can not be written at all is not asked for at each entry.
#[cold]
pub(crate) fn fetch_page(vcpu: &mut LockedVcpu) {
    if let Some(gpa) = vcpu.state.msrs.pv_eoi_gpa() {
        let generation = vcpu.platform.memory.keeping.generation();
        let mut memory = vcpu.platform.memory.access(Sleep::Allowed);
        match memory.write_gpa(gpa, &[0]) {
            Ok(()) => vcpu.pv_eoi_kept = Some((gpa, generation)),
            Err(_) => vcpu.pv_eoi_rest = REST,
        }
    }
}

/// Finds out whether the guest has ended the interrupt. False if that cannot be done without
/// sleeping.
#[inline]
pub(crate) fn take_back(vcpu: &mut LockedVcpu, sleep: Sleep) -> bool {
    !vcpu.pv_eoi_offered || take_byte(vcpu, sleep)
}

#[inline(never)]
fn take_byte(vcpu: &mut LockedVcpu, sleep: Sleep) -> bool {
    let kept = match vcpu.state.msrs.pv_eoi_gpa() {
        Some(gpa) => clear(vcpu, gpa, sleep),
        None => Ok(true),
    };
    if kept == Err(MemError::WouldSleep) {
        return false;
    }
    vcpu.pv_eoi_offered = false;
    // Without the memory the byte is lost. Then it counts as an EOI: an interrupt that never ends
    // would be worse.
    if kept != Ok(true) {
        if let Some(lapic) = vcpu.platform.apic.kernel_mut() {
            lapic.end_of_interrupt();
        }
    }
    true
}

/// Clears the byte; whether it was set.
fn clear(vcpu: &mut LockedVcpu, gpa: u64, sleep: Sleep) -> Result<bool, MemError> {
    let mut memory = access(vcpu, gpa, sleep);
    let mut byte = [0];
    memory.read_gpa(gpa, &mut byte)?;
    let set = byte[0] & 1 != 0;
    if set {
        memory.write_gpa(gpa, &[0])?;
    }
    Ok(set)
}
