// SPDX-License-Identifier: GPL-2.0-only
//
// RDMSR and WRMSR: registers that exist keep what is written, good values only, and others fault.
// mode: long64
#include "long64.inc"
    .macro keep msr, low=0x12345000, high=0x00007777
    mov $\msr, %ecx
    mov $\low, %eax
    mov $\high, %edx
    try wrmsr
    mov $-1, %rax
    mov $-1, %rdx
    try rdmsr
    out %eax, $0xe0
    mov %edx, %eax
    report_eax
    .endm
    interrupts
    say star
    keep 0xc0000081 0x89abcdef 0x01234567
    say lstar
    keep 0xc0000082
    say cstar
    keep 0xc0000083
    say sfmask
    keep 0xc0000084 0x47700 0
    say fs_base
    keep 0xc0000100
    say gs_base
    keep 0xc0000101
    say kernel_gs_base
    keep 0xc0000102
    say sysenter
    keep 0x174 0x10 0
    keep 0x175 0x12345000 0
    keep 0x176 0x12345000 0
    say pat
    keep 0x277 0x00070406 0x00070106
    say tsc_aux
    keep 0xc0000103 0x55 0
    say halves
    mov $0xc0000100, %ecx
    mov $0xffffffff12345678, %rax
    mov $0xffffffff00000012, %rdx
    wrmsr
    rdmsr
    mov %rax, %rbx
    shr $32, %rbx
    report %ebx
    mov %rdx, %rbx
    shr $32, %rbx
    report %ebx
    say efer
    mov $0xc0000080, %ecx
    rdmsr
    report_eax
    or $0x801, %eax             // NXE, SCE
    wrmsr
    rdmsr
    report_eax
    xor $0x100, %eax            // LME cannot change while paging is on
    try wrmsr
    rdmsr
    bts $30, %eax               // reserved
    try wrmsr
    rdmsr
    bts $12, %eax               // SVME: the guest has no SVM
    try wrmsr
    say bad_pat
    mov $0x277, %ecx
    mov $0x2, %eax
    xor %edx, %edx
    try wrmsr
    say unknown
    mov $0x12345678, %ecx
    try rdmsr
    try wrmsr
    mov $0xc0011fff, %ecx
    try rdmsr
    say tsc_runs
    mov $0x10, %ecx
    rdmsr
    mov %eax, %ebx
    rdmsr
    sub %ebx, %eax
    setnz %al
    movzx %al, %eax
    report_eax
    say user
    mov $0x10, %ecx
    user
    try rdmsr
    try wrmsr
    done
interrupt_code
