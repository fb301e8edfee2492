// SPDX-License-Identifier: GPL-2.0-only

//! What the host does to the memory of a guest, on behalf of the process that has it.

use std::time::Duration;

use selftests::kvm::{Errno, Handle};
use selftests::machine::with_signals;
use selftests::memory::{meminfo, PAGE};
use selftests::patience::until;
use selftests::tap::equal;

use crate::guest::*;

pub(crate) fn unmaps(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    let area = vm.with_data(32 * PAGE)?;
    vm.call(FILL, DATA, 1, 32)?;
    area.unmap(8 * PAGE, PAGE);
    let gone = DATA + 8 * PAGE as u64;
    equal("read", vm.exit(LOAD, gone, 0, 1), Err(Errno(libc::EFAULT)))?;
    equal(
        "write",
        vm.exit(STORE, gone, 0, 1),
        Err(Errno(libc::EFAULT)),
    )?;
    equal("neighbour", vm.load(gone + PAGE as u64)?, 1)?;
    area.fresh(8 * PAGE, PAGE);
    equal("new memory", vm.load(gone)?, 0)?;
    area.advise(0, 32 * PAGE, libc::MADV_DONTNEED);
    equal("all forgotten", vm.call(SUM, DATA, 0, 32)?, 0)
}

pub(crate) fn protects(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    let area = vm.with_data(32 * PAGE)?;
    vm.call(FILL, DATA, 1, 32)?;
    area.protect(0, 32 * PAGE, libc::PROT_READ);
    equal(
        "write",
        vm.exit(STORE, DATA, 2, 1),
        Err(Errno(libc::EFAULT)),
    )?;
    equal("read", vm.call(SUM, DATA, 0, 32)?, 32)?;
    equal("unchanged", area.load(0), 1)?;
    area.protect(0, 32 * PAGE, libc::PROT_NONE);
    equal(
        "no access",
        vm.exit(LOAD, DATA, 0, 1),
        Err(Errno(libc::EFAULT)),
    )?;
    area.protect(0, 32 * PAGE, libc::PROT_READ | libc::PROT_WRITE);
    vm.store(DATA, 2)?;
    equal("written", area.load(0), 2)
}

/// The host takes pages back one at a time, in any order: the tables go with the last of theirs.
pub(crate) fn tables(device: &Handle) -> Outcome {
    const PAGES: usize = 16 << 10;
    let vm = Vm::new(device)?;
    let area = Area::new(PAGES * PAGE);
    area.advise(0, PAGES * PAGE, libc::MADV_NOHUGEPAGE);
    vm.slot(1, 0, DATA, PAGES * PAGE, area.start)?;
    let kilobytes = || {
        // Reading it adds up what each CPU has counted.
        let _ = std::fs::read("/proc/sys/vm/stat_refresh");
        meminfo("SecPageTables")
    };
    let before = kilobytes();
    vm.call(FILL, DATA, 1, PAGES as u32)?;
    let full = kilobytes();
    for index in 0..PAGES {
        area.advise(index * 4099 % PAGES * PAGE, PAGE, libc::MADV_DONTNEED);
    }
    let after = kilobytes();
    println!("# tables: {before} KiB, {full} KiB with all pages, {after} KiB without");
    // One for each 2 MiB, of 4 KiB; some for other guests may have come or gone.
    let all = (PAGES / 512 * 4) as i64;
    equal("many tables", full - before >= all / 2, true)?;
    equal("they went", full - after >= all / 2, true)?;
    equal("all empty", vm.call(SUM, DATA, 0, PAGES as u32)?, 0)
}

