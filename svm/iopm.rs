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

/// Sets whether accesses to `port` exit.
pub fn set(map: &mut [u8; SIZE], port: u16, exits: bool) {
    if let Some(byte) = map.get_mut(usize::from(port / 8)) {
        let bit = 1 << (port % 8);
        *byte = if exits { *byte | bit } else { *byte & !bit };
    }
}

/// Whether an access to `size` ports from `port` on exits.
pub fn exits(map: &[u8; SIZE], port: u16, size: u8) -> bool {
    (0..usize::from(size)).any(|n| {
        let port = usize::from(port) + n;
        map.get(port / 8)
            .is_none_or(|byte| byte >> (port % 8) & 1 != 0)
    })
}
