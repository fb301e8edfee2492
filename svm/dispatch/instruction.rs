// SPDX-License-Identifier: GPL-2.0-only

//! Intercepted instructions that need no operand in memory.

use super::pairing::clock_pairing;
use super::rip::{advance, next_rip, skip, Opcode};
use super::{Action, Platform, Policy};
use crate::cpu::Guest;
use crate::requests::Requests;
use crate::state::{guest_cr4, VcpuState};
use x86::cpu::{Cpu, Stop};
use x86::cpuid::{self, guest_view, lookup, Dynamic};
use x86::decode::CodeSize;
use x86::emulate::code_size;
use x86::features::Feature;
use x86::regs::{gpr, Cr4, Exception};
use x86::xsave::is_valid_xcr0;

/// The CPUID leaf that describes XSAVE.
const LEAF_XSAVE: u32 = 0xd;

/// CPUID (APM vol. 2, 15.9). A system may want to answer its programs itself.
#[inline]
pub(super) fn cpuid<P: Platform>(guest: &mut Guest<'_, P>) -> Result<Action, Stop> {
    if guest.state.msrs.cpuid_faults() && guest.cpl() != 0 {
        return Err(Exception::GP0.into());
    }
    let next = next_rip(guest, Opcode::CPUID)?;
    let function = guest.state.regs.get(gpr::RAX) as u32;
    let index = guest.state.regs.get(gpr::RCX) as u32;
    let dynamic = dynamic(guest, function);
    let answer = guest_view(guest.cpuid, function, index, &dynamic);
    for (reg, value) in [gpr::RAX, gpr::RBX, gpr::RCX, gpr::RDX]
        .into_iter()
        .zip(answer)
    {
        guest.state.regs.set(reg, u64::from(value));
    }
    advance(guest, next);
    Ok(Action::Resume)
}

/// What of the state shows through CPUID leaf `function` now.
#[inline]
pub fn dynamic<P: Platform>(guest: &Guest<'_, P>, function: u32) -> Dynamic {
    /// Global enable in `IA32_APIC_BASE`.
    const APIC_ENABLE: u64 = 1 << 11;
    let cr4 = guest.vmcb.cr4();
    let mut dynamic = Dynamic {
        osxsave: cr4.contains(Cr4::OSXSAVE),
        pke: cr4.contains(Cr4::PKE),
        apic_enabled: guest.platform.apic_base() & APIC_ENABLE != 0,
        ..Dynamic::default()
    };
    if function == LEAF_XSAVE {
        let (standard, compacted) = xsave_sizes(guest);
        dynamic.xsave_size = standard;
        dynamic.xsave_compacted_size = compacted;
    }
    dynamic
}

/// Bytes of the XSAVE area for the guest's XCR0, and compacted (APM vol. 2, 11.5.3): XSS is always
/// 0.
fn xsave_sizes<P: Platform>(guest: &Guest<'_, P>) -> (u32, u32) {
    /// The legacy area and the header.
    const BASE: u32 = 512 + 64;
    /// Components 0 and 1 are in the legacy area.
    const FIRST: u32 = 2;
    /// Bit 63 is no component.
    const COMPONENTS: u32 = 63;
    /// In ECX: in the compacted form the component begins at a multiple of 64 bytes.
    const ALIGNED: u32 = 1 << 1;
    let (mut standard, mut compacted) = (BASE, BASE);
    for component in FIRST..COMPONENTS {
        if guest.state.xcr0 >> component & 1 == 0 {
            continue;
        }
        let [size, offset, flags, _] = lookup(guest.cpuid, LEAF_XSAVE, component);
        standard = standard.max(offset.wrapping_add(size));
        if flags & ALIGNED != 0 {
            compacted = compacted.wrapping_add(63) & !63;
        }
        compacted = compacted.wrapping_add(size);
    }
    (standard, compacted)
}

/// HLT.
pub(super) fn hlt<P: Platform>(guest: &mut Guest<'_, P>) -> Result<Action, Stop> {
    skip(guest, Opcode::HLT)?;
    Ok(Action::Halt)
}

