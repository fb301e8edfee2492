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
use crate::irq::mailbox::request;
use crate::linux::Pages;
use crate::uapi::run_page::Answer;
use crate::vcpu::platform::deferred;
use crate::vcpu::pvclock;
use crate::vcpu::requests;
use crate::vcpu::stopped::Stopped;
use crate::vcpu::user_exit::set_common;
use crate::vcpu::Vcpu;
use crate::vm::clock::{ClockState, Passed};
use crate::vm::Vm;
use irqchip::{Ioapic, Lapic, Pic, Pit};
use kernel::prelude::*;
use svm::io::UserIo;
use svm::state::VcpuState;
use svm::vmcb::{TlbControl, Vmcb};
use x86::cpuid::Entry;

/// The small values of [`crate::vcpu::platform::VcpuDevices`] and [`crate::vcpu::Inner`].
#[derive(Clone, Copy)]
struct Small {
    user_cr8: u8,
    user_apic_base: u64,
    deferred: u32,
    ext_int: bool,
    user_vector: Option<u8>,
    unhalted: bool,
    yield_to: Option<u32>,
    ended: u8,
    user_window: bool,
    guest_stopped: bool,
    physical_bits: u8,
    has_x2apic: bool,
    has_run: bool,
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
    lapic: Option<Lapic>,
    fpu: fpu::Area,
    cpuid: KVec<Entry>,
    small: Small,
    answer: Answer,
}

impl VcpuSnapshot {
    /// Copies the state of a vCPU.
    pub(crate) fn take(one: &mut Stopped<'_>) -> Result<Self> {
        let (vcpu, inner) = (one.vcpu, &mut *one.inner);
        if inner.resumes != host::resumes() {
            pvclock::after_suspend(inner);
        }
        // What others have sent belongs to the state.
        requests::process_requests_for_state(vcpu, inner);
        let mut vmcb = Pages::<Vmcb>::new()?;
        vmcb.copy_from(&inner.vmcb);
        let mut state = KVec::new();
        state.extend_from_slice(core::slice::from_ref(&*inner.state), GFP_KERNEL_ACCOUNT)?;
        let parts = &inner.parts;
        let mut cpuid = KVec::new();
        cpuid.extend_from_slice(&parts.cpuid, GFP_KERNEL_ACCOUNT)?;
        Ok(Self {
            serial: vcpu.serial,
            id: vcpu.mailbox.id,
            vmcb,
            state,
            lapic: parts.lapic.as_deref().copied(),
            fpu: parts.fpu.area.try_clone()?,
            cpuid,
            small: Small {
                user_cr8: parts.user_cr8,
                user_apic_base: parts.user_apic_base,
                deferred: parts.deferred,
                ext_int: parts.ext_int,
                user_vector: parts.user_vector,
                unhalted: parts.unhalted,
                yield_to: parts.yield_to,
                ended: parts.ended,
                user_window: parts.user_window,
                guest_stopped: parts.guest_stopped,
                physical_bits: parts.physical_bits,
                has_x2apic: parts.has_x2apic,
                has_run: inner.has_run,
                tsc_lost: inner.tsc_lost,
                last_tsc: inner.last_tsc,
                sipi_vector: vcpu.mailbox.sipi_vector(),
            },
            answer: vcpu.run_page.answer(port_bytes(&inner.state))?,
        })
    }

    /// Whether it is of this vCPU.
    pub(crate) fn is_of(&self, vcpu: &Vcpu) -> bool {
        self.serial == vcpu.serial
    }

    /// Does beforehand what could fail.
    pub(crate) fn prepare(&self, one: &mut Stopped<'_>) -> Result {
        let cpuid = &mut one.inner.parts.cpuid;
        let more = self.cpuid.len().saturating_sub(cpuid.len());
        Ok(cpuid.reserve(more, GFP_KERNEL_ACCOUNT)?)
    }

    /// The vCPU is as it was, but for its time, unless so much of it is taken back.
    pub(crate) fn put_back(&self, one: &mut Stopped<'_>, passed: Option<Passed>) {
        let (vcpu, inner) = (one.vcpu, &mut *one.inner);
        if inner.resumes != host::resumes() {
            pvclock::after_suspend(inner);
        }
        // What was sent since is gone.
        vcpu.mailbox.take_requests();
        vcpu.mailbox.take_interrupts();
        vcpu.mailbox.set_sipi_vector(self.small.sipi_vector);
        inner.vmcb.copy_from(&self.vmcb);
        if vcpu.serial != self.serial {
            // One of another VM has become this one.
            inner.vmcb.set_ncr3(vcpu.vm.memory.ncr3());
            inner.last_tsc = self.small.last_tsc;
        }
        inner.vmcb.set_all_dirty();
        inner.vmcb.set_tlb_control(TlbControl::Nothing);
        let offset = self.vmcb.tsc_offset();
        inner.vmcb.set_tsc_offset(match passed {
            Some(passed) => offset.wrapping_sub(passed.tsc),
            None => offset.wrapping_add(inner.tsc_lost.wrapping_sub(self.small.tsc_lost)),
        });
        if let Some(state) = self.state.first() {
            *inner.state = *state;
        }
        self.put_back_parts(one, passed);
        let (vcpu, inner) = (one.vcpu, &mut *one.inner);
        // The filter is the VMM's: the one of now.
        requests::set_msr_filter(vcpu, inner);
        if let Some(lapic) = &inner.parts.lapic {
            vcpu.vm
                .vcpu_table
                .publish_apic(&vcpu.mailbox, lapic.snapshot());
        }
        vcpu.mailbox.post(request::EXTINT);
        vcpu.run_page.put_back(&self.answer);
        set_common(vcpu, inner);
    }

    fn put_back_parts(&self, one: &mut Stopped<'_>, passed: Option<Passed>) {
        let (inner, small) = (&mut *one.inner, &self.small);
        inner.has_run = small.has_run;
        inner.pv_eoi_offered = false;
        inner.machine_check = false;
        inner.steal.look_again();
        let parts = &mut inner.parts;
        if let (Some(lapic), Some(old)) = (&mut parts.lapic, &self.lapic) {
            **lapic = *old;
            lapic.move_time(passed.map_or(0, |passed| passed.ns));
        }
        parts.fpu.area.copy_from(&self.fpu);
        parts.cpuid.clear();
        // `prepare` has made room.
        let _ = parts
            .cpuid
            .extend_from_slice(&self.cpuid, GFP_KERNEL_ACCOUNT);
        parts.user_cr8 = small.user_cr8;
        parts.user_apic_base = small.user_apic_base;
        // The guest's page tables are others, and its timers and clock are to be set.
        parts.deferred = small.deferred | deferred::FLUSH | deferred::TIMER | deferred::PV_CLOCK;
        parts.ext_int = small.ext_int;
        parts.user_vector = small.user_vector;
        parts.unhalted = small.unhalted;
        parts.yield_to = small.yield_to;
        parts.ended = small.ended;
        parts.user_window = small.user_window;
        parts.guest_stopped = small.guest_stopped;
        parts.ipi = None;
        parts.host_error = None;
        parts.physical_bits = small.physical_bits;
        parts.has_x2apic = small.has_x2apic;
    }
}

/// How much port data the VMM has got, or is to give.
fn port_bytes(state: &VcpuState) -> usize {
    match state.io.pending() {
        Some(UserIo::Port { size, count, .. }) => usize::from(size) * usize::from(count),
        _ => 0,
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
