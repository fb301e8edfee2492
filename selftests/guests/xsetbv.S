// SPDX-License-Identifier: GPL-2.0-only
//
// XSETBV: good values stay and bad ones fault.
// mode: long64
// feature: xsave
#include "long64.inc"
    interrupts
    xor %ecx, %ecx
    xor %edx, %edx
    mov $3, %eax
    say on
    mov %cr4, %rax
    bts $18, %rax
    mov %rax, %cr4
    mov $1, %eax
    cpuid
    shr $27, %ecx
    and $1, %ecx
    report %ecx
    xor %ecx, %ecx
    xgetbv
    report_eax
    mov $3, %eax
    xor %edx, %edx
    try xsetbv
    xgetbv
    report_eax
    mov $0xffffffff00000003, %rax      // the upper halves do not count
    xsetbv
    xgetbv
    report_eax
    say bad
    mov $2, %eax                        // x87 must be set
    try xsetbv
    mov $5, %eax                        // AVX needs SSE
    try xsetbv
    mov $3, %eax
    mov $0x80000000, %edx
    try xsetbv
    xor %edx, %edx
    mov $1, %ecx
    try xsetbv
    xor %ecx, %ecx
    say user
    user
    mov $3, %eax
    xor %ecx, %ecx
    xor %edx, %edx
    try xsetbv
    done
interrupt_code
