// SPDX-License-Identifier: GPL-2.0-only
//
// MOV to and from control registers, CLTS, LMSW and SMSW, good and bad.
// mode: long64
#include "long64.inc"
    interrupts
    say cr0
    mov %cr0, %rax
    report_eax
    or $8, %rax                 // TS
    mov %rax, %cr0
    mov %cr0, %rcx
    report %ecx
    clts
    mov %cr0, %r9
    report %r9d
    smsw %ecx
    report %ecx
    mov $9, %ecx
    lmsw %cx                    // TS, and PE stays
    mov %cr0, %rcx
    report %ecx
    xor %ecx, %ecx
    lmsw %cx                    // PE cannot be cleared
    mov %cr0, %rcx
    report %ecx
    mov %r9, %cr0
    say caches_off
    mov %r9, %rax
    or $0x40000000, %eax        // CD
    mov %rax, %cr0
    mov %cr0, %rcx
    report %ecx
    clts                        // which leaves it
    mov %cr0, %rcx
    report %ecx
    mov %r9, %cr0
    mov %cr0, %rcx
    report %ecx
    say nw_without_cd
    mov $0xa0010033, %eax
    try mov %rax, %cr0
    say pg_without_pe
    mov $0x80000000, %eax
    try mov %rax, %cr0
    say pg_off_in_64_bit_code
    mov $0x11, %eax
    try mov %rax, %cr0
    mov %cr0, %rax
    report_eax
    say cr2
    mov $0x123456789a, %rax
    mov %rax, %cr2
    mov %cr2, %rbx
    report %ebx
    shr $32, %rbx
    report %ebx
    say cr3
    mov %cr3, %rax
    mov %rax, %cr3
    mov %cr3, %r15
    report %r15d
    say cr4
    mov %cr4, %rax
    and $~0x40, %rax            // MCE has a test of its own
    report_eax
    or $4, %rax                 // TSD
    mov %rax, %cr4
    mov %cr4, %r8
    and $~0x40, %r8
    report %r8d
    xor $4, %r8
    mov %r8, %cr4
    mov %r8, %rax
    and $~0x20, %rax            // PAE cleared in long mode
    try mov %rax, %cr4
    say cr8
    mov %cr8, %rax
    report_eax
    mov $9, %eax
    mov %rax, %cr8
    mov %cr8, %rcx
    report %ecx
    mov $16, %eax
    try mov %rax, %cr8
    xor %eax, %eax
    mov %rax, %cr8
    say cr1
    try .byte 0x0f, 0x20, 0xc8
    try .byte 0x0f, 0x22, 0xc8
    say cr5
    try .byte 0x0f, 0x20, 0xe8
    done
interrupt_code
