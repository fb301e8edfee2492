// SPDX-License-Identifier: GPL-2.0-only

//! Registers of the guest CPU, with the names and bit positions of APM vol. 2, chapter 3 and 4.

#![allow(
    missing_docs,
    reason = "the names of bits and registers are the manual's"
)]

use bitflags::bitflags;

/// Index of a general-purpose register in its instruction encoding (APM vol. 3, 1.4.1).
pub mod gpr {
    pub const RAX: u8 = 0;
    pub const RCX: u8 = 1;
    pub const RDX: u8 = 2;
    pub const RBX: u8 = 3;
    pub const RSP: u8 = 4;
    pub const RBP: u8 = 5;
    pub const RSI: u8 = 6;
    pub const RDI: u8 = 7;
}

/// The sixteen general-purpose registers, in the order of their encoding.
///
/// The entry assembly uses this layout: register `n` is at byte offset `8 * n`. Between exits all
/// sixteen are valid; RAX and RSP travel to and from the VMCB around VMRUN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GuestRegs {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
}

impl GuestRegs {
    /// Register `index`; only its low four bits count.
    #[inline]
    pub fn get(&self, index: u8) -> u64 {
        self.gpr[usize::from(index & 15)]
    }

    /// Sets register `index`; only the low four bits of `index` count.
    #[inline]
    pub fn set(&mut self, index: u8, value: u64) {
        self.gpr[usize::from(index & 15)] = value;
    }

    /// EDX:EAX as one number, as RDMSR, WRMSR and XSETBV use them.
    #[inline]
    pub fn edx_eax(&self) -> u64 {
        (self.get(gpr::RDX) << 32) | (self.get(gpr::RAX) & 0xffff_ffff)
    }

    /// Sets EDX:EAX; the upper halves of RDX and RAX become zero.
    #[inline]
    pub fn set_edx_eax(&mut self, value: u64) {
        self.set(gpr::RAX, value & 0xffff_ffff);
        self.set(gpr::RDX, value >> 32);
    }
}

/// A segment register, in the order of its encoding (APM vol. 3, 1.4.1), then the system ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SegReg {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
}

/// A segment register with its hidden part, as the VMCB holds it (APM vol. 2, 15.5.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Descriptor bits 40-47 in bits 0-7 and 52-55 in bits 8-11.
    pub attributes: SegAttr,
    /// Limit in bytes, granularity already applied.
    pub limit: u32,
    /// Linear base address.
    pub base: u64,
}

impl Segment {
    /// DPL.
    pub fn dpl(&self) -> u8 {
        (self.attributes.intersection(SegAttr::DPL).bits() >> 5) as u8
    }

    /// Whether it is conforming code.
    pub fn is_conforming(&self) -> bool {
        // Of data this bit says "expand down".
        self.attributes
            .contains(SegAttr::CODE | SegAttr::EXPAND_DOWN)
    }
}

/// Segment attributes in the VMCB's packed form (APM vol. 2, 15.5.1 and figure 4-14).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct SegAttr(u16);

bitflags! {
    impl SegAttr: u16 {
        /// The four type bits.
        const TYPE = 0xf;
        /// Accessed.
        const ACCESSED = 1 << 0;
        /// Data: writable. Code: readable.
        const WRITABLE = 1 << 1;
        /// Data: expand down. Code: conforming.
        const EXPAND_DOWN = 1 << 2;
        /// Code, not data.
        const CODE = 1 << 3;
        /// A code or data segment, not a system one.
        const S = 1 << 4;
        /// Descriptor privilege level.
        const DPL = 3 << 5;
        /// Present.
        const P = 1 << 7;
        /// Available to software.
        const AVL = 1 << 8;
        /// 64-bit code.
        const L = 1 << 9;
        /// 32-bit default operand or stack size.
        const DB = 1 << 10;
        /// Limit in units of 4 KiB.
        const G = 1 << 11;
        const _ = !0;
    }
}

