// SPDX-License-Identifier: GPL-2.0-only

//! The accessors of the VMCB. Every setter clears the clean bit of its field.

use super::Vmcb;
use crate::clean::Clean;
use crate::intercept::Intercepts;
use bitflags::bitflags;
use x86::regs::{Cr0, Cr4, Efer, Rflags, SegReg, Segment};

/// The virtual interrupt controls (VMCB 060, APM vol. 2, 15.21).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtualInterrupt(u32);

bitflags! {
    impl VirtualInterrupt: u32 {
        /// V_TPR: the guest's CR8.
        const V_TPR = 0xf;
        /// A virtual interrupt is pending.
        const V_IRQ = 1 << 8;
        /// Virtual GIF.
        const VGIF = 1 << 9;
        /// A virtual NMI is pending.
        const V_NMI_PENDING = 1 << 11;
        /// Virtual NMIs are masked.
        const V_NMI_BLOCKING = 1 << 12;
        /// V_INTR_PRIO.
        const V_INTR_PRIO = 0xf << 16;
        /// The virtual interrupt is taken whatever V_TPR says.
        const V_IGN_TPR = 1 << 20;
        /// RFLAGS.IF masks virtual interrupts only, and CR8 is V_TPR.
        const V_INTR_MASKING = 1 << 24;
        /// Virtual GIF is enabled.
        const V_GIF_ENABLE = 1 << 25;
        /// NMI virtualization is enabled.
        const V_NMI_ENABLE = 1 << 26;
        const _ = !0;
    }
}

/// What VMRUN flushes (VMCB 05C, APM vol. 2, 15.16.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TlbControl {
    /// Nothing.
    Nothing = 0,
    /// All entries of all ASIDs, the host's too. For CPUs without flush by ASID.
    AllAsids = 1,
    /// All entries of the guest's ASID.
    Asid = 3,
    /// The guest's entries that are not global.
    AsidNonGlobal = 7,
}

/// Nested paging is on (VMCB 090).
pub(super) const NP_ENABLE: u64 = 1 << 0;
/// VMRUN and #VMEXIT switch DebugCtl and the record of branches (VMCB 0B8, APM vol. 2, 15.23).
const LBR_VIRTUALIZATION: u64 = 1 << 0;
/// The guest is in an interrupt shadow (VMCB 068).
const INTERRUPT_SHADOW: u64 = 1 << 0;

