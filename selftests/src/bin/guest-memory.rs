// SPDX-License-Identifier: GPL-2.0-only

//! Memory slots and what the host does to the memory behind them, seen by a guest.
//!
//! The guest is a handful of instructions in flat 32-bit mode that read and write where this
//! program tells them to. `guest-memory [--device PATH] [--seconds N]`

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use selftests::kvm::{number, Errno, Handle};
use selftests::machine::Vcpu;
use selftests::memory::PAGE;
use selftests::tap::{equal, Tap};

const EXIT_HLT: u32 = 5;
const EXIT_MMIO: u32 = 6;
const READ_ONLY: u32 = 1 << 1;
/// Where the guest's code is.
const CODE: u64 = 0x1000;
/// Where its data begin: on a boundary of 2 MiB.
const DATA: u64 = 0x4000_0000;
const LARGE: usize = 2 << 20;

type Outcome = Result<(), String>;

/// The guest's functions: offset and code. EDI is an address, ECX a count, EAX a value.
const STORE: (u64, &[u8]) = (0x00, &[0x89, 0x07, 0xf4]); // mov [edi], eax; hlt
const LOAD: (u64, &[u8]) = (0x10, &[0x8b, 0x07, 0xf4]); // mov eax, [edi]; hlt
/// Stores EAX in each of ECX pages.
const FILL: (u64, &[u8]) = (
    0x20,
    // again: mov [edi], eax; add edi, 4096; dec ecx; jnz again; hlt
    &[
        0x89, 0x07, 0x81, 0xc7, 0, 0x10, 0, 0, 0x49, 0x75, 0xf5, 0xf4,
    ],
);
/// Adds up the first words of ECX pages.
const SUM: (u64, &[u8]) = (
    0x40,
    // xor eax, eax; again: add eax, [edi]; add edi, 4096; dec ecx; jnz again; hlt
    &[
        0x31, 0xc0, 0x03, 0x07, 0x81, 0xc7, 0, 0x10, 0, 0, 0x49, 0x75, 0xf5, 0xf4,
    ],
);

/// User memory at a fixed place, so that it can be changed under the guest.
struct Area {
    start: *mut u8,
}

// SAFETY: It is plain memory, accessed by volatile reads and writes only.
unsafe impl Sync for Area {}

impl Area {
    /// Anonymous memory, aligned to 2 MiB.
    fn new(length: usize) -> Self {
        // SAFETY: A new mapping at an address of the kernel's choice.
        let all = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length + LARGE,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(all, libc::MAP_FAILED);
        let start = ((all as usize).next_multiple_of(LARGE)) as *mut u8;
        let area = Self { start };
        area.fresh(0, length);
        area
    }

    fn memory(&self) -> *mut u8 {
        self.start
    }

    /// Puts new, empty memory there.
    fn fresh(&self, offset: usize, length: usize) {
        self.place(offset, length, -1, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    }

    /// Maps a file there, or anonymous memory.
    fn place(&self, offset: usize, length: usize, file: i32, flags: i32) {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: The range is this object's own.
        let got = unsafe {
            let at = self.start.add(offset).cast();
            libc::mmap(at, length, protection, flags | libc::MAP_FIXED, file, 0)
        };
        assert_ne!(got, libc::MAP_FAILED);
    }

    fn unmap(&self, offset: usize, length: usize) {
        // SAFETY: The range is this object's own.
        let status = unsafe { libc::munmap(self.start.add(offset).cast(), length) };
        assert_eq!(status, 0);
    }

    fn protect(&self, offset: usize, length: usize, protection: i32) {
        // SAFETY: The range is this object's own.
        let done = unsafe { libc::mprotect(self.start.add(offset).cast(), length, protection) };
        assert_eq!(done, 0);
    }

    fn advise(&self, offset: usize, length: usize, advice: i32) -> i32 {
        // SAFETY: The range is this object's own.
        unsafe { libc::madvise(self.start.add(offset).cast(), length, advice) }
    }

    fn load(&self, offset: usize) -> u32 {
        // SAFETY: The range is this object's own.
        unsafe { self.start.add(offset).cast::<u32>().read_volatile() }
    }

    fn store(&self, offset: usize, value: u32) {
        // SAFETY: The range is this object's own.
        unsafe { self.start.add(offset).cast::<u32>().write_volatile(value) }
    }
}

/// A VM with one vCPU and its code; each test adds the memory that it is about.
struct Vm {
    vm: Handle,
    vcpu: Vcpu,
    _code: Area,
}

impl Vm {
    fn new(device: &Handle) -> Result<Self, String> {
        let vm = device.open_with(number::CREATE_VM, 0)?;
        let code = Area::new(PAGE);
        for (offset, bytes) in [STORE, LOAD, FILL, SUM] {
            for (i, &byte) in bytes.iter().enumerate() {
                // SAFETY: The code page has room.
                unsafe { code.start.add(offset as usize + i).write_volatile(byte) };
            }
        }
        let vcpu = Vcpu::create(device, &vm, 0)?;
        let mut sregs: kvm_sregs = vcpu.handle.get(number::GET_SREGS)?;
        let flat = kvm_segment {
            base: 0,
            limit: u32::MAX,
            present: 1,
            db: 1,
            s: 1,
            g: 1,
            type_: 3,
            selector: 0x10,
            ..Default::default()
        };
        sregs.cr0 |= 1;
        sregs.cs = kvm_segment {
            type_: 11,
            selector: 8,
            ..flat
        };
        (sregs.ds, sregs.es, sregs.ss) = (flat, flat, flat);
        vcpu.handle.set(number::SET_SREGS, &sregs)?;
        let vm = Self {
            vm,
            vcpu,
            _code: code,
        };
        vm.slot(0, 0, CODE, PAGE, vm._code.start)?;
        Ok(vm)
    }

