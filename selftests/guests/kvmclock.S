// SPDX-License-Identifier: GPL-2.0-only
//
// The kvmclock page: an even version, a multiplier, and time that runs.
// mode: long64
#include "long64.inc"
    .set page, 0x180000
    interrupts
    mov $0x40000001, %eax
    cpuid
    bt $3, %eax                 // KVM_FEATURE_CLOCKSOURCE2
    jnc 9f
    say wall_clock
    mov $0x4b564d00, %ecx
    mov $page + 0x100, %eax
    xor %edx, %edx
    wrmsr
    mov page + 0x104, %eax
    test %eax, %eax
    setnz %al
    movzx %al, %eax
    report_eax
    say system_time
    mov $0x4b564d01, %ecx
    mov $page + 1, %eax
    xor %edx, %edx
    wrmsr
    pause
    rdmsr
    sub $page, %eax
    report_eax
    mov page, %eax
    and $1, %eax
    report_eax                  // even
    cmpl $0, page + 24          // the multiplier
    setne %al
    movzx %al, %eax
    report_eax
    cmpl $0, page               // written: the version is not that of an empty page
    setne %al
    movzx %al, %eax
    report_eax
    done
9:  say no_clock
    done
interrupt_code
