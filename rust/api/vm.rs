// SPDX-License-Identifier: GPL-2.0-only

//! Ioctls of a VM.

use crate::api::irqchip;
use crate::api::snapshot;
use crate::api::stats_fd::StatsFd;
use crate::api::system;
use crate::api::vcpu;
use crate::irq::vcpu_table::MAX_VCPU_ID;
use crate::memory::dirty_log::Clear;
use crate::memory::Region;
use crate::uapi::file::{self, FileObject};
use crate::uapi::{self, UserArg};
use crate::vm::{clock, option, vfio, Vm};
use kernel::ffi::c_long;
use kernel::prelude::*;
use kernel::sync::atomic::Relaxed;
use kernel::sync::{Arc, ArcBorrow};

/// The highest address below 4 GiB with room for the three pages of KVM_SET_TSS_ADDR.
const LAST_TSS: usize = 0xffff_d000;

/// KVM_CREATE_VM: a VM on the caller's address space, and its descriptor.
pub(crate) fn create() -> Result<c_long> {
    open(Vm::create()?)
}

/// A descriptor for a VM that has none yet.
pub(crate) fn open(vm: Arc<Vm>) -> Result<c_long> {
    file::new_fd(c"pacifica-vm", vm)
}

impl Vm {
    fn create_vcpu(this: ArcBorrow<'_, Self>, id: usize) -> Result<c_long> {
        let setup = this.setup.lock();
        if let Some(vcpu) = u32::try_from(id)
            .ok()
            .and_then(|id| this.vcpus.take_waiting(id))
        {
            let again = vcpu.clone();
            return vcpu::open(vcpu).inspect_err(|_| this.vcpus.put_waiting(again));
        }
        if this.memory.keeping.is_on() {
            return Err(EBUSY);
        }
        let id = u32::try_from(id).map_err(|_| EINVAL)?;
        if id >= setup.max_vcpu_id.unwrap_or(MAX_VCPU_ID) {
            return Err(EINVAL);
        }
        vcpu::create(this, id)
    }

    fn enable_cap(&self, arg: UserArg) -> Result<c_long> {
        let cap: uapi::kvm_enable_cap = arg.read()?;
        if cap.flags != 0 {
            return Err(EINVAL);
        }
        match cap.cap {
            uapi::KVM_CAP_EXCEPTION_PAYLOAD => self.set_option(option::EXCEPTION_PAYLOAD, &cap),
            uapi::KVM_CAP_X86_TRIPLE_FAULT_EVENT => self.set_option(option::TRIPLE_FAULT, &cap),
            uapi::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 => {
                self.memory.set_manual_log(cap.args[0]).map(|()| 0)
            }
            uapi::KVM_CAP_DIRTY_LOG_RING | uapi::KVM_CAP_DIRTY_LOG_RING_ACQ_REL => {
                self.set_ring_size(cap.args[0])
            }
            uapi::KVM_CAP_MAX_VCPU_ID => self.set_max_vcpu_id(&cap),
            _ => {
                let _setup = self.setup.lock();
                let vcpus = self.vcpu_table.count();
                match self.config.enable(&cap, vcpus) {
                    Some(result) => result,
                    None => irqchip::enable(&self.irqchip, &cap, vcpus),
                }
            }
        }
    }

    /// Turns an option on or off, as the first argument says.
    fn set_option(&self, bit: u32, cap: &uapi::kvm_enable_cap) -> Result<c_long> {
        let mut old = self.options.load(Relaxed);
        loop {
            let new = if cap.args[0] != 0 {
                old | bit
            } else {
                old & !bit
            };
            match self.options.cmpxchg(old, new, Relaxed) {
                Ok(_) => return Ok(0),
                Err(now) => old = now,
            }
        }
    }

    /// KVM_CAP_MAX_VCPU_ID: once, and not below the vCPU that starts the guest.
    fn set_max_vcpu_id(&self, cap: &uapi::kvm_enable_cap) -> Result<c_long> {
        let [value, ..] = cap.args;
        let mut setup = self.setup.lock();
        let value = u32::try_from(value)
            .ok()
            .filter(|id| (1..=MAX_VCPU_ID).contains(id) && *id >= self.boot_cpu());
        let value = value.ok_or(EINVAL)?;
        if setup.max_vcpu_id.is_some_and(|now| now != value) {
            return Err(EINVAL);
        }
        setup.max_vcpu_id = Some(value);
        Ok(0)
    }

    fn check_extension(&self, cap: usize) -> c_long {
        if cap == uapi::KVM_CAP_X86_APIC_BUS_CYCLES_NS as usize {
            return self.irqchip.bus_cycle_ns() as c_long;
        }
        system::check_extension(cap)
    }

    fn set_boot_cpu(&self, id: usize) -> Result<c_long> {
        let setup = self.setup.lock();
        let limit = setup.max_vcpu_id.unwrap_or(MAX_VCPU_ID);
        let id = u32::try_from(id).ok().filter(|id| *id < limit);
        let id = id.ok_or(EINVAL)?;
        if self.vcpu_table.count() != 0 {
            return Err(EBUSY);
        }
        self.boot_cpu.store(id, Relaxed);
        Ok(0)
    }

    /// KVM_GET_DIRTY_LOG: which pages were written.
    fn dirty_log(&self, arg: UserArg) -> Result<c_long> {
        let log: uapi::kvm_dirty_log = arg.read()?;
        // SAFETY: Both variants of the union are 64 bits of integer or address.
        let bitmap = unsafe { log.__bindgen_anon_1.padding2 };
        self.memory.dirty_log(log.slot, bitmap).map(|()| 0)
    }

