// SPDX-License-Identifier: GPL-2.0-only
//
// The local APIC's timer wakes HLT: one-shot and TSC-deadline.
// mode: long64
// irqchip: kernel
#include "long64.inc"
#include "lapic.inc"
    interrupts
    lapic_on
    movl $0xb, DIVIDE(%rbx)     // by 1
    say one_shot
    movl $0x30, LVT_TIMER(%rbx)
    movl $100000, INITIAL(%rbx)
    sti
    hlt
    cli
    report CURRENT(%rbx)
    say counts_down
    movl $0x10030, LVT_TIMER(%rbx)
3:  movl $0xffffffff, INITIAL(%rbx)
    mov CURRENT(%rbx), %ecx
    jecxz 3b                    // a busy host was away all that time
1:  mov CURRENT(%rbx), %eax
    cmp %ecx, %eax
    je 1b
    setb %al
    movzx %al, %eax
    report_eax
    movl $0, INITIAL(%rbx)
    report CURRENT(%rbx)
    say masked
    movl $10000, INITIAL(%rbx)
2:  mov CURRENT(%rbx), %eax
    test %eax, %eax
    jnz 2b
    report IRR + 0x10(%rbx)
    say deadline
    mov $1, %eax
    cpuid
    bt $24, %ecx
    mov $LAPIC, %ebx
    jnc 9f
    movl $0x40032, LVT_TIMER(%rbx)
    rdtsc
    add $5000000, %eax
    adc $0, %edx
    mov $0x6e0, %ecx
    wrmsr
    sti
    hlt
    cli
    rdmsr
    report_eax                  // 0 once it has fired
    say deadline_now
    mov $1, %eax
    xor %edx, %edx
    wrmsr
    sti
    nop
    nop
    cli
    report $4
9:  done
interrupt_code
