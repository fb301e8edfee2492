// SPDX-License-Identifier: GPL-2.0-only

//! The guest-visible x86 CPU: registers, CPUID, MSRs, paging, decoding and emulation.
//!
//! Nothing here knows AMD-V or Linux. Everything works on values and on the two small traits of
//! [`cpu`], which the module, the tests and the fuzzers implement.
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![forbid(unsafe_code)]

pub mod cpu;
pub mod cpuid;
pub mod decode;
pub mod descriptor;
pub mod emulate;
pub mod features;
pub mod fxsave;
pub mod msr;
pub mod paging;
pub mod pvclock;
pub mod regs;
pub mod sregs;
pub mod tsc;
pub mod xsave;
