// SPDX-License-Identifier: GPL-2.0-only

//! Why the guest exited, as a value: [`Exit::decode`] (APM vol. 2, appendix C).

use crate::vmcb::Vmcb;
use bitflags::bitflags;
use x86::regs::SegReg;

/// EXITCODE (VMCB 070). Any number is legal: new CPUs have new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct ExitCode(pub u64);

#[allow(missing_docs, reason = "the names are the manual's")]
impl ExitCode {
    pub const CR0_READ: Self = Self(0x00);
    pub const CR15_READ: Self = Self(0x0f);
    pub const CR0_WRITE: Self = Self(0x10);
    pub const CR15_WRITE: Self = Self(0x1f);
    pub const DR0_READ: Self = Self(0x20);
    pub const DR15_READ: Self = Self(0x2f);
    pub const DR0_WRITE: Self = Self(0x30);
    pub const DR15_WRITE: Self = Self(0x3f);
    pub const EXCP0: Self = Self(0x40);
    pub const EXCP31: Self = Self(0x5f);
    pub const INTR: Self = Self(0x60);
    pub const NMI: Self = Self(0x61);
    pub const SMI: Self = Self(0x62);
    pub const INIT: Self = Self(0x63);
    pub const VINTR: Self = Self(0x64);
    pub const CR0_SEL_WRITE: Self = Self(0x65);
    pub const IDTR_READ: Self = Self(0x66);
    pub const GDTR_READ: Self = Self(0x67);
    pub const LDTR_READ: Self = Self(0x68);
    pub const TR_READ: Self = Self(0x69);
    pub const IDTR_WRITE: Self = Self(0x6a);
    pub const GDTR_WRITE: Self = Self(0x6b);
    pub const LDTR_WRITE: Self = Self(0x6c);
    pub const TR_WRITE: Self = Self(0x6d);
    pub const RDTSC: Self = Self(0x6e);
    pub const RDPMC: Self = Self(0x6f);
    pub const PUSHF: Self = Self(0x70);
    pub const POPF: Self = Self(0x71);
    pub const CPUID: Self = Self(0x72);
    pub const RSM: Self = Self(0x73);
    pub const IRET: Self = Self(0x74);
    pub const SWINT: Self = Self(0x75);
    pub const INVD: Self = Self(0x76);
    pub const PAUSE: Self = Self(0x77);
    pub const HLT: Self = Self(0x78);
    pub const INVLPG: Self = Self(0x79);
    pub const INVLPGA: Self = Self(0x7a);
    pub const IOIO: Self = Self(0x7b);
    pub const MSR: Self = Self(0x7c);
    pub const TASK_SWITCH: Self = Self(0x7d);
    pub const FERR_FREEZE: Self = Self(0x7e);
    pub const SHUTDOWN: Self = Self(0x7f);
    pub const VMRUN: Self = Self(0x80);
    pub const VMMCALL: Self = Self(0x81);
    pub const VMLOAD: Self = Self(0x82);
    pub const VMSAVE: Self = Self(0x83);
    pub const STGI: Self = Self(0x84);
    pub const CLGI: Self = Self(0x85);
    pub const SKINIT: Self = Self(0x86);
    pub const RDTSCP: Self = Self(0x87);
    pub const ICEBP: Self = Self(0x88);
    pub const WBINVD: Self = Self(0x89);
    pub const MONITOR: Self = Self(0x8a);
    pub const MWAIT: Self = Self(0x8b);
    pub const MWAIT_CONDITIONAL: Self = Self(0x8c);
    pub const XSETBV: Self = Self(0x8d);
    pub const RDPRU: Self = Self(0x8e);
    pub const INVLPGB: Self = Self(0xa0);
    pub const INVLPGB_ILLEGAL: Self = Self(0xa1);
    pub const INVPCID: Self = Self(0xa2);
    pub const MCOMMIT: Self = Self(0xa3);
    pub const TLBSYNC: Self = Self(0xa4);
    pub const NPF: Self = Self(0x400);
    /// VMRUN refused the VMCB.
    pub const INVALID: Self = Self(u64::MAX);
    /// The same from old versions of QEMU, which write 32 bits.
    pub const INVALID_32: Self = Self(0xffff_ffff);

    /// The code of register `number`, if this is that of register 0, out of 16.
    pub(crate) const fn plus(self, number: u8) -> Self {
        Self(self.0 | (number & 0xf) as u64)
    }

    pub(crate) fn within(self, first: Self, last: Self) -> bool {
        first <= self && self <= last
    }
}

