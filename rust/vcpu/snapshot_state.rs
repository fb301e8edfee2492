// SPDX-License-Identifier: GPL-2.0-only

//! The state of a snapshot: vCPUs, interrupt controllers, clock, as plain values.
//!
//! What the VMM has decided stays as it is: filters of MSRs, routes, event descriptors, the signal
//! mask of `KVM_RUN`, capabilities. So do counters, and what is learnt of the host.
//!
//! The host's time goes on. If the guest's shall not, its TSC, its clock, and the deadlines that
//! are in the host's time are moved by as much as has passed.

use crate::host;
use crate::host::fpu;
use crate::linux::Pages;
use crate::uapi::run_page::Answer;
use crate::vcpu::apic::{Apic, PicOwner};
use crate::vcpu::inner;
use crate::vcpu::pvclock;
use crate::vcpu::requests;
use crate::vcpu::user_exit::set_common;
use crate::vcpu::LockedVcpu;
use crate::vm::clock::{ClockState, Passed};
use crate::vm::Vm;
use irqchip::{Ioapic, Pic, Pit};
use kernel::prelude::*;
use svm::nested::Nested;
use svm::requests::Requests;
use svm::state::VcpuState;
use svm::vmcb::{TlbControl, Vmcb};
use x86::cpuid::Entry;
use x86::tsc::TscRate;

/// The small values of [`LockedVcpu`] and its platform.
#[derive(Clone, Copy)]
struct Small {
    requests: Requests,
    pic: PicOwner,
    unhalted: bool,
    yield_to: Option<u32>,
    ended: u8,
    old_clock: bool,
    guest_stopped: bool,
    physical_bits: u8,
    has_x2apic: bool,
    has_run: bool,
    tsc_rate: TscRate,
    /// What the host's TSC had lost, as far as it is in the offset.
    tsc_lost: u64,
    /// The host's TSC when the guest was last in a CPU, where the CPUs' TSCs differ.
    last_tsc: u64,
    sipi_vector: u8,
}

/// A vCPU.
pub(crate) struct VcpuSnapshot {
    /// Which one.
    serial: u64,
    /// Its number.
    pub(crate) id: u32,
    vmcb: Pages<Vmcb>,
    /// One element.
    state: KVec<VcpuState>,
    /// One element, if the guest has SVM.
    nested: KVec<Nested>,
    apic: Apic,
    fpu: fpu::Area,
    cpuid: KVec<Entry>,
    small: Small,
    answer: Answer,
}

impl VcpuSnapshot {
    /// Copies the state of a vCPU.
    pub(crate) fn take(vcpu: &mut LockedVcpu) -> Result<Self> {
        if vcpu.resumes != host::resumes() {
            pvclock::after_suspend(vcpu);
        }
        // What others have sent belongs to the state.
        requests::process_requests_for_state(vcpu);
        let mut vmcb = Pages::<Vmcb>::new()?;
        vmcb.copy_from(&vcpu.vmcb);
        let mut state = KVec::new();
        state.extend_from_slice(core::slice::from_ref(&*vcpu.state), GFP_KERNEL_ACCOUNT)?;
        let mut nested = KVec::new();
        if let Some(its) = &vcpu.nested {
            nested.push(**its, GFP_KERNEL_ACCOUNT)?;
        }
        let platform = &vcpu.platform;
        let mut cpuid = KVec::new();
        cpuid.extend_from_slice(&vcpu.cpuid, GFP_KERNEL_ACCOUNT)?;
        Ok(Self {
            serial: vcpu.serial,
            id: vcpu.platform.mailbox.id,
            vmcb,
            state,
            nested,
            apic: platform.apic.try_clone()?,
            fpu: platform.fpu.area.try_clone()?,
            cpuid,
            small: Small {
                requests: platform.requests,
                pic: platform.pic,
                unhalted: platform.unhalted,
                yield_to: platform.yield_to,
                ended: platform.ended,
                old_clock: platform.old_clock,
                guest_stopped: platform.guest_stopped,
                physical_bits: platform.physical_bits,
                has_x2apic: platform.has_x2apic,
                has_run: vcpu.has_run,
                tsc_rate: platform.tsc_rate,
                tsc_lost: vcpu.tsc_lost,
                last_tsc: vcpu.last_tsc,
                sipi_vector: vcpu.platform.mailbox.sipi_vector(),
            },
            answer: vcpu.platform.run_page.answer(vcpu.state.io.port_bytes())?,
        })
    }

    /// Whether it is of this vCPU.
    pub(crate) fn is_of(&self, vcpu: &LockedVcpu) -> bool {
        self.serial == vcpu.serial
    }

    /// Does beforehand what could fail.
    pub(crate) fn prepare(&self, vcpu: &mut LockedVcpu) -> Result {
        if !self.nested.is_empty() {
            inner::give(vcpu, true)?;
        }
        let cpuid = &mut vcpu.cpuid;
        let more = self.cpuid.len().saturating_sub(cpuid.len());
        Ok(cpuid.reserve(more, GFP_KERNEL_ACCOUNT)?)
    }

