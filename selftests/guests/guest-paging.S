// SPDX-License-Identifier: GPL-2.0-only
//
// The guest's own tables: permissions, NX, accessed and dirty bits, stale entries and INVLPG.
// mode: long64
#include "long64.inc"
    interrupts
    mov $0xc0000080, %ecx
    rdmsr
    or $0x800, %eax             // NXE
    wrmsr
    // A table of 4 KiB pages for 0x3fe00000.
    .macro page number, low, high=0
    movl $\low, 0x100000 + \number * 8
    movl $\high, 0x100000 + \number * 8 + 4
    .endm
    page 0, 0x110001            // read-only
    page 1, 0x110003            // writable
    page 2, 0x110003, 0x80000000 // not executable
    page 3, 0                   // absent
    page 4, 0x110007            // for users
    map 0x1ff, 0x100007
    movl $0xc3, 0x110000        // ret
    mov $0x3fe00000, %ebx
    say read_only
    mov (%rbx), %eax
    try movb $0, (%rbx)
    mov %cr0, %rax
    and $~0x10000, %eax
    mov %rax, %cr0
    movb $0xc3, (%rbx)          // without WP the supervisor may write
    or $0x10000, %eax
    mov %rax, %cr0
    say bits
    report 0x100000
    mov 0x1000(%rbx), %al
    report 0x100008
    movb $0xc3, 0x1000(%rbx)
    report 0x100008
    say execute
    lea 0x1000(%rbx), %rax
    call *%rax
    push $1f
    mov $0x3fe02000, %eax
    movq $1f, resume
    movq $0x3fe02000, tried
    jmp *%rax
1:  pop %rax
    say absent
    try mov 0x3000(%rbx), %eax
    say appears
    page 3, 0x110003
    mov 0x3000(%rbx), %eax      // no flush is needed when a page appears
    say remapped
    movl $0x11111111, 0x111000
    movl $0x22222222, 0x112000
    page 3, 0x111003
    invlpg 0x3000(%rbx)
    report 0x3000(%rbx)
    page 3, 0x112003
    invlpg 0x3000(%rbx)
    report 0x3000(%rbx)
    page 3, 0x111003
    mov %cr3, %rax
    mov %rax, %cr3
    report 0x3000(%rbx)
    say global
    mov %cr4, %rax
    or $0x80, %rax
    mov %rax, %cr4
    page 3, 0x112103
    invlpg 0x3000(%rbx)
    report 0x3000(%rbx)
    page 3, 0x111103
    mov %cr4, %rax
    xor $0x80, %rax
    mov %rax, %cr4              // flushes global entries
    report 0x3000(%rbx)
    say user
    user
    mov 0x4000(%rbx), %eax
    try mov 0x1000(%rbx), %eax
    try mov 0x3000(%rbx), %eax
    done
interrupt_code
