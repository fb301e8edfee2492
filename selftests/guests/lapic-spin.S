// SPDX-License-Identifier: GPL-2.0-only
//
// The periodic timer interrupts a guest that computes, not only one that waits.
// mode: long64
// irqchip: kernel
#include "long64.inc"
#include "lapic.inc"
    interrupts
    lapic_on
    mov $handler, %eax
    mov %ax, idt + 0x30 * 16
    shr $16, %eax
    mov %ax, idt + 0x30 * 16 + 6
    movl $0xb, DIVIDE(%rbx)
    movl $0x20030, LVT_TIMER(%rbx)
    movl $1000000, INITIAL(%rbx)
    xor %ecx, %ecx
    sti
1:  cmp $20, %ecx
    jb 1b
    cli
    report %ecx
    done
handler:
    inc %ecx
    movl $0, EOI(%rbx)
    cmp $20, %ecx
    jb 2f
    andl $~0x200, 16(%rsp)
2:  iretq
interrupt_code
