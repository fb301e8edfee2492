// SPDX-License-Identifier: GPL-2.0-only
//
// A bit in the upper half of CR0 faults.
// mode: long64
// bug: kvm-cr-upper-half
// bug: tcg-cr0-selective-write
#include "long64.inc"
    interrupts
    mov %cr0, %rax
    bts $32, %rax
    try mov %rax, %cr0
    done
interrupt_code
