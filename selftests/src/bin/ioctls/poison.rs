// SPDX-License-Identifier: GPL-2.0-only

//! Memory of the process that the host has lost (`madvise` with `MADV_HWPOISON` makes some): the
//! thread in KVM_RUN hears of it by SIGBUS, as if it had touched it itself, and the guest goes on
//! when there is another page.

use std::fs;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};

use kvm_bindings::*;
use selftests::kvm::number;
use selftests::memory::PAGE;
use selftests::snapshot::Snapshot;
use selftests::tap::{equal, skipped};

use crate::bare::{Bare, CODE, OUT};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    (
        "poisoned memory that a guest reads is SIGBUS, and it goes on with another page",
        read_by_the_guest,
    ),
    (
        "poisoned memory that the emulator reads is SIGBUS, too",
        read_by_the_emulator,
    ),
    (
        "poisoned memory that a guest writes beside a snapshot is SIGBUS, too",
        written_beside_a_snapshot,
    ),
    ("SIGBUS tells how much of a large page is lost", large_page),
    (
        "KVM_PRE_FAULT_MEMORY of poisoned memory is SIGBUS, behind what could be mapped",
        pre_faulted,
    ),
];

/// Where the guest has the page that is lost.
const LOST: u64 = 0x5000;
/// 1: mov 0x5000, %al; out %al, $0x10; jmp 1b
const READ: [u8; 7] = [0xa0, 0x00, 0x50, OUT[0], OUT[1], 0xeb, 0xf9];
/// 1: mov %al, 0x5000; mov 0x5000, %al; out %al, $0x10; jmp 1b
const WRITE: [u8; 10] = [
    0xa2, 0x00, 0x50, 0xa0, 0x00, 0x50, OUT[0], OUT[1], 0xeb, 0xf6,
];
/// mov $0x10, %dx; 1: mov $0x5000, %si; outsb; jmp 1b
const OUTSB: [u8; 9] = [0xba, 0x10, 0x00, 0xbe, 0x00, 0x50, 0x6e, 0xeb, 0xfa];
/// How the kernel says that an access met memory that is lost, in `si_code`.
const BUS_MCEERR_AR: u32 = 4;

static SIGNALS: AtomicU32 = AtomicU32::new(0);
static CODE_SEEN: AtomicU32 = AtomicU32::new(0);
static ADDRESS: AtomicUsize = AtomicUsize::new(0);
static SHIFT: AtomicU32 = AtomicU32::new(0);

extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    /// Behind the address, in `siginfo_t`.
    const ADDR_LSB: usize = 24;
    // SAFETY: The kernel gives a valid siginfo_t, whose fields for SIGBUS are these.
    let (code, address, shift) = unsafe {
        let shift = info.cast::<u8>().add(ADDR_LSB).cast::<i16>().read();
        ((*info).si_code, (*info).si_addr() as usize, shift)
    };
    CODE_SEEN.store(code as u32, SeqCst);
    ADDRESS.store(address, SeqCst);
    SHIFT.store(shift as u32, SeqCst);
    SIGNALS.fetch_add(1, SeqCst);
}

/// From here on SIGBUS is counted.
fn watch() {
    // SAFETY: The handler only stores into atomics.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &action, ptr::null_mut());
    }
}

/// Has the host lose the memory of this process at `address`.
fn poison(address: *mut u8, length: usize) -> Result<(), String> {
    watch();
    // SAFETY: The range is the test's own mapping.
    let lost = unsafe { libc::madvise(address.cast(), length, libc::MADV_HWPOISON) };
    match lost {
        0 => {
            // The kernel may tell already.
            SIGNALS.store(0, SeqCst);
            Ok(())
        }
        _ => skipped("this kernel cannot lose memory on demand"),
    }
}

/// The guest meets the lost memory at `address` of this process.
fn meets(bare: &Bare, address: *mut u8, shift: u32) -> Result<(), String> {
    for times in 1..3 {
        let result = bare.vcpu.handle.call(number::RUN, 0);
        equal("KVM_RUN", result.map_err(|e| e.0), Err(libc::EINTR))?;
        equal("signals", SIGNALS.load(SeqCst), times)?;
        equal("si_code", CODE_SEEN.load(SeqCst), BUS_MCEERR_AR)?;
        equal("si_addr", ADDRESS.load(SeqCst), address as usize)?;
        equal("si_addr_lsb", SHIFT.load(SeqCst), shift)?;
    }
    Ok(())
}

fn replace(address: *mut u8, byte: u8) {
    // SAFETY: The page is the test's own, and the guest's; no reference covers it.
    unsafe {
        libc::mmap(
            address.cast(),
            PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        );
        address.write(byte);
    }
}

