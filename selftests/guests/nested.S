// SPDX-License-Identifier: GPL-2.0-only
//
// A guest that is a hypervisor: VMRUN and what it refuses, exits by its intercepts and maps, events
// on their way in and out, GIF.
// mode: long64
// feature: svm
#include "long64.inc"
#include "svm.inc"
    interrupts
    svm_on
    say exits
    prepare inner_call
    run
    report_field SAVED_RIP
    prepare inner_cpuid
    run                                 // not intercepted: goes on to its VMMCALL
    prepare inner_cpuid
    set EXITS3, 1 << 18
    run
    prepare inner_port
    run
    btsl $0, IO_MAP + 0x10
    prepare inner_port
    run                                 // the map counts only with its intercept
    prepare inner_port
    set EXITS3, 1 << 27
    run
    report_field EXIT_INFO1
    prepare inner_msr
    set EXITS3, 1 << 28
    run
    btsl $6, MSR_MAP + 0x820            // two bits for each: LSTAR's RDMSR is bit 4, CSTAR's 6
    prepare inner_msr
    set EXITS3, 1 << 28
    run
    report_field EXIT_INFO1
    prepare inner_undefined
    run
    prepare inner_undefined
    set EXCEPTION_EXITS, 1 << 6
    run
    prepare inner_shutdown
    set EXITS3, 1 << 31
    set SAVED_IDTR + 4, 0
    run

    say refused
    .macro refused field:req, value:req
    prepare inner_call
    set \field, \value
    run
    .endm
    refused ASID, 0
    refused EXITS4, 2
    refused SAVED_EFER, 0x500
    refused SAVED_EFER, 0x1d00 | 1 << 9
    refused SAVED_CR0, 0xa0000031
    refused SAVED_CR0 + 4, 1
    refused SAVED_CR4, 0
    refused SAVED_CR4 + 4, 1
    refused SAVED_CR3 + 4, 0x80000000
    refused SAVED_DR7 + 4, 1
    refused 0x40 + 4, 0x80000000
    refused 0x48 + 4, 0x80000000
    refused EVENT, 0x80000100
    refused EVENT, 0x80000320
    prepare inner_call
    mov $VMCB + 8, %eax
    try vmrun %rax
    mov $1, %rax
    shl $62, %rax
    try vmload %rax
    try skinit %eax

    say events
    prepare inner_call
    set EVENT, 0x80000030
    run
    prepare inner_call
    set EVENT, 0x80000b0d
    set EVENT + 4, 0x18
    movq $inner_call, tried(%rip)
    movq $inner_call, resume(%rip)
    run
    prepare inner_call                  // V_IRQ: vector 31h of priority 5
    set INT_CONTROL, 1 << 24 | 5 << 16 | 1 << 8 | 6
    set INT_VECTOR, 0x31
    set SAVED_RFLAGS, 0x202
    run                                 // V_TPR is higher
    prepare inner_call
    set INT_CONTROL, 1 << 24 | 5 << 16 | 1 << 8 | 4
    set INT_VECTOR, 0x31
    set SAVED_RFLAGS, 0x202
    run
    report_field INT_CONTROL
    prepare inner_nmi
    set EXITS3, 1 << 1
    run
    say gif
    report $1
    stgi                                // the NMI comes now
    report $2
    clgi
    ask NMI
    report $3
    stgi
    report $4

    say time
    prepare inner_time
    movl $1, TSC_OFFSET + 4(%rbx)
    rdtsc
    mov %edx, %r12d
    run
    sub %r12d, %r11d
    report %r11d
    done

inner_call:
    vmmcall
inner_cpuid:
    xor %eax, %eax
    cpuid
    vmmcall
inner_port:
    out %al, $0x80
    vmmcall
inner_msr:
    mov $0xc0000082, %ecx
    rdmsr
    inc %ecx
    rdmsr
    vmmcall
inner_undefined:
    try ud2
    vmmcall
inner_shutdown:
    ud2
inner_nmi:
    ask NMI
    vmmcall
inner_time:
    rdtsc
    mov %edx, %r11d
    vmmcall
svm_code
interrupt_code
