// SPDX-License-Identifier: GPL-2.0-only

//! The device's ioctls, called as a hostile program would: with any argument, and with the error
//! number as the result.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use kvm_bindings::*;

/// An error number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// What the last call of this thread left.
    pub fn last() -> Self {
        Self(io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }
}

impl std::fmt::Debug for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.0))
    }
}

impl From<Errno> for String {
    fn from(errno: Errno) -> Self {
        format!("{errno:?}")
    }
}

/// What an ioctl answers.
pub type Answer<T = i32> = Result<T, Errno>;

/// An ioctl's number, which contains the direction and the size of its argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number(pub u64);

impl Number {
    /// An ioctl that takes a number.
    pub const fn plain(number: u64) -> Self {
        Self(0xae00 | number)
    }

    const fn of<T>(direction: u64, number: u64) -> Self {
        Self(direction << 30 | (size_of::<T>() as u64) << 16 | 0xae00 | number)
    }

    /// An ioctl that reads a `T`.
    pub const fn set<T>(number: u64) -> Self {
        Self::of::<T>(1, number)
    }

    /// An ioctl that writes a `T`.
    pub const fn get<T>(number: u64) -> Self {
        Self::of::<T>(2, number)
    }

    /// An ioctl that reads and writes a `T`.
    pub const fn exchange<T>(number: u64) -> Self {
        Self::of::<T>(3, number)
    }

    /// The size of the argument; 0 if it is a number.
    pub const fn size(self) -> usize {
        (self.0 >> 16 & 0x3fff) as usize
    }
}

/// The ioctls by their names without `KVM_`.
#[allow(missing_docs)] // The names are those of the KVM API's documentation.
pub mod number {
    use super::*;

