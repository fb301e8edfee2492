// SPDX-License-Identifier: GPL-2.0-only
//
// Segment loads, limits, expand-down segments and null selectors in 32-bit code.
// mode: protected32
// bug: tcg-segment-limits
#include "protected32.inc"
    interrupts
    say limit
    mov $DATA16, %ax
    mov %ax, %fs
    mov %fs:0xfffc, %eax
    try mov %fs:0xfffd, %eax
    say null
    xor %eax, %eax
    mov %ax, %gs
    try mov %gs:0, %eax
    say not_present
    movl $0x0000ffff, 0x1000 + 0x48
    movl $0x00cf1300, 0x1000 + 0x4c
    mov $0x48, %ax
    try mov %ax, %fs
    try mov %ax, %ss
    say expand_down
    movl $0x00000fff, 0x1000 + 0x48
    movl $0x00409700, 0x1000 + 0x4c
    mov $0x48, %ax
    mov %ax, %fs
    try mov %fs:0x800, %eax
    mov %fs:0x1000, %eax
    say outside_table
    mov $0x50, %ax
    try mov %ax, %fs
    say code_is_not_writable
    try movl $0, %cs:0x9000
    done
interrupt_code
