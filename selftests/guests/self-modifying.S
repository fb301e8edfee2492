// SPDX-License-Identifier: GPL-2.0-only
//
// Code that changes itself, in its own page and through another mapping of it.
// mode: long64
#include "long64.inc"
    movl $5, 1f + 1
    jmp 1f
1:  mov $1, %eax
    report_eax
    map 0x1ff, 0x87             // 0x3fe00000 is address 0 too
    movl $7, 0x3fe00000 + 2f + 1
    jmp 2f
2:  mov $1, %eax
    report_eax
    mov $3, %ecx
3:  mov $1, %eax
    addl $1, 3b + 1
    cpuid
    loop 4f
    jmp 5f
4:  mov $1, %ecx
    addl $1, 6f + 1
6:  mov $1, %eax
    report_eax
5:  done
