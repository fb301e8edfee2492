// SPDX-License-Identifier: GPL-2.0-only
//
// Real mode, and a HLT that comes to the VMM.
// mode: real16
#define __ax eax
#include "report.inc"
.code16
.globl _start
_start:
    report $0x1234
    mov $0xf000, %ax
    mov %ax, %es
    movl $0xcafe0000, %ecx
    hlt