/// PAUSE, once the filter's count is used up (APM vol. 2, 15.14.4).
pub(super) fn pause<P: Platform>(guest: &mut Guest<'_, P>) -> Result<Action, Stop> {
    skip(guest, Opcode::PAUSE)?;
    guest.platform.request(Requests::YIELD);
    Ok(Action::Resume)
}

/// RDTSC, which is not intercepted, and RDTSCP, which is only where the guest does not have it.
pub(super) fn rdtsc<P: Platform>(guest: &mut Guest<'_, P>, with_aux: bool) -> Result<Action, Stop> {
    if with_aux && !guest.state.features.has(Feature::RDTSCP) {
        return Err(Exception::UD.into());
    }
    if guest.cr4().contains(Cr4::TSD) && guest.cpl() != 0 {
        return Err(Exception::GP0.into());
    }
    let opcode = if with_aux {
        Opcode::RDTSCP
    } else {
        Opcode::RDTSC
    };
    let next = next_rip(guest, opcode)?;
    let tsc = guest.tsc();
    guest.state.regs.set_edx_eax(tsc);
    if with_aux {
        let aux = guest.state.msrs.tsc_aux;
        guest.state.regs.set(gpr::RCX, u64::from(aux));
    }
    advance(guest, next);
    Ok(Action::Resume)
}

/// RDPMC. The four counters that every AMD CPU has stand still, as do the two more of a guest whose
/// CPUID has them.
pub(super) fn rdpmc<P: Platform>(guest: &mut Guest<'_, P>) -> Result<Action, Stop> {
    if guest.cpl() != 0 && !guest.cr4().contains(Cr4::PCE) {
        return Err(Exception::GP0.into());
    }
    let six = guest.has(Feature::PERFCTR_CORE);
    let counters = if six { 6 } else { 4 };
    if guest.state.regs.get(gpr::RCX) as u32 >= counters {
        return Err(Exception::GP0.into());
    }
    let next = next_rip(guest, Opcode::RDPMC)?;
    guest.state.regs.set_edx_eax(0);
    advance(guest, next);
    Ok(Action::Resume)
}

/// INVD and WBINVD. What the guest cached is written back, not lost, in either case.
pub(super) fn wbinvd<P: Platform>(
    guest: &mut Guest<'_, P>,
    opcode: Opcode,
) -> Result<Action, Stop> {
    // The CPU looks first, but not every emulator.
    if guest.cpl() != 0 {
        return Err(Exception::GP0.into());
    }
    skip(guest, opcode)?;
    guest.platform.wbinvd();
    Ok(Action::Resume)
}

/// MONITOR and MWAIT do nothing, which their definition allows; without the CPUID bit they are
/// undefined, if the VMM wants that.
pub(super) fn mwait<P: Platform>(guest: &mut Guest<'_, P>, opcode: Opcode) -> Result<Action, Stop> {
    let may_fault = guest.policy.contains(Policy::MWAIT_MAY_FAULT);
    if may_fault && !cpuid::has_mwait(guest.cpuid) {
        return Err(Exception::UD.into());
    }
    skip(guest, opcode)?;
    Ok(Action::Resume)
}

/// ICEBP: a #DB trap. Not intercepted; here so that interception would do no harm.
pub(super) fn icebp<P: Platform>(guest: &mut Guest<'_, P>) -> Result<Action, Stop> {
    skip(guest, Opcode::ICEBP)?;
    guest
        .state
        .events
        .raise(Exception::new(x86::regs::vector::DB));
    Ok(Action::Resume)
}

/// XSETBV (APM vol. 4, XSETBV).
pub(super) fn xsetbv<P: Platform>(guest: &mut Guest<'_, P>) -> Result<Action, Stop> {
    if !guest_cr4(guest.vmcb, guest.state).contains(Cr4::OSXSAVE) {
        return Err(Exception::UD.into());
    }
    let index = guest.state.regs.get(gpr::RCX) as u32;
    if guest.cpl() != 0 || index != 0 {
        return Err(Exception::GP0.into());
    }
    let next = next_rip(guest, Opcode::XSETBV)?;
    let value = guest.state.regs.edx_eax();
    set_xcr0(guest.state, value)?;
    advance(guest, next);
    Ok(Action::Resume)
}

