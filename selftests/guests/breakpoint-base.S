// SPDX-License-Identifier: GPL-2.0-only
//
// An instruction breakpoint in a code segment whose base is not 0: breakpoints are linear addresses.
// mode: real16
// bug: tcg-breakpoint-base
// bug: bochs-debug-trap
#define __ax eax
#include "report.inc"
.code16
.globl _start
_start:
    mov $0x7000, %sp
    movw $breakpoint, 1 * 4
    movw $0, 1 * 4 + 2
    mov $1f, %eax
    mov %eax, %dr0
    mov $0x402, %eax            // DR0, instruction
    mov %eax, %dr7
    ljmp $0x800, $1f - 0x8000
1:  nop
    ljmp $0, $2f
2:  say end
    done
breakpoint:
    say breakpoint
    mov %dr6, %eax
    report_eax
    xor %eax, %eax
    mov %eax, %dr7
    iret
