// SPDX-License-Identifier: GPL-2.0-only
//
// #AC while #AC is delivered, for ever (CVE-2015-5307): a handler in user mode with an unaligned
// stack. The VMM can still interrupt it.
// mode: long64
// limit: 500
// bug: bochs-ac-delivery
#include "long64.inc"
    interrupts
    mov %cr0, %rax
    or $0x40000, %eax           // AM
    mov %rax, %cr0
    movw $USERCODE, idt + 17 * 16 + 2
    movb $0xee, idt + 17 * 16 + 5
    mov $handler, %eax
    mov %ax, idt + 17 * 16
    shr $16, %eax
    mov %ax, idt + 17 * 16 + 6
    report $1
    user
    pushf
    orl $0x40000, (%rsp)
    popf
    mov $0x70001, %esp
    mov (%rsp), %eax
handler:
    push %rax
    jmp handler
interrupt_code