    /// The vCPU is as it was, but for its time, unless so much of it is taken back.
    pub(crate) fn put_back(&self, vcpu: &mut LockedVcpu, passed: Option<Passed>) {
        if vcpu.resumes != host::resumes() {
            pvclock::after_suspend(vcpu);
        }
        // What was sent since is gone.
        vcpu.platform.mailbox.take_requests();
        vcpu.platform.mailbox.take_interrupts();
        vcpu.platform
            .mailbox
            .set_sipi_vector(self.small.sipi_vector);
        vcpu.vmcb.copy_from(&self.vmcb);
        if vcpu.serial != self.serial {
            // One of another VM has become this one.
            vcpu.vmcb.set_ncr3(vcpu.platform.vm.memory.ncr3());
            vcpu.last_tsc = self.small.last_tsc;
        }
        vcpu.vmcb.set_all_dirty();
        vcpu.vmcb.set_tlb_control(TlbControl::Nothing);
        let offset = self.vmcb.tsc_offset();
        let TscRate { ratio, .. } = self.small.tsc_rate;
        let lost = vcpu.tsc_lost.wrapping_sub(self.small.tsc_lost);
        vcpu.vmcb.set_tsc_offset(match passed {
            Some(passed) => offset.wrapping_sub(ratio.scale(passed.tsc)),
            None => offset.wrapping_add(ratio.scale(lost)),
        });
        if let Some(state) = self.state.first() {
            *vcpu.state = *state;
        }
        match (&mut vcpu.nested, self.nested.first()) {
            (Some(nested), Some(old)) => nested.copy_from(old),
            // To take it away cannot fail.
            _ => drop(inner::give(vcpu, false)),
        }
        self.put_back_platform(vcpu, passed);
        pvclock::publish(vcpu);
        // The filter is the VMM's: the one of now.
        requests::set_msr_filter(vcpu);
        if let Some(lapic) = vcpu.platform.apic.kernel() {
            vcpu.platform
                .vm
                .vcpu_table
                .publish_apic(&vcpu.platform.mailbox, lapic.snapshot());
        }
        vcpu.platform.mailbox.post(Requests::EXTINT);
        vcpu.platform.run_page.put_back(&self.answer);
        set_common(vcpu);
    }

    fn put_back_platform(&self, vcpu: &mut LockedVcpu, passed: Option<Passed>) {
        let small = &self.small;
        vcpu.has_run = small.has_run;
        vcpu.steal.look_again();
        let platform = &mut vcpu.platform;
        let passed_ns = passed.map_or(0, |passed| passed.ns);
        platform.apic.put_back(&self.apic, passed_ns);
        platform.fpu.area.copy_from(&self.fpu);
        vcpu.cpuid.clear();
        // `prepare` has made room.
        let _ = vcpu
            .cpuid
            .extend_from_slice(&self.cpuid, GFP_KERNEL_ACCOUNT);
        // The guest's page tables are others, and its timers and clock are to be set.
        platform.requests =
            small.requests | Requests::TLB_FLUSH | Requests::SET_TIMER | Requests::PV_CLOCK;
        platform.tsc_rate = small.tsc_rate;
        platform.pic = small.pic;
        platform.unhalted = small.unhalted;
        platform.yield_to = small.yield_to;
        platform.ended = small.ended;
        platform.old_clock = small.old_clock;
        platform.guest_stopped = small.guest_stopped;
        platform.physical_bits = small.physical_bits;
        platform.has_x2apic = small.has_x2apic;
    }
}

/// What belongs to the VM as a whole.
pub(crate) struct IrqchipSnapshot {
    pic: Pic,
    ioapic: Ioapic,
    pit: Option<Pit>,
    clock: ClockState,
}

impl IrqchipSnapshot {
    /// Copies it.
    pub(crate) fn take(vm: &Vm) -> Self {
        let devices = vm.irqchip.devices();
        Self {
            pic: devices.pic,
            ioapic: devices.ioapic,
            pit: devices.pit,
            clock: vm.clock.save(),
        }
    }

    /// It is as it was, but does nothing yet: see [`crate::irq::irqchip::Irqchip::restart`].
    pub(crate) fn put_back(&self, vm: &Vm, passed: Option<Passed>) {
        vm.irqchip.stop();
        vm.clock.put_back(&self.clock, passed);
        let mut held = vm.irqchip.devices();
        let devices = &mut *held;
        devices.pic = self.pic;
        devices.ioapic = self.ioapic;
        if let (Some(pit), Some(old)) = (&mut devices.pit, &self.pit) {
            *pit = *old;
            pit.move_time(passed.map_or(0, |passed| passed.ns));
        }
    }
}
