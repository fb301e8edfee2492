// SPDX-License-Identifier: GPL-2.0-only

//! Why the guest exited, as a value: [`Exit::decode`] (APM vol. 2, appendix C).

use crate::vmcb::Vmcb;
use bitflags::bitflags;
use x86::regs::SegReg;

/// EXITCODE (VMCB 070). Any number is legal: new CPUs have new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct ExitCode(pub u64);

/// A MOV from or to a control or debug register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegAccess {
    /// The control or debug register of the exit code.
    pub register: u8,
    /// A write.
    pub write: bool,
    /// The general-purpose register, if the CPU told it (decode assists) and the instruction is a
    /// MOV; otherwise the instruction must be decoded.
    pub gpr: Option<u8>,
}

/// An access to I/O ports (APM vol. 2, 15.10.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoExit {
    /// The first port.
    pub port: u16,
    /// 1, 2 or 4 bytes.
    pub size: u8,
    /// IN or INS.
    pub input: bool,
    /// INS or OUTS.
    pub string: bool,
    /// With a REP prefix.
    pub rep: bool,
    /// Address size in bytes; some hosts do not tell.
    pub address_size: Option<u8>,
    /// Segment of OUTS; CPUs without decode assists do not tell.
    pub segment: Option<SegReg>,
    /// RIP of the next instruction; every CPU tells.
    pub next_rip: u64,
}

bitflags! {
    /// EXITINFO1 of a nested page fault (APM vol. 2, 15.25.6).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct NestedError: u64 {
        /// The nested page was present, but did not permit the access.
        const PRESENT = 1 << 0;
        /// A write; always set when the fault came from the guest's page tables.
        const WRITE = 1 << 1;
        /// A user access in the sense of the nested table: every guest access is one.
        const USER = 1 << 2;
        /// A reserved bit was set in the nested page table.
        const RESERVED = 1 << 3;
        /// An instruction fetch.
        const FETCH = 1 << 4;
        /// A shadow stack access.
        const SHADOW_STACK = 1 << 6;
        /// The fault came in the translation of the final guest-physical address.
        const FINAL = 1 << 32;
        /// The fault came when the guest's page tables were read or written.
        const TABLE_WALK = 1 << 33;
        const _ = !0;
    }
}

/// Where a task switch came from (APM vol. 2, 15.14.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskSwitchSource {
    /// A far JMP.
    Jump,
    /// IRET with NT set.
    Iret,
    /// A far CALL, or a task gate in the IDT.
    CallOrGate,
}

/// A task switch that was about to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskSwitch {
    /// Selector of the incoming task's TSS.
    pub selector: u16,
    /// Its cause.
    pub source: TaskSwitchSource,
    /// Error code to push in the new task.
    pub error_code: Option<u32>,
    /// RFLAGS.RF of the outgoing task.
    pub resume_flag: bool,
}

/// Why the guest exited. Total: what is not known is [`Exit::Unknown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the manual's mnemonics")]
pub enum Exit {
    /// A MOV CR, SMSW (read of CR0).
    Cr(RegAccess),
    /// A write of CR0 that changed more than TS and MP: MOV or LMSW.
    Cr0SelWrite(RegAccess),
    /// A MOV DR.
    Dr(RegAccess),
    /// An exception; `error_code` as in EXITINFO1, `info2` is CR2 of a page fault.
    Exception {
        vector: u8,
        error_code: u32,
        info2: u64,
    },
    /// The host's interrupt, still pending there.
    Intr,
    /// The host's NMI, still pending there.
    Nmi,
    /// The host's SMI, still pending there.
    Smi,
    /// The host's INIT.
    Init,
    /// The interrupt window is open.
    Vintr,
    Rdtsc,
    Rdpmc,
    Cpuid,
    Rsm,
    Iret,
    Invd,
    Pause,
    Hlt,
    Invlpg,
    Invlpga,
    Io(IoExit),
    Msr {
        write: bool,
    },
    TaskSwitch(TaskSwitch),
    FerrFreeze,
    /// A triple fault.
    Shutdown,
    Vmmcall,
    /// VMRUN, VMLOAD, VMSAVE, STGI, CLGI, SKINIT: a guest has no AMD-V.
    SvmInstruction,
    Rdtscp,
    Icebp,
    Wbinvd,
    Monitor,
    Mwait,
    Xsetbv,
    Rdpru,
    /// INVLPGB, MCOMMIT, TLBSYNC, INVPCID.
    OtherInstruction,
    /// A nested page fault.
    NestedFault {
        gpa: u64,
        error: NestedError,
    },
    /// The CPU refused the VMCB: nothing of the guest ran. The save area may be garbage.
    Invalid,
    /// None of the above.
    Unknown(ExitCode),
}

impl Exit {
    /// Reads the exit from the VMCB.
    pub fn decode(vmcb: &Vmcb) -> Self {
        Self::Unknown(ExitCode(vmcb.exit_code()))
    }
}
