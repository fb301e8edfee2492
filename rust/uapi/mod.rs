// SPDX-License-Identifier: GPL-2.0-only

//! The structures of the KVM interface, to and from user space.
//!
//! The crate `kvm_abi` is made by bindgen from the kernel's own `<linux/kvm.h>`, and from ours,
//! `uapi/pacifica.h`.

pub(crate) mod file;
pub(crate) mod run_page;

use core::mem::{size_of, MaybeUninit};
use kernel::prelude::*;
use kernel::uaccess::{UserPtr, UserSlice};
pub(crate) use kvm_abi::*;
use x86::cpuid::Entry;
use x86::fxsave::Fpu;

/// Plain data of the interface: every bit pattern is a value.
///
/// # Safety
///
/// The type consists of integers and arrays and unions of them, without implicit padding.
pub(crate) unsafe trait Abi {}

/// `struct kvm_nested_state` without what follows its header.
#[repr(C)]
pub(crate) struct NestedState {
    pub(crate) flags: u16,
    pub(crate) format: u16,
    /// Of all of it.
    pub(crate) size: u32,
    pub(crate) header: [u64; 15],
}

macro_rules! abi {
    ($($t:ty),* $(,)?) => { $(
        // SAFETY: A structure of the kernel's UAPI, made of integers only.
        unsafe impl Abi for $t {}
    )* };
}

abi!(
    u8,
    u32,
    u64,
    kvm_userspace_memory_region,
    kvm_userspace_memory_region2,
    kvm_dirty_log,
    kvm_clear_dirty_log,
    kvm_regs,
    kvm_sregs,
    kvm_sregs2,
    kvm_lapic_state,
    kvm_irqchip,
    kvm_irq_level,
    kvm_pit_config,
    kvm_pit_state2,
    kvm_irq_routing,
    kvm_irq_routing_entry,
    kvm_msi,
    kvm_irqfd,
    kvm_ioeventfd,
    kvm_reinject_control,
    kvm_coalesced_mmio_zone,
    kvm_create_device,
    kvm_clock_data,
    kvm_enable_cap,
    kvm_translation,
    kvm_interrupt,
    kvm_msrs,
    kvm_msr_entry,
    kvm_msr_list,
    kvm_signal_mask,
    kvm_cpuid,
    kvm_cpuid_entry,
    kvm_cpuid2,
    kvm_mp_state,
    kvm_vcpu_events,
    kvm_debugregs,
    kvm_guest_debug,
    kvm_x86_mce,
    kvm_xsave,
    kvm_xcrs,
    kvm_device_attr,
    kvm_stats_header,
    kvm_pre_fault_memory,
    pacifica_create_snapshot,
    pacifica_reset,
    pacifica_keep_pages,
    pacifica_fork,
    NestedState,
    Entry,
    Fpu,
);

// Both are laid out as the kernel's, field by field.
const _: () = assert!(size_of::<Entry>() == size_of::<kvm_cpuid_entry2>());
const _: () = assert!(size_of::<Fpu>() == size_of::<kvm_fpu>());

/// The argument of an ioctl: an address in user space.
#[derive(Clone, Copy)]
pub(crate) struct UserArg(pub(crate) usize);

impl UserArg {
    /// The address `bytes` further on.
    pub(crate) fn offset(self, bytes: usize) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// What follows a structure `T` here: its flexible array.
    pub(crate) fn after<T: Abi>(self) -> Self {
        self.offset(size_of::<T>())
    }

    /// Copies a structure in; `EFAULT` if it is not there.
    pub(crate) fn read<T: Abi>(self) -> Result<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: The bytes of `value`, which has no other reference.
        let bytes = unsafe {
            core::slice::from_raw_parts_mut(
                value.as_mut_ptr().cast::<MaybeUninit<u8>>(),
                size_of::<T>(),
            )
        };
        UserSlice::new(UserPtr::from_addr(self.0), size_of::<T>())
            .reader()
            .read_raw(bytes)?;
        // SAFETY: All bytes were written, and every bit pattern is a value of `T`.
        Ok(unsafe { value.assume_init() })
    }

    /// Copies a structure out; `EFAULT` if there is no room.
    pub(crate) fn write<T: Abi>(self, value: &T) -> Result {
        // SAFETY: `T` has no implicit padding, so all of its bytes are initialised.
        let bytes = unsafe {
            core::slice::from_raw_parts(core::ptr::from_ref(value).cast::<u8>(), size_of::<T>())
        };
        UserSlice::new(UserPtr::from_addr(self.0), bytes.len())
            .writer()
            .write_slice(bytes)
    }

    /// Copies bytes in.
    pub(crate) fn read_bytes(self, bytes: &mut [u8]) -> Result {
        UserSlice::new(UserPtr::from_addr(self.0), bytes.len())
            .reader()
            .read_slice(bytes)
    }

    /// Copies bytes out.
    pub(crate) fn write_bytes(self, bytes: &[u8]) -> Result {
        UserSlice::new(UserPtr::from_addr(self.0), bytes.len())
            .writer()
            .write_slice(bytes)
    }

    /// Copies `count` structures in.
    pub(crate) fn read_array<T: Abi>(self, count: usize) -> Result<KVec<T>> {
        let mut array = KVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
        for i in 0..count {
            array.push(
                self.offset(i.wrapping_mul(size_of::<T>())).read()?,
                GFP_KERNEL_ACCOUNT,
            )?;
        }
        Ok(array)
    }

    /// Copies an array of structures out.
    pub(crate) fn write_array<T: Abi>(self, array: &[T]) -> Result {
        for (i, value) in array.iter().enumerate() {
            self.offset(i.wrapping_mul(size_of::<T>())).write(value)?;
        }
        Ok(())
    }
}
