// SPDX-License-Identifier: GPL-2.0-only
//
// INS and OUTS with every operand and address size, repeated, backwards, and with a fault.
// mode: long64
// bug: bochs-cr2
#include "long64.inc"
    .macro offset register
    lea -buffer(\register), %eax
    report_eax
    .endm
    interrupts
    mov $0x80, %edx
    mov $0x64636261, %eax
    mov %eax, buffer
    mov $0x68676665, %eax
    mov %eax, buffer + 4
    cld
    say outs
    mov $buffer, %esi
    outsb
    outsw
    outsl
    offset %esi
    say rep_outs
    mov $buffer, %esi
    mov $3, %ecx
    rep outsb
    report %ecx
    offset %esi
    mov $buffer, %esi
    mov $2, %ecx
    rep outsl
    say ins
    mov $0x90, %edx
    mov $buffer + 0x10, %edi
    insb
    insw
    insl
    offset %edi
    report buffer + 0x10
    report buffer + 0x14
    say rep_ins
    mov $buffer + 0x20, %edi
    mov $5, %ecx
    rep insb
    report %ecx
    offset %edi
    report buffer + 0x20
    report buffer + 0x24
    say address32
    mov $0xffffffff00000000, %rax       // these halves do not count
    mov $buffer, %esi
    or %rax, %rsi
    mov $0xffffffff00000002, %rcx
    addr32 rep outsb
    report %ecx
    offset %esi
    shr $32, %rsi
    report %esi
    mov $0xffffffff00000000, %rax
    mov $buffer + 0x30, %edi
    or %rax, %rdi
    addr32 insb
    report buffer + 0x30
    say none
    xor %ecx, %ecx
    rep outsb
    rep insl
    report $0
    say backwards
    std
    mov $buffer + 6, %esi
    mov $2, %ecx
    rep outsw
    offset %esi
    mov $buffer + 0x46, %edi
    mov $2, %ecx
    rep insw
    report buffer + 0x44
    cld
    say segment
    mov $0xc0000100, %ecx
    mov $buffer, %eax
    xor %edx, %edx
    wrmsr
    mov $0x80, %edx
    mov $1, %esi
    outsb %fs:(%rsi), %dx
    say fault
    map 0x1ff, 0
    map 0x1fe, 0x87
    mov $0x3fe00000 - 2, %esi
    mov $4, %ecx
    try rep outsb
    report %ecx
    report %esi
    say page
    mov $0x1f0ffc, %edi
    mov $4, %ecx
    rep insw
    report 0x1f0ffc
    report 0x1f1000
    done
interrupt_code
    .set buffer, free