    pub const GET_API_VERSION: Number = Number::plain(0x00);
    pub const CREATE_VM: Number = Number::plain(0x01);
    pub const GET_MSR_INDEX_LIST: Number = Number::exchange::<kvm_msr_list>(0x02);
    pub const CHECK_EXTENSION: Number = Number::plain(0x03);
    pub const GET_VCPU_MMAP_SIZE: Number = Number::plain(0x04);
    pub const GET_SUPPORTED_CPUID: Number = Number::exchange::<kvm_cpuid2>(0x05);
    pub const GET_EMULATED_CPUID: Number = Number::exchange::<kvm_cpuid2>(0x09);
    pub const GET_MSR_FEATURE_INDEX_LIST: Number = Number::exchange::<kvm_msr_list>(0x0a);
    pub const CREATE_VCPU: Number = Number::plain(0x41);
    pub const GET_DIRTY_LOG: Number = Number::set::<kvm_dirty_log>(0x42);
    pub const CLEAR_DIRTY_LOG: Number = Number::exchange::<kvm_clear_dirty_log>(0xc0);
    pub const RESET_DIRTY_RINGS: Number = Number::plain(0xc7);
    pub const SET_USER_MEMORY_REGION: Number = Number::set::<kvm_userspace_memory_region>(0x46);
    pub const SET_TSS_ADDR: Number = Number::plain(0x47);
    pub const SET_IDENTITY_MAP_ADDR: Number = Number::set::<u64>(0x48);
    pub const CREATE_IRQCHIP: Number = Number::plain(0x60);
    pub const IRQ_LINE: Number = Number::set::<kvm_irq_level>(0x61);
    pub const GET_IRQCHIP: Number = Number::exchange::<kvm_irqchip>(0x62);
    pub const SET_IRQCHIP: Number = Number::get::<kvm_irqchip>(0x63);
    pub const IRQ_LINE_STATUS: Number = Number::exchange::<kvm_irq_level>(0x67);
    pub const REGISTER_COALESCED_MMIO: Number = Number::set::<kvm_coalesced_mmio_zone>(0x67);
    pub const SET_GSI_ROUTING: Number = Number::set::<kvm_irq_routing>(0x6a);
    pub const REINJECT_CONTROL: Number = Number::plain(0x71);
    pub const IRQFD: Number = Number::set::<kvm_irqfd>(0x76);
    pub const CREATE_PIT2: Number = Number::set::<kvm_pit_config>(0x77);
    pub const IOEVENTFD: Number = Number::set::<kvm_ioeventfd>(0x79);
    pub const SET_CLOCK: Number = Number::set::<kvm_clock_data>(0x7b);
    pub const GET_CLOCK: Number = Number::get::<kvm_clock_data>(0x7c);
    pub const RUN: Number = Number::plain(0x80);
    pub const GET_REGS: Number = Number::get::<kvm_regs>(0x81);
    pub const SET_REGS: Number = Number::set::<kvm_regs>(0x82);
    pub const GET_SREGS: Number = Number::get::<kvm_sregs>(0x83);
    pub const SET_SREGS: Number = Number::set::<kvm_sregs>(0x84);
    pub const TRANSLATE: Number = Number::exchange::<kvm_translation>(0x85);
    pub const INTERRUPT: Number = Number::set::<kvm_interrupt>(0x86);
    pub const GET_MSRS: Number = Number::exchange::<kvm_msrs>(0x88);
    pub const SET_MSRS: Number = Number::set::<kvm_msrs>(0x89);
    pub const SET_CPUID: Number = Number::set::<kvm_cpuid>(0x8a);
    pub const SET_SIGNAL_MASK: Number = Number::set::<kvm_signal_mask>(0x8b);
    pub const GET_FPU: Number = Number::get::<kvm_fpu>(0x8c);
    pub const SET_FPU: Number = Number::set::<kvm_fpu>(0x8d);
    pub const GET_LAPIC: Number = Number::get::<kvm_lapic_state>(0x8e);
    pub const SET_LAPIC: Number = Number::set::<kvm_lapic_state>(0x8f);
    pub const SET_CPUID2: Number = Number::set::<kvm_cpuid2>(0x90);
    pub const GET_CPUID2: Number = Number::exchange::<kvm_cpuid2>(0x91);
    pub const GET_MP_STATE: Number = Number::get::<kvm_mp_state>(0x98);
    pub const SET_MP_STATE: Number = Number::set::<kvm_mp_state>(0x99);
    pub const NMI: Number = Number::plain(0x9a);
    pub const SET_GUEST_DEBUG: Number = Number::set::<kvm_guest_debug>(0x9b);
    pub const X86_SETUP_MCE: Number = Number::set::<u64>(0x9c);
    pub const X86_SET_MCE: Number = Number::set::<kvm_x86_mce>(0x9e);
    pub const X86_GET_MCE_CAP_SUPPORTED: Number = Number::get::<u64>(0x9d);
    pub const GET_PIT2: Number = Number::get::<kvm_pit_state2>(0x9f);
    pub const SET_PIT2: Number = Number::set::<kvm_pit_state2>(0xa0);
    pub const GET_VCPU_EVENTS: Number = Number::get::<kvm_vcpu_events>(0x9f);
    pub const SET_VCPU_EVENTS: Number = Number::set::<kvm_vcpu_events>(0xa0);
    pub const GET_DEBUGREGS: Number = Number::get::<kvm_debugregs>(0xa1);
    pub const SET_DEBUGREGS: Number = Number::set::<kvm_debugregs>(0xa2);
    pub const SET_TSC_KHZ: Number = Number::plain(0xa2);
    pub const GET_TSC_KHZ: Number = Number::plain(0xa3);
    pub const ENABLE_CAP: Number = Number::set::<kvm_enable_cap>(0xa3);
    pub const GET_NESTED_STATE: Number = Number::exchange::<kvm_nested_state>(0xbe);
    pub const SET_NESTED_STATE: Number = Number::set::<kvm_nested_state>(0xbf);
    pub const PRE_FAULT_MEMORY: Number = Number::exchange::<kvm_pre_fault_memory>(0xd5);
    pub const GET_XSAVE: Number = Number::get::<Xsave>(0xa4);
    pub const SET_XSAVE: Number = Number::set::<Xsave>(0xa5);
    pub const GET_XCRS: Number = Number::get::<kvm_xcrs>(0xa6);
    pub const SET_XCRS: Number = Number::set::<kvm_xcrs>(0xa7);
    pub const X86_SET_MSR_FILTER: Number = Number::set::<kvm_msr_filter>(0xc6);
    pub const GET_STATS_FD: Number = Number::plain(0xce);
    pub const CREATE_DEVICE: Number = Number::exchange::<kvm_create_device>(0xe0);
    pub const SET_DEVICE_ATTR: Number = Number::set::<kvm_device_attr>(0xe1);
    pub const GET_DEVICE_ATTR: Number = Number::set::<kvm_device_attr>(0xe2);
    pub const HAS_DEVICE_ATTR: Number = Number::set::<kvm_device_attr>(0xe3);
    pub const GET_SREGS2: Number = Number::get::<Sregs2>(0xcc);
    pub const SET_SREGS2: Number = Number::set::<Sregs2>(0xcd);
    pub const GET_XSAVE2: Number = Number::get::<Xsave>(0xcf);
    pub const SIGNAL_MSI: Number = Number::set::<kvm_msi>(0xa5);
}

