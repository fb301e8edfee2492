// SPDX-License-Identifier: GPL-2.0-only
//
// A stack that is not there, in 32- and 16-bit protected mode: PUSHA, POPA, PUSHF, POPF, segment registers.
// mode: protected32
// bug: kvm-pushes
#include "protected32.inc"
    interrupts
    mov $MMIO + 0x800, %esp
    mov $0xa0a0a0a0, %eax
    mov $0xc1c1c1c1, %ecx
    mov $0xd2d2d2d2, %edx
    mov $0xb3b3b3b3, %ebx
    mov $0xb5b5b5b5, %ebp
    mov $0x56565656, %esi
    mov $0xd7d7d7d7, %edi
    say pusha
    pusha
    say popa
    mov $0x100, %eax
    mov %eax, %ecx
    popa
    mov %esp, %eax
    report_eax
    report %ecx
    report %edi
    say words
    pushaw
    popaw
    say flags
    stc
    pushf
    clc
    popf
    setc %al
    movzx %al, %eax
    report_eax
    pushfw
    popfw
    say segments
    push %ds
    push %es
    pop %fs
    pop %gs
    pushw %ds
    popw %es
    mov %gs, %eax
    report_eax
    say code16
    ljmp $CODE16, $1f
    .code16
1:  pusha
    popa
    pushal
    popal
    pushf
    popf
    push %ds
    pop %es
    ljmpl $CODE32, $2f
    .code32
2:
    done
interrupt_code
