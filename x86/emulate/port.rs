// SPDX-License-Identifier: GPL-2.0-only

//! IN and OUT, and who may use which port.

use super::Flow;
use super::Run;
use crate::cpu::Access;
use crate::cpu::Cpu;
use crate::cpu::Stop;
use crate::regs::gpr;
use crate::regs::Cr0;
use crate::regs::Efer;
use crate::regs::Exception;
use crate::regs::Rflags;
use crate::regs::SegAttr;
use crate::regs::SegReg;

/// Offset of the I/O-permission bitmap's own offset in a TSS (APM vol. 2, figure 12-7).
const BITMAP_OFFSET: u64 = 0x66;
/// The TSS types 9 and 11: 32-bit or 64-bit, available or busy. Bit 1 tells the two apart.
const TSS_TYPE: u16 = 9;
const TSS_BUSY: u16 = 2;

/// Whether the CPU may access `size` ports from `port` on (APM vol. 2, 12.2.4): else #GP(0).
///
/// Protected mode asks IOPL, and then the bitmap; virtual-8086 mode asks the bitmap alone.
pub fn io_allowed<C: Cpu>(cpu: &mut C, port: u16, size: u8) -> Result<(), Stop> {
    let flags = cpu.rflags();
    let iopl =
        (flags.intersection(Rflags::IOPL).bits() >> Rflags::IOPL.bits().trailing_zeros()) as u8;
    if !cpu.cr0().contains(Cr0::PE) || (!flags.contains(Rflags::VM) && cpu.cpl() <= iopl) {
        return Ok(());
    }
    let task = cpu.segment(SegReg::Tr);
    let kind = task.attributes.intersection(SegAttr::TYPE).bits() & !TSS_BUSY;
    if !task.attributes.contains(SegAttr::P) || kind != TSS_TYPE {
        return Err(Exception::GP0.into());
    }
    let bitmap = read_task_word(cpu, BITMAP_OFFSET)?;
    // The last byte that the CPU reads must be inside the limit, even if no bit of it counts.
    let bits = read_task_word(cpu, u64::from(bitmap).wrapping_add(u64::from(port >> 3)))?;
    let wanted = (1u32 << (size & 7)).wrapping_sub(1) << (port & 7);
    if u32::from(bits) & wanted == 0 {
        Ok(())
    } else {
        Err(Exception::GP0.into())
    }
}

/// Two bytes of the TSS, or #GP(0) behind its limit.
fn read_task_word<C: Cpu>(cpu: &mut C, offset: u64) -> Result<u16, Stop> {
    let task = cpu.segment(SegReg::Tr);
    if offset.wrapping_add(1) > u64::from(task.limit) {
        return Err(Exception::GP0.into());
    }
    let mut linear = task.base.wrapping_add(offset);
    if !cpu.efer().contains(Efer::LMA) {
        linear &= 0xffff_ffff;
    }
    if linear == u64::MAX {
        return Err(Stop::Unhandled);
    }
    let mut word = [0; 2];
    cpu.read(linear, &mut word, Access::SystemRead)?;
    Ok(u16::from_le_bytes(word))
}

impl<C: Cpu> Run<'_, C> {
    /// The port number in DX.
    pub(super) fn port(&self) -> u16 {
        self.register(gpr::RDX, 2) as u16
    }

    /// IN and OUT. Bit 1 of the opcode tells the direction, bit 3 where the port number is.
    pub(super) fn port_access(&mut self) -> Result<Flow, Stop> {
        let size = self.width().min(4);
        let port = if self.insn.opcode & 8 == 0 {
            u16::from(self.insn.immediate as u8)
        } else {
            self.port()
        };
        io_allowed(self.cpu, port, size)?;
        if self.insn.opcode & 2 == 0 {
            let value = self.cpu.port_in(port, size, 1)?;
            self.set_register(gpr::RAX, size, u64::from(value));
        } else {
            let value = self.register(gpr::RAX, size);
            self.cpu.port_out(port, size, value as u32)?;
        }
        Ok(Flow::Next)
    }
}
