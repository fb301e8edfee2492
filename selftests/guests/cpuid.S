// SPDX-License-Identifier: GPL-2.0-only
//
// CPUID: leaves that every AMD-V guest sees, upper halves cleared, and leaves that do not exist.
// mode: long64
#include "long64.inc"
    say vendor
    mov $-1, %rax
    inc %rax
    mov $-1, %rbx
    mov $-1, %rdx
    cpuid
    report %ebx
    report %edx
    report %ecx
    shr $32, %rbx
    report %ebx
    shr $32, %rdx
    report %edx
    say extended_vendor
    mov $0x80000000, %eax
    cpuid
    cmp $0x80000008, %eax
    setae %al
    movzx %al, %eax
    report_eax
    report %ebx
    say features
    mov $1, %eax
    cpuid
    shr $24, %ebx
    report %ebx                 // the initial APIC ID
    bt $31, %ecx
    setc %al
    movzx %al, %eax
    report_eax                  // a hypervisor is present
    mov %edx, %eax
    and $0x07008971, %eax       // FPU, TSC, MSR, PAE, CX8, SEP, CMOV, FXSR, SSE, SSE2
    report_eax
    mov $0x80000001, %eax
    cpuid
    mov %edx, %eax
    and $0x20100800, %eax       // long mode, NX, SYSCALL
    report_eax
    mov %ecx, %eax
    and $4, %eax                // no SVM in the guest
    report_eax
    say beyond
    mov $0x70000000, %eax
    cpuid
    or %ebx, %eax
    or %ecx, %eax
    or %edx, %eax
    report_eax
    say osxsave_follows_cr4
    mov $1, %eax
    cpuid
    shr $27, %ecx
    and $1, %ecx
    report %ecx
    done
