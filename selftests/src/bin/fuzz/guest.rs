// SPDX-License-Identifier: GPL-2.0-only

//! Hostile guests: code that does what hypervisors must handle, in states that make sense or none.

use std::mem::offset_of;
use std::os::fd::RawFd;

use kvm_bindings::*;
use selftests::kvm::number;

use crate::arguments::msr;
use crate::rng::Rng;
use crate::world::{ioctl, poke, RAM, RAM_SIZE};

const GDT: usize = 0x1000;
const IDT: usize = 0x1800;
const PAGE_TABLES: usize = 0x2000;
const CODE: usize = 0x8000;
const CODE_SIZE: usize = 0x4000;

/// Instructions that exit or change what the CPU is, without their operands.
const INSTRUCTIONS: [&[u8]; 66] = [
    &[0x0f, 0xa2],                                           // cpuid
    &[0x0f, 0x32],                                           // rdmsr
    &[0x0f, 0x30],                                           // wrmsr
    &[0xf4],                                                 // hlt
    &[0xfb, 0xf4],                                           // sti; hlt
    &[0xfa],                                                 // cli
    &[0xfb],                                                 // sti
    &[0xe6, 0x10],                                           // out
    &[0xe4, 0x61],                                           // in
    &[0xef],                                                 // out %eax, %dx
    &[0xf3, 0x6e],                                           // rep outsb
    &[0xf3, 0x6d],                                           // rep insl
    &[0x6c],                                                 // insb
    &[0xf3, 0xa4],                                           // rep movsb
    &[0xf3, 0xab],                                           // rep stosl
    &[0x0f, 0x20, 0xc0],                                     // mov %cr0, %eax
    &[0x0f, 0x22, 0xc0],                                     // mov %eax, %cr0
    &[0x0f, 0x20, 0xd8],                                     // mov %cr3, %eax
    &[0x0f, 0x22, 0xd8],                                     // mov %eax, %cr3
    &[0x0f, 0x20, 0xe0],                                     // mov %cr4, %eax
    &[0x0f, 0x22, 0xe0],                                     // mov %eax, %cr4
    &[0x44, 0x0f, 0x22, 0xc0],                               // mov %rax, %cr8
    &[0x44, 0x0f, 0x20, 0xc0],                               // mov %cr8, %rax
    &[0x0f, 0x21, 0xf8],                                     // mov %dr7, %eax
    &[0x0f, 0x23, 0xc0],                                     // mov %eax, %dr0
    &[0x0f, 0x01, 0xd1],                                     // xsetbv
    &[0x0f, 0x01, 0xd0],                                     // xgetbv
    &[0x0f, 0x01, 0xd8],                                     // vmrun
    &[0x0f, 0x01, 0xd9],                                     // vmmcall
    &[0x0f, 0x01, 0xc1],                                     // vmcall
    &[0x0f, 0x01, 0xda],                                     // vmload
    &[0x0f, 0x01, 0xdc],                                     // stgi
    &[0x0f, 0x01, 0xdf],                                     // invlpga
    &[0x0f, 0x01, 0xf9],                                     // rdtscp
    &[0x0f, 0x31],                                           // rdtsc
    &[0x0f, 0x33],                                           // rdpmc
    &[0x0f, 0x09],                                           // wbinvd
    &[0x0f, 0x08],                                           // invd
    &[0x0f, 0x01, 0x38],                                     // invlpg
    &[0x66, 0x0f, 0x38, 0x82, 0x00],                         // invpcid
    &[0x0f, 0x01, 0xc8],                                     // monitor
    &[0x0f, 0x01, 0xc9],                                     // mwait
    &[0xf3, 0x90],                                           // pause
    &[0x0f, 0x0b],                                           // ud2
    &[0xcc],                                                 // int3
    &[0xf1],                                                 // int1
    &[0xcd, 0x80],                                           // int
    &[0xcd, 0x02],                                           // int
    &[0xcf],                                                 // iret
    &[0x48, 0xcf],                                           // iretq
    &[0x9c, 0x58, 0x0d, 0x00, 0x01, 0x00, 0x00, 0x50, 0x9d], // the trap flag
    &[0x0f, 0x01, 0x17],                                     // lgdt
    &[0x0f, 0x01, 0x1f],                                     // lidt
    &[0x0f, 0x00, 0xd8],                                     // ltr
    &[0x0f, 0x01, 0xf0],                                     // lmsw
    &[0x0f, 0xae, 0x07],                                     // fxsave
    &[0x0f, 0xae, 0x0f],                                     // fxrstor
    &[0x0f, 0xc7, 0x1f],                                     // xrstors
    &[0x0f, 0x0d, 0x0f],                                     // prefetchw
    &[0x8b, 0x07],                                           // mov (%edi), %eax
    &[0x89, 0x07],                                           // mov %eax, (%edi)
    &[0xf0, 0x0f, 0xb1, 0x0f],                               // lock cmpxchg
    &[0xf0, 0x48, 0x0f, 0xc7, 0x0f],                         // lock cmpxchg16b
    &[0xff, 0x37],                                           // push (%edi)
    &[0x0f, 0x05],                                           // syscall
    &[0xeb, 0xfe],                                           // jmp .
];

