// SPDX-License-Identifier: GPL-2.0-only
//
// NMIs: delivered with IF clear, held until IRET, one is kept while another is served.
// mode: long64
// irqchip: kernel
// bug: bochs-nmi-injection
#include "long64.inc"
    interrupts
    mov $nmi, %eax
    mov %ax, idt + 2 * 16
    shr $16, %eax
    mov %ax, idt + 2 * 16 + 6
    say one
    ask NMI
    nop
    report $1
    say nested
    movl $1, again
    ask NMI
    nop
    report $2
    say nested_twice            // only one can wait
    movl $2, again
    ask NMI
    nop
    report $3
    done
nmi:
    push %rax
    push %rcx
    report $0x22
    mov again, %ecx
    movl $0, again
    jrcxz 2f
1:  ask NMI
    loop 1b
2:  report $0x23                // still in the handler
    pop %rcx
    pop %rax
    iretq
again: .long 0
interrupt_code
