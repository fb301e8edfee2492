// SPDX-License-Identifier: GPL-2.0-only
//
// INS and OUTS in real mode: 16-bit addresses, and 32-bit ones by prefix.
// mode: real16
#define __ax eax
#include "report.inc"
.code16
.globl _start
_start:
    movw $0x1000, %ax
    movw %ax, %ds
    movw $0x2000, %ax
    movw %ax, %es
    movl $0x64636261, 0
    movw $0x80, %dx
    cld
    say outs
    movl $0x10000, %esi         // SI is 0; the upper half does not count
    movl $0x20002, %ecx
    rep outsb
    report %ecx
    report %esi
    say ins
    movl $0xffffffff, %edi      // DI wraps
    movw $2, %cx
    rep insb
    report %edi
    movb %es:0xffff, %al
    report_eax
    movb %es:0, %al
    report_eax
    say override
    movw $0, %si
    outsw %es:(%si), %dx
    say address32
    movl $0, %esi
    movl $2, %ecx
    addr32 rep outsw
    report %esi
    done
