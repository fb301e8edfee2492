// SPDX-License-Identifier: GPL-2.0-only
//
// User mode: SYSCALL and SYSRET, ports by the TSS's bitmap, and privileged instructions that fault.
// mode: long64
// bug: kvm-wbinvd-user
#include "long64.inc"
    interrupts
    mov $0xc0000080, %ecx
    rdmsr
    or $1, %eax                 // SCE
    wrmsr
    mov $0xc0000081, %ecx
    xor %eax, %eax
    mov $(0x28 << 16 | 0x08), %edx
    wrmsr
    mov $0xc0000082, %ecx
    mov $entry, %eax
    xor %edx, %edx
    wrmsr
    mov $0xc0000084, %ecx
    mov $0x200, %eax
    wrmsr
    movw $0x68, TSS + 0x66      // the bitmap: ports 0x80 to 0x87 are refused, the others of the
    movb $0xff, TSS + 0x68 + 0x10 // first 0x400 allowed
    lgdt wide_gdt
    mov $0x40, %ax
    andb $~2, 0x1000 + 0x45
    movw $0x100, 0x1000 + 0x40
    ltr %ax
    push $USER
    push $0x70000
    push $0x2                   // IOPL 0
    push $USERCODE
    push $1f
    iretq
1:  say ports
    out %al, $0x90
    try out %al, $0x80
    try in $0x80, %al
    say privileged
    try hlt
    try cli
    try rdmsr
    try mov %cr0, %rax
    try mov %rax, %dr7
    try invlpg (%rax)
    try wbinvd
    try clts
    try lidt idt_pointer
    try .byte 0x0f, 0x01, 0xd8  // vmrun
    say syscall
    mov $0x77, %eax
    syscall
    report $2
    mov %cs, %eax
    report_eax
    done
entry:
    report $1
    sysretq
wide_gdt: .word 0x4f
    .quad 0x1000
interrupt_code
