// SPDX-License-Identifier: GPL-2.0-only

//! Arguments of ioctls: what a VMM gives, with something wrong in it now and then.

use kvm_bindings::*;

use selftests::memory::PAGE;

use crate::rng::Rng;
use crate::world::{Fixed, BITMAP, RAM, RAM_SIZE, RUN_PAGES};

/// Makes an argument for an ioctl whose structure has this size; what follows it comes with it.
pub(crate) type Make = fn(&mut Rng, &Fixed, usize) -> Vec<u8>;

/// The bytes of a structure of the interface.
fn bytes<T>(value: &T) -> Vec<u8> {
    let start = std::ptr::from_ref(value).cast::<u8>();
    // SAFETY: The structures of the interface consist of integers without implicit padding.
    unsafe { std::slice::from_raw_parts(start, size_of::<T>()) }.to_vec()
}

/// The bytes of a structure, and once in a while changes to it.
fn finish<T>(rng: &mut Rng, value: &T) -> Vec<u8> {
    let mut bytes = bytes(value);
    if rng.once_in(4) {
        rng.mutate(&mut bytes);
    }
    bytes
}

/// Words without meaning.
pub(crate) fn words(rng: &mut Rng, _: &Fixed, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    for chunk in bytes.chunks_mut(8) {
        let value = rng.value().to_le_bytes();
        chunk.copy_from_slice(&value[..chunk.len()]);
    }
    bytes
}

/// Zeros, with a small number at the beginning.
pub(crate) fn few_bits(rng: &mut Rng, _: &Fixed, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    bytes[0] = rng.below(40) as u8;
    if rng.once_in(4) {
        rng.mutate(&mut bytes);
    }
    bytes
}

/// Zeros, with 0, 1 or 2 at the beginning.
pub(crate) fn one_bit(rng: &mut Rng, _: &Fixed, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    bytes[0] = rng.below(3) as u8;
    if rng.once_in(4) {
        rng.mutate(&mut bytes);
    }
    bytes
}

/// A header that says how many elements there is room for.
pub(crate) fn room(rng: &mut Rng, _: &Fixed, _: usize) -> Vec<u8> {
    let count = match rng.below(4) {
        0 => rng.value(),
        1 => rng.below(60) as u64,
        _ => 256,
    } as u32;
    let mut bytes = vec![0; 8 + count.min(256) as usize * 40];
    bytes[..4].copy_from_slice(&count.to_le_bytes());
    bytes
}

/// The memory of a process that a slot may get: usable, partly usable, or none at all.
fn user_memory(rng: &mut Rng) -> u64 {
    match rng.below(12) {
        0 => RUN_PAGES as u64,
        1 => rng.value(),
        2 => RAM as u64 + rng.below(4096) as u64,
        3 => 0x50_0000_0000,
        _ => RAM as u64 + (rng.below(8) as u64) * 0x1000,
    }
}

/// A guest-physical address: RAM, the local APIC, and the edges.
fn guest_address(rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0 => rng.value() & !0xfff,
        1 => rng.value(),
        2 => rng.pick(&[0xfee0_0000, 0xfec0_0000, 0xfffb_c000]),
        3 => rng.pick(&[0x8000_0000, 0xc000_0000, 0x1_0000_0000]),
        _ => rng.below(64) as u64 * 0x8000,
    }
}

/// A slot that is made, moved, changed or deleted.
pub(crate) fn region(rng: &mut Rng, _: &Fixed, size: usize) -> Vec<u8> {
    let mut flags = rng.below(4) as u32;
    let memory_size = match rng.below(12) {
        0 | 1 => 0,
        2 => 0x20_0000,
        3 => rng.value(),
        4 => rng.value() & 0x3fff_ffff_f000,
        _ => (1 + rng.below(128) as u64) * 0x1000,
    };
    // A dirty log costs memory; the host has little.
    if memory_size > 1 << 28 {
        flags &= !KVM_MEM_LOG_DIRTY_PAGES;
    } else if rng.once_in(16) {
        flags = rng.value() as u32;
    }
    let slot = match rng.below(8) {
        0 => rng.pick(&[32763, 32764, 0x1_0000, u32::MAX]),
        _ => rng.below(5) as u32,
    };
    let region = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: guest_address(rng),
        memory_size,
        userspace_addr: user_memory(rng),
    };
    let mut bytes = bytes(&region);
    bytes.resize(size, 0);
    if rng.once_in(32) && size > 32 {
        rng.mutate(&mut bytes[32..]);
    }
    bytes
}

/// `kvm_dirty_log` or `kvm_clear_dirty_log`: both begin with a slot and end with an address.
pub(crate) fn dirty_log(rng: &mut Rng, _: &Fixed, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    // Mostly the slot of all memory, and all of its pages.
    let slot = if rng.once_in(2) {
        0
    } else {
        rng.below(5) as u32
    };
    let all = (RAM_SIZE / PAGE) as u32;
    bytes[..4].copy_from_slice(&slot.to_le_bytes());
    bytes[4..8].copy_from_slice(&(rng.pick(&[all, all, 0, 64, 65, u32::MAX])).to_le_bytes());
    bytes[size - 8..].copy_from_slice(&(BITMAP as u64).to_le_bytes());
    if rng.once_in(4) {
        rng.mutate(&mut bytes);
    }
    bytes
}

const CAPABILITIES: [u32; 15] = [
    KVM_CAP_SPLIT_IRQCHIP,
    KVM_CAP_X2APIC_API,
    KVM_CAP_MAX_VCPU_ID,
    KVM_CAP_DISABLE_QUIRKS,
    KVM_CAP_DISABLE_QUIRKS2,
    KVM_CAP_EXCEPTION_PAYLOAD,
    KVM_CAP_X86_USER_SPACE_MSR,
    KVM_CAP_X86_DISABLE_EXITS,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_CAP_HALT_POLL,
    KVM_CAP_DIRTY_LOG_RING,
    KVM_CAP_X86_TRIPLE_FAULT_EVENT,
    KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
    KVM_CAP_EXIT_ON_EMULATION_FAILURE,
    KVM_CAP_X86_APIC_BUS_CYCLES_NS,
];

pub(crate) fn capability(rng: &mut Rng, _: &Fixed, _: usize) -> Vec<u8> {
    let mut cap = kvm_enable_cap {
        cap: rng.pick(&CAPABILITIES),
        ..Default::default()
    };
    cap.args[0] = rng.pick(&[0, 1, 2, 3, 4, 24, 64, 255, 1000]);
    finish(rng, &cap)
}

pub(crate) fn chip(rng: &mut Rng, _: &Fixed, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    bytes[0] = rng.below(4) as u8;
    bytes
}

pub(crate) fn line(rng: &mut Rng, _: &Fixed, _: usize) -> Vec<u8> {
    let level = kvm_irq_level {
        __bindgen_anon_1: kvm_irq_level__bindgen_ty_1 {
            irq: rng.below(26) as u32,
        },
        level: rng.below(2) as u32,
    };
    finish(rng, &level)
}

/// The address and data of a message to local APICs, usually of one that is there.
fn message(rng: &mut Rng) -> (u32, u32, u32) {
    match rng.below(4) {
        0 => (rng.value() as u32, rng.value() as u32, rng.value() as u32),
        _ => (
            0xfee0_0000 | (rng.pick(&[0u32, 1, 2, 0xff])) << 12 | (rng.below(4) as u32) << 2,
            rng.pick(&[0, 0, 1, 0xffff_ff00]),
            rng.below(256) as u32 | (rng.below(8) as u32) << 8 | (rng.below(4) as u32) << 14,
        ),
    }
}

pub(crate) fn msi(rng: &mut Rng, _: &Fixed, _: usize) -> Vec<u8> {
    let (address_lo, address_hi, data) = message(rng);
    let msi = kvm_msi {
        address_lo,
        address_hi,
        data,
        ..Default::default()
    };
    finish(rng, &msi)
}

pub(crate) fn routing(rng: &mut Rng, _: &Fixed, _: usize) -> Vec<u8> {
    let count = 1 + rng.below(40) as u32;
    let said = if rng.once_in(16) {
        rng.value() as u32
    } else {
        count
    };
    let mut bytes_of_all = said.to_le_bytes().to_vec();
    bytes_of_all.extend([0; 4]);
    for gsi in 0..count {
        let mut entry = kvm_irq_routing_entry {
            gsi: if rng.once_in(16) {
                rng.value() as u32
            } else {
                gsi
            },
            type_: KVM_IRQ_ROUTING_IRQCHIP,
            ..Default::default()
        };
        if rng.once_in(2) {
            entry.type_ = KVM_IRQ_ROUTING_MSI;
            let (address_lo, address_hi, data) = message(rng);
            entry.u.msi = kvm_irq_routing_msi {
                address_lo,
                address_hi,
                data,
                ..Default::default()
            };
        } else {
            entry.u.irqchip.irqchip = rng.below(3) as u32;
            entry.u.irqchip.pin = rng.below(24) as u32 % 25;
        }
        let mut entry = bytes(&entry);
        if rng.once_in(32) {
            rng.mutate(&mut entry);
        }
        bytes_of_all.extend(entry);
    }
    if rng.once_in(32) {
        rng.mutate(&mut bytes_of_all);
    }
    bytes_of_all
}

