// SPDX-License-Identifier: GPL-2.0-only
//
// Prefixes that change nothing, or the size, on instructions that are emulated.
// mode: long64
#include "long64.inc"
    mov $MMIO, %ebx
    mov $0x1122334455667788, %rax
    .byte 0x2e; mov %al, (%rbx)                     // CS in 64-bit code is ignored
    .byte 0x3e, 0x26, 0x36; mov %eax, 8(%rbx)
    .byte 0x66, 0x66; mov %eax, 16(%rbx)            // 16 bits
    .byte 0x66, 0x48, 0x89, 0x43, 0x18              // REX.W wins over 66: 64 bits
    .byte 0x48, 0x66, 0x89, 0x43, 0x20              // a REX that is not last is ignored: 16 bits
    .byte 0xf3; mov %eax, 0x28(%rbx)                // REP on MOV is ignored
    mov %rbx, %r11
    .byte 0x4d, 0x8b, 0x43, 0x30                    // mov 0x30(%r11), %r8
    .byte 0x67, 0x89, 0x43, 0x38                    // 32-bit address
    say prefixed_exits
    mov $0x80000000, %eax
    .byte 0x66, 0xf3, 0x2e, 0x48
    cpuid
    xor %ecx, %ecx
    mov $0x10, %ecx
    .byte 0x66
    rdmsr
    .byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66
    cpuid
    report $1
    done
