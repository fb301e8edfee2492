// SPDX-License-Identifier: GPL-2.0-only

//! The machine that the random probes run in. In each mode it begins in the same state, whatever
//! ran before.
//!
//! ```text
//!   0       interrupt vectors of real mode      5000  TSS
//!   800     GDT                                 6000  256 HLTs: where events end
//!   1000    IDT                                 7000  stacks
//!   2000    page tables                         8000  code, then HLTs
//!   d0000   no memory                           e0000 memory again
//! ```

use std::time::Duration;

use kvm_bindings::*;
use selftests::kvm::{number, set_cpuid, supported_cpuid, Handle};
use selftests::machine::Vcpu;
use selftests::memory::Mapping;

use crate::cases::Mode;
use crate::probe::Probe;
pub(crate) use answers::{cr0_bits, errno, fnv, general, segments, words};
pub(crate) use start::{all_events, regs};

mod answers;
mod run;
mod start;

const RAM: usize = 0xd_0000;
/// Where there is no memory, and where there is again.
pub(crate) const DEVICE: u64 = RAM as u64;
pub(crate) const DEVICE_END: u64 = 0xe_0000;
const GDT: usize = 0x800;
pub(crate) const IDT: usize = 0x1000;
pub(crate) const TABLES: usize = 0x2000;
const TSS: u64 = 0x5000;
const ENDS: u64 = 0x6000;
const STACK: u64 = 0x7000;
pub(crate) const CODE: u64 = 0x8000;
/// What probes write to and may find changed.
const CODE_END: usize = 0x9000;
/// The selectors: code of 64 and of 32 bits, data; the same for programs.
const CODE_64: u16 = 0x8;
const DATA: u16 = 0x10;
const CODE_32: u16 = 0x18;
const USER_DATA: u16 = 0x20;
const USER_64: u16 = 0x28;
const USER_32: u16 = 0x30;
const TASK: u16 = 0x40;
pub(crate) const HLT: u8 = 0xf4;

/// Which machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Config {
    /// Interrupt controllers in the kernel.
    pub(crate) chips: bool,
    /// `KVM_CAP_EXCEPTION_PAYLOAD` and `KVM_CAP_X86_TRIPLE_FAULT_EVENT`.
    pub(crate) payload: bool,
}

pub(crate) struct Machine {
    pub(crate) vm: Handle,
    pub(crate) vcpu: Vcpu,
    pub(crate) ram: Mapping,
}

impl Machine {
    pub(crate) fn new(device: &Handle, config: Config) -> Result<Self, String> {
        Self::with_cpuid(device, config, &supported_cpuid(device)?)
    }

    pub(crate) fn with_cpuid(
        device: &Handle,
        config: Config,
        table: &[kvm_cpuid_entry2],
    ) -> Result<Self, String> {
        let vm = device.open_with(number::CREATE_VM, 0)?;
        vm.call(number::SET_TSS_ADDR, 0xfffb_d000)?;
        let ram = Mapping::anonymous(DEVICE_END as usize + 0x1_0000).map_err(|e| e.to_string())?;
        map_part(&vm, 0, &ram, 0, RAM)?;
        map_part(&vm, 1, &ram, DEVICE_END as usize, 0x1_0000)?;
        for cap in [KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT] {
            let cap = kvm_enable_cap {
                cap,
                args: [1, 0, 0, 0],
                ..Default::default()
            };
            if config.payload {
                vm.set(number::ENABLE_CAP, &cap)?;
            }
        }
        if config.chips {
            vm.call(number::CREATE_IRQCHIP, 0)?;
        }
        let vcpu = Vcpu::create(device, &vm, 0)?;
        set_cpuid(&vcpu.handle, table)?;
        let machine = Self { vm, vcpu, ram };
        // KVM drops the XMM registers that a new vCPU is given before it has run once.
        machine.fill(Mode::Real);
        machine.reset(Mode::Real, false)?;
        let _ = machine.run(&mut Probe::default(), Duration::from_secs(1))?;
        Ok(machine)
    }

    /// Tables, and HLTs wherever something ends.
    pub(crate) fn fill(&self, mode: Mode) {
        self.ram.write(0, &[0; ENDS as usize]);
        self.ram.write(ENDS as usize, &[HLT; 0x1000]);
        let stack: Vec<u8> = (0..0x1000u32).map(|at| (at ^ at >> 4) as u8).collect();
        self.ram.write(STACK as usize, &stack);
        self.ram
            .write(CODE as usize, &[HLT; CODE_END - CODE as usize]);
        self.ram.write(RAM - 0x1000, &stack);
        self.ram.write(DEVICE_END as usize, &stack);
        for vector in 0..=255 {
            self.gate(mode, vector, good_gate(mode, vector));
        }
        let gdt = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_9b00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0,
            0x0000_8900_0000_0067 | TSS << 16,
            0,
        ];
        self.ram.write_words(GDT, &gdt);
        if mode != Mode::Real {
            let table = |number: u64| (TABLES as u64 + 0x1000 * number) | 7;
            self.ram.write_words(TABLES, &[table(1)]);
            self.ram.write_words(TABLES + 0x1000, &[table(2)]);
            // 2 MiB, accessed and dirty.
            self.ram.write_words(TABLES + 0x2000, &[0xe7]);
            let tss = TSS as usize;
            if mode == Mode::Long {
                // RSP0, IST1, and IST2, which is no address.
                self.ram.write_words(tss + 4, &[STACK + 0xf00]);
                self.ram.write_words(tss + 36, &[STACK + 0xd00, 1 << 50]);
            } else {
                // ESP0 and SS0.
                self.ram.write_words(tss + 4, &[STACK + 0xf00]);
                self.ram.write(tss + 8, &DATA.to_le_bytes());
            }
        }
    }

    /// Writes an entry of the IDT.
    pub(crate) fn gate(&self, mode: Mode, vector: u8, gate: [u64; 2]) {
        let vector = usize::from(vector);
        match mode {
            Mode::Real => self.ram.write(4 * vector, &gate[0].to_le_bytes()[..4]),
            Mode::Long => self.ram.write_words(IDT + 16 * vector, &gate),
            _ => self.ram.write_words(IDT + 8 * vector, &gate[..1]),
        }
    }
}

fn map_part(vm: &Handle, slot: u32, ram: &Mapping, at: usize, length: usize) -> Result<(), String> {
    let region = kvm_userspace_memory_region {
        slot,
        guest_phys_addr: at as u64,
        memory_size: length as u64,
        userspace_addr: ram.start() as u64 + at as u64,
        ..Default::default()
    };
    vm.set(number::SET_USER_MEMORY_REGION, &region)?;
    Ok(())
}

/// A gate that leads to a HLT of this vector's own.
pub(crate) fn good_gate(mode: Mode, vector: u8) -> [u64; 2] {
    let end = ENDS + u64::from(vector);
    let code = u64::from(if mode == Mode::Long { CODE_64 } else { CODE_32 });
    match mode {
        Mode::Real => [end, 0],
        Mode::Long => [end & 0xffff | code << 16 | 0xee00 << 32, 0],
        _ => [end & 0xffff | code << 16 | 0xee00 << 32, 0],
    }
}
