// SPDX-License-Identifier: GPL-2.0-only

//! What a file descriptor answers: ioctls of the node, of a VM, of a vCPU and of a snapshot.

pub(crate) mod cpuid;
pub(crate) mod events;
pub(crate) mod fork;
pub(crate) mod fpu;
pub(crate) mod irqchip;
pub(crate) mod nested_state;
pub(crate) mod node;
pub(crate) mod prefault;
pub(crate) mod regs;
pub(crate) mod snapshot;
pub(crate) mod sregs;
pub(crate) mod stats_fd;
pub(crate) mod sync_regs;
pub(crate) mod system;
pub(crate) mod vcpu;
pub(crate) mod vm;
