// SPDX-License-Identifier: GPL-2.0-only

//! Coalesced I/O: what a guest's writes leave in the ring, a ring that is full, and indices that no
//! honest VMM writes.

use kvm_bindings::*;
use selftests::kvm::{number, Handle};
use selftests::tap::{equal, skipped};

use crate::bare::{vm, Bare, OUT};
use crate::{refused, Test};

pub(crate) const TESTS: &[Test] = &[
    ("KVM_REGISTER_COALESCED_MMIO refuses bad zones", zones),
    ("coalesced writes are in the ring, in order", entries),
    (
        "a full ring of coalesced writes is the VMM's to empty",
        full,
    ),
    (
        "bad indices of the ring of coalesced writes do no harm",
        hostile,
    ),
];

const MMIO: u64 = 0xd000_0000;
const PORT: u8 = 0x30;
/// Writes 0x11 to the port, 0x2233 to the address, tells so, and begins anew.
const CODE: [u8; 16] = [
    0xb0, 0x11, 0xe6, PORT, 0xb8, 0x33, 0x22, 0xa3, 0x10, 0, 0xb0, 0, OUT[0], OUT[1], 0xeb, 0xf0,
];
const PAGE: usize = 4096;
const HEADER: usize = 8;
const ENTRY: usize = 24;
const ENTRIES: u32 = ((PAGE - HEADER) / ENTRY) as u32;

fn zone(addr: u64, size: u32, pio: u32) -> kvm_coalesced_mmio_zone {
    kvm_coalesced_mmio_zone {
        addr,
        size,
        __bindgen_anon_1: kvm_coalesced_mmio_zone__bindgen_ty_1 { pio },
    }
}

fn offers(path: &str) -> Result<bool, String> {
    let device = Handle::open(path).map_err(|e| e.to_string())?;
    Ok(device.extension(KVM_CAP_COALESCED_MMIO) > 0)
}

const NONE: &str = "the device has no coalesced MMIO";

fn zones(path: &str) -> Result<(), String> {
    if !offers(path)? {
        return skipped(NONE);
    }
    let (_device, vm) = vm(path)?;
    let register = number::REGISTER_COALESCED_MMIO;
    let third = zone(MMIO, 0x1000, 2);
    refused("a third kind", vm.set(register, &third), libc::EINVAL)?;
    for _ in 0..50 {
        equal("memory", vm.set(register, &zone(MMIO, 0x1000, 0)), Ok(0))?;
        equal("ports", vm.set(register, &zone(MMIO, 0x1000, 1)), Ok(0))?;
    }
    Ok(())
}

/// The guest and where its ring is.
struct Ring {
    bare: Bare,
    at: usize,
}

impl Ring {
    fn new(path: &str) -> Result<Self, String> {
        let bare = Bare::with(path, &CODE, |vm| {
            vm.set(number::REGISTER_COALESCED_MMIO, &zone(MMIO, 0x1000, 0))?;
            vm.set(number::REGISTER_COALESCED_MMIO, &zone(PORT.into(), 1, 1))?;
            Ok(())
        })?;
        let mut sregs: kvm_sregs = bare.vcpu.handle.get(number::GET_SREGS)?;
        sregs.ds.base = MMIO;
        bare.vcpu.handle.set(number::SET_SREGS, &sregs)?;
        let at = bare.device.extension(KVM_CAP_COALESCED_MMIO) as usize * PAGE;
        Ok(Self { bare, at })
    }

    fn word(&self, offset: usize) -> u32 {
        let bytes = self.bare.vcpu.page().read(self.at + offset, 4);
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// First and last.
    fn indices(&self) -> (u32, u32) {
        (self.word(0), self.word(4))
    }

    fn set_indices(&self, first: u32, last: u32) {
        let page = self.bare.vcpu.page();
        page.write(self.at, &first.to_le_bytes());
        page.write(self.at + 4, &last.to_le_bytes());
    }

    /// Address, length, whether it is a port, data.
    fn entry(&self, index: usize) -> (u64, u32, u32, Vec<u8>) {
        let at = HEADER + index * ENTRY;
        let (low, high) = (self.word(at), self.word(at + 4));
        let length = self.word(at + 8);
        let page = self.bare.vcpu.page();
        let data = page.read(self.at + at + 16, length.min(8) as usize);
        let address = u64::from(high) << 32 | u64::from(low);
        (address, length, self.word(at + 12), data.to_vec())
    }
}

fn entries(path: &str) -> Result<(), String> {
    if !offers(path)? {
        return skipped(NONE);
    }
    let ring = Ring::new(path)?;
    for round in 0..3 {
        equal("no exit before", ring.bare.byte(), Ok(0))?;
        equal("indices", ring.indices(), (0, 2 * round + 2))?;
        let at = 2 * round as usize;
        equal("port", ring.entry(at), (PORT.into(), 1, 1, vec![0x11]))?;
        let memory = (MMIO + 0x10, 2, 0, vec![0x33, 0x22]);
        equal("memory", ring.entry(at + 1), memory)?;
    }
    Ok(())
}

fn full(path: &str) -> Result<(), String> {
    if !offers(path)? {
        return skipped(NONE);
    }
    let ring = Ring::new(path)?;
    for _ in 0..ENTRIES / 2 - 1 {
        equal("no exit before", ring.bare.byte(), Ok(0))?;
    }
    // There is room for one, and one entry stays free.
    equal("the write comes out", ring.bare.exit(), Ok(KVM_EXIT_MMIO))?;
    equal("full", ring.indices(), (0, ENTRIES - 1))?;
    ring.set_indices(ENTRIES - 1, ENTRIES - 1);
    equal("the next byte", ring.bare.byte(), Ok(0))?;
    equal("still empty", ring.indices(), (ENTRIES - 1, ENTRIES - 1))?;
    equal("room again", ring.bare.byte(), Ok(0))?;
    equal("around the end", ring.indices(), (ENTRIES - 1, 1))?;
    equal("the first", ring.entry(0).0, MMIO + 0x10)
}

fn hostile(path: &str) -> Result<(), String> {
    if !offers(path)? {
        return skipped(NONE);
    }
    let ring = Ring::new(path)?;
    for last in [ENTRIES, ENTRIES + 1, 0x8000_0000, u32::MAX] {
        ring.bare.start()?;
        ring.set_indices(0, last);
        equal("the port's write", ring.bare.byte(), Ok(0x11))?;
        equal("untouched", ring.indices(), (0, last))?;
    }
    for first in [ENTRIES, ENTRIES + 1, 0x8000_0000, u32::MAX] {
        ring.bare.start()?;
        ring.set_indices(first, 5);
        ring.bare.exit()?;
        equal("a place", ring.indices().1 < ENTRIES, true)?;
    }
    Ok(())
}