/// After a fork neither process sees what the other, or its guest, writes.
pub(crate) fn fork_copies(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    let area = vm.with_data(32 * PAGE)?;
    vm.call(FILL, DATA, 1, 32)?;
    // SAFETY: The call takes no pointer.
    let written = unsafe { libc::eventfd(0, 0) };
    let child = fork(|| {
        // The guest of the parent writes first.
        let mut count = 0u64;
        // SAFETY: Eight bytes of this function's own.
        unsafe { libc::read(written, (&raw mut count).cast(), 8) };
        let sum: u32 = (0..32).map(|page| area.load(page * PAGE)).sum();
        (0..32).for_each(|page| area.store(page * PAGE, 100));
        let foreign = vm.exit(LOAD, DATA, 0, 1) == Err(Errno(libc::EIO));
        let region = vm.slot(5, 0, 0x10_0000, PAGE, area.start) == Err(Errno(libc::EIO));
        sum == 32 && foreign && region
    });
    let ours = vm
        .call(FILL, DATA, 2, 32)
        .and_then(|_| vm.call(SUM, DATA, 0, 32));
    let one = 1u64;
    // SAFETY: Eight bytes of this function's own, and a descriptor that is not used any more.
    unsafe {
        libc::write(written, (&raw const one).cast(), 8);
        libc::close(written);
    }
    equal("ours", ours, Ok(64))?;
    equal("the child saw its copy, and no VM", child.join(), true)?;
    equal("still ours", vm.call(SUM, DATA, 0, 32)?, 64)?;
    equal("our own view", area.load(31 * PAGE), 2)
}

/// The VM outlives the process whose memory it has.
pub(crate) fn owner_dies(device: &Handle) -> Outcome {
    let mut pair = [0; 2];
    // SAFETY: The array has room for both.
    let status =
        unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr()) };
    assert_eq!(status, 0);
    let outer = fork(|| {
        let Ok(vm) = Vm::new(device) else {
            return false;
        };
        let Ok(area) = vm.with_data(64 * PAGE) else {
            return false;
        };
        let ran = vm.call(FILL, DATA, 1, 64).is_ok();
        let heir = fork(|| {
            let mut byte = [0u8];
            // SAFETY: One byte is written to the array. It ends when the owner is gone.
            unsafe {
                libc::close(pair[1]);
                libc::read(pair[0], byte.as_mut_ptr().cast(), 1);
            }
            let refused = vm.exit(LOAD, DATA, 0, 1) == Err(Errno(libc::EIO));
            let slot = vm.slot(1, 0, 0, 0, area.start) == Err(Errno(libc::EIO));
            // SAFETY: Any descriptor may be closed.
            unsafe { libc::close(pair[0]) };
            refused && slot
        });
        // Nobody waits for it: it outlives this process.
        let _ = heir;
        ran
    });
    equal("the owner ran", outer.join(), true)?;
    // SAFETY: As above: the heir closes its end when it is done.
    unsafe {
        libc::close(pair[1]);
        let mut byte = [0u8];
        libc::read(pair[0], byte.as_mut_ptr().cast(), 1);
        libc::close(pair[0]);
    }
    Ok(())
}

pub(crate) fn file(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    // SAFETY: The name is a C string.
    let file = unsafe { libc::memfd_create(c"guest".as_ptr(), 0) };
    // SAFETY: Plain system calls on our own file.
    assert_eq!(unsafe { libc::ftruncate(file, 32 * PAGE as i64) }, 0);
    let (area, twin) = (Area::new(32 * PAGE), Area::new(32 * PAGE));
    area.place(0, 32 * PAGE, file, libc::MAP_SHARED);
    twin.place(0, 32 * PAGE, file, libc::MAP_SHARED);
    vm.slot(1, 0, DATA, 32 * PAGE, area.start)?;
    equal("empty", vm.call(SUM, DATA, 0, 32)?, 0)?;
    vm.call(FILL, DATA, 4, 32)?;
    equal("another view", twin.load(31 * PAGE), 4)?;
    twin.store(8 * PAGE, 5);
    equal("a write of ours", vm.load(DATA + 8 * PAGE as u64)?, 5)?;
    // SAFETY: As above.
    assert_eq!(unsafe { libc::ftruncate(file, 8 * PAGE as i64) }, 0);
    let gone = DATA + 8 * PAGE as u64;
    equal(
        "truncated",
        vm.exit(LOAD, gone, 0, 1),
        Err(Errno(libc::EFAULT)),
    )?;
    equal("what is left", vm.call(SUM, DATA, 0, 8)?, 32)?;
    // SAFETY: As above.
    assert_eq!(unsafe { libc::ftruncate(file, 32 * PAGE as i64) }, 0);
    equal("grown again", vm.load(gone)?, 0)?;
    // SAFETY: The descriptor is ours.
    unsafe { libc::close(file) };
    Ok(())
}

