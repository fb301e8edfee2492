// SPDX-License-Identifier: GPL-2.0-only
//
// Memory that is not there, in 32- and 16-bit protected mode.
// mode: protected32
#include "protected32.inc"
    interrupts
    mov $MMIO, %ebx
    mov $0x11223344, %eax
    say store
    mov %al, (%ebx)
    mov %ax, 2(%ebx)
    mov %eax, 4(%ebx)
    mov %eax, MMIO + 8
    mov %al, MMIO + 12
    movw $0x5a5b, 14(%ebx)
    say load
    mov $5, %ecx
    mov 0x20(%ebx,%ecx,4), %edx
    report %edx
    mov MMIO + 0x50, %eax
    report_eax
    mov MMIO + 0x51, %al
    report_eax
    mov %ebx, %ebp
    mov 0x60(%ebp), %dl
    report %edx
    say increment
    movl $0xff, 0x70(%ebx)
    .byte 0x40                  // INC EAX, which 64-bit code reads as a prefix
    incl 0x70(%ebx)
    pushl 0x74(%ebx)
    popl 0x78(%ebx)
    say strings
    mov $buffer, %edi
    mov $MMIO + 0x80, %esi
    mov $2, %ecx
    cld
    rep movsl
    report buffer + 4
    say segment_limit
    mov $DATA16, %ax            // base 0, limit 64 KiB
    mov %ax, %es
    try movl $1, %es:(%ebx)
    try mov %es:0xfffc, %eax    // just within it
    say null_segment
    xor %eax, %eax
    mov %ax, %es
    try movl $1, %es:(%ebx)
    say code16
    ljmp $CODE16, $1f
    .code16
1:  addr32 movw %ax, (%ebx)
    addr32 movl %eax, 4(%ebx)
    addr32 movw 8(%ebx), %cx
    report %ecx
    ljmpl $CODE32, $2f
    .code32
2:  done
buffer: .long 0, 0
interrupt_code