/// A MOV from or to a control or debug register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegAccess {
    /// The control or debug register of the exit code. QEMU reports reads of all control
    /// registers as reads of CR0.
    pub register: u8,
    /// A write.
    pub write: bool,
    /// What a CPU with decode assists says: the general-purpose register of a MOV. `None` for
    /// LMSW, SMSW and CLTS. Always `None` for CRs, and meaningless for DRs, without the feature.
    pub gpr: Option<u8>,
    /// What the emulator says: RIP behind the instruction, which is the MOV of `gpr`, or CLTS. It
    /// has been checked, and is not read again.
    pub next: Option<u64>,
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
    /// Address size in bytes; QEMU does not tell.
    pub address_size: Option<u8>,
    /// Segment of OUTS; means something on CPUs with decode assists only.
    pub segment: Option<SegReg>,
    /// RIP of the next instruction; every CPU tells.
    pub next_rip: u64,
}

impl IoExit {
    const INPUT: u64 = 1 << 0;
    const STRING: u64 = 1 << 2;
    const REP: u64 = 1 << 3;
    const SIZE_SHIFT: u32 = 4;
    const ADDRESS_SIZE_SHIFT: u32 = 7;
    const SEGMENT_SHIFT: u32 = 10;
    const PORT_SHIFT: u32 = 16;

    /// EXITINFO1. The manual's sizes are bits, so 1, 2 and 4 stand for themselves; of addresses
    /// they stand for 2, 4 and 8 bytes.
    pub(crate) fn info1(&self) -> u64 {
        let flag = |set: bool, bit: u64| if set { bit } else { 0 };
        let segment = match self.segment {
            None | Some(SegReg::Es) => 0,
            Some(SegReg::Cs) => 1,
            Some(SegReg::Ss) => 2,
            Some(SegReg::Ds) => 3,
            Some(SegReg::Fs) => 4,
            Some(_) => 5,
        };
        u64::from(self.port) << Self::PORT_SHIFT
            | segment << Self::SEGMENT_SHIFT
            | u64::from(self.address_size.unwrap_or(0) >> 1) << Self::ADDRESS_SIZE_SHIFT
            | u64::from(self.size) << Self::SIZE_SHIFT
            | flag(self.rep, Self::REP)
            | flag(self.string, Self::STRING)
            | flag(self.input, Self::INPUT)
    }

    fn decode(info1: u64, next_rip: u64) -> Option<Self> {
        let one_of_three = |shift: u32, values: [u8; 3]| match info1 >> shift & 7 {
            1 => Some(values[0]),
            2 => Some(values[1]),
            4 => Some(values[2]),
            _ => None,
        };
        Some(Self {
            port: (info1 >> Self::PORT_SHIFT) as u16,
            size: one_of_three(Self::SIZE_SHIFT, [1, 2, 4])?,
            input: info1 & Self::INPUT != 0,
            string: info1 & Self::STRING != 0,
            rep: info1 & Self::REP != 0,
            address_size: one_of_three(Self::ADDRESS_SIZE_SHIFT, [2, 4, 8]),
            segment: match info1 >> Self::SEGMENT_SHIFT & 7 {
                0 => Some(SegReg::Es),
                1 => Some(SegReg::Cs),
                2 => Some(SegReg::Ss),
                3 => Some(SegReg::Ds),
                4 => Some(SegReg::Fs),
                5 => Some(SegReg::Gs),
                _ => None,
            },
            next_rip,
        })
    }
}

/// EXITINFO1 of a nested page fault (APM vol. 2, 15.25.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NestedError(u64);

