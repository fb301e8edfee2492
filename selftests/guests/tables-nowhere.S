// SPDX-License-Identifier: GPL-2.0-only
//
// Page tables where no memory is: the access that needs them faults, and the guest goes on.
// mode: long64
// bug: kvm-tables-nowhere
#include "long64.inc"
    interrupts
    say directory
    mov $MMIO + 7, %eax
    mov %rax, 0x3018            // the directory of the fourth GiB
    mov %cr3, %rax
    mov %rax, %cr3
    mov $0xc0000000, %ebx
    try mov (%rbx), %eax
    try movl $1, (%rbx)
    say table
    mov $MMIO + 7, %eax
    mov %rax, 0x4ff8
    mov %cr3, %rax
    mov %rax, %cr3
    mov $0x3fe00000, %ebx
    try mov (%rbx), %eax
    done
interrupt_code
