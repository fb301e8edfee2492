// SPDX-License-Identifier: GPL-2.0-only

//! Interrupts of a VM: from a device, a GSI or another vCPU to the vCPU that takes them.

pub(crate) mod broadcast;
pub(crate) mod eoi;
pub(crate) mod eventfd;
pub(crate) mod irqchip;
pub(crate) mod mailbox;
pub(crate) mod vcpu_table;
