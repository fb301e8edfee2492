// SPDX-License-Identifier: GPL-2.0-only

//! What makes a guest exit: the six intercept words (APM vol. 2, table B-1, 15.9 to 15.14).

#![allow(missing_docs, reason = "the names of the bits are the manual's")]

use crate::features::SvmFeatures;
use bitflags::bitflags;

/// Reads (bits 0-15) and writes (bits 16-31) of control registers, by number (VMCB 000).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct CrIntercepts(u32);

bitflags! {
    impl CrIntercepts: u32 {
        /// MOV from CR0, SMSW.
        const CR0_READ = 1 << 0;
        /// MOV from CR4.
        const CR4_READ = 1 << 4;
        /// MOV to CR0, LMSW, CLTS.
        const CR0_WRITE = 1 << 16;
        /// MOV to CR8.
        const CR8_WRITE = 1 << 24;
        /// MOV to CR4.
        const CR4_WRITE = 1 << 20;
        const _ = !0;
    }
}

/// Reads (bits 0-15) and writes (bits 16-31) of debug registers, by number (VMCB 004).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct DrIntercepts(u32);

bitflags! {
    impl DrIntercepts: u32 {
        /// MOV from DR0 to DR3.
        const DR0_3_READ = 0xf;
        /// MOV to DR0 to DR3.
        const DR0_3_WRITE = 0xf << 16;
        /// MOV to DR5, which is DR7 while CR4.DE is clear.
        const DR5_WRITE = 1 << 21;
        /// MOV to DR7.
        const DR7_WRITE = 1 << 23;
        const _ = !0;
    }
}

/// Exceptions, by vector (VMCB 008, APM vol. 2, 15.12).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct ExceptionIntercepts(u32);

bitflags! {
    impl ExceptionIntercepts: u32 {
        /// Debug exception.
        const DB = 1 << 1;
        /// Breakpoint: INT3.
        const BP = 1 << 3;
        /// Undefined instruction.
        const UD = 1 << 6;
        /// Alignment check.
        const AC = 1 << 17;
        /// Machine check.
        const MC = 1 << 18;
        const _ = !0;
    }
}

/// Intercept word 3 (VMCB 00C).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Word3(u32);

bitflags! {
    impl Word3: u32 {
        const INTR = 1 << 0;
        const NMI = 1 << 1;
        const SMI = 1 << 2;
        const INIT = 1 << 3;
        /// The interrupt window: a virtual interrupt could be taken now.
        const VINTR = 1 << 4;
        /// Writes of CR0 that change other bits than TS and MP.
        const CR0_SEL_WRITE = 1 << 5;
        const IDTR_READ = 1 << 6;
        const GDTR_READ = 1 << 7;
        const LDTR_READ = 1 << 8;
        const TR_READ = 1 << 9;
        const IDTR_WRITE = 1 << 10;
        const GDTR_WRITE = 1 << 11;
        const LDTR_WRITE = 1 << 12;
        const TR_WRITE = 1 << 13;
        const RDTSC = 1 << 14;
        const RDPMC = 1 << 15;
        const PUSHF = 1 << 16;
        const POPF = 1 << 17;
        const CPUID = 1 << 18;
        const RSM = 1 << 19;
        const IRET = 1 << 20;
        const SWINT = 1 << 21;
        const INVD = 1 << 22;
        const PAUSE = 1 << 23;
        const HLT = 1 << 24;
        const INVLPG = 1 << 25;
        const INVLPGA = 1 << 26;
        const IOIO = 1 << 27;
        const MSR = 1 << 28;
        const TASK_SWITCH = 1 << 29;
        const FERR_FREEZE = 1 << 30;
        const SHUTDOWN = 1 << 31;
    }
}

/// Intercept word 4 (VMCB 010).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Word4(u32);

bitflags! {
    impl Word4: u32 {
        const VMRUN = 1 << 0;
        const VMMCALL = 1 << 1;
        const VMLOAD = 1 << 2;
        const VMSAVE = 1 << 3;
        const STGI = 1 << 4;
        const CLGI = 1 << 5;
        const SKINIT = 1 << 6;
        const RDTSCP = 1 << 7;
        const ICEBP = 1 << 8;
        const WBINVD = 1 << 9;
        const MONITOR = 1 << 10;
        const MWAIT = 1 << 11;
        const MWAIT_CONDITIONAL = 1 << 12;
        const XSETBV = 1 << 13;
        const RDPRU = 1 << 14;
        /// A write of EFER has finished.
        const EFER_WRITE_TRAP = 1 << 15;
        const _ = !0;
    }
}

/// Intercept word 5 (VMCB 014).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Word5(u32);

