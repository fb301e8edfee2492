// SPDX-License-Identifier: GPL-2.0-only
//
// A triple fault in real mode.
// mode: real16
#define __ax eax
#include "report.inc"
.code16
.globl _start
_start:
    report $1
    lidtw %cs:none
    int $3
    report $2
none:
    .word 0
    .long 0
