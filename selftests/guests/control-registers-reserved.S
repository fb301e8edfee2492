// SPDX-License-Identifier: GPL-2.0-only
//
// Reserved bits in CR0 and CR4 fault, those of the upper halves too.
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
    mov %cr0, %rax
    bts $32, %rax
    try mov %rax, %cr0
    done
interrupt_code