    fn slot(
        &self,
        slot: u32,
        flags: u32,
        at: u64,
        size: usize,
        memory: *mut u8,
    ) -> Result<i32, Errno> {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: at,
            memory_size: size as u64,
            userspace_addr: memory as u64,
        };
        self.vm.set(number::SET_USER_MEMORY_REGION, &region)
    }

    /// An area as slot 1 at [`DATA`].
    fn with_data(&self, length: usize) -> Result<Area, String> {
        let area = Area::new(length);
        self.slot(1, 0, DATA, length, area.start)?;
        Ok(area)
    }

    /// Calls a function of the guest; its EAX, if it ran to its end.
    fn call(&self, function: (u64, &[u8]), at: u64, eax: u32, count: u32) -> Result<u32, String> {
        match self.exit(function, at, eax, count) {
            Ok(EXIT_HLT) => {
                let regs: kvm_regs = self.vcpu.handle.get(number::GET_REGS)?;
                Ok(regs.rax as u32)
            }
            Ok(reason) => Err(format!("exit {reason} instead of HLT, at {at:#x}")),
            Err(errno) => Err(format!("KVM_RUN at {at:#x}: {errno:?}")),
        }
    }

    /// The same, with the reason of the exit.
    fn exit(&self, function: (u64, &[u8]), at: u64, eax: u32, count: u32) -> Result<u32, Errno> {
        let regs = kvm_regs {
            rip: CODE + function.0,
            rdi: at,
            rax: eax.into(),
            rcx: count.into(),
            rflags: 2,
            ..Default::default()
        };
        self.vcpu.handle.set(number::SET_REGS, &regs)?;
        self.vcpu.run()?;
        Ok(self.vcpu.shared().exit_reason)
    }

    fn load(&self, at: u64) -> Result<u32, String> {
        self.call(LOAD, at, 0, 1)
    }

    fn store(&self, at: u64, value: u32) -> Outcome {
        self.call(STORE, at, value, 1).map(|_| ())
    }

    /// Ends an access to a device: the answer is in the shared page already.
    fn finish_access(&self) -> Outcome {
        self.vcpu.share(|run| run.immediate_exit = 1);
        let _ = self.vcpu.run();
        self.vcpu.share(|run| run.immediate_exit = 0);
        Ok(())
    }
}

fn refused(what: &str, got: Result<i32, Errno>, errno: i32) -> Outcome {
    equal(what, got, Err(Errno(errno)))
}

