// SPDX-License-Identifier: GPL-2.0-only

//! Nested page tables: walk, map, split, what to flush.
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![forbid(unsafe_code)]