pub(crate) fn large_pages(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    let size = 8 * LARGE;
    let area = vm.with_data(size)?;
    area.advise(0, size, libc::MADV_HUGEPAGE);
    let pages = (size / PAGE) as u32;
    vm.call(FILL, DATA, 1, pages)?;
    equal("all", vm.call(SUM, DATA, 0, pages)?, pages)?;
    // A hole in the middle of a large page, and one at the edge of another.
    area.advise(LARGE + 77 * PAGE, PAGE, libc::MADV_DONTNEED);
    area.advise(3 * LARGE - PAGE, 2 * PAGE, libc::MADV_DONTNEED);
    equal("three holes", vm.call(SUM, DATA, 0, pages)?, pages - 3)?;
    equal("the hole", vm.load(DATA + (LARGE + 77 * PAGE) as u64)?, 0)?;
    vm.call(FILL, DATA, 2, pages)?;
    equal("all again", vm.call(SUM, DATA, 0, pages)?, 2 * pages)?;
    equal("our view", area.load(LARGE + 77 * PAGE), 2)?;
    // Not aligned to each other: small pages only.
    vm.slot(2, 0, DATA + (64 << 20) + PAGE as u64, LARGE, area.start)?;
    equal("shifted", vm.load(DATA + (64 << 20) + PAGE as u64)?, 2)
}

/// `MADV_COLLAPSE`: the host makes a large page of small ones under the guest.
pub(crate) fn collapse(device: &Handle) -> Outcome {
    const MADV_COLLAPSE: i32 = 25;
    let vm = Vm::new(device)?;
    let area = vm.with_data(2 * LARGE)?;
    let pages = (2 * LARGE / PAGE) as u32;
    area.advise(0, 2 * LARGE, libc::MADV_NOHUGEPAGE);
    vm.call(FILL, DATA, 3, pages)?;
    area.advise(0, 2 * LARGE, libc::MADV_HUGEPAGE);
    equal("collapse", area.advise(0, 2 * LARGE, MADV_COLLAPSE), 0)?;
    equal("the same", vm.call(SUM, DATA, 0, pages)?, 3 * pages)?;
    vm.call(FILL, DATA, 4, pages)?;
    equal("our view", area.load(LARGE + 9 * PAGE), 4)?;
    area.advise(LARGE, PAGE, libc::MADV_DONTNEED);
    equal("a hole", vm.call(SUM, DATA, 0, pages)?, 4 * pages - 4)
}

/// Pages that the host has merged because they are equal part again when the guest writes.
pub(crate) fn merges_equal_pages(device: &Handle) -> Outcome {
    let setting = |name: &str, value: &str| {
        std::fs::write(format!("/sys/kernel/mm/ksm/{name}"), value).map_err(|e| e.to_string())
    };
    let sharing = || -> usize {
        let text = std::fs::read_to_string("/sys/kernel/mm/ksm/pages_sharing");
        text.ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    };
    let vm = Vm::new(device)?;
    let area = vm.with_data(64 * PAGE)?;
    vm.call(FILL, DATA, 5, 64)?;
    area.advise(0, 64 * PAGE, libc::MADV_MERGEABLE);
    setting("pages_to_scan", "1000")?;
    setting("sleep_millisecs", "5")?;
    setting("run", "1")?;
    until("the pages share one", || sharing() >= 60)?;
    println!("# {} pages share one", sharing());
    setting("run", "0")?;
    equal("read", vm.call(SUM, DATA, 0, 64)?, 320)?;
    vm.store(DATA + 7 * PAGE as u64, 6)?;
    equal("only one changed", vm.call(SUM, DATA, 0, 64)?, 321)?;
    equal(
        "our view",
        (area.load(6 * PAGE), area.load(7 * PAGE)),
        (5, 6),
    )?;
    setting("run", "2")
}

