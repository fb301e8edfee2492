// SPDX-License-Identifier: GPL-2.0-only

//! FXSAVE and FXRSTOR (APM vol. 2, 11.4.4; vol. 5).

use super::operand::Place;
use super::vector::Mandatory;
use super::Flow;
use super::Run;
use crate::cpu::Access;
use crate::cpu::Cpu;
use crate::cpu::Stop;
use crate::features::Feature;
use crate::fxsave::{self, offset};
use crate::regs::vector;
use crate::regs::Cr0;
use crate::regs::Cr4;
use crate::regs::Efer;
use crate::regs::Exception;

type Result<T = Flow> = core::result::Result<T, Stop>;

/// Memory is accessed in pieces as long as its alignment: none crosses a page boundary.
const PIECE: usize = 16;
/// Where the pointers have their upper halves in 64-bit mode, and else selectors, which new CPUs do
/// not keep.
const UPPER_HALVES: [usize; 2] = [offset::RIP + 4, offset::RDP + 4];
/// The first XMM register that only 64-bit mode has.
const XMM8: usize = offset::XMM0 + 8 * PIECE;

impl<C: Cpu> Run<'_, C> {
    /// Whether an instruction of group 15 is FXSAVE or FXRSTOR.
    pub(super) fn is_fxstate(&self) -> bool {
        matches!(self.insn.group(), 0 | 1) && self.insn.mem.is_some()
    }

    /// FXSAVE and FXRSTOR. Faults: #UD for a guest whose CPUID lacks them, #NM, then #GP if memory
    /// is not aligned to 16 bytes.
    pub(super) fn fxstate(&mut self) -> Result {
        if self.mandatory_prefix() != Mandatory::None {
            return Err(Exception::UD.into());
        }
        self.require(Feature::FXSR)?;
        if self.cpu.cr0().intersects(Cr0::EM | Cr0::TS) {
            return Err(Exception::new(vector::NM).into());
        }
        if self.insn.group() == 0 {
            self.save_state()
        } else {
            self.restore_state()
        }
    }

    /// How much of the image is in memory.
    fn image_size(&self) -> usize {
        let long = self.insn.is_64_bit();
        let fast = long && self.privilege() == 0 && self.cpu.efer().contains(Efer::FFXSR);
        if fast || !self.cpu.cr4().contains(Cr4::OSFXSR) {
            offset::XMM0
        } else if long {
            offset::XMM_END
        } else {
            XMM8
        }
    }

    /// Where a piece of the image is.
    fn image_place(&self, at: usize, access: Access) -> Result<u64> {
        match self.place_beyond(at as u64, PIECE as u8, access)? {
            Place::Memory(linear) if linear % PIECE as u64 == 0 => Ok(linear),
            Place::Memory(_) => Err(Exception::GP0.into()),
            Place::Register(_) => Err(Exception::UD.into()),
        }
    }

    fn save_state(&mut self) -> Result {
        let mut image = [0; fxsave::SIZE];
        self.cpu.fxsave(&mut image);
        if !self.insn.rex_w() {
            UPPER_HALVES.map(|at| fxsave::put(&mut image, at, [0; 4]));
        }
        let size = self.image_size();
        for at in (0..size).step_by(PIECE) {
            let linear = self.image_place(at, Access::Write)?;
            self.cpu.probe_write(linear, PIECE)?;
        }
        for (piece, at) in image.chunks_exact(PIECE).zip((0..size).step_by(PIECE)) {
            let linear = self.image_place(at, Access::Write)?;
            self.cpu.write(linear, piece)?;
        }
        Ok(Flow::Next)
    }

    fn restore_state(&mut self) -> Result {
        let mut image = [0; fxsave::SIZE];
        self.cpu.fxsave(&mut image);
        let size = self.image_size();
        for (piece, at) in image.chunks_exact_mut(PIECE).zip((0..size).step_by(PIECE)) {
            let linear = self.image_place(at, Access::Read)?;
            self.cpu.read(linear, piece, Access::Read)?;
        }
        if !self.insn.rex_w() {
            UPPER_HALVES.map(|at| fxsave::put(&mut image, at, [0; 4]));
        }
        if !self.cpu.fxrstor(&image) {
            return Err(Exception::GP0.into());
        }
        Ok(Flow::Next)
    }
}
