// SPDX-License-Identifier: GPL-2.0-only

//! The paravirtual clock's pages (the kernel's Documentation/virt/kvm/x86/msr.rst).

/// The rate of a TSC as multiplier and shift: `ns = ((ticks << shift) * mul) >> 32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// The multiplier, a 32-bit binary fraction.
    pub mul: u32,
    /// The shift before it: to the left if positive, to the right if negative.
    pub shift: i8,
}

impl Scale {
    /// The scale of a TSC of `khz`; zero is taken as one.
    pub fn new(khz: u32) -> Self {
        let _ = khz;
        todo!()
    }

    /// Nanoseconds in `ticks`.
    pub fn ns(&self, ticks: u64) -> u64 {
        let _ = ticks;
        todo!()
    }
}

/// The clock of one vCPU at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PvClock {
    /// The guest's TSC at that instant.
    pub tsc: u64,
    /// The guest's nanoseconds since boot at that instant.
    pub system_time: u64,
    /// The TSC's rate.
    pub scale: Scale,
    /// The clock is the same on all vCPUs.
    pub stable: bool,
    /// The vCPU was stopped, so a watchdog must not bark.
    pub guest_stopped: bool,
}

impl PvClock {
    /// Bytes of the page that are used.
    pub const SIZE: usize = 32;

    /// The bytes to store; `version` is odd while the page is being changed.
    pub fn bytes(&self, version: u32) -> [u8; Self::SIZE] {
        let _ = version;
        todo!()
    }
}

/// The wall-clock time at the guest's boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallClock {
    /// Seconds since 1970.
    pub sec: u32,
    /// Nanoseconds of the second.
    pub nsec: u32,
}

impl WallClock {
    /// Bytes of the structure.
    pub const SIZE: usize = 12;

    /// The bytes to store; `version` is odd while the structure is being changed.
    pub fn bytes(&self, version: u32) -> [u8; Self::SIZE] {
        let _ = version;
        todo!()
    }
}
