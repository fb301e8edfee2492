// SPDX-License-Identifier: GPL-2.0-only

//! Many slots: what it costs to make one, and what the host's notice costs that it takes a page
//! back.

use std::ptr::null_mut;

use kvm_bindings::*;
use selftests::kvm::{number, Handle};
use selftests::memory::PAGE;

use crate::host::{own_ticks, ticks};
use crate::{median, Row, Rows};

/// As many as there can be.
const MOST: u64 = 32_764;

/// Address space that backs the slots; nothing of it is ever touched.
struct Space(*mut u8);

impl Space {
    fn new() -> Result<Self, String> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let (size, protection) = (MOST as usize * PAGE, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: A new mapping.
        let start = unsafe { libc::mmap(null_mut(), size, protection, flags, -1, 0) };
        match start {
            libc::MAP_FAILED => Err("no address space".into()),
            start => Ok(Self(start.cast())),
        }
    }

    /// The page of the slot: not in the order of the slots, and that of the first in the middle.
    fn page(&self, slot: u64) -> *mut u8 {
        let page = (MOST / 2 + slot * 7919) % MOST;
        self.0.wrapping_add(page as usize * PAGE)
    }

    /// What it costs to give up a page that is not there: the system call, and the notice.
    fn give_up(&self) -> u64 {
        let mut spans: Vec<u64> = (0..32)
            .map(|_| {
                let begin = ticks();
                // SAFETY: The page is our own, and nothing is in it.
                unsafe { libc::madvise(self.page(0).cast(), PAGE, libc::MADV_DONTNEED) };
                ticks() - begin
            })
            .collect();
        median(&mut spans)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // SAFETY: The range is our own; the slots went before.
        unsafe { libc::munmap(self.0.cast(), MOST as usize * PAGE) };
    }
}

/// One page in each slot, and holes between them.
pub(crate) fn slots(device: &Handle) -> Rows {
    let space = Space::new()?;
    let alone = space.give_up();
    let vm = device.open_with(number::CREATE_VM, 0)?;
    let mut rows = Vec::new();
    let mut made = 0;
    for (count, make, notice) in [
        (1, None, "notice_1"),
        (1000, Some("slot_1000"), "notice_1000"),
        (MOST, Some("slot_most"), "notice_most"),
    ] {
        let all = own_ticks(|| {
            for slot in made..count {
                let region = kvm_userspace_memory_region {
                    slot: slot as u32,
                    flags: 0,
                    guest_phys_addr: slot * 2 * PAGE as u64,
                    memory_size: PAGE as u64,
                    userspace_addr: space.page(slot) as u64,
                };
                vm.set(number::SET_USER_MEMORY_REGION, &region)?;
            }
            Ok(())
        })?;
        let each = all / (count - made);
        made = count;
        let row = |name, value| Row {
            name,
            value,
            times: 0,
        };
        rows.extend(make.map(|name| row(name, each)));
        rows.push(row(notice, space.give_up().saturating_sub(alone)));
    }
    Ok(rows)
}
