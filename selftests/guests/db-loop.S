// SPDX-License-Identifier: GPL-2.0-only
//
// #DB while #DB is delivered, for ever (CVE-2015-8104): a breakpoint on the stack that delivery
// writes. The VMM can still interrupt it.
// mode: long64
// limit: 500
// bug: tcg-watchpoint-abort
// bug: bochs-intr-masked
#include "long64.inc"
    interrupts
    mov $handler, %eax
    mov %ax, idt + 16
    shr $16, %eax
    mov %ax, idt + 16 + 6
    mov $0x70ff8, %eax
    mov %rax, %dr0
    mov $0xb0402, %eax          // DR0: 8 bytes, reads and writes
    mov %rax, %dr7
    report $1
    mov $0x71000, %esp
    int $1
handler:
    mov $0x71000, %esp
    int $1
    jmp handler
interrupt_code
