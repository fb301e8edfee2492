// SPDX-License-Identifier: GPL-2.0-only

//! The guest CPU that handlers and the emulator work on: [`Guest`].

use crate::dispatch::{load_machine_status_word, Platform, Policy};
use crate::features::SvmFeatures;
use crate::io::{Fragment, Known, Place};
use crate::nested::Nested;
use crate::state::{guest_cr0, guest_cr4, guest_efer, VcpuState};
use crate::vmcb::Vmcb;
use x86::cpu::{Access, Cpu, ExtendedState, MemError, Stop, X87};
use x86::cpuid::Entry;
use x86::descriptor::{with_type, TYPE_BYTE};
use x86::features::Feature;
use x86::fxsave;
use x86::paging::PagingState;
use x86::regs::{Cr0, Cr4, Efer, Rflags, SegReg, Segment};

/// One virtual CPU outside of VMRUN: its VMCB, the rest of its state, and the world around it.
pub struct Guest<'a, P: Platform> {
    /// The VMCB.
    pub vmcb: &'a mut Vmcb,
    /// What the VMCB does not hold.
    pub state: &'a mut VcpuState,
    /// Memory, devices, time.
    pub platform: &'a mut P,
    /// What the host's AMD-V can do.
    pub host: SvmFeatures,
    /// What CPUID answers.
    pub cpuid: &'a mut [Entry],
    /// What the VMM has chosen.
    pub policy: Policy,
    /// SVM, if the guest has it.
    pub nested: Option<&'a mut Nested>,
}

/// Accesses to guest memory do not cross multiples of it.
const PAGE: u64 = 4096;

/// What a part of an access, within one page, goes to.
#[derive(Clone, Copy)]
struct Part {
    gpa: u64,
    length: usize,
    /// It is known that no memory can be written there, ...
    device: bool,
    /// ... and none be read.
    unbacked: bool,
}

