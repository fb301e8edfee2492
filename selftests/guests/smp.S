// SPDX-License-Identifier: GPL-2.0-only
//
// INIT and SIPI start a second CPU in real mode at the vector's page.
// mode: long64
// irqchip: kernel
// cpus: 2
#include "long64.inc"
#include "lapic.inc"
    interrupts
    lapic_on
    cld
    mov $second, %esi
    mov $second_end - second, %ecx
    mov $0x10000, %edi
    rep movsb
    movl $0x01000000, ICR_HIGH(%rbx)
    movl $0x4500, ICR(%rbx)     // INIT
    movl $0x01000000, ICR_HIGH(%rbx)
    movl $0x4610, ICR(%rbx)     // SIPI, page 0x10
1:  cmpl $1, 0x11000
    pause
    jne 1b
    report $1
    movl $2, 0x11000
2:  cmpl $3, 0x11000
    pause
    jne 2b
    report $2
    done
    .code16
second:
    mov %cs, %ax
    movzwl %ax, %eax
    out %eax, $0xe0
    mov %ax, %ds
    movl $1, 0x1000
4:  cmpl $2, 0x1000
    pause
    jne 4b
    mov $0x22, %eax
    out %eax, $0xe0
    movl $3, 0x1000
    hlt
second_end:
    .code64
interrupt_code
