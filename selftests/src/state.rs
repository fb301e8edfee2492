// SPDX-License-Identifier: GPL-2.0-only

//! What a vCPU that did not do as expected is doing, in a few lines.

use kvm_bindings::{
    kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events,
};

use crate::kvm::{number, Errno, Handle};

/// Registers, what is pending, and the local APIC's interrupts. What cannot be had is left out.
pub fn describe(vcpu: &Handle) -> Vec<String> {
    let parts = [general, system, events, debug, lapic];
    let mut lines = Vec::new();
    // The vCPU does what is pending, an INIT for example, when its state is asked for.
    if let Ok(mp) = vcpu.get::<kvm_mp_state>(number::GET_MP_STATE) {
        lines.push(format!("MP state {}", mp.mp_state));
    }
    lines.extend(parts.iter().filter_map(|part| part(vcpu).ok()));
    lines
}

fn general(vcpu: &Handle) -> Result<String, Errno> {
    let r: kvm_regs = vcpu.get(number::GET_REGS)?;
    Ok(format!(
        "RIP {:x} RFLAGS {:x} RSP {:x} RBP {:x} RAX {:x} RBX {:x} RCX {:x} RDX {:x} RSI {:x} RDI {:x} R8 {:x} R9 {:x} R10 {:x}",
        r.rip, r.rflags, r.rsp, r.rbp, r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.r8, r.r9, r.r10
    ))
}

fn system(vcpu: &Handle) -> Result<String, Errno> {
    let s: kvm_sregs = vcpu.get(number::GET_SREGS)?;
    Ok(format!(
        "CS {:x}/{:x} SS {:x}/{:x} CR0 {:x} CR2 {:x} CR3 {:x} CR4 {:x} CR8 {:x} EFER {:x} GDT {:x} IDT {:x} APIC {:x}",
        s.cs.selector, s.cs.base, s.ss.selector, s.ss.base, s.cr0, s.cr2, s.cr3, s.cr4, s.cr8,
        s.efer, s.gdt.base, s.idt.base, s.apic_base
    ))
}

fn events(vcpu: &Handle) -> Result<String, Errno> {
    let e: kvm_vcpu_events = vcpu.get(number::GET_VCPU_EVENTS)?;
    Ok(format!("{:?} {:?} {:?}", e.exception, e.interrupt, e.nmi))
}

fn debug(vcpu: &Handle) -> Result<String, Errno> {
    let d: kvm_debugregs = vcpu.get(number::GET_DEBUGREGS)?;
    Ok(format!("DR0-3 {:x?} DR6 {:x} DR7 {:x}", d.db, d.dr6, d.dr7))
}

/// The registers that say which interrupts are there, in the layout of the APIC's page.
fn lapic(vcpu: &Handle) -> Result<String, Errno> {
    let page: kvm_lapic_state = vcpu.get(number::GET_LAPIC)?;
    let word = |at: usize| {
        let bytes = page.regs.get(at..at + 4).unwrap_or_default();
        bytes
            .iter()
            .rev()
            .fold(0u32, |word, byte| word << 8 | u32::from(*byte as u8))
    };
    let vectors = |at: usize| -> Vec<usize> {
        (0..256)
            .filter(|vector| word(at + vector / 32 * 16) >> (vector % 32) & 1 != 0)
            .collect()
    };
    Ok(format!(
        "LAPIC ID {:x} SVR {:x} ISR {:x?} IRR {:x?} LVTT {:x} initial count {:x}",
        word(0x20),
        word(0xf0),
        vectors(0x100),
        vectors(0x200),
        word(0x320),
        word(0x380)
    ))
}
