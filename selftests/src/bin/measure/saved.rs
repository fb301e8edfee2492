// SPDX-License-Identifier: GPL-2.0-only

//! The state of a machine as a VMM has it that knows only KVM: what each ioctl answers that gets
//! something, and what is set again.

use kvm_bindings::*;
use selftests::kvm::{named_msrs, number, set_cpuid, supported_cpuid, Handle, Number, Xsave};
use selftests::machine::{map, Machine, Vcpu};

use crate::touch::{Memory, AT, SLOT};

/// What a VMM knows before it saves anything: it is no part of what is measured.
pub(crate) struct Plan {
    cpuid: Vec<kvm_cpuid_entry2>,
    /// Header, then index and value of each: what `KVM_GET_MSRS` fills, and `KVM_SET_MSRS` takes.
    msrs: Vec<u64>,
}

/// The state of a machine with one vCPU and interrupt controllers in the kernel.
pub(crate) struct Saved {
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Box<Xsave>,
    xcrs: kvm_xcrs,
    lapic: Box<kvm_lapic_state>,
    debug: kvm_debugregs,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
    msrs: Vec<u64>,
    chips: [kvm_irqchip; 3],
    clock: kvm_clock_data,
}

impl Plan {
    /// The MSRs that can be read and set again.
    pub(crate) fn new(device: &Handle, machine: &Machine) -> Result<Self, String> {
        let vcpu = &machine.vcpus[0].handle;
        let mut msrs = vec![0];
        for index in named_msrs(device)? {
            let mut one = [1, index.into(), 0];
            let good = vcpu.array(number::GET_MSRS, &mut one, 24) == Ok(1)
                && vcpu.array(number::SET_MSRS, &mut one, 24) == Ok(1);
            if good {
                msrs[0] += 1;
                msrs.extend([u64::from(index), 0]);
            }
        }
        let cpuid = supported_cpuid(device)?;
        Ok(Self { cpuid, msrs })
    }
}

fn all_msrs(vcpu: &Handle, number: Number, words: &mut [u64]) -> Result<(), String> {
    let room = words.len() * 8;
    let done = vcpu.array(number, words, room)?;
    match done as u64 == words[0] {
        true => Ok(()),
        false => Err(format!("MSR {:#x}", words[1 + 2 * done as usize])),
    }
}

impl Saved {
    /// Reads all of it.
    pub(crate) fn take(plan: &Plan, machine: &Machine) -> Result<Self, String> {
        let vcpu = &machine.vcpus[0].handle;
        let mut msrs = plan.msrs.clone();
        all_msrs(vcpu, number::GET_MSRS, &mut msrs)?;
        let mut chips = [kvm_irqchip::default(); 3];
        for (chip_id, chip) in (0..).zip(&mut chips) {
            chip.chip_id = chip_id;
            machine.vm.exchange(number::GET_IRQCHIP, chip)?;
        }
        Ok(Self {
            mp_state: vcpu.get(number::GET_MP_STATE)?,
            regs: vcpu.get(number::GET_REGS)?,
            sregs: vcpu.get(number::GET_SREGS)?,
            xsave: Box::new(vcpu.get(number::GET_XSAVE)?),
            xcrs: vcpu.get(number::GET_XCRS)?,
            lapic: Box::new(vcpu.get(number::GET_LAPIC)?),
            debug: vcpu.get(number::GET_DEBUGREGS)?,
            events: vcpu.get(number::GET_VCPU_EVENTS)?,
            msrs,
            chips,
            clock: machine.vm.get(number::GET_CLOCK)?,
        })
    }

    /// Sets all of it.
    pub(crate) fn put_back(&mut self, vm: &Handle, vcpu: &Handle) -> Result<(), String> {
        for chip in &self.chips {
            // The number says that it is read, as the kernel's headers do.
            // SAFETY: The kernel reads the structure.
            unsafe { vm.raw(number::SET_IRQCHIP, std::ptr::from_ref(chip) as usize)? };
        }
        self.clock.flags = 0;
        vm.set(number::SET_CLOCK, &self.clock)?;
        vcpu.set(number::SET_MP_STATE, &self.mp_state)?;
        vcpu.set(number::SET_REGS, &self.regs)?;
        vcpu.set(number::SET_SREGS, &self.sregs)?;
        vcpu.set(number::SET_XSAVE, &*self.xsave)?;
        vcpu.set(number::SET_XCRS, &self.xcrs)?;
        all_msrs(vcpu, number::SET_MSRS, &mut self.msrs)?;
        vcpu.set(number::SET_LAPIC, &*self.lapic)?;
        vcpu.set(number::SET_DEBUGREGS, &self.debug)?;
        vcpu.set(number::SET_VCPU_EVENTS, &self.events)?;
        Ok(())
    }

    /// In a child of fork(2): a machine with this state, on the memory of this process.
    pub(crate) fn fork(
        &mut self,
        device: &Handle,
        plan: &Plan,
        memory: &mut Memory,
    ) -> Result<(), String> {
        let vm = device.open_with(number::CREATE_VM, 0)?;
        vm.call(number::SET_TSS_ADDR, 0xfffb_d000)?;
        map(&vm, 0, 0, 0, &memory.machine.ram)?;
        let region = kvm_userspace_memory_region {
            slot: SLOT,
            flags: 0,
            guest_phys_addr: AT,
            memory_size: memory.size as u64,
            userspace_addr: memory.start() as u64,
        };
        vm.set(number::SET_USER_MEMORY_REGION, &region)?;
        vm.call(number::CREATE_IRQCHIP, 0)?;
        let vcpu = Vcpu::create(device, &vm, 0)?;
        set_cpuid(&vcpu.handle, &plan.cpuid)?;
        self.put_back(&vm, &vcpu.handle)?;
        (memory.machine.vcpus, memory.machine.vm) = (vec![vcpu], vm);
        Ok(())
    }
}
