// SPDX-License-Identifier: GPL-2.0-only

//! The machine that a single instruction runs in.
//!
//! ```text
//!   0       interrupt vectors of real mode      5000  TSS
//!   800     GDT                                 6000  256 HLTs: where exceptions end
//!   1000    IDT                                 7000  stacks
//!   2000    page tables                         8000  the instruction, and a HLT
//!   d0000   no memory
//! ```

use std::fmt::Write;

use kvm_bindings::*;
use selftests::accesses;
use selftests::kvm::{number, set_cpuid, supported_cpuid, Handle, Xsave};
use selftests::machine::{map, Vcpu};
use selftests::memory::Mapping;

use crate::cases::{Case, Mode, Place};

const RAM: usize = 0xc_0000;
const DEVICE: u64 = 0xd_0000;
const GDT: usize = 0x800;
const IDT: usize = 0x1000;
const TABLES: usize = 0x2000;
const TSS: u64 = 0x5000;
const ENDS: u64 = 0x6000;
const STACK: u64 = 0x7000;
const CODE: u64 = 0x8000;
/// No case needs as many exits.
const MOST_EXITS: usize = 100;

/// A VM with one vCPU.
pub(crate) struct Machine {
    _vm: Handle,
    vcpu: Vcpu,
    ram: Mapping,
}

fn fnv(bytes: &[u8]) -> u32 {
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    bytes.iter().fold(0x811c_9dc5, step)
}

fn segment(base: u64, selector: u16, kind: u8, mode: Mode) -> kvm_segment {
    let wide = !mode.is_16_bit();
    kvm_segment {
        base,
        limit: if wide { 0xffff_ffff } else { 0xffff },
        selector,
        type_: kind,
        s: 1,
        dpl: if mode == Mode::Virtual8086 { 3 } else { 0 },
        present: 1,
        l: u8::from(mode == Mode::Long && kind == 0xb),
        db: u8::from(wide && !(mode == Mode::Long && kind == 0xb)),
        g: u8::from(wide),
        ..Default::default()
    }
}

impl Machine {
    pub(crate) fn new(device: &Handle) -> Result<Self, String> {
        let vm = device.open_with(number::CREATE_VM, 0)?;
        vm.call(number::SET_TSS_ADDR, 0xfffb_d000)?;
        let ram = Mapping::anonymous(RAM).map_err(|e| e.to_string())?;
        map(&vm, 0, 0, 0, &ram)?;
        let vcpu = Vcpu::create(device, &vm, 0)?;
        set_cpuid(&vcpu.handle, &supported_cpuid(device)?)?;
        Ok(Self { _vm: vm, vcpu, ram })
    }

