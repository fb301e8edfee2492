// SPDX-License-Identifier: GPL-2.0-only

//! What surrounds a guest CPU: memory, devices, time. The module's `svm::dispatch::Platform`.

use crate::host::fpu::GuestFpu;
use crate::irq::irqchip::Irqchip;
use crate::irq::mailbox::{Interrupt, Mailbox};
use crate::linux;
use crate::linux::Sleep;
use crate::memory::VcpuMemory;
use crate::uapi::run_page::RunPage;
use crate::vcpu::apic::{Apic, PicOwner};
use crate::vm::msr_filter::MsrFilter;
use crate::vm::Vm;
use irqchip::dest::IdSet;
use irqchip::lapic::{BaseLimits, BaseWriter, Effect};
use irqchip::{DeliveryMode, Destination, Now};
use kernel::sync::Arc;
use svm::dispatch::{Platform, Policy};
use svm::inject::InterruptSource;
use svm::requests::Requests;
use x86::cpu::{GuestMemory, MemError};
use x86::msr::Origin;
use x86::regs::Exception;
use x86::tsc::TscRate;

/// What a vCPU has besides its VMCB and [`svm::state::VcpuState`]: what surrounds it, as the
/// handlers see it.
pub(crate) struct VcpuPlatform {
    pub(crate) vm: Arc<Vm>,
    /// How others reach the vCPU.
    pub(crate) mailbox: Arc<Mailbox>,
    /// What the VMM maps.
    pub(crate) run_page: RunPage,
    /// What the guest's TSC is ahead of the host's, for the time of one handler.
    pub(crate) tsc_offset: u64,
    /// How fast the guest's TSC runs.
    pub(crate) tsc_rate: TscRate,
    /// Likewise: whether interrupts are on, and the guest's registers out of the CPU.
    pub(crate) sleep: Sleep,
    /// The local APIC.
    pub(crate) apic: Apic,
    /// The PIC.
    pub(crate) pic: PicOwner,
    /// The VMM waits for an interrupt window (`request_interrupt_window`).
    pub(crate) user_window: bool,
    /// The guest's memory.
    pub(crate) memory: VcpuMemory,
    /// x87, SSE and extended registers, while the guest is not in the CPU.
    pub(crate) fpu: GuestFpu,
    /// What the handlers have put off.
    pub(crate) requests: Requests,
    /// The PIC's output is up, and this vCPU takes it.
    pub(crate) ext_int: bool,
    /// Another vCPU has said that the guest need not stay halted (KVM_HC_KICK_CPU).
    pub(crate) unhalted: bool,
    /// The APIC ID for [`Requests::YIELD`]; without one, any vCPU will do.
    pub(crate) yield_to: Option<u32>,
    /// The vector for [`Requests::EOI`].
    pub(crate) ended: u8,
    /// The guest has placed its clock by the MSR of old.
    pub(crate) old_clock: bool,
    /// The clock tells that the guest was stopped, until it runs.
    pub(crate) guest_stopped: bool,
    /// A message to be sent as soon as interrupts are on.
    pub(crate) ipi: Option<Ipi>,
    /// Width of the guest's physical addresses.
    pub(crate) physical_bits: u8,
    /// The guest's CPUID has x2APIC.
    pub(crate) has_x2apic: bool,
    /// The MSRs that the guest may not access by itself; the VMCB has its permission map.
    pub(crate) msr_filter: Option<Arc<MsrFilter>>,
}

/// A message to more than one vCPU, which is not sent with interrupts off: waking one takes some
/// thousand instructions.
#[derive(Clone, Copy)]
pub(crate) enum Ipi {
    /// By a write of the ICR.
    To(Destination, Interrupt),
    /// By a hypercall.
    Set(IdSet, Interrupt),
}

impl VcpuPlatform {
    /// What the clocks show to a guest with this TSC offset.
    pub(crate) fn now(&self, tsc_offset: u64) -> Now {
        Now {
            ns: linux::now(),
            tsc: self.tsc().wrapping_add(tsc_offset),
        }
    }

