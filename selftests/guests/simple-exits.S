// SPDX-License-Identifier: GPL-2.0-only
//
// Instructions that the hypervisor sees and that do nothing a guest can notice.
// mode: long64
#include "long64.inc"
    interrupts
    say pause
    pause
    rep nop
    say invd
    invd
    wbinvd
    say invlpg
    mov $0x1000, %eax
    invlpg (%rax)
    mov $MMIO, %eax
    invlpg (%rax)
    say rdtsc
    mov $-1, %rax
    mov $-1, %rdx
    rdtsc
    shl $32, %rdx               // loses nothing
    or %rdx, %rax
    mov %rax, %rbx
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    cmp %rbx, %rax
    setae %al
    movzx %al, %eax
    report_eax
    say rdtscp
    mov $0xc0000103, %ecx
    mov $0x1234, %eax
    xor %edx, %edx
    wrmsr
    mov $-1, %rcx
    rdtscp
    report %ecx
    shr $32, %rcx
    report %ecx
    say prefixes
    .byte 0x66, 0x2e; wbinvd
    .byte 0x48; pause
    .byte 0x66, 0x48; invd
    report $1
    done
interrupt_code
