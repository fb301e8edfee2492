// SPDX-License-Identifier: GPL-2.0-only
//
// Descriptors in a read-only slot: accessed and busy bits are lost, and the guest goes on.
// mode: long64
// bug: kvm-rom-tables
// rom: yes
#include "long64.inc"
    interrupts
    lgdt pointer
    say segments
    mov $DATA, %eax
    mov %ax, %ds
    mov %ds, %ecx
    report %ecx
    mov %ax, %ss
    mov %ax, %fs
    push %rax
    pop %gs
    mov $USER, %eax
    mov %ax, %es
    mov %es, %eax
    report_eax
    say code
    push $CODE64
    push $1f
    lretq
1:  report $1
    ljmpl *target
2:  report $2
    say iret
    mov %rsp, %rcx
    push $DATA
    push %rcx
    push $2
    push $CODE64
    push $3f
    iretq
3:  report $3
    say task
    mov $0x40, %eax
    ltr %ax
    str %ecx
    report %ecx
    report ROM_GDT + 0x44
    report ROM_GDT + 0x14
    say fault
    mov $0x8000000000000000, %rdx
    try mov (%rdx), %al
    done
    .balign 8
pointer:
    .word 0x4f
    .quad ROM_GDT
target:
    .long 2b
    .word CODE64
interrupt_code
