// SPDX-License-Identifier: GPL-2.0-only

//! From an exit to what is to be done about it: one small handler per exit.

mod control;
mod device;
mod exception;
mod instruction;
mod intercepted;
mod msr;
mod pairing;
pub(crate) mod rip;
mod task;

pub(crate) use control::{check_dr, load_machine_status_word, width};
pub use control::{control_regs, set_control_regs, valid_dr6, valid_dr7};
pub use exception::events_set;
pub use instruction::{dynamic, set_xcr0};
pub use msr::{finish_msr, read_msr, write_msr};

use crate::cpu::Guest;
use crate::exit::{Exit, NestedError};
use crate::io::UserIo;
use crate::nested::{self, Nested};
use crate::requests::Requests;
use crate::vmcb::DR6_RESET;
use rip::Opcode;
use x86::cpu::{Access, Cpu, ExtendedState, GuestMemory, MemError, Stop};
use x86::cpuid::{function, lookup};
use x86::emulate::code_size;
use x86::msr::Origin;
use x86::regs::{vector, Exception};

/// What the VMM has chosen for all vCPUs of a VM (`KVM_ENABLE_CAP`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy(u32);

bitflags::bitflags! {
    impl Policy: u32 {
        /// `KVM_MSR_EXIT_REASON_INVAL`: the VMM answers accesses of MSRs that would be #GP.
        const MSR_INVALID_EXITS = 1 << 0;
        /// `KVM_MSR_EXIT_REASON_UNKNOWN`: and those of MSRs that are not known.
        const MSR_UNKNOWN_EXITS = 1 << 1;
        /// `KVM_MSR_EXIT_REASON_FILTER`: and those that its filter denies.
        const MSR_FILTER_EXITS = 1 << 2;
        /// What cannot be emulated is the VMM's business even if a program of the guest did it.
        const EMULATION_FAILURE_EXITS = 1 << 3;
        /// PLATFORM_INFO is not there for the guest.
        const NO_PLATFORM_INFO = 1 << 4;
        /// MONITOR and MWAIT are undefined where CPUID does not have them.
        const MWAIT_MAY_FAULT = 1 << 5;
        /// CPUID has MONITOR and MWAIT while MISC_ENABLE has.
        const MISC_ENABLE_HAS_MWAIT = 1 << 6;
        /// VMCALL, the hypercall of Intel's CPUs, is undefined.
        const VMCALL_FAULTS = 1 << 7;
        /// The VMM gets what a guest does in its local APIC's page while no registers are there.
        const LAPIC_PAGE_EXITS = 1 << 8;
    }
}

impl Policy {
    /// The exits for MSRs, with the numbers of `KVM_MSR_EXIT_REASON_*`.
    pub const MSR_EXITS: Self = Self::MSR_INVALID_EXITS
        .union(Self::MSR_UNKNOWN_EXITS)
        .union(Self::MSR_FILTER_EXITS);
}

/// What the handlers need of the world outside of the CPU. The module implements it, the tests do,
/// the fuzzers do.
///
/// No method may block, except where [`Action::NeedSleep`] has asked for another round with
/// sleeping allowed; the implementation knows which round it is.
pub trait Platform: GuestMemory + ExtendedState {
    /// The host's TSC.
    fn tsc(&self) -> u64;

    /// Reads a port of a device in the kernel; `None` if the VMM has the port.
    fn port_in(&mut self, port: u16, size: u8) -> Option<u32>;
    /// What the VMM answered to a [`UserIo::Port`] with several elements, from byte `offset` on.
    fn port_answer(&self, offset: usize, bytes: &mut [u8]) {
        let _ = (offset, bytes);
    }
    /// Writes a port of a device in the kernel (an ioeventfd counts); `false` if the VMM has it.
    fn port_out(&mut self, port: u16, size: u8, value: u32) -> bool;
    /// Reads a register of a device in the kernel; `false` if the VMM has the address.
    fn mmio_read(&mut self, gpa: u64, data: &mut [u8]) -> bool;
    /// Writes a register of a device in the kernel; `false` if the VMM has the address.
    fn mmio_write(&mut self, gpa: u64, data: &[u8]) -> bool;

