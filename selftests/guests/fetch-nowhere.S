// SPDX-License-Identifier: GPL-2.0-only
//
// Executing memory that is not there: the hypervisor gives up, and says so.
// mode: long64
#include "long64.inc"
    mov $MMIO, %eax
    jmp *%rax