pub(crate) fn irqfd(rng: &mut Rng, fixed: &Fixed, _: usize) -> Vec<u8> {
    let flags = match rng.below(4) {
        0 => KVM_IRQFD_FLAG_DEASSIGN,
        1 => KVM_IRQFD_FLAG_RESAMPLE,
        _ => 0,
    };
    let irqfd = kvm_irqfd {
        fd: fixed.event(rng) as u32,
        gsi: rng.below(30) as u32,
        flags,
        resamplefd: fixed.event(rng) as u32,
        ..Default::default()
    };
    finish(rng, &irqfd)
}

pub(crate) fn ioeventfd(rng: &mut Rng, fixed: &Fixed, _: usize) -> Vec<u8> {
    let doorbell = kvm_ioeventfd {
        datamatch: rng.below(4) as u64,
        addr: rng.pick(&[0x10, 0x3f8, 0xf000, 0x4000_0000, 0xc000_0000]),
        len: rng.pick(&[0, 1, 2, 4, 8, 3]),
        fd: fixed.event(rng),
        flags: rng.below(16) as u32,
        ..Default::default()
    };
    finish(rng, &doorbell)
}

pub(crate) fn zone(rng: &mut Rng, _: &Fixed, _: usize) -> Vec<u8> {
    let mut zone = kvm_coalesced_mmio_zone {
        addr: rng.pick(&[0x10, 0x3f8, 0xf000, 0x4000_0000, 0xc000_0000]),
        size: rng.pick(&[1, 8, 0x1000]),
        ..Default::default()
    };
    zone.__bindgen_anon_1.pio = rng.below(2) as u32;
    finish(rng, &zone)
}

pub(crate) const MSRS: [u32; 36] = [
    0x10,
    0x1b,
    0x3a,
    0x48,
    0x8b,
    0xc0,
    0xe7,
    0xfe,
    0x174,
    0x175,
    0x176,
    0x179,
    0x17a,
    0x1a0,
    0x1d9,
    0x200,
    0x250,
    0x277,
    0x2ff,
    0x38f,
    0x400,
    0x401,
    0x6e0,
    0x808,
    0x80b,
    0x830,
    0x83f,
    0xda0,
    0x4b56_4d00,
    0x4b56_4d01,
    0x4b56_4d03,
    0x4b56_4d04,
    0xc000_0080,
    0xc000_0081,
    0xc000_0103,
    0xc001_0114,
];

/// An MSR's number, most often of one that is there.
pub(crate) fn msr(rng: &mut Rng) -> u32 {
    match rng.below(8) {
        0 => rng.value() as u32,
        1 => 0xc000_0080 + rng.below(0x110) as u32,
        2 => 0xc001_0000 + rng.below(0x120) as u32,
        3 => 0x800 + rng.below(0x40) as u32,
        4 => 0x4b56_4d00 + rng.below(9) as u32,
        _ => rng.pick(&MSRS),
    }
}

pub(crate) fn msrs(rng: &mut Rng, _: &Fixed, _: usize) -> Vec<u8> {
    let count = 1 + rng.below(12) as u32;
    let said = if rng.once_in(16) {
        rng.value() as u32
    } else {
        count
    };
    let mut bytes = [said, 0].map(u32::to_le_bytes).concat();
    for _ in 0..count {
        let index = msr(rng);
        let value = match index {
            // The paravirtual clock and its kin: an address, and that it is on.
            0x4b56_4d00..=0x4b56_4d08 if rng.once_in(2) => 0x7001,
            _ => rng.value(),
        };
        bytes.extend([index, 0].map(u32::to_le_bytes).concat());
        bytes.extend(value.to_le_bytes());
    }
    bytes
}