fn slot_rules(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    let area = Area::new(4 * PAGE);
    let (size, at) = (4 * PAGE, area.start);
    let odd = at.wrapping_add(8);
    let kernel = (1u64 << 63) as *mut u8;
    let most = device.extension(10) as u32; // KVM_CAP_NR_MEMSLOTS
    refused(
        "unknown flag",
        vm.slot(1, 1 << 7, DATA, size, at),
        libc::EINVAL,
    )?;
    refused(
        "odd address",
        vm.slot(1, 0, DATA + 8, size, at),
        libc::EINVAL,
    )?;
    refused("odd size", vm.slot(1, 0, DATA, size + 1, at), libc::EINVAL)?;
    refused("odd memory", vm.slot(1, 0, DATA, size, odd), libc::EINVAL)?;
    refused(
        "kernel memory",
        vm.slot(1, 0, DATA, size, kernel),
        libc::EINVAL,
    )?;
    refused(
        "wraps",
        vm.slot(1, 0, 0u64.wrapping_sub(PAGE as u64), 2 * PAGE, at),
        libc::EINVAL,
    )?;
    refused("too high", vm.slot(1, 0, 1 << 52, size, at), libc::EINVAL)?;
    refused(
        "slot too high",
        vm.slot(most, 0, DATA, size, at),
        libc::EINVAL,
    )?;
    // KVM_CAP_MULTI_ADDRESS_SPACE
    if device.extension(118) <= 1 {
        let other = vm.slot(1 << 16 | 1, 0, DATA, size, at);
        refused("address space", other, libc::EINVAL)?;
    }
    refused("delete nothing", vm.slot(1, 0, DATA, 0, at), libc::EINVAL)?;
    equal(
        "last slot",
        vm.slot(most - 1, 0, DATA + (1 << 30), size, at),
        Ok(0),
    )?;
    equal("create", vm.slot(1, 0, DATA, size, at), Ok(0))?;
    equal("the same again", vm.slot(1, 0, DATA, size, at), Ok(0))?;
    refused("resize", vm.slot(1, 0, DATA, 2 * PAGE, at), libc::EINVAL)?;
    refused(
        "other memory",
        vm.slot(1, 0, DATA, size, at.wrapping_add(PAGE)),
        libc::EINVAL,
    )?;
    refused(
        "becomes read-only",
        vm.slot(1, READ_ONLY, DATA, size, at),
        libc::EINVAL,
    )?;
    refused(
        "overlap",
        vm.slot(2, 0, DATA + 3 * PAGE as u64, PAGE, at),
        libc::EEXIST,
    )?;
    refused(
        "overlap all",
        vm.slot(2, 0, DATA - PAGE as u64, 6 * PAGE, at),
        libc::EEXIST,
    )?;
    equal(
        "neighbour",
        vm.slot(2, 0, DATA + size as u64, PAGE, at),
        Ok(0),
    )?;
    refused(
        "move onto it",
        vm.slot(1, 0, DATA + PAGE as u64, size, at),
        libc::EEXIST,
    )?;
    equal("move", vm.slot(1, 0, DATA - PAGE as u64, size, at), Ok(0))?;
    equal("delete", vm.slot(1, 0, 0, 0, std::ptr::null_mut()), Ok(0))?;
    refused(
        "delete again",
        vm.slot(1, 0, 0, 0, std::ptr::null_mut()),
        libc::EINVAL,
    )
}

fn reads_and_writes(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    let area = vm.with_data(64 * PAGE)?;
    area.store(5 * PAGE + 4, 0x1234);
    equal(
        "a word of ours",
        vm.load(DATA + 5 * PAGE as u64 + 4)?,
        0x1234,
    )?;
    vm.store(DATA + 9 * PAGE as u64, 0x5678)?;
    equal("a word of the guest's", area.load(9 * PAGE), 0x5678)?;
    vm.call(FILL, DATA, 3, 64)?;
    equal("the sum", vm.call(SUM, DATA, 0, 64)?, 192)?;
    for page in 0..64 {
        equal("a page", area.load(page * PAGE), 3)?;
    }
    Ok(())
}

