// SPDX-License-Identifier: GPL-2.0-only

//! Where the next instruction is.
//!
//! A CPU that saves nRIP tells it (APM vol. 2, 15.7.1). For the others the instruction is found in
//! guest memory. Most intercepted instructions are two or three bytes without a prefix, at places
//! that were seen before; so first those bytes are looked for where the hint leads to, and only if
//! they are not there, the guest's page tables are walked and the instruction is decoded.
//!
//! The hint is what a TLB entry would be: a guest that changes the mapping of its running code
//! without leaving a trace in CR3 can make it stale. It then leads to other bytes, which do not
//! match, or to the same instruction, with the same length.

use crate::cpu::Guest;
use crate::dispatch::Platform;
use crate::features::SvmFeatures;
use crate::requests::Requests;
use crate::state::CodeHint;
use x86::cpu::{Access, Stop};
use x86::decode::CodeSize;
use x86::emulate::{code_size, fetch};
use x86::regs::{vector, Exception, Rflags, SegReg};

/// The encoding of an instruction without operands in memory, as far as it is fixed.
pub(crate) struct Opcode(&'static [u8]);

impl Opcode {
    pub(super) const CPUID: Self = Self(&[0x0f, 0xa2]);
    pub(super) const RDMSR: Self = Self(&[0x0f, 0x32]);
    pub(super) const WRMSR: Self = Self(&[0x0f, 0x30]);
    pub(super) const RDTSC: Self = Self(&[0x0f, 0x31]);
    pub(super) const RDTSCP: Self = Self(&[0x0f, 0x01, 0xf9]);
    pub(super) const RDPMC: Self = Self(&[0x0f, 0x33]);
    pub(super) const HLT: Self = Self(&[0xf4]);
    pub(super) const PAUSE: Self = Self(&[0xf3, 0x90]);
    pub(super) const VMMCALL: Self = Self(&[0x0f, 0x01, 0xd9]);
    pub(crate) const VMRUN: Self = Self(&[0x0f, 0x01, 0xd8]);
    pub(crate) const VMLOAD: Self = Self(&[0x0f, 0x01, 0xda]);
    pub(crate) const VMSAVE: Self = Self(&[0x0f, 0x01, 0xdb]);
    pub(crate) const STGI: Self = Self(&[0x0f, 0x01, 0xdc]);
    pub(crate) const CLGI: Self = Self(&[0x0f, 0x01, 0xdd]);
    pub(crate) const INVLPGA: Self = Self(&[0x0f, 0x01, 0xdf]);
    pub(super) const XSETBV: Self = Self(&[0x0f, 0x01, 0xd1]);
    pub(super) const MONITOR: Self = Self(&[0x0f, 0x01, 0xc8]);
    pub(super) const MWAIT: Self = Self(&[0x0f, 0x01, 0xc9]);
    pub(super) const INVD: Self = Self(&[0x0f, 0x08]);
    pub(super) const WBINVD: Self = Self(&[0x0f, 0x09]);
    pub(super) const ICEBP: Self = Self(&[0xf1]);
    /// Nothing is fixed: the instruction is decoded.
    pub(super) const ANY: Self = Self(&[]);

    /// Of the longest of them.
    const MAX: usize = 3;
}

/// Accesses to guest memory do not cross multiples of it.
pub(super) const PAGE: u64 = 4096;
/// Outside of 64-bit mode linear addresses and EIP have 32 bits.
const LOW: u64 = 0xffff_ffff;
/// Set in [`CodeHint::page`] when the hint holds anything.
const HINT_VALID: u64 = 1;

/// RIP of the instruction that follows the intercepted one.
#[inline]
pub(crate) fn next_rip<P: Platform>(guest: &mut Guest<'_, P>, opcode: Opcode) -> Result<u64, Stop> {
    if guest.host.contains(SvmFeatures::NRIPS) {
        let next = guest.vmcb.next_rip();
        if next != 0 {
            return Ok(next);
        }
    }
    find(guest, opcode)
}

/// Goes behind the intercepted instruction.
#[inline]
pub(super) fn skip<P: Platform>(guest: &mut Guest<'_, P>, opcode: Opcode) -> Result<(), Stop> {
    let next = next_rip(guest, opcode)?;
    advance(guest, next);
    Ok(())
}

/// Completes an instruction: RIP, interrupt shadow, RF, and the trap of a single step.
#[inline]
pub(crate) fn advance<P: Platform>(guest: &mut Guest<'_, P>, next: u64) {
    guest.vmcb.set_rip(next);
    guest.vmcb.set_interrupt_shadow(false);
    let flags = guest.vmcb.rflags();
    if flags.intersects(Rflags::TF | Rflags::RF) {
        guest.vmcb.set_rflags(flags.difference(Rflags::RF));
        if flags.contains(Rflags::TF) {
            single_step_trap(guest);
        }
    }
}

/// Single step, in DR6.
pub(super) const DR6_BS: u64 = 1 << 14;

/// The #DB behind an instruction that began with TF set (APM vol. 2, 13.1.4).
pub(super) fn single_step_trap<P: Platform>(guest: &mut Guest<'_, P>) {
    if guest.state.debug.steps() {
        guest.platform.request(Requests::STEPPED);
        return;
    }
    guest.state.events.raise(Exception {
        payload: Some(DR6_BS),
        ..Exception::new(vector::DB)
    });
}

/// The linear address of the instruction at RIP.
#[inline]
pub(super) fn linear_rip<P: Platform>(guest: &Guest<'_, P>, size: CodeSize) -> u64 {
    let rip = guest.vmcb.rip();
    match size {
        CodeSize::Bits64 => rip,
        _ => guest.vmcb.segment(SegReg::Cs).base.wrapping_add(rip) & LOW,
    }
}

/// Finds the length in guest memory.
fn find<P: Platform>(guest: &mut Guest<'_, P>, opcode: Opcode) -> Result<u64, Stop> {
    let size = code_size(guest);
    let linear = linear_rip(guest, size);
    let offset = linear % PAGE;
    let length = opcode.0.len() as u64;
    if length != 0 && offset.wrapping_add(length) <= PAGE {
        // EIP wraps.
        let next = match size {
            CodeSize::Bits64 => guest.vmcb.rip().wrapping_add(length),
            _ => guest.vmcb.rip().wrapping_add(length) & LOW,
        };
        let page = (linear & !(PAGE - 1)) | HINT_VALID;
        let cr3 = guest.vmcb.cr3();
        let hint = guest.state.code_hint;
        if hint.page == page && hint.cr3 == cr3 && matches(guest, hint.gpa | offset, &opcode) {
            return Ok(next);
        }
        let gpa = guest.walk(linear, Access::Fetch)?;
        guest.state.code_hint = CodeHint {
            cr3,
            page,
            gpa: gpa & !(PAGE - 1),
        };
        if matches(guest, gpa, &opcode) {
            return Ok(next);
        }
    }
    let rip = guest.vmcb.rip();
    Ok(fetch(guest, &[])?.next_rip(rip))
}

/// Whether the instruction is at `gpa`.
#[inline]
fn matches<P: Platform>(guest: &mut Guest<'_, P>, gpa: u64, opcode: &Opcode) -> bool {
    let mut bytes = [0; Opcode::MAX];
    match bytes.get_mut(..opcode.0.len()) {
        Some(bytes) => {
            // A loop, because a comparison of slices is a call, and this is on the way of every
            // exit.
            guest.platform.read_gpa(gpa, bytes).is_ok() && bytes.iter().eq(opcode.0)
        }
        None => false,
    }
}
