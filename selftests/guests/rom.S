// SPDX-License-Identifier: GPL-2.0-only
//
// A read-only slot: reads and execution are direct, writes come to the VMM and change nothing.
// mode: long64
// rom: yes
#include "long64.inc"
    mov $ROM, %ebx
    report (%rbx)
    movl $0x11223344, 8(%rbx)
    report 8(%rbx)
    lock addl $1, 16(%rbx)
    report 16(%rbx)
    cld
    mov %rbx, %rsi
    lea 0x20(%rbx), %rdi
    movsl
    report $0x20
    done
