// SPDX-License-Identifier: GPL-2.0-only
//
// The guest's own page faults while an instruction on memory that is not there is emulated.
// mode: long64
// bug: bochs-cr2
#include "long64.inc"
    interrupts
    map 0x1ff, 0         // 0x3fe00000 is not mapped
    map 0x1fe, 0x85      // 0x3fc00000 is memory, read-only
    mov $MMIO, %ebx
    cld
    say movs_from_nothing
    mov $0x3fe00010, %esi
    mov %rbx, %rdi
    try movsl
    report %esi
    say movs_to_nothing
    mov %rbx, %rsi
    mov $0x3fe00020, %edi
    try movsl
    say movs_to_read_only
    mov %rbx, %rsi
    mov $0x3fc00000 + 0x1000, %edi
    try movsl
    say rep_runs_into_nothing
    mov $0x3fe00000 - 2, %esi
    mov %rbx, %rdi
    mov $4, %ecx
    try rep movsb
    report %ecx
    report %esi
    say store_read_only
    mov $0x3fc00000, %edx
    try movl $1, (%rdx)
    say crossing_into_nothing
    map 0x1fe, 0xd0000087
    mov $0x3fe00000 - 2, %edx
    try movl $0x11223344, (%rdx)
    try mov (%rdx), %eax
    say non_canonical
    mov $0x8000000000000000, %rsi
    mov %rbx, %rdi
    try movsl
    say beyond_limits
    mov $0xd0000000, %ebx
    try addl $1, (%rbx)
    done
interrupt_code
