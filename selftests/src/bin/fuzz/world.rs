// SPDX-License-Identifier: GPL-2.0-only

//! What the threads of a round have in common: descriptors and memory, at places that never move,
//! all of which may be gone at any moment.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

use kvm_bindings::kvm_cpuid_entry2;
use selftests::kvm::{Answer, Errno, Number};

use crate::rng::Rng;
use crate::table::Kind;

/// Memory of the guests. Linux puts nothing at any of these addresses by itself.
pub(crate) const RAM: usize = 0x10_0000_0000;
/// Its size.
pub(crate) const RAM_SIZE: usize = 4 << 20;
/// The shared pages of the vCPUs, each with the same distance.
pub(crate) const RUN_PAGES: usize = 0x20_0000_0000;
/// That distance.
pub(crate) const RUN_STRIDE: usize = 0x1_0000;
/// Arguments, for each thread.
const SCRATCH: usize = 0x30_0000_0000;
const SCRATCH_STRIDE: usize = 0x10_0000;
const SCRATCH_SIZE: usize = 0x8000;
/// Where the bitmaps are that arguments point to.
pub(crate) const BITMAP: usize = 0x40_0000_0000;
const BITMAP_SIZE: usize = 0x1_0000;

/// How many of each kind a round has at most.
pub(crate) const DEVICES: usize = 2;
pub(crate) const VMS: usize = 3;
pub(crate) const VCPUS: usize = 8;
const EVENTS: usize = 6;

/// Maps anonymous memory at a fixed address.
pub(crate) fn map(address: usize, length: usize, protection: i32) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: Only this program's own ranges above are mapped so, in which no reference points.
    let at = unsafe { libc::mmap(address as *mut _, length, protection, flags, -1, 0) };
    assert_eq!(at as usize, address, "mmap at {address:#x}");
}

/// Copies bytes to an address where there may be no memory; answers whether there was.
pub(crate) fn poke(address: usize, bytes: &[u8]) -> bool {
    let from = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let to = libc::iovec {
        iov_base: address as *mut _,
        iov_len: bytes.len(),
    };
    // SAFETY: The addresses are in the ranges above, or nowhere.
    let done = unsafe { libc::process_vm_writev(libc::getpid(), &from, 1, &to, 1, 0) };
    done == bytes.len() as isize
}

/// Copies bytes from an address where there may be no memory.
pub(crate) fn peek(address: usize, bytes: &mut [u8]) -> bool {
    let to = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let from = libc::iovec {
        iov_base: address as *mut _,
        iov_len: bytes.len(),
    };
    // SAFETY: The kernel writes to `bytes` only.
    let done = unsafe { libc::process_vm_readv(libc::getpid(), &to, 1, &from, 1, 0) };
    done == bytes.len() as isize
}

/// An ioctl with any argument.
pub(crate) fn ioctl(fd: RawFd, number: Number, argument: usize) -> Answer {
    // SAFETY: What the kernel writes is in the ranges above, in which no reference points.
    let answer = unsafe { libc::ioctl(fd, number.0, argument) };
    if answer < 0 {
        Err(Errno::last())
    } else {
        Ok(answer)
    }
}

/// How much of an argument can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    All,
    Part,
    None,
}

/// What a round is made of.
pub(crate) struct Fixed {
    devices: [AtomicI32; DEVICES],
    vms: [AtomicI32; VMS],
    vcpus: [AtomicI32; VCPUS],
    events: [AtomicI32; EVENTS],
    /// What the device offers.
    pub(crate) cpuid: Vec<kvm_cpuid_entry2>,
    /// Descriptors may be closed in this round, so that their numbers change their meaning.
    pub(crate) closes: bool,
}

impl Fixed {
    /// No descriptors yet, and all memory.
    pub(crate) fn new(cpuid: Vec<kvm_cpuid_entry2>, threads: usize, closes: bool) -> Self {
        let usable = libc::PROT_READ | libc::PROT_WRITE;
        map(RAM, RAM_SIZE, usable);
        map(BITMAP, BITMAP_SIZE, usable);
        for thread in 0..threads {
            map(SCRATCH + thread * SCRATCH_STRIDE, SCRATCH_SIZE, usable);
        }
        Self {
            devices: Default::default(),
            vms: Default::default(),
            vcpus: Default::default(),
            events: Default::default(),
            cpuid,
            closes,
        }
    }

