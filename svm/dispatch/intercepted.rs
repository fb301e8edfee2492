// SPDX-License-Identifier: GPL-2.0-only

//! Instructions that are intercepted, met by the emulator: the CPU could not even read them,
//! because its page tables lie in read-only memory. They are handled as if the CPU had intercepted
//! them: for an inner guest the outer one is asked first.

use super::{handle, Action, Platform};
use crate::cpu::Guest;
use crate::exit::{Exit, ExitCode, RegAccess};
use crate::nested::{self, emulated};
use crate::watched::Watched;
use x86::cpu::Stop;
use x86::decode::{CrAccess, Insn, Map};

/// The exit that the CPU would make of the instruction, if it is one that is always intercepted, or
/// whose handler does what the CPU would do. All others the emulator executes.
fn exit_of(code: ExitCode, insn: &Insn, next: u64) -> Option<Exit> {
    Some(match code {
        ExitCode::HLT => Exit::Hlt,
        ExitCode::PAUSE => Exit::Pause,
        ExitCode::ICEBP => Exit::Icebp,
        ExitCode::CPUID => Exit::Cpuid,
        ExitCode::MSR => Exit::Msr {
            write: insn.opcode == 0x30,
        },
        ExitCode::RDTSC => Exit::Rdtsc,
        ExitCode::RDTSCP => Exit::Rdtscp,
        ExitCode::RDPMC => Exit::Rdpmc,
        ExitCode::INVD => Exit::Invd,
        ExitCode::WBINVD => Exit::Wbinvd,
        ExitCode::MONITOR => Exit::Monitor,
        ExitCode::MWAIT => Exit::Mwait,
        ExitCode::XSETBV => Exit::Xsetbv,
        ExitCode::VMMCALL => Exit::Vmmcall,
        ExitCode::INVLPG => Exit::Invlpg,
        code @ (ExitCode::VMRUN
        | ExitCode::VMLOAD
        | ExitCode::VMSAVE
        | ExitCode::STGI
        | ExitCode::CLGI
        | ExitCode::SKINIT
        | ExitCode::INVLPGA) => Exit::SvmInstruction(code),
        // SMSW and LMSW have an operand in memory.
        _ if insn.is(Map::TwoByte, 0x01) => return None,
        code if code.within(ExitCode::CR0_READ, ExitCode::CR15_WRITE) => {
            Exit::Cr(access(insn.mov_cr_operand(), next))
        }
        code if code.within(ExitCode::DR0_READ, ExitCode::DR15_WRITE) => {
            Exit::Dr(access(insn.mov_dr_operand(), next))
        }
        _ => return None,
    })
}

/// The access of a MOV; CLTS has no operand.
fn access(operand: Option<CrAccess>, next: u64) -> RegAccess {
    RegAccess {
        register: operand.map_or(0, |operand| operand.register),
        write: operand.is_none_or(|operand| operand.write),
        gpr: operand.map(|operand| operand.gpr),
        next: Some(next),
    }
}

/// Handles the instruction if it is such a one.
pub(super) fn intercepted<P: Platform>(
    guest: &mut Guest<'_, P>,
    insn: &Insn,
) -> Option<Result<Action, Stop>> {
    let watched = Watched::of(insn)?;
    let inside = guest.nested.as_deref().is_some_and(|n| n.is_inside());
    if inside {
        match emulated::outer_exit(guest, insn, &watched) {
            Ok(None) => {}
            Ok(Some(exit)) => return Some(nested::leave(guest, exit).map(|()| Action::Resume)),
            Err(stop) => return Some(Err(stop)),
        }
    }
    let exit = exit_of(watched.code, insn, insn.next_rip(guest.vmcb.rip()))?;
    if let Err(exception) = watched.first.check(guest) {
        return Some(Err(exception.into()));
    }
    // What the CPU has told is about another exit.
    guest.vmcb.set_next_rip(0);
    Some(handle(guest, exit))
}
