// SPDX-License-Identifier: GPL-2.0-only

//! The statistics of a VM or a vCPU: what the file of `KVM_GET_STATS_FD` says.

use std::io;

use crate::kvm::Handle;
use crate::tap::equal;

/// Bytes of a file at an offset.
pub fn read(file: &Handle, offset: u32, length: usize) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; length];
    // SAFETY: The buffer has `length` bytes.
    let got = unsafe {
        libc::pread(
            file.fd(),
            bytes.as_mut_ptr().cast(),
            length,
            i64::from(offset),
        )
    };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error().to_string())?;
    bytes.truncate(got);
    Ok(bytes)
}

/// An integer of 32 bits among bytes; 0 behind their end.
pub fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).map(TryInto::try_into);
    word.and_then(Result::ok).map_or(0, u32::from_ne_bytes)
}

/// The counter of this name, if there is one.
pub fn counter(file: &Handle, wanted: &str) -> Result<Option<u64>, String> {
    let header = read(file, 0, 24)?;
    let [name, count, id, descriptors, data] = [4, 8, 12, 16, 20].map(|at| word(&header, at));
    let id = read(file, id, name as usize)?;
    equal("name", id.starts_with(b"kvm-"), true)?;
    for n in 0..count {
        let size = 16 + name;
        let descriptor = read(file, descriptors + n * size, size as usize)?;
        if descriptor[16..].starts_with(format!("{wanted}\0").as_bytes()) {
            let value = read(file, data + word(&descriptor, 8), 8)?;
            return Ok(value.try_into().ok().map(u64::from_ne_bytes));
        }
    }
    Ok(None)
}