    /// Sends what a handler has put off. Interrupts are on.
    #[cold]
    pub(crate) fn send_ipi(&mut self) {
        self.requests.remove(Requests::IPI);
        let vcpu_table = &self.vm.vcpu_table;
        match self.ipi.take() {
            Some(Ipi::To(to, interrupt)) => {
                let mut kicks = vcpu_table.kicks();
                vcpu_table.deliver(&to, Some(self.mailbox.id), &interrupt, &mut kicks);
            }
            Some(Ipi::Set(ids, interrupt)) => vcpu_table.deliver_set(ids, &interrupt),
            None => {}
        }
    }

    #[cold]
    fn send_later(&mut self, ipi: Ipi) {
        self.ipi = Some(ipi);
        self.requests |= Requests::IPI;
    }

    fn irqchip(&self) -> &Irqchip {
        &self.vm.irqchip
    }

    /// Does what a register write of the LAPIC asks for.
    pub(crate) fn apic_effect(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Eoi(eoi) => {
                if eoi.level || self.irqchip().tracks_eoi(eoi.vector) {
                    self.end_of_interrupt(eoi.vector);
                }
            }
            Effect::Ipi(ipi) => {
                let interrupt = Interrupt {
                    mode: ipi.mode,
                    vector: ipi.vector,
                    level: ipi.level,
                };
                let (vcpu_table, source) = (&self.vm.vcpu_table, Some(self.mailbox.id));
                if self.sleep.is_allowed() || vcpu_table.is_for_one(&ipi.dest, source) {
                    let mut kicks = vcpu_table.kicks();
                    vcpu_table.deliver(&ipi.dest, source, &interrupt, &mut kicks);
                } else {
                    self.send_later(Ipi::To(ipi.dest, interrupt));
                }
            }
            Effect::Timer => self.requests |= Requests::SET_TIMER,
            Effect::Routing => {
                self.requests |= Requests::SET_TIMER;
                // LINT0 may have been opened or closed to the PIC.
                self.mailbox.request(Requests::EXTINT);
                if let Some(lapic) = self.apic.kernel() {
                    self.vm
                        .vcpu_table
                        .publish_apic(&self.mailbox, lapic.snapshot());
                }
            }
        }
    }

    /// The IOAPIC hears that an interrupt has ended.
    #[cold]
    fn end_of_interrupt(&mut self, vector: u8) {
        if self.pic == PicOwner::Kernel {
            self.irqchip().end_of_interrupt(vector);
            self.note_resample();
        } else if self.irqchip().tells_vmm_of_eoi() {
            self.ended = vector;
            self.requests |= Requests::EOI;
        }
    }

    /// A controller may have ended interrupts that resamplers are to hear of.
    fn note_resample(&mut self) {
        if self.irqchip().has_resample_pending() {
            self.requests |= Requests::RESAMPLE;
        }
    }

    /// What `gpa` is for the LAPIC. The page of one that is switched off or in x2APIC mode is a
    /// hole, as KVM has it: what a VMM got from there it could take for a message to an APIC.
    fn lapic_place(&self, gpa: u64) -> Option<LapicPlace> {
        let lapic = self.apic.kernel()?;
        if gpa & !0xfff != lapic.page() {
            return None;
        }
        if lapic.mmio_base().is_some() {
            return Some(LapicPlace::Register((gpa & 0xfff) as u32));
        }
        let exits = self.vm.config.policy().contains(Policy::LAPIC_PAGE_EXITS);
        (!exits).then_some(LapicPlace::Hole)
    }
}

/// What a guest-physical address is for a local APIC.
enum LapicPlace {
    /// The offset of a register.
    Register(u32),
    /// Reads are ones, writes are lost.
    Hole,
}

impl GuestMemory for VcpuPlatform {
    fn read_gpa(&mut self, gpa: u64, buf: &mut [u8]) -> core::result::Result<(), MemError> {
        self.memory.access(self.sleep).read_gpa(gpa, buf)
    }

    fn write_gpa(&mut self, gpa: u64, data: &[u8]) -> core::result::Result<(), MemError> {
        self.memory.access(self.sleep).write_gpa(gpa, data)
    }

    fn compare_exchange_gpa(
        &mut self,
        gpa: u64,
        size: usize,
        old: u64,
        new: u64,
    ) -> core::result::Result<core::result::Result<(), u64>, MemError> {
        self.memory
            .access(self.sleep)
            .compare_exchange_gpa(gpa, size, old, new)
    }
}

