// SPDX-License-Identifier: GPL-2.0-only

//! A system call, with each of the allocations and copies that the kernel does for it failing once:
//! the first, then the second, until it needs no more. On kernels with fault injection only
//! (Documentation/fault-injection in the kernel's tree): `make check-debug`.
//!
//! A call that loses an allocation must say ENOMEM or EFAULT, or do without; and the same call must
//! work when it is tried again.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::kvm::{Answer, Errno};
use crate::tap::equal;

const FAIL_NTH: &str = "/proc/thread-self/fail-nth";

/// Whether this kernel can inject faults.
pub fn available() -> bool {
    fs::exists(FAIL_NTH).unwrap_or(false)
}

/// Sets one of the files that say which allocations may fail.
fn set(file: &str, value: &str) -> Result<(), String> {
    fs::write(format!("/sys/kernel/debug/{file}"), value).map_err(|e| format!("{file}: {e}"))
}

/// Allocations that may sleep fail, too, single pages as well, and silently.
pub fn prepare() -> Result<(), String> {
    for (file, value) in [
        ("failslab/ignore-gfp-wait", "N"),
        ("failslab/verbose", "0"),
        ("fail_page_alloc/ignore-gfp-wait", "N"),
        ("fail_page_alloc/ignore-gfp-highmem", "N"),
        ("fail_page_alloc/min-order", "0"),
        ("fail_page_alloc/verbose", "0"),
        ("fail_usercopy/verbose", "0"),
    ] {
        set(file, value)?;
    }
    Ok(())
}

/// Only what this function of the kernel does, or calls, fails.
pub fn within(function: &str) -> Result<(), String> {
    let symbols = fs::read_to_string("/proc/kallsyms").map_err(|e| e.to_string())?;
    let mut lines = symbols
        .lines()
        .skip_while(|line| line.split(' ').nth(2) != Some(function));
    let mut address = || {
        let word = lines.next()?.split(' ').next()?;
        Some(format!("0x{word}"))
    };
    let (Some(start), Some(end)) = (address(), address()) else {
        return Err(format!("/proc/kallsyms does not list {function}"));
    };
    for what in ["failslab", "fail_page_alloc", "fail_usercopy"] {
        set(&format!("{what}/require-start"), &start)?;
        set(&format!("{what}/require-end"), &end)?;
    }
    Ok(())
}

/// Nothing here allocates as often.
const MOST: u32 = 2000;

/// For the first allocation, then the second, until the call needs no more: prepares something, and
/// calls `attempt` on it with this allocation failing. It then must succeed when it is called
/// again. Answers how often it failed.
pub fn each<S, T>(
    what: &str,
    mut prepare: impl FnMut() -> Result<S, String>,
    mut attempt: impl FnMut(&S) -> Answer<T>,
) -> Result<u32, String> {
    let control = File::options().read(true).write(true).open(FAIL_NTH);
    let control = control.map_err(|e| e.to_string())?;
    let mut failures = 0;
    for nth in 1..MOST {
        let subject = prepare()?;
        let mut left = [0; 16];
        control
            .write_at(nth.to_string().as_bytes(), 0)
            .map_err(|e| e.to_string())?;
        let answer = attempt(&subject);
        // These two copy, and may meet the fault that the ioctl left over.
        let read = control.read_at(&mut left, 0);
        let _ = control.write_at(b"0", 0);
        let injected = read.is_ok_and(|length| left[..length].starts_with(b"0"));
        match answer {
            Ok(_) if !injected => return Ok(failures),
            Ok(_) => {}
            Err(Errno(libc::ENOMEM | libc::EFAULT)) if injected => {
                failures += 1;
                attempt(&subject)
                    .map_err(|errno| format!("{what}, again after fault {nth}: {errno:?}"))?;
            }
            Err(errno) => {
                return Err(format!(
                    "{what}, fault {nth}, injected {injected}: {errno:?}"
                ))
            }
        }
    }
    Err(format!("{what}: no end of allocations"))
}

/// As [`each`], of a call that does allocate.
pub fn some<S, T>(
    what: &str,
    prepare: impl FnMut() -> Result<S, String>,
    attempt: impl FnMut(&S) -> Answer<T>,
) -> Result<(), String> {
    let failures = each(what, prepare, attempt)?;
    println!("# {what}: {failures} faults refused");
    equal("it failed at least once", failures > 0, true)
}
