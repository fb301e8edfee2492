// SPDX-License-Identifier: GPL-2.0-only

//! From an operand to a linear address: effective address, segment base, limit and rights,
//! canonical form (APM vol. 2, 4.12 and 5.3.1; vol. 3, 1.7).

use crate::cpu::Access;
use crate::cpu::Cpu;
use crate::cpu::Stop;
use crate::decode::CodeSize;
use crate::decode::Insn;
use crate::decode::Map;
use crate::decode::Mem;
use crate::regs::gpr;
use crate::regs::vector;
use crate::regs::Cr0;
use crate::regs::Cr4;
use crate::regs::Efer;
use crate::regs::Exception;
use crate::regs::Rflags;
use crate::regs::SegAttr;
use crate::regs::SegReg;
use crate::regs::Segment;

/// The kind of code that CS selects now.
pub fn code_size<C: Cpu>(cpu: &C) -> CodeSize {
    let attributes = cpu.segment(SegReg::Cs).attributes;
    if cpu.efer().contains(Efer::LMA) && attributes.contains(SegAttr::L) {
        CodeSize::Bits64
    } else if attributes.contains(SegAttr::DB) && !cpu.rflags().contains(Rflags::VM) {
        CodeSize::Bits32
    } else {
        CodeSize::Bits16
    }
}

/// The linear address of the memory operand, without any check: what INVLPG uses. `None` if the
/// instruction has no memory operand.
pub fn linear_address<C: Cpu>(cpu: &C, insn: &Insn) -> Option<u64> {
    let mem = insn.mem?;
    let offset = effective_address(cpu, insn, &mem, 0);
    let base = cpu.segment(mem.segment).base;
    Some(add_base(insn.mode, mem.segment, base, offset))
}

/// The linear address of the memory operand, checked for an access of `size` bytes. #UD if the
/// instruction has no memory operand.
pub fn checked_address<C: Cpu>(
    cpu: &C,
    insn: &Insn,
    size: u8,
    access: Access,
) -> Result<u64, Stop> {
    let mem = insn.mem.ok_or(Exception::UD)?;
    let offset = effective_address(cpu, insn, &mem, 0);
    segment_address(cpu, insn.mode, mem.segment, offset, size, access)
}

/// Base, index and displacement, cut to the address size. `extra` is what bit strings add.
pub(super) fn effective_address<C: Cpu>(cpu: &C, insn: &Insn, mem: &Mem, extra: u64) -> u64 {
    let mut sum = mem.displacement.wrapping_add(extra);
    if let Some(base) = mem.base {
        sum = sum.wrapping_add(cpu.gpr(base));
        // POP addresses its destination with the RSP that it leaves behind.
        if base == gpr::RSP && insn.is(Map::OneByte, 0x8f) {
            sum = sum.wrapping_add(u64::from(insn.operand_size));
        }
    }
    if let Some(index) = mem.index {
        sum = sum.wrapping_add(cpu.gpr(index) << (mem.shift & 3));
    }
    if mem.rip_relative {
        sum = sum.wrapping_add(insn.next_rip(cpu.rip()));
    }
    sum & mask(insn.address_size)
}

/// The bits that a number of `size` bytes has.
pub(super) fn mask(size: u8) -> u64 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

fn add_base(mode: CodeSize, register: SegReg, base: u64, offset: u64) -> u64 {
    match (mode, register) {
        (CodeSize::Bits64, SegReg::Fs | SegReg::Gs) => base.wrapping_add(offset),
        (CodeSize::Bits64, _) => offset,
        _ => base.wrapping_add(offset) & 0xffff_ffff,
    }
}

