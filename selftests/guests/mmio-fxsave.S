// SPDX-License-Identifier: GPL-2.0-only
//
// FXSAVE, FXRSTOR, LDMXCSR and STMXCSR on a device.
// mode: long64
// bug: kvm-few-moves
#include "long64.inc"
    interrupts
    mov $MMIO, %edi
    fninit
    movl $0x1fa0, buffer
    ldmxcsr buffer
    movdqa pattern, %xmm15
    say mxcsr
    stmxcsr 0x10(%rdi)
    movl $0x1f80, 0x10(%rdi)
    say faults
    try fxsave 8(%rdi)
    try fxrstor 8(%rdi)
    mov %cr0, %rax
    or $8, %eax
    mov %rax, %cr0
    try fxsave (%rdi)
    clts
    say save
    fxsave (%rdi)
    say restore
    try fxrstor (%rdi)          // the device's MXCSR has bits that no CPU has
    report $1
    fxsave image
    report image + 24
    report image + 0x190
    done
    .balign 16
pattern:
    .byte 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87
    .byte 0x88, 0x89, 0x8a, 0x8b, 0x8c, 0x8d, 0x8e, 0x8f
buffer:
    .quad 0
    .balign 16
image:
    .fill 512
interrupt_code
