// SPDX-License-Identifier: GPL-2.0-only

//! The I/O permission map: which ports exit (APM vol. 2, 15.10.1).
//!
//! One bit a port, set for an exit; an access to several ports exits if any of them does. The
//! third page is for an access that begins at the last port.

/// Bytes in the map: three pages, physically contiguous.
pub const SIZE: usize = 0x3000;

/// Fills the map: every port exits.
pub fn init(map: &mut [u8; SIZE]) {
    map.fill(0xff);
}
