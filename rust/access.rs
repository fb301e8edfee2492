// SPDX-License-Identifier: GPL-2.0-only

//! Guest memory for the emulator and the page walk.
//!
//! The bytes are those of the process: they are read and written at its addresses, so nothing is
//! looked up, pinned or mapped here, and the host's own page fault brings absent pages in.

use crate::fault::VcpuMemory;
use crate::memory_ffi::{cmpxchg_user, read_user, write_user};
use kernel::prelude::*;
use x86::cpu::{GuestMemory, MemError};

/// [`GuestMemory`] as a vCPU has it, in a thread of the VM's process.
pub(crate) struct GuestAccess<'a> {
    memory: &'a mut VcpuMemory,
    may_sleep: bool,
}

impl<'a> GuestAccess<'a> {
    /// With `may_sleep` false, absent pages are [`MemError::WouldSleep`], and preemption may be off.
    pub(crate) fn new(memory: &'a mut VcpuMemory, may_sleep: bool) -> Self {
        Self { memory, may_sleep }
    }

    fn failed(&self) -> MemError {
        match self.may_sleep {
            true => MemError::Fault,
            false => MemError::WouldSleep,
        }
    }
}

impl GuestMemory for GuestAccess<'_> {
    fn read_gpa(&mut self, gpa: u64, buf: &mut [u8]) -> Result<(), MemError> {
        let mut hint = self.memory.hint;
        let slots = self.memory.vm().slots();
        let slot = slots.find(gpa, &mut hint).ok_or(MemError::Unbacked)?;
        read_user(buf, slot.hva(gpa), self.may_sleep).map_err(|_| self.failed())?;
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
        write_user(slot.hva(gpa), data, self.may_sleep).map_err(|_| self.failed())?;
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
        let result = cmpxchg_user(slot.hva(gpa), size, old, new, self.may_sleep);
        let result = result.map_err(|_| self.failed())?;
        if result.is_ok() {
            slot.wrote(gpa, self.memory.ring());
        }
        drop(slots);
        self.memory.hint = hint;
        Ok(result)
    }
}