/// A page that only comes when another thread brings it: a signal ends the wait, and so does the
/// page.
pub(crate) fn awaited_page(device: &Handle) -> Outcome {
    const USERFAULTFD_API: u64 = 0xc018_aa3f;
    const USERFAULTFD_REGISTER: u64 = 0xc020_aa00;
    const USERFAULTFD_ZEROPAGE: u64 = 0xc020_aa04;
    selftests::machine::catch_interruptions();
    let vm = Vm::new(device)?;
    let area = vm.with_data(16 * PAGE)?;
    // SAFETY: A plain system call.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, 0) as i32 };
    let call = |number: u64, words: &mut [u64]| {
        // SAFETY: The structures have the sizes that their numbers say.
        unsafe { libc::ioctl(fd, number, words.as_mut_ptr()) }
    };
    equal("the interface", call(USERFAULTFD_API, &mut [0xaa, 0, 0]), 0)?;
    let mut range = [area.memory() as u64, 16 * PAGE as u64, 1, 0];
    equal("missing pages", call(USERFAULTFD_REGISTER, &mut range), 0)?;
    let interrupted = with_signals(Duration::from_millis(300), || vm.exit(LOAD, DATA, 1, 1));
    equal("interrupted", interrupted, Err(Errno(libc::EINTR)))?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            let mut zero = [area.memory() as u64, 16 * PAGE as u64, 0, 0];
            call(USERFAULTFD_ZEROPAGE, &mut zero);
        });
        equal("brought", vm.load(DATA), Ok(0))
    })?;
    vm.store(DATA + PAGE as u64, 7)?;
    equal("written", area.load(PAGE), 7)?;
    // SAFETY: The descriptor is ours.
    unsafe { libc::close(fd) };
    Ok(())
}

/// Memory that has no `struct page`: the ROM of the machine's firmware, and what comes in its
/// place.
pub(crate) fn frames(device: &Handle) -> Outcome {
    const ROM: i64 = 0xf_0000;
    let vm = Vm::new(device)?;
    let area = vm.with_data(32 * PAGE)?;
    // SAFETY: The name is a C string.
    let file = unsafe { libc::open(c"/dev/mem".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    equal("/dev/mem", file >= 0, true)?;
    let map = |pages: usize, protection: i32| {
        // SAFETY: The range is the area's own.
        let got = unsafe {
            let (at, flags) = (area.memory().cast(), libc::MAP_SHARED | libc::MAP_FIXED);
            libc::mmap(at, pages * PAGE, protection, flags, file, ROM)
        };
        equal("map the ROM", got == libc::MAP_FAILED, false)
    };
    map(16, libc::PROT_READ | libc::PROT_WRITE)?;
    for page in [15, 0, 7] {
        let seen = vm.load(DATA + (page * PAGE) as u64)?;
        equal("the ROM", seen, area.load(page * PAGE))?;
    }
    // The last bytes are the reset vector: a jump.
    let vector = vm.load(DATA + 16 * PAGE as u64 - 16)?;
    equal("the reset vector", vector & 0xff, 0xea)?;
    equal("beside it", vm.load(DATA + 16 * PAGE as u64)?, 0)?;
    vm.store(
        DATA + 16 * PAGE as u64 - 64,
        vm.load(DATA + 16 * PAGE as u64 - 64)?,
    )?;
    // The process may write there, but the guest of a read-only slot may not.
    let rom = DATA + 32 * PAGE as u64;
    vm.slot(2, READ_ONLY, rom, 16 * PAGE, area.start)?;
    equal("read", vm.load(rom)?, area.load(0))?;
    equal(
        "a write there exits",
        vm.exit(STORE, rom, 1, 1),
        Ok(EXIT_MMIO),
    )?;
    vm.finish_access()?;
    map(8, libc::PROT_READ)?;
    let write = vm.exit(STORE, DATA, 1, 1);
    if write == Ok(EXIT_MMIO) {
        // KVM treats it as a read-only slot.
        vm.finish_access()?;
    } else {
        refused("not writable", write.map(|_| 0), libc::EFAULT)?;
    }
    equal("but readable", vm.load(DATA)?, area.load(0))?;
    area.fresh(0, 16 * PAGE);
    equal("memory in its place", vm.call(SUM, DATA, 0, 32)?, 0)?;
    vm.call(FILL, DATA, 1, 32)?;
    equal("its own", area.load(15 * PAGE), 1)?;
    map(1, libc::PROT_READ)?;
    area.unmap(0, PAGE);
    refused("gone", vm.exit(LOAD, DATA, 0, 1).map(|_| 0), libc::EFAULT)?;
    // SAFETY: The descriptor is ours.
    unsafe { libc::close(file) };
    Ok(())
}
