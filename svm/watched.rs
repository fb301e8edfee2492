// SPDX-License-Identifier: GPL-2.0-only

//! Which intercept an instruction meets, and what the CPU looks at before it (APM vol. 2, 15.8,
//! 15.9): a table, for instructions that the CPU did not get as far as to intercept, because
//! their code, operand or page tables are in no memory, or in memory that cannot be written.

use crate::cpu::Guest;
use crate::dispatch::{check_dr, Platform};
use crate::exit::ExitCode;
use x86::cpu::Cpu;
use x86::decode::{Insn, Map, Prefixes};
use x86::features::Feature;
use x86::regs::{Cr0, Cr4, Efer, Exception, Rflags};

/// What the CPU checks first: an exception that comes of it comes before the intercept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// Nothing that has not been checked.
    Nothing,
    /// The instruction is not there.
    Undefined,
    /// Privilege level 0.
    Privilege,
    /// MONITOR and MWAIT: a program does not have them while HWCR.MonMwaitUserEn is clear (APM
    /// vol. 3, MONITOR).
    Monitor,
    /// SGDT, SIDT, SMSW: level 0, if CR4.UMIP says so.
    Umip,
    /// SLDT, STR: the same, in protected mode.
    ProtectedUmip,
    /// LLDT, LTR: level 0, in protected mode.
    ProtectedPrivilege,
    /// RDTSC, and RDTSCP.
    Tsc { with_aux: bool },
    /// RDPMC.
    Counter,
    /// XSETBV: CR4.OSXSAVE.
    Xsave,
    /// INVPCID: CPUID has it.
    Invpcid,
    /// MOV of this debug register.
    Debug(u8),
    /// VMRUN and its like.
    Svm,
}

/// An instruction that can be intercepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watched {
    /// The exit, as its code. A write of CR0 is one whatever it changes.
    pub(crate) code: ExitCode,
    pub(crate) first: First,
}

impl Watched {
    /// The intercept of this instruction, if it has any. With VEX it is another instruction, with
    /// LOCK it is none, but for the MOV CR that LOCK gives a fourth bit.
    pub(crate) fn of(insn: &Insn) -> Option<Self> {
        if insn.vex.is_some() || (insn.has(Prefixes::LOCK) && insn.mov_cr_operand().is_none()) {
            return None;
        }
        let (code, first) = match insn.map {
            Map::OneByte => one_byte(insn),
            Map::TwoByte => two_byte(insn),
            Map::ThreeByte38 if insn.opcode == 0x82 && insn.has(Prefixes::OPERAND_SIZE) => {
                Some((ExitCode::INVPCID, First::Invpcid))
            }
            _ => None,
        }?;
        Some(Self { code, first })
    }
}

type Row = Option<(ExitCode, First)>;

fn one_byte(insn: &Insn) -> Row {
    Some(match insn.opcode {
        0x6c..=0x6f | 0xe4..=0xe7 | 0xec..=0xef => (ExitCode::IOIO, First::Nothing),
        // With REX.B it is an XCHG of R8.
        0x90 if insn.has(Prefixes::REP) && insn.rm == 0 => (ExitCode::PAUSE, First::Nothing),
        0x9c => (ExitCode::PUSHF, First::Nothing),
        0x9d => (ExitCode::POPF, First::Nothing),
        0xcd => (ExitCode::SWINT, First::Nothing),
        0xcf => (ExitCode::IRET, First::Nothing),
        0xf1 => (ExitCode::ICEBP, First::Nothing),
        0xf4 => (ExitCode::HLT, First::Privilege),
        _ => return None,
    })
}

