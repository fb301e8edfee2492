// SPDX-License-Identifier: GPL-2.0-only

//! Instructions that are intercepted, met by the emulator: the CPU could not even read them,
//! because its page tables lie in read-only memory. They are handled as if the CPU had intercepted
//! them.

use super::{handle, Action, Platform};
use crate::cpu::Guest;
use crate::exit::{Exit, RegAccess};
use x86::cpu::{Cpu, Stop};
use x86::decode::{Insn, Map, Prefixes};
use x86::regs::Exception;

/// What the CPU makes of the instruction at a privilege level other than 0, before it looks at the
/// intercept. Other handlers look themselves.
fn refusal(exit: &Exit) -> Option<Exception> {
    match exit {
        Exit::Hlt | Exit::Invlpg => Some(Exception::GP0),
        // HWCR.MonMwaitUserEn is clear (APM vol. 3, MONITOR).
        Exit::Monitor | Exit::Mwait => Some(Exception::UD),
        _ => None,
    }
}

/// The exit that the CPU would make of the instruction, if it is one that is always intercepted, or
/// whose handler does what the CPU would do. With VEX it is another instruction, with LOCK it is
/// none, but for the MOV CR that LOCK gives a fourth bit.
fn exit_of(insn: &Insn) -> Option<Exit> {
    if insn.vex.is_some() || (insn.has(Prefixes::LOCK) && insn.mov_cr_operand().is_none()) {
        return None;
    }
    // The handlers of these look at the instruction themselves.
    let register = RegAccess {
        register: 0,
        write: false,
        gpr: None,
    };
    Some(match (insn.map, insn.opcode, insn.modrm) {
        (Map::OneByte, 0xf4, _) => Exit::Hlt,
        // With REX.B it is an XCHG of R8.
        (Map::OneByte, 0x90, _) if insn.has(Prefixes::REP) && insn.rm == 0 => Exit::Pause,
        (Map::OneByte, 0xf1, _) => Exit::Icebp,
        (Map::TwoByte, 0xa2, _) => Exit::Cpuid,
        (Map::TwoByte, 0x30 | 0x32, _) => Exit::Msr {
            write: insn.opcode == 0x30,
        },
        (Map::TwoByte, 0x31, _) => Exit::Rdtsc,
        (Map::TwoByte, 0x33, _) => Exit::Rdpmc,
        (Map::TwoByte, 0x08, _) => Exit::Invd,
        (Map::TwoByte, 0x09, _) => Exit::Wbinvd,
        (Map::TwoByte, 0x06 | 0x20 | 0x22, _) => Exit::Cr(register),
        (Map::TwoByte, 0x21 | 0x23, _) => Exit::Dr(register),
        (Map::TwoByte, 0x01, 0xc8) => Exit::Monitor,
        (Map::TwoByte, 0x01, 0xc9) => Exit::Mwait,
        (Map::TwoByte, 0x01, 0xd1) => Exit::Xsetbv,
        (Map::TwoByte, 0x01, 0xd9) => Exit::Vmmcall,
        (Map::TwoByte, 0x01, 0xf9) => Exit::Rdtscp,
        (Map::TwoByte, 0x01, _) if insn.is_invlpg() => Exit::Invlpg,
        _ => return None,
    })
}

/// Handles the instruction if it is such a one.
pub(super) fn intercepted<P: Platform>(
    guest: &mut Guest<'_, P>,
    insn: &Insn,
) -> Option<Result<Action, Stop>> {
    let exit = exit_of(insn)?;
    if let (Some(exception), true) = (refusal(&exit), guest.cpl() != 0) {
        return Some(Err(exception.into()));
    }
    // What the CPU has told is about another exit.
    guest.vmcb.set_next_rip(0);
    Some(handle(guest, exit))
}
