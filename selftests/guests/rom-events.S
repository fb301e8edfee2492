// SPDX-License-Identifier: GPL-2.0-only
//
// Descriptors that were never loaded in a read-only slot: events that load them are delivered, and so is what a
// program of user mode causes.
// mode: long64
// rom: yes
#include "long64.inc"
    interrupts
    lgdt pointer
    say exception
    try ud2
    say software
    int $0x60
    say external
    sti
    ask INTERRUPT, 0x61
    nop
    cli
    say program
    user
    try hlt
    done
    .balign 8
pointer:
    .word 0x4f
    .quad ROM_GDT
interrupt_code
