// SPDX-License-Identifier: GPL-2.0-only

//! The instructions of SVM (APM vol. 3, chapter 4): VMRUN, VMLOAD, VMSAVE, STGI, CLGI, INVLPGA.
//! SKINIT is not offered.

use crate::cpu::Guest;
use crate::dispatch::rip::{next_rip, Opcode};
use crate::dispatch::{Action, Platform};
use crate::exit::ExitCode;
use crate::nested::area::Loaded;
use crate::nested::enter;
use crate::requests::Requests;
use crate::watched::First;
use x86::cpu::{MemError, Stop};
use x86::decode::CodeSize;
use x86::emulate::code_size;
use x86::regs::{gpr, Exception};

/// Executes the instruction that has exited, for a guest that has SVM.
pub(crate) fn instruction<P: Platform>(
    guest: &mut Guest<'_, P>,
    code: ExitCode,
) -> Result<Action, Stop> {
    if code == ExitCode::SKINIT {
        return Err(Exception::UD.into());
    }
    // Not every emulator looks at this first.
    First::Svm.check(guest)?;
    let next = next_rip(guest, opcode(code))?;
    match code {
        ExitCode::VMRUN => {
            let gpa = address(guest)?;
            return vmrun(guest, gpa, next);
        }
        ExitCode::VMLOAD => {
            let gpa = address(guest)?;
            let loaded = Loaded::load(guest.platform, gpa).map_err(refused)?;
            let bits = guest.state.features.linear_bits();
            loaded.apply(guest.vmcb, bits);
        }
        ExitCode::VMSAVE => {
            let gpa = address(guest)?;
            let loaded = Loaded::of(guest.vmcb);
            loaded.store(guest.platform, gpa).map_err(refused)?;
        }
        ExitCode::STGI => {
            guest.state.events.gif_clear = false;
            if let Some(nested) = guest.nested.as_deref_mut() {
                nested.gif_set();
            }
        }
        ExitCode::CLGI => guest.state.events.gif_clear = true,
        _ => invlpga(guest),
    }
    crate::dispatch::rip::advance(guest, next);
    Ok(Action::Resume)
}

fn opcode(code: ExitCode) -> Opcode {
    match code {
        ExitCode::VMRUN => Opcode::VMRUN,
        ExitCode::VMLOAD => Opcode::VMLOAD,
        ExitCode::VMSAVE => Opcode::VMSAVE,
        ExitCode::STGI => Opcode::STGI,
        ExitCode::CLGI => Opcode::CLGI,
        _ => Opcode::INVLPGA,
    }
}

/// The VMCB that RAX names: a page below the end of physical addresses.
fn address<P: Platform>(guest: &Guest<'_, P>) -> Result<u64, Exception> {
    /// The offset into a page.
    const OFFSET: u64 = 0xfff;
    const LOW: u64 = 0xffff_ffff;
    let rax = guest.state.regs.get(gpr::RAX);
    let gpa = match code_size(guest) {
        CodeSize::Bits64 => rax,
        _ => rax & LOW,
    };
    match gpa & (OFFSET | guest.state.features.reserved_phys()) {
        0 => Ok(gpa),
        _ => Err(Exception::GP0),
    }
}

/// Why a VMCB could not be used. One that is in no memory cannot be emulated.
fn refused(error: MemError) -> Stop {
    match error {
        MemError::WouldSleep => Stop::WouldSleep,
        MemError::Fault => Stop::Fault,
        MemError::Unbacked | MemError::ReadOnly => Stop::Unhandled,
    }
}

fn vmrun<P: Platform>(guest: &mut Guest<'_, P>, gpa: u64, next: u64) -> Result<Action, Stop> {
    let Some(nested) = guest.nested.as_deref_mut() else {
        return Err(Exception::UD.into());
    };
    let place = (gpa, next);
    let (vmcb, state) = (&mut *guest.vmcb, &mut *guest.state);
    enter::vmrun(vmcb, state, nested, guest.platform, place, guest.host).map_err(refused)?;
    Ok(Action::Resume)
}

/// INVLPGA: more goes than was asked for.
fn invlpga<P: Platform>(guest: &mut Guest<'_, P>) {
    let asid = guest.state.regs.get(gpr::RCX) as u32;
    if let Some(nested) = guest.nested.as_deref_mut() {
        nested.flush();
    }
    if asid == 0 {
        guest.platform.request(Requests::TLB_FLUSH);
    }
}
