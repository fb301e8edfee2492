// SPDX-License-Identifier: GPL-2.0-only

//! The VMCB in the guest's memory, as values (APM vol. 2, appendix B).

use crate::dispatch::valid_dr7;
use crate::exit::ExitCode;
use crate::intercept::{
    CrIntercepts, DrIntercepts, ExceptionIntercepts, Intercepts, Word3, Word4, Word5,
};
use crate::state::{guest_cr0, guest_cr4, guest_efer, set_guest_cr0, set_guest_cr4};
use crate::state::{set_guest_efer, VcpuState};
use crate::vmcb::{Vmcb, DR7_RESET};
use x86::cpu::{GuestMemory, MemError};
use x86::regs::{gpr, Cr0, Cr4, Efer, Rflags, SegAttr, SegReg, Segment};
use x86::sregs::normalize_cr0;

/// Where the state save area begins.
pub(crate) const SAVE: usize = 0x400;
/// Bytes of the control area that mean something here.
pub(crate) const CONTROL_BYTES: usize = 0x110;
/// Bytes of the state save area, likewise: up to G_PAT.
pub(crate) const SAVE_BYTES: usize = 0x270;

/// A value in a VMCB in memory.
pub(crate) trait Field: Copy {
    /// Its bytes there.
    const SIZE: usize;
    fn get(bytes: &[u8], at: usize) -> Self;
    fn put(self, bytes: &mut [u8], at: usize);
}

macro_rules! numbers {
    ($($number:ty)*) => { $(
        impl Field for $number {
            const SIZE: usize = size_of::<Self>();

            fn get(bytes: &[u8], at: usize) -> Self {
                let mut value = [0; size_of::<Self>()];
                let end = at.wrapping_add(size_of::<Self>());
                if let Some(field) = bytes.get(at..end) {
                    value.copy_from_slice(field);
                }
                Self::from_le_bytes(value)
            }

            fn put(self, bytes: &mut [u8], at: usize) {
                let end = at.wrapping_add(size_of::<Self>());
                if let Some(field) = bytes.get_mut(at..end) {
                    field.copy_from_slice(&self.to_le_bytes());
                }
            }
        }
    )* };
}

numbers! { u8 u16 u32 u64 u128 }

impl Field for Segment {
    const SIZE: usize = 16;

    fn get(bytes: &[u8], at: usize) -> Self {
        /// Descriptor bits 40 to 47 and 52 to 55.
        const ATTRIBUTES: u16 = 0xfff;
        Self {
            selector: u16::get(bytes, at),
            attributes: SegAttr::from_bits_retain(u16::get(bytes, at.wrapping_add(2)) & ATTRIBUTES),
            limit: u32::get(bytes, at.wrapping_add(4)),
            base: u64::get(bytes, at.wrapping_add(8)),
        }
    }

    fn put(self, bytes: &mut [u8], at: usize) {
        self.selector.put(bytes, at);
        self.attributes.bits().put(bytes, at.wrapping_add(2));
        self.limit.put(bytes, at.wrapping_add(4));
        self.base.put(bytes, at.wrapping_add(8));
    }
}

