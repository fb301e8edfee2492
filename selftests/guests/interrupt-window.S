// SPDX-License-Identifier: GPL-2.0-only
//
// Interrupts from the VMM: at once when the guest is ready, else in a window that opens when the
// guest sets IF, after the instruction that follows STI.
// mode: long64
#include "long64.inc"
    interrupts
    say ready
    sti
    ask INTERRUPT, 0x40
    nop
    say closed
    cli
    ask INTERRUPT, 0x41
    report $1
    sti
    report $2                   // the shadow of STI holds it for one instruction
    report $3
    say popf
    cli
    ask INTERRUPT, 0x42
    pushf
    orl $0x200, (%rsp)
    popf
    report $4
    say iret
    cli
    ask INTERRUPT, 0x44
    push $DATA
    mov %rsp, %rax
    push %rax
    push $0x202
    push $CODE64
    push $1f
    iretq
1:  report $6
    say vector_below_32
    cli
    ask INTERRUPT, 0x25
    sti
    nop
    nop
    say sti_cli
    cli
    ask INTERRUPT, 0x45
    sti
    cli
    report $7
    sti
    nop
    nop
    done
interrupt_code
