// SPDX-License-Identifier: GPL-2.0-only

//! Nested page tables: walk, map, split, what to flush (APM vol. 2, 15.25).
//!
//! The tables translate guest-physical to host-physical addresses. The CPU walks them while we
//! change them, and sets accessed and dirty bits at any time; so an entry is read, decided upon,
//! and replaced with compare-and-exchange, and nothing here ever holds a reference into a table.
//! The memory of the tables is behind the [`Tables`] trait, which the kernel and the tests
//! implement.
//!
//! ```text
//!   entry.rs  one entry: bits, what they mean at each level
//!   shape.rs  levels, sizes, ranges; the trait behind which the memory of the tables is
//!   place.rs  one place in the tree, and what is done to the entry there
//!   table.rs  the tree: walk, map, unmap, protect, split, merge
//!   protect.rs  the right to write: taken away for a dirty log, and given again
//!   age.rs    accessed bits: look, clear
//!   written.rs  dirty bits, likewise
//!   flush.rs  what the caller must flush before it may go on
//! ```
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![forbid(unsafe_code)]

mod age;
mod entry;
mod flush;
mod place;
mod protect;
mod shape;
mod table;
mod written;

pub use entry::{Entry, Kind, NptEntry, Rights};
pub use flush::Flush;
pub use protect::Permit;
pub use shape::{GpaRange, Levels, MapError, Mapping, PageSize, Tables};
pub use table::Npt;
pub use written::{Near, Written};

/// A host-physical address, with the host's memory-encryption bit where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hpa(pub u64);
