// SPDX-License-Identifier: GPL-2.0-only

//! AMD-V itself: VMCB, intercepts, exits, events, permission maps, ASIDs, exit handling.
//!
//! Facts are cited from the AMD64 Architecture Programmer's Manual, volume 2 (24593), chapter 15.
//! One turn of a virtual CPU, with the file that does each part:
//!
//! ```text
//!   inject::prepare      exception > NMI > interrupt into EVENTINJ, or a window opened   inject.rs
//!   (glue) VMRUN         the VMCB is the CPU's now                                       vmcb.rs
//!   inject::after_exit   what was being delivered is taken back from EXITINTINFO         event.rs
//!   Exit::decode         the exit becomes a value                                        exit.rs
//!   dispatch             one small handler per exit, gives an Action                     dispatch/
//!   nested               a guest that is a hypervisor, too                             nested.rs
//!   finish_io            the VMM answered a port or an MMIO access                       io.rs
//! ```
//!
//! Everything a virtual CPU is, apart from its VMCB, its local APIC and its FPU image, is the plain
//! value [`state::VcpuState`].
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![forbid(unsafe_code)]

pub mod asid;
pub mod clean;
pub mod cpu;
pub mod debug;
pub mod debug_ctl;
pub mod dispatch;
pub mod event;
pub mod exit;
pub mod features;
pub mod inject;
pub mod intercept;
pub mod io;
pub mod iopm;
pub mod msrpm;
pub mod nested;
pub mod pause;
pub mod predictors;
pub mod requests;
pub mod state;
pub mod vmcb;
mod watched;
