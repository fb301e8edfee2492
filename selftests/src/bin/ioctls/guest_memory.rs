// SPDX-License-Identifier: GPL-2.0-only

//! What the host does to the memory behind a slot while a guest uses it: no guest may see a page
//! that its VMM has given up.

use selftests::kvm::Errno;
use selftests::memory::{Mapping, PAGE};
use selftests::tap::equal;

use crate::bare::{Bare, OUT};
use crate::{refused, Test};

pub(crate) const TESTS: &[Test] = &[
    ("a page that the VMM gave back reads as zero", given_back),
    (
        "a page that the VMM unmapped stops the guest with EFAULT",
        unmapped,
    ),
    (
        "a page that the VMM may not write stops a writing guest with EFAULT",
        protected,
    ),
    ("a page that the VMM replaced is seen at once", replaced),
    (
        "after fork, parent and child do not see each other's writes",
        forked,
    ),
    (
        "memory that the VMM's process writes is seen without flushing",
        written,
    ),
    ("large pages are split when a part of them goes", large),
    ("another process cannot run the virtual CPU", other_process),
];

/// 1: mov 0x4000, %al; out %al, $0x10; mov %al, 0x5000; out; jmp 1b
const READ_THEN_WRITE: [u8; 12] = [
    0xa0, 0, 0x40, OUT[0], OUT[1], 0xa2, 0, 0x50, OUT[0], OUT[1], 0xeb, 0xf4,
];

fn advise(ram: &Mapping, offset: usize, length: usize, advice: i32) -> Result<(), String> {
    // SAFETY: The pages are the mapping's own and no reference covers them.
    let answer = unsafe { libc::madvise(ram.start().add(offset).cast(), length, advice) };
    if answer == 0 {
        Ok(())
    } else {
        Err(format!("madvise: {:?}", Errno::last()))
    }
}

fn protect(ram: &Mapping, offset: usize, protection: i32) {
    // SAFETY: As above.
    let answer = unsafe { libc::mprotect(ram.start().add(offset).cast(), PAGE, protection) };
    assert_eq!(answer, 0);
}

fn given_back(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &READ_THEN_WRITE)?;
    bare.ram.write(0x4000, &[0x77]);
    equal("before", bare.byte(), Ok(0x77))?;
    bare.byte()?;
    advise(&bare.ram, 0x4000, PAGE, libc::MADV_DONTNEED)?;
    equal("after", bare.byte(), Ok(0))?;
    bare.ram.write(0x4000, &[0x78]);
    bare.byte()?;
    equal("new", bare.byte(), Ok(0x78))?;
    equal("the guest wrote", bare.ram.read(0x5000, 1)[0], 0)?;
    bare.byte()?;
    equal("what it read last", bare.ram.read(0x5000, 1)[0], 0x78)
}

fn unmapped(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &READ_THEN_WRITE)?;
    bare.byte()?;
    bare.byte()?;
    protect(&bare.ram, 0x4000, libc::PROT_NONE);
    refused("no access", bare.vcpu.run(), libc::EFAULT)?;
    refused("again", bare.vcpu.run(), libc::EFAULT)?;
    protect(&bare.ram, 0x4000, libc::PROT_READ | libc::PROT_WRITE);
    bare.ram.write(0x4000, &[0x66]);
    equal("it goes on where it was", bare.byte(), Ok(0x66))
}

fn protected(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &READ_THEN_WRITE)?;
    bare.ram.write(0x4000, &[1]);
    for _ in 0..2 {
        bare.byte()?;
    }
    protect(&bare.ram, 0x5000, libc::PROT_READ);
    bare.ram.write(0x4000, &[2]);
    equal("reading", bare.byte(), Ok(2))?;
    refused("writing", bare.vcpu.run(), libc::EFAULT)?;
    equal("nothing was written", bare.ram.read(0x5000, 1)[0], 1)?;
    protect(&bare.ram, 0x5000, libc::PROT_READ | libc::PROT_WRITE);
    bare.byte()?;
    equal("written now", bare.ram.read(0x5000, 1)[0], 2)
}

fn replaced(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &READ_THEN_WRITE)?;
    bare.ram.write(0x4000, &[0x11]);
    equal("before", bare.byte(), Ok(0x11))?;
    bare.byte()?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: Replaces a page of the mapping, which no reference covers.
    let page = unsafe {
        let start = bare.ram.start().add(0x4000).cast();
        libc::mmap(
            start,
            PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        )
    };
    assert_ne!(page, libc::MAP_FAILED);
    equal("another page", bare.byte(), Ok(0))?;
    bare.byte()?;
    bare.ram.write(0x4000, &[0x12]);
    equal("with its own content", bare.byte(), Ok(0x12))
}

