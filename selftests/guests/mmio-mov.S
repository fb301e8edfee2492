// SPDX-License-Identifier: GPL-2.0-only
//
// MOV, MOVZX, MOVSX and their like to and from memory that is not there, in 64-bit code.
// mode: long64
#include "long64.inc"
    mov $MMIO, %ebx
    mov $0x1122334455667788, %rax
    say store
    mov %al, (%rbx)
    mov %ah, 1(%rbx)
    mov %ax, 2(%rbx)
    mov %eax, 4(%rbx)
    mov %rax, 8(%rbx)
    mov %rax, %r9
    mov %r9b, 0x10(%rbx)
    mov %sil, 0x11(%rbx)
    mov %r9w, 0x12(%rbx)
    mov %r9, 0x18(%rbx)
    movb $0x5a, 0x20(%rbx)
    movw $0x5a5b, 0x22(%rbx)
    movl $0x5a5b5c5d, 0x24(%rbx)
    movq $-2, 0x28(%rbx)
    movnti %eax, 0x30(%rbx)
    say load
    mov $-1, %rcx
    mov 0x40(%rbx), %cl
    report %ecx
    mov 0x41(%rbx), %ch
    report %ecx
    mov 0x42(%rbx), %cx
    report %ecx
    mov 0x44(%rbx), %ecx
    report %ecx
    shr $32, %rcx
    report %ecx
    mov 0x48(%rbx), %r10
    report %r10d
    shr $32, %r10
    report %r10d
    say extend
    movzbl 0x80(%rbx), %edx
    report %edx
    movsbl 0x80(%rbx), %edx
    report %edx
    movzwl 0x80(%rbx), %edx
    report %edx
    movswl 0x80(%rbx), %edx
    report %edx
    movsbq 0x80(%rbx), %r11
    shr $32, %r11
    report %r11d
    movslq 0x80(%rbx), %r11
    shr $32, %r11
    report %r11d
    movzbw 0x81(%rbx), %dx
    report %edx
    say address
    mov $4, %ecx
    mov 0x50(%rbx,%rcx,8), %eax
    report_eax
    mov %rbx, %r12
    mov %rbx, %r13
    mov (%r12), %al
    mov (%r13), %al
    mov 0x60(%r13,%rcx,4), %al
    mov %rsp, %rdx
    mov %rbx, %rsp
    mov 0x70(%rsp), %al
    mov %rdx, %rsp
    movabs 0x00000000d0000088, %al
    movabs 0x00000000d0000088, %rax
    movabs %eax, 0x00000000d0000090
    mov %ebx, %esi
    mov $0xffffffff00000000, %rdx
    or %rdx, %rsi
    mov 0x98(%esi), %eax                // a 32-bit address
    report_eax
    mov $0xc0000100, %ecx               // FS base
    mov %ebx, %eax
    xor %edx, %edx
    wrmsr
    mov %fs:0xa0, %eax
    report_eax
    say rip
    mov 0x40000000(%rip), %eax
    report_eax
    movl $0x77, 0x40000000(%rip)        // relative to the next instruction, whose distance the
    movb $0x77, 0x40000000(%rip)        // immediate operand changes
    done
