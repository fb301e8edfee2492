// SPDX-License-Identifier: GPL-2.0-only

//! `struct kvm_sregs`: segments, control registers, EFER.

use crate::linux::Sleep;
use crate::uapi;
use crate::vcpu::LockedVcpu;
use kernel::prelude::*;
use svm::dispatch::Platform;
use svm::event::QueuedInterrupt;
use svm::nested::turned_off;
use svm::requests::Requests;
use svm::state::MpState;
use svm::state::{guest_cr0, guest_cr4, guest_efer, set_guest_cr0, set_guest_cr4, set_guest_efer};
use svm::vmcb::Vmcb;
use x86::cpu::GuestMemory;
use x86::msr::Origin;
use x86::regs::{Cr0, Cr4, Efer, SegAttr, SegReg, Segment};
use x86::sregs::{self, is_valid_cr8, ControlRegs};

const SEGMENTS: [SegReg; 8] = [
    SegReg::Cs,
    SegReg::Ds,
    SegReg::Es,
    SegReg::Fs,
    SegReg::Gs,
    SegReg::Ss,
    SegReg::Tr,
    SegReg::Ldtr,
];

/// KVM_GET_SREGS.
pub(crate) fn get(vcpu: &LockedVcpu) -> uapi::kvm_sregs {
    let efer = guest_efer(&vcpu.vmcb, &vcpu.state);
    let [cs, ds, es, fs, gs, ss, tr, ldt] = SEGMENTS.map(|reg| segment(&vcpu.vmcb, reg));
    let mut sregs = uapi::kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt: table(vcpu.vmcb.gdtr()),
        idt: table(vcpu.vmcb.idtr()),
        cr0: guest_cr0(&vcpu.vmcb, &vcpu.state).bits(),
        cr2: vcpu.vmcb.cr2(),
        cr3: vcpu.vmcb.cr3(),
        cr4: guest_cr4(&vcpu.vmcb, &vcpu.state).bits(),
        cr8: vcpu.platform.apic.cr8().into(),
        efer: efer.bits(),
        apic_base: vcpu.platform.apic.base(),
        interrupt_bitmap: [0; 4],
    };
    if let Some(interrupt) = vcpu.state.events.interrupt.filter(|i| !i.soft) {
        let vector = usize::from(interrupt.vector);
        sregs.interrupt_bitmap[vector / 64] |= 1 << (vector % 64);
    }
    sregs
}

/// Whether the guest's page tables are those of PAE mode.
fn is_pae(cr0: Cr0, cr4: Cr4, efer: Efer) -> bool {
    cr0.contains(Cr0::PG) && cr4.contains(Cr4::PAE) && !efer.contains(Efer::LMA)
}

/// One of the two structures, with what both have.
macro_rules! with_fields_of {
    ($other:ident, $type:ident) => {
        with_fields_of!($other, $type: cs ds es fs gs ss tr ldt gdt idt cr0 cr2 cr3 cr4 cr8 efer
            apic_base)
    };
    ($other:ident, $type:ident: $($field:ident)*) => {
        uapi::$type { $($field: $other.$field,)* ..Default::default() }
    };
}

/// KVM_GET_SREGS2: with the four page-directory-pointer entries of PAE mode. Under nested paging
/// the CPU reads them from memory (APM vol. 2, 15.25.10), and so do we.
pub(crate) fn get2(vcpu: &mut LockedVcpu) -> uapi::kvm_sregs2 {
    /// Where CR3 has the table in PAE mode (APM vol. 2, figure 5-9).
    const TABLE: u64 = 0xffff_ffe0;
    let old = get(vcpu);
    let mut sregs = with_fields_of!(old, kvm_sregs2);
    let vmcb = &vcpu.vmcb;
    if !is_pae(vmcb.cr0(), vmcb.cr4(), vmcb.efer()) {
        return sregs;
    }
    let mut table = [0; 32];
    let mut memory = vcpu.platform.memory.access(Sleep::Allowed);
    let read = memory.read_gpa(old.cr3 & TABLE, &mut table);
    if read.is_ok() {
        sregs.flags = u64::from(uapi::KVM_SREGS2_FLAGS_PDPTRS_VALID);
        for (entry, bytes) in sregs.pdptrs.iter_mut().zip(table.chunks_exact(8)) {
            *entry = bytes
                .iter()
                .rev()
                .fold(0, |all, b| all << 8 | u64::from(*b));
        }
    }
    sregs
}

