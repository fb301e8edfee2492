// SPDX-License-Identifier: GPL-2.0-only

//! Guest memory for the emulator and the page walk.
//!
//! The bytes are those of the process: they are read and written at its addresses, so nothing is
//! looked up, pinned or mapped here, and the host's own page fault brings absent pages in.

use crate::linux::mm::{cmpxchg_user, is_poisoned, read_user, write_user};
use crate::linux::Sleep;
use crate::memory::fault::VcpuMemory;
use crate::memory::slots::Slot;
use kernel::prelude::*;
use x86::cpu::{GuestMemory, MemError};

/// [`GuestMemory`] as a vCPU has it, in a thread of the VM's process.
pub(crate) struct GuestAccess<'a> {
    memory: &'a mut VcpuMemory,
    sleep: Sleep,
    /// What is written is kept already, if this is the generation.
    kept_in: Option<u64>,
}

impl<'a> GuestAccess<'a> {
    /// With [`Sleep::Forbidden`], absent pages are [`MemError::WouldSleep`], and preemption may be
    /// off.
    pub(crate) fn new(memory: &'a mut VcpuMemory, sleep: Sleep) -> Self {
        Self {
            memory,
            sleep,
            kept_in: None,
        }
    }

    /// The same for a page that was written in this
    /// [generation](crate::memory::kept_pages::Keeping::generation).
    pub(crate) fn kept_in(self, generation: u64) -> Self {
        Self {
            kept_in: Some(generation),
            ..self
        }
    }

    /// Bytes in `slot` are about to be written: a snapshot keeps what they are. It may have to read
    /// the page first. The slots are being read.
    #[inline]
    fn before_write(&self, slot: &Slot, gpa: u64, bytes: usize) -> Result<(), MemError> {
        let keeping = &self.memory.vm().keeping;
        match keeping.is_on() && self.kept_in != Some(keeping.generation()) {
            true => self.keep(slot, gpa, bytes),
            false => Ok(()),
        }
    }

    #[cold]
    fn keep(&self, slot: &Slot, gpa: u64, bytes: usize) -> Result<(), MemError> {
        if !self.sleep.is_allowed() {
            return Err(MemError::WouldSleep);
        }
        let kept = self.memory.vm().keep_for_emulator(slot, gpa, bytes);
        kept.map_err(|_| self.failed(slot.hva(gpa)))
    }

    /// What an access at `hva` failed with.
    #[cold]
    fn failed(&self, hva: u64) -> MemError {
        if !self.sleep.is_allowed() {
            return MemError::WouldSleep;
        }
        self.memory.poisoned.set(is_poisoned(hva).then_some(hva));
        MemError::Fault
    }
}

impl GuestMemory for GuestAccess<'_> {
    fn read_gpa(&mut self, gpa: u64, buf: &mut [u8]) -> Result<(), MemError> {
        let mut hint = self.memory.hint;
        let slots = self.memory.vm().slots();
        let slot = slots.find(gpa, &mut hint).ok_or(MemError::Unbacked)?;
        let hva = slot.hva(gpa);
        read_user(buf, hva, self.sleep).map_err(|_| self.failed(hva))?;
        drop(slots);
        self.memory.hint = hint;
        Ok(())
    }

    fn write_gpa(&mut self, gpa: u64, data: &[u8]) -> Result<(), MemError> {
        let mut hint = self.memory.hint;
        let slots = self.memory.vm().slots();
        let slot = slots.find(gpa, &mut hint).ok_or(MemError::Unbacked)?;
        if slot.read_only() {
            return Err(MemError::ReadOnly);
        }
        self.before_write(slot, gpa, data.len())?;
        let hva = slot.hva(gpa);
        write_user(hva, data, self.sleep).map_err(|_| self.failed(hva))?;
        slot.wrote(gpa, self.memory.ring());
        drop(slots);
        self.memory.hint = hint;
        Ok(())
    }

    fn compare_exchange_gpa(
        &mut self,
        gpa: u64,
        size: usize,
        old: u64,
        new: u64,
    ) -> Result<Result<(), u64>, MemError> {
        let mut hint = self.memory.hint;
        let slots = self.memory.vm().slots();
        let slot = slots.find(gpa, &mut hint).ok_or(MemError::Unbacked)?;
        if slot.read_only() {
            return Err(MemError::ReadOnly);
        }
        self.before_write(slot, gpa, size)?;
        let hva = slot.hva(gpa);
        let result = cmpxchg_user(hva, size, old, new, self.sleep);
        let result = result.map_err(|_| self.failed(hva))?;
        if result.is_ok() {
            slot.wrote(gpa, self.memory.ring());
        }
        drop(slots);
        self.memory.hint = hint;
        Ok(result)
    }
}
