// SPDX-License-Identifier: GPL-2.0-only

//! Ioctls of a vCPU that read or set its registers. Conversions, no more: the rules are in the
//! pure crates.

use crate::abi::{self, Arg};
use crate::clock;
use crate::ffi;
use crate::kick::request;
use crate::prefault;
use crate::requests;
use crate::vcpu::{Inner, Vcpu};
use crate::vm::option;
use crate::world::deferred;
use crate::{vcpu_cpuid, vcpu_events, vcpu_fpu, vcpu_sregs};
use kernel::ffi::c_long;
use kernel::prelude::*;
use svm::dispatch;
use svm::event::QueuedInterrupt;
use svm::inject;
use svm::state::MpState;
use x86::msr::Origin;
use x86::paging;
use x86::regs::{gpr, Rflags};

/// Dispatches on the number. Interrupts are on; the vCPU is locked.
#[inline(never)] // Its frame must not lie under the guest's.
pub(crate) fn ioctl(vcpu: &Vcpu, inner: &mut Inner, cmd: u32, arg: Arg) -> Result<c_long> {
    if matches!(
        cmd,
        abi::PACIFICA_GET_VCPU_EVENTS
            | abi::PACIFICA_GET_SREGS
            | abi::PACIFICA_GET_SREGS2
            | abi::PACIFICA_GET_DEBUGREGS
    ) {
        settle(vcpu, inner);
    } else if vcpu.mailbox.is_asked() {
        requests::serve_for_state(vcpu, inner);
    }
    match cmd {
        abi::PACIFICA_GET_REGS => arg.write(&get_regs(inner))?,
        abi::PACIFICA_SET_REGS => set_regs(inner, &arg.read()?),
        abi::PACIFICA_GET_SREGS => arg.write(&vcpu_sregs::get(inner))?,
        abi::PACIFICA_SET_SREGS => vcpu_sregs::set(vcpu, inner, &arg.read()?)?,
        abi::PACIFICA_GET_SREGS2 => arg.write(&vcpu_sregs::get2(vcpu, inner))?,
        abi::PACIFICA_SET_SREGS2 => vcpu_sregs::set2(vcpu, inner, &arg.read()?)?,
        abi::PACIFICA_TRANSLATE => translate(vcpu, inner, arg)?,
        abi::PACIFICA_INTERRUPT => interrupt(vcpu, inner, &arg.read()?)?,
        abi::PACIFICA_NMI => inner.state.events.raise_nmi(),
        abi::PACIFICA_GET_MSRS => return get_msrs(vcpu, inner, arg),
        abi::PACIFICA_SET_MSRS => return set_msrs(vcpu, inner, arg),
        abi::PACIFICA_SET_SIGNAL_MASK => set_signal_mask(inner, arg)?,
        abi::PACIFICA_GET_MP_STATE => {
            arg.write(&abi::kvm_mp_state {
                mp_state: match inner.state.mp_state {
                    // It wakes at the next KVM_RUN, wherever that is.
                    MpState::Halted if inner.parts.unhalted => MpState::Runnable,
                    state => state,
                } as u32,
            })?;
        }
        abi::PACIFICA_SET_MP_STATE => set_mp_state(vcpu, inner, &arg.read()?)?,
        abi::PACIFICA_GET_TSC_KHZ => return Ok(ffi::tsc_khz() as c_long),
        // The TSC runs at the host's rate, always.
        abi::PACIFICA_SET_TSC_KHZ if !clock::is_own_rate(arg.0) => return Err(EINVAL),
        abi::PACIFICA_SET_TSC_KHZ => {}
        abi::PACIFICA_GET_FPU
        | abi::PACIFICA_SET_FPU
        | abi::PACIFICA_GET_XSAVE
        | abi::PACIFICA_GET_XSAVE2
        | abi::PACIFICA_SET_XSAVE
        | abi::PACIFICA_GET_XCRS
        | abi::PACIFICA_SET_XCRS => vcpu_fpu::ioctl(inner, cmd, arg)?,
        abi::PACIFICA_GET_VCPU_EVENTS
        | abi::PACIFICA_SET_VCPU_EVENTS
        | abi::PACIFICA_GET_DEBUGREGS
        | abi::PACIFICA_SET_DEBUGREGS
        | abi::PACIFICA_SET_GUEST_DEBUG
        | abi::PACIFICA_X86_SETUP_MCE
        | abi::PACIFICA_X86_SET_MCE
        | abi::PACIFICA_GET_LAPIC
        | abi::PACIFICA_SET_LAPIC
        | abi::PACIFICA_SET_VAPIC_ADDR => vcpu_events::ioctl(vcpu, inner, cmd, arg)?,
        abi::PACIFICA_HAS_DEVICE_ATTR
        | abi::PACIFICA_GET_DEVICE_ATTR
        | abi::PACIFICA_SET_DEVICE_ATTR => clock::attribute(vcpu, inner, cmd, arg)?,
        abi::PACIFICA_PRE_FAULT_MEMORY => prefault::ioctl(inner, arg)?,
        abi::PACIFICA_SET_CPUID2 => vcpu_cpuid::set(vcpu, inner, arg)?,
        abi::PACIFICA_GET_CPUID2 => vcpu_cpuid::get(vcpu, inner, arg)?,
        abi::PACIFICA_ENABLE_CAP => enable_cap(&arg.read()?)?,
        abi::PACIFICA_GET_NESTED_STATE => get_nested_state(arg)?,
        abi::PACIFICA_SET_NESTED_STATE => set_nested_state(&arg.read()?)?,
        _ => return Err(ENOTTY),
    }
    Ok(0)
}

