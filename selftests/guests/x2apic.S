// SPDX-License-Identifier: GPL-2.0-only
//
// The local APIC's registers as MSRs.
// mode: long64
// irqchip: kernel
#include "long64.inc"
#include "lapic.inc"
    interrupts
    mov $1, %eax
    cpuid
    bt $21, %ecx
    jnc 9f
    mov $0x1b, %ecx
    rdmsr
    or $0xc00, %eax
    wrmsr
    rdmsr
    report_eax
    mov $0x80f, %ecx
    xor %edx, %edx
    mov $0x1ff, %eax
    wrmsr
    mov $0x802, %ecx
    rdmsr
    report_eax
    mov $0x80d, %ecx            // LDR follows from the ID
    rdmsr
    report_eax
    try wrmsr
    say self
    mov $0x83f, %ecx
    mov $0x42, %eax
    wrmsr
    mov $0x822, %ecx
    rdmsr
    report_eax
    sti
    nop
    cli
    mov $0x80b, %ecx
    xor %eax, %eax
    wrmsr
    say icr
    mov $0x830, %ecx
    mov $0x4043, %eax
    xor %edx, %edx
    wrmsr
    sti
    nop
    cli
    say reserved
    mov $0x80e, %ecx            // there is no DFR
    try rdmsr
    mov $0x831, %ecx
    try rdmsr
    say back_is_forbidden
    mov $0x1b, %ecx
    rdmsr
    and $~0x400, %eax
    try wrmsr
9:  done
interrupt_code
