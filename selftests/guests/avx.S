// SPDX-License-Identifier: GPL-2.0-only
//
// AVX registers live through exits.
// mode: long64
// feature: avx
#include "long64.inc"
    mov %cr4, %rax
    bts $18, %rax
    mov %rax, %cr4
    xor %ecx, %ecx
    xor %edx, %edx
    mov $7, %eax
    xsetbv
    .irp number, 0,1,7,15
    mov $0x2222 * (\number + 1), %eax
    movd %eax, %xmm\number
    vpshufd $0, %xmm\number, %xmm\number
    vinsertf128 $1, %xmm\number, %ymm\number, %ymm\number
    .endr
    cpuid
    mov $MMIO, %ebx
    mov (%rbx), %eax
    out %al, $0x80
    .irp number, 0,1,7,15
    vextractf128 $1, %ymm\number, %xmm2
    pextrd $3, %xmm2, %eax
    report_eax
    .endr
    done