impl Platform for VcpuPlatform {
    fn tsc(&self) -> u64 {
        self.tsc_rate.ratio.scale(linux::rdtsc())
    }

    fn port_in(&mut self, port: u16, size: u8) -> Option<u32> {
        let value = self.irqchip().port_in(port, size)?;
        self.note_resample();
        Some(value)
    }

    fn port_answer(&self, offset: usize, bytes: &mut [u8]) {
        self.run_page.io_answer(offset, bytes);
    }

    fn port_out(&mut self, port: u16, size: u8, value: u32) -> bool {
        let bytes = value.to_le_bytes();
        let data = bytes.get(..usize::from(size)).unwrap_or(&bytes);
        if self.irqchip().port_out(port, size, value) {
            self.note_resample();
            return true;
        }
        self.vm.eventfds.ring(true, u64::from(port), data)
            || self.vm.coalesced.put(true, u64::from(port), data)
    }

    fn mmio_read(&mut self, gpa: u64, data: &mut [u8]) -> bool {
        match self.lapic_place(gpa) {
            Some(LapicPlace::Register(offset)) => {
                let now = self.now(self.tsc_offset);
                if let Some(lapic) = self.apic.kernel_mut() {
                    lapic.mmio_read(offset, data, now);
                    return true;
                }
            }
            Some(LapicPlace::Hole) => {
                data.fill(0xff);
                return true;
            }
            None => {}
        }
        self.irqchip().mmio_read(gpa, data)
    }

    fn mmio_write(&mut self, gpa: u64, data: &[u8]) -> bool {
        match self.lapic_place(gpa) {
            Some(LapicPlace::Register(offset)) => {
                let now = self.now(self.tsc_offset);
                if let Some(lapic) = self.apic.kernel_mut() {
                    let effect = lapic.mmio_write(offset, data, now);
                    self.apic_effect(effect);
                    return true;
                }
            }
            Some(LapicPlace::Hole) => return true,
            None => {}
        }
        self.irqchip().mmio_write(gpa, data)
            || self.vm.eventfds.ring(false, gpa, data)
            || self.vm.coalesced.put(false, gpa, data)
    }

    #[inline]
    fn msr_denied(&self, index: u32, write: bool) -> bool {
        match &self.msr_filter {
            Some(filter) => filter.denies(index, write),
            None => false,
        }
    }

    fn flush_predictors(&mut self) -> bool {
        linux::flush_predictors();
        linux::host_has_ibpb()
    }

    fn apic_base(&self) -> u64 {
        self.apic.base()
    }

    fn set_apic_base(&mut self, value: u64, origin: Origin) -> core::result::Result<(), Exception> {
        let writer = match origin {
            Origin::Guest => BaseWriter::Guest,
            Origin::Host => BaseWriter::Vmm,
        };
        let limits = BaseLimits {
            physical_bits: self.physical_bits,
            x2apic: self.has_x2apic,
        };
        let effect = self.apic.set_base(value, writer, limits)?;
        self.apic_effect(effect);
        Ok(())
    }

    fn init_apic(&mut self) {
        if let Some(lapic) = self.apic.kernel_mut() {
            lapic.init();
            self.vm.irqchip.lapic_was_set();
            self.apic_effect(Effect::Routing);
        }
    }

    fn x2apic_read(&mut self, register: u8) -> core::result::Result<u64, Exception> {
        let now = self.now(self.tsc_offset);
        let lapic = self.apic.kernel_mut().ok_or(Exception::GP0)?;
        lapic
            .msr_read(X2APIC_MSRS + u32::from(register), now)
            .map_err(|_| Exception::GP0)
    }

    fn x2apic_write(&mut self, register: u8, value: u64) -> core::result::Result<(), Exception> {
        let now = self.now(self.tsc_offset);
        let lapic = self.apic.kernel_mut().ok_or(Exception::GP0)?;
        let effect = lapic
            .msr_write(X2APIC_MSRS + u32::from(register), value, now)
            .map_err(|_| Exception::GP0)?;
        self.apic_effect(effect);
        Ok(())
    }

    fn tsc_deadline(&mut self, origin: Origin) -> u64 {
        let now = self.now(self.tsc_offset);
        let Some(lapic) = self.apic.kernel_mut() else {
            return 0;
        };
        if origin == Origin::Guest {
            lapic.timer_expired(now);
        }
        lapic.tsc_deadline()
    }

