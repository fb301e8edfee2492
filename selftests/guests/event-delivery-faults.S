// SPDX-License-Identifier: GPL-2.0-only
//
// Delivery of an event through a page that the hypervisor has not mapped yet: the event is not
// lost, nor delivered twice.
// mode: long64
#include "long64.inc"
    interrupts
    say stack
    mov $0x190000, %esp         // a page that nothing has touched
    int $0x60
    mov $0x192000, %esp
    try ud2
    mov $0x194000, %esp
    sti
    ask INTERRUPT, 0x61
    nop
    cli
    mov $0x196000, %esp
    ask NMI
    nop
    say table
    cld                         // the table moves to an untouched page
    mov $idt, %esi
    mov $0x1a0000, %edi
    mov $512, %ecx
    rep movsq
    lidt pointer
    int $0x62
    report $1
    done
pointer: .word 0xfff
    .quad 0x1a0000
interrupt_code