    /// Whether the VMM's filter denies the guest this access of an MSR.
    fn msr_denied(&self, index: u32, write: bool) -> bool {
        let _ = (index, write);
        false
    }
    /// The guest wants the branch predictors of this CPU flushed (IBPB). False if the CPU cannot do
    /// it.
    fn flush_predictors(&mut self) -> bool {
        false
    }

    /// Reads `IA32_APIC_BASE`.
    fn apic_base(&self) -> u64;
    /// Writes `IA32_APIC_BASE`.
    fn set_apic_base(&mut self, value: u64, origin: Origin) -> Result<(), Exception>;
    /// An INIT reaches the local APIC.
    fn init_apic(&mut self) {}
    /// Reads x2APIC register `0x800 + register`.
    fn x2apic_read(&mut self, register: u8) -> Result<u64, Exception>;
    /// Writes x2APIC register `0x800 + register`.
    fn x2apic_write(&mut self, register: u8, value: u64) -> Result<(), Exception>;
    /// Reads the TSC deadline.
    fn tsc_deadline(&mut self, origin: Origin) -> u64;
    /// Sets the TSC deadline.
    fn set_tsc_deadline(&mut self, value: u64, origin: Origin);
    /// The guest wrote CR8, and V_TPR has it. Answers whether the VMM wants to hear of it
    /// (`KVM_EXIT_SET_TPR`): its own controller's priority fell.
    fn cr8_written(&mut self, old: u8, new: u8) -> bool;

    /// The VMM sets the TSC to `value`, which exactly would be this offset. Answers the offset that
    /// the vCPU gets, which may be that of another one that was set to the same.
    fn sync_tsc(&mut self, value: u64, offset: u64) -> u64 {
        let _ = value;
        offset
    }

    /// The guest has set where its paravirtual clock is, by the MSR of old or the one of today.
    fn clock_placed(&mut self, old: bool) {
        let _ = old;
    }

    /// Leaves this to be done before the guest is entered again.
    fn request(&mut self, requests: Requests);
    /// The guest asked for its caches to be written back. Nothing to do unless a real device can
    /// reach its memory past the caches.
    fn wbinvd(&mut self);
    /// The host's TSC, and the real time in nanoseconds since 1970 when it had this value. Nothing
    /// if the host does not keep its time by the TSC.
    fn real_time_at_tsc(&self) -> Option<(u64, u64)> {
        None
    }
    /// The vCPU with this APIC ID need not stay halted.
    fn wake(&mut self, apic_id: u32) {
        let _ = apic_id;
    }
    /// The vCPU with this APIC ID has better use for the CPU.
    fn yield_to(&mut self, apic_id: u32) {
        let _ = apic_id;
    }
    /// Sends an interrupt to those whose APIC ID is `lowest` plus the number of a bit in `set`;
    /// `message` has type and vector, as in the ICR. How many there are.
    fn send_ipis(&mut self, lowest: u32, set: u128, message: u32) -> u32 {
        let _ = (lowest, set, message);
        0
    }
}

/// `KVM_EXIT_INTERNAL_ERROR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InternalError {
    /// `KVM_INTERNAL_ERROR_EMULATION`: an instruction that the emulator does not know. The bytes
    /// as far as they could be read.
    Emulation {
        /// How many bytes are valid.
        length: u8,
        /// The instruction.
        bytes: [u8; 15],
    },
    /// `KVM_INTERNAL_ERROR_DELIVERY_EV`: a device access in the delivery of an event.
    Delivery {
        /// EXITINTINFO.
        event: u64,
        /// EXITCODE.
        exit_code: u64,
        /// EXITINFO1.
        info: u64,
        /// The guest-physical address.
        gpa: u64,
    },
    /// `KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON`.
    UnexpectedExit {
        /// EXITCODE.
        exit_code: u64,
    },
}

