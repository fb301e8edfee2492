// SPDX-License-Identifier: GPL-2.0-only
//
// Real mode with a stack segment that is not there: what PUSHA, POPA, PUSHF, POPF, far calls and IRET access.
// mode: real16
// bug: kvm-pushes
#define __ax eax
#include "report.inc"
.code16
.globl _start
_start:
    lgdtl gdt_pointer
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    jmp 1f
1:  mov $8, %bx
    mov %bx, %ss                // base MMIO, limit 64 KiB
    and $~1, %al
    mov %eax, %cr0
    jmp 2f
2:  mov $0x800, %esp
    mov $0x11223344, %eax
    mov $0x55667788, %ecx
    say pusha
    pusha
    popa
    pushal
    popal
    say flags
    pushf
    popf
    pushfl
    popfl
    say segments
    push %cs
    pop %fs
    say far
    lcall $0, $far
    mov %esp, %eax
    report_eax
    say iret
    pushf
    push %cs
    push $3f
    iret
3:  mov %esp, %eax
    report_eax
    say wrap
    mov $2, %esp
    push %ax
    push %ax
    mov %esp, %eax
    report_eax
    say enter
    mov $0x800, %esp
    mov $0x700, %bp
    enter $8, $0
    leave
    mov %esp, %eax
    report_eax
    done
far:
    lret
    .balign 8
gdt:
    .quad 0
    .quad 0xd00093000000ffff
gdt_pointer:
    .word 0xf
    .long gdt
