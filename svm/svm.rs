// SPDX-License-Identifier: GPL-2.0-only

//! AMD-V itself: VMCB, intercepts, exits, events, permission maps, ASIDs, exit handling.
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![forbid(unsafe_code)]
