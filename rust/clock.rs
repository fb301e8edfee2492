// SPDX-License-Identifier: GPL-2.0-only

//! The paravirtual clock, and the clock of a VM (Documentation/virt/kvm/x86/msr.rst, api.rst).

use crate::abi::{self, Arg};
use crate::ffi;
use crate::kick::{request, Mailboxes};
use crate::vcpu::{Inner, Vcpu};
use kernel::ffi::c_long;
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use x86::cpu::GuestMemory;
use x86::pvclock::{PvClock, Scale, WallClock};

/// Bit 0 of the MSR that places the vCPU's clock: it is on.
const SYSTEM_TIME_ON: u64 = 1;

/// The clock of a VM: host time since boot, and what the guest's is ahead.
pub(crate) struct VmClock {
    /// Nanoseconds; wraps.
    offset: Atomic<u64>,
    /// The TSC offset with which a vCPU's TSC began at zero when the VM was made.
    tsc_offset: u64,
}

impl VmClock {
    /// A clock that begins at zero.
    pub(crate) fn new() -> Self {
        Self {
            offset: Atomic::new(ffi::boot_ns().wrapping_neg()),
            tsc_offset: ffi::rdtsc().wrapping_neg(),
        }
    }

    /// The TSC offset of a new vCPU: all begin together.
    pub(crate) fn tsc_offset(&self) -> u64 {
        self.tsc_offset
    }

    /// The guest's nanoseconds.
    fn now(&self) -> u64 {
        ffi::boot_ns().wrapping_add(self.offset.load(Relaxed))
    }

    /// KVM_GET_CLOCK.
    pub(crate) fn get(&self, arg: Arg) -> Result<c_long> {
        let stable = if ffi::tsc_stable() {
            abi::KVM_CLOCK_TSC_STABLE
        } else {
            0
        };
        let data = abi::kvm_clock_data {
            clock: self.now(),
            flags: stable,
            ..Default::default()
        };
        arg.write(&data)?;
        Ok(0)
    }

    /// KVM_SET_CLOCK.
    pub(crate) fn set(&self, arg: Arg, vcpus: &Mailboxes) -> Result<c_long> {
        let data: abi::kvm_clock_data = arg.read()?;
        // What KVM_GET_CLOCK reports may come back; it has no effect.
        if data.flags & !abi::KVM_CLOCK_TSC_STABLE != 0 {
            return Err(EINVAL);
        }
        self.offset
            .store(data.clock.wrapping_sub(ffi::boot_ns()), Relaxed);
        vcpus.each(|vcpu| vcpu.ask(request::CLOCK));
        Ok(0)
    }
}

/// Nanoseconds in so many ticks of the TSC.
pub(crate) fn ticks_to_ns(ticks: u64) -> u64 {
    Scale::new(ffi::tsc_khz()).ns(ticks)
}

/// KVM_KVMCLOCK_CTRL: the guest was paused, and its watchdogs should know.
pub(crate) fn pause_notice(inner: &mut Inner) -> Result<c_long> {
    if inner.state.msrs.pv_system_time & SYSTEM_TIME_ON == 0 {
        return Err(EINVAL);
    }
    inner.parts.guest_stopped = true;
    inner.parts.deferred |= crate::world::deferred::PV_CLOCK;
    Ok(0)
}

/// Writes the clocks that the guest has asked for. What the guest's memory does not take is lost,
/// as on any write to an address without memory.
pub(crate) fn update(vcpu: &Vcpu, inner: &mut Inner, wall: bool) {
    let (tsc, system_time) = (
        ffi::rdtsc().wrapping_add(inner.vmcb.tsc_offset()),
        vcpu.vm.clock.now(),
    );
    let at = inner.state.msrs.pv_system_time;
    if at & SYSTEM_TIME_ON != 0 {
        inner.parts.clock_version = inner.parts.clock_version.wrapping_add(2) & !1;
        let version = inner.parts.clock_version;
        let clock = PvClock {
            tsc,
            system_time,
            scale: Scale::new(ffi::tsc_khz()),
            stable: ffi::tsc_stable(),
            guest_stopped: core::mem::take(&mut inner.parts.guest_stopped),
        };
        // Odd while the rest changes, then even (msr.rst).
        write(inner, at & !SYSTEM_TIME_ON, &clock.bytes(version | 1));
        write(inner, at & !SYSTEM_TIME_ON, &clock.bytes(version));
    }
    if wall {
        let (sec, nsec) = ffi::real_time();
        let now = sec.wrapping_mul(NS_PER_SEC).wrapping_add(u64::from(nsec));
        let clock = WallClock::at_boot(now, system_time);
        let at = inner.state.msrs.pv_wall_clock;
        write(inner, at, &clock.bytes(1));
        write(inner, at, &clock.bytes(2));
    }
}

const NS_PER_SEC: u64 = 1_000_000_000;

/// Writes guest memory, page by page.
fn write(inner: &mut Inner, gpa: u64, data: &[u8]) {
    let mut memory = inner.parts.memory.access(true);
    let first = data.len().min((0x1000 - (gpa & 0xfff)) as usize);
    let (head, tail) = data.split_at(first);
    let _ = memory.write_gpa(gpa, head);
    if !tail.is_empty() {
        let _ = memory.write_gpa(gpa.wrapping_add(first as u64), tail);
    }
}
