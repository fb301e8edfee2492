// SPDX-License-Identifier: GPL-2.0-only

//! Memory that a guest and this program share.

use std::fs;
use std::io;
use std::ptr::{self, NonNull};
use std::thread::sleep;
use std::time::Duration;

use crate::patience;

/// The size of a page.
pub const PAGE: usize = 4096;

/// An anonymous or device mapping, unmapped when dropped.
pub struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: A `Mapping` is plain memory; it is read and written by copies only.
unsafe impl Send for Mapping {}
// SAFETY: As above; the guest writes it at any time anyway.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Zeroed memory of this process.
    pub fn anonymous(length: usize) -> io::Result<Self> {
        Self::new(length, -1, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
    }

    /// Zeroed memory that this process shares with its children.
    pub fn shared(length: usize) -> io::Result<Self> {
        Self::new(length, -1, libc::MAP_SHARED | libc::MAP_ANONYMOUS)
    }

    /// The first `length` bytes of a file.
    pub fn of_file(file: i32, length: usize) -> io::Result<Self> {
        Self::new(length, file, libc::MAP_SHARED)
    }

    fn new(length: usize, file: i32, flags: i32) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: A new mapping at an address of the kernel's choice touches no other object.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, file, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, length })
    }

    /// Where the mapping begins.
    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether the mapping is of no bytes; it never is.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Copies `bytes` to `offset`.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(
            offset <= self.length && bytes.len() <= self.length - offset,
            "outside the mapping"
        );
        // SAFETY: The range lies within the mapping, which no reference covers.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.start().add(offset), bytes.len()) };
    }

    /// A copy of `length` bytes at `offset`.
    pub fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        assert!(
            offset <= self.length && length <= self.length - offset,
            "outside the mapping"
        );
        let mut bytes = vec![0; length];
        // SAFETY: The range lies within the mapping, which no reference covers.
        unsafe { ptr::copy_nonoverlapping(self.start().add(offset), bytes.as_mut_ptr(), length) };
        bytes
    }

    /// Writes a table of 64-bit entries, page tables and descriptors for example.
    pub fn write_words(&self, offset: usize, words: &[u64]) {
        for (index, word) in words.iter().enumerate() {
            self.write(offset + index * 8, &word.to_le_bytes());
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: The mapping is this object's own and nothing points into it any more.
        unsafe { libc::munmap(self.start().cast(), self.length) };
    }
}

/// Only the debug kernel has it.
const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";

/// Kernel memory in KiB, as soon as what is freed late has been freed. On the debug kernel without
/// slabs, which KASAN keeps for a while when they are freed: [`unreferenced`] is for them.
pub fn kernel_memory() -> i64 {
    sleep(Duration::from_millis(1500));
    // Nothing depends on it; it only makes the figures steadier.
    let _ = fs::write("/proc/sys/vm/drop_caches", "3");
    let total = meminfo("MemTotal") - meminfo("MemFree") - kept_by_cpus();
    let user = meminfo("AnonPages") + meminfo("Cached") + meminfo("Buffers");
    println!(
        "# used by the kernel: {} KiB, of it slab {}, per CPU {}, page tables {}",
        total - user,
        meminfo("Slab"),
        meminfo("Percpu"),
        meminfo("PageTables") + meminfo("SecPageTables"),
    );
    let kept = if fs::exists(KMEMLEAK).unwrap_or(false) {
        meminfo("Slab")
    } else {
        0
    };
    total - user - kept
}

/// How much more kernel memory there is than `before`, in KiB, once that is below `most`: what is
/// freed late is freed later on a busy machine.
pub fn growth(before: i64, most: i64) -> Result<i64, String> {
    let mut growth = 0;
    patience::until("kernel memory is free again", || {
        growth = kernel_memory() - before;
        growth < most
    })
    .map_err(|error| format!("{error}: {growth} KiB more, {most} are too many"))?;
    Ok(growth)
}

/// On the debug kernel, what it has allocated and nobody points to; a line for each object and
/// more.
pub fn unreferenced() -> io::Result<String> {
    if !fs::exists(KMEMLEAK)? {
        return Ok(String::new());
    }
    // It reports what is five seconds old.
    sleep(Duration::from_secs(6));
    for _ in 0..2 {
        fs::write(KMEMLEAK, "scan")?;
    }
    fs::read_to_string(KMEMLEAK)
}

/// A figure of `/proc/meminfo`, in KiB.
pub fn meminfo(name: &str) -> i64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let figure = text.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?.strip_prefix(':')?;
        rest.split_whitespace().next()?.parse().ok()
    });
    figure.unwrap_or(0)
}

/// How many pages are tables of guests, on the whole host.
pub fn table_pages() -> i64 {
    // Adds up what each CPU has counted for itself.
    let _ = fs::write("/proc/sys/vm/stat_refresh", "1");
    meminfo("SecPageTables") / (PAGE as i64 / 1024)
}

/// Free memory that the CPUs keep in lists of their own, in KiB.
fn kept_by_cpus() -> i64 {
    let text = fs::read_to_string("/proc/zoneinfo").unwrap_or_default();
    let pages = text.lines().filter_map(|line| {
        line.trim()
            .strip_prefix("count:")?
            .trim()
            .parse::<i64>()
            .ok()
    });
    pages.sum::<i64>() * (PAGE as i64 / 1024)
}
