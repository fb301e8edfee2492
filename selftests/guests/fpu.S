// SPDX-License-Identifier: GPL-2.0-only
//
// x87 and SSE registers live through exits of every kind.
// mode: long64
#include "long64.inc"
    .macro xmm number
    mov $0x1111 * (\number + 1), %eax
    movd %eax, %xmm\number
    pshufd $0, %xmm\number, %xmm\number
    .endm
    .irp number, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    xmm \number
    .endr
    fninit
    fldpi
    fld1
    movl $0x3f80, buffer
    ldmxcsr buffer
    // Exits that stay in the kernel, and ones that go to the VMM.
    mov $0x80000000, %eax
    cpuid
    mov $MMIO, %ebx
    mov (%rbx), %eax
    movdqu 0x10(%rbx), %xmm15   // an instruction that is emulated changes one register
    out %al, $0x80
    .irp number, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    movd %xmm\number, %eax
    report_eax
    .endr
    pshufd $0xff, %xmm9, %xmm9
    movd %xmm9, %eax
    report_eax
    faddp
    fistpl buffer
    report buffer               // 4.14 rounds to 4
    fnstcw buffer
    movzwl buffer, %eax
    report_eax
    stmxcsr buffer
    report buffer
    .balign 16
    done
    .balign 16
buffer: .quad 0, 0
