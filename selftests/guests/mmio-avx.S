// SPDX-License-Identifier: GPL-2.0-only
//
// AVX moves to and from memory that is not there: sizes, order, alignment, and what becomes of the
// register's upper half.
// mode: long64
// feature: avx
#include "long64.inc"
    // All four doublewords at 0 and 16 of YMM0, XORed together.
    .macro report_ymm0
    vmovdqu %ymm0, buffer
    mov buffer, %eax
    report_eax
    mov buffer + 16, %eax
    report_eax
    .endm
    .macro fill
    vmovdqu ones, %ymm0
    .endm
    interrupts
    mov $MMIO, %edi
    say undefined_before_XCR0
    try vmovdqu (%rdi), %ymm0
    mov %cr4, %rax
    or $0x40000, %eax
    mov %rax, %cr4
    try vmovdqu (%rdi), %ymm0
    xor %ecx, %ecx
    xor %edx, %edx
    mov $7, %eax
    xsetbv
    say loads_256
    vmovdqu (%rdi), %ymm0
    report_ymm0
    vmovdqa 0x20(%rdi), %ymm0
    report_ymm0
    vmovups 1(%rdi), %ymm0
    report_ymm0
    vmovapd 0x40(%rdi), %ymm0
    report_ymm0
    say loads_128
    fill
    vmovdqa (%rdi), %xmm0
    report_ymm0
    fill
    vmovups 8(%rdi), %xmm0
    report_ymm0
    say stores_256
    vmovdqu pattern, %ymm1
    vmovdqu %ymm1, (%rdi)
    vmovdqa %ymm1, 0x20(%rdi)
    vmovaps %ymm1, 0x40(%rdi)
    vmovupd %ymm1, 0x61(%rdi)
    vmovntdq %ymm1, 0x80(%rdi)
    vmovntps %ymm1, 0xa0(%rdi)
    vmovntpd %ymm1, 0xc0(%rdi)
    say stores_128
    vmovdqa %xmm1, 0x100(%rdi)
    vmovntdq %xmm1, 0x110(%rdi)
    vmovups %xmm1, 0x121(%rdi)
    say streaming_load
    vmovntdqa 0x200(%rdi), %xmm0
    report_ymm0
    say unaligned
    try vmovdqa 1(%rdi), %ymm0
    try vmovdqa 0x10(%rdi), %ymm0
    try vmovaps %ymm0, 0x10(%rdi)
    try vmovntdq %ymm0, 8(%rdi)
    try vmovdqa 8(%rdi), %xmm0
    say over_two_pages
    vmovdqu %ymm1, 0xff5(%rdi)
    vmovdqu 0xff5(%rdi), %ymm0
    report_ymm0
    say high_registers
    vmovdqu (%rdi), %ymm9
    vmovdqu %ymm9, 0x200(%rdi)
    say legacy_keeps_the_upper_half
    fill
    movdqu (%rdi), %xmm0
    report_ymm0
    say task_switched
    mov %cr0, %rax
    or $8, %eax
    mov %rax, %cr0
    try vmovdqu (%rdi), %ymm0
    done
    .balign 32
ones:
    .fill 32, 1, 0xff
pattern:
    .byte 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87
    .byte 0x90, 0x91, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97
    .byte 0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7
    .byte 0xb0, 0xb1, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7
buffer:
    .fill 32, 1, 0
interrupt_code
