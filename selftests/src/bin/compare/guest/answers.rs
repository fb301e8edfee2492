// SPDX-License-Identifier: GPL-2.0-only

//! What can be asked of a vCPU when its guest has run, as text.

use std::fmt::Write;

use kvm_bindings::*;
use selftests::kvm::{number, Errno};

use super::{Machine, STACK};
use crate::probe::Probe;

impl Machine {
    /// Everything that can be asked for.
    pub(crate) fn describe(&self, probe: &mut Probe) -> Result<(), String> {
        let vcpu = &self.vcpu.handle;
        let regs: kvm_regs = vcpu.get(number::GET_REGS)?;
        let sregs: kvm_sregs = vcpu.get(number::GET_SREGS)?;
        probe.put("rip", format!("{:x}", regs.rip));
        probe.put("flags", format!("{:x}", regs.rflags));
        probe.put("regs", words(&general(&regs)));
        probe.put("segments", segments(&sregs));
        probe.put(
            "control",
            words(&[
                cr0_bits(sregs.cr0),
                sregs.cr2,
                sregs.cr3,
                sregs.cr4,
                sregs.cr8,
                sregs.efer,
            ]),
        );
        let debug: kvm_debugregs = vcpu.get(number::GET_DEBUGREGS)?;
        probe.put("dr6", format!("{:x}", debug.dr6));
        probe.put("dr7", format!("{:x}", debug.dr7));
        probe.put("events", self.events()?);
        let stack = self.ram.read(STACK as usize, 0x1000);
        probe.put("stack", format!("{:x}", fnv(&stack)));
        Ok(())
    }

    /// What `KVM_GET_VCPU_EVENTS` says, as far as it has a meaning: the vector of an exception that
    /// there is, `exception.pending` with `KVM_VCPUEVENT_VALID_PAYLOAD`, and so on.
    pub(crate) fn events(&self) -> Result<String, String> {
        let e: kvm_vcpu_events = self.vcpu.handle.get(number::GET_VCPU_EVENTS)?;
        let (x, i, n, s) = (e.exception, e.interrupt, e.nmi, e.smi);
        let mut text = String::new();
        let payload = e.flags & KVM_VCPUEVENT_VALID_PAYLOAD != 0;
        let pending = payload && x.pending != 0;
        if x.injected != 0 || pending {
            let _ = write!(text, "x{}{}:{}", x.injected, u8::from(pending), x.nr);
            if x.has_error_code != 0 {
                let _ = write!(text, ":{:x}", x.error_code);
            }
            if payload && e.exception_has_payload != 0 {
                let _ = write!(text, ":payload-{:x}", e.exception_payload);
            }
        }
        if i.injected != 0 {
            let _ = write!(text, ",i{}:{}", i.nr, i.soft);
        }
        let _ = write!(
            text,
            ",shadow{},n{}{}{},s{}{}{}{},t{},v{:x},f{:x}",
            i.shadow,
            n.injected,
            n.pending,
            n.masked,
            s.smm,
            s.pending,
            s.smm_inside_nmi,
            s.latched_init,
            e.triple_fault.pending,
            e.sipi_vector,
            e.flags & !KVM_VCPUEVENT_VALID_SMM
        );
        Ok(text)
    }

    /// Whether an NMI has not been delivered, or cannot be.
    pub(crate) fn nmis_wait(&self) -> Result<bool, String> {
        let e: kvm_vcpu_events = self.vcpu.handle.get(number::GET_VCPU_EVENTS)?;
        Ok((e.nmi.injected | e.nmi.pending | e.nmi.masked) != 0)
    }

    /// The stack's topmost words, for a reader.
    pub(crate) fn top(&self, rsp: u64) -> String {
        let at = (rsp.wrapping_sub(STACK) as usize).min(0xfd0);
        let bytes = self.ram.read(STACK as usize + at, 48);
        let each = bytes
            .chunks(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()));
        words(&each.collect::<Vec<_>>())
    }
}

/// A short name for any bytes.
pub(crate) fn fnv(bytes: &[u8]) -> u32 {
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    bytes.iter().fold(0x811c_9dc5, step)
}

/// An error as a word.
pub(crate) fn errno<T>(answer: Result<T, Errno>) -> String {
    match answer {
        Ok(_) => "ok".into(),
        Err(Errno(number)) => format!("errno-{number}"),
    }
}

/// CR0 without its reserved bits and ET: a CPU ignores a write of them (APM vol. 2, 3.1.1), and KVM
/// shows a VMM what it has set.
pub(crate) fn cr0_bits(cr0: u64) -> u64 {
    const RESERVED: u64 = 0x1ffa_ffd0;
    cr0 & !RESERVED
}

pub(crate) fn words(values: &[u64]) -> String {
    let each: Vec<_> = values.iter().map(|value| format!("{value:x}")).collect();
    each.join(",")
}

pub(crate) fn general(r: &kvm_regs) -> [u64; 16] {
    [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ]
}

pub(crate) fn segments(s: &kvm_sregs) -> String {
    let all = [s.es, s.cs, s.ss, s.ds, s.fs, s.gs, s.ldt, s.tr];
    let each: Vec<_> = all.iter().map(one_segment).collect();
    each.join(",")
}

fn one_segment(s: &kvm_segment) -> String {
    format!(
        "{:x}@{:x}/{:x}:{:x}{}{}{}{}{}{}{}{}",
        s.selector,
        s.base,
        s.limit,
        s.type_,
        s.s,
        s.dpl,
        s.present,
        s.l,
        s.db,
        s.g,
        s.avl,
        s.unusable
    )
}
