// SPDX-License-Identifier: GPL-2.0-only

//! What a disk had before it was written to, so that it can go back with its machine: a snapshot
//! keeps it in memory (memfd), in units of 64 KiB. The file of the disk is always the newest; that
//! is why no overlay of qcow2 or of a crate does this.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{memfd_create, MFdFlags};

/// What is kept as a whole.
const UNIT: u64 = 64 << 10;

/// The old contents of a disk.
pub(crate) struct Undo {
    /// Each unit at its place in the disk.
    kept: File,
    /// Which are there.
    there: Vec<bool>,
    size: u64,
}

impl Undo {
    /// Nothing is kept yet of a disk of this size.
    pub(crate) fn new(size: u64) -> io::Result<Self> {
        let kept = File::from(memfd_create(c"undo", MFdFlags::MFD_CLOEXEC)?);
        kept.set_len(size)?;
        let count = usize::try_from(size.div_ceil(UNIT)).map_err(io::Error::other)?;
        Ok(Self {
            kept,
            there: vec![false; count],
            size,
        })
    }

    /// These bytes of the disk are about to be written to.
    pub(crate) fn keep(&mut self, disk: &File, bytes: Range<u64>) -> io::Result<()> {
        for number in bytes.start / UNIT..bytes.end.min(self.size).div_ceil(UNIT) {
            if let Some(there @ false) = self.there.get_mut(number as usize) {
                copy(disk, &self.kept, number, self.size)?;
                *there = true;
            }
        }
        Ok(())
    }

    /// Puts the old contents back.
    pub(crate) fn put_back(&mut self, disk: &File) -> io::Result<()> {
        for (number, there) in (0..).zip(&mut self.there) {
            if *there {
                copy(&self.kept, disk, number, self.size)?;
                *there = false;
            }
        }
        Ok(())
    }
}

/// Copies a unit from its place to the same place.
fn copy(from: &File, to: &File, number: u64, size: u64) -> io::Result<()> {
    let start = number * UNIT;
    let mut bytes = vec![0; UNIT.min(size - start) as usize];
    from.read_exact_at(&mut bytes, start)?;
    to.write_all_at(&bytes, start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_goes_back_again_and_again() {
        let disk = File::from(memfd_create(c"disk", MFdFlags::empty()).unwrap());
        let size = 3 * UNIT + 512;
        let old: Vec<u8> = (0..size).map(|at| (at / 512) as u8).collect();
        disk.write_all_at(&old, 0).unwrap();
        let mut undo = Undo::new(size).unwrap();
        let mut now = vec![0; size as usize];
        for round in 0..3 {
            for (start, length) in [(UNIT - 512, 1024), (size - 512, 512), (0, 0), (100, 1)] {
                undo.keep(&disk, start..start + length).unwrap();
                let new = vec![round + 100; length as usize];
                disk.write_all_at(&new, start).unwrap();
            }
            disk.read_exact_at(&mut now, 0).unwrap();
            assert_ne!(now, old);
            undo.put_back(&disk).unwrap();
            disk.read_exact_at(&mut now, 0).unwrap();
            assert!(now == old, "{round}");
        }
    }
}
