// SPDX-License-Identifier: GPL-2.0-only
//
// Page tables in a read-only slot: what the CPU itself writes there is lost, and the guest goes on.
// mode: long64
// bug: kvm-rom-tables
// rom: yes
#include "long64.inc"
    say with_all_bits_set
    mov $ROM_TABLES, %eax
    mov %rax, %cr3
    xor %eax, %eax
    mov $5, %ecx
1:  inc %eax
    loop 1b
    out %al, $0x80
    out %eax, $0xe0
    say branches
    xor %ecx, %ecx
2:  add $3, %ecx
    cmp $9, %ecx
    jb 2b
    report %ecx
    test %ecx, %ecx
    jz 3f
    call 4f
    jmp 3f
4:  push %rcx
    pop %rdx
    ret
3:  report %edx
    say strings
    cld
    mov $free, %edi
    mov $0x11223344, %eax
    mov $4, %ecx
    rep stosl
    mov $free, %esi
    mov $free + 0x40, %edi
    mov $3, %ecx
    rep movsl
    report free + 0x48
    say flags
    stc
    pushf
    popf
    sbb %eax, %eax
    report_eax
    say intercepted
    xor %eax, %eax
    cpuid
    report %ecx
    mov $0xc0000080, %ecx
    rdmsr
    report_eax
    mov %cr0, %rax
    report_eax
    mov %cr3, %rax
    report_eax
    rdtsc
    say mmio
    mov $MMIO, %ebx
    mov (%rbx), %eax
    report_eax
    incl (%rbx)
    say writes
    mov $0x11223344, %eax
    mov %eax, ROM
    report ROM
    say with_no_bit_set
    mov $ROM_CLEAR, %eax
    mov %rax, %cr3
    xor %eax, %eax
    mov $5, %ecx
1:  inc %eax
    loop 1b
    out %eax, $0xe0
    report ROM_CLEAR
    mov $0x27, %eax
    mov %eax, ROM_CLEAR + 0x800
    say back
    mov $0x2000, %eax
    mov %rax, %cr3
    report ROM_CLEAR
    done
    .balign 16
free:
