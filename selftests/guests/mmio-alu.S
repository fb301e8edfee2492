// SPDX-License-Identifier: GPL-2.0-only
//
// Arithmetic on memory that is not there: what is read, what is written, and the flags.
// AF is not looked at where the manual leaves it undefined.
// mode: long64
#include "long64.inc"
    .macro both operation, mask=0x8d5
    say \operation
    mov $0xf0f0f0f0, %ecx
    stc
    \operation\()l %ecx, (%rbx)
    report_flags \mask
    stc
    \operation\()l (%rbx), %ecx
    report_flags \mask
    report %ecx
    stc
    \operation\()b $0x81, 8(%rbx)
    report_flags \mask
    stc
    \operation\()w $0x8001, 8(%rbx)
    report_flags \mask
    stc
    \operation\()l $-1, 8(%rbx)
    report_flags \mask
    stc
    \operation\()q $0x7fffffff, 8(%rbx)
    report_flags \mask
    .endm
    mov $MMIO, %ebx
    both add
    both or 0x8c5
    both adc
    both sbb
    both and 0x8c5
    both sub
    both xor 0x8c5
    both cmp
    say test
    mov $0x8080, %ecx
    test %ecx, 0x80(%rbx)
    report_flags 0x8c5
    testb $0x80, 0x80(%rbx)
    report_flags 0x8c5
    testl $1, 0x80(%rbx)
    report_flags 0x8c5
    say unary
    movl $0x7fffffff, 0x40(%rbx)
    stc
    incl 0x40(%rbx)
    report_flags
    decl 0x40(%rbx)
    report_flags
    notl 0x40(%rbx)
    negl 0x40(%rbx)
    report_flags
    say xchg
    mov $0x12345678, %eax
    xchg %eax, 0x50(%rbx)
    report_eax
    mov $0x11111111, %eax
    lock xadd %eax, 0x50(%rbx)
    report_eax
    say cmpxchg
    movl $5, 0x60(%rbx)
    mov $5, %eax
    mov $7, %ecx
    lock cmpxchg %ecx, 0x60(%rbx)
    report_flags
    mov $5, %eax
    cmpxchg %ecx, 0x60(%rbx)
    pushf
    report_eax
    popf
    report_flags
    say bits
    movl $0x10, 0x70(%rbx)
    btl $4, 0x70(%rbx)
    report_flags 1
    btsl $5, 0x70(%rbx)
    report_flags 1
    btrl $4, 0x70(%rbx)
    report_flags 1
    btcl $31, 0x70(%rbx)
    report_flags 1
    mov $35, %ecx
    bts %ecx, 0x70(%rbx)                // the next double word
    report_flags 1
    mov $-1, %ecx
    bt %ecx, 0x74(%rbx)                 // the one before
    report_flags 1
    say shift
    movl $0x81, 0x78(%rbx)
    shll $4, 0x78(%rbx)
    report_flags 1
    shrb $1, 0x78(%rbx)
    mov $3, %cl
    rorl %cl, 0x78(%rbx)
    done
