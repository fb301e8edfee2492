// SPDX-License-Identifier: GPL-2.0-only

//! A guest of a handful of instructions that read and write where this program tells them to, and
//! the memory that it gets.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use selftests::kvm::{number, Errno, Handle};
use selftests::machine::Vcpu;
use selftests::memory::PAGE;
use selftests::stats::counter;
use selftests::tap::equal;

pub(crate) const EXIT_HLT: u32 = 5;
pub(crate) const EXIT_MMIO: u32 = 6;
pub(crate) const READ_ONLY: u32 = 1 << 1;
/// Where the guest's code is.
pub(crate) const CODE: u64 = 0x1000;
/// Where its data begin: on a boundary of 2 MiB.
pub(crate) const DATA: u64 = 0x4000_0000;
pub(crate) const LARGE: usize = 2 << 20;

pub(crate) type Outcome = Result<(), String>;

/// The guest's functions: offset and code. EDI is an address, ECX a count, EAX a value.
pub(crate) const STORE: (u64, &[u8]) = (0x00, &[0x89, 0x07, 0xf4]); // mov [edi], eax; hlt
pub(crate) const LOAD: (u64, &[u8]) = (0x10, &[0x8b, 0x07, 0xf4]); // mov eax, [edi]; hlt
/// Stores EAX in each of ECX pages.
pub(crate) const FILL: (u64, &[u8]) = (
    0x20,
    // again: mov [edi], eax; add edi, 4096; dec ecx; jnz again; hlt
    &[
        0x89, 0x07, 0x81, 0xc7, 0, 0x10, 0, 0, 0x49, 0x75, 0xf5, 0xf4,
    ],
);
/// Adds up the first words of ECX pages.
pub(crate) const SUM: (u64, &[u8]) = (
    0x40,
    // xor eax, eax; again: add eax, [edi]; add edi, 4096; dec ecx; jnz again; hlt
    &[
        0x31, 0xc0, 0x03, 0x07, 0x81, 0xc7, 0, 0x10, 0, 0, 0x49, 0x75, 0xf5, 0xf4,
    ],
);

/// User memory at a fixed place, so that it can be changed under the guest.
pub(crate) struct Area {
    pub(crate) start: *mut u8,
}

// SAFETY: It is plain memory, accessed by volatile reads and writes only.
unsafe impl Sync for Area {}

impl Area {
    /// Anonymous memory, aligned to 2 MiB.
    pub(crate) fn new(length: usize) -> Self {
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

    pub(crate) fn memory(&self) -> *mut u8 {
        self.start
    }

    /// Puts new, empty memory there.
    pub(crate) fn fresh(&self, offset: usize, length: usize) {
        self.place(offset, length, -1, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    }

    /// Maps a file there, or anonymous memory.
    pub(crate) fn place(&self, offset: usize, length: usize, file: i32, flags: i32) {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: The range is this object's own.
        let got = unsafe {
            let at = self.start.add(offset).cast();
            libc::mmap(at, length, protection, flags | libc::MAP_FIXED, file, 0)
        };
        assert_ne!(got, libc::MAP_FAILED);
    }

    pub(crate) fn unmap(&self, offset: usize, length: usize) {
        // SAFETY: The range is this object's own.
        let status = unsafe { libc::munmap(self.start.add(offset).cast(), length) };
        assert_eq!(status, 0);
    }

    pub(crate) fn protect(&self, offset: usize, length: usize, protection: i32) {
        // SAFETY: The range is this object's own.
        let done = unsafe { libc::mprotect(self.start.add(offset).cast(), length, protection) };
        assert_eq!(done, 0);
    }

    pub(crate) fn advise(&self, offset: usize, length: usize, advice: i32) -> i32 {
        // SAFETY: The range is this object's own.
        unsafe { libc::madvise(self.start.add(offset).cast(), length, advice) }
    }

    /// Copies bytes there.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        for (i, &byte) in bytes.iter().enumerate() {
            // SAFETY: The range is this object's own.
            unsafe { self.start.add(offset + i).write_volatile(byte) };
        }
    }

    pub(crate) fn load(&self, offset: usize) -> u32 {
        // SAFETY: The range is this object's own.
        unsafe { self.start.add(offset).cast::<u32>().read_volatile() }
    }

    pub(crate) fn store(&self, offset: usize, value: u32) {
        // SAFETY: The range is this object's own.
        unsafe { self.start.add(offset).cast::<u32>().write_volatile(value) }
    }
}

