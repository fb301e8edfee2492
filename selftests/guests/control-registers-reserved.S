// SPDX-License-Identifier: GPL-2.0-only
//
// Reserved bits in CR4 fault, those of the upper half too.
// mode: long64
// bug: kvm-cr-upper-half
#include "long64.inc"
    interrupts
    mov %cr4, %rax
    bts $31, %rax
    try mov %rax, %cr4
    say upper_half
    mov %cr4, %rax
    bts $40, %rax
    try mov %rax, %cr4
    done
interrupt_code