bitflags! {
    impl NestedError: u64 {
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

/// A task switch that was about to begin (APM vol. 2, 15.14.1).
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

impl TaskSwitch {
    const IRET: u64 = 1 << 36;
    const JUMP: u64 = 1 << 38;
    const HAS_ERROR_CODE: u64 = 1 << 44;
    const RESUME_FLAG: u64 = 1 << 48;

    fn decode(info1: u64, info2: u64) -> Self {
        Self {
            selector: info1 as u16,
            source: if info2 & Self::IRET != 0 {
                TaskSwitchSource::Iret
            } else if info2 & Self::JUMP != 0 {
                TaskSwitchSource::Jump
            } else {
                TaskSwitchSource::CallOrGate
            },
            error_code: (info2 & Self::HAS_ERROR_CODE != 0).then_some(info2 as u32),
            resume_flag: info2 & Self::RESUME_FLAG != 0,
        }
    }
}

/// Why the guest exited. Total: what is not known is [`Exit::Unknown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the manual's mnemonics")]
pub enum Exit {
    /// A MOV CR; SMSW as a read, LMSW and CLTS as writes of CR0.
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
    /// INT n.
    SoftwareInterrupt,
    Invd,
    Pause,
    Hlt,
    Invlpg,
    Io(IoExit),
    Msr {
        write: bool,
    },
    TaskSwitch(TaskSwitch),
    FerrFreeze,
    /// A triple fault.
    Shutdown,
    Vmmcall,
    /// VMRUN, VMLOAD, VMSAVE, STGI, CLGI, SKINIT, INVLPGA, by their codes.
    SvmInstruction(ExitCode),
    Rdtscp,
    Icebp,
    Wbinvd,
    Monitor,
    Mwait,
    Xsetbv,
    Rdpru,
    /// INVLPGB, INVPCID, MCOMMIT, TLBSYNC: not in the guest's CPUID if they exit.
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
    #[inline(never)] // Inlined, the value is taken apart and put together again.
    pub fn decode(vmcb: &Vmcb) -> Self {
        let code = ExitCode(vmcb.exit_code());
        let info1 = vmcb.exit_info1();
        match code {
            ExitCode::CPUID => Exit::Cpuid,
            ExitCode::NPF => Exit::NestedFault {
                gpa: vmcb.exit_info2(),
                error: NestedError::from_bits_retain(info1),
            },
            ExitCode::IOIO => {
                IoExit::decode(info1, vmcb.exit_info2()).map_or(Exit::Unknown(code), Exit::Io)
            }
            ExitCode::MSR => Exit::Msr {
                write: info1 & 1 != 0,
            },
            ExitCode::INTR => Exit::Intr,
            ExitCode::NMI => Exit::Nmi,
            ExitCode::SMI => Exit::Smi,
            ExitCode::INIT => Exit::Init,
            ExitCode::VINTR => Exit::Vintr,
            ExitCode::HLT => Exit::Hlt,
            ExitCode::PAUSE => Exit::Pause,
            ExitCode::VMMCALL => Exit::Vmmcall,
            code if code.within(ExitCode::CR0_READ, ExitCode::CR15_WRITE) => {
                Exit::Cr(RegAccess::decode(code, ExitCode::CR0_READ, info1))
            }
            ExitCode::CR0_SEL_WRITE => Exit::Cr0SelWrite(RegAccess::decode(
                ExitCode::CR0_WRITE,
                ExitCode::CR0_READ,
                info1,
            )),
            code if code.within(ExitCode::DR0_READ, ExitCode::DR15_WRITE) => Exit::Dr(
                RegAccess::decode(code, ExitCode::DR0_READ, info1 | RegAccess::IS_MOV),
            ),
            code if code.within(ExitCode::EXCP0, ExitCode::EXCP31) => Exit::Exception {
                vector: code.0.wrapping_sub(ExitCode::EXCP0.0) as u8,
                error_code: info1 as u32,
                info2: vmcb.exit_info2(),
            },
            ExitCode::RDTSC => Exit::Rdtsc,
            ExitCode::RDPMC => Exit::Rdpmc,
            ExitCode::RSM => Exit::Rsm,
            ExitCode::IRET => Exit::Iret,
            ExitCode::SWINT => Exit::SoftwareInterrupt,
            ExitCode::INVD => Exit::Invd,
            ExitCode::INVLPG => Exit::Invlpg,
            ExitCode::TASK_SWITCH => Exit::TaskSwitch(TaskSwitch::decode(info1, vmcb.exit_info2())),
            ExitCode::FERR_FREEZE => Exit::FerrFreeze,
            ExitCode::SHUTDOWN => Exit::Shutdown,
            ExitCode::VMRUN
            | ExitCode::VMLOAD
            | ExitCode::VMSAVE
            | ExitCode::STGI
            | ExitCode::CLGI
            | ExitCode::SKINIT
            | ExitCode::INVLPGA => Exit::SvmInstruction(code),
            ExitCode::RDTSCP => Exit::Rdtscp,
            ExitCode::ICEBP => Exit::Icebp,
            ExitCode::WBINVD => Exit::Wbinvd,
            ExitCode::MONITOR => Exit::Monitor,
            ExitCode::MWAIT | ExitCode::MWAIT_CONDITIONAL => Exit::Mwait,
            ExitCode::XSETBV => Exit::Xsetbv,
            ExitCode::RDPRU => Exit::Rdpru,
            ExitCode::INVLPGB
            | ExitCode::INVLPGB_ILLEGAL
            | ExitCode::INVPCID
            | ExitCode::MCOMMIT
            | ExitCode::TLBSYNC => Exit::OtherInstruction,
            ExitCode::INVALID | ExitCode::INVALID_32 => Exit::Invalid,
            _ => Exit::Unknown(code),
        }
    }
}

impl RegAccess {
    /// EXITINFO1 tells the operand (APM vol. 2, 15.8.1).
    pub(crate) const IS_MOV: u64 = 1 << 63;
    const GPR: u64 = 0xf;
    const REGISTERS: u64 = 16;

    /// `first` is the code of the read of register 0; writes follow sixteen codes later.
    fn decode(code: ExitCode, first: ExitCode, info1: u64) -> Self {
        let n = code.0.wrapping_sub(first.0);
        Self {
            register: (n % Self::REGISTERS) as u8,
            write: n >= Self::REGISTERS,
            gpr: (info1 & Self::IS_MOV != 0).then_some((info1 & Self::GPR) as u8),
            next: None,
        }
    }
}
