// SPDX-License-Identifier: GPL-2.0-only
//
// INT3, INT n, INTO, BOUND and ICEBP in 32-bit code, through the guest's table.
// mode: protected32
#include "protected32.inc"
    interrupts
    say int3
    try int3
    say int_3
    try int $3
    say int_0x80
    int $0x80
    say int_0x21
    int $0x21
    say into
    mov $0x7fffffff, %eax
    add $1, %eax
    try into
    xor %eax, %eax
    try into
    say bound
    mov $5, %eax
    try bound %eax, limits
    say icebp
    try .byte 0xf1
    say not_present
    movl $0, idt + 0x90 * 8 + 4
    try int $0x90
    say limit
    lidt short_idt
    try int $0x91
    done
limits: .long 0, 4
short_idt: .word 0x80 * 8 - 1
    .long idt
interrupt_code