/// Getter and setter of a plain field; the setter clears the clean bit.
macro_rules! fields {
    ($($(#[$doc:meta])* $get:ident $set:ident: $type:ty = $area:ident.$field:ident, $clean:ident;)*) => {
        $(
            $(#[$doc])*
            #[inline]
            pub fn $get(&self) -> $type {
                self.$area.$field
            }

            #[doc = concat!("Sets [`Self::", stringify!($get), "`].")]
            #[inline]
            pub fn $set(&mut self, value: $type) {
                self.$area.$field = value;
                self.touch(Clean::$clean);
            }
        )*
    };
}

/// The same for fields that VMRUN always loads.
macro_rules! uncached_fields {
    ($($(#[$doc:meta])* $get:ident $set:ident: $type:ty = $area:ident.$field:ident;)*) => {
        $(
            $(#[$doc])*
            #[inline]
            pub fn $get(&self) -> $type {
                self.$area.$field
            }

            #[doc = concat!("Sets [`Self::", stringify!($get), "`]; VMRUN always loads it.")]
            #[inline]
            pub fn $set(&mut self, value: $type) {
                self.$area.$field = value;
            }
        )*
    };
}

/// The same for fields with a type of bits.
macro_rules! flag_fields {
    ($($(#[$doc:meta])* $get:ident $set:ident: $type:ident = $area:ident.$field:ident, $clean:expr;)*) => {
        $(
            $(#[$doc])*
            #[inline]
            pub fn $get(&self) -> $type {
                $type::from_bits_retain(self.$area.$field)
            }

            #[doc = concat!("Sets [`Self::", stringify!($get), "`].")]
            #[inline]
            pub fn $set(&mut self, value: $type) {
                self.$area.$field = value.bits();
                self.touch($clean);
            }
        )*
    };
}

/// Fields that only the CPU writes.
macro_rules! exit_fields {
    ($($(#[$doc:meta])* $get:ident: $type:ty = $field:ident;)*) => {
        $(
            $(#[$doc])*
            #[inline]
            pub fn $get(&self) -> $type {
                self.control.$field
            }
        )*
    };
}

impl Vmcb {
    fields! {
        /// The PAUSE filter's count (APM vol. 2, 15.14.4).
        pause_filter_count set_pause_filter_count: u16 = control.pause_filter_count, INTERCEPTS;
        /// The PAUSE filter's threshold.
        pause_filter_threshold set_pause_filter_threshold: u16 = control.pause_filter_threshold, INTERCEPTS;
        /// Physical address of the I/O permission map, [`crate::iopm`].
        iopm_base set_iopm_base: u64 = control.iopm_base, PERMISSIONS;
        /// Physical address of the MSR permission map, [`crate::msrpm`].
        msrpm_base set_msrpm_base: u64 = control.msrpm_base, PERMISSIONS;
        /// What the guest's TSC is ahead of the host's.
        tsc_offset set_tsc_offset: u64 = control.tsc_offset, INTERCEPTS;
        /// The guest's address space identifier, never 0.
        asid set_asid: u32 = control.asid, ASID;
        /// Physical address of the root of the nested page table.
        ncr3 set_ncr3: u64 = control.ncr3, NESTED_PAGING;
        /// PAT of the guest.
        g_pat set_g_pat: u64 = save.g_pat, NESTED_PAGING;
        /// CR3.
        cr3 set_cr3: u64 = save.cr3, CR;
        /// CR2.
        cr2 set_cr2: u64 = save.cr2, CR2;
        /// DR6.
        dr6 set_dr6: u64 = save.dr6, DR;
        /// DR7.
        dr7 set_dr7: u64 = save.dr7, DR;
        /// Current privilege level.
        cpl set_cpl: u8 = save.cpl, SEGMENTS;
        /// GDTR: base and limit.
        gdtr set_gdtr: Segment = save.gdtr, DESCRIPTOR_TABLES;
        /// IDTR: base and limit.
        idtr set_idtr: Segment = save.idtr, DESCRIPTOR_TABLES;
        /// DBGCTL.
        dbgctl set_dbgctl: u64 = save.dbgctl, LBR;
        /// Last branch from.
        br_from set_br_from: u64 = save.br_from, LBR;
        /// Last branch to.
        br_to set_br_to: u64 = save.br_to, LBR;
        /// Last exception from.
        last_excp_from set_last_excp_from: u64 = save.last_excp_from, LBR;
        /// Last exception to.
        last_excp_to set_last_excp_to: u64 = save.last_excp_to, LBR;
    }

    flag_fields! {
        /// CR0 as the CPU uses it; see [`crate::cpu`] for what the guest reads.
        cr0 set_cr0: Cr0 = save.cr0, Clean::CR;
        /// CR4 as the CPU uses it.
        cr4 set_cr4: Cr4 = save.cr4, Clean::CR;
        /// EFER as the CPU uses it: SVME is always set.
        efer set_efer: Efer = save.efer, Clean::CR;
        /// RFLAGS.
        rflags set_rflags: Rflags = save.rflags, Clean::empty();
        /// The virtual interrupt.
        virtual_interrupt set_virtual_interrupt: VirtualInterrupt = control.int_control, Clean::INTERRUPT;
    }

    uncached_fields! {
        /// RIP.
        rip set_rip: u64 = save.rip;
        /// RSP. Between exits [`crate::state::VcpuState::regs`] has the true one.
        rsp set_rsp: u64 = save.rsp;
        /// RAX. Between exits [`crate::state::VcpuState::regs`] has the true one.
        rax set_rax: u64 = save.rax;
        /// SPEC_CTRL, on CPUs with [`crate::features::SvmFeatures::V_SPEC_CTRL`].
        spec_ctrl set_spec_ctrl: u64 = save.spec_ctrl;
        /// STAR.
        star set_star: u64 = save.star;
        /// LSTAR.
        lstar set_lstar: u64 = save.lstar;
        /// CSTAR.
        cstar set_cstar: u64 = save.cstar;
        /// SFMASK.
        sfmask set_sfmask: u64 = save.sfmask;
        /// KernelGSBase.
        kernel_gs_base set_kernel_gs_base: u64 = save.kernel_gs_base;
        /// SYSENTER_CS.
        sysenter_cs set_sysenter_cs: u64 = save.sysenter_cs;
        /// SYSENTER_ESP.
        sysenter_esp set_sysenter_esp: u64 = save.sysenter_esp;
        /// SYSENTER_EIP.
        sysenter_eip set_sysenter_eip: u64 = save.sysenter_eip;
        /// EVENTINJ with its error code ([`crate::event`]).
        event_inj set_event_inj: u64 = control.event_inj;
        /// Address of the instruction after the intercepted one, or 0; on the way in the return
        /// address of an injected software interrupt.
        next_rip set_next_rip: u64 = control.next_rip;
    }

    exit_fields! {
        /// Why the guest exited, [`crate::exit::ExitCode`].
        exit_code: u64 = exit_code;
        /// EXITINFO1.
        exit_info1: u64 = exit_info1;
        /// EXITINFO2.
        exit_info2: u64 = exit_info2;
        /// EXITINTINFO with its error code ([`crate::event`]).
        exit_int_info: u64 = exit_int_info;
    }

    /// The bytes of the instruction that the CPU saved at a nested fault, or none
    /// (APM vol. 2, 15.8.4).
    pub fn instruction_bytes(&self) -> &[u8] {
        self.control
            .insn_bytes
            .get(..usize::from(self.control.insn_len & 0xf))
            .unwrap_or(&[])
    }

    /// How many bytes of the instruction there are, in the lowest byte, and these.
    pub(crate) fn instruction(&self) -> u128 {
        let mut bytes = [0; 16];
        let [length, rest @ ..] = &mut bytes;
        *length = self.control.insn_len;
        rest.copy_from_slice(&self.control.insn_bytes);
        u128::from_le_bytes(bytes)
    }

    /// The intercept words.
    #[inline]
    pub fn intercepts(&self) -> &Intercepts {
        &self.control.intercepts
    }

    /// Sets the intercept words; does nothing if they are the same already.
    #[inline]
    pub fn set_intercepts(&mut self, value: Intercepts) {
        if self.control.intercepts != value {
            self.control.intercepts = value;
            self.touch(Clean::INTERCEPTS);
        }
    }

    /// Changes some intercepts.
    #[inline]
    pub fn update_intercepts(&mut self, change: impl FnOnce(&mut Intercepts)) {
        let mut intercepts = self.control.intercepts;
        change(&mut intercepts);
        self.set_intercepts(intercepts);
    }

    /// A segment register.
    #[inline]
    pub fn segment(&self, reg: SegReg) -> Segment {
        match reg {
            SegReg::Es => self.save.es,
            SegReg::Cs => self.save.cs,
            SegReg::Ss => self.save.ss,
            SegReg::Ds => self.save.ds,
            SegReg::Fs => self.save.fs,
            SegReg::Gs => self.save.gs,
            SegReg::Ldtr => self.save.ldtr,
            SegReg::Tr => self.save.tr,
        }
    }

    /// Sets a segment register. CPL is a field of its own: [`Self::set_cpl`].
    pub fn set_segment(&mut self, reg: SegReg, value: Segment) {
        let field = match reg {
            SegReg::Es => &mut self.save.es,
            SegReg::Cs => &mut self.save.cs,
            SegReg::Ss => &mut self.save.ss,
            SegReg::Ds => &mut self.save.ds,
            // VMLOAD loads these four, which no clean bit covers.
            SegReg::Fs => return self.save.fs = value,
            SegReg::Gs => return self.save.gs = value,
            SegReg::Ldtr => return self.save.ldtr = value,
            SegReg::Tr => return self.save.tr = value,
        };
        *field = value;
        self.touch(Clean::SEGMENTS);
    }

    /// Base of FS, which is an MSR, too.
    pub fn fs_base(&self) -> u64 {
        self.save.fs.base
    }

    /// Sets the base of FS.
    pub fn set_fs_base(&mut self, value: u64) {
        self.save.fs.base = value;
    }

    /// Base of GS, which is an MSR, too.
    pub fn gs_base(&self) -> u64 {
        self.save.gs.base
    }

    /// Sets the base of GS.
    pub fn set_gs_base(&mut self, value: u64) {
        self.save.gs.base = value;
    }

    /// Whether the guest is in the shadow of an STI or MOV SS.
    #[inline]
    pub fn interrupt_shadow(&self) -> bool {
        self.control.int_state & INTERRUPT_SHADOW != 0
    }

    /// Puts the guest into an interrupt shadow, or out of it.
    #[inline]
    pub fn set_interrupt_shadow(&mut self, on: bool) {
        self.control.int_state &= !INTERRUPT_SHADOW;
        self.control.int_state |= u64::from(on);
    }

    /// Whether VMRUN switches DebugCtl and the record of branches.
    #[inline]
    pub fn lbr_virtualization(&self) -> bool {
        self.control.virt_ext & LBR_VIRTUALIZATION != 0
    }

    /// Sets [`Self::lbr_virtualization`].
    pub fn set_lbr_virtualization(&mut self, on: bool) {
        if on != self.lbr_virtualization() {
            self.control.virt_ext ^= LBR_VIRTUALIZATION;
            self.touch(Clean::LBR);
        }
    }

    /// Whether the guest's NMIs are virtual: the CPU has their mask, and one that waits.
    #[inline]
    pub fn has_virtual_nmis(&self) -> bool {
        self.control.int_control & VirtualInterrupt::V_NMI_ENABLE.bits() != 0
    }

    /// Sets [`Self::has_virtual_nmis`].
    pub fn set_virtual_nmis(&mut self, on: bool) {
        if on != self.has_virtual_nmis() {
            let mut control = self.virtual_interrupt();
            control.toggle(VirtualInterrupt::V_NMI_ENABLE);
            control.remove(VirtualInterrupt::V_NMI_PENDING | VirtualInterrupt::V_NMI_BLOCKING);
            self.set_virtual_interrupt(control);
        }
    }

    /// V_TPR, which is the guest's CR8.
    #[inline]
    pub fn v_tpr(&self) -> u8 {
        (self.control.int_control & VirtualInterrupt::V_TPR.bits()) as u8
    }

    /// Sets V_TPR; only the low four bits count.
    #[inline]
    pub fn set_v_tpr(&mut self, value: u8) {
        if self.v_tpr() != value & 0xf {
            self.control.int_control &= !VirtualInterrupt::V_TPR.bits();
            self.control.int_control |= u32::from(value & 0xf);
            self.touch(Clean::INTERRUPT);
        }
    }

    /// What the next VMRUN flushes.
    #[inline]
    pub fn set_tlb_control(&mut self, value: TlbControl) {
        self.control.tlb_control = value as u8;
    }

    /// The encoding of what the next VMRUN flushes.
    pub fn tlb_control(&self) -> u8 {
        self.control.tlb_control
    }

    /// The clean bits.
    pub fn clean(&self) -> Clean {
        Clean::from_bits_retain(self.control.clean)
    }

    /// Promises that the VMCB is as the CPU left it: after a #VMEXIT, on a CPU with clean bits.
    #[inline]
    pub fn set_clean(&mut self) {
        self.control.clean = CLEAN_AFTER_EXIT.bits();
    }

    /// Says that the fields which were changed since [`Self::clean`] answered this are again what
    /// they were then.
    #[inline]
    pub(crate) fn restore_clean(&mut self, clean: Clean) {
        self.control.clean = clean.bits();
    }

    /// Takes all that has a meaning from another one, which is a quarter of it.
    pub fn copy_from(&mut self, other: &Vmcb) {
        (self.control, self.save) = (other.control, other.save);
    }

    /// Withdraws every promise: when the VMCB goes to another CPU, and when in doubt.
    pub fn set_all_dirty(&mut self) {
        self.control.clean = 0;
    }

    /// Says that fields of these groups have changed.
    #[inline]
    pub(super) fn touch(&mut self, groups: Clean) {
        self.control.clean &= !groups.bits();
    }
}

/// The groups that exist. Undefined bits stay clear.
const CLEAN_AFTER_EXIT: Clean = Clean::from_bits_retain(0x1fff);
