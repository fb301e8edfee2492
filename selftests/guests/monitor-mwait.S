// SPDX-License-Identifier: GPL-2.0-only
//
// MONITOR and MWAIT are not offered, so they are undefined.
// mode: long64
// bug: kvm-mwait-quirk
#include "long64.inc"
    interrupts
    xor %ecx, %ecx
    xor %edx, %edx
    mov $0x10000, %eax
    try monitor
    try mwait
    done
interrupt_code
