// SPDX-License-Identifier: GPL-2.0-only
//
// WRMSR of an address that is not canonical.
// mode: long64
// bug: tcg-wrmsr-canonical
#include "long64.inc"
    interrupts
    mov $0x00008000, %edx
    xor %eax, %eax
    mov $0xc0000082, %ecx
    try wrmsr
    mov $0xc0000101, %ecx
    try wrmsr
    done
interrupt_code
