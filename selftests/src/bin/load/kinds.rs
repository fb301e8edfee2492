// SPDX-License-Identifier: GPL-2.0-only

//! The kinds of load.

use std::arch::asm;
use std::time::{Duration, Instant};

use crate::partner::Partner;

/// One kind: a round of it takes a fraction of a millisecond.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) round: fn(usize, &Partner) -> Result<(), String>,
}

pub(crate) const KINDS: [Kind; 7] = [
    Kind {
        name: "memory",
        round: memory,
    },
    Kind {
        name: "fork",
        round: fork,
    },
    Kind {
        name: "pipe",
        round: |_, partner| partner.echo(),
    },
    Kind {
        name: "futex",
        round: |_, partner| partner.take_turns(),
    },
    Kind {
        name: "signal",
        round: |_, partner| partner.signal(),
    },
    Kind {
        name: "timer",
        round: timer,
    },
    Kind {
        name: "vector",
        round: vector,
    },
];

const PAGE: usize = 4096;
const PAGES: usize = 32;

/// Anonymous memory that is this value's alone.
struct Pages(*mut u64);

impl Pages {
    fn new() -> Result<Self, String> {
        let usable = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: A new mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), PAGES * PAGE, usable, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().to_string());
        }
        Ok(Self(at.cast()))
    }

    fn words(&mut self) -> impl Iterator<Item = &mut u64> {
        // SAFETY: The mapping has this size, lives as long as this value, and is not shared.
        let all = unsafe { std::slice::from_raw_parts_mut(self.0, PAGES * PAGE / 8) };
        all.iter_mut().step_by(PAGE / 8)
    }

    fn protect(&self, protection: i32) {
        // SAFETY: This value's own mapping.
        unsafe { libc::mprotect(self.0.cast(), PAGES * PAGE, protection) };
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: This value's own mapping, to which nothing refers any more.
        unsafe { libc::munmap(self.0.cast(), PAGES * PAGE) };
    }
}

/// Pages are made, protected, read again and given back. All threads share their page tables, so
/// each step is flushed on all CPUs.
fn memory(cpu: usize, _: &Partner) -> Result<(), String> {
    let mut pages = Pages::new()?;
    let mark = (cpu as u64 + 1) << 32;
    for (number, word) in pages.words().enumerate() {
        if *word != 0 {
            return Err(format!("a new page has {:#x}", *word));
        }
        *word = mark + number as u64;
    }
    pages.protect(libc::PROT_READ);
    pages.protect(libc::PROT_READ | libc::PROT_WRITE);
    for (number, word) in pages.words().enumerate() {
        if *word != mark + number as u64 {
            return Err(format!("page {number} has {:#x}", *word));
        }
    }
    Ok(())
}

/// A child writes to its copy of a page, and ends with a status.
fn fork(cpu: usize, _: &Partner) -> Result<(), String> {
    let mut pages = Pages::new()?;
    pages.words().for_each(|word| *word = 1);
    // SAFETY: The child writes to its own memory and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        pages.words().for_each(|word| *word += 1);
        let sum: u64 = pages.words().map(|word| *word).sum();
        // SAFETY: Ends the child at once.
        unsafe {
            libc::_exit(if sum == 2 * PAGES as u64 {
                cpu as i32
            } else {
                99
            })
        }
    }
    let mut status = 0;
    // SAFETY: The kernel writes to this function's own memory.
    while child > 0 && unsafe { libc::waitpid(child, &raw mut status, 0) } < 0 {}
    if child < 0 || status != (cpu as i32) << 8 {
        return Err(format!("child {child}, status {status:#x}"));
    }
    if pages.words().any(|word| *word != 1) {
        return Err("the child wrote to its parent".into());
    }
    Ok(())
}

/// A sleep is not shorter than asked for.
fn timer(_: usize, _: &Partner) -> Result<(), String> {
    let wanted = Duration::from_micros(300);
    let start = Instant::now();
    std::thread::sleep(wanted);
    let slept = start.elapsed();
    if slept < wanted {
        return Err(format!("a sleep of {wanted:?} took {slept:?}"));
    }
    Ok(())
}

/// Vector registers survive other threads, and the hypervisor.
fn vector(cpu: usize, _: &Partner) -> Result<(), String> {
    let mut bytes = [0u64; 4];
    let value = 0x1111_1111_1111_1111 * (cpu as u64 + 1);
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: AVX2 is there; the registers are said to change, and `bytes` is written alone.
        unsafe {
            asm!(
                "vmovq xmm15, {value}", "vpbroadcastq ymm15, xmm15",
                "syscall",
                "vmovdqu [{bytes}], ymm15",
                value = in(reg) value, bytes = in(reg) bytes.as_mut_ptr(),
                inlateout("rax") libc::SYS_sched_yield => _,
                out("rcx") _, out("r11") _, out("xmm15") _,
            );
        }
    } else {
        // SAFETY: SSE2 is part of the architecture; as above.
        unsafe {
            asm!(
                "movq xmm15, {value}", "punpcklqdq xmm15, xmm15",
                "syscall",
                "movdqu [{bytes}], xmm15", "movdqu [{bytes} + 16], xmm15",
                value = in(reg) value, bytes = in(reg) bytes.as_mut_ptr(),
                inlateout("rax") libc::SYS_sched_yield => _,
                out("rcx") _, out("r11") _, out("xmm15") _,
            );
        }
    }
    if bytes != [value; 4] {
        return Err(format!("{bytes:x?} in place of {value:#x}"));
    }
    Ok(())
}