fn two_byte(insn: &Insn) -> Row {
    if let Some(operand) = insn.mov_cr_operand() {
        let first = match operand.register {
            0 | 2..=4 | 8 => First::Privilege,
            _ => First::Undefined,
        };
        let base = match operand.write {
            true => ExitCode::CR0_WRITE,
            false => ExitCode::CR0_READ,
        };
        return Some((base.plus(operand.register), first));
    }
    if let Some(operand) = insn.mov_dr_operand() {
        let base = match operand.write {
            true => ExitCode::DR0_WRITE,
            false => ExitCode::DR0_READ,
        };
        let first = First::Debug(operand.register);
        return Some((base.plus(operand.register), first));
    }
    Some(match insn.opcode {
        0x00 => match insn.group() {
            0 => (ExitCode::LDTR_READ, First::ProtectedUmip),
            1 => (ExitCode::TR_READ, First::ProtectedUmip),
            2 => (ExitCode::LDTR_WRITE, First::ProtectedPrivilege),
            3 => (ExitCode::TR_WRITE, First::ProtectedPrivilege),
            _ => return None,
        },
        0x01 => return group7(insn),
        0x06 => (ExitCode::CR0_WRITE, First::Privilege),
        0x08 => (ExitCode::INVD, First::Privilege),
        0x09 => (ExitCode::WBINVD, First::Privilege),
        0x30 | 0x32 => (ExitCode::MSR, First::Privilege),
        0x31 => (ExitCode::RDTSC, First::Tsc { with_aux: false }),
        0x33 => (ExitCode::RDPMC, First::Counter),
        0xa2 => (ExitCode::CPUID, First::Nothing),
        0xaa => (ExitCode::RSM, First::Nothing),
        _ => return None,
    })
}

/// Opcode `0F 01`: with an operand in memory the group says which it is, else all of ModRM.
fn group7(insn: &Insn) -> Row {
    if insn.is_smsw() {
        return Some((ExitCode::CR0_READ, First::Umip));
    }
    if insn.is_lmsw() {
        return Some((ExitCode::CR0_WRITE, First::Privilege));
    }
    if insn.mem.is_some() {
        return Some(match insn.group() {
            0 => (ExitCode::GDTR_READ, First::Umip),
            1 => (ExitCode::IDTR_READ, First::Umip),
            2 => (ExitCode::GDTR_WRITE, First::Privilege),
            3 => (ExitCode::IDTR_WRITE, First::Privilege),
            7 => (ExitCode::INVLPG, First::Privilege),
            _ => return None,
        });
    }
    Some(match insn.modrm {
        0xc8 => (ExitCode::MONITOR, First::Monitor),
        0xc9 => (ExitCode::MWAIT, First::Monitor),
        0xd1 => (ExitCode::XSETBV, First::Xsave),
        0xd8 => (ExitCode::VMRUN, First::Svm),
        0xd9 => (ExitCode::VMMCALL, First::Nothing),
        0xda => (ExitCode::VMLOAD, First::Svm),
        0xdb => (ExitCode::VMSAVE, First::Svm),
        0xdc => (ExitCode::STGI, First::Svm),
        0xdd => (ExitCode::CLGI, First::Svm),
        0xde => (ExitCode::SKINIT, First::Svm),
        0xdf => (ExitCode::INVLPGA, First::Svm),
        0xf9 => (ExitCode::RDTSCP, First::Tsc { with_aux: true }),
        _ => return None,
    })
}

impl First {
    /// The exception that comes before the intercept.
    pub(crate) fn check<P: Platform>(self, guest: &Guest<'_, P>) -> Result<(), Exception> {
        let program = guest.cpl() != 0;
        let protected = guest.cr0().contains(Cr0::PE) && !guest.rflags().contains(Rflags::VM);
        let has = |bit| guest.cr4().contains(bit);
        let (undefined, refused) = match self {
            First::Nothing => (false, false),
            First::Undefined => (true, false),
            First::Privilege => (false, program),
            First::Monitor => (program, false),
            First::Umip => (false, program && has(Cr4::UMIP)),
            First::ProtectedUmip => (!protected, program && has(Cr4::UMIP)),
            First::ProtectedPrivilege => (!protected, program),
            First::Tsc { with_aux } => (
                with_aux && !guest.has(Feature::RDTSCP),
                program && has(Cr4::TSD),
            ),
            First::Counter => (false, program && !has(Cr4::PCE)),
            First::Xsave => (!has(Cr4::OSXSAVE), false),
            First::Invpcid => (!guest.has(Feature::INVPCID), program),
            First::Debug(number) => return check_dr(guest, number).map(|_| ()),
            First::Svm => (
                !protected || !guest.efer().contains(Efer::SVME) || guest.nested.is_none(),
                program,
            ),
        };
        match (undefined, refused) {
            (true, _) => Err(Exception::UD),
            (false, true) => Err(Exception::GP0),
            (false, false) => Ok(()),
        }
    }
}
