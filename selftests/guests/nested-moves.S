// SPDX-License-Identifier: GPL-2.0-only
//
// Inner guests that come to the VMM all the time, for tests that take such a vCPU away: registers
// that VMRUN switches, without and with nested paging, GIF, and NMIs that are masked in the outer
// guest.
// mode: long64
// feature: svm
#include "long64.inc"
#include "svm.inc"
    interrupts
    svm_on
    movl $NPT3 + 7, NPT
    movl $0x87, NPT3
    say plain
    prepare inner
    set EXITS3, 1 << 18
    set TSC_OFFSET + 4, 0x100
    set INT_CONTROL, 1 << 24 | 7
    run
    report_field INT_CONTROL
    say paged
    prepare inner
    set EXITS3, 1 << 18
    set NP, 1
    set NCR3, NPT
    run
    report_field SAVED_PAT
    mov $0x277, %ecx
    rdmsr
    report_eax
    say gif
    clgi
    report $1
    ask NMI
    report $2
    stgi                                // the NMI comes now
    report $3
    say masked
    mov $nmi, %eax                      // another handler of NMIs
    mov %ax, idt + 2 * 16
    ask NMI
    report $5
    done

// NMIs are masked: the second one waits, and is no exit, until the IRET.
nmi:
    btsl $0, seen(%rip)
    jc 1f
    prepare inner_nmi
    set EXITS3, 1 << 1
    run
    report $4
    stgi
    iretq
1:  report $0x11
    iretq
seen:
    .long 0

inner:
    mov $0x1234, %r9d
    report %r9d
    mov %cr8, %rax
    report_eax
    mov $0x277, %ecx
    rdmsr
    report_eax
    fninit
    report %esp
    cpuid
inner_nmi:
    report $0x21
    ask NMI
    report $0x22
    vmmcall
svm_code
interrupt_code
