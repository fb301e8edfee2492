// SPDX-License-Identifier: GPL-2.0-only

//! The paravirtual clock of a vCPU, and its TSC (Documentation/virt/kvm/x86/msr.rst).

use crate::host;
use crate::irq::mailbox::Tsc;
use crate::linux;
use crate::linux::{IrqsOff, Sleep};
use crate::uapi::{self, UserArg};
use crate::vcpu::LockedVcpu;
use crate::vm::clock::{rate, real_ns};
use kernel::ffi::c_long;
use kernel::prelude::*;
use svm::requests::Requests;
use x86::cpu::GuestMemory;
use x86::pvclock::{next_version, PvClock, Scale, WallClock};

/// Bit 0 of the MSR that places the vCPU's clock: it is on.
const SYSTEM_TIME_ON: u64 = 1;

/// What others need to know of the vCPU's TSC.
pub(crate) fn its_tsc(vcpu: &LockedVcpu) -> Tsc {
    let platform = &vcpu.platform;
    Tsc {
        offset: vcpu.vmcb.tsc_offset(),
        ratio: platform.tsc_rate.ratio.bits(),
        old_clock: platform.old_clock && platform.mailbox.id == platform.vm.boot_cpu(),
    }
}

/// This vCPU's TSC may be another now: the others' clocks may have been the same as its clock, or
/// become so. Not in the guest.
pub(crate) fn publish(vcpu: &LockedVcpu) {
    let (tsc, platform) = (its_tsc(vcpu), &vcpu.platform);
    if platform.mailbox.tsc() != tsc {
        let vm = &platform.vm;
        vm.clock.publish_tsc(&platform.mailbox, tsc, &vm.vcpu_table);
    }
}

/// Timers and the clock page follow what the VMM has changed.
pub(crate) fn touch_time(vcpu: &mut LockedVcpu) {
    vcpu.platform.requests |= Requests::SET_TIMER | Requests::PV_CLOCK;
}

/// KVM_{HAS,GET,SET}_DEVICE_ATTR of a vCPU: its TSC offset.
pub(crate) fn attribute(vcpu: &mut LockedVcpu, cmd: u32, arg: UserArg) -> Result {
    let attr: uapi::kvm_device_attr = arg.read()?;
    if attr.group != uapi::KVM_VCPU_TSC_CTRL || attr.attr != u64::from(uapi::KVM_VCPU_TSC_OFFSET) {
        return Err(ENXIO);
    }
    let value = UserArg(attr.addr as usize);
    match cmd {
        uapi::KVM_GET_DEVICE_ATTR => value.write(&vcpu.vmcb.tsc_offset())?,
        uapi::KVM_SET_DEVICE_ATTR => {
            let offset = value.read()?;
            let rate = vcpu.platform.tsc_rate;
            vcpu.platform.vm.clock.set_tsc_offset(rate, offset);
            vcpu.vmcb.set_tsc_offset(offset);
            touch_time(vcpu);
        }
        _ => {}
    }
    Ok(())
}

/// KVM_SET_TSC_KHZ: the guest's TSC runs at this rate, as if it had since the VM was made or its
/// TSC was set. What it differs from the other vCPUs' stays.
pub(crate) fn set_khz(vcpu: &mut LockedVcpu, khz: usize) -> Result {
    let vm = &vcpu.platform.vm;
    let rate = rate(khz, vm.features)?;
    let old = vcpu.platform.tsc_rate;
    if old.ratio != rate.ratio {
        let offset = vm.clock.rated_offset(rate, old, vcpu.vmcb.tsc_offset());
        vcpu.vmcb.set_tsc_offset(offset);
        touch_time(vcpu);
    }
    vcpu.platform.tsc_rate = rate;
    Ok(())
}

/// The rate at which the guest's TSC counts.
pub(crate) fn scale(vcpu: &LockedVcpu) -> Scale {
    Scale::new(vcpu.platform.tsc_rate.real_khz(linux::tsc_khz()))
}

/// The host was suspended: the guest's TSC goes on from where it was, and its clock has another
/// base, even if the TSC did not stop.
#[cold]
pub(crate) fn after_suspend(vcpu: &mut LockedVcpu) {
    let lost = host::tsc_lost();
    let more = lost.wrapping_sub(vcpu.tsc_lost);
    (vcpu.tsc_lost, vcpu.resumes) = (lost, host::resumes());
    vcpu.last_tsc = 0;
    let more = vcpu.platform.tsc_rate.ratio.scale(more);
    let offset = vcpu.vmcb.tsc_offset().wrapping_add(more);
    vcpu.vmcb.set_tsc_offset(offset);
    touch_time(vcpu);
}

