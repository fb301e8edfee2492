// SPDX-License-Identifier: GPL-2.0-only

//! What the self-tests share: the device's ioctls, the machine that runs a tiny guest and writes
//! down what it does, and the TAP that reports results.

pub mod accesses;
pub mod cpus;
pub mod faults;
pub mod guest;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod modules;
pub mod patience;
pub mod process;
pub mod snapshot;
pub mod state;
pub mod stats;
pub mod swap;
pub mod tap;
pub mod trace;