/// A file descriptor of the device, a VM or a vCPU.
pub struct Handle(OwnedFd);

impl Handle {
    /// Opens the device.
    pub fn open(path: &str) -> io::Result<Self> {
        Ok(Self(
            File::options().read(true).write(true).open(path)?.into(),
        ))
    }

    /// The file descriptor's number.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Any ioctl with any argument.
    ///
    /// # Safety
    ///
    /// The kernel will read and write what the argument points to.
    pub unsafe fn raw(&self, number: Number, argument: usize) -> Answer {
        // SAFETY: The caller's promise.
        let answer = unsafe { libc::ioctl(self.fd(), number.0, argument) };
        if answer < 0 {
            Err(Errno::last())
        } else {
            Ok(answer)
        }
    }

    /// An ioctl whose argument is a number.
    pub fn call(&self, number: Number, argument: u64) -> Answer {
        assert_eq!(number.size(), 0, "takes a structure");
        // SAFETY: These ioctls take no pointer. KVM_SET_TSS_ADDR takes a guest's address.
        unsafe { self.raw(number, argument as usize) }
    }

    /// An ioctl with a structure that is read.
    pub fn set<T>(&self, number: Number, value: &T) -> Answer {
        assert_eq!(number.size(), size_of::<T>());
        // SAFETY: The kernel reads as many bytes as the number says.
        unsafe { self.raw(number, std::ptr::from_ref(value) as usize) }
    }

    /// An ioctl with a structure that is written, or read and written.
    pub fn exchange<T>(&self, number: Number, value: &mut T) -> Answer {
        assert_eq!(number.size(), size_of::<T>());
        // SAFETY: The kernel writes as many bytes as the number says, and any bits are valid in
        // the structures of its interface.
        unsafe { self.raw(number, std::ptr::from_mut(value) as usize) }
    }

    /// An ioctl that fills a structure.
    pub fn get<T: Default>(&self, number: Number) -> Answer<T> {
        let mut value = T::default();
        self.exchange(number, &mut value)?;
        Ok(value)
    }

    /// An ioctl whose structure ends in an array: the words are header and elements together.
    pub fn array(&self, number: Number, words: &mut [u64], room: usize) -> Answer {
        assert!(words.len() * 8 >= room);
        // SAFETY: The caller's header counts no more elements than `room` has bytes for.
        unsafe { self.raw(number, words.as_mut_ptr() as usize) }
    }