    fn fill_memory(&self, case: &Case) {
        self.ram.write(0, &[0; CODE as usize + 0x100]);
        let code = if case.mode == Mode::Long { 8 } else { 0x18 };
        for vector in 0..256_u64 {
            let end = ENDS + vector;
            match case.mode {
                Mode::Real => self
                    .ram
                    .write(4 * vector as usize, &(end as u32).to_le_bytes()),
                Mode::Long => {
                    let gate = end & 0xffff | code << 16 | 0x8e00 << 32;
                    self.ram.write_words(IDT + 16 * vector as usize, &[gate, 0]);
                }
                _ => {
                    let gate = end & 0xffff | code << 16 | 0xee00 << 32;
                    self.ram.write_words(IDT + 8 * vector as usize, &[gate]);
                }
            }
        }
        let gdt = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_9b00_0000_ffff,
        ];
        self.ram.write_words(GDT, &gdt);
        if case.mode != Mode::Real {
            self.ram.write_words(TABLES, &[TABLES as u64 + 0x1007]);
            self.ram
                .write_words(TABLES + 0x1000, &[TABLES as u64 + 0x2007]);
            self.ram.write_words(TABLES + 0x2000, &[0xe7]);
            // ESP0 and SS0.
            self.ram.write(TSS as usize + 4, &[0, 0x7f, 0, 0, 0x10, 0]);
        }
        self.ram.write(ENDS as usize, &[0xf4; 256]);
        self.ram.write(CODE as usize, &case.bytes);
        self.ram.write(CODE as usize + case.bytes.len(), &[0xf4]);
    }

    fn set_registers(&self, case: &Case) -> Result<(), String> {
        let (mode, vcpu) = (case.mode, &self.vcpu.handle);
        let flat = !mode.is_16_bit();
        let device = if flat { DEVICE } else { 0 };
        let mut sregs: kvm_sregs = vcpu.get(number::GET_SREGS)?;
        let data = |paragraph: u16| match flat {
            true => segment(0, 0x10, 3, mode),
            false => segment(u64::from(paragraph) << 4, paragraph, 3, mode),
        };
        let stack = case.place == Place::Stack;
        sregs.ds = data(0xd000);
        (sregs.es, sregs.fs, sregs.gs) = (sregs.ds, sregs.ds, sregs.ds);
        sregs.ss = if stack { sregs.ds } else { data(0x700) };
        let kind = if mode == Mode::Virtual8086 { 3 } else { 0xb };
        sregs.cs = match flat {
            true => segment(0, if mode == Mode::Long { 8 } else { 0x18 }, kind, mode),
            false => segment(CODE, 0x800, kind, mode),
        };
        sregs.gdt = kvm_dtable {
            base: GDT as u64,
            limit: 0x1f,
            ..Default::default()
        };
        sregs.idt = kvm_dtable {
            base: IDT as u64,
            limit: 0xfff,
            ..Default::default()
        };
        if mode == Mode::Real {
            sregs.idt = kvm_dtable {
                base: 0,
                limit: 0x3ff,
                ..Default::default()
            };
        }
        sregs.tr = kvm_segment {
            base: TSS,
            limit: 0x67,
            selector: 0x40,
            // QEMU gives up on a busy one when an exception leaves virtual-8086 mode.
            type_: if mode == Mode::Virtual8086 { 9 } else { 0xb },
            present: 1,
            ..Default::default()
        };
        sregs.cr4 = 0x600;
        (sregs.cr0, sregs.efer, sregs.cr3) = match mode {
            Mode::Real => (0x30, 0, 0),
            Mode::Long => {
                sregs.cr4 |= 0x4_0020;
                (0x8000_0031, 0x500, TABLES as u64)
            }
            _ => (0x31, 0, 0),
        };
        vcpu.set(number::SET_SREGS, &sregs)?;
        let user = if mode == Mode::Virtual8086 {
            0x2_3000
        } else {
            0
        };
        let regs = kvm_regs {
            rax: 0x0123_4567_89ab_cd05,
            rbx: device + 0x300,
            rcx: 3,
            rdx: 0x80,
            rdi: device + 0x100,
            rsi: device + 0x200,
            rbp: device + 0x700,
            rsp: if stack || !flat {
                device + 0x800
            } else {
                STACK + 0x800
            },
            rip: if flat { CODE } else { 0 },
            rflags: 3 | user,
            r8: 0x8888_8888_8888_8888,
            ..Default::default()
        };
        vcpu.set(number::SET_REGS, &regs)?;
        let mut fpu = kvm_fpu {
            fcw: 0x37f,
            mxcsr: 0x1f80,
            ..Default::default()
        };
        for (number, register) in fpu.xmm.iter_mut().enumerate() {
            *register = std::array::from_fn(|at| (number * 16 + at) as u8);
        }
        vcpu.set(number::SET_FPU, &fpu)?;
        if mode == Mode::Long {
            let mut xcrs = kvm_xcrs {
                nr_xcrs: 1,
                ..Default::default()
            };
            xcrs.xcrs[0].value = 7;
            vcpu.set(number::SET_XCRS, &xcrs)?;
        }
        vcpu.set(number::SET_VCPU_EVENTS, &kvm_vcpu_events::default())?;
        Ok(())
    }

    /// What the instruction does; and whether the machine can be used again.
    pub(crate) fn run(&self, case: &Case) -> Result<(String, bool), String> {
        self.fill_memory(case);
        self.set_registers(case)?;
        let mut trace = String::new();
        for _ in 0..MOST_EXITS {
            self.vcpu.run()?;
            let shared = self.vcpu.shared();
            match shared.exit_reason {
                KVM_EXIT_MMIO => accesses::mmio(&self.vcpu, &mut trace),
                KVM_EXIT_IO => accesses::port(&self.vcpu, &mut trace),
                KVM_EXIT_HLT => {
                    self.describe(case, &mut trace)?;
                    return Ok((trace, true));
                }
                other => {
                    let _ = write!(trace, " exit {other}");
                    return Ok((trace, false));
                }
            }
        }
        Ok((trace + " endless", false))
    }

    /// Memory where stacks are. What an exception in virtual-8086 mode has pushed has the flags.
    fn stack(&self, case: &Case, rsp: u64, status: u64) -> Vec<u8> {
        let mut bytes = self.ram.read(STACK as usize, 0x1000);
        if case.mode == Mode::Virtual8086 {
            // With an error code, and without.
            for above in [12, 8] {
                let at = rsp.wrapping_sub(STACK) as usize + above;
                let mask = !(status & !case.flags) as u32;
                for (byte, mask) in bytes.iter_mut().skip(at).zip(mask.to_le_bytes()) {
                    *byte &= mask;
                }
            }
        }
        bytes
    }

    fn describe(&self, case: &Case, trace: &mut String) -> Result<(), String> {
        /// The flags that arithmetic sets.
        const STATUS: u64 = 0x8d5;
        let vcpu = &self.vcpu.handle;
        let regs: kvm_regs = vcpu.get(number::GET_REGS)?;
        let sregs: kvm_sregs = vcpu.get(number::GET_SREGS)?;
        let flags = regs.rflags & !(STATUS & !case.flags);
        let _ = write!(
            trace,
            " rip {:x} flags {flags:x} {:x} {:x} {:x} {:x} {:x} {:x} {:x} {:x} {:x}",
            regs.rip,
            regs.rax,
            regs.rcx,
            regs.rdx,
            regs.rbx,
            regs.rsp,
            regs.rbp,
            regs.rsi,
            regs.rdi,
            regs.r8
        );
        for segment in [sregs.es, sregs.cs, sregs.ss, sregs.ds, sregs.fs, sregs.gs] {
            let _ = write!(trace, " {:x}@{:x}", segment.selector, segment.base);
        }
        let fpu: kvm_fpu = vcpu.get(number::GET_FPU)?;
        let xsave: Xsave = vcpu.get(number::GET_XSAVE)?;
        // QEMU leaves the exponent alone when an MMX register is written.
        let mantissas: Vec<u8> = fpu
            .fpr
            .iter()
            .flat_map(|register| &register[..8])
            .copied()
            .collect();
        let registers = [mantissas, fpu.xmm.concat()].concat();
        // The upper halves of the YMM registers.
        let upper = xsave.0[144..208].iter().flat_map(|word| word.to_le_bytes());
        let upper = if case.mode == Mode::Long {
            fnv(&upper.collect::<Vec<u8>>())
        } else {
            0
        };
        let _ = write!(
            trace,
            " fpu {:x} {:x} {:x} {:x} {upper:x} ram {:x}",
            fpu.fcw,
            fpu.fsw,
            fpu.ftwx,
            fnv(&registers),
            fnv(&self.stack(case, regs.rsp, STATUS))
        );
        Ok(())
    }
}
