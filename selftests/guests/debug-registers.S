// SPDX-License-Identifier: GPL-2.0-only
//
// MOV DR, breakpoints on data and code, single-stepping, and general detection.
// mode: long64
// bug: bochs-debug-trap
#include "long64.inc"
    interrupts
    .macro dr6
    mov %dr6, %rax
    report_eax
    mov $0xffff0ff0, %eax
    mov %rax, %dr6
    .endm
    say initial
    mov %dr7, %rax
    report_eax
    dr6
    say keep
    mov $0x1234, %eax
    mov %rax, %dr0
    mov %dr0, %rbx
    report %ebx
    mov $data, %eax
    mov %rax, %dr3
    mov %dr3, %r15
    mov $data, %eax
    sub %eax, %r15d
    report %r15d
    say alias
    mov %dr5, %rax              // DR7 while CR4.DE is 0
    report_eax
    mov %cr4, %rax
    or $8, %rax
    mov %rax, %cr4
    try .byte 0x0f, 0x21, 0xe8
    say bad
    mov $0x100000400, %rax
    try mov %rax, %dr7
    say write
    mov $0x10000480, %eax       // DR3, one byte, writes
    mov %rax, %dr7
    mov data, %al
    try movb $1, data
    dr6
    say code
    mov $1f, %eax
    mov %rax, %dr0
    mov $0x402, %eax            // DR0, instruction
    mov %rax, %dr7
    movq $8109f, resume
    movq $1f, tried
1:  nop
8109:
    dr6
    say off
    mov $0x400, %eax
    mov %rax, %dr7
    try movb $1, data
    say single_step
    pushf
    orl $0x100, (%rsp)
    movq $2f, tried
    movq $3f, resume
    popf
2:  nop
3:  dr6
    say single_step_over_an_exit
    mov $0x80000000, %eax
    pushf
    orl $0x100, (%rsp)
    movq $4f, tried
    movq $5f, resume
    popf
4:  cpuid
5:  dr6
    say general_detect
    mov $0x2400, %eax
    mov %rax, %dr7
    try mov %dr0, %rbx
    dr6
    mov %dr7, %rax
    report_eax
    done
    .balign 8
data: .quad 0
interrupt_code
