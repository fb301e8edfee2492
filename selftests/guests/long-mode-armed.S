// SPDX-License-Identifier: GPL-2.0-only
//
// EFER.LME before CR4.PAE, in real mode: legal until paging is turned on (APM vol. 2, 14.6.1). The
// guest exits in that state, and the host must come back to its own.
// mode: real16
// bug: tcg-long-mode-armed
#define __ax eax
#include "report.inc"
.code16
.globl _start
_start:
    movl $0xc0000080, %ecx      // EFER
    rdmsr
    orl $0x100, %eax            // LME
    wrmsr
    movl $0x40000000, %eax
    cpuid
    say armed
    movl $0xc0000080, %ecx
    rdmsr
    andl $0x500, %eax
    report_eax
    done