impl<P: Platform> Guest<'_, P> {
    /// What decides how the guest translates an address now.
    pub fn paging(&self) -> PagingState {
        PagingState {
            cr0: self.vmcb.cr0(),
            cr3: self.vmcb.cr3(),
            cr4: self.vmcb.cr4(),
            efer: self.vmcb.efer(),
            cpl: self.vmcb.cpl(),
            rflags_ac: self.vmcb.rflags().contains(Rflags::AC),
            pkru: self.state.pkru,
            max_phys_bits: self.state.features.max_phys_bits,
            gbpages: self.state.features.has(Feature::GBPAGES),
        }
    }

    /// Translates what begins at `linear` and lies in one page.
    fn translate(&mut self, linear: u64, length: usize, access: Access) -> Result<Part, Stop> {
        if matches!(access, Access::Read | Access::Write) {
            let write = access == Access::Write;
            if let Some(known) = self.known(linear, write) {
                return Ok(Part {
                    gpa: known.gpa | (linear % PAGE),
                    length,
                    device: true,
                    unbacked: known.unbacked,
                });
            }
        }
        Ok(Part {
            gpa: self.walk(linear, access)?,
            length,
            device: false,
            unbacked: false,
        })
    }

    /// What the CPU told about the emulated instruction's operand with the nested fault: it has
    /// walked the guest's page tables, they allow the access, and no memory is there.
    fn known(&mut self, linear: u64, write: bool) -> Option<Known> {
        let cr3 = self.vmcb.cr3();
        let io = &mut self.state.io;
        let page = linear & !(PAGE - 1);
        if let Some(fault) = io.fault {
            if fault.gpa % PAGE == linear % PAGE {
                io.fault = None;
                io.known = Some(Known {
                    cr3,
                    page,
                    gpa: fault.gpa & !(PAGE - 1),
                    write: fault.write,
                    unbacked: fault.unbacked,
                });
            }
        }
        let known = io.known?;
        let fits = known.page == page && known.cr3 == cr3 && (known.write || !write);
        fits.then_some(known)
    }

    /// The first part of an access that crosses a page boundary, or all of it.
    fn first_part(&mut self, linear: u64, length: usize, access: Access) -> Result<Part, Stop> {
        let in_page = PAGE.wrapping_sub(linear % PAGE) as usize;
        self.translate(linear, length.min(in_page), access)
    }

    /// What follows `first`: it is shorter than a page.
    fn second_part(
        &mut self,
        linear: u64,
        length: usize,
        first: Part,
        access: Access,
    ) -> Result<Part, Stop> {
        let linear = linear.wrapping_add(first.length as u64);
        self.translate(linear, length.wrapping_sub(first.length), access)
    }

    /// Reads from one page, which may be a device's.
    fn read_part(&mut self, part: Part, buf: &mut [u8], access: Access) -> Result<(), Stop> {
        if part.unbacked {
            return self.read_device(part.gpa, buf);
        }
        match self.platform.read_gpa(part.gpa, buf) {
            Ok(()) => Ok(()),
            Err(MemError::Unbacked) if access != Access::Fetch => self.read_device(part.gpa, buf),
            Err(error) => Err(stop(error)),
        }
    }

    /// Writes to one page, which may be a device's; a read-only slot is one for writes, but it
    /// drops what the CPU writes by itself.
    fn write_part(&mut self, part: Part, data: &[u8], access: Access) -> Result<(), Stop> {
        if part.device {
            return self.write_device(part.gpa, data);
        }
        match self.platform.write_gpa(part.gpa, data) {
            Ok(()) => Ok(()),
            Err(MemError::ReadOnly) if access == Access::SystemWrite => Ok(()),
            Err(MemError::Unbacked | MemError::ReadOnly) => self.write_device(part.gpa, data),
            Err(error) => Err(stop(error)),
        }
    }

    /// Changes the last byte of the guest's instruction at `linear`, all of which it must be
    /// allowed to write. False if no memory is there that can be written.
    pub(crate) fn patch(&mut self, linear: u64, length: usize, byte: u8) -> Result<bool, Stop> {
        let first = self.first_part(linear, length, Access::Write)?;
        let part = match first.length == length {
            true => first,
            false => self.second_part(linear, length, first, Access::Write)?,
        };
        let last = part.gpa.wrapping_add(part.length as u64).wrapping_sub(1);
        match self.platform.write_gpa(last, &[byte]) {
            Ok(()) => Ok(true),
            Err(MemError::Unbacked | MemError::ReadOnly) => Ok(false),
            Err(error) => Err(stop(error)),
        }
    }

    fn read_device(&mut self, gpa: u64, buf: &mut [u8]) -> Result<(), Stop> {
        let mut gpa = gpa;
        for piece in buf.chunks_mut(Fragment::MAX) {
            let place = Place::Gpa(gpa);
            if let Some(data) = self.state.io.answer(place, piece.len()) {
                for (to, from) in piece.iter_mut().zip(data) {
                    *to = from;
                }
            } else if self.platform.mmio_read(gpa, piece) {
                if !self.state.io.record(Fragment::new(place, piece)) {
                    return Err(Stop::Unhandled);
                }
            } else {
                piece.fill(0);
                return Err(self.ask(Fragment::new(place, piece), 1));
            }
            gpa = gpa.wrapping_add(piece.len() as u64);
        }
        Ok(())
    }

    /// The VMM must answer this read. An instruction that reads more than can be kept cannot be
    /// emulated.
    fn ask(&mut self, fragment: Fragment, count: u16) -> Stop {
        match self.state.io.ask(fragment, count) {
            true => Stop::User,
            false => Stop::Unhandled,
        }
    }

    fn write_device(&mut self, gpa: u64, data: &[u8]) -> Result<(), Stop> {
        let mut gpa = gpa;
        for piece in data.chunks(Fragment::MAX) {
            if !self.platform.mmio_write(gpa, piece)
                && !self.state.io.queue(Fragment::new(Place::Gpa(gpa), piece))
            {
                return Err(Stop::Unhandled);
            }
            gpa = gpa.wrapping_add(piece.len() as u64);
        }
        Ok(())
    }

    /// Writes memory; across pages only what is at most 32 bytes long.
    pub(crate) fn write_as(
        &mut self,
        linear: u64,
        data: &[u8],
        access: Access,
    ) -> Result<(), Stop> {
        let length = data.len();
        let first = self.first_part(linear, length, access)?;
        if first.length == length {
            return self.write_part(first, data, access);
        }
        let second = self.second_part(linear, length, first, access)?;
        let (low, high) = data.split_at_checked(first.length).ok_or(Stop::Unhandled)?;
        // If the second page cannot be written now, the instruction is run again: then it must
        // find in the first one what it found before.
        let mut before = [0; Fragment::MAX * 4];
        let before = before.get_mut(..first.length).ok_or(Stop::Unhandled)?;
        let memory = !first.device && self.platform.read_gpa(first.gpa, before).is_ok();
        self.write_part(first, low, access)?;
        let result = self.write_part(second, high, access);
        if result.is_err() && memory {
            self.write_part(first, before, access)?;
        }
        result
    }

    /// The write half of a locked access to a device, or to memory that is not aligned: the read
    /// half was just done, and a device must not be read twice.
    fn exchange_plainly(
        &mut self,
        linear: u64,
        size: usize,
        new: u64,
    ) -> Result<Result<(), u64>, Stop> {
        let bytes = new.to_le_bytes();
        let bytes = bytes.get(..size).ok_or(Stop::Unhandled)?;
        self.write(linear, bytes)?;
        Ok(Ok(()))
    }
}

