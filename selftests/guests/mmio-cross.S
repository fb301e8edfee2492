// SPDX-License-Identifier: GPL-2.0-only
//
// Accesses that cross a page, and the end of memory.
// mode: long64
#include "long64.inc"
    mov $MMIO + 0x1000, %ebx
    mov $0x1122334455667788, %rax
    say mmio
    mov %rax, -3(%rbx)
    mov %eax, -1(%rbx)
    mov -3(%rbx), %rax
    report_eax
    shr $32, %rax
    report_eax
    addl $1, -2(%rbx)
    say end_of_memory
    mov $RAM_END, %ebx
    mov $0x1122334455667788, %rax
    mov %rax, -4(%rbx)
    report -4(%rbx)
    mov -2(%rbx), %eax
    report_eax
    mov $RAM_END - 2, %edi
    mov $0x5a, %eax
    mov $4, %ecx
    cld
    rep stosb
    report -4(%rbx)
    say two_pages
    // The same page twice in a row: the address 0x3fe00000 is RAM_END too.
    map 0x1ff, RAM_END|0x87
    mov $0x3fe00000, %ebx
    movl $0x33333333, -2(%rbx)
    done
