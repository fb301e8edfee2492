// SPDX-License-Identifier: GPL-2.0-only

//! Guest memory: mapped, logged, and taken away, as a guest that writes one word to each page sees
//! it.

use std::arch::x86_64::_rdtsc;
use std::fs;
use std::ptr::null_mut;

use kvm_bindings::*;
use selftests::guest::Irqchip;
use selftests::kvm::{number, Answer, Handle};
use selftests::machine::Machine;
use selftests::memory::PAGE;
use selftests::stats::{counter, read};

use crate::guests::{Code, TOUCH_COUNT, TOUCH_STEP};
use crate::machine::{machine, set_pointer};
use crate::{Row, Rows};

pub(crate) const SIZE: usize = 256 << 20;
pub(crate) const LARGE: usize = 2 << 20;
pub(crate) const PAGES: u64 = (SIZE / PAGE) as u64;
/// What makes a figure for 256 MiB one for a GiB.
const TO_GIB: u64 = (1 << 30) / SIZE as u64;
pub(crate) const AT: u64 = 0x4000_0000;
pub(crate) const SLOT: u32 = 2;
pub(crate) const LOG: u32 = 1;

pub(crate) fn ticks() -> u64 {
    // SAFETY: Every x86-64 CPU has the instruction.
    unsafe { _rdtsc() }
}

/// Guests that share a slot, and its memory, aligned for large pages.
pub(crate) struct Memory {
    pub(crate) machine: Machine,
    pub(crate) size: usize,
    start: usize,
}

impl Memory {
    pub(crate) fn new(device: &Handle, codes: &[Code], advice: i32) -> Result<Self, String> {
        Self::of_size(device, codes, Irqchip::None, advice, SIZE)
    }

    /// The same of another size, a multiple of 2 MiB.
    pub(crate) fn of_size(
        device: &Handle,
        codes: &[Code],
        irqchip: Irqchip,
        advice: i32,
        size: usize,
    ) -> Result<Self, String> {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        );
        // SAFETY: A new mapping.
        let all = unsafe { libc::mmap(null_mut(), size + LARGE, protection, flags, -1, 0) };
        if all == libc::MAP_FAILED {
            return Err("no memory".into());
        }
        let memory = Self {
            machine: machine(device, codes, irqchip)?,
            size,
            start: (all as usize).next_multiple_of(LARGE),
        };
        memory.advise(advice);
        memory.flags(0)?;
        Ok(memory)
    }

    /// `madvise`.
    pub(crate) fn advise(&self, advice: i32) {
        // SAFETY: The range is our own, and nothing in it is needed.
        unsafe { libc::madvise(self.start as *mut _, self.size, advice) };
    }

    /// Sets the flags of the slot; how long it takes.
    pub(crate) fn flags(&self, flags: u32) -> Result<u64, String> {
        self.region(flags, self.size)
    }

    /// Takes everything from the guest, while the host keeps it.
    pub(crate) fn forget(&self) -> Result<(), String> {
        self.region(0, 0)?;
        self.region(0, self.size).map(drop)
    }

    fn region(&self, flags: u32, size: usize) -> Result<u64, String> {
        let region = kvm_userspace_memory_region {
            slot: SLOT,
            flags,
            guest_phys_addr: AT,
            memory_size: size as u64,
            userspace_addr: self.start as u64,
        };
        let begin = ticks();
        self.machine
            .vm
            .set(number::SET_USER_MEMORY_REGION, &region)?;
        Ok(ticks() - begin)
    }

    /// Makes all pages present in the host.
    pub(crate) fn populate(&self) {
        for offset in (0..self.size).step_by(PAGE) {
            // SAFETY: The range is our own.
            unsafe { ((self.start + offset) as *mut u8).write_volatile(1) };
        }
    }

    /// Lets the guest write to `count` pages that are `step` apart; how long it takes.
    pub(crate) fn touch(&self, count: u64, step: usize) -> Result<u64, String> {
        self.touch_from(0, 0, count, step)
    }

    /// Lets this vCPU do so from the page `first` on.
    pub(crate) fn touch_from(
        &self,
        cpu: usize,
        first: u64,
        count: u64,
        step: usize,
    ) -> Result<u64, String> {
        self.prepare(cpu, first, count, step)?;
        self.go(cpu)
    }

    /// Lets this vCPU know what it is to touch.
    pub(crate) fn prepare(&self, cpu: usize, first: u64, count: u64, step: usize) -> Answer {
        self.machine.ram.write_words(TOUCH_COUNT, &[count]);
        self.machine.ram.write_words(TOUCH_STEP, &[step as u64]);
        set_pointer(&self.machine.vcpus[cpu].handle, AT + first * PAGE as u64)
    }

    /// Lets it do so; how long it takes.
    pub(crate) fn go(&self, cpu: usize) -> Result<u64, String> {
        let vcpu = &self.machine.vcpus[cpu];
        let begin = ticks();
        vcpu.run()?;
        let end = ticks();
        match vcpu.shared().exit_reason {
            KVM_EXIT_IO => Ok(end - begin),
            reason => Err(format!("exit {reason}")),
        }
    }

    /// How often the first vCPU has left its guest.
    pub(crate) fn exits(&self) -> Result<u64, String> {
        let file = self.machine.vcpus[0]
            .handle
            .open_with(number::GET_STATS_FD, 0)?;
        Ok(counter(&file, "exits")?.ok_or("exits are not counted")?)
    }

    /// Reads and clears the log: how long it takes, and how many pages were in it.
    fn log(&self) -> Result<(u64, u64), String> {
        let mut words = vec![0u64; self.size / PAGE / 64];
        let begin = ticks();
        self.read_log(&mut words)?;
        let end = ticks();
        let count = words.iter().map(|word| u64::from(word.count_ones())).sum();
        Ok((end - begin, count))
    }

    /// Reads and clears it into a bitmap.
    fn read_log(&self, words: &mut [u64]) -> Answer {
        assert_eq!(words.len() * 64 * PAGE, self.size, "a bit for each page");
        read_log(&self.machine.vm, SLOT, words)
    }

    /// Where the process has it.
    pub(crate) fn start(&self) -> *mut u8 {
        self.start as *mut u8
    }

    /// How long a look at all entries of the nested tables takes: reading the counts of pages makes
    /// one. None where the count is kept when pages are mapped, as KVM does.
    fn scan(&self) -> Result<Option<u64>, String> {
        let file = self.machine.vm.open_with(number::GET_STATS_FD, 0)?;
        // Nor does KVM count exits there.
        if counter(&file, "exits")?.is_none() {
            return Ok(None);
        }
        let begin = ticks();
        read(&file, 0, 8)?;
        Ok(Some(ticks() - begin))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: The range is our own; the slot of a machine that goes.
        unsafe { libc::munmap(self.start as *mut _, self.size) };
    }
}

