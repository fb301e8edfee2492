// SPDX-License-Identifier: GPL-2.0-only

//! The guests that are measured, and measure themselves: they run in long mode at `LOAD`, write
//! what they find to [`RESULTS`], and end with a write to the port [`END`].

use std::arch::global_asm;
use std::ptr::addr_of;

/// How many results a guest leaves.
pub(crate) const RESULT_COUNT: usize = 32;
/// Where they are.
pub(crate) const RESULTS: usize = 0x1_0000;
/// Where [`Code::Touch`] finds how many pages there are, and how far apart.
pub(crate) const TOUCH_COUNT: usize = 0x1_1000;
pub(crate) const TOUCH_STEP: usize = 0x1_1008;
/// Where [`Code::Access`] finds whether it writes to them.
pub(crate) const TOUCH_WRITES: usize = 0x1_1018;
/// Where [`Code::Spin`] counts its turns, and how many instructions one is.
pub(crate) const SPUN: usize = 0x1_1010;
pub(crate) const SPIN_TURN: u64 = 2;
/// How often a guest of the first kind does what is measured for each result.
pub(crate) const TURNS: u64 = 64;
/// The port that ends a guest, and the port that is a doorbell where there is one.
pub(crate) const END: u16 = 0xf4;
pub(crate) const BELL: u16 = 0xf1;
/// The vector of all interrupts, and where in a guest its handler is.
pub(crate) const VECTOR: u32 = 0x40;
pub(crate) const HANDLER: usize = 16;

const ROOM: usize = 256;

/// The guests, in the order in which they stand below.
#[derive(Clone, Copy)]
pub(crate) enum Code {
    // Each result is the ticks of `TURNS` turns.
    Empty,
    Cpuid,
    Vmmcall,
    Rdmsr,
    Port,
    Sector,
    Device,
    Fault,
    FaultLone,
    Bell,
    Eoi,
    EoiMemory,
    TimerSet,
    SelfIpi,
    // Each result is the ticks from a moment that the guest chose to its interrupt handler.
    Timer,
    Loopback,
    BellSleep,
    Ipi,
    // These only answer another's interrupts, and never end.
    IpiAnswer,
    BellAnswer,
    // This writes to as many pages as [`TOUCH_COUNT`] says, and again when it is run again.
    Touch,
    // This counts, and never ends.
    Spin,
    // This is as `Touch`, but reads, unless [`TOUCH_WRITES`] says that it writes.
    Access,
}

impl Code {
    /// The instructions.
    pub(crate) fn bytes(self) -> &'static [u8] {
        extern "C" {
            static measure_guests: [[u8; ROOM]; Code::Access as usize + 1];
        }
        // SAFETY: The assembly below gives each guest its room, and nobody writes it.
        unsafe { &(*addr_of!(measure_guests))[self as usize] }
    }

    /// How often what is measured happens for one result.
    pub(crate) fn turns(self) -> u64 {
        match (self as usize) < Self::Timer as usize {
            true => TURNS,
            false => 1,
        }
    }
}