fn stop(error: MemError) -> Stop {
    match error {
        MemError::WouldSleep => Stop::WouldSleep,
        MemError::Fault => Stop::Fault,
        MemError::Unbacked | MemError::ReadOnly => Stop::Unhandled,
    }
}

impl<P: Platform> Cpu for Guest<'_, P> {
    #[inline]
    fn gpr(&self, index: u8) -> u64 {
        self.state.regs.get(index)
    }

    #[inline]
    fn set_gpr(&mut self, index: u8, value: u64) {
        self.state.regs.set(index, value);
    }

    #[inline]
    fn rip(&self) -> u64 {
        self.vmcb.rip()
    }

    #[inline]
    fn set_rip(&mut self, value: u64) {
        self.vmcb.set_rip(value);
        self.vmcb.set_interrupt_shadow(false);
    }

    fn rflags(&self) -> Rflags {
        self.vmcb.rflags()
    }

    fn set_rflags(&mut self, value: Rflags) {
        self.vmcb.set_rflags(value);
    }

    fn pushed_flags(&self) -> Rflags {
        self.state.debug.rflags(self.vmcb)
    }

    fn set_pushed_flags(&mut self, value: Rflags) {
        self.state.debug.set_rflags(self.vmcb, value);
    }

    fn begin_interrupt_shadow(&mut self) {
        self.vmcb.set_interrupt_shadow(true);
    }

    fn segment(&self, reg: SegReg) -> Segment {
        self.vmcb.segment(reg)
    }

    fn set_segment(&mut self, reg: SegReg, value: Segment) {
        self.vmcb.set_segment(reg, value);
    }

    fn set_cpl(&mut self, value: u8) {
        self.vmcb.set_cpl(value & 3);
    }

    fn gdtr(&self) -> Segment {
        self.vmcb.gdtr()
    }

    fn set_gdtr(&mut self, value: Segment) {
        self.vmcb.set_gdtr(value);
    }

    fn idtr(&self) -> Segment {
        self.vmcb.idtr()
    }

    fn set_idtr(&mut self, value: Segment) {
        self.vmcb.set_idtr(value);
    }

    fn load_machine_status_word(&mut self, value: u16) -> Result<(), Stop> {
        load_machine_status_word(self, value)
    }

    fn cr0(&self) -> Cr0 {
        guest_cr0(self.vmcb, self.state)
    }

    fn cr4(&self) -> Cr4 {
        guest_cr4(self.vmcb, self.state)
    }

    fn efer(&self) -> Efer {
        guest_efer(self.vmcb, self.state)
    }

    #[inline]
    fn cpl(&self) -> u8 {
        self.vmcb.cpl() & 3
    }

    fn read(&mut self, linear: u64, buf: &mut [u8], access: Access) -> Result<(), Stop> {
        let length = buf.len();
        let first = self.first_part(linear, length, access)?;
        if first.length == length {
            return self.read_part(first, buf, access);
        }
        let second = self.second_part(linear, length, first, access)?;
        let (low, high) = buf
            .split_at_mut_checked(first.length)
            .ok_or(Stop::Unhandled)?;
        self.read_part(first, low, access)?;
        self.read_part(second, high, access)
    }

    fn write(&mut self, linear: u64, data: &[u8]) -> Result<(), Stop> {
        self.write_as(linear, data, Access::Write)
    }

    fn set_descriptor_type(&mut self, linear: u64, old: u64, kind: u8) -> Result<bool, Stop> {
        /// Bytes of a descriptor.
        const SIZE: usize = 8;
        let new = with_type(old, kind);
        // One that is not aligned cannot be changed at once: then it is the byte alone that counts.
        let whole = linear % SIZE as u64 == 0;
        let (at, size) = if whole {
            (linear, SIZE)
        } else {
            (linear.wrapping_add(TYPE_BYTE), 1)
        };
        let value = |descriptor: u64| match whole {
            true => descriptor,
            false => u64::from((descriptor >> (8 * TYPE_BYTE)) as u8),
        };
        let part = self.translate(at, size, Access::SystemWrite)?;
        let exchanged = self
            .platform
            .compare_exchange_gpa(part.gpa, size, value(old), value(new));
        match exchanged {
            Ok(result) => Ok(result.is_ok()),
            Err(MemError::ReadOnly) => Ok(true),
            Err(MemError::Unbacked) => {
                let gpa = part.gpa.wrapping_add(if whole { TYPE_BYTE } else { 0 });
                self.write_device(gpa, &[kind])?;
                Ok(true)
            }
            Err(error) => Err(stop(error)),
        }
    }

    fn probe_write(&mut self, linear: u64, size: usize) -> Result<(), Stop> {
        let first = self.first_part(linear, size, Access::Write)?;
        if first.length != size {
            self.second_part(linear, size, first, Access::Write)?;
        }
        Ok(())
    }

    fn compare_exchange(
        &mut self,
        linear: u64,
        size: usize,
        old: u64,
        new: u64,
    ) -> Result<Result<(), u64>, Stop> {
        let aligned = matches!(size, 1 | 2 | 4 | 8) && linear % size as u64 == 0;
        if !aligned {
            return self.exchange_plainly(linear, size, new);
        }
        let part = self.translate(linear, size, Access::Write)?;
        if part.device {
            return self.exchange_plainly(linear, size, new);
        }
        match self.platform.compare_exchange_gpa(part.gpa, size, old, new) {
            Ok(result) => Ok(result),
            Err(MemError::Unbacked | MemError::ReadOnly) => {
                self.exchange_plainly(linear, size, new)
            }
            Err(error) => Err(stop(error)),
        }
    }

    fn port_in(&mut self, port: u16, size: u8, count: u16) -> Result<u32, Stop> {
        let place = Place::Port(port);
        if let Some([a, b, c, d, ..]) = self.state.io.answer(place, usize::from(size)) {
            return Ok(u32::from_le_bytes([a, b, c, d]));
        }
        let length = usize::from(size.min(4));
        let value = match self.state.io.elements(place, size) {
            Some((offset, _)) => {
                let mut bytes = [0; 4];
                if let Some(bytes) = bytes.get_mut(..length) {
                    self.platform.port_answer(offset, bytes);
                }
                self.state.io.take(1);
                Some(u32::from_le_bytes(bytes))
            }
            None => self.platform.port_in(port, size),
        };
        if let Some(value) = value {
            let bytes = value.to_le_bytes();
            let bytes = bytes.get(..length).unwrap_or(&bytes);
            if !self.state.io.record(Fragment::new(place, bytes)) {
                return Err(Stop::Unhandled);
            }
            return Ok(value);
        }
        let bytes = [0; 4];
        let bytes = bytes.get(..length).unwrap_or(&bytes);
        Err(self.ask(Fragment::new(place, bytes), count))
    }

    fn ports_in(&mut self, port: u16, size: u8, linear: u64, count: u16) -> Result<u16, Stop> {
        /// As much as a sector of a disk.
        const MOST: usize = 512;
        let place = Place::Port(port);
        let Some((offset, left)) = self.state.io.elements(place, size) else {
            return Ok(0);
        };
        let most = MOST.checked_div(usize::from(size)).unwrap_or(0) as u16;
        let number = left.min(count).min(most);
        let length = usize::from(number).wrapping_mul(usize::from(size));
        let mut bytes = [0; MOST];
        let Some(bytes) = bytes.get_mut(..length) else {
            return Ok(0);
        };
        if linear % PAGE > PAGE.wrapping_sub(length as u64) {
            return Ok(0);
        }
        let part = self.translate(linear, length, Access::Write)?;
        if part.device {
            return Ok(0);
        }
        self.platform.port_answer(offset, bytes);
        match self.platform.write_gpa(part.gpa, bytes) {
            Ok(()) => {
                self.state.io.take(number);
                Ok(number)
            }
            Err(MemError::Unbacked | MemError::ReadOnly) => Ok(0),
            Err(error) => Err(stop(error)),
        }
    }

    fn port_out(&mut self, port: u16, size: u8, value: u32) -> Result<(), Stop> {
        if self.platform.port_out(port, size, value) {
            return Ok(());
        }
        let bytes = value.to_le_bytes();
        let bytes = bytes.get(..usize::from(size.min(4))).unwrap_or(&bytes);
        if self.state.io.queue(Fragment::new(Place::Port(port), bytes)) {
            Ok(())
        } else {
            Err(Stop::Unhandled)
        }
    }

    fn has(&self, feature: Feature) -> bool {
        self.state.features.has(feature)
    }

    fn xcr0(&self) -> u64 {
        self.state.xcr0
    }
}

