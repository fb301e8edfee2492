// SPDX-License-Identifier: GPL-2.0-only
//
// Interrupts that a CPU sends to itself: IRR, ISR, EOI, priorities, and HLT with one pending.
// mode: long64
// irqchip: kernel
#include "long64.inc"
#include "lapic.inc"
    interrupts
    lapic_on
    say self
    movl $0, ICR_HIGH(%rbx)
    movl $0x40041, ICR(%rbx)
    report IRR + 0x20(%rbx)
    sti
    nop
    cli
    report IRR + 0x20(%rbx)
    report ISR + 0x20(%rbx)
    say priority
    movl $0x40045, ICR(%rbx)
    movl $0x40062, ICR(%rbx)
    movl $0x40051, ICR(%rbx)
    sti
    nop
    nop
    nop
    nop
    cli
    say masked
    movl $0x50, TPR(%rbx)
    movl $0x40045, ICR(%rbx)
    movl $0x40062, ICR(%rbx)
    sti
    nop
    nop
    report $1
    movl $0, TPR(%rbx)
    nop
    cli
    say cr8
    mov $5, %eax
    mov %rax, %cr8
    movl $0x40045, ICR(%rbx)
    sti
    nop
    report $2
    xor %eax, %eax
    mov %rax, %cr8
    nop
    cli
    say without_eoi
    movq $0, eoi
    movl $0x40070, ICR(%rbx)
    sti
    nop
    nop
    movl $0x40071, ICR(%rbx)    // held by the one in service
    nop
    nop
    cli
    report ISR + 0x30(%rbx)
    report IRR + 0x30(%rbx)
    report PPR(%rbx)
    movl $0, EOI(%rbx)
    sti
    nop
    nop
    cli
    movl $0, EOI(%rbx)
    report ISR + 0x30(%rbx)
    movl $EOI, %eax
    add %rbx, %rax
    mov %rax, eoi
    say hlt
    movl $0x40080, ICR(%rbx)
    sti
    hlt
    report $3
    say by_id
    movl $0, ICR_HIGH(%rbx)
    movl $0x00004081, ICR(%rbx)
    sti
    nop
    cli
    say all
    movl $0x84082, ICR(%rbx)
    sti
    nop
    cli
    done
interrupt_code