/// A reason to go back to the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserExit {
    /// `KVM_EXIT_IO` or `KVM_EXIT_MMIO`. The answer goes to [`finish_io`].
    Io(UserIo),
    /// `KVM_EXIT_SHUTDOWN`: a triple fault.
    Shutdown,
    /// `KVM_EXIT_SET_TPR`.
    SetTpr,
    /// `KVM_EXIT_DEBUG`, at RIP.
    Debug {
        /// #DB or #BP.
        vector: u8,
        /// DR6, for a #DB.
        dr6: u64,
    },
    /// `KVM_EXIT_FAIL_ENTRY`: the CPU refused the VMCB.
    FailEntry {
        /// `hardware_entry_failure_reason`.
        reason: u64,
    },
    /// `KVM_EXIT_INTERNAL_ERROR`.
    InternalError(InternalError),
    /// `KVM_RUN` fails with `EFAULT`: the VMM has no memory where its slots say so.
    Fault,
}

impl UserExit {
    /// The end of a single step that needed us.
    pub const STEPPED: Self = Self::Debug {
        vector: vector::DB,
        dr6: DR6_RESET | rip::DR6_BS,
    };
}

/// What is to be done after an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run the guest on.
    Resume,
    /// The guest executed HLT (RIP is behind it): block until something is pending.
    Halt,
    /// Nothing has happened: call again with the same exit where sleeping is allowed.
    NeedSleep,
    /// Go back to the VMM.
    User(UserExit),
}

/// Handles one exit. A nested page fault is memory's, and comes here only as [`nested_fault`].
#[inline]
pub fn dispatch<P: Platform>(guest: &mut Guest<'_, P>, exit: Exit) -> Action {
    let result = handle(guest, exit);
    settle(guest, result)
}

#[inline]
fn handle<P: Platform>(guest: &mut Guest<'_, P>, exit: Exit) -> Result<Action, Stop> {
    if guest.nested.is_some() {
        if let Some(result) = nested::route::route(guest, &exit) {
            return result;
        }
    }
    match exit {
        Exit::Cpuid => instruction::cpuid(guest),
        Exit::Msr { write } => msr::msr(guest, write),
        Exit::Io(io) => device::io(guest, io),
        Exit::Vmmcall => instruction::vmmcall(guest),
        Exit::Hlt => instruction::hlt(guest),
        Exit::Pause => instruction::pause(guest),
        // The glue has let the host handle its own; `inject::prepare` closes the window.
        Exit::Intr | Exit::Nmi | Exit::Smi | Exit::Init | Exit::Vintr => Ok(Action::Resume),
        exit => rare(guest, exit),
    }
}

/// The exits that need not be fast.
fn rare<P: Platform>(guest: &mut Guest<'_, P>, exit: Exit) -> Result<Action, Stop> {
    match exit {
        Exit::Cr(access) | Exit::Cr0SelWrite(access) => control::cr(guest, access),
        Exit::Dr(access) => control::dr(guest, access),
        Exit::Exception {
            vector,
            error_code,
            info2,
        } => exception::exception(guest, vector, error_code, info2),
        Exit::Iret => Ok(exception::iret(guest)),
        Exit::SoftwareInterrupt => exception::software_interrupt(guest),
        Exit::Rdtsc => instruction::rdtsc(guest, false),
        Exit::Rdtscp => instruction::rdtsc(guest, true),
        Exit::Rdpmc => instruction::rdpmc(guest),
        Exit::Invd => instruction::wbinvd(guest, Opcode::INVD),
        Exit::Wbinvd => instruction::wbinvd(guest, Opcode::WBINVD),
        Exit::Monitor => instruction::mwait(guest, Opcode::MONITOR),
        Exit::Mwait => instruction::mwait(guest, Opcode::MWAIT),
        Exit::Xsetbv => instruction::xsetbv(guest),
        Exit::Icebp => instruction::icebp(guest),
        Exit::SvmInstruction(code) => nested::instruction::instruction(guest, code),
        Exit::Rsm | Exit::Rdpru | Exit::OtherInstruction => Err(Exception::UD.into()),
        // An FPU error with CR0.NE clear, which PCs of old made an interrupt: the nearest thing
        // that a guest of today understands.
        Exit::FerrFreeze => Err(Exception::new(vector::MF).into()),
        // Not intercepted: the TLB is the guest's own business.
        Exit::Invlpg => {
            guest.platform.request(Requests::TLB_FLUSH);
            rip::skip(guest, Opcode::ANY)?;
            Ok(Action::Resume)
        }
        Exit::TaskSwitch(switch) => task::task_switch(guest, switch),
        Exit::Shutdown => {
            // What the CPU saved is undefined (APM vol. 2, 15.14.3). Hardware that shuts down is
            // often wired to INIT, so this is what the VMM sees, and goes on with if it does.
            let [signature, ..] = lookup(guest.cpuid, function::FEATURES, 0);
            if let Some(nested) = guest.nested.as_deref_mut() {
                nested.reset(guest.vmcb);
            }
            guest.vmcb.reset_after_shutdown();
            guest.state.init(guest.vmcb, signature);
            guest.platform.init_apic();
            guest.vmcb.set_all_dirty();
            guest.platform.request(Requests::TLB_FLUSH);
            Ok(Action::User(UserExit::Shutdown))
        }
        Exit::Invalid => Ok(Action::User(UserExit::FailEntry {
            reason: guest.vmcb.exit_code(),
        })),
        _ => Ok(Action::User(UserExit::InternalError(
            InternalError::UnexpectedExit {
                exit_code: guest.vmcb.exit_code(),
            },
        ))),
    }
}