/// Reads and clears the log of a slot into a bitmap, which has a bit for each of its pages.
pub(crate) fn read_log(vm: &Handle, slot: u32, words: &mut [u64]) -> Answer {
    let mut log = kvm_dirty_log {
        slot,
        ..Default::default()
    };
    log.__bindgen_anon_1.dirty_bitmap = words.as_mut_ptr().cast();
    vm.set(number::GET_DIRTY_LOG, &log)
}

/// Memory that tables of guests take, in bytes.
fn tables() -> u64 {
    // Each CPU counts for itself for a while, unless it is asked.
    let _ = fs::read("/proc/sys/vm/stat_refresh");
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("SecPageTables:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0u64) * 1024
}

pub(crate) fn memory(device: &Handle) -> Rows {
    let mut rows = Vec::new();
    let mut add = |name, value| {
        rows.push(Row {
            name,
            value,
            times: 0,
        });
    };
    let guest = |advice| Memory::new(device, &[Code::Touch], advice);
    {
        let memory = guest(libc::MADV_HUGEPAGE)?;
        memory.populate();
        let count = (SIZE / LARGE) as u64;
        add("fault_2m", memory.touch(count, LARGE)? / count);
    }
    {
        let memory = guest(libc::MADV_NOHUGEPAGE)?;
        add("populate_absent", memory.touch(PAGES, PAGE)? / PAGES);
    }
    let memory = guest(libc::MADV_NOHUGEPAGE)?;
    memory.populate();
    // What the guest has besides is mapped first.
    memory.touch(1, PAGE)?;
    memory.forget()?;
    let (before, none) = (tables(), memory.scan()?);
    let exits = memory.exits()?;
    add("populate", memory.touch(PAGES, PAGE)? / PAGES);
    add("populate_exits", (memory.exits()? - exits) * TO_GIB);
    add("tables", tables().saturating_sub(before) * TO_GIB);
    if let (Some(none), Some(all)) = (none, memory.scan()?) {
        add("scan", all.saturating_sub(none));
    }
    add("log_on", memory.flags(LOG)?);
    add("log_get_none", memory.log()?.0);
    memory.touch(100, SIZE / 100 & !(PAGE - 1))?;
    let (time, count) = memory.log()?;
    if count != 100 {
        return Err(format!("{count} pages are dirty instead of 100"));
    }
    add("log_get_100", time);
    add("log_write", memory.touch(PAGES, PAGE)? / PAGES);
    add("log_get_all", memory.log()?.0);
    add("log_off", memory.flags(0)?);
    memory.touch(PAGES, PAGE)?;
    let begin = ticks();
    memory.advise(libc::MADV_DONTNEED);
    add("unmap", ticks() - begin);
    Ok(rows)
}
