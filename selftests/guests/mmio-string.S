// SPDX-License-Identifier: GPL-2.0-only
//
// MOVS, STOS, LODS, CMPS and SCAS between memory and memory that is not there.
// mode: long64
#include "long64.inc"
    mov $MMIO, %ebx
    mov $0x0807060504030201, %rax
    mov %rax, buffer
    cld
    say to_mmio
    mov $buffer, %esi
    mov %rbx, %rdi
    movsb
    movsw
    movsl
    mov $buffer, %esi
    movsq
    sub %rbx, %rdi
    report %edi
    say from_mmio
    mov %rbx, %rsi
    mov $buffer + 0x20, %edi
    movsl
    movsb
    report buffer+0x20
    report buffer+0x24
    say rep
    mov $buffer, %esi
    lea 0x100(%rbx), %rdi
    mov $5, %ecx
    rep movsb
    report %ecx
    sub %rbx, %rdi
    report %edi
    lea 0x100(%rbx), %rsi
    mov $buffer + 0x40, %edi
    mov $3, %ecx
    rep movsw
    report buffer+0x40
    report buffer+0x44
    say mmio_to_mmio
    mov %rbx, %rsi
    lea 0x200(%rbx), %rdi
    mov $2, %ecx
    rep movsl
    say stos
    lea 0x210(%rbx), %rdi
    mov $0xa1a2a3a4, %eax
    mov $3, %ecx
    rep stosw
    stosb
    stosl
    say backwards
    std
    lea 0x308(%rbx), %rdi
    mov $buffer + 4, %esi
    mov $2, %ecx
    rep movsl
    sub %rbx, %rdi
    report %edi
    cld
    say lods
    lea 0x80(%rbx), %rsi
    xor %eax, %eax
    lodsb
    report_eax
    lodsl
    report_eax
    say scas
    lea 0x84(%rbx), %rdi
    mov $0x86, %eax
    mov $8, %ecx
    repne scasb
    report %ecx
    say cmps
    movl $0x13121110, buffer
    mov $buffer, %esi
    lea 0x10(%rbx), %rdi
    movb $0xff, 2(%rdi)
    mov $4, %ecx
    repe cmpsb
    report %ecx
    say none
    xor %ecx, %ecx
    rep movsb
    rep stosb
    done
    .balign 16
buffer:
