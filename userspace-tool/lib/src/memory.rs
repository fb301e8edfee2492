// SPDX-License-Identifier: GPL-2.0-only

//! Guest memory whose writes are announced to the snapshot before they are made.
//!
//! ```text
//!   device model ── write ──► Memory ── 1 PACIFICA_KEEP_PAGES ──► the snapshot has the old content
//!                               └────── 2 the write
//! ```
//!
//! A bitmap of `vm-memory` alone cannot do that: it is told of a write when it has been made, and
//! then the old content is gone. So [`Region`] wraps the mapping, and looks at what is asked for:
//!
//! * a write by [`Bytes`] is announced, then made;
//! * a slice can be written through at any time, so its pages are announced when it is made, even
//!   if it is for reading. All that `vm-memory` does by a guest-physical address comes that way. It
//!   costs a page that is kept; what devices read is mostly what the guest has just written;
//! * [`Memory::peek`], and reading from a [`Region`], announce nothing;
//! * while slices live nothing is snapshotted or reset: they may be written through meanwhile.
//!
//! Without a snapshot an access costs a read lock more than one of `GuestMemoryMmap`.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use vm_memory::bitmap::{Bitmap, BS};
use vm_memory::{
    Address, AtomicAccess, Bytes, FileOffset, GuestAddress, GuestMemory, GuestMemoryError,
    GuestMemoryRegion, GuestRegionCollection, GuestRegionCollectionError, GuestRegionMmap,
    GuestUsize, MemoryRegionAddress, MmapRegion, ReadVolatile, VolatileSlice, WriteVolatile,
};

use crate::snapshot::keep;
use crate::tracking::{Tracking, PAGE};

type Access<T> = std::result::Result<T, GuestMemoryError>;

/// The descriptors of the snapshots, the inner ones last.
pub(crate) type Snapshots = Vec<Arc<OwnedFd>>;

/// Guest memory of one VM. It is a [`GuestMemory`], so all crates on `vm-memory` work with it;
/// copies are the same memory.
///
/// ```
/// use pacifica_vm::vm_memory::{Bytes, GuestAddress};
/// use pacifica_vm::Memory;
///
/// let memory = Memory::from_ranges(&[(GuestAddress(0), 2 << 20)])?;
/// memory.write_obj(0x1234_u16, GuestAddress(0x1000))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Memory {
    regions: GuestRegionCollection<Region>,
    snapshots: Arc<RwLock<Snapshots>>,
}

/// Why there is no [`Memory`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// No mapping.
    #[error(transparent)]
    Mapping(#[from] vm_memory::mmap::FromRangesError),
    /// A set of regions that cannot be.
    #[error(transparent)]
    Regions(#[from] GuestRegionCollectionError),
}

impl Memory {
    /// Anonymous memory at these guest-physical addresses, of these sizes.
    pub fn from_ranges(ranges: &[(GuestAddress, usize)]) -> std::result::Result<Self, MemoryError> {
        let regions = ranges
            .iter()
            .map(|&(start, size)| Ok(GuestRegionMmap::from_range(start, size, None)?))
            .collect::<std::result::Result<_, MemoryError>>()?;
        Self::from_regions(regions)
    }

    /// Memory of mappings that the VMM has made: of files, in huge pages, shared.
    ///
    /// ```
    /// use pacifica_vm::vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};
    /// use pacifica_vm::{Memory, Tracking};
    ///
    /// let mapping = MmapRegion::<Tracking>::new(1 << 20)?;
    /// let region = GuestRegionMmap::new(mapping, GuestAddress(0)).ok_or("wraps")?;
    /// let memory = Memory::from_regions(vec![region])?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_regions(
        regions: Vec<GuestRegionMmap<Tracking>>,
    ) -> std::result::Result<Self, MemoryError> {
        let snapshots = Arc::new(RwLock::default());
        let regions = regions
            .into_iter()
            .map(|mapping| Region {
                mapping,
                snapshots: snapshots.clone(),
            })
            .collect();
        let regions = GuestRegionCollection::from_regions(regions)?;
        Ok(Self { regions, snapshots })
    }

    /// Reads without announcing anything, whatever may be written meanwhile.
    pub fn peek(&self, buffer: &mut [u8], address: GuestAddress) -> Access<()> {
        let (mut address, mut rest) = (address, buffer);
        while !rest.is_empty() {
            let region = self.to_region_addr(address);
            let (region, offset) = region.ok_or(GuestMemoryError::InvalidGuestAddress(address))?;
            let count = region.read(rest, offset)?;
            address = address.unchecked_add(count as u64);
            rest = &mut rest[count..];
        }
        Ok(())
    }

    /// In a child of `fork(2)`: the snapshots are the parent's, and nothing is announced to them.
    /// [`fork()`](crate::fork()) does this itself.
    pub fn leave_snapshots(&self) {
        self.exclusive().clear();
        self.clear();
    }

    /// How many slices live.
    pub(crate) fn slices(&self) -> usize {
        self.iter()
            .map(|region| region.tracking().pages().slices())
            .sum()
    }

    /// Whether other processes see what is written, children too.
    pub(crate) fn is_shared(&self) -> bool {
        self.iter()
            .any(|region| region.mapping().flags() & libc::MAP_TYPE != libc::MAP_PRIVATE)
    }

    /// Nothing is announced any more.
    pub(crate) fn clear(&self) {
        self.iter()
            .for_each(|region| region.tracking().pages().clear());
    }

    /// Nobody reads or writes meanwhile, except through slices.
    pub(crate) fn exclusive(&self) -> RwLockWriteGuard<'_, Snapshots> {
        self.snapshots
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl GuestMemory for Memory {
    type R = Region;

    fn num_regions(&self) -> usize {
        self.regions.num_regions()
    }

    fn find_region(&self, address: GuestAddress) -> Option<&Region> {
        self.regions.find_region(address)
    }

    fn iter(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter()
    }
}

/// One contiguous piece of [`Memory`].
#[derive(Debug)]
pub struct Region {
    mapping: GuestRegionMmap<Tracking>,
    snapshots: Arc<RwLock<Snapshots>>,
}

impl Region {
    /// The mapping behind it, for example for `KVM_SET_USER_MEMORY_REGION`. What is written by way
    /// of it must be [announced](crate::Snapshot::announce).
    pub fn mapping(&self) -> &MmapRegion<Tracking> {
        &self.mapping
    }

    fn tracking(&self) -> &Tracking {
        self.mapping().bitmap()
    }

    /// There is no reset and no new snapshot while this lives.
    fn shared(&self) -> RwLockReadGuard<'_, Snapshots> {
        self.snapshots
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces what is not announced of these bytes; those beyond the end do not count.
    fn announce(&self, snapshots: &Snapshots, offset: u64, count: usize) -> io::Result<()> {
        let Some(snapshot) = snapshots.last() else {
            return Ok(());
        };
        let end = offset.saturating_add(count as u64).min(self.len());
        if offset >= end {
            return Ok(());
        }
        let base = self.start_addr().raw_value();
        let (first_page, pages) = (base / PAGE, self.tracking().pages());
        let (mut page, end) = ((base + offset) / PAGE, (base + end).div_ceil(PAGE));
        let index = |page| (page - first_page) as usize;
        while page < end {
            let run = (page..end)
                .take_while(|&page| !pages.has(index(page)))
                .count() as u64;
            if run != 0 {
                keep(snapshot, page * PAGE, run * PAGE)?;
                (page..page + run).for_each(|page| pages.add(index(page)));
            }
            page += run.max(1);
        }
        Ok(())
    }

    /// Calls `write` when what it writes is announced.
    fn announced<'a, T>(
        &'a self,
        offset: MemoryRegionAddress,
        count: usize,
        write: impl FnOnce(&'a GuestRegionMmap<Tracking>) -> Access<T>,
    ) -> Access<T> {
        let snapshots = self.shared();
        self.announce(&snapshots, offset.raw_value(), count)
            .map_err(GuestMemoryError::IOError)?;
        write(&self.mapping)
    }

    /// At most `count` bytes, for what may take long.
    fn slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Access<VolatileSlice<'_, BS<'_, Tracking>>> {
        let room = self.len().saturating_sub(offset.raw_value());
        let count = usize::try_from(room).unwrap_or(usize::MAX).min(count);
        self.get_slice(offset, count)
    }
}

impl GuestMemoryRegion for Region {
    type B = Tracking;

    fn len(&self) -> GuestUsize {
        self.mapping.len()
    }

    fn start_addr(&self) -> GuestAddress {
        self.mapping.start_addr()
    }

    fn bitmap(&self) -> BS<'_, Tracking> {
        self.tracking().slice_at(0)
    }

    /// The address in this process. What is written there must be
    /// [announced](crate::Snapshot::announce).
    fn get_host_address(&self, address: MemoryRegionAddress) -> Access<*mut u8> {
        GuestMemoryRegion::get_host_address(&self.mapping, address)
    }

    fn file_offset(&self) -> Option<&FileOffset> {
        GuestMemoryRegion::file_offset(&self.mapping)
    }

    /// A slice, all of which is announced.
    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Access<VolatileSlice<'_, BS<'_, Tracking>>> {
        // It is counted before the lock is given back.
        self.announced(offset, count, |mapping| {
            GuestMemoryRegion::get_slice(mapping, offset, count)
        })
    }

    fn is_hugetlbfs(&self) -> Option<bool> {
        GuestMemoryRegion::is_hugetlbfs(&self.mapping)
    }
}

impl Bytes<MemoryRegionAddress> for Region {
    type E = GuestMemoryError;

    fn write(&self, buffer: &[u8], address: MemoryRegionAddress) -> Access<usize> {
        self.announced(address, buffer.len(), |mapping| {
            mapping.write(buffer, address)
        })
    }

    fn read(&self, buffer: &mut [u8], address: MemoryRegionAddress) -> Access<usize> {
        let _snapshots = self.shared();
        self.mapping.read(buffer, address)
    }

    fn write_slice(&self, buffer: &[u8], address: MemoryRegionAddress) -> Access<()> {
        self.announced(address, buffer.len(), |mapping| {
            mapping.write_slice(buffer, address)
        })
    }

    fn read_slice(&self, buffer: &mut [u8], address: MemoryRegionAddress) -> Access<()> {
        let _snapshots = self.shared();
        self.mapping.read_slice(buffer, address)
    }

    fn read_volatile_from<F: ReadVolatile>(
        &self,
        address: MemoryRegionAddress,
        source: &mut F,
        count: usize,
    ) -> Access<usize> {
        let slice = self.slice(address, count)?;
        Ok(slice.read_volatile_from(0, source, count)?)
    }

    fn read_exact_volatile_from<F: ReadVolatile>(
        &self,
        address: MemoryRegionAddress,
        source: &mut F,
        count: usize,
    ) -> Access<()> {
        let slice = self.get_slice(address, count)?;
        Ok(slice.read_exact_volatile_from(0, source, count)?)
    }

    fn write_volatile_to<F: WriteVolatile>(
        &self,
        address: MemoryRegionAddress,
        sink: &mut F,
        count: usize,
    ) -> Access<usize> {
        let slice = self.slice(address, count)?;
        Ok(slice.write_volatile_to(0, sink, count)?)
    }

    fn write_all_volatile_to<F: WriteVolatile>(
        &self,
        address: MemoryRegionAddress,
        sink: &mut F,
        count: usize,
    ) -> Access<()> {
        let slice = self.get_slice(address, count)?;
        Ok(slice.write_all_volatile_to(0, sink, count)?)
    }

    fn store<T: AtomicAccess>(
        &self,
        value: T,
        address: MemoryRegionAddress,
        order: Ordering,
    ) -> Access<()> {
        self.announced(address, size_of::<T>(), |mapping| {
            mapping.store(value, address, order)
        })
    }