/// A part of the VMCB: its fields, with their offsets in it; and a table of these, each with its
/// end.
macro_rules! area {
    ($(#[$doc:meta])* $name:ident, $table:ident, $places:ident from $base:ident {
        $($(#[$field_doc:meta])* $field:ident: $type:ty = $offset:literal,)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub(crate) struct $name { $($(#[$field_doc])* pub(crate) $field: $type,)* }

        struct $places { $($field: (usize, usize),)* }

        const $table: $places = $places {
            $($field: ($offset, $offset + <$type as Field>::SIZE),)*
        };

        impl $name {
            /// Takes them from the bytes of the area.
            pub(crate) fn read(bytes: &[u8]) -> Self {
                Self { $($field: Field::get(bytes, $table.$field.0 - $base),)* }
            }

            /// Puts them into the bytes of the area.
            pub(crate) fn write(&self, bytes: &mut [u8]) {
                $(self.$field.put(bytes, $table.$field.0 - $base);)*
            }
        }
    };
}

/// Where the control area begins.
const CONTROL: usize = 0;

area! {
    /// The control area.
    Control, CONTROL_AT, ControlPlaces from CONTROL {
        cr: u32 = 0x000,
        dr: u32 = 0x004,
        exceptions: u32 = 0x008,
        word3: u32 = 0x00c,
        word4: u32 = 0x010,
        word5: u32 = 0x014,
        iopm: u64 = 0x040,
        msrpm: u64 = 0x048,
        tsc_offset: u64 = 0x050,
        asid: u32 = 0x058,
        tlb_control: u8 = 0x05c,
        int_control: u32 = 0x060,
        int_vector: u32 = 0x064,
        int_state: u64 = 0x068,
        exit_code: u64 = 0x070,
        exit_info1: u64 = 0x078,
        exit_info2: u64 = 0x080,
        exit_int_info: u64 = 0x088,
        np_control: u64 = 0x090,
        event_inj: u64 = 0x0a8,
        ncr3: u64 = 0x0b0,
        next_rip: u64 = 0x0c8,
        /// How many bytes of the instruction follow, and these.
        instruction: u128 = 0x0d0,
    }
}

/// What #VMEXIT writes of the control area: V_TPR to EXITINTINFO, EVENTINJ, nRIP and what follows.
const CONTROL_WRITTEN: [(usize, usize); 3] = [
    (CONTROL_AT.int_control.0, CONTROL_AT.exit_int_info.1),
    CONTROL_AT.event_inj,
    (CONTROL_AT.next_rip.0, CONTROL_AT.instruction.1),
];

area! {
    /// The registers that VMRUN and #VMEXIT switch (APM vol. 2, 15.5.1, 15.6).
    Registers, REGISTERS_AT, RegistersPlaces from SAVE {
        es: Segment = 0x400,
        cs: Segment = 0x410,
        ss: Segment = 0x420,
        ds: Segment = 0x430,
        gdtr: Segment = 0x460,
        idtr: Segment = 0x480,
        cpl: u8 = 0x4cb,
        efer: u64 = 0x4d0,
        cr4: u64 = 0x548,
        cr3: u64 = 0x550,
        cr0: u64 = 0x558,
        dr7: u64 = 0x560,
        dr6: u64 = 0x568,
        rflags: u64 = 0x570,
        rip: u64 = 0x578,
        rsp: u64 = 0x5d8,
        rax: u64 = 0x5f8,
        cr2: u64 = 0x640,
        g_pat: u64 = 0x668,
    }
}

/// Where they are in the VMCB; G_PAT, only written with nested paging, is last.
const SAVE_WRITTEN: [(usize, usize); 10] = [
    (REGISTERS_AT.es.0, REGISTERS_AT.ds.1),
    REGISTERS_AT.gdtr,
    REGISTERS_AT.idtr,
    REGISTERS_AT.cpl,
    REGISTERS_AT.efer,
    (REGISTERS_AT.cr4.0, REGISTERS_AT.rip.1),
    REGISTERS_AT.rsp,
    REGISTERS_AT.rax,
    REGISTERS_AT.cr2,
    REGISTERS_AT.g_pat,
];

area! {
    /// The registers that VMLOAD and VMSAVE move (APM vol. 2, 15.5.2).
    Loaded, LOADED_AT, LoadedPlaces from SAVE {
        fs: Segment = 0x440,
        gs: Segment = 0x450,
        ldtr: Segment = 0x470,
        tr: Segment = 0x490,
        star: u64 = 0x600,
        lstar: u64 = 0x608,
        cstar: u64 = 0x610,
        sfmask: u64 = 0x618,
        kernel_gs_base: u64 = 0x620,
        sysenter_cs: u64 = 0x628,
        sysenter_esp: u64 = 0x630,
        sysenter_eip: u64 = 0x638,
    }
}

/// Where they are in the VMCB.
const LOADED: [(usize, usize); 4] = [
    (LOADED_AT.fs.0, LOADED_AT.gs.1),
    LOADED_AT.ldtr,
    LOADED_AT.tr,
    (LOADED_AT.star.0, LOADED_AT.sysenter_eip.1),
];

/// Nested paging, in `np_control`.
const NP_ENABLE: u64 = 1 << 0;

impl Control {
    /// Reads the area of the VMCB at `gpa`, each byte once.
    pub(crate) fn load(memory: &mut impl GuestMemory, gpa: u64) -> Result<Self, MemError> {
        let mut bytes = [0; CONTROL_BYTES];
        memory.read_gpa(gpa, &mut bytes)?;
        Ok(Self::read(&bytes))
    }

    /// Writes what #VMEXIT writes of it.
    pub(crate) fn store(&self, memory: &mut impl GuestMemory, gpa: u64) -> Result<(), MemError> {
        let mut bytes = [0; CONTROL_BYTES];
        self.write(&mut bytes);
        store(memory, gpa, &bytes, CONTROL, &CONTROL_WRITTEN)
    }

    pub(crate) fn has_paging(&self) -> bool {
        self.np_control & NP_ENABLE != 0
    }

    /// Whether it intercepts what this exit code says: the words follow each other in both orders.
    pub(crate) fn intercepts(&self, code: ExitCode) -> bool {
        let (word, first) = match code.0 {
            0x00..=0x1f => (self.cr, 0x00),
            0x20..=0x3f => (self.dr, 0x20),
            0x40..=0x5f => (self.exceptions, 0x40),
            0x60..=0x7f => (self.word3, 0x60),
            0x80..=0x9f => (self.word4, 0x80),
            0xa0..=0xbf => (self.word5, 0xa0),
            _ => return false,
        };
        word >> (code.0.wrapping_sub(first) & 31) & 1 != 0
    }

    /// What the CPU is to intercept for the outer guest. It gets no bits that mean nothing to it
    /// here: traps behind writes belong to encrypted guests.
    pub(crate) fn all_intercepts(&self) -> Intercepts {
        /// VMRUN to RDPRU.
        const WORD4: u32 = 0x7fff;
        /// INVLPGB to TLBSYNC.
        const WORD5: u32 = 0x1f;
        let word3 = Word3::from_bits_retain(self.word3);
        Intercepts {
            cr: CrIntercepts::from_bits_retain(self.cr),
            dr: DrIntercepts::from_bits_retain(self.dr),
            exceptions: ExceptionIntercepts::from_bits_retain(self.exceptions),
            // The window is ours.
            word3: word3.difference(Word3::VINTR),
            word4: Word4::from_bits_retain(self.word4 & WORD4),
            word5: Word5::from_bits_retain(self.word5 & WORD5),
        }
    }
}

impl Registers {
    /// Reads them from the VMCB at `gpa`, each byte once.
    pub(crate) fn load(memory: &mut impl GuestMemory, gpa: u64) -> Result<Self, MemError> {
        let mut bytes = [0; SAVE_BYTES];
        memory.read_gpa(gpa.wrapping_add(SAVE as u64), &mut bytes)?;
        Ok(Self::read(&bytes))
    }

    /// Writes them to the VMCB at `gpa`, and no byte more.
    pub(crate) fn store(
        &self,
        memory: &mut impl GuestMemory,
        gpa: u64,
        paging: bool,
    ) -> Result<(), MemError> {
        let mut bytes = [0; SAVE_BYTES];
        self.write(&mut bytes);
        let [without_pat @ .., _] = &SAVE_WRITTEN;
        let pieces = if paging {
            &SAVE_WRITTEN[..]
        } else {
            without_pat
        };
        store(memory, gpa, &bytes, SAVE, pieces)
    }

    /// Those of now.
    pub(crate) fn of(vmcb: &Vmcb, state: &VcpuState) -> Self {
        Self {
            es: vmcb.segment(SegReg::Es),
            cs: vmcb.segment(SegReg::Cs),
            ss: vmcb.segment(SegReg::Ss),
            ds: vmcb.segment(SegReg::Ds),
            gdtr: vmcb.gdtr(),
            idtr: vmcb.idtr(),
            cpl: vmcb.cpl() & 3,
            efer: guest_efer(vmcb, state).bits(),
            cr4: guest_cr4(vmcb, state).bits(),
            cr3: vmcb.cr3(),
            cr0: guest_cr0(vmcb, state).bits(),
            dr7: state.debug.dr7(vmcb),
            dr6: state.debug.dr6(vmcb),
            rflags: state.debug.rflags(vmcb).bits(),
            rip: vmcb.rip(),
            rsp: state.regs.get(gpr::RSP),
            rax: state.regs.get(gpr::RAX),
            cr2: vmcb.cr2(),
            g_pat: vmcb.g_pat(),
        }
    }

    /// Makes them those of now: values that were checked, or that were there before. DR6, CR2 and
    /// G_PAT are the caller's business.
    pub(crate) fn apply(&self, vmcb: &mut Vmcb, state: &mut VcpuState) {
        /// Bits 3, 5 and 15, and those above ID, read as zero (APM vol. 2, 3.1.6).
        const RFLAGS: u64 = 0x3f_7fd7;
        vmcb.set_segment(SegReg::Es, self.es);
        vmcb.set_segment(SegReg::Cs, self.cs);
        vmcb.set_segment(SegReg::Ss, self.ss);
        vmcb.set_segment(SegReg::Ds, self.ds);
        vmcb.set_gdtr(self.gdtr);
        vmcb.set_idtr(self.idtr);
        vmcb.set_cpl(self.cpl & 3);
        let cr0 = normalize_cr0(Cr0::from_bits_retain(self.cr0));
        let mut efer = Efer::from_bits_retain(self.efer);
        efer.set(Efer::LMA, efer.contains(Efer::LME) && cr0.contains(Cr0::PG));
        set_guest_cr0(vmcb, state, cr0);
        vmcb.set_cr3(self.cr3);
        set_guest_cr4(vmcb, state, Cr4::from_bits_retain(self.cr4));
        set_guest_efer(vmcb, state, efer);
        let rflags = Rflags::from_bits_retain(self.rflags & RFLAGS) | Rflags::RESERVED1;
        state.debug.set_rflags(vmcb, rflags);
        state
            .debug
            .set_dr7(vmcb, valid_dr7(self.dr7).unwrap_or(DR7_RESET));
        vmcb.set_rip(self.rip);
        state.regs.set(gpr::RSP, self.rsp);
        state.regs.set(gpr::RAX, self.rax);
        state.forget_code();
    }
}

impl Loaded {
    /// Reads them from the VMCB at `gpa`, each byte once.
    pub(crate) fn load(memory: &mut impl GuestMemory, gpa: u64) -> Result<Self, MemError> {
        let mut bytes = [0; SAVE_BYTES];
        for (start, end) in LOADED {
            if let Some(piece) = bytes.get_mut(start - SAVE..end - SAVE) {
                memory.read_gpa(gpa.wrapping_add(start as u64), piece)?;
            }
        }
        Ok(Self::read(&bytes))
    }

    /// Writes them to the VMCB at `gpa`, and no byte more.
    pub(crate) fn store(&self, memory: &mut impl GuestMemory, gpa: u64) -> Result<(), MemError> {
        let mut bytes = [0; SAVE_BYTES];
        self.write(&mut bytes);
        store(memory, gpa, &bytes, SAVE, &LOADED)
    }

    /// Those of now.
    pub(crate) fn of(vmcb: &Vmcb) -> Self {
        Self {
            fs: vmcb.segment(SegReg::Fs),
            gs: vmcb.segment(SegReg::Gs),
            ldtr: vmcb.segment(SegReg::Ldtr),
            tr: vmcb.segment(SegReg::Tr),
            star: vmcb.star(),
            lstar: vmcb.lstar(),
            cstar: vmcb.cstar(),
            sfmask: vmcb.sfmask(),
            kernel_gs_base: vmcb.kernel_gs_base(),
            sysenter_cs: vmcb.sysenter_cs(),
            sysenter_esp: vmcb.sysenter_esp(),
            sysenter_eip: vmcb.sysenter_eip(),
        }
    }

    /// Makes them those of now. Addresses become canonical ones of `linear_bits`, as by VMLOAD, and
    /// what has 32 bits gets no more.
    pub(crate) fn apply(&self, vmcb: &mut Vmcb, linear_bits: u32) {
        let low = |value: u64| value & u64::from(u32::MAX);
        let unused = 64_u32.saturating_sub(linear_bits).min(63);
        let canonical = |address: u64| ((address << unused) as i64 >> unused) as u64;
        let segment = |segment: Segment| Segment {
            base: canonical(segment.base),
            ..segment
        };
        vmcb.set_segment(SegReg::Fs, segment(self.fs));
        vmcb.set_segment(SegReg::Gs, segment(self.gs));
        vmcb.set_segment(SegReg::Ldtr, segment(self.ldtr));
        vmcb.set_segment(SegReg::Tr, segment(self.tr));
        vmcb.set_star(self.star);
        vmcb.set_lstar(canonical(self.lstar));
        vmcb.set_cstar(canonical(self.cstar));
        vmcb.set_sfmask(low(self.sfmask));
        vmcb.set_kernel_gs_base(canonical(self.kernel_gs_base));
        vmcb.set_sysenter_cs(self.sysenter_cs);
        vmcb.set_sysenter_esp(low(self.sysenter_esp));
        vmcb.set_sysenter_eip(low(self.sysenter_eip));
    }
}

/// Writes pieces of an area, which begins at offset `base`, to the VMCB at `gpa`.
fn store(
    memory: &mut impl GuestMemory,
    gpa: u64,
    bytes: &[u8],
    base: usize,
    pieces: &[(usize, usize)],
) -> Result<(), MemError> {
    for &(start, end) in pieces {
        if let Some(piece) = bytes.get(start.wrapping_sub(base)..end.wrapping_sub(base)) {
            memory.write_gpa(gpa.wrapping_add(start as u64), piece)?;
        }
    }
    Ok(())
}