fn slots_come_and_go(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    equal("no slot", vm.exit(LOAD, DATA, 0, 1), Ok(EXIT_MMIO))?;
    vm.finish_access()?;
    let area = vm.with_data(16 * PAGE)?;
    vm.call(FILL, DATA, 7, 16)?;
    vm.slot(1, 0, DATA + LARGE as u64, 16 * PAGE, area.start)?;
    equal("the old place", vm.exit(STORE, DATA, 0, 1), Ok(EXIT_MMIO))?;
    vm.finish_access()?;
    equal(
        "the new place",
        vm.call(SUM, DATA + LARGE as u64, 0, 16)?,
        112,
    )?;
    // Moved by less than its size.
    vm.slot(
        1,
        0,
        DATA + LARGE as u64 + PAGE as u64,
        16 * PAGE,
        area.start,
    )?;
    area.store(0, 1000);
    equal(
        "moved a little",
        vm.load(DATA + LARGE as u64 + PAGE as u64)?,
        1000,
    )?;
    vm.slot(1, 0, 0, 0, std::ptr::null_mut())?;
    equal(
        "deleted",
        vm.exit(LOAD, DATA + LARGE as u64 + PAGE as u64, 0, 1),
        Ok(EXIT_MMIO),
    )?;
    vm.finish_access()?;
    // Two slots, the same memory.
    vm.slot(1, 0, DATA, 16 * PAGE, area.start)?;
    vm.slot(2, 0, DATA + LARGE as u64, 16 * PAGE, area.start)?;
    vm.store(DATA + 8, 0xabc)?;
    equal("seen twice", vm.load(DATA + LARGE as u64 + 8)?, 0xabc)?;
    area.advise(0, 16 * PAGE, libc::MADV_DONTNEED);
    equal("gone once", vm.load(DATA + 8)?, 0)?;
    equal("gone twice", vm.load(DATA + LARGE as u64 + 8)?, 0)
}

fn read_only_slot(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    let area = Area::new(16 * PAGE);
    area.store(0, 0x11);
    vm.slot(1, READ_ONLY, DATA, 16 * PAGE, area.start)?;
    equal("read", vm.load(DATA)?, 0x11)?;
    equal("write", vm.exit(STORE, DATA, 0x22, 1), Ok(EXIT_MMIO))?;
    let run = vm.vcpu.shared();
    // SAFETY: The exit reason says that this is the one.
    let mmio = unsafe { run.__bindgen_anon_1.mmio };
    equal(
        "where",
        (mmio.phys_addr, mmio.len, mmio.is_write),
        (DATA, 4, 1),
    )?;
    vm.finish_access()?;
    equal("unchanged", area.load(0), 0x11)?;
    area.store(0, 0x33);
    equal("read again", vm.load(DATA)?, 0x33)
}

