// SPDX-License-Identifier: GPL-2.0-only

//! What Pacifica has besides the interface of KVM, for VMMs on `kvm-ioctls` and `vm-memory`: a VM
//! that goes back to an instant, at a cost of what has changed since ([`Snapshot`]), and one that
//! becomes two, which both go on ([`fork()`]). `docs/fork.md` explains it, in two pictures.
//!
//! A VMM goes on using `kvm-ioctls` for everything else; this takes the VM's descriptor. It keeps
//! guest memory in a [`Memory`] in place of `GuestMemoryMmap`, so that the snapshot hears of the
//! VMM's own writes. `docs/abi.md` says what the state of a snapshot is, and what is not in it.
//!
//! ```no_run
//! use pacifica_vm::kvm_ioctls::VcpuExit;
//! use pacifica_vm::vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryRegion};
//! use pacifica_vm::{Memory, Snapshot, Time};
//!
//! let kvm = pacifica_vm::open(pacifica_vm::NODE)?;
//! let vm = kvm.create_vm()?;
//! let memory = Memory::from_ranges(&[(GuestAddress(0), 2 << 20)])?;
//! for (slot, region) in (0..).zip(memory.iter()) {
//!     let slot = kvm_bindings::kvm_userspace_memory_region {
//!         slot,
//!         flags: 0,
//!         guest_phys_addr: region.start_addr().0,
//!         memory_size: region.len(),
//!         userspace_addr: region.mapping().as_ptr() as u64,
//!     };
//!     // SAFETY: The mapping is the guest's alone, and lives longer than the VM.
//!     unsafe { vm.set_user_memory_region(slot) }?;
//! }
//! // Real mode, at CS:IP = F000:FFF0: HLT.
//! memory.write_slice(&[0xf4], GuestAddress(0xf_fff0))?;
//! let mut vcpu = vm.create_vcpu(0)?;
//! let mut sregs = vcpu.get_sregs()?;
//! sregs.cs.base = 0xf_0000;
//! vcpu.set_sregs(&sregs)?;
//!
//! let snapshot = Snapshot::take(&vm, &memory, 16 << 20)?;
//! for input in 0..1000_u32 {
//!     // Announced, then written; the next reset takes it back.
//!     memory.write_obj(input, GuestAddress(0x1000))?;
//!     while !matches!(vcpu.run()?, VcpuExit::Hlt) {}
//!     snapshot.reset(Time::GoesBack)?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod device;
mod error;
mod fork;
mod ioctl;
mod memory;
mod snapshot;
mod tracking;
pub mod uapi;

pub use device::{open, version, Feature, NODE};
pub use error::{is_limit, Error, Result};
pub use fork::{fork, Fork, State};
pub use kvm_ioctls;
pub use memory::{Memory, MemoryError, Region};
pub use snapshot::{Snapshot, Time};
pub use tracking::{InUse, Tracking};
pub use vm_memory;
