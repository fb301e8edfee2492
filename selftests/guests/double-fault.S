// SPDX-License-Identifier: GPL-2.0-only
//
// Faults while a fault is delivered: #DF with an error code of zero.
// mode: long64
#include "long64.inc"
    interrupts
    movl $0, idt + 13 * 16 + 4  // #GP is not present, so #GP while delivering it: #DF
    mov $0xffff, %eax
    try mov %ax, %ds
    done
interrupt_code
