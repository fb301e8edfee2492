// SPDX-License-Identifier: GPL-2.0-only

//! LAPIC, IOAPIC, PIC and PIT as pure state machines.
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![forbid(unsafe_code)]