    /// An ioctl that answers with a new file descriptor.
    pub fn open_with(&self, number: Number, argument: u64) -> Answer<Handle> {
        let fd = self.call(number, argument)?;
        // SAFETY: The kernel has just given this descriptor to us alone.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The same of one that takes a structure.
    pub fn open_with_structure<T>(&self, number: Number, value: &mut T) -> Answer<Handle> {
        let fd = self.exchange(number, value)?;
        // SAFETY: As above.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// `KVM_CHECK_EXTENSION`.
    pub fn extension(&self, capability: u32) -> i32 {
        self.call(number::CHECK_EXTENSION, capability.into())
            .unwrap_or(0)
    }
}

/// The XSAVE image of `KVM_GET_XSAVE`.
#[repr(C)]
pub struct Xsave(pub [u32; 1024]);

impl Default for Xsave {
    fn default() -> Self {
        Self([0; 1024])
    }
}

/// `struct kvm_sregs2`.
#[allow(missing_docs)] // The names are those of the KVM API's documentation.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Sregs2 {
    pub segments: [kvm_segment; 8],
    pub tables: [kvm_dtable; 2],
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
    pub flags: u64,
    pub pdptrs: [u64; 4],
}

/// The entries of `KVM_GET_SUPPORTED_CPUID`.
pub fn supported_cpuid(device: &Handle) -> Answer<Vec<kvm_cpuid_entry2>> {
    const ENTRY: usize = size_of::<kvm_cpuid_entry2>();
    const MOST: usize = 256;
    let mut words = vec![0u64; 1 + MOST * ENTRY / 8];
    words[0] = MOST as u64;
    let room = words.len() * 8;
    device.array(number::GET_SUPPORTED_CPUID, &mut words, room)?;
    let count = (words[0] & 0xffff_ffff) as usize;
    // SAFETY: The kernel wrote `count` entries after the 8-byte header.
    let entries =
        unsafe { std::slice::from_raw_parts(words[1..].as_ptr().cast(), count.min(MOST)) };
    Ok(entries.to_vec())
}

/// `KVM_SET_CPUID2`.
pub fn set_cpuid(vcpu: &Handle, entries: &[kvm_cpuid_entry2]) -> Answer {
    const ENTRY: usize = size_of::<kvm_cpuid_entry2>();
    let mut words = vec![0u64; 1 + entries.len() * ENTRY / 8];
    words[0] = entries.len() as u64;
    // SAFETY: The destination has room for all entries after the header.
    unsafe {
        std::ptr::copy_nonoverlapping(
            entries.as_ptr(),
            words[1..].as_mut_ptr().cast(),
            entries.len(),
        );
    }
    let room = words.len() * 8;
    vcpu.array(number::SET_CPUID2, &mut words, room)
}

/// The MSRs that the device names (`KVM_GET_MSR_INDEX_LIST`).
pub fn named_msrs(device: &Handle) -> Answer<Vec<u32>> {
    const MOST: usize = 1024;
    let mut words = vec![0u64; MOST];
    words[0] = MOST as u64;
    device.array(number::GET_MSR_INDEX_LIST, &mut words, MOST * 8)?;
    let count = words[0] as u32 as usize;
    // The list of 32-bit indices begins after a 32-bit count.
    let halves = words
        .iter()
        .flat_map(|word| [*word as u32, (*word >> 32) as u32]);
    Ok(halves.skip(1).take(count).collect())
}

/// `KVM_GET_MSRS` or `KVM_SET_MSRS` with these pairs of index and value; answers how many were
/// processed. Values are replaced by what the kernel wrote.
pub fn msrs(handle: &Handle, number: Number, pairs: &mut [(u32, u64)]) -> Answer {
    let mut words = vec![pairs.len() as u64];
    words.extend(
        pairs
            .iter()
            .flat_map(|&(index, value)| [u64::from(index), value]),
    );
    let room = words.len() * 8;
    let answer = handle.array(number, &mut words, room)?;
    for (pair, entry) in pairs.iter_mut().zip(words[1..].chunks(2)) {
        pair.1 = entry[1];
    }
    Ok(answer)
}