/// A little program that has its registers set for what it does.
fn code(rng: &mut Rng, long: bool) -> Vec<u8> {
    let mut code = Vec::new();
    while code.len() < CODE_SIZE - 64 {
        let register = rng.pick(&[0u8, 1, 2, 6, 7]);
        let value = match (rng.below(3), register) {
            (0, 1) | (1, 1) => msr(rng),
            (0, 7) => rng.pick(&[0xfee0_0300, 0xfee0_0380, 0xc000_0000, 0x4000_0000, 0x3000]),
            _ => rng.value() as u32,
        };
        if rng.once_in(2) {
            code.push(0xb8 + register);
            code.extend(value.to_le_bytes());
        }
        if rng.once_in(40) {
            let mut garbage = [0; 4];
            rng.fill(&mut garbage);
            code.extend(garbage);
        }
        if long && rng.once_in(3) {
            code.extend([0x48, 0x0f, 0xba, 0xe8 + register, rng.below(64) as u8]);
            // bts
        }
        code.extend(rng.pick(&INSTRUCTIONS));
    }
    code
}

/// Descriptors of all kinds, interrupt gates that skip nothing, and page tables of which some
/// entries are wrong.
pub(crate) fn fill_memory(rng: &mut Rng) {
    let mut page = [0; 4096];
    for _ in 0..8 {
        rng.fill(&mut page);
        poke(RAM + rng.below(RAM_SIZE / 4096) * 4096, &page);
    }
    let words = |at: usize, words: &[u64]| {
        let bytes: Vec<u8> = words.iter().copied().flat_map(u64::to_le_bytes).collect();
        poke(RAM + at, &bytes);
    };
    let mut gdt = [
        0,
        0x00cf_9b00_0000_ffff, // code, 32 bits
        0x00cf_9300_0000_ffff, // data
        0x00af_9b00_0000_ffff, // code, 64 bits
        0x00cf_fb00_0000_ffff, // code of user mode
        0x00cf_f300_0000_ffff, // data of user mode
        0x0000_8900_3000_0067, // TSS
        0,
    ];
    if rng.once_in(4) {
        gdt[rng.below(8)] ^= 1 << rng.below(64);
    }
    words(GDT, &gdt);
    // Half of the gates lead into the code.
    let gates: Vec<u64> = (0..64)
        .flat_map(|_| match rng.below(2) {
            0 => [0x0000_8e00_0018_8000 + rng.below(CODE_SIZE) as u64, 0],
            _ => [0x0000_8e00_0008_8000 + rng.below(CODE_SIZE) as u64, 0],
        })
        .collect();
    words(IDT, &gates);
    let tables = PAGE_TABLES as u64;
    let mut level4 = [0; 512];
    level4[0] = tables + 0x1007;
    level4[511] = tables + 0x1007;
    level4[256] = rng.value();
    let mut level3 = [0; 512];
    level3[0] = tables + 0x2007;
    level3[3] = 0xc000_0087;
    level3[1] = rng.value();
    let mut level2: Vec<u64> = (0..512).map(|index| index << 21 | 0x87).collect();
    for _ in 0..8 {
        level2[2 + rng.below(510)] = rng.value();
    }
    words(PAGE_TABLES, &level4);
    words(PAGE_TABLES + 0x1000, &level3);
    words(PAGE_TABLES + 0x2000, &level2);
    let code = code(rng, rng.clone().once_in(2));
    poke(RAM + CODE, &code);
}

