// SPDX-License-Identifier: GPL-2.0-only
//
// MOVD, MOVQ with a general-purpose register's opcode, MOVNTQ, FLDCW.
// mode: long64
// bug: kvm-few-moves
#include "long64.inc"
    interrupts
    mov $MMIO, %edi
    movq pattern, %mm3
    say stores
    movd %mm3, (%rdi)
    .byte 0x48, 0x0f, 0x7e, 0x5f, 0x08      // movq %mm3, 8(%rdi)
    movntq %mm3, 0x10(%rdi)
    say loads
    movd 0x20(%rdi), %mm4
    movq %mm4, buffer
    report buffer
    report buffer + 4
    .byte 0x48, 0x0f, 0x6e, 0x67, 0x28      // movq 0x28(%rdi), %mm4
    movq %mm4, buffer
    report buffer
    report buffer + 4
    emms
    say control
    movw $0x27f, 0x30(%rdi)
    fldcw 0x30(%rdi)
    fnstcw buffer
    report buffer
    done
    .balign 16
pattern:
    .byte 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87
buffer:
    .quad 0
interrupt_code