// RBX is the guest's pointer. R11 to R15 belong to these macros; interrupts change RAX, RCX, RDX,
// R15.
global_asm!(
    ".macro ticks register",
    "rdtsc",
    "shl $32, %rdx",
    "or %rax, %rdx",
    "mov %rdx, \\register",
    ".endm",
    ".macro write msr, low, high=0",
    "mov $\\msr, %ecx",
    "mov $\\low, %eax",
    "mov $\\high, %edx",
    "wrmsr",
    ".endm",
    // The local APIC in x2APIC mode, enabled, with a timer that takes deadlines.
    ".macro x2apic",
    "mov $0x1b, %ecx",
    "rdmsr",
    "or $0xc00, %eax",
    "wrmsr",
    "write 0x80f, 0x1ff",
    "write 0x832, 0x40040",
    ".endm",
    ".macro sleep",
    "sti",
    "hlt",
    "cli",
    ".endm",
    ".macro guest",
    ".org measure_guests + measure_count * 256",
    ".set measure_count, measure_count + 1",
    "jmp 1f",
    ".balign 16",
    "ticks %r15",
    "write 0x80b, 0",
    "iretq",
    "1:",
    ".endm",
    ".macro results",
    "mov $32, %r12d",
    "mov $0x10000, %r13d",
    "2:",
    ".endm",
    ".macro result",
    "sub %r14, %r15",
    "mov %r15, (%r13)",
    "add $8, %r13",
    "dec %r12d",
    "jnz 2b",
    "out %al, $0xf4",
    ".endm",
    ".macro turns body, before",
    "guest",
    "\\before",
    "results",
    "mov $64, %r11d",
    "ticks %r14",
    "3: \\body",
    "dec %r11d",
    "jnz 3b",
    "ticks %r15",
    "result",
    ".endm",
    // `body` leaves in R14 when the time begins.
    ".macro events body",
    "guest",
    "x2apic",
    "results",
    "\\body",
    "result",
    ".endm",
    ".macro answers body",
    "guest",
    "x2apic",
    "2: sleep",
    "\\body",
    "jmp 2b",
    ".endm",
    ".pushsection .rodata.measure, \"a\"",
    ".balign 256",
    ".globl measure_guests",
    "measure_guests:",
    ".set measure_count, 0",
    "turns",
    "turns \"xor %eax, %eax; push %rbx; cpuid; pop %rbx\"",
    "turns \"mov $-1, %eax; vmmcall\"",
    "turns \"mov $0xc0000080, %ecx; rdmsr\"",
    "turns \"out %al, $0xf0\"",
    "turns \"mov $0x14000, %edi; mov $256, %ecx; mov $0xf0, %edx; rep insw\", cld",
    "turns \"mov %eax, (%rbx)\"",
    "turns \"mov %eax, (%rbx); add $0x1000, %rbx\"",
    "turns \"mov %eax, (%rbx); add $0x10000, %rbx\"",
    "turns \"out %al, $0xf1\"",
    "turns \"write 0x80b, 0\", x2apic",
    "turns \"movl $0, 0xb0(%rbx)\", \"movl $0x1ff, 0xf0(%rbx)\"",
    "turns \"write 0x6e0, 0, 0x7fffffff\", x2apic",
    "turns \"write 0x83f, 0x40; nop\", \"x2apic; sti\"",
    // A millisecond is longer than any hypervisor polls before it sleeps.
    "events \"mov $0x6e0, %ecx; ticks %r14; add $1000000, %r14; mov %r14, %rdx; mov %r14, %rax; shr $32, %rdx; wrmsr; sleep\"",
    "events \"ticks %r14; sti; out %al, $0xf1; nop; cli\"",
    "events \"ticks %r14; out %al, $0xf1; sleep\"",
    "events \"ticks %r14; write 0x830, 0x40, 1; sleep\"",
    "answers \"write 0x830, 0x40\"",
    "answers \"out %al, $0xf1\"",
    "guest",
    "2: mov 0x11000, %ecx",
    "mov 0x11008, %edx",
    "3: mov %eax, (%rbx)",
    "add %rdx, %rbx",
    "dec %ecx",
    "jnz 3b",
    "out %al, $0xf4",
    "jmp 2b",
    "guest",
    "2: incq 0x11010",
    "jmp 2b",
    "guest",
    "2: mov 0x11000, %ecx",
    "mov 0x11008, %edx",
    "cmpl $0, 0x11018",
    "jne 4f",
    "3: mov (%rbx), %eax",
    "add %rdx, %rbx",
    "dec %ecx",
    "jnz 3b",
    "jmp 5f",
    "4: mov %eax, (%rbx)",
    "add %rdx, %rbx",
    "dec %ecx",
    "jnz 4b",
    "5: out %al, $0xf4",
    "jmp 2b",
    ".org measure_guests + measure_count * 256",
    ".popsection",
    options(att_syntax)
);
