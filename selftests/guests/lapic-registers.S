// SPDX-License-Identifier: GPL-2.0-only
//
// The local APIC's registers keep what they can keep.
// mode: long64
// irqchip: kernel
#include "long64.inc"
#include "lapic.inc"
    interrupts
    lapic_on
    report LAPIC_ID(%rbx)
    movzbl VERSION(%rbx), %eax
    report_eax
    report SPURIOUS(%rbx)
    say tpr
    movl $0x50, TPR(%rbx)
    report TPR(%rbx)
    report PPR(%rbx)
    mov %cr8, %rax
    report_eax
    mov $3, %eax
    mov %rax, %cr8
    report TPR(%rbx)
    movl $0, TPR(%rbx)
    say lvt
    report LVT_TIMER(%rbx)
    movl $0x20031, LVT_TIMER(%rbx)
    report LVT_TIMER(%rbx)
    movl $0x10000, LVT_TIMER(%rbx)
    movl $0xb, DIVIDE(%rbx)
    report DIVIDE(%rbx)
    say ldr
    movl $0x05ffffff, LDR(%rbx)
    report LDR(%rbx)
    say base
    mov $0x1b, %ecx
    rdmsr
    report_eax
    say off
    movl $0xff, SPURIOUS(%rbx)
    report LVT_LINT0(%rbx)
    done
interrupt_code