    fn load<T: AtomicAccess>(&self, address: MemoryRegionAddress, order: Ordering) -> Access<T> {
        let _snapshots = self.shared();
        self.mapping.load(address, order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 0x10_0000;

    fn memory() -> Memory {
        let ranges = [
            (GuestAddress(START), 8 * PAGE as usize),
            (GuestAddress(START + 8 * PAGE), 8 * PAGE as usize),
        ];
        Memory::from_ranges(&ranges).unwrap()
    }

    /// A "snapshot" that refuses everything: its descriptor is that of a file.
    fn refuse(memory: &Memory) {
        let file = std::fs::File::open("/dev/null").unwrap();
        memory.exclusive().push(Arc::new(file.into()));
    }

    #[test]
    fn it_is_memory() {
        let memory = memory();
        let across = GuestAddress(START + 8 * PAGE - 4);
        memory.write_slice(b"01234567", across).unwrap();
        assert_eq!(
            memory.read_obj::<u64>(across).unwrap().to_le_bytes(),
            *b"01234567"
        );
        let mut text = [0; 8];
        memory.peek(&mut text, across).unwrap();
        assert_eq!(text, *b"01234567");
        assert!(memory
            .peek(&mut text, GuestAddress(START + 16 * PAGE - 4))
            .is_err());
        memory.store(7u32, across, Ordering::SeqCst).unwrap();
        assert_eq!(memory.load::<u32>(across, Ordering::SeqCst).unwrap(), 7);
        let mut copy = Vec::new();
        memory.write_all_volatile_to(across, &mut copy, 8).unwrap();
        assert_eq!(copy, *b"\x07\0\0\x004567");
        memory
            .read_exact_volatile_from(across, &mut &b"abcdefgh"[..], 8)
            .unwrap();
        memory.peek(&mut text, across).unwrap();
        assert_eq!(text, *b"abcdefgh");
        assert_eq!(memory.slices(), 0);
    }

    #[test]
    fn what_cannot_be_announced_is_not_written() {
        let memory = memory();
        let address = GuestAddress(START);
        memory.write_obj(1u64, address).unwrap();
        refuse(&memory);
        let (region, offset) = memory.to_region_addr(address).unwrap();
        assert!(memory.write_obj(2u64, address).is_err());
        assert!(memory.store(2u64, address, Ordering::SeqCst).is_err());
        assert!(memory
            .read_volatile_from(address, &mut &[2u8; 8][..], 8)
            .is_err());
        assert!(memory.get_slice(address, 8).is_err());
        assert!(region.write(&[2; 8], offset).is_err());
        assert!(region.write_slice(&[2; 8], offset).is_err());
        assert!(region.store(2u64, offset, Ordering::SeqCst).is_err());
        assert!(region
            .read_volatile_from(offset, &mut &[2u8; 8][..], 8)
            .is_err());
        assert!(region.as_volatile_slice().is_err());
        // Reading is possible where it is known to be that.
        assert_eq!(region.read_obj::<u64>(offset).unwrap(), 1);
        assert_eq!(region.load::<u64>(offset, Ordering::SeqCst).unwrap(), 1);
        let mut bytes = [0; 8];
        memory.peek(&mut bytes, address).unwrap();
        assert_eq!(bytes, 1u64.to_le_bytes());
    }

    #[test]
    fn announced_pages_are_not_announced_again() {
        let memory = memory();
        let region = memory.find_region(GuestAddress(START)).unwrap();
        [2, 3].map(|page| region.tracking().pages().add(page));
        refuse(&memory);
        let at = |offset| GuestAddress(START + offset);
        assert!(memory
            .write_slice(&[1; 2 * PAGE as usize], at(2 * PAGE))
            .is_ok());
        assert!(memory.write_slice(&[1; 2], at(2 * PAGE - 1)).is_err());
        assert!(memory.write_slice(&[1; 2], at(4 * PAGE - 1)).is_err());
        memory.clear();
        assert!(memory.write_slice(&[1], at(2 * PAGE)).is_err());
    }

    #[test]
    fn slices_are_in_use_as_long_as_they_live() {
        let memory = memory();
        let slice = memory.get_slice(GuestAddress(START), 100).unwrap();
        let part = slice.subslice(10, 10).unwrap();
        assert_eq!(memory.slices(), 2);
        drop(slice);
        assert_eq!(memory.slices(), 1);
        drop(part);
        assert_eq!(memory.slices(), 0);
    }
}
