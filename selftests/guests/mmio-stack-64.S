// SPDX-License-Identifier: GPL-2.0-only
//
// A stack that is not there, in 64-bit mode: PUSHF, POPF, segment registers, nested ENTER, LEAVE.
// mode: long64
#include "long64.inc"
    interrupts
    mov %rsp, %r12
    mov $MMIO + 0x800, %esp
    say pushf
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
    push %fs
    pop %gs
    pushw %gs
    popw %fs
    say popf_changes

    mov %r12, %rsp
    mov $MMIO + 0x700, %ebx
    movq $0xed7, (%rbx)
    mov %rbx, %rsp
    popf
    mov %r12, %rsp
    pushf
    pop %rax
    report %eax
    cld
    cli
    say leave
    mov $MMIO + 0x600, %ebp
    leave
    mov %rsp, %rcx
    mov %r12, %rsp
    report %ecx
    mov %rbp, %rax
    report_eax
    done
interrupt_code