/// Handles a nested page fault (APM vol. 2, 15.25.6) at `gpa` that memory did not end, and why.
#[inline]
pub fn nested_fault<P: Platform>(
    guest: &mut Guest<'_, P>,
    gpa: u64,
    error: NestedError,
    why: MemError,
) -> Action {
    let result = device::nested_fault(guest, gpa, error, why);
    settle(guest, result)
}

/// Gives the VMM's answer to the pending [`UserIo`] to the guest and goes on with the instruction.
/// To be called at the start of `KVM_RUN` if [`crate::io::IoState::pending`] says so. On
/// [`Action::NeedSleep`] call [`resume_io`] where sleeping is allowed.
pub fn finish_io<P: Platform>(guest: &mut Guest<'_, P>, data: [u8; 8]) -> Action {
    let result = device::finish(guest, data);
    settle(guest, result)
}

/// Goes on with an instruction that [`finish_io`] could not end without sleeping.
pub fn resume_io<P: Platform>(guest: &mut Guest<'_, P>) -> Action {
    let result = device::resume(guest);
    settle(guest, result)
}

/// What a handler that could not finish leads to.
#[inline]
fn settle<P: Platform>(guest: &mut Guest<'_, P>, result: Result<Action, Stop>) -> Action {
    match result {
        Ok(action) => action,
        Err(stop) => stopped(guest, stop),
    }
}

#[cold]
fn stopped<P: Platform>(guest: &mut Guest<'_, P>, stop: Stop) -> Action {
    match stop {
        Stop::Exception(exception) => {
            guest.state.events.raise(exception);
            Action::Resume
        }
        Stop::User => device::pending(guest),
        Stop::WouldSleep => Action::NeedSleep,
        Stop::Again => Action::Resume,
        // What the outer guest's nested tables do not permit is its exit, at the next entry.
        Stop::Fault if guest.nested.as_deref().is_some_and(Nested::has_exit) => Action::Resume,
        Stop::Fault => Action::User(UserExit::Fault),
        // A program of the guest must not be able to stop the guest.
        Stop::Unhandled
            if guest.cpl() != 0 && !guest.policy.contains(Policy::EMULATION_FAILURE_EXITS) =>
        {
            guest.state.events.raise(Exception::UD);
            Action::Resume
        }
        Stop::Unhandled => Action::User(UserExit::InternalError(unknown_instruction(guest))),
    }
}

/// The instruction at RIP, as far as it can be read, for the VMM to look at.
fn unknown_instruction<P: Platform>(guest: &mut Guest<'_, P>) -> InternalError {
    let mut bytes = [0; 15];
    let size = code_size(guest);
    let linear = rip::linear_rip(guest, size);
    let mut length = bytes.len();
    while length != 0 {
        if let Some(bytes) = bytes.get_mut(..length) {
            if guest.read(linear, bytes, Access::Fetch).is_ok() {
                break;
            }
        }
        length = length.saturating_sub(1);
    }
    if let Some(nested) = guest.nested.as_deref_mut() {
        nested.drop_exit();
    }
    InternalError::Emulation {
        length: length as u8,
        bytes,
    }
}