    fn set_tsc_deadline(&mut self, value: u64, origin: Origin) {
        let now = self.now(self.tsc_offset);
        if let Some(lapic) = self.apic.kernel_mut() {
            let effect = match origin {
                Origin::Guest => lapic.set_tsc_deadline(value, now),
                Origin::Host => lapic.restore_tsc_deadline(value),
            };
            self.apic_effect(effect);
        }
    }

    fn cr8_written(&mut self, old: u8, new: u8) -> bool {
        self.apic.set_cr8(new);
        !self.apic.is_kernel() && new < old
    }

    fn sync_tsc(&mut self, value: u64, offset: u64) -> u64 {
        self.vm.clock.sync_tsc(self.tsc_rate, value, offset)
    }

    fn clock_placed(&mut self, old: bool) {
        self.old_clock = old;
    }

    #[inline]
    fn request(&mut self, requests: Requests) {
        self.requests |= requests;
    }

    fn wbinvd(&mut self) {
        if self.vm.vfio.is_noncoherent() {
            self.requests |= Requests::WBINVD;
        }
    }

    fn real_time_at_tsc(&self) -> Option<(u64, u64)> {
        let (tsc, real) = linux::real_at_tsc().filter(|_| linux::tsc_stable())?;
        Some((self.tsc_rate.ratio.scale(tsc), real))
    }

    fn wake(&mut self, apic_id: u32) {
        let meant = self.vm.vcpu_table.by_apic_id(IdSet::one(apic_id));
        meant.for_each(|mailbox| mailbox.request(Requests::UNHALT));
    }

    fn yield_to(&mut self, apic_id: u32) {
        self.yield_to = Some(apic_id);
        self.requests |= Requests::YIELD;
    }

    fn send_ipis(&mut self, first: u32, bits: u128, message: u32) -> u32 {
        let interrupt = Interrupt {
            mode: DeliveryMode::from_bits(message >> 8),
            vector: message as u8,
            level: message & ICR_LEVEL != 0,
        };
        let ids = IdSet { first, bits };
        let vcpu_table = &self.vm.vcpu_table;
        let count = vcpu_table.count_set(ids, &interrupt);
        if self.sleep.is_allowed() || bits.count_ones() <= 1 {
            vcpu_table.deliver_set(ids, &interrupt);
        } else {
            self.send_later(Ipi::Set(ids, interrupt));
        }
        count
    }
}

impl VcpuPlatform {
    /// The interrupt of the VMM's PIC that waits.
    pub(crate) fn user_vector(&self) -> Option<u8> {
        match self.pic {
            PicOwner::Kernel => None,
            PicOwner::User(vector) => vector,
        }
    }
}

/// Trigger mode in the interrupt command register (APM vol. 2, 16.5).
const ICR_LEVEL: u32 = 1 << 15;
/// First MSR of the x2APIC (APM vol. 2, 16.11).
const X2APIC_MSRS: u32 = irqchip::lapic::X2APIC_MSR_FIRST;

impl InterruptSource for VcpuPlatform {
    #[inline]
    fn has_interrupt(&self) -> bool {
        let lapic = self.apic.kernel();
        self.user_window
            || lapic.is_some_and(|lapic| self.ext_int || lapic.pending_vector().is_some())
    }

    fn acknowledge(&mut self) -> Option<u8> {
        if core::mem::take(&mut self.ext_int) {
            if let PicOwner::User(vector @ Some(_)) = &mut self.pic {
                return vector.take();
            }
            let vector = self.irqchip().acknowledge_pic();
            if self.irqchip().has_resample_pending() {
                // It ended at once. The guest is about to run: leave it again.
                self.requests |= Requests::RESAMPLE;
                linux::kick_cpu(linux::cpu());
            }
            self.ext_int = self.irqchip().pic_output();
            if vector.is_some() {
                return vector;
            }
        }
        self.apic.kernel_mut()?.acknowledge()
    }

    #[inline]
    fn watch_cr8(&self) -> bool {
        match self.apic.kernel() {
            Some(lapic) => !lapic.requests().is_empty() && lapic.pending_vector().is_none(),
            None => true,
        }
    }
}