/// CR0 (APM vol. 2, 3.1.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cr0(u64);

bitflags! {
    impl Cr0: u64 {
        const PE = 1 << 0;
        const MP = 1 << 1;
        const EM = 1 << 2;
        const TS = 1 << 3;
        const ET = 1 << 4;
        const NE = 1 << 5;
        const WP = 1 << 16;
        const AM = 1 << 18;
        const NW = 1 << 29;
        const CD = 1 << 30;
        const PG = 1 << 31;
        const _ = !0;
    }
}

/// CR4 (APM vol. 2, 3.1.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cr4(u64);

bitflags! {
    impl Cr4: u64 {
        const VME = 1 << 0;
        const PVI = 1 << 1;
        const TSD = 1 << 2;
        const DE = 1 << 3;
        const PSE = 1 << 4;
        const PAE = 1 << 5;
        const MCE = 1 << 6;
        const PGE = 1 << 7;
        const PCE = 1 << 8;
        const OSFXSR = 1 << 9;
        const OSXMMEXCPT = 1 << 10;
        const UMIP = 1 << 11;
        const LA57 = 1 << 12;
        const FSGSBASE = 1 << 16;
        const PCIDE = 1 << 17;
        const OSXSAVE = 1 << 18;
        const SMEP = 1 << 20;
        const SMAP = 1 << 21;
        const PKE = 1 << 22;
        const CET = 1 << 23;
        const _ = !0;
    }
}

/// EFER (APM vol. 2, 3.1.7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Efer(u64);

bitflags! {
    impl Efer: u64 {
        const SCE = 1 << 0;
        const LME = 1 << 8;
        const LMA = 1 << 10;
        const NXE = 1 << 11;
        const SVME = 1 << 12;
        const LMSLE = 1 << 13;
        const FFXSR = 1 << 14;
        const TCE = 1 << 15;
        const AIBRSE = 1 << 21;
        const _ = !0;
    }
}

/// RFLAGS (APM vol. 2, 3.1.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rflags(u64);

bitflags! {
    impl Rflags: u64 {
        const CF = 1 << 0;
        /// Reads as one, always.
        const RESERVED1 = 1 << 1;
        const PF = 1 << 2;
        const AF = 1 << 4;
        const ZF = 1 << 6;
        const SF = 1 << 7;
        const TF = 1 << 8;
        const IF = 1 << 9;
        const DF = 1 << 10;
        const OF = 1 << 11;
        const IOPL = 3 << 12;
        const NT = 1 << 14;
        const RF = 1 << 16;
        const VM = 1 << 17;
        const AC = 1 << 18;
        const VIF = 1 << 19;
        const VIP = 1 << 20;
        const ID = 1 << 21;
        const _ = !0;
    }
}

/// Exception vectors (APM vol. 2, table 8-1).
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XF: u8 = 19;
    pub const CP: u8 = 21;
}

/// An exception that the guest is to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// One of [`vector`].
    pub vector: u8,
    /// The error code, for the vectors that push one.
    pub error_code: Option<u32>,
    /// What is due in a register when it is delivered: CR2 for #PF, the DR6 bits for #DB.
    pub payload: Option<u64>,
}

impl Exception {
    /// An exception without an error code.
    pub const fn new(vector: u8) -> Self {
        Self {
            vector,
            error_code: None,
            payload: None,
        }
    }

    /// An exception with an error code.
    pub const fn with_code(vector: u8, code: u32) -> Self {
        Self {
            vector,
            error_code: Some(code),
            payload: None,
        }
    }

    /// #UD.
    pub const UD: Self = Self::new(vector::UD);
    /// #GP(0).
    pub const GP0: Self = Self::with_code(vector::GP, 0);

    /// #PF with the faulting linear address.
    pub const fn page_fault(linear: u64, code: u32) -> Self {
        Self {
            vector: vector::PF,
            error_code: Some(code),
            payload: Some(linear),
        }
    }
}
