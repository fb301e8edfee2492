// SPDX-License-Identifier: GPL-2.0-only

//! LAPIC, IOAPIC, PIC and PIT as pure state machines.
//!
//! ```text
//!   GSI ─► routing ─┬─► Pic ──── INTR ────────────────┐
//!                   ├─► Ioapic ── Message ─┐          ▼
//!                   └─► MSI ───── Message ─┴─► dest ─► Lapic ─► vector
//!   Pit ─► GSI 0                               ▲        │
//!                                              └─ Ipi ──┘
//! ```
//!
//! Nothing here sleeps, locks, allocates or knows a clock: time is an argument, and what has to be
//! delivered elsewhere is a result. Every device is a plain value, so that copying it copies its
//! whole state, and every method is total: guests and VMMs may pass anything.
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![forbid(unsafe_code)]

pub mod bits;
pub mod dest;
pub mod ioapic;
pub mod lapic;
pub mod lines;
pub mod message;
pub mod pic;
pub mod pit;
pub mod routing;
pub mod storm;
mod wire;

pub use dest::{Destination, Shorthand, Snapshot};
pub use ioapic::Ioapic;
pub use lapic::Lapic;
pub use message::{DeliveryMode, Message};
pub use pic::Pic;
pub use pit::Pit;

/// A point in time, as the caller's clocks show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Nanoseconds of a monotonic clock.
    pub ns: u64,
    /// The time-stamp counter as the guest sees it.
    pub tsc: u64,
}

/// The state that a VMM wanted to set is not one that the device can be in (`EINVAL`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidState;