/// Whether the guest is on another CPU now, with another TSC: its time must be computed anew before
/// it runs. Its own TSC does not go back.
pub(crate) fn is_elsewhere(vcpu: &mut LockedVcpu, _: &IrqsOff) -> bool {
    let cpu = linux::cpu();
    if linux::tsc_stable() || vcpu.clock_cpu == cpu {
        return false;
    }
    vcpu.clock_cpu = cpu;
    let ratio = vcpu.platform.tsc_rate.ratio;
    let now = ratio.scale(linux::rdtsc());
    let back = ratio.scale(vcpu.last_tsc).saturating_sub(now);
    let offset = vcpu.vmcb.tsc_offset().wrapping_add(back);
    vcpu.vmcb.set_tsc_offset(offset);
    touch_time(vcpu);
    true
}

/// KVM_KVMCLOCK_CTRL: the guest was paused, and its watchdogs should know. The record says so at
/// once, for a VMM that saves the guest's memory and does not run the guest again; and again when
/// the guest runs, for one that has replaced its memory meanwhile.
pub(crate) fn pause_notice(vcpu: &mut LockedVcpu) -> Result<c_long> {
    let at = vcpu.state.msrs.pv_system_time;
    if at & SYSTEM_TIME_ON == 0 {
        return Err(EINVAL);
    }
    // At once is enough once: a dirty ring has no room for any number of writes between two runs.
    if !core::mem::replace(&mut vcpu.platform.guest_stopped, true) {
        update(vcpu, false);
    }
    vcpu.platform.requests |= Requests::PV_CLOCK;
    Ok(0)
}

/// Writes the clocks that the guest has asked for. What the guest's memory does not take is lost,
/// as on any write to an address without memory.
pub(crate) fn update(vcpu: &mut LockedVcpu, wall: bool) {
    publish(vcpu);
    let cpu = linux::cpu();
    let base = vcpu.platform.vm.clock.base();
    if linux::cpu() != cpu || vcpu.clock_cpu != cpu {
        // The base is of another TSC.
        vcpu.clock_cpu = u32::MAX;
    }
    let at = vcpu.state.msrs.pv_system_time;
    if at & SYSTEM_TIME_ON != 0 {
        let at = at & !SYSTEM_TIME_ON;
        let old: [u8; PvClock::SIZE] = read(vcpu, at);
        let version = next_version(version_of(&old));
        let ratio = vcpu.platform.tsc_rate.ratio;
        let clock = PvClock {
            tsc: ratio.scale(base.tsc).wrapping_add(vcpu.vmcb.tsc_offset()),
            system_time: base.ns,
            scale: scale(vcpu),
            stable: linux::tsc_stable() && vcpu.platform.vm.vcpu_table.clocks_match(),
            guest_stopped: vcpu.platform.guest_stopped || PvClock::tells_stop(&old),
        };
        write_record(vcpu, at, version, |version| clock.bytes(version));
    }
    // Address 0 is none: VMMs set it at a reset, and for guests that do not have the clock.
    let at = vcpu.state.msrs.pv_wall_clock;
    if wall && at != 0 {
        let clock = WallClock::at_boot(real_ns(), vcpu.platform.vm.clock.now());
        let version = next_version(version_of(&read::<4>(vcpu, at)));
        write_record(vcpu, at, version, |version| clock.bytes(version));
    }
}

/// Writes a record: its version is odd before the rest changes, and even afterwards (msr.rst). A
/// guest that reads it meanwhile on another vCPU sees one of both.
fn write_record<const N: usize>(
    vcpu: &mut LockedVcpu,
    gpa: u64,
    version: u32,
    bytes: impl Fn(u32) -> [u8; N],
) {
    let changing = version.wrapping_sub(1);
    write(vcpu, gpa, &changing.to_le_bytes());
    write(vcpu, gpa, &bytes(changing));
    write(vcpu, gpa, &version.to_le_bytes());
}

/// The version with which both records begin.
fn version_of(record: &[u8]) -> u32 {
    let version = record.first_chunk().copied();
    u32::from_le_bytes(version.unwrap_or_default())
}

/// Reads guest memory, page by page; zeros where there is none.
fn read<const N: usize>(vcpu: &mut LockedVcpu, gpa: u64) -> [u8; N] {
    let mut data = [0; N];
    let mut memory = vcpu.platform.memory.access(Sleep::Allowed);
    let first = N.min((0x1000 - (gpa & 0xfff)) as usize);
    let (head, tail) = data.split_at_mut(first);
    let _ = memory.read_gpa(gpa, head);
    if !tail.is_empty() {
        let _ = memory.read_gpa(gpa.wrapping_add(first as u64), tail);
    }
    data
}

/// Writes guest memory, page by page.
fn write(vcpu: &mut LockedVcpu, gpa: u64, data: &[u8]) {
    let mut memory = vcpu.platform.memory.access(Sleep::Allowed);
    let first = data.len().min((0x1000 - (gpa & 0xfff)) as usize);
    let (head, tail) = data.split_at(first);
    let _ = memory.write_gpa(gpa, head);
    if !tail.is_empty() {
        let _ = memory.write_gpa(gpa.wrapping_add(first as u64), tail);
    }
}
