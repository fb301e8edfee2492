// SPDX-License-Identifier: GPL-2.0-only

//! Guest memory, and the map of it that the guest is given.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::ptr::NonNull;

use nix::sys::mman::{madvise, MmapAdvise};
use pacifica_vm::{Memory, Region};
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, GuestMemoryRegion, ReadVolatile};

use crate::error::{Error, Result};
use crate::layout::{
    ABOVE_4G, ACPI, ACPI_END, HIGH_MEMORY, IDENTITY_MAP, LOW_MEMORY_END, MIB, MMIO_GAP, PAGE_SIZE,
};

/// The guest's memory. A snapshot hears of what devices are about to write.
pub(crate) type GuestMemory = Memory;

/// A range of physical addresses: its start and its size.
pub(crate) type Range = (u64, u64);

/// The ranges of guest-physical addresses that `size` bytes of memory take.
pub(crate) fn ranges(size: u64) -> Vec<Range> {
    let low = size.min(MMIO_GAP);
    let mut ranges = vec![(0, low)];
    if size > low {
        ranges.push((ABOVE_4G, size - low));
    }
    ranges
}

/// Allocates the guest's memory. The host provides pages when they are first touched.
pub(crate) fn allocate(size: u64) -> Result<GuestMemory> {
    let failed = |reason: String| Error::Memory {
        mib: size / MIB,
        reason,
    };
    let ranges: Vec<_> = ranges(size)
        .into_iter()
        .map(|(start, size)| Ok((GuestAddress(start), usize::try_from(size)?)))
        .collect::<std::result::Result<_, std::num::TryFromIntError>>()
        .map_err(|error| failed(error.to_string()))?;
    let memory = GuestMemory::from_ranges(&ranges).map_err(|error| failed(error.to_string()))?;
    memory.iter().for_each(prefer_huge_pages);
    Ok(memory)
}

/// Asks for huge pages: they save the processor most of the work of nested page walks.
fn prefer_huge_pages(region: &Region) {
    let Some(start) = NonNull::new(region.mapping().as_ptr().cast()) else {
        return;
    };
    // SAFETY: The range is one whole mapping of ours, and this advice does not change its contents.
    // A kernel without huge pages refuses the advice, and nothing is lost.
    let _ = unsafe { madvise(start, region.mapping().size(), MmapAdvise::MADV_HUGEPAGE) };
}

/// What a range of the memory map is for. The values are those of the E820 interface and of PVH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Usable memory.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
    /// ACPI tables.
    Acpi = 3,
}

/// The memory map for a guest with `size` bytes of memory: sorted, without overlaps.
pub(crate) fn map(size: u64) -> Vec<(Range, Kind)> {
    let mut map = vec![
        ((0, LOW_MEMORY_END), Kind::Ram),
        ((LOW_MEMORY_END, 0xa_0000 - LOW_MEMORY_END), Kind::Reserved),
        ((ACPI, ACPI_END - ACPI), Kind::Acpi),
    ];
    for (start, size) in ranges(size) {
        let hidden = HIGH_MEMORY.saturating_sub(start);
        map.push(((start + hidden, size - hidden), Kind::Ram));
    }
    map.push(((IDENTITY_MAP, ABOVE_4G - IDENTITY_MAP), Kind::Reserved));
    map.sort_unstable_by_key(|&((start, _), _)| start);
    map
}

/// Where the memory below 4 GiB ends.
pub(crate) fn low_end(memory: &GuestMemory) -> u64 {
    memory
        .iter()
        .map(|region| (region.start_addr().0, region.len()))
        .filter(|&(start, _)| start < ABOVE_4G)
        .map(|(start, size)| start + size)
        .max()
        .unwrap_or(0)
}

/// Writes bytes to guest memory.
pub(crate) fn write(
    memory: &GuestMemory,
    what: &'static str,
    address: u64,
    bytes: &[u8],
) -> Result<()> {
    memory
        .write_slice(bytes, GuestAddress(address))
        .map_err(|error| Error::GuestMemory {
            what,
            reason: error.to_string(),
        })
}

/// Where the initrd lies in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Initrd {
    /// Its first byte.
    pub(crate) address: u64,
    /// Its size in bytes.
    pub(crate) size: u64,
}

