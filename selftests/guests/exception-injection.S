// SPDX-License-Identifier: GPL-2.0-only
//
// Exceptions that the VMM injects.
// mode: long64
#include "long64.inc"
    interrupts
    movq $1f, resume
    movq $1f, tried
    ask EXCEPTION, 6
1:  movq $2f, resume
    movq $2f, tried
    ask EXCEPTION_ERROR, 13
2:  movq $3f, resume
    movq $3f, tried
    ask EXCEPTION, 0
3:  report $1
    done
interrupt_code
