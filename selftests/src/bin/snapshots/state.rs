// SPDX-License-Identifier: GPL-2.0-only

//! A VM's state as two VMMs save and restore it: which ioctls, and in which order.

use kvm_bindings::*;
use selftests::kvm::{msrs, number, Answer, Handle, Number, Xsave};
use selftests::machine::{Machine, RAM};

/// Whose order of ioctls it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vmm {
    Firecracker,
    CloudHypervisor,
}

/// How a VM is saved and restored.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    pub(crate) vmm: Vmm,
    /// The MSRs before the local APIC, which is the other way round than in both.
    pub(crate) msrs_first: bool,
}

/// What is kept of a virtual CPU.
#[derive(Default)]
struct Cpu {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Xsave,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    fpu: kvm_fpu,
    lapic: kvm_lapic_state,
    msrs: Vec<(u32, u64)>,
    tsc_khz: u64,
    events: kvm_vcpu_events,
}

/// What is kept of a VM.
pub(crate) struct State {
    cpus: Vec<Cpu>,
    clock: kvm_clock_data,
    pit: kvm_pit_state2,
    chips: [kvm_irqchip; 3],
    ram: Vec<u8>,
}

pub(crate) const TSC: u32 = 0x10;
const TSC_DEADLINE: u32 = 0x6e0;

const KVMCLOCK_CTRL: Number = Number::plain(0xad);

/// All that can be got or set of these; the others are left out.
fn all(vcpu: &Handle, number: Number, pairs: &mut Vec<(u32, u64)>) -> Answer<()> {
    let mut done = 0;
    while done < pairs.len() {
        done += msrs(vcpu, number, &mut pairs[done..])? as usize;
        if done < pairs.len() {
            pairs.remove(done);
        }
    }
    Ok(())
}

impl Cpu {
    fn save(vcpu: &Handle, way: Way, named: &[u32]) -> Result<Self, String> {
        let mut cpu = Self {
            mp_state: vcpu.get(number::GET_MP_STATE)?,
            regs: vcpu.get(number::GET_REGS)?,
            sregs: vcpu.get(number::GET_SREGS)?,
            xsave: vcpu.get(number::GET_XSAVE)?,
            xcrs: vcpu.get(number::GET_XCRS)?,
            msrs: named.iter().map(|index| (*index, 0)).collect(),
            ..Default::default()
        };
        if way.msrs_first {
            all(vcpu, number::GET_MSRS, &mut cpu.msrs)?;
        }
        match way.vmm {
            Vmm::Firecracker => {
                cpu.debug = vcpu.get(number::GET_DEBUGREGS)?;
                cpu.lapic = vcpu.get(number::GET_LAPIC)?;
                cpu.tsc_khz = vcpu.call(number::GET_TSC_KHZ, 0)? as u64;
            }
            Vmm::CloudHypervisor => {
                cpu.lapic = vcpu.get(number::GET_LAPIC)?;
                cpu.fpu = vcpu.get(number::GET_FPU)?;
            }
        }
        if !way.msrs_first {
            all(vcpu, number::GET_MSRS, &mut cpu.msrs)?;
        }
        cpu.events = vcpu.get(number::GET_VCPU_EVENTS)?;
        match way.vmm {
            Vmm::Firecracker => cpu.defer_deadline(),
            Vmm::CloudHypervisor => cpu.tsc_khz = vcpu.call(number::GET_TSC_KHZ, 0)? as u64,
        }
        Ok(cpu)
    }

    /// Firecracker restores the deadline after all other MSRs, and one that is 0 as one that passes
    /// at once.
    fn defer_deadline(&mut self) {
        let value = |of| {
            let mut pairs = self.msrs.iter();
            pairs.find(|(index, _)| *index == of).map(|pair| pair.1)
        };
        let (tsc, deadline) = (value(TSC), value(TSC_DEADLINE));
        self.msrs.retain(|(index, _)| *index != TSC_DEADLINE);
        if let (Some(tsc), Some(deadline)) = (tsc, deadline) {
            let deadline = if deadline == 0 { tsc } else { deadline };
            self.msrs.push((TSC_DEADLINE, deadline));
        }
    }