/// Never without `SIGUSR1`, which ends each `KVM_RUN`.
pub(crate) fn signals(rng: &mut Rng, _: &Fixed, _: usize) -> Vec<u8> {
    let length = if rng.once_in(8) {
        rng.value() as u32
    } else {
        8
    };
    let mask = rng.next() & !(1 << (libc::SIGUSR1 - 1));
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(mask.to_le_bytes());
    bytes
}

pub(crate) fn cpuid(rng: &mut Rng, fixed: &Fixed, _: usize) -> Vec<u8> {
    let mut entries = fixed.cpuid.clone();
    for _ in 0..rng.below(3) {
        let index = rng.below(entries.len());
        let entry = &mut entries[index];
        match rng.below(5) {
            0 => entry.eax ^= 1 << rng.below(32),
            1 => entry.ebx = rng.value() as u32,
            2 => entry.ecx ^= 1 << rng.below(32),
            3 => entry.edx ^= 1 << rng.below(32),
            _ => entry.function = rng.value() as u32,
        }
    }
    if rng.once_in(8) {
        entries.truncate(1 + rng.below(entries.len()));
    }
    let said = if rng.once_in(16) {
        rng.value() as u32
    } else {
        entries.len() as u32
    };
    let mut all = [said, 0].map(u32::to_le_bytes).concat();
    for entry in &entries {
        all.extend(bytes(entry));
    }
    all
}

/// No breakpoint is enabled: two kinds of them end QEMU (`tcg-watchpoint-abort` and
/// `tcg-breakpoint-base` in selftests/guests/excuses).
const NO_BREAKPOINT: u64 = 0xff00;

pub(crate) fn debug_registers(rng: &mut Rng, _: &Fixed, _: usize) -> Vec<u8> {
    let mut registers = kvm_debugregs {
        db: [0x8000, 0x8001, rng.value(), rng.value()],
        dr6: rng.value() & 0xffff_ffff,
        dr7: rng.value() & NO_BREAKPOINT,
        ..Default::default()
    };
    if rng.once_in(8) {
        registers.flags = rng.value();
    }
    if rng.once_in(8) {
        registers.dr7 = rng.value() & NO_BREAKPOINT | 1 << 32;
    }
    bytes(&registers)
}

pub(crate) fn guest_debug(rng: &mut Rng, _: &Fixed, _: usize) -> Vec<u8> {
    let mut debug = kvm_guest_debug {
        control: match rng.below(4) {
            0 => rng.value() as u32,
            _ => rng.pick(&[0, 1, 3, 0x1_0001, 0x2_0001, 0x3_0003]),
        },
        ..Default::default()
    };
    debug.arch.debugreg = [0x8000, 0x8001, rng.value(), 0x9000, 0, 0, 0, 0];
    debug.arch.debugreg[7] = rng.value() & NO_BREAKPOINT;
    bytes(&debug)
}

pub(crate) fn filter(rng: &mut Rng, _: &Fixed, size: usize) -> Vec<u8> {
    let mut words = vec![0u32; size / 4];
    words[0] = rng.below(3) as u32;
    for range in words[2..].chunks_mut(6).take(rng.below(4)) {
        range[0] = 1 + rng.below(3) as u32;
        range[1] = rng.pick(&[1, 64, 4096, 0x3000, u32::MAX]);
        range[2] = msr(rng);
        let bitmap = BITMAP as u64;
        (range[4], range[5]) = (bitmap as u32, (bitmap >> 32) as u32);
    }
    let mut bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    if rng.once_in(4) {
        rng.mutate(&mut bytes);
    }
    bytes
}

pub(crate) fn pre_fault(rng: &mut Rng, _: &Fixed, _: usize) -> Vec<u8> {
    let range = kvm_pre_fault_memory {
        gpa: guest_address(rng),
        size: (rng.below(64) as u64) * 0x1000,
        ..Default::default()
    };
    finish(rng, &range)
}

pub(crate) fn nested_state(rng: &mut Rng, _: &Fixed, _: usize) -> Vec<u8> {
    let state = kvm_nested_state {
        flags: KVM_STATE_NESTED_GIF_SET as u16,
        format: KVM_STATE_NESTED_FORMAT_SVM as u16,
        size: 128,
        ..Default::default()
    };
    finish(rng, &state)
}

/// The TSC's offset is the one attribute that there may be.
pub(crate) fn attribute(rng: &mut Rng, _: &Fixed, _: usize) -> Vec<u8> {
    let attribute = kvm_device_attr {
        addr: BITMAP as u64,
        ..Default::default()
    };
    finish(rng, &attribute)
}
