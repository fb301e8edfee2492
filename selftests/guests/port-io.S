// SPDX-License-Identifier: GPL-2.0-only
//
// IN and OUT of every size, with the port in the instruction and in DX.
// mode: long64
#include "long64.inc"
    mov $0x44332211, %eax
    out %al, $0x80
    out %ax, $0x80
    out %eax, $0x80
    mov $0x1234, %edx
    out %al, (%dx)
    out %ax, (%dx)
    out %eax, (%dx)

    mov $-1, %rax
    in $0x80, %al
    report_eax
    mov $-1, %rax
    in $0x80, %ax
    report_eax
    mov $-1, %rax
    in $0x80, %eax
    report_eax
    shr $32, %rax               // a 32-bit IN clears the upper half
    report_eax
    mov $-1, %rax
    in (%dx), %al
    report_eax
    in (%dx), %ax
    report_eax
    in (%dx), %eax
    report_eax
    done