    /// The descriptors of a kind.
    fn files(&self, kind: Kind) -> &[AtomicI32] {
        match kind {
            Kind::Device => &self.devices,
            Kind::Vm => &self.vms,
            Kind::Vcpu => &self.vcpus,
        }
    }

    /// One of a kind, if there is any.
    pub(crate) fn file(&self, rng: &mut Rng, kind: Kind) -> Option<RawFd> {
        let files = self.files(kind);
        let from = rng.below(files.len());
        (0..files.len())
            .map(|index| files[(from + index) % files.len()].load(SeqCst))
            .find(|fd| *fd > 0)
    }

    /// The descriptor with this index; 0 if there is none.
    pub(crate) fn at(&self, kind: Kind, index: usize) -> RawFd {
        self.files(kind)[index].load(SeqCst)
    }

    /// Puts a descriptor in a place, and closes the one that was there; 0 leaves it empty.
    pub(crate) fn put(&self, kind: Kind, index: usize, fd: RawFd) {
        close(self.files(kind)[index].swap(fd, SeqCst));
    }

    /// Puts a new descriptor anywhere: in an empty place, or instead of another if that may be.
    pub(crate) fn keep(&self, rng: &mut Rng, kind: Kind, fd: RawFd) {
        let files = self.files(kind);
        let empty = files
            .iter()
            .position(|file| file.compare_exchange(0, fd, SeqCst, SeqCst).is_ok());
        match empty {
            Some(index) => self.map_run_pages(kind, index, fd),
            None if self.closes => {
                let index = rng.below(files.len());
                self.put(kind, index, fd);
                self.map_run_pages(kind, index, fd);
            }
            None => close(fd),
        }
    }

    fn map_run_pages(&self, kind: Kind, index: usize, fd: RawFd) {
        if kind == Kind::Vcpu {
            let _ = map_shared(fd, RUN_PAGES + index * RUN_STRIDE, 3, 0);
        }
    }

    /// An eventfd, or something else.
    pub(crate) fn event(&self, rng: &mut Rng) -> RawFd {
        match rng.below(16) {
            0 => rng.pick(&[-1, 0, 99, i32::MAX]),
            1 => self.file(rng, Kind::Vm).unwrap_or(-1),
            _ => self.events[rng.below(EVENTS)].load(SeqCst),
        }
    }

    /// Makes an eventfd in place of another.
    pub(crate) fn new_event(&self, index: usize) {
        // SAFETY: A plain system call.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) };
        close(self.events[index % EVENTS].swap(fd.max(0), SeqCst));
    }
}

fn close(fd: RawFd) {
    if fd > 2 {
        // SAFETY: The descriptor was taken out of its place by this thread alone.
        unsafe { libc::close(fd) };
    }
}

/// Maps pages of a file at one of the fixed places.
pub(crate) fn map_shared(fd: RawFd, address: usize, pages: usize, offset: i64) -> Answer {
    let usable = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    // SAFETY: As for `map`.
    let at = unsafe { libc::mmap(address as *mut _, pages * 4096, usable, flags, fd, offset) };
    if at == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    Ok(0)
}

/// Puts an argument of these bytes somewhere: answers where, and how much of it can be reached.
pub(crate) fn place(rng: &mut Rng, thread: usize, bytes: &[u8]) -> (usize, Reach) {
    let start = SCRATCH + thread * SCRATCH_STRIDE;
    let end = start + SCRATCH_SIZE;
    let length = bytes.len().max(1);
    let (address, reach) = match rng.below(32) {
        0 => return (0x1000, Reach::None),
        1 => return (end + rng.below(8), Reach::None),
        2 => {
            let nowhere = [
                0x7fff_ffff_f000,
                0xffff_8880_0000_0000,
                0x8000_0000_0000_0000,
            ];
            return (rng.pick(&nowhere), Reach::None);
        }
        3 if length > 1 => (end - 1 - rng.below(length - 1), Reach::Part),
        4..=6 => (start + 1 + rng.below(7), Reach::All),
        7..=10 => (end - length, Reach::All),
        _ => (start + rng.below(256) * 8, Reach::All),
    };
    poke(address, &bytes[..bytes.len().min(end - address)]);
    (address, reach)
}