    fn restore(&self, vcpu: &Handle, way: Way) -> Result<(), String> {
        let mut pairs = self.msrs.clone();
        vcpu.set(number::SET_MP_STATE, &self.mp_state)?;
        vcpu.set(number::SET_REGS, &self.regs)?;
        vcpu.set(number::SET_SREGS, &self.sregs)?;
        vcpu.set(number::SET_XSAVE, &self.xsave)?;
        vcpu.set(number::SET_XCRS, &self.xcrs)?;
        if way.msrs_first {
            all(vcpu, number::SET_MSRS, &mut pairs)?;
        }
        match way.vmm {
            Vmm::Firecracker => {
                vcpu.set(number::SET_DEBUGREGS, &self.debug)?;
                vcpu.set(number::SET_LAPIC, &self.lapic)?;
            }
            Vmm::CloudHypervisor => {
                vcpu.set(number::SET_LAPIC, &self.lapic)?;
                vcpu.set(number::SET_FPU, &self.fpu)?;
                vcpu.call(number::SET_TSC_KHZ, self.tsc_khz)?;
            }
        }
        if !way.msrs_first {
            all(vcpu, number::SET_MSRS, &mut pairs)?;
        }
        if pairs.len() != self.msrs.len() {
            return Err("an MSR that could be got cannot be set".into());
        }
        vcpu.set(number::SET_VCPU_EVENTS, &self.events)?;
        if way.vmm == Vmm::Firecracker {
            vcpu.call(KVMCLOCK_CTRL, 0)?;
        }
        Ok(())
    }
}

impl State {
    /// The first virtual CPU's TSC, and the guest's nanoseconds.
    pub(crate) fn clocks(&self) -> (u64, u64) {
        let mut msrs = self.cpus[0].msrs.iter();
        let tsc = msrs.find(|(index, _)| *index == TSC);
        (tsc.map_or(0, |pair| pair.1), self.clock.clock)
    }

    /// Of a VM none of whose virtual CPUs runs.
    pub(crate) fn save(machine: &Machine, way: Way, named: &[u32]) -> Result<Self, String> {
        let vm = &machine.vm;
        let mut state = Self {
            cpus: Vec::new(),
            clock: kvm_clock_data::default(),
            pit: kvm_pit_state2::default(),
            chips: Default::default(),
            ram: Vec::new(),
        };
        if way.vmm == Vmm::CloudHypervisor {
            for vcpu in &machine.vcpus {
                vcpu.handle.call(KVMCLOCK_CTRL, 0)?;
            }
            state.clock = vm.get(number::GET_CLOCK)?;
        }
        for vcpu in &machine.vcpus {
            state.cpus.push(Cpu::save(&vcpu.handle, way, named)?);
        }
        if way.vmm == Vmm::Firecracker {
            state.pit = vm.get(number::GET_PIT2)?;
            state.clock = vm.get(number::GET_CLOCK)?;
            for (id, chip) in (0..).zip(&mut state.chips) {
                chip.chip_id = id;
                vm.exchange(number::GET_IRQCHIP, chip)?;
            }
        }
        state.ram = machine.ram.read(0, RAM);
        Ok(state)
    }

    /// Into a new VM.
    pub(crate) fn restore(&self, machine: &Machine, way: Way) -> Result<(), String> {
        let vm = &machine.vm;
        machine.ram.write(0, &self.ram);
        for (cpu, vcpu) in self.cpus.iter().zip(&machine.vcpus) {
            cpu.restore(&vcpu.handle, way)?;
        }
        match way.vmm {
            Vmm::Firecracker => {
                let mut clock = self.clock;
                vm.set(number::SET_PIT2, &self.pit)?;
                clock.flags = 0;
                vm.set(number::SET_CLOCK, &clock)?;
                for chip in &self.chips {
                    vm.set(number::SET_IRQCHIP, chip)?;
                }
            }
            Vmm::CloudHypervisor => {
                synchronize_tsc(machine)?;
                vm.set(number::SET_CLOCK, &self.clock)?;
            }
        }
        Ok(())
    }
}

/// All virtual CPUs get the first one's TSC.
fn synchronize_tsc(machine: &Machine) -> Result<(), String> {
    let mut offset = 0u64;
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: &raw mut offset as u64,
        ..Default::default()
    };
    machine.vcpus[0]
        .handle
        .set(number::GET_DEVICE_ATTR, &attribute)?;
    for vcpu in &machine.vcpus {
        vcpu.handle.set(number::SET_DEVICE_ATTR, &attribute)?;
    }
    Ok(())
}
