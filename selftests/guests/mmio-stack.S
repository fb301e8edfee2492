// SPDX-License-Identifier: GPL-2.0-only
//
// PUSH, POP, CALL and RET with operands or a stack that are not there.
// mode: long64
#include "long64.inc"
    mov $MMIO, %ebx
    say push
    pushq 0x10(%rbx)
    pop %rax
    report_eax
    say pop
    push $0x1234
    popq 0x18(%rbx)
    say stack
    mov %rsp, %rbp
    lea 0x100(%rbx), %rsp
    mov $0x5566, %eax
    push %rax
    push $-2
    pop %rcx
    pop %rdx
    mov %rbp, %rsp
    report %ecx
    report %edx
    say call
    movq $1f, 0x20(%rbx)
    call *0x20(%rbx)
    report $2
    movq $2f, 0x28(%rbx)
    jmp *0x28(%rbx)
    report $99
1:  report $1
    ret
2:  report $3
    done
