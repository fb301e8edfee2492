// SPDX-License-Identifier: GPL-2.0-only
//
// MMX moves to and from memory that is not there, what they do to the x87 unit, and its control words.
// mode: long64
#include "long64.inc"
    interrupts
    mov $MMIO, %edi
    fninit
    fld1
    fldz
    say load
    movq (%rdi), %mm0
    movq %mm0, buffer
    report buffer
    report buffer + 4
    fnstenv environment
    report environment + 4      // the top of the stack is 0,
    report environment + 8      // and no register is empty
    emms
    say store
    movq %mm0, 8(%rdi)
    fnstenv environment
    report environment + 8
    say task_switched
    emms
    mov %cr0, %rax
    or $8, %eax
    mov %rax, %cr0
    try movq (%rdi), %mm0
    say emulated
    mov %cr0, %rax
    xor $12, %eax
    mov %rax, %cr0
    try movq (%rdi), %mm0
    mov %cr0, %rax
    xor $4, %eax
    mov %rax, %cr0
    say control_words
    fninit
    fnstcw 0x10(%rdi)
    fnstsw 0x20(%rdi)
    done
    .balign 16
buffer:
    .quad 0
environment:
    .fill 28, 1, 0
interrupt_code
