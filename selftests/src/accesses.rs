// SPDX-License-Identifier: GPL-2.0-only

//! A VMM's answers to a guest's accesses of devices, written down one after the other.

use std::fmt::Write;

use kvm_bindings::*;

use crate::machine::Vcpu;

/// What an input from any port gives.
const PORT_DATA: [u8; 4] = [0xa1, 0xa2, 0xa3, 0xa4];

/// Answers a `KVM_EXIT_MMIO`: what is read depends on the address. Adds `rADDRESS:SIZE;` or
/// `wADDRESS:[BYTES];` to `trace`.
pub fn mmio(vcpu: &Vcpu, trace: &mut String) {
    // SAFETY: The exit reason says which part of the union is meant.
    let access = unsafe { vcpu.shared().__bindgen_anon_1.mmio };
    let length = (access.len as usize).min(8);
    let address = access.phys_addr;
    if access.is_write != 0 {
        let _ = write!(trace, "w{address:x}:{:02x?};", &access.data[..length]);
    } else {
        let _ = write!(trace, "r{address:x}:{length};");
        let data = std::array::from_fn(|at| (address as u8).wrapping_add(at as u8) ^ 0x5a);
        vcpu.share(|shared| shared.__bindgen_anon_1.mmio.data = data);
    }
}

/// Answers a `KVM_EXIT_IO`. Adds `inPORT:SIZE;` or `outPORT:[BYTES];` to `trace`.
pub fn port(vcpu: &Vcpu, trace: &mut String) {
    // SAFETY: As above.
    let io = unsafe { vcpu.shared().__bindgen_anon_1.io };
    for index in 0..io.count as usize {
        let size = usize::from(io.size).min(PORT_DATA.len());
        let offset = io.data_offset as usize + index * size;
        if u32::from(io.direction) == KVM_EXIT_IO_IN {
            vcpu.page().write(offset, &PORT_DATA[..size]);
            let _ = write!(trace, "in{:x}:{size};", io.port);
        } else {
            let data = vcpu.page().read(offset, size);
            let _ = write!(trace, "out{:x}:{data:02x?};", io.port);
        }
    }
}