fn host_unmaps(device: &Handle) -> Outcome {
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

fn host_protects(device: &Handle) -> Outcome {
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

/// After a fork neither process sees what the other, or its guest, writes.
fn fork_copies(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    let area = vm.with_data(32 * PAGE)?;
    vm.call(FILL, DATA, 1, 32)?;
    let child = fork(|| {
        // The guest of the parent writes first.
        std::thread::sleep(Duration::from_millis(300));
        let sum: u32 = (0..32).map(|page| area.load(page * PAGE)).sum();
        (0..32).for_each(|page| area.store(page * PAGE, 100));
        let foreign = vm.exit(LOAD, DATA, 0, 1) == Err(Errno(libc::EIO));
        let region = vm.slot(5, 0, 0x10_0000, PAGE, area.start) == Err(Errno(libc::EIO));
        sum == 32 && foreign && region
    });
    vm.call(FILL, DATA, 2, 32)?;
    equal("ours", vm.call(SUM, DATA, 0, 32)?, 64)?;
    equal("the child saw its copy, and no VM", child.join(), true)?;
    equal("still ours", vm.call(SUM, DATA, 0, 32)?, 64)?;
    equal("our own view", area.load(31 * PAGE), 2)
}

/// The VM outlives the process whose memory it has.
fn owner_dies(device: &Handle) -> Outcome {
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

fn file_memory(device: &Handle) -> Outcome {
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

fn large_pages(device: &Handle) -> Outcome {
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

/// The guest writes all the time, and the host takes the memory away all the time.
fn under_fire(device: &Handle, time: Duration) -> Outcome {
    let vm = Vm::new(device)?;
    let pages = 1024;
    let area = vm.with_data(pages * PAGE)?;
    let other = Area::new(256 * PAGE);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let attacks = scope.spawn(|| {
            let mut round = 0usize;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let at = (round * 37 % 960) * PAGE;
                match round % 6 {
                    0 => drop(area.advise(at, 64 * PAGE, libc::MADV_DONTNEED)),
                    1 => area.fresh(at, 16 * PAGE),
                    2 => drop(area.advise(0, pages * PAGE, libc::MADV_HUGEPAGE)),
                    3 => drop(area.advise(at, 64 * PAGE, libc::MADV_COLD)),
                    4 => drop(area.advise(at, 64 * PAGE, libc::MADV_FREE)),
                    _ => drop(area.advise(at, 64 * PAGE, libc::MADV_PAGEOUT)),
                }
                let _ = vm.slot(2, 0, DATA + (16 << 20), 256 * PAGE, other.memory());
                let _ = vm.slot(2, 0, 0, 0, std::ptr::null_mut());
            }
            round
        });
        let begin = Instant::now();
        let mut result = Ok(0);
        let mut rounds = 0;
        while begin.elapsed() < time && result.is_ok() {
            rounds += 1;
            result = vm.call(FILL, DATA, rounds, pages as u32);
            if result.is_ok() {
                result = vm.call(SUM, DATA, 0, pages as u32);
            }
        }
        stop.store(true, Ordering::Relaxed);
        let attacks = attacks.join().map_err(|_| "the attacker panicked")?;
        println!("# {rounds} rounds of the guest, {attacks} of the host");
        result.map(|_| ())
    })?;
    vm.call(FILL, DATA, 9, pages as u32)?;
    for page in 0..pages {
        equal("a page in the end", area.load(page * PAGE), 9)?;
    }
    Ok(())
}

fn many_slots(device: &Handle) -> Outcome {
    let vm = Vm::new(device)?;
    let most = (device.extension(10) as u32).min(512);
    let area = Area::new(PAGE * most as usize);
    let place = |slot: u32| DATA + 2 * PAGE as u64 * u64::from(slot * 211 % most);
    for slot in 1..most {
        vm.slot(
            slot,
            0,
            place(slot),
            PAGE,
            area.start.wrapping_add(slot as usize * PAGE),
        )?;
    }
    for slot in 1..most {
        area.store(slot as usize * PAGE, slot);
        equal("a slot's word", vm.load(place(slot))?, slot)?;
    }
    area.advise(7 * PAGE, PAGE, libc::MADV_DONTNEED);
    equal("one forgotten", vm.load(place(7))?, 0)?;
    equal("its neighbour", vm.load(place(8))?, 8)?;
    for slot in (1..most).step_by(2) {
        vm.slot(slot, 0, 0, 0, std::ptr::null_mut())?;
    }
    equal("deleted", vm.exit(LOAD, place(9), 0, 1), Ok(EXIT_MMIO))?;
    vm.finish_access()?;
    equal("not deleted", vm.load(place(10))?, 10)
}

struct Child(i32);

/// Runs `f` in a child.
fn fork(f: impl FnOnce() -> bool) -> Child {
    // SAFETY: This program has no other threads when it forks.
    match unsafe { libc::fork() } {
        0 => {
            let status = i32::from(!f());
            // SAFETY: Ends the child without the parent's destructors.
            unsafe { libc::_exit(status) }
        }
        pid => Child(pid),
    }
}

impl Child {
    fn join(self) -> bool {
        let mut status = -1;
        // SAFETY: The status is written to our variable.
        unsafe { libc::waitpid(self.0, &mut status, 0) == self.0 && status == 0 }
    }
}

fn main() -> ExitCode {
    let mut device = std::env::var("DEVICE").unwrap_or_else(|_| "/dev/pacifica".into());
    let mut seconds = 3;
    let mut words = std::env::args().skip(1);
    while let (Some(word), Some(value)) = (words.next(), words.next()) {
        match word.as_str() {
            "--device" => device = value,
            _ => seconds = value.parse().unwrap_or(seconds),
        }
    }
    let mut tap = Tap::start();
    let device = match Handle::open(&device) {
        Ok(device) => device,
        Err(error) => {
            tap.result("open the device", Err(error.to_string()));
            return tap.finish();
        }
    };
    type Test = fn(&Handle) -> Outcome;
    let tests: [(&str, Test); 10] = [
        ("the rules of slots", slot_rules),
        ("reads and writes", reads_and_writes),
        ("slots come and go", slots_come_and_go),
        ("a read-only slot", read_only_slot),
        ("the host unmaps", host_unmaps),
        ("the host protects", host_protects),
        ("a fork copies", fork_copies),
        ("the owner dies before the VM", owner_dies),
        ("memory of a file", file_memory),
        ("many slots", many_slots),
    ];
    for (name, test) in tests {
        tap.result(name, test(&device));
    }
    tap.result("large pages", large_pages(&device));
    tap.result(
        "under fire",
        under_fire(&device, Duration::from_secs(seconds)),
    );
    tap.finish()
}