/// A VM with one vCPU and its code; each test adds the memory that it is about.
pub(crate) struct Vm {
    pub(crate) vm: Handle,
    pub(crate) vcpu: Vcpu,
    pub(crate) code: Area,
}

impl Vm {
    pub(crate) fn new(device: &Handle) -> Result<Self, String> {
        Self::before_vcpu(device, |_| Ok(()))
    }

    /// The same, with something done before there is a vCPU.
    pub(crate) fn before_vcpu(
        device: &Handle,
        before: impl FnOnce(&Handle) -> Outcome,
    ) -> Result<Self, String> {
        let vm = device.open_with(number::CREATE_VM, 0)?;
        before(&vm)?;
        let code = Area::new(PAGE);
        for (offset, bytes) in [STORE, LOAD, FILL, SUM] {
            code.write(offset as usize, bytes);
        }
        let vcpu = flat_vcpu(device, &vm, 0)?;
        let vm = Self { vm, vcpu, code };
        vm.slot(0, 0, CODE, PAGE, vm.code.start)?;
        Ok(vm)
    }

    pub(crate) fn slot(
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
    pub(crate) fn with_data(&self, length: usize) -> Result<Area, String> {
        let area = Area::new(length);
        self.slot(1, 0, DATA, length, area.start)?;
        Ok(area)
    }

    /// Calls a function of the guest; its EAX, if it ran to its end.
    pub(crate) fn call(
        &self,
        function: (u64, &[u8]),
        at: u64,
        eax: u32,
        count: u32,
    ) -> Result<u32, String> {
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
    pub(crate) fn exit(
        &self,
        function: (u64, &[u8]),
        at: u64,
        eax: u32,
        count: u32,
    ) -> Result<u32, Errno> {
        exit_of(&self.vcpu, function, at, eax, count)
    }

    pub(crate) fn load(&self, at: u64) -> Result<u32, String> {
        self.call(LOAD, at, 0, 1)
    }

    pub(crate) fn store(&self, at: u64, value: u32) -> Outcome {
        self.call(STORE, at, value, 1).map(|_| ())
    }

    /// How many pages of 4 KiB, 2 MiB and 1 GiB the guest has.
    pub(crate) fn pages(&self) -> Result<[u64; 3], String> {
        let file = self.vm.open_with(number::GET_STATS_FD, 0)?;
        let mut pages = [0; 3];
        for (count, name) in pages.iter_mut().zip(["pages_4k", "pages_2m", "pages_1g"]) {
            *count = counter(&file, name)?.ok_or("no such counter")?;
        }
        Ok(pages)
    }

    /// Ends an access to a device: the answer is in the shared page already.
    pub(crate) fn finish_access(&self) -> Outcome {
        finish_access_of(&self.vcpu);
        Ok(())
    }
}

/// The same for any vCPU.
pub(crate) fn finish_access_of(vcpu: &Vcpu) {
    vcpu.share(|run| run.immediate_exit = 1);
    let _ = vcpu.run();
    vcpu.share(|run| run.immediate_exit = 0);
}

/// Calls a function of the guest on a vCPU; the reason of the exit.
pub(crate) fn exit_of(
    vcpu: &Vcpu,
    function: (u64, &[u8]),
    at: u64,
    eax: u32,
    count: u32,
) -> Result<u32, Errno> {
    let regs = kvm_regs {
        rip: CODE + function.0,
        rdi: at,
        rax: eax.into(),
        rcx: count.into(),
        // Interrupts on: on Bochs the host's would not end the guest else (`bochs-intr-masked`).
        rflags: 0x202,
        ..Default::default()
    };
    vcpu.handle.set(number::SET_REGS, &regs)?;
    vcpu.run()?;
    Ok(vcpu.shared().exit_reason)
}

/// A vCPU in flat 32-bit mode.
pub(crate) fn flat_vcpu(device: &Handle, vm: &Handle, id: u32) -> Result<Vcpu, String> {
    let vcpu = Vcpu::create(device, vm, id)?;
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
    Ok(vcpu)
}

pub(crate) fn refused(what: &str, got: Result<i32, Errno>, errno: i32) -> Outcome {
    equal(what, got, Err(Errno(errno)))
}

pub(crate) struct Child(i32);

/// Runs `f` in a child.
pub(crate) fn fork(f: impl FnOnce() -> bool) -> Child {
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
    pub(crate) fn join(self) -> bool {
        let mut status = -1;
        // SAFETY: The status is written to our variable.
        unsafe { libc::waitpid(self.0, &mut status, 0) == self.0 && status == 0 }
    }
}
