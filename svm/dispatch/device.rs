// SPDX-License-Identifier: GPL-2.0-only

//! Ports, nested faults, and the emulation of instructions that reach a device.

use super::intercepted::intercepted;
use super::rip::{advance, single_step_trap};
use super::{Action, InternalError, Platform, UserExit};
use crate::cpu::Guest;
use crate::event::Event;
use crate::exit::{IoExit, NestedError};
use crate::io::{Fault, Fragment, Phase, Place};
use crate::state::Decoded;
use x86::cpu::{Access, Cpu, MemError, Stop};
use x86::decode::{Insn, Map, MAX_LENGTH};
use x86::emulate::{code_address, code_size, emulate as execute, fetch};
use x86::regs::{gpr, Rflags};

/// IN, OUT, INS, OUTS (APM vol. 2, 15.10.2). The CPU has checked the permission already.
#[inline]
pub(super) fn io<P: Platform>(guest: &mut Guest<'_, P>, io: IoExit) -> Result<Action, Stop> {
    if io.string {
        return emulate(guest, None);
    }
    let place = Place::Port(io.port);
    let fragment = if io.input {
        if let Some(value) = guest.platform.port_in(io.port, io.size) {
            set_rax(guest, io.size, value);
            advance(guest, io.next_rip);
            return Ok(Action::Resume);
        }
        Fragment::new(place, low_bytes(&[0; 4], io.size))
    } else {
        let value = guest.state.regs.get(gpr::RAX) as u32;
        let bytes = value.to_le_bytes();
        let bytes = low_bytes(&bytes, io.size);
        if guest
            .platform
            .port_out(io.port, io.size, little_endian(bytes))
        {
            advance(guest, io.next_rip);
            return Ok(Action::Resume);
        }
        Fragment::new(place, bytes)
    };
    let state = &mut guest.state.io;
    state.activate();
    state.rip = guest.vmcb.rip();
    state.next_rip = io.next_rip;
    state.phase = Phase::Port {
        fragment,
        write: !io.input,
    };
    Ok(pending(guest))
}

fn low_bytes(bytes: &[u8; 4], size: u8) -> &[u8] {
    bytes.get(..usize::from(size)).unwrap_or(bytes)
}

fn little_endian(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, &byte| value << 8 | u32::from(byte))
}

/// What IN does to RAX: a doubleword clears the upper half, as always.
fn set_rax<P: Platform>(guest: &mut Guest<'_, P>, size: u8, value: u32) {
    let rax = guest.state.regs.get(gpr::RAX);
    let value = u64::from(value);
    let rax = match size {
        1 => rax & !0xff | value & 0xff,
        2 => rax & !0xffff | value & 0xffff,
        _ => value,
    };
    guest.state.regs.set(gpr::RAX, rax);
}

/// The exit for the access that waits.
pub(super) fn pending<P: Platform>(guest: &Guest<'_, P>) -> Action {
    match guest.state.io.pending() {
        Some(io) => Action::User(UserExit::Io(io)),
        None => Action::Resume,
    }
}

/// See [`super::nested_fault`].
pub(super) fn nested_fault<P: Platform>(
    guest: &mut Guest<'_, P>,
    gpa: u64,
    error: NestedError,
    why: MemError,
) -> Result<Action, Stop> {
    match why {
        MemError::WouldSleep => return Err(Stop::WouldSleep),
        MemError::Fault => return Err(Stop::Fault),
        MemError::Unbacked | MemError::ReadOnly => {}
    }
    let event = guest.vmcb.exit_int_info();
    if event & Event::VALID != 0 {
        return Ok(Action::User(UserExit::InternalError(
            InternalError::Delivery {
                event,
                exit_code: guest.vmcb.exit_code(),
                info: error.bits(),
                gpa,
            },
        )));
    }
    let fault = Fault {
        gpa,
        write: error.contains(NestedError::WRITE),
        unbacked: why == MemError::Unbacked,
    };
    emulate(guest, Some((fault, error)))
}