fn lost_and_replaced(path: &str, code: &[u8]) -> Result<(), String> {
    let bare = Bare::new(path, code)?;
    bare.ram.write(LOST as usize, &[0x11]);
    equal("before", bare.byte()?, 0x11)?;
    // SAFETY: It is within the mapping.
    let address = unsafe { bare.ram.start().add(LOST as usize) };
    poison(address, PAGE)?;
    meets(&bare, address, 12)?;
    replace(address, 0x22);
    equal("afterwards", bare.byte()?, 0x22)?;
    equal("signals", SIGNALS.load(SeqCst), 2)
}

fn read_by_the_guest(path: &str) -> Result<(), String> {
    lost_and_replaced(path, &READ)
}

fn read_by_the_emulator(path: &str) -> Result<(), String> {
    if path.ends_with("kvm") {
        return skipped("KVM takes such memory for a device");
    }
    lost_and_replaced(path, &OUTSB)
}

/// The old content is to be kept, and cannot be read.
fn written_beside_a_snapshot(path: &str) -> Result<(), String> {
    if path.ends_with("kvm") {
        return skipped("KVM has no snapshots");
    }
    let bare = Bare::new(path, &WRITE)?;
    bare.ram.write(LOST as usize, &[0x11]);
    let before = bare.byte()?;
    let snapshot = Snapshot::create(&bare.vm, 1 << 20)?;
    // SAFETY: It is within the mapping.
    let address = unsafe { bare.ram.start().add(LOST as usize) };
    poison(address, PAGE)?;
    meets(&bare, address, 12)?;
    replace(address, 0x22);
    equal("afterwards", bare.byte()?, before)?;
    snapshot.reset(0)?;
    equal("put back", bare.ram.read(LOST as usize, 1), vec![0x22])
}

fn pre_faulted(path: &str) -> Result<(), String> {
    let bare = Bare::new(path, &READ)?;
    if bare.device.extension(KVM_CAP_PRE_FAULT_MEMORY) == 0 {
        return skipped("the device has no KVM_PRE_FAULT_MEMORY");
    }
    bare.ram.write(LOST as usize - PAGE, &[0x11; 2 * PAGE]);
    // SAFETY: It is within the mapping.
    let address = unsafe { bare.ram.start().add(LOST as usize) };
    poison(address, PAGE)?;
    let map = |gpa, pages: u64| {
        let mut range = kvm_pre_fault_memory {
            gpa,
            size: pages * PAGE as u64,
            ..Default::default()
        };
        let answer = bare
            .vcpu
            .handle
            .exchange(number::PRE_FAULT_MEMORY, &mut range);
        (answer.map_err(|e| e.0), range.gpa, range.size)
    };
    let nothing = (Err(libc::EINTR), LOST, PAGE as u64);
    equal("the lost page", map(LOST, 1), nothing)?;
    equal("signals", SIGNALS.load(SeqCst), 1)?;
    equal("si_code", CODE_SEEN.load(SeqCst), BUS_MCEERR_AR)?;
    equal("si_addr", ADDRESS.load(SeqCst), address as usize)?;
    let one = (Ok(0), LOST, PAGE as u64);
    equal("one before it", map(LOST - PAGE as u64, 2), one)?;
    equal("signals", SIGNALS.load(SeqCst), 2)
}

fn large_page(path: &str) -> Result<(), String> {
    const LARGE: usize = 2 << 20;
    const PAGES: &str = "/proc/sys/vm/nr_hugepages";
    let before = fs::read_to_string(PAGES).unwrap_or_default();
    if fs::write(PAGES, "4").is_err() {
        return skipped("this kernel has no large pages");
    }
    // SAFETY: A new mapping at an address of the kernel's choice touches no other object.
    let start = unsafe {
        libc::mmap(
            ptr::null_mut(),
            LARGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return skipped("the host has no large page to spare");
    }
    let result = large_page_at(path, start.cast());
    // SAFETY: The mapping is the test's own, and the VM is gone.
    unsafe { libc::munmap(start, LARGE) };
    let _ = fs::write(PAGES, before.trim());
    result
}

fn large_page_at(path: &str, start: *mut u8) -> Result<(), String> {
    let bare = Bare::new(path, &READ)?;
    // SAFETY: It is within the mapping, which no reference covers.
    unsafe {
        ptr::copy_nonoverlapping(READ.as_ptr(), start.add(CODE as usize), READ.len());
        start.add(LOST as usize).write(0x33);
    }
    for memory_size in [0, 1 << 20] {
        let region = kvm_userspace_memory_region {
            slot: 0,
            memory_size,
            userspace_addr: start as u64,
            ..Default::default()
        };
        bare.vm.set(number::SET_USER_MEMORY_REGION, &region)?;
    }
    bare.start()?;
    equal("before", bare.byte()?, 0x33)?;
    poison(start, PAGE)?;
    // What the guest meets is its next instruction.
    // SAFETY: It is within the mapping.
    let first = unsafe { start.add(CODE as usize) };
    // KVM always says that a small page is lost.
    let shift = if path.ends_with("kvm") { 12 } else { 21 };
    meets(&bare, first, shift)
}