/// The linear address of `size` bytes at `offset` in a segment, if they may be accessed.
///
/// Bytes that go around the end of the linear address space are not emulated: `Unhandled`.
pub(super) fn segment_address<C: Cpu>(
    cpu: &C,
    mode: CodeSize,
    register: SegReg,
    offset: u64,
    size: u8,
    access: Access,
) -> Result<u64, Stop> {
    let segment = cpu.segment(register);
    let linear = add_base(mode, register, segment.base, offset);
    let rest = u64::from(size).saturating_sub(1);
    let last = linear.wrapping_add(rest);
    let end_of_space = if mode == CodeSize::Bits64 {
        if !is_canonical(cpu, linear) || !is_canonical(cpu, last) {
            return Err(segment_fault(register));
        }
        u64::MAX
    } else {
        let allowed = !rights_are_checked(cpu) || rights_allow(&segment, access);
        if !allowed || !limit_allows(&segment, offset, rest) {
            return Err(segment_fault(register));
        }
        0xffff_ffff
    };
    if last < linear || last > end_of_space {
        return Err(Stop::Unhandled);
    }
    Ok(linear)
}

fn segment_fault(register: SegReg) -> Stop {
    let number = if register == SegReg::Ss {
        vector::SS
    } else {
        vector::GP
    };
    Stop::Exception(Exception::with_code(number, 0))
}

/// Whether an address has as many equal upper bits as the paging mode calls for.
pub(super) fn is_canonical<C: Cpu>(cpu: &C, linear: u64) -> bool {
    let unused = if cpu.cr4().contains(Cr4::LA57) { 7 } else { 16 };
    ((linear << unused) as i64 >> unused) as u64 == linear
}

/// Real and virtual-8086 mode know limits, but no types.
fn rights_are_checked<C: Cpu>(cpu: &C) -> bool {
    cpu.cr0().contains(Cr0::PE) && !cpu.rflags().contains(Rflags::VM)
}

fn rights_allow(segment: &Segment, access: Access) -> bool {
    let attributes = segment.attributes;
    // Bit 1 is "writable" of data and "readable" of code.
    let code = attributes.contains(SegAttr::CODE);
    let bit = attributes.contains(SegAttr::WRITABLE);
    let allowed = match access {
        Access::Write | Access::SystemWrite => !code && bit,
        _ => !code || bit,
    };
    allowed && attributes.contains(SegAttr::P.union(SegAttr::S))
}

/// Whether the bytes `offset` to `offset + rest` are inside the limit. `offset` has 32 bits.
fn limit_allows(segment: &Segment, offset: u64, rest: u64) -> bool {
    let limit = u64::from(segment.limit);
    let last = offset.wrapping_add(rest);
    let attributes = segment.attributes;
    let expands_down =
        attributes.contains(SegAttr::EXPAND_DOWN) && !attributes.contains(SegAttr::CODE);
    if expands_down {
        let size = if attributes.contains(SegAttr::DB) {
            4
        } else {
            2
        };
        offset > limit && last <= mask(size)
    } else {
        last <= limit
    }
}

/// Checks where a near branch goes.
pub(super) fn check_branch_target<C: Cpu>(cpu: &C, mode: CodeSize, rip: u64) -> Result<(), Stop> {
    let allowed = match mode {
        CodeSize::Bits64 => is_canonical(cpu, rip),
        _ => rip <= u64::from(cpu.segment(SegReg::Cs).limit),
    };
    if allowed {
        Ok(())
    } else {
        Err(Exception::GP0.into())
    }
}

/// Where instruction bytes at `rip` are, and how many may be read from there in one go: to the
/// end of the page or of the code segment.
pub fn code_address<C: Cpu>(cpu: &C, mode: CodeSize, rip: u64) -> Result<(u64, usize), Stop> {
    let segment = cpu.segment(SegReg::Cs);
    let mut room = u64::MAX;
    let mut rip = rip;
    if mode != CodeSize::Bits64 {
        rip &= 0xffff_ffff;
        room = u64::from(segment.limit).wrapping_sub(rip).wrapping_add(1);
    }
    check_branch_target(cpu, mode, rip)?;
    let linear = add_base(mode, SegReg::Cs, segment.base, rip);
    let page_room = PAGE_SIZE.wrapping_sub(linear & (PAGE_SIZE - 1));
    Ok((linear, room.min(page_room) as usize))
}

/// What the CPU translates at once, at least.
pub(super) const PAGE_SIZE: u64 = 4096;