/// KVM_ENABLE_CAP of a vCPU. Guests have what their CPUID offers here, and no more, in any case.
fn enable_cap(cap: &abi::kvm_enable_cap) -> Result {
    let known = cap.cap == abi::KVM_CAP_ENFORCE_PV_FEATURE_CPUID && cap.flags == 0;
    known.then_some(()).ok_or(EINVAL)
}

/// The state of a guest of the guest's, of which there are none, is a header and no more.
const NESTED_STATE: NestedState = NestedState {
    flags: abi::KVM_STATE_NESTED_GIF_SET as u16,
    format: abi::KVM_STATE_NESTED_FORMAT_SVM as u16,
    size: core::mem::size_of::<NestedState>() as u32,
    header: [0; 15],
};

/// `struct kvm_nested_state` without what follows its header.
#[repr(C)]
pub(crate) struct NestedState {
    flags: u16,
    format: u16,
    /// Of all of it.
    size: u32,
    header: [u64; 15],
}

/// KVM_GET_NESTED_STATE: the caller says in it how much room there is.
fn get_nested_state(arg: Arg) -> Result {
    const SIZE: usize = core::mem::offset_of!(NestedState, size);
    let room: u32 = arg.offset(SIZE).read()?;
    if room < NESTED_STATE.size {
        arg.offset(SIZE).write(&NESTED_STATE.size)?;
        return Err(E2BIG);
    }
    arg.write(&NESTED_STATE)
}

/// KVM_SET_NESTED_STATE takes what the other gives.
fn set_nested_state(state: &NestedState) -> Result {
    let same = state.flags == NESTED_STATE.flags && state.format == NESTED_STATE.format;
    (same && state.size >= NESTED_STATE.size)
        .then_some(())
        .ok_or(EINVAL)
}

/// Brings the state into the form in which it is shown. What others have sent belongs to it, and so
/// does what comes with a pending exception, if the VMM does not take it apart.
pub(crate) fn settle(vcpu: &Vcpu, inner: &mut Inner) {
    if vcpu.mailbox.is_asked() {
        requests::serve_for_state(vcpu, inner);
    }
    if !vcpu.vm.has_option(option::EXCEPTION_PAYLOAD) {
        inject::expose_exception(&mut inner.vmcb, &mut inner.state);
    }
}

pub(crate) fn get_regs(inner: &Inner) -> abi::kvm_regs {
    let r = &inner.state.regs;
    abi::kvm_regs {
        rax: r.get(gpr::RAX),
        rbx: r.get(gpr::RBX),
        rcx: r.get(gpr::RCX),
        rdx: r.get(gpr::RDX),
        rsi: r.get(gpr::RSI),
        rdi: r.get(gpr::RDI),
        rsp: r.get(gpr::RSP),
        rbp: r.get(gpr::RBP),
        r8: r.get(8),
        r9: r.get(9),
        r10: r.get(10),
        r11: r.get(11),
        r12: r.get(12),
        r13: r.get(13),
        r14: r.get(14),
        r15: r.get(15),
        rip: inner.vmcb.rip(),
        rflags: inner.state.debug.rflags(&inner.vmcb).bits(),
    }
}

pub(crate) fn set_regs(inner: &mut Inner, regs: &abi::kvm_regs) {
    inner.state.regs.gpr = [
        regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8,
        regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ];
    if regs.rip != inner.vmcb.rip() {
        inner.state.events.rip_set();
        inner.vmcb.set_rip(regs.rip);
    }
    let rflags = Rflags::from_bits_retain(regs.rflags) | Rflags::RESERVED1;
    inner.state.debug.set_rflags(&mut inner.vmcb, rflags);
    inner.state.events.forget_pending();
}

