// SPDX-License-Identifier: GPL-2.0-only
//
// MONITOR and MWAIT are not offered, and yet do nothing: the VMM has not asked for #UD.
// mode: long64
#include "long64.inc"
    interrupts
    xor %ecx, %ecx
    xor %edx, %edx
    mov $0x10000, %eax
    try monitor
    try mwait
    done
interrupt_code