/// Finds the place for an initrd: as high as possible below `limit`, and above the kernel.
pub(crate) fn place_initrd(size: u64, kernel_end: u64, limit: u64) -> Result<u64> {
    let floor = kernel_end.next_multiple_of(PAGE_SIZE);
    match limit
        .checked_sub(size)
        .map(|start| start & !(PAGE_SIZE - 1))
    {
        Some(start) if start >= floor => Ok(start),
        _ => Err(Error::InitrdTooLarge {
            initrd_mib: size.div_ceil(MIB),
            room_mib: limit.saturating_sub(floor) / MIB,
        }),
    }
}

/// Loads the initrd above the kernel and below `limit`.
pub(crate) fn load_initrd(
    memory: &GuestMemory,
    path: &Path,
    kernel_end: u64,
    limit: u64,
) -> Result<Initrd> {
    let mut file = open("initrd", path)?;
    let failed = |error| Error::File {
        what: "initrd",
        path: path.into(),
        error,
    };
    let size = file.metadata().map_err(failed)?.len();
    let limit = limit.min(low_end(memory));
    let address = place_initrd(size, kernel_end, limit)?;
    read_into(memory, &mut file, address, size)
        .map_err(|reason| failed(std::io::Error::other(reason)))?;
    Ok(Initrd { address, size })
}

/// Opens a regular file for reading, and reads a byte of it: a directory fails here.
pub(crate) fn open(what: &'static str, path: &Path) -> Result<File> {
    let failed = |error| Error::File {
        what,
        path: path.into(),
        error,
    };
    let file = File::open(path).map_err(failed)?;
    // A directory can be opened, but not read.
    (&file).take(0).read(&mut []).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(failed(std::io::Error::from(
            std::io::ErrorKind::IsADirectory,
        )));
    }
    Ok(file)
}

/// Reads `size` bytes of a file to guest memory.
fn read_into<F: ReadVolatile>(
    memory: &GuestMemory,
    file: &mut F,
    address: u64,
    size: u64,
) -> std::result::Result<(), String> {
    let size = usize::try_from(size).map_err(|error| error.to_string())?;
    memory
        .read_exact_volatile_from(GuestAddress(address), file, size)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::GIB;

    #[test]
    fn ranges_leave_the_gap() {
        assert_eq!(ranges(512 * MIB), [(0, 512 * MIB)]);
        assert_eq!(ranges(3 * GIB), [(0, 3 * GIB)]);
        assert_eq!(ranges(5 * GIB), [(0, 3 * GIB), (4 * GIB, 2 * GIB)]);
    }

    #[test]
    fn the_map_is_sorted_and_accounts_for_all_memory() {
        for size in [2 * MIB, 512 * MIB, 3 * GIB, 3 * GIB + MIB, 64 * GIB] {
            let map = map(size);
            let mut end = 0;
            for &((start, size), _) in &map {
                assert!(start >= end && size > 0, "{map:x?}");
                end = start + size;
            }
            let ram: u64 = map
                .iter()
                .filter(|(_, kind)| *kind == Kind::Ram)
                .map(|&((_, size), _)| size)
                .sum();
            assert_eq!(ram, size - MIB + LOW_MEMORY_END);
        }
    }

    #[test]
    fn the_initrd_goes_to_the_top() {
        assert_eq!(
            place_initrd(5000, 32 * MIB, 128 * MIB).unwrap(),
            128 * MIB - 8192
        );
        assert_eq!(
            place_initrd(96 * MIB, 32 * MIB, 128 * MIB).unwrap(),
            32 * MIB
        );
        assert!(matches!(
            place_initrd(96 * MIB + 1, 32 * MIB, 128 * MIB),
            Err(Error::InitrdTooLarge {
                initrd_mib: 97,
                room_mib: 96
            })
        ));
        assert!(place_initrd(u64::MAX, 0, 128 * MIB).is_err());
        assert!(place_initrd(1, 256 * MIB, 128 * MIB).is_err());
    }

    #[test]
    fn memory_has_an_end_below_4g() {
        assert_eq!(low_end(&allocate(64 * MIB).unwrap()), 64 * MIB);
    }
}
