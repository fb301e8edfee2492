// SPDX-License-Identifier: GPL-2.0-only
//
// Exceptions that the CPU delivers inside the guest, without and with an error code.
// mode: long64
#include "long64.inc"
    interrupts
    try ud2
    say div
    xor %ecx, %ecx
    try div %ecx
    say gp
    mov $0xffff, %eax
    try mov %ax, %ds
    say pf
    movq $0, 0x2000 + 8         // nothing above 512 GiB
    mov $0x8000000123, %rbx
    try mov (%rbx), %eax
    say bp
    try int3
    done
interrupt_code