/// Runs `child` in a child process; answers its status.
fn fork(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: The child only makes system calls and ends itself.
    match unsafe { libc::fork() } {
        0 => {
            let status = child();
            // SAFETY: Ends this process at once.
            unsafe { libc::_exit(status) }
        }
        child => {
            let mut status = 0;
            // SAFETY: The status is this function's own.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            libc::WEXITSTATUS(status)
        }
    }
}

fn forked(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &READ_THEN_WRITE)?;
    bare.ram.write(0x4000, &[0x21]);
    bare.ram.write(0x5000, &[0xee]);
    bare.byte()?;
    bare.byte()?; // the guest has written 0x5000, so the page is mapped writable
    let (mut ready, mut go) = ([0; 2], [0; 2]);
    // SAFETY: The arrays have room for two descriptors each.
    unsafe {
        libc::pipe(ready.as_mut_ptr());
        libc::pipe(go.as_mut_ptr());
    }
    let wait = |pipe: &[i32; 2]| {
        let mut byte = 0u8;
        // SAFETY: One byte into one byte.
        unsafe { libc::read(pipe[0], (&raw mut byte).cast(), 1) };
    };
    let tell = |pipe: &[i32; 2]| {
        // SAFETY: One byte from one byte.
        unsafe { libc::write(pipe[1], (&raw const ready).cast(), 1) };
    };
    // SAFETY: The child only makes system calls and ends itself.
    let child = unsafe { libc::fork() };
    if child == 0 {
        bare.ram.write(0x4000, &[0x99]);
        tell(&ready);
        wait(&go);
        let clean = bare.ram.read(0x5000, 1)[0] == 0x21;
        // SAFETY: Ends this process at once.
        unsafe { libc::_exit(i32::from(!clean)) }
    }
    wait(&ready);
    let mut outcome = equal("the child's write is not seen", bare.byte(), Ok(0x21));
    bare.ram.write(0x4000, &[0x22]);
    bare.byte()?;
    bare.byte()?;
    bare.byte()?; // writes 0x22 to 0x5000
    tell(&go);
    let mut status = 0;
    // SAFETY: The status is this function's own.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    if outcome.is_ok() {
        outcome = equal("the guest's write is not seen by the child", status, 0);
    }
    equal("but by the VMM", bare.ram.read(0x5000, 1)[0], 0x22)?;
    outcome
}

fn written(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &READ_THEN_WRITE)?;
    for value in 0..50 {
        bare.ram.write(0x4000, &[value]);
        equal("read", bare.byte(), Ok(value))?;
        bare.byte()?;
    }
    Ok(())
}

fn large(path: &str) -> Result<(), String> {
    const LARGE: usize = 2 << 20;
    // mov $0x8000, %ax; mov %ax, %ds; 1: mov 0, %al; out; mov 0x1000, %al; out; jmp 1b
    let code = [
        0xb8, 0, 0x80, 0x8e, 0xd8, 0xa0, 0, 0, OUT[0], OUT[1], 0xa0, 0, 0x10, OUT[0], OUT[1], 0xeb,
        0xf4,
    ];
    let bare = Bare::new(path, &code)?;
    bare.vm.set(
        selftests::kvm::number::SET_USER_MEMORY_REGION,
        &kvm_bindings::kvm_userspace_memory_region::default(),
    )?;
    // Aligned as the guest is, so that large pages can be used.
    let all = Mapping::anonymous(3 * LARGE).map_err(|e| e.to_string())?;
    let offset = (LARGE - all.start() as usize % LARGE) % LARGE;
    advise(&all, offset, LARGE, libc::MADV_HUGEPAGE)?;
    all.write(offset + 0x1000, &code);
    all.write(offset + 0x8_0000, &[0x31]);
    all.write(offset + 0x8_1000, &[0x32]);
    let region = kvm_bindings::kvm_userspace_memory_region {
        memory_size: LARGE as u64,
        userspace_addr: all.start() as u64 + offset as u64,
        ..Default::default()
    };
    bare.vm
        .set(selftests::kvm::number::SET_USER_MEMORY_REGION, &region)?;
    equal("first", bare.byte(), Ok(0x31))?;
    equal("second", bare.byte(), Ok(0x32))?;
    advise(&all, offset + 0x8_0000, PAGE, libc::MADV_DONTNEED)?;
    equal("the part that went", bare.byte(), Ok(0))?;
    equal("the part that stayed", bare.byte(), Ok(0x32))?;
    Ok(())
}

fn other_process(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &READ_THEN_WRITE)?;
    let errno = fork(|| bare.vcpu.run().err().map_or(0, |errno| errno.0));
    equal("the child's KVM_RUN", errno, libc::EIO)?;
    bare.byte()?;
    Ok(())
}
