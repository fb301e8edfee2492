// SPDX-License-Identifier: GPL-2.0-only
//
// Reserved bits in CR3 fault.
// mode: long64
// bug: tcg-cr3-reserved
#include "long64.inc"
    interrupts
    mov %cr3, %rax
    bts $60, %rax
    try mov %rax, %cr3
    done
interrupt_code