impl<P: Platform> ExtendedState for Guest<'_, P> {
    fn xmm(&mut self, index: u8) -> u128 {
        self.platform.xmm(index)
    }

    fn set_xmm(&mut self, index: u8, value: u128) {
        self.platform.set_xmm(index, value);
    }

    fn ymm_high(&mut self, index: u8) -> u128 {
        self.platform.ymm_high(index)
    }

    fn set_ymm_high(&mut self, index: u8, value: u128) {
        self.platform.set_ymm_high(index, value);
    }

    fn mxcsr(&mut self) -> u32 {
        self.platform.mxcsr()
    }

    fn set_mxcsr(&mut self, value: u32) -> bool {
        self.platform.set_mxcsr(value)
    }

    fn fxsave(&mut self, image: &mut [u8; fxsave::SIZE]) {
        self.platform.fxsave(image);
    }

    fn fxrstor(&mut self, image: &[u8; fxsave::SIZE]) -> bool {
        self.platform.fxrstor(image)
    }

    fn x87(&mut self) -> X87 {
        self.platform.x87()
    }

    fn set_x87(&mut self, value: X87) {
        self.platform.set_x87(value);
    }

    fn mmx(&mut self, index: u8) -> u64 {
        self.platform.mmx(index)
    }

    fn use_mmx(&mut self, write: Option<(u8, u64)>) {
        self.platform.use_mmx(write);
    }
}