    /// KVM_CLEAR_DIRTY_LOG: they are to be logged again.
    fn clear_dirty_log(&self, arg: UserArg) -> Result<c_long> {
        let log: uapi::kvm_clear_dirty_log = arg.read()?;
        let clear = Clear {
            slot: log.slot,
            first: log.first_page,
            pages: log.num_pages,
            // SAFETY: Both variants of the union are 64 bits of integer or address.
            bitmap: unsafe { log.__bindgen_anon_1.padding2 },
        };
        self.memory.clear_dirty_log(&clear).map(|()| 0)
    }

    /// KVM_CAP_DIRTY_LOG_RING: before there are vCPUs.
    fn set_ring_size(&self, bytes: u64) -> Result<c_long> {
        let _setup = self.setup.lock();
        match self.vcpu_table.count() {
            0 => self.memory.set_ring_size(bytes).map(|()| 0),
            _ => Err(EINVAL),
        }
    }

    fn set_memory(&self, region: Region) -> Result<c_long> {
        self.memory.set_region(&region).map(|()| 0)
    }
}

/// Reads a region; the second form of the structure begins as the first, and has nothing more that
/// counts.
macro_rules! region {
    ($type:ident, $arg:ident) => {{
        let region: uapi::$type = $arg.read()?;
        Region {
            slot: region.slot,
            flags: region.flags,
            gpa: region.guest_phys_addr,
            size: region.memory_size,
            hva: region.userspace_addr,
        }
    }};
}

impl FileObject for Vm {
    fn release(this: ArcBorrow<'_, Self>) {
        // No caller can ask for their descriptors any more, and they hold references to the VM.
        this.vcpus.forget_waiting();
    }

    fn ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: UserArg) -> Result<c_long> {
        if !this.memory.is_current() {
            return Err(EIO);
        }
        match cmd {
            uapi::KVM_CREATE_DEVICE => {
                let _setup = this.setup.lock();
                match this.memory.keeping.is_on() {
                    true => Err(EBUSY),
                    false => vfio::create(this, arg),
                }
            }
            uapi::PACIFICA_CHECK_FEATURE => Ok(snapshot::check_feature(arg.0)),
            uapi::PACIFICA_CREATE_SNAPSHOT => {
                let setup = this.setup.lock();
                snapshot::create(this, &setup, arg)
            }
            uapi::KVM_CREATE_VCPU => Self::create_vcpu(this, arg.0),
            uapi::KVM_CHECK_EXTENSION => Ok(this.check_extension(arg.0)),
            uapi::KVM_SET_USER_MEMORY_REGION => {
                this.set_memory(region!(kvm_userspace_memory_region, arg))
            }
            uapi::KVM_SET_USER_MEMORY_REGION2 => {
                this.set_memory(region!(kvm_userspace_memory_region2, arg))
            }
            // The least that KVM takes. It limits shadow pages, and there are none.
            uapi::KVM_SET_NR_MMU_PAGES if arg.0 < 64 => Err(EINVAL),
            uapi::KVM_SET_NR_MMU_PAGES => Ok(0),
            uapi::KVM_GET_DIRTY_LOG => this.dirty_log(arg),
            uapi::KVM_CLEAR_DIRTY_LOG => this.clear_dirty_log(arg),
            uapi::KVM_RESET_DIRTY_RINGS => this.memory.reset_rings().map(|n| n as c_long),
            // Intel CPUs need them; there is nothing to remember here.
            uapi::KVM_SET_TSS_ADDR if arg.0 > LAST_TSS => Err(EINVAL),
            uapi::KVM_SET_TSS_ADDR => Ok(0),
            uapi::KVM_SET_IDENTITY_MAP_ADDR => match arg.read::<u64>() {
                Ok(_) if this.vcpu_table.count() != 0 => Err(EINVAL),
                result => result.map(|_| 0),
            },
            uapi::KVM_SET_BOOT_CPU_ID => this.set_boot_cpu(arg.0),
            uapi::KVM_ENABLE_CAP => this.enable_cap(arg),
            uapi::KVM_GET_CLOCK => this.clock.get(arg),
            uapi::KVM_SET_CLOCK => this.clock.set(arg, &this.vcpu_table),
            uapi::KVM_IRQFD => this.eventfds.irqfd(&this.irqchip, arg),
            uapi::KVM_IOEVENTFD => this.eventfds.ioeventfd(arg),
            uapi::KVM_GET_TSC_KHZ => Ok(this.clock.rate().khz as c_long),
            uapi::KVM_SET_TSC_KHZ => {
                let _setup = this.setup.lock();
                if this.vcpu_table.count() != 0 {
                    return Err(EINVAL);
                }
                this.clock.set_rate(clock::rate(arg.0, this.features)?);
                Ok(0)
            }
            uapi::KVM_X86_SET_MSR_FILTER => this.config.set_msr_filter(arg, &this.vcpu_table),
            uapi::KVM_GET_STATS_FD => StatsFd::of_vm(&this.stats, this.pid, this.serial),
            uapi::KVM_REGISTER_COALESCED_MMIO => this.coalesced.change(arg, true),
            uapi::KVM_UNREGISTER_COALESCED_MMIO => this.coalesced.change(arg, false),
            uapi::KVM_CREATE_IRQCHIP => {
                let _setup = this.setup.lock();
                match this.vcpu_table.count() {
                    _ if this.irqchip.has_lapics() => Err(EEXIST),
                    0 => this.irqchip.create(),
                    _ => Err(EINVAL),
                }
            }
            _ => irqchip::ioctl(&this.irqchip, cmd, arg),
        }
    }
}
