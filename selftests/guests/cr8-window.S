// SPDX-License-Identifier: GPL-2.0-only
//
// MOV to CR8 while an interrupt waits for the interrupt flag, below and above its priority.
// mode: long64
// irqchip: kernel
// bug: tcg-cr8-window
#include "long64.inc"
#include "lapic.inc"
    interrupts
    lapic_on
    cli
    movl $0x00040051, ICR(%rbx)     // to itself, vector 0x51
    say lower
    mov $3, %eax
    mov %rax, %cr8
    mov %cr8, %rcx
    report %ecx
    say higher
    mov $9, %eax
    mov %rax, %cr8
    sti
    nop
    nop
    cli
    say lower_again
    mov $4, %eax
    mov %rax, %cr8
    sti
    nop
    nop
    cli
    mov %cr8, %rcx
    report %ecx
    done
interrupt_code
