// SPDX-License-Identifier: GPL-2.0-only

//! The devices that this program emulates. All are on I/O ports.

pub(crate) mod bus;
pub(crate) mod power;
pub(crate) mod rtc;
pub(crate) mod serial;
