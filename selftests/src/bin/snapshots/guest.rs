// SPDX-License-Identifier: GPL-2.0-only

//! The guest: each CPU works, and counts the interrupts of its timers. It checks itself that
//! nothing is early, that no clock goes back, and that its registers and memory stay what they
//! were.

use std::arch::global_asm;

use selftests::memory::Mapping;

/// Where each CPU's record is; the records of the others follow at this distance.
pub(crate) const RECORDS: u64 = 0xa_0000;
pub(crate) const RECORD: u64 = 0x1000;
/// The table of interrupts.
pub(crate) const IDT: u64 = 0x9_0000;
pub(crate) const IDT_SIZE: u16 = 256 * 16;
/// The end of the first CPU's stack; those of the others follow.
pub(crate) const STACKS: u64 = 0x8_1000;
/// The port that the guest reads from, and what it wants to read there.
pub(crate) const ASKED: (u16, u8) = (0x11, 0x5a);

/// The modes of a local APIC's timer (APM vol. 2, 16.4.1), as the record has them. The CPU of this
/// number uses it.
pub(crate) const DEADLINE: usize = 0;
pub(crate) const PERIODIC: usize = 1;
pub(crate) const ONE_SHOT: usize = 2;
pub(crate) const CPUS: usize = 3;

/// The fields of a record, each of 8 bytes, as the assembly below has them.
#[derive(Clone, Copy)]
#[repr(u64)]
pub(crate) enum Field {
    /// Interrupts of the local APIC's timer.
    Timer,
    /// Interrupts of the PIT.
    Pit,
    /// Rounds of work.
    Work,
    /// What was found wrong: an index of [`FAULTS`].
    Fault,
    /// The kvmclock's latest time.
    Clock = 5,
    /// The timer's mode.
    Mode = 7,
    /// Whether an interrupt that comes twice is a fault.
    Strict,
    /// The timer's distance, in ticks of its clock.
    Distance,
    /// Whether this CPU has a PIT.
    HasPit,
    /// What the kvmclock showed last.
    Shown,
    /// The kvmclock's record: version, TSC, time, scale with shift and flags.
    Record = 0x100,
}

/// What the guest finds wrong.
pub(crate) const FAULTS: [&str; 9] = [
    "nothing",
    "another interrupt or an exception",
    "a timer's interrupt before its time, or twice",
    "its TSC went back",
    "its kvmclock went back",
    "a general register changed",
    "a vector register changed",
    "a word in memory changed",
    "a port was not read",
];

/// The guest's code.
pub(crate) fn code() -> Vec<u8> {
    extern "C" {
        static snapshots_guest: u8;
        static snapshots_guest_end: u8;
    }
    // SAFETY: The assembly below lies between the two, and nobody writes it.
    unsafe {
        let start = &raw const snapshots_guest;
        let end = &raw const snapshots_guest_end;
        std::slice::from_raw_parts(start, end.offset_from(start) as usize).to_vec()
    }
}

/// Offsets of the handlers of interrupts, in the code.
const TIMER_HANDLER: u64 = 0x10;
const PIT_HANDLER: u64 = 0x20;
const STRAY_HANDLER: u64 = 0x30;
const SPURIOUS_HANDLER: u64 = 0x40;

/// The table of interrupts, for code at this address.
pub(crate) fn write_idt(ram: &Mapping, code: u64) {
    const CODE_SEGMENT: u64 = 8;
    const INTERRUPT_GATE: u64 = 0x8e00;
    for vector in 0..256 {
        let handler = match vector {
            0x30 => TIMER_HANDLER,
            0x31 => PIT_HANDLER,
            0xff => SPURIOUS_HANDLER,
            _ => STRAY_HANDLER,
        };
        // The code is below 64 KiB.
        let gate = (code + handler) | CODE_SEGMENT << 16 | INTERRUPT_GATE << 32;
        ram.write_words((IDT + vector * 16) as usize, &[gate, 0]);
    }
}

