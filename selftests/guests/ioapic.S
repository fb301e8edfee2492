// SPDX-License-Identifier: GPL-2.0-only
//
// The IOAPIC: edge and level interrupts, masks, and the EOI that lets a level interrupt again.
// mode: long64
// irqchip: kernel
#include "long64.inc"
#include "lapic.inc"
    .macro redirect pin, low
    movl $0x10 + 2 * \pin, (%rsi)
    movl $\low, 0x10(%rsi)
    movl $0x11 + 2 * \pin, (%rsi)
    movl $0, 0x10(%rsi)
    .endm
    .macro line what, pin
    ask \what, \pin
    .endm
    interrupts
    lapic_on
    mov $0xfec00000, %esi
    movl $1, (%rsi)
    report 0x10(%rsi)
    redirect 5, 0x10000
    movl $0x10 + 2 * 5, (%rsi)
    report 0x10(%rsi)
    sti
    say edge
    redirect 5, 0x51
    line RAISE, 5
    nop
    report $1
    line RAISE, 5               // still up: no edge
    nop
    line LOWER, 5
    line RAISE, 5
    nop
    line LOWER, 5
    say level
    movq $0, eoi
    redirect 6, 0x8061
    line RAISE, 6
    nop
    movl $0x10 + 2 * 6, (%rsi)
    report 0x10(%rsi)           // remote IRR
    line LOWER, 6
    movl $0, EOI(%rbx)
    movl $0x10 + 2 * 6, (%rsi)
    report 0x10(%rsi)
    say level_stays
    line RAISE, 6
    nop
    cli
    movl $0, EOI(%rbx)
    report IRR + 0x30(%rbx)     // again
    line LOWER, 6
    sti
    nop
    cli
    movl $0, EOI(%rbx)
    report IRR + 0x30(%rbx)
    say masked
    mov $LAPIC + EOI, %eax
    mov %rax, eoi
    sti
    redirect 7, 0x10071
    line RAISE, 7
    nop
    report $2
    line LOWER, 7
    done
interrupt_code
