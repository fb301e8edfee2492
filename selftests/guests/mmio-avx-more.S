// SPDX-License-Identifier: GPL-2.0-only
//
// The AVX and SSE moves that fewer guests use: scalars, halves, duplicates, broadcasts.
// mode: long64
// feature: avx
// bug: kvm-few-moves
#include "long64.inc"
    .macro report_ymm0
    vmovdqu %ymm0, buffer
    report buffer
    report buffer + 8
    report buffer + 16
    .endm
    .macro fill
    vmovdqu ones, %ymm0
    .endm
    interrupts
    mov %cr4, %rax
    or $0x40000, %eax
    mov %rax, %cr4
    xor %ecx, %ecx
    xor %edx, %edx
    mov $7, %eax
    xsetbv
    mov $MMIO, %edi
    vmovdqu ones, %ymm3
    say scalars
    fill
    vmovss (%rdi), %xmm0
    report_ymm0
    fill
    vmovsd (%rdi), %xmm0
    report_ymm0
    fill
    vmovd (%rdi), %xmm0
    report_ymm0
    fill
    vmovq (%rdi), %xmm0
    report_ymm0
    movss 4(%rdi), %xmm0
    movsd 8(%rdi), %xmm0
    movd 4(%rdi), %xmm0
    movq 8(%rdi), %xmm0
    vmovss %xmm3, (%rdi)
    vmovsd %xmm3, (%rdi)
    vmovd %xmm3, (%rdi)
    vmovq %xmm3, (%rdi)
    say halves
    vmovlps 0x40(%rdi), %xmm3, %xmm0
    report_ymm0
    vmovhpd 0x40(%rdi), %xmm3, %xmm0
    report_ymm0
    movlpd 0x48(%rdi), %xmm0
    movhps 0x50(%rdi), %xmm0
    report_ymm0
    vmovlpd %xmm0, 0x60(%rdi)
    vmovhps %xmm0, 0x68(%rdi)
    movhpd %xmm0, 0x70(%rdi)
    say duplicates
    movddup 0x40(%rdi), %xmm0
    report_ymm0
    vmovddup 0x40(%rdi), %ymm0
    report_ymm0
    vmovsldup 0x40(%rdi), %ymm0
    report_ymm0
    movshdup 0x40(%rdi), %xmm0
    report_ymm0
    vlddqu 1(%rdi), %ymm0
    lddqu 1(%rdi), %xmm0
    say broadcasts
    vbroadcastss 0x80(%rdi), %ymm0
    report_ymm0
    vbroadcastsd 0x80(%rdi), %ymm0
    report_ymm0
    vbroadcastf128 0x80(%rdi), %ymm0
    report_ymm0
    vpbroadcastb 0x80(%rdi), %xmm0
    report_ymm0
    vpbroadcastw 0x80(%rdi), %ymm0
    report_ymm0
    vmovntdqa 0x80(%rdi), %ymm0
    report_ymm0
    say mxcsr
    stmxcsr 0x20(%rdi)
    vstmxcsr 0x24(%rdi)
    movl $0x9f80, 0x20(%rdi)
    ldmxcsr 0x20(%rdi)
    stmxcsr buffer
    report buffer
    try ldmxcsr 0x40(%rdi)
    done
    .balign 32
ones:
    .fill 32, 1, 0xff
buffer:
    .fill 32, 1, 0
interrupt_code
