// SPDX-License-Identifier: GPL-2.0-only

//! What a disk had before it was written to, so that it can go back with its machine: a snapshot
//! keeps it in memory (memfd), in units of 64 KiB; of a unit of zeros, only that it is one. The
//! disk's file is always the newest; that is why no overlay of qcow2 or of a crate does this.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{fallocate, FallocateFlags};
use nix::sys::memfd::{memfd_create, MFdFlags};
use nix::unistd::{lseek, Whence};

/// What is kept as a whole.
const UNIT: u64 = 64 << 10;
/// How much memory it may take. A guest that writes more has no snapshot of its disk any more.
const LIMIT: u64 = 4 << 30;

/// What is known of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// The disk has it as it was.
    Same,
    /// It was all zeros.
    Zeros,
    /// Its old contents are kept.
    Kept,
}

/// The old contents of a disk.
pub(crate) struct Undo {
    /// Each unit at its place in the disk.
    kept: File,
    units: Vec<Unit>,
    size: u64,
    /// How many units there is room for; nothing if there was not enough, and the disk cannot go
    /// back.
    room: Option<u64>,
}

impl Undo {
    /// Nothing is kept yet of a disk of this size.
    pub(crate) fn new(size: u64) -> io::Result<Self> {
        let kept = File::from(memfd_create(c"undo", MFdFlags::MFD_CLOEXEC)?);
        kept.set_len(size)?;
        let count = usize::try_from(size.div_ceil(UNIT)).map_err(io::Error::other)?;
        Ok(Self {
            kept,
            units: vec![Unit::Same; count],
            size,
            room: Some(LIMIT / UNIT),
        })
    }

    /// Whether the disk can go back.
    pub(crate) fn is_whole(&self) -> bool {
        self.room.is_some()
    }

    /// These bytes of the disk are about to be written to. Moves the position of its file.
    pub(crate) fn keep(&mut self, disk: &File, bytes: Range<u64>) -> io::Result<()> {
        for number in bytes.start / UNIT..bytes.end.min(self.size).div_ceil(UNIT) {
            let Some(room) = &mut self.room else {
                return Ok(());
            };
            let Some(unit @ Unit::Same) = self.units.get_mut(number as usize) else {
                continue;
            };
            let (start, end) = place(number, self.size);
            *unit = match is_hole(disk, start, end) {
                true => Unit::Zeros,
                false => {
                    let mut bytes = vec![0; (end - start) as usize];
                    disk.read_exact_at(&mut bytes, start)?;
                    match bytes.iter().all(|byte| *byte == 0) {
                        true => Unit::Zeros,
                        false if *room == 0 => return self.give_up(),
                        false => {
                            self.kept.write_all_at(&bytes, start)?;
                            *room -= 1;
                            Unit::Kept
                        }
                    }
                }
            };
        }
        Ok(())
    }

    /// There is too much: nothing is kept any more.
    fn give_up(&mut self) -> io::Result<()> {
        self.room = None;
        self.units = Vec::new();
        self.kept.set_len(0)
    }

    /// Puts the old contents back.
    pub(crate) fn put_back(&mut self, disk: &File) -> io::Result<()> {
        if !self.is_whole() {
            return Err(io::Error::other("too much of it has changed"));
        }
        for (number, unit) in (0..).zip(&mut self.units) {
            let (start, end) = place(number, self.size);
            match unit {
                Unit::Same => {}
                Unit::Zeros => clear(disk, start, end)?,
                Unit::Kept => {
                    let mut bytes = vec![0; (end - start) as usize];
                    self.kept.read_exact_at(&mut bytes, start)?;
                    disk.write_all_at(&bytes, start)?;
                }
            }
            *unit = Unit::Same;
        }
        // The memory is free again.
        self.kept.set_len(0)?;
        self.kept.set_len(self.size)?;
        self.room = Some(LIMIT / UNIT);
        Ok(())
    }
}

/// Where a unit begins and ends.
fn place(number: u64, size: u64) -> (u64, u64) {
    let start = number * UNIT;
    (start, size.min(start + UNIT))
}

/// Whether the file system has nothing there. One that does not know has something.
fn is_hole(disk: &File, start: u64, end: u64) -> bool {
    match lseek(disk, start as libc::off_t, Whence::SeekData) {
        Ok(next) => next.unsigned_abs() >= end,
        Err(error) => error == Errno::ENXIO,
    }
}

/// Makes a range zeros again: a hole, where there can be one.
fn clear(disk: &File, start: u64, end: u64) -> io::Result<()> {
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let length = end - start;
    match fallocate(disk, hole, start as libc::off_t, length as libc::off_t) {
        Ok(()) => Ok(()),
        Err(_) => disk.write_all_at(&vec![0; length as usize], start),
    }
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

    #[test]
    fn zeros_take_no_memory_and_are_holes_again() {
        use std::os::unix::fs::MetadataExt;
        let disk = File::from(memfd_create(c"disk", MFdFlags::empty()).unwrap());
        let size = 64 << 20;
        disk.set_len(size).unwrap();
        // Zeros that are there, and a unit with something in it.
        disk.write_all_at(&[0; UNIT as usize], UNIT).unwrap();
        disk.write_all_at(&[7], 5 * UNIT).unwrap();
        let mut undo = Undo::new(size).unwrap();
        undo.keep(&disk, 0..size).unwrap();
        let blocks = |file: &File| file.metadata().unwrap().blocks() * 512;
        assert!(blocks(&undo.kept) <= UNIT, "{}", blocks(&undo.kept));
        disk.write_all_at(&vec![1; size as usize], 0).unwrap();
        undo.put_back(&disk).unwrap();
        assert!(blocks(&disk) <= UNIT, "{}", blocks(&disk));
        assert_eq!(blocks(&undo.kept), 0);
        let mut byte = [0; 2];
        disk.read_exact_at(&mut byte, 5 * UNIT).unwrap();
        assert_eq!(byte, [7, 0]);
    }

    #[test]
    fn too_much_is_given_up() {
        let disk = File::from(memfd_create(c"disk", MFdFlags::empty()).unwrap());
        disk.write_all_at(&[1; 4 * UNIT as usize], 0).unwrap();
        let mut undo = Undo::new(4 * UNIT).unwrap();
        undo.room = Some(2);
        undo.keep(&disk, 0..2 * UNIT).unwrap();
        undo.keep(&disk, 0..2 * UNIT).unwrap();
        assert!(undo.is_whole());
        undo.keep(&disk, 0..3 * UNIT).unwrap();
        assert!(!undo.is_whole());
        undo.keep(&disk, 0..4 * UNIT).unwrap();
        assert_eq!(undo.kept.metadata().unwrap().len(), 0);
        assert!(undo.put_back(&disk).is_err());
    }
}