fn segment(selector: u16, long: bool, type_: u8, dpl: u8) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long && type_ & 8 != 0),
        g: 1,
        ..Default::default()
    }
}

/// Makes the task register of a `kvm_sregs` (or `kvm_sregs2`) an available TSS: QEMU ends with
/// `invalid tss type` when an event leaves user mode in protected mode with another, even a busy
/// one.
pub(crate) fn spare_emulator(sregs: &mut [u8]) {
    const TR: usize = offset_of!(kvm_sregs, tr);
    sregs[TR + offset_of!(kvm_segment, type_)] = 9;
    sregs[TR + offset_of!(kvm_segment, present)] = 1;
    sregs[TR + offset_of!(kvm_segment, unusable)] = 0;
}

/// Puts a vCPU at some place of the code, in real, protected or long mode, with changes now and
/// then. What is refused is refused.
pub(crate) fn set_state(rng: &mut Rng, vcpu: RawFd) {
    let mut sregs = kvm_sregs::default();
    if ioctl(
        vcpu,
        number::GET_SREGS,
        std::ptr::from_mut(&mut sregs) as usize,
    )
    .is_err()
    {
        return;
    }
    let mode = rng.below(4);
    let dpl = if rng.once_in(4) { 3 } else { 0 };
    if mode != 0 {
        let long = mode == 3;
        sregs.cs = segment(if long { 0x18 } else { 8 }, long, 11, dpl);
        sregs.ds = segment(0x10, long, 3, dpl);
        (sregs.es, sregs.ss) = (sregs.ds, sregs.ds);
        (sregs.fs, sregs.gs) = (sregs.ds, sregs.ds);
        sregs.tr.base = 0x3000;
        sregs.tr.limit = 0x67;
        (sregs.gdt.base, sregs.gdt.limit) = (GDT as u64, 63);
        (sregs.idt.base, sregs.idt.limit) = (IDT as u64, 0x3ff);
        sregs.cr0 = 0x11;
        sregs.cr4 = 0x620;
        sregs.cr3 = PAGE_TABLES as u64;
        if long {
            sregs.cr0 |= 1 << 31;
            sregs.efer = 0x500;
        }
    } else {
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
    }
    let bytes: &mut [u8] =
        // SAFETY: The structure consists of integers, and nothing else refers to it.
        unsafe { std::slice::from_raw_parts_mut((&raw mut sregs).cast(), size_of::<kvm_sregs>()) };
    if rng.once_in(3) {
        rng.mutate(bytes);
    }
    spare_emulator(bytes);
    let mut regs = kvm_regs {
        rip: (CODE + rng.below(CODE_SIZE)) as u64,
        rsp: 0x4000,
        rflags: 2 | (rng.below(2) as u64) << 9,
        rcx: msr(rng).into(),
        rdi: 0x5000,
        rsi: 0x6000,
        rax: rng.value(),
        rdx: rng.value(),
        ..Default::default()
    };
    if rng.once_in(4) {
        (regs.rip, regs.rflags, regs.rsp) = (rng.value(), rng.value(), rng.value());
    }
    let _ = ioctl(vcpu, number::SET_SREGS, std::ptr::from_ref(&sregs) as usize);
    let _ = ioctl(vcpu, number::SET_REGS, std::ptr::from_ref(&regs) as usize);
}