fn translate(vcpu: &Vcpu, inner: &mut Inner, arg: Arg) -> Result {
    let mut t: abi::kvm_translation = arg.read()?;
    let linear = t.linear_address;
    let result = inner.with_guest(vcpu, true, |guest| {
        let paging = guest.paging();
        paging::inspect(guest.platform, &paging, linear)
    });
    match result {
        // KVM's word for "nowhere" is an address, too.
        Ok(translation) if translation.gpa != u64::MAX => {
            t.physical_address = translation.gpa;
            t.valid = 1;
        }
        _ => {
            t.physical_address = u64::MAX;
            t.valid = 0;
        }
    }
    t.writeable = 1;
    t.usermode = 0;
    arg.write(&t)
}

/// KVM_INTERRUPT: an interrupt of the VMM's own controller.
fn interrupt(vcpu: &Vcpu, inner: &mut Inner, interrupt: &abi::kvm_interrupt) -> Result {
    let vector = u8::try_from(interrupt.irq).map_err(|_| EINVAL)?;
    if !inner.parts.pic_in_user {
        return Err(ENXIO);
    }
    if inner.parts.lapic.is_some() {
        // The processor takes it as it would from a PIC: through LINT0, when it is ready.
        if inner.parts.user_vector.is_some() {
            return Err(EEXIST);
        }
        inner.parts.user_vector = Some(vector);
        vcpu.mailbox.ask(request::CHIPS);
        return Ok(());
    }
    if inner.state.events.interrupt.is_some() {
        return Err(EEXIST);
    }
    inner.state.events.interrupt = Some(QueuedInterrupt {
        vector,
        soft: false,
    });
    inner.state.mp_state = MpState::Runnable;
    Ok(())
}

/// Most MSRs of one call, as KVM has it.
const MAX_MSRS: u32 = 256;

/// The MSRs that a call is about.
pub(crate) fn read_msrs(arg: Arg) -> Result<KVec<abi::kvm_msr_entry>> {
    let header: abi::kvm_msrs = arg.read()?;
    if header.nmsrs >= MAX_MSRS {
        return Err(E2BIG);
    }
    arg.after::<abi::kvm_msrs>()
        .read_array(header.nmsrs as usize)
}

/// Answers how many could be read.
fn get_msrs(vcpu: &Vcpu, inner: &mut Inner, arg: Arg) -> Result<c_long> {
    let mut entries = read_msrs(arg)?;
    let mut done = 0;
    for entry in entries.iter_mut() {
        let index = entry.index;
        let value = inner.with_guest(vcpu, true, |guest| {
            dispatch::read_msr(guest, index, Origin::Host)
        });
        match value {
            Ok(value) => entry.data = value,
            Err(_) => break,
        }
        done += 1;
    }
    arg.after::<abi::kvm_msrs>().write_array(&entries)?;
    Ok(done)
}

/// Answers how many could be set.
fn set_msrs(vcpu: &Vcpu, inner: &mut Inner, arg: Arg) -> Result<c_long> {
    let entries = read_msrs(arg)?;
    let mut done = 0;
    for entry in entries.iter() {
        let (index, value) = (entry.index, entry.data);
        let result = inner.with_guest(vcpu, true, |guest| {
            dispatch::write_msr(guest, index, value, Origin::Host)
        });
        if result.is_err() {
            break;
        }
        done += 1;
    }
    Ok(done)
}

fn set_signal_mask(inner: &mut Inner, arg: Arg) -> Result {
    if arg.0 == 0 {
        inner.signal_mask = None;
        return Ok(());
    }
    let header: abi::kvm_signal_mask = arg.read()?;
    let set: u64 = match header.len {
        8 => arg.after::<abi::kvm_signal_mask>().read()?,
        _ => return Err(EINVAL),
    };
    // The same as the kernel's own: a word with a bit for each signal but two.
    inner.signal_mask = Some(ffi::signal_set(set));
    Ok(())
}

fn set_mp_state(vcpu: &Vcpu, inner: &mut Inner, state: &abi::kvm_mp_state) -> Result {
    let new = match state.mp_state {
        abi::KVM_MP_STATE_RUNNABLE => MpState::Runnable,
        // Without a LAPIC in the kernel nobody would ever wake it.
        _ if inner.parts.lapic.is_none() => return Err(EINVAL),
        abi::KVM_MP_STATE_UNINITIALIZED => MpState::Uninitialized,
        abi::KVM_MP_STATE_INIT_RECEIVED => MpState::InitReceived,
        abi::KVM_MP_STATE_HALTED => MpState::Halted,
        abi::KVM_MP_STATE_SIPI_RECEIVED => {
            inner
                .state
                .start_up(&mut inner.vmcb, vcpu.mailbox.sipi_vector());
            MpState::Runnable
        }
        _ => return Err(EINVAL),
    };
    inner.state.mp_state = new;
    inner.parts.unhalted = false;
    Ok(())
}

/// Whatever the VMM changed may concern timers and the clock page.
pub(crate) fn touch_time(inner: &mut Inner) {
    inner.parts.deferred |= deferred::TIMER | deferred::PV_CLOCK;
}
