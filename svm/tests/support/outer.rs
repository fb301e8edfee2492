// SPDX-License-Identifier: GPL-2.0-only

//! A machine whose guest is a hypervisor, with a VMCB in its memory.

use super::{poke, Machine, NRIP};
use svm::dispatch::Action;
use svm::exit::ExitCode;
use svm::features::SvmFeatures;
use svm::nested::{self, InnerExit, Nested, Turn};
use x86::regs::gpr;

/// Where the outer guest has its VMCB, ...
pub const VMCB: u64 = 0x4000;
/// ... its maps, ...
pub const MSRPM: u64 = 0x5000;
pub const IOPM: u64 = 0xa000;
/// ... and nested tables: level 4, 3.
pub const NCR3: u64 = 0xd000;
/// Where the inner guest begins.
pub const INNER: u64 = 0x2000;
/// Our map of all MSRs, and our tables for the inner guest.
pub const ALL_MSRS: u64 = 0xabc_d000;
pub const ROOT: u64 = 0xdef_0000;
/// Ours for the outer guest.
pub const OWN_NCR3: u64 = 0x77_7000;
pub const OWN_MSRPM: u64 = 0x66_6000;

/// A CPU that tells the next RIP, so that no code need be there.
pub const NRIPS: SvmFeatures = SvmFeatures::NRIPS;

/// Fields of a VMCB.
pub mod at {
    pub const CR: usize = 0x000;
    pub const EXCEPTIONS: usize = 0x008;
    pub const WORD3: usize = 0x00c;
    pub const WORD4: usize = 0x010;
    pub const IOPM: usize = 0x040;
    pub const MSRPM: usize = 0x048;
    pub const TSC_OFFSET: usize = 0x050;
    pub const ASID: usize = 0x058;
    pub const INT_CONTROL: usize = 0x060;
    pub const INT_VECTOR: usize = 0x064;
    pub const EXITCODE: usize = 0x070;
    pub const EXITINFO1: usize = 0x078;
    pub const EXITINFO2: usize = 0x080;
    pub const EXITINTINFO: usize = 0x088;
    pub const NP: usize = 0x090;
    pub const EVENTINJ: usize = 0x0a8;
    pub const NCR3: usize = 0x0b0;
    pub const CS: usize = 0x410;
    pub const SS: usize = 0x420;
    pub const FS_BASE: usize = 0x448;
    pub const EFER: usize = 0x4d0;
    pub const CR4: usize = 0x548;
    pub const CR3: usize = 0x550;
    pub const CR0: usize = 0x558;
    pub const DR7: usize = 0x560;
    pub const DR6: usize = 0x568;
    pub const RFLAGS: usize = 0x570;
    pub const RIP: usize = 0x578;
    pub const RSP: usize = 0x5d8;
    pub const RAX: usize = 0x5f8;
    pub const LSTAR: usize = 0x608;
    pub const G_PAT: usize = 0x668;
}

pub trait Outer {
    fn field(&self, offset: usize) -> u64;
    fn set(&mut self, offset: usize, value: u64) -> &mut Self;
    fn set_low(&mut self, offset: usize, value: u32) -> &mut Self;
    fn instruction(&mut self, code: ExitCode) -> Action;
    fn vmrun(&mut self) -> Action;
    fn nested(&self) -> &Nested;
    fn is_inside(&self) -> bool;
    fn turn(&mut self) -> Turn;
    fn leave_if_due(&mut self) -> Option<InnerExit>;
    fn run(&mut self);
}

impl Outer for Machine {
    fn field(&self, offset: usize) -> u64 {
        let start = VMCB as usize + offset;
        u64::from_le_bytes(self.world.ram[start..start + 8].try_into().expect("eight"))
    }
    fn set(&mut self, offset: usize, value: u64) -> &mut Self {
        let start = VMCB as usize + offset;
        self.world.ram[start..start + 8].copy_from_slice(&value.to_le_bytes());
        self
    }
    fn set_low(&mut self, offset: usize, value: u32) -> &mut Self {
        let start = VMCB as usize + offset;
        self.world.ram[start..start + 4].copy_from_slice(&value.to_le_bytes());
        self
    }
    fn instruction(&mut self, code: ExitCode) -> Action {
        let next = self.vmcb.rip() + 3;
        poke(&mut self.vmcb, NRIP, next);
        self.exit(code, 0, 0)
    }
    fn vmrun(&mut self) -> Action {
        self.state.regs.set(gpr::RAX, VMCB);
        self.instruction(ExitCode::VMRUN)
    }
    fn nested(&self) -> &Nested {
        self.nested.as_deref().expect("it has SVM")
    }
    fn is_inside(&self) -> bool {
        self.nested().is_inside()
    }
    fn turn(&mut self) -> Turn {
        let nested = self.nested.as_deref_mut().expect("it has SVM");
        nested::prepare(&mut self.vmcb, &mut self.state, nested, &mut self.line)
    }
    /// What the run loop does with interrupts on.
    fn leave_if_due(&mut self) -> Option<InnerExit> {
        let due = nested::due(&self.vmcb, &self.state, self.nested(), &self.line)?;
        nested::leave(&mut self.guest(), due).expect("the exit");
        Some(due)
    }
    /// VMRUN, and back.
    fn run(&mut self) {
        let nested = self.nested.as_deref_mut().expect("it has SVM");
        nested.merge(&mut self.vmcb);
        nested.unmerge(&mut self.vmcb);
    }
}

/// An outer guest in 64-bit mode with SVM on, and a VMCB like itself in its memory.
pub fn outer() -> Machine {
    let mut machine = Machine::long(NRIPS);
    machine.nested = Some(Box::new(Nested::new(ALL_MSRS)));
    machine.nested.as_deref_mut().expect("just set").root = ROOT;
    machine.state.svme = true;
    machine.vmcb.set_ncr3(OWN_NCR3);
    machine.vmcb.set_msrpm_base(OWN_MSRPM);
    machine.state.regs.set(gpr::RSP, 0x7000);
    let flat = |attributes: u64| attributes << 16 | 0xffff_ffff << 32;
    machine
        .set_low(at::WORD4, 0b11)
        .set(at::IOPM, IOPM)
        .set(at::MSRPM, MSRPM)
        .set_low(at::ASID, 1)
        .set(at::CS, flat(0x29b) | 8)
        .set(at::SS, flat(0xc93) | 16)
        .set(at::EFER, 0x1d00)
        .set(at::CR4, 0x20)
        .set(at::CR3, 0x8000)
        .set(at::CR0, 0x8001_0031)
        .set(at::DR6, 0xffff_0ff0)
        .set(at::DR7, 0x400)
        .set(at::RFLAGS, 0x2)
        .set(at::RIP, INNER)
        .set(at::RSP, 0x6000)
        .set(at::RAX, 0x1234)
        .set(at::G_PAT, 0x0007_0406_0007_0406);
    machine
}

/// The same, with the inner guest in the CPU.
pub fn inner() -> Machine {
    let mut machine = outer();
    assert_eq!(machine.vmrun(), Action::Resume);
    assert!(machine.is_inside());
    machine.run();
    machine
}
