// SPDX-License-Identifier: GPL-2.0-only
//
// XSETBV and XGETBV are undefined while CR4.OSXSAVE is 0.
// mode: long64
// bug: tcg-xsetbv-intercept
#include "long64.inc"
    interrupts
    xor %ecx, %ecx
    xor %edx, %edx
    mov $3, %eax
    try xsetbv
    try xgetbv
    done
interrupt_code