/// Sets XCR0, for XSETBV and `KVM_SET_XCRS`: #GP(0) for what the guest's CPUID does not offer, and
/// for combinations that no CPU has (APM vol. 2, 11.5.2).
pub fn set_xcr0(state: &mut VcpuState, value: u64) -> Result<(), Exception> {
    if !is_valid_xcr0(value, state.features.xcr0) {
        return Err(Exception::GP0);
    }
    state.xcr0 = value;
    Ok(())
}

/// VMMCALL: the hypercalls of KVM (Documentation/virt/kvm/x86/hypercalls.rst).
#[inline]
pub(super) fn vmmcall<P: Platform>(guest: &mut Guest<'_, P>) -> Result<Action, Stop> {
    /// `KVM_HC_VAPIC_POLL_IRQ`: only makes an exit.
    const VAPIC_POLL_IRQ: u64 = 1;
    /// `-KVM_ENOSYS`
    const NO_SUCH_CALL: u64 = -1000_i64 as u64;
    /// `-KVM_EPERM`
    const NOT_PERMITTED: u64 = -1_i64 as u64;
    /// Outside of 64-bit mode registers have 32 bits.
    const LOW: u64 = 0xffff_ffff;
    let next = next_rip(guest, Opcode::VMMCALL)?;
    let mask = match code_size(guest) {
        CodeSize::Bits64 => u64::MAX,
        _ => LOW,
    };
    let arguments =
        [gpr::RBX, gpr::RCX, gpr::RDX, gpr::RSI].map(|reg| guest.state.regs.get(reg) & mask);
    let number = guest.state.regs.get(gpr::RAX) & mask;
    let result = if guest.cpl() != 0 {
        NOT_PERMITTED
    } else if number == VAPIC_POLL_IRQ {
        0
    } else {
        hypercall(guest, number, arguments, mask == LOW)?.unwrap_or(NO_SUCH_CALL)
    };
    guest.state.regs.set(gpr::RAX, result & mask);
    advance(guest, next);
    Ok(Action::Resume)
}

/// Hypercalls that do something; `None` if there is no such, or the guest's CPUID does not offer
/// it.
fn hypercall<P: Platform>(
    guest: &mut Guest<'_, P>,
    number: u64,
    arguments: [u64; 4],
    narrow: bool,
) -> Result<Option<u64>, Stop> {
    /// `KVM_HC_KICK_CPU`: flags, APIC ID.
    const KICK_CPU: u64 = 5;
    /// `KVM_HC_CLOCK_PAIRING`: address, clock.
    const CLOCK_PAIRING: u64 = 9;
    /// `KVM_HC_SCHED_YIELD`: APIC ID.
    const SCHED_YIELD: u64 = 11;
    /// `KVM_HC_SEND_IPI`: a set of APIC IDs in two words, the ID of its first bit, the ICR.
    const SEND_IPI: u64 = 10;
    /// `-KVM_EINVAL`
    const INVALID: u64 = -22_i64 as u64;
    /// Bits of the ICR (APM vol. 2, 16.5): the set says who is meant, so no logical destination
    /// and no shorthand.
    const DESTINATION: u64 = 1 << 11 | 3 << 18;
    const ASSERT: u64 = 1 << 14;
    const LEVEL: u64 = 1 << 15;
    let [first, second, third, fourth] = arguments;
    Ok(match number {
        KICK_CPU if guest.state.features.has(Feature::PV_UNHALT) => {
            guest.platform.wake(second as u32);
            Some(0)
        }
        SCHED_YIELD if guest.state.features.has(Feature::PV_SCHED_YIELD) => {
            guest.platform.yield_to(first as u32);
            Some(0)
        }
        SEND_IPI if !guest.state.features.has(Feature::PV_SEND_IPI) => None,
        SEND_IPI if fourth & DESTINATION != 0 => Some(INVALID),
        // A level de-assert is no message.
        SEND_IPI if fourth & (LEVEL | ASSERT) == LEVEL => Some(0),
        SEND_IPI => {
            let set = u128::from(first) | u128::from(second) << if narrow { 32 } else { 64 };
            let sent = guest.platform.send_ipis(third as u32, set, fourth as u32);
            Some(u64::from(sent))
        }
        CLOCK_PAIRING => Some(clock_pairing(guest, first, second)?),
        _ => None,
    })
}
