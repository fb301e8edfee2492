// SPDX-License-Identifier: GPL-2.0-only
//
// Eight CPUs take turns, and those who wait leave their host CPU to the one whose turn it is.
// mode: long64
// irqchip: kernel
// cpus: 8
// bug: bochs-tss-long-mode
#define CPUS   8
#define ROUNDS 20
#include "long64.inc"
#include "lapic.inc"
#include "smp.inc"
    interrupts
    apic_on
    start_others
ap: mov $ROUNDS, %ecx
1:  mov turn, %ebx
    cmp %ebp, %ebx
    je 2f
    mov $11, %eax               // KVM_HC_SCHED_YIELD: APIC ID
    vmmcall
    or %eax, failed
    jmp 1b
2:  inc %ebx
    and $CPUS - 1, %ebx
    mov %ebx, turn
    lock incl turns
    dec %ecx
    jnz 1b
    test %ebp, %ebp
    jz 4f
3:  hlt
    jmp 3b
4:  pause
    cmpl $CPUS * ROUNDS, turns
    jne 4b
    report turns
    report failed
    mov $100, %ebx              // there is no such
    mov $11, %eax
    vmmcall
    report_eax
    done
    smp_code
turn:   .long 0
turns:  .long 0
failed: .long 0
interrupt_code