/// Emulates the instruction at RIP, after this nested fault if there was one.
pub(super) fn emulate<P: Platform>(
    guest: &mut Guest<'_, P>,
    fault: Option<(Fault, NestedError)>,
) -> Result<Action, Stop> {
    guest.state.io.activate();
    let result = emulate_some(guest, fault);
    match result {
        // The answers are needed when it is run again.
        Err(Stop::User | Stop::WouldSleep) | Ok(Action::User(_)) => {}
        _ => guest.state.io.clear(),
    }
    result
}

/// The instruction at RIP. One that has been begun is not decoded again.
fn instruction<P: Platform>(
    guest: &mut Guest<'_, P>,
    fault: Option<(Fault, NestedError)>,
) -> Result<Insn, Stop> {
    let io = &guest.state.io;
    if let Some(insn) = io.insn {
        if io.rip == guest.vmcb.rip() && insn.mode == code_size(guest) {
            return Ok(insn);
        }
    }
    let mut bytes = [0; Decoded::BYTES];
    let saved = match fault {
        Some(_) => guest.vmcb.instruction_bytes(),
        None => &[],
    };
    let length = match bytes.get_mut(..saved.len()) {
        Some(copy) if !saved.is_empty() => {
            copy.copy_from_slice(saved);
            saved.len()
        }
        _ => read_code(guest, &mut bytes)?,
    };
    let insn = decoded(guest, &bytes, length)?;
    guest.state.io.begin(insn);
    if let Some((fault, error)) = fault {
        let of_operand = error.contains(NestedError::FINAL)
            && !error.intersects(NestedError::FETCH | NestedError::TABLE_WALK);
        if of_operand && has_one_operand(&insn) {
            guest.state.io.fault = Some(fault);
        }
    }
    Ok(insn)
}

/// Decodes the instruction of which `length` bytes are known, or finds that the same bytes were
/// decoded lately: a driver has few instructions that reach its device.
fn decoded<P: Platform>(
    guest: &mut Guest<'_, P>,
    bytes: &[u8; Decoded::BYTES],
    length: usize,
) -> Result<Insn, Stop> {
    let mode = code_size(guest);
    let slot = guest.vmcb.rip() as usize % Decoded::SLOTS;
    if let Some(Some(last)) = guest.state.decoded.get(slot) {
        let whole = usize::from(last.insn.length) <= length;
        if whole && last.bytes == *bytes && last.insn.mode == mode {
            return Ok(last.insn);
        }
    }
    let insn = fetch(guest, bytes.get(..length).unwrap_or(&[]))?;
    // If it goes on behind the known bytes, these do not tell it.
    if usize::from(insn.length) <= length {
        if let Some(slot) = guest.state.decoded.get_mut(slot) {
            *slot = Some(Decoded {
                bytes: *bytes,
                insn,
            });
        }
    }
    Ok(insn)
}

/// Reads what there may be of the instruction at RIP before the end of its page or of its segment;
/// the answer is how much that is. The CPU looks at the limit of CS, but not every emulator.
fn read_code<P: Platform>(
    guest: &mut Guest<'_, P>,
    bytes: &mut [u8; Decoded::BYTES],
) -> Result<usize, Stop> {
    let (linear, room) = code_address(guest, code_size(guest), guest.vmcb.rip())?;
    let length = room.min(MAX_LENGTH);
    let part = bytes.get_mut(..length).ok_or(Stop::Unhandled)?;
    guest.read(linear, part, Access::Fetch)?;
    Ok(length)
}

