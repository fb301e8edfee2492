// SPDX-License-Identifier: GPL-2.0-only
//
// The interrupt table and the task state segment in a read-only slot: events are delivered by them.
// mode: long64
// rom: yes
#include "long64.inc"
    interrupts
    // The gates there lead to 16 bytes each from ROM_STUBS on: push $stub; ret.
    mov $ROM_STUBS, %edi
    mov $stubs, %eax
    mov $256, %ecx
1:  movb $0x68, (%rdi)
    mov %eax, 1(%rdi)
    movb $0xc3, 5(%rdi)
    add $16, %edi
    add $16, %eax
    loop 1b
    lidt pointer
    // The task's descriptor, in RAM, is of the segment there.
    sgdt saved
    mov saved + 2, %rdi
    movw $(ROM_TSS & 0xffff), 0x42(%rdi)
    movb $(ROM_TSS >> 16 & 0xff), 0x44(%rdi)
    movb $0x89, 0x45(%rdi)
    movb $(ROM_TSS >> 24), 0x47(%rdi)
    mov $0x40, %eax
    ltr %ax
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
    int $0x62
    done
    .balign 8
pointer:
    .word 256 * 16 - 1
    .quad ROM_IDT
saved:
    .word 0
    .quad 0
interrupt_code
