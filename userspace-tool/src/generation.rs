// SPDX-License-Identifier: GPL-2.0-only

//! The machine's generation ID: a number that no other machine has, and no earlier instant of this
//! one that was brought back. A guest that sees another one makes its random numbers anew.

use std::io;

use crate::error::{Error, Result};
use crate::layout::GENERATION;
use crate::memory::{self, GuestMemory};

/// Gives the machine another one.
pub(crate) fn renew(memory: &GuestMemory) -> Result<()> {
    let mut id = [0u8; 16];
    // SAFETY: The kernel writes into the array, which lives until the call returns. A machine that
    // is confined opens no file for this.
    let count = unsafe { libc::getrandom(id.as_mut_ptr().cast(), id.len(), 0) };
    if usize::try_from(count) != Ok(id.len()) {
        return Err(Error::system("getrandom", io::Error::last_os_error()));
    }
    memory::write(memory, "the generation ID", GENERATION, &id)
}