/// KVM_SET_SREGS2. The page-directory-pointer entries stay in memory.
pub(crate) fn set2(vcpu: &mut LockedVcpu, new: &uapi::kvm_sregs2) -> Result {
    let has_entries = new.flags & u64::from(uapi::KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0;
    let pae = is_pae(
        Cr0::from_bits_retain(new.cr0),
        Cr4::from_bits_retain(new.cr4),
        Efer::from_bits_retain(new.efer),
    );
    let unknown = new.flags & !u64::from(uapi::KVM_SREGS2_FLAGS_PDPTRS_VALID);
    if unknown != 0 || (has_entries && !pae) {
        return Err(EINVAL);
    }
    // There is no place for a queued interrupt: it stays.
    let old = with_fields_of!(new, kvm_sregs);
    set(vcpu, &old)
}

/// Whether the registers are those after RESET, of the vCPU that starts the guest: VMMs of old set
/// them, and not that it runs.
fn is_reset(vcpu: &LockedVcpu, new: &uapi::kvm_sregs) -> bool {
    const RIP: u64 = 0xfff0;
    let is_boot = vcpu.platform.mailbox.id == vcpu.platform.vm.boot_cpu();
    let real = new.cr0 & Cr0::PE.bits() == 0;
    let cs = (new.cs.selector, new.cs.base);
    is_boot && real && vcpu.vmcb.rip() == RIP && cs == (0xf000, 0xffff_0000)
}

/// KVM_SET_SREGS. Nothing is changed if anything is wrong.
pub(crate) fn set(vcpu: &mut LockedVcpu, new: &uapi::kvm_sregs) -> Result {
    let regs = ControlRegs {
        cr0: Cr0::from_bits_retain(new.cr0),
        cr3: new.cr3,
        cr4: Cr4::from_bits_retain(new.cr4),
        efer: Efer::from_bits_retain(new.efer),
        cs_l: new.cs.l != 0,
    };
    if !sregs::valid(&regs, &vcpu.state.features) {
        return Err(EINVAL);
    }
    let platform = vcpu.guest(Sleep::Allowed).platform;
    platform
        .set_apic_base(new.apic_base, Origin::Host)
        .map_err(|_| EINVAL)?;

    for (reg, segment) in SEGMENTS.into_iter().zip([
        &new.cs, &new.ds, &new.es, &new.fs, &new.gs, &new.ss, &new.tr, &new.ldt,
    ]) {
        vcpu.vmcb.set_segment(reg, vmcb_segment(segment));
    }
    vcpu.vmcb.set_cpl(new.ss.dpl & 3);
    vcpu.vmcb.set_gdtr(Segment {
        base: new.gdt.base,
        limit: u32::from(new.gdt.limit),
        ..Segment::default()
    });
    vcpu.vmcb.set_idtr(Segment {
        base: new.idt.base,
        limit: u32::from(new.idt.limit),
        ..Segment::default()
    });
    vcpu.vmcb.set_cr2(new.cr2);
    let LockedVcpu {
        vmcb,
        state,
        nested,
        ..
    } = vcpu;
    vmcb.set_cr3(regs.cr3);
    set_guest_cr0(vmcb, state, sregs::normalize_cr0(regs.cr0));
    set_guest_cr4(vmcb, state, regs.cr4);
    set_guest_efer(vmcb, state, regs.efer);
    if nested.is_some() && !regs.efer.contains(Efer::SVME) {
        turned_off(vmcb, state, nested.as_deref_mut(), Origin::Host);
    }
    // As on KVM, one that no CPU can have is none.
    if is_valid_cr8(new.cr8) {
        vcpu.platform.apic.set_cr8(new.cr8 as u8);
        vcpu.vmcb.set_v_tpr(new.cr8 as u8);
    }
    vcpu.platform.requests |= Requests::TLB_FLUSH;
    if is_reset(vcpu, new) {
        vcpu.state.mp_state = MpState::Runnable;
    }

    let pending = new
        .interrupt_bitmap
        .iter()
        .enumerate()
        .find(|(_, word)| **word != 0)
        .map(|(i, word)| (i * 64) as u32 + word.trailing_zeros());
    if let Some(vector) = pending {
        vcpu.state.events.interrupt = Some(QueuedInterrupt {
            vector: vector as u8,
            soft: false,
        });
    }
    Ok(())
}

fn table(segment: Segment) -> uapi::kvm_dtable {
    uapi::kvm_dtable {
        base: segment.base,
        limit: segment.limit as u16,
        ..Default::default()
    }
}

fn segment(vmcb: &Vmcb, reg: SegReg) -> uapi::kvm_segment {
    let segment = vmcb.canonical_segment(reg);
    let has = |bit: SegAttr| u8::from(segment.attributes.contains(bit));
    let bits = segment.attributes.bits();
    let present = has(SegAttr::P);
    uapi::kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: (bits & SegAttr::TYPE.bits()) as u8,
        present,
        dpl: ((bits & SegAttr::DPL.bits()) >> 5) as u8,
        db: has(SegAttr::DB),
        s: has(SegAttr::S),
        l: has(SegAttr::L),
        g: has(SegAttr::G),
        avl: has(SegAttr::AVL),
        unusable: 1 - present,
        padding: 0,
    }
}

fn vmcb_segment(segment: &uapi::kvm_segment) -> Segment {
    let mut attributes = SegAttr::from_bits_retain(u16::from(segment.type_ & 0xf))
        | SegAttr::from_bits_retain(u16::from(segment.dpl & 3) << 5);
    attributes.set(SegAttr::S, segment.s & 1 != 0);
    attributes.set(
        SegAttr::P,
        segment.present & 1 != 0 && segment.unusable == 0,
    );
    attributes.set(SegAttr::AVL, segment.avl & 1 != 0);
    attributes.set(SegAttr::L, segment.l & 1 != 0);
    attributes.set(SegAttr::DB, segment.db & 1 != 0);
    attributes.set(SegAttr::G, segment.g & 1 != 0);
    Segment {
        selector: segment.selector,
        attributes,
        limit: segment.limit,
        base: segment.base,
    }
}