// R15 is the record's address and stays so. Handlers change nothing.
global_asm!(
    ".pushsection .rodata",
    ".global snapshots_guest",
    ".global snapshots_guest_end",
    ".balign 16",
    "snapshots_guest:",
    "jmp 10f",
    ".balign 16",
    "jmp 20f",
    ".balign 16",
    "jmp 30f",
    ".balign 16",
    "mov $1, %eax",
    "jmp 90f",
    ".balign 16",
    "iretq",
    ".balign 16",
    ".macro write msr, low, high=0",
    "mov $\\msr, %ecx",
    "mov $\\low, %eax",
    "mov $\\high, %edx",
    "wrmsr",
    ".endm",
    // RAX = TSC; changes RDX.
    ".macro ticks",
    "rdtsc",
    "shl $32, %rdx",
    "or %rdx, %rax",
    ".endm",
    // Arms the timer; changes RAX, RCX, RDX.
    ".macro arm",
    "cmpq $0, 0x38(%r15)",
    "jne 1f",
    "ticks",
    "add 0x48(%r15), %rax",
    "mov %rax, 0x30(%r15)",
    "mov %rax, %rdx",
    "shr $32, %rdx",
    "mov $0x6e0, %ecx",
    "wrmsr",
    "jmp 2f",
    "1: mov 0x48(%r15), %eax",
    "xor %edx, %edx",
    "mov $0x838, %ecx",
    "wrmsr",
    "2:",
    ".endm",
    // An interrupt of the timer. If it is early, it may be one that came before.
    "20: push %rax",
    "push %rcx",
    "push %rdx",
    "cmpq $1, 0x38(%r15)",
    "je 23f",
    "jb 21f",
    "mov $0x839, %ecx",
    "rdmsr",
    "test %eax, %eax",
    "jz 22f",
    "jmp 24f",
    "21: ticks",
    "cmp 0x30(%r15), %rax",
    "jae 22f",
    "24: cmpq $0, 0x40(%r15)",
    "je 25f",
    "mov $2, %eax",
    "jmp 90f",
    "22: arm",
    "23: incq (%r15)",
    "25: write 0x80b, 0",
    "pop %rdx",
    "pop %rcx",
    "pop %rax",
    "iretq",
    // An interrupt of the PIT.
    "30: push %rax",
    "push %rcx",
    "push %rdx",
    "incq 0x08(%r15)",
    "jmp 25b",
    // The beginning: the kvmclock's record, the local APIC, the PIT by the IOAPIC and not the PICs.
    "10: lea 0x801(%r15), %rax",
    "mov $0x4b564d01, %ecx",
    "xor %edx, %edx",
    "wrmsr",
    "write 0x80f, 0x1ff",
    "write 0x83e, 0xb",
    "mov 0x38(%r15), %rcx",
    "mov $0x40030, %eax",
    "jrcxz 11f",
    "mov $0x20030, %eax",
    "dec %ecx",
    "jz 11f",
    "mov $0x00030, %eax",
    "11: mov $0x832, %ecx",
    "xor %edx, %edx",
    "wrmsr",
    "cmpq $0, 0x50(%r15)",
    "je 12f",
    "mov $0xff, %al",
    "out %al, $0x21",
    "out %al, $0xa1",
    "mov $0xfec00000, %ebx",
    "movl $0x11, (%rbx)",
    "movl $0, 0x10(%rbx)",
    "movl $0x10, (%rbx)",
    "movl $0x31, 0x10(%rbx)",
    "mov $0x34, %al",
    "out %al, $0x43",
    "mov $0x00, %al",
    "out %al, $0x40",
    "mov $0x10, %al",
    "out %al, $0x40",
    "12: mov %r15, %r14",
    "not %r14",
    "movq %r14, %xmm7",
    "arm",
    "sti",
    // Work.
    "40: incq 0x10(%r15)",
    "ticks",
    "mov $3, %ebx",
    "cmp 0x20(%r15), %rax",
    "jb 80f",
    "mov %rax, 0x20(%r15)",
    // The kvmclock: (TSC - its time stamp) scaled, and its time.
    "41: mov 0x800(%r15), %ebp",
    "test $1, %ebp",
    "jnz 41b",
    "ticks",
    "sub 0x808(%r15), %rax",
    "mov 0x81c(%r15), %cl",
    "test %cl, %cl",
    "js 42f",
    "shl %cl, %rax",
    "jmp 43f",
    "42: neg %cl",
    "shr %cl, %rax",
    "43: mov 0x818(%r15), %edx",
    "mul %rdx",
    "shrd $32, %rdx, %rax",
    "add 0x810(%r15), %rax",
    "cmp 0x800(%r15), %ebp",
    "jne 41b",
    "inc %ebx",
    "mov %rax, 0x58(%r15)",
    "cmp 0x28(%r15), %rax",
    "jb 80f",
    "mov %rax, 0x28(%r15)",
    "inc %ebx",
    "mov %r15, %rax",
    "not %rax",
    "cmp %r14, %rax",
    "jne 80f",
    "inc %ebx",
    "movq %xmm7, %rax",
    "cmp %r14, %rax",
    "jne 80f",
    "inc %ebx",
    "mov $64, %ecx",
    "44: incl 0x100(%r15, %rcx, 4)",
    "mov 0x10(%r15), %eax",
    "cmp 0x100(%r15, %rcx, 4), %eax",
    "jne 80f",
    "loop 44b",
    // A port now and then, and a rest.
    "test $15, %al",
    "jnz 40b",
    "inc %ebx",
    "out %al, $0x10",
    "in $0x11, %al",
    "cmp $0x5a, %al",
    "jne 80f",
    "testb $0x70, 0x10(%r15)",
    "jnz 40b",
    "hlt",
    "jmp 40b",
    // A fault: its number is in EBX, or in EAX. It stays the first.
    "80: mov %ebx, %eax",
    "90: cli",
    "cmpq $0, 0x18(%r15)",
    "jne 91f",
    "mov %rax, 0x18(%r15)",
    "91: out %al, $0x12",
    "jmp 91b",
    "snapshots_guest_end:",
    ".purgem write",
    ".purgem ticks",
    ".purgem arm",
    ".popsection",
    options(att_syntax)
);