/// Whether the instruction accesses memory in one place only: then the place of a nested fault is
/// that of its operand. These do not: MOVS, CMPS, INS, OUTS; PUSH, POP and CALL with an operand in
/// memory; ENTER; what loads a segment, for which the CPU writes to the descriptor; and LAR, LSL,
/// VERR and VERW, which read one.
fn has_one_operand(insn: &Insn) -> bool {
    let several = match insn.map {
        Map::OneByte => matches!(
            insn.opcode,
            0x07 | 0x17 | 0x1f | 0x6c..=0x6f | 0x8e | 0x8f | 0x9a | 0xa4..=0xa7
                | 0xc4 | 0xc5 | 0xc8 | 0xca | 0xcb | 0xcf | 0xea | 0xff
        ),
        Map::TwoByte => matches!(
            insn.opcode,
            0x00 | 0x02 | 0x03 | 0xa1 | 0xa9 | 0xb2 | 0xb4 | 0xb5
        ),
        _ => false,
    };
    !several
}

/// MOV SS and POP SS.
fn loads_stack_segment(insn: &Insn) -> bool {
    const SS: u8 = 2;
    insn.is(Map::OneByte, 0x17) || (insn.is(Map::OneByte, 0x8e) && insn.group() == SS)
}

fn is_iret(insn: &Insn) -> bool {
    insn.is(Map::OneByte, 0xcf)
}

fn emulate_some<P: Platform>(
    guest: &mut Guest<'_, P>,
    fault: Option<(Fault, NestedError)>,
) -> Result<Action, Stop> {
    let insn = instruction(guest, fault)?;
    if let Some(result) = intercepted(guest, &insn) {
        return result;
    }
    let rip = guest.vmcb.rip();
    while guest.state.io.may_go_on() {
        guest.state.io.restart(rip);
        let stepping = guest.rflags().contains(Rflags::TF);
        execute(guest, &insn)?;
        guest.state.io.commit();
        let completed = guest.vmcb.rip() != rip;
        // Nothing comes between the two instructions that switch stacks (APM vol. 2, 13.1.4).
        let stepping = stepping && !loads_stack_segment(&insn);
        // An interrupt clears TF on its way.
        let stepping = stepping
            && (insn.software_interrupt().is_none() || guest.rflags().contains(Rflags::TF));
        // What the VMM has answered already comes first.
        let stepping = stepping && (completed || !guest.state.io.has_elements());
        if completed && is_iret(&insn) {
            guest.state.events.iret_executed();
        }
        if stepping {
            single_step_trap(guest);
        }
        if guest.state.io.begin_writes() {
            return Ok(pending(guest));
        }
        if completed || stepping {
            break;
        }
    }
    Ok(Action::Resume)
}

/// See [`super::finish_io`].
pub(super) fn finish<P: Platform>(guest: &mut Guest<'_, P>, data: [u8; 8]) -> Result<Action, Stop> {
    match guest.state.io.phase {
        Phase::Idle | Phase::Msr { .. } => return Ok(Action::Resume),
        Phase::Answered => {}
        Phase::Port { fragment, write } => {
            guest.state.io.phase = Phase::Idle;
            if guest.vmcb.rip() == guest.state.io.rip {
                if !write {
                    let [a, b, c, d, ..] = data;
                    set_rax(guest, fragment.size, u32::from_le_bytes([a, b, c, d]));
                }
                let next = guest.state.io.next_rip;
                advance(guest, next);
            }
            return Ok(Action::Resume);
        }
        Phase::Read(fragment) => guest.state.io.answered(fragment, data),
        Phase::Writes => {
            if guest.state.io.next_write() {
                return Ok(pending(guest));
            }
            // If RIP is still there, it is a REP instruction with iterations left.
            guest.state.io.phase = Phase::Answered;
        }
    }
    resume(guest)
}

/// See [`super::resume_io`].
pub(super) fn resume<P: Platform>(guest: &mut Guest<'_, P>) -> Result<Action, Stop> {
    if guest.state.io.phase != Phase::Answered {
        return Ok(Action::Resume);
    }
    if guest.vmcb.rip() != guest.state.io.rip || guest.state.events.exception.is_some() {
        guest.state.io.clear();
        return Ok(Action::Resume);
    }
    emulate(guest, None)
}