bitflags! {
    impl Word5: u32 {
        const INVLPGB = 1 << 0;
        const INVLPGB_ILLEGAL = 1 << 1;
        const INVPCID = 1 << 2;
        const MCOMMIT = 1 << 3;
        const TLBSYNC = 1 << 4;
        const BUS_LOCK = 1 << 5;
        const IDLE_HLT = 1 << 6;
        const _ = !0;
    }
}

/// The intercept words, as they lie at the start of the VMCB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Intercepts {
    /// 000
    pub cr: CrIntercepts,
    /// 004
    pub dr: DrIntercepts,
    /// 008
    pub exceptions: ExceptionIntercepts,
    /// 00C
    pub word3: Word3,
    /// 010
    pub word4: Word4,
    /// 014
    pub word5: Word5,
}

impl Intercepts {
    /// What every guest exits for. What is absent is as deliberate as what is there:
    ///
    /// - CR3, INVLPG, CR2, and INVPCID if the guest has it (`state.rs`): nested paging makes them
    ///   the guest's own business.
    /// - RDTSC, and RDTSCP if the guest has it (likewise): TSC_OFFSET does the work, and the
    ///   host switches TSC_AUX.
    /// - Reads of DR6 and DR7 and writes of DR6: the VMCB holds them.
    /// - #GP, #PF: the guest handles its own; nothing of ours rests on them.
    /// - #BP, and all of the debug registers: only for a debugger (`debug.rs`).
    /// - Descriptor-table reads and writes, PUSHF, POPF, INTn, ICEBP: no use for them.
    /// - IRET and VINTR: only while an NMI or interrupt window is wanted (`inject.rs`).
    pub const BASELINE: Self = Self {
        // The guest may set only the CR4 bits that its CPUID has. CR8 is watched when an
        // interrupt waits for the task priority to fall (`inject.rs`); CR0 and CR4 reads only
        // while a bit differs from what the guest wrote (`cpu.rs`).
        cr: CrIntercepts::CR4_WRITE,
        // DR0 to DR3 are not in the VMCB: the host's own are in the CPU until the guest enables
        // a breakpoint, which it does by writing DR7.
        dr: DrIntercepts::DR0_3_READ
            .union(DrIntercepts::DR0_3_WRITE)
            .union(DrIntercepts::DR5_WRITE)
            .union(DrIntercepts::DR7_WRITE),
        // #UD may be a VMCALL. #MC is the host's. #DB and #AC can be made to recur for ever within
        // the delivery of themselves; without an exit the CPU would never come back
        // (CVE-2015-8104, CVE-2015-5307).
        exceptions: ExceptionIntercepts::DB
            .union(ExceptionIntercepts::UD)
            .union(ExceptionIntercepts::AC)
            .union(ExceptionIntercepts::MC),
        word3: Word3::INTR // The host's interrupts, ...
            .union(Word3::NMI)
            .union(Word3::SMI)
            .union(Word3::INIT) // ... all of them.
            .union(Word3::CR0_SEL_WRITE) // Cache disable is kept from the real CR0.
            .union(Word3::RDPMC) // Counts the host, too.
            .union(Word3::CPUID)
            .union(Word3::RSM) // #UD outside of SMM, which guests do not have.
            .union(Word3::INVD) // Would lose the host's dirty cache lines.
            .union(Word3::HLT)
            .union(Word3::INVLPGA)
            .union(Word3::IOIO)
            .union(Word3::MSR)
            .union(Word3::TASK_SWITCH) // VMRUN needs it to keep event state right.
            .union(Word3::FERR_FREEZE) // Legacy FPU error reporting would stop the CPU.
            .union(Word3::SHUTDOWN), // Would reset the host.
        word4: Word4::VMRUN // Must be set, or VMRUN fails (APM vol. 2, 15.5.1). No nesting: #UD.
            .union(Word4::VMMCALL)
            .union(Word4::VMLOAD)
            .union(Word4::VMSAVE)
            .union(Word4::STGI)
            .union(Word4::CLGI)
            .union(Word4::SKINIT)
            .union(Word4::WBINVD)
            .union(Word4::MONITOR)
            .union(Word4::MWAIT)
            .union(Word4::XSETBV)
            .union(Word4::RDPRU), // Reads the host's APERF and MPERF.
        word5: Word5::INVLPGB
            .union(Word5::INVLPGB_ILLEGAL)
            .union(Word5::MCOMMIT)
            .union(Word5::TLBSYNC),
    };

    /// The baseline for a host: where PAUSE exits can be filtered, a guest that spins for long
    /// gives its CPU back.
    pub const fn for_host(features: SvmFeatures) -> Self {
        let mut intercepts = Self::BASELINE;
        if features.contains(SvmFeatures::PAUSE_FILTER) {
            intercepts.word3 = intercepts.word3.union(Word3::PAUSE);
        }
        intercepts
    }
}
