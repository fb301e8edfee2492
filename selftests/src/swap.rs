// SPDX-License-Identifier: GPL-2.0-only

//! Swapping in the emulated host.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;

use crate::memory::PAGE;

/// A RAM disk that the host swaps to, for as long as this lives.
pub struct Swap(CString);

impl Swap {
    /// Begins to swap, if there is such a disk.
    pub fn on() -> Option<Self> {
        const SIZE: u32 = 64 << 20;
        let insert = ["/lab/brd.ko", "rd_nr=1", "rd_size=65536"];
        let done = Command::new("insmod").args(insert).status().ok()?;
        let disk = fs::File::options().write(true).open("/dev/ram0").ok()?;
        let mut header = vec![0u8; PAGE];
        header[1024..1028].copy_from_slice(&1u32.to_ne_bytes());
        header[1028..1032].copy_from_slice(&(SIZE / PAGE as u32 - 1).to_ne_bytes());
        header[PAGE - 10..].copy_from_slice(b"SWAPSPACE2");
        disk.write_all_at(&header, 0).ok()?;
        disk.sync_all().ok()?;
        let path = CString::new("/dev/ram0").ok()?;
        // SAFETY: The path is a C string.
        let on = done.success() && unsafe { libc::swapon(path.as_ptr(), 0) } == 0;
        on.then_some(Self(path))
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        // SAFETY: The path is a C string.
        unsafe { libc::swapoff(self.0.as_ptr()) };
        let _ = Command::new("rmmod").arg("brd").status();
    }
}

/// A counter of /proc/vmstat.
pub fn vmstat(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}
